//! File descriptors: the limit raised at the start, and how many connections it has room for besides everything else.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Soft and hard limit that this process was started with; none is as many as there can be.
static INHERITED: OnceLock<(Option<u64>, Option<u64>)> = OnceLock::new();

/// Descriptors that what isn't a connection may need at the same time: the database and its journal, copies and
/// inspections of files, a probe's pipes, keys, a model.
const OTHERS: u64 = 48;
/// What is in use where the system doesn't tell it.
const IN_USE: u64 = 32;
/// Connections beyond the limit that are answered at the same time.
const BEYOND: u64 = 64;

/// The limit before and after it was raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raised {
    /// What this process was started with.
    pub before: u64,
    /// What it may have now.
    pub now: u64,
}

/// Raises the soft limit to the hard one. That it can't be raised is no mistake: there are fewer connections then.
pub fn raise() -> Raised {
    let inherited = *INHERITED.get_or_init(|| {
        let limit = getrlimit(Resource::Nofile);
        (limit.current, limit.maximum)
    });
    let before = getrlimit(Resource::Nofile);
    if before.current != before.maximum {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: before.maximum, maximum: before.maximum });
    }
    Raised { before: inherited.0.unwrap_or(u64::MAX), now: limit() }
}

/// The soft limit that is in force.
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Soft and hard limit that this process was started with, as the system writes them; none if they were never changed.
pub(crate) fn inherited() -> Option<(libc::rlim_t, libc::rlim_t)> {
    let number = |limit: Option<u64>| limit.map_or(libc::RLIM_INFINITY, |limit| limit as libc::rlim_t);
    INHERITED.get().map(|(soft, hard)| (number(*soft), number(*hard)))
}

/// How many connections there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    /// That are served.
    pub served: u32,
    /// Beyond them, that are told so at the same time.
    pub beyond: u32,
}

impl Connections {
    /// As many as are wanted, if the limit has room for them beside what is open now and what will have to be opened.
    pub fn within(limit: u64, wanted: u32) -> Self {
        Self::beside(limit, in_use(), wanted)
    }

    fn beside(limit: u64, in_use: u64, wanted: u32) -> Self {
        let free = limit.saturating_sub(in_use);
        // Where there are few, each side gets half.
        let room = free - OTHERS.min(free / 2);
        let beyond = BEYOND.min(room / 4).max(1);
        let served = u64::from(wanted).min(room.saturating_sub(beyond)).max(1);
        Self { served: served as u32, beyond: beyond as u32 }
    }
}

/// Descriptors that are open now.
fn in_use() -> u64 {
    // One of them is this look.
    std::fs::read_dir("/proc/self/fd").map_or(IN_USE, |all| all.count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_everything_else() {
        let of = |limit, in_use, wanted| {
            let Connections { served, beyond } = Connections::beside(limit, in_use, wanted);
            assert!(
                u64::from(served) + u64::from(beyond) + in_use <= limit.max(in_use + 2),
                "{limit} {in_use} {wanted}"
            );
            (served, beyond)
        };
        assert_eq!(of(1_048_576, 30, 1_024), (1_024, 64));
        assert_eq!(of(u64::MAX, 30, u32::MAX), (u32::MAX, 64));
        assert_eq!(of(1_024, 30, 1_024), (882, 64));
        assert_eq!(of(256, 30, 1_024), (134, 44));
        assert_eq!(of(64, 24, 1_024), (15, 5));
        // Nothing is left: one connection all the same, and one that is told so.
        assert_eq!(of(16, 30, 1_024), (1, 1));
    }

    #[test]
    fn what_is_open_is_counted() {
        let before = in_use();
        let files: Vec<_> = (0..50).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        // Other tests open and close files meanwhile.
        assert!(in_use() + 40 > before + files.len() as u64, "{before} and {}", in_use());
    }
}
