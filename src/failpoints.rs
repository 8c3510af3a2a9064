//! Fail points: places where a test can kill the process, as `kill -9` does, or make it overlook an
//! event or an error. They do nothing unless the program is built with the feature `test-support`.
//!
//! `BESPOKE_FAIL` lists them, separated by commas: `NAME`, or `NAME@DETAIL` to fail only for this
//! detail. A trailing `#N` fails at the Nth time only. For [`trouble`], `NAME@FILE` returns an I/O
//! error as long as `FILE` exists; the file holds the error number.

/// Kills the process here if `BESPOKE_FAIL` names this point.
#[inline]
pub fn point(name: &str, detail: &str) {
    #[cfg(feature = "test-support")]
    armed::pass(name, detail);
    #[cfg(not(feature = "test-support"))]
    let _ = (name, detail);
}

/// Whether the caller should overlook an event here.
#[inline]
pub fn is_blind(name: &str) -> bool {
    #[cfg(feature = "test-support")]
    return armed::is_listed(name);
    #[cfg(not(feature = "test-support"))]
    {
        let _ = name;
        false
    }
}

/// Whether the caller should fail here, in its own way, each time.
#[inline]
pub fn is_set(name: &str, detail: &str) -> bool {
    #[cfg(feature = "test-support")]
    return armed::is_set(name, detail);
    #[cfg(not(feature = "test-support"))]
    {
        let _ = (name, detail);
        false
    }
}

/// Returns the I/O error that a test currently wants here.
///
/// # Errors The error number in the file that `BESPOKE_FAIL` names.
#[inline]
pub fn trouble(name: &str) -> std::io::Result<()> {
    #[cfg(feature = "test-support")]
    return armed::trouble(name);
    #[cfg(not(feature = "test-support"))]
    {
        let _ = name;
        Ok(())
    }
}

#[cfg(feature = "test-support")]
mod armed {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Point {
        name: String,
        detail: Option<String>,
        time: u64,
        passed: AtomicU64,
    }

    static POINTS: LazyLock<Vec<Point>> =
        LazyLock::new(|| std::env::var("BESPOKE_FAIL").map_or_else(|_| Vec::new(), |text| parse(&text)));

    fn parse(text: &str) -> Vec<Point> {
        let point = |text: &str| {
            let (place, time) = text.split_once('#').unwrap_or((text, "1"));
            let (name, detail) = match place.split_once('@') {
                Some((name, detail)) => (name, Some(detail.to_owned())),
                None => (place, None),
            };
            let time = time.parse().unwrap_or(1);
            Point { name: name.to_owned(), detail, time, passed: AtomicU64::new(0) }
        };
        text.split(',').map(point).collect()
    }

    fn is_hit(points: &[Point], name: &str, detail: &str) -> bool {
        points.iter().any(|point| {
            point.name == name
                && point.detail.as_deref().is_none_or(|wanted| wanted == detail)
                && point.passed.fetch_add(1, Ordering::SeqCst) + 1 == point.time
        })
    }

    pub(super) fn is_listed(name: &str) -> bool {
        POINTS.iter().any(|point| point.name == name)
    }

    pub(super) fn is_set(name: &str, detail: &str) -> bool {
        let detailed = |point: &Point| point.detail.as_deref().is_none_or(|wanted| wanted == detail);
        POINTS.iter().any(|point| point.name == name && detailed(point))
    }

    pub(super) fn trouble(name: &str) -> std::io::Result<()> {
        let file = POINTS.iter().find(|point| point.name == name).and_then(|point| point.detail.as_ref());
        let number = file.and_then(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok());
        number.map_or(Ok(()), |number| Err(std::io::Error::from_raw_os_error(number)))
    }

    pub(super) fn pass(name: &str, detail: &str) {
        if is_hit(&POINTS, name, detail) {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn points_are_told_apart_by_name_detail_and_time() {
            let points = parse("a,b@x,c#3");
            assert!(is_hit(&points, "a", "whatever") && !is_hit(&points, "a", ""));
            assert!(!is_hit(&points, "b", "y") && is_hit(&points, "b", "x"));
            assert_eq!([1, 2, 3, 4].map(|_| is_hit(&points, "c", "")), [false, false, true, false]);
            assert!(!is_hit(&points, "d", ""));
        }
    }
}
