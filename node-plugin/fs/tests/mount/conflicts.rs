//! Deletions, moves and attribute changes beside other writers: nothing is taken away that nobody here has
//! seen.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use crate::attributes::{get_xattr, xattr};
use crate::common::*;
use crate::renames::rename2;
use crate::{patient, store};
use blob_client::{BlobType, Metadata};
use blob_fs::store::fake::{FakeStore, Fault, Op};

fn folder() -> Metadata {
    meta(&[("hdi_isfolder", "true"), ("vsc_mode", "700")])
}

/// Somebody else removed the folder and made a file of that name, within this mount's timeouts.
#[test]
fn rmdir_does_not_delete_a_file() {
    let store = store();
    let m = Mount::with(&store, patient);
    fs::create_dir(m.path("d")).unwrap();
    assert!(m.path("d").is_dir());
    store.foreign_put("d", "theirs", Metadata::new());
    assert_eq!(errno(fs::remove_dir(m.path("d"))), libc::ENOTDIR);
    assert_eq!(store.content("d").unwrap(), "theirs".as_bytes());
}

/// Another folder of that name has come: it is as empty as the first, and goes.
#[test]
fn rmdir_looks_again() {
    let store = store();
    let m = Mount::with(&store, patient);
    fs::create_dir(m.path("d")).unwrap();
    store.foreign_put("d", "", folder());
    fs::remove_dir(m.path("d")).unwrap();
    assert!(store.names().is_empty());
}

/// Somebody else removed the file and made a folder of that name, empty or not.
#[test]
fn unlink_does_not_delete_a_folder() {
    for inside in [false, true] {
        let store = store();
        let m = Mount::with(&store, patient);
        fs::write(m.path("f"), "mine").unwrap();
        let open = inside.then(|| File::open(m.path("f")).unwrap());
        store.foreign_put("f", "", folder());
        if inside {
            store.foreign_put("f/x", "theirs", Metadata::new());
        }
        assert_eq!(errno(fs::remove_file(m.path("f"))), libc::EISDIR);
        assert_eq!(store.properties("f").unwrap().metadata, folder());
        drop(open);
    }
}

/// A newer file of that name is still what the name means.
#[test]
fn unlink_looks_again() {
    let store = store();
    let m = Mount::with(&store, patient);
    fs::write(m.path("f"), "mine").unwrap();
    store.foreign_put("f", "theirs", Metadata::new());
    fs::remove_file(m.path("f")).unwrap();
    assert!(store.names().is_empty());
}

/// Requests that were given up and are executed late, or twice, do nothing to what was made since.
#[test]
fn a_late_deletion_deletes_nothing_new() {
    for fault in [Fault::Late(1_000_000), Fault::Doubled(1_000_000)] {
        let store = store();
        let m = Mount::new(&store);
        fs::write(m.path("f"), "old").unwrap();
        fs::create_dir(m.path("d")).unwrap();
        store.fail(Op::Delete, fault, 1);
        let _ = fs::remove_file(m.path("f"));
        store.fail(Op::Delete, fault, 1);
        let _ = fs::remove_dir(m.path("d"));
        if m.path("f").exists() {
            fs::remove_file(m.path("f")).unwrap();
            fs::remove_dir(m.path("d")).unwrap();
        }
        fs::write(m.path("f"), "new").unwrap();
        fs::create_dir(m.path("d")).unwrap();
        assert_eq!(
            store.settle(),
            [(Op::Delete, false), (Op::Delete, false)],
            "{fault:?}"
        );
        assert_eq!(store.content("f").unwrap(), "new".as_bytes(), "{fault:?}");
        assert_eq!(store.names(), ["d", "f"], "{fault:?}");
    }
}

/// Likewise a copy onto a name.
#[test]
fn a_late_copy_overwrites_nothing_new() {
    for over in [false, true] {
        for fault in [Fault::Late(1_000_000), Fault::Doubled(1_000_000)] {
            let what = format!("{fault:?}, over {over}");
            let store = store();
            let m = Mount::new(&store);
            fs::write(m.path("tmp"), "one").unwrap();
            if over {
                fs::write(m.path("f"), "zero").unwrap();
            }
            store.fail(Op::Copy, fault, 1);
            let _ = fs::rename(m.path("tmp"), m.path("f"));
            fs::write(m.path("tmp"), "two").unwrap();
            let _ = fs::rename(m.path("tmp"), m.path("f"));
            fs::write(m.path("f"), "three").unwrap();
            fs::write(m.path("tmp"), "one").unwrap();
            let late = store.settle();
            assert_eq!(late.len(), 1, "{what}");
            assert_eq!(store.content("f").unwrap(), "three".as_bytes(), "{what}");
        }
    }
}

/// A directory on its way, each of whose requests comes late.
#[test]
fn late_requests_of_a_directory_rename_harm_nothing() {
    for nth in 0.. {
        let store = store();
        let m = Mount::new(&store);
        fs::create_dir(m.path("d")).unwrap();
        for i in 0..3 {
            fs::write(m.path(&format!("d/{i}")), "old").unwrap();
        }
        store.fail_after(nth, Fault::Late(1_000_000), 1);
        let first = fs::rename(m.path("d"), m.path("e"));
        let hit = store.heal();
        if first.is_err() && m.path("d").exists() {
            fs::rename(m.path("d"), m.path("e")).unwrap();
        }
        eventually("the folder is at its new name only", || {
            !m.path("d").exists() && m.path("e").exists()
        });
        fs::create_dir(m.path("d")).unwrap();
        for i in 0..3 {
            fs::write(m.path(&format!("d/{i}")), "new d").unwrap();
            fs::write(m.path(&format!("e/{i}")), "new e").unwrap();
        }
        store.settle();
        for i in 0..3 {
            for at in ["d", "e"] {
                let content = store.content(&format!("{at}/{i}"));
                assert_eq!(
                    content.unwrap(),
                    format!("new {at}").as_bytes(),
                    "request {nth}: {at}/{i}"
                );
            }
        }
        assert_eq!(names(m.root()), ["d", "e"]);
        if !hit {
            assert!(nth > 8, "only {nth} requests");
            break;
        }
    }
}

fn fill(store: &FakeStore, folder: &str, files: usize, content: &str) {
    for i in 0..files {
        store.foreign_put(&format!("{folder}/{i}"), content.to_owned(), Metadata::new());
    }
}

/// Two nodes rename two folders onto one name at once: one of them gets it.
#[test]
fn two_directories_do_not_become_one() {
    for (round, implicit) in [true, false].into_iter().cycle().take(16).enumerate() {
        let store = store();
        let (a, b) = (Mount::new(&store), Mount::new(&store));
        for folder_name in ["d1", "d2"] {
            if !implicit {
                store.foreign_put(folder_name, "", folder());
            }
            fill(&store, folder_name, 5, folder_name);
        }
        store.set_delay(Duration::from_millis(1 + round as u64 % 3));
        let barrier = Barrier::new(2);
        let (one, two) = std::thread::scope(|scope| {
            let go = |m: &Mount, from: &str| {
                let (from, to) = (m.path(from), m.path("t"));
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    fs::rename(from, to)
                })
            };
            let (one, two) = (go(&a, "d1"), go(&b, "d2"));
            (one.join().unwrap(), two.join().unwrap())
        });
        store.set_delay(Duration::ZERO);
        let mut contents: Vec<_> = store
            .names()
            .iter()
            .filter(|name| name.contains('/'))
            .map(|name| String::from_utf8(store.content(name).unwrap().to_vec()).unwrap())
            .collect();
        contents.sort();
        let both: Vec<_> = ["d1"; 5].into_iter().chain(["d2"; 5]).collect();
        assert_eq!(contents, both, "round {round}: {one:?} {two:?}");
        let moved = usize::from(one.is_ok()) + usize::from(two.is_ok());
        assert!(moved <= 1, "round {round}: both were told yes");
        for error in [one, two].into_iter().filter_map(Result::err) {
            let errno = error.raw_os_error().unwrap();
            assert!(
                [libc::ENOTEMPTY, libc::EEXIST].contains(&errno),
                "round {round}: {error}"
            );
        }
    }
}

/// The name was free when this mount looked: what is there now stays.
#[test]
fn a_directory_rename_claims_its_target() {
    for noreplace in [false, true] {
        let store = store();
        let m = Mount::with(&store, patient);
        fs::create_dir(m.path("d")).unwrap();
        fs::write(m.path("d/x"), "mine").unwrap();
        let rename = |to: &str| match noreplace {
            true => rename2(&m.path("d"), &m.path(to), libc::RENAME_NOREPLACE),
            false => fs::rename(m.path("d"), m.path(to)),
        };
        // A file.
        assert!(!m.path("t").exists());
        store.foreign_put("t", "theirs", Metadata::new());
        let expected = if noreplace { libc::EEXIST } else { libc::ENOTDIR };
        assert_eq!(errno(rename("t")), expected);
        assert_eq!(store.content("t").unwrap(), "theirs".as_bytes());
        // A folder with something in it, with a marker or without.
        let expected = if noreplace { libc::EEXIST } else { libc::ENOTEMPTY };
        for marker in [true, false] {
            let name = format!("u{marker}");
            assert!(!m.path(&name).exists());
            if marker {
                store.foreign_put(&name, "", folder());
            }
            store.foreign_put(&format!("{name}/x"), "theirs", Metadata::new());
            assert_eq!(errno(rename(&name)), expected, "marker {marker}");
            assert_eq!(store.content(&format!("{name}/x")).unwrap(), "theirs".as_bytes());
            assert_eq!(store.properties(&name).is_some(), marker);
        }
        assert_eq!(store.content("d/x").unwrap(), "mine".as_bytes());
    }
}

/// A rename that fails deletes its own copies, in the versions that it made, and nothing else.
#[test]
fn taking_back_takes_only_what_was_made() {
    let store = store();
    let m = Mount::with(&store, patient);
    fs::create_dir(m.path("d")).unwrap();
    fs::write(m.path("d/a"), "mine").unwrap();
    fs::write(m.path("d/b"), "mine").unwrap();
    assert!(!m.path("t").exists());
    store.hold_answers(Op::Copy);
    let (from, to) = (m.path("d"), m.path("t"));
    let rename = std::thread::spawn(move || fs::rename(from, to));
    // The marker is there.
    futures::executor::block_on(store.wait_for(1));
    store.foreign_put("t/a", "theirs", Metadata::new());
    store.fail(Op::Copy, Fault::Status(500, "InternalError"), 2);
    store.give_answers();
    assert_eq!(errno(rename.join().unwrap()), libc::EIO);
    store.heal();
    assert_eq!(store.content("t/a").unwrap(), "theirs".as_bytes());
    assert_eq!(store.content("d/a").unwrap(), "mine".as_bytes());
    assert_eq!(store.names(), ["d", "d/a", "d/b", "t/a"]);
}

/// A file of the folder is changed or deleted by somebody else while the folder is on its way: it goes along
/// as it is then.
#[test]
fn what_changes_during_a_directory_rename_goes_along() {
    for deleted in [false, true] {
        let store = store();
        let m = Mount::with(&store, patient);
        fs::create_dir(m.path("d")).unwrap();
        fs::write(m.path("d/a"), "before").unwrap();
        fs::write(m.path("d/b"), "stays").unwrap();
        store.hold_answers(Op::Copy);
        let (from, to) = (m.path("d"), m.path("t"));
        let rename = std::thread::spawn(move || fs::rename(from, to));
        futures::executor::block_on(store.wait_for(1));
        match deleted {
            true => assert!(store.foreign_delete("d/a")),
            false => drop(store.foreign_put("d/a", "after", Metadata::new())),
        }
        store.give_answers();
        rename.join().unwrap().unwrap();
        let expected: &[&str] = if deleted {
            &["t", "t/b"]
        } else {
            &["t", "t/a", "t/b"]
        };
        assert_eq!(store.names(), expected);
        if !deleted {
            assert_eq!(fs::read(m.path("t/a")).unwrap(), b"after");
        }
    }
}

/// A rename that was cut off is taken up again only over what it has put there itself. What somebody else
/// wrote at the new name stays, and so does what is at the old one, whatever times anybody's clock gave them.
#[test]
fn a_resumed_rename_goes_by_versions() {
    for keep_metadata in [false, true] {
        let store = store();
        let m = Mount::new(&store);
        fs::create_dir(m.path("d")).unwrap();
        for name in ["d/f", "d/g"] {
            fs::write(m.path(name), "first").unwrap();
        }
        store.fail(Op::Delete, Fault::Status(500, "InternalError"), 1000);
        assert_eq!(errno(fs::rename(m.path("d"), m.path("e"))), libc::EIO);
        store.heal();
        let metadata = match keep_metadata {
            true => store.properties("e/f").unwrap().metadata,
            // As `cp -p` leaves it.
            false => meta(&[("vsc_mtime", "1704067200.000000000")]),
        };
        store.foreign_put("e/f", "theirs, at the new name", metadata);
        // The other way round: newer at the old name, with an old date.
        store.foreign_put(
            "d/g",
            "theirs, at the old name",
            meta(&[("vsc_mtime", "1.000000000")]),
        );
        drop(m);
        let m = Mount::new(&store);
        assert_eq!(errno(fs::rename(m.path("d"), m.path("e"))), libc::ENOTEMPTY);
        for (name, content) in [
            ("d/f", "first"),
            ("e/f", "theirs, at the new name"),
            ("d/g", "theirs, at the old name"),
        ] {
            assert_eq!(store.content(name).unwrap(), content.as_bytes(), "{name}");
        }
        fs::remove_file(m.path("d/f")).unwrap();
        fs::rename(m.path("d"), m.path("e")).unwrap();
        assert_eq!(
            store.content("e/f").unwrap(),
            "theirs, at the new name".as_bytes()
        );
        assert_eq!(
            store.content("e/g").unwrap(),
            "theirs, at the old name".as_bytes()
        );
        assert_eq!(store.names(), ["e", "e/f", "e/g"]);
    }
}

/// Over a file that somebody else has replaced meanwhile, and over one that has become a folder.
#[test]
fn a_file_rename_looks_again_at_its_target() {
    let store = store();
    let m = Mount::with(&store, patient);
    for name in ["tmp", "f", "g"] {
        fs::write(m.path(name), name).unwrap();
    }
    store.foreign_put("f", "theirs", Metadata::new());
    fs::rename(m.path("tmp"), m.path("f")).unwrap();
    assert_eq!(store.content("f").unwrap(), "tmp".as_bytes());
    store.foreign_put("g", "", folder());
    assert_eq!(errno(fs::rename(m.path("f"), m.path("g"))), libc::EISDIR);
    assert_eq!(store.properties("g").unwrap().metadata, folder());
    // A name that was free.
    assert!(!m.path("h").exists());
    store.foreign_put("h", "", folder());
    assert_eq!(errno(fs::rename(m.path("f"), m.path("h"))), libc::EISDIR);
    assert_eq!(store.properties("h").unwrap().metadata, folder());
    assert!(!m.path("i").exists());
    store.foreign_put("i", "theirs", Metadata::new());
    fs::rename(m.path("f"), m.path("i")).unwrap();
    assert_eq!(store.content("i").unwrap(), "tmp".as_bytes());
}

/// Blobs of other types can be replaced, as `sed -i` and `rsync` do.
#[test]
fn page_and_append_blobs_can_be_replaced() {
    for kind in [BlobType::Append, BlobType::Page] {
        for known in [true, false] {
            let store = store();
            let m = Mount::with(&store, patient);
            store.foreign_put("final", "old", Metadata::new());
            if known {
                store.set_blob_type("final", kind);
                assert!(m.path("final").exists());
            } else {
                assert!(m.path("final").exists());
                store.foreign_put("final", "old", Metadata::new());
                store.set_blob_type("final", kind);
            }
            fs::write(m.path("tmp"), "new").unwrap();
            fs::rename(m.path("tmp"), m.path("final")).unwrap();
            assert_eq!(store.names(), ["final"]);
            assert_eq!(store.content("final").unwrap(), "new".as_bytes());
            assert_eq!(store.properties("final").unwrap().blob_type, BlobType::Block);
            fs::write(m.path("final"), "newer").unwrap();
        }
    }
}

/// A link that somebody replaced by a file has no target.
#[test]
fn readlink_looks_at_the_kind() {
    let store = store();
    let m = Mount::with(&store, patient);
    store.foreign_put("l", "target", meta(&[("is_symlink", "true")]));
    assert!(fs::symlink_metadata(m.path("l")).unwrap().is_symlink());
    store.foreign_put("l", "a small file", Metadata::new());
    assert_eq!(errno(fs::read_link(m.path("l"))), libc::EINVAL);
    eventually("it is a file", || {
        fs::read(m.path("l")).is_ok_and(|c| c == b"a small file")
    });
}

/// A change of attributes that changes nothing writes nothing, and asks once at most; and a folder without a
/// marker gets none by it.
#[test]
fn a_setattr_that_changes_nothing_writes_nothing() {
    let store = store();
    // Nothing is asked for only because time has passed.
    let m = Mount::with(&store, |config| {
        patient(config);
        (config.uid, config.gid) = (0, 0);
    });
    fs::write(m.path("f"), "x").unwrap();
    fs::set_permissions(m.path("f"), Permissions::from_mode(0o640)).unwrap();
    fs::create_dir(m.path("d")).unwrap();
    store.foreign_put("implicit/x", "x", Metadata::new());
    for name in ["f", "d", "implicit/x", ""] {
        xattr(&m.path(name), "user.color", b"blue").unwrap();
    }
    for name in ["f", "d", "implicit", "implicit/x", ""] {
        let path = m.path(name);
        let before = fs::metadata(&path).unwrap();
        let etags: Vec<_> = store
            .names()
            .iter()
            .map(|n| store.properties(n).unwrap().etag)
            .collect();
        let opened = File::open(&path).unwrap();
        let quiet = |what: &str, change: &dyn Fn() -> std::io::Result<()>| {
            store.reset_counters();
            change().unwrap();
            let counters = store.counters();
            for op in [
                Op::Put,
                Op::SetMetadata,
                Op::SetContainerMetadata,
                Op::Copy,
                Op::Commit,
            ] {
                assert_eq!(counters.of(op), 0, "{name:?}: {what}: {op:?}");
            }
            // A folder is asked for by listings: of what it is in, and by its name.
            let most = if before.is_dir() { 2 } else { 1 };
            assert!(
                counters.of(Op::Head) <= 1 && counters.total() <= most,
                "{name:?}: {what}: {counters:?}"
            );
        };
        quiet("chmod", &|| {
            fs::set_permissions(&path, Permissions::from_mode(before.mode() & 0o7777))
        });
        quiet("chown", &|| lchown(&path, Some(before.uid()), Some(before.gid())));
        // No time of the root is stored yet, whose entries this mount has made.
        if !name.is_empty() {
            quiet("utimens", &|| opened.set_modified(before.modified()?));
        }
        if name != "implicit" {
            quiet("setxattr", &|| xattr(&path, "user.color", b"blue"));
        }
        drop(opened);
        let now: Vec<_> = store
            .names()
            .iter()
            .map(|n| store.properties(n).unwrap().etag)
            .collect();
        assert_eq!(now, etags, "{name:?}");
        assert_eq!(fs::metadata(&path).unwrap().mode(), before.mode());
    }
    assert_eq!(store.names(), ["d", "f", "implicit/x"]);
    // What another mount changed meanwhile is no reason to believe that nothing changes.
    store.foreign_put("f", "x", meta(&[("vsc_mode", "777")]));
    fs::set_permissions(m.path("f"), Permissions::from_mode(0o640)).unwrap();
    assert_eq!(store.properties("f").unwrap().metadata["vsc_mode"], "640");
    xattr(&m.path("f"), "user.color", b"blue").unwrap();
    store.foreign_put("f", "x", Metadata::new());
    xattr(&m.path("f"), "user.color", b"blue").unwrap();
    assert_eq!(get_xattr(&m.path("f"), "user.color").unwrap(), b"blue");
    assert!(!store.properties("f").unwrap().metadata.is_empty());
}

/// The last file of a folder without a marker goes: no marker comes.
#[test]
fn no_marker_appears_where_none_was() {
    let store = store();
    let m = Mount::new(&store);
    store.foreign_put("d/f", "x", Metadata::new());
    store.foreign_put("e/f", "x", Metadata::new());
    store.foreign_put("g/h/f", "x", Metadata::new());
    store.reset_counters();
    fs::remove_file(m.path("d/f")).unwrap();
    assert!(store.counters().of(Op::Put) == 0);
    fs::rename(m.path("e/f"), m.path("f")).unwrap();
    assert_eq!(store.names(), ["f", "g/h/f"]);
    fs::rename(m.path("g/h"), m.path("h")).unwrap();
    assert_eq!(store.names(), ["f", "h/f"]);
    // Here they stay until they are removed.
    outlive_timeouts();
    assert_eq!(names(m.root()), ["d", "e", "f", "g", "h"]);
    assert!(names(&m.path("d")).is_empty());
    fs::write(m.path("e/new"), "x").unwrap();
    fs::remove_dir(m.path("d")).unwrap();
    fs::remove_dir_all(m.path("g")).unwrap();
    outlive_timeouts();
    assert_eq!(names(m.root()), ["e", "f", "h"]);
    assert_eq!(store.names(), ["e/new", "f", "h/f"]);
    // A rename that is refused makes none.
    let long = format!("k/{}", vec!["x".repeat(200); 5].join("/"));
    store.foreign_put(&long, "x", Metadata::new());
    outlive_timeouts();
    let longer = m.path(&"y".repeat(100));
    assert_eq!(errno(fs::rename(m.path("k"), longer)), libc::ENAMETOOLONG);
    assert_eq!(store.names(), ["e/new", "f", "h/f", &long]);
    store.foreign_delete(&long);
    // Nobody else sees an empty one.
    fs::remove_file(m.path("e/new")).unwrap();
    let other = Mount::new(&store);
    assert_eq!(names(other.root()), ["f", "h"]);
}

/// Metadata of others at the service's limit does not keep the content from being edited, and stays.
#[test]
fn full_metadata_does_not_block_an_edit() {
    let store = store();
    let m = Mount::new(&store);
    let full = meta(&[("owner", &"x".repeat(8192 - 5))]);
    store.foreign_put("f", "one", full.clone());
    store.foreign_put("dir/f", "one", full.clone());
    let mut f = OpenOptions::new().append(true).open(m.path("f")).unwrap();
    f.write_all(b" two").unwrap();
    f.sync_all().unwrap();
    drop(f);
    assert_eq!(store.content("f").unwrap(), "one two".as_bytes());
    assert_eq!(store.properties("f").unwrap().metadata, full);
    assert_eq!(
        errno(fs::set_permissions(m.path("f"), Permissions::from_mode(0o600))),
        libc::ENOSPC
    );
    fs::rename(m.path("f"), m.path("g")).unwrap();
    assert_eq!(store.properties("g").unwrap().metadata, full);
    fs::rename(m.path("dir"), m.path("moved")).unwrap();
    assert_eq!(store.properties("moved/f").unwrap().metadata, full);
    fs::write(m.path("g"), "new").unwrap();
    assert_eq!(store.properties("g").unwrap().metadata, full);
}

/// Two readers of one large folder at once: a private folder in it is private in each moment.
#[test]
fn two_readers_never_loosen_a_mode() {
    // Both items of the name on the second page; and one on each.
    for between in ["a", "d-"] {
        two_readers(between);
    }
}

fn two_readers(between: &str) {
    let store = store();
    store.foreign_put("big/d", "", folder());
    store.foreign_put("big/d/inside", "x", Metadata::new());
    for i in 0..6000 {
        store.foreign_put(&format!("big/{between}{i:05}"), "x", Metadata::new());
    }
    let m = Arc::new(Mount::with(&store, |config| {
        config.attr_timeout = Duration::ZERO;
        config.entry_timeout = Duration::ZERO;
        config.dir_mode = 0o777;
    }));
    let mode = || fs::metadata(m.path("big/d")).unwrap().mode() & 0o7777;
    assert_eq!(mode(), 0o700);
    // Each reader has had the first page; the second page is asked for by the one that began first, last.
    let mut readers = [
        fs::read_dir(m.path("big")).unwrap(),
        fs::read_dir(m.path("big")).unwrap(),
    ];
    for reader in &mut readers {
        reader.next().unwrap().unwrap();
    }
    for reader in readers.iter_mut().rev() {
        let rest = reader
            .by_ref()
            .map(|e| e.unwrap())
            .filter(|e| e.file_name() == "d")
            .count();
        assert!(rest <= 1);
        let known = fs::symlink_metadata(m.path("big/d")).unwrap().mode() & 0o7777;
        assert_eq!(known, 0o700);
    }
    let reader = |m: Arc<Mount>| move || fs::read_dir(m.path("big")).unwrap().count();
    for _ in 0..3 {
        let both = [reader(Arc::clone(&m)), reader(Arc::clone(&m))].map(std::thread::spawn);
        while !both.iter().all(|r| r.is_finished()) {
            assert_eq!(mode(), 0o700);
        }
        for r in both {
            assert_eq!(r.join().unwrap(), 6001);
        }
    }
}

/// The service counts UTF-16 units: what is too long for it is refused when it is made.
#[test]
fn long_names_of_emoji_are_refused_at_once() {
    let store = store();
    let m = Mount::new(&store);
    let part = "\u{1F600}".repeat(60);
    let mut path = m.root().to_owned();
    for _ in 0..8 {
        path.push(&part);
        fs::create_dir(&path).unwrap();
    }
    let too_long = path.join(&part);
    assert_eq!(errno(File::create(&too_long)), libc::ENAMETOOLONG);
    assert_eq!(errno(fs::create_dir(&too_long)), libc::ENAMETOOLONG);
    assert_eq!(
        errno(std::os::unix::fs::symlink("x", &too_long)),
        libc::ENAMETOOLONG
    );
    fs::write(m.path("f"), "x").unwrap();
    assert_eq!(errno(fs::rename(m.path("f"), &too_long)), libc::ENAMETOOLONG);
    fs::write(path.join("ok"), "x").unwrap();
}

/// Nobody knows whether its marker was overwritten; the empty folder is what it was, and the rename can be
/// done again.
#[test]
fn an_empty_folder_outlives_a_rename_over_it_that_fails() {
    for fault in [
        Fault::AnswerLost,
        Fault::Lost,
        Fault::Status(500, "InternalError"),
        Fault::Executed(500, "InternalError"),
    ] {
        let store = store();
        let m = Mount::new(&store);
        fs::create_dir(m.path("d")).unwrap();
        fs::write(m.path("d/f"), "x").unwrap();
        fs::create_dir(m.path("e")).unwrap();
        fs::set_permissions(m.path("e"), Permissions::from_mode(0o700)).unwrap();
        store.fail(Op::Copy, fault, 1);
        assert_eq!(
            errno(fs::rename(m.path("d"), m.path("e"))),
            libc::EIO,
            "{fault:?}"
        );
        store.heal();
        assert_eq!(store.names(), ["d", "d/f", "e"], "{fault:?}");
        let marker = store.properties("e").unwrap().metadata;
        assert_eq!(marker["vsc_mode"], "700", "{fault:?}");
        fs::rename(m.path("d"), m.path("e")).unwrap();
        assert_eq!(store.names(), ["e", "e/f"], "{fault:?}");
    }
}

/// Its mode was changed elsewhere, and goes with it: what this mount knows of it is not taken for that.
#[test]
fn a_folder_keeps_the_mode_that_others_gave_it_and_takes_the_next() {
    let store = store();
    let m = Mount::with(&store, patient);
    fs::create_dir(m.path("d")).unwrap();
    fs::write(m.path("d/f"), "x").unwrap();
    fs::set_permissions(m.path("d"), Permissions::from_mode(0o700)).unwrap();
    let mut theirs = store.properties("d").unwrap().metadata;
    theirs.insert("vsc_mode".into(), "750".into());
    store.foreign_metadata("d", &theirs).unwrap();
    fs::rename(m.path("d"), m.path("e")).unwrap();
    assert_eq!(store.properties("e").unwrap().metadata["vsc_mode"], "750");
    fs::set_permissions(m.path("e"), Permissions::from_mode(0o700)).unwrap();
    assert_eq!(store.properties("e").unwrap().metadata["vsc_mode"], "700");
}

/// A folder that is copied to its new name, and is at its old one as well.
fn half_moved(store: &Arc<FakeStore>, m: &Mount) {
    fs::create_dir(m.path("d")).unwrap();
    fs::write(m.path("d/f"), "first").unwrap();
    assert_eq!(fs::read(m.path("d/f")).unwrap(), b"first");
    store.fail(Op::Delete, Fault::Status(500, "InternalError"), 1000);
    assert_eq!(errno(fs::rename(m.path("d"), m.path("e"))), libc::EIO);
    store.heal();
}

/// The old name was changed last, in its attributes only: that says nothing about content.
#[test]
fn a_resumed_rename_does_not_go_by_the_clock() {
    for theirs in ["theirs, at the new name", "THEIR"] {
        let store = store();
        let m = Mount::new(&store);
        half_moved(&store, &m);
        store.foreign_put("e/f", theirs, Metadata::new());
        // chmod d/f on another node.
        let mut chmod = store.properties("d/f").unwrap().metadata;
        chmod.insert("vsc_mode".into(), "600".into());
        store.foreign_metadata("d/f", &chmod).unwrap();
        drop(m);
        let m = Mount::new(&store);
        assert_eq!(errno(fs::rename(m.path("d"), m.path("e"))), libc::ENOTEMPTY);
        assert_eq!(store.content("e/f").unwrap(), theirs.as_bytes());
        assert_eq!(store.content("d/f").unwrap(), "first".as_bytes());
    }
}

/// Where nobody has written at the new name, attributes that were changed last stay, at either name.
#[test]
fn a_resumed_rename_keeps_the_last_attributes() {
    for changed in ["d/f", "e/f"] {
        let store = store();
        let m = Mount::new(&store);
        half_moved(&store, &m);
        let mut chmod = store.properties(changed).unwrap().metadata;
        chmod.insert("vsc_mode".into(), "600".into());
        store.foreign_metadata(changed, &chmod).unwrap();
        drop(m);
        let m = Mount::new(&store);
        fs::rename(m.path("d"), m.path("e")).unwrap();
        assert_eq!(store.names(), ["e", "e/f"], "{changed}");
        assert_eq!(
            fs::metadata(m.path("e/f")).unwrap().mode() & 0o777,
            0o600,
            "{changed}"
        );
        assert_eq!(fs::read(m.path("e/f")).unwrap(), b"first");
    }
}

/// Another content of the same length and with the same metadata is another content.
#[test]
fn a_resumed_rename_does_not_go_by_length() {
    let store = store();
    let m = Mount::new(&store);
    half_moved(&store, &m);
    let metadata = store.properties("e/f").unwrap().metadata;
    assert_eq!(fs::read(m.path("d/f")).unwrap(), b"first");
    store.foreign_put("e/f", "THEIR", metadata);
    assert_eq!(errno(fs::rename(m.path("d"), m.path("e"))), libc::ENOTEMPTY);
    assert_eq!(store.content("d/f").unwrap(), "first".as_bytes());
    assert_eq!(fs::read(m.path("e/f")).unwrap(), b"THEIR");
    let mut f = OpenOptions::new().append(true).open(m.path("e/f")).unwrap();
    f.write_all(b"+").unwrap();
    f.sync_all().unwrap();
    assert_eq!(store.content("e/f").unwrap(), "THEIR+".as_bytes());
}

/// Somebody else changed other attributes of it: that is no reason to refuse.
#[test]
fn attributes_of_an_open_file_go_on_top_of_those_of_others() {
    for writes in [false, true] {
        let store = store();
        let m = Mount::with(&store, patient);
        fs::write(m.path("f"), "x").unwrap();
        let f = OpenOptions::new()
            .read(true)
            .write(writes)
            .open(m.path("f"))
            .unwrap();
        let ino = f.metadata().unwrap().ino();
        let mut theirs = store.properties("f").unwrap().metadata;
        theirs.insert("vsc_uid".into(), "7".into());
        store.foreign_metadata("f", &theirs).unwrap();
        f.set_permissions(Permissions::from_mode(0o604)).unwrap();
        let stored = store.properties("f").unwrap().metadata;
        assert_eq!(stored["vsc_uid"], "7", "writes {writes}");
        assert!(stored["vsc_mode"].ends_with("604"), "writes {writes}: {stored:?}");
        let now = fs::metadata(m.path("f")).unwrap();
        assert_eq!((now.ino(), now.mode() & 0o777), (ino, 0o604), "writes {writes}");
    }
}

/// Another content is: who has the file open has another version than the one whose attributes would change.
#[test]
fn attributes_of_another_content_are_not_changed_through_an_open_file() {
    let store = store();
    let m = Mount::with(&store, patient);
    fs::write(m.path("f"), "x").unwrap();
    let f = File::open(m.path("f")).unwrap();
    store.foreign_put("f", "another", meta(&[("vsc_mode", "640")]));
    assert_eq!(
        errno(f.set_permissions(Permissions::from_mode(0o604))),
        libc::ESTALE
    );
    assert_eq!(store.properties("f").unwrap().metadata["vsc_mode"], "640");
}

/// The service takes no condition on a container's metadata.
#[test]
fn mounts_that_change_the_root_at_once_lose_nothing() {
    let store = store();
    let (a, b) = (Mount::new(&store), Mount::new(&store));
    // So long that both have read before either has written.
    store.set_delay(Duration::from_millis(5));
    for round in 0..8 {
        let barrier = std::sync::Barrier::new(2);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                barrier.wait();
                fs::set_permissions(a.root(), Permissions::from_mode(0o700 + round)).unwrap();
            });
            threads.spawn(|| {
                barrier.wait();
                std::os::unix::fs::lchown(b.root(), Some(100 + round), None).unwrap();
            });
        });
        let now = fs::metadata(Mount::new(&store).root()).unwrap();
        assert_eq!((now.mode() & 0o777, now.uid()), (0o700 + round, 100 + round));
    }
    store.set_delay(Duration::ZERO);
}
