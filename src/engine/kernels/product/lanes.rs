//! Products in vector registers: one form with AVX-512's dot products of bytes, one with AVX2.
#![allow(clippy::missing_safety_doc, reason = "safe where the processor has the features that a form names")]
#![allow(clippy::wildcard_imports, reason = "the forms of a kernel share what stands around them")]

use std::arch::x86_64::{
    __m256, __m256i, __m512, __m512i, _mm256_abs_epi8, _mm256_add_epi32, _mm256_cvtepi32_ps, _mm256_cvtph_ps,
    _mm256_fmadd_ps, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_permute2x128_si256,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256,
    _mm256_sign_epi8, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi32,
    _mm256_unpacklo_epi64, _mm512_castsi256_si512, _mm512_cvtepi32_ps, _mm512_cvtph_ps, _mm512_dpbusd_epi32,
    _mm512_fmadd_ps, _mm512_inserti64x4, _mm512_mul_ps, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_shuffle_i32x4, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi32, _mm512_unpacklo_epi64, _mm512_xor_si512,
};
use std::ops::Range;

use super::{BLOCK, Block, Packed, ROWS};
use crate::engine::kernels::prefetch;

/// Columns of a pass over panels, as many as leave registers for loads.
const PASS: usize = 4;

/// Scratch memory: weights in lanes, for either form.
#[derive(Debug, Default)]
pub struct Panels {
    avx2: Vec<avx2::Panel>,
    avx512: Vec<avx512::Panel>,
}

/// A cache line.
type Line = [u8; 64];

/// Those of the rows that exist, as cache lines.
fn lines(weights: &[Block], blocks: usize, rows: Range<usize>) -> &[Line] {
    let end = (rows.end * blocks).min(weights.len());
    weights.get(rows.start * blocks..end).unwrap_or_default().as_flattened().as_chunks().0
}

/// Part `index` of `parts` equal parts.
fn part(lines: &[Line], index: usize, parts: usize) -> &[Line] {
    let step = lines.len().div_ceil(parts);
    let lines = lines.get(index * step..).unwrap_or_default();
    &lines[..step.min(lines.len())]
}

fn rows_of(weights: &[Block], blocks: usize) -> [&[Block]; ROWS] {
    std::array::from_fn(|row| &weights[row * blocks..][..blocks])
}

/// Scales of a block of each row, in f16.
fn scales(rows: &[&[Block]; ROWS], at: usize) -> [u16; ROWS] {
    std::array::from_fn(|row| u16::from_le_bytes([rows[row][at][0], rows[row][at][1]]))
}

/// One pass over the panels of one group of rows, or of two.
macro_rules! passes {
    ($columns:literal, $groups:ident, $panels:ident, $blocks:ident, $ahead:ident, $first:ident, $column:ident, $write:ident) => {{
        let columns: [&[Packed]; $columns] = std::array::from_fn(|at| $column($first + at));
        if $groups == 1 {
            many::<$columns, 1>($panels, $blocks, $ahead, $first, columns, &mut $write);
        } else {
            many::<$columns, 2>($panels, $blocks, $ahead, $first, columns, &mut $write);
        }
    }};
}

/// The kernel, compiled for these features, on top of a module's `Lanes`, `Panel`, `zeros` and
/// `add`. With at most `$few` columns, weights are loaded from memory into lanes and used at once.
/// With more, they are kept as panels for several passes.
macro_rules! kernel {
    ($name:ident, $features:tt, $few:literal: $($count:literal)*) => {
        /// Rounds activations.
        ///
        /// # Panics
        /// `packed` is too short.
        #[target_feature(enable = $features)]
        pub fn pack(given: &[[f32; BLOCK]], packed: &mut [Packed]) {
            for (to, x) in packed[..given.len()].iter_mut().zip(given) {
                *to = Packed::new(x);
            }
        }

        /// Products of `rows` (a range of whole groups of [`ROWS`]) of `weights` with `columns`,
        /// each as long as a row. `then` returns the row at which the caller will probably
        /// continue; it may be beyond the last one. `write` receives a column, the first of
        /// [`ROWS`] rows, and their results. `panels` is scratch memory. Safe to call if the
        /// processor has the features.
        ///
        /// # Panics
        /// The range is not of whole groups, or is beyond the weights.
        #[target_feature(enable = $features)]
        pub fn product(
            weights: &[Block],
            blocks: usize,
            rows: Range<usize>,
            then: impl Fn() -> usize,
            columns: &[Packed],
            panels: &mut Panels,
            mut write: impl FnMut(usize, usize, &[f32; ROWS]),
        ) {
            assert!(rows.start.is_multiple_of(ROWS) && rows.end.is_multiple_of(ROWS), "whole groups of rows");
            let panels = &mut panels.$name;
            let count = columns.len() / blocks;
            let column = |at: usize| &columns[at * blocks..][..blocks];
            let together = if count <= $few { 1 } else { 2 };
            for first in rows.clone().step_by(together * ROWS) {
                let groups = together.min((rows.end - first) / ROWS);
                let next = first + groups * ROWS;
                let next = if next < rows.end { next } else { then() };
                // Prefetch what comes next: sixteen rows are read in parallel, and the processor's
                // own prefetcher follows only a few streams.
                let ahead = lines(weights, blocks, next..next + together * ROWS);
                let weights = &weights[first * blocks..][..groups * ROWS * blocks];
                let mut write = |column: usize, group: usize, result: &[f32; ROWS]| {
                    write(column, first + group * ROWS, result);
                };
                if count <= $few {
                    match count {
                        $($count => {
                            few::<$count>(weights, blocks, ahead, std::array::from_fn(column), &mut write);
                        })*
                        _ => {}
                    }
                    continue;
                }
                panels.clear();
                for weights in weights.chunks_exact(blocks * ROWS) {
                    let rows = rows_of(weights, blocks);
                    panels.extend((0..blocks).map(|at| Panel::load(&rows, at)));
                }
                for (pass, first) in (0..count).step_by(PASS).enumerate() {
                    let ahead = part(ahead, pass, count.div_ceil(PASS));
                    match PASS.min(count - first) {
                        1 => passes!(1, groups, panels, blocks, ahead, first, column, write),
                        2 => passes!(2, groups, panels, blocks, ahead, first, column, write),
                        3 => passes!(3, groups, panels, blocks, ahead, first, column, write),
                        _ => passes!(4, groups, panels, blocks, ahead, first, column, write),
                    }
                }
            }
        }

        #[target_feature(enable = $features)]
        fn few<const C: usize>(
            weights: &[Block],
            blocks: usize,
            ahead: &[Line],
            columns: [&[Packed]; C],
            write: &mut impl FnMut(usize, usize, &[f32; ROWS]),
        ) {
            let rows = rows_of(weights, blocks);
            let columns = columns.map(|column| &column[..blocks]);
            let mut sums = [[zeros(); C]];
            for at in 0..blocks {
                part(ahead, at, blocks).iter().for_each(prefetch);
                let panel = Panel::load(&rows, at);
                add([&panel], columns.map(|column| &column[at]), &mut sums);
            }
            for (column, sum) in sums[0].iter().enumerate() {
                write(column, 0, &bytemuck::cast(*sum));
            }
        }

        #[target_feature(enable = $features)]
        fn many<const C: usize, const G: usize>(
            panels: &[Panel],
            blocks: usize,
            ahead: &[Line],
            first: usize,
            columns: [&[Packed]; C],
            write: &mut impl FnMut(usize, usize, &[f32; ROWS]),
        ) {
            let groups: [&[Panel]; G] = std::array::from_fn(|group| &panels[group * blocks..][..blocks]);
            let columns = columns.map(|column| &column[..blocks]);
            let mut sums = [[zeros(); C]; G];
            for at in 0..blocks {
                part(ahead, at, blocks).iter().for_each(prefetch);
                add(groups.map(|panels| &panels[at]), columns.map(|column| &column[at]), &mut sums);
            }
            for (group, sums) in sums.iter().enumerate() {
                for (column, sum) in sums.iter().enumerate() {
                    write(first + column, group, &bytemuck::cast(*sum));
                }
            }
        }
    };
}

/// With AVX-512 and its dot products of bytes.
pub mod avx512 {
    use super::*;

    /// One number of each row.
    type Lanes = __m512;

    /// A block of [`ROWS`] rows of weights, one in each lane.
    #[derive(Debug, Clone, Copy)]
    pub struct Panel {
        /// Numbers `4 i .. 4 i + 4` of each row, plus 128, in u8.
        words: [__m512i; BLOCK / 4],
        scale: __m512,
    }

    kernel!(avx512, "avx512f,avx512bw,avx512vnni,avx2,fma,f16c", 12: 1 2 3 4 5 6 7 8 9 10 11 12);

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn zeros() -> Lanes {
        _mm512_setzero_ps()
    }

    /// Adds the products of a block.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn add<const C: usize, const G: usize>(
        panels: [&Panel; G],
        columns: [&Packed; C],
        sums: &mut [[Lanes; C]; G],
    ) {
        // All integers first, then all scales: many independent sums hide the latency of each.
        let mut dots = [[_mm512_set1_epi32(0); C]; G];
        for column in 0..C {
            let correction = _mm512_set1_epi32(columns[column].correction);
            for dots in &mut dots {
                dots[column] = correction;
            }
        }
        for word in 0..BLOCK / 4 {
            for column in 0..C {
                let four = _mm512_set1_epi32(columns[column].words[word]);
                for group in 0..G {
                    dots[group][column] =
                        _mm512_dpbusd_epi32(dots[group][column], panels[group].words[word], four);
                }
            }
        }
        for column in 0..C {
            let scale = _mm512_set1_ps(columns[column].scale);
            for group in 0..G {
                let scale = _mm512_mul_ps(panels[group].scale, scale);
                let dot = _mm512_cvtepi32_ps(dots[group][column]);
                sums[group][column] = _mm512_fmadd_ps(dot, scale, sums[group][column]);
            }
        }
    }

    impl Panel {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
        fn load(rows: &[&[Block]; ROWS], at: usize) -> Self {
            let numbers = |row: usize| bytemuck::pod_read_unaligned::<__m256i>(&rows[row][at][2..]);
            // 128-bit lanes: words 0..4 and 4..8 of a row, then those of the row four rows later.
            let pair =
                |row: usize| _mm512_inserti64x4::<1>(_mm512_castsi256_si512(numbers(row)), numbers(row + 4));
            let low = turn([pair(0), pair(1), pair(2), pair(3)]);
            let high = turn([pair(8), pair(9), pair(10), pair(11)]);
            let sign = _mm512_set1_epi8(i8::MIN);
            let mut words = [sign; BLOCK / 4];
            for word in 0..4 {
                let (low, high) = (low[word], high[word]);
                words[word] = _mm512_xor_si512(_mm512_shuffle_i32x4::<0b10_00_10_00>(low, high), sign);
                words[word + 4] = _mm512_xor_si512(_mm512_shuffle_i32x4::<0b11_01_11_01>(low, high), sign);
            }
            Self { words, scale: _mm512_cvtph_ps(bytemuck::cast(scales(rows, at))) }
        }
    }

    /// Transposes four words of four rows within each lane of 128 bits.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn turn([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        [
            _mm512_unpacklo_epi64(ab_low, cd_low),
            _mm512_unpackhi_epi64(ab_low, cd_low),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ]
    }
}

/// With AVX2: the sixteen rows are in two registers.
// With iterators instead of indices, the sums leave their registers.
#[allow(clippy::needless_range_loop)]
pub mod avx2 {
    use super::*;

    /// One number of each row.
    type Lanes = [__m256; 2];

    /// A block of [`ROWS`] rows of weights, one in each lane.
    #[derive(Debug, Clone, Copy)]
    pub struct Panel {
        /// Numbers `4 i .. 4 i + 4` of each row.
        words: [[__m256i; 2]; BLOCK / 4],
        scale: Lanes,
    }

    kernel!(avx2, "avx2,fma,f16c", 4: 1 2 3 4);

    #[inline]
    #[target_feature(enable = "avx2")]
    fn zeros() -> Lanes {
        [_mm256_setzero_ps(); 2]
    }

    /// Adds the products of a block.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn add<const C: usize, const G: usize>(
        panels: [&Panel; G],
        columns: [&Packed; C],
        sums: &mut [[Lanes; C]; G],
    ) {
        let ones = _mm256_set1_epi16(1);
        for group in 0..G {
            for half in 0..2 {
                let mut dots = [_mm256_setzero_si256(); C];
                for word in 0..BLOCK / 4 {
                    // Move the sign to the activations. Two products of at most 128 x 127 fit into
                    // 16 bits, and the magnitude of -128 is 128 as an unsigned byte.
                    let weights = panels[group].words[word][half];
                    let magnitudes = _mm256_abs_epi8(weights);
                    for column in 0..C {
                        let four = _mm256_set1_epi32(columns[column].words[word]);
                        let pairs = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(four, weights));
                        dots[column] = _mm256_add_epi32(dots[column], _mm256_madd_epi16(pairs, ones));
                    }
                }
                for column in 0..C {
                    let scale =
                        _mm256_mul_ps(panels[group].scale[half], _mm256_set1_ps(columns[column].scale));
                    let sum = sums[group][column][half];
                    sums[group][column][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[column]), scale, sum);
                }
            }
        }
    }

    impl Panel {
        #[inline]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn load(rows: &[&[Block]; ROWS], at: usize) -> Self {
            let numbers = |row: usize| bytemuck::pod_read_unaligned::<__m256i>(&rows[row][at][2..]);
            let scales: [[u16; 8]; 2] = bytemuck::cast(scales(rows, at));
            let mut words = [[_mm256_setzero_si256(); 2]; BLOCK / 4];
            for half in 0..2 {
                let row = 8 * half;
                let low = turn([numbers(row), numbers(row + 1), numbers(row + 2), numbers(row + 3)]);
                let high = turn([numbers(row + 4), numbers(row + 5), numbers(row + 6), numbers(row + 7)]);
                for word in 0..4 {
                    let (low, high) = (low[word], high[word]);
                    words[word][half] = _mm256_permute2x128_si256::<0x20>(low, high);
                    words[word + 4][half] = _mm256_permute2x128_si256::<0x31>(low, high);
                }
            }
            let scale =
                [_mm256_cvtph_ps(bytemuck::cast(scales[0])), _mm256_cvtph_ps(bytemuck::cast(scales[1]))];
            Self { words, scale }
        }
    }

    /// Transposes four words of four rows within each lane of 128 bits.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn turn([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
        let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
        [
            _mm256_unpacklo_epi64(ab_low, cd_low),
            _mm256_unpackhi_epi64(ab_low, cd_low),
            _mm256_unpacklo_epi64(ab_high, cd_high),
            _mm256_unpackhi_epi64(ab_high, cd_high),
        ]
    }
}
