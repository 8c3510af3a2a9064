//! Heat maps of measurements as SVG: layers and heads from top to bottom, steps from left to
//! right, a logarithmic colour scale.

use std::fmt::Write;

use super::metrics::{LayerMetrics, Measurement};
use crate::svg;

/// Width of the area of cells, and height of one cell.
const WIDTH: f64 = 640.0;
const CELL: f64 = 14.0;
/// Left, right, top and bottom margins.
const MARGINS: [f64; 4] = [84.0, 96.0, 40.0, 44.0];
/// Most measurements that are drawn; longer runs are sampled evenly.
const COLUMNS: usize = 200;
/// Dark to bright: evenly spaced colours of viridis (van der Walt & Smith 2015).
const COLOURS: [[f64; 3]; 6] = [
    [68.0, 1.0, 84.0],
    [65.0, 68.0, 135.0],
    [42.0, 120.0, 142.0],
    [34.0, 168.0, 132.0],
    [122.0, 209.0, 81.0],
    [253.0, 231.0, 37.0],
];

/// Draws every quantity that was measured; returns names and SVGs.
pub fn maps(measured: &[Measurement]) -> Vec<(&'static str, String)> {
    let every = measured.len().div_ceil(COLUMNS).max(1);
    let shown: Vec<&Measurement> = measured.iter().step_by(every).collect();
    let quantities: [(&str, &str, Values); 5] = [
        ("gradient", "gradient norm per layer", |layer| vec![layer.gradient]),
        ("gradient-by-head", "gradient norm per head", |layer| layer.gradient_by_head.clone()),
        ("variance", "variance behind each block", |layer| vec![layer.variance]),
        ("variance-by-head", "variance of each head's context", |layer| layer.variance_by_head.clone()),
        ("entropy-by-head", "entropy of attention per head (nats)", |layer| layer.entropy_by_head.clone()),
    ];
    quantities
        .into_iter()
        .map(|(name, title, values)| (name, rows(&shown, values), title))
        .filter(|(_, rows, _)| !rows.is_empty())
        .map(|(name, rows, title)| {
            let steps: Vec<u64> = shown.iter().map(|measurement| measurement.step).collect();
            (name, draw(title, &steps, &rows))
        })
        .collect()
}

/// The values of a layer: one, or one per head.
type Values = fn(&LayerMetrics) -> Vec<f64>;

/// A label and a value for each measurement.
fn rows(shown: &[&Measurement], values: Values) -> Vec<(String, Vec<f64>)> {
    let Some(first) = shown.first() else { return vec![] };
    let mut rows = Vec::new();
    for (layer, metrics) in first.layers.iter().enumerate() {
        let parts = values(metrics).len();
        for part in 0..parts {
            let label = if parts == 1 { format!("layer {layer}") } else { format!("{layer}.{part}") };
            let of = |measurement: &&Measurement| values(&measurement.layers[layer])[part];
            rows.push((label, shown.iter().map(of).collect()));
        }
    }
    rows
}

fn draw(title: &str, steps: &[u64], rows: &[(String, Vec<f64>)]) -> String {
    let [left, right, top, bottom] = MARGINS;
    let depth = CELL * rows.len() as f64;
    let (width, height) = (left + WIDTH + right, top + depth + bottom);
    let logs = |value: f64| value.max(1e-12).log10();
    let values = || rows.iter().flat_map(|(_, values)| values).map(|&value| logs(value));
    let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
    let share = |value: f64| if high > low { (logs(value) - low) / (high - low) } else { 0.5 };
    let cell = WIDTH / steps.len() as f64;
    let mut out = svg::open(width, height, title);
    let mut add = |line: std::fmt::Arguments| writeln!(out, "{line}").expect("a String takes every text");
    add(format_args!("<text x=\"{left}\" y=\"24\">{}</text>", svg::escaped(title)));
    for (at, (label, values)) in rows.iter().enumerate() {
        let y = top + CELL * at as f64;
        add(format_args!(
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" font-size=\"10\">{label}</text>",
            left - 6.0,
            y + CELL - 3.0
        ));
        for (column, &value) in values.iter().enumerate() {
            add(format_args!(
                "<rect x=\"{:.2}\" y=\"{y:.1}\" width=\"{:.2}\" height=\"{CELL}\" fill=\"{}\"><title>{label}, step {}: {value:.4e}</title></rect>",
                left + cell * column as f64,
                cell + 0.05,
                colour(share(value)),
                steps[column]
            ));
        }
    }
    // The legend: dark at the bottom, bright at the top.
    let scale = left + WIDTH + 16.0;
    for part in 0..20 {
        let y = top + depth * f64::from(19 - part) / 20.0;
        let fill = colour((f64::from(part) + 0.5) / 20.0);
        add(format_args!(
            "<rect x=\"{scale}\" y=\"{y:.1}\" width=\"12\" height=\"{:.1}\" fill=\"{fill}\"/>",
            depth / 20.0 + 0.2
        ));
    }
    for (log, y) in [(high, top + 10.0), (low, top + depth)] {
        let value = 10f64.powf(log);
        add(format_args!("<text x=\"{}\" y=\"{y:.1}\" font-size=\"10\">{value:.2e}</text>", scale + 16.0));
    }
    for (step, x, anchor) in [(steps.first(), left, "start"), (steps.last(), left + WIDTH, "end")] {
        if let Some(step) = step {
            let y = top + depth + 16.0;
            add(format_args!("<text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">step {step}</text>"));
        }
    }
    out + "</svg>\n"
}

/// The colour of a value from 0 to 1.
fn colour(share: f64) -> String {
    let place = share.clamp(0.0, 1.0) * (COLOURS.len() - 1) as f64;
    let below = (place as usize).min(COLOURS.len() - 2);
    let part = place - below as f64;
    let [r, g, b] = [0, 1, 2].map(|at| {
        let (from, to) = (COLOURS[below][at], COLOURS[below + 1][at]);
        (from + (to - from) * part).round() as u8
    });
    format!("#{r:02x}{g:02x}{b:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_has_a_cell_for_each_part_and_measurement() {
        let layer = |gradient: f64, heads: usize| LayerMetrics {
            gradient,
            gradient_by_head: vec![gradient; heads],
            variance: 1.0,
            variance_by_head: vec![1.0; 2],
            entropy_by_head: vec![0.0; heads],
        };
        // The second layer has no attention.
        let measurement =
            |step: u64| Measurement { step, layers: vec![layer(step as f64, 2), layer(100.0, 0)] };
        let maps = maps(&(1..=3).map(measurement).collect::<Vec<_>>());
        let cells = |name: &str| {
            let (_, drawn) = maps.iter().find(|(found, _)| *found == name).unwrap();
            drawn.matches("<title>").count() - 1
        };
        assert_eq!((cells("gradient"), cells("gradient-by-head"), cells("variance-by-head")), (6, 6, 12));
        let (_, drawn) = &maps[0];
        assert!(
            drawn.contains("layer 1, step 3: 1.0000e2")
                && drawn.contains(&colour(0.0))
                && drawn.contains(&colour(1.0))
        );
        assert_eq!((colour(0.0), colour(1.0)), ("#440154".into(), "#fde725".into()));
        assert!(super::maps(&[]).is_empty());
    }
}
