//! Generations that served before serve again: after a rollback, or because the last one can't.

use super::error::SpokeError;
use super::parts::Reconciler;
use super::state::content::{Content, Over, Source, replaced};
use super::state::instance::{Instance, InstanceId, Waiter};
use super::state::moment::Moment;
use crate::adapter::Generation;
use crate::spokes::life::{Reason, State, Trigger};
use crate::spokes::reason_code::Code;

impl Reconciler {
    /// Makes a generation serve again under a name under which it served before.
    pub(super) fn revive(
        &mut self,
        name: &str,
        generation: Generation,
        displaces: Reason,
        over: Over,
    ) -> Result<InstanceId, Reason> {
        let gone =
            || Reason::new(Code::NoCopy, format!("the copy of {} no longer exists", generation.short()));
        if let Some(why) = self.examinations.ban_of(generation) {
            return Err(why.clone());
        }
        let facts = self.examinations.facts(generation).cloned().ok_or_else(gone)?;
        let pinned = self.copies.pinned(generation).ok_or_else(gone)?;
        let current = self.aliases.instance(name).and_then(|id| self.instances.get(id));
        let source = current.map(Instance::source).or_else(|| self.instances.entry_source(name)).cloned();
        let source = source.unwrap_or_else(|| Source::Given(pinned.clone()));
        let served = self.copies.served(generation);
        let is_ready = served.is_some() && self.examinations.verdict(generation).is_some();
        let content = Content { generation, pinned: Some(pinned), served, facts: Some(facts) };
        let instance = Instance::new(name, source, Moment::now())
            .with_content(content)
            .displacing(over, displaces)
            .in_state(State::Retired(replaced()));
        let id = self.resume(instance);
        // Examined with another post or program version: examine its copy again.
        self.happen(id, if is_ready { Trigger::Wanted } else { Trigger::Reconsidered });
        Ok(id)
    }

    /// Goes back to the last good generation of a name that lost its serving one.
    pub(super) fn fall_back(&mut self, name: &str) {
        let Some(alias) = self.aliases.get(name).filter(|alias| alias.current().is_none()) else { return };
        for generation in alias.history().to_vec().into_iter().rev() {
            if self.revive(name, generation, replaced(), Over::Nothing).is_ok() {
                return;
            }
        }
    }

    /// Goes back to the generation that served before.
    pub(super) fn roll_back(&mut self, name: &str, waiter: Waiter) {
        let outcome = self.try_roll_back(name);
        self.wait_for(outcome, waiter);
    }

    fn try_roll_back(&mut self, name: &str) -> Result<InstanceId, SpokeError> {
        let conflict = |message: String| Err(SpokeError::Conflict(message));
        let Some(alias) = self.aliases.get(name) else {
            return match self.instances.named(name).next() {
                Some(_) => conflict(format!("nothing has served as {name:?} before")),
                None => Err(SpokeError::NoSuch(name.to_owned())),
            };
        };
        if alias.is_disabled() {
            return conflict(format!("{name:?} is disabled: enable it before it can be rolled back"));
        }
        let Some(target) = alias.before().pop() else {
            return conflict(format!("no generation of {name:?} is kept that served before"));
        };
        let hint = if alias.is_given() {
            "to load it again serves it"
        } else {
            "`bespoke spoke enable` serves it again"
        };
        let why = Reason::new(Code::RolledBack, format!("rolled back to {}", target.short())).hint(hint);
        let over = alias.current().map_or(Over::Nothing, Over::Only);
        self.revive(name, target, why, over).map_err(SpokeError::Refused)
    }
}
