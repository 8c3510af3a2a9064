//! Gradients of a batch: its rows are divided into parts, whose gradients are accumulated in a fixed
//! order, so that the result depends neither on the number of threads nor on their timing.

use candle_core::{Tensor, Var};

use super::TrainError;
use super::batch::PackedRow;
use super::in_place::blend;
use super::objective::{Objective, Terms};
use crate::device::Workers;
use crate::model::Parameters;
use crate::model::ops::Gradients;

/// The result of a batch.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The objective: mean loss over answer tokens, in nats.
    pub loss: f64,
    /// Its terms.
    pub terms: Terms,
    /// Whether each answer token was the most likely, in the order of the rows.
    pub hits: Vec<bool>,
    /// One gradient per parameter, in order; empty if none were asked for.
    pub gradients: Vec<Tensor>,
}

impl Outcome {
    /// Share of answer tokens that were the most likely.
    pub fn accuracy(&self) -> f64 {
        self.hits.iter().filter(|&&hit| hit).count() as f64 / self.hits.len().max(1) as f64
    }
}

/// The loss over rows of equal length, and with `parameters` its gradients; parts have about
/// `micro_tokens` tokens.
///
/// # Errors
/// The first error of any part; a parameter without a gradient.
pub fn accumulate(
    workers: &Workers,
    objective: &dyn Objective,
    parameters: Option<&Parameters>,
    rows: &[PackedRow],
    micro_tokens: usize,
) -> Result<Outcome, TrainError> {
    let seq = rows.first().map_or(1, |row| row.ids.len());
    let parts: Vec<&[PackedRow]> = rows.chunks((micro_tokens / seq).max(1)).collect();
    let targets: usize = rows.iter().map(|row| row.targets.len()).sum();
    let scale = 1.0 / targets.max(1) as f32;
    let mut total = Outcome::default();
    workers.ordered_reduce(
        parts.len(),
        |index| part(objective, parameters, parts[index], scale),
        |part| total.add(part),
    )?;
    Ok(total)
}

impl Outcome {
    fn add(&mut self, part: Self) -> Result<(), TrainError> {
        self.loss += part.loss;
        self.terms += part.terms;
        self.hits.extend(part.hits);
        if self.gradients.is_empty() {
            self.gradients = part.gradients;
            return Ok(());
        }
        for (total, gradient) in self.gradients.iter().zip(&part.gradients) {
            blend(total, 1.0, 1.0, gradient)?;
        }
        Ok(())
    }
}

/// One part: forward pass, loss over answer tokens, and backward pass if parameters are given.
fn part(
    objective: &dyn Objective,
    parameters: Option<&Parameters>,
    rows: &[PackedRow],
    scale: f32,
) -> Result<Outcome, TrainError> {
    let result = objective.loss(rows, scale, parameters.is_some())?;
    let loss = f64::from(result.loss.to_scalar::<f32>()?);
    let gradients = match parameters {
        None => vec![],
        Some(parameters) => {
            let mut found = Gradients::of(&result.loss)?;
            let mut take = |(name, var): (&str, &Var)| {
                found
                    .take(var)?
                    .ok_or_else(|| candle_core::Error::Msg(format!("parameter {name} has no gradient")))
            };
            parameters.iter().map(&mut take).collect::<Result<_, _>>()?
        }
    };
    Ok(Outcome { loss, terms: result.terms, hits: result.hits, gradients })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::{Decoder, DecoderConfig, Family};
    use crate::train::adapter::{self, Adapter};
    use crate::train::objective::Student;
    use crate::train::recipe::AdapterRecipe;
    use crate::train::tests::{model, packed, tokenizer};

    /// The results of a run, bit for bit.
    fn bits(outcome: &Outcome) -> Vec<u64> {
        let values = outcome.gradients.iter().flat_map(|gradient| {
            let values = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values.into_iter().map(|value| u64::from(value.to_bits()))
        });
        std::iter::once(outcome.loss.to_bits()).chain(values).collect()
    }

    /// An adapter without zero parameters, because zeros would hide the gradients of the
    /// parameters before them.
    pub fn adapter_of(recipe: &str, config: &DecoderConfig) -> (Adapter, Parameters) {
        let recipe: AdapterRecipe = toml::from_str(recipe).unwrap();
        let trained = adapter::initial(&recipe, config, 5).unwrap();
        for (_, var) in trained.iter() {
            var.set(&(var.as_tensor() + 0.05).unwrap()).unwrap();
        }
        (Adapter::new(&recipe, config, &trained).unwrap(), trained)
    }

    fn with_adapter(recipe: &str, recompute: bool) -> Vec<u64> {
        let (decoder, whole) = model(Family::Qwen3_5, true, tokenizer().vocab_size());
        let config = decoder.config().clone();
        let (adapter, trained) = adapter_of(recipe, &config);
        let decoder = Decoder::frozen(config, &whole).unwrap().recomputing(recompute);
        let student = Student { decoder: &decoder, adapter: Some(&adapter) };
        let outcome =
            accumulate(&Workers::new(1).unwrap(), &student, Some(&trained), &packed(1), 96).unwrap();
        assert!(outcome.gradients.iter().all(|gradient| {
            let largest = gradient.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            largest > 0.0 && largest.is_finite()
        }));
        bits(&outcome)
    }

    #[test]
    fn recomputed_blocks_give_the_same_gradients_bit_for_bit() {
        for family in [Family::Llama, Family::Gemma2, Family::Qwen3_5] {
            let (decoder, parameters) = model(family, true, tokenizer().vocab_size());
            let run = |recompute: bool| {
                let decoder = decoder.clone().recomputing(recompute);
                let workers = Workers::new(2).unwrap();
                bits(&accumulate(&workers, &decoder, Some(&parameters), &packed(1), 192).unwrap())
            };
            assert!(run(true) == run(false), "{family:?}");
        }
        for adapter in [
            "lora = { rank = 3, alpha = 6.0, targets = [\"q_proj\", \"down_proj\", \"out_proj\"] }",
            "felix = { spokes = 2, rank = 3 }",
        ] {
            assert!(with_adapter(adapter, true) == with_adapter(adapter, false), "{adapter}");
        }
    }

    #[test]
    fn gradients_do_not_depend_on_how_many_threads_share_the_work() {
        let (decoder, parameters) = model(Family::Llama, true, tokenizer().vocab_size());
        let run = |threads, micro_tokens| {
            let workers = Workers::new(threads).unwrap();
            bits(&accumulate(&workers, &decoder, Some(&parameters), &packed(1), micro_tokens).unwrap())
        };
        // Two parts: one thread computes both, two compute one each, three share each of them.
        assert!(run(1, 192) == run(2, 192) && run(1, 192) == run(3, 192));
        assert!(run(1, 192) != run(1, 384), "parts of another size add up in another order");
    }
}
