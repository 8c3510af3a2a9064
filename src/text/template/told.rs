//! Describes tools and calls in the system message, in the form of Hermes and Qwen, for templates
//! that don't know them.

use serde_json::{Value, json};

use super::spaced;
use super::turn::{Call, Turn};

/// Opens a call.
pub const OPEN: &str = "<tool_call>";
/// Closes a call.
pub const CLOSE: &str = "</tool_call>";

/// The conversation with tools and calls written as text.
pub(super) fn told(turns: &[Turn], tools: &[Value]) -> Vec<Turn> {
    let mut told: Vec<Turn> = turns.iter().map(in_text).collect();
    if tools.is_empty() {
        return told;
    }
    let description = description(tools);
    match told.first_mut() {
        Some(first) if first.role == "system" => {
            let gap = if first.content.is_empty() { "" } else { "\n\n" };
            first.content = format!("{}{gap}{description}", first.content);
        }
        _ => told.insert(0, Turn::new("system", description)),
    }
    told
}

fn description(tools: &[Value]) -> String {
    let tools: Vec<String> = tools.iter().map(spaced).collect();
    format!(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n\
         You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{}\n</tools>\n\n\
         For each function call, return a json object with function name and arguments within \
         {OPEN}{CLOSE} XML tags:\n{OPEN}\n{{\"name\": <function-name>, \"arguments\": <args-json-object>}}\n{CLOSE}",
        tools.join("\n")
    )
}

/// The turn with its calls written into its text; a tool's answer becomes a user's turn.
fn in_text(turn: &Turn) -> Turn {
    let mut turn = turn.clone();
    for Call { name, arguments, .. } in std::mem::take(&mut turn.calls) {
        let call = spaced(&json!({"name": name, "arguments": arguments}));
        let gap = if turn.content.is_empty() { "" } else { "\n" };
        turn.content = format!("{}{gap}{OPEN}\n{call}\n{CLOSE}", turn.content);
    }
    if turn.role == "tool" {
        turn.role = "user";
        turn.content = format!("<tool_response>\n{}\n</tool_response>", turn.content);
        turn.call_id = None;
    }
    turn
}
