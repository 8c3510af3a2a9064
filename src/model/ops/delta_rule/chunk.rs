//! The gated delta rule over one chunk of tokens, as matrix products, and its gradient.
//!
//! Token by token the rule is `S <- a S; S <- S + k (b (v - k^T S))^T; o = q^T S`, with a = exp(g)
//! the decay, b the strength and S the state `[key width, value width]`. Over a chunk that begins
//! in state S, with G the cumulative sums of g and `D_ij = exp(G_i - G_j)` for j <= i (Yang et al.
//! 2024, equations 8 and 10, solved instead of inverted):
//!
//! ```text
//! A = strictly lower part of (b K K^T) D         what earlier tokens wrote under a key
//! P = lower part of (Q K^T) D
//! (1 + A) X = b (V - exp(G) K S)                 what each token writes
//! O = exp(G) Q S + P X
//! S' = exp(G_n) S + (exp(G_n - G) K)^T X
//! ```

use candle_core::{CpuStorage, Result};

use super::super::{Matrix, lanes};

/// Queries and keys of a chunk, and their inner products: the same for all value heads that share
/// them.
pub(super) struct Keys<'a> {
    q: Matrix<'a>,
    k: Matrix<'a>,
    /// `K K^T`, `[len, len]`.
    kk: Vec<f32>,
    /// `Q K^T`, `[len, len]`.
    qk: Vec<f32>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(q: Matrix<'a>, k: Matrix<'a>) -> Result<Self> {
        Ok(Self { q, k, kk: k.matmul(&k.t())?, qk: q.matmul(&k.t())? })
    }

    fn len(&self) -> usize {
        self.k.rows
    }
}

/// A chunk of one value head.
pub(super) struct Chunk<'a> {
    keys: &'a Keys<'a>,
    /// `[len, value width]`
    v: &'a [f32],
    /// b, `[len]`
    strength: &'a [f32],
    /// State before the chunk, `[key width, value width]`.
    state: &'a CpuStorage,
    width: usize,
    /// G, `[len]`
    sums: Vec<f32>,
    /// exp(G), `[len]`
    kept: Vec<f32>,
    /// A, `[len, len]`
    a: Vec<f32>,
    /// P, `[len, len]`
    p: Vec<f32>,
    /// D, `[len, len]`
    d: Vec<f32>,
    /// `V - exp(G) K S`, `[len, value width]`
    errors: Vec<f32>,
    /// X, `[len, value width]`
    written: Vec<f32>,
}

/// Gradients of the operands of a chunk.
pub(super) struct ChunkGradient {
    pub(super) q: Vec<f32>,
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
    pub(super) strength: Vec<f32>,
    pub(super) decay: Vec<f32>,
    pub(super) state: Vec<f32>,
}

/// `y += factor x`.
fn add_scaled(y: &mut [f32], factor: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = lanes::fma(factor, *x, *y);
    }
}

/// Multiplies each row by its factor.
fn scale_rows(rows: &mut [f32], factors: &[f32]) {
    let width = rows.len() / factors.len();
    for (row, factor) in rows.chunks_exact_mut(width).zip(factors) {
        for value in row.iter_mut() {
            *value *= factor;
        }
    }
}

impl<'a> Chunk<'a> {
    /// `decay` is g, `[len]`; `width` that of a value.
    pub(super) fn new(
        keys: &'a Keys<'a>,
        v: &'a [f32],
        decay: &[f32],
        strength: &'a [f32],
        state: &'a CpuStorage,
        width: usize,
    ) -> Result<Self> {
        let len = keys.len();
        let mut sum = 0.0;
        let sums: Vec<f32> = decay
            .iter()
            .map(|g| {
                sum += g;
                sum
            })
            .collect();
        let kept: Vec<f32> = sums.iter().map(|&sum| lanes::exp(sum)).collect();
        let (mut a, mut p, mut d) = (vec![0.0; len * len], vec![0.0; len * len], vec![0.0; len * len]);
        for i in 0..len {
            let row = i * len..i * len + i + 1;
            let products = keys.kk[row.clone()].iter().zip(&keys.qk[row.clone()]);
            let outputs = a[row.clone()].iter_mut().zip(&mut p[row.clone()]).zip(&mut d[row]);
            for ((((a, p), d), (kk, qk)), sum) in outputs.zip(products).zip(&sums) {
                *d = lanes::exp(sums[i] - sum);
                *a = strength[i] * kk * *d;
                *p = qk * *d;
            }
            a[i * len + i] = 0.0;
        }
        let mut errors = keys.k.matmul(&Matrix::dense(state, 0, keys.k.columns, width))?;
        for ((errors, v), kept) in errors.chunks_exact_mut(width).zip(v.chunks_exact(width)).zip(&kept) {
            for (error, v) in errors.iter_mut().zip(v) {
                *error = lanes::fma(-kept, *error, *v);
            }
        }
        let mut written = errors.clone();
        scale_rows(&mut written, strength);
        for i in 1..len {
            let (before, now) = written.split_at_mut(i * width);
            for (x, a) in before.chunks_exact(width).zip(&a[i * len..]) {
                add_scaled(&mut now[..width], -a, x);
            }
        }
        Ok(Self { keys, v, strength, state, width, sums, kept, a, p, d, errors, written })
    }

    /// The state as a matrix.
    fn state(&self) -> Matrix<'a> {
        Matrix::dense(self.state, 0, self.keys.k.columns, self.width)
    }

    /// The keys as they have decayed by the end of the chunk: `exp(G_n - G) K`.
    fn fading_keys(&self) -> Result<(Vec<f32>, Vec<f32>)> {
        let last = self.sums[self.sums.len() - 1];
        let left: Vec<f32> = self.sums.iter().map(|sum| lanes::exp(last - sum)).collect();
        let mut keys = self.keys.k.storage.as_slice::<f32>()?[self.keys.k.offset..]
            [..self.keys.len() * self.keys.k.columns]
            .to_vec();
        scale_rows(&mut keys, &left);
        Ok((keys, left))
    }

    /// Returns what is read, `[len, value width]`, and the state after the chunk.
    pub(super) fn forward(self) -> Result<(Vec<f32>, Vec<f32>)> {
        let (len, width) = (self.keys.len(), self.width);
        let key_width = self.keys.k.columns;
        let mut read = self.keys.q.matmul(&self.state())?;
        scale_rows(&mut read, &self.kept);
        let (fading, _) = self.fading_keys()?;
        let mut state = self.state.as_slice::<f32>()?.to_vec();
        let forgotten = self.kept[len - 1];
        let (written, p) = (CpuStorage::F32(self.written), CpuStorage::F32(self.p));
        let written = Matrix::dense(&written, 0, len, width);
        lanes::add(&mut read, &Matrix::dense(&p, 0, len, len).matmul(&written)?);
        for value in &mut state {
            *value *= forgotten;
        }
        let fading = CpuStorage::F32(fading);
        lanes::add(&mut state, &Matrix::dense(&fading, 0, len, key_width).t().matmul(&written)?);
        Ok((read, state))
    }

    /// Returns the operands' gradients, given those of what is read, `[len, value width]`, and of
    /// the state after the chunk.
    pub(super) fn backward(self, d_read: Vec<f32>, d_after: Vec<f32>) -> Result<ChunkGradient> {
        let (len, width, key_width) = (self.keys.len(), self.width, self.keys.k.columns);
        debug_assert_eq!(self.v.len(), len * width);
        let (fading, left) = self.fading_keys()?;
        let state = self.state();
        let (q, k) = (self.keys.q, self.keys.k);
        let storage = CpuStorage::F32;
        let (d_read, d_after) = (storage(d_read), storage(d_after));
        let (written, p) = (storage(self.written), storage(self.p));
        let d_read_m = Matrix::dense(&d_read, 0, len, width);
        let d_after_m = Matrix::dense(&d_after, 0, key_width, width);
        let written_m = Matrix::dense(&written, 0, len, width);
        let fading_s = storage(fading);
        let fading_m = Matrix::dense(&fading_s, 0, len, key_width);

        // X: from the reads of the chunk and from the state after it; then through (1 + A)^-T, last
        // token first.
        let mut d_written = Matrix::dense(&p, 0, len, len).t().matmul(&d_read_m)?;
        lanes::add(&mut d_written, &fading_m.matmul(&d_after_m)?);
        for i in (1..len).rev() {
            let (before, now) = d_written.split_at_mut(i * width);
            for (d, a) in before.chunks_exact_mut(width).zip(&self.a[i * len..]) {
                add_scaled(d, -a, &now[..width]);
            }
        }
        let solved = storage(d_written);
        let solved_m = Matrix::dense(&solved, 0, len, width);
        let d_a = solved_m.matmul(&written_m.t())?; // to be taken negative, strictly lower part
        let d_p = d_read_m.matmul(&written_m.t())?; // lower part

        // V - exp(G) K S
        let solved = solved.as_slice::<f32>()?;
        let mut strength: Vec<f32> = solved
            .chunks_exact(width)
            .zip(self.errors.chunks_exact(width))
            .map(|(d, error)| lanes::dot(d, error))
            .collect();
        let mut d_v = solved.to_vec();
        scale_rows(&mut d_v, self.strength);
        let d_v = storage(d_v);
        let d_errors = Matrix::dense(&d_v, 0, len, width);

        // Reads and errors that come from the state, per row of q and k.
        let state_t = state.t();
        let mut d_q = d_read_m.matmul(&state_t)?;
        let mut d_k = d_errors.matmul(&state_t)?;
        scale_rows(&mut d_q, &self.kept);
        for value in &mut d_k {
            *value = -*value;
        }
        scale_rows(&mut d_k, &self.kept);
        let q_rows = &q.storage.as_slice::<f32>()?[q.offset..][..len * key_width];
        let k_rows = &k.storage.as_slice::<f32>()?[k.offset..][..len * key_width];
        let row = |rows: &[f32], i: usize| rows[i * key_width..(i + 1) * key_width].to_vec();
        let mut d_sums: Vec<f32> = (0..len)
            .map(|i| lanes::dot(&row(&d_q, i), &row(q_rows, i)) + lanes::dot(&row(&d_k, i), &row(k_rows, i)))
            .collect();
        let mut d_state = {
            let mut scaled_q = q_rows.to_vec();
            scale_rows(&mut scaled_q, &self.kept);
            let mut scaled_k = k_rows.to_vec();
            scale_rows(&mut scaled_k, &self.kept);
            let (scaled_q, scaled_k) = (storage(scaled_q), storage(scaled_k));
            let mut d_state = Matrix::dense(&scaled_q, 0, len, key_width).t().matmul(&d_read_m)?;
            let minus = Matrix::dense(&scaled_k, 0, len, key_width).t().matmul(&d_errors)?;
            add_scaled(&mut d_state, -1.0, &minus);
            d_state
        };

        // Inner products inside the chunk.
        let (mut d_kk, mut d_qk) = (vec![0.0; len * len], vec![0.0; len * len]);
        for i in 0..len {
            for j in 0..=i {
                let at = i * len + j;
                let through_p = d_p[at] * self.d[at];
                d_qk[at] = through_p;
                let mut moved = through_p * self.keys.qk[at];
                if j < i {
                    let through_a = -d_a[at] * self.d[at];
                    d_kk[at] = through_a * self.strength[i];
                    strength[i] += through_a * self.keys.kk[at];
                    moved += d_kk[at] * self.keys.kk[at];
                }
                d_sums[i] += moved;
                d_sums[j] -= moved;
            }
        }
        let (d_kk, d_qk) = (storage(d_kk), storage(d_qk));
        let (d_kk, d_qk) = (Matrix::dense(&d_kk, 0, len, len), Matrix::dense(&d_qk, 0, len, len));
        lanes::add(&mut d_q, &d_qk.matmul(&k)?);
        lanes::add(&mut d_k, &d_qk.t().matmul(&q)?);
        lanes::add(&mut d_k, &d_kk.matmul(&k)?);
        lanes::add(&mut d_k, &d_kk.t().matmul(&k)?);

        // The state after the chunk.
        let d_fading = written_m.matmul(&d_after_m.t())?;
        let fading = fading_s.as_slice::<f32>()?;
        let last = len - 1;
        for i in 0..len {
            let d = row(&d_fading, i);
            add_scaled(&mut d_k[i * key_width..(i + 1) * key_width], left[i], &d);
            let moved = lanes::dot(&d, &row(fading, i));
            d_sums[i] -= moved;
            d_sums[last] += moved;
        }
        let (before, after) = (self.state.as_slice::<f32>()?, d_after.as_slice::<f32>()?);
        d_sums[last] += self.kept[last] * lanes::dot(before, after);
        add_scaled(&mut d_state, self.kept[last], after);

        // Each g is part of its own sum and all later ones.
        let mut sum = 0.0;
        let mut decay: Vec<f32> = d_sums
            .into_iter()
            .rev()
            .map(|d| {
                sum += d;
                sum
            })
            .collect();
        decay.reverse();
        let CpuStorage::F32(v) = d_v else { candle_core::bail!("delta rule: gradients are not F32") };
        Ok(ChunkGradient { q: d_q, k: d_k, v, strength, decay, state: d_state })
    }
}
