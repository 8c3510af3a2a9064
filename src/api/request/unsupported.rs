//! Fields that would change the answer but are not supported: refused by name, never ignored.

use serde_json::{Map, Value};

use super::Endpoint;
use crate::api::error::ApiError;
use crate::text::fields::short;

/// Values with which a field has no effect and is accepted.
#[derive(Debug, Clone, Copy)]
enum Harmless {
    /// `null`, `false`, zero, or empty.
    Nothing,
    /// This number or less.
    UpTo(f64),
    /// This number.
    Number(f64),
    /// `true`.
    True,
    /// One of these texts.
    Text(&'static [&'static str]),
}
use Harmless::{Nothing, Number, Text, True, UpTo};

const OFF: &str = "leave it out";
const SCHEMA: &str = "use response_format with a JSON schema";

/// Field, accepted values, and what to do instead.
const EVERYWHERE: &[(&str, Harmless, &str)] = &[
    ("typical_p", Number(1.0), "leave it out or send 1"),
    ("top_n_sigma", UpTo(0.0), "leave it out or send -1"),
    ("mirostat", Nothing, "leave it out or send 0"),
    ("dry_multiplier", Nothing, "leave it out or send 0"),
    ("xtc_probability", Nothing, "leave it out or send 0"),
    ("dynatemp_range", Nothing, "leave it out or send 0"),
    ("adaptive_target", UpTo(0.0), OFF),
    ("min_keep", Nothing, "leave it out or send 0"),
    ("samplers", Nothing, "penalties, top_k, top_p, min_p and temperature are applied in this order"),
    ("min_tokens", Nothing, OFF),
    ("stop_token_ids", Nothing, "use stop"),
    ("bad_words", Nothing, "use logit_bias"),
    ("allowed_token_ids", Nothing, "use logit_bias"),
    ("use_beam_search", Nothing, OFF),
    ("length_penalty", Number(1.0), OFF),
    ("prompt_logprobs", Nothing, "probabilities are reported for answers only"),
    ("t_max_predict_ms", UpTo(0.0), "use max_tokens"),
    ("n_indent", Nothing, OFF),
    ("image_data", Nothing, "only text is read"),
    ("guided_json", Nothing, SCHEMA),
    ("guided_regex", Nothing, "use regex"),
    ("guided_grammar", Nothing, "use grammar"),
    ("guided_choice", Nothing, "use response_format with a JSON schema that has an enum, or regex"),
    ("structured_outputs", Nothing, "use response_format, regex or grammar"),
    ("grammar_lazy", Nothing, "a grammar holds from the first token on"),
    ("grammar_triggers", Nothing, "a grammar holds from the first token on"),
    ("web_search_options", Nothing, "nothing is looked up"),
];

const CHAT: &[(&str, Harmless, &str)] = &[
    ("n_probs", Nothing, "use logprobs and top_logprobs"),
    ("return_tokens", Nothing, "use logprobs"),
    ("modalities", Nothing, "only text is answered"),
    ("audio", Nothing, "only text is answered"),
    ("functions", Nothing, "use tools"),
    ("function_call", Text(&["auto", "none"]), "use tool_choice"),
    ("verbosity", Text(&["medium"]), "say it in a message"),
    ("reasoning_format", Text(&["auto", "deepseek"]), "thinking goes to reasoning_content"),
    ("reasoning_budget", UpTo(-1.0), "use reasoning_effort"),
    ("thinking_budget_tokens", UpTo(-1.0), "use reasoning_effort"),
    ("post_sampling_probs", Nothing, "use /completion"),
    ("response_fields", Nothing, "use /completion"),
    ("parse_tool_calls", True, "send tool_choice none to get the text"),
];

const TEXT: &[(&str, Harmless, &str)] = &[
    ("suffix", Nothing, "the model continues a prompt, it doesn't fill gaps"),
    ("post_sampling_probs", Nothing, "use /completion"),
    ("response_fields", Nothing, "use /completion"),
    ("n_probs", Nothing, "use logprobs with a number"),
    ("top_logprobs", Nothing, "use logprobs with a number"),
    ("return_tokens", Nothing, "use logprobs with a number"),
    ("messages", Nothing, "use /v1/chat/completions"),
    ("tools", Nothing, "use /v1/chat/completions"),
    ("confidence", Nothing, "use /v1/chat/completions"),
];

const NATIVE: &[(&str, Harmless, &str)] = &[
    ("suffix", Nothing, "the model continues a prompt, it doesn't fill gaps"),
    ("logprobs", Nothing, "use n_probs"),
    ("top_logprobs", Nothing, "use n_probs"),
    ("messages", Nothing, "use /v1/chat/completions"),
    ("tools", Nothing, "use /v1/chat/completions"),
    ("confidence", Nothing, "use /v1/chat/completions"),
    ("echo", Nothing, "use /v1/completions"),
];

/// Refuses the first such field.
pub(in crate::api) fn refuse(body: &Map<String, Value>, endpoint: Endpoint) -> Result<(), ApiError> {
    let own = match endpoint {
        Endpoint::Chat => CHAT,
        Endpoint::Text => TEXT,
        Endpoint::Native => NATIVE,
    };
    for &(field, harmless, instead) in EVERYWHERE.iter().chain(own) {
        let Some(value) = body.get(field) else { continue };
        if !harmless.allows(value) {
            return Err(ApiError::field(field, format!("{} is not supported here: {instead}", short(value))));
        }
    }
    Ok(())
}

impl Harmless {
    fn allows(self, value: &Value) -> bool {
        let nothing = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Bool(true) => false,
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty() || value == &serde_json::json!(["text"]),
            Value::Object(fields) => fields.is_empty(),
        };
        match self {
            Self::Nothing => nothing,
            Self::UpTo(most) => value.is_null() || value.as_f64().is_some_and(|number| number <= most),
            Self::Number(number) => value.is_null() || value.as_f64() == Some(number),
            Self::True => value.is_null() || value == &Value::Bool(true),
            Self::Text(texts) => value.is_null() || value.as_str().is_some_and(|text| texts.contains(&text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_changes_the_answer_is_refused_by_name() {
        let refused = [
            (Endpoint::Chat, json!({"modalities": ["audio"]})),
            (Endpoint::Chat, json!({"n_probs": 3})),
            (Endpoint::Chat, json!({"mirostat": 2})),
            (Endpoint::Chat, json!({"guided_json": {"type": "object"}})),
            (Endpoint::Chat, json!({"function_call": {"name": "f"}})),
            (Endpoint::Chat, json!({"response_fields": ["content"]})),
            (Endpoint::Text, json!({"post_sampling_probs": true})),
            (Endpoint::Chat, json!({"parse_tool_calls": false})),
            (Endpoint::Text, json!({"suffix": "end"})),
            (Endpoint::Text, json!({"tools": [{}]})),
            (Endpoint::Native, json!({"logprobs": 3})),
        ];
        for (endpoint, body) in refused {
            let body = body.as_object().unwrap();
            let name = body.keys().next().unwrap().clone();
            let error = refuse(body, endpoint).unwrap_err();
            assert!(matches!(&error, ApiError::Field { field, .. } if *field == name), "{error}");
        }
    }

    #[test]
    fn what_changes_nothing_is_accepted() {
        let body = json!({
            "modalities": ["text"], "user": "me", "metadata": {"a": 1}, "store": true, "function_call": "auto",
            "typical_p": 1, "top_n_sigma": -1, "mirostat": 0, "samplers": null, "lora": [], "unheard_of": [1],
            "add_generation_prompt": true, "reasoning_format": "auto", "t_max_predict_ms": -1, "suffix": null
        });
        for endpoint in [Endpoint::Chat, Endpoint::Text, Endpoint::Native] {
            refuse(body.as_object().unwrap(), endpoint).unwrap();
        }
    }
}
