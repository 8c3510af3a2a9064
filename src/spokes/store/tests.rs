//! Tests that the tables return what was stored, and that a crash in the middle of a load is
//! detected.

use super::*;
use crate::database::StateDirectory;
use crate::spokes::folder::Fingerprint;
use crate::spokes::life::State;
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
    Write::Current { id: 7, name: name.to_owned(), generation, given: false, left: 3 }
}

fn line(name: &str, to: &str, why: Option<Reason>) -> Transition {
    let from = Some("gated".to_owned());
    Transition { id: 0, at: 5, name: name.to_owned(), generation: None, from, to: to.to_owned(), why }
}

#[test]
fn what_is_written_is_there_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let why = Reason::new("pickle", "is a pickle").hint("convert it");
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

    // Verdicts of another program version or another post don't count.
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
    let found = store.unfinished().unwrap();
    assert_eq!(found, [Unfinished { generation: bad, name: "b".to_owned(), strikes: 1 }]);
    // Until it is judged, it is reported again.
    assert_eq!(store.unfinished().unwrap(), found);
    store.judge_unfinished(bad, None).unwrap();
    // A restart without another load is no further strike.
    assert_eq!(store.unfinished().unwrap(), []);
    drop(store);
    crash();
    let mut store = open(root.path());
    assert_eq!(store.unfinished().unwrap()[0].strikes, 2);
    let why = Reason::new("crashed", "C");
    store.judge_unfinished(bad, Some(&why)).unwrap();
    assert_eq!(store.stored(&here("1")).unwrap().banned, [(bad, why)].into());
    store.begin_loading(bad, "b").unwrap();
    store.end_loading(bad, None).unwrap();
    drop(store);
    crash();
    assert_eq!(open(root.path()).unfinished().unwrap()[0].strikes, 1, "one success wipes the slate");
}

#[test]
fn what_was_rolled_back_is_so_under_its_name_alone_and_forgotten_with_it() {
    let root = tempfile::tempdir().unwrap();
    let (one, two) = (generation("one"), generation("two"));
    let why = Reason::new("rolled_back", "R");
    let rolled_back = |name: &str, generation| Write::RolledBack(name.to_owned(), generation, why.clone());
    let mut store = open(root.path());
    let writes =
        [current("a", Some(one)), rolled_back("a", one), rolled_back("b", one), rolled_back("b", two)];
    store.commit(&writes, &here("1")).unwrap();
    store.commit(&[Write::Allowed("b".to_owned(), one)], &here("1")).unwrap();
    drop(store);
    let mut store = open(root.path());
    let key = |name: &str, generation| (name.to_owned(), generation);
    let expected = [(key("a", one), why.clone()), (key("b", two), why.clone())];
    assert_eq!(store.stored(&here("1")).unwrap().rolled_back, expected.into());
    store.commit(&[Write::Forgotten("a".to_owned())], &here("1")).unwrap();
    let stored = store.stored(&here("1")).unwrap();
    assert!(stored.names.is_empty() && stored.rolled_back.len() == 1, "{stored:?}");
}

#[test]
fn rollbacks_of_the_first_version_keep_the_names_of_their_lines_in_the_journal() {
    let root = tempfile::tempdir().unwrap();
    let database = || {
        let state = crate::database::StateDirectory::open(root.path()).unwrap();
        (state.database().unwrap(), state)
    };
    let (one, two) = (generation("one"), generation("two"));
    {
        let (mut database, _state) = database();
        database.prepare("spokes", &super::tables::STEPS[..1]).unwrap();
        let rows = format!(
            r#"INSERT INTO spoke_banned (generation, why) VALUES
                ('{one}', '{{"code":"rolled_back","message":"R"}}'), ('{two}', '{{"code":"crashed","message":"C"}}');
            INSERT INTO spoke_transition (at, name, generation, is_now, why) VALUES
                (1, 'a', '{one}', 'retired', '{{"code":"rolled_back","message":"R"}}'),
                (2, 'a', '{one}', 'retired', '{{"code":"rolled_back","message":"R"}}'),
                (3, 'b', '{one}', 'retired', '{{"code":"deleted","message":"D"}}');"#
        );
        database.run(|sql| sql.execute_batch(&rows)).unwrap();
    }
    let stored = open(root.path()).stored(&here("1")).unwrap();
    let names: Vec<_> = stored.rolled_back.keys().map(|(name, generation)| (&**name, *generation)).collect();
    assert_eq!(names, [("a", one)]);
    assert_eq!(stored.banned.into_keys().collect::<Vec<_>>(), [two]);
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
    assert_eq!(store.stored(&here("1")).unwrap(), StoredSpoke::default());
}
