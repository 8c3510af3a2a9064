//! CORS: allows web pages of the origins in `server.cors_origins`.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::{HeaderName, Method};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::spokes;

/// Entries for all origins, and for those of this machine.
const ALL: &str = "*";
const LOCAL: &str = "localhost";

/// The CORS layer for these origins. Without any there is none: browsers keep other pages out by
/// default.
///
/// Pages may send any header, because OpenAI's clients send their own. Keys are the only
/// credentials.
pub(super) fn layer(origins: &[String]) -> Option<CorsLayer> {
    const SHOWN: [&str; 3] = ["x-request-id", "retry-after", spokes::HEADER];
    if origins.is_empty() {
        return None;
    }
    let origins: Arc<[String]> = origins.into();
    let allowed =
        AllowOrigin::predicate(move |origin, _| origin.to_str().is_ok_and(|origin| allows(&origins, origin)));
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(SHOWN.map(HeaderName::from_static));
    Some(layer)
}

/// Whether pages of this origin may send requests.
pub(super) fn allows(origins: &[String], origin: &str) -> bool {
    origins.iter().any(|allowed| match allowed.as_str() {
        ALL => true,
        LOCAL => is_local(origin),
        allowed => allowed.eq_ignore_ascii_case(origin),
    })
}

/// Whether a page comes from this machine, at any port.
fn is_local(origin: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    if !matches!(scheme, "http" | "https") {
        return false;
    }
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) => (address, "0"),
        Some((address, rest)) => (address, rest.strip_prefix(':').unwrap_or("no port")),
        None => authority.split_once(':').unwrap_or((authority, "0")),
    };
    let loopback = host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
    (loopback || host.eq_ignore_ascii_case(LOCAL)) && port.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_this_machine_are_known_by_their_host_alone() {
        let origins = [LOCAL.to_owned(), "https://good.example".to_owned()];
        for origin in [
            "http://localhost",
            "https://LocalHost:8080",
            "http://127.0.0.1",
            "http://127.0.0.1:3000",
            "http://[::1]",
            "http://[::1]:3000",
            "https://GOOD.example",
        ] {
            assert!(allows(&origins, origin), "{origin}");
        }
        for origin in [
            "http://evil.com",
            "http://localhost.evil.com",
            "http://notlocalhost",
            "http://localhost:80.evil.com",
            "http://localhost@evil.com",
            "http://[::1].evil.com",
            "http://[::1]evil:80",
            "ftp://localhost",
            "localhost",
            "null",
            "",
            "http://good.example",
        ] {
            assert!(!allows(&origins, origin), "{origin}");
        }
        assert!(allows(&[ALL.to_owned()], "null"));
    }
}
