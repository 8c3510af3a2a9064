//! Tests of who gets leases, who waits, and who makes room.

use super::super::instance::tests::{facts, generation, inspected};
use super::*;

const LIMIT: u64 = 100;

/// Spokes of these sizes, in memory or not.
fn residency(spokes: &[(&str, u64, bool)]) -> Residency {
    let mut residency = Residency::new(LIMIT);
    for (name, bytes, is_resident) in spokes {
        let content = Inspected { served: PathBuf::from(name), facts: facts(*bytes), ..inspected(name) };
        let slot = residency.slot_for(name, content);
        if *is_resident {
            slot.loaded(*bytes);
        }
    }
    residency
}

fn slot(residency: &Residency, name: &str) -> Arc<Leases> {
    Arc::clone(residency.slot(generation(name)).unwrap())
}

/// A request for these spokes, whose caller waits as long as the receiver lives.
fn request(
    residency: &Residency,
    names: &[&str],
) -> (Holding, oneshot::Receiver<Result<Vec<Lease>, SpokeError>>) {
    let (reply, answer) = oneshot::channel();
    let slots = names.iter().map(|name| slot(residency, name)).collect();
    (Holding { slots, beyond: false, reply }, answer)
}

fn hold(residency: &mut Residency, names: &[&str]) -> Attempt {
    let request = request(residency, names).0;
    residency.hold(&request, None)
}

fn leases(attempt: Attempt) -> Vec<Lease> {
    match attempt {
        Attempt::Answer(answer) => answer.unwrap(),
        other => panic!("{other:?}"),
    }
}

fn error(attempt: Attempt) -> SpokeError {
    match attempt {
        Attempt::Answer(answer) => answer.unwrap_err(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_request_gets_all_of_its_leases_or_none() {
    let mut residency = residency(&[("a", 40, true), ("b", 40, false)]);
    assert_eq!(leases(hold(&mut residency, &["a", "a"])).len(), 2);
    let Attempt::Load { absent, gone } = hold(&mut residency, &["a", "b", "b"]) else {
        panic!("b is absent")
    };
    assert_eq!((absent.len(), absent[0].generation, gone), (1, generation("b"), vec![]));
    assert!(slot(&residency, "a").resident().unwrap().idle);
    absent[0].loaded(40);
    assert_eq!(leases(hold(&mut residency, &["a", "b", "b"])).len(), 3);
    slot(&residency, "b").retire();
    assert_eq!(error(hold(&mut residency, &["a", "b"])), SpokeError::Retired);
}

#[test]
fn idle_spokes_make_room_and_busy_ones_get_no_new_leases_until_they_have() {
    let mut residency = residency(&[("idle", 50, true), ("busy", 50, true), ("new", 60, false)]);
    let held = leases(hold(&mut residency, &["busy"]));
    residency.begin_turn();
    assert!(matches!(hold(&mut residency, &["new"]), Attempt::Later));
    residency.end_turn();
    assert_eq!(slot(&residency, "busy").lease().unwrap_err(), Refused::Absent);
    slot(&residency, "idle").lease().unwrap();
    // Nor in this turn, if others ask for it.
    assert!(matches!(hold(&mut residency, &["busy"]), Attempt::Later));
    drop(held);
    residency.begin_turn();
    let Attempt::Load { gone, .. } = hold(&mut residency, &["new"]) else { panic!("there is room") };
    residency.end_turn();
    let (evicted, all) = residency.evict(&gone);
    assert_eq!((evicted.len(), all), (2, true));
    assert_eq!(residency.resident_bytes(), 0);
}

#[test]
fn what_is_in_use_is_not_evicted() {
    let residency = residency(&[("a", 10, true), ("b", 10, true)]);
    let held = slot(&residency, "a").lease().unwrap();
    let (evicted, all) = residency.evict(&[generation("a"), generation("b"), generation("unknown")]);
    assert_eq!((evicted[0].generation, evicted.len(), all), (generation("b"), 1, false));
    drop(held);
    assert_eq!(residency.resident_bytes(), 10);
}

#[test]
fn the_limit_holds_for_requests_but_not_for_the_gate_and_the_one_it_judges() {
    let mut residency = residency(&[("a", 60, true), ("b", 60, false)]);
    let expected = SpokeError::TooLarge { needed: 120, limit: LIMIT };
    assert_eq!(error(hold(&mut residency, &["a", "b"])), expected);
    // For the gate, nothing is evicted.
    let gate = Holding { beyond: true, ..request(&residency, &["b"]).0 };
    let Attempt::Load { gone, .. } = residency.hold(&gate, None) else { panic!("the gate may exceed it") };
    assert_eq!(gone, []);
    // While the gate judges it, it doesn't count.
    let b = slot(&residency, "b");
    assert_eq!(residency.room_for(&b, None, Some(generation("a"))), Room::After(vec![]));
    assert_eq!(residency.room_for(&b, Some(generation("a")), None), Room::After(vec![]));
    assert_eq!(residency.room_for(&b, None, None), Room::After(vec![generation("a")]));
}

#[test]
fn requests_keep_their_order_and_those_without_a_caller_are_dropped() {
    let mut residency = residency(&[("a", 10, true), ("b", 10, true)]);
    let (left, _) = request(&residency, &["a"]);
    let ((first, _answer), (second, _other)) = (request(&residency, &["a"]), request(&residency, &["b"]));
    for request in [left, first, second] {
        residency.ask(request);
    }
    let next = residency.next_request().unwrap();
    assert_eq!(next.slots[0].name, "a");
    residency.put_back(next);
    let order = std::iter::from_fn(|| residency.next_request()).map(|request| request.slots[0].name.clone());
    assert_eq!(order.collect::<Vec<_>>(), ["a", "b"]);
}

#[tokio::test]
async fn the_end_of_a_lease_wakes_the_reconciler_if_anyone_waits() {
    let mut residency = residency(&[("a", 10, true)]);
    let rung = async |residency: &Residency| {
        tokio::time::timeout(std::time::Duration::from_millis(20), residency.heard()).await.is_ok()
    };
    residency.begin_turn();
    drop(slot(&residency, "a").lease().unwrap());
    assert!(!rung(&residency).await);
    residency.wait(1);
    residency.end_turn();
    drop(slot(&residency, "a").lease().unwrap());
    assert!(rung(&residency).await);
    assert_eq!(residency.take_waiting(), [1]);
}

#[test]
fn what_no_name_refers_to_leaves_when_its_last_request_ends() {
    let mut residency = residency(&[("kept", 10, true), ("gone", 10, true), ("absent", 10, false)]);
    let held = slot(&residency, "gone").lease().unwrap();
    let needed = BTreeSet::from([generation("kept")]);
    let removed = |residency: &mut Residency| -> Vec<(String, bool)> {
        let removed = residency.remove_unneeded(&needed);
        removed.into_iter().map(|(slot, was_resident)| (slot.name.clone(), was_resident)).collect()
    };
    assert_eq!(removed(&mut residency), [("absent".to_owned(), false)]);
    assert_eq!(slot(&residency, "gone").lease().unwrap_err(), Refused::Retired);
    drop(held);
    assert_eq!(removed(&mut residency), [("gone".to_owned(), true)]);
    assert_eq!(residency.paths().collect::<Vec<_>>(), [&PathBuf::from("kept")]);
}

#[test]
fn what_served_before_the_start_is_preloaded_while_nothing_has_to_leave_for_it() {
    let mut residency = residency(&[("a", 60, false), ("b", 60, false), ("c", 30, false)]);
    for name in ["a", "b", "c", "a"] {
        residency.preload(generation(name));
    }
    let first = residency.next_preload(None).unwrap();
    assert_eq!(first.name, "a");
    first.loaded(60);
    assert!(residency.next_preload(None).is_none(), "b would have to displace a");
    assert_eq!(residency.next_preload(None).unwrap().name, "c");
    assert!(residency.has_preload() && residency.next_preload(None).is_none(), "a is there");
    assert!(!residency.has_preload());
}
