//! The reconciler's thread: its state, and its turns of waiting, acting, committing and publishing.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::aliases::Named;
use super::commands::{Command, Holding};
use super::instances::{Instance, InstanceId, Waiter};
use super::jobs::{Done, Judging, Task};
use super::{ReconcilerError, ReconcilerSettings, SpokeError, SpokeRow, Spokes};
use crate::adapter::{Digest, Generation, Post};
use crate::database::{DatabaseError, StateDirectory};
use crate::engine::{Engine, EngineState, Health};
use crate::spokes::folder::{Change, Scan, Watcher};
use crate::spokes::gate::Questioner;
use crate::spokes::leases::{Bell, Leases};
use crate::spokes::life::{Effect, Reason, State};
use crate::spokes::probe::ChildProbe;
use crate::spokes::quarantine::Quarantine;
use crate::spokes::reason_code::Code;
use crate::spokes::registry::Registry;
use crate::spokes::store::{Here, Known, Store, Write};

/// Changes of the folder that one turn handles, so that ten thousand files don't keep a request
/// waiting.
const CHANGES: usize = 128;
/// Longest wait of the thread. Requests whose client left are noticed at the latest then.
const PATIENCE: Duration = Duration::from_secs(1);

/// State of the reconciler's thread.
pub(super) struct Reconciler {
    pub(super) settings: ReconcilerSettings,
    /// How spokes are probed; `None`: they aren't.
    pub(super) probe: Option<ChildProbe>,
    /// Holds the lock of the state folder.
    pub(super) state: StateDirectory,
    pub(super) store: Store,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) quarantine: Quarantine,
    pub(super) registry: Arc<Registry>,
    /// Handle for the gate, which takes leases like any request.
    pub(super) spokes: Spokes,
    /// Asks the questions of gates.
    pub(super) questioner: Arc<dyn Questioner>,
    pub(super) bell: Arc<Bell>,
    pub(super) health: watch::Receiver<Health>,

    pub(super) here: Here,
    /// `None` until it is read; then the post, or why it can't be read.
    pub(super) post: Option<Result<Arc<Post>, Reason>>,
    pub(super) scan: Scan,
    pub(super) watcher: Option<Watcher>,
    pub(super) listed_at: Option<Instant>,
    /// Device and inode of the folder at the last listing.
    pub(super) listed: Option<(u64, u64)>,
    pub(super) changes: VecDeque<Change>,

    pub(super) lives: BTreeMap<InstanceId, Instance>,
    pub(super) next_life: InstanceId,
    /// The life of each entry's current content.
    pub(super) by_entry: HashMap<String, InstanceId>,
    pub(super) names: BTreeMap<String, Named>,
    /// The smallest id that a new name may get.
    pub(super) first_name: i64,
    pub(super) known: BTreeMap<Generation, Known>,
    /// Generations that must not be loaded under any name, because they crash the process.
    pub(super) banned: BTreeMap<Generation, Reason>,
    /// Generations that must not serve under the name from which they were rolled back.
    pub(super) rolled_back: BTreeMap<(String, Generation), Reason>,

    pub(super) slots: HashMap<Generation, Arc<Leases>>,
    pub(super) holdings: VecDeque<Holding>,
    /// Lives that wait for memory.
    pub(super) cramped: VecDeque<InstanceId>,
    /// Generations in use that have to leave memory for the next load.
    pub(super) leaving: BTreeSet<Generation>,
    /// Lives that served before the start and have no known file.
    pub(super) orphans: Vec<InstanceId>,
    /// Generations to load before the first request for them.
    pub(super) preload: VecDeque<Generation>,
    /// When the copies of generations that failed to load were last inspected.
    pub(super) stumbles: BTreeMap<Generation, Instant>,
    /// Postponed lives, by the time of their next try.
    pub(super) retries: BTreeSet<(Instant, InstanceId)>,

    pub(super) urgent: VecDeque<(InstanceId, Task)>,
    pub(super) queue: VecDeque<(InstanceId, Task)>,
    pub(super) running: Option<InstanceId>,
    /// Lives that wait for their gate, and the one being judged. A gate's questions take as long as
    /// requests do, so they must not block other files.
    pub(super) gates: VecDeque<InstanceId>,
    pub(super) judging: Option<Judging>,
    pub(super) done: (mpsc::UnboundedSender<Done>, mpsc::UnboundedReceiver<Done>),

    pub(super) effects: VecDeque<(InstanceId, Effect)>,
    /// Writes to commit at the end of the turn. In a `RefCell`, because methods with `&self` record
    /// writes too.
    pub(super) writes: RefCell<Vec<Write>>,
    /// Lives that changed since their rows were last published.
    pub(super) unshown: RefCell<BTreeSet<InstanceId>>,
    /// Answers to send after the commit.
    pub(super) answers: Vec<(Waiter, Result<SpokeRow, SpokeError>)>,
    /// Whether names changed since the last publication.
    pub(super) names_changed: bool,
    pub(super) sweep_due: bool,
}

impl Reconciler {
    pub(super) fn open(
        settings: ReconcilerSettings,
        state: StateDirectory,
        engine: Arc<dyn Engine>,
        questioner: Arc<dyn Questioner>,
        spokes: Spokes,
    ) -> Result<Self, ReconcilerError> {
        let store = Store::open(state.database()?)?;
        let quarantine =
            Quarantine::new(state.path().join("spokes/quarantine"), settings.spokes.quarantine.as_u64());
        let scan = Scan::new(settings.spokes.settle, settings.spokes.most);
        let probe = ChildProbe::new(&settings.spokes, settings.model.clone());
        Ok(Self {
            scan,
            store,
            state,
            health: engine.health(),
            engine,
            quarantine,
            registry: Arc::clone(spokes.registry()),
            spokes,
            questioner,
            bell: Arc::default(),
            here: Here { post: Digest([0; 32]), version: version(probe.is_some()) },
            probe,
            post: None,
            watcher: None,
            listed_at: None,
            listed: None,
            changes: VecDeque::new(),
            lives: BTreeMap::new(),
            next_life: 0,
            by_entry: HashMap::new(),
            names: BTreeMap::new(),
            first_name: 0,
            known: BTreeMap::new(),
            banned: BTreeMap::new(),
            rolled_back: BTreeMap::new(),
            slots: HashMap::new(),
            holdings: VecDeque::new(),
            cramped: VecDeque::new(),
            leaving: BTreeSet::new(),
            orphans: Vec::new(),
            preload: VecDeque::new(),
            stumbles: BTreeMap::new(),
            retries: BTreeSet::new(),
            urgent: VecDeque::new(),
            queue: VecDeque::new(),
            running: None,
            gates: VecDeque::new(),
            judging: None,
            done: mpsc::unbounded_channel(),
            effects: VecDeque::new(),
            writes: RefCell::default(),
            unshown: RefCell::default(),
            answers: Vec::new(),
            names_changed: false,
            sweep_due: true,
            settings,
        })
    }

    /// Runs the thread.
    pub(super) fn run(mut self, mut asked: mpsc::UnboundedReceiver<Command>, stop: watch::Receiver<bool>) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build();
        match runtime {
            Ok(runtime) => {
                runtime.block_on(self.turns(&mut asked, stop));
                // A copy or an inspection still in progress must not delay the end of the process.
                runtime.shutdown_background();
            }
            Err(error) => {
                tracing::error!(%error, "the reconciler of spokes can't be started: the files in the folder are left alone");
            }
        }
        // Dropped in this order, so that a caller that sees the channel closed finds the state
        // folder unlocked.
        drop(self);
        drop(asked);
    }

    async fn turns(&mut self, asked: &mut mpsc::UnboundedReceiver<Command>, mut stop: watch::Receiver<bool>) {
        self.read_post().await;
        if let Err(error) = self.restore() {
            tracing::error!(%error, "the stored state can't be read; starting from the files in the folder");
        }
        self.registry.set_restored();
        self.start_watching();
        loop {
            self.act(&stop).await;
            if *stop.borrow() {
                return;
            }
            let is_ready = self.engine_is_ready();
            let wake = self.next_look().min(Instant::now() + PATIENCE);
            tokio::select! {
                _ = stop.changed() => return,
                ask = asked.recv() => match ask {
                    Some(ask) => self.asked(ask),
                    None => return,
                },
                done = self.done.1.recv() => if let Some(done) = done { self.finished(done) },
                () = self.bell.heard() => {}
                () = ready(&mut self.health), if !is_ready => {}
                noticed = noticed(self.watcher.as_ref()) => self.noticed(&noticed),
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            if self.next_try().is_some_and(|at| at <= Instant::now()) {
                if matches!(self.post, Some(Err(_))) {
                    self.read_post().await;
                }
                self.try_again();
            }
            self.look();
        }
    }

    /// Does all work that is possible now, and commits it.
    async fn act(&mut self, stop: &watch::Receiver<bool>) {
        for _ in 0..CHANGES {
            let Some(change) = self.changes.pop_front() else { break };
            self.changed(change);
        }
        loop {
            while let Some((id, effect)) = self.effects.pop_front() {
                self.effect(id, effect, stop).await;
            }
            self.write_down();
            self.free_unneeded();
            if self.engine_is_ready() {
                self.serve_waiting(stop).await;
                self.serve_preload(stop).await;
            }
            self.start_job();
            self.start_judging();
            if self.effects.is_empty() {
                break;
            }
        }
        self.write_down();
        if std::mem::take(&mut self.sweep_due) {
            self.sweep();
        }
    }

    pub(super) fn engine_is_ready(&self) -> bool {
        matches!(self.health.borrow().state, EngineState::Ready(_))
    }

    /// Commits all changes, then publishes them and sends the answers. Nothing is visible before it
    /// is on disk.
    pub(super) fn write_down(&mut self) {
        let writes = std::mem::take(&mut *self.writes.borrow_mut());
        match self.store.commit(&writes, &self.here) {
            Ok(ids) => {
                let lines = writes.into_iter().filter_map(|write| match write {
                    Write::Journal(line) => Some(line),
                    _ => None,
                });
                for (id, line) in ids.into_iter().zip(lines) {
                    self.registry.tell(crate::spokes::store::Transition { id, ..line });
                }
            }
            Err(error) => {
                // The next turn tries again. Until then names keep their generations, on disk and
                // in memory.
                if self.registry.unwritten().is_none() {
                    tracing::error!(%error, "changes of spokes can't be written to the database");
                }
                self.writes.borrow_mut().splice(..0, writes);
                self.tell_unwritten(&error);
                return;
            }
        }
        if self.registry.unwritten().is_some() {
            tracing::info!("changes of spokes are written to the database again");
            self.registry.set_unwritten(None);
        }
        if std::mem::take(&mut self.names_changed) {
            self.publish();
        }
        self.show_all();
        for (waiter, answer) in std::mem::take(&mut self.answers) {
            // The caller may have stopped waiting.
            let _ = waiter.send(answer);
        }
    }

    /// Publishes what may be said before it is on disk: why there is no progress, and what doesn't
    /// serve. Callers get their answer now; their changes take effect once they are written.
    fn tell_unwritten(&mut self, error: &DatabaseError) {
        let why = Reason::new(
            Code::NotWritten,
            format!("changes of spokes can't be written to the database: {error}"),
        )
        .hint("check disk space, limits and permissions of paths.state; it is tried again");
        self.registry.set_unwritten(Some(why.clone()));
        let serves = |id: &InstanceId| {
            self.lives.get(id).is_none_or(|life| matches!(life.state, State::Serving | State::Retired(_)))
        };
        let unshown = std::mem::take(self.unshown.get_mut());
        let (later, now): (BTreeSet<InstanceId>, BTreeSet<InstanceId>) =
            unshown.into_iter().partition(serves);
        *self.unshown.get_mut() = now;
        self.show_all();
        *self.unshown.get_mut() = later;
        for (waiter, answer) in std::mem::take(&mut self.answers) {
            // The caller may have stopped waiting.
            let _ = waiter.send(answer.and(Err(SpokeError::Postponed(why.clone()))));
        }
    }

    /// Forgets the examinations of generations that no name and no file has any more.
    fn forget_contents(&mut self) {
        let named = self.names.values().flat_map(|named| named.history.iter().chain(&named.current));
        let lived = self.lives.values().filter_map(|life| life.generation.as_ref());
        let needed: BTreeSet<Generation> = named.chain(lived).copied().collect();
        let gone: Vec<Generation> =
            self.known.keys().filter(|generation| !needed.contains(generation)).copied().collect();
        for generation in gone {
            self.known.remove(&generation);
            self.writes.get_mut().push(Write::Unexamined(generation));
        }
    }

    /// Removes copies that are no longer needed. Not while a task runs, because its new copy
    /// belongs to no life yet.
    fn sweep(&mut self) {
        if self.running.is_some() {
            self.sweep_due = true;
            return;
        }
        self.forget_names();
        let mut needed: BTreeSet<_> = BTreeSet::new();
        for life in self.lives.values().filter(|life| !matches!(life.state, State::Quarantined(_))) {
            needed.extend(life.pinned.iter().chain(&life.served).cloned());
        }
        let kept = self.names.values().flat_map(|named| named.history.iter().chain(&named.current));
        for generation in kept {
            needed.extend(self.copies(*generation));
        }
        needed.extend(self.slots.values().map(|slot| slot.path.clone()));
        self.forget_contents();
        if let Err(error) = crate::spokes::quarantine::sweep(&self.staged(), &needed) {
            tracing::warn!(%error, "unused copies of spokes can't be removed");
        }
    }
}

/// Version of this program, and whether it probes. If probes are turned on, generations that were
/// never probed are examined again.
fn version(probes: bool) -> String {
    format!("{}{}", env!("CARGO_PKG_VERSION"), if probes { "" } else { " without probes" })
}

/// Waits until the engine has loaded its weights.
async fn ready(health: &mut watch::Receiver<Health>) {
    if health.wait_for(|health| matches!(health.state, EngineState::Ready(_))).await.is_err() {
        // The engine is gone and will load nothing.
        std::future::pending::<()>().await;
    }
}

/// Waits for file system events, if the folder is watched.
async fn noticed(watcher: Option<&Watcher>) -> crate::spokes::folder::Noticed {
    match watcher {
        Some(watcher) => watcher.noticed().await,
        None => std::future::pending().await,
    }
}
