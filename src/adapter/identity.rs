//! Generation: the content revision of a spoke.

use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, NotADigest};

/// The content revision of a spoke: the SHA-256 of its file. It identifies the spoke for caching,
/// leases and rollback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub Digest);

impl Generation {
    /// The generation of everything that is left to read.
    ///
    /// # Errors
    /// The reader's error.
    pub fn of_reader(reader: impl Read) -> io::Result<Self> {
        Digest::of_reader(reader).map(Self)
    }

    /// The first twelve digits.
    pub fn short(&self) -> String {
        self.0.short()
    }
}

impl std::fmt::Display for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Generation {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_written_and_read_again() {
        let generation = Generation::of_reader(&b"abc"[..]).unwrap();
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((generation.to_string().as_str(), generation.short().as_str()), (text, &text[..12]));
        assert_eq!(text.to_uppercase().parse::<Generation>().unwrap(), generation);
        assert_eq!(serde_json::to_string(&generation).unwrap(), format!("\"{text}\""));
        assert_eq!(serde_json::from_str::<Generation>(&format!("\"{text}\"")).unwrap(), generation);
        for wrong in ["", &text[1..], &format!("+{}", &text[1..]), &"é".repeat(32)] {
            assert!(wrong.parse::<Generation>().is_err(), "{wrong}");
        }
    }
}
