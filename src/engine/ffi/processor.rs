//! Kernels that need instructions which not every processor has.

use std::ops::Range;

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

/// Products of `rows` (a range of whole groups of [`ROWS`]) of Q8_0 weights (rows of `blocks` blocks) with `columns`, each as
/// long as a row. `then` says at which row the caller will probably go on, if there is one. `write` is given a column, the
/// first of [`ROWS`] rows, and their results. `panels` is scratch memory.
///
/// # Panics
/// A processor that has not what it needs ([`has_product`]); a range that is not of whole groups, or beyond the weights.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
pub fn product(
    weights: &[Block],
    blocks: usize,
    rows: Range<usize>,
    then: impl Fn() -> usize,
    columns: &[Packed],
    panels: &mut Vec<Panel>,
    write: impl FnMut(usize, usize, &[f32; ROWS]),
) {
    assert!(has_product(), "this processor has no AVX-512 with VNNI");
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the processor has the features.
    unsafe {
        crate::engine::kernels::product::product(weights, blocks, rows, then, columns, panels, write);
    }
}

/// Has a line of memory brought near the processor.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn prefetch(line: &[u8; 64]) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: the address is that of a reference, and a prefetch changes nothing that can be observed.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
}
