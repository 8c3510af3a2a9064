//! Held-out judgement during training: loss, token accuracy, and how many whole answers greedy decoding would reproduce.

use super::TrainError;
use super::batch::Batch;
use super::gradient::Workers;
use crate::model::Decoder;

/// What held-out rows say.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Evaluation {
    /// Mean loss over answer tokens, in nats.
    pub loss: f64,
    /// Share of answer tokens that were the likeliest, given the right ones before them.
    pub accuracy: f64,
    /// Share of answers of which every token was the likeliest: exactly those that greedy decoding reproduces.
    pub exact: f64,
}

/// Judges a decoder on packed rows.
///
/// # Errors
/// Tensor errors.
pub fn evaluate(
    workers: &Workers,
    decoder: &Decoder,
    batch: &Batch,
    micro_tokens: usize,
) -> Result<Evaluation, TrainError> {
    let outcome = workers.run(decoder, None, &batch.rows, micro_tokens)?;
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
    Ok(Evaluation { loss: outcome.loss, accuracy: outcome.accuracy(), exact })
}
