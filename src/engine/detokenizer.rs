//! Turns token bytes into text: emits only whole UTF-8 characters, and withholds text that may be
//! the beginning of a stop text.

/// The text of an answer as it grows.
#[derive(Debug, Clone, Default)]
pub struct AnswerText {
    /// Stop texts, each with its index in the request.
    stops: Vec<(u32, String)>,
    /// Bytes of an incomplete character.
    partial: Vec<u8>,
    /// Text that may turn out to be the beginning of a stop text.
    held: String,
    stopped: Option<u32>,
}

impl AnswerText {
    /// An empty answer that ends before the first of these stop texts. Empty stop texts are
    /// ignored.
    pub fn new(stops: &[String]) -> Self {
        let stops = (0..).zip(stops.iter().cloned()).filter(|(_, stop)| !stop.is_empty());
        Self { stops: stops.collect(), ..Self::default() }
    }

    /// Adds a token's bytes and returns the text that is now certain. Invalid UTF-8 becomes U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        if self.stopped.is_some() {
            return String::new();
        }
        self.partial.extend_from_slice(bytes);
        self.held.push_str(&whole_characters(&mut self.partial));
        let found = self.stops.iter().filter_map(|(index, stop)| Some((self.held.find(stop)?, *index)));
        if let Some((at, index)) = found.min() {
            self.stopped = Some(index);
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keep = self.stops.iter().map(|(_, stop)| overlap(&self.held, stop)).max().unwrap_or(0);
        let tail = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, tail)
    }

    /// Index of the stop text that was found. If several begin at the same place, the first of the
    /// request.
    pub fn stopped(&self) -> Option<u32> {
        self.stopped
    }

    /// Returns the withheld text. Bytes of an incomplete character are dropped.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Removes whole characters from the front of `bytes`; the rest may become a character later.
/// Invalid UTF-8 becomes U+FFFD.
pub fn whole_characters(bytes: &mut Vec<u8>) -> String {
    let (mut text, mut done) = (String::new(), 0);
    loop {
        match std::str::from_utf8(&bytes[done..]) {
            Ok(rest) => {
                text.push_str(rest);
                done = bytes.len();
            }
            Err(error) => {
                let valid = done + error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&bytes[done..valid]));
                done = valid;
                if let Some(broken) = error.error_len() {
                    text.push(char::REPLACEMENT_CHARACTER);
                    done += broken;
                    continue;
                }
            }
        }
        break;
    }
    bytes.drain(..done);
    text
}

/// Length of the longest suffix of `text` that is a prefix of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = stop.len().min(text.len());
    (1..=longest).rev().find(|&n| text.as_bytes().ends_with(&stop.as_bytes()[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&[u8]]) -> (Vec<String>, Option<u32>) {
        let stops: Vec<_> = stops.iter().map(ToString::to_string).collect();
        let mut text = AnswerText::new(&stops);
        let mut out: Vec<_> = pieces.iter().map(|piece| text.push(piece)).collect();
        out.push(text.finish());
        (out, text.stopped())
    }

    #[test]
    fn characters_come_whole() {
        let euro = "€".as_bytes();
        assert_eq!(run(&[], &[&euro[..1], &euro[1..2], &euro[2..], b"x"]).0, ["", "", "€", "x", ""]);
        assert_eq!(run(&[], &[b"a\xFFb", &euro[..2]]).0, ["a\u{FFFD}b", "", ""]);
    }

    #[test]
    fn stop_texts_are_withheld_while_they_may_complete() {
        assert_eq!(
            run(&["END"], &[b"aE", b"N", b"D tail"]),
            (["a", "", "", ""].map(String::from).into(), Some(0))
        );
        assert_eq!(
            run(&["END"], &[b"aE", b"N", b"x"]),
            (["a", "", "ENx", ""].map(String::from).into(), None)
        );
        assert_eq!(run(&["END"], &[b"aEN"]), (["a", "EN"].map(String::from).into(), None));
        let (texts, stopped) = run(&["b", "ab"], &[b"xab"]);
        assert_eq!((texts[0].as_str(), stopped), ("x", Some(1)), "the one that begins first");
        assert_eq!(run(&["no", "", "yes"], &[b"yes"]).1, Some(2), "counted as they were sent");
    }

    proptest! {
        #[test]
        fn cutting_changes_nothing(text in "[aeé€X]{0,30}", cut in 1usize..5, stop in "[aeX]{1,3}") {
            let pieces: Vec<_> = text.as_bytes().chunks(cut).collect();
            let (out, stopped) = run(&[&stop], &pieces);
            let expected = text.find(&stop).map_or(text.as_str(), |at| &text[..at]);
            prop_assert_eq!(out.concat(), expected);
            prop_assert_eq!(stopped, text.contains(&stop).then_some(0));
        }
    }
}
