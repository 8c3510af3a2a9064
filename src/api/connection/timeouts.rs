//! Timeouts of a connection: for its next request, for the rest of a head, and for a client that
//! reads nothing.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::config::Timeouts;

/// State of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// New; no byte has arrived.
    Fresh,
    /// A head is arriving.
    Head,
    /// A request is being answered.
    Busy,
    /// Idle between two requests.
    Idle,
}

/// Shared by a connection and the code that answers its requests.
#[derive(Debug, Clone)]
pub(super) struct Activity(Arc<Doing>);

#[derive(Debug)]
struct Doing {
    phase: AtomicU8,
    /// Waker of the reading task. Hyper polls the reader again only when bytes arrive, but a pause
    /// must be timed from its start.
    reader: Mutex<Option<Waker>>,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self(Arc::new(Doing { phase: AtomicU8::new(Phase::Fresh as u8), reader: Mutex::default() }))
    }

    /// A request's head has arrived. The request counts as busy until the returned value is
    /// dropped.
    pub(super) fn begin(&self) -> Busy {
        self.set(Phase::Busy);
        Busy(self.clone())
    }

    fn set(&self, phase: Phase) {
        self.0.phase.store(phase as u8, Ordering::SeqCst);
    }

    fn phase(&self) -> Phase {
        match self.0.phase.load(Ordering::SeqCst) {
            0 => Phase::Fresh,
            1 => Phase::Head,
            2 => Phase::Busy,
            _ => Phase::Idle,
        }
    }

    fn reader(&self) -> MutexGuard<'_, Option<Waker>> {
        self.0.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Marks a request that is being answered.
#[derive(Debug)]
pub(super) struct Busy(Activity);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.set(Phase::Idle);
        if let Some(reader) = self.0.reader().take() {
            reader.wake();
        }
    }
}

/// A stream whose reads and writes fail after a timeout.
#[derive(Debug)]
pub(super) struct Patient<S> {
    inner: S,
    timeouts: Timeouts,
    activity: Activity,
    /// Runs while expected input doesn't arrive.
    reading: Option<(Phase, Pin<Box<Sleep>>)>,
    /// Runs while the client reads nothing.
    writing: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    pub(super) fn new(inner: S, timeouts: Timeouts, activity: Activity) -> Self {
        Self { inner, timeouts, activity, reading: None, writing: None }
    }

    /// Ready when the timeout of the connection's current state is over.
    fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let phase = self.activity.phase();
        let limit = match phase {
            Phase::Busy => {
                self.reading = None;
                *self.activity.reader() = Some(context.waker().clone());
                return Poll::Pending;
            }
            // A head is timed from its first byte, and on a new connection from the start.
            Phase::Fresh | Phase::Head => self.timeouts.slow_sender,
            Phase::Idle => self.timeouts.keep_alive,
        };
        match &mut self.reading {
            Some((since, alarm)) if *since == phase => alarm.as_mut().poll(context),
            reading => {
                let (_, alarm) = reading.insert((phase, Box::pin(tokio::time::sleep(limit))));
                alarm.as_mut().poll(context)
            }
        }
    }

    /// Passes on the result of a write, unless the client has read nothing for too long.
    fn written(
        &mut self,
        written: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.writing = None;
            return written;
        }
        let limit = self.timeouts.slow_reader;
        let alarm =
            self.writing.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + limit)));
        ready!(alarm.as_mut().poll(context));
        tracing::info!("a reader took nothing for {limit:?}: its connection is closed");
        Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, "the reader takes nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut self.inner).poll_read(context, buffer) {
            let first = matches!(self.activity.phase(), Phase::Fresh | Phase::Idle);
            if first && buffer.filled().len() > before {
                self.activity.set(Phase::Head);
                self.reading = None;
            }
            return Poll::Ready(read);
        }
        ready!(self.poll_silence(context));
        Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, "the client sends nothing")))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.written(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        self.written(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
