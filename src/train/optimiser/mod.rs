//! Optimisers with visible state: AdamW for embeddings, norms and head, and Muon or AdamW for the
//! matrices of blocks.

pub mod adamw;
pub mod muon;

use std::collections::HashMap;

use candle_core::{Result, Tensor};

pub use adamw::{AdamW, AdamWConfig};
pub use muon::{Muon, MuonConfig};

use crate::device::Workers;
use crate::model::Parameters;

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
    /// Number of moments per element of a parameter.
    pub fn moments(self, name: &str, dims: &[usize]) -> usize {
        if self == Self::Muon && is_block_matrix(name, dims) { 1 } else { 2 }
    }
}

/// Both optimisers over one set of parameters.
#[derive(Debug)]
pub struct Optimiser {
    /// The optimiser of each parameter, in order.
    assignments: Vec<Assignment>,
    muon: Muon,
    adamw: AdamW,
}

/// The optimiser of a parameter, and its index there.
#[derive(Debug, Clone, Copy)]
enum Assignment {
    Muon(usize),
    AdamW(usize),
}

/// Whether a parameter is a matrix of a block or of an adapter on one.
fn is_block_matrix(name: &str, dims: &[usize]) -> bool {
    dims.len() == 2 && name.starts_with("model.layers.")
}

impl Optimiser {
    /// Starts with zero moments for every parameter.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(parameters: &Parameters, who: Matrices, muon: MuonConfig, adamw: AdamWConfig) -> Result<Self> {
        let (mut matrices, mut rest, mut assignments) = (vec![], vec![], vec![]);
        for (name, var) in parameters.iter() {
            let entry = (name.to_owned(), var.as_tensor().clone());
            if who.moments(name, var.dims()) == 1 {
                assignments.push(Assignment::Muon(matrices.len()));
                matrices.push(entry);
            } else {
                assignments.push(Assignment::AdamW(rest.len()));
                rest.push(entry);
            }
        }
        Ok(Self { assignments, muon: Muon::new(muon, matrices)?, adamw: AdamW::new(adamw, rest)? })
    }

    /// Updates every parameter, each on one thread; `gradients` are in the order of the
    /// parameters, `factor` scales both learning rates.
    ///
    /// # Errors
    /// Gradients that differ in number or shape from the parameters.
    pub fn step(&mut self, gradients: &[Tensor], factor: f64, workers: &Workers) -> Result<()> {
        if gradients.len() != self.assignments.len() {
            candle_core::bail!("{} gradients for {} parameters", gradients.len(), self.assignments.len());
        }
        self.adamw.count_step();
        workers.each(gradients.len(), |at| match self.assignments[at] {
            Assignment::Muon(index) => self.muon.step(index, &gradients[at], factor),
            Assignment::AdamW(index) => self.adamw.step(index, &gradients[at], factor),
        })
    }

    /// All state, by name.
    pub fn state(&self) -> HashMap<String, Tensor> {
        self.muon.state().chain(self.adamw.state()).collect()
    }

    /// Restores the state of [`Optimiser::state`]; `steps` is the number of steps taken so far.
    ///
    /// # Errors
    /// A moment that is missing or has the wrong shape.
    pub fn restore(&mut self, state: &HashMap<String, Tensor>, steps: u64) -> Result<()> {
        self.muon.state().chain(self.adamw.state()).try_for_each(|(name, moment)| {
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
            super::in_place::blend(&moment, 0.0, 1.0, &saved.to_device(moment.device())?)
        })?;
        self.adamw.set_steps(steps);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::clip::clip;
    use candle_core::{DType, Device, Var};

    fn parameters(dtype: DType) -> Parameters {
        let mut parameters = Parameters::default();
        let shapes = [("model.embed_tokens.weight", vec![7, 4]), ("model.layers.0.up.weight", vec![6, 4])];
        for (name, shape) in shapes.into_iter().chain([("model.norm.weight", vec![4])]) {
            let count: usize = shape.iter().product();
            // No regular pattern: Muon would amplify the rounding errors of a matrix with
            // dependent rows.
            let values: Vec<f32> =
                (0..count).map(|i| ((i * i * 7919 + 31 * i) % 1009) as f32 / 504.5 - 1.0).collect();
            let value = Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            parameters.insert(name, Var::from_tensor(&value).unwrap()).unwrap();
        }
        parameters
    }

    /// Ten clipped steps. Tensors that are not f32 take the code path of a GPU.
    fn trained(dtype: DType) -> Vec<Vec<f32>> {
        let (parameters, workers) = (parameters(dtype), Workers::new(2).unwrap());
        let adamw = AdamWConfig { weight_decay: 0.1, ..Default::default() };
        let muon = MuonConfig { weight_decay: 0.1, ..Default::default() };
        let mut optimiser = Optimiser::new(&parameters, Matrices::Muon, muon, adamw).unwrap();
        for step in 1..=10 {
            let turn = (2.0 * f64::from(step)).sin();
            let gradient = |(_, var): (&str, &Var)| var.as_detached_tensor() * turn;
            let gradients: Vec<Tensor> = parameters.iter().map(gradient).collect::<Result<_>>().unwrap();
            clip(&gradients, 0.5, &workers).unwrap();
            optimiser.step(&gradients, 1.0, &workers).unwrap();
        }
        // A restored state equals the saved one.
        let state = optimiser.state();
        let mut again = Optimiser::new(&parameters, Matrices::Muon, muon, adamw).unwrap();
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
