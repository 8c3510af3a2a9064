//! Tests of the engine with a random model: batching, caches, cancelling, closing, embeddings, and
//! files that are no model.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bespoke::config::ModelSettings;
use bespoke::engine::{
    AnswerEvent, Constraint, Embeddings, Engine, EngineError, EngineState, FinishReason, Generate,
    LlamaEngine, Query, Reply, Sampling, Segment, Usage,
};
use bespoke::model::{gguf_file, hugging_face};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

pub const CONTEXT: u32 = 256;

/// A random model of 320 tokens. Its file lives as long as the folder.
pub struct Served {
    pub engine: LlamaEngine,
    folder: tempfile::TempDir,
}

impl Served {
    /// Path of the model's file.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("random.gguf")
    }
}

fn settings(path: &Path) -> ModelSettings {
    ModelSettings {
        lanes: 4,
        queue: 2,
        queue_tokens: u64::MAX,
        threads: 1,
        cached_sequences: 4,
        ..ModelSettings::of(path.to_owned())
    }
}

pub fn serve(change: impl FnOnce(&mut ModelSettings)) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("random.gguf");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf/qwen3_tied");
    let model = hugging_face::load(&source).unwrap();
    let tokenizer = source.join("tokenizer.json");
    gguf_file::export(&model, "random", &tokenizer, &path, gguf_file::Precision::F32).unwrap();
    let mut settings = settings(&path);
    change(&mut settings);
    let engine = LlamaEngine::start(settings);
    let state = settled(&engine);
    assert!(matches!(&state, EngineState::Ready(info) if info.n_ctx_train == CONTEXT), "{state:?}");
    Served { engine, folder }
}

/// The state after loading.
fn settled(engine: &LlamaEngine) -> EngineState {
    let started = Instant::now();
    loop {
        let state = engine.health().borrow().state.clone();
        if !matches!(state, EngineState::Loading) {
            return state;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "still loading");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn request(text: &str) -> Generate {
    let prompt =
        vec![Segment::markup("<|user|>"), Segment::plain(text), Segment::markup("<|end|><|assistant|>")];
    Generate { max_tokens: Some(40), ..Generate::new("test", prompt) }
}

#[derive(Debug, PartialEq)]
pub struct Answer {
    text: String,
    reason: FinishReason,
    usage: Usage,
}

fn collect(mut events: UnboundedReceiver<AnswerEvent>) -> Result<Answer, EngineError> {
    let mut text = String::new();
    loop {
        match events.blocking_recv().expect("a last event comes") {
            AnswerEvent::Started { .. }
            | AnswerEvent::Read(_)
            | AnswerEvent::Tokens(_)
            | AnswerEvent::Closed(_) => {}
            AnswerEvent::Text(more) => text += &more,
            AnswerEvent::Finished { reason, usage } => return Ok(Answer { text, reason, usage }),
            AnswerEvent::Failed(error) => return Err(error),
        }
    }
}

pub fn ask(engine: &LlamaEngine, request: Generate) -> Result<Answer, EngineError> {
    collect(engine.generate(request)?)
}

#[test]
fn a_greedy_answer_is_the_same_alone_in_a_batch_and_from_the_cache() {
    let Served { engine, .. } = &serve(|_| {});
    let texts = ["the build failed", "we chose sqlite", "17 tests passed", "a recipe for bread"];
    let alone: Vec<_> = texts.iter().map(|text| ask(engine, request(text)).unwrap()).collect();
    assert!(alone.iter().all(|answer| answer.usage.completion_tokens > 0));
    let together: Vec<_> = texts.iter().map(|text| engine.generate(request(text)).unwrap()).collect();
    for (events, alone) in together.into_iter().zip(&alone) {
        assert_eq!(collect(events).unwrap().text, alone.text);
    }
    let again = ask(engine, request(texts[0])).unwrap();
    assert_eq!(again.text, alone[0].text);
    assert_eq!(
        again.usage.cached_tokens,
        again.usage.prompt_tokens - 1,
        "all but the token whose logits are needed"
    );
    assert_ne!(alone[0].text, alone[1].text, "the prompt matters");
}

#[test]
fn the_same_seed_gives_the_same_answer_in_any_company() {
    let Served { engine, .. } = &serve(|_| {});
    let seeded = |seed| {
        let sampling = Sampling { temperature: 1.0, top_p: 0.95, seed: Some(seed), ..Sampling::GREEDY };
        Generate { sampling, ..request("roll the dice") }
    };
    let alone = ask(engine, seeded(5)).unwrap().text;
    let company: Vec<_> = [5, 6, 7].map(|seed| engine.generate(seeded(seed)).unwrap()).into();
    let texts: Vec<_> = company.into_iter().map(|events| collect(events).unwrap().text).collect();
    assert_eq!(texts[0], alone);
    assert_ne!(texts[1], alone);
}

#[test]
fn limits_and_stop_texts_end_an_answer() {
    let Served { engine, .. } = &serve(|_| {});
    let whole = ask(engine, request("say much")).unwrap();
    let short = ask(engine, Generate { max_tokens: Some(3), ..request("say much") }).unwrap();
    assert_eq!((short.reason, short.usage.completion_tokens), (FinishReason::Length, 3));
    assert!(whole.text.starts_with(&short.text));
    let stop: String = whole.text.chars().skip(4).take(2).collect();
    let cut = ask(engine, Generate { stop: vec![stop.clone()], ..request("say much") }).unwrap();
    assert_eq!(cut.reason, FinishReason::Stop);
    assert_eq!(cut.text, whole.text[..whole.text.find(&stop).unwrap()]);
    let endless = ask(engine, Generate { max_tokens: None, ..request("say much") }).unwrap();
    let used = endless.usage.prompt_tokens + endless.usage.completion_tokens;
    assert!(used == CONTEXT || endless.reason == FinishReason::Stop, "{used} tokens");
    let long = ask(engine, request(&"word ".repeat(300))).unwrap_err();
    assert!(matches!(long, EngineError::PromptTooLong { context: CONTEXT, .. }), "{long}");
    let empty = Generate { prompt: vec![Segment::plain("")], ..request("") };
    assert_eq!(ask(engine, empty).unwrap_err(), EngineError::EmptyPrompt);
}

#[test]
fn content_cannot_forge_a_marker() {
    let Served { engine, .. } = &serve(|_| {});
    let ids = |segment| {
        let query = Query::Tokenize { prompt: vec![segment], whole: true };
        match engine.query(query).unwrap().blocking_recv().unwrap().unwrap() {
            Reply::Tokens(ids) => ids,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(ids(Segment::markup("<|user|>")), [4]);
    let plain = ids(Segment::plain("<|user|>"));
    assert!(plain.len() > 1 && plain.iter().all(|&id| id > 6), "{plain:?}");
}

#[test]
fn a_dropped_receiver_frees_its_lane_within_a_step_and_the_queue_is_bounded() {
    let Served { engine, .. } = &serve(|settings| settings.lanes = 1);
    let endless = || {
        // An array of strings that is closed only when tokens run out.
        let schema = json!({"type": "array", "items": {"type": "string", "minLength": 60}, "minItems": 1});
        Generate { max_tokens: None, constraint: Some(Constraint::JsonSchema(schema)), ..request("go on") }
    };
    let mut first = engine.generate(endless()).unwrap();
    assert!(matches!(first.blocking_recv(), Some(AnswerEvent::Started { .. })));
    let (second, third) = (engine.generate(endless()).unwrap(), engine.generate(request("hi")).unwrap());
    assert_eq!(engine.generate(request("no room")).unwrap_err(), EngineError::Overloaded { waiting: 2 });
    // The request in the lane and one in the queue leave; the last one must be answered.
    drop(first);
    drop(second);
    let answer = collect(third).unwrap();
    assert!(answer.usage.completion_tokens > 0);
    let health = engine.health();
    let started = Instant::now();
    while health.borrow().running + health.borrow().waiting > 0 {
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", *health.borrow());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn constrained_answers_validate_within_any_budget() {
    let Served { engine, .. } = &serve(|_| {});
    let encoding = json!({"type": "object", "properties": {
        "gist": {"type": "string"}, "concepts": {"type": "array", "items": {"type": "string"}},
        "actions": {"type": "array", "items": {"type": "object", "properties": {"verb": {"type": "string"}, "object": {"type": "string"}},
            "required": ["verb", "object"], "additionalProperties": false}},
        "significance": {"enum": ["routine", "notable"]}, "salience": {"type": "number"}},
        "required": ["gist", "concepts", "actions", "significance", "salience"], "additionalProperties": false});
    let schemas = [
        encoding,
        json!({"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"}),
        json!({"type": "array", "items": {"type": "integer", "minimum": 10, "maximum": 99}, "minItems": 2}),
        json!({"anyOf": [{"type": "null"}, {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"], "additionalProperties": false}]}),
    ];
    let mut refused = 0;
    let cases = (0..300).map(|case| {
        let schema = &schemas[case % schemas.len()];
        let sampling = Sampling { temperature: 1.5, seed: Some(case as u64), ..Sampling::GREEDY };
        let max_tokens = Some([2, 9, 30, 60, 75, 100, 120][case / 4 % 7] + case as u32 % 5);
        let constraint = Some(Constraint::JsonSchema(schema.clone()));
        (schema, Generate { max_tokens, sampling, constraint, ..request("encode this") })
    });
    for pair in cases.collect::<Vec<_>>().chunks(4) {
        let running: Vec<_> =
            pair.iter().map(|(_, request)| engine.generate(request.clone()).unwrap()).collect();
        for (events, (schema, request)) in running.into_iter().zip(pair) {
            match collect(events) {
                Ok(answer) => {
                    let value: Value = serde_json::from_str(&answer.text).unwrap();
                    assert!(jsonschema::is_valid(schema, &value), "{value} of {schema}");
                    assert!(answer.usage.completion_tokens <= request.max_tokens.unwrap());
                }
                Err(EngineError::BudgetTooSmall { needed, given }) => {
                    assert!(needed > given && Some(given) == request.max_tokens);
                    refused += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!((20..200).contains(&refused), "{refused} refused");
}

#[test]
fn embeddings_have_length_one_and_name_a_text_that_is_too_long() {
    let Served { engine, .. } = &serve(|_| {});
    let embed = |texts: &[&str]| -> Result<Embeddings, EngineError> {
        let inputs = texts.iter().map(|text| vec![Segment::plain(*text)]).collect();
        engine.embed(inputs).unwrap().blocking_recv().unwrap()
    };
    let found = embed(&["one text", "another", "one text"]).unwrap();
    for vector in &found.vectors {
        let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!(vector.len() == 32 && (norm - 1.0).abs() < 1e-5, "{} numbers, length {norm}", vector.len());
    }
    assert_eq!(found.vectors[0], found.vectors[2]);
    assert_ne!(found.vectors[0], found.vectors[1]);
    let long = embed(&["fine", &"word ".repeat(300)]).unwrap_err();
    assert!(matches!(long, EngineError::InputTooLong { index: 1, context: CONTEXT, .. }), "{long}");
    // Generation still works meanwhile.
    assert!(ask(engine, request("hello")).is_ok());
}

#[test]
fn a_file_that_is_no_model_fails_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.gguf");
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"), &path).unwrap();
    let engine = LlamaEngine::start(settings(&path));
    let early = engine.generate(request("hello"));
    let EngineState::Failed(reason) = settled(&engine) else { panic!("a text file was served") };
    assert!(reason.contains("notes.gguf") && reason.contains("not a GGUF file"), "{reason}");
    // The request gets this error whether it was sent before or after the failure was known.
    let error = early.and_then(collect).unwrap_err();
    assert_eq!(error, EngineError::Model(reason.clone()));
    assert_eq!(ask(&engine, request("hello")).unwrap_err(), EngineError::Model(reason));
    let missing = LlamaEngine::start(settings(&folder.path().join("none.gguf")));
    let EngineState::Failed(reason) = settled(&missing) else { panic!("nothing was served") };
    assert!(reason.contains("none.gguf"), "{reason}");
}

#[test]
fn stopping_drains_what_runs_and_refuses_what_comes() {
    let Served { engine, .. } = &serve(|_| {});
    let running = engine.generate(request("finish this")).unwrap();
    engine.stop(Duration::from_secs(30));
    assert!(collect(running).is_ok());
    let late = engine.generate(request("too late")).and_then(collect);
    assert_eq!(late.unwrap_err(), EngineError::Stopped);
    let started = Instant::now();
    while !matches!(engine.health().borrow().state, EngineState::Stopped) {
        assert!(started.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn free_lanes_take_what_the_queue_would_have_no_room_for() {
    let Served { engine, .. } = &serve(|settings| settings.queue_tokens = 10);
    let endless = || Generate { max_tokens: None, ..request("go on") };
    let lanes: Vec<_> = (0..4).map(|_| engine.generate(endless()).unwrap()).collect();
    // These requests are accepted. One more may wait, but not two.
    let alone = engine.generate(endless()).unwrap();
    let error = engine.generate(endless()).unwrap_err();
    assert!(matches!(error, EngineError::QueueTokens { limit: 10, .. }), "{error}");
    for events in lanes.into_iter().chain([alone]) {
        assert!(collect(events).is_ok());
    }
}

#[test]
fn a_schema_or_grammar_that_leads_too_far_is_refused_and_the_engine_lives() {
    let Served { engine, .. } = &serve(|_| {});
    let definitions: serde_json::Map<String, Value> = (0..6_000)
        .map(|index| (format!("d{index}"), json!({"$ref": format!("#/$defs/d{}", index + 1)})))
        .chain([("d6000".to_owned(), json!({"type": "boolean"}))])
        .collect();
    let schema = Constraint::JsonSchema(json!({"$ref": "#/$defs/d0", "$defs": definitions}));
    // Within the size limit.
    let rules: Vec<String> = (0..4_000).map(|index| format!("r{index}::=r{}\n", index + 1)).collect();
    let grammar = Constraint::Gbnf(format!("root::=r0\n{}r4000::=\"a\"", rules.concat()));
    for constraint in [schema, grammar] {
        let error = ask(engine, Generate { constraint: Some(constraint), ..request("x") }).unwrap_err();
        assert!(matches!(error, EngineError::Schema(_) | EngineError::Grammar(_)), "{error}");
    }
    assert!(ask(engine, request("still there?")).is_ok());
}

#[test]
fn an_answer_that_is_dictated_as_a_whole_is_counted_too() {
    let Served { engine, .. } = &serve(|_| {});
    let constraint = Some(Constraint::JsonSchema(json!({"const": {"a": "always this"}})));
    let answer = ask(engine, Generate { constraint, ..request("x") }).unwrap();
    assert_eq!((answer.text.as_str(), answer.reason), (r#"{"a":"always this"}"#, FinishReason::Stop));
    let told = u64::from(answer.usage.completion_tokens);
    let started = Instant::now();
    while engine.health().borrow().totals.predicted_tokens != told {
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", engine.health().borrow().totals);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_schema_that_takes_long_to_compile_holds_nobody_up() {
    let Served { engine, .. } = &serve(|_| {});
    let names: Vec<String> = (0..3_000).map(|index| format!("property {index}")).collect();
    let text = |index: usize| json!({"type": "string", "pattern": format!("^x{{{}}}$", index % 200)});
    let properties: serde_json::Map<String, Value> =
        names.iter().enumerate().map(|(index, name)| (name.clone(), text(index))).collect();
    let large = json!({"type": "object", "properties": properties, "required": names});
    let began = Instant::now();
    let mut slow = engine
        .generate(Generate { constraint: Some(Constraint::JsonSchema(large)), ..request("x") })
        .unwrap();
    let mut others = 0;
    while slow.is_empty() {
        ask(engine, Generate { max_tokens: Some(2), ..request("y") }).unwrap();
        others += 1;
    }
    let took = began.elapsed();
    // The schema requires so many texts that the shortest answer is too long.
    let error = slow.blocking_recv().unwrap();
    assert!(matches!(error, AnswerEvent::Failed(EngineError::Schema(_))), "{error:?}");
    assert!(others >= 4, "{others} others were answered in {took:?}");
}

#[test]
fn what_is_being_compiled_when_the_engine_stops_is_answered_too() {
    let Served { engine, .. } = &serve(|settings| settings.queue = 8);
    let pattern = |index: usize| Constraint::Regex(format!("(ab|c){{{index},{}}}", 4 * index));
    let accepted: Vec<_> = (1..6)
        .map(|index| Generate { constraint: Some(pattern(index)), max_tokens: Some(30), ..request("x") })
        .map(|request| engine.generate(request).unwrap())
        .collect();
    engine.stop(Duration::from_secs(30));
    for events in accepted {
        let answer = collect(events).expect("what was accepted is answered");
        assert!(answer.text.starts_with(['a', 'c']), "{}", answer.text);
    }
    let started = Instant::now();
    while !matches!(engine.health().borrow().state, EngineState::Stopped) {
        assert!(started.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5));
    }
    let late = engine.generate(Generate { constraint: Some(pattern(70)), ..request("x") });
    assert!(matches!(late, Err(EngineError::Stopped)));
}

#[test]
fn a_place_for_keys_and_values_has_its_bytes() {
    let Served { engine, .. } = &serve(|_| {});
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf/qwen3_tied/config.json");
    let config: Value = serde_json::from_slice(&std::fs::read(config).unwrap()).unwrap();
    let of = |key: &str| config[key].as_u64().unwrap();
    // Keys and values are f16.
    let numbers = 2 * 2 * of("num_hidden_layers") * of("num_key_value_heads") * of("head_dim");
    let started = Instant::now();
    while engine.health().borrow().totals.place_bytes == 0 {
        assert!(started.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(5));
    }
    // The cell's position takes up to 32 bytes more.
    let found = engine.health().borrow().totals.place_bytes;
    assert!((numbers..=numbers + 32).contains(&found), "{found} bytes, {numbers} of numbers");
}
