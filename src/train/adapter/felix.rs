//! Felix spokes as trainable parameters: `model.layers.N.felix.{gate_bias, w_down, w_up}`, with
//! the matrices of all bottlenecks fused.

use candle_core::{DType, Device, Result, Tensor, Var};
use rand::Rng;

use crate::model::felix::{Felix, FelixLayer};
use crate::model::spec::{FelixTensor, Part};
use crate::model::{DecoderConfig, Parameters, Role};
use crate::train::recipe::{FelixRecipe, GateStart};

/// The role of a tensor of a layer.
pub(super) fn role(layer: usize, tensor: FelixTensor) -> Role {
    Role::Block { layer, part: Part::Felix(tensor) }
}

/// The spoke over parameters as [`initial`] makes them, which `get` gives by role.
pub(super) fn over(
    recipe: &FelixRecipe,
    config: &DecoderConfig,
    get: impl Fn(Role) -> Result<Tensor>,
) -> Result<Felix> {
    let layer = |at| {
        let get = |tensor| get(role(at, tensor));
        let (gate_bias, w_down, w_up) =
            (get(FelixTensor::Gate)?, get(FelixTensor::Down)?, get(FelixTensor::Up)?);
        Ok((at, FelixLayer { gate_bias, w_down, w_up, norm: None }))
    };
    let layers = (0..config.layers()).map(layer).collect::<Result<_>>()?;
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
    for layer in 0..config.layers() {
        let depth = layer as f32 / (config.layers().max(2) - 1) as f32;
        let gate = match recipe.gate {
            GateStart::Uniform => 0.0,
            GateStart::Progressive => 4.0f32.mul_add(depth, -2.0),
        };
        let mut insert = |tensor, var| {
            let role = role(layer, tensor);
            parameters.insert(role.name(false), role, var)
        };
        insert(FelixTensor::Gate, Var::from_vec(vec![gate], 1, &Device::Cpu)?)?;
        let down: Vec<f32> = (0..rows * width).map(|_| rng.random_range(-bound..bound)).collect();
        insert(FelixTensor::Down, Var::from_vec(down, (rows, width), &Device::Cpu)?)?;
        insert(FelixTensor::Up, Var::zeros((width, rows), DType::F32, &Device::Cpu)?)?;
    }
    Ok(parameters)
}
