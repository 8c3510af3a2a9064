//! Element types of ggml tensors: ids in files, names and block sizes.

/// How the elements of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)] // ggml's own names
#[allow(missing_docs)]
pub enum GgmlType {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ2_XXS,
    IQ2_XS,
    IQ3_XXS,
    IQ1_S,
    IQ4_NL,
    IQ3_S,
    IQ2_S,
    IQ4_XS,
    I8,
    I16,
    I32,
    I64,
    F64,
    IQ1_M,
    BF16,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
    Q1_0,
    Q2_0,
}

use GgmlType::{
    BF16, F16, F32, F64, I8, I16, I32, I64, IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS, IQ4_NL,
    IQ4_XS, MXFP4, NVFP4, Q1_0, Q2_0, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, Q8_1, Q8_K,
    TQ1_0, TQ2_0,
};

/// (type, id in files, name, elements per block, bytes per block). Ids 4, 5, 31-33 and 36-38 are
/// retired.
const TABLE: [(GgmlType, u32, &str, u64, u64); 35] = [
    (F32, 0, "F32", 1, 4),
    (F16, 1, "F16", 1, 2),
    (Q4_0, 2, "Q4_0", 32, 18),
    (Q4_1, 3, "Q4_1", 32, 20),
    (Q5_0, 6, "Q5_0", 32, 22),
    (Q5_1, 7, "Q5_1", 32, 24),
    (Q8_0, 8, "Q8_0", 32, 34),
    (Q8_1, 9, "Q8_1", 32, 36),
    (Q2_K, 10, "Q2_K", 256, 84),
    (Q3_K, 11, "Q3_K", 256, 110),
    (Q4_K, 12, "Q4_K", 256, 144),
    (Q5_K, 13, "Q5_K", 256, 176),
    (Q6_K, 14, "Q6_K", 256, 210),
    (Q8_K, 15, "Q8_K", 256, 292),
    (IQ2_XXS, 16, "IQ2_XXS", 256, 66),
    (IQ2_XS, 17, "IQ2_XS", 256, 74),
    (IQ3_XXS, 18, "IQ3_XXS", 256, 98),
    (IQ1_S, 19, "IQ1_S", 256, 50),
    (IQ4_NL, 20, "IQ4_NL", 32, 18),
    (IQ3_S, 21, "IQ3_S", 256, 110),
    (IQ2_S, 22, "IQ2_S", 256, 82),
    (IQ4_XS, 23, "IQ4_XS", 256, 136),
    (I8, 24, "I8", 1, 1),
    (I16, 25, "I16", 1, 2),
    (I32, 26, "I32", 1, 4),
    (I64, 27, "I64", 1, 8),
    (F64, 28, "F64", 1, 8),
    (IQ1_M, 29, "IQ1_M", 256, 56),
    (BF16, 30, "BF16", 1, 2),
    (TQ1_0, 34, "TQ1_0", 256, 54),
    (TQ2_0, 35, "TQ2_0", 256, 66),
    (MXFP4, 39, "MXFP4", 32, 17),
    (NVFP4, 40, "NVFP4", 64, 36),
    (Q1_0, 41, "Q1_0", 128, 18),
    (Q2_0, 42, "Q2_0", 64, 18),
];

impl GgmlType {
    fn row(self) -> &'static (Self, u32, &'static str, u64, u64) {
        TABLE.iter().find(|row| row.0 == self).expect("the table has a row for each type")
    }

    /// The type with this id, if the id is in use.
    pub fn from_id(id: u32) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == id).map(|row| row.0)
    }

    /// The id in files.
    pub fn id(self) -> u32 {
        self.row().1
    }

    /// Number of elements per block. The first dimension must be a multiple of it.
    pub fn block_elements(self) -> u64 {
        self.row().3
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> u64 {
        self.row().4
    }

    /// Bytes of a tensor with these dimensions; `None` if the first dimension is not whole blocks
    /// or a product overflows.
    pub fn tensor_bytes(self, dims: &[u64]) -> Option<u64> {
        let (&first, rest) = dims.split_first()?;
        if first % self.block_elements() != 0 {
            return None;
        }
        let row = (first / self.block_elements()).checked_mul(self.block_bytes())?;
        rest.iter().try_fold(row, |bytes, &dim| bytes.checked_mul(dim))
    }

    /// Whether llama.cpp computes with weights of this type. The others are for intermediate
    /// results or bookkeeping: a model with F64 weights, for example, loads and then aborts the
    /// process at the first token.
    pub fn is_weight(self) -> bool {
        !matches!(self, Q8_1 | Q8_K | I8 | I16 | I32 | I64 | F64)
    }
}

impl std::fmt::Display for GgmlType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.row().2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_found_again() {
        for row in &TABLE {
            assert_eq!(GgmlType::from_id(row.1), Some(row.0), "{}", row.2);
        }
        for retired in [4, 5, 31, 32, 33, 36, 37, 38, 43, u32::MAX] {
            assert_eq!(GgmlType::from_id(retired), None);
        }
    }

    #[test]
    fn sizes_follow_blocks_and_never_wrap() {
        assert_eq!(F32.tensor_bytes(&[3, 5]), Some(60));
        assert_eq!(Q8_0.tensor_bytes(&[64, 2]), Some(136));
        assert_eq!(Q8_0.tensor_bytes(&[33]), None);
        assert_eq!(F16.tensor_bytes(&[1 << 33, 1 << 33]), None);
        assert_eq!(F32.tensor_bytes(&[]), None);
    }
}
