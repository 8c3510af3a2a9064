//! Checks that llama.cpp is built without AMX, because GCC 12 miscompiles its tile configuration.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// The tile configuration as llama.cpp writes it: fields one by one, then `_tile_loadconfig`, under
/// the same guard.
const TILES: &str = r#"
#include <cstdint>
#if defined(__AMX_INT8__) && defined(__AVX512VNNI__)
#include <immintrin.h>
struct tiles { uint8_t palette = 0, start = 0, reserved[14] = {}; uint16_t bytes[16] = {}; uint8_t rows[16] = {}; };
void configure() {
    alignas(64) tiles t = {};
    t.palette = 1;
    for (int i = 0; i < 8; i++) { t.rows[i] = 16; t.bytes[i] = 64; }
#ifdef KEEP
    asm volatile("" : : "r"(&t) : "memory");
#endif
    _tile_loadconfig(&t);
}
#endif
void nothing() {}
"#;
/// Sixteen in each of eight bytes: a compiler's single store for `rows`.
const ROWS: &str = "1157442765409226768";

/// The assembly that `compiler` makes of [`TILES`] for a processor with AMX; `None` if the compiler
/// can't be run or has no AMX.
fn assembly(compiler: &str, flags: &[&str]) -> Option<String> {
    let mut child = Command::new(compiler)
        // Not every compiler includes AMX in the processor's features.
        .args(["-O3", "-march=sapphirerapids", "-mamx-tile", "-mamx-int8", "-x", "c++", "-S", "-o", "-", "-"])
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    child.stdin.take().unwrap().write_all(TILES.as_bytes()).ok()?;
    let output = child.wait_with_output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

/// The options that `.cargo/llama-cpp.cmake` adds.
fn our_flags() -> Vec<String> {
    let hook = std::fs::read_to_string(".cargo/llama-cpp.cmake").unwrap();
    let options = hook.split("add_compile_options(").nth(1).and_then(|rest| rest.split(')').next());
    options.unwrap().split_whitespace().map(str::to_owned).collect()
}

#[test]
fn the_tile_configuration_is_compiled_wrong_or_not_at_all() {
    if !cfg!(target_arch = "x86_64") {
        return println!("skipped: AMX is a matter of x86-64");
    }
    let flags = our_flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut tried = 0;
    for compiler in ["c++", "g++", "g++-12", "clang++"] {
        let Some(plain) = assembly(compiler, &[]) else {
            println!("{compiler}: not here, or too old to know AMX");
            continue;
        };
        if !plain.contains("ldtilecfg") {
            println!("{compiler}: has other names for AMX than llama.cpp's guard, which leaves it out");
            continue;
        }
        tried += 1;
        let kept = assembly(compiler, &["-DKEEP"]).unwrap();
        let (stores, kept) = (plain.contains(ROWS), kept.contains(ROWS));
        println!("{compiler}: the rows of the tiles are stored: {stores}; after a barrier: {kept}");
        let version = Command::new(compiler).arg("--version").output().unwrap();
        let version = String::from_utf8_lossy(&version.stdout).lines().next().unwrap_or_default().to_owned();
        if version.contains("12.2.0") && !version.contains("clang") {
            assert!(!stores && kept, "the fault of GCC 12 is not reproduced by {version}");
        }
        let ours = assembly(compiler, &flags).unwrap();
        assert!(!ours.contains("tile"), "{compiler} with {flags:?} still compiles AMX: {ours}");
        assert!(ours.contains("nothing"), "{compiler} with {flags:?} compiled nothing at all");
    }
    assert!(tried > 0, "no C++ compiler that knows AMX");
}

/// The options must reach the files of llama.cpp that contain its AMX kernels.
#[test]
fn this_build_of_llama_cpp_has_amx_off() {
    let profile = Path::new(env!("CARGO_BIN_EXE_bespoke")).parent().unwrap();
    let mut seen = 0;
    for build in std::fs::read_dir(profile.join("build")).unwrap().flatten() {
        let flags = build.path().join("out/build/ggml/src/CMakeFiles/ggml-cpu.dir/flags.make");
        let Ok(text) = std::fs::read_to_string(&flags) else { continue };
        seen += 1;
        for option in our_flags() {
            assert!(text.contains(&option), "{} lacks {option}: {text}", flags.display());
        }
    }
    assert!(seen > 0, "no build of llama.cpp below {}", profile.display());
}
