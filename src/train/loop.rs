//! The training loop, from recipe to finished model folder.

use std::path::Path;
use std::sync::mpsc;
use std::time::Instant;

use candle_core::Var;

use super::batch::{Batch, batch, eval_rows};
use super::checkpoint::{Checkpoint, State, Tensors};
use super::evaluate::evaluate;
use super::gradient::Workers;
use super::in_place::blend;
use super::log::{Log, Step};
use super::optimiser::Optimiser;
use super::recipe::Recipe;
use super::source::Sources;
use super::{TrainError, clip, curve, log, vocabulary};
use crate::durable;
use crate::model::tokenizer::Tokenizer;
use crate::model::{Decoder, DecoderConfig, Model, Parameters, TextSide, hugging_face, init};

/// Batches that are made ahead of the step that needs them.
const AHEAD: usize = 2;

/// Trains what the recipe says and writes a Hugging Face folder, `log.jsonl`, `loss.svg` and
/// `checkpoints/` into `out`. With `resume`, goes on from the newest checkpoint if there is one.
///
/// # Errors
/// Unusable data, numbers that are not finite, files that can't be written.
pub fn train(recipe: &Recipe, out: &Path, resume: bool) -> Result<(), TrainError> {
    let checkpoints = out.join("checkpoints");
    let found = if resume { Checkpoint::newest(&checkpoints, recipe)? } else { None };
    if found.is_none() && checkpoints.exists() {
        fs_err::remove_dir_all(&checkpoints).map_err(TrainError::file(&checkpoints))?;
    }
    let sources = Sources::open(&recipe.data, recipe.train.seed)?;
    let tokenizer = tokenizer(recipe, &sources, out, found.is_some())?;
    let config = recipe.decoder_config(tokenizer.vocab_size());
    let parameters = init::initialise(&config, recipe.train.seed)?;
    let averaged = (recipe.train.ema > 0.0).then(|| copy(&parameters)).transpose()?;
    let mut optimiser = Optimiser::new(&parameters, recipe.train.muon, recipe.train.adamw)?;
    let mut state = State::default();
    if let Some(checkpoint) = found {
        restore(&parameters, &checkpoint.weights)?;
        if let (Some(averaged), Some(saved)) = (&averaged, &checkpoint.averaged) {
            restore(averaged, saved)?;
        }
        optimiser.restore(&checkpoint.moments, checkpoint.state.step)?;
        state = checkpoint.state;
    }
    let decoder = Decoder::new(config.clone(), &parameters)?;
    let judged = averaged.as_ref().unwrap_or(&parameters);
    let judge = Decoder::new(config.clone(), judged)?;
    let workers = Workers::new(recipe.train.threads)?;
    // Always of the last stage: so that numbers of one run can be compared with each other.
    let held_out = eval_rows(&*sources.eval, &tokenizer, recipe.stage(u64::MAX), recipe.data.eval_rows)?;

    let mut log = Log::open(&out.join("log.jsonl"), state.step, recipe.train.steps)?;
    log.say(&format!(
        "{} parameters, vocabulary {}, {} held-out answers ({} too long), from step {}",
        config.parameter_count(),
        tokenizer.vocab_size(),
        held_out.rows.iter().map(|row| row.documents.len()).sum::<usize>(),
        held_out.too_long,
        state.step
    ));
    let schedule = recipe.schedule();
    let micro_tokens = recipe.train.micro_tokens;
    let before = state.seconds;
    let started = Instant::now();
    let mut too_long = 0;

    std::thread::scope(|scope| {
        let batches = batches_ahead(scope, recipe, &sources, &tokenizer, state.step);
        for batch in batches {
            let (began, batch) = (Instant::now(), batch?);
            let step = state.step + 1;

            let outcome = workers.run(&decoder, Some(&parameters), &batch.rows, micro_tokens)?;
            let norm = clip::clip(&outcome.gradients, recipe.train.clip)?;
            let (loss, accuracy) = (outcome.loss, outcome.accuracy());
            if !loss.is_finite() || !norm.is_finite() {
                return Err(TrainError::NotFinite { step, loss, norm });
            }
            let lr = schedule.factor(step);
            optimiser.step(&outcome.gradients, lr, &workers)?;
            if let Some(averaged) = &averaged {
                average(averaged, &parameters, recipe.train.ema, step)?;
            }

            let tokens = batch.tokens() as u64;
            let tokens_per_s = tokens as f64 / began.elapsed().as_secs_f64();
            state.step = step;
            state.tokens += tokens;
            too_long += batch.too_long;
            let last = step == recipe.train.steps;
            let eval = if last || step.is_multiple_of(recipe.train.eval_every) {
                Some(evaluate(&workers, &judge, &held_out, micro_tokens)?)
            } else {
                None
            };
            if let Some(eval) = eval
                && state.best.is_none_or(|(best, _)| eval.loss < best)
            {
                state.best = Some((eval.loss, step));
            }
            state.seconds = before + started.elapsed().as_secs_f64();
            let seconds = state.seconds;
            log.step(&Step {
                step,
                loss,
                accuracy,
                lr,
                grad_norm: norm,
                tokens: state.tokens,
                tokens_per_s,
                seconds,
                eval,
            })?;

            if eval.is_some() && too_long > 0 {
                log.say(&format!("  {too_long} rows longer than seq_len left out since the last evaluation"));
                too_long = 0;
            }

            let best_now = state.best.is_some_and(|(_, best)| best == step);
            if last || best_now || step.is_multiple_of(recipe.train.checkpoint_every) {
                let checkpoint = Checkpoint {
                    state: state.clone(),
                    weights: parameters.tensors(),
                    averaged: averaged.as_ref().map(Parameters::tensors),
                    moments: optimiser.state(),
                };
                checkpoint.save(&checkpoints, recipe)?;
                write_model(out, &config, &tokenizer, judged)?;
            }
        }
        Ok(())
    })?;
    let path = out.join("loss.svg");
    let drawn = curve::svg(&log::read(&out.join("log.jsonl"))?);
    durable::write(&path, drawn.as_bytes()).map_err(TrainError::file(path))
}

/// Makes the batches from step `from` + 1 on in a thread of its own.
fn batches_ahead<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    recipe: &'scope Recipe,
    sources: &'scope Sources,
    tokenizer: &'scope Tokenizer,
    from: u64,
) -> mpsc::Receiver<Result<Batch, TrainError>> {
    let (sender, receiver) = mpsc::sync_channel(AHEAD);
    scope.spawn(move || {
        for step in from + 1..=recipe.train.steps {
            let made = batch(&*sources.train, tokenizer, recipe.stage(step), step, recipe.data.long_rows);
            // The loop has ended when nobody receives.
            if sender.send(made).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The run's tokenizer: of the run that is resumed, of the recipe, or trained on the data; written to `out` for the next time.
fn tokenizer(recipe: &Recipe, sources: &Sources, out: &Path, resumed: bool) -> Result<Tokenizer, TrainError> {
    let path = out.join("tokenizer.json");
    if resumed {
        return Ok(Tokenizer::from_file(&path)?);
    }
    let tokenizer = if let Some(path) = &recipe.data.tokenizer {
        Tokenizer::from_file(path)?
    } else {
        let stage = recipe.stage(u64::MAX);
        let wanted = recipe.data.vocabulary_rows;
        let rows = sources.train.rows().map_or(wanted, |rows| rows.min(wanted));
        eprintln!("training a vocabulary of {} entries on {rows} rows", recipe.data.vocabulary);
        let conversations: Vec<_> = (0..rows)
            .map(|index| sources.train.conversation(index, stage.max_event_chars))
            .collect::<Result<_, _>>()?;
        vocabulary::train(conversations.into_iter(), recipe.data.vocabulary)?
    };
    durable::write(&path, tokenizer.to_json()?.as_bytes()).map_err(TrainError::file(&path))?;
    Ok(tokenizer)
}

/// Writes the Hugging Face folder of the model as it stands.
fn write_model(
    out: &Path,
    config: &DecoderConfig,
    tokenizer: &Tokenizer,
    parameters: &Parameters,
) -> Result<(), TrainError> {
    let (config, parameters) = (config.clone(), parameters.clone());
    let model = Model { config, parameters, text: TextSide::of_post(tokenizer)? };
    Ok(hugging_face::save(out, &model)?)
}

/// Parameters of their own with the same values.
fn copy(parameters: &Parameters) -> Result<Parameters, TrainError> {
    let mut copied = Parameters::default();
    for (name, var) in parameters.iter() {
        copied.insert(name, Var::from_tensor(&var.as_tensor().copy()?)?)?;
    }
    Ok(copied)
}

/// Overwrites parameters with saved values.
fn restore(parameters: &Parameters, saved: &Tensors) -> Result<(), TrainError> {
    for (name, var) in parameters.iter() {
        let missing = || candle_core::Error::Msg(format!("the checkpoint has no tensor {name}"));
        var.set(saved.get(name).ok_or_else(missing)?)?;
    }
    Ok(())
}

/// Moves the averaged weights towards the current ones; early on faster, so that the start is forgotten.
fn average(averaged: &Parameters, parameters: &Parameters, decay: f64, step: u64) -> Result<(), TrainError> {
    let decay = decay.min((1.0 + step as f64) / (10.0 + step as f64));
    for ((_, average), (_, now)) in averaged.iter().zip(parameters.iter()) {
        blend(average, decay, 1.0 - decay, now)?;
    }
    Ok(())
}
