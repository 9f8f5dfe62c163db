//! The service goes away and comes back: what was written to files that were closed is there, however long it
//! took and whatever close(2) said.

use std::fs::{self, File};
use std::io::Write;

use blob_client::Metadata;
use blob_fs::store::fake::{Fault, Op};

use super::store;
use crate::common::{Mount, eventually, resources};

/// Kinds of outages, as requests that write meet them.
const OUTAGES: [Fault; 3] = [
    Fault::Status(503, "ServerBusy"),
    Fault::Status(403, "AuthenticationFailed"),
    Fault::Lost,
];

fn content(n: u8) -> Vec<u8> {
    vec![n; 1000 * usize::from(n) + 1]
}

#[test]
fn closed_files_outlive_an_outage() {
    for outage in OUTAGES {
        let store = store();
        let m = Mount::new(&store);
        fs::write(m.path("old"), b"as it was").unwrap();
        for op in [Op::Put, Op::Stage, Op::Commit] {
            store.fail(op, outage, 1_000_000);
        }
        for n in 0..40 {
            let mut file = File::create(m.path(&format!("f{n}"))).unwrap();
            file.write_all(&content(n)).unwrap();
            assert!(file.sync_all().is_err(), "nothing is stored, and fsync says so");
            // close(2) of it says the same to whoever asks; a program that ends does not.
            drop(file);
        }
        let mut old = File::options().append(true).open(m.path("old")).unwrap();
        old.write_all(b", and more").unwrap();
        drop(old);
        eventually("all of them are known", || m.owing().files == 41);
        assert!(m.owing().bytes >= 40 * 1000 && m.owing().oldest.is_some());
        // The mount shows what was written, not what is stored.
        assert_eq!(fs::read(m.path("f7")).unwrap(), content(7));
        assert_eq!(fs::read(m.path("old")).unwrap(), b"as it was, and more");
        store.heal();
        eventually("all of them are stored", || m.owing().files == 0);
        for n in 0..40 {
            assert_eq!(
                store.content(&format!("f{n}")).unwrap(),
                content(n),
                "{outage:?}: {n}"
            );
        }
        assert_eq!(store.content("old").unwrap(), &b"as it was, and more"[..]);
        m.end().unwrap();
    }
}

/// Which of them are sent first is seen while no answer comes. At the end of the mount, too.
#[test]
fn what_was_closed_first_is_sent_first() {
    const AT_ONCE: usize = 16;
    for ends in [false, true] {
        let store = store();
        let m = Mount::new(&store);
        store.fail(Op::Put, Fault::Status(503, "ServerBusy"), 1_000_000);
        // Made in another order than closed.
        let mut files: Vec<_> = (0..48)
            .map(|n| File::create(m.path(&format!("f{n}"))).unwrap())
            .rev()
            .collect();
        for file in &mut files {
            file.write_all(b"content").unwrap();
        }
        for (n, file) in files.into_iter().enumerate() {
            drop(file);
            eventually("it is known", || m.owing().files == n + 1);
        }
        store.hold_answers(Op::Put);
        store.heal();
        let mounted = match ends {
            true => Err(std::thread::spawn(move || m.end())),
            false => Ok(m),
        };
        let stored = || (0..48).filter(|n| store.content(&format!("f{n}")).is_some());
        eventually("some are sent", || stored().count() == AT_ONCE);
        assert!(
            stored().all(|n| n >= 48 - AT_ONCE),
            "{:?}",
            stored().collect::<Vec<_>>()
        );
        store.give_answers();
        eventually("all are stored", || stored().count() == 48);
        match mounted {
            Ok(m) => m.end().unwrap(),
            Err(ended) => ended.join().unwrap().unwrap(),
        }
    }
}

/// What somebody else stored meanwhile wins, and nothing is owed any more.
#[test]
fn a_newer_version_of_somebody_else_stays() {
    let store = store();
    let m = Mount::new(&store);
    fs::write(m.path("file"), b"first").unwrap();
    store.fail(Op::Put, Fault::Status(503, "ServerBusy"), 1_000_000);
    let mut file = File::options().append(true).open(m.path("file")).unwrap();
    file.write_all(b", mine").unwrap();
    drop(file);
    eventually("it is known", || m.owing().files == 1);
    store.foreign_put("file", "theirs", Metadata::new());
    store.heal();
    eventually("nothing is owed", || m.owing().files == 0);
    eventually("theirs is seen", || {
        fs::read(m.path("file")).is_ok_and(|content| content == b"theirs")
    });
    assert_eq!(m.owing().given_up, 1, "and told as lost");
    m.end().unwrap();
    assert_eq!(store.content("file").unwrap(), &b"theirs"[..]);
}

/// A file that is deleted or replaced meanwhile owes nothing.
#[test]
fn what_was_deleted_is_not_owed() {
    let store = store();
    let m = Mount::new(&store);
    store.fail(Op::Put, Fault::Status(503, "ServerBusy"), 1_000_000);
    for name in ["deleted", "kept"] {
        let mut file = File::create(m.path(name)).unwrap();
        file.write_all(b"content").unwrap();
    }
    eventually("both are known", || m.owing().files == 2);
    fs::remove_file(m.path("deleted")).unwrap();
    eventually("one is known", || m.owing().files == 1);
    store.heal();
    eventually("nothing is owed", || m.owing().files == 0);
    m.end().unwrap();
    assert_eq!(store.content("deleted"), None);
    assert_eq!(store.content("kept").unwrap(), &b"content"[..]);
}

/// A file that is renamed onto it in vain takes nothing away from what is owed.
#[test]
fn a_rename_that_fails_takes_nothing_from_what_is_owed() {
    for outage in OUTAGES {
        let store = store();
        let m = Mount::new(&store);
        fs::write(m.path("other"), b"of the other").unwrap();
        for op in [Op::Put, Op::Copy] {
            store.fail(op, outage, 1_000_000);
        }
        let mut file = File::create(m.path("file")).unwrap();
        file.write_all(b"content").unwrap();
        drop(file);
        eventually("it is known", || m.owing().files == 1);
        assert!(fs::rename(m.path("other"), m.path("file")).is_err());
        assert_eq!(m.owing().files, 1, "{outage:?}");
        store.heal();
        eventually("nothing is owed", || m.owing().files == 0);
        assert_eq!(m.owing().given_up, 0);
        assert_eq!(store.content("file").unwrap(), &b"content"[..], "{outage:?}");
        assert_eq!(
            store.content("other").unwrap(),
            &b"of the other"[..],
            "{outage:?}"
        );
        m.end().unwrap();
    }
}

/// Nor from who has it open, when nobody knows what has become of the file that was to replace it.
#[test]
fn a_rename_in_doubt_takes_nothing_from_who_writes_to_its_target() {
    let store = store();
    let m = Mount::new(&store);
    let mut file = File::create(m.path("file")).unwrap();
    let mut new = File::create(m.path("new")).unwrap();
    for op in [Op::Put, Op::Head] {
        store.fail(op, Fault::Lost, 1_000_000);
    }
    new.write_all(b"new").unwrap();
    assert!(new.sync_all().is_err());
    drop(new);
    eventually("it is known", || m.owing().files == 1);
    assert!(fs::rename(m.path("new"), m.path("file")).is_err());
    store.heal();
    file.write_all(b"content").unwrap();
    file.sync_all().unwrap();
    drop(file);
    eventually("nothing is owed", || m.owing().files == 0);
    assert_eq!(store.content("file").unwrap(), &b"content"[..]);
    assert_eq!(store.content("new").unwrap(), &b"new"[..]);
    m.end().unwrap();
}

/// Files that the service refuses for themselves do not hold up another one, nor at the end of the volume.
#[test]
fn files_that_are_refused_hold_up_no_other() {
    const REFUSED: usize = 40;
    for unmounts in [false, true] {
        let store = store();
        let m = Mount::new(&store);
        let open = |name: &str| {
            File::options()
                .create(true)
                .append(true)
                .open(m.path(name))
                .unwrap()
        };
        let names: Vec<String> = (0..REFUSED).map(|n| format!("leased {n}")).collect();
        for name in &names {
            fs::write(m.path(name), b"first").unwrap();
        }
        store.fail(Op::Put, Fault::Status(503, "ServerBusy"), 1_000_000);
        for name in &names {
            // Who opens one that is leased already is refused then.
            let mut file = open(name);
            let lease = blob_fs::Store::acquire_lease(&*store, name, 60);
            resources().runtime.block_on(lease).unwrap();
            file.write_all(b", mine").unwrap();
        }
        open("other").write_all(b", mine").unwrap();
        eventually("all are known", || m.owing().files == REFUSED + 1);
        store.heal();
        if unmounts {
            assert!(m.end().is_err(), "what is lost is told");
            assert_eq!(store.content("other").unwrap(), &b", mine"[..]);
            assert_eq!(store.content("leased 7").unwrap(), &b"first"[..]);
            continue;
        }
        eventually("the other one is stored", || m.owing().files == REFUSED);
        assert_eq!(store.content("other").unwrap(), &b", mine"[..]);
        store.end_leases();
        eventually("so are these", || m.owing().files == 0);
        assert_eq!(store.content("leased 7").unwrap(), &b"first, mine"[..]);
        m.end().unwrap();
    }
}

/// One whose request hangs does not, either.
#[test]
fn a_request_that_hangs_holds_up_no_other_file() {
    let store = store();
    let m = Mount::new(&store);
    for op in [Op::Put, Op::Commit] {
        store.fail(op, Fault::Status(503, "ServerBusy"), 1_000_000);
    }
    for n in 0..40 {
        let mut file = File::create(m.path(&format!("f{n}"))).unwrap();
        file.write_all(b"content").unwrap();
    }
    let mut large = File::create(m.path("large")).unwrap();
    large.write_all(&vec![1; 9 << 20]).unwrap();
    drop(large);
    eventually("all are known", || m.owing().files == 41);
    store.hold_answers(Op::Commit);
    store.heal();
    eventually("all others are stored", || m.owing().files == 1);
    store.give_answers();
    eventually("and that one", || m.owing().files == 0);
    m.end().unwrap();
}

/// Somebody who only reads the file does not keep what its last writer left from being sent again.
#[test]
fn a_reader_does_not_hold_up_what_a_writer_left() {
    let store = store();
    let m = Mount::new(&store);
    fs::write(m.path("file"), b"first").unwrap();
    store.fail(Op::Put, Fault::Status(503, "ServerBusy"), 1_000_000);
    let mut file = File::options().append(true).open(m.path("file")).unwrap();
    let reader = File::open(m.path("file")).unwrap();
    file.write_all(b", more").unwrap();
    drop(file);
    eventually("it is known", || m.owing().files == 1);
    store.heal();
    eventually("it is stored", || m.owing().files == 0);
    assert_eq!(store.content("file").unwrap(), &b"first, more"[..]);
    drop(reader);
    m.end().unwrap();
}

/// The end of the volume sends all files side by side, and does not try each of them against a service that
/// takes nothing.
#[test]
fn the_end_of_a_volume_gives_up_when_nothing_gets_on() {
    let store = store();
    let m = Mount::new(&store);
    store.fail(Op::Put, Fault::Status(503, "ServerBusy"), 1_000_000);
    for n in 0..100 {
        let mut file = File::create(m.path(&format!("f{n}"))).unwrap();
        file.write_all(b"content").unwrap();
    }
    eventually("all are known", || m.owing().files == 100);
    let before = store.counters().of(Op::Put);
    assert!(m.end().is_err(), "what is lost is told");
    let tried = store.counters().of(Op::Put) - before;
    // What was under way, once more at the end, and what the client repeats of each.
    assert!(tried < 100, "{tried} requests");
}

/// Times that a close could not store - the content is - do not keep what others store from being seen, and
/// do not come to it later.
#[test]
fn times_that_could_not_be_stored_hide_no_newer_version() {
    for outage in OUTAGES {
        let store = store();
        let m = Mount::new(&store);
        let mut file = File::create(m.path("file")).unwrap();
        file.write_all(b"mine").unwrap();
        file.sync_all().unwrap();
        store.fail(Op::SetMetadata, outage, 1_000_000);
        let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        // Kept with the file until its close, or refused at once.
        let _ = file.set_times(fs::FileTimes::new().set_modified(long_ago));
        drop(file);
        eventually("it was tried", || store.counters().of(Op::SetMetadata) > 0);
        store.foreign_put("file", "theirs", Metadata::new());
        eventually("theirs is seen", || {
            fs::read(m.path("file")).is_ok_and(|content| content == b"theirs")
        });
        store.heal();
        eventually("nothing is owed", || m.owing().files == 0);
        assert!(fs::metadata(m.path("file")).unwrap().modified().unwrap() > long_ago);
        m.end().unwrap();
        assert_eq!(store.content("file").unwrap(), &b"theirs"[..]);
    }
}
