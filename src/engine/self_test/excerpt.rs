//! An excerpt of a post: its first blocks and a part of its vocabulary. It has every shape and type
//! that kernels meet in the whole post, but takes a fraction of the time.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::gguf::{GgmlType, Gguf, GgufError, TensorInfo, Value, Writer};

/// Number of rows that are kept of the vocabulary's matrices.
const ROWS: u64 = 4096;
/// The matrices with one row per vocabulary entry.
const VOCABULARY: [&str; 3] = ["token_embd.weight", "output.weight", "output.bias"];

/// An excerpt in memory.
#[derive(Debug)]
pub(super) struct Excerpt {
    file: File,
}

impl Excerpt {
    /// Makes the excerpt of a post that has passed its checks; `None` if no small part covers all
    /// that the whole computes.
    pub(super) fn of(post: &Path) -> Result<Option<Self>, String> {
        let source = Gguf::open(post).map_err(|error| error.to_string())?;
        let Some(plan) = plan(&source).map_err(|error| error.to_string())? else { return Ok(None) };
        let memory = memfd_create("bespoke-self-test", MemfdFlags::CLOEXEC);
        let file = File::from(memory.map_err(|error| format!("no file in memory can be made: {error}"))?);
        let mut tensors = plan.tensors.iter();
        let written = plan.writer.write_to::<GgufError>(&file, post, |_| {
            source.tensor_bytes(tensors.next().expect("asked for once per announced tensor"))
        });
        written.map_err(|error| error.to_string())?;
        Ok(Some(Self { file }))
    }

    /// Path under which it can be opened while this lives.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

/// The contents of an excerpt.
struct Plan {
    writer: Writer,
    /// Source of the data, in the writer's order.
    tensors: Vec<TensorInfo>,
}

fn plan(source: &Gguf) -> Result<Option<Plan>, GgufError> {
    let architecture: &str = source.get("general.architecture")?;
    let (blocks_key, vocabulary_key) =
        (format!("{architecture}.block_count"), format!("{architecture}.vocab_size"));
    let all = source.get::<u32>(&blocks_key)?;
    let Some(kept) = blocks(source.tensors(), all) else { return Ok(None) };
    let mut writer = Writer::new();
    for (key, value) in source.metadata() {
        // Before the clone: the tokenizer's arrays are most of a header.
        if key.starts_with("tokenizer.") || key == "general.alignment" || *key == vocabulary_key {
            continue;
        }
        let mut value = value.clone();
        match &mut value {
            Value::U32(blocks) if *key == blocks_key => *blocks = kept,
            // One number per block.
            Value::Array(array) if array.len() == all as usize => array.truncate(kept as usize),
            _ => {}
        }
        writer.set(key.as_str(), value);
    }
    let mut tensors = Vec::new();
    let mut rows = None;
    for tensor in source.tensors() {
        let mut tensor = tensor.clone();
        match block_of(&tensor.name) {
            Some((block, _)) if block >= kept => continue,
            None if VOCABULARY.contains(&tensor.name.as_str()) => {
                let last = tensor.dims.last_mut().expect("a tensor has a dimension");
                *last = (*last).min(ROWS);
                rows = Some(*last);
                tensor.bytes = tensor.kind.tensor_bytes(&tensor.dims).unwrap_or(tensor.bytes);
            }
            // In Gemma 3n and 4, the width of this tensor covers all blocks.
            None if tensor.name.starts_with("per_layer") => return Ok(None),
            Some(_) | None => {}
        }
        writer.tensor(tensor.name.as_str(), &tensor.dims, tensor.kind);
        tensors.push(tensor);
    }
    let Some(rows) = rows else { return Ok(None) };
    // llama.cpp's name for a model without a tokenizer.
    writer.set("tokenizer.ggml.model", "none").set(vocabulary_key, rows as u32);
    Ok(Some(Plan { writer, tensors }))
}

/// Number of first blocks that include one of each kind; `None` if that is more than half of all
/// blocks.
fn blocks(tensors: &[TensorInfo], all: u32) -> Option<u32> {
    // Our product kernel handles one type. How llama.cpp multiplies the others is not tested here.
    let kind = |tensor: &TensorInfo| {
        let (block, name) = block_of(&tensor.name)?;
        let eight_bits = tensor.kind == GgmlType::Q8_0;
        Some((block, (name.to_owned(), tensor.dims.clone(), eight_bits)))
    };
    let mut firsts = BTreeMap::new();
    for (block, kind) in tensors.iter().filter_map(kind) {
        let first = firsts.entry(kind).or_insert(block);
        *first = block.min(*first);
    }
    let kept = firsts.into_values().max()? + 1;
    (kept <= all / 2).then_some(kept)
}

/// The block of a tensor, and the tensor's name within it.
fn block_of(name: &str) -> Option<(u32, &str)> {
    let (block, name) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((block.parse().ok()?, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, width: u64, kind: GgmlType) -> TensorInfo {
        TensorInfo { name: name.to_owned(), dims: vec![64, width], kind, offset: 0, bytes: 0 }
    }

    #[test]
    fn as_many_blocks_are_kept_as_show_every_kind() {
        let q8 = GgmlType::Q8_0;
        let mut tensors: Vec<_> = (0..8).map(|n| tensor(&format!("blk.{n}.ffn_up.weight"), 64, q8)).collect();
        tensors.push(tensor("output.weight", 9, q8));
        assert_eq!(blocks(&tensors, 8), Some(1));
        // Every fourth block has attention.
        tensors.push(tensor("blk.3.attn_q.weight", 64, q8));
        tensors.push(tensor("blk.7.attn_q.weight", 64, q8));
        assert_eq!(blocks(&tensors, 8), Some(4));
        // One tensor of another width, too late for a short excerpt.
        tensors[5].dims[1] = 32;
        assert_eq!(blocks(&tensors, 8), None);
    }

    #[test]
    fn the_shipped_post_has_an_excerpt_that_passes_the_checks() {
        let post = crate::config::default_model();
        let excerpt = Excerpt::of(&post).unwrap().unwrap();
        let (whole, part) = (Gguf::open(&post).unwrap(), Gguf::open(&excerpt.path()).unwrap());
        let blocks = |file: &Gguf| {
            let architecture: &str = file.get("general.architecture").unwrap();
            file.get::<u32>(&format!("{architecture}.block_count")).unwrap()
        };
        assert!(blocks(&part) <= blocks(&whole) / 2);
        assert_eq!(
            part.tensors().iter().filter(|t| t.name.ends_with("attn_q.weight")).count() as u32,
            blocks(&part)
        );
        for tensor in part.tensors() {
            let original = whole.tensor(&tensor.name).unwrap();
            let (part, whole) = (part.tensor_bytes(tensor).unwrap(), whole.tensor_bytes(original).unwrap());
            assert!(whole.starts_with(&part), "{}", tensor.name);
        }
    }
}
