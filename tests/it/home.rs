//! The real binary with folders for spokes and state that outlive it, and clients that query it.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use bespoke::adapter::Generation;
use serde_json::Value;
use tempfile::TempDir;

use crate::contents::{Backend, Content, question};
use crate::daemon::chunks;
use crate::dropped::{generation, put};
use crate::program::Program;

/// Maximum time until a spoke serves.
const PATIENCE: Duration = Duration::from_secs(20);
/// After this time, print what the client waits for.
const SLOW: Duration = Duration::from_secs(4);

/// The folders, and how a program is started with them.
pub struct Home {
    pub root: TempDir,
    backend: Backend,
    arguments: Vec<String>,
}

/// A program that runs with these folders.
pub struct Served {
    pub program: Program,
    pub client: Client,
}

/// A client of the program.
#[derive(Clone)]
pub struct Client {
    /// Id of the program's process.
    process: u32,
    pub url: String,
    pub agent: ureq::Agent,
}

impl Home {
    pub fn new(backend: Backend) -> Self {
        Self::with(backend, "", &[])
    }

    /// A home with these settings of `[spokes]` and these additional arguments.
    pub fn with(backend: Backend, spokes: &str, arguments: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        // One thread: two would wait for each other while other tests run.
        let settings = format!("[log]\naccess = 'off'\n[model]\nthreads = 1\n[spokes]\n{spokes}\n");
        bespoke::atomic_file::write(&root.path().join("bespoke.toml"), settings.as_bytes()).unwrap();
        let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
        let mut all = vec![
            ("--config".to_owned(), path("bespoke.toml")),
            ("--spokes".to_owned(), path("spokes")),
            ("--state".to_owned(), path("state")),
        ]
        .into_iter()
        .flat_map(<[String; 2]>::from)
        .collect::<Vec<_>>();
        all.extend(arguments.iter().map(|&argument| argument.to_owned()));
        Self { root, backend, arguments: all }
    }

    pub fn folder(&self) -> PathBuf {
        self.root.path().join("spokes")
    }

    pub fn state(&self) -> PathBuf {
        self.root.path().join("state")
    }

    /// Puts a content into the folder atomically.
    pub fn put(&self, entry: &str, content: &[u8]) -> Generation {
        put(&self.folder(), entry, content);
        generation(content)
    }

    /// Starts the program. `fail` is the point where it dies (`BESPOKE_FAIL`).
    pub fn start(&self, fail: &str) -> Served {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let backend = self.backend.environment();
        let mut environment: Vec<(&str, &str)> =
            backend.iter().map(|(key, value)| (*key, value.as_str())).collect();
        environment.extend([("RUST_LOG", "warn"), ("BESPOKE_FAIL", fail)]);
        let program = Program::serve(&arguments, &environment);
        let (process, url) = (program.id(), program.url());
        let agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().new_agent();
        Served { program, client: Client { process, url, agent } }
    }
}

impl Served {
    /// Waits until the program has died by `kill -9`.
    pub fn dies(mut self) {
        assert_eq!(self.program.ended(), None, "a signal is no exit code");
    }
}

impl Client {
    pub fn get(&self, path: &str) -> Option<Value> {
        let mut answer = self.agent.get(format!("{}{path}", self.url)).call().ok()?;
        answer.body_mut().read_json().ok()
    }

    /// All rows of the list of spokes.
    pub fn all(&self) -> Vec<Value> {
        let all = self.get("/v1/spokes").unwrap_or_default();
        all["data"].as_array().cloned().unwrap_or_default()
    }

    pub fn rows(&self, name: &str) -> Vec<Value> {
        self.all().into_iter().filter(|row| row["name"] == name).collect()
    }

    /// The generation that serves under a name.
    pub fn serving(&self, name: &str) -> Option<Generation> {
        let row = self.rows(name).into_iter().find(|row| row["id"].is_number())?;
        row["generation"].as_str()?.parse().ok()
    }

    /// Waits until this generation serves under a name.
    pub fn serves(&self, name: &str, generation: Generation) {
        let (began, mut told) = (Instant::now(), false);
        while self.serving(name) != Some(generation) {
            let waits = || {
                let (generation, rows) = (generation.short(), self.rows(name));
                format!("{name} is not {generation}: {rows:#?}\n{}", threads(self.process))
            };
            assert!(began.elapsed() < PATIENCE, "{}", waits());
            if began.elapsed() > SLOW && !std::mem::replace(&mut told, true) {
                eprintln!("after {SLOW:?} {}", waits());
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Status of the answer to a change of a spoke, if there is one.
    pub fn change(&self, change: &str) -> Option<u16> {
        let answer = self.agent.post(format!("{}/v1/spokes/{change}", self.url)).send_empty().ok()?;
        Some(answer.status().as_u16())
    }

    pub fn is_quarantined(&self, generation: Generation, code: &str) -> bool {
        let is = |row: &Value| row["generation"] == generation.to_string() && row["reason"]["code"] == code;
        self.all().iter().any(is)
    }

    /// The answer under a name: the generation that the reply names (in short form), and the text.
    pub fn asked(&self, name: &str, stream: bool) -> Result<(String, String), String> {
        let request = self.agent.post(format!("{}/v1/chat/completions", self.url));
        let mut answer = request.send_json(question(name, stream)).map_err(|error| error.to_string())?;
        let status = answer.status().as_u16();
        let header = answer.headers().get("x-bespoke-spokes").cloned();
        let text = answer.body_mut().read_to_string().map_err(|error| error.to_string())?;
        if status != 200 || text.contains("\"error\"") {
            return Err(format!("{status}: {text}"));
        }
        let header = header.ok_or_else(|| format!("no spoke answers: {text}"))?;
        let header = header.to_str().map_err(|error| error.to_string())?;
        let told = header.strip_prefix(&format!("{name}@")).and_then(|rest| rest.strip_suffix("*1"));
        let told = told.ok_or_else(|| format!("another set answers: {header}"))?.to_owned();
        let of = |choice: &Value, part: &str| choice[part]["content"].as_str().unwrap_or_default().to_owned();
        let says = if stream {
            if !text.trim_end().ends_with("[DONE]") {
                return Err(format!("the stream has no end: {text}"));
            }
            chunks(&text).iter().map(|chunk| of(&chunk["choices"][0], "delta")).collect()
        } else {
            let answer: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            of(&answer["choices"][0], "message")
        };
        Ok((told, says))
    }

    /// Whether a name answers exactly as this content does.
    pub fn answers_as(&self, name: &str, content: &Content) -> bool {
        self.asked(name, false) == Ok((content.generation.short(), content.says.clone()))
    }
}

/// What the threads of a process and its children do, as far as the system tells.
fn threads(process: u32) -> String {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let folder = |process: u32| PathBuf::from(format!("/proc/{process}/task"));
    let mut all = vec![process];
    for task in std::fs::read_dir(folder(process)).into_iter().flatten().flatten() {
        all.extend(
            read(&task.path().join("children")).split_whitespace().filter_map(|id| id.parse::<u32>().ok()),
        );
    }
    let tasks = |process: u32| std::fs::read_dir(folder(process)).into_iter().flatten().flatten();
    let told = |(process, task): (u32, std::fs::DirEntry)| {
        let of = |file: &str| read(&task.path().join(file)).trim().to_owned();
        let status = of("status");
        let state = status.lines().find(|line| line.starts_with("State")).unwrap_or_default();
        let (name, waits, times) = (of("comm"), of("wchan"), of("schedstat"));
        format!(
            "{process} {name}: {state}; waits in {waits}; on a processor, waiting for one (ns), times: {times}"
        )
    };
    let lines: Vec<String> = all
        .into_iter()
        .flat_map(|process| tasks(process).map(move |task| (process, task)))
        .map(told)
        .collect();
    lines.join("\n")
}
