//! Fields that control sampling.

use std::ops::RangeInclusive;

use super::AnswerFields;
use crate::api::error::ApiError;
use crate::config::SamplingDefaults;
use crate::engine::{Penalties, Sampling};

/// Default of `repeat_last_n`, the tokens that `repeat_penalty` looks back at. llama-server's
/// value.
pub(in crate::api) const REPEAT_LAST: u32 = 64;

/// How tokens are chosen.
pub(super) fn sampling(written: &AnswerFields, defaults: &SamplingDefaults) -> Result<Sampling, ApiError> {
    Ok(Sampling {
        temperature: number("temperature", written.temperature, 0.0..=2.0, defaults.temperature)?,
        top_p: number("top_p", written.top_p, 0.0..=1.0, defaults.top_p)?,
        top_k: top_k(written.top_k, defaults.top_k)?,
        min_p: number("min_p", written.min_p, 0.0..=1.0, defaults.min_p)?,
        // Any negative number draws a seed, like llama-server's -1.
        seed: written.seed.map_or(defaults.seed, |seed| u64::try_from(seed).ok()),
        penalties: penalties(written)?,
    })
}

fn penalties(written: &AnswerFields) -> Result<Penalties, ApiError> {
    let (field, repeat) = match (written.repeat_penalty, written.repetition_penalty) {
        (None, Some(given)) => ("repetition_penalty", Some(given)),
        (given, _) => ("repeat_penalty", given),
    };
    let repeat = number(field, repeat, 0.01..=100.0, 1.0)?;
    // OpenAI's penalties cover the whole answer, llama-server's the last tokens, including the
    // prompt's.
    let silent = (repeat - 1.0).abs() < f32::EPSILON;
    let last = match written.repeat_last_n {
        None => (!silent).then_some(REPEAT_LAST),
        Some(-1) => Some(u32::MAX),
        Some(given) => Some(u32::try_from(given).map_err(|_| {
            ApiError::field("repeat_last_n", format!("found {given}, expected -1 (all), 0 (none) or more"))
        })?),
    };
    Ok(Penalties {
        repeat,
        presence: number("presence_penalty", written.presence_penalty, -2.0..=2.0, 0.0)?,
        frequency: number("frequency_penalty", written.frequency_penalty, -2.0..=2.0, 0.0)?,
        last,
    })
}

/// As in llama-server, zero or less keeps all.
fn top_k(given: Option<i64>, default: u32) -> Result<u32, ApiError> {
    let Some(given) = given else { return Ok(default) };
    u32::try_from(given.max(0))
        .map_err(|_| ApiError::field("top_k", format!("found {given}, expected less than 2^32")))
}

fn number(
    field: &str,
    given: Option<f64>,
    range: RangeInclusive<f64>,
    default: f32,
) -> Result<f32, ApiError> {
    match given {
        None => Ok(default),
        Some(given) if range.contains(&given) => Ok(given as f32),
        Some(given) => {
            let expected = format!("expected a number from {} to {}", range.start(), range.end());
            Err(ApiError::field(field, format!("found {given}, {expected}")))
        }
    }
}
