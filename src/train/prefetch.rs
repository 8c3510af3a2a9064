//! Batches made in a thread of their own, ahead of the steps that need them.

use std::sync::mpsc::{self, Receiver, Sender};

use super::TrainError;
use super::batch::{Batch, batch};
use super::data::Mixture;
use super::recipe::Recipe;

/// Batches that are made ahead of the step that needs them.
const PREFETCHED: u64 = 2;

/// Asks for batches in time.
pub(super) struct Prefetch {
    ask: Sender<(u64, Vec<f64>)>,
    made: Receiver<Result<Batch, TrainError>>,
    asked: u64,
    /// Evaluations between which the domains' weights stay; none: always.
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
                // The loop has ended when nobody receives.
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
        // Behind the next evaluation the weights may be others.
        let known = self.weights_until.map_or(u64::MAX, |every| step.div_ceil(every) * every);
        let until = (step + PREFETCHED).min(known).min(self.last);
        while self.asked < until {
            self.asked += 1;
            // It ends only with an error, which is on its way.
            let _ = self.ask.send((self.asked, weights.to_vec()));
        }
        self.made.recv().unwrap_or_else(|_| {
            Err(candle_core::Error::Msg("the thread that makes batches has ended".into()).into())
        })
    }
}
