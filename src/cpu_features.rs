//! Detects the processor's features. Every kernel, the self-test and `bespoke doctor` use this one
//! detection.
//!
//! Detection happens at run time, so one program uses whatever the machine has. `BESPOKE_CPU` hides
//! features, to try what another processor would compute.

use std::sync::LazyLock;

/// The environment variable that hides features.
pub const VARIABLE: &str = "BESPOKE_CPU";

/// An instruction-set extension that one of our kernels needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// Fused multiply-add.
    Fma,
    /// Conversion from and to f16.
    F16c,
    /// 256-bit integer instructions.
    Avx2,
    /// AVX-512 foundation.
    Avx512f,
    /// 512-bit instructions on bytes and words.
    Avx512bw,
    /// AVX-512 instructions on 128-bit and 256-bit registers.
    Avx512vl,
    /// Byte dot products.
    Avx512vnni,
}

impl Feature {
    /// All features, in the order of their bits.
    pub const ALL: [Self; 7] =
        [Self::Fma, Self::F16c, Self::Avx2, Self::Avx512f, Self::Avx512bw, Self::Avx512vl, Self::Avx512vnni];

    /// The name that rustc uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fma => "fma",
            Self::F16c => "f16c",
            Self::Avx2 => "avx2",
            Self::Avx512f => "avx512f",
            Self::Avx512bw => "avx512bw",
            Self::Avx512vl => "avx512vl",
            Self::Avx512vnni => "avx512vnni",
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }

    #[cfg(target_arch = "x86_64")]
    fn is_present(self) -> bool {
        match self {
            Self::Fma => is_x86_feature_detected!("fma"),
            Self::F16c => is_x86_feature_detected!("f16c"),
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            Self::Avx512f => is_x86_feature_detected!("avx512f"),
            Self::Avx512bw => is_x86_feature_detected!("avx512bw"),
            Self::Avx512vl => is_x86_feature_detected!("avx512vl"),
            Self::Avx512vnni => is_x86_feature_detected!("avx512vnni"),
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_present(self) -> bool {
        false
    }
}

/// A set of features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features(u8);

impl Features {
    /// The set of these features.
    pub const fn of(list: &[Feature]) -> Self {
        let (mut bits, mut at) = (0, 0);
        while at < list.len() {
            bits |= 1 << list[at] as u8;
            at += 1;
        }
        Self(bits)
    }

    /// Whether this set contains all of `others`.
    pub fn contain(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// The features of this set that are not in `others`.
    #[must_use]
    pub fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Names of the features, in order.
    pub fn names(self) -> Vec<&'static str> {
        let all = Feature::ALL.into_iter();
        all.filter(|feature| self.0 & feature.bit() != 0).map(Feature::name).collect()
    }
}

/// The features found by the first detection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processor {
    /// Features that the processor has and the operating system enables.
    pub present: Features,
    /// Features that `BESPOKE_CPU` hides.
    pub hidden: Features,
}

/// `BESPOKE_CPU` has a value that is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{VARIABLE}: {found:?} is neither a level nor a feature to hide\nhint: x86-64-v2, x86-64-v3 (AVX2, no AVX-512), x86-64-v4 (AVX-512, no VNNI), or names with a minus in front, separated by commas: -avx512vnni,-fma"
)]
pub struct UnknownFeature {
    found: String,
}

static FOUND: LazyLock<(Processor, Option<UnknownFeature>)> = LazyLock::new(|| {
    let present = Features::of(&Feature::ALL.into_iter().filter(|f| f.is_present()).collect::<Vec<_>>());
    let text = std::env::var(VARIABLE).unwrap_or_default();
    match hidden(&text) {
        Ok(hidden) => (Processor { present, hidden }, None),
        Err(error) => (Processor { present, hidden: Features::default() }, Some(error)),
    }
});

/// The processor that this program runs on.
pub fn processor() -> Processor {
    FOUND.0
}

/// Checks that the value of `BESPOKE_CPU` was understood.
///
/// # Errors
/// [`UnknownFeature`].
pub fn check() -> Result<(), UnknownFeature> {
    FOUND.1.clone().map_or(Ok(()), Err)
}

impl Processor {
    /// Features that kernels may use.
    pub fn usable(self) -> Features {
        self.present.without(self.hidden)
    }
}

const AVX512: Features =
    Features::of(&[Feature::Avx512f, Feature::Avx512bw, Feature::Avx512vl, Feature::Avx512vnni]);

/// Parses `BESPOKE_CPU`: a psABI level hides everything above it, a name with a minus hides that
/// feature.
fn hidden(text: &str) -> Result<Features, UnknownFeature> {
    let mut hidden = Features::default();
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let named =
            word.strip_prefix('-').and_then(|name| Feature::ALL.into_iter().find(|f| f.name() == name));
        let more = match (word, named) {
            (_, Some(feature)) => Features::of(&[feature]),
            ("x86-64-v2", _) => Features::of(&Feature::ALL),
            ("x86-64-v3", _) => AVX512,
            ("x86-64-v4", _) => Features::of(&[Feature::Avx512vnni]),
            _ => return Err(UnknownFeature { found: word.to_owned() }),
        };
        hidden = Features(hidden.0 | more.0);
    }
    Ok(hidden)
}

/// The processor's model name, as the system reports it.
pub fn name() -> Option<String> {
    told("model name")
}

/// Vector and matrix extensions that the processor has and none of our kernels uses, by their names
/// in `/proc/cpuinfo`.
pub fn unused() -> Vec<String> {
    let flags = told("flags").unwrap_or_default();
    let of_vectors = |flag: &&str| (flag.starts_with("avx") && *flag != "avx") || flag.starts_with("amx");
    let used = |flag: &&str| {
        let plain = flag.replace('_', "");
        Feature::ALL.iter().any(|feature| feature.name() == plain)
    };
    flags.split_whitespace().filter(of_vectors).filter(|flag| !used(flag)).map(str::to_owned).collect()
}

/// A field of the first processor in `/proc/cpuinfo`.
fn told(what: &str) -> Option<String> {
    let text = fs_err::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.split_once(':').is_some_and(|(name, _)| name.trim() == what))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_features_are_hidden() {
        let names = |text: &str| hidden(text).unwrap().names();
        assert_eq!(names(""), [""; 0]);
        assert_eq!(names("x86-64-v4"), ["avx512vnni"]);
        assert_eq!(names("x86-64-v3"), ["avx512f", "avx512bw", "avx512vl", "avx512vnni"]);
        assert_eq!(names("x86-64-v2"), Feature::ALL.map(Feature::name));
        assert_eq!(names("-fma, -avx512vnni"), ["fma", "avx512vnni"]);
        for wrong in ["haswell", "avx2", "-sse9", "x86-64-v4;-fma"] {
            assert!(hidden(wrong).unwrap_err().to_string().contains("BESPOKE_CPU"), "{wrong}");
        }
    }

    #[test]
    fn what_is_hidden_is_not_used() {
        let all = Features::of(&Feature::ALL);
        let processor = Processor { present: all, hidden: hidden("x86-64-v3").unwrap() };
        assert_eq!(processor.usable().names(), ["fma", "f16c", "avx2"]);
        assert!(all.contain(AVX512) && !processor.usable().contain(AVX512));
    }
}
