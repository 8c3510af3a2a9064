//! The keeper's thread: what it knows, and one turn after the other of waiting, acting, writing down and telling.

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
use crate::spokes::leases::{Bell, Leases};
use crate::spokes::life::{Effect, Reason, State};
use crate::spokes::quarantine::Quarantine;
use crate::spokes::reason_code::Code;
use crate::spokes::registry::Registry;
use crate::spokes::store::{Here, Known, Store, Write};

/// Changes of the folder that one turn takes up: ten thousand files must not keep a request waiting.
const CHANGES: usize = 128;
/// Longest that the thread waits for anything: waiting requests that left are noticed by then.
const PATIENCE: Duration = Duration::from_secs(1);

/// Everything that the thread has.
pub(super) struct Reconciler {
    pub(super) settings: ReconcilerSettings,
    /// Holds the lock.
    pub(super) state: StateDirectory,
    pub(super) store: Store,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) quarantine: Quarantine,
    pub(super) registry: Arc<Registry>,
    /// For the gate, which asks like everybody else.
    pub(super) spokes: Spokes,
    pub(super) bell: Arc<Bell>,
    pub(super) health: watch::Receiver<Health>,

    pub(super) here: Here,
    /// `None` until it is read; then the post, or why it can't be.
    pub(super) post: Option<Result<Arc<Post>, Reason>>,
    pub(super) scan: Scan,
    pub(super) watcher: Option<Watcher>,
    pub(super) listed_at: Option<Instant>,
    /// Device and number of the folder when it was last listed.
    pub(super) listed: Option<(u64, u64)>,
    pub(super) changes: VecDeque<Change>,

    pub(super) lives: BTreeMap<InstanceId, Instance>,
    pub(super) next_life: InstanceId,
    /// The life of the content that an entry has now.
    pub(super) by_entry: HashMap<String, InstanceId>,
    pub(super) names: BTreeMap<String, Named>,
    /// The smallest number that a new name may have.
    pub(super) first_name: i64,
    pub(super) known: BTreeMap<Generation, Known>,
    /// Contents that must not be loaded under any name: they kill the process.
    pub(super) banned: BTreeMap<Generation, Reason>,
    /// Contents that do not serve under the name from which they were rolled back.
    pub(super) rolled_back: BTreeMap<(String, Generation), Reason>,

    pub(super) slots: HashMap<Generation, Arc<Leases>>,
    pub(super) holdings: VecDeque<Holding>,
    /// Lives that wait for memory.
    pub(super) cramped: VecDeque<InstanceId>,
    /// In use, and in the way of whoever is next to be loaded.
    pub(super) leaving: BTreeSet<Generation>,
    /// What served before the start and came by no file that is known.
    pub(super) orphans: Vec<InstanceId>,
    /// Generations to be in memory before anybody asks.
    pub(super) preload: VecDeque<Generation>,
    /// When copies were last looked at whose loads failed.
    pub(super) stumbles: BTreeMap<Generation, Instant>,
    /// What was put off, by when it is tried again.
    pub(super) retries: BTreeSet<(Instant, InstanceId)>,

    pub(super) urgent: VecDeque<(InstanceId, Task)>,
    pub(super) queue: VecDeque<(InstanceId, Task)>,
    pub(super) running: Option<InstanceId>,
    /// Lives that wait for their gate, and the one that is being asked. Questions take as long as requests do: they must not
    /// keep other files waiting.
    pub(super) gates: VecDeque<InstanceId>,
    pub(super) judging: Option<Judging>,
    pub(super) done: (mpsc::UnboundedSender<Done>, mpsc::UnboundedReceiver<Done>),

    pub(super) effects: VecDeque<(InstanceId, Effect)>,
    /// What is to be written at the end of the turn. Notes are taken where only a look is had.
    pub(super) writes: RefCell<Vec<Write>>,
    /// Lives that have changed since they were last shown.
    pub(super) unshown: RefCell<BTreeSet<InstanceId>>,
    /// What is to be said once it is written.
    pub(super) answers: Vec<(Waiter, Result<SpokeRow, SpokeError>)>,
    /// Whether names have changed hands since they were last published.
    pub(super) names_changed: bool,
    pub(super) sweep_due: bool,
}

impl Reconciler {
    pub(super) fn open(
        settings: ReconcilerSettings,
        state: StateDirectory,
        engine: Arc<dyn Engine>,
        spokes: &Spokes,
    ) -> Result<Self, ReconcilerError> {
        let store = Store::open(state.database()?)?;
        let quarantine = Quarantine::new(state.path().join("spokes/quarantine"), settings.quarantine);
        let scan = Scan::new(settings.settle, settings.most);
        Ok(Self {
            scan,
            store,
            state,
            health: engine.health(),
            engine,
            quarantine,
            registry: Arc::clone(spokes.registry()),
            spokes: spokes.clone(),
            bell: Arc::default(),
            here: Here { post: Digest([0; 32]), version: version(settings.probe.is_some()) },
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

    /// Body of the thread.
    pub(super) fn run(mut self, mut asked: mpsc::UnboundedReceiver<Command>, stop: watch::Receiver<bool>) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build();
        match runtime {
            Ok(runtime) => {
                runtime.block_on(self.turns(&mut asked, stop));
                // A copy or an inspection that still runs must not keep the process from ending.
                runtime.shutdown_background();
            }
            Err(error) => {
                tracing::error!(%error, "spokes can't be kept: the files in the folder are left alone");
            }
        }
        // In this order: whoever sees that nobody listens any more finds the state unlocked.
        drop(self);
        drop(asked);
    }

    async fn turns(&mut self, asked: &mut mpsc::UnboundedReceiver<Command>, mut stop: watch::Receiver<bool>) {
        self.read_post().await;
        if let Err(error) = self.restore() {
            tracing::error!(%error, "what served before can't be read: it begins with the files in the folder");
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

    /// Does what has come up, as far as it can be done now, and writes it down.
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

    /// Commits what has happened, then tells it, lets names change hands and answers; nothing of it before it is on disk.
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
                // Tried again with the next turn; until then names stay with whom they are, on disk and in memory.
                if self.registry.unwritten().is_none() {
                    tracing::error!(%error, "what happened to spokes can't be written down");
                }
                self.writes.borrow_mut().splice(..0, writes);
                self.tell_unwritten(&error);
                return;
            }
        }
        if self.registry.unwritten().is_some() {
            tracing::info!("what happens to spokes is written down again");
            self.registry.set_unwritten(None);
        }
        if std::mem::take(&mut self.names_changed) {
            self.publish();
        }
        self.show_all();
        for (waiter, answer) in std::mem::take(&mut self.answers) {
            // Whoever asked may have left.
            let _ = waiter.send(answer);
        }
    }

    /// What can be said although it isn't on disk: why nothing gets on, and what doesn't serve. Who asked for a change is not
    /// kept waiting: it takes effect when it is written.
    fn tell_unwritten(&mut self, error: &DatabaseError) {
        let why =
            Reason::new(Code::NotWritten, format!("what happens to spokes can't be written down: {error}"))
                .hint("look at the room, the limits and the permissions of paths.state; it is tried again");
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
            // Whoever asked may have left.
            let _ = waiter.send(answer.and(Err(SpokeError::Postponed(why.clone()))));
        }
    }

    /// Forgets what was found out about contents that nothing has any more.
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

    /// Removes copies that nobody needs any more. Not while one is being made: it is nobody's yet.
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
            tracing::warn!(%error, "copies of spokes that nobody needs can't be removed");
        }
    }
}

/// This program, and whether it tries contents before it loads them: one that wasn't tried is, once that is wanted.
fn version(probes: bool) -> String {
    format!("{}{}", env!("CARGO_PKG_VERSION"), if probes { "" } else { " without probes" })
}

/// Waits until the engine has read its weights.
async fn ready(health: &mut watch::Receiver<Health>) {
    if health.wait_for(|health| matches!(health.state, EngineState::Ready(_))).await.is_err() {
        // It is gone; nothing will be loaded any more.
        std::future::pending::<()>().await;
    }
}

/// What the system tells, if it is listened to.
async fn noticed(watcher: Option<&Watcher>) -> crate::spokes::folder::Noticed {
    match watcher {
        Some(watcher) => watcher.noticed().await,
        None => std::future::pending().await,
    }
}
