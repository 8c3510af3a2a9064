//! Size limits of a spoke.

/// Limits that an inspection enforces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the file, or of all files of a folder or archive (unpacked).
    pub max_bytes: u64,
    /// Bytes of weights once loaded.
    pub max_resident_bytes: u64,
    /// Rank of a LoRA pair; for a Felix spoke, all ranks of a layer together (S r).
    pub max_rank: u64,
    /// Number of tensors.
    pub max_tensors: u64,
    /// Bytes of keys and descriptions before the data.
    pub max_header_bytes: u64,
}

impl Default for Limits {
    /// Ample for a post of a few billion parameters: a LoRA of rank 64 on everything in a 1.5B post
    /// has 150 MB.
    fn default() -> Self {
        Self {
            max_bytes: 2 << 30,
            max_resident_bytes: 4 << 30,
            max_rank: 1024,
            max_tensors: 16_384,
            max_header_bytes: 8 << 20,
        }
    }
}
