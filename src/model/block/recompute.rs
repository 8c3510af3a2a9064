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
use crate::model::taps::{Pass, Recompute, Taps};

/// [`Block::inner`] of x `[B, S, D]`, that keeps nothing but x.
pub(super) fn inner(
    block: &Block,
    x: Tensor,
    pass: Pass,
    taps: &mut dyn Taps,
    recompute: Recompute,
) -> Result<Tensor> {
    let result = block.inner(x.detach(), pass, taps)?;
    check_named(block, &recompute, &result)?;
    let result = result.detach();
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
        layout: pass.layout.clone(),
        step: pass.step,
        recompute,
        variables,
        gradients,
    };
    custom_grad2("recompute", &x, &chain, result, move |grad| {
        Ok([recomputed.backward(grad)?, Some(zero.clone())])
    })
}

/// Refuses taps that name other variables than those from which they compute: gradients would be
/// lost without a word.
fn check_named(block: &Block, recompute: &Recompute, result: &Tensor) -> Result<()> {
    let layer = block.layer;
    let known = |variables: &[Tensor], id: TensorId| variables.iter().any(|variable| variable.id() == id);
    let reached: Vec<&Tensor> = result.sorted_nodes().into_iter().filter(|node| node.is_variable()).collect();
    for variable in &reached {
        if !known(&block.variables, variable.id()) && !known(&recompute.variables, variable.id()) {
            candle_core::bail!(
                "block {layer} is computed again in the backward pass, and its taps compute from a variable of shape {:?} \
                 that Taps::recompute doesn't name; its gradient would be lost",
                variable.dims()
            );
        }
    }
    for named in &recompute.variables {
        let root = named.is_variable() || !named.track_op();
        if !root || (named.is_variable() && !reached.iter().any(|variable| variable.id() == named.id())) {
            candle_core::bail!(
                "block {layer} is computed again in the backward pass, and Taps::recompute names a tensor of shape {:?} {}",
                named.dims(),
                if root {
                    "from which nothing in the block is computed"
                } else {
                    "that is no variable but computed from one"
                }
            );
        }
    }
    Ok(())
}

/// Where a block leaves the gradients of its variables.
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
    step: u64,
    recompute: Recompute,
    variables: Vec<Tensor>,
    gradients: Gradients,
}

impl Recomputed {
    /// Returns the gradient of x and stores those of the variables.
    fn backward(&self, grad: &Tensor) -> Result<Option<Tensor>> {
        let input = Var::from_tensor(&self.x)?;
        let mut taps = (self.recompute.taps)();
        let pass = Pass { layout: &self.layout, step: self.step };
        let result = self.block.inner(input.as_tensor().clone(), pass, &mut *taps)?;
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
