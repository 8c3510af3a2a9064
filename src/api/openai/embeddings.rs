//! `POST /v1/embeddings`: mean-pooled vectors of length 1, as numbers or as base64 of little-endian
//! floats.

use axum::extract::State;
use axum::response::Json;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::app::{App, Deadline, answered};
use crate::api::body::JsonBody;
use crate::api::error::{ApiError, Fields};
use crate::api::observe::RequestContext;
use crate::api::request::prompt;
use crate::api::spokes::{Chosen, SpokeChoice};
use crate::engine::{Embeddings, Segment};
use crate::text::fields::{present, short};

/// Most texts in one request.
const MOST_INPUTS: usize = 2048;

/// Fields as written. Unlisted fields such as `user` have no effect and are ignored.
#[derive(Debug, Deserialize)]
pub(in crate::api) struct EmbeddingRequest {
    /// The texts.
    #[serde(default, deserialize_with = "present")]
    input: Option<Value>,
    model: Option<Value>,
    lora: Option<Value>,
    encoding_format: Option<Format>,
    dimensions: Option<u32>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Float,
    Base64,
}

/// Answers with one vector per text, in order.
pub(in crate::api) async fn embed(State(app): State<App>, body: JsonBody) -> Result<Json<Value>, ApiError> {
    let request: EmbeddingRequest = body.parse()?;
    let embeddings = request.vectors(&app, "input").await?;
    let format = request.encoding_format.unwrap_or_default();
    let data: Vec<Value> = embeddings
        .vectors
        .iter()
        .enumerate()
        .map(|(index, vector)| json!({"object": "embedding", "index": index, "embedding": format.of(vector)}))
        .collect();
    Ok(Json(json!({
        "object": "list",
        "model": app.model_id(),
        "data": data,
        "usage": {"prompt_tokens": embeddings.prompt_tokens, "total_tokens": embeddings.prompt_tokens},
    })))
}

impl EmbeddingRequest {
    /// With these texts instead.
    pub(in crate::api) fn of(self, input: Value) -> Self {
        Self { input: Some(input), ..self }
    }

    /// One vector per text, in order; `field` is the texts' field in the body.
    pub(in crate::api) async fn vectors(
        &self,
        app: &App,
        field: &'static str,
    ) -> Result<Embeddings, ApiError> {
        let deadline = app.deadline();
        let prompts = prompt::parse(field, self.input.as_ref(), Segment::plain)?;
        if prompts.len() > MOST_INPUTS {
            let message = format!("has {} texts, expected 1 to {MOST_INPUTS}", prompts.len());
            return Err(ApiError::field(field, message));
        }
        let empty =
            |prompt: &Vec<Segment>| prompt.iter().all(|part| part.text.is_empty() && part.ids.is_empty());
        if let Some(index) = prompts.iter().position(empty) {
            return Err(ApiError::field(format!("{field}[{index}]"), "is empty, expected a text"));
        }
        self.check_post(app, deadline).await?;
        let model = app.ready(deadline).await?;
        if let Some(dimensions) = self.dimensions.filter(|&dimensions| dimensions != model.n_embd) {
            let message =
                format!("found {dimensions}; this model's vectors have {} and can't be cut", model.n_embd);
            return Err(ApiError::field("dimensions", message));
        }
        let blame = |error| Fields { prompt: field, ..Fields::CHAT }.blame(error);
        let receiver = app.engine().embed(prompts).map_err(blame)?;
        let embeddings = answered(deadline.within(receiver).await?).map_err(blame)?;
        RequestContext::current().add_prompt(embeddings.prompt_tokens, 0);
        Ok(embeddings)
    }

    /// Refuses unknown models, as chat does, and spokes: all vectors are the post's, so that they
    /// can be compared.
    async fn check_post(&self, app: &App, deadline: Deadline) -> Result<(), ApiError> {
        let post = app.model_id();
        let message = |name: &str| {
            format!("{name:?} is a spoke; embeddings are the post's alone: send {post:?}, or nothing")
        };
        match &self.lora {
            None => {}
            Some(Value::Array(spokes)) if spokes.is_empty() => {}
            Some(other) => {
                let message =
                    format!("found {}, expected nothing: embeddings are the post's alone", short(other));
                return Err(ApiError::field("lora", message));
            }
        }
        let Some(model) = self.model.as_ref().and_then(Value::as_str) else { return Ok(()) };
        let serving = app.spokes().registry().serving();
        let after = |prefix: &str| model.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(':'));
        let name = after(post).or_else(|| after("bespoke")).unwrap_or(model);
        if serving.names.contains_key(name) {
            return Err(ApiError::field("model", message(name)));
        }
        // Resolved as for chat: the name stands for the post, or it is an error.
        let chosen = Chosen::take(app, SpokeChoice::named(model), deadline).await?;
        if chosen.set().is_empty() { Ok(()) } else { Err(ApiError::field("model", message(name))) }
    }
}

impl Format {
    fn of(self, vector: &[f32]) -> Value {
        match self {
            Self::Float => json!(vector),
            Self::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
                Value::String(STANDARD.encode(bytes))
            }
        }
    }
}
