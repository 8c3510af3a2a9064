//! Shared parts of the program's SVG drawings.

/// Begins a drawing with a title and a white background.
pub fn open(width: f64, height: f64, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<title>{}</title>\n<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n",
        escaped(title)
    )
}

/// A text escaped for use between tags.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The distance between ticks: 1, 2 or 5 times a power of ten, at least `least`.
pub fn nice_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * power).find(|step| *step >= least).unwrap_or(power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_stand_at_round_numbers() {
        for (least, step) in [(0.3, 0.5), (1.0, 1.0), (1.1, 2.0), (23.0, 50.0), (60.0, 100.0)] {
            assert!((nice_step(least) - step).abs() < 1e-9 * step, "{least}");
        }
        assert_eq!(escaped("a<b & c>"), "a&lt;b &amp; c&gt;");
    }
}
