//! The HTTP side: OpenAI's API, in the dialect of llama-server, over whatever engine there is.

pub mod auth;
mod confidence;
pub mod connection;
mod conversation;
pub mod error;
mod generation;
mod generations;
mod json;
mod likelihood;
mod llama_server;
mod metrics;
mod observe;
mod openai;
mod openapi;
mod pulse;
mod reasoning;
mod request;
mod spokes;
mod state;
mod stream;
mod template;

pub use error::{ApiError, Fields};
pub use pulse::Pulse;
pub use spokes::questioner;
pub use state::{App, Options, Room, SpokeOptions};
pub use template::{Call, ChatTemplate, TemplateError, Turn};

use std::sync::LazyLock;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderName, HeaderValue, Method, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};

use self::auth::{Access, Scope};

/// One thing that can be asked.
struct Route {
    method: Method,
    path: &'static str,
    access: Access,
    handler: MethodRouter<App>,
}

/// All of them. Each stands in `openapi/` too; a test compares the two.
fn routes() -> Vec<Route> {
    const OPEN: Access = Access::Open;
    const ASK: Access = Access::Key(Scope::Inference);
    const ADMIN: Access = Access::Key(Scope::Admin);
    let route = |method, path, access, handler| Route { method, path, access, handler };
    vec![
        route(Method::POST, "/v1/chat/completions", ASK, post(openai::chat::complete)),
        route(Method::POST, "/v1/completions", ASK, post(openai::completion::complete)),
        route(Method::POST, "/v1/embeddings", ASK, post(openai::embeddings::embed)),
        route(Method::GET, "/v1/models", ASK, get(openai::models::list)),
        route(Method::GET, "/v1/models/{*id}", ASK, get(openai::models::one)),
        route(Method::GET, "/health", OPEN, get(llama_server::health)),
        route(Method::POST, "/completion", ASK, post(llama_server::completion::complete)),
        route(Method::POST, "/completions", ASK, post(llama_server::completion::complete)),
        route(Method::POST, "/tokenize", ASK, post(llama_server::tokens::tokenize)),
        route(Method::POST, "/detokenize", ASK, post(llama_server::tokens::detokenize)),
        route(Method::POST, "/apply-template", ASK, post(llama_server::tokens::apply_template)),
        route(Method::GET, "/props", ASK, get(llama_server::props::props)),
        route(Method::GET, "/slots", ASK, get(llama_server::props::slots)),
        route(Method::GET, "/lora-adapters", ASK, get(llama_server::adapters::adapters)),
        route(Method::POST, "/lora-adapters", ADMIN, post(llama_server::adapters::set_adapters)),
        route(Method::GET, "/v1/spokes", ASK, get(spokes::list)),
        route(Method::GET, "/v1/spokes/events", ASK, get(spokes::events)),
        route(Method::POST, "/v1/spokes/trained-on", ADMIN, post(spokes::befriend)),
        route(Method::POST, "/v1/spokes/{change}", ADMIN, post(spokes::change)),
        route(Method::POST, "/v1/load_lora_adapter", ADMIN, post(spokes::load)),
        route(Method::POST, "/v1/unload_lora_adapter", ADMIN, post(spokes::unload)),
        route(Method::GET, "/metrics", ASK, get(metrics::show)),
        route(Method::GET, "/openapi.json", OPEN, get(openapi::show)),
    ]
}

/// Who may use a route, for each of them.
static ACCESS: LazyLock<Vec<(Method, &str, Access)>> =
    LazyLock::new(|| routes().into_iter().map(|route| (route.method, route.path, route.access)).collect());

/// Who may use a route, if it exists. axum answers HEAD with what GET would say.
fn access(method: &Method, path: &str) -> Option<Access> {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    ACCESS.iter().find(|(of, at, _)| of == method && *at == path).map(|(_, _, access)| *access)
}

/// All routes, and around them what holds for each.
pub fn router(app: App) -> Router {
    let body_limit = usize::try_from(app.body_limit()).unwrap_or(usize::MAX);
    let mut router = Router::new();
    for route in routes() {
        router = router.route(route.path, route.handler);
    }
    let router = router
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(body_limit))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(app.clone(), auth::check_key));
    let router = match cors(app.cors_origins()) {
        Some(layer) => router.layer(layer),
        None => router,
    };
    router
        .layer(from_fn_with_state(app.clone(), auth::check_origin))
        .layer(from_fn_with_state(app.clone(), auth::check_host))
        .layer(from_fn(connection::check_head))
        .layer(from_fn(errors_in_their_form))
        .layer(from_fn_with_state(app.clone(), observe::observe))
        .with_state(app)
}

/// What lets web pages of these origins ask. Without any there is nothing: browsers keep other pages out by themselves.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    const SHOWN: [&str; 3] = ["x-request-id", "retry-after", spokes::HEADER];
    const TAKEN: [HeaderName; 2] = [header::AUTHORIZATION, header::CONTENT_TYPE];
    const OURS: [&str; 2] = ["x-api-key", "x-request-id"];
    if origins.is_empty() {
        return None;
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(TAKEN.into_iter().chain(OURS.map(HeaderName::from_static)).collect::<Vec<_>>())
        .expose_headers(SHOWN.map(HeaderName::from_static));
    Some(layer)
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
