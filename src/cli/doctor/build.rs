//! How the program was built.

use serde_json::json;

use super::Item;
use crate::engine::ffi::{compiled_features, llama_features};

/// The compilers, and the processor features that they were allowed to use.
pub(super) fn program() -> Item {
    let compilers = std::env::current_exe().ok().and_then(|path| fs_err::read(path).ok());
    let compilers = compilers.as_deref().and_then(comment).unwrap_or_default();
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    let llama = llama_features();
    let found = format!(
        "bespoke {} ({profile}), compiled by {}; llama.cpp's kernels use {llama}",
        env!("CARGO_PKG_VERSION"),
        if compilers.is_empty() { "unknown compilers".to_owned() } else { compilers.join(", ") },
    );
    let details = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "profile": profile,
        "compilers": compilers,
        "target_features": compiled_features(),
        "llama_cpp_features": llama,
    });
    let item = if cfg!(debug_assertions) {
        Item::warning("program", found, "a debug build is slow: `make build` makes a fast one")
    } else {
        Item::ok("program", found)
    };
    item.with(details)
}

/// The allocator of this process.
pub(super) fn allocator() -> Item {
    let name = if cfg!(fuzzing) { "the system's" } else { "jemalloc, for llama.cpp too" };
    Item::ok("allocator", name).with(json!({"name": if cfg!(fuzzing) { "system" } else { "jemalloc" }}))
}

/// The section `.comment` of an ELF file, in which compilers and linkers leave their versions,
/// each text once. `None` for other files.
fn comment(file: &[u8]) -> Option<Vec<String>> {
    let u16_at = |at: usize| Some(usize::from(u16::from_le_bytes(*file.get(at..)?.first_chunk()?)));
    let u32_at = |at: usize| Some(u32::from_le_bytes(*file.get(at..)?.first_chunk()?) as usize);
    let u64_at = |at: usize| usize::try_from(u64::from_le_bytes(*file.get(at..)?.first_chunk()?)).ok();
    // 64 bits, little-endian; offsets by the System V ABI.
    if file.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (sections, size, count, names) = (u64_at(0x28)?, u16_at(0x3A)?, u16_at(0x3C)?, u16_at(0x3E)?);
    let section = |index: usize| sections.checked_add(index.checked_mul(size)?);
    let content = |index: usize| -> Option<&[u8]> {
        let header = section(index)?;
        let (start, length) = (u64_at(header.checked_add(0x18)?)?, u64_at(header.checked_add(0x20)?)?);
        file.get(start..start.checked_add(length)?)
    };
    let all_names = content(names)?;
    let wanted = (0..count).find(|&index| {
        let name = section(index).and_then(u32_at).and_then(|at| all_names.get(at..));
        name.is_some_and(|name| name.starts_with(b".comment\0"))
    })?;
    let mut found = Vec::new();
    for text in content(wanted)?.split(|&byte| byte == 0).filter(|text| !text.is_empty()) {
        let text = String::from_utf8_lossy(text).into_owned();
        if !found.contains(&text) {
            found.push(text);
        }
    }
    found.sort();
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compilers_are_found_in_this_very_program() {
        let file = fs_err::read(std::env::current_exe().unwrap()).unwrap();
        let found = comment(&file).unwrap();
        assert!(found.iter().any(|text| text.contains("rustc version")), "{found:?}");
        assert!(found.iter().any(|text| text.contains("GCC") || text.contains("clang")), "{found:?}");
    }

    #[test]
    fn what_is_no_program_says_nothing() {
        for file in [&b""[..], b"#!/bin/sh", b"\x7fELF\x02\x01", &[0xFF; 100]] {
            assert_eq!(comment(file), None);
        }
        let mut hostile = b"\x7fELF\x02\x01".to_vec();
        hostile.resize(200, 0xFF);
        assert_eq!(comment(&hostile), None);
    }
}
