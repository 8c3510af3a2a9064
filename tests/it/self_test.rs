//! Tests of the self-test: the behaviour of a daemon whose kernels, or llama.cpp's, fail on this
//! processor.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::program::Program;

/// Whether this processor has kernels of ours to test.
fn has_kernels() -> bool {
    let usable = bespoke::cpu_features::processor().usable().names();
    let has = usable.contains(&"avx2");
    if !has {
        eprintln!("skipped: this processor has no AVX2");
    }
    has
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().proxy(None).build().new_agent()
}

fn get(url: &str, path: &str) -> String {
    let mut answer = agent().get(format!("{url}{path}")).call().unwrap();
    answer.body_mut().read_to_string().unwrap()
}

/// Waits until a daemon is ready. Returns its address and everything that it has logged.
fn ready(program: &Program) -> (String, String) {
    let end = Instant::now() + Duration::from_secs(120);
    let mut log = String::new();
    while Instant::now() < end && !log.contains(" is ready: ") {
        log += &program.lines(Duration::from_millis(50)).join("\n");
        log.push('\n');
    }
    let url =
        log.lines().find_map(|line| line.strip_prefix("listening on ")).unwrap_or_else(|| panic!("{log}"));
    (url.to_owned(), log)
}

/// The line of a log that contains `text`.
fn line<'a>(log: &'a str, text: &str) -> &'a str {
    log.lines().find(|line| line.contains(text)).unwrap_or_else(|| panic!("no line has {text:?}: {log}"))
}

/// What a ready daemon reports about its kernels.
fn computing(url: &str) -> Value {
    serde_json::from_str::<Value>(&get(url, "/props")).unwrap()["computing"].clone()
}

/// The form of a kernel.
fn form<'a>(computing: &'a Value, kernel: &str) -> &'a Value {
    let kernels = computing["kernels"].as_array().unwrap();
    kernels.iter().find(|found| found["kernel"] == kernel).unwrap()
}

/// Whether the daemon answers a chat.
fn chats(url: &str) -> bool {
    let body = json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4});
    let mut answer = agent().post(format!("{url}/v1/chat/completions")).send_json(body).unwrap();
    let answer: Value = answer.body_mut().read_json().unwrap();
    answer["usage"]["completion_tokens"].as_u64() > Some(0)
}

/// A configuration with these lines in the model's section.
fn configuration(folder: &Path, lines: &str) -> String {
    let path = folder.join("bespoke.toml");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join(crate::program::MODEL);
    let text = format!("[model]\npath = {:?}\n{lines}\n", model.display().to_string());
    bespoke::atomic_file::write(&path, text.as_bytes()).unwrap();
    path.display().to_string()
}

#[test]
fn what_passes_is_said_and_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state").display().to_string();
    for outcome in ["passed", "remembered"] {
        let mut program = Program::serve(&["--state", &state], &[]);
        let (url, log) = ready(&program);
        assert!(line(&log, "self-test").contains(outcome), "{log}");
        let computing = computing(&url);
        assert_eq!(computing["self_test"]["outcome"], outcome);
        // On a busy machine, a prompt may take too long and be left out.
        let rows = computing["self_test"]["rows"].as_array().unwrap();
        assert_eq!(rows[..3], [json!(1), json!(2), json!(32)], "{computing}");
        let metrics = get(&url, "/metrics");
        assert!(metrics.contains(&format!("bespoke_self_test{{outcome=\"{outcome}\"}} 1")), "{metrics}");
        for kernel in ["attention", "product", "felix"] {
            let form = form(&computing, kernel)["form"].as_str().unwrap();
            let sample = format!("bespoke_kernel{{form=\"{form}\",kernel=\"{kernel}\"}} 1");
            assert!(metrics.contains(&sample), "{sample}: {metrics}");
        }
        assert_eq!(program.terminate(), Some(0));
    }
}

#[test]
fn a_kernel_that_crashes_or_computes_wrong_numbers_is_switched_off_by_name() {
    if !has_kernels() {
        return;
    }
    for (kernel, other) in [("attention", "product"), ("product", "attention")] {
        for (point, says) in [("kernel_dies", "SIGILL"), ("kernel_wrong", "wrong numbers")] {
            let fault = format!("{point}@{kernel}");
            let mut program = Program::serve(&[], &[("BESPOKE_FAIL", fault.as_str())]);
            let (url, log) = ready(&program);
            let line = line(&log, "one of our kernels is disabled");
            assert!(line.contains(kernel) && line.contains(says), "{line}");
            let computing = computing(&url);
            assert_eq!(computing["self_test"]["outcome"], "faulty");
            assert_eq!(form(&computing, kernel)["form"], "llama.cpp", "{computing}");
            assert!(form(&computing, kernel)["fault"].as_str().unwrap().contains(says), "{computing}");
            assert_ne!(form(&computing, other)["form"], "llama.cpp", "{computing}");
            assert!(chats(&url), "{point}@{kernel}");
            assert!(get(&url, "/metrics").contains("bespoke_self_test{outcome=\"faulty\"} 1"));
            assert_eq!(program.terminate(), Some(0));
        }
    }
}

#[test]
fn the_kernel_of_felix_spokes_falls_back_to_what_every_processor_has() {
    if !has_kernels() {
        return;
    }
    let program = Program::serve(&[], &[("BESPOKE_FAIL", "kernel_dies@felix")]);
    let (url, _) = ready(&program);
    let computing = computing(&url);
    assert_eq!(form(&computing, "felix")["form"], "portable", "{computing}");
    assert!(form(&computing, "felix")["fault"].as_str().unwrap().contains("SIGILL"));
}

#[test]
fn a_daemon_whose_llama_cpp_crashes_does_not_start_and_says_why() {
    let mut program = Program::serve(&[], &[("BESPOKE_FAIL", "kernel_dies@llama.cpp")]);
    let line = program.line("error: ");
    assert!(line.contains("llama.cpp's own kernels don't work here"), "{line}");
    assert!(line.contains("signal 4 (SIGILL, illegal instruction)"), "{line}");
    let rest = program.lines(Duration::from_secs(5)).join("\n");
    assert!(rest.contains("hint: this program was compiled for a processor with"), "{rest}");
    assert_eq!(program.ended(), Some(78));
}

#[test]
fn kernels_and_their_test_can_be_switched_off() {
    let folder = tempfile::tempdir().unwrap();
    let config = configuration(folder.path(), "kernels = \"off\"\nself_test = false");
    // No kernel of ours computes, so none can crash.
    let broken = ("BESPOKE_FAIL", "kernel_dies@attention,kernel_dies@product");
    let program = Program::serve(&["--config", &config], &[broken]);
    let (url, _) = ready(&program);
    let computing = computing(&url);
    assert_eq!(computing["self_test"]["outcome"], "skipped");
    for (kernel, expected) in [("attention", "llama.cpp"), ("product", "llama.cpp"), ("felix", "portable")] {
        assert_eq!(form(&computing, kernel)["form"], expected);
    }
    assert!(chats(&url));
}

#[test]
fn features_can_be_hidden_from_the_detection() {
    for (hidden, product) in [("x86-64-v4", "avx2"), ("x86-64-v3", "avx2"), ("x86-64-v2", "llama.cpp")] {
        let usable = bespoke::cpu_features::processor().usable().names();
        let product = if usable.contains(&"avx2") { product } else { "llama.cpp" };
        let program = Program::serve(&[], &[("BESPOKE_CPU", hidden)]);
        let (url, _) = ready(&program);
        let computing = computing(&url);
        assert_eq!(form(&computing, "product")["form"], product, "{hidden}: {computing}");
        assert!(chats(&url), "{hidden}");
    }
    let mut wrong = Program::serve(&[], &[("BESPOKE_CPU", "haswell")]);
    let line = wrong.line("BESPOKE_CPU");
    assert!(line.contains("\"haswell\""), "{line}");
    assert_eq!(wrong.ended(), Some(78));
}
