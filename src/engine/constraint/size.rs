//! Limits for the size of schemas and grammars. llguidance recurses through both: one level per
//! level of nesting, and one per rule or reference that leads to the next. The stacks of the
//! threads that call it are large enough for what these limits admit.

use std::collections::HashSet;

use serde_json::Value;

use crate::engine::EngineError;
use crate::json_schema::{Document, Fault, walk};

/// Stack of a thread that compiles, several times what the largest accepted grammar needs. Only the
/// part that is used takes memory.
pub const STACK: usize = 64 << 20;
/// Maximum size of a schema (as compact JSON) or grammar in bytes.
const MAX_BYTES: usize = 256 * 1024;
/// Maximum depth of a schema.
const MAX_DEPTH: usize = 64;
/// Maximum levels of a schema and of everything that it refers to, summed up. No chain of
/// references can be longer.
const MAX_LEVELS: usize = 2_048;
/// Maximum lines of a Lark grammar. A rule needs at least one.
const MAX_LINES: usize = 2_048;
/// Maximum number of opening brackets in a Lark grammar, wherever they are. No nesting can be
/// deeper.
const MAX_BRACKETS: usize = 4_096;

fn refuse(message: String) -> EngineError {
    EngineError::Schema(message)
}

/// Refuses texts that are too long to be examined.
///
/// # Errors
/// The length of the text.
pub fn check_bytes(text: &str) -> Result<(), String> {
    let found = text.len();
    if found > MAX_BYTES {
        return Err(format!("it has {found} bytes; at most {MAX_BYTES} are allowed"));
    }
    Ok(())
}

/// Refuses a schema that is nested too deeply, in itself or through its references.
///
/// # Errors
/// [`EngineError::Schema`].
pub fn check_schema(schema: &Value) -> Result<(), EngineError> {
    let whole = depth(schema);
    if whole > MAX_DEPTH {
        return Err(refuse(format!("it nests deeper than {MAX_DEPTH} levels")));
    }
    let fault = |fault: Fault| refuse(fault.to_string());
    let mut document = Document::new(schema).map_err(fault)?;
    let mut references = Vec::new();
    walk(schema, "#", &mut |_, value| {
        let reference = value.as_object().and_then(|keywords| keywords.get("$ref")).and_then(Value::as_str);
        references.extend(reference.map(|reference| (value, reference)));
    });
    let mut targets = HashSet::new();
    for (value, reference) in references {
        let place = document.within(document.root(), &[], value).map_err(fault)?;
        targets.insert(document.follow(place, reference).map_err(fault)?);
    }
    let levels: usize = targets.iter().map(|&target| depth(document.value(target)) + 1).sum();
    if whole + levels > MAX_LEVELS {
        let (found, count) = (whole + levels, targets.len());
        return Err(refuse(format!(
            "it has {found} levels, with those of the {count} places that $ref leads to; at most {MAX_LEVELS} are allowed: \
             write out what is used once"
        )));
    }
    Ok(())
}

/// Refuses a Lark grammar with too many lines or brackets.
///
/// # Errors
/// [`EngineError::Grammar`].
pub fn check_lark(text: &str) -> Result<(), EngineError> {
    let lines = text.lines().count();
    let brackets = text.bytes().filter(|byte| matches!(byte, b'(' | b'[' | b'{')).count();
    for (found, most, what) in [(lines, MAX_LINES, "lines"), (brackets, MAX_BRACKETS, "opening brackets")] {
        if found > most {
            return Err(EngineError::Grammar(format!("it has {found} {what}; at most {most} are allowed")));
        }
    }
    Ok(())
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(keys) => 1 + keys.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::{Map, json};

    /// Definitions that each refer to the next.
    pub fn chain(length: usize) -> Value {
        let definitions: Map<String, Value> = (0..length)
            .map(|index| (format!("d{index}"), json!({"$ref": format!("#/$defs/d{}", index + 1)})))
            .chain([(format!("d{length}"), json!({"type": "boolean"}))])
            .collect();
        json!({"$ref": "#/$defs/d0", "$defs": definitions})
    }

    #[test]
    fn chains_of_references_are_counted_however_flat_the_schema_is() {
        assert_eq!(check_schema(&chain(900)), Ok(()));
        let error = check_schema(&chain(5_000)).unwrap_err().to_string();
        assert!(error.contains("10005 levels") && error.contains("5001 places"), "{error}");
        // A place counts once, however often it is referred to.
        let often: Vec<Value> = (0..3_000).map(|_| json!({"$ref": "#/$defs/d"})).collect();
        assert_eq!(check_schema(&json!({"anyOf": often, "$defs": {"d": {"type": "null"}}})), Ok(()));
        // A `$ref` in data is no reference.
        let data: Vec<Value> = (0..3_000).map(|index| json!({"$ref": format!("#/$defs/{index}")})).collect();
        assert_eq!(
            check_schema(&json!({"enum": data, "properties": {"$ref": {"default": data[0]}}})),
            Ok(())
        );
        let error = check_schema(&json!({"items": {"$ref": "#name"}})).unwrap_err().to_string();
        assert!(error.contains("#/items/$ref: \"#name\" leads nowhere"), "{error}");
    }

    #[test]
    fn a_lark_grammar_is_measured_by_lines_and_brackets() {
        assert_eq!(check_lark(&"(".repeat(MAX_BRACKETS)), Ok(()));
        let error = check_lark(&"[".repeat(MAX_BRACKETS + 1)).unwrap_err().to_string();
        assert!(error.contains("4097 opening brackets"), "{error}");
        let error = check_lark(&"a: b\n".repeat(3_000)).unwrap_err().to_string();
        assert!(error.contains("3000 lines; at most 2048"), "{error}");
    }
}
