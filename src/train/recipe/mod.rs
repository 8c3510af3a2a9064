//! The recipe of a training run: a TOML file, overrides, and checks that find every mistake before
//! the first step.

mod adapter;
mod check;
mod data;
mod distil;
mod model;
mod overrides;
mod train;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use adapter::{AdapterRecipe, FelixRecipe, GateStart, LoraRecipe};
pub use data::{DataRecipe, DomainRecipe, GeneratorName, LoadingRecipe, LongRows, Stage, StageRecipe};
pub use distil::{DistilRecipe, HiddenRecipe};
pub use model::{BaseRecipe, ModelRecipe};
pub use train::{StopRecipe, TrainRecipe};

use super::TrainError;
use super::schedule::Schedule;

/// Everything that determines a run. Exactly one of `model` and `base` is set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Shape of a model that is trained from scratch.
    pub model: Option<ModelRecipe>,
    /// A model to start from.
    pub base: Option<BaseRecipe>,
    /// An adapter to train on the frozen base; without it, the whole model is trained.
    pub adapter: Option<AdapterRecipe>,
    /// A teacher to learn from in addition to the data.
    pub distil: Option<DistilRecipe>,
    /// The training loop.
    pub train: TrainRecipe,
    /// The data.
    pub data: DataRecipe,
}

impl Recipe {
    /// Reads a recipe and applies `KEY=VALUE` overrides (dotted keys, TOML values; bare words are
    /// strings).
    ///
    /// # Errors
    /// All mistakes at once, each with its key; a syntax error with its line.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, TrainError> {
        let text = fs_err::read_to_string(path).map_err(TrainError::file(path))?;
        let wrong = |mistake: String| TrainError::Recipe { path: path.to_owned(), mistakes: vec![mistake] };
        // The file itself first, so that messages have line numbers.
        let recipe: Self = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        let recipe = if overrides.is_empty() {
            recipe
        } else {
            let mut table: toml::Table = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
            for setting in overrides {
                overrides::set(&mut table, setting).map_err(wrong)?;
            }
            // Written and parsed again, so that messages show the line.
            let text = toml::to_string(&table).map_err(|e| wrong(e.to_string()))?;
            toml::from_str(&text).map_err(|e| wrong(format!("after --set: {e}")))?
        };
        let mistakes = recipe.mistakes();
        if mistakes.is_empty() {
            Ok(recipe)
        } else {
            Err(TrainError::Recipe { path: path.to_owned(), mistakes })
        }
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

    /// Every file and folder that the recipe reads, with its key.
    pub fn files(&self) -> Vec<(String, &Path)> {
        let distil = self.distil.as_ref();
        let mut files: Vec<(String, &Path)> = [
            ("base.path", self.base.as_ref().map(|base| &base.path)),
            ("base.reference", self.base.as_ref().and_then(|base| base.reference.as_ref())),
            ("distil.teacher", distil.and_then(|distil| distil.teacher.as_ref())),
            ("distil.stored", distil.and_then(|distil| distil.stored.as_ref())),
            ("data.tokenizer", self.data.tokenizer.as_ref()),
        ]
        .into_iter()
        .filter_map(|(key, path)| Some((key.to_owned(), path?.as_path())))
        .collect();
        for (name, domain) in &self.data.domains {
            for (part, paths) in [("train", &domain.train), ("eval", &domain.eval)] {
                files
                    .extend(paths.iter().map(|path| (format!("data.domains.{name}.{part}"), path.as_path())));
            }
        }
        files
    }

    /// The initial weights of the domains, in the order of their names; their sum is 1.
    pub fn domain_weights(&self) -> Vec<f64> {
        let weights = || self.data.domains.values().map(|domain| domain.weight);
        let total: f64 = weights().sum();
        weights().map(|weight| weight / total).collect()
    }

    /// The schedule of the learning rate.
    pub fn schedule(&self) -> Schedule {
        let TrainRecipe { steps, warmup, floor, .. } = self.train;
        Schedule { steps, warmup: (steps as f64 * warmup).ceil() as u64, floor }
    }

    /// The recipe as TOML.
    ///
    /// # Panics
    /// Never: every field has a TOML form.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("numbers, strings, lists and tables have a TOML form")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "[model]\nfamily = \"qwen3\"\nhidden_size = 8\nlayers = 1\nheads = 2\nkv_heads = 1\nhead_dim = 4\n\
        ffn = 8\nmax_position = 64\n[train]\nsteps = 10\nbatch = 2\nseq_len = 32\nseed = 1\ncheckpoint_every = 5\n\
        eval_every = 5\n[data.domains.encoding]\ngenerator = \"encoding\"\n";

    fn load(text: &str, overrides: &[&str]) -> Result<Recipe, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        crate::atomic_file::write(file.path(), text.as_bytes()).unwrap();
        let overrides: Vec<String> = overrides.iter().map(|&s| s.to_owned()).collect();
        Recipe::load(file.path(), &overrides).map_err(|e| e.to_string())
    }

    #[test]
    fn overrides_and_stages_fall_back_to_the_train_table() {
        let stages = "[[data.stages]]\nuntil_step = 4\nseq_len = 16\n[[data.stages]]\nbatch = 1\n";
        let set = ["train.steps=20", "train.muon.lr=0.5", "data.domains.encoding.weight=2.5"];
        let recipe = load(&format!("{SMALL}{stages}"), &set).unwrap();
        assert_eq!((recipe.train.steps, recipe.train.muon.lr), (20, 0.5));
        assert!((recipe.data.domains["encoding"].weight - 2.5).abs() < 1e-12);
        assert_eq!((recipe.stage(4).seq_len, recipe.stage(4).batch), (16, 2));
        assert_eq!((recipe.stage(5).seq_len, recipe.stage(5).batch), (32, 1));
        assert_eq!(toml::from_str::<Recipe>(&recipe.to_toml()).unwrap(), recipe);
    }

    #[test]
    fn numbers_of_the_optimisers_and_the_model_have_bounds() {
        for (set, part) in [
            ("train.muon.lr=-0.1", "train.muon.lr is -0.1; expected a number of at least 0"),
            ("train.muon.momentum=1.0", "train.muon.momentum is 1; expected at least 0 and less than 1"),
            ("train.muon.weight_decay=inf", "train.muon.weight_decay is inf"),
            ("train.adamw.lr=nan", "train.adamw.lr is NaN"),
            ("train.adamw.vector_lr=-2.0", "train.adamw.vector_lr is -2"),
            ("train.adamw.matrix_lr=0.1", "train.matrices is \"muon\""),
            ("train.matrices=sgd", "unknown variant `sgd`, expected `muon` or `adamw`"),
            ("train.adamw.beta1=-0.5", "train.adamw.beta1 is -0.5"),
            ("train.adamw.beta2=1.5", "train.adamw.beta2 is 1.5"),
            ("train.adamw.eps=0.0", "train.adamw.eps is 0; expected a number above 0"),
            ("train.adamw.weight_decay=-1.0", "train.adamw.weight_decay is -1"),
            ("train.ema=1.0", "train.ema is 1; expected at least 0 and less than 1"),
            ("train.threads=100000", "train.threads is 100000; expected at most 1024"),
            ("train.batch=1000000000000000", "train.batch is 1000000000000000; expected 1 to 4096"),
            ("model.hidden_size=4000000000000", "model.hidden_size is 4000000000000; expected 1 to"),
            ("model.layers=0", "model.layers is 0; expected 1 to"),
            ("model.rope_theta=0.0", "model.rope_theta is 0"),
            ("model.rms_eps=-1e-6", "model.rms_eps is -0.000001"),
        ] {
            let error = load(SMALL, &[set]).unwrap_err();
            assert!(error.contains(part), "{set}: {error}");
        }
        load(SMALL, &["train.matrices=adamw", "train.adamw.matrix_lr=0.001"]).unwrap();
        // A rate of 0 freezes the optimiser's parameters.
        load(SMALL, &["train.muon.lr=0.0"]).unwrap();
    }

    #[test]
    fn mistakes_name_key_and_line_and_come_all_at_once() {
        let error = load(&SMALL.replace("batch = 2", "bach = 2"), &[]).unwrap_err();
        assert!(error.contains("bach") && error.contains("line 12"), "{error}");
        let set = [
            "model.kv_heads=3",
            "train.seq_len=100",
            "train.clip=0",
            "data.domains.encoding.weight=-1",
            "data.domains.files.weight=1",
        ];
        let error = load(SMALL, &set).unwrap_err();
        for part in [
            "model.heads is 2",
            "train.seq_len is 100; expected 2 to model.max_position, 64",
            "train.clip is 0",
            "data.domains.encoding.weight is -1",
            "data.domains.files: expected exactly one of generator and train",
        ] {
            assert!(error.contains(part), "{part} is missing in: {error}");
        }
        assert!(load(SMALL, &["train.stepz=3"]).unwrap_err().contains("stepz"));
        assert!(load(SMALL, &["train"]).unwrap_err().contains("KEY=VALUE"));
        let error = load(SMALL, &["base.path=x.gguf"]).unwrap_err();
        assert!(error.contains("exactly one of [model] and [base]"), "{error}");
        let set = ["adapter.lora.rank=100000000000", "adapter.lora.alpha=8", "train.adamw.embedding_lr=0.1"];
        let error = load(SMALL, &set).unwrap_err();
        assert!(error.contains("adapter.lora.rank is 100000000000; expected 1 to 4096"), "{error}");
        assert!(error.contains("train.adamw.embedding_lr is set, but the adapter has no such"), "{error}");
        let error = load(SMALL, &["distil.top=1000000000", "distil.teacher=x"]).unwrap_err();
        assert!(error.contains("distil.top is 1000000000; expected 1 to 4096"), "{error}");
        let error = load(SMALL, &["adapter.lora.rank=4", "adapter.lora.alpha=8"]).unwrap_err();
        assert!(error.contains("[adapter] needs a [base]"), "{error}");
    }
}
