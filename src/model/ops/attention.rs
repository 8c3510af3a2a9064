//! Causal attention inside documents, block by block: the `[heads, seq, seq]` matrix never exists.
//!
//! FlashAttention's recomputation (Dao et al. 2022, algorithms 2 and 4) at the scale of a CPU
//! cache: a block of queries meets all keys before it in one matrix product, and the backward pass
//! recomputes the probabilities from the stored log-sum-exp. Each task is one key/value head of one
//! document.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{Matrix, composite, floats, lanes, with_floats};
use crate::model::layout::{BatchLayout, Document};

/// Queries of each head of a group in a block. Smaller blocks waste less above the diagonal,
/// larger ones make better matrix products.
const BLOCK: usize = 64;

/// How queries and keys become scores, and which of them count.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scoring {
    /// Factor of the inner products.
    pub scale: f32,
    /// Soft cap c: a score s becomes `c tanh(s / c)` (Gemma 2).
    pub cap: Option<f32>,
    /// How many tokens a query sees, up to and including its own position; `None` is all of them.
    pub window: Option<usize>,
}

impl Scoring {
    /// The usual scaling: scores divided by the square root of the width of a head.
    pub fn of_width(width: usize) -> Self {
        Self { scale: 1.0 / (width as f32).sqrt(), cap: None, window: None }
    }

    /// Applies the soft cap, if any, to a row of inner products; returns the factor that turns the
    /// result into scores.
    #[inline]
    fn cap_row(&self, row: &mut [f32]) -> f32 {
        let Some(cap) = self.cap else { return self.scale };
        for score in row {
            *score = lanes::tanh(*score * (self.scale / cap));
        }
        cap
    }

    /// First key that the query at a position sees.
    fn first_key(&self, at: usize) -> usize {
        self.window.map_or(0, |window| (at + 1).saturating_sub(window))
    }
}

struct Attention {
    documents: Arc<[Document]>,
    seq: usize,
    scoring: Scoring,
    /// log sum exp of each query's scaled scores, per task `[len, group]`; written by the forward
    /// pass.
    log_sums: OnceLock<Vec<Vec<f32>>>,
}

/// Softmax attention of q `[batch, seq, heads, head_dim]` over k and v
/// `[batch, seq, kv_heads, head_dim]`, each query over its own document's keys up to its own
/// position, as `scoring` says. Returns `[batch, seq, heads, head_dim]`, zero for padding.
///
/// # Errors
/// Shapes that do not agree with each other or the layout, operands of different types or devices,
/// an empty window.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scoring: Scoring,
    layout: &BatchLayout,
) -> Result<Tensor> {
    let (batch, seq, heads, width) = q.dims4()?;
    let kv_heads = k.dim(2)?;
    let expected = (batch, seq, kv_heads, width);
    if (batch, seq) != (layout.batch(), layout.seq())
        || k.dims4()? != expected
        || v.dims4()? != expected
        || kv_heads == 0
        || heads % kv_heads != 0
        || scoring.window == Some(0)
    {
        candle_core::bail!(
            "attention: q {:?}, k {:?}, v {:?} in a layout of {} rows of {} tokens, {scoring:?}",
            q.shape(),
            k.shape(),
            v.shape(),
            layout.batch(),
            layout.seq()
        );
    }
    if composite::is_needed(q) {
        return composite::attention(q, k, v, scoring, layout);
    }
    let op = Attention { documents: layout.documents().clone(), seq, scoring, log_sums: OnceLock::new() };
    q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)
}

/// Heads `[batch, seq, heads, head_dim]` in a storage.
#[derive(Clone, Copy)]
struct Heads<'a> {
    storage: &'a CpuStorage,
    offset: usize,
    count: usize,
    width: usize,
}

impl<'a> Heads<'a> {
    fn new(storage: &'a CpuStorage, layout: &Layout) -> Self {
        let dims = layout.dims();
        Self { storage, offset: layout.start_offset(), count: dims[2], width: dims[3] }
    }

    /// Copies `count` heads of `len` tokens from `token` on: `[count, len, head_dim]`.
    fn gather(&self, head: usize, count: usize, token: usize, len: usize) -> Result<Vec<f32>> {
        let values = self.storage.as_slice::<f32>()?;
        let mut rows = Vec::with_capacity(count * len * self.width);
        for head in head..head + count {
            for token in token..token + len {
                let from = self.offset + (token * self.count + head) * self.width;
                rows.extend_from_slice(&values[from..from + self.width]);
            }
        }
        Ok(rows)
    }

    /// One head of `len` tokens from `token` on, `[len, head_dim]`.
    fn block(&self, head: usize, token: usize, len: usize) -> Matrix<'a> {
        let stride = self.count * self.width;
        Matrix {
            storage: self.storage,
            offset: self.offset + token * stride + head * self.width,
            rows: len,
            columns: self.width,
            strides: [stride, 1],
        }
    }
}

/// One key/value head of one document, with its group of query heads.
#[derive(Clone, Copy)]
struct Task {
    /// First token in the flattened batch.
    token: usize,
    len: usize,
    kv_head: usize,
}

impl Attention {
    fn tasks(&self, kv_heads: usize) -> Vec<Task> {
        let of_document = |document: &Document| {
            let (token, len) = (document.row * self.seq + document.start, document.len);
            (0..kv_heads).map(move |kv_head| Task { token, len, kv_head })
        };
        self.documents.iter().flat_map(of_document).collect()
    }

    /// Context `[len, group, head_dim]` and log-sum-exps `[len, group]` of a task.
    fn task_forward(&self, task: Task, q: Heads, k: Heads, v: Heads) -> Result<(Vec<f32>, Vec<f32>)> {
        let (group, width) = (q.count / k.count, q.width);
        let mut context = vec![0.0; task.len * group * width];
        let mut log_sums = vec![0.0; task.len * group];
        for from in (0..task.len).step_by(BLOCK) {
            let queries = BLOCK.min(task.len - from);
            // The block leaves out keys before the window of its first query.
            let first = self.scoring.first_key(from);
            let (keys, rows) = (from + queries - first, group * queries);
            let q_rows =
                CpuStorage::F32(q.gather(task.kv_head * group, group, task.token + from, queries)?);
            let k_block = k.block(task.kv_head, task.token + first, keys);
            let mut scores = Matrix::dense(&q_rows, 0, rows, width).matmul(&k_block.t())?;
            let mut inverse_sums = Vec::with_capacity(rows);
            for (row, scores) in scores.chunks_exact_mut(keys).enumerate() {
                let (at, head) = (from + row % queries, row / queries);
                let (seen, hidden) = scores.split_at_mut(at + 1 - first);
                hidden.fill(0.0);
                let (before, seen) = seen.split_at_mut(self.scoring.first_key(at) - first);
                before.fill(0.0);
                let scale = self.scoring.cap_row(seen);
                let top = lanes::max(seen) * scale;
                lanes::vectorised(|| {
                    for score in seen.iter_mut() {
                        *score = lanes::exp(lanes::fma(*score, scale, -top));
                    }
                });
                let sum = lanes::sum(seen);
                log_sums[at * group + head] = top + sum.ln();
                inverse_sums.push(1.0 / sum);
            }
            let weights = CpuStorage::F32(scores);
            let v_block = v.block(task.kv_head, task.token + first, keys);
            let mixed = Matrix::dense(&weights, 0, rows, keys).matmul(&v_block)?;
            for (row, (mixed, inverse)) in mixed.chunks_exact(width).zip(inverse_sums).enumerate() {
                let to = ((from + row % queries) * group + row / queries) * width;
                for (to, value) in context[to..to + width].iter_mut().zip(mixed) {
                    *to = value * inverse;
                }
            }
        }
        Ok((context, log_sums))
    }

    /// Gradients of a task: q's `[len, group, head_dim]`, k's and v's `[len, head_dim]`; `deltas`
    /// are the inner products of each context with its gradient, `[tokens, heads]`.
    fn task_backward(
        &self,
        task: Task,
        log_sums: &[f32],
        deltas: &[f32],
        [q, k, v, grad]: [Heads; 4],
    ) -> Result<[Vec<f32>; 3]> {
        let (group, width) = (q.count / k.count, q.width);
        let first_head = task.kv_head * group;
        let mut dq = vec![0.0; task.len * group * width];
        let mut dk = vec![0.0; task.len * width];
        let mut dv = vec![0.0; task.len * width];
        for from in (0..task.len).step_by(BLOCK) {
            let queries = BLOCK.min(task.len - from);
            let first = self.scoring.first_key(from);
            let (keys, rows) = (from + queries - first, group * queries);
            let q_rows = CpuStorage::F32(q.gather(first_head, group, task.token + from, queries)?);
            let g_rows = CpuStorage::F32(grad.gather(first_head, group, task.token + from, queries)?);
            let q_rows = Matrix::dense(&q_rows, 0, rows, width);
            let g_rows = Matrix::dense(&g_rows, 0, rows, width);
            let k_block = k.block(task.kv_head, task.token + first, keys);
            let v_block = v.block(task.kv_head, task.token + first, keys);
            // P = exp(scores - log sum), dP = g V^T, dS = scale P (dP - g.o); under a cap c, times
            // 1 - (S / c)^2
            let mut weights = q_rows.matmul(&k_block.t())?;
            let mut d_scores = g_rows.matmul(&v_block.t())?;
            let both = weights.chunks_exact_mut(keys).zip(d_scores.chunks_exact_mut(keys));
            for (row, (weights, d_scores)) in both.enumerate() {
                let (at, head) = (from + row % queries, row / queries);
                let seen = self.scoring.first_key(at) - first..at + 1 - first;
                for hidden in [0..seen.start, seen.end..keys] {
                    weights[hidden.clone()].fill(0.0);
                    d_scores[hidden].fill(0.0);
                }
                let log_sum = log_sums[at * group + head];
                let delta = deltas[(task.token + at) * q.count + first_head + head];
                let (weights, d_scores) = (&mut weights[seen.clone()], &mut d_scores[seen]);
                // A single key has all the weight whatever its score: the remainder of dP - g.o is
                // rounding error.
                if let ([weight], [d_score]) = (&mut *weights, &mut *d_scores) {
                    (*weight, *d_score) = (1.0, 0.0);
                    continue;
                }
                match self.scoring.cap {
                    None => {
                        let scale = self.scoring.scale;
                        lanes::vectorised(|| {
                            for (weight, d_score) in weights.iter_mut().zip(d_scores) {
                                *weight = lanes::exp(lanes::fma(*weight, scale, -log_sum));
                                *d_score = (*d_score - delta) * *weight * scale;
                            }
                        });
                    }
                    Some(cap) => {
                        for (weight, d_score) in weights.iter_mut().zip(d_scores) {
                            let bent = lanes::tanh(*weight * (self.scoring.scale / cap));
                            *weight = lanes::exp(lanes::fma(bent, cap, -log_sum));
                            let slope = lanes::fma(-bent, bent, 1.0) * self.scoring.scale;
                            *d_score = (*d_score - delta) * *weight * slope;
                        }
                    }
                }
            }
            let (weights, d_scores) = (CpuStorage::F32(weights), CpuStorage::F32(d_scores));
            let weights = Matrix::dense(&weights, 0, rows, keys);
            let d_scores = Matrix::dense(&d_scores, 0, rows, keys);
            for (row, values) in d_scores.matmul(&k_block)?.chunks_exact(width).enumerate() {
                let to = ((from + row % queries) * group + row / queries) * width;
                dq[to..to + width].copy_from_slice(values);
            }
            lanes::add(&mut dk[first * width..], &d_scores.t().matmul(&q_rows)?);
            lanes::add(&mut dv[first * width..], &weights.t().matmul(&g_rows)?);
        }
        Ok([dq, dk, dv])
    }
}

/// Copies a task's heads `[len, count, head_dim]` into `[batch, seq, heads, head_dim]`.
fn place(into: &mut [f32], from: &[f32], task: Task, first_head: usize, heads: usize, width: usize) {
    let count = from.len() / task.len;
    for (at, rows) in from.chunks_exact(count).enumerate() {
        let to = ((task.token + at) * heads + first_head) * width;
        into[to..to + count].copy_from_slice(rows);
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let heads = (Heads::new(q, q_layout), Heads::new(k, k_layout), Heads::new(v, v_layout));
        let tasks = self.tasks(heads.1.count);
        let parts: Vec<(Vec<f32>, Vec<f32>)> = tasks
            .par_iter()
            .map(|&task| self.task_forward(task, heads.0, heads.1, heads.2))
            .collect::<Result<_>>()?;
        let (count, width) = (heads.0.count, heads.0.width);
        let group = count / heads.1.count;
        let mut context = vec![0.0; q_layout.shape().elem_count()];
        let mut log_sums = Vec::with_capacity(parts.len());
        for (&task, (part, sums)) in tasks.iter().zip(parts) {
            place(&mut context, &part, task, task.kv_head * group, count, width);
            log_sums.push(sums);
        }
        if self.log_sums.set(log_sums).is_err() {
            candle_core::bail!("attention: one operation ran forward twice");
        }
        Ok((CpuStorage::F32(context), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        context: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(log_sums) = self.log_sums.get() else {
            candle_core::bail!("attention: backward before forward");
        };
        let grad = grad.contiguous()?;
        let (count, width) = (q.dim(2)?, q.dim(3)?);
        // The inner product of each context with its gradient, per query and head.
        let deltas: Vec<f32> = with_floats([context, &grad], self.name(), |[context, grad]| {
            let pairs = context.par_chunks(width).zip(grad.par_chunks(width));
            Ok(pairs.with_min_len(256).map(|(context, grad)| lanes::dot(context, grad)).collect())
        })?;
        let guards = [q, k, v, &grad].map(Tensor::storage_and_layout);
        let mut heads = Vec::with_capacity(4);
        for (storage, layout) in &guards {
            let candle_core::Storage::Cpu(storage) = &**storage else {
                candle_core::bail!("attention: only tensors in CPU memory are supported");
            };
            floats(storage, layout, self.name())?;
            heads.push(Heads::new(storage, layout));
        }
        let heads = [heads[0], heads[1], heads[2], heads[3]];
        let tasks = self.tasks(heads[1].count);
        let parts: Vec<[Vec<f32>; 3]> = tasks
            .par_iter()
            .zip(log_sums)
            .map(|(&task, sums)| self.task_backward(task, sums, &deltas, heads))
            .collect::<Result<_>>()?;
        let kv_heads = heads[1].count;
        let mut dq = vec![0.0; q.elem_count()];
        let mut dk = vec![0.0; k.elem_count()];
        let mut dv = vec![0.0; k.elem_count()];
        for (&task, [q_part, k_part, v_part]) in tasks.iter().zip(&parts) {
            place(&mut dq, q_part, task, task.kv_head * (count / kv_heads), count, width);
            place(&mut dk, k_part, task, task.kv_head, kv_heads, width);
            place(&mut dv, v_part, task, task.kv_head, kv_heads, width);
        }
        drop(guards);
        let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
        Ok((Some(tensor(dq, q)?), Some(tensor(dk, k)?), Some(tensor(dv, v)?)))
    }
}
