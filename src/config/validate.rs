//! Validates single values. A wrong value is recorded as a mistake and replaced by its default.

use std::net::{Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;
use toml::Spanned;

use super::error::Mistake;
use super::settings::LogFormat;

/// Collects mistakes. A wrong value becomes its default, so that later values can be validated too.
pub(super) struct Check {
    pub(super) mistakes: Vec<Mistake>,
}

impl Check {
    /// Records that a required key is missing.
    pub(super) fn missing(&mut self, key: &str, expected: &str) {
        self.mistakes.push(Mistake::new(None, format!("{key} is missing: expected {expected}"), None));
    }

    /// One of several words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &str,
        found: Option<Spanned<String>>,
        words: &[(&str, T)],
        default: T,
    ) -> T {
        let Some(found) = found else { return default };
        if let Some((_, meant)) = words.iter().find(|(word, _)| word == found.get_ref()) {
            return *meant;
        }
        let words: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        self.wrong(key, &found, &words.join(" or "), None);
        default
    }

    /// A number from 0 to 1.
    pub(super) fn share(&mut self, key: &str, found: Spanned<f64>) -> f64 {
        if (0.0..=1.0).contains(found.get_ref()) {
            return found.into_inner();
        }
        self.wrong(key, &found, "a number from 0 to 1", None);
        0.0
    }

    pub(super) fn wrong(
        &mut self,
        key: &str,
        found: &Spanned<impl std::fmt::Debug>,
        expected: &str,
        hint: Option<&str>,
    ) {
        let message = format!("{key} = {:?}: expected {expected}", found.get_ref());
        self.mistakes.push(Mistake::new(Some(found.span()), message, hint));
    }

    pub(super) fn address(&mut self, key: &str, found: Option<Spanned<String>>) -> SocketAddr {
        let default = SocketAddr::from(([127, 0, 0, 1], 8899));
        let Some(found) = found else { return default };
        found.get_ref().parse().unwrap_or_else(|_| {
            self.wrong(key, &found, "ADDRESS:PORT", Some("\"127.0.0.1:8899\" is for this machine alone"));
            default
        })
    }

    pub(super) fn size(
        &mut self,
        key: &str,
        found: Option<Spanned<String>>,
        default: ByteSize,
        range: RangeInclusive<u64>,
    ) -> ByteSize {
        let Some(found) = found else { return default };
        match found.get_ref().parse::<ByteSize>() {
            Ok(size) if range.contains(&size.as_u64()) => size,
            _ => {
                let (least, most) = (ByteSize(*range.start()), ByteSize(*range.end()));
                let expected = format!("a size from {} to {}", least.display().iec(), most.display().iec());
                self.wrong(key, &found, &expected, Some("write its unit too, as in \"2 MiB\""));
                default
            }
        }
    }

    pub(super) fn duration(
        &mut self,
        key: &str,
        found: Option<Spanned<String>>,
        default_secs: u64,
    ) -> Duration {
        self.any_time(key, found, Duration::from_secs(default_secs))
    }

    fn any_time(&mut self, key: &str, found: Option<Spanned<String>>, default: Duration) -> Duration {
        let Some(found) = found else { return default };
        match humantime::parse_duration(found.get_ref()) {
            Ok(duration) if duration <= Duration::from_secs(86_400) => duration,
            _ => {
                let hint = "write its unit too, as in \"30s\" or \"10m\"";
                self.wrong(key, &found, "a duration of a day at most", Some(hint));
                default
            }
        }
    }

    /// A duration that must not be zero.
    pub(super) fn pause(&mut self, key: &str, found: Option<Spanned<String>>, default_secs: u64) -> Duration {
        self.time(key, found, Duration::from_secs(default_secs))
    }

    /// As [`Self::pause`], with a default of any length.
    pub(super) fn time(&mut self, key: &str, found: Option<Spanned<String>>, default: Duration) -> Duration {
        let place = found.clone();
        let duration = self.any_time(key, found, default);
        match place {
            Some(found) if duration.is_zero() => {
                self.wrong(key, &found, "more than no time at all", Some("as in \"10s\""));
                default
            }
            _ => duration,
        }
    }

    pub(super) fn format(&mut self, key: &str, found: Option<Spanned<String>>) -> LogFormat {
        let Some(found) = found else { return LogFormat::Text };
        match found.get_ref().as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            _ => {
                self.wrong(key, &found, "\"text\" or \"json\"", None);
                LogFormat::Text
            }
        }
    }

    pub(super) fn access(&mut self, key: &str, found: Option<Spanned<String>>) -> Option<LogFormat> {
        let Some(found) = found else { return Some(LogFormat::Text) };
        match found.get_ref().as_str() {
            "text" => Some(LogFormat::Text),
            "json" => Some(LogFormat::Json),
            "off" => None,
            _ => {
                self.wrong(key, &found, "\"text\", \"json\" or \"off\"", None);
                None
            }
        }
    }

    /// Names as they appear in a Host header, in lower case, without a port.
    pub(super) fn hosts(&mut self, key: &str, found: Option<Vec<Spanned<String>>>) -> Vec<String> {
        let mut hosts = Vec::new();
        for found in found.into_iter().flatten() {
            let host = found.get_ref().to_ascii_lowercase();
            let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            let fits = match address {
                Some(address) => address.parse::<Ipv6Addr>().is_ok(),
                None => {
                    !host.is_empty()
                        && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
                }
            };
            if fits {
                hosts.push(host);
            } else {
                let hint = "as in \"bespoke.lan\", \"192.168.1.20\" or \"[fd00::1]\"";
                self.wrong(key, &found, "a name or address without a port", Some(hint));
            }
        }
        hosts
    }

    /// Origins as browsers send them.
    pub(super) fn origins(&mut self, key: &str, found: Option<Vec<Spanned<String>>>) -> Vec<String> {
        let mut origins = Vec::new();
        for found in found.into_iter().flatten() {
            let origin = found.get_ref().as_str();
            let authority = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            let fits = |authority: &str| {
                !authority.is_empty()
                    && authority.chars().all(|c| {
                        c.is_ascii_digit()
                            || c.is_ascii_lowercase()
                            || matches!(c, '.' | '-' | '_' | ':' | '[' | ']')
                    })
            };
            if matches!(origin, "*" | "localhost") || authority.is_some_and(fits) {
                origins.push(found.into_inner());
            } else {
                let hint = "as in \"http://localhost:3000\", without a path; \"localhost\" is this machine's at any \
                            port, \"*\" all of them";
                self.wrong(key, &found, "an origin", Some(hint));
            }
        }
        origins
    }

    pub(super) fn name(&mut self, key: &str, found: Option<Spanned<String>>, default: String) -> String {
        let Some(found) = found else { return default };
        if found.get_ref().trim().is_empty() || found.get_ref().contains(char::is_control) {
            self.wrong(key, &found, "a name", None);
            return default;
        }
        found.into_inner()
    }

    /// Further names of the same thing.
    pub(super) fn names(&mut self, key: &str, found: Option<Vec<Spanned<String>>>) -> Vec<String> {
        let names = found.into_iter().flatten().map(|name| self.name(key, Some(name), String::new()));
        names.filter(|name| !name.is_empty()).collect()
    }

    /// A seed. As in llama-server, -1 draws one.
    pub(super) fn seed(&mut self, key: &str, found: &Spanned<i64>) -> Option<u64> {
        if *found.get_ref() < -1 {
            self.wrong(key, found, "a whole number from 0 on, or -1: one is drawn", None);
        }
        u64::try_from(*found.get_ref()).ok()
    }

    pub(super) fn whole(
        &mut self,
        key: &str,
        found: Option<Spanned<i64>>,
        range: RangeInclusive<u32>,
        default: u32,
    ) -> u32 {
        let Some(found) = found else { return default };
        match u32::try_from(*found.get_ref()) {
            Ok(number) if range.contains(&number) => number,
            _ => {
                let expected = format!("a whole number from {} to {}", range.start(), range.end());
                self.wrong(key, &found, &expected, None);
                default
            }
        }
    }

    pub(super) fn number(
        &mut self,
        key: &str,
        found: Option<Spanned<f64>>,
        range: RangeInclusive<f64>,
        default: f32,
    ) -> f32 {
        let Some(found) = found else { return default };
        if range.contains(found.get_ref()) {
            return *found.get_ref() as f32;
        }
        self.wrong(key, &found, &format!("a number from {} to {}", range.start(), range.end()), None);
        default
    }
}
