//! Gradients of weights on a short way: Candle's store makes zeros for each and adds to them, which for a matrix is four
//! passes over memory beside the one that made the gradient.
//!
//! Candle walks a graph on the thread that asked for it, so a place of that thread is one that the operations' backward
//! passes can reach.

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
    /// Of this loss, a scalar.
    ///
    /// # Errors
    /// Those of the operations.
    pub fn of(loss: &Tensor) -> Result<Self> {
        let before = GRAD_SINK.with(|place| place.replace(Some(HashMap::new())));
        let store = loss.backward();
        let sink = GRAD_SINK.with(|place| place.replace(before)).unwrap_or_default();
        Ok(Self { sink, store: store? })
    }

    /// Takes a variable's gradient, if it has one.
    ///
    /// # Errors
    /// Parts of different shapes (a defect of an operation).
    pub fn take(&mut self, variable: &Tensor) -> Result<Option<Tensor>> {
        let gradient = match (self.sink.remove(&variable.id()), self.store.remove(variable)) {
            (Some(one), Some(other)) => Some((one + other)?),
            (one, other) => one.or(other),
        };
        Ok(gradient.map(|gradient| gradient.detach()))
    }
}

/// Hands over the gradient of a variable; gives it back where it is none or nobody collects, for Candle's store.
pub(super) fn hand_over(variable: &Tensor, gradient: Tensor) -> Result<Option<Tensor>> {
    if !variable.is_variable() {
        return Ok(Some(gradient));
    }
    // Candle records how gradients came to be: whoever keeps one would keep the activations too.
    let gradient = gradient.detach();
    GRAD_SINK.with_borrow_mut(|place| {
        let Some(place) = place else { return Ok(Some(gradient)) };
        let sum = match place.remove(&variable.id()) {
            Some(before) => (before + gradient)?, // of two plain tensors: recorded nowhere
            None => gradient,
        };
        place.insert(variable.id(), sum);
        Ok(None)
    })
}
