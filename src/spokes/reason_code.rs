//! Reason codes for programs. Whether a reason is transient, or concerns a file's name or its
//! content, follows from the code alone, so that no code compares messages.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a reason is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nature {
    /// The content: the result will be the same next time.
    Content,
    /// The entry: its name, or a conflict with other entries.
    Entry,
    /// The settings or the served post: the content may serve elsewhere, or after a restart.
    Surroundings,
    /// This process or its machine: it says nothing about the content, which waits and is tried
    /// again.
    Trouble,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $nature:ident;)*) => {
        /// Name of a reason in the API, in snake_case; stable.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Code {
            $($(#[$doc])* $name,)*
            /// A rule that a file breaks, by the inspector's name; also any code in an older
            /// journal.
            Rule(Cow<'static, str>),
        }

        impl Code {
            /// The code's text.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$name => $text,)*
                    Self::Rule(name) => name,
                }
            }

            /// What the reason is about.
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

            /// All codes except the inspector's.
            #[cfg(test)]
            const OWN: &'static [Self] = &[$(Self::$name,)*];
        }
    };
}

codes! {
    /// The entry's name is not valid for a spoke.
    BadName = "bad_name", Entry;
    /// Another spoke has the name.
    NameTaken = "name_taken", Entry;
    /// The folder has more entries than are followed.
    TooMany = "too_many", Entry;

    /// The file can't be read at the moment.
    NotRead = "not_read", Trouble;
    /// The file can't be copied into the state directory.
    NotCopied = "not_copied", Trouble;
    /// The change can't be written to the database.
    NotWritten = "not_written", Trouble;
    /// The spoke couldn't be probed.
    NotProbed = "not_probed", Trouble;
    /// The spoke passed its probe, but the engine can't load it at the moment.
    NotLoadedNow = "not_loaded_now", Trouble;
    /// The gate's questions were not answered.
    GateFailed = "gate_failed", Trouble;
    /// The gate's rows can't be read.
    GateUnreadable = "gate_unreadable", Trouble;
    /// The facts of the post can't be read.
    PostUnreadable = "post_unreadable", Trouble;

    /// The engine doesn't support spokes.
    NotSupported = "not_supported", Surroundings;
    /// The spoke alone exceeds the memory limit of all spokes.
    TooLargeTogether = "too_large_together", Surroundings;

    /// It was trained on another post.
    PostMismatch = "post_mismatch", Content;
    /// The probe process died.
    ProbeDied = "probe_died", Content;
    /// The probe process gave no answer.
    ProbeFailed = "probe_failed", Content;
    /// The probe process took too long.
    ProbeTooSlow = "probe_too_slow", Content;
    /// The post computes infinities or NaN with the spoke.
    NotFinite = "not_finite", Content;
    /// The engine refuses the spoke.
    NotLoaded = "not_loaded", Content;
    /// The engine fails with the spoke.
    EngineFailed = "engine_failed", Content;
    /// The spoke violates a bound of its gate.
    Gate = "gate", Content;
    /// The gate's questions took too long.
    GateTooSlow = "gate_too_slow", Content;
    /// The code that examined it panicked.
    ExaminerFailed = "examiner_failed", Content;
    /// The daemon crashed with it.
    Crashed = "crashed", Content;
    /// Its copy no longer exists.
    NoCopy = "no_copy", Content;

    /// Its file was deleted.
    Deleted = "deleted", Content;
    /// An operator disabled its name.
    Disabled = "disabled", Content;
    /// Another generation serves under its name.
    Replaced = "replaced", Content;
    /// An operator rolled the name back to an earlier generation.
    RolledBack = "rolled_back", Content;
    /// It was unloaded by request.
    Unloaded = "unloaded", Content;
}

impl Code {
    /// Whether the reason says nothing about the content and may soon be over.
    pub fn is_transient(&self) -> bool {
        self.nature() == Nature::Trouble
    }

    /// Whether the reason is about the entry and not its content.
    pub fn concerns_entry(&self) -> bool {
        self.nature() == Nature::Entry
    }

    /// Whether the reason is outside of the content, so that the content is examined again after a
    /// restart.
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
        let rule = Code::from("duplicate_tensor");
        assert_eq!(rule, Code::Rule(Cow::Borrowed("duplicate_tensor")));
        assert_eq!((rule.nature(), Code::from("duplicate_tensor".to_owned())), (Nature::Content, rule));
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
