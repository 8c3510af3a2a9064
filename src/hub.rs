//! The composition root: settings -> checked model, bound listener, engine, API; runs them and ends them in order.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use crate::api::{self, App, Options};
use crate::config::Settings;
use crate::engine::{Engine, EngineState, Health, LlamaEngine, LlamaSettings};
use crate::gguf::{self, Gguf};

/// How much longer than the engine's own drain connections may take to send what they have.
const LAST_WORDS: Duration = Duration::from_secs(1);

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
    /// The engine gave up after it had been ready.
    #[error("the engine failed: {0}")]
    Engine(String),
    /// The listener failed.
    #[error("serving failed: {0}")]
    Serve(std::io::Error),
}

/// A daemon that is bound and ready to run.
pub struct Hub {
    listener: TcpListener,
    address: SocketAddr,
    router: Router,
    engine: Arc<dyn Engine>,
    model: PathBuf,
    drain: Duration,
}

impl Hub {
    /// Checks the model file, binds the address, then starts the engine: a mistake leaves nothing half-started.
    ///
    /// # Errors
    /// [`HubError::Model`], [`HubError::Listen`].
    pub async fn build(settings: &Settings) -> Result<Self, HubError> {
        check_model_file(&settings.model.path)?;
        let (listener, address) = bind(settings.server.listen).await?;
        let model = &settings.model;
        let engine = Arc::new(LlamaEngine::start(LlamaSettings {
            path: model.path.clone(),
            context: model.context,
            lanes: model.lanes,
            queue: model.queue,
            threads: model.threads,
            cached_sequences: model.cached_sequences,
            draft: model.draft,
            force: true,
        }));
        Ok(Self::join(settings, engine, listener, address))
    }

    /// Binds the address and puts an API over `engine`. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`HubError::Listen`].
    pub async fn assemble(settings: &Settings, engine: Arc<dyn Engine>) -> Result<Self, HubError> {
        let (listener, address) = bind(settings.server.listen).await?;
        Ok(Self::join(settings, engine, listener, address))
    }

    fn join(
        settings: &Settings,
        engine: Arc<dyn Engine>,
        listener: TcpListener,
        address: SocketAddr,
    ) -> Self {
        let options = Options {
            model_id: settings.model.id.clone(),
            body_limit: settings.server.body_limit.as_u64(),
            deadline: settings.server.request_deadline,
            queue: settings.model.queue,
            sampling: settings.sampling,
        };
        if options.model_id.to_ascii_lowercase().contains("qwen3") {
            tracing::warn!(
                id = options.model_id,
                "mnemonic appends /no_think for ids with qwen3 in them: set model.id"
            );
        }
        let router = api::router(App::new(Arc::clone(&engine), options));
        let (model, drain) = (settings.model.path.clone(), settings.server.drain);
        Self { listener, address, router, engine, model, drain }
    }

    /// The address in use: with its real port where port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// State of the engine.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.engine.health()
    }

    /// Serves until `stop` is ready; then takes no more connections, lets running requests end for as long as the
    /// settings say, and returns.
    ///
    /// # Errors
    /// [`HubError::Model`] if the weights can't be loaded, [`HubError::Engine`] if the engine fails later.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> Result<(), HubError> {
        let (closing, closed) = oneshot::channel::<()>();
        // Small events must not wait for a full packet.
        let listener = self.listener.tap_io(|connection| {
            let _ = connection.set_nodelay(true);
        });
        let server = axum::serve(listener, self.router).with_graceful_shutdown(async {
            let _ = closed.await;
        });
        let mut server = tokio::spawn(server.into_future());
        let outcome = tokio::select! {
            () = stop => Ok(()),
            failure = failure(self.engine.health(), self.model) => Err(failure),
            ended = &mut server => return Err(HubError::Serve(ended.map_or_else(std::io::Error::other, |ended| {
                ended.err().unwrap_or_else(|| std::io::Error::other("the listener ended"))
            }))),
        };
        self.engine.stop(self.drain);
        let _ = closing.send(());
        if tokio::time::timeout(self.drain + LAST_WORDS, &mut server).await.is_err() {
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

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), HubError> {
    let wrong = |source| HubError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(wrong)?;
    let address = listener.local_addr().map_err(wrong)?;
    Ok((listener, address))
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
