//! File descriptors: raises the limit at startup, and computes how many connections fit within it.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Soft and hard limit that this process started with; `None` means unlimited.
static INHERITED: OnceLock<(Option<u64>, Option<u64>)> = OnceLock::new();

/// Descriptors kept free for everything that is not a connection: the database and its journal,
/// file copies and inspections, a probe's pipes, keys, a model.
const OTHERS: u64 = 48;
/// Assumed number of open descriptors where the system doesn't report it.
const IN_USE: u64 = 32;
/// Connections above the limit that can be answered 503 at the same time.
const BEYOND: u64 = 64;

/// The soft limit before and after raising it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raised {
    /// The limit that this process started with.
    pub before: u64,
    /// The limit in force now.
    pub now: u64,
}

/// Raises the soft limit to the hard one. A failure is no error: it only leaves room for fewer
/// connections.
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

/// The soft limit in force.
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Soft and hard limit that this process started with, as `setrlimit` takes them; `None` if
/// [`raise`] was never called.
pub(crate) fn inherited() -> Option<(libc::rlim_t, libc::rlim_t)> {
    let number = |limit: Option<u64>| limit.map_or(libc::RLIM_INFINITY, |limit| limit as libc::rlim_t);
    INHERITED.get().map(|(soft, hard)| (number(*soft), number(*hard)))
}

/// Number of connections that the descriptor limit allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    /// Connections that are served.
    pub served: u32,
    /// Connections above `served` that are open at the same time only to be answered 503.
    pub beyond: u32,
}

impl Connections {
    /// At most `wanted` connections, fewer if the limit has no room for them next to the
    /// descriptors open now and those kept for other uses.
    pub fn within(limit: u64, wanted: u32) -> Self {
        Self::beside(limit, in_use(), wanted)
    }

    fn beside(limit: u64, in_use: u64, wanted: u32) -> Self {
        let free = limit.saturating_sub(in_use);
        // If few are free, connections and everything else get half each.
        let room = free - OTHERS.min(free / 2);
        let beyond = BEYOND.min(room / 4).max(1);
        let served = u64::from(wanted).min(room.saturating_sub(beyond)).max(1);
        Self { served: served as u32, beyond: beyond as u32 }
    }
}

/// Number of open descriptors.
fn in_use() -> u64 {
    // The count includes the descriptor of this directory listing.
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
        // No descriptor is free: still one connection, and one that is answered 503.
        assert_eq!(of(16, 30, 1_024), (1, 1));
    }

    #[test]
    fn what_is_open_is_counted() {
        let before = in_use();
        let files: Vec<_> = (0..50).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        // Other tests open and close files at the same time.
        assert!(in_use() + 40 > before + files.len() as u64, "{before} and {}", in_use());
    }
}
