//! Who may ask what: keys with scopes, and the names under which the daemon may be addressed.

mod hosts;
mod keys;

pub use hosts::Hosts;
pub use keys::{Key, KeyRing, Keys, KeysError, Scope};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;

use super::error::ApiError;
use super::observe::Record;
use super::state::App;

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody, key or not.
    Open,
    /// Whoever has a key with at least this scope, if keys are needed at all.
    Key(Scope),
}

/// Refuses requests that are addressed to somebody else.
pub(super) async fn check_host(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    // An absolute target wins over the header. A client without either (HTTP/1.0) is no browser.
    let target = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    let header = request.headers().get(header::HOST).map(HeaderValue::as_bytes);
    for host in [target, header].into_iter().flatten() {
        let host = String::from_utf8_lossy(host);
        if !app.hosts().takes(&host) {
            return Err(ApiError::WrongHost(host.chars().take(100).collect()));
        }
    }
    Ok(next.run(request).await)
}

/// Refuses requests without a key that is good for them.
pub(super) async fn check_key(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let access = path.and_then(|path| super::access(request.method(), path));
    // What lives nowhere, or not for this method, is nobody's business without a key.
    if let Access::Key(needed) = access.unwrap_or(Access::Key(Scope::Inference))
        && !app.key_ring().is_empty()
    {
        let keys = app.key_ring().keys();
        let key = presented(request.headers()).and_then(|presented| keys.find(presented));
        let key = key.ok_or(ApiError::Unauthenticated)?;
        Record::current().set_key(key.name());
        if key.scope < needed {
            return Err(ApiError::Forbidden);
        }
    }
    Ok(next.run(request).await)
}

/// The key of `Authorization: Bearer KEY` or `x-api-key: KEY`.
fn presented(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = text("authorization").and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    bearer.or_else(|| text("x-api-key").map(str::trim))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_in_two_headers() {
        let headers = |pairs: &[(&'static str, &str)]| -> HeaderMap {
            pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
        };
        assert_eq!(presented(&headers(&[("authorization", "bearer  abc")])), Some("abc"));
        assert_eq!(presented(&headers(&[("x-api-key", "abc")])), Some("abc"));
        assert_eq!(presented(&headers(&[("authorization", "Basic abc"), ("x-api-key", "d")])), Some("d"));
        assert_eq!(presented(&headers(&[("authorization", "abc")])), None);
        assert_eq!(presented(&headers(&[])), None);
    }
}
