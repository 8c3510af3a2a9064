//! Translates a body of the Messages API into turns and fields of chat. Fields with the same meaning
//! in both stay as they are.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::content::{text_blocks, turns};
use crate::api::dialect::Dialect;
use crate::api::error::ApiError;
use crate::text::Turn;
use crate::text::fields::{kind, present, short, take};

/// Field names of this API.
pub(super) const DIALECT: Dialect = Dialect {
    answer: "a message",
    prompt: "messages",
    format: "output_config.format",
    renamed: &[
        ("stop", "stop_sequences"),
        ("response_format.json_schema.schema", "output_config.format.schema"),
        ("tool_choice.function.name", "tool_choice.name"),
        ("chat_template_kwargs.enable_thinking", "thinking"),
    ],
    tool: &[(".function.parameters", ".input_schema"), (".function", "")],
};

/// Fields that mean something else in chat, or have another form there, as written.
#[derive(Debug, Deserialize)]
struct MessageFields {
    system: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    messages: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    stop_sequences: Option<Value>,
    tools: Option<Value>,
    tool_choice: Option<Value>,
    thinking: Option<Value>,
    output_config: Option<Value>,
    output_format: Option<Value>,
}

/// Fields that don't affect the answer, whatever they mean in chat.
const IGNORED: [&str; 7] = [
    "metadata",
    "service_tier",
    "cache_control",
    "context_management",
    "logprobs",
    "top_logprobs",
    "confidence",
];

/// Fields that would need something to run elsewhere.
const REFUSED: [(&str, &str); 2] =
    [("mcp_servers", "MCP servers are not supported"), ("container", "containers are not supported")];

/// Prefix of a system block that Anthropic's agents add for billing. It differs in each request, so
/// no prefix could be shared after it.
const BILLING: &str = "x-anthropic-billing-header:";

/// The turns of a body's conversation, and its other fields as chat's.
pub(super) fn translate(mut fields: Map<String, Value>) -> Result<(Vec<Turn>, Map<String, Value>), ApiError> {
    for (field, why) in REFUSED {
        if let Some(value) = fields.get(field).filter(|value| !is_nothing(value)) {
            let message = format!("found {}, but {why}", short(value));
            return Err(ApiError::field(field, message));
        }
    }
    let own: MessageFields = take(&mut fields)?;
    fields.retain(|name, _| !IGNORED.contains(&name.as_str()));
    let mut all = Vec::new();
    if let Some(system) = own.system {
        let mut parts = text_blocks("system", &system)?;
        parts.retain(|text| !text.starts_with(BILLING));
        all.push(Turn::new("system", parts.join("\n\n")));
    }
    all.extend(turns(own.messages.as_ref())?);
    if let Some(stop) = own.stop_sequences {
        fields.insert("stop".to_owned(), stop);
    }
    if let Some(tools) = own.tools {
        fields.insert("tools".to_owned(), tools_of(&tools)?);
    }
    if let Some(choice) = own.tool_choice {
        tool_choice(&choice, &mut fields)?;
    }
    let mut told = thinking(own.thinking.as_ref())?;
    let config = own.output_config.as_ref();
    if let Some(effort) = config.and_then(|config| config.get("effort")).filter(|effort| !effort.is_null()) {
        told.insert("reasoning_effort".to_owned(), self::effort(effort)?);
    }
    // `chat_template_kwargs` address the template directly, so they win.
    match fields.get_mut("chat_template_kwargs") {
        Some(Value::Object(given)) => {
            for (name, value) in told {
                given.entry(name).or_insert(value);
            }
        }
        Some(Value::Null) | None if !told.is_empty() => {
            fields.insert("chat_template_kwargs".to_owned(), told.into());
        }
        _ => {}
    }
    let format = config.and_then(|config| config.get("format")).or(own.output_format.as_ref());
    if let Some(format) = format.filter(|format| !format.is_null()) {
        fields.insert("response_format".to_owned(), response_format(format)?);
    }
    Ok((all, fields))
}

fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

/// Tools that the client executes itself. Anthropic's own tools have other types.
fn tools_of(written: &Value) -> Result<Value, ApiError> {
    let Value::Array(tools) = written else {
        return Err(ApiError::field("tools", format!("found {}, expected an array", kind(written))));
    };
    let tool = |(index, tool): (usize, &Value)| {
        if let Some(kind) = tool.get("type").filter(|kind| !kind.is_null() && *kind != "custom") {
            let message = format!("found {}, expected \"custom\": no tool is run here", short(kind));
            return Err(ApiError::field(format!("tools[{index}].type"), message));
        }
        let mut function = Map::new();
        for (name, field) in
            [("name", "name"), ("description", "description"), ("input_schema", "parameters")]
        {
            if let Some(value) = tool.get(name) {
                function.insert(field.to_owned(), value.clone());
            }
        }
        Ok(json!({"type": "function", "function": function}))
    };
    tools.iter().enumerate().map(tool).collect()
}

fn tool_choice(written: &Value, chat: &mut Map<String, Value>) -> Result<(), ApiError> {
    let choice = match written.get("type").and_then(Value::as_str) {
        Some("auto") => "auto".into(),
        Some("any") => "required".into(),
        Some("none") => "none".into(),
        Some("tool") => {
            let name = written.get("name").filter(|name| name.is_string());
            let name = name
                .ok_or_else(|| ApiError::field("tool_choice.name", "is missing, expected a tool's name"))?;
            json!({"type": "function", "function": {"name": name}})
        }
        _ => {
            let expected = r#"expected {"type": "auto"}, "any", "none" or "tool" with its name"#;
            return Err(ApiError::field("tool_choice", format!("found {}, {expected}", short(written))));
        }
    };
    chat.insert("tool_choice".to_owned(), choice);
    if let Some(one) = written.get("disable_parallel_tool_use").filter(|one| !one.is_null()) {
        let one = one.as_bool().ok_or_else(|| {
            let message = format!("found {}, expected true or false", short(one));
            ApiError::field("tool_choice.disable_parallel_tool_use", message)
        })?;
        chat.insert("parallel_tool_calls".to_owned(), (!one).into());
    }
    Ok(())
}

/// Whether the model thinks. `budget_tokens` is accepted but not enforced: `max_tokens` limits
/// thinking and answer.
fn thinking(written: Option<&Value>) -> Result<Map<String, Value>, ApiError> {
    let mut told = Map::new();
    let Some(written) = written else { return Ok(told) };
    let thinks = match written.get("type").and_then(Value::as_str) {
        Some("enabled" | "adaptive") => true,
        Some("disabled") => false,
        _ => {
            let expected = r#"expected {"type": "enabled"}, "adaptive" or "disabled""#;
            return Err(ApiError::field("thinking", format!("found {}, {expected}", short(written))));
        }
    };
    told.insert("enable_thinking".to_owned(), thinks.into());
    Ok(told)
}

/// The effort in the words of templates, which don't know `max`.
fn effort(written: &Value) -> Result<Value, ApiError> {
    match written.as_str() {
        Some(word @ ("low" | "medium" | "high" | "xhigh")) => Ok(word.into()),
        Some("max") => Ok("xhigh".into()),
        _ => {
            let message = format!("found {}, expected low, medium, high, xhigh or max", short(written));
            Err(ApiError::field("output_config.effort", message))
        }
    }
}

fn response_format(written: &Value) -> Result<Value, ApiError> {
    if let Some("json_schema") = written.get("type").and_then(Value::as_str) {
        let schema = written.get("schema").cloned().unwrap_or_default();
        let name = written.get("name").cloned().unwrap_or_default();
        Ok(json!({"type": "json_schema", "json_schema": {"name": name, "schema": schema}}))
    } else {
        let message =
            format!("found {}, expected {{\"type\": \"json_schema\", \"schema\": ...}}", short(written));
        Err(ApiError::field("output_config.format", message))
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
            "model": "m", "max_tokens": 9, "temperature": 0.5, "top_k": 4, "stream": true, "seed": 3,
            "system": [{"type": "text", "text": "x-anthropic-billing-header: cch=1;"}, {"type": "text", "text": "S"}],
            "messages": [{"role": "user", "content": "U"}],
            "stop_sequences": ["END"], "metadata": {"user_id": "u"},
            "tools": [{"name": "look", "description": "D", "input_schema": {"type": "object"}, "cache_control": {}}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "output_config": {"effort": "max", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        });
        let expected = json!({
            "model": "m", "max_tokens": 9, "temperature": 0.5, "top_k": 4, "stream": true, "seed": 3,
            "stop": ["END"],
            "tools": [{"type": "function", "function": {
                "name": "look", "description": "D", "parameters": {"type": "object"}
            }}],
            "tool_choice": "required", "parallel_tool_calls": false,
            "chat_template_kwargs": {"enable_thinking": true, "reasoning_effort": "xhigh"},
            "response_format": {
                "type": "json_schema", "json_schema": {"name": null, "schema": {"type": "object"}}
            },
        });
        let turns = vec![Turn::new("system", "S"), Turn::new("user", "U")];
        assert_eq!(chat(body), Ok((turns, expected)));
    }

    #[test]
    fn what_cant_be_followed_is_refused_by_its_name() {
        let message = json!([{"role": "user", "content": "U"}]);
        for (fields, start) in [
            (
                json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
                "tools[0].type: found",
            ),
            (json!({"tools": {}}), "tools: found an object"),
            (json!({"mcp_servers": [{"url": "x"}]}), "mcp_servers: "),
            (json!({"tool_choice": "auto"}), "tool_choice: found \"auto\", expected {\"type\""),
            (json!({"tool_choice": {"type": "tool"}}), "tool_choice.name: is missing"),
            (json!({"thinking": true}), "thinking: found true"),
            (json!({"output_config": {"effort": 3}}), "output_config.effort: found 3"),
            (json!({"output_config": {"format": {"type": "xml"}}}), "output_config.format: found"),
            (json!({"system": 5}), "system: found a number"),
        ] {
            let mut body = json!({"messages": message});
            body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            let error = chat(body).unwrap_err();
            assert!(error.starts_with(start), "{fields}: {error}");
        }
    }

    #[test]
    fn faults_of_the_translation_have_the_clients_names() {
        for (theirs, ours) in [
            ("stop[1]", "stop_sequences[1]"),
            ("stopped", "stopped"),
            ("tools[2].function.name", "tools[2].name"),
            ("tools[0].function.parameters", "tools[0].input_schema"),
            ("tool_choice.function.name", "tool_choice.name"),
            ("response_format.json_schema.schema", "output_config.format.schema"),
            ("max_tokens", "max_tokens"),
        ] {
            assert_eq!(DIALECT.name(theirs), ours);
        }
    }
}
