//! Tests of one instance, and what other tests build instances from.

use super::*;
use crate::adapter::Kind;
use crate::spokes::store::Facts;
use std::path::PathBuf;

/// The generation of a text.
pub fn generation(text: &str) -> Generation {
    Generation::of_reader(text.as_bytes()).unwrap()
}

/// Facts of a spoke that takes this many bytes.
pub fn facts(resident_bytes: u64) -> Facts {
    Facts { kind: Kind::Lora, rank: 8, bytes: 10, resident_bytes, layers: 1, task: None }
}

/// An instance of an entry, in a state.
pub fn dropped(name: &str, entry: &str, state: State) -> Instance {
    Instance::new(name, Source::Entry(entry.to_owned()), Moment::now()).in_state(state)
}

/// A content that passed inspection.
pub fn inspected(text: &str) -> Inspected {
    let (pinned, served) = (PathBuf::from(text), PathBuf::from(format!("{text}.gguf")));
    Inspected { generation: generation(text), pinned, served, facts: facts(10) }
}

fn trouble() -> Reason {
    Reason::new(Code::NotRead, "can't be read")
}

#[test]
fn repeated_postponements_for_one_reason_are_told_once() {
    let start = Moment::now();
    let mut instance = dropped("a", "a.gguf", State::Settled);
    let mut told = Vec::new();
    for second in 0..3 {
        let now = start + Duration::from_secs(second);
        let at = instance.back_off(&trouble().code, now);
        let postponed = instance.apply(Trigger::Postponed(trouble()), now).unwrap();
        told.push(postponed.before.map(|state| state.name()));
        assert!(instance.is_due(at) && !instance.is_due(at + Duration::from_nanos(1)));
        assert_eq!(instance.row().since, start.time, "it has waited since the first try");
        assert_eq!(instance.apply(Trigger::Due, now).unwrap().before, None);
    }
    assert_eq!(told, [Some("settled"), None, None]);
    // Another reason is news.
    let full = Reason::new(Code::NotCopied, "no space");
    let postponed = instance.apply(Trigger::Postponed(full), start).unwrap();
    assert_eq!(postponed.before.map(|state| state.name()), Some("settled"));
    // A verdict ends the series.
    instance.apply(Trigger::Withdrawn(replaced()), start).unwrap();
    assert!(!instance.is_retried());
    assert_eq!(instance.row().retry_at, None);
}

#[test]
fn results_of_an_earlier_attempt_are_told_apart() {
    let mut instance = dropped("a", "a.gguf", State::Settled);
    instance.rest(Fingerprint { size: 1, ..Fingerprint::default() });
    instance.passed(inspected("one"));
    assert_eq!((instance.attempt(), instance.inspected()), (0, Some(inspected("one"))));
    instance.restart();
    assert_eq!((instance.attempt(), instance.content(), instance.print()), (1, None, None));
    instance.apply(Trigger::Withdrawn(replaced()), Moment::now()).unwrap();
    assert_eq!(instance.attempt(), 2);
    let impossible = instance.apply(Trigger::Loaded, Moment::now()).unwrap_err();
    assert_eq!((impossible.state, instance.state().name(), instance.attempt()), ("retired", "retired", 2));
}

#[test]
fn callers_are_answered_once_no_work_is_under_way() {
    let mut instance = dropped("a", "a.gguf", State::Gated);
    let (waiter, mut answer) = oneshot::channel();
    instance.wait(waiter);
    assert!(instance.take_answered().is_empty() && instance.is_awaited());
    instance.apply(Trigger::Refused(trouble()), Moment::now()).unwrap();
    for (waiter, answer) in instance.take_answered() {
        waiter.send(answer).unwrap();
    }
    assert_eq!(answer.try_recv().unwrap().unwrap_err(), SpokeError::Refused(trouble()));
    assert!(!instance.is_awaited());
    let (waiter, _answer) = oneshot::channel();
    instance.wait(waiter);
    let [(_, gone)] = &instance.end()[..] else { panic!("one caller waits") };
    assert_eq!(*gone.as_ref().unwrap_err(), SpokeError::Gone("a".to_owned()));
}

#[test]
fn only_a_verdict_on_the_content_outlives_the_process() {
    let refused = |code: Code| State::Quarantined(Reason::new(code, "m"));
    let outcome = |state: State, print: Option<Fingerprint>| {
        dropped("a", "a.gguf", state).with_print(print).outcome().is_some()
    };
    let print = Some(Fingerprint::default());
    assert!(outcome(State::Serving, print.clone()) && outcome(State::Inert, print.clone()));
    assert!(outcome(refused(Code::NotFinite), print.clone()));
    assert!(!outcome(refused(Code::NameTaken), print.clone()), "the name may be free by then");
    assert!(!outcome(State::Probed, print.clone()), "there is no outcome yet");
    assert!(!outcome(State::Serving, None), "the file isn't known");
    let given = Instance::new("a", Source::Given(PathBuf::from("/a")), Moment::now());
    assert_eq!(given.in_state(State::Serving).with_print(print).outcome(), None);
}

#[test]
fn an_instance_displaces_what_it_may_and_says_why_once() {
    let (one, two) = (Some(generation("one")), Some(generation("two")));
    assert!(Over::Any.allows(one) && Over::Any.allows(None));
    assert!(Over::Nothing.allows(None) && !Over::Nothing.allows(one));
    let only = Over::Only(generation("one"));
    assert!(only.allows(one) && !only.allows(two) && !only.allows(None));
    let why = Reason::new(Code::RolledBack, "rolled back");
    let mut instance = dropped("a", "a.gguf", State::Gated).displacing(only, why.clone());
    assert_eq!(instance.take_over(), (why, one));
    assert_eq!(instance.take_over(), (replaced(), None));
}
