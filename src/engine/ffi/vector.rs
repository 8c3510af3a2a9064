//! Kernels that need instructions which not every processor has.

use crate::engine::kernels::product::{Block, Packed, ROWS};

#[cfg(target_arch = "x86_64")]
pub use crate::engine::kernels::product::Panel;

/// Scratch memory of a kernel that this architecture doesn't have.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Debug)]
pub enum Panel {}

/// Whether the processor has what [`product`] needs.
pub fn has_product() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Products of Q8_0 weights (rows of `blocks` blocks, [`ROWS`] at a time) with `columns` (as long as the rows). `write` is
/// given a column, the first of [`ROWS`] rows, and their results. `panels` is scratch memory.
///
/// # Panics
/// A processor that has not what it needs ([`has_product`]); rows that are no multiple of [`ROWS`].
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
pub fn product(
    weights: &[Block],
    blocks: usize,
    columns: &[Packed],
    panels: &mut Vec<Panel>,
    write: impl FnMut(usize, usize, &[f32; ROWS]),
) {
    assert!(has_product(), "this processor has no AVX-512 with VNNI");
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the processor has the features.
    unsafe {
        crate::engine::kernels::product::product(weights, blocks, columns, panels, write);
    }
}
