//! Folders and files that hold the same model, and some that don't.

use candle_core::{Device, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::gguf::quantise_rows;
use crate::gguf::{TensorInfo, Writer};
use crate::model::gguf_file::{Precision, content_hash, export};
use crate::model::safetensors_file::f32_values;
use crate::model::{Family, Model, Parameters};

/// A small model whose rows are whole blocks of every type, with heavy-tailed weights, like
/// trained ones.
fn model(tied: bool) -> Model {
    let source = Path::new("tests/fixtures/hf/llama_tied");
    let Model { config, text, .. } = hugging_face::load(source).unwrap();
    let config = DecoderConfig {
        hidden_size: 256,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        ffn: 256,
        layers: 1,
        tied,
        features: Family::Llama.features(1, 4, 64),
        ..config
    };
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut normal = || (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0;
    let mut parameters = Parameters::default();
    for (name, shape) in config.parameter_shapes() {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = match shape.len() {
            1 => (0..count).map(|_| 1.0 + 0.1 * normal()).collect(),
            // One in a hundred is several times larger.
            _ => (0..count).map(|at| 0.02 * normal() * if at % 97 == 5 { 5.0 } else { 1.0 }).collect(),
        };
        parameters.insert(name, Var::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap();
    }
    Model { config, parameters, text }
}

/// The model with other values of one parameter.
fn changed(model: &Model, name: &str, change: impl Fn(&mut [f32])) -> Model {
    let mut parameters = Parameters::default();
    for (of, shape) in model.config.parameter_shapes() {
        let mut values = f32_values(model.parameters.get(&of).unwrap()).unwrap();
        if of == name {
            change(&mut values);
        }
        parameters.insert(of, Var::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap();
    }
    Model { parameters, ..model.clone() }
}

/// The model as a folder.
fn saved(root: &Path, name: &str, model: &Model) -> PathBuf {
    let folder = root.join(name);
    hugging_face::save(&folder, model).unwrap();
    folder
}

/// The model as a file with matrices of a type, as another program's converter writes it, without
/// an origin. `edit` may drop a tensor or add a copy under another name.
fn quantised(root: &Path, model: &Model, kind: GgmlType, edit: impl Fn(&str) -> Vec<String>) -> PathBuf {
    let (full, target) = (root.join("full.gguf"), root.join(format!("{kind}.gguf")));
    export(model, "m", root, &full, Precision::F32).unwrap();
    let full = Gguf::open(&full).unwrap();
    let mut writer = Writer::new();
    for (key, value) in full.metadata().iter().filter(|(key, _)| *key != crate::gguf::ORIGIN_KEY) {
        writer.set(key.clone(), value.clone());
    }
    let mut sources = Vec::new();
    for tensor in full.tensors() {
        for name in edit(&tensor.name) {
            let kind = if tensor.dims.len() == 2 { kind } else { GgmlType::F32 };
            writer.tensor(name, &tensor.dims, kind);
            sources.push(tensor.name.clone());
        }
    }
    let mut sources = sources.into_iter();
    let data = |tensor: &TensorInfo| {
        let values = full.tensor_f32(&sources.next().unwrap())?;
        Ok::<_, GgufError>(match tensor.kind {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => encode(&values, tensor.kind),
            kind => quantise_rows(kind, &values, tensor.dims[0] as usize),
        })
    };
    writer.write(&target, data).unwrap();
    target
}

fn as_it_is(name: &str) -> Vec<String> {
    vec![name.to_owned()]
}

#[test]
fn each_type_explains_what_ggml_makes_of_weights_and_not_much_more() {
    let root = tempfile::tempdir().unwrap();
    let model = model(true);
    let folder = saved(root.path(), "folder", &model);
    let theirs = f32_values(model.parameters.get("model.layers.0.mlp.up_proj.weight").unwrap()).unwrap();
    for (kind, bound) in EXPLAINED {
        let post = quantised(root.path(), &model, kind, as_it_is);
        let file = Gguf::open(&post).unwrap();
        let mut meter = Meter::new(&theirs, 256);
        meter.see(&file.tensor_f32("blk.0.ffn_up.weight").unwrap());
        let (whole, (_, row)) = meter.errors();
        eprintln!("{kind}: {whole:.2e} of {bound:.1e}; the worst row {:.2}", row / whole.max(1e-12));
        if kind != GgmlType::F32 {
            assert!(whole * 1.2 <= bound && bound <= whole * 4.0, "{kind}: {whole} of {bound}");
        }
        let kin = compare(&folder, &post).unwrap_or_else(|unlike| panic!("{kind}: {unlike}"));
        assert_eq!(kin.tensors, file.tensors().len());
        assert_eq!((kin.folder, kin.post), (content_hash(&model).unwrap(), file.content_hash().unwrap()));
        assert!(kin.worst.found <= kin.worst.bound, "{kin:?}");
    }
}

type Change = fn(&mut [f32]);

#[test]
fn a_folder_with_one_other_tensor_is_refused_by_its_name() {
    let root = tempfile::tempdir().unwrap();
    let model = model(true);
    let up = "model.layers.0.mlp.up_proj.weight";
    let query = "model.layers.0.self_attn.q_proj.weight";
    let cases: [(&str, &str, &str, GgmlType, Change); 8] = [
        ("noise", up, "blk.0.ffn_up.weight", GgmlType::Q4_K, |values| {
            values.iter_mut().enumerate().for_each(|(at, v)| *v += if at % 2 == 0 { 0.005 } else { -0.005 });
        }),
        ("one row", up, "blk.0.ffn_up.weight", GgmlType::Q4_K, |values| {
            values[256 * 7..256 * 8].reverse();
        }),
        ("scaled", query, "blk.0.attn_q.weight", GgmlType::Q8_0, |values| {
            for v in values.iter_mut() {
                *v *= 1.03;
            }
        }),
        ("negative", query, "blk.0.attn_q.weight", GgmlType::Q2_K, |values| {
            for v in values.iter_mut() {
                *v = -*v;
            }
        }),
        ("rows in another order", query, "blk.0.attn_q.weight", GgmlType::Q4_K, |values| {
            let (a, b) = values.split_at_mut(256);
            a.swap_with_slice(&mut b[..256]);
        }),
        ("a norm", "model.norm.weight", "output_norm.weight", GgmlType::Q4_K, |values| {
            for v in values.iter_mut() {
                *v *= 1.001;
            }
        }),
        ("the embedding", "model.embed_tokens.weight", "token_embd.weight", GgmlType::Q6_K, |values| {
            values.rotate_left(256);
        }),
        ("a number", up, "blk.0.ffn_up.weight", GgmlType::F16, |values| values[1000] += 0.2),
    ];
    for (what, ours, theirs, kind, change) in cases {
        let post = quantised(root.path(), &model, kind, as_it_is);
        let folder = saved(root.path(), "other", &changed(&model, ours, change));
        match compare(&folder, &post) {
            Err(unlike @ Unlike::Differs { .. }) => {
                let message = unlike.to_string();
                assert!(
                    message.contains(&format!("{theirs:?} ({kind}"))
                        || message.contains(&format!("{theirs:?} (F32")),
                    "{what}: {message}"
                );
                assert!(message.contains("its type explains"), "{what}: {message}");
            }
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn what_can_not_be_compared_is_never_taken_for_equal() {
    let root = tempfile::tempdir().unwrap();
    let (tied, untied) = (model(true), model(false));
    let folder = saved(root.path(), "tied", &tied);
    let refused = |folder: &Path, post: &Path| compare(folder, post).unwrap_err().to_string();
    // A copy of the embedding as output matrix is compared with the embedding.
    let with_output = |name: &str| match name {
        "token_embd.weight" => vec![name.to_owned(), "output.weight".to_owned()],
        _ => as_it_is(name),
    };
    let post = quantised(root.path(), &tied, GgmlType::Q4_K, with_output);
    assert_eq!(compare(&folder, &post).unwrap().tensors, Gguf::open(&post).unwrap().tensors().len());
    // A different output matrix is refused.
    let post = quantised(root.path(), &untied, GgmlType::Q4_K, as_it_is);
    assert!(refused(&folder, &post).contains("\"output.weight\" (Q4_K)"), "{}", refused(&folder, &post));
    // A file without one computes with the embedding, unlike the folder.
    let own = saved(root.path(), "untied", &untied);
    assert!(compare(&own, &post).is_ok());
    let without = |name: &str| if name == "output.weight" { vec![] } else { as_it_is(name) };
    let post = quantised(root.path(), &untied, GgmlType::Q4_K, without);
    assert!(refused(&own, &post).contains("\"token_embd.weight\" (Q4_K)"));
    // Constants that don't show in any tensor.
    let post = quantised(root.path(), &tied, GgmlType::Q8_0, as_it_is);
    for (change, key) in [
        ((|config| config.rope_theta *= 2.0) as fn(&mut DecoderConfig), "rope_theta"),
        (|config| config.rms_eps *= 10.0, "rms_eps"),
        (|config| (config.heads, config.kv_heads, config.head_dim) = (8, 4, 32), "head"),
    ] {
        let mut other = tied.clone();
        change(&mut other.config);
        other.config.features = Family::Llama.features(1, other.config.heads, other.config.head_dim);
        let folder = saved(root.path(), "constants", &other);
        assert!(refused(&folder, &post).contains(key), "{key}: {}", refused(&folder, &post));
    }
    // Another architecture.
    let qwen = Path::new("tests/fixtures/hf/qwen3_tied");
    assert!(refused(qwen, &post).contains("general.architecture is \"llama\""));
}

#[test]
fn errors_are_those_of_the_whole_and_of_the_worst_row() {
    let theirs = [3.0, 4.0, 0.0, 0.0, 3.0, -4.0];
    let errors = |parts: &[&[f32]]| {
        let mut meter = Meter::new(&theirs, 2);
        for part in parts {
            meter.see(part);
        }
        meter.errors()
    };
    assert_eq!(errors(&[&theirs]), (0.0, (0, 0.0)));
    // One value off by 1 in the last row, read in parts that aren't rows: 1/50 of the whole, 1/25
    // of the row.
    let (whole, (row, error)) = errors(&[&[3.0, 4.0, 0.0], &[0.0, 3.0, -3.0]]);
    assert!((whole - (1.0f64 / 50.0).sqrt()).abs() < 1e-9 && row == 2);
    assert!((error - 0.2).abs() < 1e-9, "{error}");
    // A row of zeros counts as half the mean: 50 / 6 / 4.
    let (_, (row, error)) = errors(&[&[3.0, 4.0, 1.0, 1.0, 3.0, -4.0]]);
    assert!(row == 1 && (error - (24.0f64 / 50.0).sqrt()).abs() < 1e-9, "{error}");
    let (whole, (row, error)) = errors(&[&[3.0, 4.0, f32::NAN, 0.0, 3.0, -4.0]]);
    assert!(whole.is_nan() && row == 1 && error.is_infinite());
    let agreement =
        |found| Agreement { tensor: "t".into(), kind: "F32".into(), found, bound: 1.0, row: None };
    assert!(agreement(f64::NAN).ratio() > 1.0);
}

#[test]
fn trees_are_compared_as_f32_and_the_place_is_named() {
    let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let of = |a: &str, b: &str| difference("", &value(a), &value(b)).map(|(key, ..)| key);
    assert_eq!(of(r#"{"a": [1, {"b": 1e-5}]}"#, r#"{"a": [1, {"b": 9.99999974e-6}]}"#), None);
    assert_eq!(of(r#"{"a": [1, {"b": 1e-5}]}"#, r#"{"a": [1, {"b": 1e-6}]}"#).unwrap(), "a.1.b");
    assert_eq!(of(r#"{"a": null}"#, r#"{"a": {"x": 1}}"#).unwrap(), "a");
}
