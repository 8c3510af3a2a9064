//! Everything that a run needs before its first step: tokenizer, data, model, trained parameters.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Var};
use sha2::{Digest as _, Sha256};

use super::adapter::{self, Adapter};
use super::batch::check_lengths;
use super::data::{Chat, Domain, Mixture, Sources};
use super::method::{Effect, Method, Variable};
use super::objective::Student;
use super::observer::{Event, Observer};
use super::recipe::{AdapterRecipe, LongRows, Recipe};
use super::{TrainError, base, distil, vocabulary};
use crate::atomic_file;
use crate::device::{ComputeDevice, Workers};
use crate::digest::Digest;
use crate::model::parameters::Parameter;
use crate::model::{Decoder, DecoderConfig, Model, Parameters, TextSide, init};
use crate::text::tokenizer::Tokenizer;

/// A run that is ready for its first step.
pub(super) struct Prepared {
    pub config: DecoderConfig,
    pub text: TextSide,
    pub chat: Arc<Chat>,
    pub identity: Identity,
    /// Weights of the decoder.
    pub whole: Parameters,
    /// The trained parameters: the weights, or those of an adapter.
    pub trained: Parameters,
    pub train: Mixture,
    pub eval: Vec<Domain>,
    /// The device of the computation.
    pub compute: ComputeDevice,
    /// Its threads.
    pub workers: Workers,
    /// A sentence about the base's loss on the reference text; `None` without a base.
    pub sane: Option<String>,
}

/// The hashes that a checkpoint must match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub base: Option<Digest>,
    pub tokens_of: Digest,
}

impl Prepared {
    /// Reads and makes everything that the recipe names. A `resumed` run uses the tokenizer that
    /// it wrote before.
    pub fn new(
        recipe: &Recipe,
        out: &Path,
        resumed: bool,
        method: Option<&dyn Method>,
        observer: &mut dyn Observer,
    ) -> Result<Self, TrainError> {
        let compute = ComputeDevice::new(recipe.train.device, recipe.train.precision)?;
        let sources = Sources::open(&recipe.data)?;
        let (model, base) = match &recipe.base {
            Some(base) => base::load(&base.path).map(|(model, digest)| (model, Some(digest)))?,
            None => (from_nothing(recipe, &sources, out, resumed, observer)?, None),
        };
        let Model { config, parameters: whole, text } = model;
        let chat = Chat::of_model(&text)?;
        if let Some(base) = &recipe.base {
            base::check_vocabulary(&base.path, &chat, config.vocab_size)?;
            check_tokenizer(recipe, &base.path, &chat)?;
        }
        if let Some(stage) = recipe.stages().into_iter().find(|stage| stage.seq_len > config.max_position) {
            let (seq, most) = (stage.seq_len, config.max_position);
            let message = format!("it has {most} positions, and seq_len is {seq}");
            let path = recipe.base.as_ref().map_or(out, |base| &base.path).to_owned();
            return Err(TrainError::Base { path, message });
        }
        let whole = match &recipe.adapter {
            None => whole.to(&compute.device, DType::F32)?,
            Some(_) => whole.to_frozen(&compute.device, compute.dtype)?,
        };
        let chat = Arc::new(chat);
        let workers = Workers::new(compute.threads(recipe.train.threads))?;
        // Before rows are tokenised, which may take long.
        let sane = match &recipe.base {
            None => None,
            Some(base) => {
                let decoder = Decoder::frozen(config.clone(), &whole)?.computing_in(compute.dtype);
                Some(base::check_loss(base, &decoder, &chat, &workers)?)
            }
        };
        let mut trained = match &recipe.adapter {
            Some(adapter) => adapter::initial(adapter, &config, recipe.train.seed)?,
            None => whole.clone(),
        };
        distil::add_maps(recipe, &config, &mut trained)?;
        if let Some(method) = method {
            method.add_variables(&config, recipe.train.seed, &mut trained)?;
        }
        let trained = trained.to(&compute.device, DType::F32)?;
        let tokens_of = Digest(Sha256::digest(chat.identity()?).into());
        let own_cache = out.join("cache");
        let cache = recipe.data.cache.as_deref().unwrap_or(&own_cache);
        let (train, eval) = sources.tokenised(&chat, cache, recipe.train.seed)?;
        for path in train.domains().iter().chain(&eval).filter_map(Domain::remade) {
            observer.event(&Event::TokensRemade { path });
        }
        if recipe.data.long_rows == LongRows::Error {
            let longest = recipe.stages().into_iter().map(|stage| stage.seq_len).max().unwrap_or(0);
            train.domains().iter().chain(&eval).try_for_each(|domain| check_lengths(domain, longest))?;
        }
        let identity = Identity { base, tokens_of };
        Ok(Self { config, text, chat, identity, whole, trained, train, eval, compute, workers, sane })
    }

    /// The model with these values of the trained parameters.
    pub fn over(
        &self,
        recipe: &Recipe,
        trained: &Parameters,
        method: Option<&dyn Method>,
    ) -> Result<Trainee, TrainError> {
        let variable = |name: &str| Ok(trained.get(name)?.as_tensor().clone());
        self.trainee(recipe, trained, Decoder::new, Adapter::new, method, &variable)
    }

    /// The same model, of which nothing collects gradients: a forward pass keeps no activations.
    pub fn frozen(
        &self,
        recipe: &Recipe,
        trained: &Parameters,
        method: Option<&dyn Method>,
    ) -> Result<Trainee, TrainError> {
        let variable = |name: &str| Ok(trained.get(name)?.as_detached_tensor());
        self.trainee(recipe, trained, Decoder::frozen, Adapter::frozen, method, &variable)
    }

    fn trainee(
        &self,
        recipe: &Recipe,
        trained: &Parameters,
        decoder: fn(DecoderConfig, &Parameters) -> candle_core::Result<Decoder>,
        adapter: fn(&AdapterRecipe, &DecoderConfig, &Parameters) -> candle_core::Result<Adapter>,
        method: Option<&dyn Method>,
        variable: &Variable,
    ) -> Result<Trainee, TrainError> {
        let config = self.config.clone();
        let effect = method.map(|method| method.effect(&config, variable)).transpose()?;
        let (decoder, adapter) = match &recipe.adapter {
            None => (decoder(config, trained)?, None),
            Some(recipe) => {
                let adapter = adapter(recipe, &config, trained)?;
                (Decoder::frozen(config, &self.whole)?, Some(adapter))
            }
        };
        let decoder = decoder.recomputing(recipe.train.recompute).computing_in(self.compute.dtype);
        Ok(Trainee { decoder, adapter, effect })
    }
}

/// The parameters without those that only training needs.
pub(super) fn result(trained: &Parameters) -> Result<Parameters, TrainError> {
    let mut kept = Parameters::default();
    for Parameter { name, role, var } in trained.entries().iter().filter(|entry| entry.role.is_some()) {
        kept.insert(name.clone(), *role, var.clone())?;
    }
    Ok(kept)
}

/// A decoder with its adapter and the effect of a method, if there are such.
pub(super) struct Trainee {
    decoder: Decoder,
    adapter: Option<Adapter>,
    effect: Option<Box<dyn Effect>>,
}

impl Trainee {
    /// Borrows all of it.
    pub fn student(&self) -> Student<'_> {
        Student { decoder: &self.decoder, adapter: self.adapter.as_ref(), effect: self.effect.as_deref() }
    }
}

/// A model of the recipe's shape with initial values, for the recipe's tokenizer or one that is
/// trained on its data.
fn from_nothing(
    recipe: &Recipe,
    sources: &Sources,
    out: &Path,
    resumed: bool,
    observer: &mut dyn Observer,
) -> Result<Model, TrainError> {
    let tokenizer = tokenizer(recipe, sources, out, resumed, observer)?;
    let model = recipe.model.as_ref().expect("a recipe without a base has a model: it was checked");
    let config = model.decoder_config(tokenizer.vocab_size());
    let parameters = init::initialise(&config, recipe.train.seed)?;
    Ok(Model { config, parameters, text: TextSide::of_post(&tokenizer)? })
}

/// The tokenizer of the run: that of the resumed run, that of the recipe, or one trained on the
/// data. It is written to `out` for a later resume.
fn tokenizer(
    recipe: &Recipe,
    sources: &Sources,
    out: &Path,
    resumed: bool,
    observer: &mut dyn Observer,
) -> Result<Tokenizer, TrainError> {
    let path = out.join("tokenizer.json");
    if resumed {
        return Ok(Tokenizer::from_file(&path)?);
    }
    let tokenizer = if let Some(path) = &recipe.data.tokenizer {
        let tokenizer = Tokenizer::from_file(path)?;
        tokenizer.check_markers(path)?;
        tokenizer
    } else {
        let stage = recipe.stage(u64::MAX);
        let texts = sources.texts(recipe.data.vocabulary_rows, stage.max_event_chars)?;
        observer.event(&Event::VocabularyBegun { entries: recipe.data.vocabulary, rows: texts.len() });
        vocabulary::train(texts.into_iter(), recipe.data.vocabulary)?
    };
    atomic_file::write(&path, tokenizer.to_json()?.as_bytes()).map_err(TrainError::file(&path))?;
    Ok(tokenizer)
}

/// Refuses a tokenizer of the recipe that differs from the base's.
fn check_tokenizer(recipe: &Recipe, base: &Path, chat: &Chat) -> Result<(), TrainError> {
    let Some(path) = &recipe.data.tokenizer else { return Ok(()) };
    let named = Tokenizer::from_file(path)?;
    let hash = |tokenizer: &Tokenizer| {
        // Compares vocabulary and merges, not the order of keys in the file.
        let json: serde_json::Value = serde_json::from_str(&tokenizer.to_json()?).unwrap_or_default();
        let entries = (tokenizer.vocab_size(), Digest(Sha256::digest(json["model"].to_string()).into()));
        Ok::<_, TrainError>(entries)
    };
    let (found, expected) = (hash(&named)?, hash(chat.tokenizer())?);
    if found != expected {
        let message = format!(
            "its tokenizer ({} entries, {}) is not data.tokenizer, {} ({} entries, {}): leave data.tokenizer out",
            expected.0,
            expected.1.short(),
            path.display(),
            found.0,
            found.1.short()
        );
        return Err(TrainError::Base { path: base.to_owned(), message });
    }
    Ok(())
}

/// Locks a folder against other writers until the returned file is dropped.
///
/// # Errors
/// Another process is writing there; the folder can't be created.
pub(super) fn lock(out: &Path) -> Result<std::fs::File, TrainError> {
    atomic_file::make_folder(out).map_err(TrainError::file(out))?;
    let path = out.join(".lock");
    let held = atomic_file::lock(&path).map_err(TrainError::file(path))?;
    held.ok_or_else(|| TrainError::Busy { path: out.to_owned() })
}

/// Independent parameters with the same values.
pub(super) fn copy(parameters: &Parameters) -> Result<Parameters, TrainError> {
    let mut copied = Parameters::default();
    for Parameter { name, role, var } in parameters.entries() {
        copied.insert(name.clone(), *role, Var::from_tensor(&var.as_tensor().copy()?)?)?;
    }
    Ok(copied)
}
