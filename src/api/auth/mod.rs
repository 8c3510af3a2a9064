//! Authorisation: keys with scopes, and the host names under which the daemon may be addressed.

mod hosts;
mod keys;

pub use hosts::Hosts;
pub use keys::{Key, KeyRing, Keys, KeysError, Scope};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use axum::middleware::Next;
use axum::response::Response;

use super::app::App;
use super::cors;
use super::error::ApiError;
use super::observe::RequestContext;

/// Access rule of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Open to everyone, with or without a key.
    Open,
    /// Needs a key with at least this scope, if keys are configured.
    Key(Scope),
}

/// Refuses requests that address another host.
pub(super) async fn check_host(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    // An absolute target wins over the header. A client that sends neither (HTTP/1.0) is no
    // browser.
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

/// Refuses state changes from web pages of other origins. A browser lets a page send a request
/// without a body, or one that a form could send, to any address; it only hides the answer.
pub(super) async fn check_origin(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    match foreign_page(request.uri(), request.headers(), app.cors_origins()) {
        Some(page) if !reads => Err(ApiError::WrongOrigin(page)),
        _ => Ok(next.run(request).await),
    }
}

/// The origin of the page that sent a request, unless it is our own or allowed. Programs other than
/// browsers send no origin.
fn foreign_page(target: &Uri, headers: &HeaderMap, allowed: &[String]) -> Option<String> {
    let text = |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let Some(origin) = text("origin") else {
        let site = text("sec-fetch-site")?;
        let foreign = matches!(site.as_ref(), "cross-site" | "same-site");
        return foreign.then(|| format!("an unnamed {site} page"));
    };
    if cors::allows(allowed, &origin) {
        return None;
    }
    // A proxy in front of us may have terminated TLS, so the scheme is ignored.
    let host = target.authority().map(|authority| authority.as_str().into()).or_else(|| text("host"));
    let ours =
        origin.split_once("://").zip(host).is_some_and(|((_, page), host)| page.eq_ignore_ascii_case(&host));
    (!ours).then(|| origin.chars().take(100).collect())
}

/// Refuses requests without a key that has the required scope.
pub(super) async fn check_key(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let access = path.and_then(|path| super::access(request.method(), path));
    // Unknown paths and methods need a key too, so that routes can't be probed without one.
    if let Access::Key(needed) = access.unwrap_or(Access::Key(Scope::Inference))
        && !app.key_ring().is_empty()
    {
        let keys = app.key_ring().keys();
        let key = presented(request.headers()).and_then(|presented| keys.find(presented));
        let key = key.ok_or(ApiError::Unauthenticated)?;
        RequestContext::current().set_key(key.name());
        if key.scope < needed {
            return Err(ApiError::Forbidden);
        }
    }
    Ok(next.run(request).await)
}

/// The key from `Authorization: Bearer KEY` or `x-api-key: KEY`.
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

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<axum::http::HeaderName>().unwrap(), value.parse().unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn pages_of_others_are_known_by_what_their_browser_says() {
        let page = |pairs: &[(&str, &str)], allowed: &[&str]| {
            let allowed: Vec<String> = allowed.iter().map(|&name| name.to_owned()).collect();
            let pairs = [&[("host", "localhost:8899")], pairs].concat();
            foreign_page(&Uri::from_static("/x"), &headers(&pairs), &allowed)
        };
        for ours in [
            &[][..],
            &[("origin", "http://localhost:8899"), ("sec-fetch-site", "same-origin")],
            &[("origin", "https://LocalHost:8899")],
            &[("sec-fetch-site", "none")],
        ] {
            assert_eq!(page(ours, &[]), None, "{ours:?}");
        }
        for (foreign, name) in [
            (&[("origin", "http://evil.example")][..], "http://evil.example"),
            (
                &[("origin", "http://localhost:3000"), ("sec-fetch-site", "same-site")],
                "http://localhost:3000",
            ),
            (&[("origin", "http://localhost")], "http://localhost"),
            (&[("origin", "null")], "null"),
            (&[("sec-fetch-site", "cross-site")], "an unnamed cross-site page"),
        ] {
            assert_eq!(page(foreign, &["https://good.example"]).as_deref(), Some(name));
        }
        let good = [("origin", "https://good.example"), ("sec-fetch-site", "cross-site")];
        assert_eq!(page(&good, &["https://good.example"]), None);
        assert_eq!(page(&[("origin", "null")], &["*"]), None);
    }

    #[test]
    fn keys_come_in_two_headers() {
        assert_eq!(presented(&headers(&[("authorization", "bearer  abc")])), Some("abc"));
        assert_eq!(presented(&headers(&[("x-api-key", "abc")])), Some("abc"));
        assert_eq!(presented(&headers(&[("authorization", "Basic abc"), ("x-api-key", "d")])), Some("d"));
        assert_eq!(presented(&headers(&[("authorization", "abc")])), None);
        assert_eq!(presented(&headers(&[])), None);
    }
}
