//! Durable state of spokes in the daemon's SQLite file: which generation serves under which name,
//! earlier generations, verdicts, and the journal. Several changes become one transaction.

mod read;
mod tables;
mod write;

pub use read::{File, Known, Name, StoredSpoke};
pub use write::{Examined, Transition, Write};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::life::Reason;
use crate::adapter::{Adapter, Digest, Generation, Kind, Spoke};
use crate::database::{Database, DatabaseError};

/// Most transitions in the journal.
const JOURNAL: i64 = 100_000;

/// Facts about an inspected generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Its kind.
    pub kind: Kind,
    /// Its largest rank; for a Felix spoke, that of each of its bottlenecks.
    pub rank: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of memory that its weights take.
    pub resident_bytes: u64,
    /// Blocks of the post that it changes.
    pub layers: u64,
    /// Task that it was trained for, if recorded.
    pub task: Option<String>,
}

impl From<&Spoke> for Facts {
    fn from(spoke: &Spoke) -> Self {
        let rank = match &spoke.adapter {
            Adapter::Lora(lora) => lora.ranks.last().copied().unwrap_or(0),
            Adapter::Felix(felix) => felix.rank.into(),
        };
        Self {
            kind: spoke.kind(),
            rank,
            bytes: spoke.file_bytes,
            resident_bytes: spoke.resident_bytes,
            layers: spoke.layers.len() as u64,
            task: spoke.task.clone(),
        }
    }
}

/// Verdict on a generation from inspection and probe, for one post and one version of this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The content changes what the post says.
    Differs,
    /// The content changes nothing.
    Same,
}

/// Records that a post holds the model of a folder, so that spokes trained on one fit the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kinship {
    /// Hash of the post's tensors.
    pub post_sha256: Digest,
    /// Hash of the folder's tensors, as spokes name it.
    pub trained_on: Digest,
    /// Where the folder was.
    pub folder: String,
}

/// A load without a recorded end: the process died during it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// The generation that was being loaded.
    pub generation: Generation,
    /// The name under which it was loaded.
    pub name: String,
    /// How many times in a row its load ended like this, including this time.
    pub strikes: u32,
}

/// The database tables of spokes.
#[derive(Debug)]
pub struct Store {
    database: Database,
}

impl Store {
    /// Takes over the connection and migrates the tables.
    ///
    /// # Errors
    /// A database error.
    pub fn open(mut database: Database) -> Result<Self, DatabaseError> {
        database.prepare("spokes", tables::STEPS)?;
        Ok(Self { database })
    }

    /// Records on disk that a load into this process begins, so that the next process knows if it
    /// crashes.
    ///
    /// # Errors
    /// A database error.
    pub fn begin_loading(&mut self, generation: Generation, name: &str) -> Result<(), DatabaseError> {
        self.database.run(|connection| {
            let note =
                "INSERT INTO spoke_loading (generation, name, under_way, strikes) VALUES (?1, ?2, 1, 0)
                ON CONFLICT (generation) DO UPDATE SET under_way = 1, name = excluded.name";
            connection.execute(note, (generation.to_string(), name)).map(drop)
        })
    }

    /// Records that the process has survived the load. `version` is the program's version if the
    /// load succeeded.
    ///
    /// # Errors
    /// A database error.
    pub fn end_loading(
        &mut self,
        generation: Generation,
        version: Option<&str>,
    ) -> Result<(), DatabaseError> {
        self.database.run(|connection| {
            let transaction = connection.transaction()?;
            let generation = generation.to_string();
            transaction.execute("DELETE FROM spoke_loading WHERE generation = ?1", [&generation])?;
            if let Some(version) = version {
                let proven = "UPDATE spoke_generation SET proven = ?2 WHERE generation = ?1";
                transaction.execute(proven, (&generation, version))?;
            }
            transaction.commit()
        })
    }

    /// Loads during which the process died, to be judged one by one at the start.
    ///
    /// # Errors
    /// A database error.
    pub fn unfinished(&mut self) -> Result<Vec<Unfinished>, DatabaseError> {
        self.database.run(|connection| {
            let mut query = connection.prepare(
                "SELECT generation, name, strikes + 1 FROM spoke_loading WHERE under_way = 1 ORDER BY generation",
            )?;
            let rows = query.query_map([], |row| {
                Ok(Unfinished {
                    generation: read::parsed(row, 0)?,
                    name: row.get(1)?,
                    strikes: row.get(2)?,
                })
            })?;
            rows.collect()
        })
    }

    /// Counts such a load, and bans its content if there is a reason. Both happen in one
    /// transaction, in case the process dies again.
    ///
    /// # Errors
    /// A database error.
    pub fn judge_unfinished(
        &mut self,
        generation: Generation,
        ban: Option<&Reason>,
    ) -> Result<(), DatabaseError> {
        self.database.run(|connection| {
            let transaction = connection.transaction()?;
            let count = "UPDATE spoke_loading SET under_way = 0, strikes = strikes + 1 WHERE generation = ?1";
            transaction.execute(count, [generation.to_string()])?;
            if let Some(why) = ban {
                write::ban(&transaction, generation, why)?;
            }
            transaction.commit()
        })
    }

    /// Records that a generation must never be loaded again, unless an operator allows it.
    ///
    /// # Errors
    /// A database error.
    pub fn ban(&mut self, generation: Generation, why: &Reason) -> Result<(), DatabaseError> {
        self.database.run(|connection| write::ban(connection, generation, why))
    }

    /// Folders whose model this post holds, each with its path at the time of the comparison.
    ///
    /// # Errors
    /// A database error.
    pub fn kin(&mut self, post: &Digest) -> Result<BTreeMap<Digest, String>, DatabaseError> {
        self.database.run(|connection| {
            let query = "SELECT trained_on, folder FROM spoke_kin WHERE post = ?1";
            let mut query = connection.prepare(query)?;
            let rows = query.query_map([post.to_string()], |row| Ok((read::parsed(row, 0)?, row.get(1)?)))?;
            rows.collect()
        })
    }

    /// Records that a post holds a folder's model.
    ///
    /// # Errors
    /// A database error.
    pub fn set_kin(&mut self, kin: &Kinship) -> Result<(), DatabaseError> {
        self.database.run(|connection| {
            let keep =
                "INSERT OR REPLACE INTO spoke_kin (post, trained_on, folder, at) VALUES (?1, ?2, ?3, ?4)";
            let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let at = at.map_or(0, |since| since.as_millis() as i64);
            let row = (kin.post_sha256.to_string(), kin.trained_on.to_string(), &kin.folder, at);
            connection.execute(keep, row).map(drop)
        })
    }

    /// Reads the text stored under a key.
    ///
    /// # Errors
    /// A database error.
    pub fn note(&mut self, key: &str) -> Result<Option<String>, DatabaseError> {
        self.database.run(|connection| {
            let mut query = connection.prepare("SELECT value FROM spoke_note WHERE key = ?1")?;
            query.query_map([key], |row| row.get(0))?.next().transpose()
        })
    }

    /// Stores a text under a key.
    ///
    /// # Errors
    /// A database error.
    pub fn set_note(&mut self, key: &str, value: &str) -> Result<(), DatabaseError> {
        self.database.run(|connection| {
            let keep = "INSERT OR REPLACE INTO spoke_note (key, value) VALUES (?1, ?2)";
            connection.execute(keep, (key, value)).map(drop)
        })
    }
}

/// The post and program version for which verdicts hold. A verdict from others doesn't count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Here {
    /// Identity of the post.
    pub post: Digest,
    /// Version of this program, and whether it probes.
    pub version: String,
}

#[cfg(test)]
mod tests;
