//! The reconciler: what it knows, in parts, and what it works with.

use std::sync::Arc;

use tokio::sync::watch;

use super::copies::Copies;
use super::state::aliases::Aliases;
use super::state::examinations::Examinations;
use super::state::folder_view::{FolderView, Following};
use super::state::instances::Instances;
use super::state::jobs::Jobs;
use super::state::outbox::Outbox;
use super::state::residency::Residency;
use super::{ReconcilerError, ReconcilerSettings, Spokes};
use crate::adapter::{Digest, Post};
use crate::database::StateDirectory;
use crate::engine::{Engine, EngineState, Health};
use crate::spokes::gate::Questioner;
use crate::spokes::life::Reason;
use crate::spokes::probe::ChildProbe;
use crate::spokes::quarantine::Quarantine;
use crate::spokes::registry::Registry;
use crate::spokes::store::{Here, Store};

/// The reconciler. Its parts keep their own fields; its methods, in the other files of this folder,
/// are what concerns more than one part.
pub(super) struct Reconciler {
    pub(super) settings: ReconcilerSettings,

    pub(super) folder: FolderView,
    pub(super) instances: Instances,
    pub(super) aliases: Aliases,
    pub(super) examinations: Examinations,
    pub(super) residency: Residency,
    pub(super) jobs: Jobs,
    pub(super) outbox: Outbox,

    pub(super) engine: Arc<dyn Engine>,
    pub(super) health: watch::Receiver<Health>,
    pub(super) registry: Arc<Registry>,
    /// Handle for the gate, which takes leases like any request.
    pub(super) spokes: Spokes,
    /// Asks the questions of gates.
    pub(super) questioner: Arc<dyn Questioner>,
    /// How spokes are probed; `None`: they aren't.
    pub(super) probe: Option<ChildProbe>,
    pub(super) store: Store,
    /// The post and program version for which verdicts hold.
    pub(super) here: Here,
    /// `None` until it is read; then the post, or why it can't be read.
    pub(super) post: Option<Result<Arc<Post>, Reason>>,
    pub(super) copies: Copies,
    pub(super) quarantine: Quarantine,
    /// Holds the lock of the state folder.
    _state: StateDirectory,
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
        let folder = FolderView::new(Following {
            folder: settings.folder.clone(),
            events: settings.spokes.events,
            with_events: settings.spokes.reconcile,
            without_events: settings.spokes.poll,
            settle: settings.spokes.settle,
            most: settings.spokes.most,
        });
        let quarantine = state.path().join("spokes/quarantine");
        let quarantine = Quarantine::new(quarantine, settings.spokes.quarantine.as_u64());
        let probe = ChildProbe::new(&settings.spokes, settings.model.clone());
        Ok(Self {
            folder,
            instances: Instances::default(),
            aliases: Aliases::new(settings.spokes.keep),
            examinations: Examinations::default(),
            residency: Residency::new(settings.spokes.memory.as_u64()),
            jobs: Jobs::default(),
            outbox: Outbox::default(),
            health: engine.health(),
            engine,
            registry: Arc::clone(spokes.registry()),
            spokes,
            questioner,
            store,
            here: Here { post: Digest([0; 32]), version: version(probe.is_some()) },
            probe,
            post: None,
            copies: Copies::new(state.path().join("spokes/staged")),
            quarantine,
            _state: state,
            settings,
        })
    }

    pub(super) fn engine_is_ready(&self) -> bool {
        matches!(self.health.borrow().state, EngineState::Ready(_))
    }
}

/// Version of this program, and whether it probes. If probes are turned on, generations that were
/// never probed are examined again.
fn version(probes: bool) -> String {
    format!("{}{}", env!("CARGO_PKG_VERSION"), if probes { "" } else { " without probes" })
}
