//! Limits of the system: memory, open files, folder watches.

use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};
use serde_json::json;

use super::{Item, bytes};
use crate::config::Settings;

/// Minimum memory for everything but weights.
const BASE: u64 = 256 << 20;
/// Open files of the daemon besides connections: database, log, model, watches, pipes of children.
const FILES: u64 = 64;

/// Memory of the machine and of the control group that the process is in.
pub(super) fn memory(settings: &Settings) -> Item {
    const NAME: &str = "memory";
    let (Some(total), Some(available)) = (meminfo("MemTotal"), meminfo("MemAvailable")) else {
        return Item::ok(NAME, "the system doesn't say how much there is");
    };
    let group = group_limit();
    let usable = group.map_or(available, |(limit, used)| available.min(limit.saturating_sub(used)));
    let model = fs_err::metadata(&settings.model.path).map_or(0, |metadata| metadata.len());
    let mut found = format!("{} of {} available", bytes(available), bytes(total));
    if let Some((limit, used)) = group {
        found = format!("{found}; the control group has {} and uses {}", bytes(limit), bytes(used));
    }
    let details = json!({
        "total": total,
        "available": available,
        "group_limit": group.map(|(limit, _)| limit),
        "group_used": group.map(|(_, used)| used),
        "model": model,
    });
    let item = if usable < model + BASE {
        let hint = format!("the model's weights take {}: serve a smaller one, or give it more", bytes(model));
        Item::failure(NAME, found, hint)
    } else if usable < 2 * model + 2 * BASE {
        let hint = "there is little memory left beyond the model: model.lanes and model.context take memory for each request";
        Item::warning(NAME, found, hint)
    } else {
        Item::ok(NAME, found)
    };
    item.with(details)
}

fn meminfo(name: &str) -> Option<u64> {
    let text = fs_err::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The smallest memory limit of the control groups around this process, and the usage.
fn group_limit() -> Option<(u64, u64)> {
    let groups = fs_err::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let root = Path::new("/sys/fs/cgroup");
    let number = |path: PathBuf| fs_err::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let mut folder = root.join(own.trim_start_matches('/'));
    let mut least = None;
    while folder.starts_with(root) {
        if let Some(limit) = number(folder.join("memory.max")) {
            let used = number(folder.join("memory.current")).unwrap_or(0);
            if least.is_none_or(|(other, _)| limit < other) {
                least = Some((limit, used));
            }
        }
        if !folder.pop() {
            break;
        }
    }
    least
}

/// The limit of open files; each connection is one.
pub(super) fn files(settings: &Settings) -> Item {
    const NAME: &str = "open files";
    let limit = getrlimit(Resource::Nofile);
    let wanted = u64::from(settings.server.connections) + FILES;
    let words = |limit: Option<u64>| limit.map_or_else(|| "no limit".to_owned(), |limit| limit.to_string());
    let found = format!("{} (up to {}) may be open", words(limit.current), words(limit.maximum));
    let item = if limit.maximum.is_some_and(|most| most < wanted) {
        let hint = format!(
            "server.connections asks for {wanted}: raise the limit (ulimit -n, LimitNOFILE=), or lower the setting"
        );
        Item::warning(NAME, found, hint)
    } else {
        Item::ok(NAME, found)
    };
    item.with(json!({"soft": limit.current, "hard": limit.maximum, "wanted": wanted}))
}

/// Whether the folder of spokes can be watched.
pub(super) fn inotify() -> Item {
    const NAME: &str = "inotify";
    let limit = |name: &str| {
        let path = format!("/proc/sys/fs/inotify/{name}");
        fs_err::read_to_string(path).ok()?.trim().parse::<u64>().ok()
    };
    let (instances, watches) = (limit("max_user_instances"), limit("max_user_watches"));
    let details = json!({"instances": instances, "watches": watches});
    let words = |limit: Option<u64>| limit.map_or_else(|| "?".to_owned(), |limit| limit.to_string());
    let found = format!("{} instances, {} watches for each user", words(instances), words(watches));
    let tried = notify::recommended_watcher(|_: notify::Result<notify::Event>| {}).and_then(|mut watcher| {
        notify::Watcher::watch(&mut watcher, &std::env::temp_dir(), notify::RecursiveMode::NonRecursive)
    });
    match tried {
        Ok(()) => Item::ok(NAME, found),
        Err(error) => Item::warning(
            NAME,
            format!("{found}; no watch can be created: {error}"),
            "raise fs.inotify.max_user_instances and max_user_watches, or set spokes.watch = \"poll\"",
        ),
    }
    .with(details)
}
