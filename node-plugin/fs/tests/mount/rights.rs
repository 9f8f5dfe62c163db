//! A credential that lacks a right: what needs it is refused before anything is begun.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;

use blob_client::{BlobType, Metadata};
use blob_fs::store::fake::{FakeStore, Fault, Op};
use bytes::Bytes;

use crate::common::*;
use crate::renames::rename2;
use crate::{patient, store};

const DENIED: Fault = Fault::Status(403, "AuthorizationPermissionMismatch");
/// More than is kept in memory of a file that is deleted while it is open.
const LARGE: usize = 9 << 20;

fn contents(store: &FakeStore) -> BTreeMap<String, Bytes> {
    let names = store.names().into_iter();
    names
        .map(|name| (name.clone(), store.content(&name).unwrap()))
        .collect()
}

fn fill(store: &FakeStore) {
    for (name, content) in [("f", "content"), ("g", "other"), ("d/1", "1"), ("d/2", "2")] {
        store.foreign_put(name, content, Metadata::new());
    }
    store.foreign_put("page", vec![0; 512], Metadata::new());
    store.set_blob_type("page", BlobType::Page);
    store.foreign_put("large", vec![7; LARGE], Metadata::new());
}

/// Each way to rename or remove, and what is stored afterwards.
fn nothing_goes(store: &FakeStore, m: &Mount) {
    let before = contents(store);
    store.reset_counters();
    for (from, to) in [
        ("f", "h"),
        ("f", "g"),
        ("f", "page"),
        ("page", "f"),
        ("d", "e"),
        ("d", "new"),
    ] {
        let renamed = fs::rename(m.path(from), m.path(to));
        assert_eq!(errno(renamed), libc::EACCES, "{from} to {to}");
        assert_eq!(contents(store), before, "{from} to {to}");
    }
    for (a, b) in [("f", "g"), ("d", "f")] {
        let exchanged = rename2(&m.path(a), &m.path(b), libc::RENAME_EXCHANGE);
        assert_eq!(errno(exchanged), libc::EACCES, "{a} and {b}");
    }
    let mut large = File::open(m.path("large")).unwrap();
    assert_eq!(errno(fs::remove_file(m.path("large"))), libc::EACCES);
    assert_eq!(contents(store), before, "what is open is copied first");
    let mut text = Vec::new();
    large.read_to_end(&mut text).unwrap();
    assert_eq!(text.len(), LARGE);
    assert_eq!(store.counters().of(Op::Copy), 0);
}

#[test]
fn without_the_right_to_delete_nothing_is_copied() {
    let store = store();
    fill(&store);
    store.foreign_put("e", "", meta(&[("hdi_isfolder", "true")]));
    store.fail(Op::Delete, DENIED, u64::MAX);
    let m = Mount::with(&store, |config| config.rights.delete = false);
    nothing_goes(&store, &m);
    // What is in no blob yet has nothing to be deleted.
    let mut new = File::create(m.path("new")).unwrap();
    new.write_all(b"new").unwrap();
    fs::rename(m.path("new"), m.path("newer")).unwrap();
    drop(new);
    assert_eq!(fs::read(m.path("newer")).unwrap(), b"new");
    // Somebody gives the right: the mount goes on with it.
    store.heal();
    store.reset_counters();
    fs::rename(m.path("f"), m.path("h")).unwrap();
    assert_eq!(fs::read(m.path("h")).unwrap(), b"content");
    assert_eq!(store.counters().of(Op::Delete), 2, "asked for once, and used");
    store.reset_counters();
    fs::rename(m.path("h"), m.path("f")).unwrap();
    assert_eq!(store.counters().of(Op::Delete), 1);
}

/// The right is taken away while the volume is mounted.
#[test]
fn a_right_to_delete_that_is_gone_is_noticed() {
    let store = store();
    fill(&store);
    store.foreign_put("e", "", meta(&[("hdi_isfolder", "true")]));
    let m = Mount::new(&store);
    // By a rename: the copy is taken back, as far as that is allowed.
    store.fail(Op::Delete, DENIED, 1);
    assert_eq!(errno(fs::rename(m.path("f"), m.path("h"))), libc::EACCES);
    assert!(!store.names().contains(&"h".to_owned()));
    store.fail(Op::Delete, DENIED, u64::MAX);
    nothing_goes(&store, &m);
    store.heal();
    m.end().unwrap();
    // By a deletion.
    let m = Mount::new(&store);
    store.fail(Op::Delete, DENIED, u64::MAX);
    assert_eq!(errno(fs::remove_file(m.path("g"))), libc::EACCES);
    let before = contents(&store);
    assert_eq!(errno(fs::rename(m.path("g"), m.path("i"))), libc::EACCES);
    assert_eq!(contents(&store), before);
}

/// A role may allow the deletion of some blobs only.
#[test]
fn what_nobody_has_open_is_deleted_without_a_question_of_another_name() {
    let store = store();
    fill(&store);
    let m = Mount::new(&store);
    store.fail(Op::Delete, DENIED, 1);
    assert_eq!(errno(fs::remove_file(m.path("f"))), libc::EACCES);
    store.reset_counters();
    fs::remove_file(m.path("g")).unwrap();
    assert_eq!(store.counters().of(Op::Delete), 1);
}

#[test]
fn without_the_right_to_write_no_file_is_opened_for_it() {
    let store = store();
    fill(&store);
    for op in [Op::Put, Op::Stage, Op::Commit, Op::SetMetadata, Op::Copy] {
        store.fail(op, DENIED, u64::MAX);
    }
    let m = Mount::with(&store, |config| {
        patient(config);
        config.rights.write = false;
    });
    let before = contents(&store);
    let f = m.path("f");
    for (what, ended) in [
        ("append", OpenOptions::new().append(true).open(&f).map(drop)),
        (
            "truncate",
            OpenOptions::new().write(true).truncate(true).open(&f).map(drop),
        ),
        (
            "both",
            OpenOptions::new().read(true).write(true).open(&f).map(drop),
        ),
        ("new", File::create(m.path("new")).map(drop)),
        ("cut", nix::unistd::truncate(&f, 1).map_err(std::io::Error::from)),
        ("mkdir", fs::create_dir(m.path("folder"))),
        ("link", std::os::unix::fs::symlink("f", m.path("link"))),
        ("chmod", fs::set_permissions(&f, Permissions::from_mode(0o600))),
        ("mv", fs::rename(&f, m.path("h"))),
        ("mv of a folder", fs::rename(m.path("d"), m.path("h"))),
    ] {
        assert_eq!(errno(ended), libc::EACCES, "{what}");
    }
    assert!(!m.path("new").exists());
    assert_eq!(fs::read(&f).unwrap(), b"content");
    assert_eq!(contents(&store), before);
    // What it may is not asked for.
    fs::remove_file(m.path("g")).unwrap();
    // Making files and changing them are two rights.
    store.heal();
    for op in [Op::SetMetadata, Op::Commit] {
        store.fail(op, DENIED, u64::MAX);
    }
    fs::write(m.path("new"), "new").unwrap();
    assert_eq!(store.content("new").unwrap(), &b"new"[..]);
    assert_eq!(errno(OpenOptions::new().append(true).open(&f)), libc::EACCES);
    // Given while it is mounted.
    store.heal();
    store.reset_counters();
    OpenOptions::new()
        .append(true)
        .open(&f)
        .unwrap()
        .write_all(b"+")
        .unwrap();
    assert_eq!(store.counters().of(Op::SetMetadata), 1, "asked for once");
    assert_eq!(store.content("f").unwrap(), &b"content+"[..]);
}
