//! Kernels that need instructions which not every processor has: the step from what every processor can run into what
//! only this one can.

use std::ops::Range;

use llama_cpp_sys_2 as sys;

use crate::engine::kernels::Form;
use crate::engine::kernels::attention::{Partial, View};
use crate::engine::kernels::felix::{Matrix, portable};
use crate::engine::kernels::product::{BLOCK, Block, Packed, Panels, ROWS};
#[cfg(target_arch = "x86_64")]
use crate::engine::kernels::{attention, felix, product};

/// Dies here as a kernel does that has an instruction which the processor doesn't know, if a test wants that.
#[cfg(debug_assertions)]
pub(super) fn may_die(name: &str) {
    if crate::failpoints::is_set("kernel_dies", name) {
        // SAFETY: sends this thread a signal.
        unsafe { libc::raise(libc::SIGILL) };
    }
}

/// What results are multiplied with: 1, unless a test wants a kernel that computes wrong numbers.
#[cfg(debug_assertions)]
fn spoilt(name: &str) -> f32 {
    if crate::failpoints::is_set("kernel_wrong", name) { 1.5 } else { 1.0 }
}

/// Calls a form of a kernel.
macro_rules! call {
    ($form:expr, $($pattern:pat => $call:expr,)+) => {{
        let form = $form;
        assert!(form.is_possible(), "this processor can't compute in the form {}", form.name());
        match form {
            $(
                #[cfg(target_arch = "x86_64")]
                // SAFETY: it was just seen that the processor has all features that the form needs (`Form::needs`), which
                // are those that the function is compiled with.
                $pattern => unsafe { $call },
            )+
            _ => panic!("there is no form {} of this kernel", form.name()),
        }
    }};
}

/// As [`attention::attend`], into a partial result that was cleared.
///
/// # Panics
/// A form that there isn't or that the processor can't compute; see there.
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
    #[cfg(debug_assertions)]
    may_die("attention");
    call!(form,
        Form::Avx2 => attention::avx2::attend(queries, width, group, view, cells, partial),
        Form::Avx512 => attention::avx512::attend(queries, width, group, view, cells, partial),
    );
    #[cfg(debug_assertions)]
    partial.scale(spoilt("attention"));
}

/// Rounds activations for [`product`].
///
/// # Panics
/// A form that there isn't or that the processor can't compute; more activations than room.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
pub fn pack(form: Form, given: &[[f32; BLOCK]], packed: &mut [Packed]) {
    call!(form,
        Form::Avx2 => product::avx2::pack(given, packed),
        Form::Avx512Vnni => product::avx512::pack(given, packed),
    );
}

/// Products of `rows` (a range of whole groups of [`ROWS`]) of Q8_0 weights (rows of `blocks` blocks) with `columns`, each as
/// long as a row. `then` says at which row the caller will probably go on, if there is one. `write` is given a column, the
/// first of [`ROWS`] rows, and their results. `panels` is scratch memory.
///
/// # Panics
/// A form that there isn't or that the processor can't compute; a range that is not of whole groups, or beyond the weights.
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
    #[cfg(debug_assertions)]
    may_die("product");
    #[cfg(debug_assertions)]
    let write = {
        let (mut write, spoilt) = (write, spoilt("product"));
        move |column: usize, row: usize, result: &[f32; ROWS]| write(column, row, &result.map(|x| x * spoilt))
    };
    call!(form,
        Form::Avx2 => product::avx2::product(weights, blocks, rows, then, columns, panels, write),
        Form::Avx512Vnni => product::avx512::product(weights, blocks, rows, then, columns, panels, write),
    );
}

/// Products of some panels of a matrix of a Felix spoke with columns.
///
/// # Panics
/// A form that there isn't or that the processor can't compute; panels that are not there; columns that are not whole.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
pub fn multiply(
    form: Form,
    matrix: &Matrix,
    panels: Range<usize>,
    columns: &[f32],
    write: impl FnMut(usize, usize, [f32; ROWS]),
) {
    #[cfg(debug_assertions)]
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

/// Has a line of memory brought near the processor.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn prefetch(line: &[u8; 64]) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: the address is that of a reference, and a prefetch changes nothing that can be observed.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
}

/// Names that rustc and llama.cpp compiled this program for, beyond what every processor of the architecture has.
pub fn compiled_features() -> Vec<&'static str> {
    TABLE.iter().filter(|(_, compiled, _)| *compiled).map(|(name, ..)| *name).collect()
}

/// Those of [`compiled_features`] that this processor doesn't have: the program will die by an illegal instruction.
pub fn missing_features() -> Vec<&'static str> {
    let missing = TABLE.iter().filter(|(_, compiled, place)| *compiled && !has(*place));
    missing.map(|(name, ..)| *name).collect()
}

/// What llama.cpp's own kernels were compiled with, in its words.
pub fn llama_features() -> String {
    static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _held = LOCK.lock();
    // SAFETY: gives a text that lives as long as the process and ends with zero. Each call writes it anew, so it is copied
    // under a lock, and nothing else here calls it.
    let text = unsafe {
        let text = sys::llama_print_system_info();
        if text.is_null() {
            return "unknown features".to_owned();
        }
        std::ffi::CStr::from_ptr(text).to_string_lossy().into_owned()
    };
    let of_processor = text.split_once("CPU :").map_or(&*text, |(_, rest)| rest);
    let used = of_processor.split('|').filter_map(|part| part.trim().strip_suffix("= 1"));
    used.map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Leaf and register (eax, ebx, ecx, edx) of `cpuid`, and the bit there.
type Place = (u32, usize, u32);

/// A feature, whether this program is compiled for it, and where the processor says that it has it. The macro of the
/// standard library doesn't look where the compiler was told that the feature is there.
#[cfg(target_arch = "x86_64")]
const TABLE: &[(&str, bool, Place)] = &[
    ("sse3", cfg!(target_feature = "sse3"), (1, 2, 0)),
    ("ssse3", cfg!(target_feature = "ssse3"), (1, 2, 9)),
    ("sse4.1", cfg!(target_feature = "sse4.1"), (1, 2, 19)),
    ("sse4.2", cfg!(target_feature = "sse4.2"), (1, 2, 20)),
    ("popcnt", cfg!(target_feature = "popcnt"), (1, 2, 23)),
    ("fma", cfg!(target_feature = "fma"), (1, 2, 12)),
    ("f16c", cfg!(target_feature = "f16c"), (1, 2, 29)),
    ("avx", cfg!(target_feature = "avx"), (1, 2, 28)),
    ("bmi1", cfg!(target_feature = "bmi1"), (7, 1, 3)),
    ("avx2", cfg!(target_feature = "avx2"), (7, 1, 5)),
    ("bmi2", cfg!(target_feature = "bmi2"), (7, 1, 8)),
    ("avx512f", cfg!(target_feature = "avx512f"), (7, 1, 16)),
    ("avx512dq", cfg!(target_feature = "avx512dq"), (7, 1, 17)),
    ("avx512bw", cfg!(target_feature = "avx512bw"), (7, 1, 30)),
    ("avx512vl", cfg!(target_feature = "avx512vl"), (7, 1, 31)),
    ("avx512vbmi", cfg!(target_feature = "avx512vbmi"), (7, 2, 1)),
    ("avx512vnni", cfg!(target_feature = "avx512vnni"), (7, 2, 11)),
];
#[cfg(not(target_arch = "x86_64"))]
const TABLE: &[(&str, bool, Place)] = &[];

#[cfg(target_arch = "x86_64")]
fn has((leaf, register, bit): Place) -> bool {
    use std::arch::x86_64::{__cpuid_count, __get_cpuid_max};
    #[allow(unused_unsafe, reason = "safe in later versions of the standard library")]
    // SAFETY: every processor for x86-64 has the instruction.
    let found = unsafe {
        if __get_cpuid_max(0).0 < leaf {
            return false;
        }
        __cpuid_count(leaf, 0)
    };
    [found.eax, found.ebx, found.ecx, found.edx][register] >> bit & 1 == 1
}

#[cfg(not(target_arch = "x86_64"))]
fn has(_: Place) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_processor_says_is_what_the_standard_library_finds() {
        // The tests run, so nothing that they are compiled for is missing.
        assert_eq!(missing_features(), [""; 0]);
        for feature in crate::cpu_features::Feature::ALL {
            let present = crate::cpu_features::processor().present.names().contains(&feature.name());
            let place = TABLE.iter().find(|(name, ..)| *name == feature.name()).map(|(.., place)| *place);
            assert!(place.is_none_or(|place| has(place) == present), "{feature:?}");
        }
    }
}
