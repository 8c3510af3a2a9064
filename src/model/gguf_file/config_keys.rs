//! Converts the shape and constants of a decoder to GGUF metadata, with the keys of llama.cpp's
//! converter, and back.

use super::names::{architecture, architecture_of, family_of, gguf_name, is_per_block};
use super::values::assumed_query_scalar;
use super::{foreign_keys, scaling};
use crate::gguf::{Array, FromValue as _, Gguf, PerBlock, Rule, Value, Writer};
use crate::model::features::{AttentionBias, DEFAULT_WINDOW, DeltaNetShape, Family};
use crate::model::spec::{AttentionSpec, Mixer, Part};
use crate::model::{BlockSpec, DecoderConfig, FileError, Projection, Role, Uniform};

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
    let architecture = architecture_of(config);
    let key = |name: &str| format!("{architecture}.{name}");
    writer.set("general.architecture", architecture).set("general.type", "model");
    writer.set("general.name", told_name(name));
    writer.set("general.size_label", size_label(config.parameter_count()));
    writer.set(key("block_count"), config.layers() as u32);
    writer.set(key("context_length"), config.max_position as u32);
    writer.set(key("embedding_length"), config.hidden_size as u32);
    let counts = |of: &dyn Fn(&BlockSpec) -> Option<usize>| -> PerBlock {
        config.blocks.iter().filter_map(|block| Some(of(block)? as u32)).collect::<Vec<_>>().into()
    };
    writer.set(key("feed_forward_length"), counts(&|block| Some(block.ffn.width)));
    let attention = config.attention().next();
    if let Some(attention) = attention {
        writer.set(key("attention.head_count"), counts(&|block| Some(block.attention()?.heads)));
        writer.set(key("attention.head_count_kv"), counts(&|block| Some(block.attention()?.kv_heads)));
        let head_dim = attention.head_dim as u32;
        match config.family {
            Family::Llama => {
                writer.set(key("vocab_size"), config.vocab_size as u32);
                writer.set(key("rope.dimension_count"), head_dim);
            }
            Family::Qwen3_5 => {
                writer.set(key("rope.dimension_count"), attention.rotary_dim as u32);
            }
            _ => {}
        }
        // Qwen 2 has no such key: the width follows from the others.
        if config.family != Family::Qwen2 {
            writer.set(key("attention.key_length"), head_dim).set(key("attention.value_length"), head_dim);
        }
    }
    writer.set(key("attention.layer_norm_rms_epsilon"), config.rms_eps as f32);
    if let Some(AttentionSpec { rope_theta, .. }) = attention
        && (config.family != Family::Gemma2 || (rope_theta - DEFAULT_THETA).abs() > 0.0)
    {
        writer.set(key("rope.freq_base"), *rope_theta as f32);
    }
    match (config.family, attention) {
        (Family::Gemma2, Some(attention)) => gemma2(config, attention, writer),
        (Family::Qwen3_5, Some(attention)) => qwen3_5(config, attention, writer),
        _ => {}
    }
    writer.set("general.file_type", file_type).set("general.quantization_version", QUANTISATION_VERSION);
    if let Some(&AttentionSpec { query_scalar, .. }) = attention
        && (assumed_query_scalar(config) - query_scalar).abs() > 0.0
    {
        writer.set(QUERY_SCALAR_KEY, query_scalar);
    }
    scaling::write(config, writer);
}

fn gemma2(config: &DecoderConfig, attention: &AttentionSpec, writer: &mut Writer) {
    writer.set("gemma2.attn_logit_softcapping", attention.cap.unwrap_or(NO_CAP) as f32);
    writer.set("gemma2.final_logit_softcapping", config.features.logit_cap.unwrap_or(NO_CAP) as f32);
    let window = config.windows().next().unwrap_or(config.max_position);
    writer.set("gemma2.attention.sliding_window", window as u32);
    // Without a pattern, llama.cpp takes every other block, from the first on.
    let windowed: Vec<bool> = config.attention().map(|attention| attention.window.is_some()).collect();
    if windowed.iter().enumerate().any(|(layer, windowed)| *windowed != (layer % 2 == 0)) {
        writer.set("gemma2.attention.sliding_window_pattern", windowed);
    }
}

fn qwen3_5(config: &DecoderConfig, attention: &AttentionSpec, writer: &mut Writer) {
    let sections = config.features.rotary_sections.as_deref().unwrap_or(&DEFAULT_SECTIONS);
    let sections = fitting_sections(sections, attention.rotary_dim / 2, attention.head_dim);
    writer.set("qwen35.rope.dimension_sections", sections);
    if let Some(shape) = config.delta_net() {
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
    let recurrent: Vec<bool> = config.blocks.iter().map(|block| block.delta_net().is_some()).collect();
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
    let family = family_of(found).ok_or_else(|| {
        let all = Family::ALL.map(architecture).join(", ");
        FileError::key(file.path(), "general.architecture", format!("{found:?}"), format!("one of {all}"))
    })?;
    let layers = file.get::<u32>(&format!("{found}.block_count"))? as usize;
    let keys = Keys { file, architecture: found, layers };
    foreign_keys::refuse(file, keys.architecture, family)?;
    let heads = keys.counts("attention.head_count")?;
    let has_kv_heads = keys.has("attention.head_count_kv");
    let kv_heads = if has_kv_heads { keys.counts("attention.head_count_kv")? } else { heads.clone() };
    let ffn = keys.counts("feed_forward_length")?;
    let hidden_size = keys.count("embedding_length")?;
    let head_dim = match keys.optional("attention.key_length")? {
        Some(head_dim) => head_dim,
        None => hidden_size / heads[0],
    };
    let shape = Uniform {
        family,
        vocab_size: file.get::<&[String]>("tokenizer.ggml.tokens")?.len(),
        hidden_size,
        layers,
        heads: heads[0],
        kv_heads: kv_heads[0],
        head_dim,
        ffn: ffn[0],
        rms_eps: widen(file.get(&keys.name("attention.layer_norm_rms_epsilon"))?),
        rope_theta: keys.float("rope.freq_base")?.unwrap_or(DEFAULT_THETA),
        rope_scaling: None,
        tied: file.tensor("output.weight").is_none(),
        max_position: keys.count("context_length")?,
    };
    let mut config = shape.config();
    keys.read_features(&shape.attention(), &mut config)?;
    let query_scalar = file.find::<f64>(QUERY_SCALAR_KEY)?;
    let query_scalar = query_scalar.unwrap_or_else(|| assumed_query_scalar(&config));
    let rope_scaling = scaling::read(file, &config)?;
    for (layer, block) in config.blocks.iter_mut().enumerate() {
        block.ffn.width = ffn[layer];
        if let Some(attention) = block.attention_mut() {
            (attention.heads, attention.kv_heads) = (heads[layer], kv_heads[layer]);
            attention.query_scalar = query_scalar;
            attention.rope_scaling.clone_from(&rope_scaling);
        }
    }
    Ok(config)
}

/// The f64 with the same shortest decimal form as this f32: 1e-5, not 9.99999974737875e-6.
fn widen(value: f32) -> f64 {
    value.to_string().parse().expect("what Rust prints for an f32 is a number")
}

/// The keys of one architecture.
struct Keys<'a> {
    file: &'a Gguf,
    architecture: &'a str,
    layers: usize,
}

impl Keys<'_> {
    fn name(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn has(&self, name: &str) -> bool {
        let key = self.name(name);
        self.file.metadata().iter().any(|(found, _)| *found == key)
    }

    fn count(&self, name: &str) -> Result<usize, FileError> {
        Ok(self.file.get::<u32>(&self.name(name))? as usize)
    }

    fn optional(&self, name: &str) -> Result<Option<usize>, FileError> {
        Ok(self.file.find::<u32>(&self.name(name))?.map(|n| n as usize))
    }

    /// A number above 0 for each block. Only some architectures may have more than one.
    fn counts(&self, name: &str) -> Result<Vec<usize>, FileError> {
        if !is_per_block(self.architecture) {
            return Ok(vec![self.count(name)?; self.layers]);
        }
        let key = self.name(name);
        let missing = || self.file.error(Rule::MissingKey { key: key.clone(), expected: PerBlock::EXPECTED });
        let counts = self.file.per_block(&key, self.layers)?.ok_or_else(missing)?;
        if let Some(layer) = counts.iter().position(|&count| count == 0) {
            let expected = "more than 0: blocks without attention or a feed-forward part are not computed";
            return Err(self.wrong(name, format!("0 in block {layer}"), expected));
        }
        Ok(counts.into_iter().map(|count| count as usize).collect())
    }

    fn float(&self, name: &str) -> Result<Option<f64>, FileError> {
        Ok(self.file.find::<f32>(&self.name(name))?.map(widen))
    }

    fn wrong(&self, name: &str, found: impl Into<String>, expected: &str) -> FileError {
        FileError::key(self.file.path(), self.name(name), found, expected)
    }

    /// Reads what sets the architecture apart into its usual configuration; `attention` is its
    /// usual one.
    fn read_features(&self, attention: &AttentionSpec, config: &mut DecoderConfig) -> Result<(), FileError> {
        match config.family {
            Family::Llama => {
                let has = |projection| {
                    let role = Role::Block { layer: 0, part: Part::Bias(projection) };
                    gguf_name(Family::Llama, role).is_some_and(|name| self.file.tensor(&name).is_some())
                };
                let bias = match (has(Projection::Query), has(Projection::Output)) {
                    (false, false) => AttentionBias::None,
                    (_, true) => AttentionBias::All,
                    (true, false) => AttentionBias::QueryKeyValue,
                };
                for block in &mut config.blocks {
                    block.ffn.bias = has(Projection::Up);
                    block.attention_mut().into_iter().for_each(|attention| attention.bias = bias);
                }
                Ok(())
            }
            Family::Qwen2 | Family::Qwen3 => Ok(()),
            Family::Gemma2 => self.gemma2(attention, config),
            Family::Qwen3_5 => self.qwen3_5(attention, config),
        }
    }

    fn gemma2(&self, usual: &AttentionSpec, config: &mut DecoderConfig) -> Result<(), FileError> {
        let read_cap = |name: &str, usual: Option<f64>| -> Result<Option<f64>, FileError> {
            Ok(self.float(name)?.or(usual).filter(|cap| (*cap as f32) < NO_CAP as f32))
        };
        let cap = read_cap("attn_logit_softcapping", usual.cap)?;
        config.features.logit_cap = read_cap("final_logit_softcapping", config.features.logit_cap)?;
        if let Some(base) = self.float("rope.freq_base_swa")? {
            let expected = "nothing: the decoder has one base for all blocks";
            return Err(self.wrong("rope.freq_base_swa", base.to_string(), expected));
        }
        let window = self.optional("attention.sliding_window")?.unwrap_or(DEFAULT_WINDOW);
        let windowed = self.flags("attention.sliding_window_pattern")?;
        let windowed = windowed.unwrap_or_else(|| (0..self.layers).map(|layer| layer % 2 == 0).collect());
        for (block, windowed) in config.blocks.iter_mut().zip(windowed) {
            let window = windowed.then_some(window);
            block.mixer = Mixer::Attention(AttentionSpec { window, cap, ..usual.clone() });
        }
        Ok(())
    }

    fn qwen3_5(&self, usual: &AttentionSpec, config: &mut DecoderConfig) -> Result<(), FileError> {
        let rotary_dim = self.count("rope.dimension_count")?;
        let sections: &[i32] = self.file.get(&self.name("rope.dimension_sections"))?;
        let whole = |n: &i32| usize::try_from(*n).ok();
        let sections: Option<Vec<usize>> = sections.iter().map(whole).collect();
        let mut sections = sections.ok_or_else(|| {
            self.wrong("rope.dimension_sections", "a number below 0", "0 or more in each entry")
        })?;
        if sections.len() == 4 && sections[3] == 0 {
            sections.pop(); // the fourth is llama.cpp's own; Hugging Face has three
        }
        config.features.rotary_sections = Some(sections);
        let value_heads = self.count("ssm.time_step_rank")?;
        let shape = DeltaNetShape {
            key_heads: self.count("ssm.group_count")?,
            value_heads,
            key_dim: self.count("ssm.state_size")?,
            value_dim: self.count("ssm.inner_size")? / value_heads,
            kernel: self.count("ssm.conv_kernel")?,
        };
        let interval = self.optional("full_attention_interval")?.unwrap_or(4);
        let recurrent = self.flags("attention.recurrent_layers")?;
        let recurrent = recurrent.unwrap_or_else(|| (1..=self.layers).map(|n| n % interval != 0).collect());
        for (block, recurrent) in config.blocks.iter_mut().zip(recurrent) {
            block.mixer = if recurrent {
                Mixer::DeltaNet(shape)
            } else {
                Mixer::Attention(AttentionSpec { rotary_dim, ..usual.clone() })
            };
        }
        Ok(())
    }

    /// One truth value per layer.
    fn flags(&self, name: &str) -> Result<Option<Vec<bool>>, FileError> {
        let key = self.name(name);
        let value = self.file.metadata().iter().find(|(found, _)| *found == key).map(|(_, value)| value);
        let flags = match value {
            None => return Ok(None),
            Some(Value::Array(Array::Bool(flags))) => flags.clone(),
            Some(Value::Array(Array::I32(numbers))) => numbers.iter().map(|&n| n != 0).collect(),
            Some(Value::Array(Array::U32(numbers))) => numbers.iter().map(|&n| n != 0).collect(),
            Some(other) => return Err(self.wrong(name, other.type_name(), "array of bool")),
        };
        if flags.len() != self.layers {
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
