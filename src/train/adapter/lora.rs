//! LoRA (Hu et al. 2021): `y + alpha / r B A x` on a frozen matrix.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, Var};
use rand::Rng;

use crate::model::ops::{linear, low_rank};
use crate::model::{DecoderConfig, Parameters, Projection, Recompute, Taps};
use crate::train::recipe::LoraRecipe;

/// A LoRA over shared parameters.
#[derive(Debug, Clone)]
pub struct Lora {
    pairs: Arc<HashMap<(Projection, usize), (Tensor, Tensor)>>,
    scale: f64,
}

impl Lora {
    /// The pairs of a recipe over parameters as [`initial`] makes them.
    ///
    /// # Errors
    /// Parameters that are missing.
    pub(super) fn new(recipe: &LoraRecipe, config: &DecoderConfig, parameters: &Parameters) -> Result<Self> {
        let mut pairs = HashMap::new();
        for Target { projection, layer, module, .. } in targets(recipe, config)? {
            let get = |side: &str| {
                let name = format!("{module}.{side}.weight");
                Ok::<_, candle_core::Error>(parameters.get(&name)?.as_tensor().clone())
            };
            pairs.insert((projection, layer), (get("lora_A")?, get("lora_B")?));
        }
        Ok(Self { pairs: pairs.into(), scale: recipe.alpha / recipe.rank as f64 })
    }
}

impl Taps for Lora {
    fn project(
        &mut self,
        projection: Projection,
        layer: usize,
        input: &Tensor,
        output: Tensor,
    ) -> Result<Tensor> {
        match self.pairs.get(&(projection, layer)) {
            None => Ok(output),
            Some((a, b)) => low_rank(&output, &linear(input, a)?, b, self.scale),
        }
    }

    fn recompute(&self, layer: usize) -> Option<Recompute> {
        let same = self.clone();
        // In the order of projections; the order of a HashMap would differ between runs.
        let mut pairs: Vec<_> = self.pairs.iter().filter(|((_, at), _)| *at == layer).collect();
        pairs.sort_unstable_by_key(|(place, _)| **place);
        let variables = pairs.into_iter().flat_map(|(_, (a, b))| [a.clone(), b.clone()]).collect();
        Some(Recompute { taps: Arc::new(move || Box::new(same.clone())), variables })
    }
}

/// A matrix that the LoRA changes.
struct Target {
    projection: Projection,
    layer: usize,
    /// Its name in Hugging Face's models, without `.weight`.
    module: String,
    rows: usize,
    columns: usize,
}

/// The matrices that a recipe names, in the order of the decoder's parameters.
fn targets(recipe: &LoraRecipe, config: &DecoderConfig) -> Result<Vec<Target>> {
    let mut found = Vec::new();
    let mut known = vec![];
    for (name, shape) in config.parameter_shapes() {
        let Some((module, layer)) = block_module(&name) else { continue };
        let (end, &[rows, columns]) = (module.rsplit('.').next().unwrap_or(module), &shape[..]) else {
            continue;
        };
        let Some(projection) = projection(module) else { continue };
        known.push(end.to_owned());
        if recipe.targets.iter().any(|target| target == end) {
            found.push(Target { projection, layer, module: module.to_owned(), rows, columns });
        }
    }
    known.sort_unstable();
    known.dedup();
    if let Some(unknown) = recipe.targets.iter().find(|target| !known.contains(target)) {
        candle_core::bail!("adapter.lora.targets has {unknown:?}; this decoder has {}", known.join(", "));
    }
    Ok(found)
}

/// Module and layer of a block's weight.
fn block_module(name: &str) -> Option<(&str, usize)> {
    let module = name.strip_suffix(".weight")?;
    let layer = module.strip_prefix("model.layers.")?.split('.').next()?;
    Some((module, layer.parse().ok()?))
}

fn projection(module: &str) -> Option<Projection> {
    let all = [
        (Projection::Query, "self_attn.q_proj"),
        (Projection::Key, "self_attn.k_proj"),
        (Projection::Value, "self_attn.v_proj"),
        (Projection::Output, "self_attn.o_proj"),
        (Projection::DeltaMixed, "linear_attn.in_proj_qkv"),
        (Projection::DeltaGate, "linear_attn.in_proj_z"),
        (Projection::DeltaStrength, "linear_attn.in_proj_b"),
        (Projection::DeltaTime, "linear_attn.in_proj_a"),
        (Projection::DeltaOutput, "linear_attn.out_proj"),
        (Projection::Gate, "mlp.gate_proj"),
        (Projection::Up, "mlp.up_proj"),
        (Projection::Down, "mlp.down_proj"),
    ];
    all.into_iter().find(|(_, end)| module.ends_with(end)).map(|(projection, _)| projection)
}

/// A ~ U(-1/sqrt(in), 1/sqrt(in)) as in PEFT, B = 0.
pub(super) fn initial(recipe: &LoraRecipe, config: &DecoderConfig, rng: &mut impl Rng) -> Result<Parameters> {
    let mut parameters = Parameters::default();
    for Target { module, rows, columns, .. } in targets(recipe, config)? {
        let bound = 1.0 / (columns as f32).sqrt();
        let a: Vec<f32> = (0..recipe.rank * columns).map(|_| rng.random_range(-bound..bound)).collect();
        let a = Var::from_vec(a, (recipe.rank, columns), &Device::Cpu)?;
        parameters.insert(format!("{module}.lora_A.weight"), a)?;
        let b = Var::zeros((rows, recipe.rank), candle_core::DType::F32, &Device::Cpu)?;
        parameters.insert(format!("{module}.lora_B.weight"), b)?;
    }
    Ok(parameters)
}
