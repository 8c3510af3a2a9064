//! Tests that the Rust client `async-openai` reads the daemon's answers: chat, stream, tools, JSON
//! Schema, embeddings, errors.

use std::future::Future;

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use bespoke::engine::{EngineError, Script};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_stream::StreamExt;

use crate::daemon::Daemon;

fn client(daemon: &Daemon) -> Client<OpenAIConfig> {
    Client::with_config(OpenAIConfig::new().with_api_base(daemon.url("/v1")).with_api_key("unused"))
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// A request in the client's own types, from the JSON that its builders would write.
fn request<T: DeserializeOwned>(fields: Value) -> T {
    let mut body = json!({"model": "bespoke", "messages": [{"role": "user", "content": "x"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    serde_json::from_value(body).unwrap()
}

#[test]
fn chat_with_all_its_parts() {
    let daemon = Daemon::script(Script::Text("one two".into()));
    let fields = json!({"n": 2, "logprobs": true, "top_logprobs": 2, "max_completion_tokens": 5, "seed": 1});
    let answer = run(client(&daemon).chat().create(request(fields))).unwrap();
    assert_eq!(answer.choices.len(), 2);
    assert_eq!(answer.choices[1].message.content.as_deref(), Some("one two"));
    let logprobs = answer.choices[0].logprobs.as_ref().unwrap().content.as_ref().unwrap();
    assert_eq!((logprobs.len(), logprobs[0].top_logprobs.len()), (2, 2));
    assert!(answer.usage.unwrap().total_tokens > 0);
}

#[test]
fn a_stream() {
    let daemon = Daemon::script(Script::Text("one two".into()));
    let text = run(async {
        let mut stream =
            client(&daemon).chat().create_stream(request(json!({"stream": true}))).await.unwrap();
        let mut text = String::new();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.unwrap();
            text.extend(chunk.choices.iter().filter_map(|choice| choice.delta.content.clone()));
        }
        text
    });
    assert_eq!(text, "one two");
}

#[test]
fn tools_and_json_schema() {
    let daemon = Daemon::script(Script::Echo);
    let parameters = json!({"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]});
    let tool = json!({"type": "function", "function": {"name": "recall", "parameters": parameters}});
    let answer =
        run(client(&daemon).chat().create(request(json!({"tools": [tool], "tool_choice": "required"}))))
            .unwrap();
    let choice = serde_json::to_value(&answer.choices[0]).unwrap();
    assert_eq!(choice["message"]["tool_calls"][0]["function"]["name"], "recall");
    assert_eq!(choice["finish_reason"], "tool_calls");
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": parameters}});
    let answer = run(client(&daemon).chat().create(request(json!({"response_format": format})))).unwrap();
    let content: Value = serde_json::from_str(answer.choices[0].message.content.as_deref().unwrap()).unwrap();
    assert!(content["q"].is_string());
}

#[test]
fn embeddings() {
    let daemon = Daemon::script(Script::Echo);
    let input = serde_json::from_value(json!({"model": "bespoke", "input": ["a", "b c"]})).unwrap();
    let answer = run(client(&daemon).embeddings().create(input)).unwrap();
    assert_eq!((answer.data.len(), answer.data[1].embedding.len()), (2, 8));
}

#[test]
fn errors() {
    let daemon = Daemon::script(Script::Fail(EngineError::PromptTooLong { tokens: 9, context: 8 }));
    let error = run(client(&daemon).chat().create(request(json!({})))).unwrap_err();
    let OpenAIError::ApiError(error) = error else { panic!("{error}") };
    assert!(error.to_string().contains("the prompt has 9 tokens"), "{error}");
}
