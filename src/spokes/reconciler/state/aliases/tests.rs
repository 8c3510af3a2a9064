//! Tests of names.

use super::super::instance::tests::{facts, generation};
use super::super::outbox::tests::writes;
use super::*;
use std::path::PathBuf;
use std::time::Duration;

fn takeover<'a>(name: &'a str, text: &str, instance: InstanceId) -> Takeover<'a> {
    Takeover { name, generation: generation(text), instance, given: false, rolled_back: None }
}

fn why() -> Reason {
    Reason::new(Code::RolledBack, "rolled back")
}

#[test]
fn a_name_keeps_so_many_generations_and_the_latest_comes_last() {
    let (mut aliases, mut outbox) = (Aliases::new(1), Outbox::default());
    let [one, two, three] = ["one", "two", "three"].map(generation);
    assert_eq!(aliases.serve(takeover("a", "one", 1), &mut outbox), None);
    assert_eq!(aliases.serve(takeover("a", "two", 2), &mut outbox), Some(1));
    assert_eq!(aliases.serve(takeover("a", "one", 3), &mut outbox), Some(2));
    assert_eq!(aliases.get("a").unwrap().history(), [two, one]);
    assert_eq!(aliases.serve(takeover("a", "three", 4), &mut outbox), Some(3));
    let alias = aliases.get("a").unwrap();
    assert_eq!((alias.history(), alias.before()), (&[one, three][..], vec![one]));
    assert_eq!((alias.current(), alias.instance()), (Some(three), Some(4)));
    assert_eq!(writes(&outbox).last(), Some(&Write::Unhistory("a".to_owned(), two)));
    assert!(outbox.take_serving_change());
    // The same instance again displaces nothing.
    assert_eq!(aliases.serve(takeover("a", "three", 4), &mut outbox), None);
}

#[test]
fn what_is_rolled_back_stays_away_until_it_is_allowed_or_serves() {
    let (mut aliases, mut outbox) = (Aliases::new(2), Outbox::default());
    let [one, two] = ["one", "two"].map(generation);
    aliases.serve(takeover("a", "one", 1), &mut outbox);
    aliases.serve(takeover("a", "two", 2), &mut outbox);
    let rolled_back = Some((two, why()));
    aliases.serve(Takeover { rolled_back, ..takeover("a", "one", 3) }, &mut outbox);
    assert_eq!(aliases.get("a").unwrap().history(), [one]);
    assert_eq!(aliases.rollback_of("a", two), Some(&why()));
    assert_eq!(aliases.rollback_of("b", two), None, "another name may serve it");
    assert_eq!(writes(&outbox).last(), Some(&Write::RolledBack("a".to_owned(), two, why())));
    aliases.serve(takeover("a", "two", 4), &mut outbox);
    assert_eq!(aliases.rollback_of("a", two), None);
    assert_eq!(writes(&outbox).last(), Some(&Write::Allowed("a".to_owned(), two)));
    assert!(!aliases.lift_rollback("a", two));
}

#[test]
fn only_the_instance_that_has_a_name_can_lose_it() {
    let (mut aliases, mut outbox) = (Aliases::new(2), Outbox::default());
    aliases.serve(takeover("a", "one", 1), &mut outbox);
    assert_eq!(aliases.hand_over("a", 2), Some(1));
    assert_eq!((aliases.hand_over("a", 2), aliases.hand_over("b", 2)), (None, None));
    let now = Moment::now();
    aliases.withdraw("a", 1, Some(why()), now, &mut outbox);
    assert_eq!(aliases.instance("a"), Some(2));
    aliases.withdraw("a", 2, Some(why()), now, &mut outbox);
    assert_eq!((aliases.instance("a"), aliases.get("a").unwrap().current()), (None, None));
    assert_eq!(aliases.get("a").unwrap().before(), [generation("one")]);
    let name = "a".to_owned();
    let left = Write::Current { id: 0, name, generation: None, given: false, left: now.millis() };
    assert_eq!(writes(&outbox).last(), Some(&left));
}

#[test]
fn requests_get_what_serves_and_learn_why_a_name_does_not() {
    let (mut aliases, mut outbox) = (Aliases::new(2), Outbox::default());
    for (id, name) in [(1, "on"), (2, "off"), (3, "lost")] {
        aliases.serve(takeover(name, name, id), &mut outbox);
    }
    assert!(
        !aliases.set_disabled("on", false, &mut outbox) && !aliases.set_disabled("new", false, &mut outbox)
    );
    assert!(aliases.set_disabled("off", true, &mut outbox));
    aliases.withdraw("lost", 3, Some(why()), Moment::now(), &mut outbox);
    let slot = |generation: Generation| {
        let (name, path) = (generation.short(), PathBuf::new());
        Some(Leases::new(generation, name, facts(1), path, Arc::default()))
    };
    let serving = aliases.serving(slot);
    assert_eq!(serving.names.keys().collect::<Vec<_>>(), ["on"]);
    assert_eq!(serving.names["on"].slot.generation, generation("on"));
    let past: Vec<_> = serving.past.iter().map(|(name, why)| (&**name, why.clone())).collect();
    assert_eq!(past, [("lost", Some(why())), ("off", Some(disabled()))]);
    assert_eq!(aliases.in_use().collect::<Vec<_>>(), [generation("on")]);
    assert!(aliases.has_current(generation("off")) && !aliases.has_current(generation("lost")));
    assert!(aliases.serving(|_| None).names.is_empty());
}

#[test]
fn the_names_that_are_gone_longest_are_forgotten_and_their_ids_never_used_again() {
    let (mut aliases, mut outbox) = (Aliases::new(2), Outbox::default());
    let start = Moment::now();
    let names: Vec<String> = (0..GONE as u64 + 3).map(|n| format!("{n:02}")).collect();
    for (n, name) in names.iter().enumerate() {
        aliases.serve(takeover(name, name, n as u64), &mut outbox);
        // The later a name, the earlier it left.
        let left = start + Duration::from_secs(100 - n as u64);
        aliases.withdraw(name, n as u64, None, left, &mut outbox);
    }
    aliases.set_disabled(&names[GONE], true, &mut outbox);
    let alive = BTreeSet::from([names[GONE + 2].as_str()]);
    // One is disabled and one alive, so one of the others is surplus.
    let first = aliases.forget_gone(&alive, &mut outbox);
    assert_eq!(writes(&outbox).last(), Some(&Write::Forgotten(names[GONE + 1].clone())));
    assert_eq!(first, Some(GONE as i64 + 2));
    assert_eq!(aliases.forget_gone(&alive, &mut outbox), None);
    assert!(aliases.get(&names[0]).is_some() && aliases.get(&names[GONE + 1]).is_none());
    let mut empty = Aliases::new(2);
    empty.restore(7, BTreeMap::new(), BTreeMap::new());
    empty.serve(takeover("new", "new", 1), &mut outbox);
    assert!(matches!(writes(&outbox).last(), Some(Write::Current { id: 7, .. })));
}
