//! Handles the part of a request body that its handler leaves unread: a wrong key or path is
//! answered before the body is read.
//!
//! Hyper closes a connection with an unread body without announcing it, and the answer to the next
//! request on it is lost. So a small rest is read and discarded, and a large one makes the response
//! announce the close.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use axum::http::{HeaderMap, header};
use hyper::body::{Frame, Incoming, SizeHint};

/// Largest rest that is read.
const MOST: u64 = 64 << 10;
/// Longest wait for the rest.
const PATIENCE: Duration = Duration::from_secs(1);

/// A request's body, lent to its handler.
#[derive(Debug)]
pub(super) struct Lent {
    /// `Some` until dropped.
    body: Option<Incoming>,
    ended: bool,
    rest: Rest,
}

/// The unread rest of the body.
#[derive(Debug, Clone, Default)]
pub(super) struct Rest(Arc<Mutex<Option<Incoming>>>);

impl Lent {
    pub(super) fn new(body: Incoming) -> (Self, Rest) {
        let rest = Rest::default();
        (Self { body: Some(body), ended: false, rest: rest.clone() }, rest)
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = Pin::new(body).poll_frame(context);
        // Nothing follows an error either.
        self.ended |= matches!(frame, Poll::Ready(None | Some(Err(_))));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let body = self.body.take().filter(|body| !self.ended && !body.is_end_stream());
        *self.rest.0.lock().unwrap_or_else(PoisonError::into_inner) = body;
    }
}

impl Rest {
    /// Reads the rest if it is small and arrives soon. Returns whether nothing is left then.
    /// `asks_first` means that the client waits for `100 Continue` before it sends the body; the
    /// final response takes its place.
    pub(super) async fn read_out(self, asks_first: bool) -> bool {
        let Some(mut body) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return true;
        };
        if asks_first || body.size_hint().lower() > MOST {
            return false;
        }
        let all = async {
            let mut read = 0;
            while let Some(Ok(frame)) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
                read += frame.data_ref().map_or(0, |data| data.len() as u64);
                if read > MOST {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(PATIENCE, all).await.unwrap_or(false)
    }
}

/// Whether a client sends its body only after `100 Continue`.
pub(super) fn asks_first(headers: &HeaderMap) -> bool {
    headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}
