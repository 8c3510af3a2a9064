//! Products of Q8_0 weights with activations, on the CPU.
//!
//! As in llama.cpp, activations are rounded to blocks of 32 numbers in i8 too, and a block's product is an exact integer.
//! Here sixteen rows of weights are computed together, one in each lane of a register, so that nothing is summed across
//! lanes and one scale serves sixteen results. Weights stay as they lie in the file: bringing sixteen rows into lanes costs
//! as much as computing four columns, and is done once for all columns. Each result is summed in the same order whatever
//! stands beside it, so a token gets the same numbers alone and in a batch.

use crate::vector::fma;

/// Numbers that share a scale.
pub const BLOCK: usize = 32;
/// Bytes of a block of weights: its scale in f16, and its numbers in i8 (`block_q8_0` of ggml).
pub const BLOCK_BYTES: usize = 34;
/// Rows of weights that are computed together.
pub const ROWS: usize = 16;

/// A block of weights as it lies in a file.
pub type Block = [u8; BLOCK_BYTES];

/// A block of activations.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Packed {
    /// Numbers in i8, four to a word.
    words: [i32; BLOCK / 4],
    scale: f32,
    /// Weights are taken as unsigned, 128 too large; this takes the excess back.
    correction: i32,
}

impl Packed {
    /// Rounds activations as Q8_0 does, but keeps the scale in f32.
    #[inline]
    pub fn new(x: &[f32; BLOCK]) -> Self {
        /// Added to a small number, it leaves the nearest integer (the even one of two) in the lowest bits.
        const ROUND: f32 = 12_582_912.0;
        // Positive floats are ordered as their bits, and integers are compared in any order: the compiler vectorises this.
        let top = x.iter().fold(0, |top, x| (x.to_bits() & i32::MAX as u32).max(top));
        let scale = f32::from_bits(top) / 127.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let numbers = x.map(|x| fma(x, inverse, ROUND).to_bits() as i8);
        let sum: i32 = numbers.iter().map(|&number| i32::from(number)).sum();
        Self { words: bytemuck::cast(numbers), scale, correction: -128 * sum }
    }
}

#[cfg(target_arch = "x86_64")]
pub use lanes::{Panel, product};

#[cfg(target_arch = "x86_64")]
mod lanes {
    use std::arch::x86_64::{
        __m256i, __m512, __m512i, _mm512_castsi256_si512, _mm512_cvtepi32_ps, _mm512_cvtph_ps,
        _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_inserti64x4, _mm512_mul_ps, _mm512_set1_epi8,
        _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_shuffle_i32x4, _mm512_unpackhi_epi32,
        _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64, _mm512_xor_si512,
    };
    use std::ops::Range;

    use super::{BLOCK, Block, Packed, ROWS};
    use crate::engine::ffi::prefetch;

    /// Up to so many columns, weights go from memory into lanes and are used at once; with more, they are kept as a
    /// [`Panel`] for several passes.
    const FEW: usize = 12;
    /// Columns of a pass over two panels, as many as registers allow with room to load.
    const PASS: usize = 4;

    /// A block of [`ROWS`] rows of weights, one in each lane.
    #[derive(Debug, Clone, Copy)]
    pub struct Panel {
        /// Numbers `4 i .. 4 i + 4` of each row, plus 128, in u8.
        words: [__m512i; BLOCK / 4],
        scale: __m512,
    }

    /// Products of `rows` (a range of whole groups of [`ROWS`]) of `weights` with `columns`, each as long as a row. `then` says
    /// at which row the caller will probably go on, if there is one. `write` is given a column, the first of [`ROWS`] rows, and their results.
    /// `panels` is scratch memory. Safe to call where the
    /// processor has the features.
    ///
    /// # Panics
    /// A range that is not of whole groups, or beyond the weights.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub fn product(
        weights: &[Block],
        blocks: usize,
        rows: Range<usize>,
        then: impl Fn() -> usize,
        columns: &[Packed],
        panels: &mut Vec<Panel>,
        mut write: impl FnMut(usize, usize, &[f32; ROWS]),
    ) {
        assert!(rows.start.is_multiple_of(ROWS) && rows.end.is_multiple_of(ROWS), "whole groups of rows");
        let count = columns.len() / blocks;
        let column = |at: usize| &columns[at * blocks..][..blocks];
        let together = if count <= FEW { 1 } else { 2 };
        for first in rows.clone().step_by(together * ROWS) {
            let groups = together.min((rows.end - first) / ROWS);
            let next = first + groups * ROWS;
            let next = if next < rows.end { next } else { then() };
            // Without being asked for, what comes next would come late: sixteen rows are read side by side, and the
            // processor follows few streams at a time.
            let ahead = lines(weights, blocks, next..next + together * ROWS);
            let weights = &weights[first * blocks..][..groups * ROWS * blocks];
            let mut write = |column: usize, group: usize, result: &[f32; ROWS]| {
                write(column, first + group * ROWS, result);
            };
            if count <= FEW {
                macro_rules! few {
                    ($($count:literal)*) => {
                        match count {
                            $($count => few::<$count>(weights, blocks, ahead, std::array::from_fn(column), &mut write),)*
                            _ => {}
                        }
                    };
                }
                few!(1 2 3 4 5 6 7 8 9 10 11 12);
                continue;
            }
            panels.clear();
            for weights in weights.chunks_exact(blocks * ROWS) {
                let rows = rows_of(weights, blocks);
                panels.extend((0..blocks).map(|at| Panel::load(&rows, at)));
            }
            for (pass, first) in (0..count).step_by(PASS).enumerate() {
                let ahead = part(ahead, pass, count.div_ceil(PASS));
                macro_rules! pass {
                    ($($count:literal)*) => {
                        match (groups, PASS.min(count - first)) {
                            $(
                                (1, $count) => {
                                    let columns: [_; $count] = std::array::from_fn(|at| column(first + at));
                                    many::<$count, 1>(panels, blocks, ahead, first, columns, &mut write);
                                }
                                (_, $count) => {
                                    let columns: [_; $count] = std::array::from_fn(|at| column(first + at));
                                    many::<$count, 2>(panels, blocks, ahead, first, columns, &mut write);
                                }
                            )*
                            _ => {}
                        }
                    };
                }
                pass!(1 2 3 4);
            }
        }
    }

    /// A line of memory.
    type Line = [u8; 64];

    /// Some rows of weights, as far as there are any.
    fn lines(weights: &[Block], blocks: usize, rows: Range<usize>) -> &[Line] {
        let end = (rows.end * blocks).min(weights.len());
        weights.get(rows.start * blocks..end).unwrap_or_default().as_flattened().as_chunks().0
    }

    /// Part `index` of so many.
    fn part(lines: &[Line], index: usize, parts: usize) -> &[Line] {
        let step = lines.len().div_ceil(parts);
        let lines = lines.get(index * step..).unwrap_or_default();
        &lines[..step.min(lines.len())]
    }

    fn rows_of(weights: &[Block], blocks: usize) -> [&[Block]; ROWS] {
        std::array::from_fn(|row| &weights[row * blocks..][..blocks])
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn few<const C: usize>(
        weights: &[Block],
        blocks: usize,
        ahead: &[Line],
        columns: [&[Packed]; C],
        write: &mut impl FnMut(usize, usize, &[f32; ROWS]),
    ) {
        let rows = rows_of(weights, blocks);
        let columns = columns.map(|column| &column[..blocks]);
        let mut sums = [[_mm512_setzero_ps(); C]];
        for at in 0..blocks {
            part(ahead, at, blocks).iter().for_each(prefetch);
            let panel = Panel::load(&rows, at);
            add([&panel], columns.map(|column| &column[at]), &mut sums);
        }
        for (column, sum) in sums[0].iter().enumerate() {
            write(column, 0, &bytemuck::cast(*sum));
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
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
        let mut sums = [[_mm512_setzero_ps(); C]; G];
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

    /// Adds the products of a block.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn add<const C: usize, const G: usize>(
        panels: [&Panel; G],
        columns: [&Packed; C],
        sums: &mut [[__m512; C]; G],
    ) {
        // All integers first, then all scales: many independent sums hide how long each takes.
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
            // Lanes of 128 bits: words 0..4 and 4..8 of a row, then those of the fourth row behind it.
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
            let scales: [u16; ROWS] =
                std::array::from_fn(|row| u16::from_le_bytes([rows[row][at][0], rows[row][at][1]]));
            Self { words, scale: _mm512_cvtph_ps(bytemuck::cast(scales)) }
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

#[cfg(test)]
mod tests {
    use half::f16;

    use super::{BLOCK, Block, Packed, ROWS};
    use crate::engine::ffi::{has_product, product};
    use crate::engine::kernels::numbers;

    fn weights(rows: usize, blocks: usize) -> Vec<Block> {
        let mut numbers = numbers(3);
        let mut next = || numbers.next().unwrap();
        let block = |_| {
            let mut block = [0; 34];
            block[..2].copy_from_slice(&f16::from_f32(next() * 0.1).to_le_bytes());
            // -128 too, which Q8_0 never writes but a file may have.
            block[2..].iter_mut().for_each(|number| *number = (next() * 128.5) as i8 as u8);
            block
        };
        (0..rows * blocks).map(block).collect()
    }

    #[test]
    fn results_are_those_of_the_definition_whatever_stands_beside_them() {
        if !has_product() {
            return;
        }
        for (rows, blocks) in [(16, 1), (48, 3), (32, 48)] {
            let weights = weights(rows, blocks);
            let given: Vec<f32> = numbers(5).take(29 * blocks * BLOCK).collect();
            let columns: Vec<Packed> = given.as_chunks().0.iter().map(Packed::new).collect();
            let mut alone = vec![0.0; 29 * rows];
            let mut panels = Vec::new();
            for count in (1..=14).chain([29]) {
                let mut found = vec![f32::NAN; count * rows];
                product(
                    &weights,
                    blocks,
                    0..rows,
                    || rows,
                    &columns[..count * blocks],
                    &mut panels,
                    |column, row, result| {
                        found[column * rows + row..][..ROWS].copy_from_slice(result);
                    },
                );
                if count == 1 {
                    for column in 0..29 {
                        let one = &columns[column * blocks..][..blocks];
                        product(
                            &weights,
                            blocks,
                            0..rows,
                            || rows,
                            one,
                            &mut panels,
                            |_, row, result| {
                                alone[column * rows + row..][..ROWS].copy_from_slice(result);
                            },
                        );
                    }
                }
                assert_eq!(found, alone[..found.len()], "{rows} rows of {blocks} blocks, {count} columns");
            }
            for column in 0..29 {
                for row in 0..rows {
                    let (mut exact, mut size) = (0.0, 0.0);
                    for block in 0..blocks {
                        let weights = &weights[row * blocks + block];
                        let scale = f16::from_le_bytes([weights[0], weights[1]]).to_f64();
                        let given = &given[(column * blocks + block) * BLOCK..][..BLOCK];
                        for (&weight, &x) in weights[2..].iter().zip(given) {
                            let weight = f64::from(weight as i8) * scale;
                            exact += weight * f64::from(x);
                            size += weight * weight;
                        }
                    }
                    // Each activation is rounded by at most half of 1/127 of the largest, evenly spread.
                    let rounding = (size / 12.0).sqrt() / 127.0;
                    let found = f64::from(alone[column * rows + row]);
                    assert!(
                        (found - exact).abs() < 5.0 * rounding,
                        "{found} for {exact}, rounding {rounding}"
                    );
                }
            }
        }
    }

    #[test]
    fn columns_of_zeros_give_zeros() {
        if !has_product() {
            return;
        }
        let columns = [Packed::new(&[0.0; BLOCK]); 2];
        let mut seen = 0;
        product(
            &weights(16, 1),
            1,
            0..16,
            || 16,
            &columns,
            &mut Vec::new(),
            |_, _, result| {
                assert!(result.iter().all(|&x| x == 0.0));
                seen += 1;
            },
        );
        assert_eq!(seen, 2);
    }
}
