//! Objectives: losses over rows, of a decoder with or without an adapter.

use std::ops::AddAssign;

use candle_core::Tensor;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::TrainError;
use super::adapter::Adapter;
use super::batch::{Inputs, PackedRow};
use super::method::Effect;
use crate::model::{BatchLayout, Decoder, NoTaps, Pass, Taps};

/// The terms of a loss, each a mean over answer tokens, in nats, before weighting.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Terms {
    /// Cross-entropy with the data.
    pub cross_entropy: f64,
    /// Divergence from the teacher, times the square of the temperature.
    pub divergence: f64,
    /// 1 - cosine of hidden states.
    pub hidden: f64,
}

impl AddAssign for Terms {
    fn add_assign(&mut self, other: Self) {
        self.cross_entropy += other.cross_entropy;
        self.divergence += other.divergence;
        self.hidden += other.hidden;
    }
}

/// The step that a loss belongs to. It is the same for all parts of a batch, and so is noise that is
/// drawn from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepContext {
    /// The step, from 1; for an evaluation, the number of steps before it.
    pub step: u64,
    /// The seed of the run.
    pub seed: u64,
    /// Whether the step trains. An evaluation draws no noise.
    pub trains: bool,
}

impl StepContext {
    /// A forward pass of the step over a batch with this layout. Outside of training it has step 0.
    pub fn pass(self, layout: &BatchLayout) -> Pass<'_> {
        Pass { layout, step: if self.trains { self.step } else { 0 } }
    }

    /// Random numbers of the step for one purpose: different purposes have different numbers.
    pub fn rng(&self, purpose: u64) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ purpose);
        rng.set_stream(self.step);
        rng
    }
}

/// The loss of one part of a batch.
#[derive(Debug)]
pub struct PartLoss {
    /// The scaled sum, a scalar with a gradient.
    pub loss: Tensor,
    /// Its terms, scaled the same way.
    pub terms: Terms,
    /// Whether each answer token was the most likely, in the order of the rows.
    pub hits: Vec<bool>,
}

/// A loss over rows.
pub trait Objective: Sync {
    /// `scale` times the sum of the losses of the rows' answer tokens. A backward pass needs
    /// `with_gradient`.
    ///
    /// # Errors
    /// Tensor errors.
    fn loss(
        &self,
        rows: &[PackedRow],
        scale: f32,
        context: StepContext,
        with_gradient: bool,
    ) -> Result<PartLoss, TrainError>;

    /// A term of the loss that belongs to the step and not to its rows, a scalar with a gradient: a
    /// constraint on parameters, for example. It counts once, however many parts the batch has.
    ///
    /// # Errors
    /// Tensor errors.
    fn step_term(&self, _context: StepContext) -> Result<Option<Tensor>, TrainError> {
        Ok(None)
    }
}

/// A decoder with an optional adapter.
#[derive(Debug, Clone, Copy)]
pub struct Student<'a> {
    /// The decoder.
    pub decoder: &'a Decoder,
    /// Its adapter.
    pub adapter: Option<&'a Adapter>,
    /// What a training method does to it.
    pub effect: Option<&'a dyn Effect>,
}

impl Student<'_> {
    /// Taps for one forward pass.
    pub fn taps(&self, context: StepContext) -> Box<dyn Taps> {
        let own = self.adapter.map_or_else(|| Box::new(NoTaps) as Box<dyn Taps>, Adapter::taps);
        match self.effect {
            Some(effect) => effect.taps(own, context),
            None => own,
        }
    }

    /// Normalised hidden states of the tokens that predict an answer, `[targets, D]`.
    ///
    /// # Errors
    /// Tensor errors.
    pub fn predicting(
        &self,
        inputs: &Inputs,
        context: StepContext,
        taps: &mut dyn Taps,
    ) -> Result<Tensor, TrainError> {
        let hidden = self.decoder.forward(&inputs.ids, context.pass(&inputs.layout), taps)?;
        // Only tokens that predict an answer need logits.
        Ok(hidden.flatten(0, 1)?.index_select(&inputs.predicting, 0)?)
    }
}

impl Objective for Student<'_> {
    fn loss(
        &self,
        rows: &[PackedRow],
        scale: f32,
        context: StepContext,
        with_gradient: bool,
    ) -> Result<PartLoss, TrainError> {
        let inputs = Inputs::new(rows, self.decoder.device())?;
        let hidden = self.predicting(&inputs, context, &mut *self.taps(context))?;
        let result = self.decoder.loss(&hidden, inputs.targets, scale, with_gradient)?;
        let cross_entropy = f64::from(result.loss.to_scalar::<f32>()?);
        let terms = Terms { cross_entropy, ..Terms::default() };
        Ok(PartLoss { loss: result.loss, terms, hits: result.hits })
    }

    fn step_term(&self, context: StepContext) -> Result<Option<Tensor>, TrainError> {
        self.effect.map_or(Ok(None), |effect| effect.step_term(context))
    }
}

impl Objective for Decoder {
    fn loss(
        &self,
        rows: &[PackedRow],
        scale: f32,
        context: StepContext,
        with_gradient: bool,
    ) -> Result<PartLoss, TrainError> {
        Student { decoder: self, adapter: None, effect: None }.loss(rows, scale, context, with_gradient)
    }
}
