//! A run as an SVG: answers per second, tokens per second and time to the first piece, as bars by concurrency.

use std::fmt::Write;

use super::report::{Measured, Report, RoundFigures};
use super::statistics::Spread;
use crate::svg;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 380.0;
/// Of one panel: left of its axis, and right of its last bar.
const MARGINS: [f64; 2] = [56.0, 14.0];
const TOP: f64 = 86.0;
const BASE: f64 = 330.0;
const COLOURS: [&str; 2] = ["#4269d0", "#d6541a"];

/// A panel: its title and what is drawn of a round and of all rounds.
type Panel = (&'static str, fn(&RoundFigures) -> f64, fn(&Measured) -> f64);

const PANELS: [Panel; 3] = [
    ("requests/s", |round| round.requests_per_second, |all| all.requests_per_second),
    ("tokens/s", |round| round.tokens_per_second, |all| all.tokens_per_second),
    ("first piece, p50 (ms)", |round| round.ttft_p50_ms, |all| all.ttft_ms.map_or(0.0, |ttft| ttft.p50)),
];

/// Draws a report. Bars are the values over all rounds, the thin lines reach from the lowest to the highest round.
pub fn svg(report: &Report) -> String {
    let workload = format!("{:?}", report.workload).to_lowercase();
    let mut out = svg::open(WIDTH, HEIGHT, &format!("bespoke bench serve, {workload}"));
    let mut add = |line: std::fmt::Arguments| writeln!(out, "{line}").expect("a String takes every text");
    for (index, endpoint) in report.endpoints.iter().enumerate() {
        let (colour, x) = (COLOURS[index % 2], MARGINS[0] + 450.0 * index as f64);
        add(format_args!(
            "<rect x=\"{x}\" y=\"18\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{}\" y=\"29\">{}</text>",
            x + 18.0,
            svg::escaped(&format!("{} ({})", endpoint.url, endpoint.model))
        ));
    }
    let width = WIDTH / PANELS.len() as f64;
    for (number, (title, of_round, of_all)) in PANELS.into_iter().enumerate() {
        let (left, right) = (width * number as f64 + MARGINS[0], width * (number + 1) as f64 - MARGINS[1]);
        let bars: Vec<(usize, usize, f64, Spread)> = (0..report.levels.len())
            .flat_map(|level| (0..report.endpoints.len()).map(move |endpoint| (level, endpoint)))
            .filter_map(|(level, endpoint)| {
                let measured = report.levels[level].measured.get(endpoint)?;
                let spread = Spread::of(measured.rounds.iter().map(of_round))?;
                Some((level, endpoint, of_all(measured), spread))
            })
            .collect();
        let high = bars.iter().map(|(.., value, spread)| value.max(spread.max)).fold(1e-6, f64::max) * 1.05;
        let y = |value: f64| BASE - (BASE - TOP) * value / high;
        add(format_args!("<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{title}</text>", TOP - 16.0));
        let spacing = svg::nice_step(high / 5.0);
        for tick in 0..=(high / spacing) as usize {
            // Rounded: 3 * 0.1 is not 0.3 in binary.
            let value = (tick as f64 * spacing * 1e6).round() / 1e6;
            let at = y(value);
            add(format_args!(
                "<line x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
                left - 6.0,
                at + 4.0
            ));
        }
        let group = (right - left) / report.levels.len().max(1) as f64;
        let bar = group * 0.7 / report.endpoints.len().max(1) as f64;
        for (level, endpoint, value, spread) in bars {
            let x = left + group * (level as f64 + 0.15) + bar * endpoint as f64;
            let (at, centre) = (y(value), x + bar / 2.0);
            add(format_args!(
                "<rect class=\"bar\" x=\"{x:.1}\" y=\"{at:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>\
                 <line x1=\"{centre:.1}\" x2=\"{centre:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#333\"/>",
                bar * 0.92,
                BASE - at,
                COLOURS[endpoint % 2],
                y(spread.max),
                y(spread.min)
            ));
        }
        for (index, level) in report.levels.iter().enumerate() {
            add(format_args!(
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                left + group * (index as f64 + 0.5),
                BASE + 18.0,
                level.concurrency
            ));
        }
        add(format_args!("<line x1=\"{left}\" x2=\"{right}\" y1=\"{BASE}\" y2=\"{BASE}\" stroke=\"#333\"/>"));
    }
    add(format_args!(
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">requests at once; workload {workload}</text>",
        WIDTH / 2.0,
        HEIGHT - 10.0
    ));
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::eval::speed::report::{Endpoint, Level, Round};
    use crate::eval::speed::{Answer, Kind, Workload};

    #[test]
    fn bars_stand_on_the_axis_and_fit_under_the_title() {
        let round = |ms: u64| Round {
            elapsed: Duration::from_millis(ms),
            answers: vec![(Kind::Chat, Answer { first: Duration::from_millis(ms), ..Answer::default() })],
            errors: vec![],
        };
        let endpoint = Endpoint { url: "http://a".into(), model: "<m>".into() };
        let levels =
            [1, 4].map(|n| Level::new(n, &[vec![round(100), round(300)], vec![round(500)]])).to_vec();
        let report = Report {
            workload: Workload::Chat,
            requests: 1,
            seed: 1,
            max_tokens: 1,
            chat_tokens: 1,
            fixed_length: true,
            endpoints: vec![endpoint.clone(), endpoint],
            levels,
            shared_prefix: None,
        };
        let drawn = svg(&report);
        let bars: Vec<&str> = drawn.split("class=\"bar\"").skip(1).collect();
        assert_eq!(bars.len(), 3 * 2 * 2);
        for bar in bars {
            let value = |key: &str| -> f64 {
                let rest = bar.split_once(&format!(" {key}=\"")).unwrap().1;
                rest.split('"').next().unwrap().parse().unwrap()
            };
            assert!((value("y") + value("height") - BASE).abs() < 0.2, "{bar}");
            assert!(value("y") >= TOP && value("x") + value("width") <= WIDTH, "{bar}");
        }
        assert!(drawn.contains("&lt;m&gt;") && drawn.ends_with("</svg>\n"));
        svg(&Report { levels: vec![], endpoints: vec![], ..report });
    }
}
