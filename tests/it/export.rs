//! Tests of export and import: transformers' logits and gradients in Candle, the same logits in
//! llama.cpp, and the way back.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use bespoke::cli::export::{candle_logits, check, relative_difference};
use bespoke::gguf::Gguf;
use bespoke::model::safetensors_file::{SafetensorsFile, f32_values};
use bespoke::model::{
    BatchLayout, Decoder, DecoderConfig, Family, Model, NoTaps, Uniform, gguf_file, hugging_face, init,
};
use candle_core::{Device, Tensor};

const CASES: [&str; 4] = ["llama_gqa", "llama_tied", "llama3_rope", "qwen3_tied"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf").join(name)
}

/// Ids and logits `[ids, vocabulary]` that transformers computed.
fn expected(folder: &Path) -> (Vec<u32>, Vec<f32>) {
    let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ids =
        tensors.tensor("ids").unwrap().data().as_chunks().0.iter().map(|&b| u32::from_le_bytes(b)).collect();
    let file = SafetensorsFile::open(&folder.join("expected.safetensors")).unwrap();
    (ids, file.f32("logits").unwrap())
}

fn bespoke() -> Command {
    Command::cargo_bin("bespoke").unwrap()
}

fn assert_bit_equal(a: &Model, b: &Model) {
    assert_eq!(a.config, b.config);
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    assert_eq!(a.parameters.len(), b.parameters.len());
    for ((name, left), (other, right)) in a.parameters.iter().zip(b.parameters.iter()) {
        assert_eq!(name, other);
        assert_eq!(bits(f32_values(left).unwrap()), bits(f32_values(right).unwrap()), "{name}");
    }
}

#[test]
fn candle_computes_what_transformers_does() {
    for case in CASES {
        let folder = fixture(case);
        let model = hugging_face::load(&folder).unwrap();
        let (ids, logits) = expected(&folder);
        let found = candle_logits(&model, &ids).unwrap();
        let difference = relative_difference(&logits, &found).unwrap().0;
        assert!(difference <= 1e-4, "{case}: {difference:e}");
    }
}

#[test]
fn the_gradient_is_that_of_transformers() {
    for case in CASES {
        let folder = fixture(case);
        let model = hugging_face::load(&folder).unwrap();
        let (ids, _) = expected(&folder);
        let length = ids.len();
        let decoder = Decoder::new(model.config.clone(), &model.parameters).unwrap();
        let input = Tensor::from_slice(&ids, (1, length), &Device::Cpu).unwrap();
        let hidden = decoder.forward(&input, &BatchLayout::whole(1, length), &mut NoTaps).unwrap();
        let logits = decoder.logits(&hidden).unwrap().squeeze(0).unwrap().narrow(0, 0, length - 1).unwrap();
        let targets = Tensor::from_slice(&ids[1..], length - 1, &Device::Cpu).unwrap();
        let loss = candle_nn::loss::cross_entropy(&logits.contiguous().unwrap(), &targets).unwrap();
        let gradients = loss.backward().unwrap();
        let query = model.parameters.get("model.layers.0.self_attn.q_proj.weight").unwrap();
        let found = f32_values(gradients.get(query).unwrap()).unwrap();
        let file = SafetensorsFile::open(&folder.join("expected.safetensors")).unwrap();
        let loss_there = file.f32("loss").unwrap()[0];
        assert!((loss.to_scalar::<f32>().unwrap() - loss_there).abs() <= 1e-4 * loss_there, "{case}");
        let difference = relative_difference(&file.f32("gradient").unwrap(), &found).unwrap().0;
        assert!(difference <= 1e-3, "{case}: {difference:e}");
    }
}

#[test]
fn llama_cpp_computes_what_transformers_does_and_the_way_back_is_exact() {
    for case in CASES {
        let (folder, out) = (fixture(case), tempfile::tempdir().unwrap());
        let (gguf, back) = (out.path().join("model.gguf"), out.path().join("back"));
        let done = bespoke().arg("export").arg(&folder).arg(&gguf).assert().success();
        let text = String::from_utf8(done.get_output().stdout.clone()).unwrap();
        assert!(text.contains("max |difference| / max |logit|"), "{text}");

        // Compare with transformers itself, not with Candle as the command does.
        let (ids, logits) = expected(&folder);
        let reference = bespoke::engine::reference::Reference::open(&gguf).unwrap();
        let difference = relative_difference(&logits, &reference.logits(&ids).unwrap()).unwrap().0;
        assert!(difference <= 1e-3, "{case}: {difference:e}");

        bespoke().arg("import").arg(&gguf).arg(&back).assert().success();
        let (before, after) = (hugging_face::load(&folder).unwrap(), hugging_face::load(&back).unwrap());
        assert_bit_equal(&before, &after);
        assert_eq!(before.text.chat_template, after.text.chat_template);
        assert_eq!(before.text.ids, after.text.ids);
        // The tokenizer is rebuilt, not copied, and must read every text alike, control tokens
        // included.
        assert!(check(&after, &gguf).unwrap().max <= 1e-3);
        let again = out.path().join("again.gguf");
        gguf_file::export(&after, "model", &back, &again, gguf_file::Precision::F32).unwrap();
        let (first, second) = (Gguf::open(&gguf).unwrap(), Gguf::open(&again).unwrap());
        let rest = |file: &Gguf| {
            file.metadata().iter().filter(|(key, _)| key != "general.name").cloned().collect::<Vec<_>>()
        };
        assert_eq!(rest(&first), rest(&second), "{case}");
    }
}

#[test]
fn every_type_is_exported_within_its_bound() {
    let (folder, out) = (fixture("qwen3_tied"), tempfile::tempdir().unwrap());
    for kind in ["f16", "BF16", "Q8_0", "Q4_K_M", "Q5_0"] {
        let gguf = out.path().join(kind);
        bespoke().arg("export").arg(&folder).arg(&gguf).args(["--type", kind]).assert().success();
        assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1, "{kind}: nothing else is left");
        if kind == "Q8_0" {
            let file = Gguf::open(&gguf).unwrap();
            assert_eq!(file.tensor("blk.0.attn_q.weight").unwrap().kind.to_string(), "Q8_0");
            let (before, after) = (hugging_face::load(&folder).unwrap(), gguf_file::import(&gguf).unwrap());
            let name = "model.layers.1.mlp.down_proj.weight";
            let values = |model: &Model| f32_values(model.parameters.get(name).unwrap()).unwrap();
            // Half a step, where a step is 1/127 of a block's largest value.
            assert!(relative_difference(&values(&before), &values(&after)).unwrap().0 < 0.005);
        }
        std::fs::remove_file(&gguf).unwrap();
    }
}

/// A copy of a fixture that a test may damage.
fn copy(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

fn edit(folder: &Path, file: &str, change: impl FnOnce(&mut serde_json::Value)) {
    let path = folder.join(file);
    let mut value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    bespoke::atomic_file::write(&path, value.to_string().as_bytes()).unwrap();
}

/// The error message of a failed export. No file may be left.
fn failure(folder: &Path) -> String {
    let out = tempfile::tempdir().unwrap();
    let failed = bespoke().arg("export").arg(folder).arg(out.path().join("model.gguf")).assert().code(1);
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
    String::from_utf8(failed.get_output().stderr.clone()).unwrap()
}

#[test]
fn what_does_not_fit_is_refused_with_both_values() {
    let folder = copy("llama_gqa");
    edit(folder.path(), "config.json", |config| config["intermediate_size"] = 50.into());
    let message = failure(folder.path());
    assert!(message.contains("mlp.gate_proj.weight") && message.contains("[48, 32]"), "{message}");
    assert!(message.contains("expected [50, 32]"), "{message}");

    let folder = copy("llama_gqa");
    edit(folder.path(), "config.json", |config| config["num_hidden_layers"] = 4.into());
    let message = failure(folder.path());
    assert!(
        message.contains("model.layers.3.input_layernorm.weight\" is missing, expected shape [32]"),
        "{message}"
    );

    let folder = copy("llama_gqa");
    edit(folder.path(), "config.json", |config| config["num_hidden_layers"] = 2.into());
    let message = failure(folder.path());
    assert!(message.contains("model.layers.2.") && message.contains("no parameter"), "{message}");

    let folder = copy("qwen3_tied");
    edit(folder.path(), "config.json", |config| config["mlp_bias"] = true.into());
    let message = failure(folder.path());
    assert!(message.contains("key \"mlp_bias\" is true, expected false"), "{message}");

    let folder = copy("qwen3_tied");
    edit(folder.path(), "config.json", |config| config["attention_bias"] = true.into());
    let message = failure(folder.path());
    assert!(message.contains("self_attn.q_proj.bias\" is missing, expected shape [64]"), "{message}");
}

#[test]
fn a_tokenizer_that_llama_cpp_would_read_otherwise_is_refused() {
    type Damage = fn(&mut serde_json::Value);
    let cases: [(&str, Damage); 7] = [
        ("pre_tokenizer", |json| {
            json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\w+".into();
        }),
        ("normalizer", |json| json["normalizer"] = serde_json::json!({"type": "Lowercase"})),
        ("model.ignore_merges", |json| json["model"]["ignore_merges"] = true.into()),
        ("model.byte_fallback", |json| json["model"]["byte_fallback"] = true.into()),
        ("added_tokens.<|bos|>.rstrip", |json| json["added_tokens"][1]["rstrip"] = true.into()),
        ("model.vocab", |json| json["model"]["vocab"]["far"] = 320.into()),
        ("model.merges", |json| json["model"]["merges"][0] = "a b c".into()),
    ];
    for (key, damage) in cases {
        let folder = copy("llama_tied");
        edit(folder.path(), "tokenizer.json", damage);
        let message = failure(folder.path());
        assert!(message.contains("tokenizer.json") && message.contains(key), "{key}: {message}");
    }
}

#[test]
fn a_file_with_which_llama_cpp_computes_something_else_is_noticed() {
    let (folder, out) = (fixture("llama_tied"), tempfile::tempdir().unwrap());
    let mut model = hugging_face::load(&folder).unwrap();
    let gguf = out.path().join("model.gguf");
    gguf_file::export(&model, "x", &folder, &gguf, gguf_file::Precision::F32).unwrap();
    assert!(check(&model, &gguf).unwrap().max <= 1e-3);
    // A small mistake: a rotary base that is 5 % off.
    for block in &mut model.config.blocks {
        block.attention_mut().unwrap().rope_theta = 10_500.0;
    }
    assert!(check(&model, &gguf).unwrap().max > 1e-3);
}

/// A Llama of the fixture's vocabulary whose blocks have other widths and numbers of heads.
fn uneven(folder: &Path) -> Model {
    let Model { config, text, .. } = hugging_face::load(&fixture("llama_tied")).unwrap();
    let shape = Uniform {
        family: Family::Llama,
        vocab_size: config.vocab_size,
        hidden_size: 64,
        layers: 3,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        ffn: 96,
        rms_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        tied: true,
        max_position: 128,
    };
    let mut config = shape.config();
    (config.blocks[1].ffn.width, config.blocks[2].ffn.width) = (32, 160);
    let attention = config.blocks[1].attention_mut().unwrap();
    (attention.heads, attention.kv_heads) = (6, 3);
    let parameters = init::initialise(&config, 9).unwrap();
    let model = Model { config, parameters, text };
    hugging_face::save(folder, &model).unwrap();
    model
}

#[test]
fn blocks_of_other_widths_are_computed_by_llama_cpp_too() {
    let out = tempfile::tempdir().unwrap();
    let (folder, gguf) = (out.path().join("folder"), out.path().join("model.gguf"));
    let model = uneven(&folder);
    bespoke().arg("export").arg(&folder).arg(&gguf).assert().success();
    let file = Gguf::open(&gguf).unwrap();
    assert_eq!(file.get::<&str>("general.architecture").unwrap(), "deci");
    assert_eq!(file.get::<&[u32]>("deci.feed_forward_length").unwrap(), [96, 32, 160]);
    assert_eq!(file.get::<&[u32]>("deci.attention.head_count").unwrap(), [4, 6, 4]);
    assert_eq!(file.get::<&[u32]>("deci.attention.head_count_kv").unwrap(), [2, 3, 2]);

    let ids: Vec<u32> = (0..48).map(|at| (at * 37 + 11) % model.config.vocab_size as u32).collect();
    let reference = bespoke::engine::reference::Reference::open(&gguf).unwrap().logits(&ids).unwrap();
    let difference = relative_difference(&candle_logits(&model, &ids).unwrap(), &reference).unwrap().0;
    assert!(difference <= 1e-3, "{difference:e}");
    // Both ways back are exact.
    assert_bit_equal(&model, &hugging_face::load(&folder).unwrap());
    assert_bit_equal(&model, &gguf_file::import(&gguf).unwrap());
}

/// llama.cpp would read every block with the sizes of the first.
#[test]
fn blocks_that_llama_cpp_takes_for_alike_are_refused_by_key_and_block() {
    type Change = fn(&mut DecoderConfig);
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("model.gguf");
    let cases: [(&str, &str, Change); 3] = [
        ("qwen3_tied", "\"intermediate_size\" is 8 in block 1", |config| config.blocks[1].ffn.width = 8),
        ("qwen3_tied", "\"num_key_value_heads\" is 1 in block 1", |config| {
            config.blocks[1].attention_mut().unwrap().kv_heads = 1;
        }),
        ("llama_tied", "\"rope_theta\" is 7 in block 1", |config| {
            config.blocks[1].attention_mut().unwrap().rope_theta = 7.0;
        }),
    ];
    for (case, expected, change) in cases {
        let folder = fixture(case);
        let mut model = hugging_face::load(&folder).unwrap();
        change(&mut model.config);
        model.parameters = init::initialise(&model.config, 1).unwrap();
        let error = gguf_file::export(&model, case, &folder, &target, gguf_file::Precision::F32).unwrap_err();
        assert!(error.to_string().contains(expected) && !target.exists(), "{error}");
    }
}
