//! Checks the architectures that this project computes itself, down to each tensor's dimensions.

use std::collections::HashMap;

use super::{Check, Checked, bad_value};
use crate::gguf::{Array, FromValue as _, PerBlock, Rule, Value};

/// Architectures that are checked.
pub(super) const KNOWN: [&str; 6] = ["llama", "deci", "qwen2", "qwen3", "gemma2", "qwen35"];

/// A Llama whose blocks may have other numbers of heads and other feed-forward widths, or no
/// attention or feed-forward part at all.
const PER_BLOCK: &str = "deci";

/// The sizes that determine the tensors of a dense decoder.
struct Shape {
    embedding: u64,
    head: u64,
    vocabulary: u64,
    blocks: Vec<Counts>,
}

/// The sizes of one block.
#[derive(Clone, Copy)]
struct Counts {
    ffn: u64,
    heads: u64,
    kv_heads: u64,
}

/// The sizes of the recurrent blocks of `qwen35`, and which blocks are recurrent.
struct Recurrent {
    state: u64,
    keys: u64,
    values: u64,
    kernel: u64,
    blocks: Vec<bool>,
}

/// A tensor: its name, its dimensions, and whether the model needs it.
type Tensor = (String, Vec<u64>, bool);

impl Check<'_> {
    /// Checks that sizes agree with each other, and tensors with the sizes.
    pub(super) fn decoder(&self, architecture: &str, vocabulary: u64, blocks: u32) -> Checked {
        let shape = self.decoder_shape(architecture, vocabulary, blocks)?;
        let recurrent = match architecture {
            "gemma2" => {
                self.gemma2()?;
                None
            }
            "qwen35" => Some(self.recurrent(blocks, shape.head)?),
            _ => None,
        };
        self.decoder_tensors(architecture, &shape, recurrent.as_ref())
    }

    /// Sizes of a dense decoder, checked for consistency.
    fn decoder_shape(&self, architecture: &str, vocabulary: u64, blocks: u32) -> Checked<Shape> {
        let key = |name: &str| format!("{architecture}.{name}");
        let embedding = self.positive(&key("embedding_length"))?;
        let counts = self.counts(architecture, blocks)?;
        // llama.cpp derives the width of a head from the first block, and has none without one
        // there.
        let heads = counts[0].heads as u32;
        if heads == 0 {
            let expected = "more than 0 in the first block";
            return Err(bad_value(key("attention.head_count"), 0, expected));
        }
        let head = match self.optional::<u32>(&key("attention.key_length"))? {
            Some(head) => head,
            None if embedding.is_multiple_of(heads) => embedding / heads,
            None => {
                return Err(bad_value(
                    key("attention.head_count"),
                    heads,
                    format!("a divisor of {embedding}"),
                ));
            }
        };
        if head == 0 || head % 2 == 1 {
            return Err(bad_value(key("attention.key_length"), head, "an even number (rotary pairs)"));
        }
        let found = self.optional::<u32>(&key("attention.value_length"))?.unwrap_or(embedding / heads);
        if found != head {
            return Err(bad_value(
                key("attention.value_length"),
                found,
                format!("{head} (the width of a head)"),
            ));
        }
        let rotary = self.optional::<u32>(&key("rope.dimension_count"))?.unwrap_or(head);
        let partly = architecture == "qwen35" && rotary > 0 && rotary < head && rotary.is_multiple_of(2);
        if rotary != head && !partly {
            return Err(bad_value(
                key("rope.dimension_count"),
                rotary,
                format!("{head} (the width of a head)"),
            ));
        }
        let eps: f32 = self.key(&key("attention.layer_norm_rms_epsilon"))?;
        if !(eps.is_finite() && eps >= 0.0) {
            return Err(bad_value(
                key("attention.layer_norm_rms_epsilon"),
                eps,
                "a finite number, 0 or more",
            ));
        }
        self.finite_above_0(&key("rope.freq_base"))?;
        if let Some(found) = self.optional::<u32>(&key("expert_count"))?.filter(|&count| count > 0) {
            return Err(bad_value(key("expert_count"), found, "0 (dense models only)"));
        }
        if let Some(found) = self.optional::<u32>(&key("vocab_size"))?.filter(|&n| u64::from(n) != vocabulary)
        {
            return Err(bad_value(
                key("vocab_size"),
                found,
                format!("{vocabulary} (entries of the vocabulary)"),
            ));
        }
        Ok(Shape { embedding: embedding.into(), head: head.into(), vocabulary, blocks: counts })
    }

    /// Sizes of each block.
    fn counts(&self, architecture: &str, blocks: u32) -> Checked<Vec<Counts>> {
        let key = |name: &str| format!("{architecture}.{name}");
        if architecture == PER_BLOCK {
            let per_block = |name: &str| self.file.per_block(&key(name), blocks as usize);
            let ffn = per_block("feed_forward_length")?.unwrap_or_default();
            let heads = per_block("attention.head_count")?.unwrap_or_default();
            let kv_key = key("attention.head_count_kv");
            let kv_heads = per_block("attention.head_count_kv")?.unwrap_or_else(|| heads.clone());
            if ffn.is_empty() || heads.is_empty() {
                let key = key(if ffn.is_empty() { "feed_forward_length" } else { "attention.head_count" });
                return Err(Rule::MissingKey { key, expected: PerBlock::EXPECTED }.into());
            }
            let counts = |block: usize| {
                let (ffn, heads, kv_heads) = (ffn[block], heads[block], kv_heads[block]);
                let fits = kv_heads == 0 || (heads > 0 && heads.is_multiple_of(kv_heads));
                if !fits {
                    let expected = format!("0, or a divisor of {heads} (head_count), in block {block}");
                    return Err(bad_value(kv_key.clone(), kv_heads, expected));
                }
                Ok(Counts { ffn: ffn.into(), heads: heads.into(), kv_heads: kv_heads.into() })
            };
            return (0..blocks as usize).map(counts).collect();
        }
        let ffn = self.positive(&key("feed_forward_length"))?;
        let heads = self.positive(&key("attention.head_count"))?;
        let kv_heads = match self.optional::<u32>(&key("attention.head_count_kv"))? {
            None => heads,
            Some(kv) if kv > 0 && heads.is_multiple_of(kv) => kv,
            Some(kv) => {
                return Err(bad_value(
                    key("attention.head_count_kv"),
                    kv,
                    format!("a divisor of {heads} (head_count)"),
                ));
            }
        };
        let counts = Counts { ffn: ffn.into(), heads: heads.into(), kv_heads: kv_heads.into() };
        Ok(vec![counts; blocks as usize])
    }

    fn finite_above_0(&self, key: &str) -> Checked {
        match self.optional::<f32>(key)?.filter(|value| !(value.is_finite() && *value > 0.0)) {
            None => Ok(()),
            Some(found) => Err(bad_value(key, found, "a finite number above 0")),
        }
    }

    /// Checks the caps that llama.cpp divides by, and that the window is not 0.
    fn gemma2(&self) -> Checked {
        self.finite_above_0("gemma2.attn_logit_softcapping")?;
        self.finite_above_0("gemma2.final_logit_softcapping")?;
        let key = "gemma2.attention.sliding_window";
        if self.optional::<u32>(key)? == Some(0) {
            return Err(bad_value(key, 0, "more than 0"));
        }
        let key = "gemma2.attention.sliding_window_pattern";
        match self.value(key) {
            None | Some(Value::Array(Array::Bool(_) | Array::U32(_) | Array::I32(_)) | Value::U32(_)) => {
                Ok(())
            }
            Some(other) => Err(bad_value(key, other.type_name(), "array of bool, or u32")),
        }
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.file.metadata().iter().find(|(found, _)| found == key).map(|(_, value)| value)
    }

    /// Sizes of the recurrent blocks, checked because llama.cpp divides by some of them.
    fn recurrent(&self, blocks: u32, head: u64) -> Checked<Recurrent> {
        let key = |name: &str| format!("qwen35.{name}");
        let count = |name: &str| self.positive(&key(&format!("ssm.{name}"))).map(u64::from);
        let (kernel, state) = (count("conv_kernel")?, count("state_size")?);
        let (keys, values) = (count("group_count")?, count("time_step_rank")?);
        if !values.is_multiple_of(keys) {
            let expected = format!("a multiple of {keys} (ssm.group_count)");
            return Err(bad_value(key("ssm.time_step_rank"), values, expected));
        }
        let inner = count("inner_size")?;
        if values.checked_mul(state) != Some(inner) {
            let expected = "ssm.time_step_rank times ssm.state_size";
            return Err(bad_value(key("ssm.inner_size"), inner, expected));
        }
        let sections: &[i32] = self.key(&key("rope.dimension_sections"))?;
        let total = sections.iter().try_fold(0u64, |sum, &n| Some(sum + u64::try_from(n).ok()?));
        if sections.len() != 4 || !total.is_some_and(|total| (1..=head).contains(&total)) {
            let found = format!("{sections:?}");
            let expected = format!("four numbers, together 1 to {head} (the width of a head)");
            return Err(bad_value(key("rope.dimension_sections"), found, expected));
        }
        let interval = self.optional::<u32>(&key("full_attention_interval"))?.unwrap_or(4);
        if interval == 0 {
            return Err(bad_value(key("full_attention_interval"), 0, "more than 0"));
        }
        let further = self.optional::<u32>(&key("nextn_predict_layers"))?.unwrap_or(0);
        let name = key("attention.recurrent_layers");
        let flags = match self.value(&name) {
            None => (1..=blocks).map(|n| n % interval != 0).collect(),
            Some(Value::Array(Array::Bool(flags))) => flags.clone(),
            Some(Value::Array(Array::I32(numbers))) => numbers.iter().map(|n| *n != 0).collect(),
            Some(Value::Array(Array::U32(numbers))) => numbers.iter().map(|n| *n != 0).collect(),
            Some(other) => return Err(bad_value(name, other.type_name(), "array of bool")),
        };
        if flags.len() != blocks as usize {
            let (key, found) = (name, flags.len() as u64);
            return Err(
                Rule::ArrayLength { key, found, expected: blocks.into(), why: "one per block" }.into()
            );
        }
        // llama.cpp asserts that the caches for both kinds of blocks have memory, so there must be
        // blocks of both kinds.
        let own = flags.len() - (further as usize).min(flags.len());
        if flags[..own].iter().all(|flag| *flag) || !flags[..own].iter().any(|flag| *flag) {
            return Err(bad_value(name, "one kind of blocks", "recurrent blocks and others"));
        }
        Ok(Recurrent { state, keys, values, kernel, blocks: flags })
    }

    /// Checks that every needed tensor is present with its dimensions and, for `llama` and `qwen3`,
    /// that there are no others.
    fn decoder_tensors(&self, architecture: &str, shape: &Shape, recurrent: Option<&Recurrent>) -> Checked {
        // Additional blocks after the last one predict tokens beyond the next. They are left to
        // llama.cpp.
        let further = self.optional::<u32>(&format!("{architecture}.nextn_predict_layers"))?.unwrap_or(0);
        let own = (shape.blocks.len() as u32).saturating_sub(further);
        let mut expected = shape.outer(architecture);
        for block in 0..own {
            expected.extend(shape.block(architecture, block, recurrent));
        }
        let mut expected: HashMap<String, (Vec<u64>, bool)> =
            expected.into_iter().map(|(name, dims, needed)| (name, (dims, needed))).collect();
        let closed = matches!(architecture, "llama" | "deci" | "qwen3");
        for tensor in self.file.tensors() {
            match expected.remove(&tensor.name) {
                None if closed => {
                    let (tensor, architecture) = (tensor.name.clone(), architecture.to_owned());
                    return Err(Rule::UnexpectedTensor { tensor, architecture }.into());
                }
                Some((dims, _)) if dims != tensor.dims => {
                    let (tensor, found) = (tensor.name.clone(), tensor.dims.clone());
                    return Err(Rule::Dimensions { tensor, found, expected: dims }.into());
                }
                _ => {}
            }
        }
        // Report the first by name, so that the same file always causes the same message.
        let missing = expected.into_iter().filter(|(_, (_, needed))| *needed).min_by(|a, b| a.0.cmp(&b.0));
        match missing {
            Some((tensor, (expected, _))) => Err(Rule::MissingTensor { tensor, expected }.into()),
            None => Ok(()),
        }
    }
}

impl Shape {
    /// Tensors outside the blocks.
    fn outer(&self, architecture: &str) -> Vec<Tensor> {
        let (d, vocabulary) = (self.embedding, self.vocabulary);
        let mut tensors = vec![
            ("token_embd.weight".into(), vec![d, vocabulary], true),
            ("output_norm.weight".into(), vec![d], true),
            ("output.weight".into(), vec![d, vocabulary], false),
        ];
        if matches!(architecture, "llama" | "deci") {
            tensors.push(("rope_freqs.weight".into(), vec![self.head / 2], false));
        }
        tensors
    }

    fn block(&self, architecture: &str, block: u32, recurrent: Option<&Recurrent>) -> Vec<Tensor> {
        let (d, Counts { ffn: f, heads, kv_heads }) = (self.embedding, self.blocks[block as usize]);
        let (q, kv) = (heads.saturating_mul(self.head), kv_heads.saturating_mul(self.head));
        let mut tensors = Vec::new();
        let mut add = |part: &str, dims: &[u64], needed: bool| {
            tensors.push((format!("blk.{block}.{part}"), dims.to_vec(), needed));
        };
        if heads > 0 {
            add("attn_norm.weight", &[d], true);
        }
        match architecture {
            _ if f == 0 => {}
            "gemma2" => {
                for name in ["post_attention_norm.weight", "ffn_norm.weight", "post_ffw_norm.weight"] {
                    add(name, &[d], true);
                }
            }
            "qwen35" => add("post_attention_norm.weight", &[d], true),
            _ => add("ffn_norm.weight", &[d], true),
        }
        let mut matrices =
            if f == 0 { vec![] } else { vec![("ffn_gate", d, f), ("ffn_up", d, f), ("ffn_down", f, d)] };
        if let Some(recurrent) = recurrent.filter(|recurrent| recurrent.blocks[block as usize]) {
            for (part, dims) in recurrent.tensors(d) {
                add(part, &dims, true);
            }
        } else if kv_heads == 0 {
            // Without heads of keys, the block has a matrix in place of attention, or nothing.
            if heads > 0 {
                matrices.push(("attn_output", d, d));
            }
        } else {
            // With a gate for each head of q.
            let gated = if architecture == "qwen35" { q.saturating_mul(2) } else { q };
            matrices.extend([
                ("attn_q", d, gated),
                ("attn_k", d, kv),
                ("attn_v", d, kv),
                ("attn_output", q, d),
            ]);
            if matches!(architecture, "qwen3" | "qwen35") {
                add("attn_q_norm.weight", &[self.head], true);
                add("attn_k_norm.weight", &[self.head], true);
            }
        }
        for (part, input, output) in matrices {
            add(&format!("{part}.weight"), &[input, output], true);
            if architecture != "qwen3" {
                add(&format!("{part}.bias"), &[output], false);
            }
        }
        tensors
    }
}

impl Recurrent {
    fn tensors(&self, d: u64) -> [(&'static str, Vec<u64>); 9] {
        let (keys, values) = (self.keys.saturating_mul(self.state), self.values.saturating_mul(self.state));
        let channels = keys.saturating_mul(2).saturating_add(values);
        [
            ("attn_qkv.weight", vec![d, channels]),
            ("attn_gate.weight", vec![d, values]),
            ("ssm_conv1d.weight", vec![self.kernel, channels]),
            ("ssm_dt.bias", vec![self.values]),
            ("ssm_a", vec![self.values]),
            ("ssm_alpha.weight", vec![d, self.values]),
            ("ssm_beta.weight", vec![d, self.values]),
            ("ssm_norm.weight", vec![self.state]),
            ("ssm_out.weight", vec![values, d]),
        ]
    }
}
