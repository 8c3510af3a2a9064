//! Attention in vector registers, in two forms with equal results: AVX2 with sixteen registers,
//! AVX-512 with thirty-two.
#![allow(clippy::missing_safety_doc, reason = "safe where the processor has the features that a form names")]
#![allow(clippy::wildcard_imports, reason = "the forms of a kernel share what stands around them")]

use std::arch::x86_64::{
    __m256, _mm256_add_ps, _mm256_castps_si256, _mm256_castsi256_ps, _mm256_cvtph_ps, _mm256_fmadd_ps,
    _mm256_hadd_ps, _mm256_mul_ps, _mm256_permute2x128_si256, _mm256_set1_ps, _mm256_setzero_ps,
};
use std::ops::Range;

use half::f16;

use super::{BLOCK, Cells, Partial, View};
use crate::simd_math::exp_by;

/// Queries that are computed together, as many as registers allow.
const TOGETHER: usize = 4;

/// At most [`BLOCK`] cells.
#[derive(Clone, Copy)]
struct Block<'a> {
    view: View<'a>,
    start: usize,
    length: usize,
    group: usize,
}

impl Cells<'_> {
    /// One cell, eight numbers at a time.
    #[inline(always)]
    fn cell<const N: usize>(&self, cell: usize) -> &[[f16; 8]; N] {
        let (eights, _) = self.data[cell * self.step..][..8 * N].as_chunks();
        eights.first_chunk().expect("it was cut to that length")
    }
}

/// The exponential, or 0 where [`exp_by`] would return a very small number.
#[inline(always)]
fn weight(score: f32) -> f32 {
    if score < -87.0 { 0.0 } else { exp_by(score, f32::mul_add) }
}

/// Reduces a block to one number by repeated halving.
#[inline(always)]
fn fold(block: &[f32; BLOCK], f: impl Fn(f32, f32) -> f32) -> f32 {
    let sixteen: [f32; 16] = std::array::from_fn(|lane| f(block[lane], block[lane + 16]));
    let eight: [f32; 8] = std::array::from_fn(|lane| f(sixteen[lane], sixteen[lane + 8]));
    let four: [f32; 4] = std::array::from_fn(|lane| f(eight[lane], eight[lane + 4]));
    f(f(four[0], four[2]), f(four[1], four[3]))
}

/// The kernel, compiled for these features.
macro_rules! form {
    ($name:ident, $features:tt, $doc:tt) => {
        #[doc = $doc]
        // With iterators instead of indices, the sums leave their registers and it is half as fast.
        #[allow(clippy::needless_range_loop)]
        pub mod $name {
            use super::*;

            /// Attention of queries over a range of cells.
            ///
            /// # Panics
            /// The width is not supported; slices are too short.
            #[target_feature(enable = $features)]
            pub fn attend(
                queries: &[f32],
                width: usize,
                group: usize,
                view: View<'_>,
                cells: Range<usize>,
                partial: &mut Partial,
            ) {
                match width {
                    32 => attend_wide::<4>(queries, group, view, cells, partial),
                    64 => attend_wide::<8>(queries, group, view, cells, partial),
                    80 => attend_wide::<10>(queries, group, view, cells, partial),
                    96 => attend_wide::<12>(queries, group, view, cells, partial),
                    128 => attend_wide::<16>(queries, group, view, cells, partial),
                    256 => attend_wide::<32>(queries, group, view, cells, partial),
                    other => panic!("no kernel for heads of width {other}"),
                }
            }

            /// The same for heads of width `8 * N`.
            #[target_feature(enable = $features)]
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
                            1 => take::<N, 1>(&block, queries, first, partial),
                            2 => take::<N, 2>(&block, queries, first, partial),
                            3 => take::<N, 3>(&block, queries, first, partial),
                            _ => take::<N, TOGETHER>(&block, queries, first, partial),
                        }
                    }
                }
            }

            /// Adds the block to the softmax of `Q` queries.
            #[inline]
            #[target_feature(enable = $features)]
            fn take<const N: usize, const Q: usize>(
                block: &Block<'_>,
                queries: &[f32],
                first: usize,
                partial: &mut Partial,
            ) {
                let mut scores = [[f32::NEG_INFINITY; BLOCK]; Q];
                let mut seen = false;
                for (query, scores) in (first..).zip(&mut scores) {
                    let row = query / block.group;
                    let mask = &block.view.mask[row * block.view.mask_step + block.start..][..block.length];
                    seen |= mask.iter().any(|&added| added != f16::NEG_INFINITY);
                    let (eights, rest) = mask.as_chunks::<8>();
                    let (to, to_rest) = scores[..block.length].as_chunks_mut::<8>();
                    for (to, eight) in to.iter_mut().zip(eights) {
                        *to = bytemuck::cast(floats(eight));
                    }
                    for (to, &added) in to_rest.iter_mut().zip(rest) {
                        *to = added.to_f32();
                    }
                }
                if !seen {
                    return;
                }
                let (queries, _) = queries[8 * N * first..].as_chunks::<8>();
                score::<N, Q>(block, queries, &mut scores);
                let mut fade = [0.0; Q];
                for (query, scores) in scores.iter_mut().enumerate() {
                    let (top, sum) = (&mut partial.top[first + query], &mut partial.sum[first + query]);
                    let best = fold(scores, |a, b| if a > b { a } else { b });
                    let best = if best > *top { best } else { *top };
                    // A query that has seen no cell yet has weight 0.
                    let reference = if best == f32::NEG_INFINITY { 0.0 } else { best };
                    fade[query] = weight(*top - reference);
                    for score in scores.iter_mut() {
                        *score = weight(*score - reference);
                    }
                    *top = best;
                    *sum = sum.mul_add(fade[query], fold(scores, |a, b| a + b));
                }
                let out = &mut partial.out[8 * N * first..8 * N * (first + Q)];
                for column in (0..N / 4 * 4).step_by(4) {
                    weigh::<N, Q, 4>(block, column, &fade, &scores, out);
                }
                for column in (N / 4 * 4..N).step_by(2) {
                    weigh::<N, Q, 2>(block, column, &fade, &scores, out);
                }
            }

            /// Adds the inner products of queries and keys to the scores.
            #[inline]
            #[target_feature(enable = $features)]
            fn score<const N: usize, const Q: usize>(
                block: &Block<'_>,
                queries: &[[f32; 8]],
                scores: &mut [[f32; BLOCK]; Q],
            ) {
                let mut own = [[_mm256_setzero_ps(); N]; Q];
                for query in 0..Q {
                    for column in 0..N {
                        own[query][column] = bytemuck::cast(queries[query * N + column]);
                    }
                }
                for eight in (0..block.length).step_by(8) {
                    let mut sums = [[_mm256_setzero_ps(); 8]; Q];
                    for cell in 0..8.min(block.length - eight) {
                        let key = block.view.keys.cell::<N>(block.start + eight + cell);
                        let mut sum = [_mm256_setzero_ps(); Q];
                        for column in 0..N {
                            let key = floats(&key[column]);
                            for query in 0..Q {
                                sum[query] = _mm256_fmadd_ps(own[query][column], key, sum[query]);
                            }
                        }
                        for query in 0..Q {
                            sums[query][cell] = sum[query];
                        }
                    }
                    for query in 0..Q {
                        let sums: [f32; 8] = bytemuck::cast(sums_across(&sums[query]));
                        for (score, sum) in scores[query][eight..eight + 8].iter_mut().zip(sums) {
                            *score += sum;
                        }
                    }
                }
            }

            /// `out = out * fade + sum of weight * value` for `8 * G` columns.
            #[inline]
            #[target_feature(enable = $features)]
            fn weigh<const N: usize, const Q: usize, const G: usize>(
                block: &Block<'_>,
                column: usize,
                fade: &[f32; Q],
                weights: &[[f32; BLOCK]; Q],
                out: &mut [f32],
            ) {
                let (out, _) = out.as_chunks_mut::<8>();
                let mut sums = [[_mm256_setzero_ps(); G]; Q];
                for query in 0..Q {
                    let fade = _mm256_set1_ps(fade[query]);
                    for i in 0..G {
                        sums[query][i] = _mm256_mul_ps(bytemuck::cast(out[query * N + column + i]), fade);
                    }
                }
                for cell in 0..block.length {
                    let value = block.view.values.cell::<N>(block.start + cell);
                    let mut wide = [_mm256_setzero_ps(); G];
                    for i in 0..G {
                        wide[i] = floats(&value[column + i]);
                    }
                    for query in 0..Q {
                        let weight = _mm256_set1_ps(weights[query][cell]);
                        for i in 0..G {
                            sums[query][i] = _mm256_fmadd_ps(weight, wide[i], sums[query][i]);
                        }
                    }
                }
                for query in 0..Q {
                    for i in 0..G {
                        out[query * N + column + i] = bytemuck::cast(sums[query][i]);
                    }
                }
            }

            /// The sum of the lanes of each of eight registers, as
            /// `((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))`.
            #[inline]
            #[target_feature(enable = $features)]
            fn sums_across([a, b, c, d, e, f, g, h]: &[__m256; 8]) -> __m256 {
                let abcd = _mm256_hadd_ps(_mm256_hadd_ps(*a, *b), _mm256_hadd_ps(*c, *d));
                let efgh = _mm256_hadd_ps(_mm256_hadd_ps(*e, *f), _mm256_hadd_ps(*g, *h));
                let (x, y) = (_mm256_castps_si256(abcd), _mm256_castps_si256(efgh));
                let low = _mm256_castsi256_ps(_mm256_permute2x128_si256::<0x20>(x, y));
                let high = _mm256_castsi256_ps(_mm256_permute2x128_si256::<0x31>(x, y));
                _mm256_add_ps(low, high)
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn floats(halves: &[f16; 8]) -> __m256 {
                _mm256_cvtph_ps(bytemuck::cast(halves.map(f16::to_bits)))
            }
        }
    };
}

form!(avx2, "avx2,fma,f16c", "For AVX2, FMA and F16C.");
form!(avx512, "avx2,fma,f16c,avx512f,avx512bw,avx512vl", "The same with AVX-512's registers.");
