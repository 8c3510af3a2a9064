//! Calls from code that every processor can run into kernels that only some can: each function
//! checks that the processor has the features of the chosen form.
#![allow(unsafe_code)]

use std::ops::Range;

use super::Form;
use super::attention::{Partial, View};
use super::felix::{Matrix, portable};
use super::product::{BLOCK, Block, Packed, Panels, ROWS};
#[cfg(target_arch = "x86_64")]
use super::{attention, felix, product};

/// If a test asks for it, dies like a kernel with an instruction that the processor doesn't have.
#[cfg(feature = "test-support")]
pub fn may_die(name: &str) {
    if crate::failpoints::is_set("kernel_dies", name) {
        // SAFETY: sends this thread a signal.
        unsafe { libc::raise(libc::SIGILL) };
    }
}

/// A factor for all results, if a test asks for a kernel that computes wrong numbers.
#[cfg(feature = "test-support")]
fn spoilt(name: &str) -> Option<f32> {
    crate::failpoints::is_set("kernel_wrong", name).then_some(1.5)
}

/// Calls a form of a kernel.
macro_rules! call {
    ($form:expr, $($pattern:pat => $call:expr,)+) => {{
        let form = $form;
        assert!(form.is_possible(), "this processor can't compute in the form {}", form.name());
        match form {
            $(
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the assertion above has checked that the processor has all features of
                // the form (`Form::needs`), and the function is compiled with these.
                $pattern => unsafe { $call },
            )+
            _ => panic!("there is no form {} of this kernel", form.name()),
        }
    }};
}

/// Like [`attention::attend`], into a partial result that was cleared.
///
/// # Panics
/// As there; also, the kernel has no such form, or the processor doesn't support it.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
pub fn attend(
    form: Form,
    queries: &[f32],
    width: usize,
    group: usize,
    view: View<'_>,
    cells: Range<usize>,
    partial: &mut Partial,
) {
    #[cfg(feature = "test-support")]
    may_die("attention");
    call!(form,
        Form::Avx2 => attention::avx2::attend(queries, width, group, view, cells, partial),
        Form::Avx512 => attention::avx512::attend(queries, width, group, view, cells, partial),
    );
    #[cfg(feature = "test-support")]
    if let Some(factor) = spoilt("attention") {
        partial.scale(factor);
    }
}

/// Rounds activations for [`product`].
///
/// # Panics
/// The kernel has no such form, or the processor doesn't support it; `packed` is too short.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
pub fn pack(form: Form, given: &[[f32; BLOCK]], packed: &mut [Packed]) {
    call!(form,
        Form::Avx2 => product::avx2::pack(given, packed),
        Form::Avx512Vnni => product::avx512::pack(given, packed),
    );
}

/// Products of `rows` (a range of whole groups of [`ROWS`]) of Q8_0 weights (rows of `blocks`
/// blocks) with `columns`, each as long as a row. `then` returns the row at which the caller will
/// probably continue; it may be beyond the last one. `write` receives a column, the first of
/// [`ROWS`] rows, and their results. `panels` is scratch memory.
///
/// # Panics
/// The kernel has no such form, or the processor doesn't support it; the range is not of whole
/// groups, or is beyond the weights.
#[allow(clippy::too_many_arguments, reason = "the kernel's, and the form")]
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
pub fn product(
    form: Form,
    weights: &[Block],
    blocks: usize,
    rows: Range<usize>,
    then: impl Fn() -> usize,
    columns: &[Packed],
    panels: &mut Panels,
    write: impl FnMut(usize, usize, &[f32; ROWS]),
) {
    #[cfg(feature = "test-support")]
    may_die("product");
    #[cfg(feature = "test-support")]
    let write = {
        let (mut write, spoilt) = (write, spoilt("product"));
        move |column: usize, row: usize, result: &[f32; ROWS]| match spoilt {
            None => write(column, row, result),
            Some(factor) => write(column, row, &result.map(|x| x * factor)),
        }
    };
    call!(form,
        Form::Avx2 => product::avx2::product(weights, blocks, rows, then, columns, panels, write),
        Form::Avx512Vnni => product::avx512::product(weights, blocks, rows, then, columns, panels, write),
    );
}

/// Products of some panels of a Felix spoke's matrix with columns.
///
/// # Panics
/// The kernel has no such form, or the processor doesn't support it; the panels don't exist; the
/// columns are not whole.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
pub fn multiply(
    form: Form,
    matrix: &Matrix,
    panels: Range<usize>,
    columns: &[f32],
    write: impl FnMut(usize, usize, [f32; ROWS]),
) {
    #[cfg(feature = "test-support")]
    if form != Form::Portable {
        may_die("felix");
    }
    if form == Form::Portable {
        return portable::multiply(matrix, panels, columns, write);
    }
    call!(form,
        Form::Avx2 => felix::avx2::multiply(matrix, panels, columns, write),
        Form::Avx512 => felix::avx512::multiply(matrix, panels, columns, write),
    );
}

/// Prefetches a cache line.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn prefetch(line: &[u8; 64]) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: the address is that of a reference, and a prefetch has no observable effect.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
}
