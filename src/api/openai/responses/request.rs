//! Translates a body of the Responses API into turns and fields of chat. Fields with the same
//! meaning in both stay as they are.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::input::turns;
use crate::api::dialect::Dialect;
use crate::api::error::ApiError;
use crate::text::Turn;
use crate::text::fields::{kind, short, take};

/// Field names of this API.
pub(super) const DIALECT: Dialect = Dialect {
    answer: "a response",
    prompt: "input",
    format: "text.format",
    renamed: &[
        ("response_format.json_schema", "text.format"),
        ("max_completion_tokens", "max_output_tokens"),
        ("reasoning_effort", "reasoning.effort"),
        ("verbosity", "text.verbosity"),
        ("tool_choice.function.name", "tool_choice.name"),
    ],
    tool: &[(".function", "")],
};

/// Fields that mean something else in chat, or have another form there, as written.
#[derive(Debug, Deserialize)]
struct ResponseFields {
    input: Option<Value>,
    instructions: Option<Value>,
    max_output_tokens: Option<Value>,
    tools: Option<Value>,
    tool_choice: Option<Value>,
    reasoning: Option<Value>,
    text: Option<Value>,
    include: Option<Value>,
    truncation: Option<Value>,
}

/// Fields that don't affect the answer, whatever they mean in chat.
const IGNORED: [&str; 10] = [
    "store",
    "metadata",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "service_tier",
    "max_tool_calls",
    "logprobs",
    "confidence",
];

/// Fields that need storage or services that the daemon lacks, and what to do instead.
const REFUSED: [(&str, &str); 5] = [
    ("previous_response_id", "no response is kept: send the whole conversation as input"),
    ("conversation", "no conversation is kept: send it whole as input"),
    ("prompt", "no prompt is kept: send it as instructions and input"),
    ("background", "a response is answered at once: leave it out or send false"),
    ("top_logprobs", "use /v1/chat/completions"),
];

/// The turns of a body's conversation, and its other fields as chat's.
pub(super) fn translate(mut fields: Map<String, Value>) -> Result<(Vec<Turn>, Map<String, Value>), ApiError> {
    for (field, instead) in REFUSED {
        let nothing =
            |value: &Value| value.is_null() || *value == Value::Bool(false) || value.as_u64() == Some(0);
        if let Some(value) = fields.get(field).filter(|value| !nothing(value)) {
            let message = format!("{} is not supported here: {instead}", short(value));
            return Err(ApiError::field(field, message));
        }
    }
    let own: ResponseFields = take(&mut fields)?;
    fields.retain(|name, _| !IGNORED.contains(&name.as_str()));
    if let Some(truncation) = own.truncation.filter(|truncation| *truncation != "disabled") {
        let message = format!("{} is not supported here: no part of input is left out", short(&truncation));
        return Err(ApiError::field("truncation", message));
    }
    let logprobs = |entry: &Value| *entry == "message.output_text.logprobs";
    if own.include.as_ref().and_then(Value::as_array).is_some_and(|entries| entries.iter().any(logprobs)) {
        let message = "message.output_text.logprobs is not supported here: use /v1/chat/completions";
        return Err(ApiError::field("include", message));
    }
    let mut all = Vec::new();
    if let Some(instructions) = own.instructions {
        let text = instructions.as_str().ok_or_else(|| {
            ApiError::field("instructions", format!("found {}, expected a string", kind(&instructions)))
        })?;
        all.push(Turn::new("system", text));
    }
    all.extend(turns(own.input.as_ref())?);
    if let Some(most) = own.max_output_tokens {
        fields.insert("max_completion_tokens".to_owned(), most);
    }
    if let Some(tools) = own.tools {
        fields.insert("tools".to_owned(), tools_of(&tools)?);
    }
    if let Some(choice) = own.tool_choice {
        fields.insert("tool_choice".to_owned(), tool_choice(&choice)?);
    }
    if let Some(effort) = own.reasoning.as_ref().and_then(|reasoning| reasoning.get("effort")) {
        fields.insert("reasoning_effort".to_owned(), effort.clone());
    }
    if let Some(text) = own.text {
        if let Some(format) = text.get("format").filter(|format| !format.is_null()) {
            fields.insert("response_format".to_owned(), response_format(format)?);
        }
        if let Some(verbosity) = text.get("verbosity") {
            fields.insert("verbosity".to_owned(), verbosity.clone());
        }
    }
    Ok((all, fields))
}

/// Functions. OpenAI's own tools have other types.
fn tools_of(written: &Value) -> Result<Value, ApiError> {
    let Value::Array(tools) = written else {
        return Err(ApiError::field("tools", format!("found {}, expected an array", kind(written))));
    };
    let tool = |(index, tool): (usize, &Value)| {
        let found = tool.get("type");
        if found.is_none_or(|kind| kind != "function") {
            let found = found.map_or_else(|| "nothing".to_owned(), short);
            let message = format!("found {found}, expected \"function\": no other tool can be called here");
            return Err(ApiError::field(format!("tools[{index}].type"), message));
        }
        let mut function = tool.as_object().cloned().unwrap_or_default();
        function.shift_remove("type");
        Ok(json!({"type": "function", "function": function}))
    };
    tools.iter().enumerate().map(tool).collect()
}

fn tool_choice(written: &Value) -> Result<Value, ApiError> {
    match (written, written.get("type").and_then(Value::as_str)) {
        (Value::String(_), _) => Ok(written.clone()),
        (_, Some("function")) => {
            let name = written.get("name").cloned().unwrap_or_default();
            Ok(json!({"type": "function", "function": {"name": name}}))
        }
        _ => {
            let expected = r#"expected "none", "auto", "required" or {"type": "function", "name": ...}"#;
            Err(ApiError::field("tool_choice", format!("found {}, {expected}", short(written))))
        }
    }
}

/// Translates a format, whose fields lack the inner object that chat wraps them in.
fn response_format(written: &Value) -> Result<Value, ApiError> {
    match written.get("type").and_then(Value::as_str) {
        Some("json_schema") => {
            let mut schema = written.as_object().cloned().unwrap_or_default();
            schema.shift_remove("type");
            Ok(json!({"type": "json_schema", "json_schema": schema}))
        }
        Some(_) => Ok(written.clone()),
        None => Err(ApiError::field("text.format.type", "is missing")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(body: Value) -> Result<(Vec<Turn>, Value), String> {
        let fields = body.as_object().unwrap().clone();
        translate(fields).map(|(turns, fields)| (turns, fields.into())).map_err(|error| error.to_string())
    }

    #[test]
    fn what_means_the_same_goes_over_and_the_rest_is_translated() {
        let body = json!({
            "model": "m", "instructions": "S", "input": "U", "max_output_tokens": 9, "temperature": 0.5,
            "store": false, "include": ["reasoning.encrypted_content"], "truncation": "disabled", "background": false,
            "previous_response_id": null, "top_logprobs": 0,
            "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": true}],
            "tool_choice": {"type": "function", "name": "f"}, "reasoning": {"effort": "low", "summary": "auto"},
            "text": {"format": {"type": "json_schema", "name": "n", "strict": true, "schema": {}}, "verbosity": "medium"},
        });
        let expected = json!({
            "model": "m", "temperature": 0.5, "background": false, "previous_response_id": null, "top_logprobs": 0,
            "max_completion_tokens": 9,
            "tools": [{
                "type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": true}
            }],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "reasoning_effort": "low",
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": {}}},
            "verbosity": "medium",
        });
        let turns = vec![Turn::new("system", "S"), Turn::new("user", "U")];
        assert_eq!(chat(body), Ok((turns, expected)));
    }

    #[test]
    fn what_cant_be_followed_is_refused_by_its_name() {
        for (fields, start) in [
            (json!({"previous_response_id": "resp_1"}), "previous_response_id: \"resp_1\" is not supported"),
            (json!({"conversation": "conv_1"}), "conversation: "),
            (json!({"prompt": {"id": "p"}}), "prompt: "),
            (json!({"background": true}), "background: "),
            (json!({"top_logprobs": 3}), "top_logprobs: 3"),
            (json!({"include": ["message.output_text.logprobs"]}), "include: "),
            (json!({"truncation": "auto"}), "truncation: "),
            (json!({"instructions": 5}), "instructions: found a number"),
            (json!({"tools": [{"type": "web_search"}]}), "tools[0].type: found \"web_search\""),
            (json!({"tool_choice": {"type": "web_search"}}), "tool_choice: found"),
            (json!({"text": {"format": {}}}), "text.format.type: is missing"),
        ] {
            let mut body = json!({"input": "U"});
            body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            let error = chat(body).unwrap_err();
            assert!(error.starts_with(start), "{fields}: {error}");
        }
    }

    #[test]
    fn faults_of_the_translation_have_the_clients_names() {
        for (theirs, ours) in [
            ("response_format.json_schema.schema", "text.format.schema"),
            ("max_completion_tokens", "max_output_tokens"),
            ("reasoning_effort", "reasoning.effort"),
            ("messages[3].content", "input"),
            ("tools[1].function.name", "tools[1].name"),
            ("temperature", "temperature"),
        ] {
            assert_eq!(DIALECT.name(theirs), ours);
        }
    }
}
