//! Folders: the daemon's state, the folder of spokes, and the traces of the last run.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Item, bytes};
use crate::config::Settings;
use crate::last_run::{self, LastRun};
use crate::spokes::folder::counts;

/// Free space that the daemon should have.
const ROOM: u64 = 256 << 20;
/// How often a write is timed.
const TIMES: usize = 5;
/// Longer writes make every change of spokes slow.
const SLOW: Duration = Duration::from_millis(100);

/// The state folder: whether it can be written, its free space, and the time of a durable write.
pub(super) fn state(settings: &Settings) -> Item {
    const NAME: &str = "state folder";
    let path = &settings.paths.state;
    if !path.exists() {
        let parent = path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
        let made = format!("{}: will be created at the first start", path.display());
        return match tempfile::tempfile_in(parent) {
            Ok(_) => Item::ok(NAME, made).with(json!({"path": path, "exists": false})),
            Err(error) => Item::failure(
                NAME,
                format!("{}: can't be made: {}: {error}", path.display(), parent.display()),
                "--state or paths.state names another folder",
            ),
        };
    }
    let (free, latency) = (free(path), fsync(path));
    let details = json!({
        "path": path,
        "exists": true,
        "free": free,
        "fsync_ms": latency.as_ref().ok().map(|time| time.as_secs_f64() * 1e3),
    });
    let latency = match latency {
        Ok(latency) => latency,
        Err(error) => {
            let found = format!("{}: can't be written: {error}", path.display());
            let hint =
                "the user that runs the daemon must own it; --state or paths.state names another folder";
            return Item::failure(NAME, found, hint).with(details);
        }
    };
    let room = free.map_or_else(|| "unknown".to_owned(), bytes);
    let ms = latency.as_secs_f64() * 1e3;
    let found = format!("{}: {room} free, a durable write takes {ms:.1} ms", path.display());
    let item = if free.is_some_and(|free| free < ROOM) {
        Item::warning(NAME, found, format!("spokes are copied here: make room for {} at least", bytes(ROOM)))
    } else if latency > SLOW {
        Item::warning(NAME, found, "each change of spokes waits for several such writes: a faster disk helps")
    } else {
        Item::ok(NAME, found)
    };
    item.with(details)
}

/// Bytes that this user may still write.
fn free(path: &Path) -> Option<u64> {
    let about = rustix::fs::statvfs(path).ok()?;
    about.f_bavail.checked_mul(about.f_frsize)
}

/// The median time of a durable write.
fn fsync(folder: &Path) -> std::io::Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..TIMES {
        let began = Instant::now();
        let mut file = tempfile::tempfile_in(folder)?;
        file.write_all(&[0; 4096])?;
        file.sync_all()?;
        times.push(began.elapsed());
    }
    times.sort();
    Ok(times[TIMES / 2])
}

/// The folder of spokes.
pub(super) fn spokes(settings: &Settings) -> Item {
    const NAME: &str = "spokes folder";
    let path = &settings.paths.spokes;
    if !path.exists() {
        let found = format!("{}: doesn't exist", path.display());
        return if settings.paths.spokes_named {
            Item::ok(NAME, format!("{found}; the daemon will create it"))
        } else {
            Item::ok(NAME, format!("{found}; spokes dropped there later are noticed"))
        }
        .with(json!({"path": path, "exists": false}));
    }
    let entries = fs_err::read_dir(path).and_then(std::iter::Iterator::collect::<Result<Vec<_>, _>>);
    match entries {
        Ok(entries) => {
            let count = entries.iter().filter(|entry| counts(&entry.file_name().to_string_lossy())).count();
            let mode = fs_err::metadata(path).map_or(0, |about| about.mode());
            let details = json!({"path": path, "exists": true, "spokes": count});
            let found = format!("{}: {count} spokes", path.display());
            let item = if mode & 0o002 == 0 {
                Item::ok(NAME, found)
            } else {
                let hint = "every user of this machine can make the daemon serve a spoke: chmod o-w";
                Item::warning(NAME, format!("{found}; others may write to it"), hint)
            };
            item.with(details)
        }
        Err(error) => Item::failure(NAME, error.to_string(), "the daemon's user must be able to read it"),
    }
}

/// How the last run of a daemon with this state folder ended.
pub(super) fn last_run(settings: &Settings) -> Item {
    const NAME: &str = "last run";
    let Some(found) = last_run::read(&settings.paths.state) else {
        return Item::ok(NAME, "there is no record of one");
    };
    let since = |seconds: u64| {
        let at = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
        humantime::format_rfc3339_seconds(at).to_string()
    };
    let LastRun { started, ended, error, crash, .. } = &found;
    let crashed = |at: u64| format!("a run that began at {} ended without a word", since(at));
    let item = match (ended, crash) {
        _ if found.runs() => match crash {
            Some(at) => {
                let text = format!(
                    "a daemon has been running since {}; before it, {}",
                    since(*started),
                    crashed(*at)
                );
                Item::warning(NAME, text, CRASHED)
            }
            None => Item::ok(NAME, format!("a daemon has been running since {}", since(*started))),
        },
        (None, _) => Item::warning(NAME, crashed(*started), CRASHED),
        (Some(end), _) => match error {
            Some(error) => {
                let text = format!("it ended at {} with an error: {error}", since(*end));
                Item::warning(NAME, text, "the log says more")
            }
            None => Item::ok(NAME, format!("it ended cleanly at {}", since(*end))),
        },
    };
    item.with(json!(found))
}

const CRASHED: &str = "it was killed or crashed, or the machine lost power: `journalctl -u bespoke` (or the log), `coredumpctl` and `dmesg` may show why";
