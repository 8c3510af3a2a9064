//! Tests of answers that would repeat themselves: repeated items, looping texts and numbers, and
//! the state of the model after going back.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use bespoke::config::ModelSettings;
use bespoke::engine::{
    AnswerEvent, Closed, Constraint, DistinctList, Engine, EngineState, Generate, Guard, LlamaEngine,
    Longest, Query, Reply, Segment, TokenReport, Usage,
};
use bespoke::model::gguf_file::Precision;
use bespoke::task::prompt::{Wording, messages};
use bespoke::task::{self, encoding_schema, schema};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::daemon::chunks;
use crate::families::export;
use crate::program::MODEL;
use crate::real::Real;

fn serve(path: &Path, lanes: u32, draft: bool) -> LlamaEngine {
    let engine = LlamaEngine::start(ModelSettings {
        context: Some(2_048),
        lanes,
        queue: 100,
        queue_tokens: u64::MAX,
        threads: 1,
        draft,
        ..ModelSettings::of(path.to_owned())
    });
    let mut health = engine.health();
    while matches!(health.borrow_and_update().state, EngineState::Loading) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    engine
}

struct Answer {
    text: String,
    tokens: Vec<TokenReport>,
    closed: Vec<Closed>,
    usage: Usage,
}

fn answer(mut events: UnboundedReceiver<AnswerEvent>) -> Answer {
    let (mut text, mut tokens, mut closed) = (String::new(), Vec::new(), Vec::new());
    loop {
        match events.blocking_recv().expect("a last event comes") {
            AnswerEvent::Started { .. } | AnswerEvent::Read(_) => {}
            AnswerEvent::Tokens(more) => tokens.extend(more),
            AnswerEvent::Text(more) => text += &more,
            AnswerEvent::Closed(more) => closed.push(more),
            AnswerEvent::Finished { usage, .. } => return Answer { text, tokens, closed, usage },
            AnswerEvent::Failed(error) => panic!("{error}"),
        }
    }
}

/// Ids of single characters.
fn ids(engine: &LlamaEngine, texts: &[&str]) -> Vec<u32> {
    let prompts = texts.iter().map(|&text| vec![Segment::plain(text)]).collect();
    match engine.query(Query::TokenizeAll(prompts)).unwrap().blocking_recv().unwrap().unwrap() {
        Reply::AllTokens(all) => all.iter().map(|ids| *ids.last().unwrap()).collect(),
        other => panic!("{other:?}"),
    }
}

/// Lists of short texts that must continue with items other than those the biased model wants.
fn wanting_the_same(engine: &LlamaEngine, salt: u32) -> Generate {
    let list = |least: u32| json!({"type": "array", "items": {"type": "string", "maxLength": 2}, "uniqueItems": true, "minItems": least});
    let schema = json!({"type": "object", "properties": {"a": list(3), "b": list(0), "c": list(4)},
                        "required": ["a", "b", "c"], "additionalProperties": false});
    let bias = ids(engine, &["e", "\""]).into_iter().zip([30.0, 28.0]).collect();
    let prompt = vec![Segment::ids((0..40).map(|at| 60 + (at * 7 + salt * 13) % 150).collect())];
    Generate {
        max_tokens: Some(200),
        constraint: Some(Constraint::JsonSchema(schema)),
        logit_bias: bias,
        report: Some(0),
        ..Generate::new("again", prompt)
    }
}

/// Compares an answer with an engine that has an empty cache: the log probability of each token
/// must agree.
fn check_state(path: &Path, request: &Generate, said: &Answer) {
    let engine = serve(path, 1, false);
    let given: Vec<u32> = request.prompt.iter().flat_map(|segment| segment.ids.clone()).collect();
    let mut checked = 0;
    for (at, report) in said.tokens.iter().enumerate().filter(|(_, report)| !report.forced) {
        let before = said.tokens[..at].iter().map(|report| report.token.id);
        let prompt = vec![Segment::ids(given.iter().copied().chain(before).collect())];
        let ask = Generate {
            max_tokens: Some(1),
            report: Some(10_000),
            cache: false,
            ..Generate::new("one", prompt)
        };
        let alone = answer(engine.generate(ask).unwrap());
        let same = alone.tokens[0].top.iter().find(|token| token.id == report.token.id).unwrap();
        let difference = (same.logprob - report.token.logprob).abs();
        assert!(
            difference < 2e-2,
            "token {at} of {}: {} instead of {}",
            said.text,
            report.token.logprob,
            same.logprob
        );
        checked += 1;
    }
    assert!(checked > 10, "{}", said.text);
}

fn all_different(value: &Value) {
    for list in ["a", "b", "c"] {
        let items = value[list].as_array().unwrap();
        let different: HashSet<&str> = items.iter().filter_map(Value::as_str).collect();
        assert_eq!(different.len(), items.len(), "{value}");
    }
}

fn goes_back(path: &Path) {
    let plain = serve(path, 1, false);
    let alone: Vec<Answer> =
        (0..4).map(|salt| answer(plain.generate(wanting_the_same(&plain, salt)).unwrap())).collect();
    for (salt, said) in (0..).zip(&alone) {
        all_different(&serde_json::from_str(&said.text).unwrap());
        assert!(!said.closed.is_empty(), "nothing was taken back: {}", said.text);
        if salt < 2 {
            check_state(path, &wanting_the_same(&plain, salt), said);
        }
    }
    // Other lanes and drafting must not change anything.
    let fast = serve(path, 4, true);
    let running: Vec<_> = (0..4).map(|salt| fast.generate(wanting_the_same(&fast, salt)).unwrap()).collect();
    for (events, alone) in running.into_iter().zip(&alone) {
        let beside = answer(events);
        assert_eq!((beside.text, beside.closed), (alone.text.clone(), alone.closed.clone()));
        assert_eq!(beside.usage.completion_tokens, alone.usage.completion_tokens);
    }
}

#[test]
fn an_answer_that_went_back_goes_on_as_if_it_had_never_been_elsewhere() {
    goes_back(Path::new(MODEL));
}

#[test]
fn a_state_that_cannot_be_cut_is_computed_again() {
    let (_folder, path) = export("qwen35_usual", Precision::F32);
    goes_back(&path);
}

/// The messages for an event, and the schema that is sent with them.
fn encoding(event: &task::Event, fields: Value) -> Value {
    let mut body = json!({
        "messages": messages(event, &Wording::standard()),
        "response_format": {"type": "json_schema", "json_schema": {"name": schema::SCHEMA_NAME, "schema": encoding_schema()}},
        "temperature": 0,
    });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

/// Texts of a value, at any depth.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        Value::Object(members) => members.values().flat_map(texts).collect(),
        _ => vec![],
    }
}

/// Whether the last 200 characters repeat one phrase.
fn goes_round(text: &str) -> bool {
    let characters: Vec<char> = text.chars().collect();
    let Some(from) = characters.len().checked_sub(200) else { return false };
    let tail = &characters[from..];
    (1..=100).any(|phrase| tail[phrase..].iter().zip(tail).all(|(one, before)| one == before))
}

/// Names that occur twice in a list of an encoding.
fn repeated(encoding: &Value) -> Vec<String> {
    let mut twice = Vec::new();
    for (path, members) in schema::NAMES {
        let mut seen = HashSet::new();
        for item in encoding.pointer(path).and_then(Value::as_array).into_iter().flatten() {
            let names: Vec<String> = match members {
                [] => vec![item.as_str().unwrap_or_default().trim().to_lowercase()],
                _ => members
                    .iter()
                    .map(|&member| item[member].as_str().unwrap_or_default().trim().to_lowercase())
                    .collect(),
            };
            if !seen.insert(names.clone()) {
                twice.push(format!("{path}: {names:?}"));
            }
        }
    }
    twice
}

#[test]
fn encodings_name_nothing_twice_and_end_what_goes_round() {
    let Some(real) = Real::serve(|engine| engine.context = Some(8_192), |_| {}) else { return };
    let valid = jsonschema::validator_for(&encoding_schema()).unwrap();
    let event =
        task::Event::new("terminal", "error", "disk full on db-2: /var/lib/pg at 100 %, 3 jobs failed");
    // A bias that makes the shipped model repeat one letter forever.
    let letter = ids(&real.engine, &["e"])[0];
    let looping = json!({"max_tokens": 4096, "logit_bias": {letter.to_string(): 100}});
    let reply = real.daemon.post("/v1/chat/completions", &encoding(&event, looping.clone())).ok();
    let choice = &reply["choices"][0];
    let text = choice["message"]["content"].as_str().unwrap();
    let value: Value = serde_json::from_str(text).unwrap();
    assert!(valid.is_valid(&value), "{text}");
    assert!(texts(&value).iter().all(|text| !goes_round(text)), "{text}");
    assert_eq!(repeated(&value), Vec::<String>::new(), "{text}");
    let tokens = reply["usage"]["completion_tokens"].as_u64().unwrap();
    assert!(tokens < 2_500, "{tokens}: {text}");
    let closed = choice["closed"].as_array().unwrap();
    assert!(closed.contains(&json!({"path": "/content", "why": "loop"})), "{closed:?}");
    assert_eq!(choice["finish_reason"], "length");
    // A stream reports the same in its last chunk.
    let mut streamed = encoding(&event, looping.clone());
    streamed["stream"] = true.into();
    let chunks = chunks(&real.daemon.post("/v1/chat/completions", &streamed).text);
    let said: String =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(said, text);
    assert_eq!(chunks.last().unwrap()["choices"][0]["closed"], choice["closed"]);
    let metrics = real.daemon.get("/metrics").text;
    let line = metrics.lines().find(|line| line.starts_with("bespoke_closed_total{why=\"loop\"}")).unwrap();
    assert!(line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() >= 2.0, "{line}");

    // The other APIs report it for the whole answer.
    let format = json!({"type": "json_schema", "name": schema::SCHEMA_NAME, "schema": encoding_schema()});
    let (asked, mut fields) = (encoding(&event, json!({})), looping.clone());
    fields.as_object_mut().unwrap().remove("max_tokens");
    fields["temperature"] = 0.into();
    let with = |more: Value| {
        let mut body = fields.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let body =
        with(json!({"input": asked["messages"], "text": {"format": format}, "max_output_tokens": 4096}));
    let response = real.daemon.post("/v1/responses", &body).ok();
    assert_eq!(response["closed"], choice["closed"]);
    let mut body =
        with(json!({"messages": asked["messages"], "output_config": {"format": format}, "max_tokens": 4096}));
    let message = real.daemon.post("/v1/messages", &body).ok();
    assert_eq!(message["closed"], choice["closed"]);
    body["stream"] = true.into();
    let events = crate::daemon::chunks(&real.daemon.post("/v1/messages", &body).text);
    let ended = events.iter().find(|event| event["type"] == "message_delta").unwrap();
    assert_eq!(ended["delta"]["closed"], choice["closed"]);

    // Answers for other schemas are not guarded.
    let mut other = encoding(&event, looping.clone());
    other["response_format"]["json_schema"]["name"] = "mine".into();
    other["max_tokens"] = 900.into();
    let reply = real.daemon.post("/v1/chat/completions", &other).ok();
    assert_eq!(reply["choices"][0]["closed"], Value::Null);
    assert_eq!(reply["usage"]["completion_tokens"], 900);
    let off = Real::serve(|_| {}, |settings| settings.sampling.task_limits = false).unwrap();
    let mut body = encoding(&event, looping);
    body["max_tokens"] = 900.into();
    let reply = off.daemon.post("/v1/chat/completions", &body).ok();
    assert_eq!(
        (&reply["choices"][0]["closed"], &reply["usage"]["completion_tokens"]),
        (&Value::Null, &json!(900))
    );
}

#[test]
fn unique_items_are_taken_over_http() {
    let Some(real) = Real::serve(|_| {}, |_| {}) else { return };
    let list =
        json!({"type": "array", "items": {"enum": ["x", "y", "z"]}, "uniqueItems": true, "minItems": 3});
    let ask = |list: &Value| {
        real.daemon.chat("x", json!({"json_schema": list, "max_tokens": 60, "temperature": 1.5, "seed": 3}))
    };
    let mut items: Vec<String> =
        serde_json::from_str(ask(&list).ok()["choices"][0]["message"]["content"].as_str().unwrap()).unwrap();
    items.sort();
    assert_eq!(items, ["x", "y", "z"]);
    let mut more = list;
    more["minItems"] = 4.into();
    let refused = ask(&more);
    assert_eq!(refused.status, 400, "{}", refused.text);
}

/// A model file in a folder, or one level below.
fn model_in(folder: &Path) -> Option<PathBuf> {
    let files = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs_err::read_dir(folder).into_iter().flatten();
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        paths
    };
    let within = files(folder).into_iter().filter(|path| path.is_dir()).flat_map(|path| files(&path));
    let mut all = files(folder).into_iter().chain(within);
    all.find(|path| {
        path.to_string_lossy().contains("SmolLM2") && path.extension().is_some_and(|end| end == "gguf")
    })
}

#[test]
fn a_model_that_goes_round_without_a_spoke_comes_to_an_end() {
    let Some(folder) = std::env::var_os("BESPOKE_REAL") else {
        eprintln!("skipped: BESPOKE_REAL names no folder with SmolLM2");
        return;
    };
    let path = model_in(Path::new(&folder)).expect("BESPOKE_REAL has SmolLM2's GGUF file");
    let real = Real::serve(
        |engine| {
            (engine.path, engine.context, engine.lanes) = (path, Some(8_192), 1);
            engine.threads = 2;
        },
        |_| {},
    );
    let real = real.expect("the shipped model is there, too");
    let valid = jsonschema::validator_for(&encoding_schema()).unwrap();
    let lines = include_str!("../fixtures/events/real.jsonl").lines().take(real_events());
    let mut longest = 0;
    for line in lines {
        let row: Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| row[key].as_str().unwrap().to_owned();
        let event = task::Event::new(text("source"), text("type"), text("raw_input"));
        let began = std::time::Instant::now();
        let reply =
            real.daemon.post("/v1/chat/completions", &encoding(&event, json!({"max_tokens": 4096}))).ok();
        let choice = &reply["choices"][0];
        let said = choice["message"]["content"].as_str().unwrap();
        let tokens = reply["usage"]["completion_tokens"].as_u64().unwrap();
        println!(
            "{}: {tokens} tokens, {:?}, {} {}",
            row["id"],
            began.elapsed(),
            choice["finish_reason"],
            choice["closed"]
        );
        let value: Value = serde_json::from_str(said).unwrap_or_else(|error| panic!("{said}: {error}"));
        assert!(valid.is_valid(&value), "{said}");
        assert_eq!(repeated(&value), Vec::<String>::new(), "{said}");
        assert!(texts(&value).iter().all(|text| !goes_round(text)), "{said}");
        assert!(tokens <= 1_200, "{tokens}: {said}");
        longest = longest.max(tokens);
    }
    println!("the longest has {longest} tokens");
}

/// Number of events that SmolLM2 encodes.
fn real_events() -> usize {
    std::env::var("BESPOKE_REAL_EVENTS")
        .map_or(20, |text| text.parse().expect("BESPOKE_REAL_EVENTS is a number"))
}

/// Guards as the API creates them for encodings.
#[test]
fn default_encodings_of_the_shipped_model_are_the_same_fast_and_plain() {
    let distinct = schema::NAMES.iter().map(|(path, members)| DistinctList {
        path: (*path).to_owned(),
        members: members.iter().map(|&member| member.to_owned()).collect(),
    });
    let longest = Some(Longest { text: 2_000, list: 1_000 });
    let guard = Guard { distinct: distinct.collect(), longest };
    let mut limited = encoding_schema();
    schema::add_limits(&mut limited);
    let lines = include_str!("../fixtures/events/real.jsonl").lines().take(6);
    let requests: Vec<Generate> = lines
        .map(|line| {
            let row: Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| row[key].as_str().unwrap().to_owned();
            let event = task::Event::new(text("source"), text("type"), text("raw_input"));
            let mut prompt = Vec::new();
            for message in messages(&event, &Wording::standard()) {
                prompt.extend([
                    Segment::markup(format!("<|{}|>", message.role)),
                    Segment::plain(message.content),
                    Segment::markup("<|end|>"),
                ]);
            }
            prompt.push(Segment::markup("<|assistant|>"));
            let (constraint, guard) = (Some(Constraint::JsonSchema(limited.clone())), Some(guard.clone()));
            Generate { max_tokens: Some(900), constraint, guard, ..Generate::new("e", prompt) }
        })
        .collect();
    let plain = serve(Path::new(MODEL), 1, false);
    let plain: Vec<Answer> =
        requests.iter().map(|request| answer(plain.generate(request.clone()).unwrap())).collect();
    let fast = serve(Path::new(MODEL), 4, true);
    let running: Vec<_> = requests.iter().map(|request| fast.generate(request.clone()).unwrap()).collect();
    let mut taken_back = 0;
    for (events, plain) in running.into_iter().zip(&plain) {
        let fast = answer(events);
        assert_eq!((&fast.text, &fast.closed), (&plain.text, &plain.closed));
        assert_eq!(repeated(&serde_json::from_str(&fast.text).unwrap()), Vec::<String>::new());
        taken_back += fast.closed.len();
    }
    println!("{taken_back} items were taken back");
}
