//! Writes a trained adapter in a format that other programs read: a PEFT folder, or safetensors
//! with the names of Felix training.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::felix::{DOWN, GATE, UP, name};
use crate::atomic_file;
use crate::model::safetensors_file::{NewTensor, f32_values, write_tensors};
use crate::model::{DecoderConfig, Parameters};
use crate::train::TrainError;
use crate::train::recipe::{AdapterRecipe, FelixRecipe, LoraRecipe};

/// Writes the adapter to `out`, with metadata about its origin; returns the folder (`adapter/`) or
/// the file (`adapter.safetensors`).
///
/// # Errors
/// Parameters that are missing; I/O errors.
pub fn write(
    out: &Path,
    recipe: &AdapterRecipe,
    config: &DecoderConfig,
    parameters: &Parameters,
    texts: &BTreeMap<String, String>,
) -> Result<PathBuf, TrainError> {
    match (&recipe.lora, &recipe.felix) {
        (Some(lora), _) => peft(out, lora, parameters, texts),
        (None, Some(felix)) => trained(out, felix, config, parameters, texts),
        (None, None) => {
            Err(candle_core::Error::Msg("an adapter is either a LoRA or a Felix spoke".into()).into())
        }
    }
}

fn peft(
    out: &Path,
    recipe: &LoraRecipe,
    parameters: &Parameters,
    texts: &BTreeMap<String, String>,
) -> Result<PathBuf, TrainError> {
    let folder = out.join("adapter");
    let mut tensors = Vec::new();
    for (name, var) in parameters.iter() {
        let (name, shape) = (format!("base_model.model.{name}"), var.dims().to_vec());
        tensors.push(NewTensor { name, shape, values: f32_values(var)? });
    }
    let mut texts = texts.clone();
    texts.insert("format".into(), "pt".into());
    write_tensors(&folder.join("adapter_model.safetensors"), &tensors, texts)?;
    let alpha = if recipe.alpha.fract() == 0.0 { json!(recipe.alpha as i64) } else { json!(recipe.alpha) };
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": null,
        "inference_mode": true,
        "r": recipe.rank,
        "lora_alpha": alpha,
        "target_modules": recipe.targets,
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "modules_to_save": null,
        "use_dora": false,
        "use_rslora": false,
    });
    // Written last, because a folder with a configuration counts as complete.
    let path = folder.join("adapter_config.json");
    atomic_file::write(&path, format!("{config:#}\n").as_bytes()).map_err(TrainError::file(path))?;
    Ok(folder)
}

/// One pair of matrices per bottleneck, in F32.
fn trained(
    out: &Path,
    recipe: &FelixRecipe,
    config: &DecoderConfig,
    parameters: &Parameters,
    texts: &BTreeMap<String, String>,
) -> Result<PathBuf, TrainError> {
    let (rank, width) = (recipe.rank, config.hidden_size);
    let mut tensors = Vec::new();
    for layer in 0..config.layers {
        let values = |part| f32_values(parameters.get(&name(layer, part))?);
        let mut add = |name: String, shape: Vec<usize>, values: Vec<f32>| {
            tensors.push(NewTensor { name: format!("{layer}.{name}"), shape, values });
        };
        add(GATE.to_owned(), vec![], values(GATE)?);
        let (down, up) = (values(DOWN)?, values(UP)?);
        for s in 0..recipe.spokes {
            let rows = down[s * rank * width..(s + 1) * rank * width].to_vec();
            add(format!("{DOWN}.{s}.weight"), vec![rank, width], rows);
            let columns =
                up.chunks_exact(recipe.spokes * rank).flat_map(|row| &row[s * rank..(s + 1) * rank]);
            add(format!("{UP}.{s}.weight"), vec![width, rank], columns.copied().collect());
        }
    }
    let mut texts = texts.clone();
    texts.insert("format".into(), "pt".into());
    texts.insert("num_spokes".into(), recipe.spokes.to_string());
    texts.insert("spoke_rank".into(), rank.to_string());
    texts.insert("rms_eps".into(), config.rms_eps.to_string());
    let path = out.join("adapter.safetensors");
    write_tensors(&path, &tensors, texts)?;
    Ok(path)
}
