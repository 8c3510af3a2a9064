//! The pieces that blocks are made of: norms, projections, and where their weights come from.

use candle_core::{Result, Tensor};

use crate::model::Parameters;
use crate::model::features::NormWeight;
use crate::model::ops::{add_bias, linear, rms_norm};

/// Parameters below a common prefix.
pub(in crate::model) struct Weights<'a> {
    parameters: &'a Parameters,
    prefix: String,
    frozen: bool,
}

impl<'a> Weights<'a> {
    /// The parameters whose names begin with `prefix`; frozen ones collect no gradients.
    pub(in crate::model) fn new(parameters: &'a Parameters, prefix: impl Into<String>, frozen: bool) -> Self {
        Self { parameters, prefix: prefix.into(), frozen }
    }

    /// The parameter of this name below the prefix.
    pub(in crate::model) fn get(&self, name: &str) -> Result<Tensor> {
        let tensor = self.parameters.get(&format!("{}{name}", self.prefix))?.as_tensor();
        Ok(if self.frozen { tensor.detach() } else { tensor.clone() })
    }

    /// The weights that collect gradients.
    pub(super) fn variables(&self) -> Vec<Tensor> {
        let below = self.parameters.iter().filter(|(name, _)| !self.frozen && name.starts_with(&self.prefix));
        below.map(|(_, var)| var.as_tensor().clone()).collect()
    }

    /// An RMS norm.
    pub(in crate::model) fn norm(&self, name: &str, kind: NormWeight, eps: f64) -> Result<Norm> {
        Ok(Norm { weight: self.get(&format!("{name}.weight"))?, kind, eps })
    }

    /// A projection, with its bias if it has one.
    pub(super) fn linear(&self, name: &str, bias: bool) -> Result<Linear> {
        let weight = self.get(&format!("{name}.weight"))?;
        Ok(Linear { weight, bias: bias.then(|| self.get(&format!("{name}.bias"))).transpose()? })
    }
}

/// An RMS norm over the last dimension.
#[derive(Debug, Clone)]
pub(in crate::model) struct Norm {
    weight: Tensor,
    kind: NormWeight,
    eps: f64,
}

impl Norm {
    /// The norm of `[..., D]`.
    pub(in crate::model) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &self.factor()?, self.eps)
    }

    /// The factor of the normalised values, `[D]`.
    pub(super) fn factor(&self) -> Result<Tensor> {
        match self.kind {
            NormWeight::Plain => Ok(self.weight.clone()),
            NormWeight::OnePlus => &self.weight + 1.0,
        }
    }

    /// Epsilon.
    pub(super) fn eps(&self) -> f64 {
        self.eps
    }

    /// `x`, normalised if there is a norm.
    pub(super) fn after(norm: Option<&Self>, x: Tensor) -> Result<Tensor> {
        norm.map_or(Ok(x.clone()), |norm| norm.forward(&x))
    }
}

/// A weight matrix `[out, in]` with an optional bias `[out]`.
#[derive(Debug, Clone)]
pub(super) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Maps `[..., in]` to `[..., out]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = linear(x, &self.weight)?;
        match &self.bias {
            None => Ok(y),
            Some(bias) => add_bias(&y, bias),
        }
    }
}
