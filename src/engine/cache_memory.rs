//! How many tokens a lane gets: what the model was trained for, as far as the memory that keys and
//! values may take allows it for every sequence at once.
//!
//! Memory of a place is taken when a token first comes there (`ffi/buffers.rs`), so this bounds the
//! worst case.

use std::path::{Path, PathBuf};

use bytesize::ByteSize;

/// Tokens by which llama.cpp rounds a sequence up.
pub const STEP: u32 = 256;
/// Share of the memory that is there, for keys and values, where nobody has said how much they may
/// take.
const SHARE: u64 = 2;

/// What a context is to be, and what it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// Tokens that the model was trained for.
    pub trained: u32,
    /// Tokens that somebody has asked for.
    pub asked: Option<u32>,
    /// Sequences that have their keys and values at the same time.
    pub sequences: u32,
    /// Bytes of keys and values of a token.
    pub place_bytes: u64,
    /// Bytes that all may take, if somebody has said so.
    pub limit: Option<u64>,
    /// Bytes that the system has, if it tells.
    pub available: Option<u64>,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// Tokens of a sequence.
    pub tokens: u32,
    /// Bytes that all sequences may take, if there is a bound.
    pub limit: Option<u64>,
    /// Bytes that they take if all are full.
    pub most: u64,
}

impl Granted {
    /// Whether sequences are shorter than the model allows, for want of memory.
    pub fn is_cut(&self, wish: &Wish) -> bool {
        wish.asked.is_none() && self.tokens < wish.trained
    }

    /// Whether somebody has asked for more than the memory that is there should be used for.
    pub fn is_bold(&self) -> bool {
        self.limit.is_some_and(|limit| self.most > limit)
    }
}

/// Grants as much as there may be.
///
/// # Errors
/// Both numbers were given and don't go together; the memory is not enough for the shortest
/// sequences.
pub fn grant(wish: &Wish) -> Result<Granted, String> {
    let bytes =
        |tokens: u32| u64::from(tokens.next_multiple_of(STEP)) * u64::from(wish.sequences) * wish.place_bytes;
    let limit = wish.limit.or(wish.available.map(|available| available / SHARE));
    let wanted = wish.asked.unwrap_or(wish.trained).max(2);
    let granted = |tokens| Granted { tokens, limit, most: bytes(tokens) };
    let fits = |tokens| limit.is_none_or(|limit| bytes(tokens) <= limit);
    if fits(wanted) || (wish.asked.is_some() && wish.limit.is_none()) {
        return Ok(granted(wanted));
    }
    let size = |bytes: u64| ByteSize(bytes).display().iec();
    let given = size(limit.unwrap_or(u64::MAX));
    if let Some(asked) = wish.asked {
        return Err(format!(
            "model.context = {asked}: {} sequences of so many tokens take up to {}, and model.cache_memory allows {given}",
            wish.sequences,
            size(bytes(asked)),
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

/// Bytes that this process can still have: as Linux estimates them, and within the bounds of its
/// control groups.
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

/// Bytes that the control groups of a process leave it, those above its own included (version 2 of
/// them).
fn within_groups(root: &Path, groups: &str) -> Option<u64> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let number = |path: PathBuf| fs_err::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let left = |group: &Path| {
        let limit = number(group.join("memory.max"))?;
        // What files have in memory goes when it is needed.
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

    /// 18 KiB a token, as a model of 18 layers with one head of 256 has.
    const WISH: Wish = Wish {
        trained: 32_768,
        asked: None,
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
        let wish = Wish { asked: Some(20_000), available: Some(2 * GIB), ..WISH };
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
