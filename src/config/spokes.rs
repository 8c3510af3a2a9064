//! The section `[spokes]`: how the folder is watched, what a spoke may cost, and which request gets
//! which spoke.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use toml::Spanned;

use super::paths::absolute;
use super::raw;
use super::validate::Check;
use crate::adapter::{Limits, check_name};

/// Least memory of a probe process, for contexts, thread stacks and the allocator's caches. The
/// default post needs 0.4 GB, one of 1.6 GB less than this. The daemon adds three times the post's
/// bytes, for larger contexts, buffers and a repacked copy of the weights.
pub const LEAST_PROBE_MEMORY: u64 = 2 << 30;

/// All settings of spokes except their folder.
#[derive(Debug, Clone, PartialEq)]
pub struct SpokeSettings {
    /// Whether file system events are used. If not, the folder is scanned every [`Self::poll`].
    pub events: bool,
    /// How often the whole folder is scanned in addition to events.
    pub reconcile: Duration,
    /// How often the folder is scanned without events.
    pub poll: Duration,
    /// How long a file must stay unchanged before it is read.
    pub settle: Duration,
    /// Most spokes in the folder.
    pub most: usize,
    /// Generations kept for each name in addition to the serving one.
    pub keep: usize,
    /// Memory of all spokes together.
    pub memory: ByteSize,
    /// Largest file.
    pub file_limit: ByteSize,
    /// Largest rank.
    pub rank_limit: u32,
    /// Whether spokes are probed in a child process before they are loaded.
    pub probe: bool,
    /// Longest time for a probe.
    pub probe_limit: Duration,
    /// Memory of the probe process; computed from the post's size unless given.
    pub probe_memory: Option<ByteSize>,
    /// The program to run as the probe process: this one, unless a test sets another.
    pub probe_program: PathBuf,
    /// Disk space for refused spokes.
    pub quarantine: ByteSize,
    /// Whether refused files are moved out of the folder.
    pub move_refused: bool,
    /// Gates by the name of the spoke, or of the task that it was trained for.
    pub gates: BTreeMap<String, GateSettings>,
    /// Which request gets which spoke.
    pub choice: SpokeChoice,
}

/// Which request gets which spoke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpokeChoice {
    /// Spoke of requests that choose none.
    pub default: Option<String>,
    /// Fallback for requests whose model has an unknown name.
    pub unknown_model: Otherwise,
    /// Fallback for requests whose spoke was retired.
    pub retired: Otherwise,
    /// Spokes by the schema name of their task.
    pub tasks: BTreeMap<String, String>,
}

/// Fallback if a spoke is not available.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Otherwise {
    /// The request is refused.
    Refuse,
    /// The post alone answers.
    Post,
}

/// Gate that a spoke must pass before it serves: bounds of means over a probe set.
#[derive(Debug, Clone, PartialEq)]
pub struct GateSettings {
    /// Rows in the format of `bespoke eval run`.
    pub probes: PathBuf,
    /// Entity preservation, at least.
    pub epr: Option<f64>,
    /// Number preservation, at least.
    pub np: Option<f64>,
    /// Schema compliance, at least.
    pub sc: Option<f64>,
    /// Fabrication, at most.
    pub fr: Option<f64>,
    /// Longest time for all answers together.
    pub limit: Duration,
}

/// This program, also after its file was replaced by a newer one.
const OURSELVES: &str = "/proc/self/exe";

impl SpokeSettings {
    /// Validates the raw settings.
    pub(super) fn new(written: raw::Spokes, folder: &Path, check: &mut Check) -> Self {
        let seconds = Duration::from_secs;
        let name = |check: &mut Check, key: &str, found: Spanned<String>| match check_name(found.get_ref()) {
            Ok(()) => Some(found.into_inner()),
            Err(message) => {
                check.wrong(key, &found, "the name of a spoke", Some(&message));
                None
            }
        };
        let mut tasks = BTreeMap::new();
        for (task, spoke) in written.tasks {
            let spoke = name(check, &format!("spokes.tasks.{task}"), spoke);
            tasks.extend(spoke.map(|spoke| (task, spoke)));
        }
        let gates = written.gate.into_iter();
        let gates =
            gates.filter_map(|(of, gate)| Some((of.clone(), gate_settings(&of, gate, folder, check)?)));
        Self {
            gates: gates.collect(),
            events: check.choice("spokes.watch", written.watch, &[("events", true), ("poll", false)], true),
            reconcile: check.time("spokes.reconcile", written.reconcile, seconds(30)),
            poll: check.time("spokes.poll", written.poll, seconds(2)),
            settle: check.time("spokes.settle", written.settle, Duration::from_millis(500)),
            most: check.whole("spokes.most", written.most, 1..=100_000, 1_000) as usize,
            keep: check.whole("spokes.keep", written.keep, 0..=100, 3) as usize,
            memory: check.size("spokes.memory", written.memory, ByteSize::gib(2), 1 << 20..=1 << 42),
            file_limit: check.size(
                "spokes.file_limit",
                written.file_limit,
                ByteSize::gib(2),
                1 << 10..=1 << 40,
            ),
            rank_limit: check.whole("spokes.rank_limit", written.rank_limit, 1..=65_536, 1_024),
            probe: written.probe.unwrap_or(true),
            probe_limit: check.time("spokes.probe_limit", written.probe_limit, seconds(20)),
            probe_memory: written.probe_memory.map(|given| {
                check.size(
                    "spokes.probe_memory",
                    Some(given),
                    ByteSize(LEAST_PROBE_MEMORY),
                    LEAST_PROBE_MEMORY..=1 << 42,
                )
            }),
            probe_program: PathBuf::from(OURSELVES),
            quarantine: check.size("spokes.quarantine", written.quarantine, ByteSize::gib(2), 0..=1 << 42),
            move_refused: written.move_refused.unwrap_or(false),
            choice: SpokeChoice {
                default: written.default.and_then(|found| name(check, "spokes.default", found)),
                unknown_model: check.otherwise(
                    "spokes.unknown_model",
                    written.unknown_model,
                    Otherwise::Refuse,
                ),
                retired: check.otherwise("spokes.retired", written.retired, Otherwise::Refuse),
                tasks,
            },
        }
    }

    /// Limits of a single spoke.
    pub fn limits(&self) -> Limits {
        Limits {
            max_bytes: self.file_limit.as_u64(),
            max_resident_bytes: self.memory.as_u64(),
            max_rank: self.rank_limit.into(),
            ..Limits::default()
        }
    }

    /// Bytes of memory of a process that runs a post of this size for a probe.
    pub fn probe_memory(&self, post_bytes: u64) -> u64 {
        self.probe_memory.map_or(LEAST_PROBE_MEMORY + 3 * post_bytes, |memory| memory.as_u64())
    }
}

fn gate_settings(of: &str, written: raw::Gate, folder: &Path, check: &mut Check) -> Option<GateSettings> {
    let mut bound = |name: &str, found: Option<Spanned<f64>>| {
        found.map(|found| check.share(&format!("spokes.gate.{of}.{name}"), found))
    };
    let (epr, np) = (bound("epr", written.epr), bound("np", written.np));
    let (sc, fr) = (bound("sc", written.sc), bound("fr", written.fr));
    let limit = check.time(&format!("spokes.gate.{of}.limit"), written.limit, Duration::from_secs(600));
    let Some(probes) = written.probes else {
        check
            .missing(&format!("spokes.gate.{of}.probes"), "a file of rows, as `bespoke eval run` reads them");
        return None;
    };
    if [epr, np, sc, fr].iter().all(Option::is_none) {
        check.missing(&format!("spokes.gate.{of}"), "at least one bound: epr, np, sc or fr");
        return None;
    }
    let probes = absolute(&folder.join(probes.into_inner()));
    Some(GateSettings { probes, epr, np, sc, fr, limit })
}

impl Check {
    fn otherwise(&mut self, key: &str, found: Option<Spanned<String>>, default: Otherwise) -> Otherwise {
        self.choice(key, found, &[("refuse", Otherwise::Refuse), ("post", Otherwise::Post)], default)
    }
}
