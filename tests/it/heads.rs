//! Tests of models whose state can't be truncated: the common heads of prompts are kept, and
//! answers equal those of an engine without a cache.

use std::path::Path;
use std::time::Duration;

use bespoke::config::ModelSettings;
use bespoke::engine::{AnswerEvent, Engine, EngineState, Generate, LlamaEngine, Segment, TokenReport, Usage};
use bespoke::model::gguf_file::Precision;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::families::export;

fn serve(path: &Path, lanes: u32) -> LlamaEngine {
    let engine = LlamaEngine::start(ModelSettings {
        lanes,
        queue: 100,
        queue_tokens: u64::MAX,
        threads: 1,
        ..ModelSettings::of(path.to_owned())
    });
    let mut health = engine.health();
    while matches!(health.borrow_and_update().state, EngineState::Loading) {
        std::thread::sleep(Duration::from_millis(5));
    }
    engine
}

/// A system message, a part that all events share, and an event.
fn request(system: u32, event: u32) -> Generate {
    let ids =
        |from: u32, count: u32, salt: u32| (from..from + count).map(move |i| 10 + (i * 31 + salt * 17) % 250);
    let mut all = ids(0, 30, 99).collect::<Vec<_>>();
    all.extend(ids(0, 20, event));
    let prompt = vec![
        Segment { markup: true, ..Segment::ids(ids(0, 40, system).collect()) },
        Segment::ids(all),
        Segment { markup: true, ..Segment::ids(vec![7, 8]) },
    ];
    Generate { max_tokens: Some(16), report: Some(0), ignore_end: true, ..Generate::new("heads", prompt) }
}

type Tokens = Vec<(u32, f32)>;

fn answer(mut events: UnboundedReceiver<AnswerEvent>) -> (Tokens, Usage) {
    let mut tokens = Vec::new();
    loop {
        match events.blocking_recv().expect("a last event comes") {
            AnswerEvent::Tokens(more) => {
                tokens.extend(more.iter().map(|TokenReport { token, .. }| (token.id, token.logprob)));
            }
            AnswerEvent::Finished { usage, .. } => return (tokens, usage),
            AnswerEvent::Failed(error) => panic!("{error}"),
            AnswerEvent::Started { .. }
            | AnswerEvent::Read(_)
            | AnswerEvent::Text(_)
            | AnswerEvent::Closed(_) => {}
        }
    }
}

fn assert_same(found: &Tokens, expected: &Tokens, case: &str) {
    let same = |(a, b): (&(u32, f32), &(u32, f32))| a.0 == b.0 && (a.1 - b.1).abs() < 1e-3;
    assert_eq!(found.len(), expected.len(), "{case}");
    assert!(found.iter().zip(expected).all(same), "{case}: {found:?} for {expected:?}");
}

/// The answers of engines with empty caches.
fn fresh(path: &Path, requests: &[(u32, u32)]) -> Vec<Tokens> {
    let alone =
        |&(system, event): &(u32, u32)| answer(serve(path, 1).generate(request(system, event)).unwrap()).0;
    let all: Vec<Tokens> = requests.iter().map(alone).collect();
    for (at, tokens) in all.iter().enumerate() {
        assert!(
            !all[..at].contains(tokens),
            "two requests are answered alike: the test could not tell them apart"
        );
    }
    all
}

#[test]
fn heads_are_kept_for_those_that_begin_with_them() {
    let (_folder, path) = export("qwen35_usual", Precision::F32);
    let requests = [(1, 1), (1, 2), (1, 3), (2, 4), (1, 5), (2, 6)];
    let expected = fresh(&path, &requests);
    let engine = serve(&path, 1);
    let mut known = Vec::new();
    for (&(system, event), expected) in requests.iter().zip(&expected) {
        let (tokens, usage) = answer(engine.generate(request(system, event)).unwrap());
        assert_same(&tokens, expected, &format!("{system}, {event}, {} cached", usage.cached_tokens));
        known.push(usage.cached_tokens);
    }
    // The system message is kept from the first request on, the shared part of events from the
    // second.
    assert_eq!(known, [0, 40, 70, 0, 70, 40]);
    // The next prompt of a conversation begins with the previous answer.
    let (tokens, _) = answer(engine.generate(request(1, 9)).unwrap());
    let mut next = request(1, 9);
    let said = tokens[..15].iter().map(|(id, _)| *id).collect();
    next.prompt.extend([Segment::ids(said), Segment::ids(vec![9, 9])]);
    let again = answer(serve(&path, 1).generate(next.clone()).unwrap()).0;
    let (tokens, usage) = answer(engine.generate(next).unwrap());
    assert_same(&tokens, &again, "a conversation that goes on");
    assert_eq!(usage.cached_tokens, 92 + 15);
}

#[test]
fn requests_at_once_wait_for_the_one_that_computes_what_they_begin_with() {
    let (_folder, path) = export("qwen35_usual", Precision::F32);
    let requests: Vec<(u32, u32)> = (1..=8).map(|event| (1 + event % 2, event)).collect();
    let expected = fresh(&path, &requests);
    for round in 0..2 {
        let engine = serve(&path, 4);
        let ask = |&(system, event): &(u32, u32)| engine.generate(request(system, event)).unwrap();
        let all: Vec<_> = requests.iter().map(ask).collect();
        let mut known = 0;
        for ((events, expected), request) in all.into_iter().zip(&expected).zip(&requests) {
            let (tokens, usage) = answer(events);
            assert_same(&tokens, expected, &format!("{request:?}, {} cached", usage.cached_tokens));
            known += usage.cached_tokens;
        }
        assert!(known >= 4 * 40, "round {round}: only {known} tokens were known");
    }
}
