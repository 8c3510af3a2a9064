//! Tests of spokes against PEFT and torch: a file must compute what its trainer computed
//! (`tests/tools/peft_reference.py`).

use std::path::{Path, PathBuf};

use bespoke::adapter::felix::Trained;
use bespoke::adapter::{self, Adapter, Format, Limits, Post, Spoke};
use bespoke::cli::export::{candle_logits, relative_difference};
use bespoke::engine::reference::Reference;
use bespoke::gguf::{GgmlType, Gguf, TensorInfo, Writer};
use bespoke::model::gguf_file::{self, Precision};
use bespoke::model::safetensors_file::SafetensorsFile;
use bespoke::model::{BatchLayout, Context, Decoder, FileError, Point, Taps, hugging_face};
use candle_core::{Device, Tensor};

use crate::families::complete;

fn fixture(name: &str) -> PathBuf {
    Path::new("tests/fixtures/spokes").join(name)
}

/// A model of `tests/fixtures/hf` or `tests/fixtures/families` as a GGUF file, and its facts.
pub fn post(name: &str, folder: &Path) -> (PathBuf, Post) {
    let source = Path::new("tests/fixtures/hf").join(name);
    let complete = (!source.exists()).then(|| complete(name));
    let source = complete.as_ref().map_or(source.as_path(), |complete| complete.path());
    let path = folder.join(format!("{name}.gguf"));
    let model = hugging_face::load(source).unwrap();
    gguf_file::export(&model, name, source, &path, Precision::F32).unwrap();
    let post = Post::open(&path).unwrap();
    (path, post)
}

/// Ids, logits of the model alone, and logits with the adapter.
fn expected(name: &str) -> (Vec<u32>, Vec<f32>, Vec<f32>) {
    let path = fixture(name).join("expected.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ids = tensors.tensor("ids").unwrap().data().as_chunks().0.iter().map(|&b| u32::from_le_bytes(b));
    let file = SafetensorsFile::open(&path).unwrap();
    (ids.collect(), file.f32("base").unwrap(), file.f32("logits").unwrap())
}

fn assert_agree(what: &str, expected: &[f32], found: &[f32]) {
    assert_agree_within(1e-4, what, expected, found);
}

fn assert_agree_within(bound: f32, what: &str, expected: &[f32], found: &[f32]) {
    let difference = relative_difference(expected, found).unwrap().0;
    assert!(difference <= bound, "{what}: {difference:e}");
}

/// Adds `alpha / r B A` to the weights of a post in llama.cpp's terms. Nothing here depends on
/// Hugging Face's order of rows.
pub fn merge(post: &Path, lora: &Path, target: &Path) {
    let (post, lora) = (Gguf::open(post).unwrap(), Gguf::open(lora).unwrap());
    let alpha: f32 = lora.get("adapter.lora.alpha").unwrap();
    let mut writer = Writer::new();
    for (key, value) in post.metadata() {
        writer.set(key.clone(), value.clone());
    }
    for tensor in post.tensors() {
        writer.tensor(tensor.name.clone(), &tensor.dims, GgmlType::F32);
    }
    let mut changed = 0;
    let data = |tensor: &TensorInfo| {
        let mut weights = post.tensor_f32(&tensor.name)?;
        if let Some(a_info) = lora.tensor(&format!("{}.lora_a", tensor.name)) {
            changed += 1;
            let a = lora.tensor_f32(&a_info.name)?;
            let b = lora.tensor_f32(&format!("{}.lora_b", tensor.name))?;
            let [inputs, outputs] = [tensor.dims[0] as usize, tensor.dims[1] as usize];
            let embedding = tensor.name == "token_embd.weight";
            let rank = a_info.dims[usize::from(!embedding)] as usize;
            for row in 0..outputs {
                for column in 0..inputs {
                    // The embedding's A has one row per token.
                    let product = |k: usize| {
                        if embedding {
                            a[row * rank + k] * b[column * rank + k]
                        } else {
                            b[row * rank + k] * a[k * inputs + column]
                        }
                    };
                    weights[row * inputs + column] +=
                        alpha / rank as f32 * (0..rank).map(product).sum::<f32>();
                }
            }
        }
        Ok::<_, FileError>(weights.iter().flat_map(|w| w.to_le_bytes()).collect())
    };
    writer.write(target, data).unwrap();
    assert_eq!(changed * 2, lora.tensors().len());
}

#[test]
fn a_converted_peft_adapter_gives_the_logits_of_peft() {
    let folder = tempfile::tempdir().unwrap();
    for (name, base, pairs) in [
        ("lora", "llama_gqa", 21),
        ("rslora", "llama_gqa", 7),
        ("embedding", "llama_gqa", 4),
        ("qwen3", "qwen3_tied", 14),
        ("qwen2", "qwen2_gqa", 14),
        ("gemma2", "gemma2_usual", 21),
    ] {
        let (post_path, post) = post(base, folder.path());
        let lora = folder.path().join(format!("{name}.lora.gguf"));
        let spoke = adapter::to_served(&fixture(name), &lora, &post, &Limits::default()).unwrap();
        let Spoke { format: Format::LoraGguf, adapter: Adapter::Lora(facts), .. } = &spoke else {
            panic!("{name}: {spoke:?}");
        };
        assert_eq!(facts.targets.len(), pairs, "{name}");
        let merged = folder.path().join("merged.gguf");
        merge(&post_path, &lora, &merged);
        let (ids, alone, logits) = expected(name);
        let model = gguf_file::import(&post_path).unwrap();
        assert_agree(&format!("{base} alone"), &alone, &candle_logits(&model, &ids).unwrap());
        let model = gguf_file::import(&merged).unwrap();
        assert_agree(name, &logits, &candle_logits(&model, &ids).unwrap());
        let mut reference = Reference::open(&post_path).unwrap();
        let found = reference.logits_with(&lora, &ids).unwrap();
        // llama.cpp computes Gemma's GELU with a table of f16 values.
        let bound = if name == "gemma2" { 5e-3 } else { 1e-4 };
        assert_agree_within(bound, &format!("{name} in llama.cpp"), &logits, &found);
    }
}

#[test]
fn what_is_converted_back_is_what_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits::default();
    for (name, base) in [("lora", "llama_gqa"), ("embedding", "llama_gqa"), ("qwen3", "qwen3_tied")] {
        let (_, post) = post(base, folder.path());
        let [gguf, back] = ["there.gguf", "back"].map(|end| folder.path().join(format!("{name}.{end}")));
        adapter::convert(&fixture(name), &gguf, Format::LoraGguf, Some(&post), &limits).unwrap();
        adapter::convert(&gguf, &back, Format::PeftFolder, Some(&post), &limits).unwrap();
        let open = |folder: &Path| SafetensorsFile::open(&folder.join("adapter_model.safetensors")).unwrap();
        let (was, is) = (open(&fixture(name)), open(&back));
        let sorted = |file: &SafetensorsFile| {
            let mut shapes: Vec<_> = file.shapes().collect();
            shapes.sort();
            shapes
        };
        assert_eq!(sorted(&was), sorted(&is), "{name}");
        for (tensor, _) in was.shapes() {
            assert_eq!(was.f32(&tensor).unwrap(), is.f32(&tensor).unwrap(), "{name}: {tensor}");
        }
        let config = |folder: &Path| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(folder.join("adapter_config.json")).unwrap()).unwrap()
        };
        let (was, is) = (config(&fixture(name)), config(&back));
        for key in ["peft_type", "task_type", "r", "lora_alpha", "rank_pattern", "bias", "target_modules"] {
            assert_eq!(was[key], is[key], "{name}: {key}");
        }
    }
}

/// Logits of a model with a Felix spoke after its blocks.
fn felix_logits(trained: &Trained, post: &Path, ids: &[u32]) -> Vec<f32> {
    let model = gguf_file::import(post).unwrap();
    let decoder = Decoder::new(model.config, &model.parameters).unwrap();
    let input = Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu).unwrap();
    let layout = BatchLayout::whole(1, ids.len());
    let hidden = decoder.forward(&input, &layout, &mut trained.taps().unwrap()).unwrap();
    decoder.logits(&hidden).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_felix_spoke_gives_the_logits_of_its_formula() {
    let folder = tempfile::tempdir().unwrap();
    let (post_path, post) = post("llama_gqa", folder.path());
    // One file with the configuration in its metadata, and one in a folder with a JSON file.
    for source in [fixture("felix").join("spoke.safetensors"), fixture("felix_norm")] {
        let name = source.iter().nth(3).unwrap().to_str().unwrap();
        let (ids, _, logits) = expected(name);
        let trained = adapter::load_felix(&source, &post, &Limits::default()).unwrap();
        assert_agree(name, &logits, &felix_logits(&trained, &post_path, &ids));

        // The served file is F16, so it is as exact as that type.
        let served = folder.path().join(format!("{name}.gguf"));
        let spoke = adapter::to_served(&source, &served, &post, &Limits::default()).unwrap();
        assert_eq!(spoke.format, Format::FelixGguf);
        let from_served = adapter::load_felix(&served, &post, &Limits::default()).unwrap();
        assert_eq!(from_served.eps.to_bits(), trained.eps.to_bits());
        let found = felix_logits(&from_served, &post_path, &ids);
        let difference = relative_difference(&logits, &found).unwrap().0;
        assert!(difference <= 1e-3, "{name} as F16: {difference:e}");

        let back = folder.path().join(format!("{name}.safetensors"));
        adapter::convert(&served, &back, Format::FelixSafetensors, None, &Limits::default()).unwrap();
        assert_eq!(adapter::load_felix(&back, &post, &Limits::default()).unwrap(), from_served, "{name}");
    }
}

#[test]
fn a_folded_spoke_computes_what_the_taps_do() {
    let folder = tempfile::tempdir().unwrap();
    let (_, post) = post("llama_gqa", folder.path());
    let trained = adapter::load_felix(&fixture("felix_norm"), &post, &Limits::default()).unwrap();
    let folded = trained.fold();
    let (width, layer) = (folded.hidden, &folded.layers[&2]);
    let h: Vec<f32> = (0..width).map(|i| ((i * 37 % 19) as f32 - 9.0) / 5.0).collect();
    let mean = h.iter().map(|v| v * v).sum::<f32>() / width as f32;
    let weights = layer.norm.as_ref().unwrap();
    let n: Vec<f32> = h.iter().zip(weights).map(|(v, w)| v / (mean + folded.eps).sqrt() * w).collect();
    let mut out = h.clone();
    for (down, up) in layer.w_down.chunks(width).zip(layer.w_up.chunks(width)) {
        let z: f32 = down.iter().zip(&n).map(|(w, n)| w.to_f32() * n).sum();
        let z = z / (1.0 + (-z).exp());
        out.iter_mut().zip(up).for_each(|(out, w)| *out += z * w.to_f32());
    }
    let mut taps = trained.taps().unwrap();
    let input = Tensor::from_vec(h.clone(), (1, 1, width), &Device::Cpu).unwrap();
    let layout = BatchLayout::whole(1, 1);
    let at = Context { layer: 2, pass: (&layout).into() };
    let expected = Taps::tap(&mut taps, Point::BlockOutput, at, input).unwrap();
    let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
    let difference = relative_difference(&expected, &out).unwrap().0;
    assert!(difference < 1e-3, "{difference:e}");
    assert!(relative_difference(&expected, &h).unwrap().0 > 0.02);
}

#[test]
fn quantised_copies_of_a_post_have_one_identity() {
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new("tests/fixtures/hf/llama_gqa");
    let (_, full) = post("llama_gqa", folder.path());
    assert_eq!(full.origin, Some(full.sha256), "the F32 file is its own origin");
    let small = folder.path().join("small.gguf");
    bespoke::cli::export::export(
        &hugging_face::load(source).unwrap(),
        source,
        &small,
        bespoke::cli::export::Kind::Q8_0,
    )
    .unwrap();
    let small = Post::open(&small).unwrap();
    assert_ne!(small.sha256, full.sha256);
    assert_eq!(small.identity(), full.identity());
    assert!(small.is(&full.sha256) && small.is(&small.sha256));
    assert_eq!(small.tokenizer, full.tokenizer);
}
