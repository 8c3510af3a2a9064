//! The loss curve of a run as an SVG: training loss (smoothed) and held-out loss over tokens.

use std::fmt::Write;

use super::log::Step;
use crate::svg;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
/// Left, right, top and bottom margins.
const MARGINS: [f64; 4] = [64.0, 20.0, 40.0, 52.0];
const TRAIN: &str = "#4269d0";
const EVAL: &str = "#d6541a";

/// Draws the curve; logarithmic in the loss, because learning to copy takes it down by orders of magnitude.
pub fn svg(steps: &[Step]) -> String {
    let train = smoothed(steps);
    let eval: Vec<(f64, f64)> =
        steps.iter().filter_map(|step| Some((step.tokens as f64 / 1e6, step.eval?.loss))).collect();
    let losses = || train.iter().chain(&eval).map(|(_, loss)| *loss).filter(|loss| *loss > 0.0);
    let low = losses().fold(f64::INFINITY, f64::min).min(1.0).log10();
    let high = losses().fold(0.0, f64::max).max(1.0).log10();
    let (low, high) = ((low * 10.0).floor() / 10.0, (high * 10.0).ceil() / 10.0 + 0.05);
    let tokens = train.last().map_or(1.0, |(tokens, _)| *tokens).max(1e-6);
    let [left, right, top, bottom] = MARGINS;
    let (inner, depth) = (WIDTH - left - right, HEIGHT - top - bottom);
    let x = |tokens_now: f64| left + inner * tokens_now / tokens;
    let y = |loss: f64| top + depth * (high - loss.max(1e-9).log10()) / (high - low);

    let mut out = svg::open(WIDTH, HEIGHT, "Loss over tokens");
    let mut add = |line: std::fmt::Arguments| writeln!(out, "{line}").expect("a String takes every text");
    for exponent in -4..=1 {
        for digit in [1.0, 2.0, 5.0] {
            let loss = digit * 10f64.powi(exponent);
            if loss.log10() < low || loss.log10() > high {
                continue;
            }
            let at = y(loss);
            add(format_args!(
                "<line x1=\"{left}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - right,
                left - 8.0,
                at + 4.0,
                // Rounded: 5 * 0.01 is not 0.05 in binary.
                (loss * 1e6).round() / 1e6
            ));
        }
    }
    let spacing = svg::nice_step(tokens / 6.0);
    for tick in 0..=(tokens / spacing) as usize {
        let (value, at) = (tick as f64 * spacing, x(tick as f64 * spacing));
        let base = HEIGHT - bottom;
        add(format_args!(
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{base}\" y2=\"{}\" stroke=\"#333\"/>\
             <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            base + 5.0,
            base + 20.0,
            (value * 1e6).round() / 1e6
        ));
    }
    let base = HEIGHT - bottom;
    add(format_args!("<line x1=\"{left}\" x2=\"{left}\" y1=\"{top}\" y2=\"{base}\" stroke=\"#333\"/>"));
    add(format_args!(
        "<line x1=\"{left}\" x2=\"{}\" y1=\"{base}\" y2=\"{base}\" stroke=\"#333\"/>",
        WIDTH - right
    ));
    for (series, colour, width) in [(&train, TRAIN, 1.5), (&eval, EVAL, 2.0)] {
        let points: Vec<String> = series.iter().map(|(t, l)| format!("{:.1},{:.1}", x(*t), y(*l))).collect();
        add(format_args!(
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" points=\"{}\"/>",
            points.join(" ")
        ));
    }
    let centre = left + inner / 2.0;
    add(format_args!(
        "<text x=\"{centre}\" y=\"{}\" text-anchor=\"middle\">tokens (millions)</text>",
        HEIGHT - 12.0
    ));
    let middle = top + depth / 2.0;
    add(format_args!(
        "<text x=\"16\" y=\"{middle}\" text-anchor=\"middle\" transform=\"rotate(-90 16 {middle})\">\
         loss per answer token (nats, log scale)</text>"
    ));
    add(format_args!("<text x=\"{left}\" y=\"24\" fill=\"{TRAIN}\">training (smoothed)</text>"));
    add(format_args!("<text x=\"{}\" y=\"24\" fill=\"{EVAL}\">held out</text>", left + 160.0));
    out + "</svg>\n"
}

/// Means over at most 400 equal runs of steps: (millions of tokens, loss).
fn smoothed(steps: &[Step]) -> Vec<(f64, f64)> {
    let mean = |run: &[Step]| {
        let loss = run.iter().map(|step| step.loss).sum::<f64>() / run.len() as f64;
        (run[run.len() / 2].tokens as f64 / 1e6, loss)
    };
    steps.chunks(steps.len().div_ceil(400).max(1)).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::evaluate::Evaluation;

    #[test]
    fn both_curves_stay_inside_the_axes() {
        let step = |step: u64| Step {
            step,
            loss: 8.0 / step as f64,
            accuracy: 0.5,
            lr: 1.0,
            grad_norm: 1.0,
            tokens: step * 4096,
            tokens_per_s: 4000.0,
            seconds: step as f64,
            eval: step.is_multiple_of(10).then_some(Evaluation {
                loss: 9.0 / step as f64,
                accuracy: 0.0,
                exact: 0.0,
            }),
        };
        let drawn = svg(&(1..=1000).map(step).collect::<Vec<_>>());
        let lines: Vec<&str> =
            drawn.split("points=\"").skip(1).map(|part| part.split('"').next().unwrap()).collect();
        assert_eq!(lines.len(), 2);
        for line in &lines {
            assert!(line.split(' ').count() >= 100, "{line}");
            for point in line.split(' ') {
                let (x, y) = point.split_once(',').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!((64.0..=740.0).contains(&x) && (40.0..=368.0).contains(&y), "{point}");
            }
        }
        assert!(drawn.contains("tokens (millions)") && svg(&[]).ends_with("</svg>\n"));
    }
}
