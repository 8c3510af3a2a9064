//! LoRA (Hu et al. 2021): `y + alpha / r B A x` on a frozen matrix.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, Var};
use rand::Rng;

use crate::model::ops::{linear, low_rank};
use crate::model::spec::{LoraSide, Part};
use crate::model::{Context, DecoderConfig, Parameters, Projection, Recompute, Role, Taps};
use crate::train::recipe::LoraRecipe;

/// A LoRA over shared parameters.
#[derive(Debug, Clone)]
pub struct Lora {
    pairs: Arc<HashMap<(Projection, usize), (Tensor, Tensor)>>,
    scale: f64,
}

impl Lora {
    /// The pairs of a recipe over parameters as [`initial`] makes them, which `get` gives by role.
    ///
    /// # Errors
    /// Parameters that are missing.
    pub(super) fn new(
        recipe: &LoraRecipe,
        config: &DecoderConfig,
        get: impl Fn(Role) -> Result<Tensor>,
    ) -> Result<Self> {
        let mut pairs = HashMap::new();
        for target in targets(recipe, config)? {
            let get = |side| get(target.role(side));
            pairs.insert((target.projection, target.layer), (get(LoraSide::A)?, get(LoraSide::B)?));
        }
        Ok(Self { pairs: pairs.into(), scale: recipe.alpha / recipe.rank as f64 })
    }
}

impl Taps for Lora {
    fn project(
        &mut self,
        projection: Projection,
        at: Context,
        input: &Tensor,
        output: Tensor,
    ) -> Result<Tensor> {
        match self.pairs.get(&(projection, at.layer)) {
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
    rows: usize,
    columns: usize,
}

impl Target {
    /// The role of a matrix of the pair on it.
    fn role(&self, side: LoraSide) -> Role {
        Role::Block { layer: self.layer, part: Part::Lora(self.projection, side) }
    }
}

/// The matrices that a recipe names, in the order of the decoder's parameters.
fn targets(recipe: &LoraRecipe, config: &DecoderConfig) -> Result<Vec<Target>> {
    let mut found = Vec::new();
    let mut known = vec![];
    for parameter in config.parameters() {
        let (Role::Block { layer, part: Part::Weight(projection) }, &[rows, columns]) =
            (parameter.role, &parameter.shape()[..])
        else {
            continue;
        };
        let name = projection.short_name();
        known.push(name);
        if recipe.targets.iter().any(|target| target == name) {
            found.push(Target { projection, layer, rows, columns });
        }
    }
    known.sort_unstable();
    known.dedup();
    if let Some(unknown) = recipe.targets.iter().find(|target| !known.contains(&target.as_str())) {
        candle_core::bail!("adapter.lora.targets has {unknown:?}; this decoder has {}", known.join(", "));
    }
    Ok(found)
}

/// A ~ U(-1/sqrt(in), 1/sqrt(in)) as PEFT draws it, B = 0.
pub(super) fn initial(recipe: &LoraRecipe, config: &DecoderConfig, rng: &mut impl Rng) -> Result<Parameters> {
    let mut parameters = Parameters::default();
    for target in targets(recipe, config)? {
        let Target { rows, columns, .. } = target;
        let mut insert = |side, var| {
            let role = target.role(side);
            parameters.insert(role.name(false), role, var)
        };
        let bound = 1.0 / (columns as f32).sqrt();
        let a: Vec<f32> = (0..recipe.rank * columns).map(|_| rng.random_range(-bound..bound)).collect();
        let a = Var::from_vec(a, (recipe.rank, columns), &Device::Cpu)?;
        insert(LoraSide::A, a)?;
        let b = Var::zeros((rows, recipe.rank), candle_core::DType::F32, &Device::Cpu)?;
        insert(LoraSide::B, b)?;
    }
    Ok(parameters)
}
