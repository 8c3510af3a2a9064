//! The child's side of the self-test: computes the same rows with llama.cpp's kernels and with
//! ours, on blocks of the post to be served.

use std::path::Path;
use std::time::{Duration, Instant};

use llama_cpp_2::model::LlamaModel;

use super::excerpt::Excerpt;
use super::{Line, Stage, arithmetic};
use crate::engine::ffi::{Batch, Context, ContextSettings};
use crate::engine::kernels::{Kernel, Kernels};
use crate::engine::worker;

/// Rows of the batches that serving computes: one token; one token of each of two requests; a share
/// of a prompt in a batch with answers, or a part of a text to embed; a prompt.
const ROWS: [u32; 4] = [1, 2, 32, 512];
/// Smaller sizes that replace the prompt for a large model.
const FEWER: [u32; 3] = [256, 128, 64];
/// Maximum time of all prompts together.
const BUDGET: Duration = Duration::from_secs(2);
/// Maximum deviation from llama.cpp's results, relative to their size. Both round activations to 8
/// bits, but at different places, and the blocks of a post amplify the difference; a kernel that
/// computes something else is off by more than half. Each kernel alone is held to its definition
/// more closely ([`arithmetic`]).
const BOUND: f32 = 0.2;

/// Computes everything, and reports each step and each fault.
///
/// # Errors
/// The model can't be loaded or computed, so that nothing is known about the kernels.
pub fn trial(path: &Path, kernels: Kernels, tell: &mut dyn FnMut(&Line)) -> Result<(), String> {
    let mut kernels = kernels;
    for kernel in Kernel::ALL {
        let Some(form) = kernels.form(kernel) else { continue };
        tell(&Line::Begin { stage: Stage::With(kernel), rows: 0 });
        if let Err(what) = arithmetic::check(kernel, form) {
            tell(&Line::Wrong { kernel, what });
            kernels = kernels.without(kernel);
        }
    }
    let model = load(path)?;
    let mut trial = Trial { model: &model, prompt: ROWS[3] };
    let plain = trial.compute(Kernels::OFF, Stage::LlamaCpp, tell)?;
    for kernel in [Kernel::Attention, Kernel::Product] {
        if kernels.form(kernel).is_none() {
            continue;
        }
        let alone = match kernel {
            Kernel::Product => Kernels { product: kernels.product, ..Kernels::OFF },
            _ => Kernels { attention: kernels.attention, ..Kernels::OFF },
        };
        let found = trial.compute(alone, Stage::With(kernel), tell)?;
        if let Some(what) = compare(&found, &plain) {
            tell(&Line::Wrong { kernel, what });
            kernels = kernels.without(kernel);
        }
    }
    if kernels.attention.is_some() && kernels.product.is_some() {
        let found = trial.compute(kernels, Stage::Together, tell)?;
        if let Some(what) = compare(&found, &plain) {
            for kernel in [Kernel::Attention, Kernel::Product] {
                tell(&Line::Wrong { kernel, what: format!("with another of our kernels, {what}") });
            }
        }
    }
    let note = match trial.prompt {
        prompt if prompt == ROWS[3] => None,
        0 => Some("no prompt, which would take too long".to_owned()),
        prompt => {
            Some(format!("a prompt of {prompt} rows instead of {}, which would take too long", ROWS[3]))
        }
    };
    // The last entry is an embedding.
    let rows = plain[..plain.len() - 1].iter().map(|(rows, _)| *rows).collect();
    tell(&Line::Done { rows, note });
    Ok(())
}

/// Loads the model for the trial: an excerpt if it covers everything, else the whole post.
fn load(path: &Path) -> Result<LlamaModel, String> {
    let excerpt = Excerpt::of(path).and_then(|excerpt| {
        let Some(excerpt) = excerpt else { return Ok(None) };
        worker::load_checked(&excerpt.path(), true).map(Some)
    });
    match excerpt {
        Ok(Some(model)) => Ok(model),
        Ok(None) => worker::load(path),
        Err(error) => {
            tracing::debug!(error, "the self-test takes the whole post");
            worker::load(path)
        }
    }
}

struct Trial<'a> {
    model: &'a LlamaModel,
    /// Rows of a prompt; 0 leaves it out.
    prompt: u32,
}

/// Rows and last logits of each batch. Unless a kernel of ours is tested alone, a prompt (if it is
/// not left out) and an embedding follow.
type Found = Vec<(u32, Vec<f32>)>;

impl Trial<'_> {
    /// Computes all batches with these kernels. llama.cpp's kernels run first, which shows how long
    /// a prompt takes.
    fn compute(
        &mut self,
        kernels: Kernels,
        stage: Stage,
        tell: &mut dyn FnMut(&Line),
    ) -> Result<Found, String> {
        let model = self.model;
        let settings = ContextSettings {
            tokens: 768,
            batch: ROWS[3],
            outputs: 1,
            sequences: 2,
            // Several threads would spin while waiting for each other on a busy machine, and take
            // hundreds of times as long.
            threads: 1,
            kernels,
            exact_cache: false,
            embeddings: false,
        };
        tell(&Line::Begin { stage, rows: ROWS[0] });
        let mut context = make(model, settings)?;
        let mut found = Found::new();
        let mut filled = [0; 2];
        let mut decode = |context: &mut Context<'_>, rows: u32| {
            tell(&Line::Begin { stage, rows });
            let began = Instant::now();
            let mut batch = Batch::default();
            for row in 0..rows {
                // Two rows are one token of each of two requests.
                let sequence = if rows == 2 { row } else { 0 };
                let position = &mut filled[sequence as usize];
                batch.push(token(model, sequence, *position), *position, sequence, row + 1 == rows);
                *position += 1;
            }
            context.decode(&batch).map_err(|error| error.to_string())?;
            found.push((rows, context.logits(batch.len() - 1).to_vec()));
            Ok::<_, String>(began.elapsed())
        };
        let mut took = Duration::ZERO;
        for rows in &ROWS[..3] {
            took = decode(&mut context, *rows)?;
        }
        if stage == Stage::LlamaCpp {
            self.prompt = prompt_within(BUDGET, took);
        }
        // A kernel alone computes only short batches. All together also compute a prompt.
        if self.prompt > 0 && !matches!(stage, Stage::With(_)) {
            decode(&mut context, self.prompt)?;
        }
        drop(context);
        if matches!(stage, Stage::With(_)) {
            return Ok(found);
        }
        let settings = ContextSettings {
            tokens: 256,
            batch: ROWS[2],
            outputs: ROWS[2],
            sequences: 1,
            embeddings: true,
            ..settings
        };
        tell(&Line::Begin { stage, rows: ROWS[2] });
        let mut context = make(model, settings)?;
        let mut batch = Batch::default();
        (0..ROWS[2]).for_each(|position| batch.push(token(model, 0, position), position, 0, true));
        context.decode(&batch).map_err(|error| error.to_string())?;
        found.push((ROWS[2], context.embedding(batch.len() - 1).to_vec()));
        Ok(found)
    }
}

fn make(model: &LlamaModel, settings: ContextSettings) -> Result<Context<'_>, String> {
    Context::new(model, settings).map_err(|error| error.to_string())
}

/// Rows of the longest prompt that can be computed twice within the budget, given the time of a
/// slice.
fn prompt_within(budget: Duration, slice: Duration) -> u32 {
    let takes = |rows: u32| 2 * slice * (rows / ROWS[2]);
    std::iter::once(ROWS[3]).chain(FEWER).find(|&rows| takes(rows) <= budget).unwrap_or(0)
}

/// Some token, the same each time.
fn token(model: &LlamaModel, sequence: u32, position: u32) -> u32 {
    let vocabulary = model.n_vocab().unsigned_abs().max(1);
    (5 + position * 37 + sequence * 101) % vocabulary
}

/// Describes the first deviation that rounding doesn't explain.
fn compare(found: &Found, plain: &Found) -> Option<String> {
    found.iter().zip(plain).enumerate().find_map(|(at, ((rows, own), (_, plain)))| {
        let off = distance(own, plain);
        // Shorter results have no embedding.
        let embeds = at + 1 == found.len() && found.len() > 3;
        let of = if embeds { "an embedding of " } else { "" };
        (off > BOUND || off.is_nan()).then(|| {
            format!(
                "it computes wrong numbers: with {of}{rows} rows they are off by {off:.3} of their size from llama.cpp's, at most {BOUND} are explained by rounding"
            )
        })
    })
}

/// Distance of `a` from `b`, relative to the size of `b`.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let off: f32 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    let size: f32 = b.iter().map(|b| b * b).sum();
    (off / size.max(f32::MIN_POSITIVE)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_as_long_as_time_allows() {
        let within = |ms: u64| prompt_within(Duration::from_secs(2), Duration::from_millis(ms));
        assert_eq!([1, 62, 63, 126, 251, 501].map(within), [512, 512, 256, 128, 64, 0]);
    }

    #[test]
    fn what_is_far_off_or_no_number_is_wrong() {
        let same = || vec![(1, vec![1.0, -2.0]), (2, vec![2.0]), (32, vec![1.0])];
        let with = |x: f32| [same(), vec![(32, vec![3.0, x])]].concat();
        let plain = with(4.0);
        assert_eq!(compare(&same(), &plain), None);
        assert_eq!(compare(&with(4.2), &plain), None);
        assert!(compare(&with(6.0), &plain).unwrap().contains("an embedding of 32 rows"));
        assert!(compare(&with(f32::NAN), &plain).is_some());
        assert!(compare(&with(f32::INFINITY), &plain).is_some());
    }
}
