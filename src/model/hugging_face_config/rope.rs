//! Rotary base and scaling of a `config.json`, read where transformers reads them.

use serde_json::Value;

use super::keys::Keys;
use crate::model::file_error::FileError;
use crate::model::{Family, RopeScaling};

/// Base of the rotary frequencies for files that name none.
const DEFAULT_THETA: f64 = 10_000.0;
const SHARE: &str = "partial_rotary_factor";

/// The object with the rotary keys. transformers 5 writes `rope_parameters`, older versions
/// `rope_scaling`. All versions read the second unless it is empty, and then ignore the first.
pub(super) fn holder<'a>(keys: &Keys<'a>) -> Result<Option<Keys<'a>>, FileError> {
    let scaling = keys.inner("rope_scaling")?.filter(|scaling| !scaling.object.is_empty());
    let parameters = keys.inner("rope_parameters")?;
    let Some(holder) = scaling.or(parameters) else { return Ok(None) };
    // It contains objects if each kind of layer has its own.
    if let Some(key) = holder.object.iter().find(|(_, value)| value.is_object()).map(|(key, _)| key) {
        return Err(holder.wrong(key, "no object: all layers have one base and one scaling"));
    }
    Ok(Some(holder))
}

/// Base and scaling.
pub(super) fn read(keys: &Keys, family: Family) -> Result<(f64, Option<RopeScaling>), FileError> {
    let top = keys.optional_positive("rope_theta")?;
    let whole = |keys: &Keys| {
        let share = keys.get(SHARE);
        if share.is_some_and(|share| family != Family::Qwen3_5 && share.as_f64() != Some(1.0)) {
            return Err(keys.wrong(SHARE, "1 or nothing: whole heads are rotated"));
        }
        Ok(())
    };
    whole(keys)?;
    let Some(keys) = holder(keys)? else {
        return Ok((top.unwrap_or(DEFAULT_THETA), None));
    };
    whole(&keys)?;
    let theta = keys.optional_positive("rope_theta")?.or(top).unwrap_or(DEFAULT_THETA);
    let kind = if keys.get("rope_type").is_some() { "rope_type" } else { "type" };
    match keys.get(kind).map(Value::as_str) {
        None | Some(Some("default")) => Ok((theta, None)),
        // Qwen's name for three-dimensional positions, which are equal for text.
        Some(Some("mrope")) if family == Family::Qwen3_5 => Ok((theta, None)),
        Some(Some("llama3")) => {
            let scaling = RopeScaling {
                factor: keys.positive("factor")?,
                low_freq_factor: keys.positive("low_freq_factor")?,
                high_freq_factor: keys.positive("high_freq_factor")?,
                original_max_position: keys.count("original_max_position_embeddings")?,
            };
            if scaling.high_freq_factor <= scaling.low_freq_factor {
                let expected = format!("more than {} (low_freq_factor)", scaling.low_freq_factor);
                return Err(keys.wrong("high_freq_factor", expected));
            }
            Ok((theta, Some(scaling)))
        }
        Some(_) => Err(keys.wrong(kind, "\"default\" or \"llama3\": no other scaling is computed")),
    }
}
