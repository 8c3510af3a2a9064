//! llama-server's `generation_settings`: a request as the daemon understood it.

use serde_json::{Value, json};

use crate::api::request::{AnswerOptions, REPEAT_LAST};
use crate::engine::{Generate, ModelInfo};

/// A bias of this value or less bans a token. llama-server writes that as minus infinity, which
/// JSON lacks.
const BAN: f32 = -100.0;

/// The settings of an answer.
pub(super) fn settings(request: &Generate, options: &AnswerOptions, model: &ModelInfo) -> Value {
    let sampling = &request.sampling;
    json!({
        "n_predict": request.max_tokens.map_or(-1, i64::from),
        "seed": sampling.seed.map_or(Value::from(-1), Value::from),
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.penalties.repeat,
        "repeat_last_n": match sampling.penalties.last {
            None => i64::from(REPEAT_LAST),
            Some(u32::MAX) => -1,
            Some(last) => i64::from(last),
        },
        "presence_penalty": sampling.penalties.presence,
        "frequency_penalty": sampling.penalties.frequency,
        "stop": request.stop,
        "ignore_eos": request.ignore_end,
        "logit_bias": biases(request, model),
        "stream": options.stream,
        "n_probs": request.report.unwrap_or(0),
        "post_sampling_probs": request.sampled,
        "timings_per_token": options.timings_per_token,
        "samplers": ["penalties", "top_k", "top_p", "min_p", "temperature"],
    })
}

/// Biases by token, including those that `ignore_eos` adds.
fn biases(request: &Generate, model: &ModelInfo) -> Vec<Value> {
    let bias = |token: u32, bias: f32| json!({"token": token, "bias": (bias > BAN).then_some(bias)});
    let given = request.logit_bias.iter().map(|&(token, given)| bias(token, given));
    let ends = model.end_tokens.iter().filter(|_| request.ignore_end).map(|&token| bias(token, BAN));
    given.chain(ends).collect()
}

/// `__verbose`: the engine's request, if the client asked for it. Of several answers, the first
/// one's.
pub(in crate::api) fn verbose(
    requests: &[Generate],
    options: &AnswerOptions,
    model: &ModelInfo,
) -> Option<Value> {
    let request = requests.first().filter(|_| options.verbose)?;
    let prompt: String = request.prompt.iter().map(|segment| segment.text.as_str()).collect();
    Some(json!({"prompt": prompt, "generation_settings": settings(request, options, model)}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::request::AnswerFields;
    use crate::config::{Overrides, load};
    use crate::engine::{FakeEngine, Prompt};

    #[test]
    fn tokens_that_are_never_chosen_have_no_number() {
        let defaults = load(None, Overrides::default()).unwrap().sampling;
        let options = AnswerOptions::new(AnswerFields::default(), &defaults).unwrap();
        let request = Generate {
            logit_bias: vec![(5, 1.5), (6, -100.0)],
            ignore_end: true,
            ..Generate::new("x", Prompt::new())
        };
        let settings = settings(&request, &options, &FakeEngine::info());
        let expected =
            json!([{"token": 5, "bias": 1.5}, {"token": 6, "bias": null}, {"token": 2, "bias": null}]);
        assert_eq!(settings["logit_bias"], expected);
    }
}
