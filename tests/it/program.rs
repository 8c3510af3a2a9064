//! The real binary for tests: started on a free port, read line by line, sent signals, and killed
//! when dropped.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The shipped model, which a daemon without a configuration serves.
pub const MODEL: &str = "models/bespoke-tiny.gguf";

/// A running `bespoke serve`.
pub struct Program {
    child: Child,
    lines: Receiver<String>,
    _folder: TempDir,
}

impl Program {
    pub fn serve(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::through(&[], arguments, environment)
    }

    /// Like `serve`, but started by another program, as `sh -c '... && exec "$0" "$@"'`.
    pub fn through(by: &[&str], arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        // Tests run at the same time as each other, and possibly as a daemon of the same user.
        let folder = tempfile::tempdir().unwrap();
        let whole: Vec<&str> = by.iter().copied().chain([env!("CARGO_BIN_EXE_bespoke")]).collect();
        let mut child = Command::new(whole[0])
            .args(&whole[1..])
            .args(["serve", "--listen", "127.0.0.1:0"])
            .env("STATE_DIRECTORY", folder.path().join("state"))
            .args(arguments)
            .envs(environment.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (tell, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
        Self { child, lines, _folder: folder }
    }

    /// The next line on stderr that contains `text`. Panics with the lines so far if there is none.
    pub fn line(&self, text: &str) -> String {
        let mut seen = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(60)) {
            if line.contains(text) {
                return line;
            }
            seen.push(line);
        }
        panic!("no line has {text:?}: {seen:#?}")
    }

    /// All lines that were not read yet, and those that arrive within `time`.
    pub fn lines(&self, time: Duration) -> Vec<String> {
        let end = Instant::now() + time;
        let mut lines = Vec::new();
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => lines.push(line),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return lines,
            }
        }
    }

    /// The address that the program prints.
    pub fn url(&self) -> String {
        let line = self.line("listening on ");
        line.rsplit(' ').next().unwrap().to_owned()
    }

    /// Id of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal such as `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Waits for the end and returns the exit code.
    pub fn ended(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    /// Asks the program to end and waits.
    pub fn terminate(&mut self) -> Option<i32> {
        self.signal("TERM");
        self.ended()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
