//! Tests of crashes: the program is killed at each point of a swap and at random. It must come back
//! with the last good generation, and a file that kills it must do so only once.

use std::path::Path;
use std::time::{Duration, Instant};

use bespoke::adapter::Generation;

use crate::contents::{Backend, Content, Contents};
use crate::daemon::wait_until;
use crate::dropped::{generation, lora, quarantined};
use crate::home::{Home, Served};

/// Maximum time until everything is served again after a restart. Generous, because other tests run
/// on the machine.
const BACK: Duration = Duration::from_secs(10);

/// The generation that answers under a name. A scripted engine's text and the reply must agree.
fn answers(living: &Served, name: &str) -> Option<String> {
    let (told, says) = living.client.asked(name, false).ok()?;
    assert_eq!(says, format!("{told}*1"));
    Some(told)
}

/// Checks the integrity of the database.
fn check_database(state: &Path) {
    let connection = rusqlite::Connection::open(state.join("bespoke.sqlite")).unwrap();
    let verdict: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
}

/// All points of a swap where the program can be killed.
const POINTS: [&str; 9] = [
    "spoke.inspect",
    "spoke.probe",
    "spoke.judge",
    "spoke.load",
    "spoke.loading",
    "spoke.loaded",
    "spoke.serve",
    "spoke.served",
    "spoke.swapped",
];

/// Whether a content is suspected of having killed the process at this point.
fn is_load(point: &str) -> bool {
    matches!(point, "spoke.loading" | "spoke.loaded")
}

#[test]
fn killed_anywhere_in_a_swap_it_comes_back_with_a_good_generation() {
    for point in POINTS {
        let mortal = Home::new(Backend::Scripted(0));
        let old = mortal.put("victim.gguf", &lora(1));
        let other = mortal.put("other.gguf", &lora(2));
        let living = mortal.start("");
        living.client.serves("victim", old);
        living.client.serves("other", other);
        drop(living);
        // The first load is that of the serving content at startup; the swap's load is the second.
        let time = if is_load(point) { 2 } else { 1 };
        let living = mortal.start(&format!("{point}@victim#{time}"));
        living.client.serves("other", other);
        wait_until("it answers", || answers(&living, "victim").is_some());
        let new = mortal.put("victim.gguf", &lora(3));
        living.dies();

        let began = Instant::now();
        let living = mortal.start("");
        wait_until("it answers", || {
            answers(&living, "victim").is_some() && answers(&living, "other").is_some()
        });
        assert!(began.elapsed() < BACK, "{point}: {:?}", began.elapsed());
        if is_load(point) {
            // A new content is suspected of having killed the process.
            wait_until("it is quarantined", || living.client.is_quarantined(new, "crashed"));
            living.client.serves("victim", old);
        } else {
            living.client.serves("victim", new);
        }
        living.client.serves("other", other);
        drop(living);
        check_database(&mortal.state());
    }
}

#[test]
fn killed_while_a_bad_file_is_put_away_the_good_one_serves_and_the_bad_one_has_its_reason() {
    let mortal = Home::new(Backend::Scripted(0));
    let good = mortal.put("victim.gguf", &lora(1));
    let living = mortal.start("spoke.quarantine@victim");
    living.client.serves("victim", good);
    let bad = mortal.put("victim.gguf", &lora(2)[..1_000]);
    living.dies();
    let living = mortal.start("");
    wait_until("it is quarantined", || {
        living.client.rows("victim").iter().any(|row| row["state"] == "quarantined")
    });
    living.client.serves("victim", good);
    let kept = quarantined(&mortal.state(), "victim", bad);
    wait_until("its reason is there", || kept.join("reason.json").exists());
    drop(living);
    check_database(&mortal.state());
}

#[test]
fn killed_behind_a_rollback_it_stays_rolled_back() {
    let mortal = Home::new(Backend::Scripted(0));
    let old = mortal.put("victim.gguf", &lora(1));
    let living = mortal.start("spoke.withdraw@victim#1");
    living.client.serves("victim", old);
    // The first content of this name that is withdrawn and remains in the list: its file is still
    // there.
    let new = mortal.put("victim.gguf", &lora(2));
    living.client.serves("victim", new);
    // The program dies after the rollback, so the answer may or may not have been sent.
    let answer = living.client.change("victim:rollback");
    assert!(answer.is_none_or(|status| status == 200), "{answer:?}");
    living.dies();
    let living = mortal.start("");
    living.client.serves("victim", old);
    wait_until("the other is retired", || {
        living
            .client
            .rows("victim")
            .iter()
            .any(|row| row["generation"] == new.to_string() && row["reason"]["code"] == "rolled_back")
    });
    drop(living);
    check_database(&mortal.state());
}

#[test]
fn a_file_that_kills_the_process_does_so_once() {
    let mortal = Home::new(Backend::Scripted(0));
    let good = mortal.put("good.gguf", &lora(1));
    let living = mortal.start("spoke.loading@killer");
    living.client.serves("good", good);
    let bad = mortal.put("killer.gguf", &lora(2));
    living.dies();
    // The file is still there, and would kill the program again.
    for _ in 0..2 {
        let mut living = mortal.start("spoke.loading@killer");
        wait_until("it is quarantined", || living.client.is_quarantined(bad, "crashed"));
        living.client.serves("good", good);
        assert_eq!(answers(&living, "good"), Some(good.short()));
        assert_eq!(answers(&living, "killer"), None);
        assert_eq!(living.program.terminate(), Some(0));
    }
    let kept = quarantined(&mortal.state(), "killer", bad);
    assert!(kept.join("reason.json").exists());
    // Equal contents under different names are one generation.
    let living = mortal.start("spoke.loading@killer,spoke.loading@again");
    mortal.put("again.gguf", &lora(2));
    wait_until("it is known", || {
        living.client.rows("again").iter().any(|row| row["reason"]["code"] == "crashed")
    });
    living.client.serves("good", good);
}

#[test]
fn a_file_that_kills_whoever_inspects_it_does_so_once() {
    let mortal = Home::new(Backend::Scripted(0));
    let good = mortal.put("good.gguf", &lora(1));
    let killer = lora(2);
    let point = format!("spoke.inspecting@{}", generation(&killer).short());
    let living = mortal.start(&point);
    living.client.serves("good", good);
    let bad = mortal.put("killer.gguf", &killer);
    living.dies();
    let living = mortal.start(&point);
    living.client.serves("good", good);
    wait_until("it is refused without being inspected", || living.client.is_quarantined(bad, "crashed"));
    assert_eq!(answers(&living, "killer"), None);
}

#[test]
fn a_proven_spoke_survives_one_crash_and_not_two_in_a_row() {
    let mortal = Home::new(Backend::Scripted(0));
    let first = mortal.put("a.gguf", &lora(1));
    let living = mortal.start("");
    living.client.serves("a", first);
    let second = mortal.put("a.gguf", &lora(2));
    living.client.serves("a", second);
    drop(living);
    // As in a power cut while the serving content is loaded again.
    mortal.start("spoke.loading@a").dies();
    let living = mortal.start("");
    wait_until("it answers", || answers(&living, "a").is_some());
    living.client.serves("a", second);
    drop(living);
    for _ in 0..2 {
        mortal.start("spoke.loading@a").dies();
    }
    let living = mortal.start("");
    wait_until("it is quarantined", || living.client.is_quarantined(second, "crashed"));
    living.client.serves("a", first);
    assert_eq!(answers(&living, "a"), Some(first.short()));
}

/// Number of crashes: `BESPOKE_CRASHES`. The long form is 200.
fn crashes(short: u32) -> u32 {
    std::env::var("BESPOKE_CRASHES").map_or(short, |text| text.parse().expect("BESPOKE_CRASHES is a number"))
}

/// Deterministic pseudo-random numbers.
struct Random(u32);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 % bound
    }
}

#[test]
fn killed_at_random_it_comes_back_with_what_it_acknowledged() {
    let crashes = crashes(4);
    let mortal = Home::new(Backend::Scripted(0));
    let mut dropped = vec![mortal.put("a.gguf", &lora(0))];
    let mut acknowledged: Option<Generation> = None;
    let mut random = Random(0x2545_f491);
    let mut slowest = Duration::ZERO;
    for crash in 1..=crashes {
        let began = Instant::now();
        let living = mortal.start("");
        wait_until("it serves", || answers(&living, "a").is_some());
        slowest = slowest.max(began.elapsed());
        let told = answers(&living, "a").unwrap();
        let place = |wanted: Generation| dropped.iter().rposition(|generation| *generation == wanted);
        let now = *dropped.iter().find(|generation| generation.short() == told).expect("it was dropped once");
        if let Some(acknowledged) = acknowledged
            && !living.client.is_quarantined(acknowledged, "crashed")
        {
            assert!(place(now) >= place(acknowledged), "crash {crash}: {now} is older than {acknowledged}");
        }
        let new = mortal.put("a.gguf", &lora(crash));
        dropped.push(new);
        let until = Instant::now() + Duration::from_millis(u64::from(random.below(700)));
        acknowledged = Some(now);
        while Instant::now() < until {
            acknowledged = living.client.serving("a").or(acknowledged);
        }
        living.program.signal("KILL");
        living.dies();
        check_database(&mortal.state());
    }
    assert!(slowest < BACK, "{slowest:?}");
    let mut living = mortal.start("");
    let last = *dropped.last().unwrap();
    wait_until("the last content is decided", || {
        living.client.serving("a") == Some(last) || living.client.is_quarantined(last, "crashed")
    });
    assert!(answers(&living, "a").is_some());
    // Unfinished copies must be removed.
    let staged = mortal.state().join("spokes/staged");
    wait_until("half copies are swept", || {
        std::fs::read_dir(&staged)
            .unwrap()
            .all(|entry| !entry.unwrap().file_name().to_string_lossy().starts_with('.'))
    });
    assert_eq!(living.program.terminate(), Some(0));
    eprintln!("{crashes} crashes; the slowest return took {slowest:?}");
}

/// With llama.cpp, killed at random points of the swap. Afterwards, the answer must be exactly that
/// of the last content that served or of the new one.
#[test]
fn killed_at_random_points_llama_cpp_comes_back_answering_as_the_last_good_generation() {
    let crashes = crashes(3);
    let mortal = Home::new(Backend::Llama);
    let mut contents = Contents::new(Backend::Llama);
    let mut good = contents.next();
    mortal.put("a.gguf", &good.bytes);
    let living = mortal.start("");
    living.client.serves("a", good.generation);
    drop(living);
    let mut random = Random(0x9e37_79b9);
    let mut back = Vec::new();
    for crash in 1..=crashes {
        let point = POINTS[random.below(POINTS.len() as u32) as usize];
        let time = if is_load(point) { 2 } else { 1 };
        let living = mortal.start(&format!("{point}@a#{time}"));
        wait_until("it answers", || living.client.asked("a", false).is_ok());
        assert!(living.client.answers_as("a", &good), "before crash {crash}");
        let new = contents.next();
        mortal.put("a.gguf", &new.bytes);
        living.dies();
        check_database(&mortal.state());

        let began = Instant::now();
        let living = mortal.start("");
        wait_until("it answers", || living.client.asked("a", false).is_ok());
        back.push(began.elapsed());
        let answered = |content: &Content| living.client.answers_as("a", content);
        assert!(
            answered(&good) || answered(&new),
            "crash {crash} at {point}: {:?}",
            living.client.asked("a", false)
        );
        if is_load(point) {
            wait_until("it is quarantined", || living.client.is_quarantined(new.generation, "crashed"));
        } else {
            living.client.serves("a", new.generation);
            good = new;
        }
        assert!(answered(&good), "crash {crash} at {point}: {:?}", living.client.asked("a", false));
        drop(living);
    }
    back.sort();
    let slowest = back[back.len() - 1];
    eprintln!(
        "{crashes} crashes; it answered again after {:?} (median), {slowest:?} at most",
        back[back.len() / 2]
    );
    assert!(slowest < BACK, "{slowest:?}");
}
