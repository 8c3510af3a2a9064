//! Inspections and probes, and what follows from their outcomes.

use std::time::Instant;

use super::inspection::{Bytes, Inspection, aside};
use super::parts::Reconciler;
use super::post::open_post;
use super::state::content::{Inspected, Source};
use super::state::instance::InstanceId;
use super::state::jobs::{Done, Failed, Outcome, Task};
use crate::adapter::Post;
use crate::spokes::life::{Reason, State, Trigger};
use crate::spokes::probe::{Finding, Verdict as Probed};
use crate::spokes::reason_code::Code;
use crate::spokes::store::{Examined, Verdict};

impl Reconciler {
    /// Queues a task. Instances come first that a caller waits for or whose name exists.
    pub(super) fn enqueue(&mut self, id: InstanceId, task: Task) {
        let instance = &self.instances[id];
        let is_urgent = instance.is_awaited() || self.aliases.get(instance.name()).is_some();
        self.jobs.enqueue(id, task, is_urgent);
    }

    /// Starts the next task, if none is running.
    pub(super) fn start_job(&mut self) {
        while let Some((id, task)) = self.jobs.next_task(|id, task| self.instances.awaits(id, task.effect()))
        {
            match task {
                Task::Inspect => self.inspect(id),
                Task::Probe => self.probe(id),
            }
        }
    }

    fn inspect(&mut self, id: InstanceId) {
        let instance = &self.instances[id];
        let pinned = instance.content().and_then(|content| content.pinned.clone());
        // A retry uses the existing copy, unless the copy itself was the problem.
        let is_copied = instance.is_retried() && pinned.as_ref().is_some_and(|pinned| pinned.exists());
        let bytes = match (pinned, instance.source(), instance.print()) {
            (Some(pinned), _, print) if print.is_none() || is_copied => Bytes::Copy(pinned),
            (_, Source::Copy(copy), _) => Bytes::Copy(copy.clone()),
            (_, Source::Given(path), _) => Bytes::Path(path.clone()),
            (_, Source::Entry(entry), print) => {
                let (folder, entry) = (self.folder.path().to_owned(), entry.clone());
                Bytes::Entry { folder, entry, print: print.cloned() }
            }
        };
        let inspection = Inspection {
            bytes,
            staged: self.copies.folder().to_owned(),
            limits: self.settings.spokes.limits(),
            banned: self.examinations.banned().clone(),
        };
        let (post, model) = (self.post.clone(), self.settings.model.clone());
        let failed = |why| Outcome::Inspected(Err(Failed::refused(None, why)));
        self.jobs.run((id, instance.attempt()), failed, async move {
            let post = match post {
                Some(post) => post,
                None => open_post(move || Post::open(&model)).await,
            };
            let outcome = aside(move || inspection.run(post)).await;
            outcome.map_or_else(failed, Outcome::Inspected)
        });
    }

    fn probe(&mut self, id: InstanceId) {
        let instance = &self.instances[id];
        let verdict = instance.generation().and_then(|generation| self.examinations.verdict(generation));
        match (verdict, self.probe.clone()) {
            (Some(Verdict::Same), _) => self.happen(id, Trigger::Same),
            (Some(Verdict::Differs), _) => self.happen(id, Trigger::Differs),
            (None, None) => self.examined(id, Verdict::Differs, 0),
            (None, Some(probe)) => {
                let file = instance.inspected().expect("only what passed inspection is probed").served;
                let failed = |why| Outcome::Probed(Err(why));
                let work = async move { Outcome::Probed(probe.run(&file).await) };
                self.jobs.run((id, instance.attempt()), failed, work);
            }
        }
    }

    /// Handles the outcome of a task.
    pub(super) fn finished(&mut self, done: Done) {
        self.jobs.finish(&done);
        // Stopping the daemon may also stop its children, so tasks may fail early. That says
        // nothing about the content, which is examined again at the next start.
        if self.spokes.is_stopping() {
            return;
        }
        let Done { id, attempt, outcome } = done;
        // The file may have changed meanwhile, or be gone.
        let Some(instance) = self.instances.get(id).filter(|found| found.attempt() == attempt) else {
            return;
        };
        match (instance.state(), outcome) {
            (State::Settled, Outcome::Inspected(Ok(inspected))) => self.passed(id, inspected),
            (State::Settled, Outcome::Inspected(Err(failed))) => self.failed(id, failed),
            (State::Inspected, Outcome::Probed(Ok(finding))) => self.probed(id, finding),
            (State::Probed, Outcome::Judged(Ok(()))) => self.happen(id, Trigger::Passes),
            (State::Inspected, Outcome::Probed(Err(why))) | (State::Probed, Outcome::Judged(Err(why))) => {
                self.turned_down(id, why);
            }
            // The name was enabled or disabled meanwhile.
            _ => {}
        }
    }

    fn passed(&mut self, id: InstanceId, inspected: Inspected) {
        let generation = inspected.generation;
        let instance = self.instances.get_mut(id).expect("looked up by the caller");
        instance.passed(inspected);
        // A request that names it allows it to serve again. A dropped file doesn't.
        let is_dropped = instance.entry().is_some();
        let rolled_back = self.aliases.rollback_of(instance.name(), generation);
        if let Some(why) = rolled_back.filter(|_| is_dropped) {
            return self.happen(id, Trigger::Withdrawn(why.clone()));
        }
        let alias = self.aliases.get(instance.name());
        if alias.is_some_and(|alias| alias.current() == Some(generation) && !alias.is_disabled()) {
            self.happen(id, Trigger::Known);
            return self.inherit(id);
        }
        self.happen(id, Trigger::Fits);
    }

    fn failed(&mut self, id: InstanceId, failed: Failed) {
        let instance = self.instances.get_mut(id).expect("looked up by the caller");
        match failed {
            Failed::Changed => {
                instance.restart();
                let entry = instance.entry().map(str::to_owned);
                self.happen(id, Trigger::Changed);
                if let Some(entry) = entry {
                    self.folder.unsettle(Instant::now(), &entry);
                }
            }
            Failed::Refused(refused) => {
                let (pinned, why) = *refused;
                if let Some(pinned) = pinned {
                    instance.copied(pinned);
                }
                self.turned_down(id, why);
            }
        }
    }

    fn probed(&mut self, id: InstanceId, finding: Finding) {
        let verdict = match finding.verdict {
            Probed::Differs => Verdict::Differs,
            Probed::Same => Verdict::Same,
            Probed::Refused => {
                let why = finding.why.unwrap_or_else(|| Reason::new(Code::ProbeFailed, "it gave no reason"));
                return self.turned_down(id, why);
            }
            Probed::Undecided => {
                let why = finding.why.map_or_else(|| "it gave no reason".to_owned(), |why| why.message);
                return self.turned_down(id, Reason::new(Code::NotProbed, why));
            }
        };
        self.examined(id, verdict, finding.resident_bytes);
    }

    /// Stores the verdict on a generation.
    fn examined(&mut self, id: InstanceId, verdict: Verdict, resident_bytes: u64) {
        let inspected = self.instances[id].inspected().expect("only what passed inspection is examined");
        let Inspected { generation, mut facts, .. } = inspected;
        facts.resident_bytes = facts.resident_bytes.max(resident_bytes);
        self.examinations.record(Examined { generation, facts, verdict }, &mut self.outbox);
        self.happen(id, if verdict == Verdict::Differs { Trigger::Differs } else { Trigger::Same });
    }
}
