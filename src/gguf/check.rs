//! What a file must hold, beyond being well-formed, before llama.cpp may see it as a model.
//!
//! llama.cpp reports most defects politely, but some end the process (assertions on value types, duplicate tokens,
//! head sizes, layer counts) or only crash at the first token (weights that are not f32 where it insists on f32).
//! A model that passes here meets none of those.

use std::collections::HashMap;

use super::{FromValue, Gguf, GgufError, Rule};

/// Most blocks that llama.cpp has room for (`LLAMA_MAX_LAYERS`).
const MAX_BLOCKS: u32 = 512;

/// Checks a file as a model.
///
/// Architectures `llama` and `qwen3` are checked down to each tensor's dimensions; others for what all share.
///
/// # Errors
/// The first rule that the file breaks.
pub fn check_model(file: &Gguf) -> Result<(), GgufError> {
    Check { file }.model().map_err(|wrong| match wrong {
        Wrong::Rule(rule) => file.error(rule),
        Wrong::Told(error) => error,
    })
}

/// Checks that tensors stand one after the other, without holes: ggml insists on it in every file.
///
/// # Errors
/// The first tensor that stands elsewhere.
pub fn check_contiguous(file: &Gguf) -> Result<(), GgufError> {
    let mut expected = 0;
    for tensor in file.tensors() {
        if tensor.offset != expected {
            let (tensor, found) = (tensor.name.clone(), tensor.offset);
            return Err(file.error(Rule::NotContiguous { tensor, found, expected }));
        }
        // Can't wrap: the reader has checked that the tensor ends inside the file.
        expected = (tensor.offset + tensor.bytes).next_multiple_of(file.alignment());
    }
    Ok(())
}

/// A rule that is not tied to a path yet, or an error of the reader.
enum Wrong {
    Rule(Rule),
    Told(GgufError),
}
impl From<Rule> for Wrong {
    fn from(rule: Rule) -> Self {
        Self::Rule(rule)
    }
}
impl From<GgufError> for Wrong {
    fn from(error: GgufError) -> Self {
        Self::Told(error)
    }
}
type Checked<T = ()> = Result<T, Wrong>;

#[allow(clippy::needless_pass_by_value)] // a reference at each call would say less
fn bad_value(key: impl Into<String>, found: impl ToString, expected: impl Into<String>) -> Wrong {
    Rule::BadValue { key: key.into(), found: found.to_string(), expected: expected.into() }.into()
}

/// The dimensions that the tensors of a dense decoder follow from.
struct Shape {
    embedding: u64,
    ffn: u64,
    q: u64,
    kv: u64,
    head: u64,
    vocabulary: u64,
    blocks: u32,
}

struct Check<'a> {
    file: &'a Gguf,
}

impl<'a> Check<'a> {
    fn model(&self) -> Checked {
        let architecture = self.general()?;
        self.tensors_as_loaded()?;
        let blocks = self.common_sizes(architecture)?;
        let vocabulary = self.tokenizer()?;
        if let "llama" | "qwen3" = architecture {
            let shape = self.decoder_shape(architecture, vocabulary, blocks)?;
            self.decoder_tensors(architecture, &shape)?;
        }
        Ok(())
    }

    fn key<T: FromValue<'a>>(&self, key: &str) -> Checked<T> {
        Ok(self.file.get(key)?)
    }

    fn optional<T: FromValue<'a>>(&self, key: &str) -> Checked<Option<T>> {
        Ok(self.file.find(key)?)
    }

    /// Keys that llama.cpp reads without looking at their type first.
    fn general(&self) -> Checked<&'a str> {
        let architecture: &str = self.key("general.architecture")?;
        let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if architecture.is_empty() || !architecture.chars().all(letters) {
            return Err(bad_value(
                "general.architecture",
                format!("{architecture:?}"),
                "the name of an architecture",
            ));
        }
        for key in ["general.type", "general.name", "tokenizer.chat_template"] {
            self.optional::<&str>(key)?;
        }
        match self.optional::<&str>("general.type")? {
            None | Some("model") => {}
            Some(other) => return Err(bad_value("general.type", format!("{other:?}"), "\"model\"")),
        }
        for key in ["general.file_type", "general.quantization_version"] {
            self.optional::<u32>(key)?;
        }
        match self.optional::<u16>("split.count")? {
            None | Some(0 | 1) => Ok(architecture),
            Some(found) => Err(Rule::Split { found }.into()),
        }
    }

    /// Tensors stand one after the other, and are of types that llama.cpp computes with.
    fn tensors_as_loaded(&self) -> Checked {
        check_contiguous(self.file)?;
        for tensor in self.file.tensors() {
            let expected = match tensor.dims.len() {
                1 if tensor.kind != super::GgmlType::F32 => "F32 (llama.cpp multiplies vectors in f32 only)",
                _ if !tensor.kind.is_weight() => "a type of weights",
                _ => continue,
            };
            return Err(Rule::TensorType { tensor: tensor.name.clone(), found: tensor.kind, expected }.into());
        }
        Ok(())
    }

    /// Sizes whose absence or excess trips an assertion in any architecture.
    fn common_sizes(&self, architecture: &str) -> Checked<u32> {
        self.positive(&format!("{architecture}.context_length"))?;
        self.positive(&format!("{architecture}.embedding_length"))?;
        let key = format!("{architecture}.block_count");
        let blocks = self.key::<u32>(&key)?;
        if !(1..=MAX_BLOCKS).contains(&blocks) {
            return Err(bad_value(key, blocks, format!("1 to {MAX_BLOCKS}")));
        }
        let key = format!("{architecture}.rope.scaling.type");
        match self.optional::<&str>(&key)? {
            None | Some("none" | "linear" | "yarn" | "longrope") => Ok(blocks),
            Some(other) => Err(bad_value(key, format!("{other:?}"), "none, linear, yarn or longrope")),
        }
    }

    fn positive(&self, key: &str) -> Checked<u32> {
        match self.key::<u32>(key)? {
            0 => Err(bad_value(key, 0, "more than 0")),
            value => Ok(value),
        }
    }

    /// The vocabulary: lengths, ids in range, no token twice. Gives its size.
    fn tokenizer(&self) -> Checked<u64> {
        let model: &str = self.key("tokenizer.ggml.model")?;
        let tokens: &[String] = self.key("tokenizer.ggml.tokens")?;
        let vocabulary = tokens.len() as u64;
        if tokens.is_empty() || tokens.len() > i32::MAX as usize {
            return Err(bad_value(
                "tokenizer.ggml.tokens",
                format!("{vocabulary} entries"),
                "1 to 2147483647",
            ));
        }
        let mut seen = HashMap::new();
        for (id, token) in tokens.iter().enumerate() {
            if token.is_empty() {
                return Err(bad_value(
                    "tokenizer.ggml.tokens",
                    format!("empty at {id}"),
                    "a text for each token",
                ));
            }
            if let Some(first) = seen.insert(token, id) {
                return Err(Rule::DuplicateToken { token: token.clone(), first, second: id }.into());
            }
        }
        let same_length = |key: &str, found: usize| {
            if found as u64 == vocabulary {
                return Ok(());
            }
            let (key, found) = (key.to_owned(), found as u64);
            Err(Rule::ArrayLength { key, found, expected: vocabulary, why: "one per token" })
        };
        if let Some(types) = self.optional::<&[i32]>("tokenizer.ggml.token_type")? {
            same_length("tokenizer.ggml.token_type", types.len())?;
            if let Some(found) = types.iter().find(|kind| !(1..=6).contains(*kind)) {
                return Err(bad_value("tokenizer.ggml.token_type", found, "1 to 6 in each entry"));
            }
        }
        if let Some(scores) = self.optional::<&[f32]>("tokenizer.ggml.scores")? {
            same_length("tokenizer.ggml.scores", scores.len())?;
        }
        match model {
            "gpt2" => self.merges()?,
            "llama" => {
                // Unknown characters fall back to these, and their lookup throws where nobody catches.
                for byte in 0..=255u8 {
                    let token = format!("<0x{byte:02X}>");
                    if !seen.contains_key(&token) {
                        return Err(bad_value(
                            "tokenizer.ggml.tokens",
                            format!("without {token}"),
                            "all 256 bytes",
                        ));
                    }
                }
            }
            other => {
                return Err(bad_value("tokenizer.ggml.model", format!("{other:?}"), "\"gpt2\" or \"llama\""));
            }
        }
        self.special_ids(vocabulary)?;
        Ok(vocabulary)
    }

    fn merges(&self) -> Checked {
        self.optional::<&str>("tokenizer.ggml.pre")?;
        let merges: &[String] = self.key("tokenizer.ggml.merges")?;
        // A space is never part of a byte-level token, so it parts the two.
        for (index, merge) in merges.iter().enumerate() {
            let parts: Vec<_> = merge.split(' ').collect();
            if parts.len() != 2 || parts.iter().any(|part| part.is_empty()) {
                let found = format!("{merge:?} at {index}");
                return Err(bad_value("tokenizer.ggml.merges", found, "two tokens with a space between"));
            }
        }
        Ok(())
    }

    fn special_ids(&self, vocabulary: u64) -> Checked {
        for name in ["bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask"] {
            let key = format!("tokenizer.ggml.{name}_token_id");
            let id = self.optional::<u32>(&key)?;
            if let Some(id) = id.filter(|&id| u64::from(id) >= vocabulary) {
                return Err(bad_value(key, id, format!("less than {vocabulary} (the vocabulary)")));
            }
            // llama.cpp adds these on demand and asserts that they exist; its default for BPE is token 11.
            let added = matches!(name, "bos" | "eos")
                && self.optional::<bool>(&format!("tokenizer.ggml.add_{name}_token"))? == Some(true);
            if id.is_none() && (added || matches!(name, "bos" | "eos") && vocabulary <= 11) {
                return Err(Rule::MissingKey { key, expected: "u32" }.into());
            }
        }
        Ok(())
    }

    /// Sizes of a dense decoder, consistent with each other.
    fn decoder_shape(&self, architecture: &str, vocabulary: u64, blocks: u32) -> Checked<Shape> {
        let key = |name: &str| format!("{architecture}.{name}");
        let embedding = self.positive(&key("embedding_length"))?;
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
        for name in ["attention.value_length", "rope.dimension_count"] {
            let default = if name == "attention.value_length" { embedding / heads } else { head };
            let found = self.optional::<u32>(&key(name))?.unwrap_or(default);
            if found != head {
                return Err(bad_value(key(name), found, format!("{head} (the width of a head)")));
            }
        }
        let eps: f32 = self.key(&key("attention.layer_norm_rms_epsilon"))?;
        if !(eps.is_finite() && eps >= 0.0) {
            return Err(bad_value(
                key("attention.layer_norm_rms_epsilon"),
                eps,
                "a finite number, 0 or more",
            ));
        }
        if let Some(base) =
            self.optional::<f32>(&key("rope.freq_base"))?.filter(|b| !(b.is_finite() && *b > 0.0))
        {
            return Err(bad_value(key("rope.freq_base"), base, "a finite number above 0"));
        }
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
        let wide = |heads: u32| u64::from(heads) * u64::from(head);
        let (embedding, ffn, head, q, kv) =
            (embedding.into(), ffn.into(), head.into(), wide(heads), wide(kv_heads));
        Ok(Shape { embedding, ffn, q, kv, head, vocabulary, blocks })
    }

    /// Every needed tensor is there with its dimensions, and no other.
    fn decoder_tensors(&self, architecture: &str, shape: &Shape) -> Checked {
        let &Shape { embedding: d, ffn: f, q, kv, head, vocabulary, blocks } = shape;
        let mut expected: HashMap<String, (Vec<u64>, bool)> = HashMap::new();
        let mut add = |name: String, dims: &[u64], needed: bool| {
            expected.insert(name, (dims.to_vec(), needed));
        };
        add("token_embd.weight".into(), &[d, vocabulary], true);
        add("output_norm.weight".into(), &[d], true);
        add("output.weight".into(), &[d, vocabulary], false);
        if architecture == "llama" {
            add("rope_freqs.weight".into(), &[head / 2], false);
        }
        for block in 0..blocks {
            let name = |part: &str| format!("blk.{block}.{part}");
            add(name("attn_norm.weight"), &[d], true);
            add(name("ffn_norm.weight"), &[d], true);
            let matrices = [
                ("attn_q", d, q),
                ("attn_k", d, kv),
                ("attn_v", d, kv),
                ("attn_output", q, d),
                ("ffn_gate", d, f),
                ("ffn_up", d, f),
                ("ffn_down", f, d),
            ];
            for (part, input, output) in matrices {
                add(name(&format!("{part}.weight")), &[input, output], true);
                if architecture == "llama" {
                    add(name(&format!("{part}.bias")), &[output], false);
                }
            }
            if architecture == "qwen3" {
                add(name("attn_q_norm.weight"), &[head], true);
                add(name("attn_k_norm.weight"), &[head], true);
            }
        }
        for tensor in self.file.tensors() {
            match expected.remove(&tensor.name) {
                None => {
                    let (tensor, architecture) = (tensor.name.clone(), architecture.to_owned());
                    return Err(Rule::UnexpectedTensor { tensor, architecture }.into());
                }
                Some((dims, _)) if dims != tensor.dims => {
                    let (tensor, found) = (tensor.name.clone(), tensor.dims.clone());
                    return Err(Rule::Dimensions { tensor, found, expected: dims }.into());
                }
                Some(_) => {}
            }
        }
        // The first by name, so that the same file always gives the same message.
        let missing = expected.into_iter().filter(|(_, (_, needed))| *needed).min_by(|a, b| a.0.cmp(&b.0));
        match missing {
            Some((tensor, (expected, _))) => Err(Rule::MissingTensor { tensor, expected }.into()),
            None => Ok(()),
        }
    }
}
