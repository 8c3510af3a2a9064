//! Tests of the spoke folder: names, slow writers, floods, a folder that goes away, and a system
//! without events.

use std::time::Duration;

use bespoke::engine::{FakeEngine, Script};
use serde_json::json;

use super::{Served, alone};
use crate::daemon::wait_until;
use crate::dropped::{generation, lora};

#[test]
fn a_name_belongs_to_one_file() {
    let served = Served::new();
    let first = served.put("a.gguf", &lora(1));
    served.serves("a", first);
    let second = served.put("a.zip", &lora(2));
    assert_eq!(served.row("a", "quarantined")["reason"]["code"], "name_taken");
    served.put("bespoke-tiny.gguf", &lora(3));
    assert_eq!(served.row("bespoke-tiny", "quarantined")["reason"]["code"], "name_taken");
    served.put("two words.gguf", &lora(3));
    assert_eq!(served.row("two words.gguf", "quarantined")["reason"]["code"], "bad_name");
    std::fs::remove_file(served.folder().join("a.gguf")).unwrap();
    served.serves("a", second);
    assert_eq!(served.told(json!({"model": "a"})), alone(second));
}

#[test]
fn a_file_that_is_written_slowly_is_read_once_it_is_whole() {
    let served = Served::new();
    let content = lora(1);
    let path = served.folder().join("slow.gguf");
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
    for part in content.chunks(content.len() / 8 + 1) {
        std::io::Write::write_all(&mut file, part).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(served.rows("slow").iter().all(|row| row["state"] == "seen"), "{:?}", served.rows("slow"));
    }
    served.serves("slow", generation(&content));
}

#[test]
fn a_folder_that_can_not_be_read_takes_nothing_out_of_service() {
    let served = Served::with(|settings| {
        settings.spokes.events = false;
        settings.spokes.poll = Duration::from_millis(100);
    });
    let generation = served.put("a.gguf", &lora(1));
    served.serves("a", generation);
    let away = served.root.path().join("away");
    std::fs::rename(served.folder(), &away).unwrap();
    wait_until("it is noticed", || {
        served.daemon.get("/metrics").text.contains("bespoke_spoke_folder_readable 0")
    });
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(served.told(json!({"model": "a"})), alone(generation));
    std::fs::rename(&away, served.folder()).unwrap();
    let new = served.put("a.gguf", &lora(2));
    served.serves("a", new);
}

#[test]
fn an_empty_folder_under_an_unmounted_disk_takes_nothing_out_of_service() {
    // Two file systems that every Linux has. A link decides where the spoke folder is, as a mount
    // would.
    let [disk, below] = ["/dev/shm", "/tmp"].map(|place| tempfile::tempdir_in(place).unwrap());
    let device = |path: &std::path::Path| std::os::unix::fs::MetadataExt::dev(&path.metadata().unwrap());
    assert_ne!(device(disk.path()), device(below.path()), "the test needs two file systems");
    let root = tempfile::tempdir().unwrap();
    let link = root.path().join("spokes");
    std::os::unix::fs::symlink(disk.path(), &link).unwrap();
    let served = Served::over(FakeEngine::new(Script::Spokes(Duration::ZERO)), root, |settings| {
        settings.spokes.events = false;
        settings.spokes.poll = Duration::from_millis(100);
    });
    let generation = served.put("a.gguf", &lora(1));
    served.serves("a", generation);
    let exchange = |to: &std::path::Path| {
        let new = served.root.path().join("new");
        std::os::unix::fs::symlink(to, &new).unwrap();
        std::fs::rename(&new, &link).unwrap();
    };
    exchange(below.path());
    wait_until("it is noticed", || {
        served.daemon.get("/metrics").text.contains("bespoke_spoke_folder_readable 0")
    });
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(served.told(json!({"model": "a"})), alone(generation));
    exchange(disk.path());
    let new = served.put("a.gguf", &lora(2));
    served.serves("a", new);
    // On its own disk, an empty folder means that everything was deleted.
    std::fs::remove_file(served.folder().join("a.gguf")).unwrap();
    wait_until("it is gone", || served.rows("a").is_empty());
}

#[test]
fn what_is_refused_before_it_is_copied_leaves_its_reason_too() {
    let served = Served::new();
    std::os::unix::fs::symlink("/etc/passwd", served.folder().join("link.gguf")).unwrap();
    served.put("empty.gguf", b"");
    let kept = served.root.path().join("state/spokes/quarantine");
    for (name, code) in [("link", "symlink"), ("empty", "empty_file")] {
        assert_eq!(served.row(name, "quarantined")["reason"]["code"], code);
        wait_until("the reason is kept", || {
            let folders = std::fs::read_dir(&kept).into_iter().flatten();
            let reasons =
                folders.map(|entry| std::fs::read_to_string(entry.unwrap().path().join("reason.json")));
            reasons.flatten().any(|reason| {
                let reason: serde_json::Value = serde_json::from_str(&reason).unwrap();
                reason["name"] == name && reason["reason"]["code"] == code
            })
        });
    }
}

#[test]
fn polling_finds_what_the_system_does_not_tell() {
    let served = Served::with(|settings| {
        settings.spokes.events = false;
        settings.spokes.poll = Duration::from_millis(100);
    });
    let generation = served.put("a.gguf", &lora(1));
    served.serves("a", generation);
    std::fs::remove_file(served.folder().join("a.gguf")).unwrap();
    wait_until("it is gone", || served.rows("a").is_empty());
}

#[test]
fn a_flood_of_files_is_taken_in_turns_and_requests_are_answered_meanwhile() {
    let served = Served::with(|settings| settings.spokes.most = 50);
    let generation = served.put("wanted.gguf", &lora(1));
    served.serves("wanted", generation);
    for n in 0..3_000 {
        std::os::unix::fs::symlink("/nowhere", served.folder().join(format!("junk{n:04}.gguf"))).unwrap();
    }
    let took = std::time::Instant::now();
    assert_eq!(served.told(json!({"model": "wanted"})), alone(generation));
    assert!(took.elapsed() < Duration::from_secs(5), "{:?}", took.elapsed());
    let count = |code: &str| {
        let all = served.daemon.get("/v1/spokes").ok();
        all["data"].as_array().unwrap().iter().filter(|row| row["reason"]["code"] == code).count()
    };
    wait_until("all of them have been looked at", || count("symlink") == 49 && count("too_many") == 2_951);
    // A change of the serving file is noticed before its turn in the queue.
    let newer = served.put("wanted.gguf", &lora(2));
    served.serves("wanted", newer);
}
