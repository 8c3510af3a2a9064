//! Tests that OpenAI's own Python client reads the daemon's answers: `tests/tools/openai_client.py`
//! against a scripted engine.

use std::path::Path;
use std::process::Command;

use bespoke::engine::Script;

use crate::daemon::Daemon;

/// A Python that has the package. CI installs it into `target/venv`.
fn python() -> Result<&'static str, String> {
    let mut reasons = Vec::new();
    for python in ["target/venv/bin/python", "python3"] {
        if python.contains('/') && !Path::new(python).exists() {
            reasons.push(format!("{python} is not there"));
            continue;
        }
        match Command::new(python).args(["-c", "import openai"]).output() {
            Ok(output) if output.status.success() => return Ok(python),
            Ok(_) => reasons.push(format!("{python} has no package openai")),
            Err(error) => reasons.push(format!("{python}: {error}")),
        }
    }
    Err(reasons.join("; "))
}

#[test]
fn the_python_client_reads_every_answer() {
    let python = match python() {
        Ok(python) => python,
        Err(reason) => {
            assert!(std::env::var_os("CI").is_none(), "CI must have the client: {reason}");
            eprintln!("skipped: {reason}");
            return;
        }
    };
    let daemon = Daemon::script(Script::Echo);
    let output =
        Command::new(python).args(["tests/tools/openai_client.py", &daemon.url("/v1")]).output().unwrap();
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.ends_with("ok\n"), "{said}\n{complained}");
}
