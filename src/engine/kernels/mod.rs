//! CPU kernels that replace llama.cpp's: the inner loops, independent of llama.cpp's types.
//!
//! Every x86-64 build contains every form of every kernel, whatever processor it is built for. The
//! form is chosen at run time. Other architectures have the portable forms, and llama.cpp's kernels
//! for the rest.

pub mod attention;
mod dispatch;
pub mod felix;
pub mod product;

#[cfg(feature = "test-support")]
pub use dispatch::may_die;
#[cfg(target_arch = "x86_64")]
pub use dispatch::prefetch;
pub use dispatch::{attend, multiply, pack, product as multiply_rows};

use crate::cpu_features::{Feature, Features, processor};

/// The instruction set that a kernel uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Only what every processor has.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// Also AVX-512.
    Avx512,
    /// Also AVX-512's dot products of bytes (VNNI).
    Avx512Vnni,
}

impl Form {
    /// Features that the processor must have.
    pub fn needs(self) -> Features {
        use Feature::{Avx2, Avx512bw, Avx512f, Avx512vl, Avx512vnni, F16c, Fma};
        match self {
            Self::Portable => Features::default(),
            Self::Avx2 => const { Features::of(&[Avx2, Fma, F16c]) },
            Self::Avx512 => const { Features::of(&[Avx2, Fma, F16c, Avx512f, Avx512bw, Avx512vl]) },
            Self::Avx512Vnni => {
                const { Features::of(&[Avx2, Fma, F16c, Avx512f, Avx512bw, Avx512vl, Avx512vnni]) }
            }
        }
    }

    /// Whether this processor has them.
    pub fn is_possible(self) -> bool {
        processor().usable().contain(self.needs())
    }

    /// The name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512vnni",
        }
    }

    fn first(forms: &[Self]) -> Option<Self> {
        forms.iter().copied().find(|form| form.is_possible())
    }
}

/// Our kernels, by what they compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kernel {
    /// Attention.
    Attention,
    /// Products of Q8_0 weights.
    Product,
    /// The bottlenecks of Felix spokes, which llama.cpp doesn't compute.
    Felix,
}

impl Kernel {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Attention, Self::Product, Self::Felix];

    /// The name in settings, logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Product => "product",
            Self::Felix => "felix",
        }
    }
}

/// Which of our kernels are used, and in which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernels {
    /// Attention; `None` leaves it to llama.cpp.
    pub attention: Option<Form>,
    /// Products of Q8_0 weights; `None` leaves them to llama.cpp.
    pub product: Option<Form>,
    /// Felix spokes, which llama.cpp can't compute.
    pub felix: Form,
}

impl Kernels {
    /// llama.cpp computes everything that it can.
    pub const OFF: Self = Self { attention: None, product: None, felix: Form::Portable };

    /// The fastest forms that this processor supports.
    pub fn best() -> Self {
        use Form::{Avx2, Avx512, Avx512Vnni, Portable};
        Self {
            attention: Form::first(&[Avx512, Avx2]),
            product: Form::first(&[Avx512Vnni, Avx2]),
            felix: Form::first(&[Avx512, Avx2]).unwrap_or(Portable),
        }
    }

    /// The same without one of the kernels.
    #[must_use]
    pub fn without(self, kernel: Kernel) -> Self {
        match kernel {
            Kernel::Attention => Self { attention: None, ..self },
            Kernel::Product => Self { product: None, ..self },
            Kernel::Felix => Self { felix: Form::Portable, ..self },
        }
    }

    /// The form of a kernel; `None` if it isn't used.
    pub fn form(self, kernel: Kernel) -> Option<Form> {
        match kernel {
            Kernel::Attention => self.attention,
            Kernel::Product => self.product,
            Kernel::Felix => Some(self.felix),
        }
    }
}

impl std::fmt::Display for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, kernel) in Kernel::ALL.into_iter().enumerate() {
            let form = self.form(kernel).map_or("llama.cpp", Form::name);
            write!(f, "{}{} {form}", if at == 0 { "" } else { ", " }, kernel.name())?;
        }
        Ok(())
    }
}

/// An endless sequence of numbers in -1..1 that depends on the salt alone.
pub fn numbers(salt: u32) -> impl Iterator<Item = f32> {
    let mut state = salt.wrapping_mul(2_654_435_761) | 1;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_forms_are_possible_and_each_can_be_taken_away() {
        let best = Kernels::best();
        for kernel in Kernel::ALL {
            assert!(best.form(kernel).is_none_or(Form::is_possible), "{best}");
            let rest = best.without(kernel);
            assert_ne!(rest.form(kernel).filter(|&form| form != Form::Portable), Some(Form::Avx2));
            for other in Kernel::ALL.into_iter().filter(|&other| other != kernel) {
                assert_eq!(rest.form(other), best.form(other));
            }
        }
        assert_eq!(Kernels::OFF.to_string(), "attention llama.cpp, product llama.cpp, felix portable");
        assert!(Form::Portable.is_possible());
    }
}
