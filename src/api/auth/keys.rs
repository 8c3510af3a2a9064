//! API keys: read from a file, stored as digests, compared in constant time.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Least length of a key. Shorter keys can be guessed.
const SHORTEST: usize = 16;

/// Rights of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// May send requests to the model.
    Inference,
    /// May also change how the daemon runs.
    Admin,
}

/// A key. Only its digest is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    digest: [u8; 32],
    /// Its rights.
    pub scope: Scope,
}

impl Key {
    /// Name of the key in logs: the first bytes of its digest.
    pub fn name(&self) -> String {
        self.digest[..4].iter().fold(String::new(), |name, byte| name + &format!("{byte:02x}"))
    }
}

/// A list of keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Keys(Vec<Key>);

/// Why keys can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file can't be read.
    #[error("{path}: {source}\nhint: server.keys_file names it", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// Other users of the machine can read the file.
    #[error("{path}: the file is readable by other users (mode {mode:03o})\nhint: chmod 600 {path}", path = path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Some lines are no keys.
    #[error(
        "{path}: {list}\nhint: one key a line, perhaps with its scope in front, as in admin:KEY; `openssl rand -hex 32` makes one",
        path = path.display(),
        list = mistakes.join("; ")
    )]
    Mistakes {
        /// The file.
        path: PathBuf,
        /// The mistakes, without the keys themselves.
        mistakes: Vec<String>,
    },
}

impl Keys {
    /// One key per line: `KEY` or `inference:KEY` may use the model, `admin:KEY` may do everything.
    /// `#` starts a comment line.
    ///
    /// # Errors
    /// All lines that are no key, with their numbers.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let mut keys: Vec<Key> = Vec::new();
        let mut mistakes = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (scope, key) = match line.split_once(':') {
                Some(("admin", key)) => (Scope::Admin, key.trim()),
                Some(("inference", key)) => (Scope::Inference, key.trim()),
                Some(_) => {
                    mistakes.push(format!("line {number}: expected admin: or inference: before the colon"));
                    continue;
                }
                None => (Scope::Inference, line),
            };
            let digest: [u8; 32] = Sha256::digest(key).into();
            if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                mistakes.push(format!("line {number}: a key has visible ASCII characters and no spaces"));
            } else if key.len() < SHORTEST {
                mistakes.push(format!("line {number}: a key has at least {SHORTEST} characters"));
            } else if keys.iter().any(|key| key.digest == digest) {
                mistakes.push(format!("line {number}: duplicate key"));
            } else {
                keys.push(Key { digest, scope });
            }
        }
        if keys.is_empty() && mistakes.is_empty() {
            mistakes.push("there is no key in it".to_owned());
        }
        if mistakes.is_empty() { Ok(Self(keys)) } else { Err(mistakes) }
    }

    /// Finds the key with this text, in constant time.
    pub fn find(&self, presented: &str) -> Option<&Key> {
        let digest: [u8; 32] = Sha256::digest(presented).into();
        self.0
            .iter()
            .fold(None, |found, key| if key.digest.ct_eq(&digest).into() { Some(key) } else { found })
    }

    fn read(path: &Path) -> Result<Self, KeysError> {
        let unreadable = |source| KeysError::Unreadable { path: path.to_owned(), source };
        // Permissions and text must come from the same file, even if the path is replaced
        // meanwhile.
        let mut file = fs_err::File::open(path).map_err(unreadable)?;
        let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o777;
        if mode & 0o007 != 0 {
            return Err(KeysError::Exposed { path: path.to_owned(), mode });
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(unreadable)?;
        Self::parse(&text).map_err(|mistakes| KeysError::Mistakes { path: path.to_owned(), mistakes })
    }
}

/// The keys in force. They can be reloaded while the daemon runs.
#[derive(Debug, Default)]
pub struct KeyRing {
    path: Option<PathBuf>,
    keys: RwLock<Arc<Keys>>,
}

/// Name of the systemd credential with keys.
const CREDENTIAL: &str = "bespoke-keys";

impl KeyRing {
    /// Reads `file`; without one, systemd's credential `bespoke-keys`; without that either, no key
    /// is required.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn open(file: Option<&Path>) -> Result<Self, KeysError> {
        let credential = || {
            let folder = std::env::var_os("CREDENTIALS_DIRECTORY")?;
            Some(Path::new(&folder).join(CREDENTIAL)).filter(|path| path.exists())
        };
        let Some(path) = file.map(Path::to_owned).or_else(credential) else { return Ok(Self::default()) };
        let keys = Keys::read(&path)?;
        tracing::info!(path = %path.display(), keys = keys.0.len(), "requests need a key");
        Ok(Self { path: Some(path), keys: RwLock::new(Arc::new(keys)) })
    }

    /// Reloads the file. If it contains mistakes, the old keys stay in force.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn reload(&self) -> Result<(), KeysError> {
        let Some(path) = &self.path else { return Ok(()) };
        let keys = Keys::read(path)?;
        tracing::info!(path = %path.display(), keys = keys.0.len(), "keys are read again");
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(())
    }

    /// Whether no key is required.
    pub fn is_empty(&self) -> bool {
        self.path.is_none()
    }

    /// The current keys.
    pub fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "0123456789abcdef";
    const SECOND: &str = "fedcba9876543210-admin";

    #[test]
    fn keys_have_scopes_and_comments_are_skipped() {
        let keys = Keys::parse(&format!("# ours\n\n  {FIRST}\nadmin: {SECOND}\n")).unwrap();
        assert_eq!(keys.find(FIRST).map(|key| key.scope), Some(Scope::Inference));
        assert_eq!(keys.find(SECOND).map(|key| key.scope), Some(Scope::Admin));
        for wrong in ["", "0123456789abcde", "0123456789abcdeF", "# ours", " 0123456789abcdef"] {
            assert_eq!(keys.find(wrong), None, "{wrong:?}");
        }
        assert_eq!(keys.find(FIRST).unwrap().name().len(), 8);
    }

    #[test]
    fn all_wrong_lines_are_told_and_no_key_is_shown() {
        let text = format!("short\nroot:{FIRST}\n{FIRST}\nadmin:{FIRST}\nwith a space in the key\n");
        let mistakes = Keys::parse(&text).unwrap_err();
        let lines: Vec<&str> = mistakes.iter().map(|mistake| &mistake[..6]).collect();
        assert_eq!(lines, ["line 1", "line 2", "line 4", "line 5"]);
        assert!(!mistakes.join("").contains(FIRST), "{mistakes:?}");
        assert!(Keys::parse("# nothing\n").unwrap_err()[0].contains("no key"));
    }

    #[test]
    fn a_file_that_everybody_may_read_is_refused_and_a_bad_reload_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        crate::atomic_file::write(&path, FIRST.as_bytes()).unwrap();
        let mode = |mode| fs_err::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        mode(0o644);
        let error = KeyRing::open(Some(&path)).unwrap_err().to_string();
        assert!(error.contains("644") && error.contains("chmod 600"), "{error}");
        mode(0o640);
        let ring = KeyRing::open(Some(&path)).unwrap();
        assert!(!ring.is_empty());
        crate::atomic_file::write(&path, b"# empty").unwrap();
        mode(0o600);
        assert!(ring.reload().is_err());
        assert!(ring.keys().find(FIRST).is_some());
        crate::atomic_file::write(&path, SECOND.as_bytes()).unwrap();
        mode(0o600);
        ring.reload().unwrap();
        assert!(ring.keys().find(FIRST).is_none() && ring.keys().find(SECOND).is_some());
    }
}
