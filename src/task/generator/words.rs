//! The common words that generated prose is made of, by part of speech.

use std::sync::LazyLock;

use rand::Rng;
use rand::seq::IndexedRandom;

/// Words by part of speech, and all together.
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
    let (adjectives, other, more) = (section("[adjective]"), section("[other]"), section("[more]"));
    // Function words hold sentences together, so they are more frequent.
    let all = [&nouns[..], &verbs, &adjectives, &other, &other, &more].concat();
    Words { nouns, verbs, adjectives, all }
});

fn one_of(list: &[&'static str], rng: &mut impl Rng) -> &'static str {
    list.choose(rng).expect("no list of words is empty")
}

/// Any word.
pub fn any(rng: &mut impl Rng) -> &'static str {
    one_of(&WORDS.all, rng)
}

/// A word with a prefix or suffix of English, whether or not the result is a word.
pub fn inflected(rng: &mut impl Rng) -> String {
    const ENDINGS: [&str; 16] = [
        "ing", "s", "ed", "er", "ly", "ing", "s", "es", "able", "ness", "ment", "less", "ation", "ity",
        "ive", "ized",
    ];
    const BEGINNINGS: [&str; 12] =
        ["re", "un", "pre", "non-", "multi-", "sub", "de", "auto", "dis", "over", "inter", "micro"];
    let word = any(rng);
    if rng.random_bool(0.7) {
        let ending = one_of(&ENDINGS, rng);
        let vowel = ending.starts_with(['i', 'e', 'a']);
        let stem = if vowel { word.strip_suffix('e').unwrap_or(word) } else { word };
        format!("{stem}{ending}")
    } else {
        format!("{}{word}", one_of(&BEGINNINGS, rng))
    }
}

/// A noun in the singular.
pub fn noun(rng: &mut impl Rng) -> &'static str {
    one_of(&WORDS.nouns, rng)
}

/// A regular verb in its base form.
pub fn verb(rng: &mut impl Rng) -> &'static str {
    one_of(&WORDS.verbs, rng)
}

/// An adjective.
pub fn adjective(rng: &mut impl Rng) -> &'static str {
    one_of(&WORDS.adjectives, rng)
}

/// The past form of a regular verb (without the doubled consonants of some verbs, which is good
/// enough here).
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
        assert_eq!(
            (past("copy"), past("delay"), plural("box")),
            ("copied".into(), "delayed".into(), "boxes".into())
        );
    }
}
