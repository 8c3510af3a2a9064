//! Synthetic spokes: trained shapes with random weights, to measure their cost.

use std::path::Path;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::felix::names::{Naming, Role};
use super::keys::{self, ADAPTER};
use super::{Kind, Limits, Post, Refusal, Spoke, inspect};
use crate::gguf::{GgmlType, GgufError, Writer};
use crate::model::gguf_file::encode;

/// Bottlenecks of a Felix spoke, as in trained ones.
const BOTTLENECKS: u32 = 4;
/// Largest weight. It is small enough that a post with usual weights (0.02) still computes in the
/// usual range.
const LARGEST: f32 = 0.01;
/// Matrices of a block that a LoRA changes, if the post has them.
const MATRICES: [&str; 7] = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];

/// Writes a spoke for a post: a LoRA of this rank on every linear layer of every block, F32 like
/// converted PEFT adapters; or a Felix spoke of four bottlenecks of this rank after every block,
/// F16. The seed determines every byte.
///
/// # Errors
/// A rank above the limits; an I/O error.
pub fn write(kind: Kind, rank: u32, seed: u64, post: &Post, target: &Path) -> Result<Spoke, Refusal> {
    let mut writer = Writer::new();
    writer.set("general.type", ADAPTER).set("general.architecture", post.architecture.as_str());
    writer.set("adapter.type", kind.to_string());
    writer.set(keys::POST, post.identity().to_string());
    match kind {
        Kind::Lora => lora(&mut writer, u64::from(rank), post),
        Kind::Felix => felix(&mut writer, rank, post),
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    writer.write::<GgufError>(target, |tensor| {
        let count = tensor.dims.iter().product::<u64>();
        let values: Vec<f32> = (0..count).map(|_| rng.random_range(-LARGEST..LARGEST)).collect();
        Ok(encode(&values, tensor.kind))
    })?;
    inspect(target, Some(post), &Limits::default())
}

fn lora(writer: &mut Writer, rank: u64, post: &Post) {
    writer.set(keys::ALPHA, rank as f32);
    for layer in 0..post.layers {
        for name in MATRICES.map(|matrix| format!("blk.{layer}.{matrix}.weight")) {
            // Some blocks have a mixer other than attention.
            let Some(tensor) = post.tensors.get(&name).filter(|tensor| tensor.dims.len() == 2) else {
                continue;
            };
            writer.tensor(format!("{name}.lora_a"), &[tensor.dims[0], rank], GgmlType::F32);
            writer.tensor(format!("{name}.lora_b"), &[rank, tensor.dims[1]], GgmlType::F32);
        }
    }
}

fn felix(writer: &mut Writer, rank: u32, post: &Post) {
    writer.set(keys::SPOKES, BOTTLENECKS).set(keys::RANK, rank);
    writer.set(keys::EPS, post.rms_eps.unwrap_or(1e-6));
    let rows = u64::from(BOTTLENECKS) * u64::from(rank);
    for layer in 0..post.layers {
        let mut add = |role, dims: &[u64], kind| {
            writer.tensor(Naming::Gguf.name(layer, role), dims, kind);
        };
        add(Role::Gate, &[1], GgmlType::F32);
        add(Role::DownFused, &[post.hidden_size, rows], GgmlType::F16);
        add(Role::UpFused, &[rows, post.hidden_size], GgmlType::F16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::Adapter;
    use crate::model::synthetic_model::{self, Shape, WeightType};

    #[test]
    fn a_stand_in_is_a_spoke_for_its_post_in_every_block() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        synthetic_model::write(
            Shape::Tiny,
            WeightType::Q8,
            1,
            &crate::config::default_model(),
            &path("post.gguf"),
        )
        .unwrap();
        let post = Post::open(&path("post.gguf")).unwrap();
        for kind in [Kind::Lora, Kind::Felix] {
            let spoke = write(kind, 3, 1, &post, &path("a.gguf")).unwrap();
            assert_eq!((spoke.kind(), spoke.layers.len()), (kind, post.layers as usize));
            assert!(spoke.norms.iter().all(|norms| norms.down > 0.0 && norms.up > 0.0));
            if let Adapter::Lora(lora) = &spoke.adapter {
                assert_eq!(lora.targets.len(), MATRICES.len() * post.layers as usize);
            }
            write(kind, 3, 1, &post, &path("b.gguf")).unwrap();
            let bytes = |name| fs_err::read(path(name)).unwrap();
            assert_eq!(bytes("a.gguf"), bytes("b.gguf"));
            write(kind, 3, 2, &post, &path("b.gguf")).unwrap();
            assert_ne!(bytes("a.gguf"), bytes("b.gguf"));
        }
        let refused = write(Kind::Lora, 2_000, 1, &post, &path("c.gguf")).unwrap_err();
        assert_eq!(refused.code(), "rank_limit");
    }
}
