//! How much memory a process has.

/// Bytes of a process that are in memory.
pub fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
}

/// Settings that the linker dropped would change nothing that another test sees.
#[test]
fn the_allocator_has_its_settings() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_bespoke"))
        .arg("--version")
        .env("MALLOC_CONF", "stats_print:true")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    for setting in ["opt.background_thread: true", "opt.oversize_threshold: 0\n"] {
        assert!(said.contains(setting), "{setting}: {said}");
    }
}
