//! The access log: one line on stderr per request, written when its answer has ended.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::request_context::Facts;
use crate::config::LogFormat;

/// Longest path that is logged.
const LONGEST: usize = 200;

/// A finished request.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Line<'a> {
    pub(super) time: String,
    pub(super) id: &'a str,
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    /// 499 if the client left before the response.
    pub(super) status: u16,
    /// Bytes of the response body that were sent.
    pub(super) bytes: u64,
    pub(super) ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cached_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) task: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) spokes: Option<String>,
    /// Whether the client left before the end of the answer.
    pub(super) client_gone: bool,
}

impl<'a> Line<'a> {
    pub(super) fn new(id: &'a str, method: &'a str, path: &'a str, facts: Facts) -> Self {
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let path = path.char_indices().nth(LONGEST).map_or(path, |(end, _)| &path[..end]);
        let Facts { task, key, prompt_tokens, cached_tokens, completion_tokens, spokes } = facts;
        Self {
            time,
            id,
            method,
            path,
            status: 0,
            bytes: 0,
            ms: 0.0,
            prompt_tokens,
            cached_tokens,
            completion_tokens,
            task,
            key,
            spokes,
            client_gone: false,
        }
    }

    /// Sets the time in milliseconds, rounded to microseconds.
    pub(super) fn took(&mut self, time: Duration) {
        self.ms = (time.as_secs_f64() * 1e6).round() / 1e3;
    }

    /// The line, without its line break.
    fn format(&self, format: LogFormat) -> String {
        match format {
            LogFormat::Json => serde_json::to_string(self).expect("texts and finite numbers are always JSON"),
            LogFormat::Text => self.text(),
        }
    }

    fn text(&self) -> String {
        let Self { time, id, method, path, status, bytes, ms, .. } = self;
        let mut line = format!("{time} access {method} {path} {status} {bytes}B {ms:.1}ms id={id}");
        let numbers = [
            ("prompt", self.prompt_tokens),
            ("cached", self.cached_tokens),
            ("completion", self.completion_tokens),
        ];
        for (name, number) in numbers {
            if let Some(number) = number {
                let _ = write!(line, " {name}={number}");
            }
        }
        // Names and generations contain no spaces; the list of several spokes does.
        let spokes = self.spokes.as_ref().map(|spokes| spokes.replace(' ', ","));
        for (name, text) in [("task", self.task), ("key", self.key.as_deref()), ("spokes", spokes.as_deref())]
        {
            if let Some(text) = text {
                let _ = write!(line, " {name}={text}");
            }
        }
        line + if self.client_gone { " client_gone" } else { "" }
    }

    /// Writes the line. A log that can't be written must not affect requests.
    pub(super) fn write(&self, format: LogFormat) {
        let line = self.format(format) + "\n";
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(path: &str) -> Line<'_> {
        let facts = Facts {
            task: Some("encoding_response"),
            key: Some("0a1b2c3d".to_owned()),
            prompt_tokens: Some(7),
            cached_tokens: Some(2),
            completion_tokens: None,
            spokes: Some("a@0a1b*1 b@2c3d*0.5".to_owned()),
        };
        let mut line = Line::new("abc", "POST", path, facts);
        line.time = "now".to_owned();
        (line.status, line.bytes, line.client_gone) = (200, 12, true);
        line.took(Duration::from_micros(1_500));
        line
    }

    #[test]
    fn a_line_has_both_forms() {
        let line = line("/v1/x");
        assert_eq!(
            line.format(LogFormat::Text),
            "now access POST /v1/x 200 12B 1.5ms id=abc prompt=7 cached=2 task=encoding_response key=0a1b2c3d spokes=a@0a1b*1,b@2c3d*0.5 client_gone"
        );
        let json: serde_json::Value = serde_json::from_str(&line.format(LogFormat::Json)).unwrap();
        assert_eq!((&json["ms"], &json["client_gone"]), (&1.5.into(), &true.into()));
        assert!(json.get("completion_tokens").is_none());
    }

    #[test]
    fn a_long_path_is_cut() {
        let path = "/é".repeat(1_000);
        assert_eq!(line(&path).path.chars().count(), LONGEST);
    }
}
