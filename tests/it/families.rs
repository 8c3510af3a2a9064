//! Every architecture against transformers (logits, the gradient of every parameter) and against llama.cpp (its converter's keys and
//! tensors, its logits); fixtures by tests/tools/family_reference.py.

use std::path::{Path, PathBuf};

use bespoke::cli::export::{candle_logits, relative_difference};
use bespoke::model::safetensors_file::{SafetensorsFile, f32_values};
use bespoke::model::{BatchLayout, Decoder, Model, NoTaps, hugging_face};
use candle_core::{Device, Tensor};

/// Where the fixtures are; another folder, made with other seeds, may be tried through the environment.
fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
    std::env::var_os("BESPOKE_FAMILIES_DIR").map_or(own, PathBuf::from)
}

/// Names of all cases, in order.
fn cases() -> Vec<String> {
    let entries = std::fs::read_dir(root()).unwrap().map(|entry| entry.unwrap());
    let mut names: Vec<_> = entries
        .filter(|entry| entry.path().join("config.json").exists())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.len() >= 10, "too few cases in {}", root().display());
    names
}

/// The kind of tokenizer that a case goes with.
fn tokenizer(case: &str) -> PathBuf {
    let kind = match case.split('_').next().unwrap() {
        "llama" => "llama3",
        "qwen2" | "qwen3" => "qwen2",
        other => other,
    };
    root().join("tokenizers").join(kind)
}

/// A case as a folder that is complete: with its tokenizer.
fn complete(case: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for source in [root().join(case), tokenizer(case)] {
        for entry in std::fs::read_dir(source).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
    }
    folder
}

/// What transformers computed.
struct Expected {
    file: SafetensorsFile,
    ids: Vec<u32>,
}

impl Expected {
    fn open(case: &str) -> Self {
        let path = root().join(case).join("expected.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let ids = tensors.tensor("ids").unwrap();
        let ids = ids.data().as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect();
        Self { file: SafetensorsFile::open(&path).unwrap(), ids }
    }

    fn values(&self, name: &str) -> Vec<f32> {
        self.file.f32(name).unwrap()
    }
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| value.abs().max(largest))
}

#[test]
fn logits_are_those_of_transformers() {
    for case in cases() {
        let model = hugging_face::load(complete(&case).path()).unwrap();
        let expected = Expected::open(&case);
        let found = candle_logits(&model, &expected.ids).unwrap();
        let difference = relative_difference(&expected.values("logits"), &found).unwrap().0;
        assert!(difference <= 1e-4, "{case}: {difference:e}");
    }
}

/// The gradient of every parameter for the mean loss of predicting each token from those before it.
fn gradients(model: &Model, ids: &[u32], what: &str) -> (f32, Vec<(String, Vec<f32>)>) {
    let decoder = Decoder::new(model.config.clone(), &model.parameters).unwrap();
    let length = ids.len();
    let input = Tensor::from_slice(ids, (1, length), &Device::Cpu).unwrap();
    let hidden = decoder.forward(&input, &BatchLayout::whole(1, length), &mut NoTaps).unwrap();
    let hidden = hidden.squeeze(0).unwrap().narrow(0, 0, length - 1).unwrap();
    let loss = decoder.loss(&hidden, ids[1..].to_vec(), 1.0 / (length - 1) as f32, true).unwrap().loss;
    let store = loss.backward().unwrap();
    let gradient = |(name, var): (&str, &candle_core::Var)| {
        let gradient = store.get(var).unwrap_or_else(|| panic!("{what}: {name} has no gradient"));
        (name.to_owned(), f32_values(gradient).unwrap())
    };
    (loss.to_scalar().unwrap(), model.parameters.iter().map(gradient).collect())
}

#[test]
fn the_gradient_of_every_parameter_is_that_of_transformers() {
    for case in cases() {
        let model = hugging_face::load(complete(&case).path()).unwrap();
        let expected = Expected::open(&case);
        let (loss, gradients) = gradients(&model, &expected.ids, &case);
        let loss_there = expected.values("loss")[0];
        assert!((loss - loss_there).abs() <= 1e-4 * loss_there.abs(), "{case}: loss {loss}, {loss_there}");
        let there: Vec<_> = gradients.iter().map(|(name, _)| expected.values(&format!("gradient.{name}"))).collect();
        let scale = there.iter().map(|values| largest(values)).fold(0.0, f32::max);
        for ((name, found), expected) in gradients.iter().zip(&there) {
            assert_eq!(found.len(), expected.len(), "{case}: {name}");
            let difference: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
            // Some gradients are zero but for rounding: measured by the largest one then.
            let bound = 1e-3 * largest(expected).max(1e-4 * scale);
            let difference = largest(&difference);
            assert!(difference <= bound, "{case}: {name}: {difference:e}, at most {bound:e}");
            assert!(found.iter().all(|value| value.is_finite()), "{case}: {name}");
        }
    }
}
