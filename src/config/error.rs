//! Errors of a configuration: every mistake, its line, and what to write instead.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{path}: {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The file can be read but contains mistakes.
    #[error("{path}: {count}{list}", path = path.display(), count = count(mistakes.len()), list = list(mistakes))]
    Mistakes {
        /// The file.
        path: PathBuf,
        /// All of them, in the order of their lines.
        mistakes: Vec<Mistake>,
    },
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Line in the file, from 1; absent if the value is in no file.
    pub line: Option<usize>,
    /// The key, what was found, and what was expected.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
    /// Bytes of the file that the mistake is about, until [`Mistake::locate`] turns them into a
    /// line.
    pub(super) span: Option<Range<usize>>,
}

impl Mistake {
    /// A mistake at a span of the text.
    pub(super) fn new(span: Option<Range<usize>>, message: impl Into<String>, hint: Option<&str>) -> Self {
        Self { line: None, message: message.into(), hint: hint.map(str::to_owned), span }
    }

    /// Computes the line from the span.
    pub(super) fn locate(&mut self, text: &str) {
        if let Some(span) = &self.span {
            let before = text.get(..span.start).unwrap_or(text);
            self.line = Some(before.matches('\n').count() + 1);
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " (hint: {hint})"),
            None => Ok(()),
        }
    }
}

fn count(mistakes: usize) -> String {
    if mistakes == 1 { "1 mistake".to_owned() } else { format!("{mistakes} mistakes") }
}

fn list(mistakes: &[Mistake]) -> String {
    mistakes.iter().fold(String::new(), |list, mistake| format!("{list}\n  {mistake}"))
}
