//! What every engine must do: one suite, run against each of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{ops::ControlFlow, path::Path};

use super::{
    engine::{Engine, Record, Replaced, Totals, Verdict, View},
    place::Bounds,
    redb::Redb,
};

/// Opens the engine whose file lies in this folder, if it has one.
type Open = fn(&Path) -> Box<dyn Engine>;

fn on_disk(folder: &Path) -> Box<dyn Engine> {
    let engine = Redb::open(&folder.join("store.redb")).unwrap();
    engine.prepare().unwrap();
    Box::new(engine)
}

fn in_memory(_folder: &Path) -> Box<dyn Engine> {
    let engine = Redb::in_memory().unwrap();
    engine.prepare().unwrap();
    Box::new(engine)
}

/// Runs each test against each engine.
macro_rules! conform {
    ($($test:ident)*) => {
        mod redb_on_disk {
            $(#[test] fn $test() { super::$test(super::on_disk); })*
        }
        mod redb_in_memory {
            $(#[test] fn $test() { super::$test(super::in_memory); })*
        }
    };
}

conform! {
    a_transaction_is_seen_whole_or_not_at_all
    a_snapshot_stays_as_it_was
    ranges_are_read_in_both_directions
    expiries_follow_their_records
    a_large_value_and_a_long_key_come_back_as_they_were
    what_a_transaction_did_it_sees
    clear_leaves_the_totals
    what_is_marked_is_returned_to_under_a_newer_version
    what_is_forgotten_is_not_returned_to
}

/// Runs `open` in a folder of its own.
fn with(open: Open, test: impl FnOnce(&dyn Engine)) {
    let folder = tempfile::tempdir().unwrap();
    test(&*open(folder.path()));
}

fn record(version: u64, value: &[u8]) -> Record<'_> {
    Record {
        version,
        expires_ms: 0,
        value,
    }
}

fn put(engine: &dyn Engine, entries: &[(&str, &str)]) {
    engine
        .write(&mut |transaction| {
            let mut totals = transaction.totals();
            totals.version += 1;
            for (place, value) in entries {
                let new = record(totals.version, value.as_bytes());
                transaction.put(place.as_bytes(), new)?;
            }
            transaction.set_totals(totals);
            Ok(Verdict::Commit)
        })
        .unwrap();
}

fn get(view: &dyn View, place: &str) -> Option<(u64, String)> {
    let mut found = None;
    view.get(place.as_bytes(), &mut |record| {
        let value = String::from_utf8(record.value.to_vec()).unwrap();
        found = Some((record.version, value));
    })
    .unwrap();
    found
}

fn scan(view: &dyn View, from: &str, to: Option<&str>, reverse: bool, most: usize) -> String {
    let mut found = Vec::new();
    let bounds = Bounds {
        from: from.into(),
        to: to.map(Into::into),
    };
    view.scan(&bounds, reverse, &mut |place, _| {
        found.push(String::from_utf8(place.to_vec()).unwrap());
        if found.len() == most {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })
    .unwrap();
    found.join(" ")
}

fn a_transaction_is_seen_whole_or_not_at_all(open: Open) {
    with(open, |engine| {
        put(engine, &[("a", "1"), ("b", "1")]);
        engine
            .write(&mut |transaction| {
                transaction.put(b"a", record(9, b"9"))?;
                transaction.delete(b"b")?;
                Ok(Verdict::Abort)
            })
            .unwrap();
        let view = engine.view().unwrap();
        assert_eq!(get(&*view, "a"), Some((1, "1".to_owned())));
        assert_eq!(get(&*view, "b"), Some((1, "1".to_owned())));
        assert_eq!(view.totals().version, 1);
        let failed = engine.write(&mut |transaction| {
            transaction.put(b"a", record(9, b"9"))?;
            Err(super::engine::EngineError::Other("no".to_owned()))
        });
        assert!(failed.is_err());
        let view = engine.view().unwrap();
        assert_eq!(get(&*view, "a"), Some((1, "1".to_owned())));
    });
}

fn a_snapshot_stays_as_it_was(open: Open) {
    with(open, |engine| {
        put(engine, &[("a", "1")]);
        let before = engine.view().unwrap();
        put(engine, &[("a", "2"), ("b", "2")]);
        assert_eq!(get(&*before, "a"), Some((1, "1".to_owned())));
        assert_eq!(get(&*before, "b"), None);
        assert_eq!(before.totals().version, 1);
        let after = engine.view().unwrap();
        assert_eq!(get(&*after, "a"), Some((2, "2".to_owned())));
        assert_eq!(scan(&*before, "", None, false, 10), "a");
    });
}

fn ranges_are_read_in_both_directions(open: Open) {
    with(open, |engine| {
        put(engine, &[("a", ""), ("b", ""), ("c", ""), ("d", "")]);
        let view = engine.view().unwrap();
        assert_eq!(scan(&*view, "b", Some("d"), false, 10), "b c");
        assert_eq!(scan(&*view, "b", Some("d"), true, 10), "c b");
        assert_eq!(scan(&*view, "b", None, true, 10), "d c b");
        assert_eq!(scan(&*view, "", None, false, 3), "a b c");
        assert_eq!(scan(&*view, "d", Some("b"), false, 10), "");
        assert_eq!(scan(&*view, "b", Some("b"), true, 10), "");
    });
}

fn expiries_follow_their_records(open: Open) {
    with(open, |engine| {
        let at = |expires_ms| Record {
            version: 1,
            expires_ms,
            value: b"x",
        };
        engine
            .write(&mut |transaction| {
                transaction.put(b"later", at(200))?;
                transaction.put(b"soon", at(100))?;
                transaction.put(b"moved", at(50))?;
                transaction.put(b"moved", at(300))?;
                transaction.put(b"gone", at(60))?;
                transaction.delete(b"gone")?;
                transaction.put(b"kept", at(70))?;
                transaction.put(b"kept", at(0))?;
                Ok(Verdict::Commit)
            })
            .unwrap();
        engine
            .write(&mut |transaction| {
                assert_eq!(transaction.next_expiry()?, Some(100));
                assert_eq!(transaction.expired(99, 10)?, Vec::<Vec<u8>>::new());
                assert_eq!(transaction.expired(100, 10)?, [b"soon"]);
                let both: [&[u8]; 2] = [b"soon", b"later"];
                assert_eq!(transaction.expired(250, 10)?, both);
                assert_eq!(transaction.expired(250, 1)?, [b"soon"]);
                Ok(Verdict::Abort)
            })
            .unwrap();
    });
}

fn a_large_value_and_a_long_key_come_back_as_they_were(open: Open) {
    with(open, |engine| {
        let value: Vec<u8> = (0..16_u32 << 20).map(|at| (at % 251) as u8).collect();
        let place = vec![7; 2048 + 65];
        engine
            .write(&mut |transaction| {
                transaction.put(&place, record(1, &value))?;
                transaction.put(b"empty", record(1, b""))?;
                Ok(Verdict::Commit)
            })
            .unwrap();
        let view = engine.view().unwrap();
        let mut same = false;
        view.get(&place, &mut |record| same = record.value == value)
            .unwrap();
        assert!(same);
        assert_eq!(get(&*view, "empty"), Some((1, String::new())));
    });
}

fn what_a_transaction_did_it_sees(open: Open) {
    with(open, |engine| {
        put(engine, &[("a", "one")]);
        engine
            .write(&mut |transaction| {
                let old = Some(Replaced { value_length: 3 });
                assert_eq!(transaction.put(b"a", record(2, b"two!"))?, old);
                let mut seen = 0;
                transaction.get(b"a", &mut |record| seen = record.value.len())?;
                assert_eq!(seen, 4);
                let old = Some(Replaced { value_length: 4 });
                assert_eq!(transaction.delete(b"a")?, old);
                assert_eq!(transaction.delete(b"a")?, None);
                transaction.get(b"a", &mut |_| panic!("it is gone"))?;
                Ok(Verdict::Commit)
            })
            .unwrap();
        assert_eq!(get(&*engine.view().unwrap(), "a"), None);
    });
}

fn clear_leaves_the_totals(open: Open) {
    with(open, |engine| {
        put(engine, &[("a", "1"), ("b", "1")]);
        engine
            .write(&mut |transaction| {
                let put = Record {
                    version: 1,
                    expires_ms: 5,
                    value: b"",
                };
                transaction.put(b"c", put)?;
                transaction.clear()?;
                assert_eq!(transaction.next_expiry()?, None);
                Ok(Verdict::Commit)
            })
            .unwrap();
        let view = engine.view().unwrap();
        assert_eq!(scan(&*view, "", None, false, 10), "");
        let expected = Totals {
            version: 1,
            ..Totals::default()
        };
        assert_eq!(view.totals(), expected);
    });
}

fn what_is_marked_is_returned_to_under_a_newer_version(open: Open) {
    with(open, |engine| {
        assert!(!engine.return_to_mark().unwrap(), "nothing was marked");
        put(engine, &[("a", "1"), ("b", "1")]);
        engine.mark().unwrap();
        put(engine, &[("a", "2")]);
        put(engine, &[("c", "3")]);
        let before = engine.view().unwrap().totals();
        assert!(engine.return_to_mark().unwrap());
        let view = engine.view().unwrap();
        assert_eq!(scan(&*view, "", None, false, 10), "a b");
        assert_eq!(get(&*view, "a").unwrap().1, "1");
        let after = view.totals();
        assert!(after.version > before.version);
        assert!(!engine.return_to_mark().unwrap(), "once is all");
    });
}

fn what_is_forgotten_is_not_returned_to(open: Open) {
    with(open, |engine| {
        put(engine, &[("a", "1")]);
        engine.mark().unwrap();
        put(engine, &[("a", "2")]);
        engine.forget_mark().unwrap();
        assert!(!engine.return_to_mark().unwrap());
        let view = engine.view().unwrap();
        assert_eq!(get(&*view, "a").unwrap().1, "2");
        // A mark moves on.
        engine.mark().unwrap();
        put(engine, &[("a", "3")]);
        engine.mark().unwrap();
        put(engine, &[("a", "4")]);
        assert!(engine.return_to_mark().unwrap());
        let view = engine.view().unwrap();
        assert_eq!(get(&*view, "a").unwrap().1, "3");
    });
}

#[test]
fn a_mark_outlives_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let engine = on_disk(folder.path());
    put(&*engine, &[("a", "1")]);
    engine.mark().unwrap();
    put(&*engine, &[("a", "2")]);
    drop(engine);
    let engine = on_disk(folder.path());
    assert!(engine.return_to_mark().unwrap());
    assert_eq!(get(&*engine.view().unwrap(), "a").unwrap().1, "1");
}

#[test]
fn a_file_is_there_again_when_it_is_opened_again_and_is_open_once() {
    let folder = tempfile::tempdir().unwrap();
    let engine = on_disk(folder.path());
    put(&*engine, &[("a", "1")]);
    let again = Redb::open(&folder.path().join("store.redb"));
    assert!(matches!(
        again.err(),
        Some(super::engine::EngineError::Locked)
    ));
    drop(engine);
    let engine = on_disk(folder.path());
    assert_eq!(
        get(&*engine.view().unwrap(), "a"),
        Some((1, "1".to_owned()))
    );
}
