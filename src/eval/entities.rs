//! The entities that a faithful memory must keep: numbers, paths, versions and proper nouns of a
//! text.
//!
//! The definition is a list of Python regular expressions with look-around. Parts without
//! look-around are regular expressions here too; the rest is a hand-written scan over runs of word
//! characters, which gives the same matches in linear time (a backtracking engine is quadratic on
//! long words and gives up on hostile ones). `tests/tools/score_reference.py` has the expressions
//! verbatim; its scores are the oracle of the tests.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use regex::{Match, Regex};

/// Python's `\w`: letters, all kinds of numbers and the underscore, but not combining marks (which
/// Rust's `\w` includes).
const WORD: &str = r"[\p{L}\p{N}_]";

static WORDS: LazyLock<Regex> = LazyLock::new(|| compile(&format!("{WORD}+")));
/// Alternatives are tried in this order at each position, so `12.5%` doesn't match as `12.5`.
static NUMBERS: LazyLock<Regex> = LazyLock::new(|| {
    compile(concat!(
        r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?",
        r"|-?\d+\.\d+[eE][+-]?\d+",
        r"|-?\d+\.\d+%",
        r"|-?\d+%",
        r"|-?\d+\.\d+",
        r"|-?\d+(?:/\d+)",
        r"|\d+"
    ))
});
static VERSIONS: LazyLock<Regex> = LazyLock::new(|| compile(r"v\d+\.\d+(?:\.\d+)?"));
static MENTIONS: LazyLock<Regex> = LazyLock::new(|| compile(&format!("@({WORD}+)")));
static PATH_RUNS: LazyLock<Regex> = LazyLock::new(|| compile(r"[\p{L}\p{N}_/~-]+"));
static PATH_TAIL: LazyLock<Regex> = LazyLock::new(|| compile(r"^[\p{L}\p{N}_./~-]+"));
static ROOTS: LazyLock<Regex> = LazyLock::new(|| compile(r"/(?:home|usr|etc|var|tmp|opt|api|static)"));

/// File extensions that make a word with a dot a path.
const ENDINGS: [&str; 21] = [
    "go", "py", "js", "ts", "html", "css", "yaml", "yml", "json", "jsonl", "toml", "md", "sh", "sql", "gguf",
    "db", "txt", "log", "patch", "cuh", "cpp",
];
/// The one-letter extensions, separate only to keep the list above readable.
const SHORT_ENDINGS: [&str; 2] = ["c", "h"];

fn compile(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is a constant of this file, compiled by its tests")
}

/// The distinct entities of a text: numbers (commas dropped), paths, versions and proper nouns.
pub fn entities(text: &str) -> BTreeSet<String> {
    let mut found = numbers(text);
    found.extend(paths(text).into_iter().map(str::to_owned));
    found.extend(VERSIONS.find_iter(text).map(|m| m.as_str().to_owned()));
    found.extend(proper_nouns(text).into_iter().map(str::to_owned));
    found
}

/// The distinct numbers of a text, commas dropped.
pub fn numbers(text: &str) -> BTreeSet<String> {
    NUMBERS.find_iter(text).map(|m| m.as_str().replace(',', "")).collect()
}

/// The words of a text (`\w+` of Python), lower case, in order.
pub fn words(text: &str) -> Vec<String> {
    // Lower case first, because `İ` becomes two characters, the second of which is no word
    // character.
    let text = text.to_lowercase();
    WORDS.find_iter(&text).map(|m| m.as_str().to_owned()).collect()
}

/// Paths, from left to right without overlap: a relative or absolute name with a known ending, or
/// anything under one of eight well-known folders unless a `<` precedes it.
fn paths(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(run) = PATH_RUNS.find_at(text, at) {
        match path_in(text, run) {
            Some((start, end)) => {
                found.push(&text[start..end]);
                at = end;
            }
            None => at = run.end(),
        }
    }
    found
}

/// The first path that starts in a maximal run of `[\w/~-]`, as byte positions.
///
/// The first alternative can't end inside the run (the dot is not in its character class), so its
/// dot can only be the character after the run. Every start of the second alternative is also a
/// start of the first, and never an earlier one: if the run ends like a file name, the first
/// alternative wins.
fn path_in(text: &str, run: Match<'_>) -> Option<(usize, usize)> {
    named_file(text, run).or_else(|| {
        ROOTS.find_iter(run.as_str()).find_map(|root| {
            let (start, rest) = (run.start() + root.start(), run.start() + root.end());
            let tail = PATH_TAIL.find(&text[rest..])?;
            (!text[..start].ends_with('<')).then_some((start, rest + tail.end()))
        })
    })
}

fn named_file(text: &str, run: Match<'_>) -> Option<(usize, usize)> {
    let name = text[run.end()..].strip_prefix('.')?;
    // `\b` after the ending: no word character may follow, so the ending is a whole word run.
    let ending = WORDS.find(name).filter(|m| m.start() == 0)?.as_str();
    if !ENDINGS.contains(&ending) && !SHORT_ENDINGS.contains(&ending) {
        return None;
    }
    let begins = |c: char| c.is_ascii_alphabetic() || matches!(c, '_' | '~' | '/');
    let (first, c) = run.as_str().char_indices().find(|&(_, c)| begins(c))?;
    let start = run.start() + first;
    (start + c.len_utf8() < run.end()).then_some((start, run.end() + 1 + ending.len()))
}

/// Names of several capitalised words, capitalised words inside a sentence, mentions, and camel
/// case.
fn proper_nouns(text: &str) -> Vec<&str> {
    let mut found: Vec<&str> =
        MENTIONS.captures_iter(text).map(|c| c.get(1).expect("the group is not optional").as_str()).collect();
    // Byte range and word count of the current name.
    let mut name: Option<(usize, usize, usize)> = None;
    let close = |name: Option<(usize, usize, usize)>, found: &mut Vec<_>| {
        if let Some((start, end, 2..)) = name {
            found.push(&text[start..end]);
        }
    };
    for word in WORDS.find_iter(text) {
        let capitalised = is_capitalised(word.as_str());
        name = match name {
            Some((start, end, count)) if capitalised && text[end..word.start()].chars().all(is_space) => {
                Some((start, word.end(), count + 1))
            }
            other => {
                close(other, &mut found);
                capitalised.then_some((word.start(), word.end(), 1))
            }
        };
        if capitalised && word.len() >= 3 && is_inside_sentence(&text[..word.start()]) {
            found.push(word.as_str());
        }
        if is_camel_case(word.as_str()) {
            found.push(word.as_str());
        }
    }
    close(name, &mut found);
    found.retain(|noun| noun.chars().count() >= 3 && !noun.starts_with("The "));
    found
}

/// `[A-Z][a-z]+`
fn is_capitalised(word: &str) -> bool {
    let bytes = word.as_bytes();
    bytes.len() >= 2 && bytes[0].is_ascii_uppercase() && bytes[1..].iter().all(u8::is_ascii_lowercase)
}

/// `[A-Z][a-z]+[A-Z]\w+`
fn is_camel_case(word: &str) -> bool {
    let bytes = word.as_bytes();
    let lower = bytes.iter().skip(1).take_while(|b| b.is_ascii_lowercase()).count();
    bytes[0].is_ascii_uppercase()
        && lower > 0
        && bytes.get(1 + lower).is_some_and(u8::is_ascii_uppercase)
        && bytes.len() > 2 + lower
}

/// `(?<=[a-z,;]\s)`
fn is_inside_sentence(before: &str) -> bool {
    let mut back = before.chars().rev();
    back.next().is_some_and(is_space)
        && back.next().is_some_and(|c| c.is_ascii_lowercase() || matches!(c, ',' | ';'))
}

/// Python's `\s`, which has four more separators than Unicode's white space.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(items: &[&str]) -> BTreeSet<String> {
        items.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn numbers_follow_the_order_of_alternatives() {
        assert_eq!(
            numbers("1,234.5 2.3e-4 94.2% 80% -0.5 12/21 -7 1,23 12.8/16"),
            set(&["1234.5", "2.3e-4", "94.2%", "80%", "-0.5", "12/21", "7", "1", "23", "12.8", "16"])
        );
    }

    #[test]
    fn paths_win_from_the_left() {
        assert_eq!(
            paths("see /home/u/a.rs and src/x.cpp, foo.json/bar.go"),
            ["/home/u/a.rs", "src/x.cpp", "foo.json", "/bar.go"]
        );
        assert_eq!(paths("</api/x> 1a.py </static/y.js> aé.md /tmp."), ["/static/y.js", "aé.md", "/tmp."]);
        assert_eq!(paths("main.rs a.json5 x1.tom b1.tomlé home/u"), Vec::<&str>::new());
    }

    #[test]
    fn names_end_where_a_word_is_not_capitalised() {
        let nouns: BTreeSet<String> =
            proper_nouns("Maria Chen met Bob Lee Xé. The End said Ana; GradStore @ab @bob_1 iPhone")
                .into_iter()
                .map(str::to_owned)
                .collect();
        assert_eq!(
            nouns,
            set(&["Maria Chen", "Chen", "Bob Lee", "Bob", "Lee", "End", "Ana", "GradStore", "bob_1"])
        );
    }
}
