//! Prefetching: a separate thread makes batches ahead of the steps that need them.

use std::sync::mpsc::{self, Receiver, Sender};

use super::TrainError;
use super::batch::{Batch, batch};
use super::data::Mixture;
use super::recipe::Recipe;

/// Number of batches that are made ahead.
const PREFETCHED: u64 = 2;

/// Requests batches ahead of time.
pub(super) struct Prefetch {
    ask: Sender<(u64, Vec<f64>)>,
    made: Receiver<Result<Batch, TrainError>>,
    asked: u64,
    /// Steps between evaluations, if these change the weights of domains.
    weights_until: Option<u64>,
    last: u64,
}

impl Prefetch {
    /// Starts the thread; the first batch will be that of step `from` + 1.
    pub fn start<'scope>(
        scope: &'scope std::thread::Scope<'scope, '_>,
        recipe: &'scope Recipe,
        mixture: &'scope Mixture,
        from: u64,
    ) -> Self {
        let (ask, asked_for) = mpsc::channel::<(u64, Vec<f64>)>();
        let (sender, made) = mpsc::channel();
        scope.spawn(move || {
            for (step, weights) in asked_for {
                let made = batch(mixture, &weights, recipe.stage(step), step, recipe.data.long_rows);
                // If the receiver is gone, the loop has ended.
                if sender.send(made).is_err() {
                    return;
                }
            }
        });
        let weights_until = recipe.data.loading.map(|_| recipe.train.eval_every);
        Self { ask, made, asked: from, weights_until, last: recipe.train.steps }
    }

    /// The batch of a step, with these weights of the domains.
    pub fn batch(&mut self, step: u64, weights: &[f64]) -> Result<Batch, TrainError> {
        // The next evaluation may change the weights.
        let known = self.weights_until.map_or(u64::MAX, |every| step.div_ceil(every) * every);
        let until = (step + PREFETCHED).min(known).min(self.last);
        while self.asked < until {
            self.asked += 1;
            // The thread ends only with an error, which the receiver will get.
            let _ = self.ask.send((self.asked, weights.to_vec()));
        }
        self.made.recv().unwrap_or_else(|_| {
            Err(candle_core::Error::Msg("the thread that makes batches has ended".into()).into())
        })
    }
}
