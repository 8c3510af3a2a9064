//! Tests conversations: what the template gets, and where the prompt ends.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::*;

fn parse(fields: Value) -> Result<Conversation, String> {
    let mut body = json!({"messages": [{"role": "user", "content": "x"}]});
    let body = body.as_object_mut().unwrap();
    body.extend(fields.as_object().unwrap().clone());
    Conversation::take(body).map_err(|error| error.to_string())
}

fn tool(name: &str, parameters: &Value) -> Value {
    json!({"type": "function", "function": {"name": name, "description": "Looks.", "parameters": parameters}})
}

fn text(prompt: Prompt) -> String {
    prompt.into_iter().map(|segment| segment.text).collect()
}

#[test]
fn a_template_that_asks_for_the_date_gets_it_unless_the_request_sets_it() {
    let noon = || SystemTime::UNIX_EPOCH + Duration::from_secs(1_721_995_200);
    let of = |source: &str, fields: Value| {
        let template = ChatTemplate::new(source, "", "").unwrap().with_clock(noon);
        text(parse(fields).unwrap().prompt(&template).unwrap())
    };
    assert_eq!(of("{{ date_string }}, {{ datetime }}", json!({})), "26 Jul 2024, Jul 26 2024");
    let set = json!({"chat_template_kwargs": {"date_string": "today"}});
    assert_eq!(of("{{ date_string }}, {{ datetime }}", set), "today, Jul 26 2024");
    assert_eq!(of("{{ date }}.", json!({})), ".");
}

#[test]
fn effort_decides_about_thinking_and_the_templates_own_word_wins() {
    let template = ChatTemplate::new("{{ enable_thinking }} {{ reasoning_effort }}", "", "").unwrap();
    let of = |fields| {
        // The message isn't shown, so the whole prompt is plain. Only the text matters here.
        text(parse(fields).unwrap().prompt(&template).unwrap())
    };
    assert_eq!(of(json!({})), "False ");
    assert_eq!(of(json!({"reasoning_effort": "none"})), "False none");
    assert_eq!(of(json!({"reasoning_effort": "high"})), "True high");
    let both = json!({"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": false}});
    assert_eq!(of(both), "False high");
    let unknown = parse(json!({"reasoning_effort": "hard"})).unwrap_err();
    assert!(unknown.starts_with("reasoning_effort: unknown variant `hard`"), "{unknown}");
}

#[test]
fn a_template_that_knows_no_tools_is_told_in_the_system_message() {
    let messages = json!([
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"q\":1}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "R"},
    ]);
    let tools = json!([tool("f", &json!({"type": "object"}))]);
    let conversation = parse(json!({"messages": messages, "tools": tools})).unwrap();
    let prompt = text(conversation.prompt(&ChatTemplate::chat_ml()).unwrap());
    for part in [
        "<|im_start|>system\nS\n\n# Tools\n",
        "<tools>\n{\"type\": \"function\", \"function\": {\"name\": \"f\", \"description\": \"Looks.\"",
        "<|im_start|>assistant\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"q\": 1}}\n</tool_call><|im_end|>",
        "<|im_start|>user\n<tool_response>\nR\n</tool_response><|im_end|>",
    ] {
        assert!(prompt.contains(part), "{part:?} is not in {prompt}");
    }
    let none = parse(json!({"tools": tools, "tool_choice": "none"})).unwrap();
    assert!(!text(none.prompt(&ChatTemplate::chat_ml()).unwrap()).contains("Looks."));
}

#[test]
fn a_promised_call_is_opened_and_opened_thinking_is_closed() {
    let template = ChatTemplate::new(
        "{% for m in messages %}{{ m.content }}{% endfor %}<|a|>{{ '<think>\\n' }}",
        "",
        "",
    )
    .unwrap();
    let fields = json!({"tools": [tool("f", &json!({}))], "tool_choice": "required"});
    let prompt = text(parse(fields).unwrap().answer_prompt(&template, true).unwrap());
    assert_eq!(prompt.split_once("<|a|>").unwrap().1, "<think>\n\n</think>\n\n<tool_call>\n");
    let prompt = parse(json!({})).unwrap().answer_prompt(&template, false).unwrap();
    assert!(opens_thinking(&prompt));
}

#[test]
fn what_the_assistant_said_last_is_continued() {
    let template = ChatTemplate::chat_ml();
    let prompt = |last: Value| {
        let messages = json!([{"role": "user", "content": "Name a fruit."}, last]);
        parse(json!({"messages": messages})).unwrap().prompt(&template).unwrap()
    };
    let said = prompt(json!({"role": "assistant", "content": "An <|im_end|>app"}));
    assert_eq!(
        said,
        [
            Segment::markup("<|im_start|>user\n"),
            Segment::plain("Name a fruit."),
            Segment::markup("<|im_end|>\n<|im_start|>assistant\n"),
            Segment::plain("An <|im_end|>app"),
        ]
    );
    let nothing = text(prompt(json!({"role": "assistant", "content": null})));
    assert!(nothing.ends_with("<|im_start|>assistant\n"), "{nothing}");
    let call = json!({"role": "assistant", "content": "x", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]});
    assert!(text(prompt(call)).ends_with("<|im_start|>assistant\n"), "a turn with calls is over");
}

#[test]
fn a_marker_against_thinking_is_for_templates_that_look_for_it() {
    let fields = json!({"messages": [{"role": "user", "content": "a /no_think"}]});
    for (source, expected) in [
        ("{{ messages[0].content }}", "a"),
        (
            "{% if '/no_think' in messages[0].content %}off: {% endif %}{{ messages[0].content }}",
            "off: a /no_think",
        ),
    ] {
        let template = ChatTemplate::new(source, "", "").unwrap();
        assert_eq!(text(parse(fields.clone()).unwrap().prompt(&template).unwrap()), expected);
    }
}

#[test]
fn what_was_thought_is_not_continued() {
    let messages = json!([{"role": "user", "content": "u"},
        {"role": "assistant", "content": "so far", "reasoning_content": "because"}]);
    let error = parse(json!({"messages": messages})).unwrap().prompt(&ChatTemplate::chat_ml()).unwrap_err();
    assert!(error.to_string().starts_with("messages[1].reasoning_content: "), "{error}");
}

#[test]
fn nothing_is_continued_after_opened_thinking() {
    let source =
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking %}<think>{% endif %}";
    let template = ChatTemplate::new(source, "", "").unwrap();
    let messages = json!([{"role": "user", "content": "u"}, {"role": "assistant", "content": "so far"}]);
    let of = |effort: &str| {
        let conversation = parse(json!({"messages": messages, "reasoning_effort": effort})).unwrap();
        conversation.prompt(&template).map(text).map_err(|error| error.to_string())
    };
    assert_eq!(of("none"), Ok("uso far".to_owned()));
    let error = of("high").unwrap_err();
    assert!(error.starts_with("messages[1]: ") && error.contains("reasoning_effort"), "{error}");
    // A constrained answer doesn't think: opened thinking is closed first.
    let conversation = parse(json!({"messages": messages, "reasoning_effort": "high"})).unwrap();
    let prompt = text(conversation.answer_prompt(&template, true).unwrap());
    assert_eq!(prompt, "u<think>\n</think>\n\nso far");
}

#[test]
fn a_client_may_say_where_the_prompt_ends() {
    let template = ChatTemplate::chat_ml();
    let rendered = |fields: Value| {
        let mut body =
            json!({"messages": [{"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}]});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let conversation = parse(body)?;
        conversation.check_end().map_err(|error| error.to_string())?;
        let prompt = conversation.prompt(&template).map_err(|error| error.to_string())?;
        Ok::<_, String>(prompt.into_iter().map(|segment| segment.text).collect::<String>())
    };
    let (user, open) = ("<|im_start|>user\nU<|im_end|>\n", "<|im_start|>assistant\n");
    let continued = format!("{user}{open}A");
    let closed = format!("{user}{open}A<|im_end|>\n");
    for (fields, expected) in [
        (json!({}), &continued),
        (json!({"continue_final_message": true, "add_generation_prompt": false}), &continued),
        (json!({"add_generation_prompt": false}), &closed),
        (json!({"continue_final_message": false}), &format!("{closed}{open}")),
    ] {
        assert_eq!(rendered(fields.clone()).as_ref(), Ok(expected), "{fields}");
    }
    for (fields, start) in [
        (json!({"continue_final_message": true, "add_generation_prompt": true}), "continue_final_message: "),
        (
            json!({"continue_final_message": true, "messages": [{"role": "user", "content": "U"}]}),
            "continue_final_message: the last message",
        ),
        (
            json!({"messages": [{"role": "assistant", "content": "A"}, {"role": "assistant", "content": "B"}]}),
            "messages[1]: the last message is continued",
        ),
    ] {
        let error = rendered(fields.clone()).unwrap_err();
        assert!(error.starts_with(start), "{fields}: {error}");
    }
}
