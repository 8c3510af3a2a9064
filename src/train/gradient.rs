//! Gradients of a batch: its rows in small parts, each on one thread, summed in a fixed order.
//!
//! A thread that works on its own part needs no agreement with others inside an operation, and the part's tensors fit its
//! cache. The order of the sum is that of the parts, so the result does not depend on threads.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::Tensor;

use super::TrainError;
use super::batch::PackedRow;
use super::in_place::blend;
use super::objective::{Objective, Terms};
use crate::model::Parameters;

/// What a batch gave.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What is minimised: mean loss over answer tokens, in nats.
    pub loss: f64,
    /// What it is made of.
    pub terms: Terms,
    /// Whether each answer token was the likeliest, in the rows' order.
    pub hits: Vec<bool>,
    /// One gradient per parameter, in order; empty if none were asked for.
    pub gradients: Vec<Tensor>,
}

impl Outcome {
    /// Share of answer tokens that were the likeliest.
    pub fn accuracy(&self) -> f64 {
        self.hits.iter().filter(|&&hit| hit).count() as f64 / self.hits.len().max(1) as f64
    }
}

/// Threads that each work alone: one rayon pool of one thread per core.
pub struct Workers {
    pools: Vec<rayon::ThreadPool>,
}

impl Workers {
    /// Starts `threads` threads; 0 is one per core.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn new(threads: usize) -> Result<Self, TrainError> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if threads == 0 { cores() } else { threads };
        let pool = |_| rayon::ThreadPoolBuilder::new().num_threads(1).build();
        let pools = (0..threads).map(pool).collect::<Result<_, _>>();
        Ok(Self { pools: pools.map_err(|e| candle_core::Error::Msg(format!("thread pool: {e}")))? })
    }

    /// Loss, and with `parameters` its gradients, over rows of one length; parts have about `micro_tokens` tokens.
    ///
    /// # Errors
    /// The first error of any part.
    pub fn run(
        &self,
        objective: &dyn Objective,
        parameters: Option<&Parameters>,
        rows: &[PackedRow],
        micro_tokens: usize,
    ) -> Result<Outcome, TrainError> {
        let seq = rows.first().map_or(1, |row| row.ids.len());
        let parts: Vec<&[PackedRow]> = rows.chunks((micro_tokens / seq).max(1)).collect();
        let targets: usize = rows.iter().map(|row| row.targets.len()).sum();
        let scale = 1.0 / targets.max(1) as f32;
        let sum = Mutex::new(OrderedSum::default());
        self.each(parts.len(), |index| {
            let part = part(objective, parameters, parts[index], scale)?;
            sum.lock().expect("no thread panics while it adds").add(index, part)
        })?;
        Ok(sum.into_inner().expect("no thread panics while it adds").total)
    }

    /// Does pieces 0..count of work, each on one thread, as threads become free.
    ///
    /// # Errors
    /// The first error of any thread; the other threads finish what they can.
    pub fn each<E: Send>(
        &self,
        count: usize,
        piece: impl Fn(usize) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<(), E> {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return Ok(());
                }
                piece(index)?;
            }
        };
        std::thread::scope(|scope| {
            let pools = self.pools.iter().take(count);
            let threads: Vec<_> = pools.map(|pool| scope.spawn(|| pool.install(work))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().try_for_each(join)
        })
    }
}

/// Adds parts in the order of their indices, whenever they arrive.
#[derive(Default)]
struct OrderedSum {
    next: usize,
    waiting: BTreeMap<usize, Outcome>,
    total: Outcome,
}

impl OrderedSum {
    fn add(&mut self, index: usize, part: Outcome) -> Result<(), TrainError> {
        self.waiting.insert(index, part);
        while let Some(part) = self.waiting.remove(&self.next) {
            self.next += 1;
            self.total.loss += part.loss;
            self.total.terms += part.terms;
            self.total.hits.extend(part.hits);
            if self.total.gradients.is_empty() {
                self.total.gradients = part.gradients;
            } else {
                for (total, gradient) in self.total.gradients.iter().zip(&part.gradients) {
                    blend(total, 1.0, 1.0, gradient)?;
                }
            }
        }
        Ok(())
    }
}

/// One part: forward, loss over answer tokens, and backward if parameters are given.
fn part(
    objective: &dyn Objective,
    parameters: Option<&Parameters>,
    rows: &[PackedRow],
    scale: f32,
) -> Result<Outcome, TrainError> {
    let result = objective.loss(rows, scale, parameters.is_some())?;
    let loss = f64::from(result.loss.to_scalar::<f32>()?);
    let gradients = match parameters {
        None => vec![],
        Some(parameters) => {
            let mut store = result.loss.backward()?;
            let mut take = |(name, var): (&str, &candle_core::Var)| {
                let gradient = store.remove(var);
                gradient.ok_or_else(|| candle_core::Error::Msg(format!("parameter {name} has no gradient")))
            };
            parameters.iter().map(&mut take).collect::<Result<_, _>>()?
        }
    };
    Ok(Outcome { loss, terms: result.terms, hits: result.hits, gradients })
}
