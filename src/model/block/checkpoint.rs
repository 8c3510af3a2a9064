//! Activation checkpointing (Chen et al. 2016): a block that keeps only its input and is computed again for its gradients.
//!
//! The gradients of its variables must reach Candle's walk of the graph, but an operation has at most three operands. So
//! each variable gets a link of its own in a chain of scalars, and the block takes the chain's end as its second operand.
//! The walk meets the block first, which leaves the gradients in a place of their own, and then the links, which hand
//! them over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, DType, Device, Layout, Result, Shape, Tensor, TensorId, Var,
};

use super::Block;
use crate::model::layout::BatchLayout;
use crate::model::ops::with_floats;
use crate::model::taps::{Again, Taps};

/// [`Block::inner`] of x `[B, S, D]`, with nothing kept but x.
pub(super) fn inner(
    block: &Block,
    x: Tensor,
    layout: &BatchLayout,
    taps: &mut dyn Taps,
    again: Again,
) -> Result<Tensor> {
    let result = block.inner(x.detach(), layout, taps)?.detach();
    let variables = block.variables.iter().chain(&again.variables).filter(|tensor| tensor.is_variable());
    let variables: Vec<Tensor> = variables.cloned().collect();
    if variables.is_empty() && !x.track_op() {
        return Ok(result);
    }
    let gradients = Gradients::default();
    let mut chain = Tensor::zeros((), DType::F32, &Device::Cpu)?;
    for variable in &variables {
        chain = chain.apply_op2(variable, Link { gradients: gradients.clone() })?;
    }
    let result = Mutex::new(Some(result));
    x.apply_op2(
        &chain,
        Recomputed { block: block.clone(), layout: layout.clone(), again, variables, result, gradients },
    )
}

/// Where a block leaves the gradients of its variables.
#[derive(Clone, Default)]
struct Gradients(Arc<Mutex<HashMap<TensorId, Tensor>>>);

impl Gradients {
    fn lock(&self) -> MutexGuard<'_, HashMap<TensorId, Tensor>> {
        // Tensors are put in and taken out whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands a variable its gradient.
struct Link {
    gradients: Gradients,
}

impl CustomOp2 for Link {
    fn name(&self) -> &'static str {
        "checkpoint-variable"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn bwd(
        &self,
        _chain: &Tensor,
        variable: &Tensor,
        _result: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(grad.clone()), self.gradients.lock().remove(&variable.id())))
    }
}

struct Recomputed {
    block: Block,
    layout: BatchLayout,
    again: Again,
    variables: Vec<Tensor>,
    /// What the forward pass gives: computed before, by taps that must see it once.
    result: Mutex<Option<Tensor>>,
    gradients: Gradients,
}

impl CustomOp2 for Recomputed {
    fn name(&self) -> &'static str {
        "checkpoint"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some(result) = self.result.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            candle_core::bail!("checkpoint: one operation ran forward twice");
        };
        let result = result.contiguous()?;
        let values = with_floats([&result], self.name(), |[values]| Ok(values.to_vec()))?;
        Ok((CpuStorage::F32(values), result.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        chain: &Tensor,
        _result: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let input = Var::from_tensor(x)?;
        let mut taps = (self.again.taps)();
        let result = self.block.inner(input.as_tensor().clone(), &self.layout, &mut *taps)?;
        let mut store = result.apply_op1(Seed { grad: grad.clone() })?.backward()?;
        let mut gradients = self.gradients.lock();
        for variable in &self.variables {
            if let Some(gradient) = store.remove(variable) {
                gradients.insert(variable.id(), gradient.detach());
            }
        }
        // Detached: what Candle records of it would keep the block's activations.
        let d_x = store.remove(&input).map(|gradient| gradient.detach());
        Ok((d_x, Some(chain.zeros_like()?)))
    }
}

/// A scalar whose gradient with respect to its operand is given: a backward pass begins in the middle of a graph.
struct Seed {
    grad: Tensor,
}

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn bwd(&self, _operand: &Tensor, _result: &Tensor, _grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.grad.clone()))
    }
}
