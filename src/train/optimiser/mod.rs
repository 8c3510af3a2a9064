//! Optimisers with visible state: Muon for the matrices of the blocks, AdamW for embeddings, norms and head.

pub mod adamw;
pub mod muon;

use std::collections::HashMap;

use candle_core::{Result, Tensor};

pub use adamw::{AdamW, AdamWConfig};
pub use muon::{Muon, MuonConfig};

use super::gradient::Workers;
use crate::model::Parameters;

/// Both optimisers over one set of parameters.
#[derive(Debug)]
pub struct Optimiser {
    /// For each parameter, in order, who moves it.
    places: Vec<Place>,
    muon: Muon,
    adamw: AdamW,
}

/// Who moves a parameter, and its index there.
#[derive(Debug, Clone, Copy)]
enum Place {
    Muon(usize),
    AdamW(usize),
}

/// Whether a parameter is a matrix of a block, which Muon moves.
fn is_block_matrix(name: &str, dims: &[usize]) -> bool {
    dims.len() == 2 && name.starts_with("model.layers.")
}

impl Optimiser {
    /// Moments of zero for every parameter.
    ///
    /// # Errors
    /// Memory that is not there.
    pub fn new(parameters: &Parameters, muon: MuonConfig, adamw: AdamWConfig) -> Result<Self> {
        let (mut matrices, mut rest, mut places) = (vec![], vec![], vec![]);
        for (name, var) in parameters.iter() {
            let entry = (name.to_owned(), var.as_tensor().clone());
            if is_block_matrix(name, var.dims()) {
                places.push(Place::Muon(matrices.len()));
                matrices.push(entry);
            } else {
                places.push(Place::AdamW(rest.len()));
                rest.push(entry);
            }
        }
        Ok(Self { places, muon: Muon::new(muon, matrices)?, adamw: AdamW::new(adamw, rest)? })
    }

    /// Moves every parameter, each on one thread; `gradients` are in the order of the parameters, `factor` scales both
    /// learning rates.
    ///
    /// # Errors
    /// Gradients that differ in number or shape from the parameters.
    pub fn step(&mut self, gradients: &[Tensor], factor: f64, workers: &Workers) -> Result<()> {
        if gradients.len() != self.places.len() {
            candle_core::bail!("{} gradients for {} parameters", gradients.len(), self.places.len());
        }
        self.adamw.count_step();
        workers.each(gradients.len(), |at| match self.places[at] {
            Place::Muon(index) => self.muon.step(index, &gradients[at], factor),
            Place::AdamW(index) => self.adamw.step(index, &gradients[at], factor),
        })
    }

    /// All state, by name.
    pub fn state(&self) -> HashMap<String, Tensor> {
        self.muon.state().chain(self.adamw.state()).collect()
    }

    /// Takes the state that [`Optimiser::state`] gave; `steps` are those taken so far.
    ///
    /// # Errors
    /// A moment that is missing or has another shape.
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
            super::in_place::blend(&moment, 0.0, 1.0, saved)
        })?;
        self.adamw.set_steps(steps);
        Ok(())
    }
}
