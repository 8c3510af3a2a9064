//! Tests of answers that would repeat themselves, with models that say what a test wants.

use std::collections::HashSet;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;
use crate::engine::constraint::Grammars;
use crate::engine::vocabulary::tests::vocabulary;
use crate::engine::{CloseReason, Closed, Constraint, DistinctList, Guard, Longest, Sampling};

/// Tokens that end an item and begin the next, as in our own vocabulary, and words.
const TEXTS: [&str; 9] =
    [r#"",""#, r#""],""#, r#""},{"name":""#, r#"{"name":""#, "disk", " full", "alpha", "error ", "12"];

#[derive(Debug)]
struct Said {
    value: Value,
    text: String,
    reason: FinishReason,
    usage: Usage,
    closed: Vec<(String, CloseReason)>,
    tokens: Vec<TokenReport>,
    /// Texts as they were sent.
    told: Vec<String>,
}

/// A request of a test.
#[derive(Clone)]
struct Asked {
    schema: Value,
    guard: Option<Guard>,
    prompt: String,
    budget: usize,
    sampling: Sampling,
    force: bool,
}

impl Asked {
    fn of(schema: Value) -> Self {
        Self {
            schema,
            guard: None,
            prompt: String::new(),
            budget: 400,
            sampling: Sampling::GREEDY,
            force: true,
        }
    }

    fn guarded(schema: Value) -> Self {
        let list = |path: &str, members: &[&str]| DistinctList {
            path: path.to_owned(),
            members: members.iter().map(ToString::to_string).collect(),
        };
        let distinct = vec![list("/l", &[]), list("/o", &["name"])];
        let longest = Longest { text: 2_000, list: 2_000 };
        Self { guard: Some(Guard { distinct, longest: Some(longest) }), ..Self::of(schema) }
    }

    /// The answer of a model whose logits after a text are `logits(text)`. Checks also what the
    /// model would have to decode.
    fn answer(&self, mut logits: impl FnMut(&str, &Vocabulary) -> Vec<f32>) -> Result<Said, EngineError> {
        let words = vocabulary(&TEXTS);
        let grammars = Grammars::new(&words.token_env()).unwrap();
        let session = grammars.begin(*grammars.compile(&Constraint::JsonSchema(self.schema.clone()))?);
        let prompt = vec![crate::engine::Segment::plain(self.prompt.as_str())];
        let request = Generate {
            guard: self.guard.clone(),
            sampling: self.sampling,
            report: Some(1),
            ..Generate::new("", prompt)
        };
        let (events, mut receiver) = mpsc::unbounded_channel();
        let mut sequence =
            Sequence::new(&request, &[], events, Some(session), self.budget, Usage::default())?;
        if !self.force {
            sequence = sequence.without_force();
        }
        let mut decoded: Vec<u32> = Vec::new();
        let mut step = sequence.start(&words);
        let mut steps = 0;
        loop {
            match step {
                Step::Decode(tokens) => decoded.extend(tokens),
                Step::Back { drop, tokens } => {
                    assert!(!tokens.is_empty() && drop > 0);
                    decoded.truncate(decoded.len() - drop);
                    decoded.extend(tokens);
                }
                Step::Ended => break,
            }
            steps += 1;
            assert!(steps <= 20 * self.budget, "it comes to an end");
            let bytes: Vec<u8> = decoded.iter().flat_map(|&token| words.bytes(token).to_vec()).collect();
            step = sequence.next(&logits(&String::from_utf8_lossy(&bytes), &words), &words);
        }
        sequence.conclude();
        let (mut text, mut told, mut tokens, mut closed) = (String::new(), vec![], vec![], vec![]);
        loop {
            match receiver.try_recv().expect("a last event comes") {
                AnswerEvent::Started { .. } | AnswerEvent::Read(_) => {}
                AnswerEvent::Text(more) => {
                    text += &more;
                    told.push(more);
                }
                AnswerEvent::Tokens(more) => tokens.extend(more),
                AnswerEvent::Closed(Closed { path, why }) => closed.push((path, why)),
                AnswerEvent::Finished { reason, usage } => {
                    let of_tokens: Vec<u8> = tokens
                        .iter()
                        .flat_map(|report: &TokenReport| words.bytes(report.token.id).to_vec())
                        .collect();
                    assert_eq!(String::from_utf8_lossy(&of_tokens), text, "each token has its report");
                    assert_eq!(usage.completion_tokens as usize, tokens.len());
                    assert!(tokens.len() <= self.budget);
                    let begun = text.as_bytes().starts_with(
                        &decoded.iter().flat_map(|&token| words.bytes(token).to_vec()).collect::<Vec<_>>(),
                    );
                    // The last step may take tokens back as well.
                    let other = reason == FinishReason::Length || !closed.is_empty();
                    assert!(begun || other, "what was decoded is what is told");
                    let value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
                    return Ok(Said { value, text, reason, usage, closed, tokens, told });
                }
                AnswerEvent::Failed(error) => return Err(error),
            }
        }
    }

    /// The answer of a model that wants one of these texts next, the first most of all.
    fn wanting(&self, wanted: impl Fn(&str) -> Vec<String>) -> Said {
        self.answer(|said, words| {
            let env = words.token_env();
            let mut logits = vec![-9.0; 267];
            for (rank, text) in wanted(said).iter().enumerate().rev() {
                if let Some(&token) = env.tok_trie().greedy_tokenize(text.as_bytes()).first() {
                    logits[token as usize] = 5.0 - rank as f32 / 10.0;
                }
            }
            logits
        })
        .unwrap()
    }

    /// The answer of a model that recites one answer, and closes whatever is open if it has to
    /// deviate.
    fn reciting(&self, answer: &str) -> Said {
        let ends = ["\"", "]", "}", ","].map(str::to_owned);
        self.wanting(|said| {
            let rest = answer.strip_prefix(said).map(str::to_owned);
            rest.into_iter().chain(ends.clone()).collect()
        })
    }
}

fn texts(more: Value) -> Value {
    let mut list = json!({"type": "array", "items": {"type": "string"}});
    list.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"type": "object", "properties": {"l": list, "z": {"type": "string"}}, "required": ["l", "z"],
           "additionalProperties": false})
}

fn objects() -> Value {
    let text = json!({"type": "string"});
    let item = json!({"type": "object", "properties": {"name": text, "t": text}, "required": ["name", "t"],
                      "additionalProperties": false});
    json!({"type": "object", "properties": {"o": {"type": "array", "items": item}}, "required": ["o"],
           "additionalProperties": false})
}

fn repeated(path: &str) -> Vec<(String, CloseReason)> {
    vec![(path.to_owned(), CloseReason::RepeatedItem)]
}

#[test]
fn a_list_ends_in_front_of_an_item_that_it_has() {
    let known = r#"{"l":["disk","error ","Disk ","alpha"],"z":"x"}"#;
    let said = Asked::guarded(texts(json!({}))).reciting(known);
    assert_eq!(said.value["l"], json!(["disk", "error "]));
    assert_eq!((said.closed, said.reason), (repeated("/l"), FinishReason::Stop));
    assert!(!said.text.contains("Disk"));
    // Without a guard, nothing changes.
    let said = Asked::of(texts(json!({}))).reciting(known);
    assert_eq!((said.text.as_str(), said.closed, said.reason), (known, vec![], FinishReason::Stop));

    let known = r#"{"o":[{"name":"disk","t":"1"},{"name":"alpha","t":"1"},{"name":"DISK","t":"2"}]}"#;
    let said = Asked::guarded(objects()).reciting(known);
    assert_eq!(said.value["o"], json!([{"name": "disk", "t": "1"}, {"name": "alpha", "t": "1"}]));
    assert_eq!(said.closed, repeated("/o"));
    let said = Asked::of(objects()).reciting(known);
    assert_eq!((said.text.as_str(), said.closed), (known, vec![]));
}

#[test]
fn an_item_is_told_when_it_is_known_to_be_new() {
    let said = Asked::guarded(objects())
        .reciting(r#"{"o":[{"name":"disk","t":"12"},{"name":"disk full","t":"12"},{"name":"disk","t":""}]}"#);
    assert_eq!(said.value["o"].as_array().unwrap().len(), 2);
    // The second name was sent as a whole, the text after it token by token.
    let from = said.told.iter().position(|text| text.contains("full")).unwrap();
    assert!(said.told[from].contains("disk full"), "{:?}", said.told);
    assert!(said.told[from + 1..].concat().starts_with("\"12"), "{:?}", said.told);
    assert!(said.told[..from].concat().ends_with("12"), "{:?}", said.told);
    assert!(!said.text.contains("full\",\"t\":\"12\"},"), "{}", said.text);
    // Nothing is held back where items may be equal.
    let plain = Asked::of(objects()).reciting(r#"{"o":[{"name":"disk","t":"12"},{"name":"disk","t":""}]}"#);
    assert!(plain.told.len() > 6, "{:?}", plain.told);
}

#[test]
fn unique_items_hold_and_another_item_is_taken_where_the_list_may_not_end() {
    let all = |list: &Value| list.as_array().unwrap().clone();
    let distinct = |list: &Value| {
        let items: HashSet<String> = all(list).iter().map(ToString::to_string).collect();
        assert_eq!(items.len(), all(list).len(), "{list}");
    };
    let known = r#"{"l":["disk","disk","disk","disk"],"z":"x"}"#;
    let said = Asked::of(texts(json!({"uniqueItems": true}))).reciting(known);
    assert_eq!((&said.value["l"], said.reason), (&json!(["disk"]), FinishReason::Stop));
    assert_eq!(said.closed, repeated("/l"));

    let said = Asked::of(texts(json!({"uniqueItems": true, "minItems": 3, "maxItems": 4}))).wanting(|said| {
        let ended = said.ends_with("disk") || said.ends_with("alpha") || said.ends_with(' ');
        let next: &[&str] = if ended { &["\""] } else { &["disk", "alpha", "error ", "\"", ","] };
        next.iter().map(ToString::to_string).collect()
    });
    distinct(&said.value["l"]);
    assert!(all(&said.value["l"]).len() >= 3, "{}", said.text);
    assert_eq!(said.value["l"].as_array().unwrap()[..2], [json!("disk"), json!("alpha")], "{}", said.text);

    // Even a model that can say only one thing gets different items.
    for force in [true, false] {
        let asked = Asked { force, ..Asked::of(texts(json!({"uniqueItems": true, "minItems": 5}))) };
        let said = asked.wanting(|said| {
            let wants = if said.ends_with("alpha") { "\"" } else { "alpha" };
            vec![wants.to_owned()]
        });
        distinct(&said.value["l"]);
        assert!(all(&said.value["l"]).len() >= 5, "{}", said.text);
    }
}

#[test]
fn enumerations_that_run_out_end_the_list_or_are_refused() {
    let of = |more: Value| {
        let mut list = json!({"type": "array", "uniqueItems": true, "items": {"enum": ["alpha1", "alpha2", "disk", 12, 12.0]}});
        list.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        list
    };
    for minimum in 0..=4 {
        for force in [true, false] {
            // The model would go on forever with the same item.
            let asked = Asked { force, ..Asked::of(of(json!({"minItems": minimum}))) };
            let said = asked.wanting(|_| [",", "\"", "alpha", "1"].map(str::to_owned).to_vec());
            let list = said.value.as_array().unwrap();
            let different: HashSet<String> =
                list.iter().map(|item| item.to_string().replace(".0", "")).collect();
            assert_eq!(different.len(), list.len(), "{}", said.text);
            assert!(list.len() >= minimum, "{}", said.text);
            assert_eq!(said.reason, FinishReason::Stop);
        }
    }
    let error = Asked::of(of(json!({"minItems": 5}))).answer(|_, _| vec![0.0; 267]).unwrap_err();
    assert!(
        matches!(&error, EngineError::Schema(why) if why.contains("no short value that validates")),
        "{error}"
    );
    let constant = json!({"type": "array", "uniqueItems": true, "minItems": 2, "items": {"const": 1}});
    assert!(Asked::of(constant).answer(|_, _| vec![0.0; 267]).is_err());
}

#[test]
fn numbers_are_equal_by_value_and_objects_whatever_their_order() {
    let number = json!({"type": "array", "items": {"type": "number"}, "uniqueItems": true});
    let said = Asked::of(number).reciting("[1,2,1.0,3]");
    assert_eq!(said.text, "[1,2]");
    let any = json!({"type": "array", "uniqueItems": true, "items": {"anyOf": [
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}}, "required": ["a"], "additionalProperties": false},
        {"type": "object", "properties": {"b": {"type": "boolean"}, "a": {"type": "integer"}}, "required": ["b"], "additionalProperties": false}]}});
    let said = Asked::of(any).reciting(r#"[{"a":1,"b":true},{"a":1,"b":false},{"b":true,"a":1},{"a":2}]"#);
    assert_eq!(said.text, r#"[{"a":1,"b":true},{"a":1,"b":false}]"#);
}

#[test]
fn answers_with_unique_items_are_valid_whatever_the_model_says_and_wherever_tokens_run_out() {
    let leaves = [
        json!({"type": "string", "maxLength": 1}),
        json!({"type": "string", "pattern": "^a{1,3}$"}),
        json!({"enum": ["alpha", "alpha12", "disk", null, 1, 1.0]}),
        json!({"type": "integer", "minimum": 0, "maximum": 12}),
        json!({"type": ["boolean", "null"]}),
        json!({"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": false}),
        json!({"type": "array", "items": {"type": "boolean"}, "uniqueItems": true, "maxItems": 2}),
    ];
    for seed in 0..60u64 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let list = json!({
            "type": "array", "uniqueItems": true, "items": leaves[seed as usize % leaves.len()],
            "minItems": rng.random_range(0..3),
        });
        let schema = json!({"type": "object", "properties": {"l": list, "z": {"type": "boolean"}}, "required": ["l", "z"],
                            "additionalProperties": false});
        let valid = jsonschema::validator_for(&schema).unwrap();
        let budget = rng.random_range(30..120);
        let sampling = Sampling { temperature: 1.0, seed: Some(seed), ..Sampling::GREEDY };
        let asked = Asked { budget, sampling, ..Asked::of(schema) };
        let said = asked.answer(|_, _| (0..267).map(|_| rng.random_range(-3.0..3.0)).collect());
        let said = said.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(valid.is_valid(&said.value), "seed {seed}: {}", said.text);
    }
}

#[test]
fn what_goes_round_is_ended_and_said_so() {
    let text = json!({"type": "string"});
    let schema = json!({"type": "object", "properties": {"a": text, "n": {"type": "number"}, "l": {"type": "array", "items": text},
        "z": text}, "required": ["a", "n", "l", "z"], "additionalProperties": false});
    let asked = Asked { budget: 4_096, ..Asked::guarded(schema.clone()) };
    let loops = |asked: &Asked| asked.wanting(|_| ["error ", "1", "."].map(str::to_owned).to_vec());
    let said = loops(&asked);
    assert!(said.usage.completion_tokens < 100, "{}", said.text);
    let paths: Vec<_> = said.closed.iter().map(|(path, why)| (path.as_str(), *why)).collect();
    let round = CloseReason::Loop;
    assert_eq!(paths[..2], [("/a", round), ("/n", round)], "{}", said.text);
    assert_eq!(paths.last(), Some(&("/z", round)));
    assert_eq!(said.reason, FinishReason::Length);
    for key in ["a", "z"] {
        assert!(said.value[key].as_str().unwrap().len() < 40, "{}", said.text);
    }
    // Text that the prompt contains is copied. Without a guard, nothing ends before tokens run out.
    let prompt = "error ".repeat(150);
    let copied = loops(&Asked { prompt: prompt.clone(), ..asked.clone() });
    let stays = copied.value["a"].as_str().unwrap();
    assert!(prompt.starts_with(stays) && stays.len() > 400, "{}", copied.text);
    let free = loops(&Asked { guard: None, budget: 600, ..asked });
    assert_eq!((free.closed, free.usage.completion_tokens), (vec![], 600));
}

#[test]
fn an_item_that_breaks_off_where_tokens_end_repeats_nothing() {
    for budget in 16..60 {
        let asked = Asked { budget, ..Asked::guarded(texts(json!({}))) };
        let said = asked
            .reciting(r#"{"l":["disk","error error","disk full","error error 12"],"z":"alpha alpha alpha"}"#);
        let list: Vec<&str> = said.value["l"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let different: HashSet<&str> = list.iter().copied().collect();
        assert_eq!(different.len(), list.len(), "{budget}: {}", said.text);
    }
}

#[test]
fn penalties_and_luck_go_back_too() {
    let asked = |seed| {
        let penalties = crate::engine::Penalties { frequency: 0.3, ..crate::engine::Penalties::NONE };
        let sampling = Sampling { temperature: 0.8, seed: Some(seed), penalties, ..Sampling::GREEDY };
        Asked { sampling, ..Asked::of(texts(json!({"uniqueItems": true, "minItems": 2, "maxItems": 6}))) }
    };
    let answer = |seed| {
        asked(seed).wanting(|said| {
            let ended = said.ends_with("disk") || said.ends_with("alpha");
            let next: &[&str] = if ended { &["\""] } else { &["alpha", "disk", ","] };
            next.iter().map(ToString::to_string).collect()
        })
    };
    let mut taken_back = 0;
    for seed in 0..20 {
        let (one, other) = (answer(seed), answer(seed));
        assert_eq!(one.text, other.text);
        assert!(one.tokens.iter().all(|report| report.token.logprob <= 0.0));
        taken_back += one.closed.len();
    }
    assert!(taken_back > 0);
}
