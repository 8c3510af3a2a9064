//! Names are enabled and disabled by an operator.

use super::error::SpokeError;
use super::parts::Reconciler;
use super::state::aliases::disabled;
use super::state::content::{Over, replaced};
use super::state::instance::{Instance, InstanceId, Waiter};
use crate::adapter::Generation;
use crate::spokes::life::{State, Trigger};
use crate::spokes::store::Write;

impl Reconciler {
    /// Enables a disabled name, or retries its latest content that doesn't serve.
    pub(super) fn enable(&mut self, name: &str, waiter: Waiter) {
        let outcome = self.try_enable(name);
        self.wait_for(outcome, waiter);
    }

    fn try_enable(&mut self, name: &str) -> Result<InstanceId, SpokeError> {
        let was_disabled = self.aliases.set_disabled(name, false, &mut self.outbox);
        let is_idle = |instance: &Instance| !instance.state().is_moving() && !instance.is_serving();
        let idle = self.instances.named(name).rev().find(|(_, instance)| is_idle(instance));
        if let Some((id, instance)) = idle {
            let (generation, state) = (instance.generation(), instance.state());
            if let State::Quarantined(why) = state
                && why.code.concerns_entry()
            {
                // The file's name is taken or invalid, and enabling it changes nothing about that.
                return Err(SpokeError::Refused(why.clone()));
            }
            // Refused spokes are always inspected again. Others are, unless they are known to be
            // good with this post and program.
            let is_refused = matches!(state, State::Quarantined(_) | State::Waiting(_));
            let is_known = generation.is_some_and(|known| self.examinations.verdict(known).is_some());
            let served = instance.content().and_then(|content| content.served.as_ref());
            let is_good = is_known && served.is_some_and(|file| file.is_file());
            if let Some(generation) = generation {
                self.allow(name, generation);
            }
            self.happen(id, if is_refused || is_good { Trigger::Wanted } else { Trigger::Reconsidered });
            return Ok(id);
        }
        if was_disabled {
            let last = self.aliases.get(name).and_then(|alias| alias.history().last().copied());
            let nothing = || SpokeError::Conflict(format!("{name:?} has nothing to serve"));
            let last = last.ok_or_else(nothing)?;
            return self.revive(name, last, replaced(), Over::Any).map_err(SpokeError::Refused);
        }
        Err(match self.instances.named(name).next() {
            Some(_) => SpokeError::Conflict(format!("{name:?} is not disabled")),
            None => SpokeError::NoSuch(name.to_owned()),
        })
    }

    /// Lifts the ban and the rollback that keep a generation from serving under a name.
    fn allow(&mut self, name: &str, generation: Generation) {
        let was_banned = self.examinations.lift_ban(generation);
        let was_rolled_back = self.aliases.lift_rollback(name, generation);
        if was_banned || was_rolled_back {
            self.outbox.write(Write::Allowed(name.to_owned(), generation));
        }
    }

    /// Stops serving a name.
    pub(super) fn disable(&mut self, name: &str, waiter: Waiter) {
        let outcome = self.try_disable(name);
        self.wait_for(outcome, waiter);
    }

    fn try_disable(&mut self, name: &str) -> Result<InstanceId, SpokeError> {
        let ids = self.instances.ids(|instance| instance.name() == name);
        if ids.is_empty() {
            return Err(SpokeError::NoSuch(name.to_owned()));
        }
        self.aliases.set_disabled(name, true, &mut self.outbox);
        let mut last = None;
        for id in ids {
            let instance = &self.instances[id];
            if instance.state().is_open() || instance.is_serving() {
                self.happen(id, Trigger::Withdrawn(disabled()));
                self.withdraw(id);
                last = Some(id);
            }
        }
        last.ok_or_else(|| SpokeError::Conflict(format!("{name:?} does not serve")))
    }
}
