//! Activation checkpointing (Chen et al. 2016): a block keeps only its input and is recomputed for
//! its gradients.
//!
//! Candle's backward pass must see the gradients of the block's variables, but an operation has at
//! most three operands. So each variable gets a link in a chain of scalars, and the block takes the
//! end of that chain as its second operand. The backward pass reaches the block first, which stores
//! the gradients, and then the links, each of which returns the gradient of its variable.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Result, Tensor, TensorId, Var};

use super::Block;
use crate::model::layout::BatchLayout;
use crate::model::ops::custom_grad::{custom_grad1, custom_grad2};
use crate::model::taps::{Recompute, Taps};

/// [`Block::inner`] of x `[B, S, D]`, that keeps nothing but x.
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

/// Where a block stores the gradients of its variables.
#[derive(Clone, Default)]
struct Gradients(Arc<Mutex<HashMap<TensorId, Tensor>>>);

impl Gradients {
    fn lock(&self) -> MutexGuard<'_, HashMap<TensorId, Tensor>> {
        // A panic can't leave a tensor half stored.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Extends the chain by a link that returns the gradient of a variable.
fn link(chain: &Tensor, variable: &Tensor, zero: &Tensor, gradients: &Gradients) -> Result<Tensor> {
    let (id, gradients) = (variable.id(), gradients.clone());
    custom_grad2("recompute-variable", chain, variable, zero.clone(), move |grad| {
        Ok([Some(grad.clone()), gradients.lock().remove(&id)])
    })
}

/// A block with everything that a second forward pass needs.
struct Recomputed {
    block: Block,
    x: Tensor,
    layout: BatchLayout,
    recompute: Recompute,
    variables: Vec<Tensor>,
    gradients: Gradients,
}

impl Recomputed {
    /// Returns the gradient of x and stores those of the variables.
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
        // Detached: its recorded operations would keep the block's activations alive.
        Ok(store.remove(&input).map(|gradient| gradient.detach()))
    }
}

/// A scalar with a prescribed gradient with respect to its operand, so that a backward pass can
/// begin in the middle of a graph.
fn begin(operand: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let (zero, grad) = (Tensor::zeros((), DType::F32, operand.device())?, grad.clone());
    custom_grad1("seed", operand, zero, move |_| Ok([Some(grad.clone())]))
}
