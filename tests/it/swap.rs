//! Tests of swaps under load: a name gets one content after another while clients query it. No
//! request may fail or be answered by a generation that was not possible at the time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::contents::{Backend, Content, Contents};
use crate::home::Home;
use crate::memory::resident;

/// Number of clients that send requests all the time.
const CLIENTS: usize = 8;
/// Number of contents that take turns. Large enough that each is forgotten, and probed again,
/// before its next turn.
const CONTENTS: usize = 64;
/// The swap after which memory has reached its size.
const WARM: usize = 10;

/// A number from the environment.
fn count(variable: &str, short: usize) -> usize {
    std::env::var(variable).map_or(short, |text| text.parse().expect("the environment has a number"))
}

/// Durations, sorted, for percentiles.
struct Times(Vec<Duration>);

impl Times {
    fn new(mut times: Vec<Duration>) -> Self {
        times.sort();
        Self(times)
    }

    fn share(&self, percent: usize) -> Duration {
        self.0[(self.0.len() - 1) * percent / 100]
    }
}

#[test]
fn no_request_fails_while_spokes_are_swapped() {
    swap_under_load(Backend::Scripted(3), count("BESPOKE_SWAPS", 15));
}

#[test]
fn no_request_fails_while_spokes_are_swapped_in_llama_cpp() {
    swap_under_load(Backend::Llama, count("BESPOKE_SWAPS", 8));
}

fn swap_under_load(backend: Backend, swaps: usize) {
    let mut contents = Contents::new(backend);
    let all: Vec<Content> = (0..=swaps.min(CONTENTS)).map(|_| contents.next()).collect();
    let content = |swap: usize| &all[swap % all.len()];
    eprintln!("{} contents, {} were passed over", all.len(), contents.unfit);
    drop(contents);
    let home = Home::new(backend);
    let mut served = home.start("");
    home.put("encoding.gguf", &all[0].bytes);
    served.client.serves("encoding", all[0].generation);

    // The last swap that is known to be done, and the last that may be done already.
    let (done, dropped, stop) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let (mut latencies, mut warm) = (Vec::with_capacity(swaps), None);
    let answers: u64 = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (asked, content, done, dropped, stop) =
                    (served.client.clone(), &content, &done, &dropped, &stop);
                scope.spawn(move || {
                    let mut answers = 0_u64;
                    while !stop.load(Ordering::SeqCst) {
                        let oldest = done.load(Ordering::SeqCst);
                        let (told, says) =
                            asked.asked("encoding", client % 2 == 1).expect("no request fails");
                        let newest = dropped.load(Ordering::SeqCst);
                        let could = (oldest..=newest)
                            .map(content)
                            .find(|content| content.generation.to_string().starts_with(&told));
                        let Some(content) = could else {
                            panic!("{told} answers a request from between swap {oldest} and swap {newest}")
                        };
                        assert_eq!(says, content.says, "{told} is named, and another one answers");
                        answers += 1;
                    }
                    answers
                })
            })
            .collect();
        // The clients must end whatever fails here.
        let driven = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for swap in 1..=swaps {
                dropped.store(swap, Ordering::SeqCst);
                let began = Instant::now();
                home.put("encoding.gguf", &content(swap).bytes);
                served.client.serves("encoding", content(swap).generation);
                latencies.push(began.elapsed());
                done.store(swap, Ordering::SeqCst);
                if swap == WARM {
                    warm = Some(resident(served.program.id()));
                }
                if swap % 100 == 0 {
                    let times = Times::new(latencies.clone());
                    eprintln!(
                        "after {swap} swaps: visible after p50 {:?}, p95 {:?}; {} KiB resident",
                        times.share(50),
                        times.share(95),
                        resident(served.program.id()) >> 10
                    );
                }
                assert!(clients.iter().all(|client| !client.is_finished()), "a client has failed");
            }
        }));
        stop.store(true, Ordering::SeqCst);
        let answers = clients.into_iter().map(|client| client.join().expect("no request failed")).sum();
        driven.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        answers
    });
    let end = resident(served.program.id());
    let latencies = Times::new(latencies);
    eprintln!(
        "{backend:?}: {swaps} swaps under {CLIENTS} clients: {answers} answers, none failed, none of a wrong \
         generation; visible after p50 {:?}, p95 {:?}, at most {:?}; resident after swap {WARM} {:?} KiB, at the end \
         {} KiB",
        latencies.share(50),
        latencies.share(95),
        latencies.share(100),
        warm.map(|bytes| bytes >> 10),
        end >> 10,
    );
    assert!(answers > 0 && latencies.share(95) < Duration::from_secs(2));
    // A few swaps say nothing about memory, because first-time allocations add to it.
    if let Some(warm) = warm.filter(|_| swaps >= 100) {
        assert!(end <= warm + warm / 100, "memory has grown from {warm} to {end} bytes");
    }
    assert_eq!(served.program.terminate(), Some(0));
}

/// Number of names that are swapped at once when events are lost. All wait for the same scan.
const NAMES: usize = 4;

/// The system delivers no events, without saying so. Only the scan of the whole folder finds what
/// was dropped. `BESPOKE_LOST` is the number of swaps; the long form is 100, with a scan every 30
/// seconds.
#[test]
fn a_swap_whose_event_is_lost_is_found_by_the_next_look() {
    let long = std::env::var_os("BESPOKE_LOST").is_some();
    let rounds = count("BESPOKE_LOST", 2 * NAMES).div_ceil(NAMES);
    let (reconcile, bound) = if long { (30, 35) } else { (1, 20) };
    let backend = if long { Backend::Llama } else { Backend::Scripted(0) };
    let settings = format!("reconcile = \"{reconcile}s\"");
    let home = Home::with(backend, &settings, &[]);
    let served = home.start("watch.deaf");
    let mut contents = Contents::new(backend);
    let mut latencies = Vec::new();
    let mut random = 0x2545_f491_u32;
    for round in 0..=rounds {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        thread::sleep(Duration::from_millis(u64::from(random >> 16) % (reconcile * 1_000)));
        let all: Vec<(String, Content, Instant)> = (0..NAMES)
            .map(|name| {
                let (name, content) = (format!("name-{name}"), contents.next());
                home.put(&format!("{name}.gguf"), &content.bytes);
                (name, content, Instant::now())
            })
            .collect();
        for (name, content, dropped) in all {
            while served.client.serving(&name) != Some(content.generation) {
                let rows = || served.client.rows(&name);
                assert!(
                    dropped.elapsed() < Duration::from_secs(2 * bound),
                    "{name} is never found: {:#?}",
                    rows()
                );
                thread::sleep(Duration::from_millis(20));
            }
            // The first content of each name is no swap.
            if round > 0 {
                latencies.push(dropped.elapsed());
            }
            assert!(served.client.answers_as(&name, &content));
        }
    }
    let latencies = Times::new(latencies);
    eprintln!(
        "{backend:?}: {} swaps without an event, a look every {reconcile} s: visible after p50 {:?}, at most {:?}",
        latencies.0.len(),
        latencies.share(50),
        latencies.share(100),
    );
    assert!(latencies.share(100) < Duration::from_secs(bound));
}

/// More events than the system's queue holds: it drops the one that matters and reports only an
/// overflow. `BESPOKE_OVERFLOWS` is the number of overflows; the long form is 100.
#[test]
fn a_swap_whose_event_is_dropped_with_others_is_found_at_once() {
    let overflows = count("BESPOKE_OVERFLOWS", 2);
    let kept: usize = match std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events") {
        Ok(text) => text.trim().parse().unwrap(),
        Err(error) => return eprintln!("skipped: this system has no inotify ({error})"),
    };
    let backend =
        if std::env::var_os("BESPOKE_OVERFLOWS").is_some() { Backend::Llama } else { Backend::Scripted(0) };
    let home = Home::with(backend, "reconcile = \"1h\"", &[]);
    let served = home.start("");
    let mut contents = Contents::new(backend);
    let first = contents.next();
    home.put("a.gguf", &first.bytes);
    served.client.serves("a", first.generation);
    let [one, other] = [".one", ".other"].map(|name| home.folder().join(name));
    bespoke::atomic_file::write(&one, b"x").unwrap();
    let mut latencies = Vec::new();
    for _ in 0..overflows {
        let content = contents.next();
        served.program.signal("STOP");
        // A rename is at least two events.
        for _ in 0..kept / 4 + 1_000 {
            std::fs::rename(&one, &other).unwrap();
            std::fs::rename(&other, &one).unwrap();
        }
        home.put("a.gguf", &content.bytes);
        served.program.signal("CONT");
        let began = Instant::now();
        served.client.serves("a", content.generation);
        latencies.push(began.elapsed());
        assert!(served.client.answers_as("a", &content));
    }
    let latencies = Times::new(latencies);
    eprintln!(
        "{backend:?}: {overflows} swaps behind {kept} lost events: visible after p50 {:?}, at most {:?}",
        latencies.share(50),
        latencies.share(100),
    );
}
