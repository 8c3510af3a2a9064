//! Template echo (TED): does an answer repeat the instructions instead of telling of the event?
//!
//! The phrases are derived from the prompt actually used: every four words in a row of its instructions, unless the
//! event itself has the same four words in a row.

use std::collections::HashSet;

use serde_json::Value;

use super::entities::words;

/// Words in a row that make a phrase.
const PHRASE: usize = 4;

/// The instruction phrases of `prompt` (its messages' texts) that occur in the answer's texts, sorted.
///
/// The event is taken out where it stands last in a message; phrases that would bridge the gap are not formed. Each
/// text value of the answer is looked at on its own: keys are the schema's words, not the model's.
pub fn leaked_phrases(prompt: &[&str], event: &str, answer: &Value) -> Vec<String> {
    let mut instructions = HashSet::new();
    for message in prompt {
        // The last occurrence: the event ends the prompt, and a short one ("on") may stand in the instructions too.
        match message.rfind(event).filter(|_| !event.is_empty()) {
            Some(at) => {
                collect(&message[..at], &mut instructions);
                collect(&message[at + event.len()..], &mut instructions);
            }
            None => collect(message, &mut instructions),
        }
    }
    let mut own = HashSet::new();
    collect(event, &mut own);
    let mut said = HashSet::new();
    visit_texts(answer, &mut |text| collect(text, &mut said));
    let mut found: Vec<String> =
        said.iter().filter(|p| instructions.contains(*p) && !own.contains(*p)).map(|p| p.join(" ")).collect();
    found.sort();
    found
}

fn collect(text: &str, phrases: &mut HashSet<Vec<String>>) {
    phrases.extend(words(text).windows(PHRASE).map(<[String]>::to_vec));
}

/// Calls `visit` with every text value, keys excluded, at any depth.
pub fn visit_texts(value: &Value, visit: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => visit(text),
        Value::Array(items) => items.iter().for_each(|item| visit_texts(item, visit)),
        Value::Object(fields) => fields.values().for_each(|field| visit_texts(field, visit)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const HEAD: &str = "Keep every number exactly as written.\nCONTENT:\n";

    #[test]
    fn instructions_in_an_answer_are_found_whatever_their_case_and_spacing() {
        let prompt = format!("{HEAD}disk full on node-7");
        let answer = json!({"gist": "disk full", "content": "KEEP every  number, exactly"});
        assert_eq!(leaked_phrases(&[&prompt], "disk full on node-7", &answer), ["keep every number exactly"]);
    }

    #[test]
    fn words_of_the_event_are_no_echo() {
        let event = "The rule is: keep every number exactly, always";
        let prompt = format!("{HEAD}{event}");
        assert!(leaked_phrases(&[&prompt], event, &json!({"content": event})).is_empty());
    }

    #[test]
    fn keys_and_neighbouring_values_form_no_phrase() {
        let prompt = "structured_concepts topics entities actions causality";
        let answer = json!({"structured_concepts": {"topics": [], "entities": ["topics entities"], "actions": ["actions causality"]}});
        assert!(leaked_phrases(&[prompt], "x", &answer).is_empty());
    }

    #[test]
    fn a_short_event_does_not_cut_the_instructions_apart() {
        let answer = json!({"gist": "keep every number exactly"});
        assert_eq!(leaked_phrases(&[&format!("{HEAD}e")], "e", &answer).len(), 1);
    }
}
