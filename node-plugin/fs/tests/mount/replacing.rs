//! Names that are taken over or given up: what others have stored there, and what a failure in the middle
//! leaves.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use crate::common::*;
use crate::{patient, store};
use blob_client::{BlobType, BlockId, Metadata};
use blob_fs::store::fake::{FakeStore, Fault, Op};
use bytes::Bytes;

/// What can go wrong with a request: once, or with all from there on.
const FAULTS: [(Fault, u64); 7] = [
    (Fault::Lost, 1),
    (Fault::Lost, u64::MAX),
    (Fault::AnswerLost, 1),
    (Fault::AnswerLost, u64::MAX),
    (Fault::Status(500, "InternalError"), 1),
    (Fault::Late(3), 1),
    (Fault::Late(1_000_000), 1),
];

const OTHER_KINDS: [BlobType; 2] = [BlobType::Append, BlobType::Page];

/// Blobs of deleted files.
fn hidden(store: &FakeStore) -> usize {
    let names = store.names();
    names
        .iter()
        .filter(|n| n.starts_with(".vsc-blob-hidden."))
        .count()
}

/// A blob of another type with an owner's metadata, and a file that is to take its place.
fn to_be_replaced(store: &Arc<FakeStore>, kind: BlobType) -> Mount {
    store.foreign_put("final.log", "old", meta(&[("owner", "them")]));
    store.set_blob_type("final.log", kind);
    let m = Mount::new(store);
    fs::write(m.path("tmp"), "new").unwrap();
    assert!(m.path("final.log").exists());
    m
}

/// Either the old content with all that belongs to it, or the new one; and the new one somewhere.
fn old_or_new(store: &FakeStore, kind: BlobType, what: &str) -> &'static str {
    let properties = store.properties("final.log").unwrap();
    let content = store.content("final.log").unwrap();
    if content == "new" {
        assert_eq!(properties.blob_type, BlobType::Block, "{what}");
        return "new";
    }
    assert_eq!(content, "old", "{what}");
    assert_eq!(properties.blob_type, kind, "{what}");
    assert_eq!(
        properties.metadata.get("owner").map(String::as_str),
        Some("them"),
        "{what}"
    );
    for key in properties.metadata.keys() {
        let known = ["owner", "vsc_mtime", "vsc_ctime", "vsc_times_of"];
        assert!(known.contains(&key.as_str()), "{what}: {key}");
    }
    assert_eq!(store.content("tmp").unwrap(), "new", "{what}");
    "old"
}

/// The service cannot copy over a blob of another type: it is deleted first, and comes back when the copy
/// does not come about.
#[test]
fn replacing_a_blob_of_another_type_loses_neither_content() {
    for kind in OTHER_KINDS {
        for (fault, times) in FAULTS {
            for nth in 0.. {
                let what = format!("{kind:?}, {fault:?} x {times} at {nth}");
                let store = store();
                let m = to_be_replaced(&store, kind);
                store.fail_after(nth, fault, times);
                let renamed = fs::rename(m.path("tmp"), m.path("final.log"));
                let hit = store.heal();
                eventually(&format!("it is there again: {what}"), || {
                    store.content("final.log").is_some()
                });
                store.settle();
                eventually(&format!("it is still there: {what}"), || {
                    store.content("final.log").is_some()
                });
                let there = old_or_new(&store, kind, &what);
                if renamed.is_ok() {
                    assert_eq!(there, "new", "{what}");
                }
                assert_eq!(fs::read(m.path("final.log")).unwrap(), there.as_bytes(), "{what}");
                m.end().unwrap();
                store.end_leases();
                let m = Mount::new(&store);
                eventually("nothing hidden is left", || hidden(&store) == 0);
                assert_eq!(old_or_new(&store, kind, &what), there, "{what}");
                m.end().unwrap();
                if !hit {
                    renamed.unwrap();
                    assert!(nth > 5, "only {nth} requests");
                    break;
                }
            }
        }
    }
}

/// The process dies in the middle: the next mount puts back what has no name any more.
#[test]
fn what_a_killed_rename_had_to_delete_is_put_back() {
    for kind in OTHER_KINDS {
        for nth in 0.. {
            let what = format!("{kind:?} at {nth}");
            let store = store();
            let m = to_be_replaced(&store, kind);
            store.fail_after(nth, Fault::Lost, u64::MAX);
            let renamed = fs::rename(m.path("tmp"), m.path("final.log"));
            let _ = m.end();
            let hit = store.heal();
            store.end_leases();
            let m = Mount::new(&store);
            eventually(&format!("it is put back: {what}"), || {
                store.content("final.log").is_some() && hidden(&store) == 0
            });
            let there = old_or_new(&store, kind, &what);
            assert_eq!(fs::read(m.path("final.log")).unwrap(), there.as_bytes(), "{what}");
            if !hit {
                renamed.unwrap();
                break;
            }
        }
    }
}

/// What another mount holds is its own to put back, and a name that somebody has taken is his.
#[test]
fn what_is_put_back_takes_no_name_and_nothing_that_is_held() {
    // Copied aside, deleted, and cut off.
    let cut_off = (0..20).find_map(|nth| {
        let store = store();
        let m = to_be_replaced(&store, BlobType::Append);
        store.fail_after(nth, Fault::Lost, u64::MAX);
        let _ = fs::rename(m.path("tmp"), m.path("final.log"));
        if store.content("final.log").is_none() {
            return Some((store, m));
        }
        store.heal();
        m.end().unwrap();
        None
    });
    let (store, m) = cut_off.expect("it is without a blob for a moment");
    let kept: Vec<String> = store.names().into_iter().filter(|n| n != "tmp").collect();
    let _ = m.end();
    store.heal();
    // Held: nobody else touches it.
    store.reset_counters();
    let other = Mount::new(&store);
    eventually("it is asked for", || {
        store.counters().of(Op::AcquireLease) + store.counters().of(Op::Delete) > 0
    });
    other.end().unwrap();
    assert_eq!(store.names(), [kept[0].as_str(), "tmp"]);
    // Let go of, and the name is somebody else's.
    store.end_leases();
    store.foreign_put("final.log", "theirs", Metadata::new());
    let other = Mount::new(&store);
    eventually("it is collected", || hidden(&store) == 0);
    assert_eq!(store.content("final.log").unwrap(), "theirs");
    other.end().unwrap();
}

/// Who has a large one open goes on reading it, as with any other file.
#[test]
fn open_blobs_of_other_types_can_be_removed_and_replaced() {
    for kind in OTHER_KINDS {
        for replaced in [false, true] {
            let store = store();
            store.foreign_put("big", vec![7u8; 20 << 20], Metadata::new());
            store.set_blob_type("big", kind);
            let m = Mount::new(&store);
            let open = File::open(m.path("big")).unwrap();
            let mut byte = [0];
            open.read_exact_at(&mut byte, 0).unwrap();
            if replaced {
                fs::write(m.path("tmp"), "new").unwrap();
                fs::rename(m.path("tmp"), m.path("big")).unwrap();
                assert_eq!(fs::read(m.path("big")).unwrap(), b"new");
            } else {
                fs::remove_file(m.path("big")).unwrap();
                assert!(!m.path("big").exists());
            }
            let mut tail = [0; 10];
            open.read_exact_at(&mut tail, (20 << 20) - 10).unwrap();
            assert_eq!(tail, [7; 10]);
            drop(open);
            let left: &[&str] = if replaced { &["big"] } else { &[] };
            eventually("what it held is deleted", || store.names() == left);
        }
    }
}

/// A change of attributes elsewhere at that moment is no reason to lose what is open.
#[test]
fn who_has_a_removed_file_open_follows_a_change_of_its_attributes() {
    for len in [6 << 20, 20 << 20] {
        let store = store();
        let content: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        store.foreign_put("f", content.clone(), Metadata::new());
        let m = Mount::with(&store, patient);
        let mut open = File::open(m.path("f")).unwrap();
        let mut byte = [0];
        open.read_exact_at(&mut byte, 0).unwrap();
        store
            .foreign_metadata("f", &meta(&[("vsc_mode", "600")]))
            .unwrap();
        fs::remove_file(m.path("f")).unwrap();
        assert!(store.content("f").is_none());
        let mut got = Vec::new();
        open.read_to_end(&mut got).unwrap();
        assert!(got == content, "{len}");
    }
}

/// A file that was never stored has no blob: one that somebody else stored under its name is his.
#[test]
fn removing_a_file_that_was_never_stored_deletes_nothing_of_others() {
    let store = store();
    let m = Mount::new(&store);
    let mut new = File::create(m.path("f")).unwrap();
    new.write_all(b"ours").unwrap();
    store.foreign_put("f", "theirs", Metadata::new());
    fs::remove_file(m.path("f")).unwrap();
    assert_eq!(store.content("f").unwrap(), "theirs");
    drop(new);
    assert_eq!(fs::read(m.path("f")).unwrap(), b"theirs");
    // Moved away, and over another one that was never stored.
    let mut new = File::create(m.path("a")).unwrap();
    new.write_all(b"ours").unwrap();
    let other = File::create(m.path("b")).unwrap();
    fs::rename(m.path("a"), m.path("b")).unwrap();
    store.foreign_put("a", "theirs", Metadata::new());
    store.foreign_put("b", "theirs", Metadata::new());
    fs::remove_file(m.path("b")).unwrap();
    drop((new, other));
    for name in ["a", "b"] {
        assert_eq!(store.content(name).unwrap(), "theirs", "{name}");
        assert_eq!(fs::read(m.path(name)).unwrap(), b"theirs", "{name}");
    }
    // Lost against somebody else: his stays, too.
    let mut new = File::create(m.path("c")).unwrap();
    new.write_all(b"ours").unwrap();
    store.foreign_put("c", "theirs", Metadata::new());
    assert_eq!(errno(new.sync_all()), libc::ESTALE);
    fs::remove_file(m.path("c")).unwrap();
    drop(new);
    assert_eq!(store.content("c").unwrap(), "theirs");
    // One that was stored, although nobody was told, is ours.
    let mut new = File::create(m.path("d")).unwrap();
    new.write_all(b"ours").unwrap();
    store.fail(Op::Put, Fault::AnswerLost, 1);
    store.fail(Op::Head, Fault::Lost, 1);
    assert_eq!(errno(new.sync_all()), libc::EIO);
    assert_eq!(store.content("d").unwrap(), "ours");
    fs::remove_file(m.path("d")).unwrap();
    assert!(store.content("d").is_none());
    drop(new);
    assert_eq!(store.names(), ["a", "b", "c", "f"]);
}

/// A folder that is copied to its new name, and is at its old one as well.
fn half_moved(store: &Arc<FakeStore>) {
    let m = Mount::new(store);
    store.fail(Op::Delete, Fault::Status(500, "InternalError"), 1000);
    assert_eq!(errno(fs::rename(m.path("d"), m.path("e"))), libc::EIO);
    store.heal();
    drop(m);
}

/// A Content-MD5 that a writer of blocks or pages said once, and nobody computed since, proves nothing.
#[test]
fn a_resumed_rename_does_not_go_by_a_digest_that_is_only_said() {
    for kind in [BlobType::Block, BlobType::Page, BlobType::Append] {
        let store = store();
        let block = |content: &'static str| {
            let id = BlockId(b"0000000000000001".to_vec());
            vec![(id, Bytes::from_static(content.as_bytes()))]
        };
        let stored = |blob: &str, content: &'static str| {
            store.foreign_blocks(blob, block(content));
            store.set_blob_type(blob, kind);
            store.set_digest(blob, Some("said"));
        };
        store.foreign_put("d", "", meta(&[("hdi_isfolder", "true")]));
        stored("d/f", "first");
        half_moved(&store);
        let metadata = store.properties("e/f").unwrap().metadata;
        stored("e/f", "THEIR");
        store.foreign_metadata("e/f", &metadata).unwrap();
        store.set_digest("e/f", Some("said"));
        let m = Mount::new(&store);
        assert_eq!(
            errno(fs::rename(m.path("d"), m.path("e"))),
            libc::ENOTEMPTY,
            "{kind:?}"
        );
        assert_eq!(store.content("d/f").unwrap(), "first", "{kind:?}");
        assert_eq!(store.content("e/f").unwrap(), "THEIR", "{kind:?}");
    }
}

/// What has arrived already is looked at once: no question for the new name is asked twice.
#[test]
fn a_resumed_rename_asks_once_for_what_is_there() {
    let store = store();
    store.foreign_put("d", "", meta(&[("hdi_isfolder", "true")]));
    store.foreign_put("d/f", "first", Metadata::new());
    store.set_blob_type("d/f", BlobType::Append);
    half_moved(&store);
    let m = Mount::new(&store);
    assert_eq!(names(m.root()), ["d", "e"]);
    assert_eq!(names(&m.path("e")), ["f"]);
    store.reset_counters();
    fs::rename(m.path("d"), m.path("e")).unwrap();
    // The markers: what is at the new name (twice: whether it is a folder, and which), what is being moved,
    // and that with all that has arrived. The file: both names, once each.
    let heads = store.counters().of(Op::Head);
    assert!(heads <= 8, "{heads}");
    assert_eq!(store.names(), ["e", "e/f"]);
}

/// Attributes that somebody has changed at the new name stay there, also for who has the file open.
#[test]
fn a_resumed_rename_takes_the_last_attributes_to_open_files() {
    let store = store();
    store.foreign_put("d", "", meta(&[("hdi_isfolder", "true")]));
    store.foreign_put("d/f", "first", Metadata::new());
    half_moved(&store);
    let m = Mount::new(&store);
    let mut open = OpenOptions::new().append(true).open(m.path("d/f")).unwrap();
    let mut chmod = store.properties("e/f").unwrap().metadata;
    chmod.insert("vsc_mode".into(), "600".into());
    store.foreign_metadata("e/f", &chmod).unwrap();
    fs::rename(m.path("d"), m.path("e")).unwrap();
    outlive_timeouts();
    assert_eq!(open.metadata().unwrap().mode() & 0o777, 0o600);
    open.write_all(b"+").unwrap();
    drop(open);
    let stored = store.properties("e/f").unwrap().metadata;
    assert_eq!(stored.get("vsc_mode").map(String::as_str), Some("600"));
    assert_eq!(fs::metadata(m.path("e/f")).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::read(m.path("e/f")).unwrap(), b"first+");
}

/// A container whose policy keeps what it holds: a rename is refused before anything is copied.
#[test]
fn a_rename_that_a_policy_forbids_leaves_nothing() {
    for prefix in ["", "v"] {
        let store = store();
        let mount = || Mount::with(&store, |c| prefix.clone_into(&mut c.prefix));
        let m = mount();
        fs::write(m.path("f"), "content").unwrap();
        fs::create_dir(m.path("d")).unwrap();
        fs::write(m.path("d/g"), "content").unwrap();
        m.end().unwrap();
        store.keep_blobs(true);
        let m = mount();
        let before = store.names();
        for (from, to) in [("f", "h"), ("f", "d/g"), ("d", "e")] {
            assert_eq!(errno(fs::rename(m.path(from), m.path(to))), libc::EPERM, "{from}");
            assert_eq!(store.names(), before, "{from}");
        }
        let (f, g) = (m.path("f"), m.path("d/g"));
        assert_eq!(
            errno(crate::renames::rename2(&f, &g, libc::RENAME_EXCHANGE)),
            libc::EPERM
        );
        assert_eq!(store.names(), before);
        // What is not stored yet has nothing to be kept.
        let mut new = File::create(m.path("new")).unwrap();
        new.write_all(b"new").unwrap();
        fs::rename(m.path("new"), m.path("newer")).unwrap();
        drop(new);
        let mut text = String::new();
        File::open(m.path("newer"))
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "new");
        // It may be taken off.
        store.keep_blobs(false);
        fs::rename(m.path("f"), m.path("h")).unwrap();
        assert_eq!(fs::read(m.path("h")).unwrap(), b"content");
    }
}
