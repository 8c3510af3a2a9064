//! Work that would block the reconciler: inspections and probes, one at a time, and gates, one at a
//! time in parallel to them.

use std::collections::VecDeque;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::content::Inspected;
use super::instance::InstanceId;
use crate::adapter::{Generation, Pinned};
use crate::spokes::life::{Effect, Reason};
use crate::spokes::probe::Finding;
use crate::spokes::reason_code::Code;

/// A task for an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Pin the file, inspect the copy, and convert it to the form that the engine loads.
    Inspect,
    /// Probe it in a child process.
    Probe,
}

impl Task {
    /// The effect that asks for it.
    pub fn effect(self) -> Effect {
        match self {
            Self::Inspect => Effect::Inspect,
            Self::Probe => Effect::Probe,
        }
    }
}

/// The end of a task.
#[derive(Debug)]
pub struct Done {
    pub id: InstanceId,
    /// The instance's attempt when the task began.
    pub attempt: u64,
    pub outcome: Outcome,
}

/// What a task found.
#[derive(Debug)]
pub enum Outcome {
    Inspected(Result<Inspected, Failed>),
    Probed(Result<Finding, Reason>),
    Judged(Result<(), Reason>),
}

/// Why an inspection ends without facts.
#[derive(Debug)]
pub enum Failed {
    /// The file was written to meanwhile.
    Changed,
    /// It is no spoke for this post, or that can't be determined now; with the copy, if there is
    /// one.
    Refused(Box<(Option<Pinned>, Reason)>),
}

impl Failed {
    pub fn refused(pinned: Option<Pinned>, why: Reason) -> Self {
        Self::Refused(Box::new((pinned, why)))
    }
}

/// An instance whose gate is being asked.
#[derive(Debug)]
struct Judging {
    id: InstanceId,
    attempt: u64,
    generation: Generation,
    task: AbortHandle,
}

/// What waits, what runs, and what has ended.
#[derive(Debug)]
pub struct Jobs {
    urgent: VecDeque<(InstanceId, Task)>,
    queue: VecDeque<(InstanceId, Task)>,
    is_running: bool,
    /// Instances that wait for their gate, and the one being judged. A gate's questions take as
    /// long as requests do, so they must not block other files.
    gates: VecDeque<InstanceId>,
    judging: Option<Judging>,
    ended: mpsc::UnboundedSender<Done>,
    ends: mpsc::UnboundedReceiver<Done>,
}

impl Default for Jobs {
    fn default() -> Self {
        let (ended, ends) = mpsc::unbounded_channel();
        let (urgent, queue, gates) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        Self { urgent, queue, is_running: false, gates, judging: None, ended, ends }
    }
}

impl Jobs {
    /// Queues a task. The running task continues. A probe comes next, because its instance was the
    /// last to run; then urgent inspections, then others, each in order of arrival, because the
    /// later of two generations for a name must win.
    pub fn enqueue(&mut self, id: InstanceId, task: Task, is_urgent: bool) {
        match task {
            Task::Probe => self.urgent.push_front((id, task)),
            Task::Inspect if is_urgent => self.urgent.push_back((id, task)),
            Task::Inspect => self.queue.push_back((id, task)),
        }
    }

    /// The next task that is still wanted, unless one is running.
    pub fn next_task(&mut self, is_wanted: impl Fn(InstanceId, Task) -> bool) -> Option<(InstanceId, Task)> {
        while !self.is_running {
            let (id, task) = self.urgent.pop_front().or_else(|| self.queue.pop_front())?;
            if is_wanted(id, task) {
                return Some((id, task));
            }
        }
        None
    }

    /// Whether a task is running. A gate is none.
    pub fn is_running(&self) -> bool {
        self.is_running
    }

    /// Runs a task in the background. If it panics, `broken` makes its outcome.
    pub fn run(
        &mut self,
        (id, attempt): (InstanceId, u64),
        broken: fn(Reason) -> Outcome,
        work: impl Future<Output = Outcome> + Send + 'static,
    ) {
        self.is_running = true;
        self.spawn(id, attempt, broken, work);
    }

    /// Lets an instance wait for its gate.
    pub fn await_gate(&mut self, id: InstanceId) {
        self.gates.push_back(id);
    }

    /// The next instance that still has to be judged, unless one is being judged.
    pub fn next_gate(&mut self, is_wanted: impl Fn(InstanceId) -> bool) -> Option<InstanceId> {
        while self.judging.is_none() {
            let id = self.gates.pop_front()?;
            if is_wanted(id) {
                return Some(id);
            }
        }
        None
    }

    /// Asks an instance's gate in the background.
    pub fn judge(
        &mut self,
        (id, attempt): (InstanceId, u64),
        generation: Generation,
        work: impl Future<Output = Result<(), Reason>> + Send + 'static,
    ) {
        let broken = |why| Outcome::Judged(Err(why));
        let task = self.spawn(id, attempt, broken, async move { Outcome::Judged(work.await) });
        self.judging = Some(Judging { id, attempt, generation, task });
    }

    /// The generation that is being judged.
    pub fn judged(&self) -> Option<Generation> {
        self.judging.as_ref().map(|judging| judging.generation)
    }

    /// Aborts judging an instance that has changed or is gone. `attempt` gives the present one.
    pub fn abort_obsolete(&mut self, attempt: impl Fn(InstanceId) -> Option<u64>) {
        let is_obsolete = |judging: &mut Judging| attempt(judging.id) != Some(judging.attempt);
        if let Some(judging) = self.judging.take_if(is_obsolete) {
            judging.task.abort();
        }
    }

    fn spawn(
        &self,
        id: InstanceId,
        attempt: u64,
        broken: fn(Reason) -> Outcome,
        work: impl Future<Output = Outcome> + Send + 'static,
    ) -> AbortHandle {
        let ended = self.ended.clone();
        let work = tokio::spawn(work);
        let abort = work.abort_handle();
        tokio::spawn(async move {
            let outcome = match work.await {
                Ok(outcome) => outcome,
                Err(error) if error.is_cancelled() => return,
                Err(error) => broken(Reason::new(Code::ExaminerFailed, error.to_string())),
            };
            // The reconciler may have stopped.
            let _ = ended.send(Done { id, attempt, outcome });
        });
        abort
    }

    /// Waits for the end of a task.
    pub async fn ended(&mut self) -> Done {
        match self.ends.recv().await {
            Some(done) => done,
            // The sender belongs to `self`, so the channel stays open.
            None => std::future::pending().await,
        }
    }

    /// Takes note of the end of a task: the next may begin.
    pub fn finish(&mut self, done: &Done) {
        match done.outcome {
            Outcome::Judged(_) => {
                let is_this =
                    |judging: &mut Judging| (judging.id, judging.attempt) == (done.id, done.attempt);
                self.judging.take_if(is_this);
            }
            Outcome::Inspected(_) | Outcome::Probed(_) => self.is_running = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::instance::tests::generation;
    use super::*;
    use std::future::pending;

    fn broken(why: Reason) -> Outcome {
        Outcome::Probed(Err(why))
    }

    async fn panics() -> Outcome {
        std::future::ready(()).await;
        panic!("out of order")
    }

    #[test]
    fn probes_come_first_then_urgent_inspections_then_the_others() {
        let mut jobs = Jobs::default();
        for (id, is_urgent) in [(1, false), (2, true), (3, false), (4, true), (5, true)] {
            jobs.enqueue(id, Task::Inspect, is_urgent);
        }
        jobs.enqueue(2, Task::Probe, false);
        // What is no longer wanted is dropped.
        let order = std::iter::from_fn(|| jobs.next_task(|id, _| id != 4));
        let expected = [(2, Task::Probe), (2, Task::Inspect), (5, Task::Inspect), (1, Task::Inspect)];
        assert_eq!(order.take(4).collect::<Vec<_>>(), expected);
        assert_eq!((jobs.next_task(|_, _| false), jobs.next_task(|_, _| true)), (None, None));
    }

    #[tokio::test]
    async fn one_task_runs_at_a_time_and_one_that_panics_has_an_outcome() {
        let mut jobs = Jobs::default();
        jobs.enqueue(1, Task::Inspect, false);
        jobs.enqueue(2, Task::Inspect, false);
        assert_eq!(jobs.next_task(|_, _| true), Some((1, Task::Inspect)));
        jobs.run((1, 7), broken, panics());
        assert!(jobs.is_running() && jobs.next_task(|_, _| true).is_none());
        let done = jobs.ended().await;
        let Outcome::Probed(Err(why)) = &done.outcome else { panic!("{done:?}") };
        assert_eq!((done.id, done.attempt, &why.code), (1, 7, &Code::ExaminerFailed));
        assert!(why.message.contains("out of order"), "{why}");
        jobs.finish(&done);
        assert_eq!(jobs.next_task(|_, _| true), Some((2, Task::Inspect)));
    }

    #[tokio::test]
    async fn a_gate_is_asked_while_tasks_run_and_ends_with_its_instance() {
        let mut jobs = Jobs::default();
        for id in [1, 2, 3] {
            jobs.await_gate(id);
        }
        assert_eq!(jobs.next_gate(|id| id != 1), Some(2));
        jobs.judge((2, 0), generation("two"), pending());
        assert_eq!((jobs.judged(), jobs.next_gate(|_| true)), (Some(generation("two")), None));
        assert!(!jobs.is_running());
        jobs.abort_obsolete(|_| Some(0));
        assert!(jobs.judged().is_some());
        // Its file has changed.
        jobs.abort_obsolete(|_| Some(1));
        assert_eq!((jobs.judged(), jobs.next_gate(|_| true)), (None, Some(3)));
        jobs.judge((3, 0), generation("three"), async { Ok(()) });
        let done = jobs.ended().await;
        assert!(matches!(done, Done { id: 3, attempt: 0, outcome: Outcome::Judged(Ok(())) }));
        // The late end of another attempt is not the end of this one.
        jobs.finish(&Done { id: 3, attempt: 1, outcome: Outcome::Judged(Ok(())) });
        assert!(jobs.judged().is_some());
        jobs.finish(&done);
        assert_eq!(jobs.judged(), None);
    }
}
