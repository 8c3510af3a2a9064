//! Adapters, sets of trainable parameters on a frozen decoder: LoRA and Felix spokes, as taps.

mod felix;
mod lora;
mod write;

pub use write::write;

use candle_core::Result;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::recipe::AdapterRecipe;
use crate::model::felix::Felix;
use crate::model::{DecoderConfig, Parameters, Taps};
use lora::Lora;

/// An adapter over its parameters: changing a parameter in place changes the adapter.
#[derive(Debug, Clone)]
pub enum Adapter {
    /// Low-rank changes of weight matrices.
    Lora(Lora),
    /// Gated bottlenecks after blocks.
    Felix(Felix),
}

impl Adapter {
    /// The adapter of a recipe for a decoder, over parameters with the names and shapes of
    /// [`initial`].
    ///
    /// # Errors
    /// Parameters that are missing or have the wrong shape.
    pub fn new(recipe: &AdapterRecipe, config: &DecoderConfig, parameters: &Parameters) -> Result<Self> {
        match (&recipe.lora, &recipe.felix) {
            (Some(lora), None) => Ok(Self::Lora(Lora::new(lora, config, parameters)?)),
            (None, Some(felix)) => Ok(Self::Felix(felix::over(felix, config, parameters)?)),
            _ => candle_core::bail!("an adapter is either a LoRA or a Felix spoke"),
        }
    }

    /// Taps for one forward pass.
    pub fn taps(&self) -> Box<dyn Taps> {
        match self {
            Self::Lora(lora) => Box::new(lora.clone()),
            Self::Felix(felix) => Box::new(felix.clone()),
        }
    }
}

/// Parameters that don't change the decoder's output, drawn from a seed.
///
/// # Errors
/// Targets that the decoder doesn't have.
pub fn initial(recipe: &AdapterRecipe, config: &DecoderConfig, seed: u64) -> Result<Parameters> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    match (&recipe.lora, &recipe.felix) {
        (Some(lora), None) => lora::initial(lora, config, &mut rng),
        (None, Some(felix)) => felix::initial(felix, config, &mut rng),
        _ => candle_core::bail!("an adapter is either a LoRA or a Felix spoke"),
    }
}
