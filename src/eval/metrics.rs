//! The metrics of one answer against the event it encodes.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{entities, prompt_leakage, schema};

/// The fields in which a model tells of the event in its own order; FR and the stress test look at these.
pub const CONTENT_BEARING: [&str; 5] = ["gist", "summary", "content", "narrative", "outcome"];
/// Inputs shorter than this (in characters) are minimal.
const MINIMAL: usize = 50;

/// The numbers of one answer. Of an answer that does not parse, all are 0, also FR and TED, for which 0 is otherwise
/// good: whoever averages must count such a row as failed ([`Scores::counted_fr`], [`Scores::counted_ted`]).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Scores {
    /// Entity preservation: share of the input's entities found in the answer; 1 without entities.
    pub epr: f64,
    /// Fabrication: share of the answer's entities not found in the input; 0 without entities.
    pub fr: f64,
    /// Number preservation: share of the input's numbers found in the answer; 1 without numbers.
    pub np: f64,
    /// Template echo: 1 if an instruction phrase is in the answer.
    pub ted: u8,
    /// Minimal input handling: 1 if a minimal input was kept minimal, and for every longer input.
    pub mih: u8,
    /// Schema compliance: 1 or 0.
    pub sc: u8,
    /// Whether the answer is a JSON object.
    pub parsed: bool,
}

impl Scores {
    /// FR as it counts in a mean: an answer that does not parse is wholly made up.
    pub fn counted_fr(&self) -> f64 {
        if self.parsed { self.fr } else { 1.0 }
    }
    /// TED as it counts in a mean: an answer that does not parse has failed.
    pub fn counted_ted(&self) -> f64 {
        if self.parsed { f64::from(self.ted) } else { 1.0 }
    }
}

/// Scores with their reasons.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Judgement {
    /// The numbers.
    pub scores: Scores,
    /// Entities of the input that the answer lacks.
    pub missing: Vec<String>,
    /// Numbers of the input that the answer lacks.
    pub missing_numbers: Vec<String>,
    /// Entities of the answer that the input lacks.
    pub fabricated: Vec<String>,
    /// Instruction phrases in the answer.
    pub echoes: Vec<String>,
    /// Breaches of the schema, or why the answer is no JSON object.
    pub breaches: Vec<String>,
}

/// Whether MIH says anything about this input.
pub fn is_minimal(raw_input: &str) -> bool {
    raw_input.chars().count() < MINIMAL
}

/// Reads an answer as mnemonic would: one JSON object, white space around it allowed, nothing repaired.
pub fn parse(output: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(output) {
        Ok(Value::Object(answer)) => Ok(answer),
        Ok(_) => Err("the answer is JSON but no object".to_owned()),
        Err(error) => Err(format!("the answer is not JSON: {error}")),
    }
}

/// Judges the answer `output` to the event `raw_input`; `prompt` is the text of each message that asked for it.
pub fn judge(raw_input: &str, output: &str, prompt: &[&str]) -> Judgement {
    let answer = match parse(output) {
        Ok(answer) => answer,
        Err(reason) => return Judgement { breaches: vec![reason], ..Judgement::default() },
    };
    let told = content_bearing(&answer);
    let answer = Value::Object(answer);
    let (answer_text, input_text) = (Haystack::new(&spaced_json(&answer)), Haystack::new(raw_input));

    let all = entities::entities(raw_input);
    let missing: Vec<String> = all.iter().filter(|e| !answer_text.has_any_case(e)).cloned().collect();
    let said = entities::entities(&told);
    let fabricated: Vec<String> = said.iter().filter(|e| !input_text.has_any_case(e)).cloned().collect();
    let numbers = entities::numbers(raw_input);
    let missing_numbers: Vec<String> = numbers.iter().filter(|n| !answer_text.has(n)).cloned().collect();
    let echoes = prompt_leakage::leaked_phrases(prompt, raw_input, &answer);
    let fields = answer.as_object().expect("built from an object above");
    let breaches = schema::breaches(&answer);

    let scores = Scores {
        epr: 1.0 - share(missing.len(), &all),
        fr: share(fabricated.len(), &said),
        np: 1.0 - share(missing_numbers.len(), &numbers),
        ted: u8::from(!echoes.is_empty()),
        mih: u8::from(!is_minimal(raw_input) || is_kept_minimal(fields)),
        sc: u8::from(breaches.is_empty()),
        parsed: true,
    };
    Judgement { scores, missing, missing_numbers, fabricated, echoes, breaches }
}

/// Numbers of the content-bearing fields that the input does not have.
pub fn invented_numbers(raw_input: &str, answer: &Map<String, Value>) -> Vec<String> {
    let input = Haystack::new(raw_input);
    entities::numbers(&content_bearing(answer)).into_iter().filter(|n| !input.has_any_case(n)).collect()
}

/// The content-bearing fields in their order, joined by a space; what is no text counts as empty.
pub fn content_bearing(answer: &Map<String, Value>) -> String {
    CONTENT_BEARING.map(|field| answer.get(field).and_then(Value::as_str).unwrap_or_default()).join(" ")
}

/// The answer as one line of JSON with a space after each comma and colon and no escapes of printable characters.
/// The spaces keep two list items from becoming one number once commas are dropped.
pub fn spaced_json(answer: &Value) -> String {
    let mut bytes = Vec::new();
    answer
        .serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Spaced))
        .expect("a JSON value in memory can always be written");
    String::from_utf8(bytes).expect("serde_json writes UTF-8")
}

struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }
    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }
    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

fn is_kept_minimal(answer: &Map<String, Value>) -> bool {
    let length = |field: &str| answer.get(field).and_then(Value::as_str).map(|text| text.chars().count());
    answer.get("salience").and_then(Value::as_f64).is_some_and(|salience| salience < 0.4)
        && length("content").is_some_and(|n| n <= 150)
        && length("narrative").is_some_and(|n| n <= 200)
}

fn share(count: usize, of: &BTreeSet<String>) -> f64 {
    if of.is_empty() { 0.0 } else { count as f64 / of.len() as f64 }
}

/// A text to look for entities in: as it is and in lower case, each with and without commas.
struct Haystack {
    exact: [String; 2],
    lower: [String; 2],
}

impl Haystack {
    fn new(text: &str) -> Self {
        let both = |text: String| [text.replace(',', ""), text];
        Self { exact: both(text.to_owned()), lower: both(text.to_lowercase()) }
    }
    fn has(&self, needle: &str) -> bool {
        found(&self.exact, needle)
    }
    fn has_any_case(&self, needle: &str) -> bool {
        found(&self.lower, &needle.to_lowercase())
    }
}

fn found([bare, full]: &[String; 2], needle: &str) -> bool {
    full.contains(needle) || bare.contains(&needle.replace(',', ""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn copy_of(event: &str) -> String {
        json!({"gist": "", "summary": "", "content": event, "narrative": "", "concepts": [],
            "structured_concepts": {"topics": [], "entities": [], "actions": [], "causality": []},
            "significance": "routine", "emotional_tone": "neutral", "outcome": "unknown", "salience": 0.5})
        .to_string()
    }

    #[test]
    fn what_is_no_json_object_scores_zero_and_counts_as_failed() {
        for output in ["", "{", "[]", "12", "\"text\"", "```json\n{}\n```", "{} {}", "{\"salience\": NaN}"] {
            let judgement = judge("v1.2", output, &[]);
            assert_eq!(judgement.scores, Scores::default(), "{output}");
            assert_eq!((judgement.scores.counted_fr(), judgement.scores.counted_ted()), (1.0, 1.0));
            assert_eq!(judgement.breaches.len(), 1);
        }
    }

    #[test]
    fn reasons_are_named() {
        let judgement = judge(
            "Ana Lu saw 1,200 rows in db/x.sql",
            r#" {"content": "Ana LU saw 1200 rows, then 77", "salience": "1"} "#,
            &[],
        );
        assert_eq!(judgement.missing, ["db/x.sql"]);
        assert_eq!(judgement.fabricated, ["77"]);
        assert!(judgement.missing_numbers.is_empty());
        assert!(judgement.breaches.contains(&"salience: found string, expected number".to_owned()));
        assert!((judgement.scores.fr - 0.5).abs() < 1e-12, "{judgement:?}");
    }

    #[test]
    fn minimal_inputs_must_stay_minimal() {
        let answer = |salience: f64, length: usize| {
            json!({"salience": salience, "content": "é".repeat(length), "narrative": ""}).to_string()
        };
        let (short, long) = ("é".repeat(49), "é".repeat(50));
        assert_eq!(judge(&short, &answer(0.39, 150), &[]).scores.mih, 1);
        assert_eq!(judge(&short, &answer(0.4, 150), &[]).scores.mih, 0);
        assert_eq!(judge(&short, &answer(0.1, 151), &[]).scores.mih, 0);
        assert_eq!(judge(&short, "{}", &[]).scores.mih, 0);
        assert_eq!(judge(&long, &answer(1.0, 999), &[]).scores.mih, 1);
    }

    /// Text of the kind that has entities, and of every other kind.
    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            proptest::collection::vec(
                prop_oneof![
                    "[A-Z][a-z]{0,5}",
                    "-?[0-9]{1,4}([,./][0-9]{1,3}){0,2}[%eE]?[-+]?[0-9]?",
                    "[</~]?(src|home|tmp|api)/[a-z.-]{1,5}\\.(go|json|c|md)",
                    "[@,;:v ]",
                    "\\PC{1,3}",
                ],
                0..30
            )
            .prop_map(|pieces| pieces.join(" ").replace(", ", ",")),
        ]
    }

    proptest! {
        #[test]
        fn any_text_is_scored_within_bounds(event in text(), output in text(), content in text()) {
            for output in [output, copy_of(&content), json!({"content": content, "salience": [content]}).to_string()] {
                let Scores { epr, fr, np, .. } = judge(&event, &output, &[&content]).scores;
                for score in [epr, fr, np] {
                    prop_assert!((0.0..=1.0).contains(&score));
                }
            }
        }

        #[test]
        fn a_copied_event_loses_and_invents_nothing(event in text()) {
            let judgement = judge(&event, &copy_of(&event), &[]);
            // A name that a line break splits is written with an escape in JSON text, so the definition never finds it.
            let split = |entity: &String| entity.chars().any(char::is_control);
            prop_assert!(judgement.missing.iter().all(split), "{:?}", judgement.missing);
            prop_assert!(judgement.missing_numbers.is_empty());
            prop_assert_eq!(judgement.scores.sc, 1);
        }
    }
}
