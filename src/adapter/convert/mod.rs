//! Converts spokes between formats where the mathematics allows it. The written file is inspected
//! before it is accepted.

mod felix;
mod lora;
mod merged;

use std::collections::BTreeMap;
use std::path::Path;

pub use merged::{Split, split};

use super::container::Container;
use super::dropped::{Dropped, Parts};
use super::felix::files::{gguf_layout, safetensors_layout};
use super::felix::layout::Layout;
use super::felix::weights;
use super::felix::{Folded, FoldedLayer, Trained};
use super::keys::{self, AdapterType, Origin};
use super::{Defect, Format, Limits, Post, Refusal, Spoke, inspect};
use crate::gguf::Writer;

/// Writes a spoke in another format and inspects the result.
///
/// PEFT adapters and llama.cpp's LoRA files convert to each other, and so do the two forms of Felix
/// spokes. A conversion from PEFT needs the post, whose architecture decides the order of rows. So
/// does the conversion to PEFT for a `llama` post.
///
/// # Errors
/// Why the source is no spoke; why it can't be converted to that format; an I/O error.
pub fn convert(
    source: &Path,
    target: &Path,
    to: Format,
    post: Option<&Post>,
    limits: &Limits,
) -> Result<Spoke, Refusal> {
    let found = inspect(source, post, limits)?;
    let dropped = Dropped::of(Parts::open(source, limits)?, limits)?;
    match (&dropped, to) {
        (Dropped::Peft { config, weights, .. }, Format::LoraGguf) => {
            let container = Container::Safetensors(weights);
            let needed = || {
                container.refuse(Defect::PostNeeded { why: "its names and rows are ordered by the post's" })
            };
            lora::to_gguf(&container, config, post.ok_or_else(needed)?, limits, target)?;
        }
        (Dropped::Gguf(file), Format::PeftFolder) if found.format == Format::LoraGguf => {
            lora::to_peft(file, post, limits, target)?;
        }
        (_, Format::FelixGguf | Format::FelixSafetensors)
            if matches!(found.format, Format::FelixGguf | Format::FelixSafetensors) =>
        {
            let (container, layout, origin) = open_felix(&dropped, post, limits)?;
            let eps = layout.shape.eps.or(post.and_then(|post| post.rms_eps));
            if to == Format::FelixGguf {
                felix::to_gguf(&container, &layout, eps, &origin, post, source, target)?;
            } else {
                // An unknown epsilon is not written either.
                let trained = weights::read(&container, &layout, eps.unwrap_or_default())?;
                felix::to_safetensors(&trained, eps, &origin, target)?;
            }
        }
        _ => return Err(Refusal::new(source, Defect::NotConvertible { why: obstacle(found.format, to) })),
    }
    inspect(target, post, limits)
}

/// Writes the form that the engine loads. A spoke already in that form is copied byte by byte.
///
/// # Errors
/// As [`convert`].
pub fn to_served(source: &Path, target: &Path, post: &Post, limits: &Limits) -> Result<Spoke, Refusal> {
    let found = inspect(source, Some(post), limits)?;
    let to = match found.format {
        Format::PeftFolder | Format::PeftZip => Format::LoraGguf,
        Format::FelixSafetensors => Format::FelixGguf,
        Format::LoraGguf | Format::FelixGguf => {
            super::staging::copy(source, target, limits)?;
            return inspect(target, Some(post), limits);
        }
    };
    convert(source, target, to, Some(post), limits)
}

/// Loads a Felix spoke as it was trained, from either of its forms. The file is inspected first.
///
/// # Errors
/// Why the file is no Felix spoke for this post.
pub fn load_felix(path: &Path, post: &Post, limits: &Limits) -> Result<Trained, Refusal> {
    inspect(path, Some(post), limits)?;
    let dropped = Dropped::of(Parts::open(path, limits)?, limits)?;
    let (container, layout, _) = open_felix(&dropped, None, limits)?;
    let eps = eps_of(path, &layout, || Ok(post.rms_eps))?;
    weights::read(&container, &layout, eps)
}

/// Reads a Felix spoke that has passed [`inspect`], folded for serving. Only one layer in training
/// form is in memory at a time. `eps` is the post's epsilon, for files that don't record one.
/// `take` gets the rank and each folded layer, and returns what is kept of it.
///
/// # Errors
/// The file is no Felix spoke; no epsilon is known; an I/O error.
pub fn read_folded<L>(
    path: &Path,
    limits: &Limits,
    eps: impl FnOnce() -> Result<Option<f32>, Refusal>,
    mut take: impl FnMut(usize, &FoldedLayer) -> L,
) -> Result<Folded<L>, Refusal> {
    let dropped = Dropped::of(Parts::open(path, limits)?, limits)?;
    let (container, layout, _) = open_felix(&dropped, None, limits)?;
    let eps = eps_of(path, &layout, eps)?;
    let (spokes, rank) = (layout.shape.spokes, layout.shape.rank);
    let rows = spokes as usize * rank as usize;
    let mut layers = BTreeMap::new();
    for (&at, layer) in &layout.layers {
        let folded = weights::read_layer(&container, &layout, layer)?.fold(spokes, rank);
        layers.insert(at, take(rows, &folded));
    }
    Ok(Folded { rows, hidden: layout.hidden as usize, eps, layers })
}

fn eps_of(
    path: &Path,
    layout: &Layout,
    eps: impl FnOnce() -> Result<Option<f32>, Refusal>,
) -> Result<f32, Refusal> {
    let missing = || Refusal::new(path, Defect::NoConfig { key: keys::EPS.to_owned() });
    match layout.shape.eps {
        Some(eps) => Ok(eps),
        None => eps()?.ok_or_else(missing),
    }
}

/// Opens a Felix spoke's file and reads everything but the weights.
///
/// # Errors
/// The file is another kind of spoke; errors of the inspection.
fn open_felix<'a>(
    dropped: &'a Dropped,
    post: Option<&Post>,
    limits: &Limits,
) -> Result<(Container<'a>, Layout, Origin), Refusal> {
    let not_felix = |path: &Path| {
        let why = "it is no Felix spoke".to_owned();
        Refusal::new(path, Defect::NotConvertible { why })
    };
    match dropped {
        Dropped::Gguf(file) => {
            let container = Container::Gguf(file);
            let (adapter, origin) = keys::read(file)?;
            if adapter != AdapterType::Felix {
                return Err(not_felix(file.path()));
            }
            Ok((container, gguf_layout(&container, file, post, limits)?, origin))
        }
        Dropped::Safetensors { weights, config } => {
            let container = Container::Safetensors(weights);
            let (layout, origin) = safetensors_layout(&container, config.as_ref(), post, limits)?;
            Ok((container, layout, origin))
        }
        Dropped::Peft { config, .. } => Err(not_felix(&config.path)),
    }
}

/// Why a format can't be converted to another.
fn obstacle(from: Format, to: Format) -> String {
    use Format::{FelixGguf, FelixSafetensors, LoraGguf, PeftFolder, PeftZip};
    match (from, to) {
        (FelixGguf | FelixSafetensors, LoraGguf | PeftFolder | PeftZip) => {
            "a Felix spoke has a SiLU between its two matrices and acts after a whole block: no weight update is \
             equivalent"
                .to_owned()
        }
        (LoraGguf | PeftFolder | PeftZip, FelixGguf | FelixSafetensors) => {
            "a LoRA is linear and acts inside a block: no SiLU bottleneck after the block is equivalent".to_owned()
        }
        (_, PeftZip) => "archives are read and not written; write a folder and pack it".to_owned(),
        _ => "it has that format already".to_owned(),
    }
}

/// Writes the spoke's origin.
fn set_origin(writer: &mut Writer, origin: &Origin) {
    let digests = [(keys::POST, origin.post), (keys::TOKENIZER, origin.tokenizer)];
    for (key, digest) in digests {
        if let Some(digest) = digest {
            writer.set(key, digest.to_string());
        }
    }
    for (key, text) in [(keys::PROMPT, &origin.prompt), (keys::TASK, &origin.task)] {
        if let Some(text) = text {
            writer.set(key, text.as_str());
        }
    }
}
