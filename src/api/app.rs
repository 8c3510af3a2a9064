//! State that all handlers share: the engine, the model's name and template, limits.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::Instant;

use super::auth::{Hosts, KeyRing};
use super::error::ApiError;
use super::liveness::Liveness;
use super::metrics::Metrics;
use super::spokes::Default as DefaultSpokes;
use crate::config::{
    LogFormat, LogSettings, ModelSettings, Otherwise, SamplingDefaults, ServerSettings, SpokeChoice,
};
use crate::engine::{Engine, EngineError, EngineState, ModelInfo, Query, Reply, Segment};
use crate::spokes::reconciler::{POST, Spokes};
use crate::text::template::{ChatTemplate, TemplateError};

/// What an API is made of, besides what it serves: the sections of the settings, and what was made
/// of them.
#[derive(Debug, Clone)]
pub struct Options {
    /// HTTP server.
    pub server: ServerSettings,
    /// The model and how it is run.
    pub model: ModelSettings,
    /// How tokens are chosen for requests that don't say.
    pub sampling: SamplingDefaults,
    /// What is logged about requests.
    pub log: LogSettings,
    /// Which request gets which spoke.
    pub spokes: SpokeChoice,
    /// The text of `model.chat_template`, which replaces the model's own.
    pub chat_template: Option<String>,
    /// Names under which clients may address the daemon.
    pub hosts: Hosts,
    /// API keys.
    pub keys: Arc<KeyRing>,
}

/// State shared by all handlers; cheap to clone.
#[derive(Clone)]
pub struct App {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Arc<dyn Engine>,
    options: Options,
    liveness: Arc<Liveness>,
    metrics: Arc<Metrics>,
    created: u64,
    template: OnceLock<Result<ChatTemplate, TemplateError>>,
    waiting_for_load: AtomicU32,
    spokes: Spokes,
    default_spokes: ArcSwap<DefaultSpokes>,
    stopping: watch::Sender<bool>,
}

impl App {
    /// An API over an engine.
    pub fn new(engine: Arc<dyn Engine>, spokes: Spokes, liveness: Arc<Liveness>, options: Options) -> Self {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (template, waiting_for_load) = (OnceLock::new(), AtomicU32::new(0));
        let metrics = Arc::<Metrics>::default();
        let default: DefaultSpokes = options.spokes.default.iter().map(|name| (name.clone(), 1.0)).collect();
        let default_spokes = ArcSwap::from_pointee(default);
        let inner = Inner {
            engine,
            options,
            liveness,
            metrics,
            created,
            template,
            waiting_for_load,
            spokes,
            default_spokes,
            stopping: watch::Sender::new(false),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The daemon stops: requests that wait for the weights end at once.
    pub fn begin_to_stop(&self) {
        self.inner.stopping.send_replace(true);
    }

    pub(super) fn spokes(&self) -> &Spokes {
        &self.inner.spokes
    }

    /// Spokes and scales of requests that choose none.
    pub(super) fn default_spokes(&self) -> Arc<DefaultSpokes> {
        self.inner.default_spokes.load_full()
    }

    pub(super) fn set_default_spokes(&self, set: DefaultSpokes) {
        self.inner.default_spokes.store(Arc::new(set));
    }

    pub(super) fn spokes_of_tasks(&self) -> &BTreeMap<String, String> {
        &self.inner.options.spokes.tasks
    }

    pub(super) fn unknown_model(&self) -> Otherwise {
        self.inner.options.spokes.unknown_model
    }

    pub(super) fn retired_spoke(&self) -> Otherwise {
        self.inner.options.spokes.retired
    }

    /// Names that `model` may have in a request.
    pub(super) fn served_models(&self) -> String {
        let serving = self.spokes().registry().serving();
        let post =
            std::iter::once(self.model_id()).chain(self.options().model.aliases.iter().map(String::as_str));
        let all = post.chain(serving.names.keys().map(String::as_str));
        all.map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
    }

    pub(super) fn metrics(&self) -> &Arc<Metrics> {
        &self.inner.metrics
    }

    pub(super) fn liveness(&self) -> &Liveness {
        &self.inner.liveness
    }

    pub(super) fn hosts(&self) -> &Hosts {
        &self.inner.options.hosts
    }

    pub(super) fn key_ring(&self) -> &KeyRing {
        &self.inner.options.keys
    }

    pub(super) fn cors_origins(&self) -> &[String] {
        &self.inner.options.server.cors_origins
    }

    pub(super) fn access_log(&self) -> Option<LogFormat> {
        self.inner.options.log.access
    }

    /// Whether the log may contain prompts and answers.
    pub(super) fn log_texts(&self) -> bool {
        self.inner.options.log.prompts
    }

    pub(super) fn slow_sender(&self) -> Duration {
        self.inner.options.server.timeouts.slow_sender
    }

    pub(super) fn engine(&self) -> &dyn Engine {
        self.inner.engine.as_ref()
    }

    pub(super) fn model_id(&self) -> &str {
        &self.inner.options.model.id
    }

    /// What this API was made of.
    pub(super) fn options(&self) -> &Options {
        &self.inner.options
    }

    /// Whether a request's `model` means the post.
    pub(super) fn is_post(&self, model: &str) -> bool {
        let ModelSettings { id, aliases, .. } = &self.inner.options.model;
        model == id || model == POST || model.is_empty() || aliases.iter().any(|alias| alias == model)
    }

    pub(super) fn body_limit(&self) -> u64 {
        self.inner.options.server.body_limit.as_u64()
    }

    pub(super) fn sampling(&self) -> &SamplingDefaults {
        &self.inner.options.sampling
    }

    /// When this daemon began to serve its model, in seconds since 1970.
    pub(super) fn created(&self) -> u64 {
        self.inner.created
    }

    /// Deadline of a request that arrives now.
    pub(super) fn deadline(&self) -> Deadline {
        let limit = self.inner.options.server.request_deadline;
        Deadline { at: Instant::now() + limit, limit }
    }

    /// The model, or an error without waiting if its weights are not loaded.
    pub(super) fn model_now(&self) -> Result<Arc<ModelInfo>, ApiError> {
        match &self.engine().health().borrow().state {
            EngineState::Ready(model) => Ok(Arc::clone(model)),
            EngineState::Loading => Err(ApiError::Loading),
            EngineState::Failed(reason) => Err(EngineError::Model(reason.clone()).into()),
            EngineState::Stopped => Err(EngineError::Stopped.into()),
        }
    }

    /// Sends a query to the engine's thread.
    pub(super) async fn query(&self, query: Query, deadline: Deadline) -> Result<Reply, ApiError> {
        let answer = self.engine().query(query)?;
        Ok(answered(deadline.within(answer).await?)?)
    }

    /// The model, if its weights are loaded.
    pub(super) fn model(&self) -> Option<Arc<ModelInfo>> {
        match &self.engine().health().borrow().state {
            EngineState::Ready(model) => Some(Arc::clone(model)),
            _ => None,
        }
    }

    /// Waits until the weights are loaded. No more requests may wait here than fit into the queue.
    pub(super) async fn ready(&self, deadline: Deadline) -> Result<Arc<ModelInfo>, ApiError> {
        if let Some(model) = self.model() {
            return Ok(model);
        }
        let _place = LoadWait::take(&self.inner.waiting_for_load, self.inner.options.model.queue)?;
        let mut health = self.engine().health();
        let mut stopping = self.inner.stopping.subscribe();
        let loaded = health.wait_for(|health| !matches!(health.state, EngineState::Loading));
        // The engine handles a stop only after loading its weights. Requests that wait for them are
        // told at once.
        let loaded = async {
            tokio::select! {
                loaded = loaded => loaded.map_err(|_| EngineError::Stopped),
                _ = stopping.wait_for(|stopping| *stopping) => Err(EngineError::Stopped),
            }
        };
        let health = deadline.within(loaded).await??;
        match &health.state {
            EngineState::Ready(model) => Ok(Arc::clone(model)),
            EngineState::Failed(reason) => Err(EngineError::Model(reason.clone()).into()),
            EngineState::Loading | EngineState::Stopped => Err(EngineError::Stopped.into()),
        }
    }

    /// The chat template: from the settings, else the model's own, else ChatML if the model knows
    /// its tokens, else plain text.
    pub(super) async fn template(
        &self,
        model: &ModelInfo,
        deadline: Deadline,
    ) -> Result<&ChatTemplate, ApiError> {
        if self.inner.template.get().is_none() {
            let source = self.inner.options.chat_template.as_ref().or(model.chat_template.as_ref());
            let template = match source {
                Some(source) => ChatTemplate::new(source, &model.bos_token, &model.eos_token),
                None if self.knows("<|im_start|>", deadline).await? => Ok(ChatTemplate::chat_ml()),
                None => Ok(ChatTemplate::plain_text()),
            };
            // Two requests may get here at once. Both made the same template.
            let _ = self.inner.template.set(template);
        }
        let template = self.inner.template.get().expect("was set above");
        template.as_ref().map_err(|error| ApiError::Model(error.to_string()))
    }

    /// Whether a text is a control token of the model: as markup it has other ids than as text.
    async fn knows(&self, token: &str, deadline: Deadline) -> Result<bool, ApiError> {
        let ids = |segment| self.query(Query::Tokenize { prompt: vec![segment], whole: false }, deadline);
        Ok(ids(Segment::markup(token)).await? != ids(Segment::plain(token)).await?)
    }
}

/// An answer from the engine's thread. If the thread is gone, the engine has stopped.
pub(super) fn answered<T>(
    answer: Result<Result<T, EngineError>, tokio::sync::oneshot::error::RecvError>,
) -> Result<T, EngineError> {
    answer.unwrap_or(Err(EngineError::Stopped))
}

/// When a request must be answered, and the time from its arrival until then.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    pub(super) at: Instant,
    pub(super) limit: Duration,
}

impl Deadline {
    /// Awaits `future` until the deadline.
    pub(super) async fn within<T>(self, future: impl Future<Output = T>) -> Result<T, ApiError> {
        tokio::time::timeout_at(self.at, future).await.map_err(|_| ApiError::Deadline(self.limit))
    }
}

/// A place among the requests that wait for the weights; freed when dropped.
struct LoadWait<'a>(&'a AtomicU32);

impl<'a> LoadWait<'a> {
    fn take(waiting: &'a AtomicU32, limit: u32) -> Result<Self, EngineError> {
        let before = waiting.fetch_add(1, Ordering::SeqCst);
        let place = Self(waiting);
        if before >= limit { Err(EngineError::Overloaded { waiting: before }) } else { Ok(place) }
    }
}

impl Drop for LoadWait<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
