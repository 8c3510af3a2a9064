//! A chat request: what was written becomes what is meant, or an error that names the field.

use std::ops::RangeInclusive;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::chat_message::{Message, turns};
use super::unsupported;
use crate::api::error::ApiError;
use crate::api::json::JsonBody;
use crate::api::template::Turn;
use crate::config::SamplingDefaults;
use crate::engine::{Constraint, Penalties, Sampling};
use crate::task::schema::{SCHEMA_NAME, add_limits};

/// As written. Fields that are not here and not in [`unsupported`] change nothing and are ignored: `model` (there is
/// one), `user`, `metadata`, `store`, `tools` (answered with text), `reasoning_effort` (thinking is off unless
/// `chat_template_kwargs` asks for it) and others.
#[derive(Debug, Deserialize)]
struct Written {
    messages: Vec<Message>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i64>,
    min_p: Option<f64>,
    seed: Option<i64>,
    #[serde(default)]
    stop: Stop,
    response_format: Option<ResponseFormat>,
    chat_template_kwargs: Option<Map<String, Value>>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// `null`, one text, or several.
#[derive(Debug, Default, Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
enum Stop {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: FormatKind,
    json_schema: Option<NamedSchema>,
    /// llama-server's short form, with `json_object`.
    schema: Option<Value>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FormatKind {
    Text,
    JsonObject,
    JsonSchema,
}

#[derive(Debug, Deserialize)]
struct NamedSchema {
    name: Option<String>,
    schema: Option<Value>,
}

/// As meant.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ChatRequest {
    pub(super) turns: Vec<Turn>,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) max_tokens: Option<u32>,
    pub(super) sampling: Sampling,
    pub(super) stop: Vec<String>,
    pub(super) constraint: Option<Constraint>,
    pub(super) template_parameters: Map<String, Value>,
}

impl ChatRequest {
    /// Judges a body.
    pub(super) fn parse(body: JsonBody, defaults: &SamplingDefaults) -> Result<Self, ApiError> {
        unsupported::refuse(&body.0)?;
        let written: Written = body.parse()?;
        if written.messages.is_empty() {
            return Err(ApiError::field("messages", "is empty, expected at least one message"));
        }
        let max_tokens = match written.max_completion_tokens {
            Some(given) => budget("max_completion_tokens", given)?,
            None => written.max_tokens.map_or(Ok(None), |given| budget("max_tokens", given))?,
        };
        let sampling = Sampling {
            temperature: number("temperature", written.temperature, 0.0..=2.0, defaults.temperature)?,
            top_p: number("top_p", written.top_p, 0.0..=1.0, defaults.top_p)?,
            top_k: top_k(written.top_k, defaults.top_k)?,
            min_p: number("min_p", written.min_p, 0.0..=1.0, defaults.min_p)?,
            // llama-server's -1, and any other negative number, draws one.
            seed: written.seed.and_then(|seed| u64::try_from(seed).ok()),
            penalties: Penalties::NONE,
        };
        Ok(Self {
            turns: turns(written.messages),
            stream: written.stream.unwrap_or(false),
            include_usage: written.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
            max_tokens,
            sampling,
            stop: written.stop.texts()?,
            constraint: written
                .response_format
                .map_or(Ok(None), |format| format.constraint(defaults.task_limits))?,
            template_parameters: written.chat_template_kwargs.unwrap_or_default(),
        })
    }
}

/// -1 is llama-server's "no limit".
fn budget(field: &str, given: i64) -> Result<Option<u32>, ApiError> {
    match given {
        -1 => Ok(None),
        1.. => Ok(Some(u32::try_from(given).unwrap_or(u32::MAX))),
        _ => Err(ApiError::field(field, format!("found {given}, expected at least 1"))),
    }
}

/// Zero and less keep all, as in llama-server.
fn top_k(given: Option<i64>, default: u32) -> Result<u32, ApiError> {
    let Some(given) = given else { return Ok(default) };
    u32::try_from(given.max(0))
        .map_err(|_| ApiError::field("top_k", format!("found {given}, expected less than 2^32")))
}

fn number(
    field: &str,
    given: Option<f64>,
    range: RangeInclusive<f64>,
    default: f32,
) -> Result<f32, ApiError> {
    match given {
        None => Ok(default),
        Some(given) if range.contains(&given) => Ok(given as f32),
        Some(given) => {
            let expected = format!("expected a number from {} to {}", range.start(), range.end());
            Err(ApiError::field(field, format!("found {given}, {expected}")))
        }
    }
}

impl Stop {
    fn texts(self) -> Result<Vec<String>, ApiError> {
        let texts = match self {
            Self::None => Vec::new(),
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        };
        match texts.iter().position(String::is_empty) {
            Some(index) => Err(ApiError::field(format!("stop[{index}]"), "is empty, expected a text")),
            None => Ok(texts),
        }
    }
}

impl ResponseFormat {
    /// With `task_limits`, the schema of a task that is known by its name gets the limits that its prompt states.
    fn constraint(self, task_limits: bool) -> Result<Option<Constraint>, ApiError> {
        let (field, schema) = match self.kind {
            FormatKind::Text => return Ok(None),
            FormatKind::JsonObject => match self.schema {
                None | Some(Value::Null) => return Ok(Some(Constraint::JsonObject)),
                Some(schema) => ("response_format.schema", schema),
            },
            FormatKind::JsonSchema => {
                let field = "response_format.json_schema.schema";
                let (name, named) = self.json_schema.map_or((None, None), |named| (named.name, named.schema));
                let mut schema = named
                    .or(self.schema)
                    .ok_or_else(|| ApiError::field(field, "is missing, expected a JSON schema"))?;
                if task_limits && name.as_deref() == Some(SCHEMA_NAME) {
                    add_limits(&mut schema);
                }
                (field, schema)
            }
        };
        if schema.is_object() || schema.is_boolean() {
            return Ok(Some(Constraint::JsonSchema(schema)));
        }
        let found = crate::api::json::kind(&schema);
        Err(ApiError::field(field, format!("found {found}, expected a JSON schema, which is an object")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const GREEDY: SamplingDefaults =
        SamplingDefaults { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0, task_limits: true };

    /// A request with these fields beside its one message.
    fn parse(fields: Value) -> Result<ChatRequest, String> {
        let mut body = json!({"messages": [{"role": "user", "content": "x"}]});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        ChatRequest::parse(JsonBody(body), &GREEDY).map_err(|error| error.to_string())
    }

    #[test]
    fn silence_means_the_defaults() {
        let request =
            parse(json!({"temperature": null, "stop": null, "seed": null, "response_format": null})).unwrap();
        assert_eq!(request.sampling, Sampling::GREEDY);
        assert_eq!((request.max_tokens, request.stream, request.constraint), (None, false, None));
        assert!(request.stop.is_empty());
    }

    #[test]
    fn sampling_is_taken_as_written() {
        let request =
            parse(json!({"temperature": 0.3, "top_p": 0.9, "top_k": -1, "min_p": 0.05, "seed": 7})).unwrap();
        let expected =
            Sampling { temperature: 0.3, top_p: 0.9, min_p: 0.05, seed: Some(7), ..Sampling::GREEDY };
        assert_eq!(request.sampling, expected);
        assert_eq!(parse(json!({"seed": -1})).unwrap().sampling.seed, None);
    }

    #[test]
    fn the_newer_name_of_the_budget_wins() {
        assert_eq!(parse(json!({"max_tokens": 5, "max_completion_tokens": 7})).unwrap().max_tokens, Some(7));
        assert_eq!(parse(json!({"max_tokens": -1})).unwrap().max_tokens, None);
        assert!(parse(json!({"max_tokens": 0})).unwrap_err().starts_with("max_tokens: found 0"));
    }

    #[test]
    fn formats_become_constraints() {
        let schema = json!({"type": "object"});
        let of = |format: Value| parse(json!({"response_format": format})).map(|request| request.constraint);
        let wanted = Ok(Some(Constraint::JsonSchema(schema.clone())));
        assert_eq!(
            of(
                json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}})
            ),
            wanted
        );
        assert_eq!(of(json!({"type": "json_object", "schema": schema})), wanted);
        assert_eq!(of(json!({"type": "json_object"})), Ok(Some(Constraint::JsonObject)));
        assert_eq!(of(json!({"type": "text"})), Ok(None));
    }

    #[test]
    fn an_encoding_is_held_to_its_limits_unless_configured_otherwise() {
        let schema = json!({"type": "object", "properties": {"gist": {"type": "string"}}});
        let gist = |name: &str, task_limits| {
            let format = json!({"type": "json_schema", "json_schema": {"name": name, "schema": schema}});
            let body = json!({"messages": [{"role": "user", "content": "x"}], "response_format": format});
            let defaults = SamplingDefaults { task_limits, ..GREEDY };
            match ChatRequest::parse(JsonBody(body), &defaults).unwrap().constraint {
                Some(Constraint::JsonSchema(schema)) => schema["properties"]["gist"]["maxLength"].as_u64(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(gist("encoding_response", true), Some(60));
        assert_eq!(gist("encoding_response", false), None);
        assert_eq!(gist("another", true), None);
    }

    #[test]
    fn mistakes_name_their_field() {
        for (fields, start) in [
            (json!({"messages": []}), "messages: is empty"),
            (json!({"messages": "hi"}), "messages: invalid type"),
            (json!({"temperature": 3}), "temperature: found 3"),
            (json!({"top_p": "much"}), "top_p: invalid type"),
            (json!({"stop": ["a", ""]}), "stop[1]: is empty"),
            (json!({"stop": 5}), "stop: expected a string"),
            (json!({"stream": "yes"}), "stream: invalid type"),
            (json!({"response_format": {"type": "xml"}}), "response_format.type: unknown variant `xml`"),
            (
                json!({"response_format": {"type": "json_schema"}}),
                "response_format.json_schema.schema: is missing",
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"schema": "string"}}}),
                "response_format.json_schema.schema: found a string",
            ),
            (json!({"n": 2}), "n: 2 is not supported"),
        ] {
            let error = parse(fields.clone()).unwrap_err();
            assert!(error.starts_with(start), "{fields}: {error}");
        }
        let no_messages = ChatRequest::parse(JsonBody(json!({})), &GREEDY).unwrap_err();
        assert!(no_messages.to_string().contains("messages"), "{no_messages}");
    }
}
