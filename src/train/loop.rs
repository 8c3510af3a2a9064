//! The training loop, from recipe to finished model or adapter.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::batch::{Batch, eval_rows};
use super::checkpoint::{self, Checkpoint, Exact, State};
use super::data::{Domain, next_weights};
use super::distil::{Ask, Teacher};
use super::evaluate::{Evaluation, evaluate};
use super::in_place::blend;
use super::log::{DomainNumbers, Log, Speed, Step};
use super::metrics::Metrics;
use super::objective::Objective;
use super::optimiser::Optimiser;
use super::prefetch::Prefetch;
use super::prepare::{Prepared, copy, lock, result};
use super::recipe::Recipe;
use super::{TrainError, adapter, clip, log, loss_curve};
use crate::digest::Digest;
use crate::model::{Model, Parameters, hugging_face};
use crate::{atomic_file, failpoints};

/// From the hash of a base's tensors, what an adapter says of where it comes from.
pub type Origin = Box<dyn Fn(Digest) -> BTreeMap<String, String>>;

/// What a run needs from those who know of spokes and daemons.
#[derive(Default)]
pub struct Outside {
    /// Texts for an adapter's metadata, from the hash of its base's tensors: what it was trained for.
    pub origin: Option<Origin>,
    /// Posts to the endpoint of a served teacher.
    pub ask: Option<Ask>,
}

/// Trains what the recipe says. `out` gets `recipe.toml`, the logs, `loss.svg`, `checkpoints/`, and in the end the result: a
/// Hugging Face folder (`out` itself) or an adapter below it, whose path is given. With `resume`, goes on from the newest
/// checkpoint if there is one.
///
/// # Errors
/// Unusable data or base, a domain without a held-out row that fits, numbers that are not finite or beyond their bound, files that can't be written; checkpoints of an
/// earlier run in `out` without `resume`.
pub fn train(recipe: &Recipe, out: &Path, resume: bool, outside: &Outside) -> Result<PathBuf, TrainError> {
    let _lock = lock(out)?;
    let checkpoints = out.join("checkpoints");
    let found = if resume { Checkpoint::newest(&checkpoints, recipe)? } else { None };
    if let (false, Some(step)) = (resume, checkpoint::steps(&checkpoints)?.last()) {
        return Err(TrainError::Occupied { path: out.to_owned(), step: *step });
    }
    let prepared = Prepared::new(recipe, out, found.is_some())?;
    let (compute, workers) = (&prepared.compute, &prepared.workers);
    let trained = &prepared.trained;
    let averaged = (recipe.train.ema > 0.0).then(|| copy(trained)).transpose()?;
    let mut optimiser =
        Optimiser::new(trained, recipe.train.matrices, recipe.train.muon, recipe.train.adamw)?;
    let open = |distil| Teacher::open(distil, &prepared, outside.ask.clone());
    let teacher = recipe.distil.as_ref().map(open).transpose()?;
    let mut state = State::beginning(recipe, &prepared, teacher.as_ref().and_then(Teacher::digest));
    let mut changed = vec![];
    if let Some(checkpoint) = found {
        let path = checkpoints.join(checkpoint.state.step.to_string());
        checkpoint.state.check(&state, &path)?;
        checkpoint::restore(trained, &checkpoint.weights, &path)?;
        if let (Some(averaged), Some(saved)) = (&averaged, &checkpoint.averaged) {
            checkpoint::restore(averaged, saved, &path)?;
        }
        let moments = optimiser.state();
        checkpoint::check(moments.iter().map(|(name, t)| (name.as_str(), t)), &checkpoint.moments, &path)?;
        optimiser.restore(&checkpoint.moments, checkpoint.state.step)?;
        changed = checkpoint::changed_rates(&path, recipe)?;
        state = checkpoint.state;
    }
    let trainee = prepared.over(recipe, trained)?;
    let judged = averaged.as_ref().unwrap_or(trained);
    let judge = prepared.over(recipe, judged)?;
    // Always of the last stage: so that numbers of one run can be compared with each other.
    let stage = recipe.stage(u64::MAX);
    let held_out: Vec<Batch> = prepared
        .eval
        .iter()
        .map(|domain| {
            let batch = eval_rows(domain, stage, recipe.data.eval_rows, recipe.data.long_rows)?;
            // Nothing has a loss of 0, which would be the best of all.
            if batch.targets() > 0 {
                return Ok(batch);
            }
            let (too_long, seq_len) = (batch.too_long, stage.seq_len);
            let (domain, rows) = (domain.name.clone(), too_long + batch.documents());
            Err(TrainError::HeldOut { domain, too_long, rows, seq_len })
        })
        .collect::<Result<_, TrainError>>()?;
    let objective: Box<dyn Objective> = match &teacher {
        Some(teacher) => Box::new(teacher.objective(trainee.student())),
        None => Box::new(trainee.student()),
    };

    if let Some(teacher) = &teacher {
        teacher.check_rows(recipe, &prepared.train, state.step)?;
    }

    // Only now: what is refused leaves a run as it was.
    let path = out.join("recipe.toml");
    atomic_file::write(&path, recipe.to_toml().as_bytes()).map_err(TrainError::file(path))?;
    let mut log = Log::open(out, state.step, recipe.train.steps)?;
    let mut metrics = Metrics::open(out, recipe.train.metrics_every, state.step)?;
    log.say(&compute.to_string());
    if resume && state.step == 0 {
        log.say(&format!("{} has no checkpoint yet: from the beginning", out.display()));
    }
    if log.kept() < state.step {
        let (kept, step) = (log.kept(), state.step);
        log.say(&format!(
            "warning: {}/{} has {kept} of the {step} steps so far: it was damaged",
            out.display(),
            log::LOG
        ));
    }
    log.say(&prepared.summary(&held_out, state.step));
    if let Some(sane) = &prepared.sane {
        log.say(sane);
    }
    for (key, saved, now) in changed {
        let [saved, now] =
            [saved, now].map(|rate| rate.map_or("not given".to_owned(), |rate| rate.to_string()));
        log.say(&format!("{key} is {now} from step {} on; it was {saved}", state.step + 1));
    }
    let judge_all = || -> Result<Vec<Evaluation>, TrainError> {
        held_out
            .iter()
            .map(|batch| evaluate(workers, &judge.student(), batch, recipe.train.micro_tokens))
            .collect()
    };
    if recipe.base.is_some() && state.step == 0 {
        let each = judge_all()?;
        let together = together(&each, &held_out);
        log.say(&format!("held out, before the first step: {together}"));
    }
    let schedule = recipe.schedule();
    let micro_tokens = recipe.train.micro_tokens;
    let before = log.seconds_before();
    let started = Instant::now();
    let mut too_long = 0;

    std::thread::scope(|scope| {
        let mut prefetch = Prefetch::start(scope, recipe, &prepared.train, state.step);
        while state.step < recipe.train.steps && !state.stopped {
            let step = state.step + 1;
            let began = Instant::now();
            let batch = prefetch.batch(step, &state.weights())?;

            let outcome = workers.run(&*objective, Some(trained), &batch.rows, micro_tokens)?;
            let measured = metrics.is_due(step).then(|| {
                metrics.measure(step, &trainee.student(), &prepared.config, trained, &outcome, &batch)
            });
            let norm = clip::clip(&outcome.gradients, recipe.train.clip, workers)?;
            let (loss, accuracy) = (outcome.loss, outcome.accuracy());
            if !loss.is_finite() || !norm.is_finite() {
                return Err(TrainError::NotFinite { step, what: "loss", loss, norm });
            }
            if loss > recipe.train.max_loss {
                return Err(TrainError::AboveBound { step, loss, bound: recipe.train.max_loss });
            }
            metrics.write(measured.transpose()?)?;
            let lr = schedule.factor(step);
            optimiser.step(&outcome.gradients, lr, workers)?;
            if let Some(averaged) = &averaged {
                average(averaged, trained, recipe.train.ema, step)?;
            }
            failpoints::point("train.stepped", &step.to_string());

            let tokens = batch.tokens() as u64;
            let tokens_per_s = tokens as f64 / began.elapsed().as_secs_f64();
            state.step = step;
            state.tokens += tokens;
            too_long += batch.too_long;
            let last = step == recipe.train.steps;
            let mut eval = None;
            let mut domains = BTreeMap::new();
            if last || step.is_multiple_of(recipe.train.eval_every) {
                let each = judge_all()?;
                let together = together(&each, &held_out);
                // Before it is logged or saved: no number compares with it, and JSON has none like it.
                if !together.loss.is_finite() {
                    let (what, loss) = ("held-out loss", together.loss);
                    return Err(TrainError::NotFinite { step, what, loss, norm });
                }
                state.judge(together.loss, recipe);
                state.weigh(&each, recipe);
                if each.len() > 1 {
                    let weights = state.weights().into_iter();
                    let numbers =
                        each.iter().zip(weights).map(|(&eval, weight)| DomainNumbers { weight, eval });
                    domains = recipe.data.domains.keys().cloned().zip(numbers).collect();
                }
                eval = Some(together);
            }
            let terms = recipe.distil.as_ref().map(|_| outcome.terms);
            let seconds = before + started.elapsed().as_secs_f64();
            log.step(
                &Step {
                    step,
                    loss,
                    terms,
                    accuracy,
                    lr,
                    grad_norm: norm,
                    tokens: state.tokens,
                    eval,
                    domains,
                },
                &Speed { step, seconds, tokens_per_s },
            )?;

            if eval.is_some() && too_long > 0 {
                log.say(&format!("  {too_long} rows longer than seq_len left out since the last evaluation"));
                too_long = 0;
            }
            let best_now = state.best.is_some_and(|(_, best)| best == step);
            if last || state.stopped || best_now || step.is_multiple_of(recipe.train.checkpoint_every) {
                // The log first: a run that goes on from the checkpoint writes only what comes behind it.
                log.sync()?;
                metrics.sync()?;
                let checkpoint = Checkpoint {
                    state: state.clone(),
                    weights: trained.tensors(),
                    averaged: averaged.as_ref().map(Parameters::tensors),
                    moments: optimiser.state(),
                };
                checkpoint.save(&checkpoints, recipe)?;
                failpoints::point("train.saved", &step.to_string());
            }
            if state.stopped {
                log.say(&format!("stopped: held-out loss has not fallen for {} evaluations", state.waiting));
            }
        }
        Ok(())
    })?;

    if let (Some(_), Some((loss, step))) = (recipe.train.stop, state.best) {
        let best = Checkpoint::load(&checkpoints.join(step.to_string()), recipe)?;
        let path = checkpoints.join(step.to_string());
        checkpoint::restore(judged, best.averaged.as_ref().unwrap_or(&best.weights), &path)?;
        log.say(&format!("the result is that of step {step}, held-out loss {:.4}", loss.0));
    }
    let path = out.join("loss.svg");
    let drawn = loss_curve::svg(&[loss_curve::Run { name: "", steps: &log::read(out)? }]);
    atomic_file::write(&path, drawn.as_bytes()).map_err(TrainError::file(path))?;
    metrics.draw(out)?;
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

fn together(each: &[Evaluation], held_out: &[Batch]) -> Evaluation {
    Evaluation::together(&each.iter().copied().zip(held_out).collect::<Vec<_>>())
}

impl State {
    /// Before the first step.
    fn beginning(recipe: &Recipe, prepared: &Prepared, teacher: Option<Digest>) -> Self {
        Self {
            step: 0,
            seed: recipe.train.seed,
            tokens: 0,
            weights: recipe.domain_weights().into_iter().map(Exact).collect(),
            best: None,
            waiting: 0,
            mark: None,
            stopped: false,
            base: prepared.identity.base,
            tokens_of: prepared.identity.tokens_of,
            read: Some(read(prepared, teacher)),
        }
    }

    /// Refuses a state of another base or tokenizer, other data or another teacher than now.
    fn check(&self, now: &Self, path: &Path) -> Result<(), TrainError> {
        let of = |state: &Self| {
            let mut all: BTreeMap<String, Digest> = state.read.clone().unwrap_or_default();
            all.extend(state.base.map(|base| ("base".to_owned(), base)));
            all.insert("tokenizer".to_owned(), state.tokens_of);
            all
        };
        let (saved, now) = (of(self), of(now));
        // Whatever else differs follows from these.
        let first = ["base", "tokenizer"].map(str::to_owned);
        for what in first.into_iter().chain(saved.keys().chain(now.keys()).cloned()) {
            if saved.get(&what) != now.get(&what) {
                let [saved, now] =
                    [&saved, &now].map(|all| all.get(&what).map_or("none".to_owned(), Digest::to_string));
                return Err(TrainError::Foreign { path: path.to_owned(), what, saved, now });
            }
        }
        Ok(())
    }

    /// Takes a held-out loss: the best so far, and whether it is time to stop.
    fn judge(&mut self, loss: f64, recipe: &Recipe) {
        if self.best.is_none_or(|(best, _)| loss < best.0) {
            self.best = Some((Exact(loss), self.step));
        }
        let Some(stop) = recipe.train.stop else { return };
        if self.mark.is_none_or(|mark| loss < mark.0 - stop.least) {
            self.mark = Some(Exact(loss));
            self.waiting = 0;
        } else {
            self.waiting += 1;
            self.stopped = self.waiting >= stop.patience;
        }
    }

    /// Moves the domains' weights by their losses, where the recipe says so and when it is time.
    fn weigh(&mut self, each: &[Evaluation], recipe: &Recipe) {
        let Some(loading) = &recipe.data.loading else { return };
        if !self.step.is_multiple_of(recipe.train.eval_every * loading.every) {
            return;
        }
        let losses: Vec<f64> = each.iter().map(|eval| eval.loss).collect();
        let references: Vec<f64> =
            recipe.data.domains.values().map(|domain| domain.reference_loss.unwrap_or(f64::NAN)).collect();
        let next = next_weights(&self.weights(), &losses, &references, loading);
        self.weights = next.into_iter().map(Exact).collect();
    }

    fn weights(&self) -> Vec<f64> {
        self.weights.iter().map(|weight| weight.0).collect()
    }
}

/// Hashes of what a run reads, by key of the recipe. What is generated follows from the recipe alone.
fn read(prepared: &Prepared, teacher: Option<Digest>) -> BTreeMap<String, Digest> {
    let of = |part: &'static str| {
        move |domain: &Domain| Some((format!("data.domains.{}.{part}", domain.name), domain.digest()?))
    };
    let mut all: BTreeMap<String, Digest> = prepared.train.domains().iter().filter_map(of("train")).collect();
    all.extend(prepared.eval.iter().filter_map(of("eval")));
    all.extend(teacher.map(|digest| ("distil teacher".to_owned(), digest)));
    all
}

/// Moves the averaged weights towards the current ones; early on faster, so that the start is forgotten.
fn average(averaged: &Parameters, parameters: &Parameters, decay: f64, step: u64) -> Result<(), TrainError> {
    let decay = decay.min((1.0 + step as f64) / (10.0 + step as f64));
    for ((_, average), (_, now)) in averaged.iter().zip(parameters.iter()) {
        blend(average, decay, 1.0 - decay, now)?;
    }
    Ok(())
}
