//! The form of error bodies: each API has its own.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use serde_json::Value;

use super::error::ApiError;

/// The forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    LlamaServer,
    OpenAi,
    Anthropic,
}

/// OpenAI's routes without `/v1`. `/completions` belongs to llama-server in this form.
const OPENAI: [&str; 4] = ["/chat/", "/responses", "/embeddings", "/models"];

impl Form {
    /// The form of errors at a path.
    fn at(path: &str) -> Self {
        match path {
            path if path.starts_with("/v1/messages") => Self::Anthropic,
            path if path.starts_with("/v1/") => Self::OpenAi,
            path if OPENAI.iter().any(|start| path.starts_with(start)) => Self::OpenAi,
            _ => Self::LlamaServer,
        }
    }

    fn of(self, error: &ApiError) -> Value {
        match self {
            Self::LlamaServer => error.body(),
            Self::OpenAi => error.openai_body(),
            Self::Anthropic => error.anthropic_body(),
        }
    }
}

/// Writes the body of an error, in the form of the requested API.
pub(super) async fn write_errors(request: Request, next: Next) -> Response {
    let form = Form::at(request.uri().path());
    let mut response = next.run(request).await;
    let Some(error) = response.extensions_mut().remove::<ApiError>() else { return response };
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Response::from_parts(parts, Body::from(form.of(&error).to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_api_has_its_form_under_each_of_its_names() {
        for (path, form) in [
            ("/v1/chat/completions", Form::OpenAi),
            ("/chat/completions", Form::OpenAi),
            ("/v1/completions", Form::OpenAi),
            ("/completions", Form::LlamaServer),
            ("/completion", Form::LlamaServer),
            ("/embeddings", Form::OpenAi),
            ("/embedding", Form::LlamaServer),
            ("/models/x", Form::OpenAi),
            ("/responses", Form::OpenAi),
            ("/v1/messages", Form::Anthropic),
            ("/v1/messages/count_tokens", Form::Anthropic),
            ("/props", Form::LlamaServer),
        ] {
            assert_eq!(Form::at(path), form, "{path}");
        }
    }
}
