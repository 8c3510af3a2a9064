//! Converts stored elements to f32 with ggml's own function for each type.
#![allow(unsafe_code)]

use std::ffi::c_void;

use llama_cpp_sys_2 as sys;

use super::GgmlType;

/// ggml's conversion of one type.
#[derive(Debug, Clone, Copy)]
pub struct Dequantise {
    kind: GgmlType,
    to_float: unsafe extern "C" fn(*const c_void, *mut f32, i64),
}

impl Dequantise {
    /// The conversion of a type; `None` if ggml has none: for F32, which needs none, for integers,
    /// and for types that hold only intermediate results (`Q8_1`, `Q8_K`).
    pub fn of(kind: GgmlType) -> Option<Self> {
        let (elements, bytes, to_float) = traits(kind)?;
        // `append` relies on our table of block sizes, so it must agree with ggml's.
        let same = elements == kind.block_elements() && bytes == kind.block_bytes();
        to_float.filter(|_| same).map(|to_float| Self { kind, to_float })
    }

    /// Appends the elements of whole blocks.
    ///
    /// # Panics
    /// The bytes are not whole blocks.
    pub fn append(&self, bytes: &[u8], values: &mut Vec<f32>) {
        let block = self.kind.block_bytes() as usize;
        assert!(bytes.len().is_multiple_of(block), "{} bytes are not whole blocks of {block}", bytes.len());
        let count = bytes.len() / block * self.kind.block_elements() as usize;
        // Blocks begin with numbers of two or four bytes, which C requires to be aligned.
        let mut copy: Vec<u64>;
        let source = if (bytes.as_ptr() as usize).is_multiple_of(align_of::<u64>()) {
            bytes
        } else {
            copy = vec![0; bytes.len().div_ceil(size_of::<u64>())];
            let aligned: &mut [u8] = bytemuck::cast_slice_mut(&mut copy);
            aligned[..bytes.len()].copy_from_slice(bytes);
            &aligned[..bytes.len()]
        };
        let start = values.len();
        values.resize(start + count, 0.0);
        let into = &mut values[start..];
        // SAFETY: the function reads `count` elements from an aligned address. By ggml's own block
        // sizes, which `of` has compared, these are exactly the given bytes. It writes as many
        // floats. Any bytes are valid blocks: indices into ggml's tables are masked to the tables'
        // sizes.
        unsafe { (self.to_float)(source.as_ptr().cast(), into.as_mut_ptr(), count as i64) };
    }
}

/// Elements and bytes per block by ggml's table, and the conversion.
fn traits(kind: GgmlType) -> Option<(u64, u64, sys::ggml_to_float_t)> {
    let id = kind.id();
    if id >= sys::GGML_TYPE_COUNT {
        return None;
    }
    // SAFETY: the id is inside ggml's table, which is never freed or changed.
    let traits = unsafe { &*sys::ggml_get_type_traits(id) };
    Some((u64::try_from(traits.blck_size).ok()?, traits.type_size as u64, traits.to_float))
}

/// Quantises rows of `row` elements with ggml. Every element has the same weight.
#[cfg(test)]
pub fn quantise_rows(kind: GgmlType, values: &[f32], row: usize) -> Vec<u8> {
    let rows = values.len() / row;
    assert!(values.len().is_multiple_of(row) && (row as u64).is_multiple_of(kind.block_elements()));
    let bytes = kind.tensor_bytes(&[row as u64, rows as u64]).unwrap() as usize;
    let mut out = vec![0u64; bytes.div_ceil(size_of::<u64>())];
    let weights = vec![1f32; row];
    // SAFETY: `values` has `rows` x `row` floats, `weights` has one row, and `out` has room for
    // that many whole blocks.
    let written = unsafe {
        sys::ggml_quantize_chunk(
            kind.id(),
            values.as_ptr(),
            out.as_mut_ptr().cast(),
            0,
            rows as i64,
            row as i64,
            weights.as_ptr(),
        )
    };
    assert_eq!(written, bytes, "{kind}");
    bytemuck::cast_slice::<u64, u8>(&out)[..bytes].to_vec()
}

#[cfg(test)]
mod tests {
    use half::f16;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn all() -> impl Iterator<Item = GgmlType> {
        (0..64).filter_map(GgmlType::from_id)
    }

    #[test]
    fn blocks_have_ggmls_sizes() {
        for kind in all() {
            let (elements, bytes, _) = traits(kind).unwrap();
            assert_eq!((elements, bytes), (kind.block_elements(), kind.block_bytes()), "{kind}");
        }
    }

    /// `(type, maximum relative root mean square error of normal values)` of each type that ggml
    /// quantises.
    const KINDS: [(GgmlType, f64); 25] = [
        (GgmlType::Q1_0, 0.9),
        (GgmlType::Q2_0, 0.8),
        (GgmlType::Q4_0, 0.12),
        (GgmlType::Q4_1, 0.12),
        (GgmlType::Q5_0, 0.06),
        (GgmlType::Q5_1, 0.06),
        (GgmlType::Q8_0, 0.01),
        (GgmlType::MXFP4, 0.2),
        (GgmlType::NVFP4, 0.2),
        (GgmlType::Q2_K, 0.4),
        (GgmlType::Q3_K, 0.2),
        (GgmlType::Q4_K, 0.1),
        (GgmlType::Q5_K, 0.06),
        (GgmlType::Q6_K, 0.03),
        (GgmlType::TQ1_0, 0.9),
        (GgmlType::TQ2_0, 0.9),
        (GgmlType::IQ2_XXS, 0.5),
        (GgmlType::IQ2_XS, 0.5),
        (GgmlType::IQ2_S, 0.5),
        (GgmlType::IQ3_XXS, 0.3),
        (GgmlType::IQ3_S, 0.3),
        (GgmlType::IQ1_S, 0.7),
        (GgmlType::IQ1_M, 0.7),
        (GgmlType::IQ4_NL, 0.12),
        (GgmlType::IQ4_XS, 0.12),
    ];

    #[test]
    fn what_ggml_quantises_comes_back() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let values: Vec<f32> =
            (0..2 * 512).map(|_| (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0).collect();
        let mut off = Vec::new();
        for (kind, most) in KINDS {
            let bytes = quantise_rows(kind, &values, 512);
            let mut back = Vec::new();
            Dequantise::of(kind).unwrap().append(&bytes, &mut back);
            let square =
                |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v * v)).sum::<f64>();
            let error = square(&mut values.iter().zip(&back).map(|(a, b)| a - b));
            let relative = (error / square(&mut values.iter().copied())).sqrt();
            assert_eq!(back.len(), values.len(), "{kind}");
            if relative.is_nan() || relative > most {
                off.push((kind, relative));
            }
            // The same from an odd address.
            let shifted = [&[0u8][..], &bytes].concat();
            let mut again = Vec::new();
            Dequantise::of(kind).unwrap().append(&shifted[1..], &mut again);
            assert_eq!(back, again, "{kind}");
        }
        assert_eq!(off, []);
    }

    #[test]
    fn every_type_is_either_converted_or_known_not_to_be() {
        use GgmlType::{F32, F64, I8, I16, I32, I64, Q8_1, Q8_K};
        for kind in all() {
            let none = matches!(kind, F32 | F64 | I8 | I16 | I32 | I64 | Q8_1 | Q8_K);
            assert_eq!(Dequantise::of(kind).is_none(), none, "{kind}");
        }
    }

    /// Blocks written by hand, as the format describes them.
    #[test]
    fn blocks_mean_what_the_format_says() {
        let half = |value: f32| f16::from_f32(value).to_le_bytes();
        let nibbles: Vec<u8> = (0..16u8).map(|at| at | (15 - at) << 4).collect();
        let read = |kind: GgmlType, bytes: &[u8]| {
            let mut values = Vec::new();
            Dequantise::of(kind).unwrap().append(bytes, &mut values);
            values
        };
        let low = |at: usize| at as f32;
        let expected = |f: &dyn Fn(f32) -> f32| -> Vec<f32> {
            (0..16).map(low).chain((0..16).map(|at| 15.0 - low(at))).map(f).collect()
        };
        let four = [&half(0.5)[..], &half(-3.0), &nibbles].concat();
        assert_eq!(read(GgmlType::Q4_1, &four), expected(&|q| 0.5 * q - 3.0));
        let four = [&half(0.25)[..], &nibbles].concat();
        assert_eq!(read(GgmlType::Q4_0, &four), expected(&|q| 0.25 * (q - 8.0)));
        let eight = [&half(2.0)[..], &(0..32).map(|q: i8| (q - 16) as u8).collect::<Vec<_>>()].concat();
        assert_eq!(
            read(GgmlType::Q8_0, &eight),
            (0..32).map(|q| 2.0 * (q as f32 - 16.0)).collect::<Vec<_>>()
        );
        // E2M1 values with a shared exponent of 128: twice the table's values.
        let table = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        let codes: Vec<u8> = (0..16u8).map(|at| at | at << 4).collect();
        let signed: Vec<f32> =
            table.iter().copied().chain(table.iter().map(|v| -v)).map(|v| 2.0 * v).collect();
        let found = read(GgmlType::MXFP4, &[&[128u8][..], &codes].concat());
        assert_eq!(found, [&signed[..], &signed].concat());
        // Q6_K with every scale 1: 16 scales, then d. Quants are 6 bits minus 32.
        let six = [&[0u8; 128][..], &[0u8; 64], &[1u8; 16], &half(0.5)].concat();
        assert_eq!(read(GgmlType::Q6_K, &six), vec![-16.0; 256]);
        let brain = [half::bf16::from_f32(1.5).to_le_bytes(), half::bf16::from_f32(-2.0).to_le_bytes()];
        assert_eq!(read(GgmlType::BF16, &brain.concat()), [1.5, -2.0]);
    }
}
