//! A training run, from recipe to finished model or adapter.

mod observer;
mod state;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

pub use observer::{End, Evaluated, Event, Now, Observer, Started};

use super::batch::{Batch, eval_rows};
use super::checkpoint::{self, ChangedRate, Checkpoint, State};
use super::distil::{Ask, Teacher};
use super::evaluate::{Evaluation, evaluate};
use super::gradient::accumulate;
use super::in_place::blend;
use super::log::{DomainNumbers, Log, Speed, Step};
use super::metrics::Metrics;
use super::objective::{Objective, StepContext};
use super::optimiser::{Group, Optimiser};
use super::prefetch::Prefetch;
use super::prepare::{Prepared, Trainee, copy, lock, result};
use super::recipe::Recipe;
use super::schedule::Schedule;
use super::{TrainError, adapter, clip, log, loss_curve};
use crate::digest::Digest;
use crate::model::{Model, Parameters, hugging_face};
use crate::{atomic_file, failpoints};

/// Makes the metadata about the origin of an adapter from the hash of its base's tensors.
pub type Origin = Box<dyn Fn(Digest) -> BTreeMap<String, String>>;

/// What a run needs from rooms above this one, which know spokes and daemons.
#[derive(Default)]
pub struct Outside {
    /// Makes the metadata of an adapter: what it was trained for.
    pub origin: Option<Origin>,
    /// Posts to the endpoint of a remote teacher.
    pub ask: Option<Ask>,
}

/// Runs a recipe. `out` gets `recipe.toml`, the logs, `loss.svg`, `checkpoints/`, and at the end
/// the result: a Hugging Face folder (`out` itself) or an adapter in it. With `resume`, continues
/// from the newest checkpoint if there is one.
///
/// # Errors
/// Unusable data or base, a domain without a held-out row that fits, a loss that is not finite or
/// above its bound, files that can't be written; checkpoints of an earlier run in `out` without
/// `resume`; an error of the observer.
pub fn train(
    recipe: &Recipe,
    out: &Path,
    resume: bool,
    outside: &Outside,
    observer: &mut dyn Observer,
) -> Result<End, TrainError> {
    let _lock = lock(out)?;
    let checkpoints = out.join("checkpoints");
    let found = if resume { Checkpoint::newest(&checkpoints, recipe)? } else { None };
    if let (false, Some(step)) = (resume, checkpoint::steps(&checkpoints)?.last()) {
        return Err(TrainError::Occupied { path: out.to_owned(), step: *step });
    }
    let prepared = Prepared::new(recipe, out, found.is_some(), observer)?;
    let trained = &prepared.trained;
    let averaged = (recipe.train.ema > 0.0).then(|| copy(trained)).transpose()?;
    let mut optimiser = Optimiser::new(
        trained,
        Group::of_recipe(recipe.train.matrices, recipe.train.muon, recipe.train.adamw),
    )?;
    let open = |distil| Teacher::open(distil, &prepared, outside.ask.clone());
    let teacher = recipe.distil.as_ref().map(open).transpose()?;
    let mut state = State::beginning(recipe, &prepared, teacher.as_ref().and_then(Teacher::digest));
    let mut changed_rates = vec![];
    if let Some(checkpoint) = found {
        let path = checkpoints.join(checkpoint.state.step.to_string());
        checkpoint.state.check(&state, &path)?;
        changed_rates = checkpoint::changed_rates(&path, recipe)?;
        state = restored(checkpoint, &path, trained, averaged.as_ref(), &mut optimiser)?;
    }
    let trainee = prepared.over(recipe, trained)?;
    let judged = averaged.as_ref().unwrap_or(trained);
    let judge = prepared.over(recipe, judged)?;
    let held_out = held_out(recipe, &prepared)?;
    let objective: Box<dyn Objective> = match &teacher {
        Some(teacher) => Box::new(teacher.objective(trainee.student())),
        None => Box::new(trainee.student()),
    };
    if let Some(teacher) = &teacher {
        teacher.check_rows(recipe, &prepared.train, state.step)?;
    }

    // Only now, so that a refused recipe leaves an earlier run untouched.
    let path = out.join("recipe.toml");
    atomic_file::write(&path, recipe.to_toml().as_bytes()).map_err(TrainError::file(path))?;
    let log = Log::open(out, state.step)?;
    let metrics = Metrics::open(out, recipe.train.metrics_every, state.step)?;
    let mut run = Run {
        recipe,
        out,
        checkpoints,
        prepared: &prepared,
        averaged: averaged.as_ref(),
        trainee: &trainee,
        judge: &judge,
        held_out,
        objective: &*objective,
        optimiser,
        schedule: recipe.schedule(),
        saved: state.step,
        state,
        seconds_before: log.seconds_before(),
        log,
        metrics,
        observer,
        began: Instant::now(),
        left_out: 0,
    };
    run.start(resume, &changed_rates)?;
    let end = match run.steps()? {
        Steps::Done => End::Finished { result: run.finish(outside)? },
        Steps::Cancelled => End::Cancelled { step: run.state.step },
    };
    run.observer.event(&Event::Ended(&end));
    Ok(end)
}

/// Restores the values of a checkpoint.
fn restored(
    checkpoint: Checkpoint,
    path: &Path,
    trained: &Parameters,
    averaged: Option<&Parameters>,
    optimiser: &mut Optimiser,
) -> Result<State, TrainError> {
    checkpoint::restore(trained, &checkpoint.weights, path)?;
    if let (Some(averaged), Some(saved)) = (averaged, &checkpoint.averaged) {
        checkpoint::restore(averaged, saved, path)?;
    }
    let moments = optimiser.state();
    checkpoint::check(moments.iter().map(|(name, t)| (name.as_str(), t)), &checkpoint.moments, path)?;
    optimiser.restore(&checkpoint.moments, checkpoint.state.step)?;
    Ok(checkpoint.state)
}

/// Held-out rows of each domain, packed.
fn held_out(recipe: &Recipe, prepared: &Prepared) -> Result<Vec<Batch>, TrainError> {
    // Always at the last stage, so that figures within a run are comparable.
    let stage = recipe.stage(u64::MAX);
    let packed = |domain| {
        let batch = eval_rows(domain, stage, recipe.data.eval_rows, recipe.data.long_rows)?;
        // An empty batch would have a loss of 0, the best of all.
        if batch.targets() > 0 {
            return Ok(batch);
        }
        let (too_long, seq_len) = (batch.too_long, stage.seq_len);
        let (domain, rows) = (domain.name.clone(), too_long + batch.documents());
        Err(TrainError::HeldOut { domain, too_long, rows, seq_len })
    };
    prepared.eval.iter().map(packed).collect()
}

/// A run from its first step to its result.
struct Run<'a> {
    recipe: &'a Recipe,
    out: &'a Path,
    checkpoints: PathBuf,
    prepared: &'a Prepared,
    /// The average of the trained parameters, if the recipe wants one.
    averaged: Option<&'a Parameters>,
    trainee: &'a Trainee,
    /// The model that is judged: over the averages, if there are some.
    judge: &'a Trainee,
    /// Rows of each domain that the model is judged on.
    held_out: Vec<Batch>,
    objective: &'a dyn Objective,
    optimiser: Optimiser,
    schedule: Schedule,
    state: State,
    /// Steps of the newest checkpoint.
    saved: u64,
    log: Log,
    metrics: Metrics,
    observer: &'a mut dyn Observer,
    /// When this sitting began, and the seconds of training in sittings before it.
    began: Instant,
    seconds_before: f64,
    /// Rows longer than `seq_len` since the last evaluation.
    left_out: usize,
}

/// Why there are no more steps.
enum Steps {
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
    fn start(&mut self, resume: bool, changed_rates: &[ChangedRate]) -> Result<(), TrainError> {
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
            changed_rates,
        }));
        if recipe.base.is_some() && state.step == 0 {
            let each = self.judge_each()?;
            let (together, domains) = (self.together(&each), BTreeMap::new());
            let evaluated = Evaluated { step: 0, together, domains: &domains, left_out: 0 };
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
    fn steps(&mut self) -> Result<Steps, TrainError> {
        std::thread::scope(|scope| {
            let mut prefetch = Prefetch::start(scope, self.recipe, &self.prepared.train, self.state.step);
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
        let began = Instant::now();
        let batch = prefetch.batch(step, &self.state.weights())?;
        let outcome = accumulate(
            workers,
            self.objective,
            self.context(step, true),
            Some(trained),
            &batch.rows,
            train.micro_tokens,
        )?;
        self.optimiser.mask_gradients(&outcome.gradients, workers)?;
        // Before clipping; written only if the step is sound.
        let measured = self.metrics.is_due(step).then(|| {
            let (student, config) = (self.trainee.student(), &self.prepared.config);
            workers.together(|| self.metrics.measure(step, &student, config, trained, &outcome, &batch))
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
        self.state.tokens += tokens;
        self.left_out += batch.too_long;
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
            let left_out = std::mem::take(&mut self.left_out);
            let evaluated = Evaluated { step: numbers.step, together, domains: &numbers.domains, left_out };
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

    /// Draws the curves and writes the result; gives its path.
    fn finish(&mut self, outside: &Outside) -> Result<PathBuf, TrainError> {
        let Self { recipe, out, prepared, .. } = *self;
        let judged = self.averaged.unwrap_or(&prepared.trained);
        if let (Some(_), Some((loss, step))) = (recipe.train.stop, self.state.best) {
            let path = self.checkpoints.join(step.to_string());
            let best = Checkpoint::load(&path, recipe)?;
            checkpoint::restore(judged, best.averaged.as_ref().unwrap_or(&best.weights), &path)?;
            self.observer.event(&Event::BestTaken { step, loss: loss.0 });
        }
        let path = out.join("loss.svg");
        let drawn = loss_curve::svg(&[loss_curve::Run { name: "", steps: &log::read(out)? }]);
        atomic_file::write(&path, drawn.as_bytes()).map_err(TrainError::file(path))?;
        self.metrics.draw(out)?;
        let parameters = result(judged)?;
        let written = if let Some(adapter) = &recipe.adapter {
            let origin = outside.origin.as_ref().zip(prepared.identity.base);
            let texts = origin.map(|(origin, base)| origin(base)).unwrap_or_default();
            adapter::write(out, adapter, &prepared.config, &parameters, &texts)?
        } else {
            let model = Model { config: prepared.config.clone(), parameters, text: prepared.text.clone() };
            hugging_face::save(out, &model)?;
            out.to_owned()
        };
        failpoints::point("train.written", "");
        Ok(written)
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
