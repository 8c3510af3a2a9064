//! Keys that hold one number for all blocks, or an array with one for each.

use super::{Array, FromValue, Gguf, GgufError, Rule, Value};

/// One number for all blocks, or one for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PerBlock {
    /// For all.
    Same(u32),
    /// From the first block to the last.
    Each(Vec<u32>),
}

impl<'a> FromValue<'a> for PerBlock {
    const EXPECTED: &'static str = "u32, or an array of u32";
    fn from_value(value: &'a Value) -> Option<Self> {
        match value {
            Value::U32(number) => Some(Self::Same(*number)),
            Value::Array(Array::U32(numbers)) => Some(Self::Each(numbers.clone())),
            // What llama.cpp's own converter writes.
            Value::Array(Array::I32(numbers)) => {
                numbers.iter().map(|&n| u32::try_from(n).ok()).collect::<Option<_>>().map(Self::Each)
            }
            _ => None,
        }
    }
}

/// A number where all blocks have the same, which every reader knows; else an array.
impl From<Vec<u32>> for PerBlock {
    fn from(numbers: Vec<u32>) -> Self {
        match numbers.first() {
            Some(&first) if numbers.iter().all(|&n| n == first) => Self::Same(first),
            _ => Self::Each(numbers),
        }
    }
}

impl From<PerBlock> for Value {
    fn from(numbers: PerBlock) -> Self {
        match numbers {
            PerBlock::Same(number) => number.into(),
            PerBlock::Each(numbers) => numbers.into(),
        }
    }
}

impl Gguf {
    /// The number of each of so many blocks, under a key that may also hold one for all; none without
    /// the key.
    ///
    /// # Errors
    /// Another type; another number of entries than of blocks.
    pub fn per_block(&self, key: &str, blocks: usize) -> Result<Option<Vec<u32>>, GgufError> {
        match self.find::<PerBlock>(key)? {
            None => Ok(None),
            Some(PerBlock::Same(number)) => Ok(Some(vec![number; blocks])),
            Some(PerBlock::Each(numbers)) if numbers.len() == blocks => Ok(Some(numbers)),
            Some(PerBlock::Each(numbers)) => {
                let (found, expected) = (numbers.len() as u64, blocks as u64);
                let key = key.to_owned();
                Err(self.error(Rule::ArrayLength { key, found, expected, why: "one per block" }))
            }
        }
    }
}
