//! Tests of what is visible from outside: metrics, request ids, the access log, and the API's own
//! description.

use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use bespoke::engine::{FakeEngine, Script};
use serde_json::{Value, json};

use crate::daemon::{Daemon, chat, read_until, wait_until};
use crate::program::{MODEL, Program};
use crate::real::Real;

/// The value of a metric, given its name with labels.
fn metric(text: &str, name: &str) -> f64 {
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("{name} is not in:\n{text}")).parse().unwrap()
}

/// The value of a counter.
fn count(text: &str, name: &str) -> u64 {
    let value = metric(text, name);
    assert!(value >= 0.0 && value.fract().abs() < f64::EPSILON, "{name} is {value}");
    value as u64
}

fn task(name: &str) -> Value {
    let schema = json!({"type": "object"});
    json!({"response_format": {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}})
}

#[test]
fn metrics_count_what_was_answered() {
    let daemon = Daemon::script(Script::Text("{\"a\": 1}".into()));
    daemon.chat("one two", task("encoding_response")).ok();
    daemon.chat("one two", task("made-up-by-a-client-7")).ok();
    daemon.chat("one", json!({"stream": true}));
    assert_eq!(daemon.chat("x", json!({"temperature": 9})).status, 400);
    daemon.get("/nowhere");
    let answer = daemon.get("/metrics");
    assert!(
        answer.header("content-type").unwrap().starts_with("text/plain"),
        "{:?}",
        answer.header("content-type")
    );
    let text = answer.text;
    for name in [
        "prompt_tokens_total",
        "prompt_seconds_total",
        "tokens_predicted_total",
        "tokens_predicted_seconds_total",
        "n_decode_total",
        "prompt_tokens_seconds",
        "predicted_tokens_seconds",
        "requests_processing",
        "requests_deferred",
        "n_busy_slots_per_decode",
    ] {
        metric(&text, &format!("llamacpp:{name}"));
    }
    let chat = "bespoke_requests_total{route=\"/v1/chat/completions\",status=";
    assert_eq!(count(&text, &format!("{chat}\"200\"}}")), 3);
    assert_eq!(count(&text, &format!("{chat}\"400\"}}")), 1);
    assert_eq!(count(&text, "bespoke_requests_total{route=\"other\",status=\"404\"}"), 1);
    assert_eq!(count(&text, "bespoke_prompt_tokens_count{task=\"encoding_response\"}"), 1);
    assert_eq!(count(&text, "bespoke_output_tokens_count{task=\"other\"}"), 2);
    assert!(!text.contains("made-up"), "a client must not make labels");
    assert_eq!(count(&text, "bespoke_queue_seconds_count"), 3);
    assert_eq!(count(&text, "bespoke_time_to_first_token_seconds_count"), 3);
    assert!(metric(&text, "bespoke_inter_token_seconds_count") >= 1.0);
    assert!(metric(&text, "bespoke_engine_beat_age_seconds") < 20.0);
    assert_eq!(count(&text, &format!("bespoke_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"))), 1);
}

#[test]
fn metrics_tell_who_left_and_what_runs() {
    let daemon = Daemon::script(Script::Never);
    let leaver = daemon.chat_connection(json!({}));
    let _stays = daemon.chat_connection(json!({}));
    wait_until("both run", || daemon.engine.running() == 2);
    drop(leaver);
    wait_until("one is gone", || daemon.engine.cancelled() == 1);
    wait_until("it is counted", || count(&daemon.get("/metrics").text, "bespoke_client_gone_total") == 1);
    wait_until("one is processed", || {
        count(&daemon.get("/metrics").text, "llamacpp:requests_processing") == 1
    });
    let text = daemon.get("/metrics").text;
    assert_eq!(count(&text, "bespoke_requests_total{route=\"/v1/chat/completions\",status=\"499\"}"), 1);
}

#[test]
fn what_runs_is_told_before_anything_else_says_so() {
    let Some(real) = Real::serve(|_| {}, |_| {}) else { return };
    let processing = || count(&real.daemon.get("/metrics").text, "llamacpp:requests_processing");
    for round in 0..8 {
        let fields = json!({"stream": true, "max_tokens": 500, "ignore_eos": true});
        let mut connection = real.daemon.chat_connection(fields);
        read_until(&mut connection, "data:");
        assert_eq!(processing(), 1, "round {round}: its first chunk has come");
        read_until(&mut connection, "[DONE]");
        assert_eq!(processing(), 0, "round {round}: its last chunk has come");
    }
}

#[test]
fn a_sane_request_id_comes_back_and_others_are_replaced() {
    let daemon = Daemon::script(Script::Echo);
    let id = |given: &[(&str, &str)]| daemon.get_with("/v1/models", given).header("x-request-id").unwrap();
    assert_eq!(id(&[("x-request-id", "trace-7")]), "trace-7");
    let (first, second) = (id(&[]), id(&[("x-request-id", "no good")]));
    assert!(first.len() == 32 && second.len() == 32 && first != second, "{first} {second}");
    for path in ["/nowhere", "/v1/chat/completions"] {
        assert!(daemon.get(path).header("x-request-id").is_some(), "errors have one too");
    }
}

#[test]
fn the_document_describes_the_routes_that_answer() {
    let daemon = Daemon::script(Script::Echo);
    let document = daemon.get("/openapi.json").ok();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in ["get", "post", "delete", "put"] {
            let request = format!(
                "{} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
                method.to_uppercase()
            );
            // Read only the status, because the feed of events has no end.
            let mut connection = daemon.connection();
            connection.write_all(request.as_bytes()).unwrap();
            let mut status = [0; 12];
            connection.read_exact(&mut status).unwrap();
            let unknown = &status == b"HTTP/1.1 405";
            assert_eq!(unknown, item.get(method).is_none(), "{method} {path}");
        }
    }
    // Answers must match their description, errors included.
    let valid = |pointer: &str, instance: &Value| {
        let schema = json!({"$ref": format!("#{pointer}"), "components": document["components"]});
        let schema = jsonschema::draft202012::new(&schema).unwrap();
        let mistakes: Vec<String> = schema.iter_errors(instance).map(|error| error.to_string()).collect();
        assert!(mistakes.is_empty(), "{pointer}: {mistakes:?} in {instance}");
    };
    valid("/components/schemas/ChatReply", &daemon.chat("x", json!({})).ok());
    valid("/components/schemas/Models", &daemon.get("/v1/models").ok());
    let message = json!({"messages": [{"role": "user", "content": "x"}]});
    valid("/components/schemas/MessageReply", &daemon.post("/v1/messages", &message).ok());
    valid("/components/schemas/EmbeddingReply", &daemon.post("/v1/embeddings", &json!({"input": "x"})).ok());
    valid("/components/schemas/Error", &daemon.chat("x", json!({"n": 0})).json());
}

/// The real daemon with the shipped model, logging in JSON.
fn logging(folder: &Path, settings: &str, level: &str) -> Program {
    let config = folder.join("bespoke.toml");
    let model = std::path::absolute(MODEL).unwrap();
    let text = format!("[log]\nformat = 'json'\n{settings}\n[model]\npath = '{}'\n", model.display());
    bespoke::atomic_file::write(&config, text.as_bytes()).unwrap();
    Program::serve(&["--config", config.to_str().unwrap()], &[("RUST_LOG", level)])
}

#[test]
fn the_access_log_has_a_line_when_an_answer_has_ended() {
    if !Path::new(MODEL).exists() {
        eprintln!("skipped: {MODEL} is not there");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut program = logging(folder.path(), "access = 'json'\nprompts = true", "info");
    let url = program.url();
    let mut fields = task("gate_response");
    fields["max_tokens"] = json!(20);
    fields["stream"] = json!(true);
    let agent = ureq::Agent::config_builder().proxy(None).build().new_agent();
    let mut answer = agent
        .post(format!("{url}/v1/chat/completions"))
        .header("content-type", "application/json")
        .header("x-request-id", "mine-1")
        .send(chat("a very private matter", fields).to_string())
        .unwrap();
    let length = answer.body_mut().read_to_string().unwrap().len();
    // Prompts are logged on request, within the request's span.
    let asked: Value = serde_json::from_str(&program.line("a very private matter")).unwrap();
    assert_eq!(asked["span"]["id"], "mine-1", "{asked}");
    let line: Value = serde_json::from_str(&program.line("\"path\":\"/v1/chat/completions\"")).unwrap();
    assert_eq!(
        (&line["id"], &line["status"], &line["method"]),
        (&json!("mine-1"), &json!(200), &json!("POST"))
    );
    assert_eq!((&line["task"], &line["client_gone"]), (&json!("gate_response"), &json!(false)));
    assert_eq!(line["bytes"], length);
    assert!(
        line["prompt_tokens"].as_u64() > Some(3) && line["completion_tokens"].as_u64() > Some(0),
        "{line}"
    );
    assert!(
        line["cached_tokens"].is_u64() && line["ms"].as_f64() > Some(0.0) && line["key"].is_null(),
        "{line}"
    );

    // The tokens of several answers are summed, and their prompt counts once.
    let ask = |n: u32| {
        let fields = json!({"max_tokens": 5, "n": n, "ignore_eos": true});
        let answer =
            agent.post(format!("{url}/v1/chat/completions")).header("content-type", "application/json");
        answer.send(chat("the same prompt", fields).to_string()).unwrap();
        let line: Value = serde_json::from_str(&program.line("\"path\":\"/v1/chat/completions\"")).unwrap();
        (line["prompt_tokens"].as_u64().unwrap(), line["completion_tokens"].as_u64().unwrap())
    };
    let (one, three) = (ask(1), ask(3));
    assert_eq!((one.1, three), (5, (one.0, 15)));

    // A client that leaves in the middle.
    let mut connection = std::net::TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut fields = crate::load::long();
    fields["stream"] = json!(true);
    let body = chat("y", fields).to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    std::io::Write::write_all(&mut connection, head.as_bytes()).unwrap();
    // The first event has only the role and comes before any token.
    read_until(&mut connection, "\"delta\":{\"content\":");
    drop(connection);
    let line: Value = serde_json::from_str(&program.line("\"client_gone\":true")).unwrap();
    assert_eq!((&line["status"], &line["task"]), (&json!(200), &json!("other")));
    assert!(line["completion_tokens"].as_u64() > Some(0), "what was produced until then is told: {line}");
    assert_eq!(program.terminate(), Some(0));
    let rest = program.lines(Duration::from_secs(1));
    assert!(rest.iter().all(|line| line.starts_with('{') || line.starts_with("stopping")), "{rest:#?}");
}

#[test]
fn head_and_errors_are_not_taken_for_clients_that_left() {
    let daemon = Daemon::over(FakeEngine::new(Script::Echo));
    let answer = daemon.raw("HEAD /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
    daemon.get("/nowhere");
    daemon.chat("x", json!({})).ok();
    daemon.chat("x", json!({"stream": true}));
    assert_eq!(count(&daemon.get("/metrics").text, "bespoke_client_gone_total"), 0);
}

#[test]
fn what_the_engines_thread_logs_has_the_id_of_the_request() {
    if !Path::new(MODEL).exists() {
        eprintln!("skipped: {MODEL} is not there");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut program = logging(folder.path(), "access = 'off'", "info,bespoke::engine=debug");
    let url = program.url();
    let agent = ureq::Agent::config_builder().proxy(None).build().new_agent();
    let request = agent.post(format!("{url}/v1/chat/completions")).header("content-type", "application/json");
    request.header("x-request-id", "mine-2").send(chat("x", json!({"max_tokens": 4})).to_string()).unwrap();
    for step in ["request admitted to a lane", "prompt decoded", "its lane is free"] {
        let line: Value = serde_json::from_str(&program.line(step)).unwrap();
        assert_eq!(line["span"]["id"], "mine-2", "{line}");
        assert!(line["fields"]["answer"].as_str().unwrap().starts_with("chatcmpl-"), "{line}");
    }
    assert_eq!(program.terminate(), Some(0));
}
