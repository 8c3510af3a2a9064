//! Tests of a terminal that reports no columns, which is treated as one with 80.

use std::process::Command;

use bespoke::atomic_file;

use crate::dropped::lora;

/// The output of a command on a terminal with this many columns.
fn on_a_terminal(columns: u16, environment: &[(&str, &str)], command: &str) -> String {
    let program = env!("CARGO_BIN_EXE_bespoke");
    let script = format!("stty cols {columns} rows 0; exec {program} {command}");
    // script(1) is installed on every Debian.
    let output = Command::new("script")
        .args(["-qec", &script, "/dev/null"])
        .envs(environment.iter().copied())
        .output()
        .expect("script is there");
    assert!(output.status.success(), "{script}: {output:?}");
    String::from_utf8_lossy(&output.stdout).replace('\r', "")
}

#[test]
fn a_terminal_without_columns_is_taken_for_one_of_80() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.gguf");
    atomic_file::write(&file, &lora(1)).unwrap();
    let show = format!("spoke show {}", file.display());
    // A table that is laid out for the terminal.
    let wide = on_a_terminal(80, &[], &show);
    assert!(wide.lines().any(|line| line.contains("block") && line.contains("|up|")), "{wide}");
    assert_eq!(on_a_terminal(0, &[], &show), wide);
    // And help, which is wrapped.
    for environment in [&[("COLUMNS", "0")][..], &[("COLUMNS", "")], &[]] {
        let help = on_a_terminal(0, environment, "spoke add --help");
        let words = |line: &str| line.split_whitespace().count();
        assert!(help.lines().any(|line| words(line) > 8), "{help}");
        // Escape sequences for bold take no columns.
        assert!(help.lines().all(|line| line.chars().count() <= 120), "{help}");
    }
}
