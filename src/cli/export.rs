//! `bespoke export`: converts a Hugging Face folder to a GGUF file, and keeps the file only if
//! llama.cpp computes the same with it as Candle.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use candle_core::{Device, Tensor};

use crate::atomic_file::Staged;
use crate::engine::ffi::{QuantType, quantise};
use crate::engine::reference::Reference;
use crate::model::features::Activation;
use crate::model::gguf_file::{self, Precision};
use crate::model::{
    BatchLayout, BlockSpec, Decoder, DecoderConfig, Model, ModelSource, NoTaps, TextSide, hugging_face,
    logits_by_block,
};
use crate::text::ChatTemplate;
use crate::text::tokenizer::Tokenizer;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder with config.json, model.safetensors (or shards) and tokenizer.json
    folder: PathBuf,
    /// File to write
    output: PathBuf,
    /// Type of the matrices
    #[arg(long = "type", value_name = "TYPE", default_value = "F32", ignore_case = true)]
    kind: Kind,
}

/// The types of matrices in an export, by llama.cpp's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[clap(rename_all = "verbatim")]
#[allow(non_camel_case_types, missing_docs)]
pub enum Kind {
    F32,
    F16,
    BF16,
    Q8_0,
    Q6_K,
    Q5_K_M,
    Q5_K_S,
    Q5_1,
    Q5_0,
    Q4_K_M,
    Q4_K_S,
    Q4_1,
    Q4_0,
    IQ4_NL,
    IQ4_XS,
    Q3_K_L,
    Q3_K_M,
    Q3_K_S,
    Q2_K,
}

/// Largest allowed difference of a logit of the F32 file from Candle's, relative to the largest
/// logit.
const EXACT: f32 = 1e-3;
/// The same for GELU, which llama.cpp looks up in a table of f16 values on the CPU.
const EXACT_GELU: f32 = 5e-3;

/// The allowed root mean square difference of a type for this model. A DeltaNet normalises queries
/// and keys, which amplifies the rounding of short ones; damage still shows as 1 or more.
fn allowed(config: &DecoderConfig, bound: f32) -> f32 {
    if config.delta_net().is_some() { (5.0 * bound).min(0.8) } else { bound }
}

fn exact(config: &DecoderConfig) -> f32 {
    let gelu = |block: &BlockSpec| block.ffn.activation == Activation::GeluTanh;
    if config.blocks.iter().any(gelu) { EXACT_GELU } else { EXACT }
}

/// How the file of a type is made from the F32 file.
enum Maker {
    /// It is the F32 file.
    Nothing,
    /// Our own writer.
    Writer(Precision),
    /// llama.cpp's quantiser, with its type.
    Quantiser(QuantType),
}

impl Kind {
    /// How the type is made, and the allowed root mean square difference of logits, relative to
    /// their root mean square. The F32 file proves the structure; this bound only distinguishes
    /// loss of precision from damage, which shows as 1 or more. The bounds hold for random weights,
    /// the worst case.
    fn plan(self) -> (Maker, f32) {
        let by = |file_type| Maker::Quantiser(QuantType(file_type));
        match self {
            Self::F32 => (Maker::Nothing, EXACT),
            Self::F16 => (Maker::Writer(Precision::F16), 1e-2),
            Self::BF16 => (Maker::Writer(Precision::Bf16), 5e-2),
            Self::Q8_0 => (by(7), 0.1),
            Self::Q6_K => (by(18), 0.1),
            Self::Q5_K_M => (by(17), 0.5),
            Self::Q5_K_S => (by(16), 0.5),
            Self::Q5_1 => (by(9), 0.5),
            Self::Q5_0 => (by(8), 0.5),
            Self::Q4_K_M => (by(15), 0.8),
            Self::Q4_K_S => (by(14), 0.8),
            Self::Q4_1 => (by(3), 0.8),
            Self::Q4_0 => (by(2), 0.8),
            Self::IQ4_NL => (by(25), 0.8),
            Self::IQ4_XS => (by(30), 0.8),
            Self::Q3_K_L => (by(13), 0.8),
            Self::Q3_K_M => (by(12), 0.8),
            Self::Q3_K_S => (by(11), 0.8),
            Self::Q2_K => (by(10), 0.8),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// A folder that can't be read or exported; a file with which llama.cpp computes something
/// different.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let model = hugging_face::Folder::open(&args.folder)?;
    for warning in template_warnings(model.text(), &args.folder) {
        eprintln!("warning: {warning}");
    }
    let report = export(&model, &args.folder, &args.output, args.kind)?;
    let bytes = fs_err::metadata(&args.output)?.len();
    println!("{}: {} parameters, {bytes} bytes", args.output.display(), model.config().parameter_count());
    let Report { tokens, exact, stored } = report;
    println!("{tokens} token ids are equal in Candle and llama.cpp");
    let most = self::exact(model.config());
    println!("logits as F32: max |difference| / max |logit| is {exact:.1e} (at most {most:.0e})");
    if args.kind != Kind::F32 {
        let bound = allowed(model.config(), args.kind.plan().1);
        println!(
            "logits as {:?}: RMS difference / RMS logit is {stored:.1e} (at most {bound:.0e})",
            args.kind
        );
    }
    Ok(())
}

/// Problems with the chat templates of a model. They are exported anyway, because other programs
/// may support them.
fn template_warnings(text: &TextSide, folder: &Path) -> Vec<String> {
    let named = text.named_templates.iter().map(|(name, source)| (format!(" {name:?}"), source));
    let default = text.chat_template.iter().map(|source| (String::new(), source));
    let warning = |(name, source): (String, &String)| {
        let error = ChatTemplate::check(source).err()?;
        Some(format!(
            "{}: chat template{name}: {error}\nhint: `bespoke serve` refuses a model whose template it can't read, unless \
             model.chat_template names a file with another one",
            folder.display()
        ))
    };
    default.chain(named).filter_map(warning).collect()
}

/// How well Candle and llama.cpp agree.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// Tokens whose ids and logits were compared.
    pub tokens: usize,
    /// max |difference| / max |logit| with the weights as F32.
    pub exact: f32,
    /// RMS difference / RMS logit with the weights as stored.
    pub stored: f32,
}

/// Writes `output` and checks it; a file that fails the check never gets that name.
///
/// # Errors
/// As [`run`].
pub fn export(model: &impl ModelSource, folder: &Path, output: &Path, kind: Kind) -> anyhow::Result<Report> {
    let name = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let name = name.file_name().map_or("model".into(), |name| name.to_string_lossy().into_owned());
    let stage = || Staged::new(output).with_context(|| output.display().to_string());
    let write = |to: &Path, precision| gguf_file::export(model, &name, folder, to, precision);
    let full = stage()?;
    write(full.path(), Precision::F32)?;
    let parity = check(model, full.path()).context("the export was checked and not kept")?;
    let Parity { tokens, max: exact, .. } = parity;
    let most = self::exact(model.config());
    // Not `>`, because a NaN must fail.
    ensure!(
        exact <= most,
        "the export was checked and not kept: logits of Candle and llama.cpp differ by {exact:.1e} of the largest logit, \
         expected at most {most:.0e}"
    );
    let (maker, bound) = kind.plan();
    let bound = allowed(model.config(), bound);
    let last = match maker {
        Maker::Nothing => {
            full.commit().with_context(|| output.display().to_string())?;
            return Ok(Report { tokens, exact, stored: parity.rms });
        }
        Maker::Writer(precision) => {
            let last = stage()?;
            write(last.path(), precision)?;
            last
        }
        Maker::Quantiser(kind) => {
            let last = stage()?;
            quantise(full.path(), last.path(), kind)?;
            last
        }
    };
    let stored = check(model, last.path()).context("the export was checked and not kept")?.rms;
    ensure!(
        stored <= bound,
        "the export was checked and not kept: logits of Candle and llama.cpp differ by {stored:.1e} of their root mean \
         square, expected at most {bound:.0e} for {kind:?}"
    );
    last.commit().with_context(|| output.display().to_string())?;
    Ok(Report { tokens, exact, stored })
}

/// Examples of everything that tokenizers treat differently: words, numbers, code, escapes,
/// markers as text, scripts, spaces.
const PROMPT: &str = "Fix: the parser's 2nd crash in src/main.rs:417 (error 0x3fA2, 99.5 %)\n\n  - {\"gist\":\"naïve\\n\"} \
    <|user|> isn't a turn\t日本語 Ünïcode 👩‍💻   end \r\n";

/// How well two rows of logits agree.
#[derive(Debug, Clone, Copy)]
pub struct Parity {
    /// Tokens whose logits were compared.
    pub tokens: usize,
    /// max |difference| / max |expected|.
    pub max: f32,
    /// RMS difference / RMS expected.
    pub rms: f32,
}

/// Compares ids and logits of one prompt.
///
/// # Errors
/// Different ids; either side fails to compute.
pub fn check(model: &impl ModelSource, gguf: &Path) -> anyhow::Result<Parity> {
    let reference = Reference::open(gguf)?;
    let json = serde_json::to_vec(&model.text().tokenizer)?;
    let inner =
        tokenizers::Tokenizer::from_bytes(&json).map_err(|e| anyhow::anyhow!("tokenizer.json: {e}"))?;
    let tokenizer = Tokenizer::new(inner);
    for (id, token) in tokenizer.inner().get_added_tokens_decoder() {
        let found = reference.tokenize(&token.content, true);
        ensure!(found == [id], "llama.cpp reads token {:?} as {found:?}, expected [{id}]", token.content);
        // User text. llama.cpp has tables of texts that it treats as special tokens. Runs of the
        // space marker are produced by merges, which depend on the surrounding text.
        if !token.content.contains('▁') {
            let (ours, theirs) =
                (tokenizer.encode(&token.content)?, reference.tokenize(&token.content, false));
            ensure!(
                ours == theirs,
                "in a text, llama.cpp reads {:?} as {theirs:?}, tokenizer.json as {ours:?}: llama.cpp treats it specially, so \
                 a model that is trained with this tokenizer would be served differently than it was trained",
                token.content
            );
        }
    }
    let mut ids = tokenizer.encode(PROMPT)?;
    let found = reference.tokenize(PROMPT, false);
    if ids != found {
        let at = ids.iter().zip(&found).take_while(|(a, b)| a == b).count();
        let ids_there = (ids.get(at), found.get(at));
        bail!("from token {at} on, tokenizer.json and llama.cpp read the prompt differently: {ids_there:?}");
    }
    ids.truncate(model.config().max_position);
    let theirs = reference.logits(&ids)?;
    let ours = logits_by_block(model, &ids)?;
    let (max, rms) = relative_difference(&ours, &theirs)?;
    Ok(Parity { tokens: ids.len(), max, rms })
}

/// Logits after each token by Candle, row-major `[ids, vocabulary]`.
///
/// # Errors
/// Ids outside the vocabulary.
pub fn candle_logits(model: &Model, ids: &[u32]) -> candle_core::Result<Vec<f32>> {
    let decoder = Decoder::frozen(model.config.clone(), &model.parameters)?;
    let input = Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu)?;
    let hidden = decoder.forward(&input, &BatchLayout::whole(1, ids.len()), &mut NoTaps)?;
    decoder.logits(&hidden)?.flatten_all()?.to_vec1()
}

/// max |a - b| / max |a|, and the same for root mean squares; NaN if any value is.
///
/// # Errors
/// Different lengths.
pub fn relative_difference(expected: &[f32], found: &[f32]) -> anyhow::Result<(f32, f32)> {
    ensure!(expected.len() == found.len(), "{} logits, expected {}", found.len(), expected.len());
    let (mut max, mut square) = ([0f64; 2], [0f64; 2]);
    for (&a, &b) in expected.iter().zip(found) {
        for (at, value) in [a - b, a].map(f64::from).into_iter().enumerate() {
            // f64::max ignores NaN, which must not count as agreement.
            max[at] = if value.is_nan() { value } else { value.abs().max(max[at]) };
            square[at] += value * value;
        }
    }
    let rms = (square[0] / square[1]).sqrt();
    let max = if rms.is_nan() { f64::NAN } else { max[0] / max[1] };
    Ok((max as f32, rms as f32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::hugging_face_config::TokenIds;

    #[test]
    fn templates_that_are_none_are_said_with_their_names_and_lines() {
        let text = TextSide {
            tokenizer: serde_json::Value::Null,
            chat_template: Some("{{ x }}\n{% for m in %}".into()),
            named_templates: vec![("good".into(), "{{ x }}".into()), ("rag".into(), "{% x".into())],
            ids: TokenIds::default(),
        };
        let found = template_warnings(&text, Path::new("some/folder"));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].starts_with("some/folder: chat template: the chat template can't be parsed: line 2: "),
            "{found:?}"
        );
        assert!(found[1].starts_with("some/folder: chat template \"rag\": "), "{found:?}");
        assert!(found[0].contains("hint: "), "{found:?}");
    }
}
