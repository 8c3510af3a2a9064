//! Optimisers with visible state: Muon for the matrices of the blocks, AdamW for embeddings, norms and head.

pub mod adamw;
pub mod muon;

use std::collections::HashMap;

use candle_core::{Result, Tensor};

pub use adamw::{AdamW, AdamWConfig};
pub use muon::{Muon, MuonConfig};

use crate::model::Parameters;

/// Both optimisers over one set of parameters.
#[derive(Debug)]
pub struct Optimiser {
    /// For each parameter, in order, who moves it.
    roles: Vec<Role>,
    muon: Muon,
    adamw: AdamW,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Muon,
    AdamW,
}

/// Whether a parameter is a matrix of a block, which Muon moves.
fn role(name: &str, dims: &[usize]) -> Role {
    if dims.len() == 2 && name.starts_with("model.layers.") { Role::Muon } else { Role::AdamW }
}

impl Optimiser {
    /// Moments of zero for every parameter.
    ///
    /// # Errors
    /// Memory that is not there.
    pub fn new(parameters: &Parameters, muon: MuonConfig, adamw: AdamWConfig) -> Result<Self> {
        let roles: Vec<Role> = parameters.iter().map(|(name, var)| role(name, var.dims())).collect();
        let of = |wanted: Role| {
            let named = parameters.iter().zip(&roles).filter(move |(_, role)| **role == wanted);
            named.map(|((name, var), _)| (name.to_owned(), var.as_tensor().clone())).collect::<Vec<_>>()
        };
        let (muon, adamw) = (Muon::new(muon, of(Role::Muon))?, AdamW::new(adamw, of(Role::AdamW))?);
        Ok(Self { roles, muon, adamw })
    }

    /// Moves every parameter; `gradients` are in the order of the parameters, `factor` scales both learning rates.
    ///
    /// # Errors
    /// Gradients that differ in number or shape from the parameters.
    pub fn step(&mut self, gradients: Vec<Tensor>, factor: f64) -> Result<()> {
        if gradients.len() != self.roles.len() {
            candle_core::bail!("{} gradients for {} parameters", gradients.len(), self.roles.len());
        }
        let (mut matrices, mut rest) = (vec![], vec![]);
        for (gradient, role) in gradients.into_iter().zip(&self.roles) {
            if *role == Role::Muon { matrices.push(gradient) } else { rest.push(gradient) }
        }
        self.muon.step(&matrices, factor)?;
        self.adamw.step(&rest, factor)
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
