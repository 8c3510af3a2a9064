//! All errors of a request, and their only conversion into a status and a body.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::app::App;
use crate::engine::EngineError;
use crate::spokes::life::Reason;
use crate::text::TemplateError;
use crate::text::conversation::PromptError;
use crate::text::fields::FieldError;

/// Why a request isn't answered.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// The body isn't JSON; the message has line and column.
    #[error("the body is not valid JSON: {0}")]
    NotJson(String),
    /// A field can't be used.
    #[error("{field}: {message}")]
    Field {
        /// Path in the body, such as `messages[2].role`.
        field: String,
        /// What was found and what was expected.
        message: String,
    },
    /// The body has a type that isn't JSON.
    #[error("content-type: found {0}, expected application/json")]
    ContentType(String),
    /// The head is too long.
    #[error("the head of the request has {found} bytes, expected at most {limit} (server.head_limit)")]
    HeadTooLong {
        /// Bytes of the line and the headers.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// The body is too long.
    #[error("the body is longer than {limit} bytes")]
    BodyTooLong {
        /// The limit.
        limit: u64,
    },
    /// The body ended early.
    #[error("the body can't be read: {0}")]
    Body(String),
    /// No route has this path.
    #[error("no route {0}; /openapi.json lists all routes")]
    NoSuchPath(String),
    /// No model has this name.
    #[error("no model is named {wanted:?}; this daemon serves {served}")]
    NoSuchModel {
        /// The name.
        wanted: String,
        /// Names that are served.
        served: String,
    },
    /// A spoke of this name is known but doesn't serve.
    #[error("the spoke {name:?} does not serve: {why}; this daemon serves {served}")]
    NotServing {
        /// The name.
        name: String,
        /// Its state, and why.
        why: String,
        /// Names that are served.
        served: String,
    },
    /// A spoke of this name may serve soon.
    #[error("the spoke {name:?} is {state}: it is not known yet whether it can serve")]
    SpokeUnderWay {
        /// The name.
        name: String,
        /// Its state.
        state: &'static str,
    },
    /// A spoke can't be examined or served for a reason that isn't its own.
    #[error("{}{why} ({code}); this is not the spoke's fault, and it will be retried{hint}",
        waiting(name.as_deref()), code = why.code, hint = advice(why))]
    SpokeWaits {
        /// Its name, unless the request is about that name.
        name: Option<String>,
        /// The reason.
        why: Reason,
    },
    /// A spoke can't be loaded back into memory.
    #[error("the spoke can't be loaded: {0}")]
    SpokeFailed(Reason),
    /// No spoke has this name.
    #[error("no spoke is named {0:?}")]
    NoSuchSpoke(String),
    /// The spoke's state doesn't allow this.
    #[error("{0}")]
    SpokeConflict(String),
    /// A generation can't serve.
    #[error("the spoke is refused ({code}): {0}{hint}", code = .0.code, hint = advice(.0))]
    SpokeRefused(Reason),
    /// All lanes are busy, and the client asked for an error in this case.
    #[error("no slot is free")]
    NoFreeSlot,
    /// Disabled in the configuration.
    #[error("{path} is disabled here ({setting} = false)")]
    Disabled {
        /// The path.
        path: &'static str,
        /// The setting that enables it.
        setting: &'static str,
    },
    /// The path exists, but not with this method.
    #[error("{path} does not support {method}")]
    WrongMethod {
        /// The method.
        method: String,
        /// The path.
        path: String,
    },
    /// The engine refuses or fails.
    #[error("{error}")]
    Engine {
        /// Why.
        error: EngineError,
        /// The fields that the engine's request was made from.
        fields: Fields,
    },
    /// The model can't be used, for any request.
    #[error("{0}")]
    Model(String),
    /// The weights are still being loaded.
    #[error("Loading model")]
    Loading,
    /// The request took too long.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Deadline(Duration),
    /// The body took too long to arrive.
    #[error("the body did not arrive within {}", humantime::format_duration(*.0))]
    SlowBody(Duration),
    /// No key, or an unknown one.
    #[error("Invalid API Key")]
    Unauthenticated,
    /// The key is valid, but lacks the scope.
    #[error("this needs a key with the scope admin")]
    Forbidden,
    /// The request addresses another host.
    #[error("host: {0:?} is not a name of this daemon; server.hosts lists the accepted names")]
    WrongHost(String),
    /// A web page of another origin wants to change something.
    #[error("origin: pages of {0:?} may not send this; server.cors_origins names those that may")]
    WrongOrigin(String),
    /// There are too many connections.
    #[error("all {0} connections are in use")]
    Connections(u32),
    /// A bug of the daemon.
    #[error("internal error; see the daemon's log")]
    Panicked,
}

fn waiting(name: Option<&str>) -> String {
    name.map_or_else(String::new, |name| format!("the spoke {name:?} waits: "))
}

fn advice(why: &Reason) -> String {
    why.hint.as_ref().map_or_else(String::new, |hint| format!("; {hint}"))
}

/// The fields that a request to the engine was made from. The engine finds faults in them without
/// knowing their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fields {
    /// The prompt.
    pub prompt: &'static str,
    /// The constraint.
    pub constraint: &'static str,
}

impl Fields {
    /// A conversation with a response format.
    pub const CHAT: Self = Self { prompt: "messages", constraint: "response_format" };

    /// An error of the engine, about these fields.
    pub(super) fn blame(self, error: EngineError) -> ApiError {
        ApiError::Engine { error, fields: self }
    }
}

/// Seconds after which a client that found no room should retry.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("2");

impl ApiError {
    /// A field that can't be used.
    pub(super) fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Field { field: field.into(), message: message.into() }
    }

    /// A model name that is unknown.
    pub(super) fn no_such_model(wanted: &str, app: &App) -> Self {
        Self::NoSuchModel { wanted: wanted.to_owned(), served: app.served_models() }
    }

    /// Status and llama-server's error type.
    ///
    /// mnemonic retries every 5xx and no 4xx. So what can't succeed must be a 4xx, and what may
    /// succeed later a 5xx.
    fn class(&self) -> (StatusCode, &'static str) {
        const INVALID: &str = "invalid_request_error";
        match self {
            Self::NotJson(_) | Self::Field { .. } | Self::Body(_) | Self::SpokeRefused(_) => {
                (StatusCode::BAD_REQUEST, INVALID)
            }
            Self::ContentType(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID),
            Self::HeadTooLong { .. } => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, INVALID),
            Self::BodyTooLong { .. } => (StatusCode::PAYLOAD_TOO_LARGE, INVALID),
            Self::NoSuchPath(_)
            | Self::NoSuchModel { .. }
            | Self::NotServing { .. }
            | Self::NoSuchSpoke(_) => (StatusCode::NOT_FOUND, "not_found_error"),
            Self::Disabled { .. } => (StatusCode::NOT_IMPLEMENTED, "not_supported_error"),
            Self::SpokeConflict(_) => (StatusCode::CONFLICT, INVALID),
            Self::WrongMethod { .. } => (StatusCode::METHOD_NOT_ALLOWED, INVALID),
            Self::Model(_) | Self::Panicked => (StatusCode::INTERNAL_SERVER_ERROR, "server_error"),
            Self::Loading
            | Self::NoFreeSlot
            | Self::Connections(_)
            | Self::SpokeUnderWay { .. }
            | Self::SpokeWaits { .. }
            | Self::SpokeFailed(_) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable_error"),
            Self::SlowBody(_) => (StatusCode::REQUEST_TIMEOUT, INVALID),
            Self::Unauthenticated => (StatusCode::UNAUTHORIZED, "authentication_error"),
            Self::Forbidden | Self::WrongOrigin(_) => (StatusCode::FORBIDDEN, "permission_error"),
            Self::WrongHost(_) => (StatusCode::MISDIRECTED_REQUEST, INVALID),
            Self::Deadline(_) => (StatusCode::GATEWAY_TIMEOUT, "timeout_error"),
            Self::Engine { error, .. } => match error {
                EngineError::PromptTooLong { .. }
                | EngineError::PromptTooLarge { .. }
                | EngineError::InputTooLong { .. } => (StatusCode::BAD_REQUEST, "exceed_context_size_error"),
                EngineError::BudgetTooSmall { .. }
                | EngineError::EmptyPrompt
                | EngineError::NoSuchToken { .. }
                | EngineError::TooMuchInput { .. }
                | EngineError::Schema(_)
                | EngineError::Grammar(_) => (StatusCode::BAD_REQUEST, INVALID),
                EngineError::Overloaded { .. }
                | EngineError::QueueTokens { .. }
                | EngineError::SpokeNotLoaded { .. }
                | EngineError::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "unavailable_error"),
                EngineError::Model(_)
                | EngineError::Internal(_)
                | EngineError::NotFinite
                | EngineError::Spoke(_)
                | EngineError::SpokesUnsupported => (StatusCode::INTERNAL_SERVER_ERROR, "server_error"),
            },
        }
    }

    /// The body in llama-server's form: `{"error": {...}}`. It is also sent within a stream that
    /// has begun.
    pub(super) fn body(&self) -> Value {
        let (status, kind) = self.class();
        let mut error = json!({"code": status.as_u16(), "message": self.message(), "type": kind});
        if let Self::Engine {
            error:
                EngineError::PromptTooLong { tokens, context } | EngineError::InputTooLong { tokens, context, .. },
            ..
        } = self
        {
            error["n_prompt_tokens"] = json!(tokens);
            error["n_ctx"] = json!(context);
        }
        if let Self::Engine { error: EngineError::PromptTooLarge { least, context, .. }, .. } = self {
            error["n_prompt_tokens"] = json!(least);
            error["n_ctx"] = json!(context);
        }
        json!({ "error": error })
    }

    /// The body in OpenAI's form. Its typed clients accept no number as `code`, and get the field's
    /// name in `param`.
    pub(super) fn openai_body(&self) -> Value {
        let mut body = self.body();
        let param = match self {
            Self::Field { field, .. } => Some(field.as_str()),
            Self::Engine { error, fields } => match error {
                error if is_of_the_prompt(error) => Some(fields.prompt),
                EngineError::Schema(_) | EngineError::Grammar(_) => Some(fields.constraint),
                EngineError::BudgetTooSmall { .. } => Some("max_tokens"),
                _ => None,
            },
            _ => None,
        };
        body["error"]["param"] = json!(param);
        body["error"]["code"] = Value::Null;
        body
    }

    /// The body in Anthropic's form. It is also sent within a stream that has begun.
    pub(super) fn anthropic_body(&self) -> Value {
        let kind = match self.class().0 {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            StatusCode::GATEWAY_TIMEOUT => "timeout_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "api_error",
        };
        json!({"type": "error", "error": {"type": kind, "message": self.message()}})
    }

    /// The message. If the engine found the fault, the field's name is prepended, which the engine
    /// doesn't know.
    fn message(&self) -> String {
        match self {
            Self::Engine { error, fields: Fields { prompt, constraint } } => match error {
                error if is_of_the_prompt(error) => format!("{prompt}: {error}"),
                EngineError::Schema(_) | EngineError::Grammar(_) => format!("{constraint}: {error}"),
                _ => error.to_string(),
            },
            other => other.to_string(),
        }
    }
}

/// Whether the prompt, or a text to embed, is at fault.
fn is_of_the_prompt(error: &EngineError) -> bool {
    matches!(
        error,
        EngineError::PromptTooLong { .. }
            | EngineError::PromptTooLarge { .. }
            | EngineError::InputTooLong { .. }
            | EngineError::TooMuchInput { .. }
            | EngineError::EmptyPrompt
            | EngineError::NoSuchToken { .. }
    )
}

impl From<FieldError> for ApiError {
    fn from(FieldError { field, message }: FieldError) -> Self {
        Self::Field { field, message }
    }
}

/// A template that renders no prompt: the conversation's fault or the template's.
impl From<PromptError> for ApiError {
    fn from(error: PromptError) -> Self {
        match error {
            PromptError::Field(error) => error.into(),
            PromptError::Template(TemplateError::Refused(_)) => Self::field("messages", error.to_string()),
            PromptError::Template(TemplateError::Syntax(_) | TemplateError::Broken(_)) => {
                Self::Model(error.to_string())
            }
        }
    }
}

/// For errors that are about no particular field.
impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        Fields::CHAT.blame(error)
    }
}

impl IntoResponse for ApiError {
    /// Status and headers. The body is left to the layer that knows the path, and thus the form of
    /// the body ([`super::form`]).
    fn into_response(self) -> Response {
        let (status, _) = self.class();
        if status.is_server_error() {
            tracing::warn!(status = status.as_u16(), error = %self, "request failed");
        }
        let mut response = status.into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_succeed_is_never_retried_and_a_full_queue_is() {
        let status = |error: EngineError| ApiError::from(error).into_response().status().as_u16();
        assert_eq!(status(EngineError::PromptTooLong { tokens: 9, context: 8 }), 400);
        assert_eq!(status(EngineError::BudgetTooSmall { needed: 9, given: 8 }), 400);
        assert_eq!(status(EngineError::Schema("x".into())), 400);
        assert_eq!(status(EngineError::Grammar("x".into())), 400);
        assert_eq!(status(EngineError::EmptyPrompt), 400);
        assert_eq!(status(EngineError::PromptTooLarge { bytes: 90, least: 9, context: 8 }), 400);
        assert_eq!(status(EngineError::TooMuchInput { limit: 8 }), 400);
        let full = ApiError::from(EngineError::Overloaded { waiting: 3 }).into_response();
        assert_eq!(full.status().as_u16(), 503);
        assert!(full.headers().contains_key("retry-after"));
    }

    #[test]
    fn a_long_prompt_tells_both_numbers() {
        let body = ApiError::from(EngineError::PromptTooLong { tokens: 9, context: 8 }).body();
        assert_eq!(body["error"]["n_prompt_tokens"], 9);
        assert_eq!(body["error"]["n_ctx"], 8);
        assert_eq!(body["error"]["type"], "exceed_context_size_error");
    }
}
