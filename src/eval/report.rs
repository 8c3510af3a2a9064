//! Combines judgements into a report: means, the worst answers, and whether the targets are met.

use std::collections::HashSet;

use serde::Serialize;
use serde_json::Value;

use super::metrics::{self, Judgement, is_minimal, judge};
use super::rows::Pair;
use crate::task::Event;

/// EPR must be above this.
pub const EPR_TARGET: f64 = 0.90;
/// NP must be above this.
pub const NP_TARGET: f64 = 0.95;
/// How many of the worst answers a report names.
const WORST: usize = 5;

/// An answer with its judgement.
#[derive(Debug, Clone)]
pub struct Judged {
    /// The row's id.
    pub id: Value,
    /// The event to encode.
    pub event: Event,
    /// The answer.
    pub output: String,
    /// Its scores and reasons.
    pub judgement: Judgement,
}

impl From<Pair> for Judged {
    fn from(pair: Pair) -> Self {
        let prompt = pair.prompt_texts();
        let prompt: Vec<&str> = prompt.iter().map(String::as_str).collect();
        let judgement = judge(&pair.event.content, &pair.output, &prompt);
        Self { id: pair.id, event: pair.event, output: pair.output, judgement }
    }
}

/// Means over answers. An answer that doesn't parse counts as 0, or as 1 where 0 is good.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Number of answers.
    pub rows: usize,
    /// How many of them are no JSON object.
    pub unparsed: usize,
    /// Mean entity preservation.
    pub epr: f64,
    /// Mean number preservation.
    pub np: f64,
    /// Mean fabrication.
    pub fr: f64,
    /// Share of answers that echo the instructions.
    pub ted: f64,
    /// Share of answers that comply with the schema.
    pub sc: f64,
    /// Share of minimal inputs kept minimal; `None` without minimal inputs.
    pub mih: Option<f64>,
    /// Number of minimal inputs.
    pub minimal_inputs: usize,
    /// Mean length of the gist over that of the input.
    pub gist_ratio: Option<f64>,
    /// Mean length of the summary over that of the input.
    pub summary_ratio: Option<f64>,
    /// Distinct gists per answer: low if a model says the same about everything.
    pub distinct_gists: f64,
    /// The answers with the lowest EPR, below 1, lowest first.
    pub worst: Vec<Worst>,
}

/// A bad answer, with reasons.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Worst {
    /// The row's id.
    pub id: Value,
    /// Its entity preservation.
    pub epr: f64,
    /// What is wrong, one reason per item.
    pub reasons: Vec<String>,
}

impl Summary {
    /// Averages judgements; without answers, every share is 0.
    pub fn new(judged: &[Judged]) -> Self {
        let scores = || judged.iter().map(|j| &j.judgement.scores);
        let minimal: Vec<f64> = judged
            .iter()
            .filter(|j| is_minimal(&j.event.content))
            .map(|j| f64::from(j.judgement.scores.mih))
            .collect();
        let gists: HashSet<String> = judged.iter().filter_map(|j| field(j, "gist")).collect();
        Self {
            rows: judged.len(),
            unparsed: scores().filter(|s| !s.parsed).count(),
            epr: mean(scores().map(|s| s.epr)).unwrap_or_default(),
            np: mean(scores().map(|s| s.np)).unwrap_or_default(),
            fr: mean(scores().map(metrics::Scores::counted_fr)).unwrap_or_default(),
            ted: mean(scores().map(metrics::Scores::counted_ted)).unwrap_or_default(),
            sc: mean(scores().map(|s| f64::from(s.sc))).unwrap_or_default(),
            mih: mean(minimal.iter().copied()),
            minimal_inputs: minimal.len(),
            gist_ratio: mean(judged.iter().filter_map(|j| ratio(j, "gist"))),
            summary_ratio: mean(judged.iter().filter_map(|j| ratio(j, "summary"))),
            distinct_gists: gists.len() as f64 / judged.len().max(1) as f64,
            worst: worst(judged),
        }
    }

    /// Name, mean and target of each metric.
    pub fn metrics(&self) -> [(&'static str, Option<f64>, &'static str); 6] {
        [
            ("EPR entity preservation", Some(self.epr), "> 0.90"),
            ("NP number preservation", Some(self.np), "> 0.95"),
            ("FR fabrication", Some(self.fr), "< 0.05, watched"),
            ("TED template echo", Some(self.ted), "0"),
            ("MIH minimal input", self.mih, "1"),
            ("SC schema compliance", Some(self.sc), "1"),
        ]
    }

    /// Other facts, in words.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let share = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.3}"));
        vec![
            ("answers", self.rows.to_string()),
            ("not JSON (counted as failed)", self.unparsed.to_string()),
            ("minimal inputs", self.minimal_inputs.to_string()),
            ("gist / input length", share(self.gist_ratio)),
            ("summary / input length", share(self.summary_ratio)),
            ("distinct gists", share(Some(self.distinct_gists))),
        ]
    }

    /// The targets that are missed, with both values; FR and MIH are not part of the gate.
    pub fn missed(&self) -> Vec<String> {
        let mut missed = Vec::new();
        let mut check = |name: &str, met: bool, value: f64, target: &str| {
            if !met {
                missed.push(format!("{name} is {value:.4}, target {target}"));
            }
        };
        check("EPR", self.epr > EPR_TARGET, self.epr, "> 0.90");
        check("NP", self.np > NP_TARGET, self.np, "> 0.95");
        check("TED", self.ted <= 0.0, self.ted, "0");
        check("SC", self.sc >= 1.0, self.sc, "1");
        missed
    }
}

impl Worst {
    fn new(judged: &Judged) -> Self {
        let Judgement { scores, missing, echoes, breaches, .. } = &judged.judgement;
        let mut reasons = breaches.clone();
        if !missing.is_empty() {
            let more =
                if missing.len() > 6 { format!(" and {} more", missing.len() - 6) } else { String::new() };
            let named: Vec<String> = missing.iter().take(6).map(|entity| format!("{entity:?}")).collect();
            reasons.push(format!("lacks {}{more}", named.join(", ")));
        }
        reasons.extend(echoes.first().map(|phrase| format!("echoes {phrase:?}")));
        Self { id: judged.id.clone(), epr: scores.epr, reasons }
    }
}

fn worst(judged: &[Judged]) -> Vec<Worst> {
    let bad = |j: &&Judged| {
        let scores = j.judgement.scores;
        scores.epr < 1.0 || scores.ted > 0 || scores.sc == 0
    };
    let mut bad: Vec<&Judged> = judged.iter().filter(bad).collect();
    bad.sort_by(|a, b| a.judgement.scores.epr.total_cmp(&b.judgement.scores.epr));
    bad.into_iter().take(WORST).map(Worst::new).collect()
}

/// The mean; `None` if there are no values.
pub fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0_u32, 0.0), |(count, sum), value| (count + 1, sum + value));
    (count > 0).then(|| sum / f64::from(count))
}

fn field(judged: &Judged, name: &str) -> Option<String> {
    metrics::parse(&judged.output).ok()?.get(name)?.as_str().map(str::to_owned)
}

fn ratio(judged: &Judged, name: &str) -> Option<f64> {
    let input = judged.event.content.chars().count();
    if input == 0 {
        return None;
    }
    Some(field(judged, name)?.chars().count() as f64 / input as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::judge;

    fn judged(id: u32, event: &str, output: &str) -> Judged {
        Judged {
            id: id.into(),
            event: Event::new("mcp", "general", event),
            output: output.to_owned(),
            judgement: judge(event, output, &[]),
        }
    }

    #[test]
    fn an_answer_that_does_not_parse_drags_every_mean() {
        let good = crate::task::gold::encode(&Event::new("mcp", "general", "Saw 12 errors in src/a.go"));
        let rows = [
            judged(1, "Saw 12 errors in src/a.go", &good.to_compact_json()),
            judged(2, "Saw 7 errors", "sorry"),
        ];
        let summary = Summary::new(&rows);
        assert_eq!((summary.rows, summary.unparsed, summary.minimal_inputs), (2, 1, 2));
        for half in
            [summary.epr, summary.np, summary.sc, summary.ted, summary.distinct_gists, summary.mih.unwrap()]
        {
            assert!((half - 0.5).abs() < 1e-12, "{summary:?}");
        }
        assert!(summary.fr >= 0.5);
        assert_eq!(summary.missed().len(), 4, "{:?}", summary.missed());
        assert_eq!(summary.worst.len(), 1);
        assert_eq!(summary.worst[0].id, 2);
        assert!(summary.worst[0].reasons[0].contains("not JSON"), "{:?}", summary.worst);
        assert!(Summary::new(&rows[..1]).missed().is_empty());
    }
}
