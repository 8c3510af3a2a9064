//! Text without sense: common words, facts and random strings in random order, so that copying can't lean on content.

use crate::task::generator::draw::{Draw, capitalised};

/// Facts that stand among the words.
const FACTS: &[&str] = &[
    "{id}",
    "{id}",
    "{num}",
    "{num}",
    "{int}",
    "{str}",
    "{str}",
    "{path}",
    "{ver}",
    "{person}",
    "{first}",
    "{tool}",
    "`{id}`",
    "`{fn}`",
    "\"{np}\"",
    "'{str}'",
    "({np})",
    "({issue})",
    "{issue}",
    "{type}",
    "{var}",
    "{flag}",
    "{err}",
    "{url}",
    "{handle}",
    "{date}",
    "{time}",
    "[{w}]",
    "{w}/{w}",
    "{w}-{w}",
    "{w}_{w}",
    "{w}: {w}",
    "{ms}",
    "{pct}",
    "{w}={num}",
    "<{w}>",
    "{hash}",
    "{host}",
    "&{w}",
    "{w}+{w}",
    "{w} & {w}",
    "{w}'s",
    "don't",
    "{w}...",
    "“{np}”",
    "— {w}",
    "{w} → {w}",
    "é{w}",
    "{w}✓",
    "🚀",
];

/// Sentences, lists and wrapped paragraphs of random words.
pub fn prose(draw: &mut Draw, target: usize) -> String {
    let density = [0.0, 0.03, 0.06, 0.1, 0.2, 0.4][draw.count(0, 5)];
    let style = draw.count(0, 5);
    let mut text = String::new();
    while text.is_empty() || text.len() < target {
        let mut sentence = String::new();
        let longest = 18.min(3 + target / 6);
        for at in 0..draw.count(2.min(longest), longest) {
            if at > 0 {
                sentence.push_str(if draw.chance(0.06) { ", " } else { " " });
            }
            if draw.chance(density) {
                let fact = draw.pick(FACTS);
                sentence.push_str(&draw.fill(fact));
            } else {
                let word = draw.word();
                match draw.count(0, 39) {
                    0 | 1 => sentence.push_str(&capitalised(&word)),
                    2 => sentence.push_str(&word.to_ascii_uppercase()),
                    _ => sentence.push_str(&word),
                }
            }
        }
        let sentence = if draw.chance(0.7) { capitalised(&sentence) } else { sentence };
        let end = draw.pick(&[".", ".", ".", "", "!", "?", ":", ";"]);
        match style {
            0 => text.extend(["- ", &sentence, "\n"]),
            1 => text.extend(["* ", &sentence, "\n\n"]),
            2 => text.extend([sentence.as_str(), end, "\n"]),
            3 => text.extend([sentence.as_str(), end, if draw.chance(0.2) { "\n\n" } else { " " }]),
            _ => text.extend([sentence.as_str(), end, " "]),
        }
    }
    text.trim_end().to_owned()
}

/// Lines of strings that nobody has ever seen.
pub fn strings(draw: &mut Draw, target: usize) -> String {
    let separator = draw.pick(&[" ", ", ", "\n", "; ", " | ", "\t", " - "]);
    let slots: &[&str] = match draw.count(0, 5) {
        0 => &["{str}"],
        1 => &["{num}", "{int}", "{dec}"],
        2 => &["{id}", "{fn}", "{type}"],
        3 => &["{path}", "{file}"],
        4 => &["{person}", "{city}", "{handle}", "{mail}"],
        _ => &["{str}", "{num}", "{id}", "{path}", "{w}", "{ver}", "{err}", "{hash}", "{url}", "{var}"],
    };
    let mut text = String::new();
    super::extend(draw, &mut text, slots, separator, target);
    text
}
