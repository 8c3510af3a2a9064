//! Crashes: the program is killed at each point of a swap, and at random; it comes back with the last good generation, and
//! a file that kills it does so once.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bespoke::spoke::Generation;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::daemon::wait_until;
use crate::dropped::{generation, lora, put};
use crate::program::Program;

/// Longest that a restart may take until everything is served again; this machine does other things too.
const BACK: Duration = Duration::from_secs(10);

/// The program over a scripted engine, with folders that outlive it.
struct Mortal {
    root: TempDir,
}

struct Living<'a> {
    mortal: &'a Mortal,
    program: Program,
    url: String,
}

impl Mortal {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        bespoke::durable::write(&root.path().join("bespoke.toml"), b"[log]\naccess = 'off'\n").unwrap();
        Self { root }
    }

    fn folder(&self) -> PathBuf {
        self.root.path().join("spokes")
    }

    fn drop_file(&self, entry: &str, content: &[u8]) -> Generation {
        put(&self.folder(), entry, content);
        generation(content)
    }

    /// Starts it, perhaps with a point at which it dies.
    fn start(&self, fail: &str) -> Living<'_> {
        let path = |name: &str| self.root.path().join(name).to_str().unwrap().to_owned();
        let arguments =
            ["--config", &path("bespoke.toml"), "--spokes", &path("spokes"), "--state", &path("state")];
        let program = Program::serve(&arguments, &[("BESPOKE_FAKE_ENGINE", "0"), ("BESPOKE_FAIL", fail)]);
        let url = program.url();
        Living { mortal: self, program, url }
    }
}

impl Living<'_> {
    fn get(&self, path: &str) -> Option<Value> {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().new_agent();
        let text = agent.get(format!("{}{path}", self.url)).call().ok()?.body_mut().read_to_string().ok()?;
        serde_json::from_str(&text).ok()
    }

    fn rows(&self, name: &str) -> Vec<Value> {
        let all = self.get("/v1/spokes").unwrap_or_default();
        let rows = all["data"].as_array().cloned().unwrap_or_default();
        rows.into_iter().filter(|row| row["name"] == name).collect()
    }

    fn serving(&self, name: &str) -> Option<Generation> {
        let row = self.rows(name).into_iter().find(|row| row["id"].is_number())?;
        row["generation"].as_str()?.parse().ok()
    }

    fn serves(&self, name: &str, generation: Generation) {
        wait_until(&format!("{name} is {}", generation.short()), || self.serving(name) == Some(generation));
    }

    /// What answers under a name; the engine and the reply must agree.
    fn answers(&self, name: &str) -> Option<String> {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().new_agent();
        let body = json!({"model": name, "messages": [{"role": "user", "content": "x"}]});
        let mut answer = agent.post(format!("{}/v1/chat/completions", self.url)).send_json(&body).ok()?;
        let answer: Value = answer.body_mut().read_json().ok()?;
        let said = answer["choices"][0]["message"]["content"].as_str()?.to_owned();
        let generation = answer["spokes"][0]["generation"].as_str()?;
        assert_eq!(said, format!("{}*1", &generation[..12]));
        Some(generation.to_owned())
    }

    /// Waits until it has died by `kill -9`.
    fn dies(mut self) {
        assert_eq!(self.program.ended(), None, "a signal is no exit code");
    }

    fn is_quarantined(&self, generation: Generation, code: &str) -> bool {
        let all = self.get("/v1/spokes").unwrap_or_default();
        all["data"].as_array().is_some_and(|rows| {
            rows.iter()
                .any(|row| row["generation"] == generation.to_string() && row["reason"]["code"] == code)
        })
    }
}

/// Whether the database is whole.
fn check_database(state: &Path) {
    let connection = rusqlite::Connection::open(state.join("bespoke.sqlite")).unwrap();
    let verdict: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
}

#[test]
fn killed_anywhere_in_a_swap_it_comes_back_with_a_good_generation() {
    for point in [
        "spoke.inspect",
        "spoke.probe",
        "spoke.judge",
        "spoke.load",
        "spoke.loading",
        "spoke.loaded",
        "spoke.serve",
        "spoke.served",
        "spoke.swapped",
    ] {
        let mortal = Mortal::new();
        let old = mortal.drop_file("victim.gguf", &lora(1));
        let other = mortal.drop_file("other.gguf", &lora(2));
        let living = mortal.start("");
        living.serves("victim", old);
        living.serves("other", other);
        drop(living);
        let is_load = matches!(point, "spoke.loading" | "spoke.loaded");
        // What served is loaded at the start; the swap is to be hit.
        let time = if is_load { 2 } else { 1 };
        let living = mortal.start(&format!("{point}@victim#{time}"));
        living.serves("other", other);
        wait_until("it answers", || living.answers("victim").is_some());
        let new = mortal.drop_file("victim.gguf", &lora(3));
        living.dies();

        let began = Instant::now();
        let living = mortal.start("");
        wait_until("it answers", || living.answers("victim").is_some() && living.answers("other").is_some());
        assert!(began.elapsed() < BACK, "{point}: {:?}", began.elapsed());
        if is_load {
            // A new content is suspected of having killed us.
            wait_until("it is quarantined", || living.is_quarantined(new, "crashed"));
            living.serves("victim", old);
        } else {
            living.serves("victim", new);
        }
        living.serves("other", other);
        drop(living);
        check_database(&mortal.root.path().join("state"));
    }
}

#[test]
fn a_file_that_kills_the_process_does_so_once() {
    let mortal = Mortal::new();
    let good = mortal.drop_file("good.gguf", &lora(1));
    let living = mortal.start("spoke.loading@killer");
    living.serves("good", good);
    let bad = mortal.drop_file("killer.gguf", &lora(2));
    living.dies();
    // The file is still there, and would still kill it.
    for _ in 0..2 {
        let mut living = mortal.start("spoke.loading@killer");
        wait_until("it is quarantined", || living.is_quarantined(bad, "crashed"));
        living.serves("good", good);
        assert_eq!(living.answers("good").unwrap(), good.to_string());
        assert_eq!(living.answers("killer"), None);
        assert_eq!(living.program.terminate(), Some(0));
    }
    let kept =
        mortal.root.path().join("state/spokes/quarantine").join(format!("killer-{}", &bad.to_string()[..8]));
    assert!(kept.join("reason.json").exists());
    // The same content under another name is the same content.
    let living = mortal.start("spoke.loading@killer,spoke.loading@again");
    mortal.drop_file("again.gguf", &lora(2));
    wait_until("it is known", || living.rows("again").iter().any(|row| row["reason"]["code"] == "crashed"));
    living.serves("good", good);
}

#[test]
fn a_proven_spoke_survives_one_crash_and_not_two_in_a_row() {
    let mortal = Mortal::new();
    let first = mortal.drop_file("a.gguf", &lora(1));
    let living = mortal.start("");
    living.serves("a", first);
    let second = mortal.drop_file("a.gguf", &lora(2));
    living.serves("a", second);
    drop(living);
    // As by a power cut while what served is loaded again.
    mortal.start("spoke.loading@a").dies();
    let living = mortal.start("");
    wait_until("it answers", || living.answers("a").is_some());
    living.serves("a", second);
    drop(living);
    for _ in 0..2 {
        mortal.start("spoke.loading@a").dies();
    }
    let living = mortal.start("");
    wait_until("it is quarantined", || living.is_quarantined(second, "crashed"));
    living.serves("a", first);
    assert_eq!(living.answers("a").unwrap(), first.to_string());
}

/// `BESPOKE_CRASHES` is how often; the long form is 200.
#[test]
fn killed_at_random_it_comes_back_with_what_it_acknowledged() {
    let crashes: u32 = std::env::var("BESPOKE_CRASHES").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    let mortal = Mortal::new();
    let mut dropped = vec![mortal.drop_file("a.gguf", &lora(0))];
    let mut acknowledged: Option<Generation> = None;
    let mut random = 0x2545_f491_u32;
    let mut slowest = Duration::ZERO;
    for crash in 1..=crashes {
        let began = Instant::now();
        let living = mortal.start("");
        wait_until("it serves", || living.answers("a").is_some());
        slowest = slowest.max(began.elapsed());
        let now: Generation = living.answers("a").unwrap().parse().unwrap();
        let place = |wanted: Generation| dropped.iter().rposition(|generation| *generation == wanted);
        if let Some(acknowledged) = acknowledged
            && !living.is_quarantined(acknowledged, "crashed")
        {
            assert!(place(now) >= place(acknowledged), "crash {crash}: {now} is older than {acknowledged}");
        }
        let new = mortal.drop_file("a.gguf", &lora(crash));
        dropped.push(new);
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        let until = Instant::now() + Duration::from_millis(u64::from(random % 700));
        acknowledged = Some(now);
        while Instant::now() < until {
            acknowledged = living.serving("a").or(acknowledged);
        }
        living.program.signal("KILL");
        living.dies();
        check_database(&mortal.root.path().join("state"));
    }
    assert!(slowest < BACK, "{slowest:?}");
    let mut living = mortal.start("");
    let last = *dropped.last().unwrap();
    wait_until("the last content is decided", || {
        living.serving("a") == Some(last) || living.is_quarantined(last, "crashed")
    });
    assert!(living.answers("a").is_some());
    // Nothing is left of copies that were never finished.
    let staged = living.mortal.root.path().join("state/spokes/staged");
    wait_until("half copies are swept", || {
        std::fs::read_dir(&staged)
            .unwrap()
            .all(|entry| !entry.unwrap().file_name().to_string_lossy().starts_with('.'))
    });
    assert_eq!(living.program.terminate(), Some(0));
    eprintln!("{crashes} crashes; the slowest return took {slowest:?}");
}
