//! Felix spokes as trainable parameters: `model.layers.N.felix.{gate_bias, w_down, w_up}`, with
//! the matrices of all bottlenecks fused.

use candle_core::{DType, Device, Result, Tensor, Var};
use rand::Rng;

use crate::model::felix::{Felix, FelixLayer};
use crate::model::{DecoderConfig, Parameters};
use crate::train::recipe::{FelixRecipe, GateStart};

pub(super) const GATE: &str = "gate_bias";
pub(super) const DOWN: &str = "w_down";
pub(super) const UP: &str = "w_up";

/// Name of a parameter.
pub(super) fn name(layer: usize, part: &str) -> String {
    format!("model.layers.{layer}.felix.{part}")
}

/// The spoke over parameters as [`initial`] makes them.
pub(super) fn over(recipe: &FelixRecipe, config: &DecoderConfig, parameters: &Parameters) -> Result<Felix> {
    let layer = |at| {
        let get =
            |part| Ok::<Tensor, candle_core::Error>(parameters.get(&name(at, part))?.as_tensor().clone());
        Ok((at, FelixLayer { gate_bias: get(GATE)?, w_down: get(DOWN)?, w_up: get(UP)?, norm: None }))
    };
    let layers = (0..config.layers).map(layer).collect::<Result<_>>()?;
    Felix::new(layers, recipe.spokes, config.hidden_size, config.rms_eps)
}

/// W_up = 0, so that the decoder starts unchanged; W_down ~ U(-1/sqrt(d), 1/sqrt(d)).
pub(super) fn initial(
    recipe: &FelixRecipe,
    config: &DecoderConfig,
    rng: &mut impl Rng,
) -> Result<Parameters> {
    let (rows, width) = (recipe.spokes * recipe.rank, config.hidden_size);
    let bound = 1.0 / (width as f32).sqrt();
    let mut parameters = Parameters::default();
    for layer in 0..config.layers {
        let depth = layer as f32 / (config.layers.max(2) - 1) as f32;
        let gate = match recipe.gate {
            GateStart::Uniform => 0.0,
            GateStart::Progressive => 4.0f32.mul_add(depth, -2.0),
        };
        parameters.insert(name(layer, GATE), Var::from_vec(vec![gate], 1, &Device::Cpu)?)?;
        let down: Vec<f32> = (0..rows * width).map(|_| rng.random_range(-bound..bound)).collect();
        parameters.insert(name(layer, DOWN), Var::from_vec(down, (rows, width), &Device::Cpu)?)?;
        parameters.insert(name(layer, UP), Var::zeros((width, rows), DType::F32, &Device::Cpu)?)?;
    }
    Ok(parameters)
}
