//! Sends requests to an endpoint, so many at once, and takes the time of what comes back.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Context;
use serde_json::json;

use crate::cli::client::{Client, ClientError};
use crate::eval::speed::report::Endpoint;
use crate::eval::speed::shared_prefix::Trial;
use crate::eval::speed::{Answer, Kind, Request, Requests, Round, Workload};

const CHAT: &str = "/v1/chat/completions";

/// An endpoint that has answered once.
pub struct Target {
    client: Client,
    model: String,
}

impl Target {
    /// Asks an endpoint which model it has, unless one is named: whoever does not answer that is not measured.
    pub fn find(client: Client, named: Option<&str>) -> Result<Self, ClientError> {
        let models = client.get("/v1/models")?;
        let Some(model) = models["data"][0]["id"].as_str() else {
            let url = format!("{}/v1/models", client.endpoint());
            return Err(ClientError::Answer { url, reason: "data[0].id is missing".to_owned() });
        };
        Ok(Self { model: named.unwrap_or(model).to_owned(), client })
    }

    /// What the report says of it.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint { url: self.client.endpoint().to_owned(), model: self.model.clone() }
    }

    /// Whether it goes on behind the model's own end when asked to. An endpoint that knows nothing of that may ignore it;
    /// only one that says so is found out here.
    pub fn takes_ignore_eos(&self) -> anyhow::Result<bool> {
        let body = json!({
            "model": self.model, "messages": [{"role": "user", "content": "."}], "max_tokens": 1, "ignore_eos": true,
        });
        match self.client.post(CHAT, &body) {
            Ok(_) => Ok(true),
            Err(ClientError::Refused { message, .. }) if message.contains("ignore_eos") => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends one request and reads its answer to the end.
    fn ask(&self, request: &Request) -> anyhow::Result<Answer> {
        let mut body = request.body.clone();
        body["model"] = json!(self.model);
        let begun = Instant::now();
        let stream = self.client.stream(CHAT, &body)?;
        Ok(Answer::read(stream, begun)?)
    }

    /// One round: the requests of these numbers, `concurrency` under way at once. `done` is called after each.
    pub fn round(
        &self,
        requests: &Requests,
        numbers: Range<u64>,
        concurrency: u16,
        done: impl Fn() + Sync,
    ) -> Round {
        // Made before the clock runs: the machine's time belongs to the server.
        let first = numbers.start;
        let asked: Vec<Request> = numbers.map(|number| requests.request(number)).collect();
        let next = AtomicU64::new(0);
        let round = Mutex::new(Round::default());
        let work = || {
            while let Some(request) = asked.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                let answer = self.ask(request);
                let mut round = round.lock().expect("no thread panics while it stores");
                match answer {
                    Ok(answer) => round.answers.push((request.kind, answer)),
                    Err(error) => round.errors.push(crate::cli::told(&error).join(": ")),
                }
                drop(round);
                done();
            }
        };
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..concurrency {
                scope.spawn(work);
            }
        });
        let elapsed = begun.elapsed();
        tracing::debug!(first, ?elapsed, endpoint = self.client.endpoint(), "a round ended");
        Round { elapsed, ..round.into_inner().expect("no thread panics while it stores") }
    }

    /// Two requests with the same new head, one after the other.
    pub fn trial(&self, requests: &Requests, number: u64) -> anyhow::Result<Trial> {
        let [first, second] = requests.same_prefix(number);
        let ask =
            |request| self.ask(request).with_context(|| format!("head test at {}", self.client.endpoint()));
        let (first, second) = (ask(&first)?, ask(&second)?);
        let share = |cached: u64, all: u64| cached as f64 / (all as f64).max(1.0);
        let cached_share =
            second.cached_tokens.zip(second.prompt_tokens).map(|(cached, all)| share(cached, all));
        Ok(Trial { first: first.first, second: second.first, cached_share })
    }
}

/// Whether every target can be held to a fixed number of tokens; there is nothing to ask where no chat is.
pub fn fixed_length(targets: &[Target], workload: Workload) -> anyhow::Result<bool> {
    if !workload.has(Kind::Chat) {
        return Ok(true);
    }
    let mut all = true;
    for target in targets {
        if !target.takes_ignore_eos()? {
            eprintln!(
                "{} refuses ignore_eos: chat answers end where the model ends them",
                target.client.endpoint()
            );
            all = false;
        }
    }
    Ok(all)
}
