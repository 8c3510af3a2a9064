//! How long a connection is waited for: its next request, the rest of a head, a client that takes nothing.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// For how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For a head, from its first byte to its last; on a new connection, from the beginning.
    pub head: Duration,
    /// For a reader that takes nothing.
    pub reader: Duration,
    /// For the next request.
    pub idle: Duration,
}

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// New; nothing has come.
    Fresh,
    /// A head is coming in.
    Head,
    /// A request is being answered.
    Busy,
    /// Between two requests.
    Idle,
}

/// Shared by a connection and whoever answers its requests.
#[derive(Debug, Clone)]
pub(super) struct Activity(Arc<Doing>);

#[derive(Debug)]
struct Doing {
    phase: AtomicU8,
    /// Whoever reads: hyper reads on by itself only when something comes, but a pause must be timed from its beginning.
    reader: Mutex<Option<Waker>>,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self(Arc::new(Doing { phase: AtomicU8::new(Phase::Fresh as u8), reader: Mutex::default() }))
    }

    /// A request has come in whole, as far as its head goes; it is being answered until what is returned is dropped.
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

/// A request that is being answered.
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

/// A connection that ends with an error when patience does.
#[derive(Debug)]
pub(super) struct Patient<S> {
    inner: S,
    patience: Patience,
    activity: Activity,
    /// Runs while nothing comes that should.
    reading: Option<(Phase, Pin<Box<Sleep>>)>,
    /// Runs while nothing is taken.
    writing: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    pub(super) fn new(inner: S, patience: Patience, activity: Activity) -> Self {
        Self { inner, patience, activity, reading: None, writing: None }
    }

    /// Ready when the time for what the connection is doing is over.
    fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let phase = self.activity.phase();
        let limit = match phase {
            Phase::Busy => {
                self.reading = None;
                *self.activity.reader() = Some(context.waker().clone());
                return Poll::Pending;
            }
            Phase::Fresh | Phase::Head => self.patience.head,
            Phase::Idle => self.patience.idle,
        };
        match &mut self.reading {
            Some((since, alarm)) if *since == phase => alarm.as_mut().poll(context),
            reading => {
                let (_, alarm) = reading.insert((phase, Box::pin(tokio::time::sleep(limit))));
                alarm.as_mut().poll(context)
            }
        }
    }

    /// Passes on what came of writing, unless the reader has taken nothing for too long.
    fn written(
        &mut self,
        written: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.writing = None;
            return written;
        }
        let limit = self.patience.reader;
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
