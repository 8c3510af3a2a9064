//! Tests of what pruning and background jobs stand on: observers that take part in a run, cancelling,
//! and methods with variables of their own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bespoke::model::{Context, DecoderConfig, Parameters, Point, Taps};
use bespoke::train::TrainError;
use bespoke::train::method::{Effect, Method, Variable};
use bespoke::train::objective::StepContext;
use bespoke::train::observer::{End, Event, Now, Observer};
use bespoke::train::optimiser::{Algorithm, Direction, Group, Takes};
use bespoke::train::recipe::Recipe;
use bespoke::train::run::{Outside, train};
use candle_core::{DType, Device, Tensor, Var};
use rand::Rng;

use crate::train::folder;

/// A recipe of the tests of `bespoke train`, with absolute paths.
fn recipe(folder: &Path, set: &[&str]) -> Recipe {
    let rows = folder.join("rows.jsonl").display().to_string();
    let data = ["train", "eval"].map(|key| format!("data.domains.rows.{key}=[{rows:?}]"));
    let set: Vec<String> = set.iter().map(|&set| set.to_owned()).chain(data).collect();
    Recipe::load(&folder.join("recipe.toml"), &set).unwrap()
}

/// What a run leaves, but for how long it took.
fn content(out: &Path, step: u64) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(out.join("checkpoints").join(step.to_string()))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.extend(["log.jsonl", "metrics.jsonl", "model.safetensors"].map(|name| out.join(name)));
    files.sort();
    let name = |path: &Path| path.strip_prefix(out).unwrap().display().to_string();
    files.iter().map(|path| (name(path), std::fs::read(path).unwrap())).collect()
}

fn assert_equal(one: &Path, two: &Path, step: u64) {
    for ((name, one), (other, two)) in content(one, step).iter().zip(&content(two, step)) {
        assert!(name == other && one == two, "{name} differs");
    }
}

pub fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Writes down what happens, and cancels the run when it has taken so many steps.
#[derive(Default)]
struct Watching {
    seen: Vec<String>,
    taken: u64,
    cancel_at: Option<u64>,
}

impl Observer for Watching {
    fn event(&mut self, event: &Event) {
        self.seen.push(match event {
            Event::VocabularyBegun { entries, .. } => format!("vocabulary of {entries}"),
            Event::TokensRemade { .. } => "tokens remade".to_owned(),
            Event::Started(started) => format!("started at {} of {}", started.step, started.steps),
            Event::Measured(measured) => format!("measured {}", measured.step),
            Event::Step { numbers, speed } => {
                assert!(numbers.loss > 0.0 && speed.tokens_per_s > 0.0);
                format!("step {}", numbers.step)
            }
            Event::Evaluated(evaluated) => format!("evaluated {}", evaluated.step),
            Event::CheckpointWritten { step, folder } => {
                assert!(folder.join("manifest.json").exists());
                format!("checkpoint {step}")
            }
            Event::StoppedEarly { step, .. } => format!("stopped early at {step}"),
            Event::BestTaken { step, .. } => format!("best is {step}"),
            Event::Ended(End::Finished { result }) => {
                assert!(result.join("model.safetensors").exists());
                "finished".to_owned()
            }
            Event::Ended(End::Cancelled { step }) => format!("cancelled at {step}"),
        });
    }

    fn before_steps(&mut self, now: &mut Now) -> Result<(), TrainError> {
        self.taken = now.step;
        self.seen.push(format!("before steps, {} taken", now.step));
        Ok(())
    }

    fn after_step(&mut self, now: &mut Now) -> Result<(), TrainError> {
        self.taken = now.step;
        self.seen.push(format!("after {}", now.step));
        Ok(())
    }

    fn is_cancelled(&self) -> bool {
        self.cancel_at == Some(self.taken)
    }
}

#[test]
fn an_observer_sees_everything_in_order_and_a_cancelled_run_goes_on_bit_for_bit() {
    let folder = folder();
    let recipe = recipe(folder.path(), &["train.steps=5", "train.metrics_every=2", "train.ema=0.9"]);
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    let run = |out: &Path, resume, cancel_at| {
        let mut watching = Watching { cancel_at, ..Watching::default() };
        let end = train(&recipe, out, resume, &Outside::default(), &mut watching).unwrap();
        (end, watching.seen)
    };
    let (end, seen) = run(&whole, false, None);
    assert_eq!(end, End::Finished { result: whole.clone() });
    let expected = "vocabulary of 292, started at 0 of 5, before steps, 0 taken, after 1, step 1, measured 2, \
         after 2, step 2, evaluated 2, checkpoint 2, after 3, step 3, measured 4, after 4, step 4, evaluated 4, \
         checkpoint 4, after 5, step 5, evaluated 5, checkpoint 5, finished";
    assert_eq!(seen.join(", "), expected);

    // Before the first step there is nothing to save.
    let (end, seen) = run(&parts, false, Some(0));
    assert_eq!(end, End::Cancelled { step: 0 });
    assert_eq!(seen.last().unwrap(), "cancelled at 0");
    // Between two checkpoints: one is written.
    let (end, seen) = run(&parts, true, Some(3));
    assert_eq!(end, End::Cancelled { step: 3 });
    assert_eq!(seen[seen.len() - 3..], ["step 3", "checkpoint 3", "cancelled at 3"]);
    assert!(!parts.join("model.safetensors").exists());
    // At a checkpoint: it is there already.
    let (_, seen) = run(&parts, true, Some(4));
    assert_eq!(seen[..2], ["started at 3 of 5", "before steps, 3 taken"]);
    assert_eq!(seen[seen.len() - 3..], ["evaluated 4", "checkpoint 4", "cancelled at 4"]);
    run(&parts, true, None);
    assert_equal(&whole, &parts, 5);
}

pub const UP: &str = "model.layers.0.mlp.up_proj.weight";

/// Keeps every third weight of a matrix at 0.
struct Sparse {
    cancel: Watching,
}

pub fn every_third(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|at| if at % 3 == 0 { 0.0 } else { 1.0 }).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Whether exactly the weights under [`every_third`] are 0.
pub fn is_sparse(values: &[f32]) -> bool {
    values.iter().enumerate().all(|(at, value)| (*value == 0.0) == (at % 3 == 0))
}

impl Observer for Sparse {
    fn before_steps(&mut self, now: &mut Now) -> Result<(), TrainError> {
        let mask = every_third(now.parameters.get(UP)?.dims());
        now.optimiser.set_mask(UP, Some(&mask))?;
        self.cancel.before_steps(now)
    }

    fn after_step(&mut self, now: &mut Now) -> Result<(), TrainError> {
        assert!(is_sparse(&values(now.parameters.get(UP)?)), "after step {}", now.step);
        self.cancel.after_step(now)
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

#[test]
fn a_sparse_run_has_a_sparse_result_also_of_averages_and_after_it_was_cancelled() {
    let folder = folder();
    let recipe = recipe(folder.path(), &["train.ema=0.9", "train.metrics_every=1"]);
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    let run = |out: &Path, resume, cancel_at| {
        let mut sparse = Sparse { cancel: Watching { cancel_at, ..Watching::default() } };
        train(&recipe, out, resume, &Outside::default(), &mut sparse).unwrap()
    };
    run(&whole, false, None);
    let written = candle_core::safetensors::load(whole.join("model.safetensors"), &Device::Cpu).unwrap();
    assert!(is_sparse(&values(&written[UP])), "{:?}", values(&written[UP]));
    run(&parts, false, Some(3));
    run(&parts, true, None);
    assert_equal(&whole, &parts, 4);
}

/// Learned masks in small: what each block gives is multiplied by a mask with noise, whose mean a
/// Lagrange multiplier pulls to a half.
struct Masks;

const LOGITS: &str = "mask.logits";
const MULTIPLIER: &str = "mask.multiplier";

impl Method for Masks {
    fn add_variables(
        &self,
        config: &DecoderConfig,
        _seed: u64,
        trained: &mut Parameters,
    ) -> Result<(), TrainError> {
        insert(trained, LOGITS, Tensor::full(2.0f32, config.hidden_size, &Device::Cpu)?);
        insert(trained, MULTIPLIER, Tensor::zeros(1, DType::F32, &Device::Cpu)?);
        Ok(())
    }

    fn effect(&self, _config: &DecoderConfig, variable: &Variable) -> Result<Box<dyn Effect>, TrainError> {
        Ok(Box::new(Masking { logits: variable(LOGITS)?, multiplier: variable(MULTIPLIER)? }))
    }

    fn groups(&self) -> Vec<Group> {
        vec![
            adamw("masks", LOGITS, 0.1, Direction::Descend),
            adamw("multipliers", MULTIPLIER, 0.5, Direction::Ascend),
        ]
    }
}

#[derive(Debug)]
struct Masking {
    logits: Tensor,
    multiplier: Tensor,
}

impl Effect for Masking {
    fn taps(&self, before: Box<dyn Taps>, context: StepContext) -> Box<dyn Taps> {
        let count = self.logits.elem_count();
        let mut rng = context.rng(7);
        let noise: Vec<f32> = (0..count).map(|_| rng.random_range(-1.0..1.0)).collect();
        let noise = if context.trains { noise } else { vec![0.0; count] };
        Box::new(MaskTaps { before, logits: self.logits.clone(), noise, context })
    }

    fn step_term(&self, _context: StepContext) -> Result<Option<Tensor>, TrainError> {
        let apart = (candle_nn::ops::sigmoid(&self.logits)?.mean_all()? - 0.5)?;
        Ok(Some(self.multiplier.broadcast_mul(&apart)?.sum_all()?))
    }
}

struct MaskTaps {
    before: Box<dyn Taps>,
    logits: Tensor,
    noise: Vec<f32>,
    context: StepContext,
}

impl Taps for MaskTaps {
    fn before(&mut self) -> Option<&mut dyn Taps> {
        Some(&mut *self.before)
    }

    fn tap(&mut self, point: Point, at: Context, tensor: Tensor) -> candle_core::Result<Tensor> {
        let StepContext { step, trains, .. } = self.context;
        assert_eq!(at.pass.step, if trains { step } else { 0 });
        let tensor = self.before.tap(point, at, tensor)?;
        if point != Point::BlockOutput {
            return Ok(tensor);
        }
        let noise = Tensor::new(&self.noise[..], tensor.device())?;
        tensor.broadcast_mul(&candle_nn::ops::sigmoid(&(&self.logits + noise)?)?)
    }
}

/// Sees a multiplier after every step.
struct Multiplier {
    seen: Vec<f32>,
    terms: Vec<f64>,
    cancel: Watching,
}

impl Observer for Multiplier {
    fn event(&mut self, event: &Event) {
        if let Event::Step { numbers, .. } = event {
            self.terms.push(numbers.step_term.unwrap());
        }
    }

    fn after_step(&mut self, now: &mut Now) -> Result<(), TrainError> {
        self.seen.push(values(now.parameters.get(MULTIPLIER)?)[0]);
        self.cancel.after_step(now)
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

#[test]
fn a_method_with_masks_and_a_multiplier_runs_without_a_change_of_the_trainer() {
    let folder = folder();
    let run = |out: &str, set: &[&str], resume, cancel_at| {
        let recipe = recipe(folder.path(), &[&["train.metrics_every=1"][..], set].concat());
        let outside = Outside { method: Some(Arc::new(Masks)), ..Outside::default() };
        let cancel = Watching { cancel_at, ..Watching::default() };
        let mut observer = Multiplier { seen: vec![], terms: vec![], cancel };
        train(&recipe, &folder.path().join(out), resume, &outside, &mut observer).unwrap();
        observer
    };
    // Each row of a step is a part of its own.
    let parts = ["train.micro_tokens=64", "train.threads=2"];
    let Multiplier { seen, terms, .. } = run("whole", &parts, false, None);
    assert!(seen[0] > 0.0 && seen.windows(2).all(|pair| pair[0] < pair[1]), "{seen:?}");
    // It has the rate of its group from the first step on, whatever the schedule: 0.5 by AdamW.
    assert!((seen[0] - 0.5).abs() < 1e-3, "{seen:?}");
    assert!(terms[0] == 0.0 && terms[1] > 0.0, "{terms:?}");
    let written =
        candle_core::safetensors::load(folder.path().join("whole/model.safetensors"), &Device::Cpu).unwrap();
    assert!(written.contains_key(UP) && !written.keys().any(|name| name.starts_with("mask.")));
    run("parts", &parts, false, Some(3));
    run("parts", &parts, true, None);
    assert_equal(&folder.path().join("whole"), &folder.path().join("parts"), 4);
    // In one part, or in two: the multiplier sees its constraint once a step.
    let one = run("one", &["train.micro_tokens=128", "train.threads=2"], false, None);
    for (one, two) in one.terms.iter().zip(&terms) {
        assert!((one - two).abs() < 1e-2, "{one} in one part, {two} in two");
    }
}

pub fn insert(parameters: &mut Parameters, name: &str, values: Tensor) {
    parameters.insert(name, None, Var::from_tensor(&values).unwrap()).unwrap();
}

/// A group of this parameter that AdamW moves at one rate, whatever the schedule.
pub fn adamw(name: &'static str, parameter: &str, rate: f64, direction: Direction) -> Group {
    let algorithm = Algorithm::AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0 };
    let takes = Takes::Named(vec![parameter.to_owned()]);
    Group { name, takes, algorithm, rate, scheduled: false, direction }
}
