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

/// One file that the service refuses for itself does not hold up the others.
#[test]
fn a_file_that_is_refused_holds_up_no_other() {
    let store = store();
    let m = Mount::new(&store);
    fs::write(m.path("leased"), b"first").unwrap();
    store.fail(Op::Put, Fault::Status(503, "ServerBusy"), 1_000_000);
    let lease = blob_fs::Store::acquire_lease(&*store, "leased", 60);
    resources().runtime.block_on(lease).unwrap();
    let mut leased = File::options().append(true).open(m.path("leased")).unwrap();
    leased.write_all(b", mine").unwrap();
    drop(leased);
    let mut other = File::create(m.path("other")).unwrap();
    other.write_all(b"content").unwrap();
    drop(other);
    eventually("both are known", || m.owing().files == 2);
    store.heal();
    eventually("the other one is stored", || store.content("other").is_some());
    assert_eq!(m.owing().files, 1);
    store.end_leases();
    eventually("so is this one", || m.owing().files == 0);
    assert_eq!(store.content("leased").unwrap(), &b"first, mine"[..]);
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
