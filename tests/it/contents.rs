//! Spokes whose answers identify them. A scripted engine says which generation it ran with. Under
//! llama.cpp each content has a distinct answer, determined by an engine that has nothing else
//! loaded.

use std::collections::HashSet;
use std::time::Duration;

use bespoke::adapter::{Generation, Kind};
use bespoke::config::ModelSettings;
use bespoke::engine::{
    AnswerEvent, Engine, EngineState, Generate, LlamaEngine, LlamaOptions, LoadSpoke, ScaledSpoke, Segment,
    SpokeChange, SpokeSet,
};
use serde_json::{Value, json};

use crate::dropped::{generation, lora, strong_felix, strong_lora};
use crate::program::MODEL;

/// The engine below the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// A scripted engine that pauses this many milliseconds before each word.
    Scripted(u32),
    /// llama.cpp with the shipped model.
    Llama,
}

impl Backend {
    /// Environment variables for the real binary.
    pub fn environment(self) -> Vec<(&'static str, String)> {
        match self {
            Self::Scripted(pause) => vec![("BESPOKE_FAKE_ENGINE", pause.to_string())],
            Self::Llama => Vec::new(),
        }
    }
}

/// The question of each request.
const QUESTION: &str = "Say it.";
/// Tokens per answer.
const TOKENS: u32 = 6;
/// Minimum margin of each token over the next best (difference of logarithms). A different batch
/// size may move a probability by a hundredth, and must not change an answer.
const MARGIN: f32 = 0.1;

/// The request whose answer identifies the content.
pub fn question(model: &str, stream: bool) -> Value {
    json!({
        "model": model, "stream": stream, "max_tokens": TOKENS, "temperature": 0,
        "messages": [{"role": "user", "content": QUESTION}]
    })
}

/// A spoke and its answer.
#[derive(Debug, Clone)]
pub struct Content {
    pub bytes: Vec<u8>,
    pub generation: Generation,
    pub says: String,
}

/// Creates contents with distinct answers, LoRAs and Felix spokes by turns.
pub struct Contents {
    engine: Option<LlamaEngine>,
    said: HashSet<String>,
    seed: u32,
    /// Number of seeds that were skipped.
    pub unfit: u32,
}

impl Contents {
    pub fn new(backend: Backend) -> Self {
        let engine = (backend == Backend::Llama).then(|| {
            let engine = LlamaEngine::start_with(
                ModelSettings {
                    context: Some(256),
                    lanes: 1,
                    queue: 4,
                    queue_tokens: u64::MAX,
                    threads: 1,
                    draft: false,
                    ..ModelSettings::of(MODEL.into())
                },
                LlamaOptions { force: false, ..LlamaOptions::default() },
            );
            let mut health = engine.health();
            while matches!(health.borrow_and_update().state, EngineState::Loading) {
                std::thread::sleep(Duration::from_millis(5));
            }
            engine
        });
        // No content may answer as the post does.
        let said = engine.iter().filter_map(|engine| Some(answer(engine, SpokeSet::new())?.0)).collect();
        Self { engine, said, seed: 0, unfit: 0 }
    }

    /// The next content.
    pub fn next(&mut self) -> Content {
        let Some(engine) = &self.engine else {
            self.seed += 1;
            let bytes = lora(self.seed);
            let generation = generation(&bytes);
            return Content { bytes, generation, says: format!("{}*1", generation.short()) };
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spoke.gguf");
        loop {
            self.seed += 1;
            let (kind, bytes) = if self.said.len().is_multiple_of(2) {
                (Kind::Lora, strong_lora(self.seed))
            } else {
                (Kind::Felix, strong_felix(self.seed))
            };
            let generation = generation(&bytes);
            bespoke::atomic_file::write(&path, &bytes).unwrap();
            let spoke = LoadSpoke { generation, kind, path: path.clone(), name: "test".to_owned() };
            engine.spoke(SpokeChange::Load(spoke)).unwrap().blocking_recv().unwrap().unwrap();
            let (says, margin) =
                answer(engine, vec![ScaledSpoke { generation, scale: 1.0 }]).unwrap_or_default();
            engine.spoke(SpokeChange::Unload(generation)).unwrap().blocking_recv().unwrap().unwrap();
            if margin >= MARGIN && !says.trim().is_empty() && self.said.insert(says.clone()) {
                return Content { bytes, generation, says };
            }
            self.unfit += 1;
            let fit = self.said.len() as u32;
            assert!(
                self.unfit < 100 * (fit + 1),
                "{fit} strong spokes have answers of their own, {} don't",
                self.unfit
            );
        }
    }
}

/// An engine's answer and the smallest margin of its tokens; `None` if it computes no finite
/// numbers.
fn answer(engine: &LlamaEngine, spokes: SpokeSet) -> Option<(String, f32)> {
    let prompt = vec![
        Segment::markup("<|user|>"),
        Segment::plain(QUESTION),
        Segment::markup("<|end|>"),
        Segment::markup("<|assistant|>"),
    ];
    let request = Generate {
        max_tokens: Some(TOKENS),
        report: Some(2),
        spokes,
        cache: false,
        draft: false,
        ..Generate::new("contents", prompt)
    };
    let mut events = engine.generate(request).unwrap();
    let (mut text, mut margin) = (String::new(), f32::INFINITY);
    loop {
        match events.blocking_recv().expect("a last event comes") {
            AnswerEvent::Text(more) => text += &more,
            AnswerEvent::Tokens(tokens) => {
                let least = tokens.iter().map(|token| token.top[0].logprob - token.top[1].logprob);
                margin = least.fold(margin, f32::min);
            }
            AnswerEvent::Finished { .. } => return Some((text, margin)),
            AnswerEvent::Failed(_) => return None,
            AnswerEvent::Started { .. } | AnswerEvent::Read(_) | AnswerEvent::Closed(_) => {}
        }
    }
}
