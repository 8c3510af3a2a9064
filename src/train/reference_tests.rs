//! Gradients of adapters, optimisers and the schedule against PEFT, PyTorch and transformers
//! (`tests/tools/training_reference.py`).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, Var};

use super::adapter::{self, Adapter};
use super::batch::PackedRow;
use super::gradient::accumulate;
use super::objective::{StepContext, Student};
use super::optimiser::{AdamWConfig, Group, Matrices, MuonConfig, Optimiser};
use super::recipe::AdapterRecipe;
use super::schedule::Schedule;
use crate::device::Workers;
use crate::model::spec::Part;
use crate::model::{Decoder, Parameters, Projection, Role, hugging_face};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn tensors(path: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixtures().join(path), &Device::Cpu).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference is at most `part` of the largest expected value.
fn assert_close(name: &str, found: &Tensor, expected: &Tensor, part: f32) {
    assert_eq!(found.elem_count(), expected.elem_count(), "{name}");
    let (found, expected) = (flat(found), flat(expected));
    let size = expected.iter().fold(0.0f32, |size, value| size.max(value.abs()));
    let apart = found.iter().zip(&expected).fold(0.0f32, |apart, (a, b)| apart.max((a - b).abs()));
    assert!(size > 0.0 && apart <= part * size, "{name}: {apart} apart, values up to {size}");
}

/// Loss and gradients of an adapter with these values on the model of the fixtures.
fn compare(kind: &str, recipe: &str, values: impl Fn(&str) -> Tensor) {
    let expected = tensors("train/adapters.safetensors");
    let model = hugging_face::load(&fixtures().join("hf/llama_gqa")).unwrap();
    let recipe: AdapterRecipe = toml::from_str(recipe).unwrap();
    let trained = adapter::initial(&recipe, &model.config, 1).unwrap();
    for (name, var) in trained.iter() {
        var.set(&values(name).reshape(var.shape()).unwrap()).unwrap();
    }
    let ids = expected["ids"].to_vec1::<u32>().unwrap();
    let targets = (1..ids.len()).map(|at| (at as u32 - 1, ids[at])).collect();
    let rows = [PackedRow { documents: vec![(0, ids.len())], targets, ids }];
    let adapter = Adapter::new(&recipe, &model.config, &trained).unwrap();
    for recompute in [false, true] {
        let decoder = Decoder::frozen(model.config.clone(), &model.parameters).unwrap();
        let decoder = decoder.recomputing(recompute);
        let student = Student { decoder: &decoder, adapter: Some(&adapter), effect: None };
        let outcome = accumulate(
            &Workers::new(1).unwrap(),
            &student,
            StepContext::default(),
            Some(&trained),
            &rows,
            64,
        )
        .unwrap();
        let loss = f64::from(flat(&expected[&format!("{kind}.loss")])[0]);
        assert!((outcome.loss - loss).abs() < 1e-5 * loss, "{kind}: loss {}, expected {loss}", outcome.loss);
        for ((name, _), gradient) in trained.iter().zip(&outcome.gradients) {
            assert_close(name, gradient, &expected[&format!("{kind}.GRAD.{name}")], 1e-3);
        }
    }
}

#[test]
fn gradients_of_a_lora_are_those_of_peft() {
    let weights = tensors("spokes/lora/adapter_model.safetensors");
    let value = |name: &str| weights[&format!("base_model.model.{name}")].clone();
    compare("lora", "lora = { rank = 4, alpha = 8.0 }", value);
}

#[test]
fn gradients_of_a_felix_spoke_are_those_of_pytorch() {
    let weights = tensors("train/adapters.safetensors");
    compare("felix", "felix = { spokes = 2, rank = 3 }", |name| weights[&format!("felix.{name}")].clone());
}

/// Three steps from the fixture's start, of parameters with such roles that the right optimiser
/// moves them.
fn moved(
    matrices: Matrices,
    role: fn(usize) -> Option<Role>,
    names: &[&str],
    adamw: AdamWConfig,
) -> Vec<Var> {
    let fixture = tensors("train/optimisers.safetensors");
    let mut parameters = Parameters::default();
    for (layer, name) in names.iter().enumerate() {
        let var = Var::from_tensor(&fixture[&format!("start.{name}")]).unwrap();
        parameters.insert(*name, role(layer), var).unwrap();
    }
    let muon = MuonConfig { lr: 0.02, momentum: 0.95, weight_decay: 0.1 };
    let mut optimiser = Optimiser::new(&parameters, Group::of_recipe(matrices, muon, adamw)).unwrap();
    for step in 0..3 {
        let gradients: Vec<Tensor> =
            names.iter().map(|name| fixture[&format!("grad.{step}.{name}")].clone()).collect();
        optimiser.step(&gradients, 1.0, &Workers::new(2).unwrap()).unwrap();
    }
    parameters.iter().map(|(_, var)| var.clone()).collect()
}

#[test]
fn optimisers_step_as_pytorchs_do() {
    let fixture = tensors("train/optimisers.safetensors");
    let adamw = AdamWConfig { lr: 0.01, weight_decay: 0.1, ..AdamWConfig::default() };
    let off = AdamWConfig { lr: 1e3, ..adamw };
    let rate = Some(adamw.lr);
    let (all, matrices) = (&["wide", "tall", "vector"][..], &["wide", "tall"][..]);
    let outside: fn(usize) -> Option<Role> = |_| None;
    let of_block: fn(usize) -> Option<Role> =
        |layer| Some(Role::Block { layer, part: Part::Weight(Projection::Up) });
    let of_ends: fn(usize) -> Option<Role> = |at| Some(if at == 0 { Role::Embedding } else { Role::Head });
    // Each group at the fixture's rate, by the general one and by its own.
    let cases = [
        ("adamw", Matrices::Muon, outside, all, adamw),
        ("muon", Matrices::Muon, of_block, matrices, adamw),
        ("adamw", Matrices::AdamW, of_block, all, adamw),
        ("adamw", Matrices::AdamW, of_block, matrices, AdamWConfig { matrix_lr: rate, ..off }),
        ("adamw", Matrices::Muon, of_ends, matrices, AdamWConfig { embedding_lr: rate, ..off }),
        ("adamw", Matrices::Muon, of_block, &["vector"], AdamWConfig { vector_lr: rate, ..off }),
    ];
    for (kind, who, role, names, config) in cases {
        for (name, found) in names.iter().zip(moved(who, role, names, config)) {
            assert_close(name, &found, &fixture[&format!("{kind}.{name}")], 1e-5);
        }
    }
}

#[test]
fn the_schedule_is_that_of_transformers() {
    let expected = tensors("train/optimisers.safetensors")["schedule"].to_vec1::<f64>().unwrap();
    let schedule = Schedule { steps: 40, warmup: 5, floor: 0.1 };
    for (at, expected) in expected.into_iter().enumerate() {
        let found = schedule.factor(at as u64 + 1);
        assert!((found - expected).abs() < 1e-12, "step {}: {found}, expected {expected}", at + 1);
    }
}
