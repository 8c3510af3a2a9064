//! The validated configuration, with defaults filled in and paths absolute.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use toml::Spanned;

use super::Overrides;
use super::error::Mistake;
use super::paths::{absolute, default_model, default_state};
use super::raw::{self, RawConfig};
use super::spokes::SpokeSettings;
use super::validate::Check;

/// Most sequences that llama.cpp supports (its `LLAMA_MAX_SEQ`), those of the lanes and cached ones
/// together.
pub const MAX_SEQUENCES: u32 = 256;

/// Which kernels to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KernelChoice {
    /// Ours where the processor has the features that they need, llama.cpp's for the rest.
    #[default]
    Auto,
    /// llama.cpp's. Of ours, only the portable kernel for Felix spokes, which llama.cpp lacks.
    Off,
}

/// All settings of the daemon.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// HTTP server.
    pub server: ServerSettings,
    /// The model and how it is run.
    pub model: ModelSettings,
    /// Logging.
    pub log: LogSettings,
    /// How tokens are chosen for requests that don't say.
    pub sampling: SamplingDefaults,
    /// Spokes.
    pub spokes: SpokeSettings,
    /// Folders.
    pub paths: Paths,
}

/// HTTP server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSettings {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Largest request body.
    pub body_limit: ByteSize,
    /// Longest time for one request, including its time in the queue.
    pub request_deadline: Duration,
    /// Longest time that running requests get to finish after a stop signal.
    pub drain: Duration,
    /// Concurrent connections. A further one is answered 503 and closed.
    pub connections: u32,
    /// Largest head (request line and headers) of a request.
    pub head_limit: ByteSize,
    /// How long slow clients are waited for.
    pub timeouts: Timeouts,
    /// Longest time that a ready engine may show no sign of life; zero turns the watchdog off.
    pub watchdog: Duration,
    /// File of API keys.
    pub keys_file: Option<PathBuf>,
    /// Names, in addition to this machine's own, under which clients may address the daemon.
    pub hosts: Vec<String>,
    /// Origins whose web pages may send requests. `localhost` is this machine's at any port, `*`
    /// any origin.
    pub cors_origins: Vec<String>,
    /// Whether `GET /slots` is enabled.
    pub slots: bool,
    /// Whether `GET /metrics` is enabled.
    pub metrics: bool,
}

/// How long a connection waits for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Longest time for a head to arrive, and again for a body.
    pub slow_sender: Duration,
    /// Longest time that a client may read nothing of what is sent to it.
    pub slow_reader: Duration,
    /// Longest time that a connection is kept open without a request.
    pub keep_alive: Duration,
}

/// Logging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSettings {
    /// Format of the log.
    pub format: LogFormat,
    /// Format of the access log; `None` turns it off.
    pub access: Option<LogFormat>,
    /// Whether the log may contain prompts and answers.
    pub prompts: bool,
}

/// Format of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// The model and how it is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSettings {
    /// The GGUF file.
    pub path: PathBuf,
    /// Name in the API; the file's stem unless given.
    pub id: String,
    /// Aliases of the model.
    pub aliases: Vec<String>,
    /// Tags shown in the list of models, for clients that choose by them.
    pub tags: Vec<String>,
    /// A file with a chat template that replaces the model's own.
    pub chat_template: Option<PathBuf>,
    /// Tokens that one request may use, prompt and answer together; the model's own limit unless
    /// given.
    pub context: Option<u32>,
    /// Memory for the KV cache of all sequences; half of the available memory unless given.
    pub cache_memory: Option<ByteSize>,
    /// Requests that are answered at the same time, at least 1.
    pub lanes: u32,
    /// CPU threads.
    pub threads: u32,
    /// Sequences, in addition to those of the lanes, whose KV cache is kept for later requests.
    pub cached_sequences: u32,
    /// Whether tokens are drafted by prompt lookup, for requests that don't say.
    pub draft: bool,
    /// Requests that may wait in the queue, and as many while weights load.
    pub queue: u32,
    /// Estimated tokens, prompts and answers, of the requests in the queue. A single request may
    /// always wait, whatever its length.
    pub queue_tokens: u64,
    /// Which kernels to use.
    pub kernels: KernelChoice,
    /// Whether kernels are tried in another process before they serve.
    pub self_test: bool,
}

impl ModelSettings {
    /// The defaults for a model file.
    pub fn of(path: PathBuf) -> Self {
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        Self {
            id: stem.unwrap_or_else(|| "bespoke".to_owned()),
            path,
            aliases: Vec::new(),
            tags: Vec::new(),
            chat_template: None,
            context: None,
            cache_memory: None,
            lanes: 4,
            threads: processors(),
            cached_sequences: 0,
            draft: true,
            queue: 256,
            queue_tokens: 1 << 18,
            kernels: KernelChoice::default(),
            self_test: true,
        }
    }

    /// Validates the raw settings. The file that the command line names, if any, wins.
    fn new(written: raw::Model, named: Option<&Path>, folder: &Path, check: &mut Check) -> Self {
        let path = named.map(absolute).or_else(|| written.path.map(|path| from_file(folder, path)));
        let default = Self::of(path.unwrap_or_else(default_model));
        let lanes = check.whole("model.lanes", written.lanes, 1..=MAX_SEQUENCES, default.lanes);
        // Lanes and cached sequences are both sequences of llama.cpp.
        let spare = 128.min(MAX_SEQUENCES - lanes);
        let (context, memory) = (written.context, written.cache_memory);
        let queue_tokens =
            written.queue_tokens.map(|given| check.whole("model.queue_tokens", Some(given), 1..=u32::MAX, 1));
        Self {
            id: check.name("model.id", written.id, default.id),
            aliases: check.names("model.aliases", written.aliases),
            tags: check.names("model.tags", written.tags),
            path: default.path,
            chat_template: written.chat_template.map(|path| from_file(folder, path)),
            context: context.map(|given| check.whole("model.context", Some(given), 16..=1 << 20, 16)),
            cache_memory: memory.map(|given| {
                check.size("model.cache_memory", Some(given), ByteSize::gib(1), 1 << 20..=1 << 50)
            }),
            lanes,
            threads: check.whole("model.threads", written.threads, 1..=1024, default.threads),
            cached_sequences: check.whole(
                "model.cached_sequences",
                written.cached_sequences,
                0..=spare,
                default.cached_sequences,
            ),
            draft: written.draft.unwrap_or(default.draft),
            queue: check.whole("model.queue", written.queue, 1..=100_000, default.queue),
            queue_tokens: queue_tokens.map_or(default.queue_tokens, u64::from),
            kernels: check.choice(
                "model.kernels",
                written.kernels,
                &[("auto", KernelChoice::Auto), ("off", KernelChoice::Off)],
                default.kernels,
            ),
            self_test: written.self_test.unwrap_or(default.self_test),
        }
    }
}

/// How tokens are chosen for requests that don't say. The default temperature is 0, greedy, because
/// mnemonic leaves out a temperature of 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingDefaults {
    /// 0 is greedy.
    pub temperature: f32,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub top_k: u32,
    /// 0 keeps all.
    pub min_p: f32,
    /// Seed of requests that have none; `None` draws one for each.
    pub seed: Option<u64>,
    /// Whether a model thinks before it answers, if its template supports that.
    pub thinking: bool,
    /// Whether an answer to a task, known by the name of its schema, is held to the limits that the
    /// prompt states but the schema does not.
    pub task_limits: bool,
}

/// Folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The folder where spokes are dropped.
    pub spokes: PathBuf,
    /// Whether the configuration names this folder. Then it is created if missing.
    pub spokes_named: bool,
    /// The folder of the daemon's durable state.
    pub state: PathBuf,
}

impl Settings {
    /// Validates the raw configuration. Relative paths in it are relative to `folder`.
    pub(super) fn new(written: RawConfig, folder: &Path, overrides: Overrides) -> Result<Self, Vec<Mistake>> {
        let mut check = Check { mistakes: Vec::new() };
        let RawConfig { server, model, log, sampling, spokes, paths } = written;
        let spokes_named = overrides.spokes.is_some() || paths.spokes.is_some();
        let from_file = |path: Spanned<String>| from_file(folder, path);
        let settings = Self {
            server: ServerSettings {
                listen: overrides.listen.unwrap_or_else(|| check.address("server.listen", server.listen)),
                body_limit: check.size(
                    "server.body_limit",
                    server.body_limit,
                    ByteSize::mib(2),
                    1 << 10..=1 << 30,
                ),
                request_deadline: check.pause("server.request_deadline", server.request_deadline, 600),
                drain: check.duration("server.drain", server.drain, 30),
                connections: check.whole("server.connections", server.connections, 1..=65_536, 512),
                head_limit: check.size(
                    "server.head_limit",
                    server.head_limit,
                    ByteSize::kib(32),
                    8 << 10..=1 << 20,
                ),
                timeouts: Timeouts {
                    slow_sender: check.pause("server.slow_sender", server.slow_sender, 10),
                    slow_reader: check.pause("server.slow_reader", server.slow_reader, 30),
                    keep_alive: check.pause("server.keep_alive", server.keep_alive, 75),
                },
                watchdog: check.duration("server.watchdog", server.watchdog, 30),
                keys_file: server.keys_file.map(from_file),
                hosts: check.hosts("server.hosts", server.hosts),
                cors_origins: check.origins("server.cors_origins", server.cors_origins),
                slots: server.slots.unwrap_or(true),
                metrics: server.metrics.unwrap_or(true),
            },
            model: ModelSettings::new(model, overrides.model.as_deref(), folder, &mut check),
            log: LogSettings {
                format: check.format("log.format", log.format),
                access: check.access("log.access", log.access),
                prompts: log.prompts.unwrap_or(false),
            },
            sampling: SamplingDefaults {
                temperature: check.number("sampling.temperature", sampling.temperature, 0.0..=2.0, 0.0),
                top_p: check.number("sampling.top_p", sampling.top_p, 0.000_1..=1.0, 1.0),
                top_k: check.whole("sampling.top_k", sampling.top_k, 0..=1 << 20, 0),
                min_p: check.number("sampling.min_p", sampling.min_p, 0.0..=1.0, 0.0),
                seed: sampling.seed.and_then(|seed| check.seed("sampling.seed", &seed)),
                thinking: sampling.thinking.unwrap_or(false),
                task_limits: sampling.task_limits.unwrap_or(true),
            },
            spokes: SpokeSettings::new(spokes, folder, &mut check),
            paths: Paths {
                spokes_named,
                spokes: overrides
                    .spokes
                    .as_deref()
                    .map(absolute)
                    .or_else(|| paths.spokes.map(from_file))
                    .unwrap_or_else(|| absolute(Path::new("spokes"))),
                state: overrides
                    .state
                    .as_deref()
                    .map(absolute)
                    .or_else(|| paths.state.map(from_file))
                    .unwrap_or_else(default_state),
            },
        };
        if check.mistakes.is_empty() { Ok(settings) } else { Err(check.mistakes) }
    }
}

/// A path in the configuration file, relative to the file's folder.
fn from_file(folder: &Path, path: Spanned<String>) -> PathBuf {
    absolute(&folder.join(path.into_inner()))
}

fn processors() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u32)
}
