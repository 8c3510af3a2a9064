//! What a turn leaves to do: effects, and what is told once the turn's writes are on disk.

use std::collections::{BTreeSet, VecDeque};

use super::instance::{Answer, InstanceId, Waiter};
use crate::spokes::life::{Effect, Reason};
use crate::spokes::reconciler::error::SpokeError;
use crate::spokes::store::{Transition, Write};

/// Effects, writes, and what depends on the writes.
#[derive(Debug, Default)]
pub struct Outbox {
    effects: VecDeque<(InstanceId, Effect)>,
    /// To be committed together.
    writes: Vec<Write>,
    /// Instances whose rows have to be published.
    rows: BTreeSet<InstanceId>,
    answers: Vec<(Waiter, Answer)>,
    /// Whether other generations serve than were published.
    serving_changed: bool,
}

impl Outbox {
    /// Adds work that follows a transition.
    pub fn effect(&mut self, id: InstanceId, effect: Effect) {
        self.effects.push_back((id, effect));
    }

    /// The next work.
    pub fn next_effect(&mut self) -> Option<(InstanceId, Effect)> {
        self.effects.pop_front()
    }

    pub fn has_effects(&self) -> bool {
        !self.effects.is_empty()
    }

    /// Adds a change of the stored state.
    pub fn write(&mut self, write: Write) {
        self.writes.push(write);
    }

    /// Publishes an instance's row after the commit.
    pub fn show(&mut self, id: InstanceId) {
        self.rows.insert(id);
    }

    /// Sends an answer after the commit.
    pub fn answer(&mut self, waiter: Waiter, answer: Answer) {
        self.answers.push((waiter, answer));
    }

    /// Sends several.
    pub fn answer_all(&mut self, answers: Vec<(Waiter, Answer)>) {
        self.answers.extend(answers);
    }

    /// Publishes after the commit which generations serve.
    pub fn change_serving(&mut self) {
        self.serving_changed = true;
    }

    /// Whether other generations serve than were published.
    pub fn serving_has_changed(&self) -> bool {
        self.serving_changed
    }

    /// The same, and from now on it is published.
    pub fn take_serving_change(&mut self) -> bool {
        std::mem::take(&mut self.serving_changed)
    }

    /// Commits the writes, all or none. `commit` gives the ids of the journal's new lines, which
    /// are returned.
    ///
    /// # Errors
    /// Nothing is on disk. The writes stay, and come first in the next commit.
    pub fn commit<E>(
        &mut self,
        commit: impl FnOnce(&[Write]) -> Result<Vec<i64>, E>,
    ) -> Result<Vec<Transition>, E> {
        let ids = commit(&self.writes)?;
        let lines = std::mem::take(&mut self.writes).into_iter().filter_map(|write| match write {
            Write::Journal(line) => Some(line),
            _ => None,
        });
        Ok(ids.into_iter().zip(lines).map(|(id, line)| Transition { id, ..line }).collect())
    }

    /// The rows to publish after a commit.
    pub fn take_rows(&mut self) -> BTreeSet<InstanceId> {
        std::mem::take(&mut self.rows)
    }

    /// The rows to publish although the commit failed: all but those that say which generation
    /// serves.
    pub fn take_rows_unless(&mut self, tells_serving: impl Fn(InstanceId) -> bool) -> BTreeSet<InstanceId> {
        let (later, now) = self.take_rows().into_iter().partition(|id| tells_serving(*id));
        self.rows = later;
        now
    }

    /// Sends the answers. If the commit failed, callers learn why; their changes take effect once
    /// they are written.
    pub fn send_answers(&mut self, unwritten: Option<&Reason>) {
        for (waiter, answer) in self.answers.drain(..) {
            let answer = match unwritten {
                Some(why) => answer.and(Err(SpokeError::Postponed(why.clone()))),
                None => answer,
            };
            // The caller may have stopped waiting.
            let _ = waiter.send(answer);
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::super::instance::tests::dropped;
    use super::super::moment::Moment;
    use super::*;
    use crate::spokes::life::State;
    use crate::spokes::reason_code::Code;
    use tokio::sync::oneshot;

    /// The writes that wait for a commit.
    pub fn writes(outbox: &Outbox) -> &[Write] {
        &outbox.writes
    }

    #[test]
    fn a_failed_commit_keeps_the_writes_in_order_and_a_later_one_numbers_the_journal() {
        let mut outbox = Outbox::default();
        let line = |name| Write::Journal(dropped(name, name, State::Seen).line(None, Moment::now()));
        outbox.write(line("a"));
        assert_eq!(outbox.commit(|_| Err("disk full")), Err("disk full"));
        outbox.write(Write::NoFile("gone".to_owned()));
        outbox.write(line("b"));
        let lines = outbox.commit(|writes| {
            assert_eq!(writes.len(), 3);
            Ok::<_, &str>(vec![7, 8])
        });
        let lines: Vec<_> = lines.unwrap().into_iter().map(|line| (line.id, line.name)).collect();
        assert_eq!(lines, [(7, "a".to_owned()), (8, "b".to_owned())]);
        assert!(writes(&outbox).is_empty());
    }

    #[test]
    fn without_a_commit_no_row_says_what_serves_and_no_caller_hears_of_success() {
        let mut outbox = Outbox::default();
        let why = Reason::new(Code::NotWritten, "disk full");
        let row = dropped("a", "a", State::Serving).row();
        let (waiters, mut answers): (Vec<Waiter>, Vec<oneshot::Receiver<Answer>>) =
            std::iter::repeat_with(oneshot::channel).take(3).unzip();
        let told = [Ok(row.clone()), Err(SpokeError::NoSuch("b".to_owned())), Ok(row)];
        let mut waiters = waiters.into_iter().zip(told);
        for (waiter, answer) in waiters.by_ref().take(2) {
            outbox.answer(waiter, answer);
        }
        for id in [1, 2, 3] {
            outbox.show(id);
        }
        assert_eq!(outbox.take_rows_unless(|id| id == 2), [1, 3].into());
        outbox.send_answers(Some(&why));
        let mut received = |at: usize| answers[at].try_recv().unwrap().map(|row| row.name);
        assert_eq!(received(0), Err(SpokeError::Postponed(why)));
        assert_eq!(received(1), Err(SpokeError::NoSuch("b".to_owned())), "its error is its own");
        // The next commit succeeds.
        outbox.answer_all(waiters.collect());
        outbox.send_answers(None);
        assert_eq!((received(2), outbox.take_rows()), (Ok("a".to_owned()), [2].into()));
    }
}
