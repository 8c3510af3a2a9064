//! Attention of a few rows over many cached cells, on the CPU. llama.cpp computes this part of
//! decoding cell by cell.
//!
//! Softmax is computed online, block by block (Milakov and Gimelshein 2018, "Online normalizer
//! calculation for softmax"). So scores, exponentials and weighted sums each run over a block in
//! vector registers, and each read of keys and values serves up to four queries, from all rows and
//! all heads that share them.

#[cfg(target_arch = "x86_64")]
mod lanes;

use std::ops::Range;

use half::f16;

use super::Form;
use super::dispatch;
use crate::simd_math::exp;

#[cfg(target_arch = "x86_64")]
pub use lanes::{avx2, avx512};

/// Cells of a block. Its values are read once for each 32 of their columns, so the block has to fit
/// into the L1 cache.
pub const BLOCK: usize = 32;
/// Head widths that the kernel supports.
pub const WIDTHS: [usize; 6] = [32, 64, 80, 96, 128, 256];

/// Keys or values of one head. Cell `c` begins at `c * step`.
#[derive(Debug, Clone, Copy)]
pub struct Cells<'a> {
    /// All cells, including what lies between them.
    pub data: &'a [f16],
    /// Numbers from one cell to the next.
    pub step: usize,
}

/// The keys, values and mask of one head, for all rows of a stream.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Keys.
    pub keys: Cells<'a>,
    /// Values.
    pub values: Cells<'a>,
    /// Added to the scores: 0 or negative infinity. Row `r` begins at `r * mask_step`.
    pub mask: &'a [f16],
    /// Numbers from one row of the mask to the next.
    pub mask_step: usize,
}

/// A softmax over some of the cells: for each query, the largest score, the sum of the weights
/// relative to it, and the weighted sum of values `[queries, width]`. Queries are ordered by row,
/// then by head.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Partial {
    top: Vec<f32>,
    sum: Vec<f32>,
    out: Vec<f32>,
}

impl Partial {
    /// Resets to no cells.
    fn clear(&mut self, queries: usize, width: usize) {
        self.top.clear();
        self.top.resize(queries, f32::NEG_INFINITY);
        self.sum.clear();
        self.sum.resize(queries, 0.0);
        self.out.clear();
        self.out.resize(queries * width, 0.0);
    }

    /// Makes the result wrong, for tests of the self-test.
    #[cfg(feature = "test-support")]
    pub fn scale(&mut self, factor: f32) {
        self.out.iter_mut().for_each(|out| *out *= factor);
    }

    /// Adds what was computed over other cells.
    pub fn merge(&mut self, other: &Self) {
        let width = self.out.len() / self.top.len().max(1);
        for (query, (top, sum)) in self.top.iter_mut().zip(&mut self.sum).enumerate() {
            let all = top.max(other.top[query]);
            if all == f32::NEG_INFINITY {
                continue;
            }
            let (mine, theirs) = (exp(*top - all), exp(other.top[query] - all));
            *top = all;
            *sum = *sum * mine + other.sum[query] * theirs;
            let range = query * width..(query + 1) * width;
            for (out, other) in self.out[range.clone()].iter_mut().zip(&other.out[range]) {
                *out = *out * mine + other * theirs;
            }
        }
    }

    /// The result `[queries, width]`; zero for a query that sees no cell.
    pub fn finish(&mut self) -> &[f32] {
        let width = self.out.len() / self.top.len().max(1);
        for (out, &sum) in self.out.chunks_exact_mut(width.max(1)).zip(&self.sum) {
            let scale = if sum == 0.0 { 0.0 } else { 1.0 / sum };
            for out in out {
                *out *= scale;
            }
        }
        &self.out
    }
}

/// Attention of `queries` (scaled, `[rows, group, width]`; `group` heads share `view`) over a range
/// of cells.
///
/// # Panics
/// The width is not one of [`WIDTHS`]; slices are too short; the processor doesn't support the
/// form.
pub fn attend(
    form: Form,
    queries: &[f32],
    width: usize,
    group: usize,
    view: View<'_>,
    cells: Range<usize>,
    partial: &mut Partial,
) {
    partial.clear(queries.len() / width, width);
    dispatch::attend(form, queries, width, group, view, cells, partial);
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Keys, values and mask of one head, laid out as in a cache.
    struct Case {
        form: Form,
        width: usize,
        group: usize,
        cells: usize,
        step: usize,
        keys: Vec<f16>,
        values: Vec<f16>,
        mask: Vec<f16>,
        queries: Vec<f32>,
    }

    impl Case {
        fn new(form: Form, seed: u64, width: usize, rows: usize, group: usize, cells: usize) -> Self {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let step = 2 * width + 16;
            let mut halves = |count: usize, size: f32| -> Vec<f16> {
                (0..count).map(|_| f16::from_f32(rng.random_range(-size..size))).collect()
            };
            let (keys, values) = (halves(cells * step, 3.0), halves(cells * step, 1.0));
            let queries = (0..rows * group * width).map(|_| rng.random_range(-1.0..1.0)).collect();
            // Row 0 sees all cells; from other rows, single cells and whole blocks are hidden.
            let hides = |row: usize, cell: usize| row > 0 && (cell % 7 == row || cell / BLOCK % 3 == row);
            let mask = (0..rows * (cells + 5))
                .map(|i| if hides(i / (cells + 5), i % (cells + 5)) { f16::NEG_INFINITY } else { f16::ZERO })
                .collect();
            Self { form, width, group, cells, step, keys, values, mask, queries }
        }

        fn view(&self) -> View<'_> {
            View {
                keys: Cells { data: &self.keys, step: self.step },
                values: Cells { data: &self.values, step: self.step },
                mask: &self.mask,
                mask_step: self.cells + 5,
            }
        }

        fn over(&self, cells: Range<usize>) -> Partial {
            let mut partial = Partial::default();
            attend(self.form, &self.queries, self.width, self.group, self.view(), cells, &mut partial);
            partial
        }

        /// The definition, in f64.
        fn expected(&self) -> Vec<f64> {
            let cell = |data: &[f16], cell: usize, i: usize| f64::from(data[cell * self.step + i]);
            let mut result = Vec::new();
            for (query, vector) in self.queries.chunks(self.width).enumerate() {
                let row = query / self.group;
                let seen: Vec<usize> = (0..self.cells)
                    .filter(|cell| self.mask[row * (self.cells + 5) + cell] == f16::ZERO)
                    .collect();
                let score = |c: usize| -> f64 {
                    (0..self.width).map(|i| f64::from(vector[i]) * cell(&self.keys, c, i)).sum()
                };
                let scores: Vec<f64> = seen.iter().map(|&c| score(c)).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
                let total: f64 = weights.iter().sum();
                for i in 0..self.width {
                    let sum: f64 =
                        seen.iter().zip(&weights).map(|(&c, w)| w * cell(&self.values, c, i)).sum();
                    result.push(if seen.is_empty() { 0.0 } else { sum / total });
                }
            }
            result
        }
    }

    /// The forms that this processor has.
    fn forms() -> impl Iterator<Item = Form> {
        [Form::Avx2, Form::Avx512].into_iter().filter(|form| form.is_possible())
    }

    fn assert_near(found: &[f32], expected: &[f64], case: &str) {
        assert_eq!(found.len(), expected.len(), "{case}");
        for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
            assert!((f64::from(found) - expected).abs() < 2e-5, "{case}, {index}: {found}, not {expected}");
        }
    }

    #[test]
    fn it_is_softmax_attention_for_every_width_and_any_number_of_queries_and_cells() {
        for (seed, width) in WIDTHS.into_iter().enumerate() {
            for (rows, group, cells) in
                [(1, 1, 1), (1, 2, 31), (3, 1, 33), (2, 3, 100), (5, 2, 257), (4, 7, 64)]
            {
                let mut first = None;
                for form in forms() {
                    let case = Case::new(form, seed as u64, width, rows, group, cells);
                    let name = format!("{form:?}, {width} wide, {rows} rows, {group} heads, {cells} cells");
                    let found = case.over(0..cells).finish().to_vec();
                    assert_near(&found, &case.expected(), &name);
                    assert_eq!(first.get_or_insert(found.clone()), &found, "{name}: the forms differ");
                }
            }
        }
    }

    #[test]
    fn parts_merge_into_the_whole() {
        for form in forms() {
            let case = Case::new(form, 1, 64, 3, 2, 300);
            let mut merged = case.over(0..96);
            merged.merge(&case.over(96..96));
            merged.merge(&case.over(96..128));
            merged.merge(&case.over(128..300));
            assert_near(merged.finish(), &case.expected(), "parts");
        }
    }

    #[test]
    fn a_query_that_sees_nothing_gets_nothing() {
        for form in forms() {
            let mut case = Case::new(form, 2, 32, 3, 2, 70);
            case.mask[75..2 * 75].fill(f16::NEG_INFINITY);
            let result = case.over(0..70).finish().to_vec();
            assert!(result[2 * 32..4 * 32].iter().all(|&x| x == 0.0));
            assert_near(&result, &case.expected(), "blind");
            case.mask.fill(f16::NEG_INFINITY);
            let mut blind = case.over(0..32);
            blind.merge(&case.over(32..70));
            assert!(blind.finish().iter().all(|&x| x == 0.0));
        }
    }

    #[test]
    fn large_scores_neither_overflow_nor_vanish() {
        for form in forms() {
            let mut case = Case::new(form, 3, 64, 1, 2, 90);
            case.queries.iter_mut().for_each(|x| *x *= 200.0);
            assert_near(case.over(0..90).finish(), &case.expected(), "large");
        }
    }
}
