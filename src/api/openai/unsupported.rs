//! Fields that would change the answer and that this daemon doesn't know how to follow: refused by name, never ignored.

use serde_json::Value;

use crate::api::error::ApiError;

/// When a field changes nothing, so that it may be there.
#[derive(Debug, Clone, Copy)]
enum Harmless {
    /// `null`, `false`, zero, or empty.
    Nothing,
    /// This number.
    Number(f64),
    /// One of these texts.
    Text(&'static [&'static str]),
}

/// Field, when it may be there, what to do instead.
const FIELDS: &[(&str, Harmless, &str)] = &[
    ("n", Harmless::Number(1.0), "one answer per request; ask several times"),
    ("best_of", Harmless::Number(1.0), "one answer per request"),
    ("logprobs", Harmless::Nothing, "no probabilities are reported"),
    ("top_logprobs", Harmless::Nothing, "no probabilities are reported"),
    ("n_probs", Harmless::Nothing, "no probabilities are reported"),
    ("logit_bias", Harmless::Nothing, "leave it out"),
    ("presence_penalty", Harmless::Nothing, "leave it out or send 0"),
    ("frequency_penalty", Harmless::Nothing, "leave it out or send 0"),
    ("repeat_penalty", Harmless::Number(1.0), "leave it out or send 1"),
    ("repetition_penalty", Harmless::Number(1.0), "leave it out or send 1"),
    ("typical_p", Harmless::Number(1.0), "leave it out or send 1"),
    ("mirostat", Harmless::Nothing, "leave it out or send 0"),
    ("dry_multiplier", Harmless::Nothing, "leave it out or send 0"),
    ("xtc_probability", Harmless::Nothing, "leave it out or send 0"),
    ("dynatemp_range", Harmless::Nothing, "leave it out or send 0"),
    ("samplers", Harmless::Nothing, "top_k, top_p, min_p and temperature are applied in this order"),
    ("ignore_eos", Harmless::Nothing, "leave it out"),
    ("grammar", Harmless::Nothing, "use response_format with a JSON schema"),
    ("json_schema", Harmless::Nothing, "use response_format"),
    ("modalities", Harmless::Nothing, "only text is answered"),
    ("audio", Harmless::Nothing, "only text is answered"),
    ("functions", Harmless::Nothing, "tools may be sent; they are answered with text"),
    ("function_call", Harmless::Text(&["auto", "none"]), "tools may be sent; they are answered with text"),
    (
        "tool_choice",
        Harmless::Text(&["auto", "none"]),
        "tools are answered with text, so no call can be promised",
    ),
    ("web_search_options", Harmless::Nothing, "nothing is looked up"),
];

/// Looks for the first such field.
pub(super) fn refuse(body: &Value) -> Result<(), ApiError> {
    for &(field, harmless, instead) in FIELDS {
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
            Self::Number(number) => value.is_null() || value.as_f64() == Some(number),
            Self::Text(texts) => value.is_null() || value.as_str().is_some_and(|text| texts.contains(&text)),
        }
    }
}

/// The value for a message: cut, if it is long.
fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 40 { text } else { text.chars().take(39).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_changes_the_answer_is_refused_by_name() {
        let refused = [
            json!({"n": 2}),
            json!({"logprobs": true}),
            json!({"top_logprobs": 3}),
            json!({"logit_bias": {"50256": -100}}),
            json!({"presence_penalty": 0.5}),
            json!({"tool_choice": "required"}),
            json!({"tool_choice": {"type": "function", "function": {"name": "f"}}}),
            json!({"modalities": ["audio"]}),
            json!({"grammar": "root ::= \"a\""}),
        ];
        for body in refused {
            let name = body.as_object().unwrap().keys().next().unwrap().clone();
            let error = refuse(&body).unwrap_err();
            assert!(matches!(&error, ApiError::Field { field, .. } if *field == name), "{error}");
        }
    }

    #[test]
    fn what_changes_nothing_is_accepted() {
        let body = json!({
            "n": 1, "logprobs": false, "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0,
            "tool_choice": "auto", "modalities": ["text"], "user": "me", "metadata": {"a": 1}, "store": true,
            "grammar": null, "unheard_of": [1]
        });
        refuse(&body).unwrap();
    }
}
