//! Observability: gives every request an id, a span, an access log line and metrics, whether or not
//! it succeeds.

mod access_log;
mod answer_metrics;
mod request_context;

pub(super) use answer_metrics::AnswerMetrics;
pub(super) use request_context::RequestContext;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tracing::{Instrument, Span};

use self::access_log::Line;
use super::app::App;
use super::metrics::Metrics;
use crate::config::LogFormat;

/// The header that carries a request's id, both ways.
const REQUEST_ID: &str = "x-request-id";
/// Longest id that is accepted from a client.
const LONGEST_ID: usize = 128;
/// Status of a request whose client left before the response.
const CLIENT_GONE: u16 = 499;

/// The outermost layer.
pub(super) async fn observe(State(app): State<App>, request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let record = Arc::new(RequestContext::default());
    let route =
        request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).replace("{*", "{");
    let span = tracing::info_span!("request", id, route);
    let mut account = Account {
        metrics: Arc::clone(app.metrics()),
        log: app.access_log(),
        record: Arc::clone(&record),
        id: id.clone(),
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        route,
        began: Instant::now(),
        status: CLIENT_GONE,
        bytes: 0,
        ended: false,
    };
    let mut response = record.scope(next.run(request)).instrument(span.clone()).await;
    account.status = response.status().as_u16();
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response.map(|body| Body::new(Accounted { body, account, span }))
}

/// The client's own id if it is well-formed, otherwise a new one.
fn request_id(headers: &HeaderMap) -> String {
    let sane = |id: &&str| {
        (1..=LONGEST_ID).contains(&id.len())
            && id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':'))
    };
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok()).filter(sane);
    given.map_or_else(|| format!("{:032x}", rand::random::<u128>()), str::to_owned)
}

/// Accounting of a request; it is closed at the latest when dropped.
struct Account {
    metrics: Arc<Metrics>,
    log: Option<LogFormat>,
    record: Arc<RequestContext>,
    id: String,
    method: Method,
    path: String,
    route: String,
    began: Instant,
    status: u16,
    bytes: u64,
    ended: bool,
}

impl Account {
    /// Records the end of the answer; `gone` if the client left before it.
    fn end(&mut self, gone: bool) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.metrics.request(&self.route, self.status, gone);
        let Some(format) = self.log else { return };
        let mut line = Line::new(&self.id, self.method.as_str(), &self.path, self.record.facts());
        (line.status, line.bytes, line.client_gone) = (self.status, self.bytes, gone);
        line.took(self.began.elapsed());
        line.write(format);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.end(true);
    }
}

/// A response body whose end is recorded.
struct Accounted {
    body: Body,
    account: Account,
    span: Span,
}

impl HttpBody for Accounted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let _entered = this.span.enter();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => this.account.bytes += frame.data_ref().map_or(0, |data| data.len() as u64),
            Some(Err(_)) => this.account.end(true),
            None => this.account.end(false),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Accounted {
    fn drop(&mut self) {
        let _entered = self.span.enter();
        // Hyper doesn't poll a body of known length for its end, and never polls the body of a HEAD
        // response.
        let whole = self.body.is_end_stream() || self.account.method == Method::HEAD;
        // Drop the body first: what it logs on drop belongs to the request, and its numbers to the
        // access log line.
        self.body = Body::empty();
        self.account.end(!whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sane_id_is_kept_and_any_other_replaced() {
        let of = |id: &[u8]| {
            let value = HeaderValue::from_bytes(id).unwrap();
            request_id(&[(REQUEST_ID.parse().unwrap(), value)].into_iter().collect())
        };
        assert_eq!(of(b"trace-7.a:B_9"), "trace-7.a:B_9");
        for wrong in [&b""[..], b"two words", b"caf\xc3\xa9", &[b'x'; LONGEST_ID + 1], b"a\"b"] {
            let id = of(wrong);
            assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        }
    }
}
