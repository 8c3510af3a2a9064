//! Connections: accepts them up to a limit, speaks HTTP/1.1, enforces timeouts, and closes them
//! gracefully.

mod drain_body;
mod timeouts;

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderName, HeaderValue, Request, header};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use self::drain_body::{Lent, asks_first};
use self::timeouts::{Activity, Busy, Patient};
use super::error::ApiError;
use crate::config::Timeouts;

/// Largest head of a request in bytes.
#[derive(Debug, Clone, Copy)]
struct HeadLimit(usize);

/// Refuses a head that hyper let through: hyper checks its buffer, which holds a little more than
/// the limit.
pub(super) async fn check_head(request: axum::extract::Request, next: Next) -> Result<Response, ApiError> {
    let line = request.method().as_str().len() + request.uri().to_string().len() + "  HTTP/1.1\r\n\r\n".len();
    let header =
        |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + ": \r\n".len();
    let found = line + request.headers().iter().map(header).sum::<usize>();
    match request.extensions().get::<HeadLimit>() {
        Some(&HeadLimit(limit)) if found > limit => Err(ApiError::HeadTooLong { found, limit }),
        _ => Ok(next.run(request).await),
    }
}

/// Resource limits of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Concurrent connections.
    pub connections: u32,
    /// Connections above that number that get a 503 at the same time. Further ones are closed
    /// without an answer.
    pub beyond: u32,
    /// Whether connections above the limit may still query `/health`. Needed if the system allows
    /// fewer connections than the settings, so that a monitor doesn't take the daemon for dead.
    pub watched: bool,
    /// Bytes of a request's head, and of the buffer for a reader slower than its answer.
    pub head: usize,
    /// How long slow clients are waited for.
    pub timeouts: Timeouts,
}

/// Pause after a failed accept, which is most likely due to a lack of file descriptors.
const BREATH: Duration = Duration::from_millis(100);
/// How long a connection above the limit may take to send its first bytes, so that a health check
/// gets an answer.
const GLANCE: Duration = Duration::from_millis(100);
/// Longest time that input is read from a client that already has its last answer.
const TELLING: Duration = Duration::from_secs(1);

/// Serves `router` on `listener` until `closing` is set or its sender is gone. Then accepts no more
/// connections, closes idle ones, and returns when the others have their answers. Dropping the
/// future drops all connections.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    mut closing: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(limits.connections as usize));
    let told = Arc::new(Semaphore::new(limits.beyond as usize));
    // Half of the places, so that lingering connections don't keep others from getting their 503.
    let lingering = Arc::new(Semaphore::new(limits.beyond.div_ceil(2) as usize));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            () = told_to_close(&mut closing) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted");
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        // Small events must not wait for a full packet (Nagle's algorithm).
        let _ = stream.set_nodelay(true);
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            let connection = talk(stream, router.clone(), limits, closing.clone(), Manner::KeptAlive);
            connections.spawn(async move {
                connection.await;
                drop(place);
            });
        } else if let Ok(place) = Arc::clone(&told).try_acquire_owned() {
            let (router, closing, lingering) = (router.clone(), closing.clone(), Arc::clone(&lingering));
            connections.spawn(async move {
                let _ = tokio::time::timeout(TELLING, async {
                    if limits.watched && asks_for_health(&stream).await {
                        return talk(stream, router, limits, closing, Manner::Once).await;
                    }
                    let mut stream = stream;
                    if refuse(&mut stream, limits.connections).await.is_ok()
                        && let Ok(_linger) = lingering.try_acquire_owned()
                    {
                        drop(place);
                        read_away(&mut stream).await;
                    }
                })
                .await;
            });
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Waits until the daemon closes its connections, or the sender is gone.
async fn told_to_close(closing: &mut watch::Receiver<bool>) {
    let _ = closing.wait_for(|closing| *closing).await;
}

/// Number of requests that a connection may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    KeptAlive,
    Once,
}

/// Answers the requests of one connection.
async fn talk(
    stream: TcpStream,
    router: Router,
    limits: Limits,
    mut closing: watch::Receiver<bool>,
    manner: Manner,
) {
    let activity = Activity::new();
    let stream = TokioIo::new(Patient::new(stream, limits.timeouts, activity.clone()));
    let router = TowerToHyperService::new(router);
    let unread = Arc::new(AtomicBool::new(false));
    let left = Arc::clone(&unread);
    let service = service_fn(move |request: Request<Incoming>| {
        let busy = activity.begin();
        let asks_first = asks_first(request.headers());
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(HeadLimit(limits.head));
        let (body, rest) = Lent::new(body);
        let response = router.call(Request::from_parts(parts, body));
        let left = Arc::clone(&left);
        Box::pin(async move {
            let mut response = response.await?;
            if !rest.read_out(asks_first).await {
                left.store(true, Ordering::Relaxed);
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| Held { body, _busy: busy }))
        })
    });
    let mut http = http1::Builder::new();
    // Header names are case-insensitive, but some clients of llama-server expect its spelling.
    http.title_case_headers(true);
    // `Patient` times the heads. Hyper's timer would count the pause between two requests as part
    // of the second head.
    http.header_read_timeout(None).max_buf_size(limits.head).keep_alive(manner == Manner::KeptAlive);
    let mut connection = http.serve_connection(stream, service);
    let ended = tokio::select! {
        ended = poll_fn(|context| connection.poll_without_shutdown(context)) => ended,
        () = told_to_close(&mut closing) => {
            Pin::new(&mut connection).graceful_shutdown();
            poll_fn(|context| connection.poll_without_shutdown(context)).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
    let mut stream = connection.into_parts().io.into_inner();
    if stream.shutdown().await.is_ok() && unread.load(Ordering::Relaxed) {
        let _ = tokio::time::timeout(TELLING, read_away(&mut stream)).await;
    }
}

/// Whether the first bytes of a connection request `/health`. Peeks, so the bytes stay unread.
async fn asks_for_health(stream: &TcpStream) -> bool {
    const ASKED: [&[u8]; 4] = [b"GET /health ", b"GET /health?", b"HEAD /health ", b"GET /v1/health "];
    let mut head = [0; 16];
    let looked = tokio::time::timeout(GLANCE, stream.peek(&mut head)).await;
    let Ok(Ok(length)) = looked else { return false };
    ASKED.iter().any(|asked| head[..length].starts_with(asked))
}

/// Answers that there are too many connections.
async fn refuse(stream: &mut TcpStream, limit: u32) -> std::io::Result<()> {
    let body = ApiError::Connections(limit).body().to_string();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 2\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

/// Reads until the client closes. Closing a socket with unread input resets the connection, and the
/// client may lose the answer.
async fn read_away(stream: &mut (impl AsyncRead + Unpin)) {
    let mut unread = [0; 4096];
    while stream.read(&mut unread).await.is_ok_and(|length| length > 0) {}
}

/// A response body. Its request counts as busy until the body is dropped.
struct Held {
    body: Body,
    _busy: Busy,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
