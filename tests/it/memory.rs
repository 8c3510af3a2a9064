//! Tests of a process's memory.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use bespoke::atomic_file;
use bespoke::model::synthetic_model::{self, Shape, WeightType};
use serde_json::{Value, json};

use crate::program::{MODEL, Program};

/// Resident memory of a process in bytes.
pub fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
}

/// If the linker dropped the settings, no other test would notice.
#[test]
fn the_allocator_has_its_settings() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_bespoke"))
        .arg("--version")
        .env("MALLOC_CONF", "stats_print:true")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    for setting in ["opt.background_thread: true", "opt.oversize_threshold: 0\n"] {
        assert!(said.contains(setting), "{setting}: {said}");
    }
}

/// A model of which only the memory matters.
fn wide(folder: &Path) -> PathBuf {
    let path = folder.join("wide.gguf");
    synthetic_model::write(Shape::Wide, WeightType::Q8, 3, Path::new(MODEL), &path).unwrap();
    path
}

/// Sends a chat to a running program and returns the JSON.
fn chat(url: &str, body: &Value) -> Value {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let mut answer = agent.post(format!("{url}/v1/chat/completions")).send_json(body).unwrap();
    let text = answer.body_mut().read_to_string().unwrap();
    assert_eq!(answer.status(), 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

fn short_chat(url: &str) {
    chat(url, &json!({"max_tokens": 8, "messages": [{"role": "user", "content": "Name a colour."}]}));
}

fn context(url: &str) -> u64 {
    // The log line precedes the state change, so wait for the state.
    let end = Instant::now() + Duration::from_secs(60);
    let mut answer = loop {
        match ureq::get(format!("{url}/props")).call() {
            Ok(answer) => break answer,
            Err(ureq::Error::StatusCode(503)) if Instant::now() < end => sleep(Duration::from_millis(20)),
            Err(error) => panic!("{error}"),
        }
    };
    let props: Value = serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap();
    props["default_generation_settings"]["n_ctx"].as_u64().unwrap()
}

/// The lanes could hold 2 GiB of keys and values, and the largest batch 0.5 GiB of logits.
#[test]
fn a_large_vocabulary_and_a_long_context_take_memory_as_they_are_used() {
    let folder = tempfile::tempdir().unwrap();
    let model = wide(folder.path());
    let program = Program::serve(&["--model", model.to_str().unwrap()], &[("RUST_LOG", "bespoke=debug")]);
    let url = program.url();
    program.line("model loaded");
    // Right after the engine is ready, the index of the vocabulary may not exist yet, and the
    // request waits for it.
    let schema = json!({"type": "object", "properties": {"n": {"enum": ["one", "two"]}}, "required": ["n"],
        "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
    let body = json!({"max_tokens": 16, "response_format": format,
        "messages": [{"role": "user", "content": "Count."}]});
    let answer = chat(&url, &body);
    let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!([r#"{"n":"one"}"#, r#"{"n":"two"}"#].contains(&content), "{content}");
    assert_eq!(context(&url), 1 << 17, "memory that nobody uses is no reason for less");
    (0..3).for_each(|_| short_chat(&url));
    let resident = resident(program.id());
    // The model's file has 19 MB; llama.cpp's vocabulary of this size takes 60 MB, and ours with
    // its index 80 MB.
    assert!(resident < 300 << 20, "{} MiB", resident >> 20);
}

#[test]
fn the_context_of_a_lane_follows_from_the_memory_that_all_may_take() {
    let folder = tempfile::tempdir().unwrap();
    let model = wide(folder.path());
    let serve = |text: &str| {
        let config = folder.path().join("bespoke.toml");
        atomic_file::write(
            &config,
            format!("[model]\npath = {:?}\n{text}", model.to_str().unwrap()).as_bytes(),
        )
        .unwrap();
        Program::serve(&["--config", config.to_str().unwrap()], &[])
    };
    // Four lanes and one sequence for embeddings, 4 KiB per token.
    let program = serve("cache_memory = \"100 MiB\"\n");
    let url = program.url();
    let line = program.line("a lane's context is shorter than the model's");
    for said in ["context=5120", "trained=131072", "sequences=5", "token=\"4.0 KiB\"", "limit=\"100.0 MiB\""]
    {
        assert!(line.contains(said), "{said}: {line}");
    }
    assert!(line.contains("model.cache_memory"), "{line}");
    program.line("model loaded");
    assert_eq!(context(&url), 5120);
    short_chat(&url);
    drop(program);
    let mut program = serve("cache_memory = \"100 MiB\"\ncontext = 8192\n");
    program.line("model.context = 8192: 5 sequences of so many tokens take up to 160.0 MiB");
    assert_ne!(program.ended(), Some(0));
}

#[test]
fn a_lane_gives_back_what_a_long_conversation_took() {
    let folder = tempfile::tempdir().unwrap();
    let model = wide(folder.path());
    let config = folder.path().join("bespoke.toml");
    let text = format!("[model]\npath = {:?}\nlanes = 1\n", model.to_str().unwrap());
    atomic_file::write(&config, text.as_bytes()).unwrap();
    let program = Program::serve(&["--config", config.to_str().unwrap()], &[]);
    let url = program.url();
    program.line("model loaded");
    short_chat(&url);
    let before = resident(program.id());
    // 4 KiB for each token, of which there are at least as many as digits.
    let long: String = (0..5_000).map(|n| char::from(b'0' + (n * 7 % 10) as u8)).collect();
    chat(&url, &json!({"max_tokens": 1, "messages": [{"role": "user", "content": long}]}));
    let full = resident(program.id());
    assert!(full > before + (16 << 20), "{} to {} MiB", before >> 20, full >> 20);
    short_chat(&url);
    let after = resident(program.id());
    assert!(after + (12 << 20) < full, "{} to {} MiB", full >> 20, after >> 20);
}
