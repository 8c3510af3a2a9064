//! What a training method brings to a run in addition to its recipe: variables to train, taps, a
//! term of the loss, and groups of the optimiser. Learned masks are one.

use std::fmt::Debug;

use candle_core::Tensor;

use super::TrainError;
use super::objective::StepContext;
use super::optimiser::Group;
use crate::model::{DecoderConfig, Parameters, Taps};

/// A training method.
pub trait Method: Send + Sync {
    /// Adds its variables to the trained parameters, without a role. Checkpoints have them, the
    /// result does not.
    ///
    /// # Errors
    /// A model that the method isn't for.
    fn add_variables(
        &self,
        config: &DecoderConfig,
        seed: u64,
        trained: &mut Parameters,
    ) -> Result<(), TrainError>;

    /// What it does to a student with these values of its variables.
    ///
    /// # Errors
    /// Variables that are missing.
    fn effect(&self, config: &DecoderConfig, variable: &Variable) -> Result<Box<dyn Effect>, TrainError>;

    /// How its variables move: groups that stand before those of the recipe.
    fn groups(&self) -> Vec<Group>;
}

/// The variable of a name, which shares its storage with the trained parameter. For a student that
/// is only evaluated or measured, it collects no gradient.
pub type Variable<'a> = dyn Fn(&str) -> candle_core::Result<Tensor> + 'a;

/// What a method does to a student.
pub trait Effect: Debug + Send + Sync {
    /// Taps for one forward pass; `before` are those of the student's adapter.
    fn taps(&self, before: Box<dyn Taps>, _context: StepContext) -> Box<dyn Taps> {
        before
    }

    /// A term of the loss, as [`super::objective::Objective::step_term`] has it.
    ///
    /// # Errors
    /// Tensor errors.
    fn step_term(&self, _context: StepContext) -> Result<Option<Tensor>, TrainError> {
        Ok(None)
    }
}
