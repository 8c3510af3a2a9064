//! Reads PEFT's `adapter_config.json`: takes the numbers of the scale, and refuses every option
//! that changes the mathematics.

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use crate::adapter::dropped::Json;
use crate::adapter::keys::bad;
use crate::adapter::{Defect, Refusal};

/// The scale of B A, by module.
#[derive(Debug, Clone)]
pub(in crate::adapter) struct Config {
    rank: u64,
    alpha: f64,
    /// alpha / sqrt(r) instead of alpha / r (Kalajdzievski 2023).
    rank_stabilised: bool,
    ranks: Vec<(Pattern, u64)>,
    alphas: Vec<(Pattern, f64)>,
}

/// Most entries of a pattern table: enough for one per module in a model of a hundred blocks.
const MAX_PATTERNS: usize = 2048;
/// Most entries that are regular expressions, and bytes of a compiled one. Both cost time and
/// memory.
const MAX_EXPRESSIONS: usize = 64;
const MAX_EXPRESSION_BYTES: usize = 1 << 18;

/// The modules that an entry applies to: those whose name is the entry or ends with it after a dot.
#[derive(Debug, Clone)]
enum Pattern {
    /// A plain name. PEFT's regular expression takes its dots as any character; no two names of a
    /// model differ in that alone.
    Name(String),
    Expression(Regex),
}

impl Pattern {
    fn matches(&self, module: &str) -> bool {
        match self {
            Self::Name(name) => {
                module.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            Self::Expression(regex) => regex.is_match(module),
        }
    }
}

/// Options that are refused if they are in use: key, code, reason, hint.
const REFUSED: [(&str, &str, &str, &str); 10] = [
    (
        "use_dora",
        "dora",
        "changes directions and magnitudes apart",
        "train with use_dora=False, or merge it into the model",
    ),
    (
        "modules_to_save",
        "modules_to_save",
        "replaces whole modules of the post",
        "train without modules_to_save, or merge it into the model",
    ),
    ("lora_bias", "bias", "adds biases, which no runtime of LoRA computes", "train with lora_bias=False"),
    (
        "fan_in_fan_out",
        "fan_in_fan_out",
        "is for layers that store their matrices transposed; no post has such",
        "train with fan_in_fan_out=False",
    ),
    ("layer_replication", "layer_replication", "runs blocks of the post twice", "train on the post as it is"),
    (
        "trainable_token_indices",
        "trainable_tokens",
        "replaces rows of the embedding",
        "train without trainable_token_indices",
    ),
    (
        "target_parameters",
        "target_parameters",
        "changes parameters that are no linear layers (experts)",
        "name linear layers in target_modules",
    ),
    (
        "alora_invocation_tokens",
        "activated_lora",
        "takes effect from some tokens on only",
        "train a plain LoRA",
    ),
    ("use_qalora", "peft_option", "works on quantised groups of inputs", "train a plain LoRA"),
    ("megatron_config", "peft_option", "splits matrices over machines", "train a plain LoRA"),
];

/// Options that don't affect a finished adapter, or are checked elsewhere.
const KNOWN: [&str; 24] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
];

/// Initialisations that subtract something from the post's own weights, which the adapter then adds
/// back.
const CHANGED_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

impl Config {
    /// Parses the configuration.
    ///
    /// # Errors
    /// The first key that is missing, wrong, or requests something that the engine's LoRA does not
    /// compute.
    pub fn read(json: &Json) -> Result<Self, Refusal> {
        Self::parse(&json.object).map_err(|reason| Refusal::new(&json.path, reason))
    }

    fn parse(object: &Map<String, Value>) -> Result<Self, Defect> {
        let wrong = |key: &str, expected: &str| -> Defect {
            let found = object.get(key).map_or("missing".to_owned(), Value::to_string);
            bad(key, found, expected).into()
        };
        match object.get("peft_type").and_then(Value::as_str) {
            Some("LORA") => {}
            _ => return Err(wrong("peft_type", "\"LORA\"")),
        }
        refuse_options(object)?;
        let positive = |value: &Value| value.as_u64().filter(|&rank| rank > 0);
        let finite = |value: &Value| value.as_f64().filter(|alpha| alpha.is_finite() && *alpha != 0.0);
        let rank = object.get("r").and_then(positive).ok_or_else(|| wrong("r", "a whole number above 0"))?;
        let alpha = object.get("lora_alpha").and_then(finite);
        let alpha = alpha.ok_or_else(|| wrong("lora_alpha", "a number other than 0"))?;
        let rank_stabilised = match object.get("use_rslora") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(stabilised)) => *stabilised,
            Some(_) => return Err(wrong("use_rslora", "true or false")),
        };
        let ranks = patterns(object, "rank_pattern", "a whole number above 0", positive)?;
        let alphas = patterns(object, "alpha_pattern", "a number other than 0", finite)?;
        Ok(Self { rank, alpha, rank_stabilised, ranks, alphas })
    }

    /// Rank of a module, given its name in the model.
    pub fn rank(&self, module: &str) -> u64 {
        matching(&self.ranks, module).unwrap_or(self.rank)
    }

    /// The factor of a module's B A.
    pub fn scale(&self, module: &str) -> f64 {
        let (rank, alpha) = (self.rank(module) as f64, matching(&self.alphas, module).unwrap_or(self.alpha));
        alpha / if self.rank_stabilised { rank.sqrt() } else { rank }
    }
}

/// The value of the first pattern that matches a name, in PEFT's order.
fn matching<T: Copy>(patterns: &[(Pattern, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.matches(module)).map(|(_, value)| *value)
}

fn patterns<T>(
    object: &Map<String, Value>,
    key: &str,
    expected: &str,
    parse: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<(Pattern, T)>, Defect> {
    let entries = match object.get(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        Some(other) => return Err(bad(key, other, "an object").into()),
    };
    let too_many = |kind: &str, found: usize, limit: usize| Defect::TooMany {
        what: format!("{kind} in {key:?}"),
        found: found as u64,
        limit: limit as u64,
    };
    if entries.len() > MAX_PATTERNS {
        return Err(too_many("patterns", entries.len(), MAX_PATTERNS));
    }
    let (mut patterns, mut expressions) = (Vec::new(), 0);
    for (text, value) in entries {
        let name = format!("{key}.{text}");
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
        let pattern = if text.chars().all(plain) && !text.is_empty() && !text.contains("..") {
            Pattern::Name(text.clone())
        } else {
            expressions += 1;
            if expressions > MAX_EXPRESSIONS {
                return Err(too_many("regular expressions", expressions, MAX_EXPRESSIONS));
            }
            // PEFT matches the end of the name, from its start or after a dot.
            let built = RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{text})$"))
                .size_limit(MAX_EXPRESSION_BYTES)
                .build();
            let wrong = |error| bad(name.clone(), error, "a short regular expression for names of modules");
            Pattern::Expression(built.map_err(wrong)?)
        };
        patterns.push((pattern, parse(value).ok_or_else(|| bad(name, value, expected))?));
    }
    Ok(patterns)
}

/// Whether an option is in use. An object of options is in use if one of its members is;
/// `runtime_config` and similar objects are idle by default.
fn in_use(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(entries) => entries.values().any(in_use),
        _ => true,
    }
}

fn refuse_options(object: &Map<String, Value>) -> Result<(), Defect> {
    for (key, code, why, hint) in REFUSED {
        if let Some(value) = object.get(key).filter(|value| in_use(value)) {
            return Err(Defect::Unsupported { code, what: format!("key {key:?} is {value}"), why, hint });
        }
    }
    match object.get("bias") {
        None | Some(Value::Null) => {}
        Some(Value::String(bias)) if bias == "none" => {}
        Some(other) => {
            return Err(Defect::Unsupported {
                code: "bias",
                what: format!("key \"bias\" is {other}"),
                why: "trains biases, which no runtime of LoRA computes",
                hint: "train with bias=\"none\"",
            });
        }
    }
    let init = object.get("init_lora_weights").and_then(Value::as_str).unwrap_or_default();
    if CHANGED_BASE.iter().any(|name| init.starts_with(name)) {
        return Err(Defect::Unsupported {
            code: "changed_base",
            what: format!("key \"init_lora_weights\" is {init:?}"),
            why: "was trained on changed weights of the post",
            hint: "save it with path_initial_model_for_weight_conversion, which gives a plain LoRA",
        });
    }
    let unknown = |key: &&String| {
        !KNOWN.contains(&key.as_str()) && REFUSED.iter().all(|refused| refused.0 != key.as_str())
    };
    match object.iter().find(|(key, value)| unknown(key) && in_use(value)) {
        Some((key, value)) => Err(Defect::Unsupported {
            code: "peft_option",
            what: format!("key {key:?} is {value}"),
            why: "is not known here and may change what is computed",
            hint: "train a plain LoRA",
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plain() -> Value {
        json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "target_modules": ["q_proj"],
               "task_type": "CAUSAL_LM", "lora_dropout": 0.1, "runtime_config": {"ephemeral_gpu_offload": false}})
    }

    fn parse(changes: Value) -> Result<Config, Defect> {
        let mut config = plain();
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        Config::parse(config.as_object().unwrap())
    }

    #[test]
    fn scales_follow_rank_alpha_and_their_patterns() {
        let config = parse(json!({})).unwrap();
        let module = "model.layers.0.self_attn.q_proj";
        let numbers = |config: &Config, module| (config.rank(module), config.scale(module).to_string());
        assert_eq!(numbers(&config, module), (4, "2".into()));
        assert_eq!(numbers(&parse(json!({"use_rslora": true})).unwrap(), module), (4, "4".into()));
        let config =
            parse(json!({"rank_pattern": {"q_proj": 16}, "alpha_pattern": {"layers.0.*": 32.0}})).unwrap();
        assert_eq!(numbers(&config, module), (16, "2".into()));
        assert_eq!(numbers(&config, "model.layers.0.self_attn.xq_proj").0, 4);
        assert_eq!(numbers(&config, "model.layers.1.self_attn.k_proj"), (4, "2".into()));
    }

    fn many(count: usize, text: &str) -> Value {
        (0..count).map(|at| (format!("{text}{at}"), json!(1))).collect()
    }

    #[test]
    fn what_a_lora_does_not_compute_is_refused_by_name() {
        let cases = [
            (json!({"use_dora": true}), "dora"),
            (json!({"modules_to_save": ["lm_head"]}), "modules_to_save"),
            (json!({"bias": "all"}), "bias"),
            (json!({"lora_bias": true}), "bias"),
            (json!({"fan_in_fan_out": true}), "fan_in_fan_out"),
            (json!({"layer_replication": [[0, 1]]}), "layer_replication"),
            (json!({"trainable_token_indices": [1]}), "trainable_tokens"),
            (json!({"target_parameters": ["experts"]}), "target_parameters"),
            (json!({"alora_invocation_tokens": [1]}), "activated_lora"),
            (json!({"init_lora_weights": "pissa_niter_4"}), "changed_base"),
            (json!({"something_new": {"on": true}}), "peft_option"),
            (json!({"alpha_pattern": many(2049, "m")}), "too_many"),
            (json!({"alpha_pattern": many(65, "m+")}), "too_many"),
            (json!({"peft_type": "IA3"}), "bad_value"),
            (json!({"r": 0}), "bad_value"),
            (json!({"lora_alpha": 0}), "bad_value"),
            (json!({"lora_alpha": "8"}), "bad_value"),
            (json!({"rank_pattern": {"(": 4}}), "bad_value"),
            (json!({"rank_pattern": {"q_proj": -4}}), "bad_value"),
            (json!({"use_rslora": 1}), "bad_value"),
            (json!({"rank_pattern": {"\\w{500}": 4}}), "bad_value"),
        ];
        for (changes, code) in cases {
            let Err(reason) = parse(changes.clone()) else { panic!("{changes} passed") };
            assert_eq!(reason.code(), code, "{changes}: {reason}");
            let key = changes.as_object().unwrap().keys().next().unwrap();
            assert!(reason.to_string().contains(key), "{reason}");
        }
        for harmless in
            [json!({"modules_to_save": null}), json!({"use_dora": false}), json!({"loftq_config": {}})]
        {
            parse(harmless).unwrap();
        }
    }
}
