//! Synthetic models: the shape of a real one with random weights, to measure speed where the real
//! one can't be downloaded.
//!
//! Speed depends on shapes and types, not on values, so a synthetic model is as fast as the real
//! one. Its answers are noise.

use std::collections::HashSet;
use std::path::Path;

use half::f16;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::gguf_file::names::{gguf_dims, gguf_name};
use super::gguf_file::{stored_as, write_config};
use super::{DecoderConfig, Family, FileError};
use crate::gguf::{Array, GgmlType, Gguf, GgufError, Value, Writer, check_model};

/// llama.cpp's type of an ordinary token.
const NORMAL: i32 = 1;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";

/// How the matrices of a synthetic model are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum WeightType {
    /// Blocks of 32 signed bytes.
    #[value(name = "Q8_0", alias = "q8_0")]
    Q8,
    /// Blocks of 32 numbers of four bits.
    #[value(name = "Q4_0", alias = "q4_0")]
    Q4,
}

impl WeightType {
    fn kind(self) -> GgmlType {
        match self {
            Self::Q8 => GgmlType::Q8_0,
            Self::Q4 => GgmlType::Q4_0,
        }
    }

    /// llama.cpp's `LLAMA_FTYPE_MOSTLY_Q8_0` and `LLAMA_FTYPE_MOSTLY_Q4_0`.
    fn file_type(self) -> u32 {
        match self {
            Self::Q8 => 7,
            Self::Q4 => 2,
        }
    }

    /// Scale of every block. Numbers are uniform over 256 or 16 values, a standard deviation of
    /// that count / sqrt(12); the scale makes it 0.02 for the weights.
    fn scale(self) -> f32 {
        match self {
            Self::Q8 => 0.02 / 73.9,
            Self::Q4 => 0.02 / 4.62,
        }
    }
}

/// The model whose shape is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// Qwen2.5-1.5B: 1.54 billion parameters, 1.6 GB.
    #[value(name = "1.5b")]
    Post,
    /// A model for tests: 0.4 million parameters.
    Tiny,
    /// A model for tests of memory: little but a vocabulary of 262,144 entries and a context of
    /// 131,072 tokens, of 4 KiB each.
    Wide,
}

impl Shape {
    /// The decoder of this shape.
    pub fn config(self) -> DecoderConfig {
        match self {
            Self::Post => DecoderConfig {
                family: Family::Qwen3,
                vocab_size: 151_936,
                hidden_size: 1536,
                layers: 28,
                heads: 12,
                kv_heads: 2,
                head_dim: 128,
                ffn: 8960,
                rms_eps: 1e-6,
                rope_theta: 1e6,
                rope_scaling: None,
                tied: true,
                max_position: 32_768,
                features: Family::Qwen3.features(28, 12, 128),
            },
            Self::Tiny => DecoderConfig {
                // More than the shipped tokenizer has, so that this shape gets filler tokens too.
                vocab_size: 4_352,
                hidden_size: 64,
                layers: 2,
                heads: 4,
                kv_heads: 2,
                head_dim: 32,
                ffn: 128,
                max_position: 2048,
                features: Family::Qwen3.features(2, 4, 32),
                ..Self::Post.config()
            },
            Self::Wide => DecoderConfig {
                vocab_size: 1 << 18,
                kv_heads: 4,
                head_dim: 128,
                max_position: 1 << 17,
                features: Family::Qwen3.features(2, 4, 128),
                ..Self::Tiny.config()
            },
        }
    }
}

/// Writes a synthetic model of a shape; the seed determines every byte. One tensor at a time is in
/// memory.
///
/// The tokenizer is that of the model file `tokenizer`, with filler tokens up to the size of the
/// vocabulary. No merge produces them, so texts have the same tokens as with that file; fillers
/// appear only in answers.
///
/// # Errors
/// A file that is no model or has more tokens than the shape; I/O errors.
pub fn write(
    shape: Shape,
    weight_type: WeightType,
    seed: u64,
    tokenizer: &Path,
    target: &Path,
) -> Result<(), FileError> {
    let source = Gguf::open(tokenizer)?;
    check_model(&source)?;
    let config = shape.config();
    let mut writer = Writer::new();
    write_config(
        &config,
        &format!("stand-in-{}m", config.parameter_count() / 1_000_000),
        weight_type.file_type(),
        &mut writer,
    );
    write_tokenizer(&source, config.vocab_size, &mut writer)?;
    for (ours, shape) in config.parameter_shapes() {
        let theirs = gguf_name(config.family, &ours).expect("every parameter has a name in llama.cpp");
        writer.tensor(theirs, &gguf_dims(&shape), stored_as(&shape, weight_type.kind()));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    writer.write::<GgufError>(target, |tensor| {
        Ok(match tensor.kind {
            // Vectors are the weights of norms.
            GgmlType::F32 => 1f32.to_le_bytes().repeat(tensor.bytes as usize / 4),
            _ => random_blocks(&mut rng, weight_type, tensor.bytes as usize),
        })
    })?;
    Ok(())
}

/// `bytes` bytes of blocks: an f16 scale, then 32 numbers.
fn random_blocks(rng: &mut impl RngCore, weight_type: WeightType, bytes: usize) -> Vec<u8> {
    let scale = f16::from_f32(weight_type.scale()).to_le_bytes();
    let mut blocks = vec![0; bytes];
    rng.fill_bytes(&mut blocks);
    let block = match weight_type {
        WeightType::Q8 => 2 + 32,
        WeightType::Q4 => 2 + 16,
    };
    for block in blocks.chunks_exact_mut(block) {
        block[..2].copy_from_slice(&scale);
        for byte in &mut block[2..] {
            // ggml never quantises to -128 in Q8_0, and its kernels negate bytes in place.
            if weight_type == WeightType::Q8 && *byte == 0x80 {
                *byte = 0x81;
            }
        }
    }
    blocks
}

fn write_tokenizer(source: &Gguf, vocabulary: usize, writer: &mut Writer) -> Result<(), FileError> {
    match source.get::<&str>("tokenizer.ggml.model")? {
        "gpt2" => {}
        other => {
            let (key, found) = ("tokenizer.ggml.model", format!("{other:?}"));
            return Err(FileError::key(source.path(), key, found, "\"gpt2\": filler tokens have no scores"));
        }
    }
    for (key, value) in source.metadata() {
        let value = match (key.as_str(), value) {
            (TOKENS, Value::Array(Array::String(tokens))) => filled(source, tokens, vocabulary)?.into(),
            (TOKEN_TYPES, Value::Array(Array::I32(types))) => {
                let mut types = types.clone();
                types.resize(vocabulary, NORMAL);
                types.into()
            }
            (key, value) if key.starts_with("tokenizer.") => value.clone(),
            _ => continue,
        };
        writer.set(key.clone(), value);
    }
    Ok(())
}

/// The tokens, followed by words of four letters that are not among them, every other one with a
/// leading space.
fn filled(source: &Gguf, tokens: &[String], vocabulary: usize) -> Result<Vec<String>, FileError> {
    if tokens.len() > vocabulary {
        let (found, expected) = (format!("{} entries", tokens.len()), format!("at most {vocabulary}"));
        return Err(FileError::key(source.path(), TOKENS, found, expected));
    }
    let taken: HashSet<&String> = tokens.iter().collect();
    let words = (0u32..).flat_map(|number| {
        let letter = |place: u32| char::from(b'a' + (number / 26u32.pow(place) % 26) as u8);
        let word: String = [0, 1, 2, 3].map(letter).iter().collect();
        // "Ġ" is how byte-level BPE writes a space.
        [format!("Ġ{word}"), word]
    });
    let filler = words.filter(|word| !taken.contains(word)).take(vocabulary - tokens.len());
    Ok(tokens.iter().cloned().chain(filler).collect())
}
