//! Tests the order and scale of values in GGUF files: weights, and the adapters that are added to
//! them, must use the same.

use std::path::Path;

use bespoke::adapter::{self, Format, Limits};
use bespoke::gguf::Gguf;
use bespoke::model::gguf_file;
use bespoke::model::safetensors_file::{NewTensor, SafetensorsFile, f32_values, write_tensors};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use crate::spoke_reference::{merge, post};

const RANK: usize = 4;
const ALPHA: f32 = 6.0;

/// Whether PEFT's adapters change this matrix of a block.
fn changes(name: &str) -> bool {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "out_proj"];
    let mixed = ["in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b"];
    linear.iter().chain(&mixed).any(|end| module.ends_with(end)) && name.ends_with(".weight")
}

/// Writes a random adapter for every matrix and returns its modules.
fn adapter(folder: &Path, shapes: &[(String, Vec<usize>)]) -> Vec<NewTensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let mut random = |count: usize| (0..count).map(|_| rng.random_range(-0.3..0.3)).collect::<Vec<f32>>();
    let mut tensors = Vec::new();
    for (name, shape) in shapes.iter().filter(|(name, _)| changes(name)) {
        let module = format!("base_model.model.{}", name.strip_suffix(".weight").unwrap());
        let (outputs, inputs) = (shape[0], shape[1]);
        for (end, shape) in [("lora_A", vec![RANK, inputs]), ("lora_B", vec![outputs, RANK])] {
            let values = random(shape.iter().product());
            tensors.push(NewTensor { name: format!("{module}.{end}.weight"), shape, values });
        }
    }
    let texts = [("format".to_owned(), "pt".to_owned())];
    write_tensors(&folder.join("adapter_model.safetensors"), &tensors, texts).unwrap();
    let mut targets: Vec<_> =
        tensors.iter().map(|tensor| tensor.name.rsplit('.').nth(2).unwrap().to_owned()).collect();
    targets.sort();
    targets.dedup();
    let config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "target_modules": targets,
        "bias": "none", "lora_dropout": 0.0, "fan_in_fan_out": false, "modules_to_save": null,
        "use_dora": false, "use_rslora": false,
    });
    bespoke::atomic_file::write(&folder.join("adapter_config.json"), config.to_string().as_bytes()).unwrap();
    tensors
}

#[test]
fn an_adapter_is_stored_as_the_weights_are_and_comes_back() {
    for case in ["llama_plain", "qwen2_gqa", "qwen3_gqa", "gemma2_scalar", "qwen35_usual", "qwen35_long"] {
        let (folder, peft) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (path, post) = post(case, folder.path());
        let model = gguf_file::import(&path).unwrap();
        let shapes = model.config.parameter_shapes();
        let tensors = adapter(peft.path(), &shapes);
        let [lora, merged, back] = ["lora.gguf", "merged.gguf", "back"].map(|name| folder.path().join(name));
        adapter::to_served(peft.path(), &lora, &post, &Limits::default()).unwrap();
        assert_eq!(Gguf::open(&lora).unwrap().tensors().len(), tensors.len(), "{case}");

        // Merged in llama.cpp's terms and imported, it must equal the merge in Hugging Face's
        // terms.
        merge(&path, &lora, &merged);
        let found = gguf_file::import(&merged).unwrap();
        for (name, shape) in shapes.iter().filter(|(name, _)| changes(name)) {
            let part = |end: &str| {
                let name = format!("base_model.model.{}.{end}.weight", name.strip_suffix(".weight").unwrap());
                &tensors.iter().find(|tensor| tensor.name == name).unwrap().values
            };
            let (a, b) = (part("lora_A"), part("lora_B"));
            let mut expected = f32_values(model.parameters.get(name).unwrap()).unwrap();
            for (at, weight) in expected.iter_mut().enumerate() {
                let (row, column) = (at / shape[1], at % shape[1]);
                let product: f32 = (0..RANK).map(|k| b[row * RANK + k] * a[k * shape[1] + column]).sum();
                *weight += ALPHA / RANK as f32 * product;
            }
            let found = f32_values(found.parameters.get(name).unwrap()).unwrap();
            let off = expected.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 1e-5, "{case}: {name}: {off}");
        }

        adapter::convert(&lora, &back, Format::PeftFolder, Some(&post), &Limits::default()).unwrap();
        let back = SafetensorsFile::open(&back.join("adapter_model.safetensors")).unwrap();
        for tensor in &tensors {
            let found = back.f32(&tensor.name).unwrap();
            let off = tensor.values.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 1e-6, "{case}: {}: {off}", tensor.name);
        }
    }
}

/// Without the post, the order of its rows is unknown.
#[test]
fn the_way_back_of_reordered_rows_needs_the_post() {
    for case in ["llama_plain", "gemma2_scalar", "qwen35_long"] {
        let (folder, peft) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (path, post) = post(case, folder.path());
        adapter(peft.path(), &gguf_file::import(&path).unwrap().config.parameter_shapes());
        let [lora, back] = ["lora.gguf", "back"].map(|name| folder.path().join(name));
        adapter::to_served(peft.path(), &lora, &post, &Limits::default()).unwrap();
        let refusal =
            adapter::convert(&lora, &back, Format::PeftFolder, None, &Limits::default()).unwrap_err();
        assert_eq!(refusal.code(), "post_needed", "{case}: {refusal}");
    }
}
