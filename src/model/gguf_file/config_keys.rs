//! Converts the shape and constants of a decoder to GGUF metadata, with the keys of llama.cpp's
//! converter, and back.

use super::names::architecture;
use super::values::assumed_query_scalar;
use super::{foreign_keys, scaling};
use crate::gguf::{Array, Gguf, Value, Writer};
use crate::model::features::{AttentionBias, DeltaNetShape, Family, Features, Mixer};
use crate::model::{DecoderConfig, FileError};

/// Version of ggml's quantised formats (`GGML_QNT_VERSION`); every converter writes it.
const QUANTISATION_VERSION: u32 = 2;
/// A soft cap that changes no f32: `tanh(x / 2^30) 2^30` is x. For decoders without one, because
/// llama.cpp's graph of Gemma 2 always has both.
const NO_CAP: f64 = (1u64 << 30) as f64;
/// llama.cpp's rotary base for files that have none.
const DEFAULT_THETA: f64 = 10_000.0;
/// Sections of Qwen 3.5's rotary pairs for configurations that have none.
const DEFAULT_SECTIONS: [usize; 3] = [11, 11, 10];
/// The number whose square root divides scores, if llama.cpp would use another one. An export
/// folds the ratio into the query weights, and an import has to undo that.
pub(super) const QUERY_SCALAR_KEY: &str = "bespoke.attention.query_scalar";

/// Writes the configuration of a decoder; `file_type` is llama.cpp's `LLAMA_FTYPE_*`.
pub(in crate::model) fn write_config(
    config: &DecoderConfig,
    name: &str,
    file_type: u32,
    writer: &mut Writer,
) {
    let architecture = architecture(config.family);
    let features = &config.features;
    let key = |name: &str| format!("{architecture}.{name}");
    writer.set("general.architecture", architecture).set("general.type", "model");
    writer.set("general.name", told_name(name));
    writer.set("general.size_label", size_label(config.parameter_count()));
    let mut counts = vec![
        ("block_count", config.layers),
        ("context_length", config.max_position),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.ffn),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
    ];
    match config.family {
        Family::Llama => {
            counts.extend([("vocab_size", config.vocab_size), ("rope.dimension_count", config.head_dim)]);
        }
        Family::Qwen3_5 => counts.push(("rope.dimension_count", features.rotary_dim)),
        _ => {}
    }
    // Qwen 2 has no such key; the width follows from the others.
    if config.family != Family::Qwen2 {
        counts
            .extend([("attention.key_length", config.head_dim), ("attention.value_length", config.head_dim)]);
    }
    for (name, value) in counts {
        writer.set(key(name), value as u32);
    }
    writer.set(key("attention.layer_norm_rms_epsilon"), config.rms_eps as f32);
    if config.family != Family::Gemma2 || (config.rope_theta - DEFAULT_THETA).abs() > 0.0 {
        writer.set(key("rope.freq_base"), config.rope_theta as f32);
    }
    match config.family {
        Family::Gemma2 => gemma2(config, writer),
        Family::Qwen3_5 => qwen3_5(config, writer),
        _ => {}
    }
    writer.set("general.file_type", file_type).set("general.quantization_version", QUANTISATION_VERSION);
    if (assumed_query_scalar(config) - features.query_scalar).abs() > 0.0 {
        writer.set(QUERY_SCALAR_KEY, features.query_scalar);
    }
    scaling::write(config, writer);
}

fn gemma2(config: &DecoderConfig, writer: &mut Writer) {
    let features = &config.features;
    writer.set("gemma2.attn_logit_softcapping", features.attention_cap.unwrap_or(NO_CAP) as f32);
    writer.set("gemma2.final_logit_softcapping", features.logit_cap.unwrap_or(NO_CAP) as f32);
    let window = features.windows().next().unwrap_or(config.max_position);
    writer.set("gemma2.attention.sliding_window", window as u32);
    // Without a pattern, llama.cpp applies the window to every other block, starting with the
    // first.
    let windowed: Vec<bool> =
        features.mixers.iter().map(|mixer| matches!(mixer, Mixer::Attention { window: Some(_) })).collect();
    if windowed.iter().enumerate().any(|(layer, windowed)| *windowed != (layer % 2 == 0)) {
        writer.set("gemma2.attention.sliding_window_pattern", windowed);
    }
}

fn qwen3_5(config: &DecoderConfig, writer: &mut Writer) {
    let features = &config.features;
    let sections = features.rotary_sections.as_deref().unwrap_or(&DEFAULT_SECTIONS);
    let sections = fitting_sections(sections, features.rotary_dim / 2, config.head_dim);
    writer.set("qwen35.rope.dimension_sections", sections);
    if let Some(shape) = features.delta_net() {
        for (name, value) in [
            ("conv_kernel", shape.kernel),
            ("state_size", shape.key_dim),
            ("group_count", shape.key_heads),
            ("time_step_rank", shape.value_heads),
            ("inner_size", shape.values()),
        ] {
            writer.set(format!("qwen35.ssm.{name}"), value as u32);
        }
    }
    let recurrent: Vec<bool> =
        features.mixers.iter().map(|mixer| matches!(mixer, Mixer::DeltaNet(_))).collect();
    writer.set("qwen35.attention.recurrent_layers", recurrent);
    writer.set("qwen35.full_attention_interval", 4u32);
}

/// Sections that give every rotary pair its token's position. Pair p takes the position of section
/// p mod 3 if that is longer than p / 3, else one that text doesn't have. llama.cpp aborts if the
/// sections together are wider than a head.
fn fitting_sections(found: &[usize], pairs: usize, head_dim: usize) -> Vec<i32> {
    let needed: Vec<usize> = (0..3).map(|section| (pairs + 2 - section) / 3).collect();
    let covers = needed.iter().enumerate().all(|(at, needed)| found.get(at).is_some_and(|n| n >= needed));
    let fits = covers && found.iter().sum::<usize>() <= head_dim;
    let chosen = if fits { found } else { &needed };
    chosen.iter().map(|&n| n as i32).chain(std::iter::repeat(0)).take(4).collect()
}

/// A model's name for `general.name`. llama.cpp recognises some models by it and swallows spaces
/// after their control tokens.
fn told_name(name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    if ["phi-3", "phi3", "modern-bert"].iter().any(|known| lower.contains(known)) {
        return name.replace('3', " 3").replace('-', " - ");
    }
    name.to_owned()
}

/// The number of parameters as in the labels of model files: at least two digits, and a letter.
fn size_label(parameters: u64) -> String {
    let (scale, letter) = match parameters {
        n if n > 1_000_000_000_000 => (1e12, "T"),
        n if n > 1_000_000_000 => (1e9, "B"),
        n if n > 1_000_000 => (1e6, "M"),
        _ => (1e3, "K"),
    };
    let scaled = parameters as f64 / scale;
    let digits = match scaled.round_ties_even() as u64 {
        0 => 2,
        n => 2usize.saturating_sub(n.to_string().len()),
    };
    format!("{scaled:.digits$}{letter}")
}

/// Reads the configuration of a decoder from a file that has passed `check_model`.
///
/// # Errors
/// Another architecture; keys that are missing or ask for something that the decoder doesn't
/// compute.
pub(super) fn read_config(file: &Gguf) -> Result<DecoderConfig, FileError> {
    let found: &str = file.get("general.architecture")?;
    let family = Family::ALL.into_iter().find(|family| architecture(*family) == found).ok_or_else(|| {
        let all = Family::ALL.map(architecture).join(", ");
        FileError::key(file.path(), "general.architecture", format!("{found:?}"), format!("one of {all}"))
    })?;
    let keys = Keys { file, architecture: architecture(family) };
    foreign_keys::refuse(file, keys.architecture, family)?;
    let (hidden_size, heads) = (keys.count("embedding_length")?, keys.count("attention.head_count")?);
    let layers = keys.count("block_count")?;
    let head_dim = match keys.optional("attention.key_length")? {
        Some(head_dim) => head_dim,
        None => hidden_size / heads,
    };
    let mut config = DecoderConfig {
        family,
        vocab_size: file.get::<&[String]>("tokenizer.ggml.tokens")?.len(),
        hidden_size,
        layers,
        heads,
        kv_heads: keys.optional("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        ffn: keys.count("feed_forward_length")?,
        rms_eps: widen(file.get(&keys.name("attention.layer_norm_rms_epsilon"))?),
        rope_theta: keys.float("rope.freq_base")?.unwrap_or(DEFAULT_THETA),
        rope_scaling: None,
        tied: file.tensor("output.weight").is_none(),
        max_position: keys.count("context_length")?,
        features: keys.features(family, layers, heads, head_dim)?,
    };
    config.features.query_scalar =
        file.find::<f64>(QUERY_SCALAR_KEY)?.unwrap_or_else(|| assumed_query_scalar(&config));
    config.rope_scaling = scaling::read(file, &config)?;
    Ok(config)
}

/// The f64 with the same shortest decimal form as this f32: 1e-5, not 9.99999974737875e-6.
fn widen(value: f32) -> f64 {
    value.to_string().parse().expect("what Rust prints for an f32 is a number")
}

/// The keys of one architecture.
struct Keys<'a> {
    file: &'a Gguf,
    architecture: &'static str,
}

impl Keys<'_> {
    fn name(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn count(&self, name: &str) -> Result<usize, FileError> {
        Ok(self.file.get::<u32>(&self.name(name))? as usize)
    }

    fn optional(&self, name: &str) -> Result<Option<usize>, FileError> {
        Ok(self.file.find::<u32>(&self.name(name))?.map(|n| n as usize))
    }

    fn float(&self, name: &str) -> Result<Option<f64>, FileError> {
        Ok(self.file.find::<f32>(&self.name(name))?.map(widen))
    }

    fn wrong(&self, name: &str, found: impl Into<String>, expected: &str) -> FileError {
        FileError::key(self.file.path(), self.name(name), found, expected)
    }

    fn features(
        &self,
        family: Family,
        layers: usize,
        heads: usize,
        head_dim: usize,
    ) -> Result<Features, FileError> {
        let mut features = family.features(layers, heads, head_dim);
        match family {
            Family::Llama => {
                let has = |name: &str| self.file.tensor(&format!("blk.0.{name}.bias")).is_some();
                features.ffn_bias = has("ffn_up");
                features.attention_bias = match (has("attn_q"), has("attn_output")) {
                    (false, false) => AttentionBias::None,
                    (_, true) => AttentionBias::All,
                    (true, false) => AttentionBias::QueryKeyValue,
                };
            }
            Family::Qwen2 | Family::Qwen3 => {}
            Family::Gemma2 => self.gemma2(layers, &mut features)?,
            Family::Qwen3_5 => self.qwen3_5(layers, &mut features)?,
        }
        Ok(features)
    }

    fn gemma2(&self, layers: usize, features: &mut Features) -> Result<(), FileError> {
        let cap = |name: &str, usual: Option<f64>| -> Result<Option<f64>, FileError> {
            Ok(self.float(name)?.or(usual).filter(|cap| (*cap as f32) < NO_CAP as f32))
        };
        features.attention_cap = cap("attn_logit_softcapping", features.attention_cap)?;
        features.logit_cap = cap("final_logit_softcapping", features.logit_cap)?;
        if let Some(base) = self.float("rope.freq_base_swa")? {
            let expected = "nothing: the decoder has one base for all blocks";
            return Err(self.wrong("rope.freq_base_swa", base.to_string(), expected));
        }
        let window = self.optional("attention.sliding_window")?;
        let window = window.unwrap_or(crate::model::features::DEFAULT_WINDOW);
        let windowed = self.flags("attention.sliding_window_pattern", layers)?;
        let windowed = windowed.unwrap_or_else(|| (0..layers).map(|layer| layer % 2 == 0).collect());
        let mixer = |windowed: bool| Mixer::Attention { window: windowed.then_some(window) };
        features.mixers = windowed.into_iter().map(mixer).collect();
        Ok(())
    }

    fn qwen3_5(&self, layers: usize, features: &mut Features) -> Result<(), FileError> {
        features.rotary_dim = self.count("rope.dimension_count")?;
        let sections: &[i32] = self.file.get(&self.name("rope.dimension_sections"))?;
        let whole = |n: &i32| usize::try_from(*n).ok();
        let sections: Option<Vec<usize>> = sections.iter().map(whole).collect();
        let mut sections = sections.ok_or_else(|| {
            self.wrong("rope.dimension_sections", "a number below 0", "0 or more in each entry")
        })?;
        if sections.len() == 4 && sections[3] == 0 {
            sections.pop(); // the fourth is llama.cpp's own; Hugging Face has three
        }
        features.rotary_sections = Some(sections);
        let value_heads = self.count("ssm.time_step_rank")?;
        let shape = DeltaNetShape {
            key_heads: self.count("ssm.group_count")?,
            value_heads,
            key_dim: self.count("ssm.state_size")?,
            value_dim: self.count("ssm.inner_size")? / value_heads,
            kernel: self.count("ssm.conv_kernel")?,
        };
        let interval = self.optional("full_attention_interval")?.unwrap_or(4);
        let recurrent = self.flags("attention.recurrent_layers", layers)?;
        let recurrent = recurrent.unwrap_or_else(|| (1..=layers).map(|n| n % interval != 0).collect());
        let mixer = |recurrent: bool| {
            if recurrent { Mixer::DeltaNet(shape) } else { Mixer::Attention { window: None } }
        };
        features.mixers = recurrent.into_iter().map(mixer).collect();
        Ok(())
    }

    /// One boolean per layer.
    fn flags(&self, name: &str, layers: usize) -> Result<Option<Vec<bool>>, FileError> {
        let key = self.name(name);
        let value = self.file.metadata().iter().find(|(found, _)| *found == key).map(|(_, value)| value);
        let flags = match value {
            None => return Ok(None),
            Some(Value::Array(Array::Bool(flags))) => flags.clone(),
            Some(Value::Array(Array::I32(numbers))) => numbers.iter().map(|&n| n != 0).collect(),
            Some(Value::Array(Array::U32(numbers))) => numbers.iter().map(|&n| n != 0).collect(),
            Some(other) => return Err(self.wrong(name, other.type_name(), "array of bool")),
        };
        if flags.len() != layers {
            return Err(self.wrong(name, format!("{} entries", flags.len()), "one per block"));
        }
        Ok(Some(flags))
    }
}

#[cfg(test)]
mod tests {
    use super::{fitting_sections, size_label, told_name};

    #[test]
    fn sections_cover_the_pairs_and_fit_a_head() {
        assert_eq!(fitting_sections(&[11, 11, 10], 32, 256), [11, 11, 10, 0]);
        assert_eq!(fitting_sections(&[11, 11, 10], 1, 8), [1, 0, 0, 0]);
        assert_eq!(fitting_sections(&[11, 11, 10], 2, 16), [1, 1, 0, 0]);
        assert_eq!(fitting_sections(&[2, 1, 1], 4, 16), [2, 1, 1, 0]);
        assert_eq!(fitting_sections(&[1, 1, 1], 4, 16), [2, 1, 1, 0]);
    }

    #[test]
    fn no_name_is_one_that_llama_cpp_treats_apart() {
        assert_eq!(told_name("my-model-3"), "my-model-3");
        for name in ["Phi-3-mini", "my-phi3", "PHI3", "Modern-BERT", "modern-bert-base"] {
            let told = told_name(name).to_ascii_lowercase();
            assert!(!["phi-3", "phi3", "modern-bert"].iter().any(|known| told.contains(known)), "{told}");
        }
    }

    #[test]
    fn sizes_are_labelled_as_other_files_are() {
        for (parameters, label) in
            [(26_000, "26K"), (1_544_000_000, "1.5B"), (494_000_000, "494M"), (7_600, "7.6K"), (300, "0.30K")]
        {
            assert_eq!(size_label(parameters), label);
        }
    }
}
