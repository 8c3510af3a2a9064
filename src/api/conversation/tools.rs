//! Tools: which functions may be called, whether one must be, and how that is said to a model.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::calls::{CLOSE, OPEN};
use crate::api::error::ApiError;
use crate::api::json::{JsonBody, short};
use crate::api::template::{Call, Turn, spaced};
use crate::json_schema::{inside, walk};

/// Tools that one request may bring.
const MOST_TOOLS: usize = 128;

#[derive(Debug, Deserialize)]
struct Written {
    tools: Option<Vec<Tool>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Tool {
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
pub(super) struct Tools {
    functions: Vec<Function>,
    /// As they were written, for the template.
    written: Vec<Value>,
    pub(super) choice: Choice,
    /// Whether one answer may have several calls.
    pub(super) parallel: bool,
}

/// Whether the answer is a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Choice {
    /// It is not.
    None,
    /// The model decides.
    Auto,
    /// It is, of one of these.
    Must(Vec<String>),
}

impl Tools {
    pub(super) fn parse(body: &JsonBody) -> Result<Self, ApiError> {
        let parsed: Written = body.parse()?;
        let functions: Vec<Function> = parsed.tools.into_iter().flatten().map(|tool| tool.function).collect();
        if functions.len() > MOST_TOOLS {
            let message = format!("has {} entries, expected at most {MOST_TOOLS}", functions.len());
            return Err(ApiError::field("tools", message));
        }
        for (index, function) in functions.iter().enumerate() {
            let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
            if function.name.is_empty() || function.name.len() > 64 || !function.name.bytes().all(good) {
                let message =
                    format!("found {:?}, expected 1 to 64 letters, digits, _, - and .", function.name);
                return Err(ApiError::field(format!("tools[{index}].function.name"), message));
            }
        }
        let choice = choice(parsed.tool_choice.as_ref(), &functions)?;
        let written = match (&choice, body.0.get("tools")) {
            (Choice::Auto | Choice::Must(_), Some(Value::Array(tools))) => tools.clone(),
            _ => Vec::new(),
        };
        Ok(Self { functions, written, choice, parallel: parsed.parallel_tool_calls.unwrap_or(true) })
    }

    /// The tools for a template that knows how to show them.
    pub(super) fn shown(&self) -> &[Value] {
        &self.written
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.functions.iter().map(|function| function.name.clone()).collect()
    }

    /// The conversation for a template that knows nothing of tools: they are described in the system message, calls and
    /// their answers are text, in the form that Hermes and Qwen use.
    pub(super) fn told(&self, turns: &[Turn]) -> Vec<Turn> {
        let mut told: Vec<Turn> = turns.iter().map(plain).collect();
        if self.written.is_empty() {
            return told;
        }
        let description = self.description();
        match told.first_mut() {
            Some(first) if first.role == "system" => {
                let gap = if first.content.is_empty() { "" } else { "\n\n" };
                first.content = format!("{}{gap}{description}", first.content);
            }
            _ => told.insert(0, Turn::new("system", description)),
        }
        told
    }

    fn description(&self) -> String {
        let tools: Vec<String> = self.written.iter().map(spaced).collect();
        format!(
            "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n\
             You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{}\n</tools>\n\n\
             For each function call, return a json object with function name and arguments within \
             {OPEN}{CLOSE} XML tags:\n{OPEN}\n{{\"name\": <function-name>, \"arguments\": <args-json-object>}}\n{CLOSE}",
            tools.join("\n")
        )
    }

    /// The schema of a call of one of the chosen functions.
    pub(super) fn call_schema(&self) -> Value {
        let chosen = self.chosen().count();
        let mut schemas = self.call_schemas(if chosen == 1 { "#" } else { "#/anyOf" }, 0);
        if chosen == 1 { schemas.swap_remove(0) } else { json!({"anyOf": schemas}) }
    }

    /// A schema per chosen function. They will stand at `place`, or at the places from `first` on of an array that is there.
    pub(super) fn call_schemas(&self, place: &str, first: usize) -> Vec<Value> {
        self.chosen()
            .enumerate()
            .map(|(index, function)| {
                let root = if place == "#" { "#".to_owned() } else { format!("{place}/{}", first + index) };
                let mut parameters = function.parameters.clone().unwrap_or_default();
                parameters.entry("type").or_insert_with(|| "object".into());
                let arguments = rooted(Value::Object(parameters), &format!("{root}/properties/arguments"));
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

fn choice(written: Option<&Value>, functions: &[Function]) -> Result<Choice, ApiError> {
    let must = |names: Vec<String>| {
        if functions.is_empty() {
            return Err(ApiError::field("tool_choice", "promises a call, but tools has no entry"));
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
                return Err(ApiError::field("tool_choice.function.name", message));
            }
            must(vec![name])
        }
    }
}

fn wrong_choice(found: &Value) -> ApiError {
    let expected =
        r#"expected "none", "auto", "required" or {"type": "function", "function": {"name": ...}}"#;
    ApiError::field("tool_choice", format!("found {}, {expected}", short(found)))
}

/// The turn as text alone.
fn plain(turn: &Turn) -> Turn {
    let mut content = turn.content.clone();
    for Call { name, arguments, .. } in &turn.calls {
        let call = spaced(&json!({"name": name, "arguments": arguments}));
        let gap = if content.is_empty() { "" } else { "\n" };
        content = format!("{content}{gap}{OPEN}\n{call}\n{CLOSE}");
    }
    if turn.role == "tool" {
        return Turn::new("user", format!("<tool_response>\n{content}\n</tool_response>"));
    }
    Turn::new(turn.role, content)
}

/// The schema as a part of a larger one, which stands at `place`: with a name of its own, so that `#` in its references still
/// leads to itself.
pub(super) fn rooted(mut schema: Value, place: &str) -> Value {
    if place != "#"
        && let Value::Object(keywords) = &mut schema
        && refers(keywords)
    {
        let name = format!("part:{}", place.trim_start_matches('#'));
        match keywords.get("$id").and_then(Value::as_str) {
            // A name that is an anchor alone, as in older drafts.
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

/// Whether a schema refers to anything.
fn refers(keywords: &Map<String, Value>) -> bool {
    let mut refers = keywords.contains_key("$ref");
    for (_, inner) in inside(keywords) {
        walk(inner, "", &mut |_, schema| refers |= schema.get("$ref").is_some());
    }
    refers
}
