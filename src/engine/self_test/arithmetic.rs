//! Each kernel on known numbers, held to its definition: what a post's many blocks would hide shows here.

use half::f16;

use crate::engine::kernels;
use crate::engine::kernels::attention::{Cells, Partial, View, WIDTHS, attend};
use crate::engine::kernels::felix::{Matrix, ROWS as PANEL};
use crate::engine::kernels::product::{BLOCK, Block, Packed, Panels, ROWS};
use crate::engine::kernels::{Form, Kernel, numbers};

/// How far a sum may be from its definition, relative to the largest result.
const CLOSE: f64 = 2e-5;

/// Tries a kernel in a form; the error says what is wrong.
pub fn check(kernel: Kernel, form: Form) -> Result<(), String> {
    match kernel {
        Kernel::Attention => WIDTHS.into_iter().try_for_each(|width| attention(form, width)),
        Kernel::Product => [1, 2, 5, 12, 13, 16].into_iter().try_for_each(|columns| product(form, columns)),
        Kernel::Felix => [1, 2, 7].into_iter().try_for_each(|columns| felix(form, columns)),
    }
}

/// What is wrong with numbers, if they aren't close to their definition.
fn close(found: &[f32], expected: &[f64], what: &dyn Fn() -> String) -> Result<(), String> {
    let size = expected.iter().fold(0.0_f64, |size, x| size.max(x.abs()));
    let off = found.iter().zip(expected).map(|(&found, &expected)| (f64::from(found) - expected).abs());
    match off.zip(found).find(|(off, _)| *off > CLOSE * size || off.is_nan()) {
        None => Ok(()),
        Some((off, found)) => {
            Err(format!("it computes wrong numbers: {} gives {found}, off by {off}", what()))
        }
    }
}

/// Two rows of two heads each over cells of which one can't be seen.
fn attention(form: Form, width: usize) -> Result<(), String> {
    const CELLS: usize = 45;
    let mut next = numbers(11);
    let mut halves = |size: f32| -> Vec<f16> {
        (0..CELLS * width).map(|_| f16::from_f32(size * next.next().unwrap_or_default())).collect()
    };
    let (keys, values) = (halves(2.0), halves(1.0));
    let queries: Vec<f32> = numbers(12).take(4 * width).collect();
    let mut mask = vec![f16::ZERO; 2 * CELLS];
    mask[CELLS + 7] = f16::NEG_INFINITY;
    let cells = |data| Cells { data, step: width };
    let view = View { keys: cells(&keys), values: cells(&values), mask: &mask, mask_step: CELLS };
    let mut partial = Partial::default();
    attend(form, &queries, width, 2, view, 0..CELLS, &mut partial);
    let mut expected = Vec::new();
    for (at, query) in queries.chunks_exact(width).enumerate() {
        let sees = |cell: usize| mask[at / 2 * CELLS + cell] == f16::ZERO;
        let score = |cell: usize| -> f64 {
            let key = &keys[cell * width..][..width];
            query.iter().zip(key).map(|(&q, k)| f64::from(q) * k.to_f64()).sum()
        };
        let weights: Vec<f64> =
            (0..CELLS).map(|cell| if sees(cell) { score(cell).exp() } else { 0.0 }).collect();
        let total: f64 = weights.iter().sum();
        expected.extend((0..width).map(|i| {
            let sum: f64 = (0..CELLS).map(|cell| weights[cell] * values[cell * width + i].to_f64()).sum();
            sum / total
        }));
    }
    close(partial.finish(), &expected, &|| format!("attention over heads of {width}"))
}

/// 48 rows of three blocks.
fn product(form: Form, columns: usize) -> Result<(), String> {
    const BLOCKS: usize = 3;
    let mut next = numbers(13);
    let mut next = || next.next().unwrap_or_default();
    let weights: Vec<Block> = (0..3 * ROWS * BLOCKS)
        .map(|_| {
            let mut block = [0; 34];
            block[..2].copy_from_slice(&f16::from_f32(0.1 * next()).to_le_bytes());
            // -128 too, which Q8_0 never writes but a file may have.
            block[2..].iter_mut().for_each(|number| *number = (next() * 128.5) as i8 as u8);
            block
        })
        .collect();
    let given: Vec<f32> = numbers(14).take(columns * BLOCKS * BLOCK).collect();
    let mut packed = vec![Packed::default(); columns * BLOCKS];
    kernels::pack(form, given.as_chunks().0, &mut packed);
    let mut found = vec![f32::NAN; columns * 3 * ROWS];
    let mut panels = Panels::default();
    let all = 3 * ROWS;
    kernels::multiply_rows(
        form,
        &weights,
        BLOCKS,
        0..all,
        || all,
        &packed,
        &mut panels,
        |column, row, result| {
            found[column * all + row..][..ROWS].copy_from_slice(result);
        },
    );
    let mut expected = Vec::new();
    for column in packed.chunks_exact(BLOCKS) {
        for row in weights.chunks_exact(BLOCKS) {
            let block = |(weights, given): (&Block, &Packed)| {
                let scale = f16::from_le_bytes([weights[0], weights[1]]).to_f64();
                let numbers = weights[2..].iter().zip(given.numbers());
                let dot: i32 = numbers.map(|(&w, x)| i32::from(w as i8) * i32::from(x)).sum();
                f64::from(dot) * scale * f64::from(given.scale())
            };
            expected.push(row.iter().zip(column).map(block).sum());
        }
    }
    // What was rounded is held against what was given: half of a step at most.
    for (x, packed) in given.as_chunks::<BLOCK>().0.iter().zip(&packed) {
        let step = packed.scale();
        let off = |(x, number): (&f32, i8)| (x - f32::from(number) * step).abs() > 0.51 * step;
        if x.iter().zip(packed.numbers()).any(off) {
            return Err("it rounds activations wrongly".to_owned());
        }
    }
    close(&found, &expected, &|| format!("a product with {columns} columns"))
}

/// 37 rows of depth 50.
fn felix(form: Form, columns: usize) -> Result<(), String> {
    const SHAPE: (usize, usize) = (37, 50);
    let (rows, depth) = SHAPE;
    let weights: Vec<f16> = numbers(15).take(rows * depth).map(f16::from_f32).collect();
    let matrix = Matrix::new(rows, depth, |row, k| weights[row * depth + k]);
    let given: Vec<f32> = numbers(16).take(columns * depth).collect();
    let padded = matrix.panels() * PANEL;
    let mut found = vec![f32::NAN; columns * padded];
    matrix.multiply(form, 0..matrix.panels(), &given, |column, row, result| {
        found[column * padded + row..][..PANEL].copy_from_slice(&result);
    });
    let mut expected = Vec::new();
    for column in given.chunks_exact(depth) {
        let row = |row: usize| -> f64 {
            let weights = weights.get(row * depth..(row + 1) * depth).unwrap_or_default();
            weights.iter().zip(column).map(|(w, &x)| w.to_f64() * f64::from(x)).sum()
        };
        expected.extend((0..padded).map(row));
    }
    close(&found, &expected, &|| format!("a Felix spoke's matrix with {columns} columns"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::kernels::Kernels;

    #[test]
    fn every_form_that_this_processor_has_passes() {
        for kernel in Kernel::ALL {
            for form in [Form::Portable, Form::Avx2, Form::Avx512, Form::Avx512Vnni] {
                let exists = match kernel {
                    Kernel::Attention => matches!(form, Form::Avx2 | Form::Avx512),
                    Kernel::Product => matches!(form, Form::Avx2 | Form::Avx512Vnni),
                    Kernel::Felix => form != Form::Avx512Vnni,
                };
                if exists && form.is_possible() {
                    assert_eq!(check(kernel, form), Ok(()), "{kernel:?} {form:?}");
                }
            }
            assert!(Kernels::best().form(kernel).is_none_or(Form::is_possible));
        }
    }

    #[test]
    fn numbers_that_are_off_or_none_are_found() {
        let judge = |found: &[f32]| close(found, &[1.0, -2.0], &|| "it".to_owned());
        assert_eq!(judge(&[1.00001, -2.0]), Ok(()));
        assert!(judge(&[1.0001, -2.0]).unwrap_err().contains("it gives 1.0001"));
        assert!(judge(&[f32::NAN, -2.0]).is_err());
    }
}
