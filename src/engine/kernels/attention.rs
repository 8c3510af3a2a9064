//! Attention of a few rows over many cached cells, on the CPU: the part of decoding that llama.cpp computes cell by cell.
//!
//! Softmax is taken online, block by block (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"), so
//! that scores, exponentials and weighted sums each run over a block in vector registers, and what is read of keys and
//! values serves up to four queries: those of all rows and of all heads that share them.

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;
use wide::f32x8 as Lanes;

use crate::vector::{exp, fma};

/// Cells of a block: its values are read once for each 32 of their columns, so it has to stay in the first cache.
pub const BLOCK: usize = 32;
/// Queries that are computed together, as many as registers allow.
const TOGETHER: usize = 4;

/// Whether this build has the vector instructions that make the kernel faster than llama.cpp's.
pub const FAST: bool = cfg!(all(
    target_arch = "x86_64",
    target_feature = "avx2",
    target_feature = "fma",
    target_feature = "f16c"
));

/// Widths of a head that there is a kernel for.
pub const WIDTHS: [usize; 6] = [32, 64, 80, 96, 128, 256];

/// Keys or values of one head: cell `c` begins at `c * step`.
#[derive(Debug, Clone, Copy)]
pub struct Cells<'a> {
    /// All of them, and what lies between.
    pub data: &'a [f16],
    /// Numbers from one cell to the next.
    pub step: usize,
}

/// What all rows of a stream see through one head of keys and values.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Keys.
    pub keys: Cells<'a>,
    /// Values.
    pub values: Cells<'a>,
    /// What is added to the scores of row `r` (0 or negative infinity) begins at `r * mask_step`.
    pub mask: &'a [f16],
    /// Numbers from one row of the mask to the next.
    pub mask_step: usize,
}

/// Softmax as far as it has been taken: for each query the largest score, the sum of the weights relative to it, and the
/// weighted sum of values `[queries, width]`. Queries are ordered row by row, within a row by head.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Partial {
    top: Vec<f32>,
    sum: Vec<f32>,
    out: Vec<f32>,
}

impl Partial {
    fn clear(&mut self, queries: usize, width: usize) {
        self.top.clear();
        self.top.resize(queries, f32::NEG_INFINITY);
        self.sum.clear();
        self.sum.resize(queries, 0.0);
        self.out.clear();
        self.out.resize(queries * width, 0.0);
    }

    /// Takes in what was computed over other cells.
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

/// Attention of `queries` (scaled, `[rows, group, width]`, `group` heads sharing what `view` has) over a range of cells.
///
/// # Panics
/// A width that is not one of [`WIDTHS`]; slices that are too short.
pub fn attend(
    queries: &[f32],
    width: usize,
    group: usize,
    view: View<'_>,
    cells: Range<usize>,
    partial: &mut Partial,
) {
    let attend = match width {
        32 => attend_wide::<4>,
        64 => attend_wide::<8>,
        80 => attend_wide::<10>,
        96 => attend_wide::<12>,
        128 => attend_wide::<16>,
        256 => attend_wide::<32>,
        other => panic!("no kernel for heads of width {other}"),
    };
    partial.clear(queries.len() / width, width);
    attend(queries, group, view, cells, partial);
}

/// [`attend`] for heads of `8 * N`.
fn attend_wide<const N: usize>(
    queries: &[f32],
    group: usize,
    view: View<'_>,
    cells: Range<usize>,
    partial: &mut Partial,
) {
    let count = partial.top.len();
    for start in cells.clone().step_by(BLOCK) {
        let block = Block { view, start, length: BLOCK.min(cells.end - start), group };
        for first in (0..count).step_by(TOGETHER) {
            match count - first {
                1 => block.attend::<N, 1>(queries, first, partial),
                2 => block.attend::<N, 2>(queries, first, partial),
                3 => block.attend::<N, 3>(queries, first, partial),
                _ => block.attend::<N, TOGETHER>(queries, first, partial),
            }
        }
    }
}

/// Some cells, at most [`BLOCK`].
struct Block<'a> {
    view: View<'a>,
    start: usize,
    length: usize,
    group: usize,
}

// With iterators instead of indices the sums leave their registers, at half the speed.
#[allow(clippy::needless_range_loop)]
impl Block<'_> {
    /// Takes the block into the softmax of `Q` queries.
    #[inline]
    fn attend<const N: usize, const Q: usize>(&self, queries: &[f32], first: usize, partial: &mut Partial) {
        let mut scores = [[f32::NEG_INFINITY; BLOCK]; Q];
        let mut seen = false;
        for (query, scores) in (first..).zip(&mut scores) {
            let row = query / self.group;
            let mask = &self.view.mask[row * self.view.mask_step + self.start..][..self.length];
            seen |= mask.iter().any(|&added| added != f16::NEG_INFINITY);
            mask.convert_to_f32_slice(&mut scores[..self.length]);
        }
        if !seen {
            return;
        }
        let (queries, _) = queries[8 * N * first..].as_chunks::<8>();
        self.score::<N, Q>(queries, &mut scores);
        let mut fade = [0.0; Q];
        for (query, scores) in scores.iter_mut().enumerate() {
            let (top, sum) = (&mut partial.top[first + query], &mut partial.sum[first + query]);
            let best = fold(scores, |a, b| if a > b { a } else { b });
            let best = if best > *top { best } else { *top };
            // A query that has seen nothing yet weighs nothing.
            let reference = if best == f32::NEG_INFINITY { 0.0 } else { best };
            fade[query] = weight(*top - reference);
            for score in scores.iter_mut() {
                *score = weight(*score - reference);
            }
            *top = best;
            *sum = fma(*sum, fade[query], fold(scores, |a, b| a + b));
        }
        let out = &mut partial.out[8 * N * first..8 * N * (first + Q)];
        for column in (0..N / 4 * 4).step_by(4) {
            self.weigh::<N, Q, 4>(column, &fade, &scores, out);
        }
        for column in (N / 4 * 4..N).step_by(2) {
            self.weigh::<N, Q, 2>(column, &fade, &scores, out);
        }
    }

    /// Adds the inner products of queries and keys to the scores.
    #[inline]
    fn score<const N: usize, const Q: usize>(&self, queries: &[[f32; 8]], scores: &mut [[f32; BLOCK]; Q]) {
        let queries: [[Lanes; N]; Q] = std::array::from_fn(|query| {
            std::array::from_fn(|column| Lanes::new(queries[query * N + column]))
        });
        for eight in (0..self.length).step_by(8) {
            let mut sums = [[Lanes::ZERO; 8]; Q];
            for cell in 0..8.min(self.length - eight) {
                let key = self.view.keys.cell::<N>(self.start + eight + cell);
                let mut sum = [Lanes::ZERO; Q];
                for (column, key) in key.iter().enumerate() {
                    let key = floats(key);
                    for query in 0..Q {
                        sum[query] = queries[query][column].mul_add(key, sum[query]);
                    }
                }
                for query in 0..Q {
                    sums[query][cell] = sum[query];
                }
            }
            for (sums, scores) in sums.into_iter().zip(&mut *scores) {
                let [a, b, c, d, e, f, g, h] = Lanes::transpose(sums);
                let sum = ((a + b) + (c + d)) + ((e + f) + (g + h));
                let scores = &mut scores[eight..eight + 8];
                for (score, sum) in scores.iter_mut().zip(sum.to_array()) {
                    *score += sum;
                }
            }
        }
    }

    /// `out = out * fade + sum of weight * value` for `8 * G` columns.
    #[inline]
    fn weigh<const N: usize, const Q: usize, const G: usize>(
        &self,
        column: usize,
        fade: &[f32; Q],
        weights: &[[f32; BLOCK]; Q],
        out: &mut [f32],
    ) {
        let (out, _) = out.as_chunks_mut::<8>();
        let mut sums: [[Lanes; G]; Q] = std::array::from_fn(|query| {
            std::array::from_fn(|i| Lanes::new(out[query * N + column + i]) * Lanes::splat(fade[query]))
        });
        for cell in 0..self.length {
            let value = self.view.values.cell::<N>(self.start + cell);
            let value: [Lanes; G] = std::array::from_fn(|i| floats(&value[column + i]));
            for query in 0..Q {
                let weight = Lanes::splat(weights[query][cell]);
                for i in 0..G {
                    sums[query][i] = weight.mul_add(value[i], sums[query][i]);
                }
            }
        }
        for (query, sums) in sums.iter().enumerate() {
            for (i, sum) in sums.iter().enumerate() {
                out[query * N + column + i] = sum.to_array();
            }
        }
    }
}

impl Cells<'_> {
    /// One cell, eight numbers at a time.
    #[inline]
    fn cell<const N: usize>(&self, cell: usize) -> &[[f16; 8]; N] {
        let (eights, _) = self.data[cell * self.step..][..8 * N].as_chunks();
        eights.first_chunk().expect("it was cut to that length")
    }
}

#[inline]
fn floats(halves: &[f16; 8]) -> Lanes {
    let mut floats = [0.0; 8];
    halves.convert_to_f32_slice(&mut floats);
    Lanes::new(floats)
}

/// The exponential, and 0 where [`exp`] would give a very small number.
#[inline]
fn weight(score: f32) -> f32 {
    if score < -87.0 { 0.0 } else { exp(score) }
}

/// Brings a block down to one number, half of it at a time.
#[inline]
fn fold(block: &[f32; BLOCK], f: impl Fn(f32, f32) -> f32) -> f32 {
    let sixteen: [f32; 16] = std::array::from_fn(|lane| f(block[lane], block[lane + 16]));
    let eight: [f32; 8] = std::array::from_fn(|lane| f(sixteen[lane], sixteen[lane + 8]));
    let four: [f32; 4] = std::array::from_fn(|lane| f(eight[lane], eight[lane + 4]));
    f(f(four[0], four[2]), f(four[1], four[3]))
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Keys, values and mask of one head, as they lie in a cache.
    struct Case {
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
        fn new(seed: u64, width: usize, rows: usize, group: usize, cells: usize) -> Self {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let step = 2 * width + 16;
            let mut halves = |count: usize, size: f32| -> Vec<f16> {
                (0..count).map(|_| f16::from_f32(rng.random_range(-size..size))).collect()
            };
            let (keys, values) = (halves(cells * step, 3.0), halves(cells * step, 1.0));
            let queries = (0..rows * group * width).map(|_| rng.random_range(-1.0..1.0)).collect();
            // Row 0 sees all; others miss single cells and whole blocks.
            let hides = |row: usize, cell: usize| row > 0 && (cell % 7 == row || cell / BLOCK % 3 == row);
            let mask = (0..rows * (cells + 5))
                .map(|i| if hides(i / (cells + 5), i % (cells + 5)) { f16::NEG_INFINITY } else { f16::ZERO })
                .collect();
            Self { width, group, cells, step, keys, values, mask, queries }
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
            attend(&self.queries, self.width, self.group, self.view(), cells, &mut partial);
            partial
        }

        /// By the definition, in f64.
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
                let case = Case::new(seed as u64, width, rows, group, cells);
                let name = format!("{width} wide, {rows} rows, {group} heads, {cells} cells");
                assert_near(case.over(0..cells).finish(), &case.expected(), &name);
            }
        }
    }

    #[test]
    fn parts_merge_into_the_whole() {
        let case = Case::new(1, 64, 3, 2, 300);
        let mut merged = case.over(0..96);
        merged.merge(&case.over(96..96));
        merged.merge(&case.over(96..128));
        merged.merge(&case.over(128..300));
        assert_near(merged.finish(), &case.expected(), "parts");
    }

    #[test]
    fn a_query_that_sees_nothing_gets_nothing() {
        let mut case = Case::new(2, 32, 3, 2, 70);
        case.mask[75..2 * 75].fill(f16::NEG_INFINITY);
        let result = case.over(0..70).finish().to_vec();
        assert!(result[2 * 32..4 * 32].iter().all(|&x| x == 0.0));
        assert_near(&result, &case.expected(), "blind");
        case.mask.fill(f16::NEG_INFINITY);
        let mut blind = case.over(0..32);
        blind.merge(&case.over(32..70));
        assert!(blind.finish().iter().all(|&x| x == 0.0));
    }

    #[test]
    fn large_scores_neither_overflow_nor_vanish() {
        let mut case = Case::new(3, 64, 1, 2, 90);
        case.queries.iter_mut().for_each(|x| *x *= 200.0);
        assert_near(case.over(0..90).finish(), &case.expected(), "large");
    }
}
