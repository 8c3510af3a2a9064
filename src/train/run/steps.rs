//! The steps of a run: what each does, and what is due after it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::failpoints;
use crate::model::Parameters;
use crate::train::batch::Batch;
use crate::train::checkpoint::{Checkpoint, State};
use crate::train::evaluate::{Evaluation, evaluate};
use crate::train::gradient::accumulate;
use crate::train::in_place::blend;
use crate::train::log::{DomainNumbers, Log, Speed, Step};
use crate::train::metrics::Metrics;
use crate::train::objective::{Objective, StepContext};
use crate::train::observer::{Evaluated, Event, Note, Now, Observer, Started};
use crate::train::optimiser::Optimiser;
use crate::train::prefetch::Prefetch;
use crate::train::prepare::{Prepared, Trainee};
use crate::train::recipe::Recipe;
use crate::train::schedule::Schedule;
use crate::train::{TrainError, clip};

/// A run from its first step to its result.
pub(super) struct Run<'a> {
    pub recipe: &'a Recipe,
    pub out: &'a Path,
    pub checkpoints: PathBuf,
    pub prepared: &'a Prepared,
    /// The average of the trained parameters, if the recipe wants one.
    pub averaged: Option<&'a Parameters>,
    /// The model that is measured: over the trained parameters, without gradients.
    pub seen: &'a Trainee,
    /// The model that is judged: over the averages, if there are some, without gradients.
    pub judge: &'a Trainee,
    /// Rows of each domain that the model is judged on.
    pub held_out: Vec<Batch>,
    pub objective: &'a dyn Objective,
    pub optimiser: Optimiser,
    pub schedule: Schedule,
    pub state: State,
    /// Steps of the newest checkpoint.
    pub saved: u64,
    pub log: Log,
    pub metrics: Metrics,
    pub observer: &'a mut dyn Observer,
    /// When this sitting began, and the seconds of training in sittings before it.
    pub began: Instant,
    pub seconds_before: f64,
    /// Rows longer than `seq_len` since the last evaluation.
    pub too_long: usize,
}

/// Why there are no more steps.
pub(super) enum Steps {
    Done,
    Cancelled,
}

/// Held-out numbers.
struct Judgement {
    together: Evaluation,
    /// Of each domain, where there are several, with its weight after this step.
    domains: BTreeMap<String, DomainNumbers>,
}

impl Run<'_> {
    /// Tells what the run begins with, and judges a base before its first step.
    pub fn start(&mut self, resume: bool, notes: &[Note]) -> Result<(), TrainError> {
        let Self { recipe, prepared, state, .. } = self;
        let count =
            |parameters: &Parameters| -> usize { parameters.iter().map(|(_, var)| var.elem_count()).sum() };
        self.observer.event(&Event::Started(&Started {
            out: self.out,
            compute: &prepared.compute,
            step: state.step,
            steps: recipe.train.steps,
            found_none: resume && state.step == 0,
            logged: self.log.kept(),
            whole: count(&prepared.whole),
            trained: count(&prepared.trained),
            vocabulary: prepared.config.vocab_size,
            held_out: self.held_out.iter().map(Batch::documents).sum(),
            too_long: self.held_out.iter().map(|batch| batch.too_long).sum(),
            base_check: prepared.sane.as_deref(),
            notes,
        }));
        if recipe.base.is_some() && state.step == 0 {
            let each = self.judge_each()?;
            let (together, domains) = (self.together(&each), BTreeMap::new());
            let evaluated = Evaluated { step: 0, together, domains: &domains, too_long: 0 };
            self.observer.event(&Event::Evaluated(&evaluated));
        }
        self.began = Instant::now();
        self.observer.before_steps(&mut Now {
            step: self.state.step,
            parameters: &self.prepared.trained,
            optimiser: &mut self.optimiser,
        })
    }

    /// All steps that are left, or those before an observer cancels the run.
    pub fn steps(&mut self) -> Result<Steps, TrainError> {
        std::thread::scope(|scope| {
            let (from, position) = (self.state.step, self.state.data.clone());
            let mut prefetch = Prefetch::start(scope, self.recipe, &self.prepared.train, from, position);
            while self.state.step < self.recipe.train.steps && !self.state.stopped {
                if self.observer.is_cancelled() {
                    if self.saved < self.state.step {
                        self.save()?;
                    }
                    return Ok(Steps::Cancelled);
                }
                self.step(&mut prefetch)?;
            }
            Ok(Steps::Done)
        })
    }

    /// One step: batch, gradients, update, and what is due after it.
    fn step(&mut self, prefetch: &mut Prefetch) -> Result<(), TrainError> {
        let step = self.state.step + 1;
        let train = &self.recipe.train;
        let (trained, workers) = (&self.prepared.trained, &self.prepared.workers);
        let context = self.context(step, true);
        let began = Instant::now();
        let (batch, data) = prefetch.batch(step, &self.state.weights())?;
        let outcome =
            accumulate(workers, self.objective, context, Some(trained), &batch.rows, train.micro_tokens)?;
        self.optimiser.mask_gradients(&outcome.gradients, workers)?;
        // Before clipping; written only if the step is sound.
        let measured = self.metrics.is_due(step).then(|| {
            let (student, config) = (self.seen.student(), &self.prepared.config);
            workers.together(|| self.metrics.measure(context, &student, config, trained, &outcome, &batch))
        });
        let norm = clip::clip(&outcome.gradients, train.clip, workers)?;
        let loss = outcome.loss;
        if !loss.is_finite() || !norm.is_finite() {
            return Err(TrainError::NotFinite { step, what: "loss", loss, norm });
        }
        if loss > train.max_loss {
            return Err(TrainError::AboveBound { step, loss, bound: train.max_loss });
        }
        if let Some(measured) = measured.transpose()? {
            self.metrics.write(&measured)?;
            self.observer.event(&Event::Measured(&measured));
        }
        let lr = self.schedule.factor(step);
        self.optimiser.step(&outcome.gradients, lr, workers)?;
        self.observer.after_step(&mut Now { step, parameters: trained, optimiser: &mut self.optimiser })?;
        if let Some(averaged) = self.averaged {
            average(averaged, trained, train.ema, step)?;
            self.optimiser.mask_values(averaged)?;
        }
        failpoints::point("train.stepped", &step.to_string());

        let tokens = batch.tokens() as u64;
        let tokens_per_s = tokens as f64 / began.elapsed().as_secs_f64();
        self.state.step = step;
        self.state.data = data;
        self.state.tokens += tokens;
        self.too_long += batch.too_long;
        let last = step == train.steps;
        let judged =
            if last || step.is_multiple_of(train.eval_every) { Some(self.judge(norm)?) } else { None };
        let (eval, domains) =
            judged.map_or_else(Default::default, |judged| (Some(judged.together), judged.domains));
        let numbers = Step {
            step,
            loss,
            terms: self.recipe.distil.as_ref().map(|_| outcome.terms),
            step_term: outcome.step_term,
            accuracy: outcome.accuracy(),
            lr,
            grad_norm: norm,
            tokens: self.state.tokens,
            eval,
            domains,
        };
        let seconds = self.seconds_before + self.began.elapsed().as_secs_f64();
        self.tell(&numbers, Speed { step, seconds, tokens_per_s })?;

        let best_now = self.state.best.is_some_and(|(_, best)| best == step);
        if last || self.state.stopped || best_now || step.is_multiple_of(train.checkpoint_every) {
            self.save()?;
        }
        if self.state.stopped {
            let evaluations = self.state.waiting;
            self.observer.event(&Event::StoppedEarly { step, evaluations });
        }
        Ok(())
    }

    /// Judges the model on every domain and updates the state. `norm` is the step's, for an error.
    fn judge(&mut self, norm: f64) -> Result<Judgement, TrainError> {
        let each = self.judge_each()?;
        let together = self.together(&each);
        // Checked before it is logged or saved: NaN compares with nothing and has no JSON form.
        if !together.loss.is_finite() {
            let (step, what, loss) = (self.state.step, "held-out loss", together.loss);
            return Err(TrainError::NotFinite { step, what, loss, norm });
        }
        self.state.judge(together.loss, self.recipe);
        self.state.weigh(&each, self.recipe);
        let mut domains = BTreeMap::new();
        if each.len() > 1 {
            let weights = self.state.weights().into_iter();
            let numbers = each.iter().zip(weights).map(|(&eval, weight)| DomainNumbers { weight, eval });
            domains = self.recipe.data.domains.keys().cloned().zip(numbers).collect();
        }
        Ok(Judgement { together, domains })
    }

    fn judge_each(&self) -> Result<Vec<Evaluation>, TrainError> {
        let (workers, student) = (&self.prepared.workers, self.judge.student());
        let (context, micro_tokens) = (self.context(self.state.step, false), self.recipe.train.micro_tokens);
        let judge = |batch| evaluate(workers, &student, context, batch, micro_tokens);
        self.held_out.iter().map(judge).collect()
    }

    fn context(&self, step: u64, trains: bool) -> StepContext {
        StepContext { step, seed: self.recipe.train.seed, trains }
    }

    fn together(&self, each: &[Evaluation]) -> Evaluation {
        Evaluation::together(&each.iter().copied().zip(&self.held_out).collect::<Vec<_>>())
    }

    /// Logs a step and tells the observer of it.
    fn tell(&mut self, numbers: &Step, speed: Speed) -> Result<(), TrainError> {
        self.log.step(numbers, &speed)?;
        self.observer.event(&Event::Step { numbers, speed: &speed });
        if let Some(together) = numbers.eval {
            let too_long = std::mem::take(&mut self.too_long);
            let evaluated = Evaluated { step: numbers.step, together, domains: &numbers.domains, too_long };
            self.observer.event(&Event::Evaluated(&evaluated));
        }
        Ok(())
    }

    /// Writes a checkpoint.
    fn save(&mut self) -> Result<(), TrainError> {
        // The log first, because a run that resumes from the checkpoint only appends to it.
        self.log.sync()?;
        self.metrics.sync()?;
        let checkpoint = Checkpoint {
            state: self.state.clone(),
            weights: self.prepared.trained.tensors(),
            averaged: self.averaged.map(Parameters::tensors),
            moments: self.optimiser.state(),
        };
        let folder = checkpoint.save(&self.checkpoints, self.recipe)?;
        let step = self.state.step;
        failpoints::point("train.saved", &step.to_string());
        self.saved = step;
        self.observer.event(&Event::CheckpointWritten { step, folder: &folder });
        Ok(())
    }
}

/// Moves the averaged weights towards the current ones; faster at first, so that the initial
/// values are forgotten.
fn average(averaged: &Parameters, parameters: &Parameters, decay: f64, step: u64) -> Result<(), TrainError> {
    let decay = decay.min((1.0 + step as f64) / (10.0 + step as f64));
    for ((_, average), (_, now)) in averaged.iter().zip(parameters.iter()) {
        blend(average, decay, 1.0 - decay, now)?;
    }
    Ok(())
}
