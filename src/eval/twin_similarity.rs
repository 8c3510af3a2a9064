//! Cross-contamination (CCS): how alike the answers to two twin inputs are that have the same shape and opposite facts.

use std::collections::HashMap;

use serde_json::Value;

use super::entities::words;
use super::prompt_leakage::visit_texts;
use super::schema::is_key;

/// A pair passes below this.
pub const LIMIT: f64 = 0.70;

/// Cosine of the word counts of two answers, in `0..=1`. Words equal to a schema key are left out, as keys are.
/// An answer without any word is like nothing: 0.
pub fn similarity(a: &Value, b: &Value) -> f64 {
    let (a, b) = (counts(a), counts(b));
    let dot: f64 = a.iter().map(|(word, n)| n * b.get(word).unwrap_or(&0.0)).sum();
    let length = |counts: &HashMap<String, f64>| counts.values().map(|n| n * n).sum::<f64>().sqrt();
    let lengths = length(&a) * length(&b);
    if lengths == 0.0 { 0.0 } else { dot / lengths }
}

fn counts(answer: &Value) -> HashMap<String, f64> {
    let mut counts = HashMap::new();
    let mut add = |text: &str| {
        for word in words(text).into_iter().filter(|word| !is_key(word)) {
            *counts.entry(word).or_insert(0.0) += 1.0;
        }
    };
    visit_texts(answer, &mut add);
    // The one number of an encoding is part of what it says.
    if let Some(salience) = answer.get("salience").filter(|v| v.is_number()) {
        add(&salience.to_string());
    }
    counts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn twins_are_told_apart_by_their_words_alone() {
        let a = json!({"gist": "Moved to Postgres", "content": "moved", "salience": 0.5});
        let b = json!({"gist": "Moved to SQLite", "content": "moved", "salience": 0.5});
        assert!((similarity(&a, &a) - 1.0).abs() < 1e-12);
        // moved 2, to 1, 0 1, 5 1 in common; one word apart: 7 / 8.
        assert!((similarity(&a, &b) - 7.0 / 8.0).abs() < 1e-12);
        assert!(similarity(&a, &json!({"gist": ""})).abs() < 1e-12);
        assert!(similarity(&json!({"gist": "gist path x"}), &json!({"gist": "path gist y"})).abs() < 1e-12);
    }
}
