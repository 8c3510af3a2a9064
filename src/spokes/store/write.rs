//! Changes to the stored state, committed together in one transaction.

use rusqlite::Transaction as Sql;
use serde::{Deserialize, Serialize};

use super::read::json;
use super::{Facts, Here, JOURNAL, Store, Verdict};
use crate::adapter::Generation;
use crate::database::DatabaseError;
use crate::spokes::folder::Fingerprint;
use crate::spokes::life::{Reason, State};

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    /// Increasing id; 0 until it is written.
    #[serde(default)]
    pub id: i64,
    /// Milliseconds since 1970.
    pub at: i64,
    /// Name of the spoke.
    pub name: String,
    /// Its content, once it is known.
    pub generation: Option<Generation>,
    /// Name of the previous state; `None` at the first sight of a file.
    pub from: Option<String>,
    /// Name of the new state.
    pub to: String,
    /// The reason, if the state has one.
    #[serde(flatten)]
    pub why: Option<Reason>,
}

/// An examined generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// Its generation.
    pub generation: Generation,
    /// Facts from the inspection.
    pub facts: Facts,
    /// The verdict.
    pub verdict: Verdict,
}

/// A change of the stored state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// A line of the journal.
    Journal(Transition),
    /// A generation was examined.
    Examined(Examined),
    /// A name has this serving generation now, or none.
    Current {
        /// The name's id.
        id: i64,
        /// The name.
        name: String,
        /// The serving generation.
        generation: Option<Generation>,
        /// Whether it was loaded by request and not from the folder.
        given: bool,
        /// When the name lost its serving generation, in milliseconds since 1970; 0 if it serves.
        left: i64,
    },
    /// A generation is removed from a name's history.
    Unhistory(String, Generation),
    /// Whether a name is disabled.
    Disabled {
        /// The name's id.
        id: i64,
        /// The name.
        name: String,
        /// Whether it is disabled.
        disabled: bool,
    },
    /// Last known state of an entry of the folder.
    File {
        /// The entry.
        entry: String,
        /// Name of its spoke.
        name: String,
        /// Its fingerprint.
        print: Fingerprint,
        /// Its content, if it could be read.
        generation: Option<Generation>,
        /// State of its life.
        state: State,
    },
    /// An entry is gone, or has to be examined again.
    NoFile(String),
    /// A generation was rolled back. It must not serve under this name until an operator allows it.
    RolledBack(String, Generation, Reason),
    /// A generation may be loaded again, and serve under this name.
    Allowed(String, Generation),
    /// All data of a name is deleted.
    Forgotten(String),
    /// No name or file has this content any more, so its examination is deleted.
    Unexamined(Generation),
}

impl Store {
    /// Applies these changes, all or none. Returns the ids of the journal lines, in order.
    ///
    /// # Errors
    /// A database error.
    pub fn commit(&mut self, writes: &[Write], here: &Here) -> Result<Vec<i64>, DatabaseError> {
        if writes.is_empty() {
            return Ok(Vec::new());
        }
        self.database.run(|connection| {
            let transaction = connection.transaction()?;
            let mut ids = Vec::new();
            for write in writes {
                apply(&transaction, write, here, &mut ids)?;
            }
            if let Some(last) = ids.last() {
                let old = "DELETE FROM spoke_transition WHERE id <= ?1 - ?2";
                transaction.execute(old, (last, JOURNAL))?;
            }
            transaction.commit()?;
            Ok(ids)
        })
    }
}

fn apply(sql: &Sql<'_>, write: &Write, here: &Here, ids: &mut Vec<i64>) -> rusqlite::Result<()> {
    match write {
        Write::Journal(line) => {
            let insert = "INSERT INTO spoke_transition (at, name, generation, was, is_now, why)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            let generation = line.generation.map(|generation| generation.to_string());
            let why = line.why.as_ref().map(json);
            sql.execute(insert, (line.at, &line.name, generation, &line.from, &line.to, why))?;
            ids.push(sql.last_insert_rowid());
        }
        Write::Examined(Examined { generation, facts, verdict }) => {
            let insert = "INSERT INTO spoke_generation (generation, facts, verdict, post, version)
                VALUES (?1, ?2, ?3, ?4, ?5)
                ON CONFLICT (generation) DO UPDATE SET facts = excluded.facts, verdict = excluded.verdict,
                    post = excluded.post, version = excluded.version";
            let post = here.post.to_string();
            sql.execute(insert, (generation.to_string(), json(facts), json(verdict), post, &here.version))?;
        }
        Write::Current { id, name, generation, given, left } => {
            let current = generation.map(|generation| generation.to_string());
            let set = "INSERT INTO spoke_name (id, name, current, given, left_at) VALUES (?1, ?2, ?3, ?4, ?5)
                ON CONFLICT (name) DO UPDATE SET current = excluded.current, given = excluded.given,
                    left_at = excluded.left_at";
            sql.execute(set, (id, name, &current, given, left))?;
            if let Some(current) = current {
                // Re-insert, so that it comes last even if it was there before.
                let delete = "DELETE FROM spoke_history WHERE name = ?1 AND generation = ?2";
                sql.execute(delete, (name, &current))?;
                let insert = "INSERT INTO spoke_history (name, generation) VALUES (?1, ?2)";
                sql.execute(insert, (name, &current))?;
            }
        }
        Write::Unhistory(name, generation) => {
            let delete = "DELETE FROM spoke_history WHERE name = ?1 AND generation = ?2";
            sql.execute(delete, (name, generation.to_string()))?;
        }
        Write::Disabled { id, name, disabled } => {
            let set = "INSERT INTO spoke_name (id, name, disabled) VALUES (?1, ?2, ?3)
                ON CONFLICT (name) DO UPDATE SET disabled = excluded.disabled";
            sql.execute(set, (id, name, disabled))?;
        }
        Write::File { entry, name, print, generation, state } => {
            let insert = "INSERT OR REPLACE INTO spoke_file (entry, name, print, generation, state)
                VALUES (?1, ?2, ?3, ?4, ?5)";
            let generation = generation.map(|generation| generation.to_string());
            sql.execute(insert, (entry, name, json(print), generation, json(state)))?;
        }
        Write::NoFile(entry) => {
            sql.execute("DELETE FROM spoke_file WHERE entry = ?1", [entry])?;
        }
        Write::Unexamined(generation) => {
            sql.execute("DELETE FROM spoke_generation WHERE generation = ?1", [generation.to_string()])?;
        }
        Write::RolledBack(name, generation, why) => {
            let keep = "INSERT OR REPLACE INTO spoke_rolled_back (name, generation, why) VALUES (?1, ?2, ?3)";
            sql.execute(keep, (name, generation.to_string(), json(why)))?;
        }
        Write::Allowed(name, generation) => {
            let generation = generation.to_string();
            let delete = "DELETE FROM spoke_rolled_back WHERE name = ?1 AND generation = ?2";
            sql.execute(delete, (name, &generation))?;
            sql.execute("DELETE FROM spoke_banned WHERE generation = ?1", [&generation])?;
            sql.execute("DELETE FROM spoke_loading WHERE generation = ?1", [&generation])?;
        }
        Write::Forgotten(name) => {
            for table in ["spoke_name", "spoke_history", "spoke_rolled_back"] {
                sql.execute(&format!("DELETE FROM {table} WHERE name = ?1"), [name])?;
            }
        }
    }
    Ok(())
}

/// Bans a generation from being loaded.
pub(super) fn ban(sql: &rusqlite::Connection, generation: Generation, why: &Reason) -> rusqlite::Result<()> {
    let ban = "INSERT OR REPLACE INTO spoke_banned (generation, why) VALUES (?1, ?2)";
    sql.execute(ban, (generation.to_string(), json(why))).map(drop)
}
