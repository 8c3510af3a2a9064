//! Tools: the functions that may be called, whether one must be, and how the model is told.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::json_schema::{inside, walk};
use crate::text::fields::{FieldError, short};

/// Most tools in one request.
const MOST_TOOLS: usize = 128;

/// A tool, as written in the body.
#[derive(Debug, Deserialize)]
pub(super) struct Tool {
    #[serde(rename = "type")]
    _kind: ToolKind,
    function: Function,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ToolKind {
    Function,
}

#[derive(Debug, Deserialize)]
struct Function {
    name: String,
    parameters: Option<Map<String, Value>>,
}

/// The tools of a request.
#[derive(Debug)]
pub struct Tools {
    functions: Vec<Function>,
    /// Tools as written, for the template; functions without parameters get empty ones.
    written: Vec<Value>,
    /// Whether the answer is a call.
    pub choice: Choice,
    /// Whether an answer may contain several calls.
    pub parallel: bool,
}

/// Whether the answer is a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// The answer is no call.
    None,
    /// The model decides.
    Auto,
    /// The answer is a call of one of these functions.
    Must(Vec<String>),
}

impl Tools {
    /// The tools and which of them must be called; `written` is the JSON of the same tools.
    pub(super) fn new(
        tools: Option<Vec<Tool>>,
        written: Option<Value>,
        choice: Option<&Value>,
        parallel: bool,
    ) -> Result<Self, FieldError> {
        let functions: Vec<Function> = tools.into_iter().flatten().map(|tool| tool.function).collect();
        if functions.len() > MOST_TOOLS {
            let message = format!("has {} entries, expected at most {MOST_TOOLS}", functions.len());
            return Err(FieldError::new("tools", message));
        }
        for (index, function) in functions.iter().enumerate() {
            let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
            if function.name.is_empty() || function.name.len() > 64 || !function.name.bytes().all(good) {
                let message =
                    format!("found {:?}, expected 1 to 64 letters, digits, _, - and .", function.name);
                return Err(FieldError::new(format!("tools[{index}].function.name"), message));
            }
        }
        let choice = chosen(choice, &functions)?;
        let written = match (&choice, written) {
            (Choice::Auto | Choice::Must(_), Some(Value::Array(tools))) => {
                tools.into_iter().map(with_parameters).collect()
            }
            _ => Vec::new(),
        };
        Ok(Self { functions, written, choice, parallel })
    }

    /// The tools for the template.
    pub(super) fn shown(&self) -> &[Value] {
        &self.written
    }

    /// Names of the functions.
    pub fn names(&self) -> Vec<String> {
        self.functions.iter().map(|function| function.name.clone()).collect()
    }

    /// The schema of a call of one of the chosen functions.
    pub fn call_schema(&self) -> Value {
        let chosen = self.chosen().count();
        let mut schemas = self.call_schemas(if chosen == 1 { "#" } else { "#/anyOf" }, 0);
        if chosen == 1 { schemas.swap_remove(0) } else { json!({"anyOf": schemas}) }
    }

    /// One schema per chosen function. They will be at `place`, or at the indices from `first` on
    /// if `place` is an array.
    pub fn call_schemas(&self, place: &str, first: usize) -> Vec<Value> {
        self.chosen()
            .enumerate()
            .map(|(index, function)| {
                let root = if place == "#" { "#".to_owned() } else { format!("{place}/{}", first + index) };
                let arguments = rooted(function.arguments(), &format!("{root}/properties/arguments"));
                json!({
                    "type": "object",
                    "properties": {"name": {"const": function.name}, "arguments": arguments},
                    "required": ["name", "arguments"],
                    "additionalProperties": false,
                })
            })
            .collect()
    }

    fn chosen(&self) -> impl Iterator<Item = &Function> {
        self.functions.iter().filter(|function| match &self.choice {
            Choice::Must(names) => names.contains(&function.name),
            _ => true,
        })
    }
}

impl Function {
    /// The schema of its arguments.
    fn arguments(&self) -> Value {
        let mut parameters = self.parameters.clone().unwrap_or_default();
        parameters.entry("type").or_insert_with(|| "object".into());
        if names_nothing(&parameters) {
            // JSON Schema would allow anything here, but a tool that names no parameter takes none.
            parameters.insert("properties".to_owned(), json!({}));
            parameters.insert("additionalProperties".to_owned(), false.into());
        }
        Value::Object(parameters)
    }
}

/// Whether a schema of parameters names none and says nothing about others.
fn names_nothing(parameters: &Map<String, Value>) -> bool {
    parameters.iter().all(|(key, value)| match key.as_str() {
        "type" => value == "object",
        "properties" | "required" | "$defs" | "definitions" => {
            value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
        }
        "title" | "description" | "$schema" | "$id" | "$comment" | "strict" => true,
        _ => false,
    })
}

/// The tool with `parameters` in its function, empty ones if there were none, because templates
/// look for that field.
fn with_parameters(mut tool: Value) -> Value {
    if let Some(function) = tool.get_mut("function").and_then(Value::as_object_mut)
        && function.get("parameters").is_none_or(Value::is_null)
    {
        function.insert("parameters".to_owned(), json!({"type": "object", "properties": {}}));
    }
    tool
}

fn chosen(written: Option<&Value>, functions: &[Function]) -> Result<Choice, FieldError> {
    let must = |names: Vec<String>| {
        if functions.is_empty() {
            return Err(FieldError::new("tool_choice", "promises a call, but tools has no entry"));
        }
        Ok(Choice::Must(names))
    };
    let named = |value: &Value| -> Option<String> {
        let is_function = value.get("type").is_none_or(|kind| kind == "function");
        is_function.then(|| value.get("function")?.get("name")?.as_str().map(str::to_owned)).flatten()
    };
    match written {
        None | Some(Value::Null) if functions.is_empty() => Ok(Choice::None),
        None | Some(Value::Null) => Ok(Choice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "none" => Ok(Choice::None),
            "auto" if functions.is_empty() => Ok(Choice::None),
            "auto" => Ok(Choice::Auto),
            "required" => must(functions.iter().map(|function| function.name.clone()).collect()),
            _ => Err(wrong_choice(&Value::String(word.clone()))),
        },
        Some(value) => {
            let name = named(value).ok_or_else(|| wrong_choice(value))?;
            if !functions.is_empty() && !functions.iter().any(|function| function.name == name) {
                let message = format!("no tool is named {name:?}");
                return Err(FieldError::new("tool_choice.function.name", message));
            }
            must(vec![name])
        }
    }
}

fn wrong_choice(found: &Value) -> FieldError {
    let expected =
        r#"expected "none", "auto", "required" or {"type": "function", "function": {"name": ...}}"#;
    FieldError::new("tool_choice", format!("found {}, {expected}", short(found)))
}

/// The schema as part of a larger one, in which it is at `place`. It gets its own `$id`, so that
/// `#` in its references still means itself.
pub fn rooted(mut schema: Value, place: &str) -> Value {
    if place != "#"
        && let Value::Object(keywords) = &mut schema
        && refers(keywords)
    {
        let name = format!("part:{}", place.trim_start_matches('#'));
        match keywords.get("$id").and_then(Value::as_str) {
            // An `$id` that is only an anchor, as in older drafts.
            Some(id) if id.starts_with('#') => {
                keywords.insert("$id".to_owned(), format!("{name}{id}").into());
            }
            Some(_) => {}
            None => {
                keywords.insert("$id".to_owned(), name.into());
            }
        }
    }
    schema
}

/// Whether a schema contains a reference.
fn refers(keywords: &Map<String, Value>) -> bool {
    let mut refers = keywords.contains_key("$ref");
    for (_, inner) in inside(keywords) {
        walk(inner, "", &mut |_, schema| refers |= schema.get("$ref").is_some());
    }
    refers
}
