//! The pieces that blocks are made of: norms, projections, and where their weights come from.

use candle_core::{Result, Tensor};

use crate::model::features::NormWeight;
use crate::model::ops::{add_bias, linear, rms_norm};
use crate::model::spec::{NormAt, Part};
use crate::model::{Parameters, Projection, Role};

/// Where a decoder's weights come from.
#[derive(Clone, Copy)]
pub(in crate::model) struct Weights<'a> {
    parameters: &'a Parameters,
    frozen: bool,
}

impl<'a> Weights<'a> {
    /// All of these; frozen ones collect no gradients.
    pub(in crate::model) fn new(parameters: &'a Parameters, frozen: bool) -> Self {
        Self { parameters, frozen }
    }

    /// Those of one block.
    pub(in crate::model) fn of_block(self, layer: usize) -> BlockWeights<'a> {
        BlockWeights { weights: self, layer }
    }

    /// The parameter of this role.
    pub(in crate::model) fn get(self, role: Role) -> Result<Tensor> {
        let tensor = self.parameters.of(role)?.as_tensor();
        Ok(if self.frozen { tensor.detach() } else { tensor.clone() })
    }

    /// An RMS norm.
    pub(in crate::model) fn norm(self, role: Role, kind: NormWeight, eps: f64) -> Result<Norm> {
        Ok(Norm { weight: self.get(role)?, kind, eps })
    }
}

/// Where a block's weights come from.
#[derive(Clone, Copy)]
pub(in crate::model) struct BlockWeights<'a> {
    weights: Weights<'a>,
    layer: usize,
}

impl BlockWeights<'_> {
    /// The block.
    pub(super) fn layer(self) -> usize {
        self.layer
    }

    /// A part of the block.
    pub(super) fn get(self, part: Part) -> Result<Tensor> {
        self.weights.get(Role::Block { layer: self.layer, part })
    }

    /// Those that collect gradients.
    pub(super) fn variables(self) -> Vec<Tensor> {
        let Weights { parameters, frozen } = self.weights;
        let of_block = parameters.entries().iter().filter(|entry| entry.layer() == Some(self.layer));
        of_block.filter(|_| !frozen).map(|entry| entry.var.as_tensor().clone()).collect()
    }

    /// An RMS norm.
    pub(super) fn norm(self, at: NormAt, kind: NormWeight, eps: f64) -> Result<Norm> {
        self.weights.norm(Role::Block { layer: self.layer, part: Part::Norm(at) }, kind, eps)
    }

    /// A projection, with its bias if it has one.
    pub(super) fn linear(self, projection: Projection, bias: bool) -> Result<Linear> {
        let weight = self.get(Part::Weight(projection))?;
        Ok(Linear { weight, bias: bias.then(|| self.get(Part::Bias(projection))).transpose()? })
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
