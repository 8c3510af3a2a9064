//! Tests of hostile requests generated from the API's own description: none may cause a 5xx or
//! hang, and memory must stay constant.
//!
//! `make test` sends 500. `BESPOKE_HOSTILE=10000 cargo test --test it hostile` sends that many, and
//! as many again to the real binary with the shipped model. `BESPOKE_SEED` chooses others.

mod request;
mod value;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bespoke::engine::{FakeEngine, Script};
use serde_json::Value;

use self::request::Hostile;
use crate::daemon::Daemon;
use crate::memory::resident;
use crate::program::{MODEL, Program};

/// Number of requests in a plain test.
const FEW: usize = 500;
/// Number of clients that send at the same time.
const CLIENTS: usize = 4;
/// Maximum time until an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Maximum growth of memory from the first fifth of the requests to the last.
const GROWTH: u64 = 16 << 20;
/// Time in which the allocator gives free memory back.
const REST: Duration = Duration::from_secs(15);

fn asked(name: &str) -> Option<usize> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

#[test]
fn hostile_requests_are_refused_and_nothing_breaks() {
    let count = asked("BESPOKE_HOSTILE");
    let daemon = Daemon::with(FakeEngine::new(Script::Echo), |settings| {
        settings.server.timeouts.slow_sender = Duration::from_secs(1);
    });
    let document = daemon.get("/openapi.json").ok();
    attack(&document, daemon.address, count.unwrap_or(FEW), count.map(|_| std::process::id()));
    assert_eq!(daemon.chat("still there", serde_json::json!({})).content().trim(), "still there");
}

#[test]
fn hostile_requests_do_not_break_the_real_engine() {
    let Some(count) = asked("BESPOKE_HOSTILE") else { return };
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("bespoke.toml");
    let model = std::path::absolute(Path::new(MODEL)).unwrap();
    // A small context, so that requests without a token limit are answered in time, too.
    let text = format!(
        "[server]\nslow_sender = '1s'\n[model]\npath = '{}'\ncontext = 256\n[log]\naccess = 'off'\n",
        model.display()
    );
    bespoke::atomic_file::write(&config, text.as_bytes()).unwrap();
    let mut program = Program::serve(&["--config", config.to_str().unwrap()], &[("RUST_LOG", "warn")]);
    let url = program.url();
    program.line("is ready");
    let document: Value = serde_json::from_str(
        &ureq::get(format!("{url}/openapi.json")).call().unwrap().body_mut().read_to_string().unwrap(),
    )
    .unwrap();
    let address = url.strip_prefix("http://").unwrap().parse().unwrap();
    attack(&document, address, count, Some(program.id()));
    assert_eq!(program.terminate(), Some(0));
}

/// Sends `count` requests. Given a process, compares its memory after a fifth of them with that
/// after all.
fn attack(document: &Value, address: SocketAddr, count: usize, process: Option<u32>) {
    let seed = asked("BESPOKE_SEED").unwrap_or(7) as u64;
    let mut tally = Tally::default();
    tally.send(document, address, seed..seed + count as u64 / 5);
    let warm = process.map(rested);
    tally.send(document, address, seed + count as u64 / 5..seed + count as u64);
    let Tally { statuses, longest, .. } = tally;
    eprintln!("{count} hostile requests: {statuses:?} (0: closed), the longest and its seed: {longest:?}");
    assert!(statuses.len() >= 6, "the requests are all alike: {statuses:?}");
    if let (Some(warm), Some(end)) = (warm, process.map(rested)) {
        eprintln!("memory: {} KiB after a fifth, {} KiB at the end", warm >> 10, end >> 10);
        assert!(end <= warm + GROWTH, "memory grew from {warm} to {end} bytes");
    }
}

/// Memory of a process after that of its last answers was given back.
fn rested(process: u32) -> u64 {
    std::thread::sleep(REST);
    resident(process)
}

/// Counts of the results.
#[derive(Default)]
struct Tally {
    statuses: BTreeMap<u16, usize>,
    longest: (Duration, u64),
    faults: Vec<String>,
}

impl Tally {
    /// Sends the requests of these seeds, and fails if one of them breaks something.
    fn send(&mut self, document: &Value, address: SocketAddr, seeds: Range<u64>) {
        let next = AtomicU64::new(seeds.start);
        let tally = Mutex::new(std::mem::take(self));
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::SeqCst);
                        if seed >= seeds.end || tally.lock().unwrap().faults.len() >= 5 {
                            return;
                        }
                        let hostile = Hostile::new(document, seed);
                        let start = Instant::now();
                        let status = send(address, &hostile);
                        let took = start.elapsed();
                        let mut tally = tally.lock().unwrap();
                        tally.longest = (took, seed).max(tally.longest);
                        match status {
                            Ok(status) if status < 500 => *tally.statuses.entry(status).or_default() += 1,
                            other => tally.faults.push(format!(
                                "seed {seed}: {other:?} after {took:?} for {}",
                                hostile.shown()
                            )),
                        }
                    }
                });
            }
        });
        *self = tally.into_inner().unwrap();
        assert!(self.faults.is_empty(), "{}", self.faults.join("\n"));
    }
}

/// The status of the answer; 0 if the connection was closed without one.
fn send(address: SocketAddr, hostile: &Hostile) -> Result<u16, String> {
    let mut connection = TcpStream::connect(address).map_err(|error| format!("can't connect: {error}"))?;
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection.set_write_timeout(Some(PATIENCE)).unwrap();
    // A daemon that has seen enough closes the connection before reading everything.
    let _ = connection.write_all(&hostile.bytes);
    if hostile.leaves {
        return Ok(0);
    }
    let start = Instant::now();
    let mut answer = Vec::new();
    let mut buffer = [0; 16_384];
    // The feed of events never ends, so only its head is read.
    let feed = hostile.bytes.starts_with(b"GET /v1/spokes/events");
    while !(feed && answer.windows(4).any(|end| end == b"\r\n\r\n")) {
        match connection.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&buffer[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => break,
            Err(error) => return Err(format!("no end of the answer: {error}")),
        }
        if start.elapsed() > PATIENCE {
            return Err("the answer does not end".to_owned());
        }
    }
    let text = String::from_utf8_lossy(&answer);
    if text.contains("\"type\":\"server_error\"") {
        return Err(format!("a server error: {text}"));
    }
    Ok(text
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.get(2..5))
        .and_then(|code| code.parse().ok())
        .unwrap_or(0))
}
