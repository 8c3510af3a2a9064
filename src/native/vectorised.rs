//! Runs a closure compiled for AVX2 in a program that is built for less.

#[cfg(target_arch = "x86_64")]
use crate::cpu_features::{Feature, Features, processor};

/// Runs `work` compiled for AVX2 if the processor has it.
#[inline]
pub fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if processor().usable().contain(const { Features::of(&[Feature::Avx2, Feature::Fma, Feature::F16c]) }) {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn with_avx2<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        // SAFETY: the processor has the features; they were checked just above.
        return unsafe { with_avx2(work) };
    }
    work()
}
