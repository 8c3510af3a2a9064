//! Formats the local time with the C library, which knows the machine's time zone and whose
//! `strftime` is the one Python uses.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::time::SystemTime;

/// Longest text that a format may produce.
const MOST: usize = 16 << 10;

/// The local time formatted by `strftime`. `None` for a format with a zero byte or a text that is
/// far too long.
pub fn local_time(format: &str, time: SystemTime) -> Option<String> {
    let seconds = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).ok()?,
        Err(before) => -i64::try_from(before.duration().as_secs()).ok()?,
    };
    let seconds = libc::time_t::try_from(seconds).ok()?;
    // `strftime` returns 0 both for an empty text and for one that doesn't fit. A leading character
    // that is always there tells them apart.
    let format = CString::new(format!(".{format}")).ok()?;
    let mut parts = MaybeUninit::<libc::tm>::uninit();
    // SAFETY: both pointers are valid for the call, which writes all of `parts` or returns null.
    let parts = unsafe {
        if libc::localtime_r(&raw const seconds, parts.as_mut_ptr()).is_null() {
            return None;
        }
        parts.assume_init()
    };
    let mut text = vec![0u8; MOST];
    // SAFETY: `text` has as many bytes as passed, the format ends with a zero, and `parts` was
    // filled above.
    let length =
        unsafe { libc::strftime(text.as_mut_ptr().cast(), text.len(), format.as_ptr(), &raw const parts) };
    text.truncate(length);
    String::from_utf8(text).ok()?.strip_prefix('.').map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_day_is_written_as_the_format_says() {
        // Noon in Greenwich is the same day nearly everywhere.
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_721_995_200);
        assert_eq!(local_time("%d %b %Y", time).as_deref(), Some("26 Jul 2024"));
        assert_eq!(local_time("", time).as_deref(), Some(""));
        assert_eq!(local_time("100 %%", time).as_deref(), Some("100 %"));
        assert_eq!(local_time("\0", time), None);
        assert_eq!(local_time(&"%A".repeat(4_000), time), None);
    }
}
