//! Tests that keys and values are only reused with the spokes they were computed with: whatever ran
//! before or runs at the same time, an answer equals that of a fresh engine. llama-server reuses
//! the cache of another adapter in each of the first three cases here.

use std::path::Path;

use bespoke::adapter::{Generation, Kind, Post, synthetic_model};
use bespoke::atomic_file;
use bespoke::config::ModelSettings;
use bespoke::engine::{
    AnswerEvent, Engine, EngineError, EngineState, Generate, LlamaEngine, LoadSpoke, LoadedSpoke,
    ScaledSpoke, Segment, SpokeChange, SpokeSet,
};
use bespoke::spokes::probe::{Verdict, trial};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::dropped::{felix, generation, lora};
use crate::program::MODEL;

/// A test LoRA has small numbers; this scale changes every answer.
const STRONG: f32 = 4000.0;
/// A test Felix spoke has small numbers, too, and two of them are multiplied.
const STRONGER: f32 = 20_000.0;

fn engine(lanes: u32) -> LlamaEngine {
    let engine = LlamaEngine::start(ModelSettings {
        lanes,
        queue: 1_000,
        queue_tokens: u64::MAX,
        threads: 1,
        cached_sequences: 2,
        ..ModelSettings::of(MODEL.into())
    });
    let mut health = engine.health();
    while matches!(health.borrow_and_update().state, EngineState::Loading) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    engine
}

fn load(
    engine: &LlamaEngine,
    generation: Generation,
    kind: Kind,
    path: &Path,
) -> Result<LoadedSpoke, EngineError> {
    let spoke = LoadSpoke { generation, kind, path: path.to_owned(), name: "test".to_owned() };
    engine.spoke(SpokeChange::Load(spoke)).unwrap().blocking_recv().unwrap()
}

fn ask(engine: &LlamaEngine, spokes: &SpokeSet) -> UnboundedReceiver<AnswerEvent> {
    let event = "Retry uploads after 503: uploader/retry.rs waits 2, 4 and 8 s (#418). ".repeat(6);
    let prompt = vec![
        Segment::markup("<|user|>"),
        Segment::plain(event),
        Segment::markup("<|end|>"),
        Segment::markup("<|assistant|>"),
    ];
    let request = Generate {
        max_tokens: Some(24),
        report: Some(3),
        spokes: spokes.clone(),
        // Whether a draft is tried depends on time, and with it the size of a batch.
        draft: false,
        ..Generate::new("staleness", prompt)
    };
    engine.generate(request).unwrap()
}

/// Each token's id and log probability, which depends on the logits of the whole vocabulary; and
/// the number of prompt tokens taken from the cache.
fn answer(mut events: UnboundedReceiver<AnswerEvent>) -> Result<(Vec<(u32, f32)>, u32), EngineError> {
    let mut tokens = Vec::new();
    loop {
        match events.blocking_recv().expect("a last event comes") {
            AnswerEvent::Tokens(more) => tokens.extend(more.iter().map(|t| (t.token.id, t.token.logprob))),
            AnswerEvent::Finished { usage, .. } => return Ok((tokens, usage.cached_tokens)),
            AnswerEvent::Failed(error) => return Err(error),
            AnswerEvent::Started { .. }
            | AnswerEvent::Read(_)
            | AnswerEvent::Text(_)
            | AnswerEvent::Closed(_) => {}
        }
    }
}

/// llama.cpp multiplies LoRAs, and sums in another order for a batch of another size.
const ROUNDING: f32 = 0.01;

fn same(a: &[(u32, f32)], b: &[(u32, f32)]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < ROUNDING)
}

#[test]
fn no_answer_depends_on_what_another_spoke_has_computed() {
    let folder = tempfile::tempdir().unwrap();
    let contents =
        [(Kind::Lora, lora(1)), (Kind::Lora, lora(2)), (Kind::Felix, felix(3)), (Kind::Felix, felix(4))];
    let files = contents.map(|(kind, content)| {
        let generation = generation(&content);
        let path = folder.path().join(format!("{}.gguf", generation.short()));
        atomic_file::write(&path, &content).unwrap();
        (generation, kind, path)
    });
    let [a, b, c, d] = files.each_ref().map(|(generation, ..)| *generation);
    let spoke = |generation, scale| ScaledSpoke { generation, scale };
    let two = |one, other| {
        let mut both = vec![one, other];
        both.sort_by_key(|spoke: &ScaledSpoke| spoke.generation);
        both
    };
    let sets: [SpokeSet; 8] = [
        vec![],
        vec![spoke(a, STRONG)],
        vec![spoke(b, STRONG)],
        vec![spoke(a, STRONG / 2.0)],
        two(spoke(a, STRONG), spoke(b, STRONG)),
        vec![spoke(c, STRONGER)],
        vec![spoke(d, STRONGER)],
        two(spoke(a, STRONG), spoke(c, STRONGER)),
    ];
    let loaded = |lanes| {
        let engine = engine(lanes);
        for (generation, kind, path) in &files {
            assert!(load(&engine, *generation, *kind, path).unwrap().resident_bytes > 0);
        }
        engine
    };

    let fresh: Vec<_> = sets.iter().map(|set| answer(ask(&loaded(1), set)).unwrap().0).collect();
    for (i, a) in fresh.iter().enumerate() {
        for (j, b) in fresh.iter().enumerate().skip(i + 1) {
            assert!(!same(a, b), "sets {i} and {j} answer alike: the test could not tell them apart");
        }
    }

    // One after another on one lane and its cached sequences: every set after every other one and
    // after itself.
    let engine = loaded(1);
    let mut known = 0;
    for first in 0..sets.len() {
        for second in 0..sets.len() {
            for set in [first, second] {
                let (tokens, cached) = answer(ask(&engine, &sets[set])).unwrap();
                assert!(
                    same(&tokens, &fresh[set]),
                    "set {set} in {first}, {second}, {cached} cached: {tokens:?} for {:?}",
                    fresh[set]
                );
                known += cached;
            }
        }
    }
    assert!(known > 0, "nothing was taken from the cache, so nothing could be stale");

    // All at once, several times, on fewer lanes than requests.
    let engine = loaded(4);
    let running: Vec<_> = (0..24).map(|i| (i % 8, ask(&engine, &sets[i % 8]))).collect();
    for (set, events) in running {
        let (tokens, _) = answer(events).unwrap();
        assert!(same(&tokens, &fresh[set]), "set {set} with others: {tokens:?}");
    }

    // Freed and loaded again: its cached keys and values are still valid, and only for it.
    let unload = |generation| engine.spoke(SpokeChange::Unload(generation)).unwrap().blocking_recv().unwrap();
    assert!(unload(a).unwrap().resident_bytes > 0);
    let refused = answer(ask(&engine, &sets[1])).unwrap_err();
    assert_eq!(refused, EngineError::SpokeNotLoaded { generation: a });
    for set in [0, 2, 5] {
        assert!(
            same(&answer(ask(&engine, &sets[set])).unwrap().0, &fresh[set]),
            "set {set} without the other"
        );
    }
    load(&engine, a, files[0].1, &files[0].2).unwrap();
    for set in [1, 0, 4, 7] {
        assert!(same(&answer(ask(&engine, &sets[set])).unwrap().0, &fresh[set]), "set {set} after a reload");
    }

    // Unloaded during an answer: the answer is completed.
    for (set, generation) in [(1, a), (5, c)] {
        let running = ask(&engine, &sets[set]);
        let freed = engine.spoke(SpokeChange::Unload(generation)).unwrap();
        assert!(same(&answer(running).unwrap().0, &fresh[set]));
        assert!(freed.blocking_recv().unwrap().unwrap().resident_bytes > 0);
    }

    // Two at once are refused, because their order is not defined.
    load(&engine, c, files[2].1, &files[2].2).unwrap();
    let refused = answer(ask(&engine, &two(spoke(c, 1.0), spoke(d, 1.0)))).unwrap_err();
    assert!(matches!(refused, EngineError::Spoke(_)), "{refused:?}");

    // Unlike LoRAs, they don't take turns.
    let engine = loaded(4);
    let running: Vec<_> = [0, 5, 6].map(|set| (set, ask(&engine, &sets[set]))).into();
    for (set, events) in running {
        assert!(same(&answer(events).unwrap().0, &fresh[set]), "set {set} in one batch with others");
    }
    let mut health = engine.health();
    while health.borrow_and_update().running > 0 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let totals = health.borrow().totals;
    assert!(2 * totals.busy_lanes > 3 * totals.decodes, "{totals:?}");
}

#[test]
fn a_probe_finds_what_a_felix_spoke_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("felix.gguf");
    let spoke =
        synthetic_model::write(Kind::Felix, 64, 5, &Post::open(Path::new(MODEL)).unwrap(), &path).unwrap();
    let generation = generation(&std::fs::read(&path).unwrap());
    let load = LoadSpoke { generation, kind: Kind::Felix, path, name: "felix".to_owned() };
    let finding = trial(&engine(1), load).unwrap();
    assert_eq!((finding.verdict, finding.finite), (Verdict::Differs, true), "{finding:?}");
    assert_eq!(finding.resident_bytes, spoke.resident_bytes);
}
