//! Templates: texts whose slots are filled with facts and choices.

use super::{Draw, capitalised};
use crate::task::generator::{pools, words};

impl Draw {
    /// A template with its slots filled. `{=a|b}` is one of these by shape, `{~a|b}` one of two opposites,
    /// `{name}` a fact of that name (see [`Draw::slot`]).
    pub fn fill(&mut self, template: &str) -> String {
        let mut text = String::with_capacity(template.len() * 2);
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            text += before;
            let (slot, after) =
                after.split_once('}').expect("templates close their slots: a test fills them all");
            debug_assert!(!slot.contains('{'), "slots don't nest: {template:?}");
            match slot.as_bytes().first() {
                Some(b'=') => {
                    let options: Vec<&str> = slot[1..].split('|').collect();
                    text += self.pick(&options);
                }
                Some(b'~') => {
                    let (a, b) =
                        slot[1..].split_once('|').expect("an opposite has two sides: a test fills them all");
                    text += self.opposite(a, b);
                }
                _ => text += &self.slot(slot),
            }
            rest = after;
        }
        text + rest
    }

    /// A fact by the name that templates call it.
    fn slot(&mut self, name: &str) -> String {
        match name {
            "person" => self.person(),
            "first" => self.first(),
            "handle" => format!("@{}", self.mine(|draw| draw.syllables(2, 3))),
            "mail" => format!("{}@{}", self.mine(|draw| draw.syllables(2, 3)), self.host()),
            "city" => self.from(pools::CITIES),
            "tool" => self.tool(),
            "path" => self.path(),
            "file" => self.file(),
            "id" => self.identifier(),
            "fn" => self.snake(),
            "type" => self.pascal(),
            "var" => self.variable(),
            "flag" => format!("--{}", self.snake().replace('_', "-")),
            "ver" => self.version(),
            "int" => self.integer(),
            "dec" => self.decimal(),
            "num" => self.number(),
            "pct" => self.percent(),
            "small" => self.roll(2, 60).to_string(),
            "ms" => format!("{}{}", self.integer(), self.any(&["ms", "s", "us", " ms", " seconds"])),
            "size" => format!("{}{}", self.decimal(), self.any(&[" GB", " MB", "GB", "MB", "KiB", " GiB"])),
            "hash" => self.hash(),
            "host" => self.host(),
            "ip" => format!("10.{}.{}.{}", self.roll(0, 255), self.roll(0, 255), self.roll(1, 254)),
            "port" => self.port(),
            "url" => self.url(),
            "err" => self.error_code(),
            "str" => self.gibberish(),
            "date" => self.date(),
            "time" => self.time(),
            "issue" => format!("#{}", self.mine_if_long(|draw| draw.roll(1, 9999).to_string())),
            "w" => self.word(),
            "noun" => self.noun().to_owned(),
            "nouns" => words::plural(self.noun()),
            "verb" => self.verb().to_owned(),
            "Verb" => capitalised(self.verb()),
            "past" => words::past(self.verb()),
            "adj" => self.adjective().to_owned(),
            "np" => self.phrase(),
            "Noun" => capitalised(self.noun()),
            "scope" => self.from(pools::SCOPES),
            _ => unreachable!("templates name only known slots, {name:?} is none: a test fills them all"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::generator::{Split, draw::stream};

    #[test]
    fn facts_of_the_two_splits_never_meet() {
        let mut seen = [std::collections::HashSet::new(), std::collections::HashSet::new()];
        for (at, split) in [Split::Train, Split::Eval].into_iter().enumerate() {
            let mut draw = Draw::new(stream("s", 1, split, 0, 0), stream("f", 1, split, 0, 0), split, false);
            for _ in 0..400 {
                for slot in ["first", "tool", "file", "fn", "type", "ver", "port", "err", "city", "str"] {
                    seen[at].insert(draw.slot(slot));
                }
            }
        }
        assert!(seen[0].len() > 1000 && seen[1].len() > 1000);
        assert_eq!(seen[0].intersection(&seen[1]).collect::<Vec<_>>(), Vec::<&String>::new());
    }
}
