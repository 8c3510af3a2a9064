//! A training run, from recipe to finished model or adapter.

mod finish;
mod state;
mod steps;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::TrainError;
use super::batch::{Batch, eval_rows};
use super::checkpoint::{self, Checkpoint, State};
use super::distil::{Ask, Teacher};
use super::log::Log;
use super::method::Method;
use super::metrics::Metrics;
use super::objective::Objective;
use super::observer::{End, Event, Observer};
use super::optimiser::{Group, Optimiser};
use super::prepare::{Prepared, copy, lock};
use super::recipe::Recipe;
use crate::atomic_file;
use crate::digest::Digest;
use crate::model::Parameters;
use steps::{Run, Steps};

/// Makes the metadata about the origin of an adapter from the hash of its base's tensors.
pub type Origin = Box<dyn Fn(Digest) -> BTreeMap<String, String>>;

/// What a run needs from rooms above this one, which know spokes and daemons.
#[derive(Default)]
pub struct Outside {
    /// Makes the metadata of an adapter: what it was trained for.
    pub origin: Option<Origin>,
    /// Posts to the endpoint of a remote teacher.
    pub ask: Option<Ask>,
    /// A training method that takes part.
    pub method: Option<Arc<dyn Method>>,
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
    let method = outside.method.as_deref();
    let prepared = Prepared::new(recipe, out, found.is_some(), method, observer)?;
    let trained = &prepared.trained;
    let averaged = (recipe.train.ema > 0.0).then(|| copy(trained)).transpose()?;
    let own = Group::of_recipe(recipe.train.matrices, recipe.train.muon, recipe.train.adamw);
    let groups = method.map(Method::groups).unwrap_or_default().into_iter().chain(own).collect();
    let mut optimiser = Optimiser::new(trained, groups)?;
    let open = |distil| Teacher::open(distil, &prepared, outside.ask.clone());
    let teacher = recipe.distil.as_ref().map(open).transpose()?;
    let mut state = State::beginning(recipe, &prepared, teacher.as_ref().and_then(Teacher::digest));
    let mut notes = vec![];
    if let Some(checkpoint) = found {
        let path = checkpoints.join(checkpoint.state.step.to_string());
        checkpoint.state.check(&state, &path)?;
        notes = checkpoint.state.notes(&prepared.compute.name(), &checkpoint::changed(&path, recipe)?);
        let saved = restored(checkpoint, &path, trained, averaged.as_ref(), &mut optimiser)?;
        state = State { place: state.place, ..saved };
    }
    let trainee = prepared.over(recipe, trained, method)?;
    let judged = averaged.as_ref().unwrap_or(trained);
    // Evaluation and metrics need no gradients.
    let judge = prepared.frozen(recipe, judged, method)?;
    let seen = prepared.frozen(recipe, trained, method)?;
    let held_out = held_out(recipe, &prepared)?;
    let objective: Box<dyn Objective> = match &teacher {
        Some(teacher) => Box::new(teacher.objective(trainee.student())),
        None => Box::new(trainee.student()),
    };
    if let Some(teacher) = &teacher {
        teacher.check_rows(recipe, &prepared.train, &state)?;
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
        seen: &seen,
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
        too_long: 0,
    };
    run.start(resume, &notes)?;
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
