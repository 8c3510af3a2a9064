//! The configuration as it is meant: validated, with defaults filled in, paths absolute.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use toml::Spanned;

use super::Overrides;
use super::mistake::Mistake;
use super::places::{absolute, default_model, default_state};
use super::written::Written;

/// Everything that the daemon is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The HTTP side.
    pub server: ServerSettings,
    /// The model and how it is run.
    pub model: ModelSettings,
    /// What a request means that doesn't say how tokens are chosen.
    pub sampling: SamplingDefaults,
    /// Folders.
    pub paths: Paths,
}

/// The HTTP side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSettings {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Largest request body.
    pub body_limit: ByteSize,
    /// Longest that one request may take, queue included.
    pub request_deadline: Duration,
    /// Longest that running requests may go on after a stop signal.
    pub drain: Duration,
}

/// The model and how it is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSettings {
    /// The GGUF file.
    pub path: PathBuf,
    /// Name in the API; the file's stem unless given.
    pub id: String,
    /// Tokens that one request may use, prompt and answer; the model's own limit unless given.
    pub context: Option<u32>,
    /// Requests that are answered at the same time.
    pub lanes: u32,
    /// CPU threads.
    pub threads: u32,
    /// Sequences beside those of the lanes whose keys and values are kept for later requests.
    pub cached_sequences: u32,
    /// Whether tokens are drafted by prompt lookup, for requests that don't say.
    pub draft: bool,
    /// Requests that may wait.
    pub queue: u32,
}

/// What a request means that doesn't say how tokens are chosen. mnemonic leaves a temperature of 0 out: absent is greedy.
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
    /// Whether an answer to a task that is known by the name of its schema is held to the limits that its prompt states,
    /// which the schema itself does not.
    pub task_limits: bool,
}

/// Folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Where spokes are dropped.
    pub spokes: PathBuf,
    /// Where the daemon keeps what it must not forget.
    pub state: PathBuf,
}

impl Settings {
    /// Judges what was written; relative paths in it are taken from `folder`.
    pub(super) fn new(written: Written, folder: &Path, overrides: Overrides) -> Result<Self, Vec<Mistake>> {
        let mut check = Check { mistakes: Vec::new() };
        let Written { server, model, sampling, paths } = written;
        let from_file = |path: Spanned<String>| absolute(&folder.join(path.into_inner()));
        let path = overrides.model.as_deref().map(absolute).or_else(|| model.path.map(from_file));
        let path = path.unwrap_or_else(default_model);
        let stem =
            path.file_stem().map_or_else(|| "bespoke".to_owned(), |stem| stem.to_string_lossy().into_owned());
        let settings = Self {
            server: ServerSettings {
                listen: overrides.listen.unwrap_or_else(|| check.address("server.listen", server.listen)),
                body_limit: check.size("server.body_limit", server.body_limit, ByteSize::mib(2)),
                request_deadline: check.duration("server.request_deadline", server.request_deadline, 600),
                drain: check.duration("server.drain", server.drain, 30),
            },
            model: ModelSettings {
                id: check.name("model.id", model.id, stem),
                path,
                context: model
                    .context
                    .map(|given| check.whole("model.context", Some(given), 16..=1 << 20, 16)),
                lanes: check.whole("model.lanes", model.lanes, 1..=256, 4),
                threads: check.whole("model.threads", model.threads, 1..=1024, processors()),
                cached_sequences: check.whole("model.cached_sequences", model.cached_sequences, 0..=128, 0),
                draft: model.draft.unwrap_or(true),
                queue: check.whole("model.queue", model.queue, 1..=100_000, 64),
            },
            sampling: SamplingDefaults {
                temperature: check.number("sampling.temperature", sampling.temperature, 0.0..=2.0, 0.0),
                top_p: check.number("sampling.top_p", sampling.top_p, 0.000_1..=1.0, 1.0),
                top_k: check.whole("sampling.top_k", sampling.top_k, 0..=1 << 20, 0),
                min_p: check.number("sampling.min_p", sampling.min_p, 0.0..=1.0, 0.0),
                task_limits: sampling.task_limits.unwrap_or(true),
            },
            paths: Paths {
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

fn processors() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u32)
}

/// Collects mistakes; a wrong value becomes its default, so that the next one can be judged too.
struct Check {
    mistakes: Vec<Mistake>,
}

impl Check {
    fn wrong(
        &mut self,
        key: &str,
        found: &Spanned<impl std::fmt::Debug>,
        expected: &str,
        hint: Option<&str>,
    ) {
        let message = format!("{key} = {:?}: expected {expected}", found.get_ref());
        self.mistakes.push(Mistake::new(Some(found.span()), message, hint));
    }

    fn address(&mut self, key: &str, found: Option<Spanned<String>>) -> SocketAddr {
        let default = SocketAddr::from(([127, 0, 0, 1], 8899));
        let Some(found) = found else { return default };
        found.get_ref().parse().unwrap_or_else(|_| {
            self.wrong(key, &found, "ADDRESS:PORT", Some("\"127.0.0.1:8899\" is for this machine alone"));
            default
        })
    }

    fn size(&mut self, key: &str, found: Option<Spanned<String>>, default: ByteSize) -> ByteSize {
        let Some(found) = found else { return default };
        match found.get_ref().parse::<ByteSize>() {
            Ok(size) if (1 << 10..=1 << 30).contains(&size.as_u64()) => size,
            _ => {
                self.wrong(
                    key,
                    &found,
                    "a size from 1 KiB to 1 GiB",
                    Some("write its unit too, as in \"2 MiB\""),
                );
                default
            }
        }
    }

    fn duration(&mut self, key: &str, found: Option<Spanned<String>>, default_secs: u64) -> Duration {
        let default = Duration::from_secs(default_secs);
        let Some(found) = found else { return default };
        match humantime::parse_duration(found.get_ref()) {
            Ok(duration) if duration <= Duration::from_secs(86_400) => duration,
            _ => {
                let hint = "write its unit too, as in \"30s\" or \"10m\"";
                self.wrong(key, &found, "a duration of a day at most", Some(hint));
                default
            }
        }
    }

    fn name(&mut self, key: &str, found: Option<Spanned<String>>, default: String) -> String {
        let Some(found) = found else { return default };
        if found.get_ref().trim().is_empty() || found.get_ref().contains(char::is_control) {
            self.wrong(key, &found, "a name", None);
            return default;
        }
        found.into_inner()
    }

    fn whole(
        &mut self,
        key: &str,
        found: Option<Spanned<i64>>,
        range: RangeInclusive<u32>,
        default: u32,
    ) -> u32 {
        let Some(found) = found else { return default };
        match u32::try_from(*found.get_ref()) {
            Ok(number) if range.contains(&number) => number,
            _ => {
                let expected = format!("a whole number from {} to {}", range.start(), range.end());
                self.wrong(key, &found, &expected, None);
                default
            }
        }
    }

    fn number(
        &mut self,
        key: &str,
        found: Option<Spanned<f64>>,
        range: RangeInclusive<f64>,
        default: f32,
    ) -> f32 {
        let Some(found) = found else { return default };
        if range.contains(found.get_ref()) {
            return *found.get_ref() as f32;
        }
        self.wrong(key, &found, &format!("a number from {} to {}", range.start(), range.end()), None);
        default
    }
}
