//! Loss curves of runs as SVG: raw and smoothed training loss and held-out loss over tokens.

use std::fmt::Write;

use super::log::Step;
use crate::svg;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
/// Left, right, top and bottom margins.
const MARGINS: [f64; 4] = [64.0, 20.0, 40.0, 52.0];
/// Training and held-out loss of each run.
const COLOURS: [(&str, &str); 4] =
    [("#4269d0", "#d6541a"), ("#3ca951", "#a463f2"), ("#6f6f6f", "#b8860b"), ("#2aa1b3", "#c2185b")];
/// Most points of a curve.
const POINTS: usize = 400;

/// A run to be drawn.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// Name in the legend; empty if there is only one run.
    pub name: &'a str,
    /// Its log.
    pub steps: &'a [Step],
}

/// Millions of tokens, and a loss.
type Points = Vec<(f64, f64)>;

struct Series {
    points: Points,
    colour: &'static str,
    width: f64,
    opacity: f64,
    label: Option<String>,
}

/// Draws the curves on a logarithmic scale, because learning to copy reduces the loss by orders of
/// magnitude.
pub fn svg(runs: &[Run]) -> String {
    let all: Vec<Series> =
        runs.iter().zip(COLOURS.iter().cycle()).flat_map(|(run, colours)| series(run, *colours)).collect();
    let losses =
        || all.iter().flat_map(|series| &series.points).map(|(_, loss)| *loss).filter(|loss| *loss > 0.0);
    let low = losses().fold(f64::INFINITY, f64::min).min(1.0).log10();
    let high = losses().fold(0.0, f64::max).max(1.0).log10();
    let (low, high) = ((low * 10.0).floor() / 10.0, (high * 10.0).ceil() / 10.0 + 0.05);
    let tokens =
        all.iter().filter_map(|series| series.points.last()).map(|(tokens, _)| *tokens).fold(1e-6, f64::max);
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
                // Rounded, because 5 * 0.01 is not 0.05 in binary.
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
    let mut label_at = left;
    for Series { points, colour, width, opacity, label } in &all {
        let points: Vec<String> = points.iter().map(|(t, l)| format!("{:.1},{:.1}", x(*t), y(*l))).collect();
        add(format_args!(
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" stroke-opacity=\"{opacity}\" points=\"{}\"/>",
            points.join(" ")
        ));
        if let Some(label) = label {
            let text = svg::escaped(label);
            add(format_args!("<text x=\"{label_at}\" y=\"24\" fill=\"{colour}\">{text}</text>"));
            // About seven units per letter at this size.
            label_at += 20.0 + 7.0 * label.chars().count() as f64;
        }
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
    out + "</svg>\n"
}

/// The curves of a run: raw (pale), smoothed, held out.
fn series(run: &Run, (train, eval): (&'static str, &'static str)) -> [Series; 3] {
    let held_out: Points =
        run.steps.iter().filter_map(|step| Some((step.tokens as f64 / 1e6, step.eval?.loss))).collect();
    let label = |what: &str| Some(format!("{} {what}", run.name).trim().to_owned());
    [
        Series { points: raw(run.steps), colour: train, width: 0.8, opacity: 0.3, label: None },
        Series {
            points: smoothed(run.steps),
            colour: train,
            width: 1.5,
            opacity: 1.0,
            label: label("training (smoothed)"),
        },
        Series { points: held_out, colour: eval, width: 2.0, opacity: 1.0, label: label("held out") },
    ]
}

/// The raw losses; long runs are sampled evenly.
fn raw(steps: &[Step]) -> Points {
    let every = steps.len().div_ceil(4 * POINTS).max(1);
    steps.iter().step_by(every).map(|step| (step.tokens as f64 / 1e6, step.loss)).collect()
}

/// An exponential average over a hundredth of the run (at least ten steps), with the bias
/// correction of Adam.
pub fn smoothed(steps: &[Step]) -> Points {
    let keep = 1.0 - 1.0 / (steps.len() as f64 / 100.0).max(10.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let mut points: Points = steps
        .iter()
        .map(|step| {
            sum = keep * sum + (1.0 - keep) * step.loss;
            weight = keep * weight + (1.0 - keep);
            (step.tokens as f64 / 1e6, sum / weight)
        })
        .collect();
    let every = points.len().div_ceil(POINTS).max(1);
    let last = points.last().copied();
    points = points.into_iter().step_by(every).collect();
    if let Some(last) = last.filter(|last| points.last() != Some(last)) {
        points.push(last);
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::evaluate::Evaluation;

    fn steps(count: u64) -> Vec<Step> {
        let step = |step: u64| Step {
            step,
            loss: 8.0 / step as f64,
            terms: None,
            step_term: None,
            accuracy: 0.5,
            lr: 1.0,
            grad_norm: 1.0,
            tokens: step * 4096,
            eval: step.is_multiple_of(10).then_some(Evaluation {
                loss: 9.0 / step as f64,
                accuracy: 0.0,
                exact: 0.0,
            }),
            domains: [].into(),
        };
        (1..=count).map(step).collect()
    }

    #[test]
    fn all_curves_stay_inside_the_axes() {
        let (long, short) = (steps(1000), steps(30));
        let drawn = svg(&[Run { name: "one", steps: &long }, Run { name: "<two>", steps: &short }]);
        let lines: Vec<&str> =
            drawn.split("points=\"").skip(1).map(|part| part.split('"').next().unwrap()).collect();
        assert_eq!(lines.len(), 6);
        assert!(lines[0].split(' ').count() == 1000 && lines[1].split(' ').count() >= 300);
        for point in lines.iter().flat_map(|line| line.split(' ')) {
            let (x, y) = point.split_once(',').unwrap();
            let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
            assert!((64.0..=740.0).contains(&x) && (40.0..=368.0).contains(&y), "{point}");
        }
        assert!(drawn.contains("tokens (millions)") && drawn.contains("&lt;two&gt; held out"));
        assert!(svg(&[]).ends_with("</svg>\n") && svg(&[Run { name: "", steps: &[] }]).ends_with("</svg>\n"));
    }

    #[test]
    fn a_smoothed_curve_begins_at_the_first_loss_and_ends_at_the_last_step() {
        let steps = steps(500);
        let points = smoothed(&steps);
        assert!((points[0].1 - 8.0).abs() < 1e-12);
        assert!((points.last().unwrap().0 - 500.0 * 4096.0 / 1e6).abs() < 1e-12);
        assert!(points.windows(2).all(|pair| pair[1].1 < pair[0].1));
    }
}
