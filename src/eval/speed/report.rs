//! What many answers took together: rounds, their sums, and ratios of pairs of rounds.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::answer::Answer;
use super::shared_prefix::SharedPrefixReport;
use super::statistics::{Percentiles, Spread};
use super::workload::{Kind, Workload};

/// What came back in one round: a fixed number of requests, so many at once, to one endpoint.
#[derive(Debug, Clone, Default)]
pub struct Round {
    /// From the first request to the end of the last answer.
    pub elapsed: Duration,
    /// Answers that ended.
    pub answers: Vec<(Kind, Answer)>,
    /// Requests that got none, in words.
    pub errors: Vec<String>,
}

impl Round {
    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Answers per second.
    pub fn requests_per_second(&self) -> f64 {
        self.per_second(self.answers.len() as u64)
    }

    /// Tokens of all answers per second.
    pub fn tokens_per_second(&self) -> f64 {
        self.per_second(self.tokens())
    }

    fn tokens(&self) -> u64 {
        self.answers.iter().map(|(_, answer)| answer.completion_tokens).sum()
    }

    /// Median time to the first piece; 0 without any answer.
    fn ttft_p50_ms(&self) -> f64 {
        let first = self.answers.iter().map(|(_, answer)| ms(answer.first));
        Percentiles::of(first).map_or(0.0, |ttft| ttft.p50)
    }
}

/// All rounds of one endpoint at one concurrency.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Requests sent.
    pub requests: usize,
    /// Of these, the ones that got no answer.
    pub errors: usize,
    /// The first of these errors.
    pub first_error: Option<String>,
    /// Answers to encodings that are no JSON.
    pub invalid: usize,
    /// Answers to encodings that ended because tokens ran out, whether they are JSON or not.
    pub ended_by_length: usize,
    /// Tokens of all prompts, if the server tells.
    pub prompt_tokens: Option<u64>,
    /// Of these, the ones that the server had computed before, if it tells.
    pub cached_tokens: Option<u64>,
    /// Tokens of all answers.
    pub completion_tokens: u64,
    /// Wall-clock time of all rounds.
    pub seconds: f64,
    /// Answers per second.
    pub requests_per_second: f64,
    /// Answers per second that can be used: those to encodings count only as JSON.
    pub valid_per_second: f64,
    /// Tokens of answers per second, all requests together.
    pub tokens_per_second: f64,
    /// Until the first piece of an answer.
    pub ttft_ms: Option<Percentiles>,
    /// Between one piece and the next. A piece may hold several tokens.
    pub itl_ms: Option<Percentiles>,
    /// Per token behind the first piece, one value per answer.
    pub per_token_ms: Option<Percentiles>,
    /// Whole answers.
    pub latency_ms: Option<Percentiles>,
    /// The rounds one by one.
    pub rounds: Vec<RoundFigures>,
}

/// One round in three figures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RoundFigures {
    /// Answers per second.
    pub requests_per_second: f64,
    /// Tokens of answers per second.
    pub tokens_per_second: f64,
    /// Median time to the first piece.
    pub ttft_p50_ms: f64,
}

impl Measured {
    /// Sums up rounds.
    pub fn new(rounds: &[Round]) -> Self {
        let answers = || rounds.iter().flat_map(|round| &round.answers).map(|(_, answer)| answer);
        let encodings = || {
            let all = rounds.iter().flat_map(|round| &round.answers);
            all.filter(|(kind, _)| *kind == Kind::Encoding).map(|(_, answer)| answer)
        };
        // A server that does not tell for each answer does not tell.
        let sum = |of: fn(&Answer) -> Option<u64>| {
            answers().map(of).sum::<Option<u64>>().filter(|_| answers().next().is_some())
        };
        let errors = rounds.iter().map(|round| round.errors.len()).sum();
        let invalid = encodings().filter(|answer| !is_json(&answer.text)).count();
        let seconds = rounds.iter().map(|round| round.elapsed.as_secs_f64()).sum::<f64>();
        let per_second = |count: f64| count / seconds.max(1e-9);
        let completion_tokens = rounds.iter().map(Round::tokens).sum::<u64>();
        Self {
            requests: answers().count() + errors,
            errors,
            first_error: rounds.iter().flat_map(|round| &round.errors).next().cloned(),
            invalid,
            ended_by_length: encodings().filter(|answer| answer.finish_reason == "length").count(),
            prompt_tokens: sum(|answer| answer.prompt_tokens),
            cached_tokens: sum(|answer| answer.cached_tokens),
            completion_tokens,
            seconds,
            requests_per_second: per_second(answers().count() as f64),
            valid_per_second: per_second((answers().count() - invalid) as f64),
            tokens_per_second: per_second(completion_tokens as f64),
            ttft_ms: Percentiles::of(answers().map(|answer| ms(answer.first))),
            itl_ms: Percentiles::of(answers().flat_map(|answer| &answer.gaps).map(|&gap| ms(gap))),
            per_token_ms: Percentiles::of(answers().filter_map(Answer::per_token).map(ms)),
            latency_ms: Percentiles::of(answers().map(|answer| ms(answer.latency))),
            rounds: rounds.iter().map(RoundFigures::of).collect(),
        }
    }

    /// Of the tokens of all prompts, the share that the server had computed before, if it tells.
    pub fn cached_share(&self) -> Option<f64> {
        Some(self.cached_tokens? as f64 / (self.prompt_tokens? as f64).max(1.0))
    }
}

impl RoundFigures {
    fn of(round: &Round) -> Self {
        Self {
            requests_per_second: round.requests_per_second(),
            tokens_per_second: round.tokens_per_second(),
            ttft_p50_ms: round.ttft_p50_ms(),
        }
    }
}

/// The endpoint over what it is measured against, pair of rounds by pair of rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    /// Of answers per second: above 1 the endpoint is faster.
    pub requests_per_second: Option<Spread>,
    /// Of tokens per second: above 1 the endpoint is faster.
    pub tokens_per_second: Option<Spread>,
    /// Of the median time to the first piece: below 1 the endpoint is faster.
    pub ttft_p50: Option<Spread>,
}

impl Ratio {
    /// Of rounds in the order of their pairs.
    pub fn new(ours: &[RoundFigures], theirs: &[RoundFigures]) -> Self {
        let spread =
            |of: fn(&RoundFigures) -> f64| Spread::of_ratios(ours.iter().map(of).zip(theirs.iter().map(of)));
        Self {
            requests_per_second: spread(|round| round.requests_per_second),
            tokens_per_second: spread(|round| round.tokens_per_second),
            ttft_p50: spread(|round| round.ttft_p50_ms),
        }
    }
}

/// What was measured at one concurrency.
#[derive(Debug, Clone, Serialize)]
pub struct Level {
    /// Requests under way at once.
    pub concurrency: u16,
    /// In the order of [`Report::endpoints`].
    pub measured: Vec<Measured>,
    /// First over second endpoint, if there are two.
    pub ratio: Option<Ratio>,
}

impl Level {
    /// Sums up the rounds of each endpoint.
    pub fn new(concurrency: u16, rounds: &[Vec<Round>]) -> Self {
        let measured: Vec<Measured> = rounds.iter().map(|rounds| Measured::new(rounds)).collect();
        let ratio = match measured.as_slice() {
            [ours, theirs] => Some(Ratio::new(&ours.rounds, &theirs.rounds)),
            _ => None,
        };
        Self { concurrency, measured, ratio }
    }
}

/// Who is measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Endpoint {
    /// Its address.
    pub url: String,
    /// The model's name there.
    pub model: String,
}

/// A whole run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What was asked.
    pub workload: Workload,
    /// Requests of a round.
    pub requests: u32,
    /// Where everything random came from: the same seed asks the same.
    pub seed: u64,
    /// Tokens of an encoding at most.
    pub max_tokens: u32,
    /// Tokens of a chat answer.
    pub chat_tokens: u32,
    /// Whether chat answers went on behind the model's own end.
    pub fixed_length: bool,
    /// One, or two whose rounds took turns.
    pub endpoints: Vec<Endpoint>,
    /// By concurrency, in the order asked for.
    pub levels: Vec<Level>,
    /// What a known head saves, if that was asked for.
    #[serde(rename = "head")]
    pub shared_prefix: Option<SharedPrefixReport>,
}

/// Milliseconds.
pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<Value>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str, first: u64, tokens: u64, finish_reason: &str) -> Answer {
        Answer {
            first: Duration::from_millis(first),
            gaps: vec![Duration::from_millis(4); 2],
            latency: Duration::from_millis(first + 8),
            text: text.to_owned(),
            finish_reason: finish_reason.to_owned(),
            completion_tokens: tokens,
            prompt_tokens: Some(10),
            cached_tokens: Some(5),
        }
    }

    fn round(seconds: u64, answers: Vec<(Kind, Answer)>, errors: &[&str]) -> Round {
        let errors = errors.iter().map(|&error| error.to_owned()).collect();
        Round { elapsed: Duration::from_secs(seconds), answers, errors }
    }

    #[test]
    fn rounds_are_summed_and_bad_answers_are_counted_not_hidden() {
        let good = (Kind::Encoding, answer("{}", 10, 5, "stop"));
        let cut = (Kind::Encoding, answer("{\"gist\":\"a", 30, 9, "length"));
        let chat = (Kind::Chat, answer("no JSON", 20, 6, "length"));
        let measured = Measured::new(&[
            round(2, vec![good.clone(), cut], &[]),
            round(3, vec![chat, good], &["503", "x"]),
        ]);
        assert_eq!((measured.requests, measured.errors, measured.invalid), (6, 2, 1));
        assert_eq!((measured.ended_by_length, measured.completion_tokens), (1, 25));
        assert_eq!(measured.first_error.as_deref(), Some("503"));
        assert_eq!((measured.seconds, measured.requests_per_second), (5.0, 0.8));
        assert_eq!((measured.valid_per_second, measured.tokens_per_second), (0.6, 5.0));
        assert_eq!(measured.cached_share(), Some(0.5));
        let ttft = measured.ttft_ms.unwrap();
        assert_eq!((ttft.p50, ttft.p90), (10.0, 30.0));
        let (itl, per_token) = (measured.itl_ms.unwrap(), measured.per_token_ms.unwrap());
        assert_eq!((itl.p99, per_token.p50, measured.rounds[0].tokens_per_second), (4.0, 1.6, 7.0));
    }

    #[test]
    fn a_server_that_does_not_tell_is_not_said_to_cache_nothing() {
        let silent = Answer { cached_tokens: None, ..answer("{}", 1, 1, "stop") };
        let told = answer("{}", 1, 1, "stop");
        let measured = Measured::new(&[round(1, vec![(Kind::Chat, told), (Kind::Chat, silent)], &[])]);
        assert_eq!((measured.prompt_tokens, measured.cached_tokens), (Some(20), None));
        let nothing = Measured::new(&[round(1, vec![], &["down"])]);
        assert_eq!((nothing.prompt_tokens, nothing.ttft_ms, nothing.requests_per_second), (None, None, 0.0));
    }

    #[test]
    fn ratios_are_of_rounds_of_the_same_pair() {
        let of = |seconds| vec![round(seconds, vec![(Kind::Chat, answer("a", 10, 8, "stop"))], &[])];
        let (ours, theirs) = ([of(1), of(4), of(2)].concat(), [of(2), of(4), of(6)].concat());
        let level = Level::new(4, &[ours.clone(), theirs]);
        let ratio = level.ratio.unwrap();
        assert_eq!(ratio.requests_per_second, Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(ratio.ttft_p50, Some(Spread { median: 1.0, min: 1.0, max: 1.0 }));
        assert!(Level::new(4, &[ours]).ratio.is_none());
    }
}
