//! The tables hold what they were told, and a crash in the middle of a load is known afterwards.

use super::*;
use crate::database::StateDirectory;
use crate::spoke::folder::Fingerprint;
use crate::spoke::life::State;
use std::path::Path;

fn open(folder: &Path) -> Store {
    Store::open(StateDirectory::open(folder).unwrap().database().unwrap()).unwrap()
}

fn generation(text: &str) -> Generation {
    Generation::of_reader(text.as_bytes()).unwrap()
}

fn here(version: &str) -> Here {
    Here { post: generation("post").0, version: version.to_owned() }
}

fn examined(text: &str) -> Write {
    let facts = Facts {
        kind: Kind::Felix,
        rank: 64,
        bytes: 10,
        resident_bytes: 20,
        layers: 3,
        task: Some("encoding".to_owned()),
    };
    Write::Examined(Examined { generation: generation(text), facts, verdict: Verdict::Differs })
}

fn current(name: &str, generation: Option<Generation>) -> Write {
    Write::Current { id: 7, name: name.to_owned(), generation, given: false }
}

fn line(name: &str, to: &str, why: Option<Why>) -> Transition {
    let from = Some("gated".to_owned());
    Transition { id: 0, at: 5, name: name.to_owned(), generation: None, from, to: to.to_owned(), why }
}

#[test]
fn what_is_written_is_there_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let why = Why::new("pickle", "is a pickle").hint("convert it");
    let file = File {
        name: "b".to_owned(),
        print: Fingerprint { size: 7, modified: -1, changed: i64::MAX, inode: u64::MAX },
        generation: Some(generation("bad")),
        state: State::Quarantined(why.clone()),
    };
    {
        let mut store = open(root.path());
        let writes = [
            examined("one"),
            examined("two"),
            current("a", Some(generation("one"))),
            current("a", Some(generation("two"))),
            Write::Disabled { id: 0, name: "c".to_owned(), disabled: true },
            Write::File {
                entry: "b.pt".to_owned(),
                name: file.name.clone(),
                print: file.print.clone(),
                generation: file.generation,
                state: file.state.clone(),
            },
            Write::Journal(line("a", "serving", None)),
            Write::Journal(line("b", "quarantined", Some(why.clone()))),
        ];
        assert_eq!(store.commit(&writes, &here("1")).unwrap(), [1, 2]);
        store.ban(generation("bad"), &why).unwrap();
        store.set_note("k", "v").unwrap();
        store.end_loading(generation("two"), Some("1")).unwrap();
    }
    let mut store = open(root.path());
    let stored = store.stored(&here("1")).unwrap();
    let a = &stored.names["a"];
    assert_eq!((a.current, a.disabled), (Some(generation("two")), false));
    assert_eq!(a.history, [generation("one"), generation("two")]);
    assert!(stored.names["c"].disabled && stored.names["c"].current.is_none());
    assert_eq!((a.id, stored.names["c"].id), (7, 0));
    assert_eq!(stored.files, [("b.pt".to_owned(), file)].into());
    assert_eq!(stored.banned, [(generation("bad"), why.clone())].into());
    let one = &stored.generations[&generation("one")];
    assert_eq!((one.verdict, one.proven, one.facts.rank), (Some(Verdict::Differs), false, 64));
    assert!(stored.generations[&generation("two")].proven);
    assert_eq!(store.note("k").unwrap().as_deref(), Some("v"));
    let journal = store.journal(1, 10).unwrap();
    assert_eq!(journal, [Transition { id: 2, ..line("b", "quarantined", Some(why)) }]);

    // Another version of the program, or another post, has to look for itself.
    let elsewhere = store.stored(&here("2")).unwrap();
    let two = &elsewhere.generations[&generation("two")];
    assert_eq!((two.verdict, two.proven), (None, false));
}

#[test]
fn what_serves_again_is_the_latest_of_its_history() {
    let root = tempfile::tempdir().unwrap();
    let mut store = open(root.path());
    let (one, two) = (generation("one"), generation("two"));
    let writes = [
        current("a", Some(one)),
        current("a", Some(two)),
        current("a", Some(one)),
        current("a", None),
        Write::Unhistory("a".to_owned(), two),
    ];
    store.commit(&writes[..3], &here("1")).unwrap();
    assert_eq!(store.stored(&here("1")).unwrap().names["a"].history, [two, one]);
    store.commit(&writes[3..], &here("1")).unwrap();
    let stored = store.stored(&here("1")).unwrap();
    assert_eq!((stored.names["a"].current, stored.names["a"].history.as_slice()), (None, &[one][..]));
}

#[test]
fn a_load_that_was_never_finished_is_counted_and_one_that_was_is_not() {
    let root = tempfile::tempdir().unwrap();
    let (good, bad) = (generation("good"), generation("bad"));
    let crash = || {
        let mut store = open(root.path());
        store.begin_loading(good, "a").unwrap();
        store.end_loading(good, Some("1")).unwrap();
        store.begin_loading(bad, "b").unwrap();
    };
    crash();
    let mut store = open(root.path());
    let found = store.count_unfinished().unwrap();
    assert_eq!(found, [Unfinished { generation: bad, name: "b".to_owned(), strikes: 1 }]);
    // A restart without another try is no further strike.
    assert_eq!(store.count_unfinished().unwrap(), []);
    drop(store);
    crash();
    let mut store = open(root.path());
    assert_eq!(store.count_unfinished().unwrap()[0].strikes, 2);
    store.begin_loading(bad, "b").unwrap();
    store.end_loading(bad, None).unwrap();
    drop(store);
    crash();
    assert_eq!(open(root.path()).count_unfinished().unwrap()[0].strikes, 1, "one success wipes the slate");
}

#[test]
fn changes_are_made_all_or_none() {
    let root = tempfile::tempdir().unwrap();
    let mut store = open(root.path());
    let generation = generation("one");
    store
        .database
        .run(|sql| {
            sql.execute_batch(
                "CREATE TRIGGER no BEFORE INSERT ON spoke_transition BEGIN SELECT RAISE(ABORT, 'no'); END",
            )
        })
        .unwrap();
    let writes = [current("a", Some(generation)), Write::Journal(line("a", "serving", None))];
    store.commit(&writes, &here("1")).unwrap_err();
    assert_eq!(store.stored(&here("1")).unwrap(), Stored::default());
}
