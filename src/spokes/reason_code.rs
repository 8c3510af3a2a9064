//! Reason codes: what programs go by. Whether a reason passes by itself, lies in a file's name or in what it holds follows
//! from the code alone, so that no one compares texts.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a reason lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nature {
    /// The content: it will be the same at the next look.
    Content,
    /// The entry: its name, or that there are others.
    Entry,
    /// The settings or the served post: the content may serve elsewhere, or after a restart.
    Surroundings,
    /// This process or its machine: it says nothing of the content, which waits and is tried again.
    Trouble,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $nature:ident;)*) => {
        /// A reason's name on the wire, in small letters with underscores; stable.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Code {
            $($(#[$doc])* $name,)*
            /// A rule that a file breaks, by the inspector's name of it; and whatever an older journal holds.
            Rule(Cow<'static, str>),
        }

        impl Code {
            /// The code as it is written.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$name => $text,)*
                    Self::Rule(name) => name,
                }
            }

            /// What it lies in.
            pub fn nature(&self) -> Nature {
                match self {
                    $(Self::$name => Nature::$nature,)*
                    Self::Rule(_) => Nature::Content,
                }
            }

            fn known(text: &str) -> Option<Self> {
                Some(match text {
                    $($text => Self::$name,)*
                    _ => return None,
                })
            }

            /// All but those of the inspector.
            #[cfg(test)]
            const OWN: &'static [Self] = &[$(Self::$name,)*];
        }
    };
}

codes! {
    /// The entry's name is none that a spoke can have.
    BadName = "bad_name", Entry;
    /// Another one has the name.
    NameTaken = "name_taken", Entry;
    /// The folder has more entries than are followed.
    TooMany = "too_many", Entry;

    /// The file can't be read at the moment.
    NotRead = "not_read", Trouble;
    /// The state directory takes no copy of it.
    NotCopied = "not_copied", Trouble;
    /// What happens to it can't be written down.
    NotWritten = "not_written", Trouble;
    /// It couldn't be tried.
    NotProbed = "not_probed", Trouble;
    /// It passed its probe, and the engine can't load it at the moment.
    NotLoadedNow = "not_loaded_now", Trouble;
    /// The gate's questions weren't answered.
    GateFailed = "gate_failed", Trouble;
    /// The gate's rows can't be read.
    GateUnreadable = "gate_unreadable", Trouble;
    /// The facts of the post can't be read.
    PostUnreadable = "post_unreadable", Trouble;

    /// The engine has no spokes.
    NotSupported = "not_supported", Surroundings;
    /// It alone is larger than all may be together.
    TooLargeTogether = "too_large_together", Surroundings;

    /// The process that tried it died.
    ProbeDied = "probe_died", Content;
    /// The process that tried it gave no answer.
    ProbeFailed = "probe_failed", Content;
    /// The process that tried it took too long.
    ProbeTooSlow = "probe_too_slow", Content;
    /// The post computes infinities or NaN with it.
    NotFinite = "not_finite", Content;
    /// The engine refuses it.
    NotLoaded = "not_loaded", Content;
    /// The engine fails with it.
    EngineFailed = "engine_failed", Content;
    /// It is worse than its gate's bounds.
    Gate = "gate", Content;
    /// Its gate's questions took too long.
    GateTooSlow = "gate_too_slow", Content;
    /// What examined it broke down.
    ExaminerFailed = "examiner_failed", Content;
    /// The daemon died of it.
    Crashed = "crashed", Content;
    /// Its copy is not there any more.
    NoCopy = "no_copy", Content;

    /// Its file was deleted.
    Deleted = "deleted", Content;
    /// Somebody switched its name off.
    Disabled = "disabled", Content;
    /// Another content serves under its name.
    Replaced = "replaced", Content;
    /// Somebody went back to an earlier one.
    RolledBack = "rolled_back", Content;
    /// It was unloaded by request.
    Unloaded = "unloaded", Content;
}

impl Code {
    /// Whether it says nothing of the content and may be over a moment later.
    pub fn is_transient(&self) -> bool {
        self.nature() == Nature::Trouble
    }

    /// Whether it lies in the entry and not in what that holds.
    pub fn concerns_entry(&self) -> bool {
        self.nature() == Nature::Entry
    }

    /// Whether it lies outside of the content: after a restart that is looked at anew.
    pub fn is_passing(&self) -> bool {
        self.nature() != Nature::Content
    }
}

impl From<&'static str> for Code {
    fn from(text: &'static str) -> Self {
        Self::known(text).unwrap_or(Self::Rule(Cow::Borrowed(text)))
    }
}

impl From<String> for Code {
    fn from(text: String) -> Self {
        Self::known(&text).unwrap_or(Self::Rule(Cow::Owned(text)))
    }
}

impl Deref for Code {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for Code {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq<&str> for Code {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_written_and_read_again_and_unknown_ones_are_rules() {
        for code in Code::OWN {
            let json = serde_json::to_string(code).unwrap();
            assert_eq!(json, format!("\"{code}\""));
            assert_eq!(serde_json::from_str::<Code>(&json).unwrap(), *code);
            assert_eq!(Code::from(code.as_str().to_owned()), *code);
        }
        let rule = Code::from("post_mismatch");
        assert_eq!((rule.nature(), rule == "post_mismatch"), (Nature::Content, true));
        assert_eq!(Code::from("post_mismatch".to_owned()), rule);
    }

    #[test]
    fn only_trouble_of_our_own_is_tried_again() {
        let of = |nature| {
            let mut of: Vec<&str> =
                Code::OWN.iter().filter(|code| code.nature() == nature).map(Code::as_str).collect();
            of.sort_unstable();
            of
        };
        assert_eq!(
            of(Nature::Trouble),
            [
                "gate_failed",
                "gate_unreadable",
                "not_copied",
                "not_loaded_now",
                "not_probed",
                "not_read",
                "not_written",
                "post_unreadable",
            ]
        );
        assert_eq!(of(Nature::Entry), ["bad_name", "name_taken", "too_many"]);
        assert_eq!(of(Nature::Surroundings), ["not_supported", "too_large_together"]);
        assert!(Code::NotCopied.is_transient() && Code::NotCopied.is_passing());
        assert!(!Code::Gate.is_transient() && !Code::Gate.is_passing() && Code::TooMany.concerns_entry());
    }
}
