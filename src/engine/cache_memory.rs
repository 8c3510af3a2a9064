//! Determines how many tokens a lane gets: the model's trained context, unless the KV cache of all
//! sequences would exceed its memory limit.
//!
//! The memory of a cell is taken only when a token is first written to it (`ffi/buffers.rs`), so
//! the limit bounds the worst case.

use std::path::{Path, PathBuf};

use bytesize::ByteSize;

/// llama.cpp rounds the length of a sequence up to a multiple of this many tokens.
pub const STEP: u32 = 256;
/// If no limit is configured, keys and values may take available memory divided by this.
const SHARE: u64 = 2;

/// What is asked of a context, and its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// Context length that the model was trained for.
    pub trained: u32,
    /// Context length that is configured, if any.
    pub requested: Option<u32>,
    /// Number of sequences that have keys and values at the same time.
    pub sequences: u32,
    /// Bytes of keys and values per token.
    pub place_bytes: u64,
    /// Configured limit for all keys and values in bytes, if any.
    pub limit: Option<u64>,
    /// Bytes of available memory, if the system tells.
    pub available: Option<u64>,
}

/// The context that is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// Tokens per sequence.
    pub tokens: u32,
    /// Limit for all sequences in bytes, if there is one.
    pub limit: Option<u64>,
    /// Bytes that all sequences take when they are full.
    pub most: u64,
}

impl Granted {
    /// Whether sequences are shorter than the model allows because memory is short.
    pub fn is_cut(&self, wish: &Wish) -> bool {
        wish.requested.is_none() && self.tokens < wish.trained
    }

    /// Whether the configured context may exceed the share of memory that is meant for it.
    pub fn is_bold(&self) -> bool {
        self.limit.is_some_and(|limit| self.most > limit)
    }
}

/// Grants as many tokens as fit.
///
/// # Errors
/// The configured context exceeds the configured limit; not even the shortest sequences fit.
pub fn grant(wish: &Wish) -> Result<Granted, String> {
    let bytes =
        |tokens: u32| u64::from(tokens.next_multiple_of(STEP)) * u64::from(wish.sequences) * wish.place_bytes;
    let limit = wish.limit.or(wish.available.map(|available| available / SHARE));
    let wanted = wish.requested.unwrap_or(wish.trained).max(2);
    let granted = |tokens| Granted { tokens, limit, most: bytes(tokens) };
    let fits = |tokens| limit.is_none_or(|limit| bytes(tokens) <= limit);
    if fits(wanted) || (wish.requested.is_some() && wish.limit.is_none()) {
        return Ok(granted(wanted));
    }
    let size = |bytes: u64| ByteSize(bytes).display().iec();
    let given = size(limit.unwrap_or(u64::MAX));
    if let Some(requested) = wish.requested {
        return Err(format!(
            "model.context = {requested}: {} sequences of so many tokens take up to {}, and model.cache_memory allows {given}",
            wish.sequences,
            size(bytes(requested)),
        ));
    }
    let steps = limit.unwrap_or(u64::MAX) / bytes(STEP).max(1);
    let tokens = u32::try_from(steps).unwrap_or(u32::MAX).saturating_mul(STEP).min(wanted);
    if tokens == 0 {
        return Err(format!(
            "{} sequences of {STEP} tokens take {}, and there may be {given} of keys and values: fewer model.lanes or \
             model.cached_sequences take less, model.cache_memory allows more",
            wish.sequences,
            size(bytes(STEP)),
        ));
    }
    Ok(granted(tokens))
}

/// Bytes of memory that this process can still get, by Linux's estimate and within the limits of
/// its control groups.
pub fn available() -> Option<u64> {
    let groups = fs_err::read_to_string("/proc/self/cgroup").ok();
    let within = groups.and_then(|text| within_groups(Path::new("/sys/fs/cgroup"), &text));
    let text = fs_err::read_to_string("/proc/meminfo").ok();
    let of_all = text.and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
    });
    of_all.into_iter().chain(within).min()
}

/// Bytes that the control groups (version 2) of a process leave it, including the groups above its
/// own.
fn within_groups(root: &Path, groups: &str) -> Option<u64> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let number = |path: PathBuf| fs_err::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let left = |group: &Path| {
        let limit = number(group.join("memory.max"))?;
        // The system reclaims page cache when memory is needed.
        let stat = fs_err::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let cached = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse::<u64>().ok());
        let used = number(group.join("memory.current"))?.saturating_sub(cached.unwrap_or(0));
        Some(limit.saturating_sub(used))
    };
    let group = root.join(own);
    group.ancestors().take_while(|group| group.starts_with(root)).filter_map(left).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// 18 KiB per token, as in a model of 18 layers with one head of 256.
    const WISH: Wish = Wish {
        trained: 32_768,
        requested: None,
        sequences: 4,
        place_bytes: 18 << 10,
        limit: None,
        available: Some(8 * GIB),
    };

    #[test]
    fn a_lane_gets_what_the_model_was_trained_for_if_half_of_the_memory_holds_it() {
        let granted = grant(&WISH).unwrap();
        assert_eq!(granted, Granted { tokens: 32_768, limit: Some(4 * GIB), most: 4 * 32_768 * (18 << 10) });
        assert!(!granted.is_cut(&WISH) && !granted.is_bold());
        let wish = Wish { available: None, ..WISH };
        assert_eq!(grant(&wish).unwrap().tokens, 32_768, "where nothing is known, nothing is bounded");
        // A model without keys and values.
        let wish = Wish { place_bytes: 0, available: Some(0), ..WISH };
        assert_eq!(grant(&wish).unwrap().tokens, 32_768);
    }

    #[test]
    fn it_gets_less_where_that_would_be_more_than_half() {
        let wish = Wish { available: Some(2 * GIB), ..WISH };
        let granted = grant(&wish).unwrap();
        assert_eq!(granted.tokens, 14_336);
        assert!(granted.most <= GIB && granted.most + 4 * 256 * (18 << 10) > GIB);
        assert!(granted.is_cut(&wish) && !granted.is_bold());
        let named = Wish { limit: Some(GIB), ..WISH };
        assert_eq!(grant(&named).unwrap(), granted, "the same if somebody has said how much");
        let tiny = Wish { limit: Some(GIB / 1024), ..WISH };
        let told = grant(&tiny).unwrap_err();
        assert!(told.contains("4 sequences of 256 tokens take 18.0 MiB, and there may be 1.0 MiB"), "{told}");
    }

    #[test]
    fn a_context_that_somebody_has_asked_for_is_given_or_refused_but_never_cut() {
        let wish = Wish { requested: Some(20_000), available: Some(2 * GIB), ..WISH };
        let granted = grant(&wish).unwrap();
        assert_eq!(granted.tokens, 20_000);
        assert!(granted.is_bold() && !granted.is_cut(&wish));
        let told = grant(&Wish { limit: Some(GIB), ..wish }).unwrap_err();
        let expected = "model.context = 20000: 4 sequences of so many tokens take up to 1.4 GiB, and model.cache_memory allows 1.0 GiB";
        assert_eq!(told, expected);
    }

    #[test]
    fn the_narrowest_control_group_counts() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let own = root.join("outer/inner");
        fs_err::create_dir_all(&own).unwrap();
        let write = |path: &str, text: &str| {
            crate::atomic_file::write(&root.join(path), text.as_bytes()).unwrap();
        };
        write("outer/memory.max", "1000000\n");
        write("outer/memory.current", "600000\n");
        write("outer/memory.stat", "anon 400000\ninactive_file 100000\n");
        write("outer/inner/memory.max", "max\n");
        write("outer/inner/memory.current", "5\n");
        assert_eq!(within_groups(root, "1:name=x:/a\n0::/outer/inner\n"), Some(500_000));
        write("outer/inner/memory.max", "300005\n");
        assert_eq!(within_groups(root, "0::/outer/inner\n"), Some(300_000));
        assert_eq!(within_groups(root, "0::/elsewhere\n"), None);
        assert_eq!(within_groups(root, "5:memory:/outer\n"), None, "version 1 is not read");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine_has_memory() {
        assert!(available().is_some_and(|bytes| bytes > 0));
    }
}
