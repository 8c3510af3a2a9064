//! A soak test: many clients for a long time, one in ten leaving in the middle. Memory must stay
//! constant and every lane must come back.
//!
//! `make test` sends 64 requests. `BESPOKE_SOAK=20000 cargo test --release --test it soak` sends that
//! many, 16 at a time.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bespoke::engine::Engine;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::daemon::{chat, wait_until};
use crate::memory::resident;
use crate::real::Real;

/// Number of requests in a plain test.
const FEW: usize = 64;
/// Number of clients at the same time.
const CLIENTS: usize = 16;
/// Maximum growth of memory in percent.
const GROWTH: u64 = 5;

#[test]
fn soak_every_lane_comes_back_and_memory_stays() {
    let asked = std::env::var("BESPOKE_SOAK").ok();
    let count = asked.as_ref().map_or(FEW, |value| value.parse().expect("BESPOKE_SOAK is a number"));
    let Some(real) = Real::serve(|engine| engine.lanes = 4, |_| {}) else { return };
    let address = real.daemon.address;
    let (next, whole, left, retried) =
        (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let warm = Mutex::new(None);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::SeqCst);
                    if index >= count {
                        return;
                    }
                    if index == count / 5 {
                        *warm.lock().unwrap() = Some(resident(std::process::id()));
                    }
                    let random = &mut ChaCha8Rng::seed_from_u64(index as u64);
                    let leaves = random.random_ratio(1, 10);
                    loop {
                        match ask(address, &body(random), leaves.then(|| random.random_range(0..150)), random)
                        {
                            Asked::Whole => whole.fetch_add(1, Ordering::SeqCst),
                            Asked::Left => left.fetch_add(1, Ordering::SeqCst),
                            Asked::Full => {
                                retried.fetch_add(1, Ordering::SeqCst);
                                std::thread::sleep(Duration::from_millis(50));
                                continue;
                            }
                        };
                        break;
                    }
                }
            });
        }
    });
    let (whole, left, retried) = (whole.into_inner(), left.into_inner(), retried.into_inner());
    assert_eq!(whole + left, count);
    wait_until("every lane is idle", || real.busy() == 0);
    assert_eq!(real.lanes().len(), 4);
    wait_until("nothing runs or waits", || {
        let health = real.engine.health().borrow().clone();
        (health.running, health.waiting) == (0, 0)
    });
    assert_eq!(real.daemon.get("/health").status, 200);
    real.daemon.chat("after all that", json!({"max_tokens": 3})).ok();
    let end = resident(std::process::id());
    let warm = warm.into_inner().unwrap().unwrap();
    eprintln!(
        "{count} requests in {:?}: {whole} whole, {left} left, {retried} told to come again; memory {} KiB after a fifth, {} KiB at the end",
        start.elapsed(),
        warm >> 10,
        end >> 10
    );
    // Other tests run at the same time as a short soak and use memory of their own.
    if asked.is_some() {
        assert!(end <= warm + warm * GROWTH / 100, "memory grew from {warm} to {end} bytes");
    }
}

enum Asked {
    Whole,
    Left,
    Full,
}

/// A short request: prose, JSON, or JSON of a schema, streamed or not.
fn body(random: &mut ChaCha8Rng) -> Value {
    const WORDS: [&str; 8] =
        ["deploy", "failed", "at 14:05", "billing-api", "rolled back", "timeout", "cache", "index"];
    let content: Vec<&str> =
        (0..random.random_range(1..40)).map(|_| *WORDS.choose(random).unwrap()).collect();
    let schema = json!({"type": "object", "required": ["gist"], "properties": {"gist": {"type": "string", "maxLength": 40}}});
    let format = match random.random_range(0..3) {
        0 => Value::Null,
        1 => json!({"type": "json_object"}),
        _ => json!({"type": "json_schema", "json_schema": {"name": "gist", "schema": schema}}),
    };
    chat(
        &content.join(" "),
        json!({
            "stream": random.random::<bool>(), "max_tokens": random.random_range(8..48), "response_format": format,
            "temperature": *[0.0, 0.8].choose(random).unwrap(), "seed": random.random_range(0..1_000),
        }),
    )
}

/// Sends a request and, if `leave` is set, leaves after this many milliseconds.
fn ask(address: SocketAddr, body: &Value, leave: Option<u64>, random: &mut ChaCha8Rng) -> Asked {
    let mut connection = TcpStream::connect(address).unwrap();
    let text = body.to_string();
    let mut request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{text}",
        text.len()
    );
    if leave.is_some() && random.random_ratio(1, 5) {
        // Some leave before they have sent everything.
        request.truncate(random.random_range(1..request.len()));
    }
    connection.write_all(request.as_bytes()).unwrap();
    let patience = leave.map_or(Duration::from_secs(120), |after| Duration::from_millis(after.max(1)));
    let end = Instant::now() + patience;
    let mut answer = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        let rest = end.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            assert!(leave.is_some(), "no answer in {patience:?}: {}", String::from_utf8_lossy(&answer));
            return Asked::Left;
        }
        connection.set_read_timeout(Some(rest)).unwrap();
        match connection.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&buffer[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    if answer.starts_with("HTTP/1.1 503") {
        return Asked::Full;
    }
    assert!(answer.starts_with("HTTP/1.1 200"), "{body} got {answer}");
    assert!(!answer.contains("data: {\"error\""), "{body} got {answer}");
    assert_eq!(answer.contains("data: [DONE]"), body["stream"] == true, "{body} got {answer}");
    Asked::Whole
}
