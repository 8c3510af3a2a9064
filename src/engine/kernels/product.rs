//! Products of Q8_0 weights with activations, on the CPU.
//!
//! As in llama.cpp, activations too are rounded to blocks of 32 numbers in i8, and a block's
//! product is an exact integer. Here, sixteen rows of weights are computed together, one in each
//! lane of a register, so that nothing is summed across lanes and one scale serves sixteen results.
//! Weights keep the layout of the file: moving sixteen rows into lanes costs as much as computing
//! four columns, and is done once for all columns. The order in which a result is summed doesn't
//! depend on the other columns, so a token gets the same numbers alone and in a batch. All forms
//! return the same bits, because they differ only in integer arithmetic.

#[cfg(target_arch = "x86_64")]
mod lanes;

#[cfg(target_arch = "x86_64")]
pub use lanes::{Panels, avx2, avx512};

/// Numbers that share a scale.
pub const BLOCK: usize = 32;
/// Bytes of a block of weights: its scale in f16, then its numbers in i8 (ggml's `block_q8_0`).
pub const BLOCK_BYTES: usize = 34;
/// Rows of weights that are computed together.
pub const ROWS: usize = 16;

/// A block of weights, as in a file.
pub type Block = [u8; BLOCK_BYTES];

/// A block of activations.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Packed {
    /// Numbers in i8, four to a word.
    words: [i32; BLOCK / 4],
    scale: f32,
    /// Corrects for the kernel's use of unsigned weights, which are larger by 128.
    correction: i32,
}

impl Packed {
    /// Rounds activations as Q8_0 does, but keeps the scale in f32.
    #[inline(always)]
    pub fn new(x: &[f32; BLOCK]) -> Self {
        /// Adding this to a small number leaves the nearest integer (ties to even) in the lowest
        /// bits.
        const ROUND: f32 = 12_582_912.0;
        // Positive floats have the order of their bits, and a maximum of integers can be computed
        // in any order, so the compiler vectorises this.
        let top = x.iter().fold(0, |top, x| (x.to_bits() & i32::MAX as u32).max(top));
        let scale = f32::from_bits(top) / 127.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let numbers = x.map(|x| x.mul_add(inverse, ROUND).to_bits() as i8);
        let sum: i32 = numbers.iter().map(|&number| i32::from(number)).sum();
        Self { words: bytemuck::cast(numbers), scale, correction: -128 * sum }
    }

    /// The numbers, in units of the scale.
    pub fn numbers(&self) -> [i8; BLOCK] {
        bytemuck::cast(self.words)
    }

    /// The value of one unit.
    pub fn scale(&self) -> f32 {
        self.scale
    }
}

/// Scratch memory of a kernel that this architecture doesn't have.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Debug, Default)]
pub struct Panels;

#[cfg(test)]
mod tests {
    use half::f16;

    use super::{BLOCK, Block, Packed, Panels, ROWS};
    use crate::engine::kernels::dispatch::product;
    use crate::engine::kernels::{Form, numbers};

    /// The forms that this processor has.
    fn forms() -> impl Iterator<Item = Form> {
        [Form::Avx2, Form::Avx512Vnni].into_iter().filter(|form| form.is_possible())
    }

    fn weights(rows: usize, blocks: usize) -> Vec<Block> {
        let mut numbers = numbers(3);
        let mut next = || numbers.next().unwrap();
        let block = |_| {
            let mut block = [0; 34];
            block[..2].copy_from_slice(&f16::from_f32(next() * 0.1).to_le_bytes());
            // Include -128: quantising to Q8_0 never writes it, but a file may contain it.
            block[2..].iter_mut().for_each(|number| *number = (next() * 128.5) as i8 as u8);
            block
        };
        (0..rows * blocks).map(block).collect()
    }

    #[test]
    fn results_are_those_of_the_definition_whatever_stands_beside_them() {
        let mut first = Vec::new();
        for (form, (rows, blocks)) in
            forms().flat_map(|form| [(16, 1), (48, 3), (32, 48)].map(|shape| (form, shape)))
        {
            let weights = weights(rows, blocks);
            let given: Vec<f32> = numbers(5).take(29 * blocks * BLOCK).collect();
            let columns: Vec<Packed> = given.as_chunks().0.iter().map(Packed::new).collect();
            let mut alone = vec![0.0; 29 * rows];
            let mut panels = Panels::default();
            for count in (1..=14).chain([29]) {
                let mut found = vec![f32::NAN; count * rows];
                product(
                    form,
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
                            form,
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
                assert_eq!(
                    found,
                    alone[..found.len()],
                    "{form:?}: {rows} rows of {blocks} blocks, {count} columns"
                );
            }
            // All forms return the same bits.
            match first.iter().find(|(shape, _)| *shape == (rows, blocks)) {
                Some((_, other)) => assert_eq!(&alone, other, "{form:?}: {rows} rows of {blocks} blocks"),
                None => first.push(((rows, blocks), alone.clone())),
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
                    // Rounding changes each activation by at most half of 1/127 of the largest one,
                    // uniformly distributed.
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
        for form in forms() {
            let columns = [Packed::new(&[0.0; BLOCK]); 2];
            let mut seen = 0;
            let mut panels = Panels::default();
            product(
                form,
                &weights(16, 1),
                1,
                0..16,
                || 16,
                &columns,
                &mut panels,
                |_, _, result| {
                    assert!(result.iter().all(|&x| x == 0.0));
                    seen += 1;
                },
            );
            assert_eq!(seen, 2);
        }
    }
}
