//! Converts PEFT adapters to llama.cpp's LoRA files and back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use serde_json::{Value, json};

use super::set_origin;
use crate::adapter::container::Container;
use crate::adapter::dropped::{Json, PEFT_CONFIG, PEFT_WEIGHTS};
use crate::adapter::keys::{self, ADAPTER};
use crate::adapter::lora::{self, EMBEDDING, Pair, Side};
use crate::adapter::peft::{self, Peft};
use crate::adapter::{Defect, Limits, Post, Refusal, metadata};
use crate::gguf::{GgmlType, Gguf, Writer};
use crate::model::gguf_file::encode;
use crate::model::gguf_file::names::role_of;
use crate::model::gguf_file::values::{Order, needs_order};
use crate::model::safetensors_file::{self, NewTensor};
use crate::model::spec::{LoraSide, Role};

/// Writes llama.cpp's LoRA file from a PEFT adapter, always as F32. With BF16 matrices llama.cpp
/// would round the activations to eight significant bits, which moves logits by half a percent.
pub(super) fn to_gguf(
    container: &Container,
    config: &Json,
    post: &Post,
    limits: &Limits,
    target: &Path,
) -> Result<(), Refusal> {
    let Peft { alpha, pairs, origin } = Peft::read(container, config, Some(post), limits)?;
    let mut writer = Writer::new();
    writer.set("general.type", ADAPTER).set("general.architecture", post.architecture.as_str());
    writer.set("adapter.type", "lora").set(keys::ALPHA, alpha);
    set_origin(&mut writer, &origin);
    let mut sources = Vec::new();
    for (pair, factor) in &pairs {
        writer.tensor(format!("{}.lora_a", pair.target), &pair.a.dims[..2], GgmlType::F32);
        writer.tensor(format!("{}.lora_b", pair.target), &pair.b.dims[..2], GgmlType::F32);
        sources.extend([(pair, Side::A, 1.0), (pair, Side::B, *factor)]);
    }
    let order = order(post).map_err(|reason| container.refuse(reason))?;
    let mut sources = sources.into_iter();
    writer.write(target, |tensor| {
        let (pair, side, factor) = sources.next().expect("each tensor was announced with its source");
        let role = role_of(&pair.target);
        let values = match side {
            // PEFT keeps a column for each token, llama.cpp a row.
            Side::A if pair.target == EMBEDDING => transpose(&container.values(&pair.a)?, pair.rank as usize),
            Side::A => order.half_to_gguf(role, LoraSide::A, container.values(&pair.a)?),
            Side::B => {
                let mut values = container.values(&pair.b)?;
                for value in &mut values {
                    *value *= factor;
                }
                order.half_to_gguf(role, LoraSide::B, values)
            }
        };
        Ok::<_, Refusal>(encode(&values, tensor.kind))
    })
}

/// `[rows, columns]` to `[columns, rows]`.
fn transpose(values: &[f32], rows: usize) -> Vec<f32> {
    let columns = values.len() / rows;
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

/// The post's order and scale of values, which its adapters share.
fn order(post: &Post) -> Result<&Order, Defect> {
    peft::names::check_family(post)?;
    let why = || format!("the order of values of a {:?} is not known here", post.architecture);
    post.order.as_ref().ok_or_else(|| Defect::NotConvertible { why: why() })
}

/// Writes a PEFT folder from llama.cpp's LoRA file.
pub(super) fn to_peft(
    file: &Gguf,
    post: Option<&Post>,
    limits: &Limits,
    target: &Path,
) -> Result<(), Refusal> {
    let container = Container::Gguf(file);
    let refuse = |reason: Defect| container.refuse(reason);
    let (_, origin) = keys::read(file)?;
    let (alpha, pairs) = lora::read(&container, file, post, limits)?;
    let order = post.map(order).transpose().map_err(refuse)?;
    let architecture = post.map_or(origin.architecture.as_deref(), |post| Some(post.architecture.as_str()));
    let mut tensors = Vec::new();
    for pair in &pairs {
        let name = |side| {
            let none = || Defect::UnknownTarget { tensor: pair.a.name.clone(), target: pair.target.clone() };
            peft::names::write(&pair.target, side).ok_or_else(|| refuse(none()))
        };
        let parameter = role_of(&pair.target);
        if order.is_none() && architecture.is_none_or(|found| needs_order(found, parameter)) {
            let why = "rows of some matrices are ordered, or scaled, by the post's shape";
            return Err(refuse(Defect::PostNeeded { why }));
        }
        let (mut a, mut b) = (container.values(&pair.a)?, container.values(&pair.b)?);
        let mut a_dims = [pair.a.dims[0], pair.a.dims[1]];
        if pair.target == EMBEDDING {
            a = transpose(&a, a_dims[1] as usize);
            a_dims.swap(0, 1);
        } else if let Some(order) = order {
            a = order.half_from_gguf(parameter, LoraSide::A, a);
            b = order.half_from_gguf(parameter, LoraSide::B, b);
        }
        tensors.push(NewTensor { name: name(Side::A)?, shape: shape(a_dims), values: a });
        tensors.push(NewTensor {
            name: name(Side::B)?,
            shape: shape([pair.b.dims[0], pair.b.dims[1]]),
            values: b,
        });
    }
    let mut texts = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    metadata::write_origin(&mut texts, &origin);
    let weights = target.join(PEFT_WEIGHTS);
    let written = safetensors_file::write_tensors(&weights, &tensors, texts);
    written.map_err(|error| Refusal::new(&weights, error))?;
    // The configuration comes last: a folder that has one is complete.
    let path = target.join(PEFT_CONFIG);
    let text = format!("{:#}\n", peft_config(alpha, &pairs, post));
    crate::atomic_file::write(&path, text.as_bytes()).map_err(|error| Refusal::new(&path, error))
}

/// Row-major shape of two dimensions in ggml's order.
fn shape(dims: [u64; 2]) -> Vec<usize> {
    vec![dims[1] as usize, dims[0] as usize]
}

/// Builds `adapter_config.json`: one alpha, the most common rank, and a table of the other ranks.
fn peft_config(alpha: f32, pairs: &[Pair], post: Option<&Post>) -> Value {
    let module = |pair: &Pair| {
        let name = role_of(&pair.target).map_or_else(|| pair.target.clone(), |role| role.name(false));
        name.strip_suffix(".weight").unwrap_or(&name).to_owned()
    };
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for pair in pairs {
        *counts.entry(pair.rank).or_default() += 1;
    }
    let rank = counts.into_iter().max_by_key(|(_, count)| *count).map_or(1, |(rank, _)| rank);
    let others = pairs.iter().filter(|pair| pair.rank != rank);
    let rank_pattern: serde_json::Map<_, _> = others.map(|pair| (module(pair), json!(pair.rank))).collect();
    // PEFT's field is an integer, and most alphas are.
    let alpha = if alpha.fract() == 0.0 && alpha.abs() < 1e9 { json!(alpha as i64) } else { json!(alpha) };
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": null,
        "inference_mode": true,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": rank_pattern,
        "alpha_pattern": {},
        "target_modules": target_modules(pairs.iter().map(module).collect(), post),
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "modules_to_save": null,
        "use_dora": false,
        "use_rslora": false,
    })
}

/// Short names for modules that every layer has, full names for others: a short name stands for all
/// layers.
fn target_modules(modules: BTreeSet<String>, post: Option<&Post>) -> Vec<String> {
    let mut by_end: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for module in modules {
        let end = module.rsplit('.').next().unwrap_or(&module).to_owned();
        by_end.entry(end).or_default().push(module);
    }
    let whole = |(end, names): (String, Vec<String>)| {
        let in_block = |name: &String| Role::of(&format!("{name}.weight")).and_then(Role::layer).is_some();
        let single = names.len() == 1 && !names.iter().any(in_block);
        if single || post.is_some_and(|post| names.len() as u64 == u64::from(post.layers)) {
            vec![end]
        } else {
            names
        }
    };
    by_end.into_iter().flat_map(whole).collect()
}
