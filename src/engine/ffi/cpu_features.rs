//! Which features this program was compiled for, and whether the processor has them.

use llama_cpp_sys_2 as sys;

/// Names of the features that rustc and llama.cpp compiled this program for, beyond those that
/// every processor of the architecture has.
pub fn compiled_features() -> Vec<&'static str> {
    TABLE.iter().filter(|(_, compiled, _)| *compiled).map(|(name, ..)| *name).collect()
}

/// Those of [`compiled_features`] that this processor doesn't have. If there are any, the program
/// will die of an illegal instruction.
pub fn missing_features() -> Vec<&'static str> {
    let missing = TABLE.iter().filter(|(_, compiled, place)| *compiled && !has(*place));
    missing.map(|(name, ..)| *name).collect()
}

/// The features that llama.cpp's kernels were compiled with, under llama.cpp's names.
pub fn llama_features() -> String {
    static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _held = LOCK.lock();
    // SAFETY: returns a static text that ends with a zero byte. Each call overwrites it, so it is
    // copied under a lock, and nothing else calls the function.
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

/// Features, whether this program is compiled for them, and where `cpuid` reports them. The
/// standard library's macro doesn't ask the processor for features that the program is compiled
/// for.
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
    // SAFETY: every x86-64 processor has the instruction.
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
        // The tests run, so no feature that they are compiled for is missing.
        assert_eq!(missing_features(), [""; 0]);
        for feature in crate::cpu_features::Feature::ALL {
            let present = crate::cpu_features::processor().present.names().contains(&feature.name());
            let place = TABLE.iter().find(|(name, ..)| *name == feature.name()).map(|(.., place)| *place);
            assert!(place.is_none_or(|place| has(place) == present), "{feature:?}");
        }
    }
}
