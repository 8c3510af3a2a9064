//! Converts Felix spokes to this program's GGUF, and to safetensors with training's tensor names.

use std::collections::HashMap;
use std::path::Path;

use super::set_origin;
use crate::adapter::container::Container;
use crate::adapter::felix::layout::Layout;
use crate::adapter::felix::names::{Naming, Role};
use crate::adapter::felix::weights::{apart, read_layer};
use crate::adapter::felix::{Trained, TrainedLayer};
use crate::adapter::keys::{self, ADAPTER, Origin};
use crate::adapter::{Defect, Post, Refusal, metadata};
use crate::gguf::{GgmlType, Writer};
use crate::model::gguf_file::encode;
use crate::model::safetensors_file::{self, NewTensor};

/// Writes this program's GGUF, with one layer's weights in memory at a time. Matrices are F16,
/// which the engine computes with. `eps` is written if known.
pub(super) fn to_gguf(
    container: &Container,
    layout: &Layout,
    eps: Option<f32>,
    origin: &Origin,
    post: Option<&Post>,
    source: &Path,
    target: &Path,
) -> Result<(), Refusal> {
    let architecture = origin.architecture.as_deref().or(post.map(|post| post.architecture.as_str()));
    let why = "it does not say for which architecture it is";
    let architecture = architecture.ok_or_else(|| Refusal::new(source, Defect::PostNeeded { why }))?;
    let mut writer = Writer::new();
    writer.set("general.type", ADAPTER).set("general.architecture", architecture);
    writer
        .set("adapter.type", "felix")
        .set(keys::SPOKES, layout.shape.spokes)
        .set(keys::RANK, layout.shape.rank);
    if let Some(eps) = eps {
        writer.set(keys::EPS, eps);
    }
    set_origin(&mut writer, origin);
    let hidden = layout.hidden;
    let rows = u64::from(layout.shape.spokes) * u64::from(layout.shape.rank);
    let mut sources = Vec::new();
    for (&at, layer) in &layout.layers {
        let mut add = |role, dims: &[u64], kind| {
            writer.tensor(Naming::Gguf.name(at, role), dims, kind);
            sources.push((layer, role));
        };
        if layer.norm.is_some() {
            add(Role::Norm, &[hidden], GgmlType::F32);
        }
        add(Role::Gate, &[1], GgmlType::F32);
        add(Role::DownFused, &[hidden, rows], GgmlType::F16);
        add(Role::UpFused, &[rows, hidden], GgmlType::F16);
    }
    let (mut sources, mut read) = (sources.into_iter(), None);
    writer.write(target, |tensor| {
        let (layer, role) = sources.next().expect("each tensor was announced with its source");
        let TrainedLayer { gate_bias, norm, w_down, w_up } = match &mut read {
            Some((of, read)) if std::ptr::eq(*of, layer) => read,
            other => &mut other.insert((layer, read_layer(container, layout, layer)?)).1,
        };
        let values = match role {
            Role::Norm => norm.as_deref().expect("a norm was announced where there is one"),
            Role::Gate => std::slice::from_ref(gate_bias),
            Role::DownFused => w_down,
            Role::UpFused => w_up,
            Role::Down(_) | Role::Up(_) => unreachable!("matrices are announced fused"),
        };
        Ok::<_, Refusal>(encode(values, tensor.kind))
    })
}

/// Writes safetensors in training's form: one pair of matrices for each bottleneck, F32.
pub(super) fn to_safetensors(
    trained: &Trained,
    eps: Option<f32>,
    origin: &Origin,
    target: &Path,
) -> Result<(), Refusal> {
    let (spokes, rank) = (trained.spokes as usize, trained.rank as usize);
    let mut tensors = Vec::new();
    for (&at, layer) in &trained.layers {
        let TrainedLayer { gate_bias, norm, w_down, w_up } = layer;
        let mut add = |role, shape: Vec<usize>, values: Vec<f32>| {
            tensors.push(NewTensor { name: Naming::Trained.name(at, role), shape, values });
        };
        add(Role::Gate, vec![], vec![*gate_bias]);
        if let Some(norm) = norm {
            add(Role::Norm, vec![trained.hidden], norm.clone());
        }
        let ups = apart(w_up, spokes, rank).into_iter();
        let downs = w_down.chunks_exact(rank * trained.hidden);
        for (s, (down, up)) in downs.zip(ups).enumerate() {
            add(Role::Down(s as u32), vec![rank, trained.hidden], down.to_vec());
            add(Role::Up(s as u32), vec![trained.hidden, rank], up);
        }
    }
    let mut texts = HashMap::from([
        ("format".to_owned(), "pt".to_owned()),
        ("num_spokes".to_owned(), trained.spokes.to_string()),
        ("spoke_rank".to_owned(), trained.rank.to_string()),
    ]);
    texts.extend(eps.map(|eps| ("rms_eps".to_owned(), eps.to_string())));
    metadata::write_origin(&mut texts, origin);
    let written = safetensors_file::write_tensors(target, &tensors, texts);
    written.map_err(|error| Refusal::new(target, error))
}
