//! Promises about what is not trained: it keeps the digits of its norms, and it records no graph.

use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};

use super::batch::batch;
use super::data::Position;
use super::method::{Effect, Method, Variable};
use super::objective::{Objective, StepContext};
use super::optimiser::Group;
use super::prepare::{Prepared, Trainee};
use super::recipe::{LongRows, Recipe};
use super::tests::{model, small_run, tokenizer};
use crate::model::parameters::Parameter;
use crate::model::{Context, DecoderConfig, Family, Model, Parameters, Point, Taps, TextSide, hugging_face};
use crate::train::TrainError;

/// A model of Gemma 2's form in `folder/base`, with norms whose digits bf16 doesn't have.
pub(super) fn base(folder: &Path) -> Model {
    let (decoder, drawn) = model(Family::Gemma2, true, tokenizer().vocab_size());
    let mut parameters = Parameters::default();
    for Parameter { name, role, var } in drawn.entries() {
        let tensor = match var.dims() {
            &[width] => {
                let values = (0..width).map(|at| 0.1 + at as f32 / 997.0).collect::<Vec<_>>();
                Tensor::from_vec(values, width, &Device::Cpu).unwrap()
            }
            _ => var.as_detached_tensor(),
        };
        parameters.insert(name, *role, Var::from_tensor(&tensor).unwrap()).unwrap();
    }
    let text = TextSide::of_post(&tokenizer()).unwrap();
    let model = Model { config: decoder.config().clone(), parameters, text };
    hugging_face::save(&folder.join("base"), &model).unwrap();
    model
}

/// The recipe of [`small_run`] on that base, with an adapter.
fn adapted(folder: &Path, adapter: &str, overrides: &[&str]) -> Recipe {
    small_run(folder, &[]);
    let text = fs_err::read_to_string(folder.join("recipe.toml")).unwrap();
    let train = text.find("[train]").unwrap();
    let path = folder.join("base");
    let rows = folder.join("rows.jsonl");
    let base = format!(
        "[base]\npath = {path:?}\nreference = {rows:?}\nreference_bound = 1000.0\n[adapter]\n{adapter}\n"
    );
    let recipe = folder.join("adapter.toml");
    crate::atomic_file::write(&recipe, (base + &text[train..]).as_bytes()).unwrap();
    let overrides: Vec<String> = overrides.iter().map(|&set| set.to_owned()).collect();
    Recipe::load(&recipe, &overrides).unwrap()
}

const LORA: &str = "lora = { rank = 2, alpha = 4.0, targets = [\"q_proj\", \"down_proj\"] }";
const FELIX: &str = "felix = { spokes = 2, rank = 2 }";

#[test]
fn vectors_of_a_frozen_base_keep_their_digits_in_bf16() {
    let folder = tempfile::tempdir().unwrap();
    let saved = base(folder.path());
    let recipe = adapted(folder.path(), LORA, &["train.precision=bf16"]);
    let prepared = Prepared::new(&recipe, &folder.path().join("run"), false, None, &mut ()).unwrap();
    let mut vectors = 0;
    for (name, var) in prepared.whole.iter() {
        let expected = saved.parameters.get(name).unwrap();
        if var.rank() == 1 {
            vectors += 1;
            assert_eq!(var.to_vec1::<f32>().unwrap(), expected.to_vec1::<f32>().unwrap(), "{name}");
        } else {
            assert_eq!(var.dtype(), DType::BF16, "{name}");
        }
    }
    assert!(vectors > 4, "{vectors}");
}

/// A method that multiplies the output of each attention by a variable. The output of a
/// whole block would tell nothing: the norm after the last one takes factors out.
struct Scaled;

impl Method for Scaled {
    fn add_variables(&self, _: &DecoderConfig, _: u64, trained: &mut Parameters) -> Result<(), TrainError> {
        Ok(trained.insert("scale", None, Var::new(&[1.5f32], &Device::Cpu)?)?)
    }

    fn effect(&self, _: &DecoderConfig, variable: &Variable) -> Result<Box<dyn Effect>, TrainError> {
        Ok(Box::new(Scaling(variable("scale")?)))
    }

    fn groups(&self) -> Vec<Group> {
        vec![]
    }
}

#[derive(Debug)]
struct Scaling(Tensor);

impl Effect for Scaling {
    fn taps(&self, before: Box<dyn Taps>, _: StepContext) -> Box<dyn Taps> {
        Box::new(ScaleTaps { before, scale: self.0.clone() })
    }
}

struct ScaleTaps {
    before: Box<dyn Taps>,
    scale: Tensor,
}

impl Taps for ScaleTaps {
    fn before(&mut self) -> Option<&mut dyn Taps> {
        Some(&mut *self.before)
    }

    fn tap(&mut self, point: Point, at: Context, tensor: Tensor) -> candle_core::Result<Tensor> {
        let tensor = self.before.tap(point, at, tensor)?;
        if point == Point::AttentionOutput { tensor.broadcast_mul(&self.scale) } else { Ok(tensor) }
    }
}

#[test]
fn what_is_judged_records_no_graph() {
    let folder = tempfile::tempdir().unwrap();
    base(folder.path());
    let from_nothing = small_run(folder.path(), &[]);
    let [lora, felix] = [LORA, FELIX].map(|adapter| adapted(folder.path(), adapter, &[]));
    let scaled: Option<&dyn Method> = Some(&Scaled);
    let runs = [(from_nothing.clone(), None), (from_nothing, scaled), (lora, None), (felix, scaled)];
    for (at, (recipe, method)) in runs.into_iter().enumerate() {
        let out = folder.path().join(format!("run{at}"));
        let prepared = Prepared::new(&recipe, &out, false, method, &mut ()).unwrap();
        let (stage, from) = (recipe.stage(1), Position::default());
        let rows = batch(&prepared.train, &[1.0], stage, &from, LongRows::Skip).unwrap().0.rows;
        let loss = |trainee: &Trainee, with_gradient| {
            trainee.student().loss(&rows, 1.0, StepContext::default(), with_gradient).unwrap().loss
        };
        let trained = prepared.over(&recipe, &prepared.trained, method).unwrap();
        let judged = prepared.frozen(&recipe, &prepared.trained, method).unwrap();
        let (learnt, seen) = (loss(&trained, true), loss(&judged, false));
        assert!(learnt.track_op() && !seen.track_op());
        let value = |loss: &Tensor| loss.to_scalar::<f32>().unwrap();
        assert_eq!(value(&learnt).to_bits(), value(&seen).to_bits());
        // What is judged is what is trained, as it moves.
        let (_, var) = prepared.trained.iter().last().unwrap();
        var.set(&(var.as_tensor() + 0.25).unwrap()).unwrap();
        assert_ne!(value(&loss(&judged, false)).to_bits(), value(&seen).to_bits());
    }
}
