//! The common words that generated prose is made of, by part of speech.

use std::sync::LazyLock;

use rand::Rng;
use rand::seq::IndexedRandom;

/// Words by part of speech, and all of them.
struct Words {
    nouns: Vec<&'static str>,
    verbs: Vec<&'static str>,
    adjectives: Vec<&'static str>,
    all: Vec<&'static str>,
}

static WORDS: LazyLock<Words> = LazyLock::new(|| {
    let section = |name: &str| -> Vec<&'static str> {
        let text = include_str!("words.txt");
        let (_, rest) = text.split_once(name).expect("words.txt has this section");
        rest.split('[').next().unwrap_or(rest).split_whitespace().collect()
    };
    let (nouns, verbs) = (section("[noun]"), section("[verb]"));
    let (adjectives, other) = (section("[adjective]"), section("[other]"));
    let all = [&nouns[..], &verbs, &adjectives, &other, &other].concat();
    Words { nouns, verbs, adjectives, all }
});

fn one(list: &'static [&'static str], rng: &mut impl Rng) -> &'static str {
    list.choose(rng).expect("no section of words.txt is empty")
}

/// Any word.
pub fn any(rng: &mut impl Rng) -> &'static str {
    one(&WORDS.all, rng)
}

/// A noun in the singular.
pub fn noun(rng: &mut impl Rng) -> &'static str {
    one(&WORDS.nouns, rng)
}

/// A regular verb in its base form.
pub fn verb(rng: &mut impl Rng) -> &'static str {
    one(&WORDS.verbs, rng)
}

/// An adjective.
pub fn adjective(rng: &mut impl Rng) -> &'static str {
    one(&WORDS.adjectives, rng)
}

/// The past form of a regular verb (English doubles some consonants; here it is good enough not to).
pub fn past(verb: &str) -> String {
    let before_y = verb.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'i', 'o', 'u']));
    match before_y {
        Some(stem) => format!("{stem}ied"),
        None if verb.ends_with('e') => format!("{verb}d"),
        None => format!("{verb}ed"),
    }
}

/// The plural of a regular noun.
pub fn plural(noun: &str) -> String {
    let before_y = noun.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'i', 'o', 'u']));
    match before_y {
        Some(stem) => format!("{stem}ies"),
        None if noun.ends_with(['s', 'x']) || noun.ends_with("ch") || noun.ends_with("sh") => {
            format!("{noun}es")
        }
        None => format!("{noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_many_words_in_each_section() {
        let unique: std::collections::HashSet<_> = WORDS.all.iter().collect();
        assert!(unique.len() >= 1500, "{}", unique.len());
        assert!(WORDS.nouns.len() > 500 && WORDS.verbs.len() > 200 && WORDS.adjectives.len() > 200);
        assert!(WORDS.all.iter().all(|word| word.bytes().all(|b| b.is_ascii_lowercase())));
        assert_eq!(
            (past("copy"), past("delay"), plural("box")),
            ("copied".into(), "delayed".into(), "boxes".into())
        );
    }
}
