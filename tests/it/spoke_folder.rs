//! Tests of misuse of the spoke folder, through the real binary. Whatever is dropped, half-written,
//! renamed, replaced or deleted, the daemon must survive, serving names must answer exactly, and
//! each file must get its reason.

// The tests write half-finished files on purpose.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::contents::{Backend, Content, Contents};
use crate::daemon::wait_until;
use crate::home::{Client, Home};
use crate::memory::resident;
use crate::spoke_corpus;

/// The post that the corpus was made for.
const POST: &str = "tests/corpus/post.gguf";

/// Queries a spoke all the time while `work` runs. No answer may fail or be that of another
/// content. Returns the slowest answer's time.
fn while_asked<T>(client: &Client, name: &str, content: &Content, work: impl FnOnce() -> T) -> (T, Duration) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut slowest = Duration::ZERO;
            while !stop.load(Ordering::SeqCst) {
                let began = Instant::now();
                let (_, says) = client.asked(name, false).expect("what serves is answered");
                assert_eq!(says, content.says);
                slowest = slowest.max(began.elapsed());
                thread::sleep(Duration::from_millis(20));
            }
            slowest
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::SeqCst);
        let slowest = asking.join().expect("what serves is answered");
        (done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), slowest)
    })
}

/// The state of each file of the folder, and the code of its reason.
fn states(client: &Client) -> BTreeMap<String, (String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let row = |row: &Value| (text(&row["file"]), (text(&row["state"]), text(&row["reason"]["code"])));
    client.all().iter().map(row).collect()
}

fn is_moving(state: &str) -> bool {
    matches!(state, "seen" | "settled" | "inspected" | "probed" | "gated")
}

/// Waits until nothing is in progress and returns the state of each file.
fn settled(client: &Client, files: usize, patience: Duration) -> BTreeMap<String, (String, String)> {
    let began = Instant::now();
    loop {
        let states = states(client);
        if states.len() >= files && states.values().all(|(state, _)| !is_moving(state)) {
            return states;
        }
        let moving = states.values().filter(|(state, _)| is_moving(state)).count();
        assert!(
            began.elapsed() < patience,
            "of {files} files {} are there, {moving} under way",
            states.len()
        );
        thread::sleep(Duration::from_millis(100));
    }
}

/// With llama.cpp and the post that the corpus was made for. It has no chat template, so texts are
/// completed.
#[test]
fn the_whole_corpus_at_once_is_refused_file_by_file_and_harms_nobody() {
    let home = Home::with(Backend::Llama, "", &["--model", POST]);
    let served = home.start("");
    let client = &served.client;
    let mut expected = BTreeMap::new();
    let mut files = Vec::new();
    for (name, bytes, code) in spoke_corpus::all() {
        // The daemon identifies files by their names without extensions, so no two may share one
        // here.
        let entry = match name.split_once('.') {
            Some((stem, ending)) => format!("{ending}-{stem}.{ending}"),
            None => name.to_owned(),
        };
        expected.insert(entry.clone(), code);
        files.push((entry, bytes));
    }
    // Entries that are not files.
    fs::create_dir_all(home.folder()).unwrap();
    let place = |entry: &str| home.folder().join(entry);
    symlink("/etc/passwd", place("link.gguf")).unwrap();
    symlink("/dev/zero", place("zero.gguf")).unwrap();
    assert!(Command::new("mkfifo").arg(place("fifo.gguf")).status().unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(place("socket.gguf")).unwrap();
    let odd = [
        ("link.gguf", "symlink"),
        ("zero.gguf", "symlink"),
        ("fifo.gguf", "fifo"),
        ("socket.gguf", "socket"),
    ];
    expected.extend(odd.map(|(entry, code)| (entry.to_owned(), Some(code))));

    let ask = || {
        let body = json!({"prompt": "abc", "max_tokens": 4, "ignore_eos": true, "temperature": 0});
        let answer = client.agent.post(format!("{}/v1/completions", client.url)).send_json(body);
        let answer: Value = answer.expect("it lives").body_mut().read_json().unwrap();
        answer["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    };
    let before = ask();
    for (entry, bytes) in &files {
        home.put(entry, bytes);
    }
    let began = Instant::now();
    while states(client).len() < expected.len() {
        assert_eq!(ask(), before);
        assert!(began.elapsed() < Duration::from_secs(120), "{:?}", states(client));
    }
    let found = settled(client, expected.len(), Duration::from_secs(300));
    assert_eq!(ask(), before);
    let mut wrong = Vec::new();
    for (entry, code) in &expected {
        let (state, reason) = &found[entry];
        let right = match code {
            Some(code) => state == "quarantined" && reason == code,
            None => state == "serving",
        };
        if !right {
            wrong.push(format!("{entry} is {state} ({reason}), expected {code:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // Every refused content is kept with its reason in words.
    for row in client.all().iter().filter(|row| row["state"] == "quarantined") {
        assert!(row["reason"]["message"].as_str().is_some_and(|message| message.len() > 10), "{row}");
    }
}

#[test]
fn files_that_are_half_written_renamed_replaced_or_deleted_harm_nobody() {
    let home = Home::new(Backend::Llama);
    let served = home.start("");
    let client = &served.client;
    let mut contents = Contents::new(Backend::Llama);
    let [steady, first, second] = std::array::from_fn(|_| contents.next());
    home.put("steady.gguf", &steady.bytes);
    client.serves("steady", steady.generation);
    let place = |entry: &str| home.folder().join(entry);
    let reason = |name: &str| {
        let rows = client.rows(name);
        let row = rows.iter().find(|row| row["reason"].is_object());
        row.map(|row| row["reason"]["code"].as_str().unwrap_or_default().to_owned())
    };
    let ((), slowest) = while_asked(client, "steady", &steady, || {
        // Half of a file is refused as such. Once the rest arrives, the file is served.
        let half = first.bytes.len() / 2;
        let mut file = OpenOptions::new().create(true).append(true).open(place("half.gguf")).unwrap();
        file.write_all(&first.bytes[..half]).unwrap();
        wait_until("half a file is refused", || reason("half").as_deref() == Some("outside_file"));
        file.write_all(&first.bytes[half..]).unwrap();
        drop(file);
        client.serves("half", first.generation);
        assert!(client.answers_as("half", &first));

        // A renamed file is served under the new name, and the old name is gone.
        fs::rename(place("half.gguf"), place("whole.gguf")).unwrap();
        client.serves("whole", first.generation);
        wait_until("the old name is gone", || client.rows("half").is_empty());
        assert!(client.asked("half", false).unwrap_err().starts_with("404"));
        assert!(client.answers_as("whole", &first));

        // Overwritten again and again while it is read, in place and by renames. The final content
        // is served.
        for round in 0..20 {
            let content = [&second, &first][round % 2];
            if round % 4 < 2 {
                fs::write(place("whole.gguf"), &content.bytes[..content.bytes.len() - round]).unwrap();
            } else {
                home.put("whole.gguf", &content.bytes);
            }
            thread::sleep(Duration::from_millis(37 * round as u64 % 200));
            let (told, says) = client.asked("whole", round % 2 == 0).expect("something good goes on serving");
            let right = [&first, &second].into_iter().find(|content| content.generation.short() == told);
            assert_eq!(says, right.expect("one of the two").says);
        }
        fs::write(place("whole.gguf"), &second.bytes).unwrap();
        client.serves("whole", second.generation);
        assert!(client.answers_as("whole", &second));

        // Deleted while a request runs with it: that request completes, and the next one gets an
        // error.
        let mut running = long_answer(client, "whole");
        fs::remove_file(place("whole.gguf")).unwrap();
        wait_until("the name is gone", || client.rows("whole").is_empty());
        assert!(client.asked("whole", false).unwrap_err().contains("its file was deleted"));
        let mut rest = String::new();
        running.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("[DONE]") && !rest.contains("\"error\""), "{rest}");

        // The folder itself is removed and restored.
        let away = home.root.path().join("away");
        fs::rename(home.folder(), &away).unwrap();
        thread::sleep(Duration::from_millis(300));
        fs::rename(&away, home.folder()).unwrap();
    });
    eprintln!("the slowest answer meanwhile took {slowest:?}");
}

/// A stream whose first chunk has arrived.
fn long_answer(client: &Client, name: &str) -> impl Read + use<> {
    let body = json!({
        "model": name, "stream": true, "max_tokens": 400, "ignore_eos": true, "temperature": 0,
        "messages": [{"role": "user", "content": "x"}]
    });
    let answer = client.agent.post(format!("{}/v1/chat/completions", client.url)).send_json(body).unwrap();
    assert_eq!(answer.status(), 200);
    let mut reader = answer.into_body().into_reader();
    let mut first = [0; 16];
    reader.read_exact(&mut first).unwrap();
    reader
}

/// With `BESPOKE_FLOOD=1`, all files are followed, copied and inspected; otherwise only the
/// thousand that the settings allow.
#[test]
fn ten_thousand_files_at_once_harm_nobody() {
    const FILES: usize = 10_000;
    let all = std::env::var_os("BESPOKE_FLOOD").is_some();
    let home = Home::with(Backend::Llama, if all { "most = 20000" } else { "" }, &[]);
    let served = home.start("");
    let client = &served.client;
    let mut contents = Contents::new(Backend::Llama);
    let [steady, newer] = std::array::from_fn(|_| contents.next());
    home.put("steady.gguf", &steady.bytes);
    client.serves("steady", steady.generation);
    let before = resident(served.program.id());
    let flood = home.root.path().join("flood");
    fs::create_dir(&flood).unwrap();
    for file in 0..FILES {
        // Three kinds of files, each with its own content.
        let path = flood.join(format!("junk-{file:05}.gguf"));
        match file % 3 {
            0 => fs::write(&path, format!("junk number {file}")).unwrap(),
            1 => fs::write(&path, [b"GGUF\x03\0\0\0".as_slice(), &file.to_le_bytes(), &[0xff; 8]].concat())
                .unwrap(),
            _ => symlink(Path::new("/nowhere"), &path).unwrap(),
        }
    }
    let began = Instant::now();
    let (found, slowest) = while_asked(client, "steady", &steady, || {
        for entry in fs::read_dir(&flood).unwrap() {
            let entry = entry.unwrap();
            fs::rename(entry.path(), home.folder().join(entry.file_name())).unwrap();
        }
        settled(client, FILES + 1, Duration::from_secs(if all { 3_600 } else { 120 }))
    });
    let took = began.elapsed();
    let mut codes: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, code) in found.values() {
        *codes.entry(code).or_default() += 1;
    }
    let grown = resident(served.program.id()).saturating_sub(before);
    eprintln!(
        "{FILES} files: {codes:?} after {took:?}; the slowest answer meanwhile took {slowest:?}; memory grew by {} KiB",
        grown >> 10
    );
    assert_eq!(codes.values().sum::<usize>(), FILES + 1);
    assert_eq!(codes.get(""), Some(&1), "one of them serves: {codes:?}");
    if all {
        assert_eq!(codes["symlink"], FILES / 3);
        assert!(!codes.contains_key("too_many"), "{codes:?}");
    } else {
        assert_eq!(codes["too_many"], FILES + 1 - 1_000);
    }
    assert!(grown < 64 << 20, "{grown} bytes");
    // A serving spoke can still be replaced.
    home.put("steady.gguf", &newer.bytes);
    client.serves("steady", newer.generation);
    assert!(client.answers_as("steady", &newer));
}
