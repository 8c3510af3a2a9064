//! Swaps under load: a name gets one content after the other while clients ask, and no request fails or is answered by a
//! generation that it could not have.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::daemon::wait_until;
use crate::dropped::{generation, lora, put};
use crate::program::Program;

/// Clients that ask all the time.
const CLIENTS: usize = 8;
/// The swap after which memory has come to its size.
const WARM: usize = 10;

/// `BESPOKE_SWAPS` is how many; the long form is 1,000.
#[test]
fn no_request_fails_while_spokes_are_swapped() {
    let swaps: usize = std::env::var("BESPOKE_SWAPS").ok().and_then(|text| text.parse().ok()).unwrap_or(15);
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    bespoke::durable::write(&root.path().join("bespoke.toml"), b"[log]\naccess = 'off'\n").unwrap();
    let folder = root.path().join("spokes");
    // Contents come around again; each generation is known by its place in the cycle.
    let contents: Vec<Vec<u8>> = (0..16).map(lora).collect();
    let generations: Vec<String> = contents.iter().map(|content| generation(content).to_string()).collect();
    let arguments =
        ["--config", &path("bespoke.toml"), "--spokes", &path("spokes"), "--state", &path("state")];
    let environment = [("BESPOKE_FAKE_ENGINE", "3"), ("RUST_LOG", "warn")];
    let mut program = Program::serve(&arguments, &environment);
    let url = program.url();
    let agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().new_agent();

    put(&folder, "encoding.gguf", &contents[0]);
    let serving = || -> Option<String> {
        let all: Value = agent.get(format!("{url}/v1/spokes")).call().ok()?.body_mut().read_json().ok()?;
        let rows = all["data"].as_array()?.clone();
        let row = rows.into_iter().find(|row| row["id"].is_number())?;
        row["generation"].as_str().map(str::to_owned)
    };
    wait_until("the first one serves", || serving().as_ref() == Some(&generations[0]));

    // The swap that is known to be done, and the one that may be done already.
    let (done, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (url, agent, generations) = (url.clone(), agent.clone(), generations.clone());
            let (done, dropped, stop) = (Arc::clone(&done), Arc::clone(&dropped), Arc::clone(&stop));
            thread::spawn(move || {
                let mut answers = 0_u64;
                while !stop.load(Ordering::SeqCst) {
                    let oldest = done.load(Ordering::SeqCst);
                    let stream = client % 2 == 1;
                    let body = json!({
                        "model": "encoding", "stream": stream, "messages": [{"role": "user", "content": "x"}]
                    });
                    let mut answer = agent
                        .post(format!("{url}/v1/chat/completions"))
                        .send_json(&body)
                        .expect("it answers");
                    let status = answer.status().as_u16();
                    let header = answer.headers().get("x-bespoke-spokes").cloned();
                    let text = answer.body_mut().read_to_string().expect("the answer is whole");
                    let newest = dropped.load(Ordering::SeqCst);
                    assert_eq!(status, 200, "{text}");
                    assert!(!text.contains("\"error\""), "{text}");
                    let header = header.expect("a spoke answers").to_str().unwrap().to_owned();
                    let told =
                        header.strip_prefix("encoding@").and_then(|rest| rest.strip_suffix("*1")).unwrap();
                    let could =
                        (oldest..=newest).any(|swap| generations[swap % generations.len()].starts_with(told));
                    assert!(could, "{told} answers a request from between swap {oldest} and swap {newest}");
                    assert!(
                        text.contains(&format!("{told}*1")),
                        "the engine ran with another one than {told}: {text}"
                    );
                    answers += 1;
                }
                answers
            })
        })
        .collect();

    let mut latencies = Vec::with_capacity(swaps);
    let mut warm = None;
    for swap in 1..=swaps {
        dropped.store(swap, Ordering::SeqCst);
        let began = Instant::now();
        put(&folder, "encoding.gguf", &contents[swap % contents.len()]);
        let wanted = &generations[swap % contents.len()];
        wait_until("the next one serves", || serving().as_ref() == Some(wanted));
        latencies.push(began.elapsed());
        done.store(swap, Ordering::SeqCst);
        if swap == WARM {
            warm = resident(program.id());
        }
        if swap % 500 == 0 {
            eprintln!("after {swap} swaps: {:?} KiB resident", resident(program.id()));
        }
        assert!(clients.iter().all(|client| !client.is_finished()), "a client has failed");
    }
    stop.store(true, Ordering::SeqCst);
    let answers: u64 = clients.into_iter().map(|client| client.join().expect("no request failed")).sum();
    let end = resident(program.id());
    latencies.sort();
    let share = |percent: usize| latencies[(latencies.len() - 1) * percent / 100];
    eprintln!(
        "{swaps} swaps under {CLIENTS} clients: {answers} answers, none failed, none of a wrong generation; \
         swap visible after p50 {:?}, p95 {:?}; resident after swap {WARM} {warm:?} KiB, at the end {end:?} KiB",
        share(50),
        share(95),
    );
    assert!(answers > 0 && share(95) < Duration::from_secs(10));
    assert_eq!(program.terminate(), Some(0));
}

/// KiB that a process has in memory.
fn resident(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
}
