//! Asks a gate's questions as a client would, except that the spoke has no name yet.

use std::sync::Arc;

use axum::body::to_bytes;
use axum::response::Response;
use serde_json::Value;

use super::spokes::SpokeChoice;
use crate::api::app::App;
use crate::api::error::ApiError;
use crate::api::openai::chat::{self, ChatRequest};
use crate::spokes::gate::{Answer, Questioner};
use crate::spokes::leases::Lease;
use crate::spokes::life::Reason;
use crate::task::Event;
use crate::task::prompt::{Wording, request};
use crate::text::conversation::Conversation;
use crate::text::fields;

/// Most bytes of an answer that are read.
const LONGEST: usize = 8 << 20;

/// Runs requests through the handlers of this API.
#[derive(Clone)]
pub struct Asker(App);

impl std::fmt::Debug for Asker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Asker")
    }
}

/// The implementation of [`Questioner`] by this API.
pub fn questioner(app: &App) -> Arc<dyn Questioner> {
    Arc::new(Asker(app.clone()))
}

impl Questioner for Asker {
    fn encode(&self, event: &Event, spoke: Arc<Lease>) -> Answer {
        let (app, body) = (self.0.clone(), request(event, &Wording::standard()));
        Box::pin(async move {
            let failed = |message: String| Reason::new("gate_failed", message);
            let answer = ask(&app, body, spoke).await.map_err(|error| failed(error.to_string()))?;
            let bytes =
                to_bytes(answer.into_body(), LONGEST).await.map_err(|error| failed(error.to_string()))?;
            let answer: Value = serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?;
            let content = answer["choices"][0]["message"]["content"].as_str();
            content.map(str::to_owned).ok_or_else(|| failed("an answer has no content".to_owned()))
        })
    }
}

/// The response to a body from this spoke alone.
async fn ask(app: &App, body: Value, spoke: Arc<Lease>) -> Result<Response, ApiError> {
    let mut request = ChatRequest::read(fields::object(body)?, app.sampling(), Conversation::take)?;
    request.spokes = SpokeChoice::only(spoke);
    chat::answer(app, request).await
}
