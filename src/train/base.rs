//! The base of a run. Before the first step it is read, checked, and its loss measured on a
//! reference text.

use std::path::Path;
use std::sync::Arc;

use super::TrainError;
use super::batch::{Batch, eval_rows};
use super::data::{Chat, Domain, Row, Source};
use super::gradient::accumulate;
use super::objective::StepContext;
use super::recipe::{BaseRecipe, LongRows, Stage};
use crate::device::Workers;
use crate::digest::Digest;
use crate::gguf::Gguf;
use crate::model::{Decoder, FileError, Model, gguf_file, hugging_face};
use crate::task::generator::{Generator, Split};

/// The largest loss of a base, relative to the loss ln V of a uniform guess, unless the recipe
/// sets a bound.
const SANE: f64 = 0.6;
/// Generated encodings that are the reference for a post trained by this program.
const ROWS: usize = 4;
/// Tokens of a text that are used.
const TOKENS: usize = 512;

/// A text that every model of English predicts well.
const ENGLISH: &str = "It was a bright cold day in the north, and the people of the small town had gathered in the square \
    to hear the news. The mayor, a tall woman with grey hair, climbed the steps and asked for silence. She said that the \
    road to the coast would be open again before the end of the week, and that the train would run twice a day from Monday \
    on. Some of them cheered; others shook their heads and went home, because they had heard the same thing last year.";

/// Reads a base and the hash of its tensors.
///
/// # Errors
/// Files that are no model; weights that are not finite (the tensor is named).
pub fn load(path: &Path) -> Result<(Model, Digest), TrainError> {
    let (model, digest) = if path.is_dir() {
        let model = hugging_face::load(path)?;
        let digest = gguf_file::content_hash(&model)?;
        (model, digest)
    } else {
        (
            gguf_file::import(path)?,
            Gguf::open(path).and_then(|file| file.content_hash()).map_err(FileError::from)?,
        )
    };
    for (name, var) in model.parameters.iter() {
        let finite = crate::model::ops::with_floats([var.as_tensor()], "reading the base", |[values]| {
            Ok(values.iter().position(|value| !value.is_finite()).map(|at| (at, values[at])))
        })?;
        if let Some((at, value)) = finite {
            let message = format!("tensor {name:?}, element {at}, is {value}; expected a finite number");
            return Err(TrainError::Base { path: path.to_owned(), message });
        }
    }
    Ok((model, digest))
}

/// Refuses a tokenizer with more tokens than the base, or with fewer than half as many.
///
/// # Errors
/// Names both numbers.
pub fn check_vocabulary(path: &Path, chat: &Chat, vocabulary: usize) -> Result<(), TrainError> {
    let tokens = chat.tokenizer().vocab_size();
    if tokens > vocabulary {
        let message = format!("its tokenizer has {tokens} entries, its embedding {vocabulary}");
        return Err(TrainError::Base { path: path.to_owned(), message });
    }
    // Embeddings are padded by a few hundred rows for GPUs, never to twice their size.
    if tokens < vocabulary.div_ceil(2) {
        let message = format!(
            "its tokenizer has {tokens} entries, its embedding {vocabulary}: more than half of the rows have no token; expected \
             the model's own tokenizer"
        );
        return Err(TrainError::Base { path: path.to_owned(), message });
    }
    Ok(())
}

/// Measures the loss per token on the reference text, and fails if it is too high for a trained
/// model.
///
/// # Errors
/// A loss above the bound or not finite; a reference that can't be read.
pub fn check_loss(
    recipe: &BaseRecipe,
    decoder: &Decoder,
    chat: &Arc<Chat>,
    workers: &Workers,
) -> Result<String, TrainError> {
    let (name, batch) = reference(recipe, decoder, chat)?;
    if batch.targets() == 0 {
        let most = decoder.config().max_position;
        let message =
            format!("no part of {name} fits its {most} positions: set base.reference to another text");
        return Err(TrainError::Reference { path: recipe.path.clone(), message });
    }
    let outcome = accumulate(workers, decoder, StepContext::default(), None, &batch.rows, TOKENS)?;
    let guess = (decoder.config().vocab_size as f64).ln();
    let bound = recipe.reference_bound.unwrap_or(SANE * guess);
    let loss = outcome.loss;
    if !loss.is_finite() || loss > bound {
        let message = format!(
            "loss per token on {name} is {loss:.3}, expected at most {bound:.3} (a uniform guess has {guess:.3}): \
             it was read incorrectly, or never trained on such text"
        );
        return Err(TrainError::Reference { path: recipe.path.clone(), message });
    }
    Ok(format!("base: loss {loss:.4} per token on {name} (bound {bound:.3}, a uniform guess {guess:.3})"))
}

/// The reference as rows: a text in pieces of [`TOKENS`] tokens, or generated encodings.
fn reference(
    recipe: &BaseRecipe,
    decoder: &Decoder,
    chat: &Arc<Chat>,
) -> Result<(String, Batch), TrainError> {
    let most = decoder.config().max_position;
    let stage = |seq_len: usize| Stage { until_step: u64::MAX, max_event_chars: None, seq_len, batch: 1 };
    let nowhere = Path::new("unused: what is generated has no file of tokens");
    if chat.is_post() && recipe.reference.is_none() {
        let generator = Box::new(Generator::new(1, Split::Eval));
        let domain = Domain::new("reference", generator, chat, nowhere)?;
        let batch = eval_rows(&domain, stage(most.min(2048)), ROWS, LongRows::Skip)?;
        return Ok((format!("{ROWS} generated encodings"), batch));
    }
    let (name, text) = match &recipe.reference {
        Some(path) => {
            (path.display().to_string(), fs_err::read_to_string(path).map_err(TrainError::file(path))?)
        }
        None => ("a paragraph of English".to_owned(), ENGLISH.to_owned()),
    };
    let domain = Domain::new("reference", Box::new(One(Row::Text(text), name.clone())), chat, nowhere)?;
    let mut sample = domain.sample(0, None)?;
    sample.ids.truncate(TOKENS.min(most) + 1);
    if sample.ids.len() <= sample.answer {
        return Err(TrainError::Row {
            place: name,
            message: "no text: nothing to measure the base with".into(),
        });
    }
    Ok((name, Batch::of_sample(&sample)))
}

/// A source of one row.
struct One(Row, String);

impl Source for One {
    fn row(&self, _index: u64, _max_event_chars: Option<usize>) -> Result<Row, TrainError> {
        Ok(self.0.clone())
    }
    fn rows(&self) -> Option<u64> {
        Some(1)
    }
    fn place(&self, _index: u64) -> String {
        self.1.clone()
    }
}
