//! Gradients of a batch: its rows are divided into parts, whose gradients are accumulated in a fixed
//! order, so that the result depends neither on the number of threads nor on their timing.

use candle_core::Tensor;

use super::TrainError;
use super::batch::PackedRow;
use super::in_place::blend;
use super::objective::{Objective, StepContext, Terms};
use crate::device::Workers;
use crate::model::Parameters;
use crate::model::ops::Gradients;

/// The result of a batch.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The objective: mean loss over answer tokens, in nats, and the term of the step.
    pub loss: f64,
    /// Its terms.
    pub terms: Terms,
    /// The term that belongs to the step and not to its rows, if the objective has one.
    pub step_term: Option<f64>,
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
/// `micro_tokens` tokens. The term of the step is added last, and only where gradients are asked for.
///
/// # Errors
/// The first error of any part; a parameter that no part and no term of the loss depends on.
pub fn accumulate(
    workers: &Workers,
    objective: &dyn Objective,
    context: StepContext,
    parameters: Option<&Parameters>,
    rows: &[PackedRow],
    micro_tokens: usize,
) -> Result<Outcome, TrainError> {
    let seq = rows.first().map_or(1, |row| row.ids.len());
    let parts: Vec<&[PackedRow]> = rows.chunks((micro_tokens / seq).max(1)).collect();
    let targets: usize = rows.iter().map(|row| row.targets.len()).sum();
    let scale = 1.0 / targets.max(1) as f32;
    let mut total = Part::default();
    workers.ordered_reduce(
        parts.len(),
        |index| {
            let part = objective.loss(parts[index], scale, context, parameters.is_some())?;
            let gradients = gradients(&part.loss, parameters)?;
            Ok(Part { loss: value(&part.loss)?, terms: part.terms, hits: part.hits, gradients })
        },
        |part| total.add(part),
    )?;
    let mut step_term = None;
    if parameters.is_some() {
        let term = workers.together(|| -> Result<_, TrainError> {
            let Some(term) = objective.step_term(context)? else { return Ok(None) };
            let gradients = gradients(&term, parameters)?;
            Ok(Some(Part { loss: value(&term)?, gradients, ..Part::default() }))
        })?;
        if let Some(term) = term {
            step_term = Some(term.loss);
            total.add(term)?;
        }
    }
    let Part { loss, terms, hits, gradients } = total;
    let names = parameters.into_iter().flat_map(|parameters| parameters.iter().map(|(name, _)| name));
    let needed = |(gradient, name): (Option<Tensor>, &str)| {
        gradient.ok_or_else(|| candle_core::Error::Msg(format!("parameter {name} has no gradient")))
    };
    let gradients = gradients.into_iter().zip(names).map(needed).collect::<Result<_, _>>()?;
    Ok(Outcome { loss, terms, step_term, hits, gradients })
}

/// What a part of the loss gives. A parameter that it doesn't depend on has no gradient.
#[derive(Default)]
struct Part {
    loss: f64,
    terms: Terms,
    hits: Vec<bool>,
    gradients: Vec<Option<Tensor>>,
}

impl Part {
    fn add(&mut self, part: Self) -> Result<(), TrainError> {
        self.loss += part.loss;
        self.terms += part.terms;
        self.hits.extend(part.hits);
        if self.gradients.is_empty() {
            self.gradients = part.gradients;
            return Ok(());
        }
        for (total, gradient) in self.gradients.iter_mut().zip(part.gradients) {
            match (&total, gradient) {
                (Some(total), Some(gradient)) => blend(total, 1.0, 1.0, &gradient)?,
                (None, gradient) => *total = gradient,
                (Some(_), None) => {}
            }
        }
        Ok(())
    }
}

fn value(loss: &Tensor) -> Result<f64, TrainError> {
    Ok(loss.to_scalar::<f32>()?.into())
}

/// The gradients of a loss, in the order of the parameters; none without parameters.
fn gradients(loss: &Tensor, parameters: Option<&Parameters>) -> Result<Vec<Option<Tensor>>, TrainError> {
    let Some(parameters) = parameters else { return Ok(vec![]) };
    let mut found = Gradients::of(loss)?;
    let gradients = parameters.iter().map(|(_, var)| found.take(var)).collect::<Result<_, _>>()?;
    Ok(gradients)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::{Decoder, DecoderConfig, Family};
    use crate::train::adapter::{self, Adapter};
    use crate::train::objective::{StepContext, Student};
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
        let student = Student { decoder: &decoder, adapter: Some(&adapter), effect: None };
        let outcome = accumulate(
            &Workers::new(1).unwrap(),
            &student,
            StepContext::default(),
            Some(&trained),
            &packed(1),
            96,
        )
        .unwrap();
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
                bits(
                    &accumulate(
                        &workers,
                        &decoder,
                        StepContext::default(),
                        Some(&parameters),
                        &packed(1),
                        192,
                    )
                    .unwrap(),
                )
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
            bits(
                &accumulate(
                    &workers,
                    &decoder,
                    StepContext::default(),
                    Some(&parameters),
                    &packed(1),
                    micro_tokens,
                )
                .unwrap(),
            )
        };
        // Two parts: one thread computes both, two compute one each, three share each of them.
        assert!(run(1, 192) == run(2, 192) && run(1, 192) == run(3, 192));
        assert!(run(1, 192) != run(1, 384), "parts of another size add up in another order");
    }
}
