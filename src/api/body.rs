//! Request bodies: checks content type, length, JSON and fields, each with its own error.

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{FromRequest, Request};
use axum::http::header;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::app::App;
use super::error::ApiError;
use super::exact::put_right;
use super::observe::RequestContext;
use crate::text::fields;

/// A request body that is JSON, with its fields not yet checked.
#[derive(Debug)]
pub(super) struct JsonBody(pub(super) Value);

impl FromRequest<App> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        // Other content types are refused even if the body is JSON, because a web page may send
        // text/plain to any address without permission.
        let content_type = request.headers().get(header::CONTENT_TYPE);
        let content_type = content_type.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        if !content_type.as_deref().is_some_and(is_json) {
            return Err(ApiError::ContentType(content_type.unwrap_or_else(|| "none".to_owned())));
        }
        let limit = app.body_limit();
        // The router's `DefaultBodyLimit` has the same value.
        let bytes = tokio::time::timeout(app.slow_sender(), Bytes::from_request(request, app));
        let bytes = bytes.await.map_err(|_| ApiError::SlowBody(app.slow_sender()))?;
        let bytes = bytes.map_err(|rejection| match rejection {
            BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
                ApiError::BodyTooLong { limit }
            }
            other => ApiError::Body(other.body_text()),
        })?;
        let mut value: Value =
            serde_json::from_slice(&bytes).map_err(|error| ApiError::NotJson(error.to_string()))?;
        if let Some((field, number)) = put_right(&bytes, &mut value) {
            let message = format!(
                "found {number}, which 64 bits don't hold exactly; write it as a text, or with fewer digits"
            );
            return Err(ApiError::field(field, message));
        }
        let name = value.pointer("/response_format/json_schema/name");
        RequestContext::current().set_schema_name(name.and_then(Value::as_str));
        Ok(Self(value))
    }
}

fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

impl JsonBody {
    /// The body's fields, of which each part of a request takes its own.
    pub(super) fn fields(self) -> Result<Map<String, Value>, ApiError> {
        Ok(fields::object(self.0)?)
    }

    /// Reads a body that one struct describes. The error names a wrong field by its path.
    pub(super) fn parse<T: DeserializeOwned>(self) -> Result<T, ApiError> {
        Ok(fields::parse(self.fields()?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_few_names() {
        assert!(is_json("application/json") && is_json("Application/JSON; charset=utf-8"));
        assert!(is_json("application/vnd.api+json"));
        assert!(!is_json("text/plain") && !is_json("text/json") && !is_json(""));
    }
}
