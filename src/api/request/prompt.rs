//! Parses prompts and inputs in OpenAI's and llama-server's forms: a text, token ids, or several of
//! these.

use serde_json::{Map, Value};

use crate::api::error::ApiError;
use crate::engine::{Prompt, Segment};
use crate::text::fields::{kind, short};

const EXPECTED: &str =
    "expected a string, an array of strings, an array of token ids, or an array of such arrays";

/// The prompts in a field. `text` makes a segment from a text, either markup or plain.
///
/// An array of numbers, or of numbers and strings, is one prompt. An array of strings or arrays has
/// one prompt per element.
pub(in crate::api) fn parse(
    field: &str,
    value: Option<&Value>,
    text: fn(String) -> Segment,
) -> Result<Vec<Prompt>, ApiError> {
    let value = value.ok_or_else(|| ApiError::field(field, "is missing"))?;
    match value {
        Value::String(_) => Ok(vec![one(field, value, text)?]),
        Value::Object(fields) if is_wrapped(fields) => Ok(vec![one(field, value, text)?]),
        Value::Array(items) if items.is_empty() => {
            Err(ApiError::field(field, format!("is empty, {EXPECTED}")))
        }
        Value::Array(items) if items.iter().any(Value::is_number) => Ok(vec![one(field, value, text)?]),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(index, item)| one(&format!("{field}[{index}]"), item, text))
            .collect(),
        other => Err(ApiError::field(field, format!("found {}, {EXPECTED}", kind(other)))),
    }
}

/// One prompt: a string, or an array of token ids and strings.
pub(in crate::api) fn one(
    field: &str,
    value: &Value,
    text: fn(String) -> Segment,
) -> Result<Prompt, ApiError> {
    match value {
        Value::String(string) => Ok(vec![text(string.clone())]),
        Value::Object(fields) if is_wrapped(fields) => Ok(vec![text(wrapped(field, fields)?)]),
        Value::Array(items) if items.is_empty() => {
            Err(ApiError::field(field, "is empty, expected token ids"))
        }
        Value::Array(items) => {
            let mut prompt = Prompt::new();
            for (index, item) in items.iter().enumerate() {
                if let Value::String(string) = item {
                    prompt.push(text(string.clone()));
                    continue;
                }
                let id = token_id(&format!("{field}[{index}]"), item)?;
                match prompt.last_mut() {
                    Some(last) if !last.ids.is_empty() => last.ids.push(id),
                    _ => prompt.push(Segment::ids(vec![id])),
                }
            }
            Ok(prompt)
        }
        other => {
            Err(ApiError::field(field, format!("found {}, expected a string or token ids", kind(other))))
        }
    }
}

/// The key of the text in llama-server's multimodal form.
const STRING: &str = "prompt_string";

fn is_wrapped(fields: &Map<String, Value>) -> bool {
    fields.contains_key(STRING) || fields.contains_key("content")
}

/// The text of `{"prompt_string": TEXT}`, or of `{"content": [{"type": "text", "text": TEXT}]}`.
fn wrapped(field: &str, fields: &Map<String, Value>) -> Result<String, ApiError> {
    let wrong = |key: &str, value: &Value, expected: &str| {
        ApiError::field(format!("{field}.{key}"), format!("found {}, expected {expected}", short(value)))
    };
    if let Some(data) = fields.get("multimodal_data").filter(|data| !data.is_null()) {
        return Err(wrong("multimodal_data", data, "nothing: only text is read"));
    }
    if let Some(string) = fields.get(STRING) {
        return string.as_str().map(str::to_owned).ok_or_else(|| wrong(STRING, string, "a string"));
    }
    let content = fields.get("content").unwrap_or(&Value::Null);
    let parts = content.as_array().filter(|parts| !parts.is_empty());
    let parts = parts.ok_or_else(|| wrong("content", content, "an array of text parts"))?;
    let mut text = String::new();
    for (index, part) in parts.iter().enumerate() {
        let kind = part.get("type").unwrap_or(&Value::Null);
        if kind != "text" {
            return Err(wrong(&format!("content[{index}].type"), kind, "\"text\": only text is read"));
        }
        let said = part.get("text").unwrap_or(&Value::Null);
        let said = said.as_str().ok_or_else(|| wrong(&format!("content[{index}].text"), said, "a string"))?;
        text.push_str(said);
    }
    Ok(text)
}

/// A token id. The engine checks that the vocabulary has it.
pub(in crate::api) fn token_id(field: &str, value: &Value) -> Result<u32, ApiError> {
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| ApiError::field(field, format!("found {}, expected a token id", short(value))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parsed(value: Value) -> Result<Vec<Prompt>, String> {
        parse("prompt", Some(&value), Segment::plain).map_err(|error| error.to_string())
    }

    #[test]
    fn all_shapes_are_taken() {
        let (text, ids) = (|text: &str| Segment::plain(text), Segment::ids);
        assert_eq!(parsed(json!("a")), Ok(vec![vec![text("a")]]));
        assert_eq!(parsed(json!(["a", "b"])), Ok(vec![vec![text("a")], vec![text("b")]]));
        assert_eq!(parsed(json!([1, 2])), Ok(vec![vec![ids(vec![1, 2])]]));
        assert_eq!(parsed(json!([[1, 2], [3]])), Ok(vec![vec![ids(vec![1, 2])], vec![ids(vec![3])]]));
        let mixed = vec![ids(vec![1]), text("a"), ids(vec![2, 3])];
        assert_eq!(parsed(json!([1, "a", 2, 3])), Ok(vec![mixed.clone()]));
        assert_eq!(parsed(json!(["a", [1, "a", 2, 3]])), Ok(vec![vec![text("a")], mixed]));
        let parts = json!({"content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]});
        assert_eq!(parsed(json!({"prompt_string": "a"})), Ok(vec![vec![text("a")]]));
        assert_eq!(parsed(json!([[1], parts])), Ok(vec![vec![ids(vec![1])], vec![text("a b")]]));
    }

    #[test]
    fn mistakes_name_their_place() {
        for (value, start) in [
            (json!([]), "prompt: is empty"),
            (json!(5), "prompt: found a number"),
            (json!({"a": 1}), "prompt: found an object"),
            (json!({"prompt_string": 1}), "prompt.prompt_string: found 1, expected a string"),
            (
                json!({"prompt_string": "a", "multimodal_data": ["x"]}),
                "prompt.multimodal_data: found [\"x\"]",
            ),
            (
                json!(["a", {"content": "a"}]),
                "prompt[1].content: found \"a\", expected an array of text parts",
            ),
            (
                json!({"content": [{"type": "image_url", "image_url": {}}]}),
                "prompt.content[0].type: found \"image_url\", expected \"text\": only text is read",
            ),
            (json!(["a", null]), "prompt[1]: found null, expected a string or token ids"),
            (json!([1, -1]), "prompt[1]: found -1, expected a token id"),
            (json!([[1], []]), "prompt[1]: is empty"),
            (json!([[1], [2, 1.5]]), "prompt[1][1]: found 1.5"),
        ] {
            let error = parsed(value.clone()).unwrap_err();
            assert!(error.starts_with(start), "{value}: {error}");
        }
    }
}
