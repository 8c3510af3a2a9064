//! A shortcut for gradients of weights. Candle's store makes zeros for each and adds to them,
//! which for a matrix is four more passes over memory than the one that computed the gradient.
//!
//! Candle's backward pass runs on the calling thread, so the backward passes of operations can
//! reach a thread-local sink.

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, TensorId};

thread_local! {
    static GRAD_SINK: RefCell<Option<HashMap<TensorId, Tensor>>> = const { RefCell::new(None) };
}

/// Gradients of a backward pass.
pub struct Gradients {
    sink: HashMap<TensorId, Tensor>,
    store: GradStore,
}

impl Gradients {
    /// Computes the gradients of a loss, a scalar.
    ///
    /// # Errors
    /// Those of the operations.
    pub fn of(loss: &Tensor) -> Result<Self> {
        let before = GRAD_SINK.with(|place| place.replace(Some(HashMap::new())));
        let store = loss.backward();
        let sink = GRAD_SINK.with(|place| place.replace(before)).unwrap_or_default();
        Ok(Self { sink, store: store? })
    }

    /// Takes the gradient of a variable, if it has one.
    ///
    /// # Errors
    /// Contributions of different shapes (a bug in an operation).
    pub fn take(&mut self, variable: &Tensor) -> Result<Option<Tensor>> {
        let gradient = match (self.sink.remove(&variable.id()), self.store.remove(variable)) {
            (Some(one), Some(other)) => Some((one + other)?),
            (one, other) => one.or(other),
        };
        Ok(gradient.map(|gradient| gradient.detach()))
    }
}

/// Puts the gradient of a variable into the sink. Returns it for Candle's store if the tensor is
/// no variable or there is no sink.
pub(super) fn hand_over(variable: &Tensor, gradient: Tensor) -> Result<Option<Tensor>> {
    if !variable.is_variable() {
        return Ok(Some(gradient));
    }
    // Candle records the history of gradients, which would keep the activations alive.
    let gradient = gradient.detach();
    GRAD_SINK.with_borrow_mut(|place| {
        let Some(place) = place else { return Ok(Some(gradient)) };
        let sum = match place.remove(&variable.id()) {
            Some(before) => (before + gradient)?, // neither is tracked
            None => gradient,
        };
        place.insert(variable.id(), sum);
        Ok(None)
    })
}
