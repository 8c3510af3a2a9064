//! Training in bf16 with f32 master weights: the code path of a GPU, run on the CPU.

use candle_core::{DType, Device, Tensor};

use super::gradient::tests::adapter_of;
use super::gradient::{Outcome, accumulate};
use super::objective::{StepContext, Student};
use super::optimiser::{AdamWConfig, Group, Matrices, MuonConfig, Optimiser};
use super::tests::{content, model, packed, run, small_run, tokenizer};
use super::{checkpoint, log};
use crate::device::Workers;
use crate::model::{Decoder, Family};

/// Cosine of the gradients of two outcomes, each as one vector.
fn cosine(a: &Outcome, b: &Outcome) -> f64 {
    let product = |a: &Outcome, b: &Outcome| -> f64 {
        let pairs = a.gradients.iter().zip(&b.gradients);
        pairs.map(|(a, b)| f64::from((a * b).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap())).sum()
    };
    product(a, b) / (product(a, a) * product(b, b)).sqrt()
}

fn bits(outcome: &Outcome) -> Vec<u32> {
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    outcome.gradients.iter().flat_map(values).map(f32::to_bits).collect()
}

#[test]
fn gradients_of_every_family_point_where_those_of_f32_do() {
    for family in Family::ALL {
        let (decoder, parameters) = model(family, family != Family::Llama, tokenizer().vocab_size());
        let workers = Workers::new(1).unwrap();
        let run = |decoder: Decoder| {
            accumulate(&workers, &decoder, StepContext::default(), Some(&parameters), &packed(2), 192)
                .unwrap()
        };
        let (wide, narrow) = (run(decoder.clone()), run(decoder.clone().computing_in(DType::BF16)));
        assert!(
            (wide.loss - narrow.loss).abs() < 0.01 * wide.loss,
            "{family:?}: {} {}",
            wide.loss,
            narrow.loss
        );
        assert!(narrow.gradients.iter().all(|gradient| gradient.dtype() == DType::F32), "{family:?}");
        let cosine = cosine(&wide, &narrow);
        assert!(cosine > 0.995, "{family:?}: cosine {cosine}");
        let again = run(decoder.computing_in(DType::BF16).recomputing(true));
        assert!(bits(&again) == bits(&narrow), "{family:?}: recomputed blocks differ");
    }
}

#[test]
fn adapters_learn_beside_a_frozen_base_of_bf16() {
    for recipe in [
        "lora = { rank = 3, alpha = 6.0, targets = [\"q_proj\", \"down_proj\", \"out_proj\"] }",
        "felix = { spokes = 2, rank = 3 }",
    ] {
        let (decoder, whole) = model(Family::Qwen3_5, true, tokenizer().vocab_size());
        let config = decoder.config().clone();
        let (adapter, trained) = adapter_of(recipe, &config);
        let run = |dtype, recompute| {
            let whole = whole.to(&Device::Cpu, dtype).unwrap();
            let decoder = Decoder::frozen(config.clone(), &whole).unwrap().computing_in(dtype);
            let decoder = decoder.recomputing(recompute);
            let student = Student { decoder: &decoder, adapter: Some(&adapter), effect: None };
            accumulate(
                &Workers::new(1).unwrap(),
                &student,
                StepContext::default(),
                Some(&trained),
                &packed(1),
                96,
            )
            .unwrap()
        };
        let (wide, narrow) = (run(DType::F32, false), run(DType::BF16, false));
        let cosine = cosine(&wide, &narrow);
        assert!(cosine > 0.98, "{recipe:?}: cosine {cosine}");
        assert!(bits(&run(DType::BF16, true)) == bits(&narrow), "{recipe:?}: recomputed blocks differ");
    }
}

#[test]
fn the_loss_follows_that_of_f32() {
    let losses = |dtype| -> Vec<f64> {
        let (decoder, parameters) = model(Family::Llama, true, tokenizer().vocab_size());
        let decoder = decoder.computing_in(dtype);
        let workers = Workers::new(1).unwrap();
        let adamw = AdamWConfig { lr: 1e-2, ..Default::default() };
        let groups = Group::of_recipe(Matrices::Muon, MuonConfig::default(), adamw);
        let mut optimiser = Optimiser::new(&parameters, groups).unwrap();
        let step = |step| {
            let outcome =
                accumulate(&workers, &decoder, StepContext::default(), Some(&parameters), &packed(step), 192)
                    .unwrap();
            optimiser.step(&outcome.gradients, 1.0, &workers).unwrap();
            outcome.loss
        };
        (1..=60).map(step).collect()
    };
    let (wide, narrow) = (losses(DType::F32), losses(DType::BF16));
    // Different rounding makes two runs drift apart: at first their losses are equal, later
    // equally good.
    for (step, (wide, narrow)) in wide.iter().zip(&narrow).enumerate().take(20) {
        assert!((wide - narrow).abs() < 0.02 * wide, "step {step}: {wide} in f32, {narrow} in bf16");
    }
    let [of_wide, of_narrow] = [&wide, &narrow].map(|losses| losses[40..].iter().sum::<f64>());
    assert!((of_wide - of_narrow).abs() < 0.04 * of_wide, "{wide:?} in f32, {narrow:?} in bf16");
    assert!(narrow[59] < 0.4 * narrow[0], "{narrow:?}");
}

#[test]
fn a_resumed_run_in_bf16_ends_as_an_uninterrupted_one_and_goes_on_in_f32() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let recipe = small_run(folder.path(), &["train.precision=bf16", "train.recompute=true"]);
    run(&recipe, &one, false).unwrap();
    run(&recipe, &two, false).unwrap();
    fs_err::remove_dir_all(two.join("checkpoints/6")).unwrap();
    fs_err::remove_file(two.join("model.safetensors")).unwrap();
    run(&recipe, &two, true).unwrap();
    for ((name, expected), (_, found)) in content(&one, 6).iter().zip(&content(&two, 6)) {
        assert!(expected == found, "{name} differs");
    }
    // The master weights are saved.
    let saved = checkpoint::Checkpoint::load(&two.join("checkpoints/6"), &recipe).unwrap();
    assert!(saved.weights.values().all(|weight| weight.dtype() == DType::F32));
    // On another device the run continues in the type of that device.
    let longer = small_run(folder.path(), &["train.precision=f32", "train.steps=8"]);
    run(&longer, &two, true).unwrap();
    let losses: Vec<f64> = log::read(&two).unwrap().iter().map(|step| step.loss).collect();
    assert!(losses.len() == 8 && losses[7] < losses[0], "{losses:?}");
}
