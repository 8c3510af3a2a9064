//! Optimisers with visible state: groups of parameters, each moved by AdamW or Muon. A mask may keep
//! weights at 0.

pub mod adamw;
mod group;
pub mod muon;

use std::collections::HashMap;

use candle_core::{DType, Result, Tensor};

pub use adamw::AdamWConfig;
pub use group::{Algorithm, Class, Direction, Group, Takes};
pub use muon::MuonConfig;

use super::in_place::{blend, keep};
use crate::device::Workers;
use crate::model::parameters::Parameter;
use crate::model::{Parameters, Role};
use adamw::AdamW;
use muon::Muon;

/// The optimiser of the matrices of blocks and adapters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Matrices {
    /// Muon: one moment, fewer steps.
    #[default]
    Muon,
    /// AdamW, as in most published recipes.
    AdamW,
}

impl Matrices {
    /// Moments that are kept of each element of a parameter.
    pub fn moments(self, role: Option<Role>, dims: &[usize]) -> usize {
        if self == Self::Muon && Class::of(role, dims) == Class::Matrix { 1 } else { 2 }
    }
}

/// Groups over one set of parameters.
#[derive(Debug)]
pub struct Optimiser {
    groups: Vec<Group>,
    /// In the order of the parameters.
    entries: Vec<Entry>,
    /// Steps taken.
    steps: u64,
}

#[derive(Debug)]
struct Entry {
    name: String,
    /// Index of its group.
    group: usize,
    /// The parameter itself: it shares the storage of the model.
    weight: Tensor,
    moments: Moments,
    /// 0 where the weight is kept at 0, elsewhere 1.
    mask: Option<Tensor>,
}

#[derive(Debug)]
enum Moments {
    Muon(Muon),
    AdamW(AdamW),
}

/// How far a parameter moves in a step.
#[derive(Debug, Clone, Copy)]
struct Stride {
    /// Learning rate.
    rate: f64,
    direction: Direction,
    /// The step, from 1.
    step: u64,
}

impl Moments {
    /// By name, without that of the parameter.
    fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Self::Muon(muon) => vec![("muon.momentum", &muon.momentum)],
            Self::AdamW(adamw) => vec![("adamw.first", &adamw.first), ("adamw.second", &adamw.second)],
        }
    }
}

impl Optimiser {
    /// Starts with zero moments for every parameter, each in the first group that takes it.
    ///
    /// # Errors
    /// A parameter that no group takes; a parameter for Muon that is no matrix; out of memory.
    pub fn new(parameters: &Parameters, groups: Vec<Group>) -> Result<Self> {
        let entry = |parameter: &Parameter| {
            let Parameter { name, var, .. } = parameter;
            let dims = var.dims();
            let Some(at) = groups.iter().position(|group| group.takes.takes(parameter)) else {
                candle_core::bail!("parameter {name} {dims:?} is in no group of the optimiser");
            };
            let weight = var.as_tensor().clone();
            let moments = match groups[at].algorithm {
                Algorithm::Muon { .. } if dims.len() != 2 => candle_core::bail!(
                    "parameter {name} {dims:?} is in the group {:?}, which Muon moves: expected a matrix",
                    groups[at].name
                ),
                Algorithm::Muon { momentum, weight_decay } => {
                    Moments::Muon(Muon::new(&weight, momentum, weight_decay)?)
                }
                Algorithm::AdamW { beta1, beta2, eps, weight_decay } => {
                    Moments::AdamW(AdamW::new(&weight, [beta1, beta2], eps, weight_decay)?)
                }
            };
            Ok(Entry { name: name.clone(), group: at, weight, moments, mask: None })
        };
        let entries = parameters.entries().iter().map(entry).collect::<Result<_>>()?;
        Ok(Self { groups, entries, steps: 0 })
    }

    /// Updates every parameter, each on one thread; `gradients` are in the order of the
    /// parameters, `factor` scales the rates of all groups that are scheduled.
    ///
    /// # Errors
    /// Gradients that differ in number or shape from the parameters.
    pub fn step(&mut self, gradients: &[Tensor], factor: f64, workers: &Workers) -> Result<()> {
        self.check_count(gradients)?;
        self.steps += 1;
        workers.each(gradients.len(), |at| {
            let (entry, gradient) = (&self.entries[at], &gradients[at]);
            let group = &self.groups[entry.group];
            let rate = if group.scheduled { group.rate * factor } else { group.rate };
            let stride = Stride { rate, direction: group.direction, step: self.steps };
            match &entry.moments {
                Moments::Muon(muon) => muon.step(&entry.weight, gradient, stride)?,
                Moments::AdamW(adamw) => adamw.step(&entry.weight, gradient, stride)?,
            }
            entry.mask.as_ref().map_or(Ok(()), |mask| keep(&entry.weight, mask))
        })
    }

    /// Keeps weights of a parameter at 0 from now on, and after every step: those for which the mask
    /// is 0. It has the shape of the parameter and 1 elsewhere. Their moments become 0 too. No mask
    /// lets all weights move again.
    ///
    /// A mask is no part of [`Optimiser::state`]: a run that goes on from a checkpoint sets it again.
    ///
    /// # Errors
    /// A parameter that isn't there; a mask of another shape or with other values.
    pub fn set_mask(&mut self, name: &str, mask: Option<&Tensor>) -> Result<()> {
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.name == name) else {
            candle_core::bail!("a mask for the parameter {name}, which isn't trained");
        };
        let Some(mask) = mask else {
            entry.mask = None;
            return Ok(());
        };
        let (found, expected) = (mask.dims(), entry.weight.dims());
        if found != expected {
            candle_core::bail!("mask of {name}: {found:?}, expected {expected:?}");
        }
        let mask = mask.detach().to_device(entry.weight.device())?.to_dtype(entry.weight.dtype())?;
        let values = mask.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        if let Some(value) = values.into_iter().find(|value| ![0.0, 1.0].contains(value)) {
            candle_core::bail!("mask of {name}: {value}, expected 0 or 1");
        }
        let mask = mask.contiguous()?;
        keep(&entry.weight, &mask)?;
        entry.moments.tensors().into_iter().try_for_each(|(_, moment)| keep(moment, &mask))?;
        entry.mask = Some(mask);
        Ok(())
    }

    /// Makes the gradients of weights that are kept at 0 zero: before their norm is measured, so that
    /// the network moves as if these weights weren't there.
    ///
    /// # Errors
    /// As [`Optimiser::step`].
    pub fn mask_gradients(&self, gradients: &[Tensor], workers: &Workers) -> Result<()> {
        self.check_count(gradients)?;
        if self.entries.iter().all(|entry| entry.mask.is_none()) {
            return Ok(());
        }
        workers.each(gradients.len(), |at| {
            self.entries[at].mask.as_ref().map_or(Ok(()), |mask| keep(&gradients[at], mask))
        })
    }

    /// Makes weights that are kept at 0 zero in other values of the same parameters: an average.
    ///
    /// # Errors
    /// Values that differ in shape from the parameters.
    pub fn mask_values(&self, values: &Parameters) -> Result<()> {
        self.entries.iter().zip(values.iter()).try_for_each(|(entry, (_, values))| {
            entry.mask.as_ref().map_or(Ok(()), |mask| keep(values, mask))
        })
    }

    fn check_count(&self, gradients: &[Tensor]) -> Result<()> {
        if gradients.len() != self.entries.len() {
            candle_core::bail!("{} gradients for {} parameters", gradients.len(), self.entries.len());
        }
        Ok(())
    }

    /// All state, by name.
    pub fn state(&self) -> HashMap<String, Tensor> {
        self.moments().map(|(name, moment)| (name, moment.clone())).collect()
    }

    fn moments(&self) -> impl Iterator<Item = (String, &Tensor)> {
        self.entries.iter().flat_map(|Entry { name, moments, .. }| {
            moments.tensors().into_iter().map(move |(which, moment)| (format!("{which}.{name}"), moment))
        })
    }

    /// Restores the state of [`Optimiser::state`]; `steps` is the number of steps taken so far.
    ///
    /// # Errors
    /// A moment that is missing or has the wrong shape.
    pub fn restore(&mut self, state: &HashMap<String, Tensor>, steps: u64) -> Result<()> {
        self.moments().try_for_each(|(name, moment)| {
            let Some(saved) = state.get(&name) else {
                candle_core::bail!("optimiser state {name} is missing");
            };
            if saved.dims() != moment.dims() {
                candle_core::bail!(
                    "optimiser state {name}: {:?}, expected {:?}",
                    saved.dims(),
                    moment.dims()
                );
            }
            blend(moment, 0.0, 1.0, &saved.to_device(moment.device())?)
        })?;
        self.steps = steps;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Projection;
    use crate::model::spec::Part;
    use crate::train::clip::clip;
    use candle_core::{DType, Device, Var};

    fn parameters(dtype: DType) -> Parameters {
        let mut parameters = Parameters::default();
        let up = Role::Block { layer: 0, part: Part::Weight(Projection::Up) };
        for (role, shape) in [(Role::Embedding, vec![7, 4]), (up, vec![6, 4]), (Role::FinalNorm, vec![4])] {
            let count: usize = shape.iter().product();
            // No regular pattern: Muon would amplify the rounding errors of a matrix with
            // dependent rows.
            let values: Vec<f32> =
                (0..count).map(|i| ((i * i * 7919 + 31 * i) % 1009) as f32 / 504.5 - 1.0).collect();
            let value = Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            parameters.insert(role.name(false), role, Var::from_tensor(&value).unwrap()).unwrap();
        }
        parameters
    }

    /// Ten clipped steps. Tensors that are not f32 take the code path of a GPU.
    fn trained(dtype: DType) -> Vec<Vec<f32>> {
        let (parameters, workers) = (parameters(dtype), Workers::new(2).unwrap());
        let adamw = AdamWConfig { weight_decay: 0.1, ..Default::default() };
        let muon = MuonConfig { weight_decay: 0.1, ..Default::default() };
        let mut optimiser =
            Optimiser::new(&parameters, Group::of_recipe(Matrices::Muon, muon, adamw)).unwrap();
        for step in 1..=10 {
            let turn = (2.0 * f64::from(step)).sin();
            let gradient = |(_, var): (&str, &Var)| var.as_detached_tensor() * turn;
            let gradients: Vec<Tensor> = parameters.iter().map(gradient).collect::<Result<_>>().unwrap();
            clip(&gradients, 0.5, &workers).unwrap();
            optimiser.step(&gradients, 1.0, &workers).unwrap();
        }
        // A restored state equals the saved one.
        let state = optimiser.state();
        let mut again = Optimiser::new(&parameters, Group::of_recipe(Matrices::Muon, muon, adamw)).unwrap();
        again.restore(&state, 10).unwrap();
        for (name, moment) in again.state() {
            let apart = (moment - &state[&name]).unwrap().abs().unwrap().to_dtype(DType::F32).unwrap();
            assert!(apart.max_all().unwrap().to_scalar::<f32>().unwrap() == 0.0, "{name}");
        }
        let values = |(_, var): (&str, &Var)| var.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        parameters.iter().map(values).collect::<Result<_>>().unwrap()
    }

    #[test]
    fn steps_by_tensor_operations_are_those_in_place() {
        let (here, there) = (trained(DType::F32), trained(DType::F64));
        for (here, there) in here.iter().flatten().zip(there.iter().flatten()) {
            assert!((here - there).abs() < 1e-5, "{here} in place, {there} by tensors");
        }
        for ((name, before), after) in parameters(DType::F32).iter().zip(&here) {
            let before = before.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let moved = before.iter().zip(after).map(|(before, after)| (before - after).abs());
            assert!(moved.fold(0.0, f32::max) > 1e-4, "{name} did not move");
        }
    }
}
