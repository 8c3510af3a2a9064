//! Tests of constraints over a made-up vocabulary, with a "model" whose logits are random.

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::grammars::any_object;
use super::*;
use crate::engine::sequence::{Sequence, Step};
use crate::engine::vocabulary::tests::vocabulary;
use crate::engine::vocabulary::{Token, Vocabulary};
use crate::engine::{AnswerEvent, Constraint, EngineError, FinishReason, Generate, Sampling, Usage};

/// Skeleton tokens as in our own vocabulary, some that begin with the closing quotation mark, and
/// words.
const TEXTS: [&str; 16] = [
    r#"{"gist":""#,
    r#","summary":""#,
    r#"","summary":""#,
    r#"":""#,
    r#"},{""#,
    "[[[[",
    r#"":{""#,
    "true",
    "false",
    "null",
    "the ",
    "error ",
    "ab",
    "12",
    "\\n",
    "é",
];

pub(super) fn words() -> Vocabulary {
    vocabulary(&TEXTS)
}

/// As in our own vocabulary: no other tokens begin with a quotation mark.
const SKELETON: [&str; 3] = [r#"{"gist":""#, r#","summary":""#, r#"","summary":""#];

pub(super) fn grammars(words: &Vocabulary) -> Grammars {
    Grammars::new(&words.token_env()).unwrap()
}

pub(super) fn begin(grammars: &Grammars, constraint: &Constraint) -> Result<Session, EngineError> {
    Ok(grammars.begin(*grammars.compile(constraint)?))
}

/// An answer with random logits; `wild` makes structure likely, to lead the answer into corners.
pub(super) fn answer(
    grammars: &Grammars,
    words: &Vocabulary,
    schema: &Value,
    budget: usize,
    seed: u64,
) -> Result<(String, FinishReason, Usage), EngineError> {
    answer_to(grammars, words, &Constraint::JsonSchema(schema.clone()), budget, seed)
}

pub(super) fn answer_to(
    grammars: &Grammars,
    words: &Vocabulary,
    constraint: &Constraint,
    budget: usize,
    seed: u64,
) -> Result<(String, FinishReason, Usage), EngineError> {
    let session = begin(grammars, constraint)?;
    let sampling = Sampling { temperature: 1.0, seed: Some(seed), ..Sampling::GREEDY };
    let request = Generate { sampling, ..Generate::new("", vec![]) };
    let (events, mut receiver) = mpsc::unbounded_channel();
    let mut sequence = Sequence::new(&request, &[], events, Some(session), budget, Usage::default())?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut step = sequence.start(words);
    let (mut steps, mut backs) = (0, 0);
    while step != Step::Ended {
        steps += 1;
        backs += usize::from(matches!(step, Step::Back { .. }));
        assert!(steps <= budget + 40 * backs * budget, "a step adds at least a token");
        let logits: Vec<f32> = (0..274).map(|_| rng.random_range(-3.0..3.0)).collect();
        step = sequence.next(&logits, words);
    }
    sequence.conclude();
    let mut text = String::new();
    loop {
        match receiver.try_recv().expect("a last event comes") {
            AnswerEvent::Started { .. }
            | AnswerEvent::Read(_)
            | AnswerEvent::Tokens(_)
            | AnswerEvent::Closed(_) => {}
            AnswerEvent::Text(more) => text += &more,
            AnswerEvent::Finished { reason, usage } => return Ok((text, reason, usage)),
            AnswerEvent::Failed(error) => panic!("{constraint:?} with {budget} tokens: {error}"),
        }
    }
}

fn random_schema(rng: &mut ChaCha8Rng, depth: usize) -> Value {
    let leaf = depth >= 3;
    match rng.random_range(0..if leaf { 9 } else { 13 }) {
        0 => json!({"type": "string"}),
        1 => {
            json!({"type": "string", "minLength": rng.random_range(0..6), "maxLength": rng.random_range(6..12)})
        }
        2 => json!({"enum": ["routine", "notable", "x", 7, null]}),
        3 => json!({"type": "number"}),
        4 => json!({"type": "integer", "minimum": rng.random_range(-20..2000), "maximum": 5000}),
        5 => json!({"type": ["boolean", "null"]}),
        6 => {
            json!({"type": "string", "pattern": *["^[0-9]{4}-[0-9]{2}$", "^(ab)*c$", "^a+$"].choose(rng).unwrap()})
        }
        7 => json!({"const": {"a": [1, "two"]}}),
        8 => json!({"type": "object", "additionalProperties": {"type": "integer"}}),
        9 => {
            json!({"type": "array", "items": random_schema(rng, depth + 1), "minItems": rng.random_range(0..3)})
        }
        10 => json!({"anyOf": [random_schema(rng, depth + 1), random_schema(rng, depth + 1)]}),
        _ => {
            let names = ["gist", "summary", "a", "long \"name\"", "é"];
            let count = rng.random_range(0..=names.len());
            let properties: Map<String, Value> = names[..count]
                .iter()
                .map(|name| ((*name).to_owned(), random_schema(rng, depth + 1)))
                .collect();
            let required: Vec<_> = names[..count].iter().filter(|_| rng.random_bool(0.7)).collect();
            json!({"type": "object", "properties": properties, "required": required,
                   "additionalProperties": if rng.random_bool(0.2) { json!({"type": "number"}) } else { json!(false) }})
        }
    }
}

#[test]
fn every_answer_is_valid_within_any_budget_or_refused_beforehand() {
    let words = words();
    let grammars = grammars(&words);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (mut closed, mut whole, mut refused) = (0, 0, 0);
    for case in 0..300 {
        let schema = random_schema(&mut rng, 0);
        let budget = *[1, 4, 12, 40, 120].choose(&mut rng).unwrap() + rng.random_range(0..8);
        match answer(&grammars, &words, &schema, budget, case) {
            Ok((text, reason, usage)) => {
                let value: Value = serde_json::from_str(&text)
                    .unwrap_or_else(|e| panic!("{e}: {text:?} of {schema} with {budget} tokens"));
                assert!(jsonschema::is_valid(&schema, &value), "{value} of {schema} with {budget} tokens");
                assert!(usage.completion_tokens as usize <= budget);
                if reason == FinishReason::Stop { whole += 1 } else { closed += 1 }
            }
            Err(EngineError::BudgetTooSmall { needed, given }) => {
                assert!(given as usize == budget && needed > given);
                refused += 1;
                // The number of tokens that the error asks for is enough.
                answer(&grammars, &words, &schema, needed as usize, case).unwrap();
            }
            Err(error) => panic!("{schema}: {error}"),
        }
    }
    assert!(closed > 30 && whole > 30 && refused > 10, "{closed} closed, {whole} whole, {refused} refused");
}

#[test]
fn forced_text_uses_the_longest_tokens_and_the_model_may_still_choose_them() {
    let words = vocabulary(&SKELETON);
    let grammars = grammars(&words);
    let schema = json!({"type": "object", "properties": {"gist": {"type": "string"}, "summary": {"type": "string"}},
                        "required": ["gist", "summary"], "additionalProperties": false});
    let mut session = begin(&grammars, &Constraint::JsonSchema(schema)).unwrap();
    assert_eq!(session.forced().unwrap(), [256]);
    let mask = session.mask().unwrap();
    assert!(mask.is_allowed(258), "the token that begins with the closing quotation mark");
    assert!(!mask.is_allowed(259) && !mask.is_allowed(260), "no end, no control token");
    session.accept(u32::from(b'"')).unwrap();
    assert_eq!(session.forced().unwrap(), [257]);
    session.accept(u32::from(b'"')).unwrap();
    assert_eq!(session.forced().unwrap(), [u32::from(b'}')]);
    assert!(session.ended().unwrap());
}

#[test]
fn shortest_closings_are_found() {
    let words = words();
    let grammars = grammars(&words);
    for (schema, tokens) in [
        (
            json!({"type": "object", "properties": {"gist": {"type": "string"}, "summary": {"type": "string"}},
                "required": ["gist", "summary"], "additionalProperties": false}),
            3 + 1,
        ),
        (json!({"type": "array", "items": {"type": "string"}}), 2),
        (json!({"enum": ["routine", "x"]}), 3),
        (json!({"type": "integer", "minimum": 100}), 3),
        (json!({"type": "string", "pattern": "^(the )*ab$"}), 3),
        (json!({"type": "boolean"}), 1),
    ] {
        let mut session = begin(&grammars, &Constraint::JsonSchema(schema.clone())).unwrap();
        assert_eq!(session.closing().unwrap().len(), tokens, "{schema}");
    }
}

#[test]
fn numbers_stay_within_what_a_double_holds() {
    let words = words();
    let grammars = grammars(&words);
    let schema =
        json!({"type": "array", "items": {"type": ["number", "integer"], "minimum": 0}, "minItems": 2});
    for seed in 0..20 {
        let (text, _, _) = answer(&grammars, &words, &schema, 60, seed).unwrap();
        let numbers: Vec<f64> = serde_json::from_str(&text).unwrap();
        assert!(numbers.iter().all(|n| *n >= 0.0 && n.is_finite()), "{text}");
    }
}

#[test]
fn strings_hold_no_control_characters() {
    let words = words();
    let grammars = grammars(&words);
    let mut session = begin(&grammars, &Constraint::JsonSchema(json!({"type": "string"}))).unwrap();
    session.accept(u32::from(b'"')).unwrap();
    let mask = session.mask().unwrap();
    for byte in (0..0x20).chain([0xff, 0xc0, 0x80]) {
        assert!(!mask.is_allowed(byte), "{byte:#x}");
    }
    session.accept(u32::from(b'\\')).unwrap();
    let mask = session.mask().unwrap();
    assert!(
        mask.is_allowed(u32::from(b'n'))
            && !mask.is_allowed(u32::from(b'u'))
            && !mask.is_allowed(u32::from(b'b'))
    );
}

#[test]
fn schemas_that_cannot_be_used_are_named() {
    let words = words();
    let grammars = grammars(&words);
    let nested = (0..200).fold(json!({}), |inner, _| json!({"items": inner}));
    let recursive = json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"],
                           "additionalProperties": false});
    for (schema, expected) in [
        (nested, "nests deeper"),
        (recursive, "#: it requires itself"),
        (json!({"type": "strin"}), "#/type: found"),
        (json!(false), "#: no value"),
        (json!({"enum": ["x".repeat(300_000)]}), "bytes"),
        (json!({"type": "string", "pattern": "("}), "#/pattern: "),
    ] {
        match begin(&grammars, &Constraint::JsonSchema(schema.clone())) {
            Err(EngineError::Schema(message)) => assert!(message.contains(expected), "{message}"),
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("{schema} was taken"),
        }
    }
}

#[test]
fn a_json_object_is_any_object() {
    let words = words();
    let grammars = grammars(&words);
    let mut session = begin(&grammars, &Constraint::JsonObject).unwrap();
    assert_eq!(session.closing().unwrap().len(), 2);
    for seed in 0..20 {
        let (text, _, _) = answer(&grammars, &words, &any_object(), 30, seed).unwrap();
        assert!(serde_json::from_str::<Map<String, Value>>(&text).is_ok(), "{text}");
    }
    assert!(matches!(words.token(272), Token::End));
}

#[test]
fn a_text_that_goes_on_and_on_leaves_its_share_to_the_others() {
    let words = words();
    let grammars = grammars(&words);
    let text = json!({"type": "string"});
    let schema = json!({
        "type": "object",
        "properties": {"a": text, "list": {"type": "array", "items": text}, "z": text},
        "required": ["a", "list", "z"],
        "additionalProperties": false,
    });
    // A model that never ends a text: only letters are likely, never a quotation mark.
    let endless = |budget: usize, schema: &Value| {
        let session = begin(&grammars, &Constraint::JsonSchema(schema.clone())).unwrap();
        let (events, mut receiver) = mpsc::unbounded_channel();
        let request = Generate::new("", vec![]);
        let mut sequence =
            Sequence::new(&request, &[], events, Some(session), budget, Usage::default()).unwrap();
        let x = words.token_env().tok_trie().greedy_tokenize(b"x")[0];
        let logits: Vec<f32> = (0..274).map(|token| if token == x { 1.0 } else { -1.0 }).collect();
        let mut step = sequence.start(&words);
        while step != Step::Ended {
            step = sequence.next(&logits, &words);
        }
        sequence.conclude();
        let (mut text, mut end) = (String::new(), None);
        while let Ok(event) = receiver.try_recv() {
            match event {
                AnswerEvent::Text(more) => text += &more,
                AnswerEvent::Finished { reason, .. } => end = Some(reason),
                _ => {}
            }
        }
        (serde_json::from_str::<Value>(&text).unwrap(), end.unwrap())
    };
    for budget in [80, 200, 1_000] {
        let (value, reason) = endless(budget, &schema);
        let length = |value: &Value| value.as_str().unwrap().len();
        let (a, z) = (length(&value["a"]), length(&value["z"]));
        assert!(a >= budget / 3 && a <= budget / 2, "{a} of {budget}: {value}");
        // Names and brackets take some tokens, too.
        assert!(z >= (budget - 60) / 16, "{z} of {budget}: {value}");
        assert_eq!(reason, FinishReason::Length);
    }
    // A value that nothing has to follow may take everything.
    let alone = json!({"type": "object", "properties": {"a": text}, "required": ["a"], "additionalProperties": false});
    let (value, reason) = endless(200, &alone);
    assert!(value["a"].as_str().unwrap().len() > 180, "{value}");
    assert_eq!(reason, FinishReason::Length);
}

#[test]
fn grammars_hold_the_answer_and_are_cut_where_the_tokens_end() {
    let words = words();
    let grammars = grammars(&words);
    let gbnf = |text: &str| Constraint::Gbnf(text.to_owned());
    for (constraint, pattern) in [
        (Constraint::Regex("[0-9]{4}-[0-9]{2}".to_owned()), "^[0-9]{4}-[0-9]{2}$"),
        (Constraint::Lark("start: \"yes\" | \"no\" [0-9]\n".replace("[0-9]", "/[0-9]/")), "^(yes|no[0-9])$"),
        (
            gbnf("root ::= (\"yes\" | \"no\") tail?\ntail ::= [a-c]{2,3} # at most three\n"),
            "^(yes|no)([a-c]{2,3})?$",
        ),
        (gbnf("root ::= \"\\\"\" [^\"]{1,3} \"\\u00e9\""), "(?s)^\"[^\"]{1,3}\u{e9}$"),
        (gbnf("root ::= item{2}\nitem ::= \"(\" item? \")\""), r"^[()]*$"),
    ] {
        let pattern = regex::Regex::new(pattern).unwrap();
        let mut whole = 0;
        for seed in 0..20 {
            let (text, reason, usage) = answer_to(&grammars, &words, &constraint, 60, seed).unwrap();
            assert!(usage.completion_tokens <= 60);
            if reason == FinishReason::Stop {
                assert!(pattern.is_match(&text), "{text:?} of {constraint:?}");
                let (mut open, mut lowest) = (0i32, 0);
                for c in text.chars() {
                    open += i32::from(c == '(') - i32::from(c == ')');
                    lowest = lowest.min(open);
                }
                assert!(
                    (open, lowest) == (0, 0)
                        || !matches!(&constraint, Constraint::Gbnf(g) if g.contains("item")),
                    "{text}"
                );
                whole += 1;
            }
        }
        assert!(whole > 0, "{constraint:?} never came to an end");
    }
    let endless = gbnf("root ::= [a-z]+");
    let (text, reason, usage) = answer_to(&grammars, &words, &gbnf("root ::= [a-z]{90,99}"), 7, 1).unwrap();
    assert_eq!((reason, usage.completion_tokens), (FinishReason::Length, 7), "{text}");
    assert!(begin(&grammars, &endless).is_ok());
    let wrong = begin(&grammars, &gbnf("root ::= nothing")).err();
    assert!(matches!(wrong, Some(EngineError::Grammar(message)) if message.contains("nothing")));
}

/// The answer of a model that always wants this token most, given what it has said so far.
fn wanting(
    grammars: &Grammars,
    words: &Vocabulary,
    constraint: &Constraint,
    stop: &[&str],
    budget: usize,
    wanted: impl Fn(&str) -> &'static str,
) -> (String, FinishReason) {
    let session = begin(grammars, constraint).unwrap();
    let stop = stop.iter().map(|&text| text.to_owned()).collect();
    let request = Generate { stop, ..Generate::new("", vec![]) };
    let (events, mut receiver) = mpsc::unbounded_channel();
    let mut sequence = Sequence::new(&request, &[], events, Some(session), budget, Usage::default()).unwrap();
    let (env, mut said) = (words.token_env(), String::new());
    let mut step = sequence.start(words);
    loop {
        let mut end = None;
        sequence.conclude();
        while let Ok(event) = receiver.try_recv() {
            match event {
                AnswerEvent::Text(more) => said += &more,
                AnswerEvent::Finished { reason, .. } => end = Some(reason),
                _ => {}
            }
        }
        if step == Step::Ended {
            return (said, end.unwrap());
        }
        let best = env.tok_trie().greedy_tokenize(wanted(&said).as_bytes())[0];
        let logits: Vec<f32> = (0..274).map(|token| if token == best { 1.0 } else { -1.0 }).collect();
        step = sequence.next(&logits, words);
    }
}

#[test]
fn stop_texts_end_what_need_not_be_closed_and_never_json() {
    let words = words();
    let grammars = grammars(&words);
    for constraint in [
        Constraint::Regex("[a-z]+".to_owned()),
        Constraint::Gbnf("root ::= [a-z]+".to_owned()),
        Constraint::Lark("start: /[a-z]+/\n".to_owned()),
    ] {
        let says = |said: &str| if said.len() < 2 { "a" } else { "x" };
        let found = wanting(&grammars, &words, &constraint, &["xx"], 8, says);
        assert_eq!(found, ("aa".to_owned(), FinishReason::Stop), "{constraint:?}");
    }
    let json = Constraint::JsonSchema(json!({"type": "string"}));
    let says = |said: &str| if said.len() == 4 { "\"" } else { "x" };
    let found = wanting(&grammars, &words, &json, &["xx"], 20, says);
    assert_eq!(found, ("\"xxx\"".to_owned(), FinishReason::Stop));
}

#[test]
fn a_value_that_the_model_ends_itself_where_it_would_be_ended_is_not_cut() {
    let words = words();
    let grammars = grammars(&words);
    let text = json!({"type": "string"});
    let schema = json!({"type": "object", "properties": {"a": text, "z": text}, "required": ["a", "z"],
                        "additionalProperties": false});
    let constraint = Constraint::JsonSchema(schema);
    let reason = |letters: usize| {
        let says = move |said: &str| match said.split_once("\",\"z\":\"") {
            None if said.matches('x').count() < letters => "x",
            Some((_, "")) => "y",
            _ => "\"",
        };
        let (text, reason) = wanting(&grammars, &words, &constraint, &[], 40, says);
        let value: Value = serde_json::from_str(&text).unwrap();
        (value["a"].as_str().unwrap().len(), value["z"].as_str().unwrap().len(), reason)
    };
    // How long the first text may become.
    let (most, _, cut) = reason(39);
    assert_eq!(cut, FinishReason::Length);
    assert_eq!(reason(most), (most, 1, FinishReason::Stop), "it ends just there");
    let (length, _, cut) = reason(most + 1);
    assert_eq!((length, cut), (most, FinishReason::Length));
}
