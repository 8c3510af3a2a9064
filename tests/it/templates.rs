//! Tests of chat templates: another template by setting, and an invalid one.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use bespoke::atomic_file;
use bespoke::engine::{EngineState, FakeEngine, ModelInfo, Script, Segment};
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::program::MODEL;

/// A daemon whose model has this template.
fn templated(template: &str, script: Script) -> Daemon {
    let engine = FakeEngine::loading(script);
    let info = ModelInfo { chat_template: Some(template.to_owned()), ..FakeEngine::info() };
    engine.set_state(EngineState::Ready(Arc::new(info)));
    Daemon::over(engine)
}

/// Status and stderr of a daemon that fails to start.
fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let state = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_bespoke"))
        .args(["serve", "--listen", "127.0.0.1:0"])
        .args(arguments)
        .env("STATE_DIRECTORY", state.path())
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_template_in_a_file_takes_the_place_of_the_models_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("chat.jinja");
    atomic_file::write(&file, b"{% for m in messages %}[{{ m.content }}]\n{% endfor %}<|go|>").unwrap();
    let engine = FakeEngine::loading(Script::Echo);
    let info = ModelInfo { chat_template: Some("<|own|>".to_owned()), ..FakeEngine::info() };
    engine.set_state(EngineState::Ready(Arc::new(info)));
    let daemon = Daemon::with(engine, |settings| settings.model.chat_template = Some(file.clone()));
    daemon.chat("x <|go|>", json!({})).ok();
    let expected = [Segment::markup("["), Segment::plain("x <|go|>"), Segment::markup("]\n<|go|>")];
    assert_eq!(daemon.engine.requests()[0].prompt, expected);
    let props = daemon.get("/props").ok();
    assert_eq!(props["chat_template"], std::fs::read_to_string(&file).unwrap());
}

#[test]
fn a_template_that_is_none_is_said_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let write = |name: &str, bytes: &[u8]| atomic_file::write(&folder.path().join(name), bytes).unwrap();
    let model = Path::new(MODEL).canonicalize().unwrap();
    let config = |template: &str| {
        let text = format!("[model]\npath = {model:?}\nchat_template = {template:?}\n");
        write("bespoke.toml", text.as_bytes());
        refused(&["--config", &path("bespoke.toml")])
    };
    write("broken.jinja", b"{% for m in messages %}\n{{ m.content }\n{% endfor %}");
    let (status, said) = config("broken.jinja");
    assert_eq!(status, Some(78), "{said}");
    assert!(
        said.contains(&format!("{}: the chat template can't be parsed: line 2: ", path("broken.jinja"))),
        "{said}"
    );
    write("filter.jinja", b"\n\n{{ messages | nosuchfilter }}");
    let (status, said) = config("filter.jinja");
    assert!(status == Some(78) && said.contains("line 3: unknown filter: nosuchfilter"), "{said}");
    let (status, said) = config("missing.jinja");
    assert!(status == Some(78) && said.contains("missing.jinja"), "{said}");
    assert!(said.contains("hint: model.chat_template"), "{said}");

    // The model's own template, broken in place.
    let mut bytes = std::fs::read(MODEL).unwrap();
    let (good, broken) = (b"{% endfor %}", b"{% endfox %}");
    let at = bytes.windows(good.len()).position(|window| window == good).unwrap();
    bytes[at..at + good.len()].copy_from_slice(broken);
    write("broken.gguf", &bytes);
    let (status, said) = refused(&["--model", &path("broken.gguf")]);
    assert_eq!(status, Some(78), "{said}");
    assert!(
        said.contains("broken.gguf: tokenizer.chat_template: the chat template can't be parsed"),
        "{said}"
    );
    assert!(said.contains("hint: model.chat_template"), "{said}");
}

#[test]
fn what_a_template_lacks_is_not_the_clients_fault() {
    let broken = templated("{{ messages[0].content }}{% if true %}{{ nosuch() }}{% endif %}", Script::Echo);
    let answer = broken.chat("x", json!({}));
    assert_eq!(answer.status, 500, "{}", answer.text);
    assert!(answer.text.contains("nosuch"), "{}", answer.text);
    let refusing = templated("{{ raise_exception('only ' + messages[0].role) }}", Script::Echo);
    let answer = refusing.chat("x", json!({}));
    assert!(answer.status == 400 && answer.text.contains("only user"), "{}", answer.text);
    let timed = templated("{{ messages[0].content }} {{ strftime_now('%Y') }}", Script::Text("fine".into()));
    assert_eq!(timed.chat("x", json!({})).content(), "fine");
}

#[test]
fn everything_that_a_message_says_reaches_the_template() {
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}|{{ m.reasoning_content }}|{{ m.name }}|\
                    {{ m.tool_call_id }}|{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}|{{ m.mood }}\n\
                    {% endfor %}";
    let daemon = templated(template, Script::Text("fine".into()));
    let messages = json!([
        {"role": "user", "content": "a", "name": "bob", "mood": "<|good|>"},
        {"role": "assistant", "content": "b", "reasoning_content": "because"},
        {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{\"x\": 1}"}},
        {"role": "function", "name": "f", "content": "c"},
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "g", "arguments": ""}}]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "d"}]},
        {"role": "assistant", "content": null, "refusal": "no"},
        {"role": "user", "content": "e"},
    ]);
    let prompt = daemon.post("/apply-template", &json!({"messages": messages})).ok()["prompt"].clone();
    // This template supports `tool_calls` but not `tools`, so calls are in the texts.
    let lines: Vec<&str> = prompt.as_str().unwrap().split_inclusive('\n').collect();
    assert_eq!(lines[0], "<user>a||bob|||<|good|>\n");
    assert_eq!(lines[1], "<assistant>b|because||||\n");
    let prompt = prompt.as_str().unwrap();
    for part in [
        "{\"name\": \"f\", \"arguments\": {\"x\": 1}}",
        "{\"name\": \"g\", \"arguments\": {}}",
        "<assistant>no|",
        "f|",
    ] {
        assert!(prompt.contains(part), "{part:?} is not in {prompt}");
    }
    let knowing = templated(&format!("{{% if tools %}}{{% endif %}}{template}"), Script::Echo);
    let prompt = knowing.post("/apply-template", &json!({"messages": messages})).ok()["prompt"].clone();
    let expected = "<user>a||bob|||<|good|>\n<assistant>b|because||||\n\
                    <assistant>||||{\"name\": \"f\", \"arguments\": {\"x\": 1}}|\n<tool>c||f|||\n\
                    <assistant>||||{\"name\": \"g\", \"arguments\": {}}|\n<tool>d|||1||\n<assistant>no|||||\n<user>e|||||\n";
    assert_eq!(prompt, Value::from(expected));
}
