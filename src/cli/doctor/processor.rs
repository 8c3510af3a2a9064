//! The processor, and which of its features are used.

use serde_json::json;

use super::Item;
use crate::cpu_features::{self, Feature, VARIABLE};
use crate::engine::ffi::{compiled_features, missing_features};

const NAME: &str = "processor";

/// The features of the processor, and those that kernels use.
pub(super) fn features() -> Item {
    let processor = cpu_features::processor();
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let name = cpu_features::name().unwrap_or_else(|| format!("unknown ({})", std::env::consts::ARCH));
    let (usable, missing) = (processor.usable().names(), missing_features());
    let lacking: Vec<_> =
        Feature::ALL.map(Feature::name).into_iter().filter(|name| !usable.contains(name)).collect();
    let unused = cpu_features::unused();
    let details = json!({
        "name": name,
        "architecture": std::env::consts::ARCH,
        "processors": count,
        "used": usable,
        "lacking": lacking,
        "unused": unused,
        "hidden": processor.hidden.names(),
        "compiled_for": compiled_features(),
        "missing": missing,
    });
    let list = |names: &[&str]| if names.is_empty() { "nothing".to_owned() } else { names.join(" ") };
    let mut found = format!("{name}, {count} processors; our kernels use {}", list(&usable));
    if !unused.is_empty() {
        found = format!("{found}, not {}", unused.join(" "));
    }
    let item = if !missing.is_empty() {
        let found = format!("{name} has no {}, which this program was compiled for", list(&missing));
        Item::failure(NAME, found, "run `make` on this machine, or `make portable`")
    } else if !processor.hidden.names().is_empty() {
        let hint = format!("the environment variable {VARIABLE} hides {}", list(&processor.hidden.names()));
        Item::warning(NAME, found, hint)
    } else if cfg!(target_arch = "x86_64") && !lacking.is_empty() {
        Item::ok(NAME, format!("{found}; it has no {}", list(&lacking)))
    } else {
        Item::ok(NAME, found)
    };
    item.with(details)
}
