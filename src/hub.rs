//! The composition root: builds the checked model, listener, engine and API from the settings, runs
//! them, and stops them in order.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;

use crate::api::auth::{Hosts, KeyRing, KeysError};
use crate::api::connection::{self, Limits};
use crate::api::{self, App, Liveness, Options};
use crate::config::{ModelSettings, Settings};
use crate::database::{DatabaseError, StateDirectory};
use crate::descriptors::{self, Connections};
use crate::engine::{Engine, EngineState, Health, LlamaEngine, LlamaOptions, SelfTest, own_memory_pays};
use crate::gguf::{self, Gguf, GgufError};
use crate::spokes::reconciler::{ReconcilerError, ReconcilerSettings, Spokes};
use crate::text::ChatTemplate;

/// Extra time, after the engine's own drain, that connections get to send what is already
/// generated.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Bytes of an answer that the kernel buffers per connection. It bounds the memory that a slow
/// reader costs and how late the daemon notices one.
const SEND_BUFFER: u32 = 128 << 10;
/// File in the state folder that holds the result of the self-test.
pub const SELF_TEST: &str = "self-test.json";
/// Length of the kernel's queue of connections not yet accepted.
const BACKLOG: u32 = 1024;

/// Why the daemon can't start, or why it stopped.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The model file can't be served, and a retry would not help.
    #[error("{path}: {reason}", path = path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The chat template can't be used.
    #[error("{path}: {reason}\nhint: {hint}", path = path.display())]
    Template {
        /// The file that holds the template.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// How to fix it.
        hint: &'static str,
    },
    /// The daemon can't listen on the address.
    #[error("can't listen on {address}: {reason}\nhint: server.listen and --listen name another address")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The operating system's error.
        reason: std::io::Error,
    },
    /// Other machines can connect, and no API key is required.
    #[error(
        "other machines can reach {0}, and no API key is required\nhint: name a file of keys with server.keys_file, or listen on 127.0.0.1"
    )]
    Unprotected(SocketAddr),
    /// The state folder can't be used.
    #[error(transparent)]
    State(#[from] DatabaseError),
    /// The folder of spokes can't be made.
    #[error("{path}: {source}\nhint: paths.spokes and --spokes name the folder of spokes", path = path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The reconciler can't be started.
    #[error("the reconciler of spokes can't be started: {0}")]
    Spokes(ReconcilerError),
    /// The keys can't be used.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The engine shows no sign of life.
    #[error("the engine has shown no sign of life for {}", humantime::format_duration(*.0))]
    Silent(Duration),
    /// The reconciler's thread has ended, so changes to spoke files would go unnoticed.
    #[error("the reconciler of spokes has ended; see the log")]
    Reconciler,
    /// The engine failed after it had been ready.
    #[error("the engine failed: {0}")]
    Engine(String),
    /// The listener ended without being told to.
    #[error("the listener ended: {0}")]
    Serve(String),
}

/// A daemon that is bound and ready to run.
pub struct Hub {
    listener: TcpListener,
    address: SocketAddr,
    router: Router,
    app: App,
    engine: Arc<dyn Engine>,
    model: PathBuf,
    drain: Duration,
    limits: Limits,
    keys: Arc<KeyRing>,
    liveness: Arc<Liveness>,
    watchdog: Duration,
    spokes: Kept,
}

/// Owns the reconciler's handle. Dropping the hub ends the reconciler's thread, on every path.
struct Kept(Spokes);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Hub {
    /// Checks the model file and the state folder, binds the address, then starts the engine. The
    /// order matters: a mistake in the settings leaves nothing half-started.
    ///
    /// # Errors
    /// Every [`HubError`] except those of a running daemon.
    pub fn build(settings: &Settings) -> Result<Self, HubError> {
        let own_memory = check_model_file(&settings.model)?;
        let door = Door::open(settings)?;
        let state = open_state(settings)?;
        #[cfg(feature = "test-support")]
        if let Some(fake) = crate::engine::FakeEngine::from_environment() {
            return Self::join(settings, Arc::new(fake), door, state);
        }
        let options = LlamaOptions {
            own_memory,
            checked: true,
            prepare_constraints: true,
            self_test: self_test(settings, state.path()),
            ..LlamaOptions::default()
        };
        let engine = Arc::new(LlamaEngine::start_with(settings.model.clone(), options));
        Self::join(settings, engine, door, state)
    }

    /// Binds the address and puts an API over `engine`. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// As [`Hub::build`].
    pub fn assemble(settings: &Settings, engine: Arc<dyn Engine>) -> Result<Self, HubError> {
        let door = Door::open(settings)?;
        Self::join(settings, engine, door, open_state(settings)?)
    }

    fn join(
        settings: &Settings,
        engine: Arc<dyn Engine>,
        door: Door,
        state: StateDirectory,
    ) -> Result<Self, HubError> {
        let Door { listener, address, keys } = door;
        let server = &settings.server;
        let chat_template = settings.model.chat_template.as_deref().map(read_template).transpose()?;
        let options = Options {
            server: server.clone(),
            model: settings.model.clone(),
            sampling: settings.sampling,
            log: settings.log,
            spokes: settings.spokes.choice.clone(),
            chat_template,
            hosts: Hosts::new(address, &server.hosts),
            keys: Arc::clone(&keys),
        };
        if options.model.id.to_ascii_lowercase().contains("qwen3") {
            tracing::warn!(
                id = options.model.id,
                "mnemonic appends /no_think for ids with qwen3 in them: set model.id"
            );
        }
        let liveness = Liveness::new(engine.health());
        let followed = ReconcilerSettings {
            spokes: settings.spokes.clone(),
            folder: settings.paths.spokes.clone(),
            model: settings.model.path.clone(),
            model_id: settings.model.id.clone(),
        };
        // The API sends commands to the reconciler, and the reconciler asks the API the questions
        // of gates. So the handle comes first, then the API, then the reconciler.
        let (spokes, inbox) = Spokes::channel();
        let app = App::new(Arc::clone(&engine), spokes.clone(), Arc::clone(&liveness), options);
        inbox.start(followed, state, Arc::clone(&engine), api::questioner(&app)).map_err(HubError::Spokes)?;
        let router = api::router(app.clone());
        let connections = connections_within_descriptors(server.connections);
        let limits = Limits {
            connections: connections.served,
            beyond: connections.beyond,
            watched: connections.served < server.connections,
            head: usize::try_from(server.head_limit.as_u64()).unwrap_or(usize::MAX),
            timeouts: server.timeouts,
        };
        let (model, drain, watchdog) = (settings.model.path.clone(), server.drain, server.watchdog);
        let spokes = Kept(spokes);
        Ok(Self {
            listener,
            address,
            router,
            app,
            engine,
            model,
            drain,
            limits,
            keys,
            liveness,
            watchdog,
            spokes,
        })
    }

    /// The bound address, with the real port if port 0 was requested.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The engine's state.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.engine.health()
    }

    /// The API keys. The caller reloads them when their file changes.
    pub fn keys(&self) -> Arc<KeyRing> {
        Arc::clone(&self.keys)
    }

    /// Serves until `stop` is ready. Then it accepts no more connections, gives running requests
    /// the configured drain time to finish, and returns.
    ///
    /// # Errors
    /// [`HubError::Model`] if the weights can't be loaded; [`HubError::Engine`] if the engine fails
    /// later; [`HubError::Silent`] if the engine hangs; [`HubError::Reconciler`] if the
    /// reconciler's thread ends.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> Result<(), HubError> {
        let (closing, closed) = watch::channel(false);
        let mut server = tokio::spawn(connection::serve(self.listener, self.router, self.limits, closed));
        let outcome = tokio::select! {
            () = stop => Ok(()),
            failure = failure(self.engine.health(), self.model) => Err(failure),
            () = self.liveness.silence(self.watchdog) => Err(HubError::Silent(self.watchdog)),
            () = self.spokes.0.ended() => Err(HubError::Reconciler),
            ended = &mut server => {
                return Err(HubError::Serve(ended.err().map_or_else(String::new, |error| error.to_string())));
            }
        };
        // A dead engine finishes no request. Dropping its clients at once lets a new daemon start
        // sooner.
        let drain = if outcome.is_ok() { self.drain } else { Duration::ZERO };
        self.spokes.0.begin_to_stop();
        self.app.begin_to_stop();
        self.engine.stop(drain);
        let _ = closing.send(true);
        if tokio::time::timeout(drain + LAST_WORDS, &mut server).await.is_err() {
            tracing::warn!("connections were still open at the end of the drain; they are closed now");
            server.abort();
        }
        self.spokes.0.stop();
        if tokio::time::timeout(LAST_WORDS, self.spokes.0.ended()).await.is_err() {
            tracing::warn!("the reconciler is still busy; uncommitted work is repeated at the next start");
        }
        outcome
    }
}

/// Limits the configured number of connections to what the file descriptor limit allows. Without a
/// free descriptor the daemon could open no file and accept no connection.
fn connections_within_descriptors(wanted: u32) -> Connections {
    let limit = descriptors::limit();
    let connections = Connections::within(limit, wanted);
    if connections.served < wanted {
        tracing::warn!(
            connections = connections.served,
            wanted,
            descriptors = limit,
            "fewer connections than server.connections: the limit of file descriptors (ulimit -Hn, LimitNOFILE=) has no \
             room for more"
        );
    }
    connections
}

/// Locks the state folder, and creates the folder of spokes if the settings name one. A missing
/// default folder is no mistake: no spokes are wanted yet.
fn open_state(settings: &Settings) -> Result<StateDirectory, HubError> {
    let state = StateDirectory::open(&settings.paths.state)?;
    let folder = &settings.paths.spokes;
    if settings.paths.spokes_named {
        fs_err::create_dir_all(folder).map_err(|source| HubError::Folder { path: folder.clone(), source })?;
    }
    Ok(state)
}

/// How the self-test tries the kernels, unless the settings turn it off.
pub fn self_test(settings: &Settings, state: &Path) -> Option<SelfTest> {
    let post_bytes = fs_err::metadata(&settings.model.path).map_or(0, |metadata| metadata.len());
    settings.model.self_test.then(|| SelfTest {
        program: settings.spokes.probe_program.clone(),
        remembered: Some(state.join(SELF_TEST)),
        memory: settings.spokes.probe_memory(post_bytes),
    })
}

/// Validates the model file with the safe reader before a C++ parser sees it, and parses its chat
/// template. Returns whether its weights belong in private memory.
fn check_model_file(model: &ModelSettings) -> Result<bool, HubError> {
    let wrong = |error: GgufError| HubError::Model { path: error.path, reason: error.rule.to_string() };
    let file = Gguf::open(&model.path).map_err(wrong)?;
    gguf::check_model(&file).map_err(wrong)?;
    if let Some(template) = &model.chat_template {
        read_template(template)?;
    } else if let Some(source) = file.find::<&str>("tokenizer.chat_template").map_err(wrong)? {
        // Refuse to start rather than report healthy and fail every chat request.
        ChatTemplate::check(source).map_err(|error| HubError::Template {
            path: model.path.clone(),
            reason: format!("tokenizer.chat_template: {error}"),
            hint: "model.chat_template names a file with another one",
        })?;
    }
    Ok(own_memory_pays(&file))
}

/// Reads a chat template from a file and checks that it parses.
fn read_template(path: &Path) -> Result<String, HubError> {
    let wrong = |reason: String| HubError::Template {
        path: path.to_owned(),
        reason,
        hint: "model.chat_template names a file with a chat template in Jinja; without it, the model's own is used",
    };
    let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let source = String::from_utf8(bytes).map_err(|error| wrong(format!("is not UTF-8: {error}")))?;
    ChatTemplate::check(&source).map_err(|error| wrong(error.to_string()))?;
    Ok(source)
}

/// The listening socket, and the API keys that requests need.
struct Door {
    listener: TcpListener,
    address: SocketAddr,
    keys: Arc<KeyRing>,
}

impl Door {
    /// Reads the keys, requires some if other machines can connect, and binds the address.
    fn open(settings: &Settings) -> Result<Self, HubError> {
        let address = settings.server.listen;
        let keys = KeyRing::open(settings.server.keys_file.as_deref())?;
        if keys.is_empty() && !address.ip().to_canonical().is_loopback() {
            return Err(HubError::Unprotected(address));
        }
        let wrong = |reason| HubError::Listen { address, reason };
        let listener = bind(address).map_err(wrong)?;
        let address = listener.local_addr().map_err(wrong)?;
        Ok(Self { listener, address, keys: Arc::new(keys) })
    }
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Lets a restarted daemon bind while connections of the previous process are in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    // Accepted connections inherit the buffer size.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Waits until the engine fails, if it ever does.
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
