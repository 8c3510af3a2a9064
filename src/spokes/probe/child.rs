//! The parent's side of a probe: starts the child, bounds its time, reads its one line, and says what its end means.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::{Finding, Stage};
use crate::engine::ffi::child;
use crate::failpoints;
use crate::spokes::life::Reason;
use crate::spokes::reason_code::Code;

/// Bytes of a child's answer, and of what it says about itself, that are read.
const LONGEST: u64 = 64 << 10;

/// Times the limit that a probe may take at most, however little of a processor it gets.
const PATIENCE: u32 = 30;

/// How contents are probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildProbe {
    /// The program: this one.
    pub program: PathBuf,
    /// The post.
    pub model: PathBuf,
    /// Longest that it may take, not counting the time that it waits for a processor: on a machine that others keep busy it
    /// takes longer, and nothing is wrong with the file.
    pub limit: Duration,
    /// Bytes of memory that it may take for itself.
    pub memory: u64,
}

impl ChildProbe {
    /// Probes a file in the form that the engine loads.
    ///
    /// # Errors
    /// The file couldn't be tried, for a reason that isn't its own: nothing is known about it.
    pub async fn run(&self, file: &Path) -> Result<Finding, Reason> {
        let mut command = Command::new(&self.program);
        command
            .args(["spoke", "probe", "--json", "--memory", &self.memory.to_string(), "--model"])
            .arg(&self.model)
            .arg("--")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            // What a terminal sends to stop the daemon is not for the child.
            .process_group(0);
        child::start_clean(command.as_std_mut());
        let mut child = failpoints::trouble("spoke.fork")
            .and_then(|()| command.spawn())
            .map_err(|error| self.not_started(&error))?;
        let (out, err, id) = (child.stdout.take(), child.stderr.take(), child.id());
        let mut all = pin!(async { tokio::join!(child.wait(), read(out), read(err)) });
        let mut clock = Clock::new(TICK.min(self.limit / 4));
        let (status, out, err) = loop {
            if let Ok(ended) = tokio::time::timeout(clock.tick, &mut all).await {
                break ended;
            }
            clock.tick(Instant::now(), id.is_some_and(is_held_up));
            let waited = id.map_or(Duration::ZERO, waited_for_processor);
            let took = clock.took();
            // Dropped with the future, and with that killed.
            if clock.counted.saturating_sub(waited) >= self.limit {
                let [limit, took] = [self.limit, whole_seconds(took)].map(humantime::format_duration);
                let message =
                    format!("the probe took longer than {limit} ({took} with its waiting for the machine)");
                let why =
                    Reason::new(Code::ProbeTooSlow, message).hint("spokes.probe_limit gives it more time");
                return Ok(Finding::refused(why));
            }
            if took >= PATIENCE * self.limit {
                let took = humantime::format_duration(whole_seconds(took));
                let message =
                    format!("the machine is too busy: in {took} the process that tried it hardly ran");
                return Err(Reason::new(Code::NotProbed, message));
            }
        };
        let status = status.map_err(|error| self.not_started(&error))?;
        self.understood(status, &out, &err)
    }

    fn not_started(&self, error: &std::io::Error) -> Reason {
        Reason::new(Code::NotProbed, format!("{}: {error}", self.program.display()))
            .hint("the daemon must be able to start its own program")
    }

    /// What a child that has ended says by its answer and by the way of its end.
    fn understood(&self, status: ExitStatus, out: &str, err: &str) -> Result<Finding, Reason> {
        let stage = err.lines().rev().find_map(stage);
        let said = |line: &&str| !line.trim().is_empty() && self::stage(line).is_none();
        let last = err.lines().rev().find(said).unwrap_or("it said nothing");
        if let Some(signal) = status.signal() {
            let memory = bytesize::ByteSize(self.memory);
            let words = format!("its last words: {last}; it may take {memory} (spokes.probe_memory)");
            let how = format!("died by signal {signal}{}", named(signal));
            let undecided = |message: String| Err(Reason::new(Code::NotProbed, message).hint(words.clone()));
            if stage == Some(Stage::Post) {
                return undecided(format!("the process that was to try it {how} before it came to it"));
            }
            if let Some(cause) = from_outside(signal) {
                return undecided(format!("the process that tried it {how}: {cause}"));
            }
            if is_of_memory(last) {
                return undecided(format!("the process that tried it {how} for want of memory"));
            }
            let why = Reason::new(Code::ProbeDied, format!("the process that tried it {how}")).hint(words);
            return Ok(Finding::refused(why));
        }
        let answer = out.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        match serde_json::from_str(answer) {
            Ok(finding) if status.success() => Ok(finding),
            _ => {
                let code = status.code().unwrap_or(-1);
                Ok(Finding::refused(Reason::new(
                    Code::ProbeFailed,
                    format!("the process that tried it ended with {code}: {last}"),
                )))
            }
        }
    }
}

/// The stage that a line tells.
fn stage(line: &str) -> Option<Stage> {
    #[derive(Deserialize)]
    struct Line {
        stage: Stage,
    }
    serde_json::from_str(line).ok().map(|Line { stage }| stage)
}

/// Why a signal says nothing of the file, if so: no instruction of the process itself raises it.
fn from_outside(signal: i32) -> Option<&'static str> {
    match signal {
        libc::SIGKILL => Some("as the system does where memory is short"),
        libc::SIGBUS => Some("the system could not bring a page of a file or of memory"),
        libc::SIGILL | libc::SIGABRT | libc::SIGFPE | libc::SIGSEGV | libc::SIGTRAP | libc::SIGSYS => None,
        _ => Some("somebody stopped it"),
    }
}

/// Whether a process ended for want of memory: what Rust, C++ and llama.cpp say of it. The inspection has bounded what a file
/// takes, so that the machine or `spokes.probe_memory` is to blame.
fn is_of_memory(last_words: &str) -> bool {
    ["memory allocation of", "bad_alloc", "out of memory", "failed to allocate", "Cannot allocate memory"]
        .iter()
        .any(|words| last_words.contains(words))
}

/// How often it is looked at how a child gets on.
const TICK: Duration = Duration::from_millis(250);

/// Time that a child had for itself. What passes while this process doesn't run either (the machine slept, was paused, or has
/// no processor to spare) and what a child spends on waiting for a disk is not its own.
struct Clock {
    tick: Duration,
    began: Instant,
    last: Instant,
    counted: Duration,
}

impl Clock {
    fn new(tick: Duration) -> Self {
        let now = Instant::now();
        Self { tick, began: now, last: now, counted: Duration::ZERO }
    }

    fn tick(&mut self, now: Instant, held_up: bool) {
        let passed = now.duration_since(self.last);
        self.last = now;
        if !held_up {
            self.counted += passed.min(2 * self.tick);
        }
    }

    fn took(&self) -> Duration {
        self.last.duration_since(self.began)
    }
}

fn whole_seconds(duration: Duration) -> Duration {
    Duration::from_secs(duration.as_secs())
}

/// Whether a thread of a process waits for a disk, or all of it was stopped: then its time doesn't count. Only Linux tells.
fn is_held_up(process: u32) -> bool {
    let state = |thread: fs_err::DirEntry| {
        // The state follows the name in parentheses, which may hold anything (proc_pid_stat(5)).
        let text = fs_err::read_to_string(thread.path().join("stat")).ok()?;
        text.rsplit_once(") ")?.1.chars().next()
    };
    let threads = fs_err::read_dir(format!("/proc/{process}/task")).into_iter().flatten();
    threads.filter_map(|thread| state(thread.ok()?)).any(|state| matches!(state, 'D' | 'T' | 't'))
}

/// How long the threads of a process have waited for a processor so far: the longest of them. Only Linux tells.
fn waited_for_processor(process: u32) -> Duration {
    let waited = |thread: fs_err::DirEntry| {
        // Time on a processor and time of waiting for one, in nanoseconds (proc_pid_schedstat(5)).
        let text = fs_err::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
    };
    let threads = fs_err::read_dir(format!("/proc/{process}/task")).into_iter().flatten();
    threads.filter_map(|thread| waited(thread.ok()?)).max().unwrap_or_default()
}

fn named(signal: i32) -> &'static str {
    match signal {
        4 => " (illegal instruction)",
        6 => " (abort)",
        7 => " (bus error)",
        8 => " (arithmetic)",
        9 => " (kill)",
        11 => " (segmentation fault)",
        _ => "",
    }
}

/// What comes through a pipe, at most so much; the rest is read and forgotten, so that the writer doesn't wait for us.
async fn read(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut pipe) = pipe else { return String::new() };
    let mut kept = Vec::new();
    // A pipe that breaks has said what it had to say.
    let _ = (&mut pipe).take(LONGEST).read_to_end(&mut kept).await;
    let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    /// A child that a shell plays.
    async fn scripted(script: &str, limit: Duration) -> Finding {
        tried(script, limit).await.unwrap()
    }

    async fn tried(script: &str, limit: Duration) -> Result<Finding, Reason> {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("child");
        crate::atomic_file::write(&program, format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
        fs_err::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let probe = ChildProbe { program, model: "post.gguf".into(), limit, memory: 1 << 30 };
        probe.run(Path::new("/staged/spoke")).await
    }

    const LONG: Duration = Duration::from_secs(30);

    fn code(finding: &Finding) -> &str {
        finding.why.as_ref().map_or("", |why| why.code.as_ref())
    }

    #[tokio::test]
    async fn the_last_line_is_the_finding() {
        let line = r#"{"verdict":"differs","finite":true,"differs":true,"tokens":24,"resident_bytes":9}"#;
        let script = format!("echo noise >&2; echo 'noise too'; echo '{line}'; echo");
        let finding = scripted(&script, LONG).await;
        assert_eq!((finding.verdict, finding.tokens, finding.resident_bytes), (Verdict::Differs, 24, 9));
        let asked = scripted(r#"echo "$*" >&2; exit 3"#, LONG).await;
        let why = asked.why.unwrap();
        assert_eq!(
            why.message,
            "the process that tried it ended with 3: spoke probe --json --memory 1073741824 --model post.gguf -- /staged/spoke"
        );
    }

    #[tokio::test]
    async fn a_child_that_is_stopped_from_outside_says_nothing_of_the_file() {
        for signal in ["INT", "TERM", "KILL", "HUP", "QUIT", "XCPU", "BUS"] {
            let why = tried(&format!("kill -{signal} $$"), LONG).await.unwrap_err();
            assert_eq!(why.code, "not_probed", "{signal}: {why}");
        }
        let why = tried("kill -KILL $$", LONG).await.unwrap_err();
        assert!(why.message.contains("signal 9 (kill): as the system does where memory is short"), "{why}");
        let why = tried("echo 'memory allocation of 99 bytes failed' >&2; kill -ABRT $$", LONG).await;
        assert!(why.unwrap_err().message.contains("for want of memory"));
    }

    #[tokio::test]
    async fn a_child_that_dies_before_it_comes_to_the_file_says_nothing_of_it() {
        let script = |stage: &str| format!("echo '{{\"stage\":\"{stage}\"}}' >&2; kill -SEGV $$");
        let why = tried(&script("post"), LONG).await.unwrap_err();
        assert_eq!(why.code, "not_probed", "{why}");
        assert!(why.hint.unwrap().contains("it said nothing"), "a stage is no last word");
        assert_eq!(code(&scripted(&script("spoke"), LONG).await), "probe_died");
        let undecided =
            r#"echo '{"verdict":"undecided","finite":true,"differs":false,"tokens":0,"resident_bytes":0}'"#;
        assert_eq!(scripted(undecided, LONG).await.verdict, Verdict::Undecided);
    }

    #[tokio::test]
    async fn a_child_that_is_stopped_for_a_while_goes_on_afterwards() {
        let line = r#"{"verdict":"same","finite":true,"differs":false,"tokens":1,"resident_bytes":1}"#;
        // Stopped for longer than it may take.
        let script = format!("(sleep 1; kill -CONT $$) & kill -STOP $$; echo '{line}'");
        let finding = scripted(&script, Duration::from_millis(600)).await;
        assert_eq!(finding.verdict, Verdict::Same, "{finding:?}");
        // Stopped for good: nothing is known of the file.
        let why = tried("kill -STOP $$", Duration::from_millis(40)).await.unwrap_err();
        assert!(why.code == "not_probed" && why.message.contains("too busy"), "{why}");
    }

    #[test]
    fn time_in_which_nothing_ran_is_not_counted() {
        let second = Duration::from_secs(1);
        let mut clock = Clock::new(second);
        let mut now = clock.began;
        // What passed, whether the child was held up, and what is counted so far.
        for (seconds, held_up, counted) in [(1, false, 1), (1, true, 1), (3_600, false, 3), (2, false, 5)] {
            now += seconds * second;
            clock.tick(now, held_up);
            assert_eq!(clock.counted, counted * second);
        }
        assert_eq!(clock.took(), 3_604 * second);
    }

    #[tokio::test]
    async fn a_child_that_dies_hangs_or_babbles_is_a_reason_and_no_harm() {
        let died = scripted("echo 'GGML_ASSERT failed' >&2; kill -SEGV $$", LONG).await;
        assert_eq!(code(&died), "probe_died");
        let why = died.why.unwrap();
        assert!(why.message.contains("signal 11 (segmentation fault)"), "{why}");
        assert!(why.hint.unwrap().contains("GGML_ASSERT failed"));
        assert_eq!(code(&scripted("exec sleep 60", Duration::from_millis(200)).await), "probe_too_slow");
        assert_eq!(code(&scripted("echo no json", LONG).await), "probe_failed");
        assert_eq!(code(&scripted("exit 0", LONG).await), "probe_failed");
        let babble = "i=0; while [ $i -lt 5000 ]; do echo 0123456789012345678901234567890123456789 >&2; i=$((i+1)); done; exit 1";
        assert_eq!(code(&scripted(babble, LONG).await), "probe_failed");
    }

    #[test]
    fn waiting_for_a_processor_is_told_from_running_and_from_sleeping() {
        if !Path::new("/proc/self/schedstat").exists() {
            return eprintln!("skipped: this system does not tell");
        }
        // Whether this process alone makes threads wait: as many as share what there is three times over.
        let many = 3 * std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let waited = std::thread::scope(|scope| {
            let end = Instant::now() + Duration::from_millis(600);
            (0..many).for_each(|_| {
                scope.spawn(move || while Instant::now() < end {});
            });
            std::thread::sleep(Duration::from_millis(500));
            waited_for_processor(std::process::id())
        });
        assert!(waited > Duration::from_millis(100), "{waited:?}");
        let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let waited = waited_for_processor(sleeper.id());
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(waited < Duration::from_millis(300), "{waited:?}");
        assert_eq!(waited_for_processor(0), Duration::ZERO, "no such process");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_says_nothing_about_the_file() {
        let probe = ChildProbe { program: "/nowhere".into(), model: "m".into(), limit: LONG, memory: 1 };
        assert_eq!(probe.run(Path::new("x")).await.unwrap_err().code, "not_probed");
    }
}
