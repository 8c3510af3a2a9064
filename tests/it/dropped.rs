//! Spokes for tests: small LoRA and Felix files that fit the shipped model, and a script that plays
//! the probe's child.

use std::path::{Path, PathBuf};

use bespoke::adapter::{Digest, Generation, Post};
use bespoke::atomic_file;
use bespoke::gguf::{GgmlType, GgufError, Writer};

use crate::program::MODEL;

/// Path of a name's refused content under the state folder.
pub fn quarantined(state: &Path, name: &str, generation: Generation) -> PathBuf {
    state.join("spokes/quarantine").join(format!("{name}-{}", &generation.to_string()[..16]))
}

/// A LoRA on one matrix of the shipped model. Each seed gives different content.
pub fn lora(seed: u32) -> Vec<u8> {
    lora_of(seed, 8.0, None)
}

/// A LoRA strong enough to change every answer.
pub fn strong_lora(seed: u32) -> Vec<u8> {
    lora_of(seed, 32_000.0, None)
}

/// A LoRA that names the tensors it was trained on.
pub fn lora_trained_on(seed: u32, post: &Digest) -> Vec<u8> {
    lora_of(seed, 8.0, Some(post))
}

fn lora_of(seed: u32, alpha: f32, trained_on: Option<&Digest>) -> Vec<u8> {
    let post = post();
    let (name, tensor) = post
        .tensors
        .iter()
        .find(|(name, tensor)| name.ends_with("attn_q.weight") && tensor.dims.len() == 2)
        .expect("the shipped model has attention");
    let (inputs, outputs, rank) = (tensor.dims[0], tensor.dims[1], 4);
    let mut writer = Writer::new();
    if let Some(post) = trained_on {
        writer.set("bespoke.post.sha256", post.to_string());
    }
    writer
        .set("general.type", "adapter")
        .set("general.architecture", post.architecture.as_str())
        .set("adapter.type", "lora")
        .set("adapter.lora.alpha", alpha)
        .tensor(format!("{name}.lora_a"), &[inputs, rank], GgmlType::F32)
        .tensor(format!("{name}.lora_b"), &[rank, outputs], GgmlType::F32);
    written(&writer, seed, 1.0)
}

/// A Felix spoke on the first block of the shipped model.
pub fn felix(seed: u32) -> Vec<u8> {
    felix_of(seed, 1.0)
}

/// A Felix spoke strong enough to change every answer.
pub fn strong_felix(seed: u32) -> Vec<u8> {
    felix_of(seed, 100_000.0)
}

fn felix_of(seed: u32, strength: f32) -> Vec<u8> {
    let post = post();
    let (width, rank) = (post.hidden_size, 4);
    let mut writer = Writer::new();
    writer
        .set("general.type", "adapter")
        .set("general.architecture", post.architecture.as_str())
        .set("adapter.type", "felix")
        .set("felix.num_spokes", 1_u32)
        .set("felix.spoke_rank", rank as u32)
        .set("felix.rms_eps", 1e-5_f32)
        .tensor("blk.0.spoke.gate_bias", &[1], GgmlType::F32)
        .tensor("blk.0.spoke.w_down_fused.weight", &[width, rank], GgmlType::F32)
        .tensor("blk.0.spoke.w_up_fused.weight", &[rank, width], GgmlType::F32);
    written(&writer, seed, strength)
}

fn post() -> Post {
    Post::open(Path::new(MODEL)).expect("the shipped model is there")
}

/// The file with small numbers from the seed. Those of W_up are multiplied by `strength`.
fn written(writer: &Writer, seed: u32, strength: f32) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spoke.gguf");
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    writer
        .write::<GgufError>(&path, |tensor| {
            let factor = if tensor.name.contains("w_up") { strength } else { 1.0 };
            let numbers = (0..tensor.bytes / 4).flat_map(|_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                ((state as f32 / u32::MAX as f32 - 0.5) / 100.0 * factor).to_le_bytes()
            });
            Ok(numbers.collect())
        })
        .unwrap();
    std::fs::read(&path).unwrap()
}

/// The identity of a content.
pub fn generation(content: &[u8]) -> Generation {
    Generation::of_reader(content).unwrap()
}

/// Puts a file into a folder atomically, by a rename.
pub fn put(folder: &Path, entry: &str, content: &[u8]) {
    atomic_file::write(&folder.join(entry), content).unwrap();
}

/// A shell script that answers as the probe's child does.
pub fn child(folder: &Path, script: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join("probe-child");
    atomic_file::write(&path, format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// The child's report on a spoke that works.
pub const DIFFERS: &str =
    r#"echo '{"verdict":"differs","finite":true,"differs":true,"tokens":24,"resident_bytes":0}'"#;
/// The child's report on a spoke that has no effect.
pub const SAME: &str =
    r#"echo '{"verdict":"same","finite":true,"differs":false,"tokens":24,"resident_bytes":0}'"#;
