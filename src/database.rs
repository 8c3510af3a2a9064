//! The SQLite file that holds the daemon's durable state. Each module brings its own tables.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, TransactionBehavior};

use crate::atomic_file;
use crate::failpoints;

/// Name of the file in the state directory.
const FILE: &str = "bespoke.sqlite";
/// Name of the lock file in the state directory; its holder owns the directory.
const LOCK: &str = "lock";
/// How long to wait for another daemon to release the state folder.
const HANDOVER: Duration = Duration::from_secs(2);
/// Longest wait for another connection's write.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the state folder or the database can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The folder or a file in it can't be created or opened.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// Another process uses the folder.
    #[error(
        "{path}: another daemon keeps its state here\nhint: name another folder with --state or paths.state",
        path = path.display()
    )]
    Used {
        /// The folder.
        path: PathBuf,
    },
    /// SQLite returned an error.
    #[error("{path}: {source}", path = path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// A later version of this program made the tables.
    #[error(
        "{path}: the tables of {room} have version {found}, and this program knows them up to {known}\nhint: serve with the newer program, or name another folder with --state",
        path = path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The module that owns the tables.
        room: &'static str,
        /// Their version.
        found: usize,
        /// The newest version that this program knows.
        known: usize,
    },
}

/// A state directory locked by this process, until this is dropped.
#[derive(Debug)]
pub struct StateDirectory {
    path: PathBuf,
    _lock: File,
}

impl StateDirectory {
    /// Creates the folder, readable by its owner alone, and locks it.
    ///
    /// # Errors
    /// [`DatabaseError::Io`], [`DatabaseError::Used`].
    pub fn open(path: &Path) -> Result<Self, DatabaseError> {
        use std::os::unix::fs::DirBuilderExt;
        let wrong = |source| DatabaseError::Io { path: path.to_owned(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(wrong)?;
        // A killed daemon may have just forked a child. The child holds the daemon's files, the
        // lock among them, until it calls exec, which takes moments.
        let end = Instant::now() + HANDOVER;
        loop {
            match atomic_file::lock(&path.join(LOCK)).map_err(wrong)? {
                Some(lock) => return Ok(Self { path: path.to_owned(), _lock: lock }),
                None if Instant::now() < end => std::thread::sleep(HANDOVER / 40),
                None => return Err(DatabaseError::Used { path: path.to_owned() }),
            }
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the database. Committed data survives a crash and a power cut.
    ///
    /// # Errors
    /// [`DatabaseError::Sqlite`].
    pub fn database(&self) -> Result<Database, DatabaseError> {
        Database::open(&self.path.join(FILE))
    }
}

/// A connection to the database.
#[derive(Debug)]
pub struct Database {
    path: PathBuf,
    connection: Connection,
}

impl Database {
    fn open(path: &Path) -> Result<Self, DatabaseError> {
        let wrong = |source| DatabaseError::Sqlite { path: path.to_owned(), source };
        let connection = Connection::open(path).map_err(wrong)?;
        connection.busy_timeout(PATIENCE).map_err(wrong)?;
        // The first two pragmas return a row; a plain `pragma_update` expects none.
        let pragmas = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;
            PRAGMA cache_size = -512;
            CREATE TABLE IF NOT EXISTS room (name TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT;";
        connection.execute_batch(pragmas).map_err(wrong)?;
        Ok(Self { path: path.to_owned(), connection })
    }

    /// Migrates a module's tables: `steps[n]` leads from version n to n + 1. A released step must
    /// never change.
    ///
    /// # Errors
    /// [`DatabaseError::Newer`], [`DatabaseError::Sqlite`].
    pub fn prepare(&mut self, room: &'static str, steps: &[&str]) -> Result<(), DatabaseError> {
        let found = self.run(|connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let version: Option<usize> = {
                let mut query = transaction.prepare("SELECT version FROM room WHERE name = ?1")?;
                query.query_map([room], |row| row.get(0))?.next().transpose()?
            };
            let version = version.unwrap_or(0);
            for step in steps.iter().skip(version) {
                transaction.execute_batch(step)?;
            }
            if version < steps.len() {
                let keep = "INSERT INTO room VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET version = excluded.version";
                transaction.execute(keep, (room, steps.len()))?;
            }
            transaction.commit()?;
            Ok(version)
        })?;
        if found > steps.len() {
            return Err(DatabaseError::Newer { path: self.path.clone(), room, found, known: steps.len() });
        }
        Ok(())
    }

    /// Runs `act` on the connection.
    ///
    /// # Errors
    /// [`DatabaseError::Sqlite`].
    pub fn run<T>(
        &mut self,
        act: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, DatabaseError> {
        let done = failpoints::trouble("database")
            .map_err(|error| refused(&error))
            .and_then(|()| act(&mut self.connection));
        done.map_err(|source| DatabaseError::Sqlite { path: self.path.clone(), source })
    }
}

/// An I/O error of the operating system as the error that `SQLite` would report.
fn refused(error: &std::io::Error) -> rusqlite::Error {
    use rusqlite::ffi;
    let code = match error.kind() {
        std::io::ErrorKind::StorageFull => ffi::SQLITE_FULL,
        std::io::ErrorKind::ResourceBusy => ffi::SQLITE_BUSY,
        _ => ffi::SQLITE_IOERR,
    };
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "CREATE TABLE thing (a TEXT) STRICT;";
    const SECOND: &str = "ALTER TABLE thing ADD COLUMN b TEXT;";

    #[test]
    fn a_state_directory_has_one_user_and_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("deep/state");
        let held = StateDirectory::open(&path).unwrap();
        assert_eq!(fs_err::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(matches!(StateDirectory::open(&path), Err(DatabaseError::Used { .. })));
        drop(held);
        StateDirectory::open(&path).unwrap();
    }

    #[test]
    fn tables_grow_with_the_program_and_are_never_taken_back() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(root.path()).unwrap();
        let mut database = state.database().unwrap();
        database.prepare("things", &[FIRST]).unwrap();
        database.run(|c| c.execute("INSERT INTO thing VALUES ('x')", [])).unwrap();
        let mut newer = state.database().unwrap();
        newer.prepare("things", &[FIRST, SECOND]).unwrap();
        newer.prepare("things", &[FIRST, SECOND]).unwrap();
        let row: (String, Option<String>) = newer
            .run(|c| c.query_row("SELECT a, b FROM thing", [], |row| Ok((row.get(0)?, row.get(1)?))))
            .unwrap();
        assert_eq!(row, ("x".to_owned(), None));
        let error = database.prepare("things", &[FIRST]).unwrap_err();
        assert!(matches!(error, DatabaseError::Newer { found: 2, known: 1, .. }), "{error}");
        let mode: String = newer.run(|c| c.query_row("PRAGMA journal_mode", [], |row| row.get(0))).unwrap();
        let synchronous: u32 =
            newer.run(|c| c.query_row("PRAGMA synchronous", [], |row| row.get(0))).unwrap();
        assert_eq!((mode.as_str(), synchronous), ("wal", 2));
    }
}
