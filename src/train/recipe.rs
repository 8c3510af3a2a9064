//! The recipe of a training run: a TOML file, overrides, and the checks that find every mistake before the first step.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::TrainError;
use super::optimiser::{AdamWConfig, MuonConfig};
use super::schedule::Schedule;
use crate::model::{DecoderConfig, Family};

/// Everything that determines a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Shape of the model.
    pub model: ModelRecipe,
    /// The loop.
    pub train: TrainRecipe,
    /// What it learns from.
    pub data: DataRecipe,
}

/// `[model]`: the decoder without its vocabulary, which the tokenizer decides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecipe {
    /// Architecture.
    pub family: Family,
    /// Width D of the residual stream.
    pub hidden_size: usize,
    /// Decoder blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the SwiGLU intermediate.
    pub ffn: usize,
    /// Positions that the model can use.
    pub max_position: usize,
    /// Base of the rotary frequencies.
    #[serde(default = "default_rope_theta")]
    pub rope_theta: f64,
    /// Epsilon of the norms.
    #[serde(default = "default_rms_eps")]
    pub rms_eps: f64,
    /// Whether the head shares the embedding.
    #[serde(default = "yes")]
    pub tied: bool,
}

/// `[train]`: the loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainRecipe {
    /// Optimiser steps.
    pub steps: u64,
    /// Packed rows per step.
    pub batch: usize,
    /// Tokens per packed row.
    pub seq_len: usize,
    /// Seed of starting values and of the order of JSONL data.
    pub seed: u64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Steps between evaluations.
    pub eval_every: u64,
    /// Tokens that one thread takes at a time; smaller parts stay in its cache. The sum of gradients follows this, not the
    /// number of threads.
    #[serde(default = "default_micro_tokens")]
    pub micro_tokens: usize,
    /// Threads; 0 is one per core.
    #[serde(default)]
    pub threads: usize,
    /// Share of the steps that warm up.
    #[serde(default = "default_warmup")]
    pub warmup: f64,
    /// Share of the peak learning rate at the last step.
    #[serde(default = "default_floor")]
    pub floor: f64,
    /// Largest gradient norm.
    #[serde(default = "default_clip")]
    pub clip: f64,
    /// Decay of the averaged weights that are evaluated and written; 0 writes the last weights.
    #[serde(default)]
    pub ema: f64,
    /// Muon, for the matrices of the blocks.
    #[serde(default)]
    pub muon: MuonConfig,
    /// AdamW, for the rest.
    #[serde(default)]
    pub adamw: AdamWConfig,
}

/// `[data]`: exactly one of `generator_seed` and `train`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRecipe {
    /// Seed of the encoding task's generator.
    pub generator_seed: Option<u64>,
    /// JSONL files whose rows have `messages`.
    #[serde(default)]
    pub train: Vec<PathBuf>,
    /// Held-out JSONL files.
    #[serde(default)]
    pub eval: Vec<PathBuf>,
    /// Held-out rows per evaluation.
    #[serde(default = "default_eval_rows")]
    pub eval_rows: usize,
    /// A `tokenizer.json`; without it, a vocabulary is trained on the data first.
    pub tokenizer: Option<PathBuf>,
    /// Entries of the vocabulary that is trained.
    #[serde(default = "default_vocabulary")]
    pub vocabulary: usize,
    /// Rows that it is trained on.
    #[serde(default = "default_vocabulary_rows")]
    pub vocabulary_rows: u64,
    /// What becomes of a row longer than `seq_len`.
    #[serde(default)]
    pub long_rows: LongRows,
    /// Curriculum: each stage lasts until its step, the last one to the end.
    #[serde(default)]
    pub stages: Vec<StageRecipe>,
}

/// What becomes of a row longer than a packed row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LongRows {
    /// It is left out and counted.
    #[default]
    Skip,
    /// It ends the run.
    Error,
}

/// `[[data.stages]]`: what is left out is as in `[train]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageRecipe {
    /// Last step of the stage; the last stage has none.
    pub until_step: Option<u64>,
    /// Longest event that the generator makes, in characters.
    pub max_event_chars: Option<usize>,
    /// Tokens per packed row.
    pub seq_len: Option<usize>,
    /// Packed rows per step.
    pub batch: Option<usize>,
}

/// A stage with nothing left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// Last step.
    pub until_step: u64,
    /// Longest event, if limited.
    pub max_event_chars: Option<usize>,
    /// Tokens per packed row.
    pub seq_len: usize,
    /// Packed rows per step.
    pub batch: usize,
}

fn default_rope_theta() -> f64 {
    10_000.0
}
fn default_rms_eps() -> f64 {
    1e-6
}
fn yes() -> bool {
    true
}
fn default_micro_tokens() -> usize {
    1024
}
fn default_warmup() -> f64 {
    0.02
}
fn default_floor() -> f64 {
    0.05
}
fn default_clip() -> f64 {
    1.0
}
fn default_eval_rows() -> usize {
    64
}
fn default_vocabulary() -> usize {
    4096
}
fn default_vocabulary_rows() -> u64 {
    20_000
}

impl Recipe {
    /// Reads a recipe and applies `KEY=VALUE` overrides (dotted keys, TOML values; bare words are strings).
    ///
    /// # Errors
    /// All mistakes at once, each with its key; a syntax error with its line.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, TrainError> {
        let text = fs_err::read_to_string(path).map_err(TrainError::file(path))?;
        let wrong = |mistake: String| TrainError::Recipe { path: path.to_owned(), mistakes: vec![mistake] };
        // First as it stands: only then do messages have line numbers.
        let recipe: Self = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        let recipe = if overrides.is_empty() {
            recipe
        } else {
            let mut table: toml::Table = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
            for setting in overrides {
                set(&mut table, setting).map_err(wrong)?;
            }
            table.try_into().map_err(|e| wrong(format!("after --set: {e}")))?
        };
        let mistakes = recipe.mistakes();
        if mistakes.is_empty() {
            Ok(recipe)
        } else {
            Err(TrainError::Recipe { path: path.to_owned(), mistakes })
        }
    }

    /// Everything that can't be meant, by key.
    pub fn mistakes(&self) -> Vec<String> {
        let (model, train, data) = (&self.model, &self.train, &self.data);
        let mut found = Vec::new();
        let mut check = |holds: bool, mistake: String| {
            if !holds {
                found.push(mistake);
            }
        };
        for (key, value) in [
            ("model.hidden_size", model.hidden_size),
            ("model.layers", model.layers),
            ("model.heads", model.heads),
            ("model.kv_heads", model.kv_heads),
            ("model.ffn", model.ffn),
            ("train.batch", train.batch),
            ("train.micro_tokens", train.micro_tokens),
            ("train.steps", train.steps as usize),
            ("train.checkpoint_every", train.checkpoint_every as usize),
            ("train.eval_every", train.eval_every as usize),
            ("data.eval_rows", data.eval_rows),
        ] {
            check(value > 0, format!("{key} is 0; expected at least 1"));
        }
        let (heads, kv_heads) = (model.heads, model.kv_heads);
        check(
            kv_heads == 0 || heads.is_multiple_of(kv_heads),
            format!("model.heads is {heads}; expected a multiple of model.kv_heads, {kv_heads}"),
        );
        check(
            model.head_dim > 0 && model.head_dim.is_multiple_of(2),
            format!("model.head_dim is {}; expected an even number of at least 2", model.head_dim),
        );
        for (key, share) in
            [("train.warmup", train.warmup), ("train.floor", train.floor), ("train.ema", train.ema)]
        {
            let top = if key == "train.ema" { share < 1.0 } else { share <= 1.0 };
            check(share >= 0.0 && top, format!("{key} is {share}; expected a share between 0 and 1"));
        }
        check(train.clip > 0.0, format!("train.clip is {}; expected more than 0", train.clip));
        let (generated, files) = (data.generator_seed.is_some(), !data.train.is_empty());
        check(generated != files, "data: expected exactly one of generator_seed and train".into());
        check(files != data.eval.is_empty(), "data.eval: expected with data.train, and only with it".into());
        let mut previous = 0;
        for (at, stage) in data.stages.iter().enumerate() {
            let last = at + 1 == data.stages.len();
            let key = format!("data.stages[{at}]");
            match stage.until_step {
                Some(until) => {
                    check(
                        until > previous,
                        format!("{key}.until_step is {until}; expected more than {previous}"),
                    );
                    previous = until;
                }
                None => check(last, format!("{key}.until_step is missing; only the last stage has none")),
            }
            check(
                stage.max_event_chars.is_none() || !files,
                format!("{key}.max_event_chars limits the generator; data.train is given instead"),
            );
            check(stage.batch != Some(0), format!("{key}.batch is 0; expected at least 1"));
        }
        for (at, stage) in self.stages().iter().enumerate() {
            let (seq, most) = (stage.seq_len, model.max_position);
            check(
                (2..=most).contains(&seq),
                format!("seq_len of stage {at} is {seq}; expected 2 to model.max_position, {most}"),
            );
        }
        found
    }

    /// The stages of the curriculum, at least one; the last ends with the run.
    pub fn stages(&self) -> Vec<Stage> {
        let plain = [StageRecipe::default()];
        let stages = if self.data.stages.is_empty() { &plain[..] } else { &self.data.stages };
        let mut stages: Vec<Stage> = stages
            .iter()
            .map(|stage| Stage {
                until_step: stage.until_step.unwrap_or(self.train.steps),
                max_event_chars: stage.max_event_chars,
                seq_len: stage.seq_len.unwrap_or(self.train.seq_len),
                batch: stage.batch.unwrap_or(self.train.batch),
            })
            .collect();
        if let Some(last) = stages.last_mut() {
            last.until_step = u64::MAX;
        }
        stages
    }

    /// The stage that a step (1-based) belongs to.
    pub fn stage(&self, step: u64) -> Stage {
        let stages = self.stages();
        let stage = stages.iter().find(|stage| step <= stage.until_step);
        *stage.expect("the last stage has no end")
    }

    /// The learning rate's course.
    pub fn schedule(&self) -> Schedule {
        let TrainRecipe { steps, warmup, floor, .. } = self.train;
        Schedule { steps, warmup: (steps as f64 * warmup).ceil() as u64, floor }
    }

    /// The decoder for a vocabulary of this many entries.
    pub fn decoder_config(&self, vocab_size: usize) -> DecoderConfig {
        let model = &self.model;
        DecoderConfig {
            family: model.family,
            vocab_size,
            hidden_size: model.hidden_size,
            layers: model.layers,
            heads: model.heads,
            kv_heads: model.kv_heads,
            head_dim: model.head_dim,
            ffn: model.ffn,
            rms_eps: model.rms_eps,
            rope_theta: model.rope_theta,
            rope_scaling: None,
            tied: model.tied,
            max_position: model.max_position,
            features: model.family.features(model.layers, model.heads, model.head_dim),
        }
    }

    /// The recipe as TOML.
    ///
    /// # Panics
    /// Never: every field has a TOML form.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("numbers, strings, lists and tables have a TOML form")
    }
}

/// Applies one `KEY=VALUE`.
fn set(table: &mut toml::Table, setting: &str) -> Result<(), String> {
    let Some((key, value)) = setting.split_once('=') else {
        return Err(format!("--set {setting}: expected KEY=VALUE"));
    };
    let value = format!("value = {value}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut parsed| parsed.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut place = table;
    let mut parts: Vec<&str> = key.split('.').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let entry = place.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        let Some(inner) = entry.as_table_mut() else {
            return Err(format!("--set {setting}: {part} is not a table"));
        };
        place = inner;
    }
    place.insert(last.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "[model]\nfamily = \"qwen3\"\nhidden_size = 8\nlayers = 1\nheads = 2\nkv_heads = 1\nhead_dim = 4\n\
        ffn = 8\nmax_position = 64\n[train]\nsteps = 10\nbatch = 2\nseq_len = 32\nseed = 1\ncheckpoint_every = 5\n\
        eval_every = 5\n[data]\ngenerator_seed = 1\n";

    fn load(text: &str, overrides: &[&str]) -> Result<Recipe, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        crate::durable::write(file.path(), text.as_bytes()).unwrap();
        let overrides: Vec<String> = overrides.iter().map(|&s| s.to_owned()).collect();
        Recipe::load(file.path(), &overrides).map_err(|e| e.to_string())
    }

    #[test]
    fn overrides_and_stages_fall_back_to_the_train_table() {
        let stages = "[[data.stages]]\nuntil_step = 4\nseq_len = 16\n[[data.stages]]\nbatch = 1\n";
        let recipe = load(&format!("{SMALL}{stages}"), &["train.steps=20", "train.muon.lr=0.5"]).unwrap();
        assert_eq!((recipe.train.steps, recipe.train.muon.lr), (20, 0.5));
        assert_eq!((recipe.stage(4).seq_len, recipe.stage(4).batch), (16, 2));
        assert_eq!((recipe.stage(5).seq_len, recipe.stage(5).batch), (32, 1));
        assert_eq!(toml::from_str::<Recipe>(&recipe.to_toml()).unwrap(), recipe);
    }

    #[test]
    fn mistakes_name_key_and_line_and_come_all_at_once() {
        let error = load(&SMALL.replace("batch = 2", "bach = 2"), &[]).unwrap_err();
        assert!(error.contains("bach") && error.contains("line 12"), "{error}");
        let error = load(SMALL, &["model.kv_heads=3", "train.seq_len=100", "train.clip=0"]).unwrap_err();
        for part in ["model.heads is 2", "seq_len of stage 0 is 100", "train.clip is 0"] {
            assert!(error.contains(part), "{part} is missing in: {error}");
        }
        assert!(load(SMALL, &["train.stepz=3"]).unwrap_err().contains("stepz"));
        assert!(load(SMALL, &["train"]).unwrap_err().contains("KEY=VALUE"));
    }
}
