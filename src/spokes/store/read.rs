//! Reads the stored state for the start, and the journal for its readers.

use std::collections::BTreeMap;
use std::str::FromStr;

use rusqlite::types::Type;
use rusqlite::{Connection, Row};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Facts, Here, Store, Transition, Verdict};
use crate::adapter::Generation;
use crate::database::DatabaseError;
use crate::spokes::folder::Fingerprint;
use crate::spokes::life::{Reason, State};

/// Everything except the journal.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StoredSpoke {
    /// Names that have served.
    pub names: BTreeMap<String, Name>,
    /// Examined generations.
    pub generations: BTreeMap<Generation, Known>,
    /// Last known state of the folder's entries.
    pub files: BTreeMap<String, File>,
    /// Generations that must never be loaded.
    pub banned: BTreeMap<Generation, Reason>,
    /// Generations that were rolled back, each with the name under which it must not serve.
    pub rolled_back: BTreeMap<(String, Generation), Reason>,
}

/// A name that has served.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Name {
    /// A small number that identifies the name permanently.
    pub id: i64,
    /// The serving generation.
    pub current: Option<Generation>,
    /// Whether an operator disabled it.
    pub disabled: bool,
    /// Whether it was loaded by request and not from the folder.
    pub given: bool,
    /// When it lost its serving generation, in milliseconds since 1970.
    pub left: i64,
    /// The reason for that, if still in the journal.
    pub left_for: Option<Reason>,
    /// Generations that have served, including `current`, the latest last.
    pub history: Vec<Generation>,
}

/// An examined generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Facts from the inspection.
    pub facts: Facts,
    /// The verdict, if it was examined with this post and program.
    pub verdict: Option<Verdict>,
    /// Whether this version of the program has loaded it.
    pub proven: bool,
}

/// Last known state of an entry of the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Name of its spoke.
    pub name: String,
    /// Its fingerprint.
    pub print: Fingerprint,
    /// Its content, if it could be read.
    pub generation: Option<Generation>,
    /// State of its life.
    pub state: State,
}

/// JSON of a value that can always be serialised.
pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("texts, numbers and enums without keys are always JSON")
}

/// Parses a text column into a `T`.
pub(super) fn parsed<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    row: &Row<'_>,
    at: usize,
) -> rusqlite::Result<T> {
    let text: String = row.get(at)?;
    text.parse().map_err(|error| rusqlite::Error::FromSqlConversionFailure(at, Type::Text, Box::new(error)))
}

fn parsed_if_any(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<Generation>> {
    let text: Option<String> = row.get(at)?;
    text.map(|_| parsed(row, at)).transpose()
}

fn from_json<T: DeserializeOwned>(row: &Row<'_>, at: usize) -> rusqlite::Result<T> {
    let text: String = row.get(at)?;
    serde_json::from_str(&text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(at, Type::Text, Box::new(error)))
}

fn all<T>(
    connection: &Connection,
    query: &str,
    row: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    let mut query = connection.prepare(query)?;
    query.query_map([], row)?.collect()
}

impl Store {
    /// Reads everything except the journal, with verdicts that hold for `here`.
    ///
    /// # Errors
    /// A database error.
    pub fn stored(&mut self, here: &Here) -> Result<StoredSpoke, DatabaseError> {
        let post = here.post.to_string();
        self.database.run(|connection| {
            let mut names: BTreeMap<String, Name> = all(
                connection,
                "SELECT name, id, current, disabled, given, left_at FROM spoke_name",
                |row| {
                    let name = Name {
                        id: row.get(1)?,
                        current: parsed_if_any(row, 2)?,
                        disabled: row.get(3)?,
                        given: row.get(4)?,
                        left: row.get(5)?,
                        left_for: None,
                        history: Vec::new(),
                    };
                    Ok((row.get(0)?, name))
                },
            )?
            .into_iter()
            .collect();
            let history = all(connection, "SELECT name, generation FROM spoke_history ORDER BY id", |row| {
                Ok((row.get::<_, String>(0)?, parsed(row, 1)?))
            })?;
            for (name, generation) in history {
                names.entry(name).or_default().history.push(generation);
            }
            // The last end of each name that has no serving generation.
            let ends = "SELECT name.name, line.why FROM spoke_name AS name JOIN spoke_transition AS line
                ON line.id = (SELECT max(id) FROM spoke_transition WHERE name = name.name
                    AND is_now IN ('retired', 'quarantined'))
                WHERE name.current IS NULL AND line.why IS NOT NULL";
            for (name, why) in
                all(connection, ends, |row| Ok((row.get::<_, String>(0)?, from_json(row, 1)?)))?
            {
                names.entry(name).or_default().left_for = Some(why);
            }
            let generations =
                "SELECT generation, facts, verdict, post, version, proven FROM spoke_generation";
            let generations = all(connection, generations, |row| {
                let (of, by): (String, String) = (row.get(3)?, row.get(4)?);
                let verdict: Verdict = from_json(row, 2)?;
                let proven: Option<String> = row.get(5)?;
                let known = Known {
                    facts: from_json(row, 1)?,
                    verdict: (of == post && by == here.version).then_some(verdict),
                    proven: proven.as_deref() == Some(&*here.version),
                };
                Ok((parsed(row, 0)?, known))
            })?;
            let files =
                all(connection, "SELECT entry, name, print, generation, state FROM spoke_file", |row| {
                    let file = File {
                        name: row.get(1)?,
                        print: from_json(row, 2)?,
                        generation: parsed_if_any(row, 3)?,
                        state: from_json(row, 4)?,
                    };
                    Ok((row.get(0)?, file))
                })?;
            let banned = all(connection, "SELECT generation, why FROM spoke_banned", |row| {
                Ok((parsed(row, 0)?, from_json(row, 1)?))
            })?;
            let rolled_back =
                all(connection, "SELECT name, generation, why FROM spoke_rolled_back", |row| {
                    Ok(((row.get(0)?, parsed(row, 1)?), from_json(row, 2)?))
                })?;
            Ok(StoredSpoke {
                names,
                generations: generations.into_iter().collect(),
                files: files.into_iter().collect(),
                banned: banned.into_iter().collect(),
                rolled_back: rolled_back.into_iter().collect(),
            })
        })
    }

    /// Journal lines after this id, oldest first, at most `most`.
    ///
    /// # Errors
    /// A database error.
    pub fn journal(&mut self, behind: i64, most: usize) -> Result<Vec<Transition>, DatabaseError> {
        self.database.run(|connection| {
            let query = "SELECT id, at, name, generation, was, is_now, why FROM spoke_transition
                WHERE id > ?1 ORDER BY id LIMIT ?2";
            let mut query = connection.prepare(query)?;
            let rows = query.query_map((behind, most), |row| {
                let why: Option<String> = row.get(6)?;
                Ok(Transition {
                    id: row.get(0)?,
                    at: row.get(1)?,
                    name: row.get(2)?,
                    generation: parsed_if_any(row, 3)?,
                    from: row.get(4)?,
                    to: row.get(5)?,
                    why: why.map(|_| from_json(row, 6)).transpose()?,
                })
            })?;
            rows.collect()
        })
    }
}
