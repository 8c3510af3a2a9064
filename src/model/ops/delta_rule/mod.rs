//! The gated delta rule inside documents, chunk by chunk, with its exact gradient.
//!
//! Each task is one key head of one document, with the value heads that share it. Its chunks are
//! computed in order, because each needs the state of the one before. Only the states between
//! chunks are kept for the backward pass.

mod chunk;

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{Matrix, composite, floats, lanes, with_floats};
use crate::model::features::DeltaNetShape;
use crate::model::layout::{BatchLayout, Document};
use chunk::{Chunk, Keys};

/// Tokens in a chunk. Longer chunks make larger matrix products, but also a larger triangle that
/// is solved token by token.
const CHUNK: usize = 64;
/// Added to the squared length of a query or key before the root is taken.
pub(super) const EPS: f32 = 1e-6;

struct DeltaRule {
    documents: Arc<[Document]>,
    seq: usize,
    shape: DeltaNetShape,
    /// States at the beginning of each chunk, per task `[chunks][group]`; written by the forward
    /// pass.
    states: OnceLock<Vec<Vec<Vec<CpuStorage>>>>,
}

/// Reads of the state, `[B, S, value heads, value width]`, for q, k and v concatenated in `mixed`
/// `[B, S, 2 key heads x key width + value heads x value width]`, log decays and strengths
/// `[B, S, value heads]`. Queries and keys are normalised to length 1, and queries divided by the
/// root of their width. Each document starts with a zero state; padding gives zero.
///
/// # Errors
/// Shapes that do not agree with each other, `shape` or the layout; operands of different types or
/// devices.
pub fn delta_rule(
    mixed: &Tensor,
    decay: &Tensor,
    strength: &Tensor,
    shape: DeltaNetShape,
    layout: &BatchLayout,
) -> Result<Tensor> {
    let (batch, seq) = (layout.batch(), layout.seq());
    let heads = (batch, seq, shape.value_heads);
    if mixed.dims3()? != (batch, seq, shape.channels())
        || decay.dims3()? != heads
        || strength.dims3()? != heads
        || shape.key_heads == 0
        || !shape.value_heads.is_multiple_of(shape.key_heads)
    {
        let (mixed, decay, strength) = (mixed.shape(), decay.shape(), strength.shape());
        candle_core::bail!(
            "delta rule: mixed {mixed:?}, decay {decay:?}, strength {strength:?}, {shape:?}, layout [{batch}, {seq}]"
        );
    }
    if composite::is_needed(mixed) {
        return composite::delta_rule(mixed, decay, strength, shape, layout);
    }
    let op = DeltaRule { documents: layout.documents().clone(), seq, shape, states: OnceLock::new() };
    let y = mixed.contiguous()?.apply_op3(&decay.contiguous()?, &strength.contiguous()?, op)?;
    y.reshape((batch, seq, shape.value_heads, shape.value_dim))
}

/// One key head of one document.
#[derive(Clone, Copy)]
struct Task {
    /// First token in the flattened batch.
    token: usize,
    len: usize,
    head: usize,
}

/// The operands as slices of whole batches.
#[derive(Clone, Copy)]
struct Operands<'a> {
    mixed: &'a [f32],
    decay: &'a [f32],
    strength: &'a [f32],
}

/// Columns `from..from + width` of `len` rows.
fn gather(rows: &[f32], columns: usize, task: Task, from: usize, width: usize) -> Vec<f32> {
    let rows = rows[task.token * columns..(task.token + task.len) * columns].chunks_exact(columns);
    rows.flat_map(|row| &row[from..from + width]).copied().collect()
}

/// Adds columns back where [`gather`] took them from.
fn scatter(into: &mut [f32], columns: usize, task: Task, from: usize, values: &[f32]) {
    let width = values.len() / task.len;
    let rows = into[task.token * columns..(task.token + task.len) * columns].chunks_exact_mut(columns);
    for (row, values) in rows.zip(values.chunks_exact(width)) {
        row[from..from + width].copy_from_slice(values);
    }
}

/// Rows scaled to length `length`.
fn normalised(rows: &[f32], width: usize, length: f32) -> Vec<f32> {
    let mut out = rows.to_vec();
    for row in out.chunks_exact_mut(width) {
        let factor = length / (lanes::dot(row, row) + EPS).sqrt();
        for value in row.iter_mut() {
            *value *= factor;
        }
    }
    out
}

/// Gradient of [`normalised`]: with r = 1/sqrt(x.x + eps), dx = r length (g - x r^2 (x.g)).
fn normalised_gradient(rows: &[f32], grad: &mut [f32], width: usize, length: f32) {
    for (x, g) in rows.chunks_exact(width).zip(grad.chunks_exact_mut(width)) {
        let square = lanes::dot(x, x) + EPS;
        let along = lanes::dot(x, g) / square;
        let factor = length / square.sqrt();
        for (g, x) in g.iter_mut().zip(x) {
            *g = factor * (*g - x * along);
        }
    }
}

/// A task's operands, gathered.
struct Gathered {
    /// The raw q and k, for the gradient of their normalisation.
    raw: [Vec<f32>; 2],
    q: CpuStorage,
    k: CpuStorage,
    /// Per value head of the group.
    v: Vec<Vec<f32>>,
    decay: Vec<Vec<f32>>,
    strength: Vec<Vec<f32>>,
}

/// Gradients of a task: q's and k's `[len, key width]`, and per value head v's, decay's and
/// strength's.
struct TaskGradient {
    q: Vec<f32>,
    k: Vec<f32>,
    heads: Vec<[Vec<f32>; 3]>,
}

impl DeltaRule {
    fn tasks(&self) -> Vec<Task> {
        let of_document = |document: &Document| {
            let (token, len) = (document.row * self.seq + document.start, document.len);
            (0..self.shape.key_heads).map(move |head| Task { token, len, head })
        };
        self.documents.iter().flat_map(of_document).collect()
    }

    /// Value heads that share a key head.
    fn group(&self) -> usize {
        self.shape.value_heads / self.shape.key_heads
    }

    /// Columns of `mixed` at which the q, the k, and the first v of a key head begin.
    fn columns(&self, head: usize) -> [usize; 3] {
        let DeltaNetShape { key_heads, key_dim, value_dim, .. } = self.shape;
        let keys = key_heads * key_dim;
        [head * key_dim, keys + head * key_dim, 2 * keys + head * self.group() * value_dim]
    }

    /// Length of a normalised query.
    fn query_length(&self) -> f32 {
        1.0 / (self.shape.key_dim as f32).sqrt()
    }

    fn gather(&self, task: Task, operands: Operands) -> Gathered {
        let DeltaNetShape { value_heads, key_dim, value_dim, .. } = self.shape;
        let [q, k, v] = self.columns(task.head);
        let mixed =
            |from: usize, width: usize| gather(operands.mixed, self.shape.channels(), task, from, width);
        let raw = [mixed(q, key_dim), mixed(k, key_dim)];
        let heads = || 0..self.group();
        let scalars = |rows: &[f32]| {
            heads().map(|head| gather(rows, value_heads, task, task.head * self.group() + head, 1)).collect()
        };
        Gathered {
            q: CpuStorage::F32(normalised(&raw[0], key_dim, self.query_length())),
            k: CpuStorage::F32(normalised(&raw[1], key_dim, 1.0)),
            raw,
            v: heads().map(|head| mixed(v + head * value_dim, value_dim)).collect(),
            decay: scalars(operands.decay),
            strength: scalars(operands.strength),
        }
    }

    /// First tokens and lengths of a task's chunks.
    fn chunks(task: Task) -> impl DoubleEndedIterator<Item = (usize, usize)> + ExactSizeIterator {
        (0..task.len.div_ceil(CHUNK)).map(move |at| (at * CHUNK, CHUNK.min(task.len - at * CHUNK)))
    }

    fn keys<'a>(&self, gathered: &'a Gathered, from: usize, len: usize) -> Result<Keys<'a>> {
        let width = self.shape.key_dim;
        let block = |storage: &'a CpuStorage| Matrix::dense(storage, from * width, len, width);
        Keys::new(block(&gathered.q), block(&gathered.k))
    }

    /// A chunk of one value head of the group.
    fn chunk<'a>(
        &self,
        keys: &'a Keys<'a>,
        gathered: &'a Gathered,
        head: usize,
        (from, len): (usize, usize),
        state: &'a CpuStorage,
    ) -> Result<Chunk<'a>> {
        let width = self.shape.value_dim;
        let v = &gathered.v[head][from * width..(from + len) * width];
        let tokens = from..from + len;
        let (decay, strength) = (&gathered.decay[head][tokens.clone()], &gathered.strength[head][tokens]);
        Chunk::new(keys, v, decay, strength, state, width)
    }

    /// Reads per value head, `[len, value width]`, and the states before each chunk.
    #[allow(clippy::type_complexity)] // named, the pair would be read once
    fn task_forward(&self, task: Task, operands: Operands) -> Result<(Vec<Vec<f32>>, Vec<Vec<CpuStorage>>)> {
        let gathered = self.gather(task, operands);
        let DeltaNetShape { key_dim, value_dim, .. } = self.shape;
        let zero = || CpuStorage::F32(vec![0.0; key_dim * value_dim]);
        let mut states: Vec<CpuStorage> = (0..self.group()).map(|_| zero()).collect();
        let mut reads = vec![Vec::with_capacity(task.len * value_dim); self.group()];
        let mut before = Vec::new();
        for (from, len) in Self::chunks(task) {
            let keys = self.keys(&gathered, from, len)?;
            let mut after = Vec::with_capacity(states.len());
            for (head, state) in states.iter().enumerate() {
                let (read, state) = self.chunk(&keys, &gathered, head, (from, len), state)?.forward()?;
                reads[head].extend(read);
                after.push(CpuStorage::F32(state));
            }
            before.push(std::mem::replace(&mut states, after));
        }
        Ok((reads, before))
    }

    fn task_backward(
        &self,
        task: Task,
        operands: Operands,
        states: &[Vec<CpuStorage>],
        grad: &[f32],
    ) -> Result<TaskGradient> {
        let gathered = self.gather(task, operands);
        let DeltaNetShape { key_dim, value_dim, .. } = self.shape;
        let group = self.group();
        let d_reads: Vec<Vec<f32>> = (0..group)
            .map(|head| {
                let from = (task.head * group + head) * value_dim;
                gather(grad, self.shape.values(), task, from, value_dim)
            })
            .collect();
        let (mut d_q, mut d_k) = (vec![0.0; task.len * key_dim], vec![0.0; task.len * key_dim]);
        let empty = || [vec![0.0; task.len * value_dim], vec![0.0; task.len], vec![0.0; task.len]];
        let mut heads: Vec<[Vec<f32>; 3]> = (0..group).map(|_| empty()).collect();
        let mut d_states = vec![vec![0.0; key_dim * value_dim]; group];
        for ((from, len), states) in Self::chunks(task).zip(states).rev() {
            let keys = self.keys(&gathered, from, len)?;
            for head in 0..group {
                let chunk = self.chunk(&keys, &gathered, head, (from, len), &states[head])?;
                let d_read = d_reads[head][from * value_dim..(from + len) * value_dim].to_vec();
                let gradient = chunk.backward(d_read, std::mem::take(&mut d_states[head]))?;
                let rows = from * key_dim..(from + len) * key_dim;
                lanes::add(&mut d_q[rows.clone()], &gradient.q);
                lanes::add(&mut d_k[rows], &gradient.k);
                let [v, decay, strength] = &mut heads[head];
                v[from * value_dim..(from + len) * value_dim].copy_from_slice(&gradient.v);
                decay[from..from + len].copy_from_slice(&gradient.decay);
                strength[from..from + len].copy_from_slice(&gradient.strength);
                d_states[head] = gradient.state;
            }
        }
        normalised_gradient(&gathered.raw[0], &mut d_q, key_dim, self.query_length());
        normalised_gradient(&gathered.raw[1], &mut d_k, key_dim, 1.0);
        Ok(TaskGradient { q: d_q, k: d_k, heads })
    }
}

impl CustomOp3 for DeltaRule {
    fn name(&self) -> &'static str {
        "delta-rule"
    }

    fn cpu_fwd(
        &self,
        mixed: &CpuStorage,
        mixed_layout: &Layout,
        decay: &CpuStorage,
        decay_layout: &Layout,
        strength: &CpuStorage,
        strength_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let operands = Operands {
            mixed: floats(mixed, mixed_layout, self.name())?,
            decay: floats(decay, decay_layout, self.name())?,
            strength: floats(strength, strength_layout, self.name())?,
        };
        let tasks = self.tasks();
        let parts: Vec<_> =
            tasks.par_iter().map(|&task| self.task_forward(task, operands)).collect::<Result<_>>()?;
        let (columns, width) = (self.shape.values(), self.shape.value_dim);
        let tokens = mixed_layout.dims()[0] * mixed_layout.dims()[1];
        let mut reads = vec![0.0; tokens * columns];
        let mut states = Vec::with_capacity(parts.len());
        for (&task, (part, before)) in tasks.iter().zip(parts) {
            for (head, values) in part.iter().enumerate() {
                scatter(&mut reads, columns, task, (task.head * self.group() + head) * width, values);
            }
            states.push(before);
        }
        if self.states.set(states).is_err() {
            candle_core::bail!("delta rule: one operation ran forward twice");
        }
        Ok((CpuStorage::F32(reads), (mixed_layout.dims()[0], mixed_layout.dims()[1], columns).into()))
    }

    fn bwd(
        &self,
        mixed: &Tensor,
        decay: &Tensor,
        strength: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(states) = self.states.get() else {
            candle_core::bail!("delta rule: backward before forward");
        };
        let grad = grad.contiguous()?;
        let tasks = self.tasks();
        let [d_mixed, d_decay, d_strength] =
            with_floats([mixed, decay, strength, &grad], self.name(), |[mixed, decay, strength, grad]| {
                let operands = Operands { mixed, decay, strength };
                let parts: Vec<TaskGradient> = tasks
                    .par_iter()
                    .zip(states)
                    .map(|(&task, states)| self.task_backward(task, operands, states, grad))
                    .collect::<Result<_>>()?;
                let (channels, heads) = (self.shape.channels(), self.shape.value_heads);
                let mut gradients = [mixed, decay, strength].map(|values| vec![0.0; values.len()]);
                for (&task, part) in tasks.iter().zip(&parts) {
                    let [q, k, v] = self.columns(task.head);
                    scatter(&mut gradients[0], channels, task, q, &part.q);
                    scatter(&mut gradients[0], channels, task, k, &part.k);
                    for (at, [d_v, d_decay, d_strength]) in part.heads.iter().enumerate() {
                        let head = task.head * self.group() + at;
                        scatter(&mut gradients[0], channels, task, v + at * self.shape.value_dim, d_v);
                        scatter(&mut gradients[1], heads, task, head, d_decay);
                        scatter(&mut gradients[2], heads, task, head, d_strength);
                    }
                }
                Ok(gradients)
            })?;
        let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
        Ok((
            Some(tensor(d_mixed, mixed)?),
            Some(tensor(d_decay, decay)?),
            Some(tensor(d_strength, strength)?),
        ))
    }
}
