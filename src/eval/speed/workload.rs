//! What is asked: bodies of chat requests, each other than all before it, and the same for every endpoint.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::task::Event;
use crate::task::generator::{Generator, Limits, Split, words};
use crate::task::prompt::{self, Wording};
use crate::task::wording::Length;

/// What sort of requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// Events to encode: a head that repeats, an event that does not, an answer held to the schema
    Encoding,
    /// Free text, a different prompt each time, a fixed number of tokens
    Chat,
    /// One of each in turn
    Mixed,
}

impl Workload {
    /// Whether there is a request of this kind in it.
    pub fn has(self, kind: Kind) -> bool {
        match self {
            Self::Encoding => kind == Kind::Encoding,
            Self::Chat => kind == Kind::Chat,
            Self::Mixed => true,
        }
    }
}

/// What one request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The encoding of an event: the answer has to be JSON.
    Encoding,
    /// Text.
    Chat,
}

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What it asks for.
    pub kind: Kind,
    /// What is sent, but for the model's name.
    pub body: Value,
}

/// The requests of a run: number `index` is a pure function of these fields and `index`.
#[derive(Debug, Clone)]
pub struct Requests {
    /// What is asked.
    pub workload: Workload,
    /// Where everything random comes from.
    pub seed: u64,
    /// Events to encode instead of generated ones.
    pub events: Option<Vec<Event>>,
    /// Tokens of an encoding at most.
    pub max_tokens: u32,
    /// Tokens of a chat answer.
    pub chat_tokens: u32,
    /// Whether a chat answer goes on behind the model's own end (`ignore_eos`), so that all have the same length.
    pub fixed_length: bool,
}

/// Chat prompts are made from other rows than encodings, so that none shares its text with one.
const CHAT_ROWS: u64 = 1 << 32;
/// Tokens of an answer where only the time to the first counts.
const HEAD_TOKENS: u32 = 8;

impl Requests {
    /// Request number `index`.
    pub fn request(&self, index: u64) -> Request {
        match self.workload {
            Workload::Encoding => self.encoding(index),
            Workload::Chat => self.chat(index),
            Workload::Mixed if index.is_multiple_of(2) => self.encoding(index / 2),
            Workload::Mixed => self.chat(index / 2),
        }
    }

    /// Events that `count` requests take.
    pub fn events_of(&self, count: u64) -> u64 {
        match self.workload {
            Workload::Encoding => count,
            Workload::Chat => 0,
            Workload::Mixed => count.div_ceil(2),
        }
    }

    fn encoding(&self, index: u64) -> Request {
        let body = prompt::request(&self.event(index), &Wording::standard());
        Request { kind: Kind::Encoding, body: streamed(body, self.max_tokens) }
    }

    fn chat(&self, index: u64) -> Request {
        let text = Generator::new(self.seed, Split::Eval).row(CHAT_ROWS + index).event.content;
        // The question stands behind the text: in front of it, it would be a head that all prompts share.
        let content = format!("{text}\n\nWhat does this mean, and what should be done about it?");
        let mut body = json!({"messages": [{"role": "user", "content": content}]});
        if self.fixed_length {
            body["ignore_eos"] = json!(true);
        }
        Request { kind: Kind::Chat, body: streamed(body, self.chat_tokens) }
    }

    fn event(&self, index: u64) -> Event {
        match &self.events {
            Some(events) => events[index as usize % events.len()].clone(),
            None => Generator::new(self.seed, Split::Eval).row(index).event,
        }
    }

    /// Two requests that begin with the same long head, which no request before them had.
    pub fn same_prefix(&self, index: u64) -> [Request; 2] {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut wording = Wording::varied(&mut rng, Length::Long);
        // At the very front: a cache of beginnings ends where the first token differs.
        let sentence: Vec<&str> = (0..12).map(|_| words::any(&mut rng)).collect();
        wording.system = format!("{}. {}", sentence.join(" "), wording.system);
        let short = Generator::new(self.seed, Split::Eval).with_limits(Limits { max_event_chars: 200 });
        [0, 1].map(|second| {
            let event = short.row(2 * CHAT_ROWS + 2 * index + second).event;
            let body = json!({"messages": prompt::messages(&event, &wording)});
            Request { kind: Kind::Chat, body: streamed(body, HEAD_TOKENS) }
        })
    }
}

/// Adds what every request says. Temperature 0 is said: where nothing is said, some servers draw.
fn streamed(mut body: Value, tokens: u32) -> Value {
    body["max_tokens"] = json!(tokens);
    body["temperature"] = json!(0);
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn requests(workload: Workload) -> Requests {
        let (max_tokens, chat_tokens) = (100, 7);
        Requests { workload, seed: 1, events: None, max_tokens, chat_tokens, fixed_length: true }
    }

    fn user(request: &Request) -> String {
        request.body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().to_owned()
    }

    #[test]
    fn no_request_is_asked_twice_and_all_are_the_same_each_time() {
        for workload in [Workload::Encoding, Workload::Chat, Workload::Mixed] {
            let requests = requests(workload);
            let asked: HashSet<String> = (0..200).map(|index| user(&requests.request(index))).collect();
            assert_eq!(asked.len(), 200, "{workload:?}");
            assert_eq!(requests.request(77), requests.request(77));
            let other = Requests { seed: 2, ..requests.clone() };
            assert_ne!(requests.request(77), other.request(77));
        }
    }

    #[test]
    fn encodings_share_their_head_and_chats_share_nothing() {
        let common = |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
        let [a, b] = [0, 1].map(|index| user(&requests(Workload::Encoding).request(index)));
        assert!(common(&a, &b) > 300, "{a}\n{b}");
        let [a, b] = [0, 1].map(|index| user(&requests(Workload::Chat).request(index)));
        assert!(common(&a, &b) < 20, "{a}\n{b}");
    }

    #[test]
    fn what_is_sent_says_temperature_budget_and_usage() {
        let mixed = requests(Workload::Mixed);
        let (encoding, chat) = (mixed.request(0), mixed.request(1));
        assert_eq!((encoding.kind, chat.kind), (Kind::Encoding, Kind::Chat));
        for (body, tokens) in [(&encoding.body, 100), (&chat.body, 7)] {
            assert_eq!(body["temperature"], 0);
            assert_eq!(body["max_tokens"], tokens);
            assert_eq!(body["stream_options"]["include_usage"], true);
        }
        assert_eq!(encoding.body["response_format"]["json_schema"]["name"], "encoding_response");
        assert!(encoding.body.get("ignore_eos").is_none());
        assert_eq!(chat.body["ignore_eos"], true);
        let free = Requests { fixed_length: false, ..mixed };
        assert!(free.request(1).body.get("ignore_eos").is_none());
    }

    #[test]
    fn a_head_is_long_new_and_shared_by_two() {
        let requests = requests(Workload::Encoding);
        let system = |request: &Request| request.body["messages"][0]["content"].as_str().unwrap().to_owned();
        let [first, second] = requests.same_prefix(0);
        let [other, _] = requests.same_prefix(1);
        assert_eq!(system(&first), system(&second));
        assert_ne!(user(&first), user(&second));
        assert!(user(&first).split_whitespace().count() > 200);
        assert_ne!(system(&first)[..20], system(&other)[..20]);
    }
}
