//! `logit_bias`: OpenAI's object of token ids, and llama-server's lists of ids or texts.

use serde_json::Value;

use crate::api::app::{App, Deadline};
use crate::api::error::ApiError;
use crate::engine::{ModelInfo, Query, Reply, Segment};
use crate::text::fields::{kind, short};

/// Most entries in one request, and bytes of a text in one, because each text is tokenised.
const MOST: usize = 4_096;
const LONGEST: usize = 256;

/// A bias of this value or less bans a token.
const BAN: f32 = -100.0;

/// One entry.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Bias {
    /// Its path in the body.
    path: String,
    target: Target,
    bias: f32,
}

#[derive(Debug, Clone, PartialEq)]
enum Target {
    Token(u32),
    /// Every token of a text.
    Text(String),
}

/// Validates the field.
pub(super) fn parse(written: Option<&Value>) -> Result<Vec<Bias>, ApiError> {
    let entries = match written {
        Some(Value::Object(entries)) => entries.len(),
        Some(Value::Array(entries)) => entries.len(),
        _ => 0,
    };
    if entries > MOST {
        let message = format!("has {entries} entries, expected at most {MOST}");
        return Err(ApiError::field("logit_bias", message));
    }
    let biases = entries_of(written)?;
    for Bias { path, target, .. } in &biases {
        if let Target::Text(text) = target
            && text.len() > LONGEST
        {
            let path: String = path.chars().take(60).collect();
            let message = format!("has {} bytes, expected at most {LONGEST}", text.len());
            return Err(ApiError::field(path, message));
        }
    }
    Ok(biases)
}

fn entries_of(written: Option<&Value>) -> Result<Vec<Bias>, ApiError> {
    match written {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Object(entries)) => entries
            .iter()
            .map(|(key, bias)| {
                let path = format!("logit_bias.{key}");
                let target = match key.parse() {
                    Ok(id) => Target::Token(id),
                    Err(_) => Target::Text(key.clone()),
                };
                let bias = weight(&path, bias)?;
                if !(-100.0..=100.0).contains(&bias) {
                    return Err(ApiError::field(path, format!("found {bias}, expected -100 to 100")));
                }
                Ok(Bias { path, target, bias })
            })
            .collect(),
        Some(Value::Array(entries)) => entries
            .iter()
            .enumerate()
            .map(|(index, entry)| {
                let path = format!("logit_bias[{index}]");
                let Some([token, bias]) = entry.as_array().map(Vec::as_slice) else {
                    let message =
                        format!("found {}, expected [token id or text, bias or false]", short(entry));
                    return Err(ApiError::field(path, message));
                };
                let target = match token {
                    Value::String(text) => Target::Text(text.clone()),
                    other => Target::Token(other.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(
                        || {
                            ApiError::field(
                                format!("{path}[0]"),
                                format!("found {}, expected a token id or a text", short(other)),
                            )
                        },
                    )?),
                };
                let bias = weight(&format!("{path}[1]"), bias)?;
                Ok(Bias { path: format!("{path}[0]"), target, bias })
            })
            .collect(),
        Some(other) => {
            let message = format!("found {}, expected an object or an array", kind(other));
            Err(ApiError::field("logit_bias", message))
        }
    }
}

/// `false` is llama-server's "never".
fn weight(path: &str, bias: &Value) -> Result<f32, ApiError> {
    match bias {
        Value::Bool(false) => Ok(BAN),
        Value::Number(number) => Ok(number.as_f64().unwrap_or(0.0) as f32),
        other => Err(ApiError::field(path, format!("found {}, expected a number or false", short(other)))),
    }
}

/// Resolves the entries to token ids and biases. Texts are tokenised; ids must exist.
pub(super) async fn resolve(
    biases: &[Bias],
    app: &App,
    model: &ModelInfo,
    deadline: Deadline,
) -> Result<Vec<(u32, f32)>, ApiError> {
    let text = |bias: &Bias| match &bias.target {
        Target::Text(text) => Some(vec![Segment::plain(text)]),
        Target::Token(_) => None,
    };
    let texts: Vec<_> = biases.iter().filter_map(text).collect();
    // One query for all texts, because each query waits for a step of the engine.
    let mut tokenised = Vec::new();
    if !texts.is_empty()
        && let Reply::AllTokens(all) = app.query(Query::TokenizeAll(texts), deadline).await?
    {
        tokenised = all;
    }
    let mut tokenised = tokenised.into_iter();
    let mut resolved = Vec::with_capacity(biases.len());
    for Bias { path, target, bias } in biases {
        match target {
            Target::Token(id) if *id >= model.n_vocab => {
                let message = format!("{id} is not a token id: the vocabulary has {} entries", model.n_vocab);
                return Err(ApiError::field(path, message));
            }
            Target::Token(id) => resolved.push((*id, *bias)),
            Target::Text(_) => {
                resolved.extend(tokenised.next().into_iter().flatten().map(|id| (id, *bias)));
            }
        }
    }
    Ok(resolved)
}
