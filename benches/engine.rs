//! Serving speed of the engine without HTTP, on the shipped model: prompts, free and constrained answers, several lanes.
//! Run with `cargo bench --bench engine`.

use std::path::Path;

use bespoke::config::ModelSettings;
use bespoke::engine::{
    AnswerEvent, Constraint, Engine, EngineState, Generate, LlamaEngine, LlamaOptions, Segment, Usage,
};
use bespoke::task::prompt::{Wording, messages};
use bespoke::task::schema::add_limits;
use bespoke::task::{self, encoding_schema};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokio::sync::mpsc::UnboundedReceiver;

const EVENT: &str = "Deploy of billing-api 2.4.1 to eu-west-3 failed at 14:05: migration 0042_add_index timed out after \
    30 s on host db-7, so Ana Bell rolled back to 2.4.0 and opened #1187. Retries 1 to 3 gave the same error E-5512.";

fn start(lanes: u32) -> LlamaEngine {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/bespoke-tiny.gguf");
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    let engine = LlamaEngine::start_with(
        ModelSettings { lanes, queue: lanes, queue_tokens: u64::MAX, threads, ..ModelSettings::of(path) },
        LlamaOptions { own_memory: true, ..LlamaOptions::default() },
    );
    let mut health = engine.health();
    loop {
        match &health.borrow_and_update().state {
            EngineState::Ready(_) => break,
            EngineState::Loading => {}
            other => panic!("{other:?}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    engine
}

fn encoding(event: &str, max_tokens: u32, constrained: bool) -> Generate {
    let mut prompt = Vec::new();
    for message in messages(&task::Event::new("git", "commit", event), &Wording::standard()) {
        prompt.extend([
            Segment::markup(format!("<|{}|>", message.role)),
            Segment::plain(message.content),
            Segment::markup("<|end|>"),
        ]);
    }
    prompt.push(Segment::markup("<|assistant|>"));
    let constraint = constrained.then(|| {
        let mut schema = encoding_schema();
        add_limits(&mut schema);
        Constraint::JsonSchema(schema)
    });
    Generate { max_tokens: Some(max_tokens), constraint, ..Generate::new("bench", prompt) }
}

fn end(mut events: UnboundedReceiver<AnswerEvent>) -> Usage {
    loop {
        match events.blocking_recv().expect("a last event comes") {
            AnswerEvent::Finished { usage, .. } => return usage,
            AnswerEvent::Failed(error) => panic!("{error}"),
            AnswerEvent::Started { .. }
            | AnswerEvent::Read(_)
            | AnswerEvent::Tokens(_)
            | AnswerEvent::Text(_)
            | AnswerEvent::Closed(_) => {}
        }
    }
}

fn prompts(criterion: &mut Criterion) {
    let engine = start(1);
    let long = EVENT.repeat(4);
    // The part that differs comes first, or the cache would have most of the prompt.
    let request =
        |n: u32| Generate { prompt: vec![Segment::plain(format!("{n} {long}"))], ..encoding("", 1, false) };
    let tokens = end(engine.generate(request(0)).unwrap()).prompt_tokens;
    let mut group = criterion.benchmark_group("prompt");
    group.sample_size(20).throughput(Throughput::Elements(u64::from(tokens)));
    let mut n = 100;
    group.bench_function(BenchmarkId::from_parameter(format!("{tokens} tokens")), |bencher| {
        bencher.iter(|| {
            n += 1;
            end(engine.generate(request(n)).unwrap())
        });
    });
    group.finish();
}

fn answers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encoding");
    group.sample_size(10);
    for lanes in [1, 4] {
        let engine = start(lanes);
        for constrained in [false, true] {
            let run = || {
                let all: Vec<_> = (0..lanes)
                    .map(|lane| {
                        engine.generate(encoding(&format!("{EVENT} Lane {lane}."), 700, constrained)).unwrap()
                    })
                    .collect();
                all.into_iter().map(|events| u64::from(end(events).completion_tokens)).sum::<u64>()
            };
            group.throughput(Throughput::Elements(run()));
            let kind = if constrained { "with schema" } else { "free" };
            group.bench_function(format!("{kind}, {lanes} at once"), |bencher| bencher.iter(run));
        }
    }
    group.finish();
}

criterion_group!(benches, prompts, answers);
criterion_main!(benches);
