//! An engine without a model that plays scripted answers, for tests of the layers above the engine.

mod answer;
mod script;
mod spokes;
mod words;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use self::answer::Cancelled;
pub use self::script::{Script, ScriptedToken};
use self::spokes::Spokes;
use self::words::{embedding, tokens};
use super::{
    AnswerEvent, Embeddings, Engine, EngineError, EngineState, Generate, Health, LoadedSpoke, ModelInfo,
    Prompt, Query, Reply, SpokeChange, Totals, Usage,
};
use crate::adapter::Generation;

/// How often a fake engine checks for cancellation.
const TICK: Duration = Duration::from_millis(2);

/// Number of requests that a fake engine remembers.
const KEPT: usize = 1_000;

/// A scripted [`Engine`]. A token is a word with the whitespace after it. A report gives each token
/// a probability of one half, and lists made-up words, each half as likely as the one before, as
/// alternatives.
///
/// A request constrained by a schema is answered with a minimal valid instance, unless the scripted
/// text is JSON, which is sent unchanged.
#[derive(Debug, Clone)]
pub struct FakeEngine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    script: Mutex<Script>,
    requests: Mutex<Vec<Generate>>,
    /// Words by the ids under which they were seen.
    words: Mutex<HashMap<u32, String>>,
    usage: Mutex<Usage>,
    spokes: Arc<Spokes>,
    limit: AtomicU32,
    running: AtomicU32,
    cancelled: AtomicU32,
    embedded: AtomicU64,
    stopping: AtomicBool,
    killed: AtomicBool,
    health: watch::Sender<Health>,
}

impl FakeEngine {
    /// An engine that is ready.
    pub fn new(script: Script) -> Self {
        let engine = Self::loading(script);
        engine.set_state(EngineState::Ready(Arc::new(Self::info())));
        engine
    }

    /// An engine that is still loading. Requests wait until [`FakeEngine::set_state`] is called.
    pub fn loading(script: Script) -> Self {
        let health = Health {
            state: EngineState::Loading,
            beat: 0,
            running: 0,
            waiting: 0,
            totals: Totals::default(),
        };
        let inner = Arc::new(Inner {
            script: Mutex::new(script),
            requests: Mutex::default(),
            words: Mutex::default(),
            usage: Mutex::default(),
            spokes: Arc::default(),
            limit: AtomicU32::new(u32::MAX),
            running: AtomicU32::new(0),
            cancelled: AtomicU32::new(0),
            embedded: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            health: watch::Sender::new(health),
        });
        let weak = Arc::downgrade(&inner);
        thread::spawn(move || {
            while let Some(inner) = weak.upgrade() {
                inner.health.send_modify(|health| {
                    health.beat += 1;
                    health.running = inner.running.load(Ordering::SeqCst);
                });
                drop(inner);
                thread::sleep(Duration::from_millis(100));
            }
        });
        Self { inner }
    }

    /// The engine that the environment requests in tests of the whole program.
    /// `BESPOKE_FAKE_ENGINE` is the pause before each word in milliseconds; the answers name the
    /// spokes they ran with.
    pub fn from_environment() -> Option<Self> {
        let pause = std::env::var("BESPOKE_FAKE_ENGINE").ok()?.parse().ok()?;
        Some(Self::new(Script::Spokes(Duration::from_millis(pause))))
    }

    /// Facts about the model that a fake engine pretends to serve.
    pub fn info() -> ModelInfo {
        ModelInfo {
            name: "fake".to_owned(),
            architecture: "llama".to_owned(),
            parameters: 1_000,
            bytes: 4_000,
            n_embd: 8,
            n_ctx: 8_192,
            n_ctx_train: 8_192,
            n_vocab: 32_000,
            chat_template: None,
            bos_token: "<|bos|>".to_owned(),
            eos_token: "<|end|>".to_owned(),
            computing: super::ComputingReport::default(),
            end_tokens: vec![2],
        }
    }

    /// Refuses requests with [`EngineError::Overloaded`] while this many are unfinished.
    #[must_use]
    pub fn with_limit(self, unfinished: u32) -> Self {
        self.inner.limit.store(unfinished, Ordering::SeqCst);
        self
    }

    /// Sets the part of [`Usage`] that a fake engine doesn't count: cached, forced, drafted and
    /// accepted tokens, and times.
    #[must_use]
    pub fn with_usage(self, usage: Usage) -> Self {
        *lock(&self.inner.usage) = usage;
        self
    }

    /// Sets the script for the next requests.
    pub fn set_script(&self, script: Script) {
        *lock(&self.inner.script) = script;
    }

    /// Sets the state that [`Engine::health`] shows.
    pub fn set_state(&self, state: EngineState) {
        self.inner.health.send_modify(|health| health.state = state);
    }

    /// Number of requests whose receiver was dropped before their end.
    pub fn cancelled(&self) -> u32 {
        self.inner.cancelled.load(Ordering::SeqCst)
    }

    /// Number of unfinished requests.
    pub fn running(&self) -> u32 {
        self.inner.running.load(Ordering::SeqCst)
    }

    /// Loaded spokes, in ascending order.
    pub fn loaded(&self) -> Vec<Generation> {
        self.inner.spokes.loaded()
    }

    /// The last 1,000 requests, oldest first.
    pub fn requests(&self) -> Vec<Generate> {
        lock(&self.inner.requests).clone()
    }
}

impl Engine for FakeEngine {
    fn generate(&self, request: Generate) -> Result<mpsc::UnboundedReceiver<AnswerEvent>, EngineError> {
        self.inner.refuse()?;
        let unfinished = self.inner.running.fetch_add(1, Ordering::SeqCst);
        if unfinished >= self.inner.limit.load(Ordering::SeqCst) {
            self.inner.running.fetch_sub(1, Ordering::SeqCst);
            return Err(EngineError::Overloaded { waiting: unfinished });
        }
        let mut requests = lock(&self.inner.requests);
        if requests.len() == KEPT {
            requests.remove(0);
        }
        requests.push(request.clone());
        drop(requests);
        let script = lock(&self.inner.script).clone();
        self.inner.tell_running();
        let (events, receiver) = mpsc::unbounded_channel();
        let inner = Arc::clone(&self.inner);
        // Acquire the spokes here, not on the thread: a command sent after this request must find
        // them in use.
        let spokes = self.inner.spokes.begin(&request.spokes);
        thread::spawn(move || {
            let end = match &spokes {
                Ok(spokes) => inner.answer(&script, &request, spokes, &events),
                Err(error) => Ok(AnswerEvent::Failed(error.clone())),
            };
            drop(spokes);
            inner.running.fetch_sub(1, Ordering::SeqCst);
            inner.tell_running();
            match end {
                Ok(last) => {
                    let _ = events.send(last);
                }
                Err(Cancelled) => {
                    inner.cancelled.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Ok(receiver)
    }

    fn embed(
        &self,
        inputs: Vec<Prompt>,
    ) -> Result<oneshot::Receiver<Result<Embeddings, EngineError>>, EngineError> {
        self.inner.refuse()?;
        let (reply, receiver) = oneshot::channel();
        let inner = Arc::clone(&self.inner);
        thread::spawn(move || {
            if let Err(error) = inner.wait_until_ready(&|| reply.is_closed()) {
                let _ = reply.send(Err(error.unwrap_or(EngineError::Stopped)));
                return;
            }
            inner.embedded.fetch_add(inputs.len() as u64, Ordering::SeqCst);
            let prompt_tokens = inputs.iter().map(|prompt| tokens(prompt).len() as u32).sum();
            let answer = if inputs.iter().any(|prompt| tokens(prompt).is_empty()) {
                Err(EngineError::EmptyPrompt)
            } else {
                Ok(Embeddings { vectors: inputs.iter().map(embedding).collect(), prompt_tokens })
            };
            let _ = reply.send(answer);
        });
        Ok(receiver)
    }

    fn query(&self, query: Query) -> Result<oneshot::Receiver<Result<Reply, EngineError>>, EngineError> {
        self.inner.refuse()?;
        let (reply, receiver) = oneshot::channel();
        let inner = Arc::clone(&self.inner);
        thread::spawn(move || {
            let ready = inner.wait_until_ready(&|| reply.is_closed());
            let _ = reply.send(match ready {
                Ok(()) => Ok(inner.reply(&query)),
                Err(error) => Err(error.unwrap_or(EngineError::Stopped)),
            });
        });
        Ok(receiver)
    }

    fn spoke(
        &self,
        change: SpokeChange,
    ) -> Result<oneshot::Receiver<Result<LoadedSpoke, EngineError>>, EngineError> {
        self.inner.refuse()?;
        let (reply, receiver) = oneshot::channel();
        let inner = Arc::clone(&self.inner);
        let ready = matches!(self.inner.health.borrow().state, EngineState::Ready(_));
        match change {
            SpokeChange::Load(spoke) if ready => drop(reply.send(inner.spokes.load(&spoke))),
            SpokeChange::Load(spoke) => drop(thread::spawn(move || {
                let ready = inner.wait_until_ready(&|| reply.is_closed());
                let ready = ready.map_err(|error| error.unwrap_or(EngineError::Stopped));
                reply.send(ready.and_then(|()| inner.spokes.load(&spoke)))
            })),
            // Mark the spoke before returning, so that a load that follows cancels the unload.
            SpokeChange::Unload(generation) => {
                inner.spokes.mark(generation);
                thread::spawn(move || reply.send(Ok(inner.spokes.freed(generation))));
            }
        }
        Ok(receiver)
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.inner.health.subscribe()
    }

    fn stop(&self, drain: Duration) {
        self.inner.stopping.store(true, Ordering::SeqCst);
        let inner = Arc::clone(&self.inner);
        thread::spawn(move || {
            let deadline = Instant::now() + drain;
            while inner.running.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
                thread::sleep(TICK);
            }
            inner.killed.store(true, Ordering::SeqCst);
            inner.health.send_modify(|health| health.state = EngineState::Stopped);
        });
    }
}

/// Ignore poisoning, so that the original panic of a test thread is the one that shows. The data
/// are plain values.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::FinishReason;
    use crate::engine::{Constraint, Segment};

    fn request() -> Generate {
        Generate::new("t", vec![Segment::markup("<|user|>"), Segment::plain("one two three")])
    }

    fn run(engine: &FakeEngine, request: Generate) -> (String, AnswerEvent) {
        let mut events = engine.generate(request).unwrap();
        let mut text = String::new();
        loop {
            match events.blocking_recv().expect("ends with a last event") {
                AnswerEvent::Started { .. }
                | AnswerEvent::Read(_)
                | AnswerEvent::Closed(_)
                | AnswerEvent::Tokens(_) => {}
                AnswerEvent::Text(more) => text += &more,
                last => return (text, last),
            }
        }
    }

    #[test]
    fn echo_obeys_the_limit_and_stop_texts() {
        let engine = FakeEngine::new(Script::Echo);
        let (text, last) = run(&engine, request());
        assert_eq!(text, "one two three");
        assert!(matches!(last, AnswerEvent::Finished { reason: FinishReason::Stop, .. }), "{last:?}");
        let (text, last) = run(&engine, Generate { max_tokens: Some(2), ..request() });
        assert_eq!(text, "one two ");
        assert!(matches!(last, AnswerEvent::Finished { reason: FinishReason::Length, .. }), "{last:?}");
        let (text, _) = run(&engine, Generate { stop: vec![" three".into()], ..request() });
        assert_eq!(text, "one two");
    }

    #[test]
    fn a_dropped_receiver_is_counted() {
        let engine = FakeEngine::new(Script::Never);
        let events = engine.generate(request()).unwrap();
        assert_eq!(engine.running(), 1);
        drop(events);
        let start = Instant::now();
        while engine.cancelled() == 0 && start.elapsed() < Duration::from_secs(5) {
            thread::sleep(TICK);
        }
        assert_eq!((engine.cancelled(), engine.running()), (1, 0));
    }

    #[test]
    fn a_full_engine_refuses_and_a_stopped_one_fails_what_runs() {
        let engine = FakeEngine::new(Script::Never).with_limit(1);
        let mut first = engine.generate(request()).unwrap();
        assert_eq!(engine.generate(request()).unwrap_err(), EngineError::Overloaded { waiting: 1 });
        assert!(matches!(first.blocking_recv(), Some(AnswerEvent::Started { .. })));
        engine.stop(Duration::ZERO);
        assert_eq!(engine.generate(request()).unwrap_err(), EngineError::Stopped);
        assert_eq!(first.blocking_recv(), Some(AnswerEvent::Failed(EngineError::Stopped)));
    }

    #[test]
    fn a_schema_is_answered_with_an_instance() {
        let schema = serde_json::json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]});
        let engine = FakeEngine::new(Script::Echo);
        let (text, _) =
            run(&engine, Generate { constraint: Some(Constraint::JsonSchema(schema)), ..request() });
        assert_eq!(text, r#"{"ok":false}"#);
    }
}
