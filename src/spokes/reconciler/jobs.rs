//! Work that would block the reconciler's thread: copies, inspections and probes, one at a time,
//! and gates, one at a time in parallel to them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::aliases::served_form;
use super::event_loop::Reconciler;
use super::instances::{InstanceId, Source};
use super::marks::Mark;
use crate::adapter::refusal::{is_trouble, is_trouble_at_home, plain};
use crate::adapter::{Generation, Limits, Pinned, Post, Refusal, inspect, pin, to_served};
use crate::allocator;
use crate::config::GateSettings;
use crate::failpoints;
use crate::spokes::folder::{self, Fingerprint};
use crate::spokes::gate;
use crate::spokes::life::{Reason, State, Trigger};
use crate::spokes::probe::{Finding, Verdict as Probed};
use crate::spokes::reason_code::Code;
use crate::spokes::store::{Examined, Facts, Known, Verdict, Write};

/// A task for a life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Pin the file, inspect the copy, and convert it to the form that the engine loads.
    Inspect,
    /// Probe it in a child process.
    Probe,
}

/// A life whose gate is being asked.
#[derive(Debug)]
pub(super) struct Judging {
    id: InstanceId,
    attempt: u64,
    pub(super) generation: Generation,
    task: tokio::task::AbortHandle,
}

/// Outcome of a task.
#[derive(Debug)]
pub(super) struct Done {
    id: InstanceId,
    /// The life's `attempt` when the task began.
    attempt: u64,
    outcome: Outcome,
}

#[derive(Debug)]
enum Outcome {
    /// Facts from the inspection, or why there are none.
    Inspected(Result<Inspected, Failed>),
    Probed(Result<Finding, Reason>),
    Judged(Result<(), Reason>),
}

#[derive(Debug)]
struct Inspected {
    pinned: Pinned,
    served: PathBuf,
    facts: Facts,
}

#[derive(Debug)]
enum Failed {
    /// The file was written to meanwhile.
    Changed,
    /// It is no spoke for this post, or that can't be determined now; with the copy, if there is
    /// one.
    Refused(Box<(Option<Pinned>, Reason)>),
}

impl Failed {
    fn refused(pinned: Option<Pinned>, why: Reason) -> Self {
        Self::Refused(Box::new((pinned, why)))
    }
}

impl Reconciler {
    /// Reads the post's facts. Its identity is stored and reused while the file is unchanged,
    /// because hashing a large one takes a while.
    pub(super) async fn read_post(&mut self) {
        self.open_post().await;
        // Digests of folders that were found to hold the post's model.
        let kin = self.store.kin(&self.here.post);
        match (&mut self.post, kin) {
            (Some(Ok(post)), Ok(kin)) => Arc::make_mut(post).kin = kin.into_keys().collect(),
            (_, Err(error)) => tracing::error!(%error, "the post's kinships can't be read"),
            _ => {}
        }
    }

    async fn open_post(&mut self) {
        let path = self.settings.model.clone();
        let print = path
            .parent()
            .zip(path.file_name())
            .and_then(|(folder, name)| folder::look(folder, name.to_str()?).ok().flatten());
        let key = serde_json::json!([path, print]).to_string();
        let noted = self.store.note(&key).ok().flatten().and_then(|text| text.parse().ok());
        if let Some(identity) = noted {
            self.here.post = identity;
            self.post = Some(open_post(move || Post::noted(&path, identity)).await);
            return;
        }
        self.post = Some(open_post(move || Post::open(&path)).await);
        if let Some(Ok(post)) = &self.post {
            self.here.post = post.sha256;
            let kept = self.store.set_note(&key, &post.sha256.to_string());
            if let Err(error) = kept {
                tracing::warn!(%error, "the post's identity can't be remembered");
            }
        }
    }

    /// Queues a task. The running task continues. Next come lives that a caller waits for or whose
    /// name exists, in order of arrival, because the later of two generations for a name must win.
    pub(super) fn enqueue(&mut self, id: InstanceId, task: Task) {
        let life = &self.lives[&id];
        if task != Task::Inspect {
            self.urgent.push_front((id, task));
        } else if !life.waiters.is_empty() || self.names.contains_key(&life.name) {
            self.urgent.push_back((id, task));
        } else {
            self.queue.push_back((id, task));
        }
    }

    /// Starts the next task, if none is running.
    pub(super) fn start_job(&mut self) {
        while self.running.is_none()
            && let Some((id, task)) = self.urgent.pop_front().or_else(|| self.queue.pop_front())
        {
            let Some(life) = self.lives.get(&id) else { continue };
            let still = match task {
                Task::Inspect => life.state == State::Settled,
                Task::Probe => life.state == State::Inspected,
            };
            if still {
                match task {
                    Task::Inspect => self.inspect(id),
                    Task::Probe => self.probe(id),
                }
            }
        }
    }

    /// Starts judging the next life, if none is being judged. Aborts judging a life that has
    /// changed or is gone.
    pub(super) fn start_judging(&mut self) {
        let stale = |judging: &mut Judging| {
            self.lives.get(&judging.id).is_none_or(|life| life.attempt != judging.attempt)
        };
        if let Some(judging) = self.judging.take_if(stale) {
            judging.task.abort();
        }
        while self.judging.is_none()
            && let Some(id) = self.gates.pop_front()
        {
            if self.lives.get(&id).is_some_and(|life| life.state == State::Probed) {
                self.ask_gate(id);
            }
        }
    }

    /// Runs a task in the background. If it panics, `broken` makes its outcome.
    fn spawn(
        &self,
        id: InstanceId,
        broken: fn(Reason) -> Outcome,
        work: impl Future<Output = Outcome> + 'static + Send,
    ) -> tokio::task::AbortHandle {
        let (attempt, done) = (self.lives[&id].attempt, self.done.0.clone());
        let work = tokio::spawn(work);
        let abort = work.abort_handle();
        tokio::spawn(async move {
            let outcome = match work.await {
                Ok(outcome) => outcome,
                Err(error) if error.is_cancelled() => return,
                Err(error) => broken(Reason::new(Code::ExaminerFailed, error.to_string())),
            };
            // The reconciler may have stopped.
            let _ = done.send(Done { id, attempt, outcome });
        });
        abort
    }

    fn inspect(&mut self, id: InstanceId) {
        let life = &self.lives[&id];
        // A retry uses the existing copy, unless the copy itself was the problem.
        let copied = life.tries > 0 && life.pinned.as_ref().is_some_and(|pinned| pinned.exists());
        let from = match (&life.pinned, &life.source, &life.print) {
            (Some(pinned), _, print) if print.is_none() || copied => From::Copy(pinned.clone()),
            (_, Source::Given(path), _) => From::Path(path.clone()),
            (_, Source::Entry(entry), print) => {
                From::Entry(self.settings.folder.clone(), entry.clone(), print.clone())
            }
        };
        let (staged, limits) = (self.staged(), self.settings.spokes.limits());
        let (known, path, deadly) = (self.post.clone(), self.settings.model.clone(), self.banned.clone());
        self.running = Some(id);
        self.spawn(id, |why| Outcome::Inspected(Err(Failed::refused(None, why))), async move {
            let post = match known {
                Some(post) => post,
                None => open_post(move || Post::open(&path)).await,
            };
            let work = move || inspected(&from, &staged, &limits, &deadly, post);
            let outcome = aside(work).await;
            Outcome::Inspected(outcome.unwrap_or_else(|why| Err(Failed::refused(None, why))))
        });
    }

    fn probe(&mut self, id: InstanceId) {
        let life = &self.lives[&id];
        let verdict = life.generation.and_then(|generation| self.known.get(&generation)?.verdict);
        match (verdict, self.probe.clone()) {
            (Some(Verdict::Same), _) => self.happen(id, Trigger::Same),
            (Some(Verdict::Differs), _) => self.happen(id, Trigger::Differs),
            (None, None) => self.examined(id, Verdict::Differs, 0),
            (None, Some(probe)) => {
                let file = life.served.clone().expect("what passed inspection has a form that is loaded");
                self.running = Some(id);
                let broken = |why| Outcome::Probed(Err(why));
                self.spawn(id, broken, async move { Outcome::Probed(probe.run(&file).await) });
            }
        }
    }

    /// Passes a life on to its gate; without a gate it passes at once.
    pub(super) fn judge(&mut self, id: InstanceId) {
        if self.gate_of(id).is_some() {
            self.gates.push_back(id);
        } else {
            self.happen(id, Trigger::Passes);
        }
    }

    fn gate_of(&self, id: InstanceId) -> Option<GateSettings> {
        let life = &self.lives[&id];
        let task = life.facts.as_ref().and_then(|facts| facts.task.as_deref());
        let gates = &self.settings.spokes.gates;
        gates.get(&life.name).or_else(|| gates.get(task?)).cloned()
    }

    fn ask_gate(&mut self, id: InstanceId) {
        let Some(gate) = self.gate_of(id) else { return };
        let slot = self.slot_for(id);
        let generation = slot.generation;
        let (spokes, questioner) = (self.spokes.clone(), Arc::clone(&self.questioner));
        let task = self.spawn(id, |why| Outcome::Judged(Err(why)), async move {
            let held = async { spokes.hold_for_gate(slot).await.map_err(Reason::from) };
            Outcome::Judged(gate::judge(&gate, questioner.as_ref(), held).await)
        });
        self.judging = Some(Judging { id, attempt: self.lives[&id].attempt, generation, task });
    }

    /// Handles the outcome of a task.
    pub(super) fn finished(&mut self, done: Done) {
        let Done { id, attempt, outcome } = done;
        match outcome {
            Outcome::Judged(_) => {
                self.judging.take_if(|judging| (judging.id, judging.attempt) == (id, attempt));
            }
            Outcome::Inspected(_) | Outcome::Probed(_) => self.running = None,
        }
        // Stopping the daemon may also stop its children, so tasks may fail early. That says
        // nothing about the content, which is examined again at the next start.
        if self.spokes.is_stopping() {
            return;
        }
        // The file may have changed meanwhile, or be gone.
        let Some(life) = self.lives.get(&id).filter(|life| life.attempt == attempt) else { return };
        match (&life.state, outcome) {
            (State::Settled, Outcome::Inspected(outcome)) => self.was_inspected(id, outcome),
            (State::Inspected, Outcome::Probed(outcome)) => self.was_probed(id, outcome),
            (State::Probed, Outcome::Judged(Ok(()))) => self.happen(id, Trigger::Passes),
            (State::Probed, Outcome::Judged(Err(why))) => self.turned_down(id, why),
            // The name was enabled or disabled meanwhile.
            _ => {}
        }
    }

    fn was_inspected(&mut self, id: InstanceId, outcome: Result<Inspected, Failed>) {
        let life = self.lives.get_mut(&id).expect("looked up by the caller");
        let Inspected { pinned, served, facts } = match outcome {
            Ok(inspected) => inspected,
            Err(Failed::Changed) => {
                life.begins_anew();
                let entry = life.entry().map(str::to_owned);
                self.happen(id, Trigger::Changed);
                if let Some(entry) = entry {
                    self.scan.forget(&entry);
                    // It already has a life; only its coming to rest is a change. An entry that
                    // can't be read now is found later.
                    if let Ok(print) = folder::look(&self.settings.folder, &entry) {
                        let _ = self.scan.looked(std::time::Instant::now(), &entry, print, false);
                    }
                }
                return;
            }
            Err(Failed::Refused(refused)) => {
                let (pinned, why) = *refused;
                if let Some(pinned) = pinned {
                    life.generation = Some(pinned.generation);
                    life.pinned = Some(pinned.path);
                }
                return self.turned_down(id, why);
            }
        };
        let generation = pinned.generation;
        life.generation = Some(generation);
        life.pinned = Some(pinned.path);
        life.served = Some(served);
        life.facts = Some(facts);
        let (name, dropped) = (life.name.clone(), life.entry().is_some());
        let named = self.names.get(&name);
        // A request that names it allows it to serve again. A dropped file doesn't.
        let rolled_back = self.rolled_back.get(&(name.clone(), generation));
        if let Some(why) = rolled_back.filter(|_| dropped).cloned() {
            return self.happen(id, Trigger::Withdrawn(why));
        }
        if named.is_some_and(|named| named.current == Some(generation) && !named.disabled) {
            self.happen(id, Trigger::Known);
            return self.inherit(id);
        }
        self.happen(id, Trigger::Fits);
    }

    fn was_probed(&mut self, id: InstanceId, outcome: Result<Finding, Reason>) {
        let finding = match outcome {
            Ok(finding) => finding,
            Err(why) => return self.turned_down(id, why),
        };
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

    /// Stores the verdict on a generation, for this post and this program.
    fn examined(&mut self, id: InstanceId, verdict: Verdict, resident_bytes: u64) {
        let life = &self.lives[&id];
        let generation = life.generation.expect("what is examined has a content");
        let mut facts = life.facts.clone().expect("what is examined was inspected");
        facts.resident_bytes = facts.resident_bytes.max(resident_bytes);
        self.writes.get_mut().push(Write::Examined(Examined { generation, facts: facts.clone(), verdict }));
        self.known.insert(generation, Known { facts, verdict: Some(verdict), proven: false });
        self.happen(id, if verdict == Verdict::Differs { Trigger::Differs } else { Trigger::Same });
    }
}

/// Source of a generation's bytes.
enum From {
    Entry(PathBuf, String, Option<Fingerprint>),
    Path(PathBuf),
    Copy(PathBuf),
}

async fn open_post(
    open: impl FnOnce() -> Result<Post, Refusal> + Send + 'static,
) -> Result<Arc<Post>, Reason> {
    let open = move || {
        let opened = open();
        // The texts of a large vocabulary were in memory.
        allocator::give_back();
        opened
    };
    let unreadable =
        |message: String| Reason::new(Code::PostUnreadable, format!("the post can't be read: {message}"));
    match aside(open).await {
        Ok(Ok(post)) => Ok(Arc::new(post)),
        Ok(Err(refusal)) => Err(unreadable(refusal.reason.to_string())),
        Err(why) => Err(unreadable(why.message)),
    }
}

/// Runs blocking work on its own thread. A failure to start the thread says nothing about the
/// content.
pub(super) async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Reason> {
    let (send, receive) = oneshot::channel();
    let run = move || {
        // The reconciler may have stopped.
        let _ = send.send(work());
    };
    let start = |()| std::thread::Builder::new().name("spoke-examiner".to_owned()).spawn(run);
    let started = failpoints::trouble("thread").and_then(start);
    started.map_err(|error| {
        Reason::new(Code::NotRead, format!("the system gives no thread to examine it: {error}"))
    })?;
    receive.await.map_err(|_| Reason::new(Code::ExaminerFailed, "the examiner panicked; see the log"))
}

/// The reason of a refusal: the file's fault, or trouble that says nothing about the file.
fn blamed(refusal: Refusal, staged: &Path) -> Reason {
    let ours = refusal.path.starts_with(staged);
    match refusal.io() {
        Some(error) if ours && is_trouble_at_home(error) => not_copied(error),
        Some(e) if is_trouble(e) => Reason::new(Code::NotRead, format!("can't be read: {}", plain(e))),
        _ => refusal.into(),
    }
}

fn not_copied(error: &std::io::Error) -> Reason {
    Reason::new(Code::NotCopied, format!("the state directory can't keep its copy: {}", plain(error)))
        .hint("check disk space, limits and permissions of paths.state")
}

fn inspected(
    from: &From,
    staged: &Path,
    limits: &Limits,
    deadly: &BTreeMap<Generation, Reason>,
    post: Result<Arc<Post>, Reason>,
) -> Result<Inspected, Failed> {
    let post = post.map_err(|why| Failed::refused(None, why))?;
    let copied = |refusal: Refusal| Failed::refused(None, blamed(refusal, staged));
    let pinned = match from {
        From::Copy(path) => {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let generation: Generation = name.trim_end_matches(".gguf").parse().map_err(|_| {
                Failed::refused(None, Reason::new(Code::NoCopy, "its copy has an unexpected name"))
            })?;
            Pinned { generation, path: path.clone() }
        }
        From::Path(path) => pin(path, staged, limits).map_err(copied)?,
        From::Entry(folder, entry, print) => {
            let pinned = pin(&folder.join(entry), staged, limits);
            // The outcome belongs to a generation that has been replaced since. If the entry can't
            // be read, it may be unchanged.
            if folder::look(folder, entry).is_ok_and(|now| now != *print) {
                return Err(Failed::Changed);
            }
            pinned.map_err(copied)?
        }
    };
    if let Some(why) = deadly.get(&pinned.generation) {
        return Err(Failed::refused(Some(pinned), why.clone()));
    }
    // If the process dies, the next one learns which content it was inspecting.
    let _mark = Mark::set(staged, pinned.generation)
        .map_err(|error| Failed::refused(Some(pinned.clone()), not_copied(&error)))?;
    failpoints::point("spoke.inspecting", &pinned.generation.short());
    let refused = |refusal: Refusal| Failed::refused(Some(pinned.clone()), blamed(refusal, staged));
    let mut spoke = inspect(&pinned.path, Some(&post), limits).map_err(refused)?;
    let served = if spoke.format.is_served() {
        pinned.path.clone()
    } else {
        let served = served_form(&pinned.path);
        spoke = to_served(&pinned.path, &served, &post, limits).map_err(refused)?;
        served
    };
    Ok(Inspected { facts: Facts::from(&spoke), served, pinned })
}
