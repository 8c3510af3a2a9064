//! The HTTP side: OpenAI's API, in the dialect of llama-server, over whatever engine there is.

mod confidence;
mod conversation;
pub mod error;
mod generation;
mod generations;
mod json;
mod likelihood;
mod llama_server;
mod openai;
mod reasoning;
mod request;
mod state;
mod stream;
mod template;

pub use error::{ApiError, Fields};
pub use state::{App, Options};
pub use template::{Call, ChatTemplate, TemplateError, Turn};

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{Method, Uri, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;

/// All routes.
pub fn router(app: App) -> Router {
    let body_limit = usize::try_from(app.body_limit()).unwrap_or(usize::MAX);
    Router::new()
        .route("/v1/chat/completions", post(openai::chat::complete))
        .route("/v1/completions", post(openai::completion::complete))
        .route("/v1/embeddings", post(openai::embeddings::embed))
        .route("/v1/models", get(openai::models::list))
        .route("/v1/models/{*id}", get(openai::models::one))
        .route("/health", get(llama_server::health))
        .route("/completion", post(llama_server::completion::complete))
        .route("/completions", post(llama_server::completion::complete))
        .route("/tokenize", post(llama_server::tokens::tokenize))
        .route("/detokenize", post(llama_server::tokens::detokenize))
        .route("/apply-template", post(llama_server::tokens::apply_template))
        .route("/props", get(llama_server::props::props))
        .route("/slots", get(llama_server::props::slots))
        .route("/lora-adapters", get(llama_server::props::adapters).post(llama_server::props::set_adapters))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(body_limit))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(errors_in_their_form))
        .with_state(app)
}

/// Under `/v1/` errors have OpenAI's form, elsewhere llama-server's.
async fn errors_in_their_form(request: Request, next: Next) -> Response {
    let openai = request.uri().path().starts_with("/v1/");
    let mut response = next.run(request).await;
    match response.extensions_mut().remove::<ApiError>() {
        Some(error) if openai => {
            let (mut parts, _) = response.into_parts();
            parts.headers.remove(header::CONTENT_LENGTH);
            Response::from_parts(parts, Body::from(error.openai_body().to_string()))
        }
        _ => response,
    }
}

async fn no_such_path(uri: Uri) -> ApiError {
    ApiError::NoSuchPath(uri.path().to_owned())
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::WrongMethod { method: method.to_string(), path: uri.path().to_owned() }
}

/// A defect of ours must cost one answer, not the daemon.
fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
    tracing::error!(panic = text.unwrap_or("no message"), "a request panicked");
    axum::response::IntoResponse::into_response(ApiError::Panicked)
}
