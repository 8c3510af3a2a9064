//! Tests of every architecture against transformers (logits and the gradient of every parameter)
//! and against llama.cpp (its converter's keys and tensors, and its logits). The fixtures are made
//! by tests/tools/family_reference.py.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bespoke::cli::export::{candle_logits, relative_difference};
use bespoke::engine::reference::Reference;
use bespoke::gguf::{Array, Gguf, Value};
use bespoke::model::safetensors_file::{SafetensorsFile, f32_values};
use bespoke::model::{BatchLayout, Decoder, Family, Model, NoTaps, TextSide, gguf_file, hugging_face};
use bespoke::text::tokenizer::Tokenizer;
use candle_core::{Device, Tensor};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tokenizers::Normalizer;

/// Folder of the fixtures. The environment may name another folder, made with other seeds.
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

/// The kind of tokenizer that a case uses.
fn tokenizer(case: &str) -> PathBuf {
    let kind = match case.split('_').next().unwrap() {
        "llama" => "llama3",
        "qwen2" | "qwen3" => "qwen2",
        other => other,
    };
    root().join("tokenizers").join(kind)
}

/// A case as a complete folder, with its tokenizer.
pub fn complete(case: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for source in [root().join(case), tokenizer(case)] {
        for entry in std::fs::read_dir(source).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
    }
    folder
}

/// Results that transformers computed.
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

/// The gradient of every parameter for the mean loss of next-token prediction.
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
        let there: Vec<_> =
            gradients.iter().map(|(name, _)| expected.values(&format!("gradient.{name}"))).collect();
        let scale = there.iter().map(|values| largest(values)).fold(0.0, f32::max);
        for ((name, found), expected) in gradients.iter().zip(&there) {
            assert_eq!(found.len(), expected.len(), "{case}: {name}");
            let difference: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
            // Some gradients are zero except for rounding, so measure them by the largest one.
            let bound = 1e-3 * largest(expected).max(1e-4 * scale);
            let difference = largest(&difference);
            assert!(difference <= bound, "{case}: {name}: {difference:e}, at most {bound:e}");
            assert!(found.iter().all(|value| value.is_finite()), "{case}: {name}");
        }
    }
}

/// The key that prevents a case's export to GGUF, if any.
fn refused(case: &str) -> Option<String> {
    let folder = complete(case);
    let model = hugging_face::load(folder.path()).unwrap();
    let target = folder.path().join("model.gguf");
    let error = gguf_file::export(&model, case, folder.path(), &target, gguf_file::Precision::F32).err()?;
    assert!(!target.exists());
    let message = error.to_string();
    assert!(message.contains("config.json") && message.contains("llama.cpp"), "{case}: {message}");
    assert!(error.hint().is_some_and(|hint| hint.contains("trained")), "{case}");
    match error {
        bespoke::model::FileError::Key { key, .. } => Some(key),
        other => panic!("{case}: {other}"),
    }
}

/// A case as a GGUF file, which lives as long as the folder.
pub fn export(case: &str, precision: gguf_file::Precision) -> (tempfile::TempDir, PathBuf) {
    let folder = complete(case);
    let model = hugging_face::load(folder.path()).unwrap();
    let target = folder.path().join("model.gguf");
    gguf_file::export(&model, case, folder.path(), &target, precision).unwrap();
    (folder, target)
}

#[test]
fn llama_cpp_computes_what_transformers_does() {
    for case in cases().iter().filter(|case| refused(case).is_none()) {
        let (_folder, gguf) = export(case, gguf_file::Precision::F32);
        let expected = Expected::open(case);
        let found = Reference::open(&gguf).unwrap().logits(&expected.ids).unwrap();
        let difference = relative_difference(&expected.values("logits"), &found).unwrap().0;
        // llama.cpp's GELU on the CPU is a table of f16 values.
        let bound = if case.contains("random") && case.starts_with("gemma2") { 5e-3 } else { 1e-3 };
        assert!(difference <= bound, "{case}: {difference:e}");
    }
}

#[test]
fn what_llama_cpp_does_not_compute_is_refused_by_name() {
    let found: Vec<_> = cases().into_iter().filter_map(|case| Some((refused(&case)?, case))).collect();
    if std::env::var_os("BESPOKE_FAMILIES_DIR").is_none() {
        let expected = [
            ("tie_word_embeddings", "gemma2_no_caps"),
            ("sliding_window", "qwen2_window"),
            ("attention_bias", "qwen35_biases"),
            ("attention_bias", "qwen3_biases"),
        ];
        assert_eq!(found, expected.map(|(key, case)| (key.to_owned(), case.to_owned())));
    }
    assert!(found.len() * 2 <= cases().len(), "{found:?}");
}

/// A metadata value as JSON (floats as llama.cpp's own reader prints them), and its type in the
/// converter's terms.
fn described(value: &Value) -> (Vec<&'static str>, serde_json::Value) {
    macro_rules! list {
        ($kind:literal, $values:expr) => {
            (vec!["ARRAY", $kind], json!($values))
        };
    }
    match value {
        Value::U32(n) => (vec!["UINT32"], json!(n)),
        Value::F32(n) => (vec!["FLOAT32"], json!(f64::from(*n))),
        Value::Bool(flag) => (vec!["BOOL"], json!(flag)),
        Value::String(text) => (vec!["STRING"], json!(text)),
        Value::Array(Array::I32(values)) => list!("INT32", values),
        Value::Array(Array::F32(values)) => list!("FLOAT32", values),
        Value::Array(Array::Bool(values)) => list!("BOOL", values),
        Value::Array(Array::String(values)) => list!("STRING", values),
        other => panic!("a type that no key of the converter has: {}", other.type_name()),
    }
}

fn json_of(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn keys_types_and_tensors_are_those_of_llama_cpps_converter() {
    let mut compared = 0;
    for case in cases().iter().filter(|case| refused(case).is_none()) {
        let reference = root().join(case).join("gguf.json");
        if !reference.exists() {
            continue;
        }
        compared += 1;
        let reference = json_of(&reference);
        let lists = json_of(&tokenizer(case).join("gguf.json"));
        let (_folder, path) = export(case, gguf_file::Precision::F32);
        let file = Gguf::open(&path).unwrap();
        let mut ours: BTreeMap<&str, &Value> =
            file.metadata().iter().map(|(key, value)| (key.as_str(), value)).collect();
        for (key, there) in reference["f32"]["keys"].as_object().unwrap() {
            let found = ours.remove(key.as_str()).unwrap_or_else(|| panic!("{case}: {key} is missing"));
            let (kind, value) = described(found);
            assert_eq!(json!(kind), there["type"], "{case}: {key}");
            let expected =
                lists.get(key).filter(|_| there["value"]["length"].is_u64()).unwrap_or(&there["value"]);
            // The name is the folder's. For SentencePiece, the tokens of runs of spaces and all
            // scores are ours.
            let spaces = case.starts_with("gemma2") && key.starts_with("tokenizer.ggml.");
            // The converter writes sections that abort llama.cpp if heads are small.
            let sections = key == "qwen35.rope.dimension_sections" && value != *expected;
            if sections {
                let total: u64 =
                    expected.as_array().unwrap().iter().filter_map(serde_json::Value::as_u64).sum();
                let fits = total <= file.get::<u32>("qwen35.attention.key_length").unwrap().into();
                assert!(!fits || expected != &json!([11, 11, 10, 0]), "{case}: {value}");
            } else if key != "general.name" && !(spaces && expected.as_array().is_some()) {
                assert_eq!(&value, expected, "{case}: {key}");
            } else if let Some(expected) = expected.as_array() {
                assert_eq!(value.as_array().unwrap().len(), expected.len(), "{case}: {key}");
            }
        }
        // Keys that an import needs and llama.cpp ignores.
        ours.retain(|key, _| !key.starts_with("bespoke."));
        // The converter can't express where windows are.
        ours.remove("gemma2.attention.sliding_window_pattern");
        // Nor a rotary base other than the usual one.
        if json_of(&root().join(case).join("config.json"))["rope_parameters"]["rope_theta"] != 10_000.0 {
            ours.remove("gemma2.rope.freq_base");
        }
        assert!(ours.is_empty(), "{case}: further keys: {:?}", ours.keys());

        let dims = |file: &Gguf| -> BTreeMap<String, serde_json::Value> {
            let describe = |tensor: &bespoke::gguf::TensorInfo| json!([tensor.kind.to_string(), tensor.dims]);
            file.tensors().iter().map(|tensor| (tensor.name.clone(), describe(tensor))).collect()
        };
        assert_eq!(json!(dims(&file)), reference["f32"]["tensors"], "{case}");
        let (_folder, path) = export(case, gguf_file::Precision::F16);
        let half = Gguf::open(&path).unwrap();
        let kinds: BTreeMap<_, _> = half.tensors().iter().map(|t| (&t.name, t.kind.to_string())).collect();
        assert_eq!(json!(kinds), reference["f16"]["tensors"], "{case}");
        let kind: u32 = half.get("general.file_type").unwrap();
        assert_eq!(json!(kind), reference["f16"]["general.file_type"]);
    }
    assert!(compared >= 8, "only {compared} cases have a reference");
}

/// Maximum error of a parameter after export and import: what `1 + w` and `exp` lose in f32.
fn lost(name: &str) -> f32 {
    if name.contains("norm") || name.ends_with("A_log") || name.ends_with("q_proj.weight") {
        3e-7
    } else {
        0.0
    }
}

#[test]
fn the_way_to_gguf_and_back_changes_nothing() {
    for case in cases().iter().filter(|case| refused(case).is_none()) {
        let (folder, path) = export(case, gguf_file::Precision::F32);
        let before = hugging_face::load(folder.path()).unwrap();
        let out = tempfile::tempdir().unwrap();
        hugging_face::save(out.path(), &gguf_file::import(&path).unwrap()).unwrap();
        let after = hugging_face::load(out.path()).unwrap();
        let mut config = after.config.clone();
        // An export always has some; text doesn't depend on them.
        config.features.rotary_sections.clone_from(&before.config.features.rotary_sections);
        assert_eq!(config, before.config, "{case}");
        assert_eq!(after.text.ids, before.text.ids, "{case}");
        assert_eq!(after.text.chat_template, before.text.chat_template, "{case}");
        let exact = matches!(before.config.family, Family::Llama | Family::Qwen2 | Family::Qwen3);
        for (name, var) in before.parameters.iter() {
            let (a, b) = (f32_values(var).unwrap(), f32_values(after.parameters.get(name).unwrap()).unwrap());
            let bound = if exact { 0.0 } else { lost(name) * largest(&a).max(1.0) };
            let difference = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(difference <= bound, "{case}: {name}: {difference:e}");
        }
        // The logits must agree, too.
        let expected = Expected::open(case);
        let found = candle_logits(&after, &expected.ids).unwrap();
        let difference = relative_difference(&expected.values("logits"), &found).unwrap().0;
        assert!(difference <= 1e-4, "{case}: {difference:e}");
    }
}

/// One case for each kind of tokenizer, with texts that contain its markers and added tokens.
const TOKENIZERS: [(&str, &[&str]); 4] = [
    ("llama_plain", &["<|eot_id|>", "<|begin_of_text|>", "1234567", "'Re"]),
    ("qwen2_gqa", &["<|im_end|>", "<think>", "<|fim_prefix|>", "e\u{301}", "\u{1100}\u{1161}"]),
    ("qwen35_long", &["<|im_start|>", "<think>", "<|fim_prefix|>", "हिन्दी", "e\u{301}x"]),
    (
        "gemma2_usual",
        &["<end_of_turn>", "<unused0>", "<mask>", "\n\n\n\n\n", "       ", "the", "\t", "<0x41>"],
    ),
];

/// A text as the tokenizer's normaliser leaves it. llama.cpp has no Unicode normalisation, but
/// reads normalised text alike.
pub fn normal_form(tokenizer: &Tokenizer, text: &str) -> String {
    match tokenizer.inner().get_normalizer() {
        Some(tokenizers::NormalizerWrapper::NFC(form)) => {
            let mut normal = tokenizers::NormalizedString::from(text);
            form.normalize(&mut normal).unwrap();
            normal.get().to_owned()
        }
        _ => text.to_owned(),
    }
}

fn loaded(text: &TextSide) -> Tokenizer {
    let bytes = serde_json::to_vec(&text.tokenizer).unwrap();
    Tokenizer::new(tokenizers::Tokenizer::from_bytes(bytes).unwrap())
}

/// Awkward texts with these pieces in between.
fn texts(rng: &mut ChaCha8Rng, pieces: &[&str], count: usize) -> Vec<String> {
    let one = |rng: &mut ChaCha8Rng| {
        let piece = |rng: &mut ChaCha8Rng| pieces.choose(rng).unwrap().to_string();
        (0..rng.random_range(1..4)).map(|_| crate::tokenizer::text(rng) + &piece(rng)).collect::<String>()
    };
    (0..count).map(|_| one(rng)).collect()
}

fn assert_same_ids(what: &str, text: &TextSide, gguf: &Path, pieces: &[&str]) {
    let reference = Reference::open(gguf).unwrap();
    let (ours, back) = (loaded(text), loaded(&gguf_file::import(gguf).unwrap().text));
    let mut plain = tokenizers::Tokenizer::from_bytes(serde_json::to_vec(&text.tokenizer).unwrap()).unwrap();
    plain.set_encode_special_tokens(false);
    let mut rng = ChaCha8Rng::seed_from_u64(21);
    for text in texts(&mut rng, pieces, 400) {
        let normal = normal_form(&ours, &text);
        let ids = ours.encode(&text).unwrap();
        assert_eq!(ids, reference.tokenize(&normal, false), "{what}: llama.cpp reads {text:?} otherwise");
        assert_eq!(ids, back.encode(&text).unwrap(), "{what}: the import reads {text:?} otherwise");
        // As tokenizers itself reads markers in a text.
        let marked = plain.encode_fast(text.as_str(), false).unwrap().get_ids().to_vec();
        assert_eq!(marked, reference.tokenize(&normal, true), "{what}: markers in {text:?}");
    }
    let around = |tokenizer: &Tokenizer| tokenizer.inner().encode("x", true).unwrap().get_ids().to_vec();
    assert_eq!(around(&ours), around(&back), "{what}");
}

#[test]
fn awkward_texts_have_the_same_tokens_everywhere() {
    for (case, pieces) in TOKENIZERS {
        if !root().join(case).exists() {
            continue; // another folder of cases
        }
        let (folder, gguf) = export(case, gguf_file::Precision::F32);
        let text = hugging_face::load(folder.path()).unwrap().text;
        assert_same_ids(case, &text, &gguf, pieces);
    }
}

/// llama.cpp aborts on such a file, so an export must refuse to write it.
#[test]
fn a_gemma_without_windows_makes_no_gguf_file() {
    let case = "gemma2_usual";
    if !root().join(case).exists() {
        return; // another folder of cases
    }
    let folder = complete(case);
    let mut model = hugging_face::load(folder.path()).unwrap();
    for block in &mut model.config.blocks {
        block.attention_mut().unwrap().window = None;
    }
    let target = folder.path().join("model.gguf");
    let error =
        gguf_file::export(&model, case, folder.path(), &target, gguf_file::Precision::F32).unwrap_err();
    assert!(error.to_string().contains("\"layer_types\"") && !target.exists(), "{error}");
}

#[test]
fn pieces_with_merges_of_their_own_keep_them() {
    // A vocabulary of Gemma's form whose merges come from a trainer, one way to each token.
    let (case, pieces) = TOKENIZERS[3];
    if !root().join(case).exists() {
        return; // another folder of cases
    }
    let folder = complete(case);
    let mut model = hugging_face::load(folder.path()).unwrap();
    let merges = model.text.tokenizer["model"]["merges"].as_array_mut().unwrap();
    let mut seen = std::collections::HashSet::new();
    merges
        .retain(|merge| seen.insert(format!("{}{}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap())));
    let gguf = folder.path().join("model.gguf");
    gguf_file::export(&model, case, folder.path(), &gguf, gguf_file::Precision::F32).unwrap();
    let file = Gguf::open(&gguf).unwrap();
    assert_eq!(file.get::<&str>("tokenizer.ggml.model").unwrap(), "gemma4");
    assert_same_ids("merges", &model.text, &gguf, pieces);
}
