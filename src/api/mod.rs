//! The HTTP server: OpenAI's API in llama-server's dialect, and Anthropic's, independent of the
//! engine.

mod answer_stream;
mod answer_streams;
mod anthropic;
mod app;
pub mod auth;
mod blocks;
mod body;
mod confidence;
pub mod connection;
mod cors;
mod dialect;
pub mod error;
mod exact;
mod form;
mod gate;
mod liveness;
mod llama_server;
mod logprobs;
mod metrics;
mod observe;
mod openai;
mod openapi;
mod reasoning;
mod request;
mod spokes;
mod sse;
mod timings;
mod tools;
mod verbose;

pub use app::{App, Options};
pub use error::{ApiError, Fields};
pub use gate::questioner;
pub use liveness::Liveness;

use std::sync::LazyLock;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use tower_http::catch_panic::CatchPanicLayer;

use self::auth::{Access, Scope};

/// A method and path with its handler.
struct Route {
    method: Method,
    path: &'static str,
    access: Access,
    handler: MethodRouter<App>,
}

/// Further paths of routes, because llama-server's clients omit `/v1`.
const ALIASES: [(&str, &str); 9] = [
    ("/chat/completions", "/v1/chat/completions"),
    ("/chat/completions/input_tokens", "/v1/chat/completions/input_tokens"),
    ("/responses", "/v1/responses"),
    ("/responses/input_tokens", "/v1/responses/input_tokens"),
    ("/embeddings", "/v1/embeddings"),
    ("/models", "/v1/models"),
    ("/models/{*id}", "/v1/models/{*id}"),
    ("/completions", "/completion"),
    ("/v1/health", "/health"),
];

/// All routes, under all of their paths. `openapi/` lists them too, and a test compares the two.
fn routes() -> Vec<Route> {
    let mut routes = own_routes();
    for (alias, path) in ALIASES {
        let route = routes.iter().find(|route| route.path == path).expect("a test looks at each");
        let Route { method, access, handler, .. } = route;
        routes.push(Route { method: method.clone(), path: alias, access: *access, handler: handler.clone() });
    }
    routes
}

fn own_routes() -> Vec<Route> {
    const OPEN: Access = Access::Open;
    const ASK: Access = Access::Key(Scope::Inference);
    const ADMIN: Access = Access::Key(Scope::Admin);
    let route = |method, path, access, handler| Route { method, path, access, handler };
    vec![
        route(Method::POST, "/v1/chat/completions", ASK, post(openai::chat::complete)),
        route(Method::POST, "/v1/chat/completions/input_tokens", ASK, post(openai::chat::count)),
        route(Method::POST, "/v1/responses", ASK, post(openai::responses::respond)),
        route(Method::POST, "/v1/responses/input_tokens", ASK, post(openai::responses::count)),
        route(Method::POST, "/v1/messages", ASK, post(anthropic::messages)),
        route(Method::POST, "/v1/messages/count_tokens", ASK, post(anthropic::count)),
        route(Method::POST, "/v1/completions", ASK, post(openai::completion::complete)),
        route(Method::POST, "/v1/embeddings", ASK, post(openai::embeddings::embed)),
        route(Method::GET, "/v1/models", ASK, get(openai::models::list)),
        route(Method::GET, "/v1/models/{*id}", ASK, get(openai::models::one)),
        route(Method::GET, "/health", OPEN, get(llama_server::health)),
        route(Method::POST, "/completion", ASK, post(llama_server::completion::complete)),
        route(Method::POST, "/embedding", ASK, post(llama_server::embedding::embed)),
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

/// Access rules of all routes.
static ACCESS: LazyLock<Vec<(Method, &str, Access)>> =
    LazyLock::new(|| routes().into_iter().map(|route| (route.method, route.path, route.access)).collect());

/// The access rule of a route, if it exists. axum answers HEAD like GET.
fn access(method: &Method, path: &str) -> Option<Access> {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    ACCESS.iter().find(|(of, at, _)| of == method && *at == path).map(|(_, _, access)| *access)
}

/// All routes, with the layers that apply to each.
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
    let router = match cors::layer(app.cors_origins()) {
        Some(layer) => router.layer(layer),
        None => router,
    };
    router
        .layer(from_fn_with_state(app.clone(), auth::check_origin))
        .layer(from_fn_with_state(app.clone(), auth::check_host))
        .layer(from_fn(connection::check_head))
        .layer(from_fn(form::write_errors))
        .layer(from_fn_with_state(app.clone(), observe::observe))
        .with_state(app)
}

async fn no_such_path(uri: Uri) -> ApiError {
    ApiError::NoSuchPath(uri.path().to_owned())
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::WrongMethod { method: method.to_string(), path: uri.path().to_owned() }
}

/// A panic in a handler must cost one answer, not the daemon.
fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
    tracing::error!(panic = text.unwrap_or("no message"), "a request panicked");
    axum::response::IntoResponse::into_response(ApiError::Panicked)
}
