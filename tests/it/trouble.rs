//! Tests of local trouble: while the disk of the state folder is full, files or processes run
//! short, or the database can't be written, a good file waits with the reason. Once the trouble is
//! over, it serves by itself.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use bespoke::atomic_file;
use serde_json::Value;

use crate::contents::Backend;
use crate::daemon::wait_until;
use crate::dropped::lora;
use crate::home::{Client, Home};
use crate::program::Program;

/// Linux error numbers.
const EIO: &str = "5";
const EAGAIN: &str = "11";
const EACCES: &str = "13";
const EBUSY: &str = "16";
const EMFILE: &str = "24";
const ENOSPC: &str = "28";
const EDQUOT: &str = "122";

/// Waits until a name is waiting, and returns its row.
fn waiting(client: &Client, name: &str) -> Value {
    let mut found = None;
    wait_until(&format!("{name} waits"), || {
        found = client.rows(name).into_iter().find(|row| row["state"] == "waiting");
        found.is_some()
    });
    found.unwrap()
}

/// A home whose program is in trouble while the file exists.
fn troubled(point: &str) -> (Home, PathBuf, String) {
    let home = Home::new(Backend::Scripted(0));
    let trouble = home.root.path().join("trouble");
    let fail = format!("{point}@{}", trouble.display());
    (home, trouble, fail)
}

#[test]
fn what_is_our_trouble_is_held_against_no_file() {
    for (point, number, code, says) in [
        ("durable.write", ENOSPC, "not_copied", "No space left on device"),
        ("durable.write", EDQUOT, "not_copied", "quota"),
        ("durable.open", EMFILE, "not_copied", "Too many open files"),
        ("durable.open", EACCES, "not_copied", "Permission denied"),
        ("spoke.open", EMFILE, "not_read", "Too many open files"),
        ("spoke.open", EIO, "not_read", "Input/output error"),
        ("thread", EAGAIN, "not_read", "Resource temporarily unavailable"),
        ("spoke.fork", EAGAIN, "not_probed", "Resource temporarily unavailable"),
        ("engine.load", EMFILE, "not_loaded_now", "Too many open files"),
    ] {
        let (home, trouble, fail) = troubled(point);
        let living = home.start(&fail);
        let old = home.put("a.gguf", &lora(1));
        living.client.serves("a", old);
        atomic_file::write(&trouble, number.as_bytes()).unwrap();
        let new = home.put("a.gguf", &lora(2));
        let other = home.put("other.gguf", &lora(3));
        for name in ["a", "other"] {
            let row = waiting(&living.client, name);
            assert_eq!(row["reason"]["code"], code, "{point} {number}: {row}");
            assert!(row["reason"]["message"].as_str().unwrap().contains(says), "{point}: {row}");
            assert!(row["retry_at"].is_u64(), "{point}: {row}");
        }
        assert_eq!(living.client.serving("a"), Some(old), "{point}: what serves goes on");
        // Between two attempts the file is briefly in progress, and its state says so.
        wait_until(&format!("{point}: whoever asks for it is told"), || {
            let asked = living.client.asked("other", false).unwrap_err();
            assert!(asked.starts_with("503"), "{point}: {asked}");
            asked.contains(says)
        });
        std::fs::remove_file(&trouble).unwrap();
        living.client.serves("a", new);
        living.client.serves("other", other);
        assert!(living.client.all().iter().all(|row| row["state"] != "quarantined"), "{point}");
    }
}

#[test]
fn a_database_that_takes_nothing_stops_no_one_from_seeing_why() {
    for (number, says) in [(ENOSPC, "No space left"), (EIO, "Input/output error"), (EBUSY, "busy")] {
        let (home, trouble, fail) = troubled("database");
        let living = home.start(&fail);
        let old = home.put("a.gguf", &lora(1));
        living.client.serves("a", old);
        atomic_file::write(&trouble, number.as_bytes()).unwrap();
        let new = home.put("a.gguf", &lora(2));
        let row = waiting(&living.client, "a");
        assert_eq!(row["reason"]["code"], "not_written", "{row}");
        let all = living.client.get("/v1/spokes").unwrap();
        assert!(all["state_error"]["message"].as_str().unwrap().contains(says), "{all}");
        assert_eq!(living.client.serving("a"), Some(old));
        // A client that requests a change gets an error at once instead of waiting.
        assert_eq!(living.client.change("a:disable"), Some(503));
        std::fs::remove_file(&trouble).unwrap();
        wait_until("it is written again", || {
            living.client.get("/v1/spokes").is_some_and(|all| all["state_error"].is_null())
        });
        assert_eq!(living.client.change("a:enable"), Some(200));
        living.client.serves("a", new);
    }
}

#[test]
fn what_waits_is_looked_at_anew_after_a_restart_and_can_be_sent_for() {
    let (home, trouble, fail) = troubled("durable.write");
    let mut living = home.start(&fail);
    atomic_file::write(&trouble, ENOSPC.as_bytes()).unwrap();
    let generation = home.put("a.gguf", &lora(1));
    waiting(&living.client, "a");
    // The change is attempted now, and still fails.
    assert_eq!(living.client.change("a:enable"), Some(503));
    living.program.terminate();
    let living = home.start(&fail);
    waiting(&living.client, "a");
    std::fs::remove_file(&trouble).unwrap();
    assert_eq!(living.client.change("a:enable"), Some(200));
    living.client.serves("a", generation);
}

/// Like [`what_is_our_trouble_is_held_against_no_file`], but with a disk that is really full: a
/// small tmpfs.
#[test]
fn a_state_folder_on_a_full_disk() {
    let home = Home::new(Backend::Scripted(0));
    std::fs::create_dir_all(home.state()).unwrap();
    let mount = format!("mount -t tmpfs -o size=2m,mode=700 none {}", home.state().display());
    let inner = "BESPOKE_TEST_FULL_DISK";
    if std::env::var_os(inner).is_none() {
        // A mount for this test alone, in its own namespace. Not every machine allows that.
        let name = "trouble::a_state_folder_on_a_full_disk";
        let probe = std::process::Command::new("unshare").args(["-rm", "true"]).status();
        if !probe.is_ok_and(|status| status.success()) {
            return eprintln!("skipped: this machine gives no namespace of one's own");
        }
        let again = std::process::Command::new("unshare")
            .arg("-rm")
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(inner, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&again.stdout).into_owned();
        let err = String::from_utf8_lossy(&again.stderr).into_owned();
        assert!(again.status.success() && said.contains("1 passed"), "{said}\n{err}");
        return;
    }
    let mounted = std::process::Command::new("sh").args(["-c", &mount]).status().unwrap();
    assert!(mounted.success(), "{mount}");
    let living = home.start("");
    let small = home.put("small.gguf", &lora(1));
    living.client.serves("small", small);
    let filler = home.state().join("filler");
    let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).open(&filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    let late = home.put("late.gguf", &lora(2));
    let row = waiting(&living.client, "late");
    let code = row["reason"]["code"].as_str().unwrap();
    assert!(matches!(code, "not_copied" | "not_written"), "{row}");
    assert_eq!(living.client.serving("small"), Some(small));
    assert!(living.client.asked("small", false).is_ok());
    // Its space is freed once the file is closed everywhere.
    drop(file);
    std::fs::remove_file(&filler).unwrap();
    living.client.serves("late", late);
}

/// Starts the program with these limits of file descriptors, as set by `ulimit`.
fn limited(ulimit: &str, arguments: &[&str]) -> Program {
    Program::through(
        &["sh", "-c", &format!("{ulimit} && exec \"$0\" \"$@\"")],
        arguments,
        &[("BESPOKE_FAKE_ENGINE", "0")],
    )
}

/// The status line of `/health`, or an empty string.
fn health(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let _ = stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn slow_clients_leave_file_descriptors_for_everything_else() {
    for (ulimit, held) in
        [("ulimit -Sn 64", 300), ("ulimit -n 64", 300), ("ulimit -Sn 200 && ulimit -Hn 300", 500)]
    {
        let home = Home::new(Backend::Scripted(0));
        let folder = home.folder();
        let state = home.state();
        std::fs::create_dir_all(&folder).unwrap();
        let arguments = ["--spokes", folder.to_str().unwrap(), "--state", state.to_str().unwrap()];
        let program = limited(ulimit, &arguments);
        let url = program.url();
        let address = url.strip_prefix("http://").unwrap().to_owned();
        wait_until("it is well", || health(&address).contains("200"));
        let slow: Vec<TcpStream> = (0..held)
            .filter_map(|_| {
                let mut stream = TcpStream::connect(&address).ok()?;
                stream.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: loc").ok()?;
                Some(stream)
            })
            .collect();
        assert!(slow.len() > 60);
        wait_until(&format!("{ulimit}: it says that it is well"), || health(&address).contains("200"));
        // Work other than connections also continues: a file is copied, probed, loaded and
        // recorded.
        let generation = home.put("a.gguf", &lora(1));
        let database = home.state().join("bespoke.sqlite");
        let current = || -> rusqlite::Result<String> {
            let connection = rusqlite::Connection::open(&database)?;
            connection.query_row("SELECT current FROM spoke_name WHERE name = 'a'", [], |row| row.get(0))
        };
        wait_until(&format!("{ulimit}: a file serves"), || current() == Ok(generation.to_string()));
        assert!(health(&address).contains("200"), "{ulimit}");
        drop(slow);
    }
}
