//! Tests the fields that all endpoints share: each takes effect, or gives an error that names it.

use serde_json::{Value, json};

use super::*;
use crate::engine::{Constraint, Penalties, Sampling};

pub(in crate::api) const GREEDY: SamplingDefaults = SamplingDefaults {
    temperature: 0.0,
    top_p: 1.0,
    top_k: 0,
    min_p: 0.0,
    seed: None,
    thinking: false,
    task_limits: true,
};

fn parse_with(fields: Value, defaults: &SamplingDefaults) -> Result<AnswerOptions, String> {
    let written = crate::text::fields::parse(fields.as_object().unwrap().clone());
    let written = written.map_err(|error| error.to_string())?;
    AnswerOptions::new(written, defaults).map_err(|error| error.to_string())
}

fn parse(fields: Value) -> Result<AnswerOptions, String> {
    parse_with(fields, &GREEDY)
}

#[test]
fn silence_means_the_defaults() {
    let options =
        parse(json!({"temperature": null, "stop": null, "seed": null, "response_format": null, "n": null}))
            .unwrap();
    assert_eq!(options.generate.sampling, Sampling::GREEDY);
    assert_eq!(
        (options.generate.max_tokens, options.stream, options.generate.constraint, options.n),
        (None, false, None, 1)
    );
    assert!(
        options.generate.stop.is_empty()
            && options.bias.is_empty()
            && options.generate.cache
            && options.generate.draft
    );
}

#[test]
fn sampling_is_taken_as_written() {
    let options =
        parse(json!({"temperature": 0.3, "top_p": 0.9, "top_k": -1, "min_p": 0.05, "seed": 7})).unwrap();
    let expected = Sampling { temperature: 0.3, top_p: 0.9, min_p: 0.05, seed: Some(7), ..Sampling::GREEDY };
    assert_eq!(options.generate.sampling, expected);
    assert_eq!(parse(json!({"seed": -1})).unwrap().generate.sampling.seed, None);
}

#[test]
fn penalties_look_back_as_far_as_their_authors_mean() {
    let of = |fields| parse(fields).unwrap().generate.sampling.penalties;
    let openai = of(json!({"presence_penalty": 0.5, "frequency_penalty": -1}));
    assert_eq!(openai, Penalties { presence: 0.5, frequency: -1.0, ..Penalties::NONE });
    let llama = of(json!({"repeat_penalty": 1.1}));
    assert_eq!(llama, Penalties { repeat: 1.1, last: Some(64), ..Penalties::NONE });
    assert_eq!(of(json!({"repetition_penalty": 1.1})), llama);
    assert_eq!(of(json!({"repeat_penalty": 1.1, "repeat_last_n": 9})).last, Some(9));
    assert_eq!(of(json!({"presence_penalty": 1, "repeat_last_n": -1})).last, Some(u32::MAX));
    assert_eq!(of(json!({"repeat_penalty": 1})), Penalties::NONE);
}

#[test]
fn the_newest_name_of_the_budget_wins() {
    let of = |fields| parse(fields).map(|options| options.generate.max_tokens);
    assert_eq!(of(json!({"max_tokens": 5, "max_completion_tokens": 7, "n_predict": 9})), Ok(Some(7)));
    assert_eq!(of(json!({"max_tokens": 5, "n_predict": 9})), Ok(Some(5)));
    assert_eq!(of(json!({"n_predict": 9})), Ok(Some(9)));
    assert_eq!(of(json!({"max_tokens": -1})), Ok(None));
    assert!(of(json!({"n_predict": 0})).unwrap_err().starts_with("n_predict: found 0"));
}

#[test]
fn shapes_become_constraints() {
    let schema = json!({"type": "object"});
    let of = |fields: Value| {
        parse(fields).map(|options| {
            options.generate.constraint.map(|constraint| (options.constraint_field, constraint))
        })
    };
    let format = |format: Value| of(json!({"response_format": format}));
    let wanted = Ok(Some(("response_format", Constraint::JsonSchema(schema.clone()))));
    let named =
        json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}});
    assert_eq!(format(named), wanted);
    assert_eq!(format(json!({"type": "json_object", "schema": schema})), wanted);
    let object = Ok(Some(("response_format", Constraint::JsonObject)));
    assert_eq!(format(json!({"type": "json_object"})), object);
    assert_eq!(format(json!({"type": "text"})), Ok(None));
    let regex = Constraint::Regex("a+".into());
    assert_eq!(
        format(json!({"type": "regex", "pattern": "a+"})),
        Ok(Some(("response_format", regex.clone())))
    );
    assert_eq!(of(json!({"regex": "a+"})), Ok(Some(("regex", regex))));
    assert_eq!(of(json!({"json_schema": schema})), Ok(Some(("json_schema", Constraint::JsonSchema(schema)))));
    let gbnf = "root ::= \"a\"";
    assert_eq!(of(json!({"grammar": gbnf})), Ok(Some(("grammar", Constraint::Gbnf(gbnf.into())))));
    let lark = "%llguidance {}\nstart: \"a\"";
    assert_eq!(of(json!({"grammar": lark})), Ok(Some(("grammar", Constraint::Lark(lark.into())))));
    assert_eq!(of(json!({"grammar": ""})), Ok(None));
}

#[test]
fn an_encoding_is_held_to_its_limits_unless_configured_otherwise() {
    let schema = json!({"type": "object", "properties": {"gist": {"type": "string"}}});
    let gist = |name: &str, task_limits| {
        let format = json!({"type": "json_schema", "json_schema": {"name": name, "schema": schema}});
        let defaults = SamplingDefaults { task_limits, ..GREEDY };
        let options = parse_with(json!({"response_format": format}), &defaults).unwrap();
        let Some(Constraint::JsonSchema(sent)) = options.generate.constraint else { panic!("no schema") };
        sent["properties"]["gist"].get("maxLength").cloned()
    };
    assert!(gist("encoding_response", true).is_some());
    assert_eq!(gist("encoding_response", false), None);
    assert_eq!(gist("another", true), None);
}

#[test]
fn the_rest_is_taken_as_written() {
    let options = parse(json!({
        "ignore_eos": true, "cache_prompt": false, "draft": false, "n": 3, "best_of": 3, "timings_per_token": true,
    }))
    .unwrap();
    assert!(
        options.generate.ignore_end
            && !options.generate.cache
            && !options.generate.draft
            && options.timings_per_token
    );
    assert_eq!(options.n, 3);
    assert!(!parse(json!({"speculative.n_max": 0})).unwrap().generate.draft);
    assert!(parse(json!({"speculative.n_max": 4})).unwrap().generate.draft);
    let biases = parse(json!({"logit_bias": [[5, false], ["word", 1.5]]})).unwrap().bias;
    assert_eq!(biases.len(), 2);
}

#[test]
fn mistakes_name_their_field() {
    for (fields, start) in [
        (json!({"temperature": 3}), "temperature: found 3"),
        (json!({"top_p": "much"}), "top_p: invalid type"),
        (json!({"stop": ["a", ""]}), "stop[1]: is empty"),
        (json!({"stop": 5}), "stop: expected a string"),
        (json!({"stop": vec!["x"; 65]}), "stop: has 65 texts, expected at most 64"),
        (json!({"stop": ["a", "x".repeat(1_025)]}), "stop[1]: has 1025 bytes, expected at most 1024"),
        (
            json!({"logit_bias": vec![json!([5, 1]); 4_097]}),
            "logit_bias: has 4097 entries, expected at most 4096",
        ),
        (
            json!({"logit_bias": [["x".repeat(257), 1]]}),
            "logit_bias[0][0]: has 257 bytes, expected at most 256",
        ),
        (json!({"stream": "yes"}), "stream: invalid type"),
        (json!({"n": 17}), "n: found 17, expected 1 to 16"),
        (json!({"n": 0}), "n: found 0"),
        (json!({"best_of": 2}), "best_of: 2 is not supported"),
        (json!({"presence_penalty": 3}), "presence_penalty: found 3"),
        (json!({"repeat_penalty": 0}), "repeat_penalty: found 0"),
        (json!({"repetition_penalty": -1}), "repetition_penalty: found -1"),
        (json!({"repeat_last_n": -2}), "repeat_last_n: found -2"),
        (json!({"logit_bias": {"5": 101}}), "logit_bias.5: found 101"),
        (json!({"logit_bias": {"5": "no"}}), "logit_bias.5: found \"no\""),
        (json!({"logit_bias": [[5]]}), "logit_bias[0]: found [5]"),
        (json!({"logit_bias": [[5, 1], [-5, 1]]}), "logit_bias[1][0]: found -5"),
        (json!({"logit_bias": [[5, true]]}), "logit_bias[0][1]: found true"),
        (json!({"logit_bias": "x"}), "logit_bias: found a string"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type: unknown variant `xml`"),
        (json!({"response_format": {"type": "regex"}}), "response_format.pattern: is missing"),
        (
            json!({"response_format": {"type": "json_schema"}}),
            "response_format.json_schema.schema: is missing",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": "string"}}}),
            "response_format.json_schema.schema: found a string",
        ),
        (json!({"json_schema": "{}"}), "json_schema: found a string"),
        (json!({"grammar": 5}), "grammar: invalid type"),
        (
            json!({"grammar": "root ::= \"a\"", "response_format": {"type": "json_object"}}),
            "grammar: can't be combined with response_format",
        ),
        (json!({"regex": "a", "json_schema": {}}), "regex: can't be combined with json_schema"),
        (json!({"ignore_eos": true, "regex": "a"}), "ignore_eos: can't be combined with regex"),
        (json!({"speculative.n_max": -1}), "speculative.n_max"),
        (json!({"cache_prompt": 1}), "cache_prompt: invalid type"),
    ] {
        let error = parse(fields.clone()).unwrap_err();
        assert!(error.starts_with(start), "{fields}: {error}");
    }
}

#[test]
fn what_no_empty_daemon_could_admit_is_refused_with_the_numbers() {
    let mut model = ModelSettings::of("model.gguf".into());
    (model.lanes, model.queue, model.queue_tokens) = (2, 4, 3_000);
    let check = |fields: Value, prompts: usize, bytes: usize| {
        let prompts = vec![vec![crate::engine::Segment::plain("x".repeat(bytes))]; prompts];
        parse(fields).unwrap().check_room(&model, &prompts, 2_048).map_err(|error| error.to_string())
    };
    let short = json!({"n": 6, "max_tokens": 10});
    assert_eq!(check(short.clone(), 1, 30), Ok(()));
    let error = check(json!({"n": 7, "max_tokens": 10}), 1, 30).unwrap_err();
    assert!(error.starts_with("n: asks for 7 answers at once") && error.contains("at most 6"), "{error}");
    let error = check(short, 2, 30).unwrap_err();
    assert!(error.starts_with("prompt: asks for 12 answers at once"), "{error}");
    // An answer without a limit may fill the context. Two fit into the lanes, a third may wait
    // alone, a fourth may not.
    let (three, four) = (check(json!({"n": 3}), 1, 30), check(json!({"n": 4}), 1, 30).unwrap_err());
    assert_eq!(three, Ok(()));
    assert!(four.contains("2 would wait with about 4096 tokens; at most 3000"), "{four}");
}
