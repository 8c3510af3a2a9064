//! Tests that optimisations don't change answers: lanes, shared prefixes, forced tokens and
//! drafting on, compared with all of them off, on the shipped model.

use std::path::Path;

use bespoke::config::ModelSettings;
use bespoke::engine::{
    AnswerEvent, Constraint, Engine, EngineState, FinishReason, Generate, LlamaEngine, LlamaOptions,
    Sampling, Segment, TokenReport, Usage,
};
use bespoke::task::generator::{Generator, Split};
use bespoke::task::prompt::{Wording, messages};
use bespoke::task::schema::add_limits;
use bespoke::task::{self, encoding_schema};
use tokio::sync::mpsc::UnboundedReceiver;

/// Number of encodings to compare. `BESPOKE_EXACTNESS=200` gives the figures in
/// `docs/benchmarks.md`.
fn encodings() -> usize {
    std::env::var("BESPOKE_EXACTNESS").map_or(12, |text| text.parse().expect("BESPOKE_EXACTNESS is a number"))
}

fn engine(lanes: u32, fast: bool) -> LlamaEngine {
    let engine = LlamaEngine::start_with(
        ModelSettings {
            lanes,
            queue: 1_000,
            queue_tokens: u64::MAX,
            // One thread: two would wait for each other while another program runs.
            threads: 1,
            cached_sequences: if fast { 2 } else { 0 },
            draft: fast,
            ..ModelSettings::of(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/bespoke-tiny.gguf"))
        },
        LlamaOptions { force: fast, ..LlamaOptions::default() },
    );
    let mut health = engine.health();
    loop {
        match &health.borrow_and_update().state {
            EngineState::Ready(_) => return engine,
            EngineState::Loading => {}
            other => panic!("{other:?}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn request(event: &task::Event, cache: bool) -> Generate {
    let mut prompt = Vec::new();
    for message in messages(event, &Wording::standard()) {
        prompt.extend([
            Segment::markup(format!("<|{}|>", message.role)),
            Segment::plain(message.content),
            Segment::markup("<|end|>"),
        ]);
    }
    prompt.push(Segment::markup("<|assistant|>"));
    let mut schema = encoding_schema();
    add_limits(&mut schema);
    Generate {
        max_tokens: Some(700),
        constraint: Some(Constraint::JsonSchema(schema)),
        report: Some(2),
        cache,
        ..Generate::new("exact", prompt)
    }
}

struct Answer {
    text: String,
    tokens: Vec<TokenReport>,
    reason: FinishReason,
    usage: Usage,
}

fn collect(mut events: UnboundedReceiver<AnswerEvent>) -> Answer {
    let (mut text, mut tokens) = (String::new(), Vec::new());
    loop {
        match events.blocking_recv().expect("a last event comes") {
            AnswerEvent::Started { .. } | AnswerEvent::Read(_) | AnswerEvent::Closed(_) => {}
            AnswerEvent::Tokens(more) => tokens.extend(more),
            AnswerEvent::Text(more) => text += &more,
            AnswerEvent::Finished { reason, usage } => return Answer { text, tokens, reason, usage },
            AnswerEvent::Failed(error) => panic!("{error}"),
        }
    }
}

fn ids(answer: &Answer) -> Vec<u32> {
    answer.tokens.iter().map(|report| report.token.id).collect()
}

#[test]
fn fast_answers_are_the_plain_ones_token_for_token() {
    let generator = Generator::new(41, Split::Eval);
    let events: Vec<task::Event> = (0..encodings() as u64).map(|index| generator.row(index).event).collect();
    let plain = engine(1, false);
    let plain: Vec<Answer> =
        events.iter().map(|event| collect(plain.generate(request(event, false)).unwrap())).collect();
    let fast = engine(4, true);
    let running: Vec<_> = events.iter().map(|event| fast.generate(request(event, true)).unwrap()).collect();
    let fast: Vec<Answer> = running.into_iter().map(collect).collect();

    let (mut equal, mut near) = (0, Vec::new());
    for (index, (plain, fast)) in plain.iter().zip(&fast).enumerate() {
        let (a, b) = (ids(plain), ids(fast));
        if a == b {
            assert_eq!((&plain.text, plain.reason), (&fast.text, fast.reason));
            equal += 1;
            continue;
        }
        // llama.cpp sums in a different order in a batch of another size, so a tie may be decided
        // differently. Anything but a tie is a bug.
        let at = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
        let margin = plain.tokens.get(at).map_or(f32::INFINITY, |report| {
            let other = fast.tokens.get(at).map_or(f32::NEG_INFINITY, |report| report.token.logprob);
            (report.token.logprob - other).abs()
        });
        near.push((index, at, margin));
    }
    let total = |of: fn(&Usage) -> u32| fast.iter().map(|answer| u64::from(of(&answer.usage))).sum::<u64>();
    let (all, forced) = (total(|u| u.completion_tokens), total(|u| u.forced_tokens));
    let (drafted, accepted) = (total(|u| u.drafted_tokens), total(|u| u.accepted_tokens));
    let cached = total(|u| u.cached_tokens);
    println!(
        "{equal} of {} equal; {all} tokens, {forced} forced, {accepted} of {drafted} drafted right, {cached} prompt tokens shared; \
         others (encoding, token, difference of log probabilities): {near:?}",
        events.len()
    );
    assert!(near.iter().all(|&(_, _, margin)| margin < 0.05), "{near:?}");
    assert!(near.len() * 10 <= events.len(), "{near:?}");
    assert!(forced > 0 && accepted > 0 && cached > 0, "nothing was fast");
    assert!(plain.iter().all(|answer| answer.usage.drafted_tokens == 0));
    // The closing of an answer that ran out of tokens is dictated in any configuration.
    let whole = plain.iter().filter(|answer| answer.reason == FinishReason::Stop);
    assert!(whole.map(|answer| answer.usage.forced_tokens).all(|forced| forced == 0));
}

#[test]
fn drafting_changes_no_sampled_answer() {
    let event = task::Event::new(
        "git",
        "commit",
        "Retry uploads after 503: uploader/retry.rs waits 2, 4 and 8 s (#418)",
    );
    let engine = engine(1, true);
    let ask = |draft, seed| {
        let sampling = Sampling { temperature: 0.7, top_p: 0.95, seed: Some(seed), ..Sampling::GREEDY };
        collect(engine.generate(Generate { sampling, draft, ..request(&event, true) }).unwrap())
    };
    let mut accepted = 0;
    for seed in 0..6 {
        let (with, without) = (ask(true, seed), ask(false, seed));
        assert_eq!(with.text, without.text, "seed {seed}");
        assert_eq!(without.usage.drafted_tokens, 0);
        accepted += with.usage.accepted_tokens;
    }
    assert!(accepted > 0);
}
