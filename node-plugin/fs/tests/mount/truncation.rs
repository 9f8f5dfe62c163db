//! Sizes that are set by name: stored at once, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::common::*;
use crate::store;
use blob_client::Metadata;
use blob_fs::store::fake::{Fault, Op};
use nix::unistd::truncate;

/// Ways in which storing a version fails, and what the caller is told.
const FAULTS: [(Fault, i32); 2] = [
    (
        Fault::Status(403, "AuthorizationPermissionMismatch"),
        libc::EACCES,
    ),
    (Fault::Lost, libc::EIO),
];

/// Whoever reads the file goes on with what it was, and so does everybody after him.
#[test]
fn a_truncate_that_failed_is_not_carried_out_while_or_after_somebody_reads() {
    let (small, large) = (b"0123456789".to_vec(), vec![7u8; 20 << 20]);
    for (content, sizes) in [(small, [0, 3, 30]), (large, [0, 9 << 20, 30 << 20])] {
        for (fault, expected) in FAULTS {
            for size in sizes {
                let what = format!("{} to {size}, {fault:?}", content.len());
                let store = store();
                let written = store.foreign_put("f", content.clone(), Metadata::new());
                let m = Mount::new(&store);
                let reader = File::open(m.path("f")).unwrap();
                let before = reader.metadata().unwrap();
                for op in [Op::Put, Op::Stage, Op::StageFrom, Op::Commit] {
                    store.fail(op, fault, u64::MAX);
                }
                assert_eq!(
                    truncate(&m.path("f"), size),
                    Err(nix::Error::from_raw(expected)),
                    "{what}"
                );
                store.heal();
                let after = reader.metadata().unwrap();
                assert_eq!(
                    (after.len(), after.modified().unwrap(), after.mode()),
                    (before.len(), before.modified().unwrap(), before.mode()),
                    "{what}"
                );
                let mut end = [0; 5];
                reader.read_exact_at(&mut end, content.len() as u64 - 5).unwrap();
                assert_eq!(end, content[content.len() - 5..], "{what}");
                assert!(fs::read(m.path("f")).unwrap() == content, "{what}");
                reader.sync_all().unwrap();
                drop(reader);
                m.end().unwrap();
                assert_eq!(store.properties("f").unwrap().etag, written.etag, "{what}");
            }
        }
    }
}

/// What was written and not stored yet is another matter: its own close stores it, and the truncate that
/// could not is not part of that.
#[test]
fn a_truncate_that_failed_takes_nothing_from_what_is_owed() {
    let store = store();
    let m = Mount::new(&store);
    fs::write(m.path("f"), "0123456789").unwrap();
    let reader = File::open(m.path("f")).unwrap();
    let mut writer = OpenOptions::new().append(true).open(m.path("f")).unwrap();
    writer.write_all(b"+").unwrap();
    store.fail(Op::Put, Fault::Lost, u64::MAX);
    assert_eq!(errno(writer.sync_all()), libc::EIO);
    store.heal();
    drop(writer);
    eventually("it is stored", || store.content("f").unwrap() == "0123456789+");
    store.fail(Op::Put, Fault::Lost, u64::MAX);
    assert_eq!(truncate(&m.path("f"), 3), Err(nix::Error::EIO));
    store.heal();
    assert_eq!(fs::read(m.path("f")).unwrap(), b"0123456789+");
    drop(reader);
    m.end().unwrap();
    assert_eq!(store.content("f").unwrap(), "0123456789+".as_bytes());
}

/// One that succeeds is there for everybody, whoever has the file open; what stays is not read again.
#[test]
fn a_truncate_beside_a_reader_is_stored_at_once() {
    for (len, size) in [
        (10, 4),
        (10, 0),
        (10, 16),
        (20 << 20, 9 << 20),
        (20 << 20, 21 << 20),
    ] {
        let store = store();
        let mut content: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        store.foreign_put("f", content.clone(), meta(&[("owner", "them")]));
        let m = Mount::new(&store);
        let reader = File::open(m.path("f")).unwrap();
        let mut byte = [0];
        reader.read_exact_at(&mut byte, 3).unwrap();
        truncate(&m.path("f"), size as i64).unwrap();
        content.resize(size, 0);
        assert!(store.content("f").unwrap() == content, "{len} to {size}");
        let stored = store.properties("f").unwrap();
        assert_eq!(stored.metadata.get("owner").map(String::as_str), Some("them"));
        assert_eq!(reader.metadata().unwrap().len(), size as u64);
        let mut got = vec![0; size];
        reader.read_exact_at(&mut got, 0).unwrap();
        assert!(got == content, "{len} to {size}");
        // And goes on from there.
        let mut writer = OpenOptions::new().append(true).open(m.path("f")).unwrap();
        writer.write_all(b"more").unwrap();
        drop(writer);
        content.extend_from_slice(b"more");
        assert!(store.content("f").unwrap() == content, "{len} to {size}");
        assert!(fs::read(m.path("f")).unwrap() == content, "{len} to {size}");
        drop(reader);
        m.end().unwrap();
    }
}
