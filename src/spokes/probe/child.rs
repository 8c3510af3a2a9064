//! The parent's side of a probe: starts the child process, limits its time, reads its one line of
//! output, and interprets its exit.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::{Finding, Stage};
use crate::config::SpokeSettings;
use crate::engine::ffi::child;
use crate::failpoints;
use crate::spokes::life::Reason;
use crate::spokes::reason_code::Code;

/// Most bytes that are read of a child's stdout, and of its stderr.
const LONGEST: u64 = 64 << 10;

/// Most wall-clock time of a probe, as a multiple of its limit, however little CPU time it gets.
const PATIENCE: u32 = 30;

/// Settings of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildProbe {
    /// The program to run: this one.
    pub program: PathBuf,
    /// The post.
    pub model: PathBuf,
    /// Longest time, not counting the time that the child waits for a processor. On a machine that
    /// others keep busy a probe takes longer, and that is no fault of the file.
    pub limit: Duration,
    /// Bytes of memory that the child may allocate.
    pub memory: u64,
}

impl ChildProbe {
    /// A probe with a post, unless the settings turn probes off.
    pub fn new(settings: &SpokeSettings, model: PathBuf) -> Option<Self> {
        let post_bytes = fs_err::metadata(&model).map_or(0, |metadata| metadata.len());
        settings.probe.then(|| Self {
            program: settings.probe_program.clone(),
            model,
            limit: settings.probe_limit,
            memory: settings.probe_memory(post_bytes),
        })
    }

    /// Probes a file that is in the form that the engine loads.
    ///
    /// # Errors
    /// The file couldn't be probed for a reason that isn't its own, so nothing is known about it.
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
            // A terminal's signals that stop the daemon must not reach the child.
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
            // The child is dropped with the future, which kills it.
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

    /// Interprets the output and exit status of a child.
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

/// The stage that a line reports.
fn stage(line: &str) -> Option<Stage> {
    #[derive(Deserialize)]
    struct Line {
        stage: Stage,
    }
    serde_json::from_str(line).ok().map(|Line { stage }| stage)
}

/// Why a signal says nothing about the file, if no instruction of the process itself raises it.
fn from_outside(signal: i32) -> Option<&'static str> {
    match signal {
        libc::SIGKILL => Some("as the system does where memory is short"),
        libc::SIGBUS => Some("the system could not bring a page of a file or of memory"),
        libc::SIGILL | libc::SIGABRT | libc::SIGFPE | libc::SIGSEGV | libc::SIGTRAP | libc::SIGSYS => None,
        _ => Some("it was stopped from outside"),
    }
}

/// Whether a process ended for lack of memory, by the messages of Rust, C++ and llama.cpp. The
/// inspection has limited what a file needs, so the machine or `spokes.probe_memory` is at fault.
fn is_of_memory(last_words: &str) -> bool {
    ["memory allocation of", "bad_alloc", "out of memory", "failed to allocate", "Cannot allocate memory"]
        .iter()
        .any(|words| last_words.contains(words))
}

/// How often a child's progress is checked.
const TICK: Duration = Duration::from_millis(250);

/// Time that counts against a child's limit. It excludes time in which this process doesn't run
/// either (the machine slept, was suspended, or has no processor to spare), and time that the child
/// waits for a disk.
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

/// Whether a thread of a process waits for a disk, or the whole process is stopped. Such time
/// doesn't count. Only Linux reports this.
fn is_held_up(process: u32) -> bool {
    let state = |thread: fs_err::DirEntry| {
        // The state follows the command name in parentheses, which may contain anything
        // (proc_pid_stat(5)).
        let text = fs_err::read_to_string(thread.path().join("stat")).ok()?;
        text.rsplit_once(") ")?.1.chars().next()
    };
    let threads = fs_err::read_dir(format!("/proc/{process}/task")).into_iter().flatten();
    threads.filter_map(|thread| state(thread.ok()?)).any(|state| matches!(state, 'D' | 'T' | 't'))
}

/// How long the threads of a process have waited for a processor so far: the longest wait of any
/// thread. Only Linux reports this.
fn waited_for_processor(process: u32) -> Duration {
    let waited = |thread: fs_err::DirEntry| {
        // The fields are time on a processor and time waiting for one, in nanoseconds
        // (proc_pid_schedstat(5)).
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

/// Output from a pipe, up to a limit. The rest is read and discarded, so that the writer never
/// blocks.
async fn read(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut pipe) = pipe else { return String::new() };
    let mut kept = Vec::new();
    // On an error, keep what was read.
    let _ = (&mut pipe).take(LONGEST).read_to_end(&mut kept).await;
    let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    /// Runs a shell script as the child.
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
        // The child is stopped for longer than its limit.
        let script = format!("(sleep 1; kill -CONT $$) & kill -STOP $$; echo '{line}'");
        let finding = scripted(&script, Duration::from_millis(600)).await;
        assert_eq!(finding.verdict, Verdict::Same, "{finding:?}");
        // The child is stopped for good: nothing is known about the file.
        let why = tried("kill -STOP $$", Duration::from_millis(40)).await.unwrap_err();
        assert!(why.code == "not_probed" && why.message.contains("too busy"), "{why}");
    }

    #[test]
    fn time_in_which_nothing_ran_is_not_counted() {
        let second = Duration::from_secs(1);
        let mut clock = Clock::new(second);
        let mut now = clock.began;
        // Seconds passed, whether the child was held up, and the seconds counted so far.
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
        // Checks that this process alone makes threads wait: start three times as many threads as
        // there are processors.
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
