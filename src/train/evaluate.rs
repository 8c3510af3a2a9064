//! Evaluation on held-out rows during training: loss, token accuracy, and the share of answers
//! that greedy decoding would reproduce.

use super::TrainError;
use super::batch::Batch;
use super::gradient::accumulate;
use super::objective::{Objective, StepContext};
use crate::device::Workers;

/// The result on held-out rows.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Evaluation {
    /// Mean loss over answer tokens, in nats.
    pub loss: f64,
    /// Share of answer tokens that were the most likely, given the right ones before them.
    pub accuracy: f64,
    /// Share of answers whose tokens were all the most likely: exactly those that greedy decoding
    /// reproduces.
    pub exact: f64,
}

impl Evaluation {
    /// Combines several batches: means over all their tokens and answers.
    pub fn together(parts: &[(Self, &Batch)]) -> Self {
        let mean = |of: fn(&Self) -> f64, size: fn(&Batch) -> usize| {
            let sizes: f64 = parts.iter().map(|(_, batch)| size(batch) as f64).sum();
            let sum: f64 = parts.iter().map(|(part, batch)| of(part) * size(batch) as f64).sum();
            sum / sizes.max(1.0)
        };
        Self {
            loss: mean(|part| part.loss, Batch::targets),
            accuracy: mean(|part| part.accuracy, Batch::targets),
            exact: mean(|part| part.exact, Batch::documents),
        }
    }
}

impl std::fmt::Display for Evaluation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { loss, accuracy, exact } = self;
        let (accuracy, exact) = (accuracy * 100.0, exact * 100.0);
        write!(f, "loss {loss:.4} | token accuracy {accuracy:.2} % | whole answers {exact:.1} %")
    }
}

/// Evaluates a model on packed rows.
///
/// # Errors
/// Tensor errors.
pub fn evaluate(
    workers: &Workers,
    objective: &dyn Objective,
    context: StepContext,
    batch: &Batch,
    micro_tokens: usize,
) -> Result<Evaluation, TrainError> {
    let outcome = accumulate(workers, objective, context, None, &batch.rows, micro_tokens)?;
    let (mut at, mut answers, mut exact) = (0, 0, 0);
    for row in &batch.rows {
        for &(start, len) in &row.documents {
            let inside = |position: u32| (start..start + len).contains(&(position as usize));
            let count = row.targets.iter().filter(|(position, _)| inside(*position)).count();
            answers += 1;
            exact += usize::from(outcome.hits[at..at + count].iter().all(|&hit| hit));
            at += count;
        }
    }
    let exact = exact as f64 / answers.max(1) as f64;
    Ok(Evaluation { loss: outcome.terms.cross_entropy, accuracy: outcome.accuracy(), exact })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::batch::PackedRow;

    #[test]
    fn several_batches_count_by_their_tokens_and_answers() {
        let batch = |documents: usize, targets: usize| Batch {
            rows: vec![PackedRow {
                ids: vec![0; 8],
                documents: vec![(0, 1); documents],
                targets: vec![(0, 0); targets],
            }],
            too_long: 0,
        };
        let (a, b) = (batch(1, 3), batch(3, 1));
        let evaluation = |value: f64| Evaluation { loss: value, accuracy: value, exact: value };
        let found = Evaluation::together(&[(evaluation(0.0), &a), (evaluation(1.0), &b)]);
        assert_eq!(found, Evaluation { loss: 0.25, accuracy: 0.25, exact: 0.75 });
    }
}
