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
use crate::model::ops::given::{given1, given2};
use crate::model::taps::{Again, Pass, Taps};

/// [`Block::inner`] of x `[B, S, D]`, with nothing kept but x.
pub(super) fn inner(
    block: &Block,
    x: Tensor,
    pass: Pass,
    taps: &mut dyn Taps,
    again: Again,
) -> Result<Tensor> {
    let result = block.inner(x.detach(), pass, taps)?;
    check_named(block, &again, &result)?;
    let result = result.detach();
    let variables = block.variables.iter().chain(&again.variables).filter(|tensor| tensor.is_variable());
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
    let again = Recomputed {
        block: block.clone(),
        x: x.detach(),
        layout: pass.layout.clone(),
        step: pass.step,
        again,
        variables,
        gradients,
    };
    given2("checkpoint", &x, &chain, result, move |grad| Ok([again.backward(grad)?, Some(zero.clone())]))
}

/// Refuses taps that name other variables than those from which they compute: gradients would be
/// lost without a word.
fn check_named(block: &Block, again: &Again, result: &Tensor) -> Result<()> {
    let layer = block.layer;
    let known = |variables: &[Tensor], id: TensorId| variables.iter().any(|variable| variable.id() == id);
    let reached: Vec<&Tensor> = result.sorted_nodes().into_iter().filter(|node| node.is_variable()).collect();
    for variable in &reached {
        if !known(&block.variables, variable.id()) && !known(&again.variables, variable.id()) {
            candle_core::bail!(
                "block {layer} is computed again in the backward pass, and its taps compute from a variable of shape {:?} \
                 that Taps::again doesn't name; its gradient would be lost",
                variable.dims()
            );
        }
    }
    for named in &again.variables {
        let root = named.is_variable() || !named.track_op();
        if !root || (named.is_variable() && !reached.iter().any(|variable| variable.id() == named.id())) {
            candle_core::bail!(
                "block {layer} is computed again in the backward pass, and Taps::again names a tensor of shape {:?} {}",
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
        // Tensors are put in and taken out whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The chain and one more link, which hands a variable its gradient.
fn link(chain: &Tensor, variable: &Tensor, zero: &Tensor, gradients: &Gradients) -> Result<Tensor> {
    let (id, gradients) = (variable.id(), gradients.clone());
    given2("checkpoint-variable", chain, variable, zero.clone(), move |grad| {
        Ok([Some(grad.clone()), gradients.lock().remove(&id)])
    })
}

/// A block and all that its forward pass needs once more.
struct Recomputed {
    block: Block,
    x: Tensor,
    layout: BatchLayout,
    step: u64,
    again: Again,
    variables: Vec<Tensor>,
    gradients: Gradients,
}

impl Recomputed {
    /// Gradient of x; those of the variables are left in their place.
    fn backward(&self, grad: &Tensor) -> Result<Option<Tensor>> {
        let input = Var::from_tensor(&self.x)?;
        let mut taps = (self.again.taps)();
        let pass = Pass { layout: &self.layout, step: self.step };
        let result = self.block.inner(input.as_tensor().clone(), pass, &mut *taps)?;
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
    given1("seed", operand, zero, move |_| Ok([Some(grad.clone())]))
}
