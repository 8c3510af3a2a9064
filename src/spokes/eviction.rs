//! Decides which spokes leave memory when another needs room. Pure: no I/O and no clock.

use std::time::SystemTime;

use crate::adapter::Generation;

/// A spoke in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    /// Its generation.
    pub generation: Generation,
    /// Bytes that it takes.
    pub bytes: u64,
    /// Whether no request uses it.
    pub idle: bool,
    /// When a request last took a lease; `None`: never.
    pub last_used: Option<SystemTime>,
}

/// Whether a spoke fits into memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Room {
    /// It fits after these are evicted.
    After(Vec<Generation>),
    /// It will fit after these, which are in use, become idle and are evicted.
    Later(Vec<Generation>),
    /// It can't fit.
    Never,
}

/// Looks for room for `needed` bytes within `limit`. Spokes in `kept` always stay, because they
/// belong to the request. Of the others, idle spokes go before those in use, the least recently
/// used first, and no more than necessary.
pub fn room(residents: &[Resident], kept: &[Generation], needed: u64, limit: u64) -> Room {
    let sum = |of: &dyn Fn(&&Resident) -> bool| -> u64 {
        residents.iter().filter(of).map(|resident| resident.bytes).fold(0, u64::saturating_add)
    };
    let is_kept = |resident: &&Resident| kept.contains(&resident.generation);
    if sum(&is_kept).saturating_add(needed) > limit {
        return Room::Never;
    }
    let mut taken = sum(&|_| true).saturating_add(needed);
    let mut others: Vec<&Resident> = residents.iter().filter(|resident| !is_kept(resident)).collect();
    others.sort_by_key(|resident| (!resident.idle, resident.last_used));
    let (mut idle, mut busy) = (Vec::new(), Vec::new());
    for resident in others {
        if taken <= limit {
            break;
        }
        taken -= resident.bytes;
        (if resident.idle { &mut idle } else { &mut busy }).push(resident.generation);
    }
    if busy.is_empty() { Room::After(idle) } else { Room::Later(busy) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn generation(n: u8) -> Generation {
        Generation::of_reader(&[n][..]).unwrap()
    }

    fn resident(n: u8, bytes: u64, idle: bool, used: Option<u64>) -> Resident {
        let last_used = used.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        Resident { generation: generation(n), bytes, idle, last_used }
    }

    #[test]
    fn the_least_recently_used_idle_spokes_go_and_no_more_than_must() {
        let there = [
            resident(1, 30, true, Some(9)),
            resident(2, 30, true, Some(2)),
            resident(3, 30, false, Some(1)),
            resident(4, 5, true, None),
        ];
        let cases: &[(u64, u64, Room)] = &[
            (5, 100, Room::After(vec![])),
            (6, 100, Room::After(vec![generation(4)])),
            (11, 100, Room::After(vec![generation(4), generation(2)])),
            (70, 100, Room::After(vec![generation(4), generation(2), generation(1)])),
            (71, 100, Room::Later(vec![generation(3)])),
            (100, 100, Room::Later(vec![generation(3)])),
            (101, 100, Room::Never),
            (u64::MAX, 100, Room::Never),
        ];
        for (needed, limit, expected) in cases {
            assert_eq!(room(&there, &[], *needed, *limit), *expected, "{needed} within {limit}");
        }
    }

    #[test]
    fn of_those_in_use_no_more_have_to_end_than_must() {
        let there = [
            resident(1, 40, false, Some(9)),
            resident(2, 30, false, Some(2)),
            resident(3, 30, true, Some(99)),
        ];
        assert_eq!(room(&there, &[], 31, 100), Room::Later(vec![generation(2)]));
        assert_eq!(room(&there, &[], 61, 100), Room::Later(vec![generation(2), generation(1)]));
        assert_eq!(room(&there, &[generation(2)], 31, 100), Room::Later(vec![generation(1)]));
    }

    #[test]
    fn what_is_asked_for_together_does_not_displace_itself() {
        let there = [resident(1, 50, true, None), resident(2, 50, true, Some(5))];
        assert_eq!(room(&there, &[generation(1)], 50, 100), Room::After(vec![generation(2)]));
        assert_eq!(room(&there, &[generation(1), generation(2)], 1, 100), Room::Never);
        assert_eq!(room(&there, &[generation(1)], 51, 100), Room::Never);
    }
}
