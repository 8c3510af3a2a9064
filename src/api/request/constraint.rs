//! Fields that constrain the shape of an answer. At most one of them may be used.

use serde::Deserialize;
use serde_json::Value;

use super::AnswerFields;
use crate::api::error::ApiError;
use crate::engine::{Constraint, DistinctList, Guard, Longest, Prompt};
use crate::task::schema::{NAMES, SCHEMA_NAME, add_limits, longest_list, longest_text};
use crate::text::fields::kind;

#[derive(Debug, Deserialize)]
pub(super) struct ResponseFormat {
    #[serde(rename = "type")]
    kind: FormatKind,
    json_schema: Option<NamedSchema>,
    /// llama-server's short form, for `json_object`.
    schema: Option<Value>,
    /// Our extension, for `regex`.
    pattern: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FormatKind {
    Text,
    JsonObject,
    JsonSchema,
    Regex,
}

#[derive(Debug, Deserialize)]
struct NamedSchema {
    name: Option<String>,
    schema: Option<Value>,
}

/// Marker by which llama-server tells a grammar for llguidance from GBNF.
const LARK_MARK: &str = "%llguidance";

/// The constraint, and the field that it came from. With `task_limits`, the schema of a known task
/// gets the limits that the task's prompt states.
pub(super) fn take(
    written: &mut AnswerFields,
    task_limits: bool,
) -> Result<Option<(&'static str, Constraint)>, ApiError> {
    let format = written.response_format.take().map_or(Ok(None), |format| format.constraint(task_limits))?;
    let schema = match written.json_schema.take() {
        None | Some(Value::Null) => None,
        Some(schema) => Some(json_schema("json_schema", schema)?),
    };
    // As in llama-server, an empty grammar means no grammar.
    let grammar = written.grammar.take().filter(|grammar| !grammar.trim().is_empty()).map(|grammar| {
        if grammar.starts_with(LARK_MARK) { Constraint::Lark(grammar) } else { Constraint::Gbnf(grammar) }
    });
    let regex = written.regex.take().map(Constraint::Regex);
    let all = [("response_format", format), ("json_schema", schema), ("grammar", grammar), ("regex", regex)];
    let mut given =
        all.into_iter().filter_map(|(field, constraint)| constraint.map(|constraint| (field, constraint)));
    let first = given.next();
    match (&first, given.next()) {
        (Some((one, _)), Some((other, _))) => Err(both(one, other)),
        _ => Ok(first),
    }
}

/// How answers of this shape are kept from repeating themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guarded {
    /// Not at all.
    Not,
    /// Any JSON: numbers must end.
    Json,
    /// Encodings: items must have different names, and texts must end.
    Encoding,
}

impl Guarded {
    /// The kind for answers under this constraint; `encodes` tells whether its schema has the
    /// name of an encoding's.
    pub(super) fn of(constraint: Option<&Constraint>, encodes: bool, task_limits: bool) -> Self {
        match constraint {
            Some(Constraint::JsonSchema(_)) if task_limits && encodes => Self::Encoding,
            Some(Constraint::JsonSchema(_) | Constraint::JsonObject) if task_limits => Self::Json,
            _ => Self::Not,
        }
    }

    /// The guard for answers to this prompt.
    pub(super) fn guard(self, prompt: &Prompt) -> Option<Guard> {
        let distinct = |(path, members): &(&str, &[&str])| DistinctList {
            path: (*path).to_owned(),
            members: members.iter().map(|&member| member.to_owned()).collect(),
        };
        match self {
            Self::Not => None,
            Self::Json => Some(Guard::default()),
            Self::Encoding => {
                // The event is in the last text that a person wrote.
                let event = prompt.iter().rfind(|segment| !segment.markup);
                let longest = event.map(|event| Longest {
                    text: longest_text(event.text.len()),
                    list: longest_list(event.text.len()),
                });
                Some(Guard { distinct: NAMES.iter().map(distinct).collect(), longest })
            }
        }
    }
}

/// The error for two constraints on one answer.
pub(in crate::api) fn both(one: &str, other: &str) -> ApiError {
    ApiError::field(other, format!("can't be combined with {one}: an answer can follow one of them"))
}

fn json_schema(field: &str, schema: Value) -> Result<Constraint, ApiError> {
    if schema.is_object() || schema.is_boolean() {
        return Ok(Constraint::JsonSchema(schema));
    }
    let found = kind(&schema);
    Err(ApiError::field(field, format!("found {found}, expected a JSON schema, which is an object")))
}

impl ResponseFormat {
    pub(super) fn schema_name(&self) -> Option<&str> {
        self.json_schema.as_ref()?.name.as_deref()
    }

    fn constraint(self, task_limits: bool) -> Result<Option<Constraint>, ApiError> {
        match self.kind {
            FormatKind::Text => Ok(None),
            FormatKind::JsonObject => match self.schema {
                None | Some(Value::Null) => Ok(Some(Constraint::JsonObject)),
                Some(schema) => json_schema("response_format.schema", schema).map(Some),
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
                json_schema(field, schema).map(Some)
            }
            FormatKind::Regex => {
                let pattern = self.pattern.ok_or_else(|| {
                    ApiError::field("response_format.pattern", "is missing, expected a regular expression")
                })?;
                Ok(Some(Constraint::Regex(pattern)))
            }
        }
    }
}
