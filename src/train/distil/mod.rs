//! Distillation: in addition to the data, a student learns a teacher's distributions, and its
//! hidden states through taps.
//!
//! The teacher runs locally with the student, or on a server, or its outputs were cached before.

mod hidden;
mod logit_cache;
mod logit_writer;
mod remote_teacher;

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use sha2::{Digest as _, Sha256};

use super::TrainError;
use super::base;
use super::batch::{Inputs, PackedRow, batch};
use super::checkpoint::State;
use super::data::{Chat, Mixture, Position};
use super::objective::{Objective, PartLoss, StepContext, Student, Terms};
use super::observer::Observer;
use super::prepare::{Prepared, lock};
use super::recipe::{DistilRecipe, Recipe};
use crate::device::ComputeDevice;
use crate::digest::Digest;
use crate::failpoints;
use crate::model::ops::distillation::{TeacherOutput, TeacherSource, Weights, distillation};
use crate::model::{Decoder, NoTaps, Parameters};
use hidden::{Capture, Hidden};
pub use logit_cache::{LogitCache, TopTokens};
pub use logit_writer::LogitWriter;
pub use remote_teacher::Ask;
use remote_teacher::RemoteTeacher;

/// A teacher with the weights of its losses.
pub struct Teacher {
    kind: Kind,
    recipe: DistilRecipe,
    hidden: Option<Hidden>,
    digest: Option<Digest>,
    /// Entries of the student's vocabulary.
    vocabulary: usize,
}

enum Kind {
    Local(Arc<Decoder>),
    Remote(RemoteTeacher),
    Cached(LogitCache),
}

impl Teacher {
    /// Opens the teacher of a recipe for the student of a run, whose trained parameters include
    /// the maps of hidden states. `ask` posts JSON to the endpoint.
    ///
    /// # Errors
    /// A teacher that can't be read or reached, or that has other tokens than the student.
    pub(super) fn open(
        recipe: &DistilRecipe,
        student: &Prepared,
        ask: Option<Ask>,
    ) -> Result<Self, TrainError> {
        let vocabulary = student.config.vocab_size;
        let (kind, digest) = match (&recipe.teacher, &recipe.endpoint, &recipe.stored) {
            (Some(path), ..) => {
                let (decoder, digest) = open_local(path, &student.chat, &student.compute)?;
                (Kind::Local(decoder.into()), Some(digest))
            }
            (None, Some(endpoint), _) => {
                let remote = RemoteTeacher::new(endpoint, recipe.top, vocabulary, ask)?;
                remote.check_tokens(student.chat.tokenizer())?;
                (Kind::Remote(remote), None)
            }
            (None, None, Some(folder)) => {
                let cache = LogitCache::open(folder, recipe.temperature as f32, vocabulary)?;
                let digest = cache.fingerprint();
                (Kind::Cached(cache), Some(digest))
            }
            (None, None, None) => return Err(candle_core::Error::Msg("no teacher is named".into()).into()),
        };
        let hidden = match (&recipe.hidden, &kind) {
            (Some(pairs), Kind::Local(teacher)) => Some(Hidden::new(pairs, teacher, &student.trained)?),
            _ => None,
        };
        Ok(Self { kind, recipe: recipe.clone(), hidden, digest, vocabulary })
    }

    /// Checks that a cached teacher has outputs for every row of the steps after this state, as
    /// far as it is known what rows these are.
    ///
    /// # Errors
    /// The first row of which it says nothing.
    pub(super) fn check_rows(&self, recipe: &Recipe, rows: &Mixture, from: &State) -> Result<(), TrainError> {
        let (Kind::Cached(cache), None) = (&self.kind, &recipe.data.loading) else { return Ok(()) };
        let (weights, mut position) = (recipe.domain_weights(), from.data.clone());
        for step in from.step + 1..=recipe.train.steps {
            let stage = recipe.stage(step);
            let (made, after) = batch(rows, &weights, stage, &position, recipe.data.long_rows)?;
            cache.check(&made.rows)?;
            position = after;
        }
        Ok(())
    }

    /// Hash of the teacher, or of the one whose outputs are cached; `None` for a remote teacher.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Hash of everything that determines its outputs for a document: the teacher or its server,
    /// the tokens, how much is kept.
    fn fingerprint(&self, tokens_of: Digest) -> Result<Digest, TrainError> {
        let DistilRecipe { top, temperature, .. } = &self.recipe;
        let who = match (&self.kind, self.digest) {
            (Kind::Remote(remote), _) => remote.identity()?,
            (_, digest) => digest.map_or_else(String::new, |digest| digest.to_string()),
        };
        Ok(Digest(Sha256::digest(format!("{who}\n{tokens_of}\n{top}\n{temperature}")).into()))
    }

    /// The device of its outputs.
    fn device(&self) -> &Device {
        match &self.kind {
            Kind::Local(decoder) => decoder.device(),
            Kind::Remote(_) | Kind::Cached(_) => &Device::Cpu,
        }
    }

    /// The objective of a student of this teacher.
    pub fn objective<'a>(&'a self, student: Student<'a>) -> DistilObjective<'a> {
        DistilObjective { teacher: self, student }
    }

    /// The teacher's outputs for the answer tokens of rows, and its hidden states if these are
    /// learnt.
    fn output(
        &self,
        rows: &[PackedRow],
        inputs: &Inputs,
    ) -> Result<(Arc<dyn TeacherSource>, Capture), TrainError> {
        let mut capture = Capture::new(Box::new(NoTaps), self.hidden.iter().flat_map(Hidden::of_teacher));
        let taught: Arc<dyn TeacherSource> = match &self.kind {
            Kind::Local(decoder) => {
                let student = Student { decoder, adapter: None, effect: None };
                let hidden = student.predicting(inputs, StepContext::default(), &mut capture)?;
                Arc::new(LocalTeacher { decoder: decoder.clone(), hidden })
            }
            Kind::Remote(remote) => Arc::new(CachedTeacher(remote.top_tokens(rows)?)),
            Kind::Cached(cache) => Arc::new(CachedTeacher(cache.top_tokens(rows)?)),
        };
        Ok((taught, capture))
    }

    /// The most likely tokens at the rows' answers, with their probabilities at the temperature.
    ///
    /// # Errors
    /// The teacher's.
    pub fn top_tokens(&self, rows: &[PackedRow]) -> Result<Vec<TopTokens>, TrainError> {
        let inputs = Inputs::new(rows, self.device())?;
        let (taught, _) = self.output(rows, &inputs)?;
        let mut top_tokens = Vec::with_capacity(inputs.targets.len());
        let (top, temperature) = (self.recipe.top, self.recipe.temperature as f32);
        for from in (0..inputs.targets.len()).step_by(ROWS) {
            let count = ROWS.min(inputs.targets.len() - from);
            taught.rows(from, count, &mut |_, taught| {
                // Padding of a teacher's embedding beyond the student's is no token.
                let taught = match taught {
                    TeacherOutput::Logits(logits) => {
                        TeacherOutput::Logits(&logits[..logits.len().min(self.vocabulary)])
                    }
                    top @ TeacherOutput::Top { .. } => top,
                };
                top_tokens.push(TopTokens::of(taught, top, temperature));
                Ok(())
            })?;
        }
        Ok(top_tokens)
    }
}

/// Rows whose logits exist at a time.
const ROWS: usize = 256;

/// Reads a teacher with the hash of its tensors, and checks its tokenizer against the student's.
fn open_local(path: &Path, chat: &Chat, compute: &ComputeDevice) -> Result<(Decoder, Digest), TrainError> {
    let (model, digest) = base::load(path)?;
    let its = Chat::of_model(&model.text)?;
    let vocabularies = [&its, chat].map(|chat| chat.tokenizer().inner().get_vocab(true));
    if vocabularies[0] != vocabularies[1] {
        let differs = vocabularies[0].iter().find(|(token, id)| vocabularies[1].get(*token) != Some(*id));
        let example = differs.map_or_else(String::new, |(token, id)| format!(" ({token:?} is {id} there)"));
        let message = format!(
            "a teacher needs the student's tokenizer: it has {} entries, the student's {}{example}",
            vocabularies[0].len(),
            vocabularies[1].len()
        );
        return Err(TrainError::Teacher { endpoint: path.display().to_string(), message });
    }
    // Its embedding may be padded to another size than the student's, but must have every token.
    base::check_vocabulary(path, &its, model.config.vocab_size)?;
    let parameters = model.parameters.to_frozen(&compute.device, compute.dtype)?;
    Ok((Decoder::frozen(model.config, &parameters)?.computing_in(compute.dtype), digest))
}

/// Logits of a teacher that runs locally, a few rows at a time.
struct LocalTeacher {
    decoder: Arc<Decoder>,
    /// `[targets, D]`
    hidden: Tensor,
}

impl LocalTeacher {
    fn of(&self, from: usize, count: usize) -> candle_core::Result<Tensor> {
        self.decoder.logits(&self.hidden.narrow(0, from, count)?.contiguous()?)
    }
}

impl TeacherSource for LocalTeacher {
    fn logits(&self, from: usize, count: usize) -> candle_core::Result<Option<Tensor>> {
        self.of(from, count).map(Some)
    }

    fn rows(
        &self,
        from: usize,
        count: usize,
        see: &mut dyn FnMut(usize, TeacherOutput) -> candle_core::Result<()>,
    ) -> candle_core::Result<()> {
        let logits = self.of(from, count)?;
        let width = logits.dim(1)?;
        let logits = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        logits.chunks_exact(width).enumerate().try_for_each(|(at, row)| see(at, TeacherOutput::Logits(row)))
    }
}

/// Outputs that are already in memory.
struct CachedTeacher(Vec<TopTokens>);

impl TeacherSource for CachedTeacher {
    fn rows(
        &self,
        from: usize,
        count: usize,
        see: &mut dyn FnMut(usize, TeacherOutput) -> candle_core::Result<()>,
    ) -> candle_core::Result<()> {
        let rows = self.0[from..from + count].iter().enumerate();
        rows.into_iter().try_for_each(|(at, answer)| {
            see(
                at,
                TeacherOutput::Top {
                    ids: &answer.ids,
                    probabilities: &answer.probabilities,
                    tail: answer.tail,
                },
            )
        })
    }
}

/// The losses of a student against its teacher.
pub struct DistilObjective<'a> {
    teacher: &'a Teacher,
    student: Student<'a>,
}

impl Objective for DistilObjective<'_> {
    fn loss(
        &self,
        rows: &[PackedRow],
        scale: f32,
        context: StepContext,
        with_gradient: bool,
    ) -> Result<PartLoss, TrainError> {
        let inputs = Inputs::new(rows, self.student.decoder.device())?;
        let Teacher { recipe, hidden: pairs, .. } = self.teacher;
        let mut capture = Capture::new(self.student.taps(context), pairs.iter().flat_map(Hidden::of_student));
        let hidden = self.student.predicting(&inputs, context, &mut capture)?;
        let (taught, of_teacher) = self.teacher.output(rows, &inputs)?;
        let weights = Weights {
            scale,
            cross_entropy: recipe.ce as f32,
            divergence: recipe.kl as f32,
            temperature: recipe.temperature as f32,
            cap: self.student.decoder.config().features.logit_cap.map(|cap| cap as f32),
        };
        let head = self.student.decoder.head();
        let targets = inputs.targets.clone();
        let found = distillation(&hidden, head, targets, taught, weights, with_gradient)?;
        let mut terms =
            Terms { cross_entropy: found.cross_entropy, divergence: found.divergence, hidden: 0.0 };
        let mut loss = found.loss;
        if let Some(pairs) = pairs {
            let apart = (pairs.apart(&capture, &of_teacher, &inputs.predicting)? * f64::from(scale))?;
            terms.hidden = f64::from(apart.to_scalar::<f32>()?);
            loss = (loss + (apart * pairs.weight)?)?;
        }
        Ok(PartLoss { loss, terms, hits: found.hits })
    }

    fn step_term(&self, context: StepContext) -> Result<Option<Tensor>, TrainError> {
        self.student.step_term(context)
    }
}

/// Adds the maps of hidden states to the trained parameters, if the recipe wants them.
///
/// # Errors
/// A teacher whose configuration can't be read; blocks that don't exist.
pub fn add_maps(
    recipe: &Recipe,
    student: &crate::model::DecoderConfig,
    trained: &mut Parameters,
) -> Result<(), TrainError> {
    let Some((distil, pairs)) = recipe.distil.as_ref().and_then(|d| Some((d, d.hidden.as_ref()?))) else {
        return Ok(());
    };
    let path = distil.teacher.as_ref().expect("hidden states need a teacher beside: it was checked");
    let teacher = if path.is_dir() {
        crate::model::hugging_face::load_config(path)?.0
    } else {
        crate::model::gguf_file::load_config(path)?
    };
    hidden::add_maps(pairs, student, &teacher, recipe.train.seed, trained)
}

/// Caches the outputs of a recipe's teacher for the rows of all steps; returns the number of
/// documents, and how many of them were there before, from an interrupted call or for fewer steps.
/// `progress` gets each step whose rows are written; the observer sees what happens before them.
///
/// # Errors
/// A recipe without a local or remote teacher, or with rows that depend on losses; errors of the
/// teacher; I/O errors.
pub fn write_cache(
    recipe: &Recipe,
    out: &Path,
    ask: Option<Ask>,
    observer: &mut dyn Observer,
    mut progress: impl FnMut(u64),
) -> Result<(usize, usize), TrainError> {
    let refuse = |message: &str| Err(candle_core::Error::Msg(message.to_owned()).into());
    let Some(distil) = recipe.distil.as_ref().filter(|distil| distil.stored.is_none()) else {
        return refuse("the recipe names no local or remote teacher (distil.teacher or distil.endpoint)");
    };
    if recipe.data.loading.is_some() {
        return refuse("with data.loading the rows depend on losses, which are unknown before the run");
    }
    let _lock = lock(out)?;
    let prepared = Prepared::new(recipe, out, false, None, observer)?;
    let teacher = Teacher::open(distil, &prepared, ask)?;
    let weights = recipe.domain_weights();
    let fingerprint = teacher.fingerprint(prepared.identity.tokens_of)?;
    let mut writer = LogitWriter::open(out, fingerprint, distil.top, distil.temperature as f32)?;
    let before = writer.documents();
    let mut position = Position::default();
    for step in 1..=recipe.train.steps {
        let stage = recipe.stage(step);
        let (made, after) = batch(&prepared.train, &weights, stage, &position, recipe.data.long_rows)?;
        for row in &made.rows {
            if !writer.has(row) {
                writer.add(row, teacher.top_tokens(std::slice::from_ref(row))?)?;
                failpoints::point("distil.said", "");
            }
        }
        position = after;
        progress(step);
    }
    Ok((writer.finish()?, before))
}

#[cfg(test)]
mod tests;
