//! What must hold for generated rows: determinism, faithful golds, different twins, varied lengths.

use super::*;
use fancy_regex::Regex;

/// Numbers, paths, versions and proper nouns as the faithfulness metrics find them.
fn facts(text: &str) -> Vec<String> {
    const PATTERNS: [&str; 9] = [
        r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?|-?\d+\.\d+[eE][+-]?\d+|-?\d+\.\d+%|-?\d+%|-?\d+\.\d+|-?\d+(?:/\d+)|\d+",
        r"[a-zA-Z_~/][\w/~-]+\.(?:go|py|js|ts|html|css|yaml|yml|json|jsonl|toml|md|sh|sql|gguf|db|txt|log|patch|cuh|cpp|c|h)\b",
        r"(?<!<)/(?:home|usr|etc|var|tmp|opt|api|static)[\w./~-]+",
        r"v\d+\.\d+(?:\.\d+)?",
        r"\b([A-Z][a-z]+(?:\s+[A-Z][a-z]+)+)\b",
        r"(?<=[a-z,;]\s)([A-Z][a-z]{2,})\b",
        r"@(\w+)",
        r"\b([A-Z][a-z]+[A-Z]\w+)\b",
        r"\w{24,}",
    ];
    static COMPILED: std::sync::LazyLock<Vec<Regex>> =
        std::sync::LazyLock::new(|| PATTERNS.iter().map(|pattern| Regex::new(pattern).unwrap()).collect());
    COMPILED
        .iter()
        .flat_map(|regex| regex.find_iter(text).map(|hit| hit.unwrap().as_str().to_lowercase()))
        .collect()
}

#[test]
fn golds_keep_every_fact_and_echo_no_instruction() {
    let (mut rows, mut bad) = (0, Vec::new());
    for split in [Split::Train, Split::Eval] {
        let generator = Generator::new(11, split);
        for index in 0..1500 {
            let row = generator.row(index);
            rows += 1;
            let answer = row.encoding.to_compact_json().to_lowercase();
            if let Some(lost) = facts(&row.event.content).into_iter().find(|fact| !answer.contains(fact)) {
                bad.push(format!("{} lost {lost:?}", row.id));
            }
            let encoding = &row.encoding;
            let minimal = row.event.content.chars().count() < 50;
            let sound = encoding.gist.chars().count() <= 60
                && encoding.summary.chars().count() <= 400
                && !encoding.gist.is_empty()
                && encoding.narrative.chars().count() <= 200
                && (!minimal || encoding.salience < 0.4 && encoding.content.chars().count() <= 150);
            if !sound {
                bad.push(format!("{} breaks a limit: {encoding:?}", row.id));
            }
            let words = |text: &str| -> Vec<String> {
                text.split(|c: char| !c.is_alphanumeric())
                    .filter(|w| !w.is_empty())
                    .map(str::to_lowercase)
                    .collect()
            };
            let user = row.messages[1].content.strip_suffix(&row.event.content).unwrap();
            let instruction = words(&format!("{} {user}", row.messages[0].content));
            let (said, event) = (words(&row.messages[2].content), words(&row.event.content));
            let holds = |list: &[String], gram: &[String]| list.windows(4).any(|window| window == gram);
            if let Some(echo) = instruction.windows(4).find(|gram| holds(&said, gram) && !holds(&event, gram))
            {
                bad.push(format!("{} echoes {echo:?}", row.id));
            }
        }
    }
    assert!(bad.len() * 1000 <= rows, "{} of {rows}: {:#?}", bad.len(), &bad[..bad.len().min(12)]);
}

#[test]
fn a_row_depends_on_its_number_alone() {
    let generator = Generator::new(3, Split::Train);
    let forwards: Vec<Example> = (0..40).map(|index| generator.row(index)).collect();
    let backwards: Vec<Example> =
        (0..40).rev().map(|index| Generator::new(3, Split::Train).row(index)).collect();
    assert!(forwards.iter().eq(backwards.iter().rev()));
    assert_ne!(forwards[0].event, Generator::new(4, Split::Train).row(0).event);
    assert_ne!(forwards[0].event, Generator::new(3, Split::Eval).row(0).event);
}

#[test]
fn twins_have_one_shape_and_different_facts() {
    let generator = Generator::new(5, Split::Train);
    let mut pairs = 0;
    for dozen in 0..60 {
        let [a, b] = [10, 11].map(|at| generator.row(dozen * DOZEN + at));
        if a.twin.is_none() {
            continue;
        }
        pairs += 1;
        assert_eq!((a.twin.as_ref(), b.twin.as_ref()), (Some(&b.id), Some(&a.id)));
        assert_eq!((a.kind, &a.event.source, &a.event.kind), (b.kind, &b.event.source, &b.event.kind));
        assert!(likeness(&a.encoding, &b.encoding) < 0.7);
    }
    assert!(pairs >= 55, "only {pairs} of 60 dozens have twins");
}

#[test]
fn limits_hold_and_lengths_spread() {
    for limit in [60, 120, 400, 1800] {
        let generator = Generator::new(9, Split::Train).with_limits(Limits { max_event_chars: limit });
        let mut lengths: Vec<usize> =
            (0..400).map(|at| generator.row(at).event.content.chars().count()).collect();
        lengths.sort_unstable();
        assert!(lengths[399] <= limit && lengths[0] >= 1);
        if limit == 1800 {
            assert!((150..420).contains(&lengths[200]), "median {}", lengths[200]);
            assert!(lengths[30] < 70 && lengths[380] > 800, "{} {}", lengths[30], lengths[380]);
        }
    }
}

#[test]
fn all_kinds_come_up() {
    let generator = Generator::new(2, Split::Eval);
    let seen: std::collections::HashSet<&str> = (0..1500).map(|index| generator.row(index).kind).collect();
    assert_eq!(seen.len(), KINDS.len());
}

#[test]
fn names_across_a_break_are_separated() {
    assert_eq!(
        apart("see Anna\nBut Bob  Carl, Dan\tEve x\nYes Io"),
        "see Anna.\nBut Bob.  Carl, Dan.\tEve x\nYes Io"
    );
    assert_eq!(apart("fooBar\nBaz\nQUX Ab\nC d\nEé"), "fooBar\nBaz\nQUX Ab\nC d\nEé");
}
