//! Tests of spokes with a scripted engine: drop a file, query it by name, replace it, roll it back,
//! delete it.

mod choice;
mod folder;
mod life;
mod operation;

use std::path::PathBuf;
use std::time::Duration;

use bespoke::adapter::Generation;
use bespoke::config::Settings;
use bespoke::engine::{FakeEngine, Script};
use serde_json::Value;
use tempfile::TempDir;

use crate::daemon::{Answer, Daemon, wait_until};
use crate::dropped::{DIFFERS, child, generation, put};

/// A daemon whose engine reports the spokes it ran with, and its folders.
struct Served {
    daemon: Daemon,
    root: TempDir,
}

impl Served {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Settings)) -> Self {
        Self::over(FakeEngine::new(Script::Spokes(Duration::ZERO)), tempfile::tempdir().unwrap(), change)
    }

    fn over(engine: FakeEngine, root: TempDir, change: impl FnOnce(&mut Settings)) -> Self {
        let script = child(root.path(), DIFFERS);
        let path = root.path().to_owned();
        let daemon = Daemon::with(engine, |settings| {
            settings.paths.state = path.join("state");
            settings.paths.spokes = path.join("spokes");
            settings.spokes.probe_program = script;
            settings.spokes.settle = Duration::from_millis(100);
            change(settings);
        });
        Self { daemon, root }
    }

    /// Stops the daemon and starts another with the same folders.
    fn restart(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        self.daemon.stop().0.unwrap();
        let engine = FakeEngine::new(Script::Spokes(Duration::ZERO));
        Self::over(engine, self.root, change)
    }

    fn folder(&self) -> PathBuf {
        self.root.path().join("spokes")
    }

    fn put(&self, entry: &str, content: &[u8]) -> Generation {
        put(&self.folder(), entry, content);
        generation(content)
    }

    /// Rows of a name.
    fn rows(&self, name: &str) -> Vec<Value> {
        let all = self.daemon.get("/v1/spokes").ok();
        let rows = all["data"].as_array().unwrap();
        rows.iter().filter(|row| row["name"] == name).cloned().collect()
    }

    /// Waits for the row with this name and state.
    fn row(&self, name: &str, state: &str) -> Value {
        let mut found = None;
        wait_until(&format!("{name} is {state}"), || {
            found = self.rows(name).into_iter().find(|row| row["state"] == state);
            found.is_some()
        });
        found.unwrap()
    }

    /// Waits until this content serves under a name.
    fn serves(&self, name: &str, generation: Generation) {
        wait_until(&format!("{name} is {}", generation.short()), || {
            let rows = self.rows(name);
            rows.iter().any(|row| {
                row["state"] == "serving"
                    && row["generation"] == generation.to_string()
                    && row["id"].is_number()
            })
        });
    }

    fn ask(&self, fields: Value) -> Answer {
        self.daemon.chat("x", fields)
    }

    /// The spokes that the engine ran with.
    fn told(&self, fields: Value) -> String {
        self.ask(fields).content()
    }
}

/// The engine's text for one spoke at full scale.
fn alone(generation: Generation) -> String {
    format!("{}*1", generation.short())
}

fn message(answer: &Answer) -> String {
    answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned()
}
