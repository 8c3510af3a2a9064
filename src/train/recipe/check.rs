//! Validates a recipe and reports all mistakes at once, by key.

use super::{AdapterRecipe, DistilRecipe, Recipe};
use crate::train::optimiser::Matrices;

/// Bounds of sizes, above those of any real model or spoke.
const WIDTH: usize = 1 << 20;
const LAYERS: usize = 4096;
const POSITIONS: usize = 1 << 24;
const VOCABULARY: usize = 1 << 22;
const BATCH: usize = crate::train::batch::ROWS as usize;
const THREADS: usize = 1024;
const RANK: usize = 4096;
const TOP: usize = 4096;

/// Collects mistakes.
#[derive(Default)]
struct Mistakes(Vec<String>);

impl Mistakes {
    fn check(&mut self, holds: bool, mistake: impl FnOnce() -> String) {
        if !holds {
            self.0.push(mistake());
        }
    }

    fn positive(&mut self, key: &str, value: u64) {
        self.check(value > 0, || format!("{key} is 0; expected at least 1"));
    }

    /// Checks a size: at least 1, and below any real one, so that products don't overflow.
    fn size(&mut self, key: &str, value: usize, most: usize) {
        self.check((1..=most).contains(&value), || format!("{key} is {value}; expected 1 to {most}"));
    }

    fn share(&mut self, key: &str, value: f64) {
        self.check((0.0..=1.0).contains(&value), || {
            format!("{key} is {value}; expected a share between 0 and 1")
        });
    }

    fn at_least_zero(&mut self, key: &str, value: f64) {
        self.check(value >= 0.0 && value.is_finite(), || {
            format!("{key} is {value}; expected a number of at least 0")
        });
    }

    /// Checks the decay of an average; at 1 new values would never count.
    fn decay(&mut self, key: &str, value: f64) {
        self.check((0.0..1.0).contains(&value), || {
            format!("{key} is {value}; expected at least 0 and less than 1")
        });
    }

    fn above_zero(&mut self, key: &str, value: f64) {
        self.check(value > 0.0 && value.is_finite(), || {
            format!("{key} is {value}; expected a number above 0")
        });
    }
}

impl Recipe {
    /// All mistakes, by key.
    pub fn mistakes(&self) -> Vec<String> {
        let mut found = Mistakes::default();
        found.check(self.model.is_some() != self.base.is_some(), || {
            "expected exactly one of [model] and [base]".into()
        });
        self.check_model(&mut found);
        self.check_train(&mut found);
        self.check_data(&mut found);
        if let Some(adapter) = &self.adapter {
            check_adapter(adapter, &mut found);
            found.check(self.base.is_some(), || "[adapter] needs a [base] that it stands beside".into());
        }
        if let Some(distil) = &self.distil {
            check_distil(distil, &mut found);
        }
        found.0
    }

    fn check_model(&self, found: &mut Mistakes) {
        if let Some(bound) = self.base.as_ref().and_then(|base| base.reference_bound) {
            found.above_zero("base.reference_bound", bound);
        }
        let Some(model) = &self.model else { return };
        for (key, value, most) in [
            ("model.hidden_size", model.hidden_size, WIDTH),
            ("model.layers", model.layers, LAYERS),
            ("model.heads", model.heads, LAYERS),
            ("model.kv_heads", model.kv_heads, LAYERS),
            ("model.head_dim", model.head_dim, LAYERS),
            ("model.ffn", model.ffn, WIDTH),
            ("model.max_position", model.max_position, POSITIONS),
            ("data.vocabulary", self.data.vocabulary, VOCABULARY),
        ] {
            found.size(key, value, most);
        }
        found.above_zero("model.rope_theta", model.rope_theta);
        found.above_zero("model.rms_eps", model.rms_eps);
        let (heads, kv_heads) = (model.heads, model.kv_heads);
        found.check(kv_heads == 0 || heads.is_multiple_of(kv_heads), || {
            format!("model.heads is {heads}; expected a multiple of model.kv_heads, {kv_heads}")
        });
        found.check(model.head_dim.is_multiple_of(2), || {
            format!("model.head_dim is {}; expected an even number of at least 2", model.head_dim)
        });
    }

    fn check_train(&self, found: &mut Mistakes) {
        let train = &self.train;
        for (key, value) in [
            ("train.micro_tokens", train.micro_tokens as u64),
            ("train.steps", train.steps),
            ("train.checkpoint_every", train.checkpoint_every),
            ("train.eval_every", train.eval_every),
        ] {
            found.positive(key, value);
        }
        found.size("train.batch", train.batch, BATCH);
        found.check(train.threads <= THREADS, || {
            format!("train.threads is {}; expected at most {THREADS}, or 0 for one per core", train.threads)
        });
        found.share("train.warmup", train.warmup);
        found.share("train.floor", train.floor);
        found.decay("train.ema", train.ema);
        found.above_zero("train.clip", train.clip);
        found.above_zero("train.max_loss", train.max_loss);
        let (muon, adamw) = (train.muon, train.adamw);
        found.at_least_zero("train.muon.lr", muon.lr);
        found.decay("train.muon.momentum", muon.momentum);
        found.at_least_zero("train.muon.weight_decay", muon.weight_decay);
        found.at_least_zero("train.adamw.lr", adamw.lr);
        for (key, lr) in [
            ("train.adamw.matrix_lr", adamw.matrix_lr),
            ("train.adamw.embedding_lr", adamw.embedding_lr),
            ("train.adamw.vector_lr", adamw.vector_lr),
        ] {
            found.at_least_zero(key, lr.unwrap_or(0.0));
        }
        let rates =
            [("train.adamw.embedding_lr", adamw.embedding_lr), ("train.adamw.vector_lr", adamw.vector_lr)];
        // A LoRA has only matrices of blocks, a Felix spoke has gates too.
        let idle = match &self.adapter {
            None => &rates[..0],
            Some(adapter) if adapter.lora.is_some() => &rates[..],
            Some(_) => &rates[..1],
        };
        for (key, lr) in idle {
            found.check(lr.is_none(), || format!("{key} is there, but the adapter has no such parameters"));
        }
        found.check(adamw.matrix_lr.is_none() || train.matrices == Matrices::AdamW, || {
            "train.adamw.matrix_lr is there, but train.matrices is \"muon\": expected train.muon.lr, or \"adamw\"".into()
        });
        found.decay("train.adamw.beta1", adamw.beta1);
        found.decay("train.adamw.beta2", adamw.beta2);
        found.above_zero("train.adamw.eps", adamw.eps);
        found.at_least_zero("train.adamw.weight_decay", adamw.weight_decay);
        if let Some(stop) = train.stop {
            found.positive("train.stop.patience", stop.patience);
            found.at_least_zero("train.stop.least", stop.least);
        }
    }

    fn check_data(&self, found: &mut Mistakes) {
        let data = &self.data;
        found.positive("data.eval_rows", data.eval_rows as u64);
        found.check(!data.domains.is_empty(), || "data.domains: expected at least one".into());
        for (name, domain) in &data.domains {
            let key = format!("data.domains.{name}");
            let (generated, files) = (domain.generator.is_some(), !domain.train.is_empty());
            found.check(generated != files, || format!("{key}: expected exactly one of generator and train"));
            found.check(generated || files != domain.eval.is_empty(), || {
                format!("{key}.eval: expected with {key}.train")
            });
            found.check(!generated || domain.eval.is_empty(), || {
                format!("{key}.eval: a generator makes its own held-out rows")
            });
            found.above_zero(&format!("{key}.weight"), domain.weight);
            if data.loading.is_some() {
                found.check(domain.reference_loss.is_some_and(f64::is_finite), || {
                    format!("{key}.reference_loss is missing; data.loading compares losses with it")
                });
            }
        }
        if let Some(loading) = &data.loading {
            found.positive("data.loading.every", loading.every);
            found.above_zero("data.loading.eta", loading.eta);
            found.share("data.loading.c", loading.c);
        }
        self.check_stages(found);
    }

    fn check_stages(&self, found: &mut Mistakes) {
        let generated = self.data.domains.values().any(|domain| domain.generator.is_some());
        let mut previous = 0;
        for (at, stage) in self.data.stages.iter().enumerate() {
            let last = at + 1 == self.data.stages.len();
            let key = format!("data.stages.{at}");
            match stage.until_step {
                Some(until) => {
                    found.check(until > previous, || {
                        format!("{key}.until_step is {until}; expected more than {previous}")
                    });
                    previous = until;
                }
                None => {
                    found
                        .check(last, || format!("{key}.until_step is missing; only the last stage has none"));
                }
            }
            found.check(stage.max_event_chars.is_none() || generated, || {
                format!("{key}.max_event_chars limits a generator; no domain has one")
            });
            found.size(&format!("{key}.batch"), stage.batch.unwrap_or(1), BATCH);
        }
        // The limit of a base is known when it is read.
        let most = self.model.as_ref().map_or(usize::MAX, |model| model.max_position);
        let bound = self.model.as_ref().map_or("2 or more".to_owned(), |model| {
            format!("2 to model.max_position, {}", model.max_position)
        });
        for (at, stage) in self.stages().iter().enumerate() {
            let seq = stage.seq_len;
            let own = self.data.stages.get(at).is_some_and(|stage| stage.seq_len.is_some());
            let key = if own { format!("data.stages.{at}.seq_len") } else { "train.seq_len".to_owned() };
            found.check((2..=most).contains(&seq), || format!("{key} is {seq}; expected {bound}"));
        }
    }
}

fn check_adapter(adapter: &AdapterRecipe, found: &mut Mistakes) {
    found.check(adapter.lora.is_some() != adapter.felix.is_some(), || {
        "adapter: expected exactly one of [adapter.lora] and [adapter.felix]".into()
    });
    if let Some(lora) = &adapter.lora {
        found.size("adapter.lora.rank", lora.rank, RANK);
        found.above_zero("adapter.lora.alpha", lora.alpha);
        found.check(!lora.targets.is_empty(), || {
            "adapter.lora.targets is empty; expected names of matrices".into()
        });
    }
    if let Some(felix) = &adapter.felix {
        found.size("adapter.felix.spokes", felix.spokes, RANK);
        found.size("adapter.felix.rank", felix.rank, RANK);
    }
}

fn check_distil(distil: &DistilRecipe, found: &mut Mistakes) {
    let given = [distil.teacher.is_some(), distil.endpoint.is_some(), distil.stored.is_some()];
    found.check(given.into_iter().filter(|&is| is).count() == 1, || {
        "distil: expected exactly one of teacher, endpoint and stored".into()
    });
    found.above_zero("distil.temperature", distil.temperature);
    found.size("distil.top", distil.top, TOP);
    let at_one = (distil.temperature - 1.0).abs() < f64::EPSILON;
    found.check(distil.endpoint.is_none() || at_one, || {
        format!("distil.temperature is {}; a served teacher speaks at 1 alone", distil.temperature)
    });
    found.check(distil.endpoint.is_none() || distil.top <= 100, || {
        format!("distil.top is {}; a served teacher is asked for at most 100", distil.top)
    });
    for (key, weight) in [("distil.kl", distil.kl), ("distil.ce", distil.ce)] {
        found.at_least_zero(key, weight);
    }
    found.check(distil.kl > 0.0 || distil.ce > 0.0, || "distil: kl and ce are both 0".into());
    if let Some(hidden) = &distil.hidden {
        found.above_zero("distil.hidden.weight", hidden.weight);
        found.check(!hidden.layers.is_empty(), || {
            "distil.hidden.layers is empty; expected pairs of blocks".into()
        });
        found.check(distil.teacher.is_some(), || {
            "distil.hidden needs distil.teacher: a served or stored teacher has no hidden states".into()
        });
    }
}
