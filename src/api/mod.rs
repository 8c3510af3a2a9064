//! The HTTP side: OpenAI's API, in the dialect of llama-server, over whatever engine there is.

pub mod error;
mod generation;
mod json;
mod llama_server;
mod openai;
mod reasoning;
mod state;
mod template;

pub use error::ApiError;
pub use state::{App, Options};
pub use template::{ChatTemplate, TemplateError, Turn};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, Uri};
use axum::response::Response;
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;

/// All routes.
pub fn router(app: App) -> Router {
    let body_limit = usize::try_from(app.body_limit()).unwrap_or(usize::MAX);
    Router::new()
        .route("/v1/chat/completions", post(openai::chat::complete))
        .route("/v1/embeddings", post(openai::embeddings::embed))
        .route("/v1/models", get(openai::models::list))
        .route("/health", get(llama_server::health))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(body_limit))
        .layer(CatchPanicLayer::custom(panicked))
        .with_state(app)
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
