//! The keys of an adapter's GGUF file: checks the type of every key that is read, and reads the
//! spoke's origin.

use std::collections::BTreeSet;

use super::{Adapter, Defect, Digest, Format, LayerNorms, Post, Refusal, Spoke};
use crate::gguf::{Gguf, Rule};

/// `general.type` of every spoke.
pub(super) const ADAPTER: &str = "adapter";
/// Keys of a spoke's origin.
pub(super) const POST: &str = crate::gguf::ORIGIN_KEY;
pub(super) const TOKENIZER: &str = "bespoke.tokenizer.sha256";
pub(super) const PROMPT: &str = "bespoke.prompt.id";
pub(super) const TASK: &str = "bespoke.task";
/// llama.cpp's numerator of the scale.
pub(super) const ALPHA: &str = "adapter.lora.alpha";
/// Shape of a Felix spoke.
pub(super) const SPOKES: &str = "felix.num_spokes";
pub(super) const RANK: &str = "felix.spoke_rank";
pub(super) const EPS: &str = "felix.rms_eps";

/// Texts that llama.cpp or people read. For some of them, a wrong type terminates llama.cpp's
/// process.
const TEXTS: [&str; 14] = [
    "general.type",
    "general.architecture",
    "general.name",
    "general.author",
    "general.version",
    "general.description",
    "general.license",
    "general.basename",
    "adapter.type",
    "adapter.lora.task_name",
    "adapter.lora.prompt_prefix",
    PROMPT,
    TASK,
    "tokenizer.chat_template",
];

/// The origin of a spoke, as far as it is recorded.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Origin {
    pub architecture: Option<String>,
    pub post: Option<Digest>,
    pub tokenizer: Option<Digest>,
    pub prompt: Option<String>,
    pub task: Option<String>,
}

impl Origin {
    /// Compares the origin with the post that the spoke is to run on.
    ///
    /// # Errors
    /// Architecture, post or tokenizer differs.
    pub fn check(&self, post: Option<&Post>) -> Result<(), Defect> {
        let Some(post) = post else { return Ok(()) };
        if let Some(found) = self.architecture.as_ref().filter(|&found| *found != post.architecture) {
            return Err(Defect::Architecture { found: found.clone(), expected: post.architecture.clone() });
        }
        if let Some(found) = self.post.filter(|found| !post.is(found)) {
            return Err(Defect::Post { found, expected: post.identity() });
        }
        match self.tokenizer.filter(|found| *found != post.tokenizer) {
            Some(found) => Err(Defect::Tokenizer { found, expected: post.tokenizer }),
            None => Ok(()),
        }
    }

    /// A spoke with this origin. The caller, which opened the file, fills in `file_bytes`.
    pub fn into_spoke(
        self,
        format: Format,
        adapter: Adapter,
        layers: BTreeSet<u32>,
        resident_bytes: u64,
        norms: Vec<LayerNorms>,
    ) -> Spoke {
        let Self { architecture, post, tokenizer, prompt, task } = self;
        Spoke {
            format,
            adapter,
            architecture,
            layers,
            file_bytes: 0,
            resident_bytes,
            post,
            tokenizer,
            prompt,
            task,
            norms,
        }
    }
}

/// The kinds of adapter files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AdapterType {
    Lora,
    Felix,
}

/// Reads and checks the keys of an adapter.
///
/// # Errors
/// A key that is missing, has another type or value than required, or is unknown where unknown keys
/// matter.
pub(super) fn read(file: &Gguf) -> Result<(AdapterType, Origin), Refusal> {
    let refuse = |reason: Defect| Refusal::new(file.path(), reason);
    for key in TEXTS {
        file.find::<&str>(key)?;
    }
    match file.find::<&str>("general.type")? {
        Some(ADAPTER) => {}
        found => return Err(refuse(Defect::NotAnAdapter { found: found.unwrap_or("missing").to_owned() })),
    }
    let architecture = file.get::<&str>("general.architecture")?;
    for key in ["general.file_type", "general.quantization_version"] {
        file.find::<u32>(key)?;
    }
    let (adapter, known): (_, &[&str]) = match file.get::<&str>("adapter.type")? {
        "lora" => (
            AdapterType::Lora,
            &["adapter.type", ALPHA, "adapter.lora.task_name", "adapter.lora.prompt_prefix"],
        ),
        "felix" => (AdapterType::Felix, &["adapter.type", SPOKES, RANK, EPS]),
        found => return Err(refuse(Defect::AdapterType { found: found.to_owned() })),
    };
    for (key, _) in file.metadata() {
        if key.starts_with("adapter.alora.") {
            return Err(refuse(Defect::Unsupported {
                code: "activated_lora",
                what: format!("key {key:?} makes it an activated LoRA"),
                why: "takes effect from some tokens on only",
                hint: "train a plain LoRA",
            }));
        }
        if (key.starts_with("adapter.") || key.starts_with("felix.")) && !known.contains(&key.as_str()) {
            return Err(refuse(Defect::UnknownKey { key: key.clone() }));
        }
    }
    let origin = Origin {
        architecture: Some(architecture.to_owned()),
        post: digest(file, POST)?,
        tokenizer: digest(file, TOKENIZER)?,
        prompt: file.find::<&str>(PROMPT)?.map(str::to_owned),
        task: file.find::<&str>(TASK)?.map(str::to_owned),
    };
    Ok((adapter, origin))
}

fn digest(file: &Gguf, key: &str) -> Result<Option<Digest>, Refusal> {
    let parse = |text: &str| {
        text.parse().map_err(|_| bad(key, format!("{text:?}"), "a SHA-256 in 64 hexadecimal digits"))
    };
    let digest = file.find::<&str>(key)?.map(parse).transpose();
    digest.map_err(|rule| Refusal::new(file.path(), rule))
}

/// Checks an adapter's own token list, if it has one, against the post.
///
/// # Errors
/// The number of tokens differs.
pub(super) fn check_tokens(file: &Gguf, post: Option<&Post>) -> Result<(), Refusal> {
    let key = "tokenizer.ggml.tokens";
    let tokens = file.find::<&[String]>(key)?;
    match (tokens, post) {
        (Some(tokens), Some(post)) if tokens.len() as u64 != post.vocabulary => {
            let (found, expected) = (tokens.len() as u64, post.vocabulary);
            let rule = Rule::ArrayLength { key: key.into(), found, expected, why: "the post's vocabulary" };
            Err(Refusal::new(file.path(), rule))
        }
        _ => Ok(()),
    }
}

/// The value of a key that must be a finite number other than 0.
///
/// # Errors
/// Missing; another type; NaN, infinite or 0.
pub(super) fn finite(file: &Gguf, key: &str) -> Result<f32, Refusal> {
    let found: f32 = file.get(key)?;
    if found.is_finite() && found != 0.0 {
        return Ok(found);
    }
    Err(Refusal::new(file.path(), bad(key, found, "a finite number other than 0")))
}

/// The rule for a key whose value can't be used.
pub(super) fn bad(key: impl Into<String>, found: impl ToString, expected: impl Into<String>) -> Rule {
    Rule::BadValue { key: key.into(), found: found.to_string(), expected: expected.into() }
}
