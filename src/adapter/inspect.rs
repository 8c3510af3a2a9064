//! Inspects a file: whether it is a spoke, and one for this post.

use std::path::Path;

use super::container::Container;
use super::dropped::{Dropped, Parts};
use super::keys::{self, AdapterType};
use super::{Format, Limits, Post, Refusal, Spoke, felix, lora, peft};

/// Inspects a dropped file or folder: its container, every key, every tensor, every number.
///
/// Without a post, skips only the checks that need one. Reads each byte once, holds one part of a
/// tensor at a time, and never allocates more than the file has bytes.
///
/// # Errors
/// The first broken rule.
pub fn inspect(path: &Path, post: Option<&Post>, limits: &Limits) -> Result<Spoke, Refusal> {
    let parts = Parts::open(path, limits)?;
    let file_bytes = parts.bytes()?;
    Ok(Spoke { file_bytes, ..inspect_opened(&Dropped::of(parts, limits)?, post, limits)? })
}

/// As [`inspect`], for open parts. Leaves the file size at 0.
fn inspect_opened(dropped: &Dropped, post: Option<&Post>, limits: &Limits) -> Result<Spoke, Refusal> {
    match dropped {
        Dropped::Gguf(file) => {
            let (adapter, origin) = keys::read(file)?;
            let container = Container::Gguf(file);
            origin.check(post).map_err(|reason| container.refuse(reason))?;
            match adapter {
                AdapterType::Lora => lora::inspect(&container, file, origin, post, limits),
                AdapterType::Felix => {
                    let layout = felix::files::gguf_layout(&container, file, post, limits)?;
                    felix::files::inspect(&container, Format::FelixGguf, &layout, origin, limits)
                }
            }
        }
        Dropped::Safetensors { weights, config } => {
            let container = Container::Safetensors(weights);
            let (layout, origin) =
                felix::files::safetensors_layout(&container, config.as_ref(), post, limits)?;
            felix::files::inspect(&container, Format::FelixSafetensors, &layout, origin, limits)
        }
        Dropped::Peft { format, config, weights } => {
            let container = Container::Safetensors(weights);
            let peft = peft::Peft::read(&container, config, post, limits)?;
            peft.inspect(&container, *format, limits)
        }
    }
}
