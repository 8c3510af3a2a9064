//! Activation checkpointing (Chen et al. 2016): a block that keeps only its input and is computed again for its gradients.
//!
//! The gradients of its variables must reach Candle's walk of the graph, but an operation has at most three operands. So
//! each variable gets a link of its own in a chain of scalars, and the block takes the chain's end as its second operand.
//! The walk meets the block first, which leaves the gradients in a place of their own, and then the links, which hand
//! them over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Result, Tensor, TensorId, Var};

use super::Block;
use crate::model::layout::BatchLayout;
use crate::model::ops::custom_grad::{custom_grad1, custom_grad2};
use crate::model::taps::{Recompute, Taps};

/// [`Block::inner`] of x `[B, S, D]`, with nothing kept but x.
pub(super) fn inner(
    block: &Block,
    x: Tensor,
    layout: &BatchLayout,
    taps: &mut dyn Taps,
    recompute: Recompute,
) -> Result<Tensor> {
    let result = block.inner(x.detach(), layout, taps)?.detach();
    let variables = block.variables.iter().chain(&recompute.variables).filter(|tensor| tensor.is_variable());
    let variables: Vec<Tensor> = variables.cloned().collect();
    if variables.is_empty() && !x.track_op() {
        return Ok(result);
    }
    let gradients = Gradients::default();
    let zero = Tensor::zeros((), DType::F32, x.device())?;
    let mut chain = zero.clone();
    for variable in &variables {
        chain = link(&chain, variable, &zero, &gradients)?;
    }
    let recomputed = Recomputed {
        block: block.clone(),
        x: x.detach(),
        layout: layout.clone(),
        recompute,
        variables,
        gradients,
    };
    custom_grad2("recompute", &x, &chain, result, move |grad| {
        Ok([recomputed.backward(grad)?, Some(zero.clone())])
    })
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

/// The chain and one more link, which hands a variable its gradient.
fn link(chain: &Tensor, variable: &Tensor, zero: &Tensor, gradients: &Gradients) -> Result<Tensor> {
    let (id, gradients) = (variable.id(), gradients.clone());
    custom_grad2("recompute-variable", chain, variable, zero.clone(), move |grad| {
        Ok([Some(grad.clone()), gradients.lock().remove(&id)])
    })
}

/// A block and all that its forward pass needs once more.
struct Recomputed {
    block: Block,
    x: Tensor,
    layout: BatchLayout,
    recompute: Recompute,
    variables: Vec<Tensor>,
    gradients: Gradients,
}

impl Recomputed {
    /// Gradient of x; those of the variables are left in their place.
    fn backward(&self, grad: &Tensor) -> Result<Option<Tensor>> {
        let input = Var::from_tensor(&self.x)?;
        let mut taps = (self.recompute.taps)();
        let result = self.block.inner(input.as_tensor().clone(), &self.layout, &mut *taps)?;
        let mut store = begin(&result, grad)?.backward()?;
        let mut gradients = self.gradients.lock();
        for variable in &self.variables {
            if let Some(gradient) = store.remove(variable) {
                gradients.insert(variable.id(), gradient.detach());
            }
        }
        // Detached: what Candle records of it would keep the block's activations.
        Ok(store.remove(&input).map(|gradient| gradient.detach()))
    }
}

/// A scalar whose gradient with respect to its operand is given: a backward pass begins in the middle of a graph.
fn begin(operand: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let (zero, grad) = (Tensor::zeros((), DType::F32, operand.device())?, grad.clone());
    custom_grad1("seed", operand, zero, move |_| Ok([Some(grad.clone())]))
}
