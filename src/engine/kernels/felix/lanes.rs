//! Products with the matrices of a bottleneck in vector registers: with AVX-512, with AVX2, and
//! portable.
#![allow(clippy::missing_safety_doc, reason = "safe where the processor has the features that a form names")]
#![allow(clippy::wildcard_imports, reason = "the forms of a kernel share what stands around them")]

use std::ops::Range;

use half::f16;

use super::{Matrix, ROWS};

/// Columns that are computed together, as many as the 256-bit registers can hold.
const TOGETHER: usize = 6;

/// The kernel over the `Lanes`, `zeros`, `splat`, `floats`, `fma` and `numbers` of a module.
macro_rules! kernel {
    ($(#[$features:meta])?) => {
        /// Products of some panels with columns `[count, depth]`. `write` receives a column, the
        /// first row, and the results of [`ROWS`] rows (zero beyond the last row).
        ///
        /// # Panics
        /// The panels don't exist; the columns are not whole.
        $(#[$features])?
        pub fn multiply(
            matrix: &Matrix,
            panels: Range<usize>,
            columns: &[f32],
            mut write: impl FnMut(usize, usize, [f32; ROWS]),
        ) {
            let depth = matrix.depth;
            assert!(depth > 0 && columns.len().is_multiple_of(depth), "whole columns");
            let count = columns.len() / depth;
            let panel = |at: usize| &matrix.panels[at * depth..][..depth];
            let column = |at: usize| &columns[at * depth..][..depth];
            // Several independent sums hide the latency of each addition. With few columns, they
            // come from several panels.
            let beside = match count {
                1 => 4,
                2 => 2,
                _ => 1,
            };
            let mut at = panels.start;
            while at < panels.end {
                let beside = if at + beside <= panels.end { beside } else { 1 };
                for first in (0..count).step_by(TOGETHER) {
                    macro_rules! tiles {
                        ($panels:literal, $columns:literal) => {{
                            let sums = tile::<$panels, $columns>(
                                std::array::from_fn(|i| panel(at + i)),
                                std::array::from_fn(|i| column(first + i)),
                            );
                            for (i, sums) in sums.iter().enumerate() {
                                for (j, sum) in sums.iter().enumerate() {
                                    write(first + j, (at + i) * ROWS, numbers(*sum));
                                }
                            }
                        }};
                    }
                    match (beside, TOGETHER.min(count - first)) {
                        (4, 1) => tiles!(4, 1),
                        (2, 2) => tiles!(2, 2),
                        (1, 1) => tiles!(1, 1),
                        (1, 2) => tiles!(1, 2),
                        (1, 3) => tiles!(1, 3),
                        (1, 4) => tiles!(1, 4),
                        (1, 5) => tiles!(1, 5),
                        (1, 6) => tiles!(1, 6),
                        other => unreachable!("no tile of {other:?}"),
                    }
                }
                at += beside;
            }
        }

        /// Sums of `P` panels for `C` columns.
        $(#[$features])?
        #[inline]
        fn tile<const P: usize, const C: usize>(
            panels: [&[[f16; ROWS]]; P],
            columns: [&[f32]; C],
        ) -> [[Lanes; C]; P] {
            let depth = panels[0].len();
            let (panels, columns) = (panels.map(|panel| &panel[..depth]), columns.map(|column| &column[..depth]));
            let mut sums = [[zeros(); C]; P];
            for k in 0..depth {
                let mut x = [splat(0.0); C];
                for column in 0..C {
                    x[column] = splat(columns[column][k]);
                }
                for panel in 0..P {
                    let weights = floats(&panels[panel][k]);
                    for column in 0..C {
                        sums[panel][column] = fma(x[column], weights, sums[panel][column]);
                    }
                }
            }
            sums
        }
    };
}

/// With AVX-512: sixteen rows are in one register.
// With iterators instead of indices, the sums leave their registers.
#[allow(clippy::needless_range_loop)]
#[cfg(target_arch = "x86_64")]
pub mod avx512 {
    use std::arch::x86_64::{__m512, _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_set1_ps, _mm512_setzero_ps};

    use super::*;

    type Lanes = __m512;

    kernel!(#[target_feature(enable = "avx512f")]);

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn zeros() -> Lanes {
        _mm512_setzero_ps()
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn splat(x: f32) -> Lanes {
        _mm512_set1_ps(x)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn floats(halves: &[f16; ROWS]) -> Lanes {
        _mm512_cvtph_ps(bytemuck::cast(halves.map(f16::to_bits)))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn fma(a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        _mm512_fmadd_ps(a, b, c)
    }

    fn numbers(lanes: Lanes) -> [f32; ROWS] {
        bytemuck::cast(lanes)
    }
}

/// With AVX2: sixteen rows are in two registers.
#[allow(clippy::needless_range_loop)]
#[cfg(target_arch = "x86_64")]
pub mod avx2 {
    use std::arch::x86_64::{__m256, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_set1_ps, _mm256_setzero_ps};

    use super::*;

    type Lanes = [__m256; 2];

    kernel!(#[target_feature(enable = "avx2,fma,f16c")]);

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn zeros() -> Lanes {
        [_mm256_setzero_ps(); 2]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn splat(x: f32) -> Lanes {
        [_mm256_set1_ps(x); 2]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn floats(halves: &[f16; ROWS]) -> Lanes {
        let halves: [[u16; 8]; 2] = bytemuck::cast(halves.map(f16::to_bits));
        [_mm256_cvtph_ps(bytemuck::cast(halves[0])), _mm256_cvtph_ps(bytemuck::cast(halves[1]))]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn fma(a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
    }

    fn numbers(lanes: Lanes) -> [f32; ROWS] {
        bytemuck::cast(lanes)
    }
}

/// With the features that this program is compiled for.
#[allow(clippy::needless_range_loop)]
pub mod portable {
    use half::slice::HalfFloatSliceExt;
    use wide::f32x16 as Lanes;

    use super::*;

    kernel!();

    fn zeros() -> Lanes {
        Lanes::ZERO
    }

    fn splat(x: f32) -> Lanes {
        Lanes::splat(x)
    }

    #[inline]
    fn floats(halves: &[f16; ROWS]) -> Lanes {
        let mut floats = [0.0; ROWS];
        halves.convert_to_f32_slice(&mut floats);
        Lanes::new(floats)
    }

    #[inline]
    fn fma(a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        a.mul_add(b, c)
    }

    fn numbers(lanes: Lanes) -> [f32; ROWS] {
        lanes.to_array()
    }
}
