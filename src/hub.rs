//! The composition root: settings -> checked model, bound listener, engine, API; runs them and ends them in order.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;

use crate::api::auth::{Hosts, KeyRing, KeysError};
use crate::api::connection::{self, Limits, Patience};
use crate::api::{self, App, Options, Pulse};
use crate::config::Settings;
use crate::engine::{Engine, EngineState, Health, LlamaEngine, LlamaSettings};
use crate::gguf::{self, Gguf};

/// How much longer than the engine's own drain connections may take to send what they have.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Bytes that the kernel keeps of an answer for its reader: what a slow reader costs, and how late it is noticed.
const SEND_BUFFER: u32 = 128 << 10;
/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 1024;

/// Why the daemon can't run, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The model file can't be served; trying again can't help.
    #[error("{path}: {reason}", path = path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The address can't be had.
    #[error("can't listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// Others can connect, and nobody needs a key.
    #[error(
        "{0} can be reached by others, and no key would be asked of them\nhint: name a file of keys with server.keys_file, or listen on 127.0.0.1"
    )]
    Unprotected(SocketAddr),
    /// The keys can't be used.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The engine shows no sign of life.
    #[error("the engine has shown no sign of life for {}", humantime::format_duration(*.0))]
    Silent(Duration),
    /// The engine gave up after it had been ready.
    #[error("the engine failed: {0}")]
    Engine(String),
    /// The listener ended by itself.
    #[error("the listener ended: {0}")]
    Serve(String),
}

/// A daemon that is bound and ready to run.
pub struct Hub {
    listener: TcpListener,
    address: SocketAddr,
    router: Router,
    engine: Arc<dyn Engine>,
    model: PathBuf,
    drain: Duration,
    limits: Limits,
    keys: Arc<KeyRing>,
    pulse: Arc<Pulse>,
    watchdog: Duration,
}

impl Hub {
    /// Checks the model file, binds the address, then starts the engine: a mistake leaves nothing half-started.
    ///
    /// # Errors
    /// [`HubError::Model`], [`HubError::Keys`], [`HubError::Unprotected`], [`HubError::Listen`].
    pub fn build(settings: &Settings) -> Result<Self, HubError> {
        check_model_file(&settings.model.path)?;
        let door = Door::open(settings)?;
        let model = &settings.model;
        let engine = Arc::new(LlamaEngine::start(LlamaSettings {
            path: model.path.clone(),
            context: model.context,
            lanes: model.lanes,
            queue: model.queue,
            queue_tokens: model.queue_tokens,
            threads: model.threads,
            cached_sequences: model.cached_sequences,
            draft: model.draft,
            force: true,
        }));
        Ok(Self::join(settings, engine, door))
    }

    /// Binds the address and puts an API over `engine`. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`HubError::Keys`], [`HubError::Unprotected`], [`HubError::Listen`].
    pub fn assemble(settings: &Settings, engine: Arc<dyn Engine>) -> Result<Self, HubError> {
        Ok(Self::join(settings, engine, Door::open(settings)?))
    }

    fn join(settings: &Settings, engine: Arc<dyn Engine>, door: Door) -> Self {
        let Door { listener, address, keys } = door;
        let server = &settings.server;
        let options = Options {
            model_id: settings.model.id.clone(),
            body_limit: server.body_limit.as_u64(),
            deadline: server.request_deadline,
            queue: settings.model.queue,
            sampling: settings.sampling,
            slow_sender: server.slow_sender,
            log: settings.log,
            hosts: Hosts::new(address, &server.hosts),
            keys: Arc::clone(&keys),
            cors_origins: server.cors_origins.clone(),
        };
        if options.model_id.to_ascii_lowercase().contains("qwen3") {
            tracing::warn!(
                id = options.model_id,
                "mnemonic appends /no_think for ids with qwen3 in them: set model.id"
            );
        }
        let pulse = Pulse::new(engine.health());
        let router = api::router(App::new(Arc::clone(&engine), Arc::clone(&pulse), options));
        let limits = Limits {
            connections: server.connections,
            head: usize::try_from(server.head_limit.as_u64()).unwrap_or(usize::MAX),
            patience: Patience {
                head: server.slow_sender,
                reader: server.slow_reader,
                idle: server.keep_alive,
            },
        };
        let (model, drain, watchdog) = (settings.model.path.clone(), server.drain, server.watchdog);
        Self { listener, address, router, engine, model, drain, limits, keys, pulse, watchdog }
    }

    /// The address in use: with its real port where port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// State of the engine.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.engine.health()
    }

    /// The keys, to be read again when their file has changed.
    pub fn keys(&self) -> Arc<KeyRing> {
        Arc::clone(&self.keys)
    }

    /// Serves until `stop` is ready; then takes no more connections, lets running requests end for as long as the
    /// settings say, and returns.
    ///
    /// # Errors
    /// [`HubError::Model`] if the weights can't be loaded; [`HubError::Engine`] if the engine fails later,
    /// [`HubError::Silent`] if it stops without a word.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> Result<(), HubError> {
        let (closing, closed) = watch::channel(false);
        let mut server = tokio::spawn(connection::serve(self.listener, self.router, self.limits, closed));
        let outcome = tokio::select! {
            () = stop => Ok(()),
            failure = failure(self.engine.health(), self.model) => Err(failure),
            () = self.pulse.silence(self.watchdog) => Err(HubError::Silent(self.watchdog)),
            ended = &mut server => {
                return Err(HubError::Serve(ended.err().map_or_else(String::new, |error| error.to_string())));
            }
        };
        // A dead engine answers nothing more: its clients are let go at once, so that a new one can be there soon.
        let drain = if outcome.is_ok() { self.drain } else { Duration::ZERO };
        self.engine.stop(drain);
        let _ = closing.send(true);
        if tokio::time::timeout(drain + LAST_WORDS, &mut server).await.is_err() {
            tracing::warn!("connections were still open at the end of the drain; they are closed now");
            server.abort();
        }
        outcome
    }
}

/// The safe reader goes over the file before any C++ parser may see it.
fn check_model_file(path: &Path) -> Result<(), HubError> {
    let checked = Gguf::open(path).and_then(|file| gguf::check_model(&file));
    checked.map_err(|error| HubError::Model { path: error.path, reason: error.rule.to_string() })
}

/// Where requests come in, and the keys that they need.
struct Door {
    listener: TcpListener,
    address: SocketAddr,
    keys: Arc<KeyRing>,
}

impl Door {
    /// Reads the keys, makes sure that there are some where others can connect, binds the address.
    fn open(settings: &Settings) -> Result<Self, HubError> {
        let address = settings.server.listen;
        let keys = KeyRing::open(settings.server.keys_file.as_deref())?;
        if keys.is_empty() && !address.ip().to_canonical().is_loopback() {
            return Err(HubError::Unprotected(address));
        }
        let wrong = |source| HubError::Listen { address, source };
        let listener = bind(address).map_err(wrong)?;
        let address = listener.local_addr().map_err(wrong)?;
        Ok(Self { listener, address, keys: Arc::new(keys) })
    }
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart must not wait for the last connections of the process before it.
    socket.set_reuseaddr(true)?;
    // Connections inherit it.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Waits for the engine to fail, if it ever does.
async fn failure(mut health: watch::Receiver<Health>, path: PathBuf) -> HubError {
    let mut was_ready = false;
    loop {
        match &health.borrow_and_update().state {
            EngineState::Loading => {}
            EngineState::Ready(_) => was_ready = true,
            EngineState::Failed(reason) if was_ready => return HubError::Engine(reason.clone()),
            EngineState::Failed(reason) => return HubError::Model { path, reason: reason.clone() },
            EngineState::Stopped => return HubError::Engine("it stopped by itself".to_owned()),
        }
        if health.changed().await.is_err() {
            return HubError::Engine("its thread is gone".to_owned());
        }
    }
}
