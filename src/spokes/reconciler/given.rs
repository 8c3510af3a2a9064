//! Spokes that are loaded by request, from any path, and unloaded again.

use std::path::PathBuf;

use tokio::sync::oneshot;

use super::SpokeRow;
use super::error::SpokeError;
use super::parts::Reconciler;
use super::state::content::Source;
use super::state::instance::{Instance, InstanceId, Waiter};
use super::state::moment::Moment;
use crate::adapter::check_name;
use crate::spokes::life::{Reason, Trigger};
use crate::spokes::reason_code::Code;

impl Reconciler {
    /// Loads a file and serves it under a name.
    pub(super) fn load_given(&mut self, name: &str, path: PathBuf, replace: bool, waiter: Waiter) {
        let outcome = self.try_load_given(name, path, replace);
        self.wait_for(outcome, waiter);
    }

    fn try_load_given(&mut self, name: &str, path: PathBuf, replace: bool) -> Result<InstanceId, SpokeError> {
        let refuse = |code: Code, message: String| Err(SpokeError::Refused(Reason::new(code, message)));
        if let Err(message) = check_name(name) {
            return refuse(Code::BadName, message);
        }
        if self.settings.is_post(name) {
            return refuse(Code::NameTaken, "the post itself has this name".to_owned());
        }
        let has_file = |instance: &Instance| instance.entry().is_some() && instance.holds_name();
        if self.instances.named(name).any(|(_, instance)| has_file(instance)) {
            return refuse(Code::NameTaken, format!("a file of the folder has the name {name:?}"));
        }
        if self.aliases.instance(name).is_some() && !replace {
            let message = format!("{name:?} is loaded already; load_inplace replaces it");
            return Err(SpokeError::Conflict(message));
        }
        // Earlier requests without a verdict are superseded, and refused ones are finished.
        let is_earlier = |instance: &Instance| {
            instance.name() == name && instance.entry().is_none() && !instance.is_serving()
        };
        for id in self.instances.ids(is_earlier) {
            if self.instances[id].state().is_open() {
                let why = Reason::new(Code::Replaced, "a later request superseded it");
                self.happen(id, Trigger::Withdrawn(why));
            }
            self.forget(id);
        }
        let now = Moment::now();
        let id = self.begin(Instance::new(name, Source::Given(path), now).seen_at(now.instant));
        // A file named in a request is complete, so it need not settle.
        self.happen(id, Trigger::Rested);
        Ok(id)
    }

    /// Forgets a name that was loaded by request; disables one from the folder.
    pub(super) fn unload_given(&mut self, name: &str, reply: oneshot::Sender<Result<(), SpokeError>>) {
        let (waiter, answer) = oneshot::channel::<Result<SpokeRow, SpokeError>>();
        let serving = self.aliases.instance(name);
        match serving.and_then(|id| Some((id, self.instances.get(id)?.entry().is_some()))) {
            None => {
                // The name may exist without serving: refused, or in progress.
                let trouble = match self.instances.named(name).next() {
                    None => SpokeError::NoSuch(name.to_owned()),
                    Some((_, instance)) => SpokeError::Conflict(format!(
                        "{name:?} is {} and does not serve",
                        instance.state().name()
                    )),
                };
                self.outbox.answer(waiter, Err(trouble));
            }
            Some((_, true)) => self.disable(name, waiter),
            Some((id, false)) => {
                let why = Reason::new(Code::Unloaded, "it was unloaded by request");
                self.happen(id, Trigger::Withdrawn(why));
                self.withdraw(id);
                self.wait_for(Ok(id), waiter);
                self.forget(id);
                self.revisit_waiting(&[name.to_owned()]);
            }
        }
        tokio::spawn(async move {
            let done = answer.await.unwrap_or(Err(SpokeError::Stopped));
            reply.send(done.map(drop))
        });
    }
}
