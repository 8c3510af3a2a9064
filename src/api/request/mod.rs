//! Fields that chat, text completion and `/completion` share: sampling, length, stop texts,
//! constraints.

mod bias;
mod constraint;
mod fields;
pub(in crate::api) mod prompt;
mod sampling;
mod unsupported;

pub(super) use sampling::REPEAT_LAST;

use super::app::{App, Deadline};
use super::error::{ApiError, Fields};
use super::spokes::Chosen;
use crate::config::{ModelSettings, SamplingDefaults};
use crate::engine::{Generate, ModelInfo, Prompt, likely_use};
use crate::task::schema::SCHEMA_NAME;

use self::bias::Bias;
use self::constraint::Guarded;
pub(in crate::api) use self::constraint::both;
pub(in crate::api) use self::fields::AnswerFields;
use self::fields::Stop;
pub(in crate::api) use self::unsupported::refuse;

/// Most answers that one request may ask for.
const MOST_ANSWERS: i64 = 16;

/// Most stop texts in one request, and most bytes of each. Every text of an answer is searched for
/// all of them.
const MOST_STOPS: usize = 64;
const LONGEST_STOP: usize = 1_024;

/// The endpoint of a request. Each has fields that the others refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) enum Endpoint {
    /// `POST /v1/chat/completions`.
    Chat,
    /// `POST /v1/completions`.
    Text,
    /// `POST /completion`, llama-server's own.
    Native,
}

/// The validated fields: how to answer a prompt.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag on the wire and means itself alone")]
pub(in crate::api) struct AnswerOptions {
    pub(in crate::api) stream: bool,
    pub(in crate::api) include_usage: bool,
    pub(in crate::api) timings_per_token: bool,
    /// Whether the reply contains `__verbose`.
    pub(in crate::api) verbose: bool,
    /// Number of answers per prompt.
    pub(in crate::api) n: u32,
    /// The field that the constraint came from.
    pub(in crate::api) constraint_field: &'static str,
    /// What the engine is asked for, without what only the model, the prompt and the spokes tell.
    pub(in crate::api) generate: Generate,
    guarded: Guarded,
    bias: Vec<Bias>,
}

impl AnswerOptions {
    /// Validates the fields that all endpoints share.
    pub(in crate::api) fn new(
        mut written: AnswerFields,
        defaults: &SamplingDefaults,
    ) -> Result<Self, ApiError> {
        let n = match written.n {
            None => 1,
            Some(n @ 1..=MOST_ANSWERS) => n as u32,
            Some(n) => {
                return Err(ApiError::field("n", format!("found {n}, expected 1 to {MOST_ANSWERS}")));
            }
        };
        if let Some(best_of) = written.best_of.filter(|&best_of| best_of != i64::from(n)) {
            let message = format!("{best_of} is not supported here: only as many as n, {n}, are generated");
            return Err(ApiError::field("best_of", message));
        }
        let max_tokens = max_tokens(&written)?;
        let encodes = written.schema_name() == Some(SCHEMA_NAME);
        let constraint = constraint::take(&mut written, defaults.task_limits)?;
        let shape = constraint.as_ref().map(|(_, constraint)| constraint);
        let guarded = Guarded::of(shape, encodes, defaults.task_limits);
        let ignore_end = written.ignore_eos.unwrap_or(false);
        if ignore_end && let Some((field, _)) = &constraint {
            let message =
                format!("can't be combined with {field}: such an answer ends where its shape is complete");
            return Err(ApiError::field("ignore_eos", message));
        }
        let (constraint_field, constraint) = match constraint {
            Some((field, constraint)) => (field, Some(constraint)),
            None => (Fields::CHAT.constraint, None),
        };
        let stream = written.stream.unwrap_or(false);
        let timings_per_token = written.timings_per_token.unwrap_or(false);
        let generate = Generate {
            max_tokens,
            sampling: sampling::sampling(&written, defaults)?,
            stop: written.stop.texts()?,
            constraint,
            ignore_end,
            // Tokens can be counted while they stream only if they are reported.
            report: (stream && timings_per_token).then_some(0),
            cache: written.cache_prompt.unwrap_or(true),
            draft: written.draft.unwrap_or(true) && written.speculative != Some(0),
            progress: stream && written.return_progress.unwrap_or(false),
            ..Generate::new("", Prompt::new())
        };
        Ok(Self {
            stream,
            include_usage: written.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
            timings_per_token,
            verbose: written.verbose.unwrap_or(false),
            n,
            constraint_field,
            generate,
            guarded,
            bias: bias::parse(written.logit_bias.as_ref())?,
        })
    }

    /// Asks for a report on the answer's tokens, with this many alternatives for each.
    pub(in crate::api) fn report(&mut self, alternatives: Option<u32>) {
        self.generate.report = alternatives.or(self.generate.report);
    }

    /// The engine's requests: `n` per prompt, with seeds counting up from the given one.
    pub(in crate::api) async fn requests(
        &self,
        app: &App,
        model: &ModelInfo,
        deadline: Deadline,
        id: &str,
        prompts: Vec<Prompt>,
        spokes: &Chosen,
    ) -> Result<Vec<Generate>, ApiError> {
        self.check_room(&app.options().model, &prompts, model.n_ctx)?;
        let logit_bias = bias::resolve(&self.bias, app, model, deadline).await?;
        let many = prompts.len() > 1 || self.n > 1;
        let mut requests = Vec::with_capacity(prompts.len() * self.n as usize);
        for prompt in prompts {
            for answer in 0..self.n {
                let index = requests.len();
                let mut request = Generate {
                    id: if many { format!("{id}-{index}") } else { id.to_owned() },
                    prompt: prompt.clone(),
                    spokes: spokes.set().clone(),
                    logit_bias: logit_bias.clone(),
                    guard: self.guarded.guard(&prompt),
                    ..self.generate.clone()
                };
                request.sampling.seed =
                    request.sampling.seed.map(|seed| seed.wrapping_add(u64::from(answer)));
                requests.push(request);
            }
        }
        Ok(requests)
    }

    /// Refuses a request that would not fit even into an idle daemon, for which a retry could not
    /// help.
    fn check_room(&self, model: &ModelSettings, prompts: &[Prompt], context: u32) -> Result<(), ApiError> {
        let (lanes, n) = (model.lanes as usize, self.n as usize);
        let (count, most) = (prompts.len().saturating_mul(n), lanes + model.queue as usize);
        let field = if prompts.len() > 1 { "prompt" } else { "n" };
        if count > most {
            let message = format!(
                "asks for {count} answers at once; this daemon runs and queues at most {most} (model.lanes and \
                 model.queue): send several requests"
            );
            return Err(ApiError::field(field, message));
        }
        // The first requests go into lanes. One may always wait alone.
        let waiting = prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt, n)).skip(lanes);
        let tokens: u64 = waiting.map(|prompt| likely_use(prompt, self.generate.max_tokens, context)).sum();
        if count > lanes + 1 && tokens > model.queue_tokens {
            let message = format!(
                "asks for {count} answers at once, of which {} would wait with about {tokens} tokens; at most {} may wait \
                 (model.queue_tokens): send several requests, or a smaller max_tokens",
                count - lanes,
                model.queue_tokens
            );
            return Err(ApiError::field(field, message));
        }
        Ok(())
    }
}

/// The limit under the newest of its names.
fn max_tokens(written: &AnswerFields) -> Result<Option<u32>, ApiError> {
    let names = [
        ("max_completion_tokens", written.max_completion_tokens),
        ("max_tokens", written.max_tokens),
        ("n_predict", written.n_predict),
    ];
    let given = names.into_iter().find_map(|(field, given)| given.map(|given| (field, given)));
    given.map_or(Ok(None), |(field, given)| budget(field, given))
}

/// As in llama-server, -1 means no limit.
fn budget(field: &str, given: i64) -> Result<Option<u32>, ApiError> {
    match given {
        -1 => Ok(None),
        1.. => Ok(Some(u32::try_from(given).unwrap_or(u32::MAX))),
        _ => {
            Err(ApiError::field(field, format!("found {given}, expected at least 1, or -1: as many as fit")))
        }
    }
}

impl Stop {
    fn texts(self) -> Result<Vec<String>, ApiError> {
        let texts = match self {
            Self::None => Vec::new(),
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        };
        if texts.len() > MOST_STOPS {
            let message = format!("has {} texts, expected at most {MOST_STOPS}", texts.len());
            return Err(ApiError::field("stop", message));
        }
        for (index, text) in texts.iter().enumerate() {
            let message = match text.len() {
                0 => "is empty, expected a text".to_owned(),
                1..=LONGEST_STOP => continue,
                length => format!("has {length} bytes, expected at most {LONGEST_STOP}"),
            };
            return Err(ApiError::field(format!("stop[{index}]"), message));
        }
        Ok(texts)
    }
}

#[cfg(test)]
pub(in crate::api) mod tests;
