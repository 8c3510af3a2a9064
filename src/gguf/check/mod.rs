//! Checks what a well-formed file must contain before llama.cpp may load it as a model.
//!
//! llama.cpp reports most defects properly, but some abort the process (assertions on value types,
//! duplicate tokens, head sizes, layer counts) or crash only at the first token (weights that are
//! not f32 where it requires f32). A model that passes here triggers none of these.

mod decoder;

use std::collections::HashMap;

use super::{FromValue, Gguf, GgufError, Rule};

/// Maximum number of blocks in llama.cpp (`LLAMA_MAX_LAYERS`).
const MAX_BLOCKS: u32 = 512;

/// Checks a file as a model.
///
/// Architectures that this project computes itself are checked down to each tensor's dimensions;
/// others only for what all have in common.
///
/// # Errors
/// The first rule that the file breaks.
pub fn check_model(file: &Gguf) -> Result<(), GgufError> {
    Check { file, served: true }.checked()
}

/// Checks a file as a model that is only read here. Like [`check_model`], but tensors may have any
/// type that can be read as floats.
///
/// # Errors
/// The first rule that the file breaks.
pub fn check_readable(file: &Gguf) -> Result<(), GgufError> {
    Check { file, served: false }.checked()
}

/// Checks that tensors follow one another without gaps, which ggml requires of every file.
///
/// # Errors
/// The first tensor that is somewhere else.
pub fn check_contiguous(file: &Gguf) -> Result<(), GgufError> {
    let mut expected = 0;
    for tensor in file.tensors() {
        if tensor.offset != expected {
            let (tensor, found) = (tensor.name.clone(), tensor.offset);
            return Err(file.error(Rule::NotContiguous { tensor, found, expected }));
        }
        // Can't overflow, because the reader has checked that the tensor ends inside the file.
        expected = (tensor.offset + tensor.bytes).next_multiple_of(file.alignment());
    }
    Ok(())
}

/// A rule without a path, or an error of the reader.
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

#[allow(clippy::needless_pass_by_value)] // a reference at each call would only add noise
fn bad_value(key: impl Into<String>, found: impl ToString, expected: impl Into<String>) -> Wrong {
    Rule::BadValue { key: key.into(), found: found.to_string(), expected: expected.into() }.into()
}

struct Check<'a> {
    file: &'a Gguf,
    /// Whether llama.cpp computes with the file.
    served: bool,
}

impl<'a> Check<'a> {
    fn checked(&self) -> Result<(), GgufError> {
        self.model().map_err(|wrong| match wrong {
            Wrong::Rule(rule) => self.file.error(rule),
            Wrong::Told(error) => error,
        })
    }

    fn model(&self) -> Checked {
        let architecture = self.general()?;
        self.tensors_as_loaded()?;
        let blocks = self.common_sizes(architecture)?;
        let vocabulary = self.tokenizer()?;
        if decoder::KNOWN.contains(&architecture) {
            self.decoder(architecture, vocabulary, blocks)?;
        }
        Ok(())
    }

    fn key<T: FromValue<'a>>(&self, key: &str) -> Checked<T> {
        Ok(self.file.get(key)?)
    }

    fn optional<T: FromValue<'a>>(&self, key: &str) -> Checked<Option<T>> {
        Ok(self.file.find(key)?)
    }

    /// Checks keys that llama.cpp reads without checking their type first.
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

    /// Checks that tensors follow one another, and that llama.cpp computes with their types.
    fn tensors_as_loaded(&self) -> Checked {
        check_contiguous(self.file)?;
        if !self.served {
            return Ok(()); // unreadable tensors are reported when they are read
        }
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

    /// Checks sizes whose absence or excess trips an assertion in any architecture.
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

    /// Checks the vocabulary (lengths, ids in range, no duplicate tokens) and returns its size.
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
        let mut seen = HashMap::with_capacity(tokens.len());
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
            "gpt2" | "gemma4" => self.merges()?,
            "llama" => {
                // Unknown characters fall back to these tokens, or to the character itself.
                // llama.cpp's lookup throws an exception that is not caught.
                for byte in 0..=255u8 {
                    let token = format!("<0x{byte:02X}>");
                    let itself = byte.is_ascii().then(|| char::from(byte).to_string());
                    if !seen.contains_key(&token) && !itself.is_some_and(|text| seen.contains_key(&text)) {
                        return Err(bad_value(
                            "tokenizer.ggml.tokens",
                            format!("without {token}"),
                            "all 256 bytes",
                        ));
                    }
                }
            }
            other => {
                let expected = "\"gpt2\", \"llama\" or \"gemma4\"";
                return Err(bad_value("tokenizer.ggml.model", format!("{other:?}"), expected));
            }
        }
        self.special_ids(vocabulary)?;
        Ok(vocabulary)
    }

    fn merges(&self) -> Checked {
        self.optional::<&str>("tokenizer.ggml.pre")?;
        let merges: &[String] = self.key("tokenizer.ggml.merges")?;
        // A space is never part of a byte-level token, so it separates the two.
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
            // llama.cpp adds these on demand and asserts that they exist. Its default for BPE is
            // token 11.
            let added = matches!(name, "bos" | "eos")
                && self.optional::<bool>(&format!("tokenizer.ggml.add_{name}_token"))? == Some(true);
            if id.is_none() && (added || matches!(name, "bos" | "eos") && vocabulary <= 11) {
                return Err(Rule::MissingKey { key, expected: "u32" }.into());
            }
        }
        Ok(())
    }
}
