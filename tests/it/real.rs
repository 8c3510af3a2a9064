//! A daemon with llama.cpp and the shipped model, whose engine is accessible to the test.

use std::path::Path;
use std::sync::Arc;

use bespoke::config::{ModelSettings, Settings};
use bespoke::engine::{Engine, EngineState, FakeEngine, LaneState, LlamaEngine, Query, Reply, Script};

use crate::daemon::{Daemon, wait_until};
use crate::program::MODEL;

/// A daemon and its engine.
pub struct Real {
    pub engine: Arc<LlamaEngine>,
    pub daemon: Daemon,
}

impl Real {
    /// A daemon with two lanes on any machine; `None` (with a message) if the model is missing.
    pub fn serve(
        engine: impl FnOnce(&mut ModelSettings),
        daemon: impl FnOnce(&mut Settings),
    ) -> Option<Self> {
        if !Path::new(MODEL).exists() {
            eprintln!("skipped: {MODEL} is not there");
            return None;
        }
        let mut settings = ModelSettings {
            context: Some(2048),
            lanes: 2,
            queue: 64,
            queue_tokens: u64::MAX,
            // Threads of several engines that spin for each other would slow down all tests.
            threads: 1,
            cached_sequences: 4,
            ..ModelSettings::of(MODEL.into())
        };
        engine(&mut settings);
        let engine = Arc::new(LlamaEngine::start(settings));
        wait_until("the model is loaded", || matches!(engine.health().borrow().state, EngineState::Ready(_)));
        let served: Arc<dyn Engine> = Arc::<LlamaEngine>::clone(&engine);
        let daemon = Daemon::serving(served, FakeEngine::new(Script::Echo), daemon);
        Some(Self { engine, daemon })
    }

    /// State of the lanes.
    pub fn lanes(&self) -> Vec<LaneState> {
        match self.engine.query(Query::Lanes).unwrap().blocking_recv().unwrap().unwrap() {
            Reply::Lanes(lanes) => lanes,
            other => panic!("{other:?}"),
        }
    }

    /// Number of lanes that answer a request.
    pub fn busy(&self) -> usize {
        self.lanes().iter().filter(|lane| lane.request.is_some()).count()
    }
}
