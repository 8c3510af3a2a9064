//! The SQL tables of spokes, version by version.

/// Each step migrates from one version to the next. A released step must never change.
pub(super) const STEPS: &[&str] = &["
-- One row per name that has ever served; `id` is what llama-server's API calls the spoke.
CREATE TABLE spoke_name (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    current TEXT,
    disabled INTEGER NOT NULL DEFAULT 0,
    given INTEGER NOT NULL DEFAULT 0
) STRICT;
-- What has served under a name, for going back.
CREATE TABLE spoke_history (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    generation TEXT NOT NULL,
    UNIQUE (name, generation)
) STRICT;
-- Contents that passed inspection and probe; facts are JSON.
CREATE TABLE spoke_generation (
    generation TEXT PRIMARY KEY,
    facts TEXT NOT NULL,
    verdict TEXT NOT NULL,
    post TEXT NOT NULL,
    version TEXT NOT NULL,
    proven TEXT
) STRICT;
-- How entries of the folder ended; print, state: JSON.
CREATE TABLE spoke_file (
    entry TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    print TEXT NOT NULL,
    generation TEXT,
    state TEXT NOT NULL
) STRICT;
CREATE TABLE spoke_loading (
    generation TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    under_way INTEGER NOT NULL,
    strikes INTEGER NOT NULL
) STRICT;
CREATE TABLE spoke_banned (
    generation TEXT PRIMARY KEY,
    why TEXT NOT NULL
) STRICT;
-- The journal; `at`: milliseconds since 1970, `why`: JSON.
CREATE TABLE spoke_transition (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    name TEXT NOT NULL,
    generation TEXT,
    was TEXT,
    is_now TEXT NOT NULL,
    why TEXT
) STRICT;
CREATE TABLE spoke_note (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
", "
-- Contents that were rolled back, each under the name that it had; before, they were among the banned, under every name.
CREATE TABLE spoke_rolled_back (
    name TEXT NOT NULL,
    generation TEXT NOT NULL,
    why TEXT NOT NULL,
    PRIMARY KEY (name, generation)
) STRICT;
INSERT INTO spoke_rolled_back (name, generation, why)
    SELECT line.name, banned.generation, banned.why
    FROM spoke_banned AS banned JOIN spoke_transition AS line ON line.generation = banned.generation
    WHERE json_extract(banned.why, '$.code') = 'rolled_back' AND json_extract(line.why, '$.code') = 'rolled_back'
    GROUP BY line.name, banned.generation;
DELETE FROM spoke_banned WHERE json_extract(why, '$.code') = 'rolled_back';
-- When a name lost what served, in milliseconds since 1970.
ALTER TABLE spoke_name ADD COLUMN left_at INTEGER NOT NULL DEFAULT 0;
", "
-- Folders whose model a post was found to hold, both by the hash of their tensors; `at`: milliseconds since 1970.
CREATE TABLE spoke_kin (
    post TEXT NOT NULL,
    trained_on TEXT NOT NULL,
    folder TEXT NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (post, trained_on)
) STRICT;
"];
