//! The bottleneck of a Felix spoke, on the CPU: weights in f16, sums in f32.
//!
//! Sixteen rows of a matrix lie in the lanes of a register, so nothing is summed across lanes, and
//! each read of the weights serves several columns. The order in which a result is summed doesn't
//! depend on the other columns, so a token gets the same numbers alone and in a batch.

mod lanes;

use std::collections::BTreeMap;
use std::ops::Range;

use half::f16;

use super::Form;
use super::dispatch;
use crate::adapter::felix::{Folded, FoldedLayer};
use crate::simd_math::{dot, sigmoid};

pub use lanes::portable;
#[cfg(target_arch = "x86_64")]
pub use lanes::{avx2, avx512};

/// Rows of a matrix that are computed together.
pub const ROWS: usize = 16;

/// A spoke: `h + W_up silu(W_down n)` after each of its blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    /// Width D of the residual stream.
    pub width: usize,
    /// Epsilon of the norm.
    pub eps: f32,
    /// Layers by block.
    pub layers: BTreeMap<u32, Layer>,
}

/// The bottleneck after one block.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// Weights of the norm, `[D]`; ones if there are none.
    pub norm: Option<Vec<f32>>,
    /// W_down, `[R, D]`.
    pub down: Matrix,
    /// W_up, multiplied by the gate, `[D, R]`.
    pub up: Matrix,
}

/// A matrix in panels of [`ROWS`] rows. Each panel is stored column by column; the last one is
/// padded with zeros.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    rows: usize,
    depth: usize,
    panels: Vec<[f16; ROWS]>,
}

impl Weights {
    /// Reorders the weights of a spoke into panels.
    pub fn new(folded: &Folded) -> Self {
        let layers = folded.layers.iter().map(|(&at, layer)| (at, Layer::new(folded.rows, layer))).collect();
        Self { width: folded.hidden, eps: folded.eps, layers }
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> u64 {
        let layer = |layer: &Layer| {
            let norm = layer.norm.as_ref().map_or(0, Vec::len) * size_of::<f32>();
            norm + size_of_val(&*layer.down.panels) + size_of_val(&*layer.up.panels)
        };
        self.layers.values().map(|weights| layer(weights) as u64).sum()
    }
}

impl From<Folded<Layer>> for Weights {
    fn from(folded: Folded<Layer>) -> Self {
        Self { width: folded.hidden, eps: folded.eps, layers: folded.layers }
    }
}

impl Layer {
    /// Reorders the weights of a layer of rank R into panels.
    pub fn new(rank: usize, folded: &FoldedLayer) -> Self {
        let FoldedLayer { norm, w_down, w_up } = folded;
        let width = w_down.len() / rank;
        Self {
            norm: norm.clone(),
            down: Matrix::new(rank, width, |row, k| w_down[row * width + k]),
            up: Matrix::new(width, rank, |row, k| w_up[k * width + row]),
        }
    }

    /// Normalises a row of the residual stream, as input of the bottleneck.
    pub fn normalise(&self, eps: f32, h: &[f32], n: &mut [f32]) {
        let scale = 1.0 / (dot(h, h) / h.len() as f32 + eps).sqrt();
        match &self.norm {
            Some(norm) => n.iter_mut().zip(h).zip(norm).for_each(|((n, h), norm)| *n = h * scale * norm),
            None => n.iter_mut().zip(h).for_each(|(n, h)| *n = h * scale),
        }
    }
}

/// `x sigmoid(x)`, element by element.
pub fn silu(x: [f32; ROWS]) -> [f32; ROWS] {
    x.map(|x| x * sigmoid(x))
}

impl Matrix {
    /// The matrix with the elements `weight(row, column)`.
    pub fn new(rows: usize, depth: usize, weight: impl Fn(usize, usize) -> f16) -> Self {
        let number = |row: usize, k: usize| if row < rows { weight(row, k) } else { f16::ZERO };
        let panel = |first: usize| {
            let number = &number;
            (0..depth).map(move |k| std::array::from_fn(|row| number(first + row, k)))
        };
        let panels = (0..rows).step_by(ROWS).flat_map(panel).collect();
        Self { rows, depth, panels }
    }

    /// Number of rows, which is the length of a result.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns, which is the length of an input.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Number of panels of [`ROWS`] rows. The last one may not be full.
    pub fn panels(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// Products of some panels with columns `[count, depth]`. `write` receives a column, the first
    /// row, and the results of [`ROWS`] rows (zero beyond the last row).
    ///
    /// # Panics
    /// The panels don't exist; the columns are not whole; the processor doesn't support the form.
    pub fn multiply(
        &self,
        form: Form,
        panels: Range<usize>,
        columns: &[f32],
        write: impl FnMut(usize, usize, [f32; ROWS]),
    ) {
        dispatch::multiply(form, self, panels, columns, write);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, salt: u32) -> Vec<f32> {
        crate::engine::kernels::numbers(salt).take(count).collect()
    }

    fn halves(count: usize, salt: u32) -> Vec<f16> {
        numbers(count, salt).into_iter().map(f16::from_f32).collect()
    }

    fn folded(hidden: usize, rows: usize, norm: bool) -> Folded {
        let layer = FoldedLayer {
            norm: norm.then(|| numbers(hidden, 3)),
            w_down: halves(rows * hidden, 4),
            w_up: halves(rows * hidden, 5),
        };
        Folded { rows, hidden, eps: 1e-5, layers: [(2, layer)].into() }
    }

    /// What a layer adds to rows of the residual stream, `[count, D]`, as the kernels compute it.
    fn update(form: Form, weights: &Weights, h: &[f32]) -> Vec<f32> {
        let (width, layer) = (weights.width, &weights.layers[&2]);
        let (rank, count) = (layer.down.rows(), h.len() / width);
        let mut n = vec![0.0; h.len()];
        for (h, n) in h.chunks_exact(width).zip(n.chunks_exact_mut(width)) {
            layer.normalise(weights.eps, h, n);
        }
        let (mut hidden, mut out) = (vec![f32::NAN; count * rank], vec![f32::NAN; h.len()]);
        let put = |to: &mut [f32], rows: usize, column: usize, first: usize, result: [f32; ROWS]| {
            let length = ROWS.min(rows - first);
            to[column * rows + first..][..length].copy_from_slice(&result[..length]);
        };
        layer.down.multiply(form, 0..layer.down.panels(), &n, |column, first, result| {
            put(&mut hidden, rank, column, first, silu(result));
        });
        // In two parts, as several threads do.
        let middle = layer.up.panels() / 2;
        for part in [0..middle, middle..layer.up.panels()] {
            layer.up.multiply(form, part, &hidden, |column, first, result| {
                put(&mut out, width, column, first, result);
            });
        }
        out
    }

    /// The same as the definition says, in f64.
    fn exact(folded: &Folded, h: &[f32]) -> Vec<f64> {
        let (width, layer) = (folded.hidden, &folded.layers[&2]);
        let mut out = vec![0.0; width];
        let mean = h.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / width as f64;
        let scale = 1.0 / (mean + f64::from(folded.eps)).sqrt();
        for row in 0..folded.rows {
            let product = |(i, &x): (usize, &f32)| {
                let norm = layer.norm.as_ref().map_or(1.0, |norm| f64::from(norm[i]));
                f64::from(x) * scale * norm * layer.w_down[row * width + i].to_f64()
            };
            let z: f64 = h.iter().enumerate().map(product).sum();
            let activation = z / (1.0 + (-z).exp());
            for (i, out) in out.iter_mut().enumerate() {
                *out += activation * layer.w_up[row * width + i].to_f64();
            }
        }
        out
    }

    #[test]
    fn results_are_those_of_the_definition_whatever_stands_beside_them() {
        let forms = [Form::Portable, Form::Avx2, Form::Avx512].into_iter().filter(|form| form.is_possible());
        // Miri takes a thousand times as long. Several panels, one of them not full, are enough.
        let shapes: &[_] = if cfg!(miri) {
            &[(20, 8, true), (40, 18, false)]
        } else {
            &[(64, 16, false), (48, 8, true), (100, 70, true), (160, 256, false)]
        };
        let cases =
            forms.flat_map(|form| shapes.iter().map(move |&(hidden, rows, norm)| (form, hidden, rows, norm)));
        for (form, hidden, rows, norm) in cases {
            let folded = folded(hidden, rows, norm);
            let weights = Weights::new(&folded);
            let h = numbers(17 * hidden, 9);
            let alone: Vec<f32> = h.chunks_exact(hidden).flat_map(|h| update(form, &weights, h)).collect();
            for count in [1, 2, 3, 6, 7, 17] {
                assert_eq!(
                    update(form, &weights, &h[..count * hidden]),
                    alone[..count * hidden],
                    "{form:?} {hidden} {rows} {count}"
                );
            }
            for (h, found) in h.chunks_exact(hidden).zip(alone.chunks_exact(hidden)) {
                let exact = exact(&folded, h);
                let size = (exact.iter().map(|x| x * x).sum::<f64>() / hidden as f64).sqrt();
                for (found, exact) in found.iter().zip(exact) {
                    let off = (f64::from(*found) - exact).abs();
                    assert!(off < 1e-5 * size, "{form:?} {hidden} {rows}: {found} for {exact}");
                }
            }
        }
    }

    #[test]
    fn what_it_takes_is_counted() {
        // 70 rows are five panels, 100 seven.
        let weights = Weights::new(&folded(100, 70, true));
        assert_eq!(weights.bytes(), 2 * (80 * 100 + 112 * 70) + 4 * 100);
    }
}
