//! Names and listings: what is shown, and how few requests it costs.

use std::collections::BTreeSet;
use std::fs::{self, DirEntry, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use crate::common::*;
use crate::{patient, store};
use blob_client::Metadata;
use blob_fs::store::fake::{FakeStore, Op};

#[test]
fn a_listing_is_one_request_per_page_and_no_head() {
    let store = folder_of(12_000);
    let m = Mount::with(&store, patient);
    fs::metadata(m.path("d")).unwrap();
    store.reset_counters();
    let entries: Vec<_> = fs::read_dir(m.path("d")).unwrap().map(|e| e.unwrap()).collect();
    assert_eq!(entries.len(), 12_000);
    for entry in &entries {
        let meta = entry.metadata().unwrap();
        assert_eq!((meta.len(), meta.mode() & 0o7777), (1, 0o600));
    }
    let counters = store.counters();
    assert_eq!((counters.of(Op::List), counters.total()), (3, 3), "{counters:?}");
}

/// More than a volume remembers. Each name is shown once all the same, and is there.
#[test]
#[ignore = "100,000 entries"]
fn a_listing_of_a_hundred_thousand_is_one_request_per_page() {
    let store = folder_of(100_000);
    let m = Mount::with(&store, patient);
    fs::metadata(m.path("d")).unwrap();
    store.reset_counters();
    let entries: Vec<_> = fs::read_dir(m.path("d")).unwrap().map(|e| e.unwrap()).collect();
    let counters = store.counters();
    assert_eq!(
        (counters.of(Op::List), counters.total()),
        (20, 20),
        "{counters:?}"
    );
    let names: BTreeSet<_> = entries.iter().map(DirEntry::file_name).collect();
    assert_eq!((entries.len(), names.len()), (100_000, 100_000));
    for entry in entries.iter().step_by(1_000) {
        let meta = entry.metadata().unwrap();
        assert_eq!((meta.len(), meta.mode() & 0o7777), (1, 0o600));
    }
}

/// A store with so many files in folder d.
fn folder_of(files: usize) -> Arc<FakeStore> {
    let store = store();
    for i in 0..files {
        store.foreign_put(&format!("d/f{i}"), "x", meta(&[("vsc_mode", "600")]));
    }
    store
}

#[test]
fn a_storm_of_lookups_becomes_one_listing() {
    let store = store();
    for i in 0..500 {
        store.foreign_put(&format!("d/f{i}"), "x", Metadata::new());
    }
    let m = Mount::with(&store, patient);
    fs::metadata(m.path("d")).unwrap();
    store.reset_counters();
    for i in 0..1000 {
        assert_eq!(m.path(&format!("d/f{i}")).exists(), i < 500);
    }
    let counters = store.counters();
    assert!(counters.total() <= 4, "{counters:?}");
}

/// The price of strictness: a name that is not there costs one request each time, names that are there no
/// more than before.
#[test]
fn absence_that_is_not_believed_costs_one_request_each_time() {
    let store = store();
    for i in 0..500 {
        store.foreign_put(&format!("d/f{i}"), "x", Metadata::new());
    }
    let m = Mount::with(&store, |config| {
        patient(config);
        config.negative_timeout = Duration::ZERO;
    });
    fs::metadata(m.path("d")).unwrap();
    store.reset_counters();
    for i in 0..500 {
        assert!(m.path(&format!("d/f{i}")).exists());
    }
    let present = store.counters();
    assert!(present.total() <= 4, "{present:?}");
    for i in 500..600 {
        assert!(!m.path(&format!("d/f{i}")).exists());
        assert!(!m.path(&format!("d/f{i}")).exists());
    }
    let counters = store.counters();
    assert_eq!(counters.total() - present.total(), 200, "{counters:?}");
    // A new file: the question before its creation, and its Put.
    store.reset_counters();
    for i in 500..520 {
        fs::write(m.path(&format!("d/f{i}")), "new").unwrap();
    }
    let counters = store.counters();
    assert_eq!(
        (counters.of(Op::List), counters.of(Op::Put), counters.total()),
        (20, 20, 40),
        "{counters:?}"
    );
}

#[test]
fn inode_numbers_are_the_same_everywhere() {
    let store = store();
    store.foreign_put("d/a", "x", Metadata::new());
    store.foreign_put("d/b/c", "x", Metadata::new());
    let m = Mount::new(&store);
    assert_eq!(m.root().metadata().unwrap().ino(), 1);
    let mut seen = 0;
    for entry in fs::read_dir(m.path("d")).unwrap() {
        let entry = entry.unwrap();
        use std::os::unix::fs::DirEntryExt;
        assert_eq!(entry.ino(), fs::symlink_metadata(entry.path()).unwrap().ino());
        seen += 1;
    }
    assert_eq!(seen, 2);
    let before = fs::metadata(m.path("d/a")).unwrap().ino();
    fs::rename(m.path("d/a"), m.path("z")).unwrap();
    assert_eq!(fs::metadata(m.path("z")).unwrap().ino(), before);
}

#[test]
fn directories() {
    let store = store();
    let m = Mount::new(&store);
    fs::create_dir(m.path("d")).unwrap();
    assert_eq!(
        store
            .properties("d")
            .unwrap()
            .metadata
            .get("hdi_isfolder")
            .unwrap(),
        "true"
    );
    assert_eq!(errno(fs::create_dir(m.path("d"))), libc::EEXIST);
    fs::write(m.path("d/f"), b"x").unwrap();
    assert_eq!(errno(fs::remove_dir(m.path("d"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::remove_file(m.path("d"))), libc::EISDIR);
    assert_eq!(errno(fs::remove_dir(m.path("d/f"))), libc::ENOTDIR);
    fs::remove_file(m.path("d/f")).unwrap();
    fs::remove_dir(m.path("d")).unwrap();
    assert!(store.names().is_empty());
    assert_eq!(errno(fs::metadata(m.path("d"))), libc::ENOENT);
}

/// A listing that is quicker than the answer to mkdir shows what it made.
#[test]
fn a_folder_that_a_listing_shows_before_its_mkdir_returns_is_its_own() {
    let store = store();
    for i in 0..10 {
        store.foreign_put(&format!("f{i}"), "x", Metadata::new());
    }
    let m = Mount::new(&store);
    let look = || {
        for i in 0..10 {
            fs::metadata(m.path(&format!("f{i}"))).unwrap();
        }
    };
    look();
    outlive_timeouts();
    store.hold_answers(Op::Put);
    let path = m.path("d");
    let mkdir = std::thread::spawn(move || fs::create_dir(path));
    resources().runtime.block_on(store.wait_for(1));
    // Of names that the kernel holds, it asks although the directory is locked; enough of them are asked for
    // by a listing.
    let lists = store.counters().of(Op::List);
    look();
    assert_eq!(store.counters().of(Op::List), lists + 1);
    store.give_answers();
    mkdir.join().unwrap().unwrap();
    assert!(fs::metadata(m.path("d")).unwrap().is_dir());
    assert_eq!(names(m.root()).len(), 11);
}

/// For the mount that took the last entry away; nobody else is shown a folder that nothing in the container
/// makes one.
#[test]
fn implicit_directories_stay_when_their_last_entry_goes() {
    let store = store();
    store.foreign_put("a/b/f", "x", Metadata::new());
    store.foreign_put("c/f", "x", Metadata::new());
    let m = Mount::new(&store);
    fs::remove_file(m.path("a/b/f")).unwrap();
    assert!(fs::metadata(m.path("a/b")).unwrap().is_dir());
    fs::rename(m.path("c/f"), m.path("f")).unwrap();
    assert!(names(&m.path("c")).is_empty());
    outlive_timeouts();
    assert_eq!(names(m.root()), ["a", "c", "f"]);
    assert_eq!(names(&m.path("a")), ["b"]);
    fs::remove_dir(m.path("a/b")).unwrap();
    fs::remove_dir(m.path("a")).unwrap();
    assert_eq!(names(m.root()), ["c", "f"]);
    assert_eq!(store.names(), ["f"], "no marker was written");
    m.end().unwrap();
    let m = Mount::new(&store);
    assert_eq!(names(m.root()), ["f"]);
}

#[test]
fn names_of_others_never_break_a_listing() {
    let store = store();
    let odd = [
        "/lead",
        "a//b",
        "a/./b",
        "a/../b",
        "ctl\u{1}x",
        "back\\slash",
        "dot.",
        "%2F",
        "a+b",
        "sp ace",
        "ümlaut",
        "q'\"<>&",
        "slash/",
        "marked/",
        "d/sub/",
        "both",
        "both/in",
    ];
    for name in odd {
        let content: &'static str = if name.ends_with('/') { "" } else { "x" };
        store.foreign_put(name, content, Metadata::new());
    }
    store.foreign_put(&format!("long/{}", "x".repeat(300)), "x", Metadata::new());
    store.foreign_put(".vsc-blob-hidden.1", "x", Metadata::new());
    let m = Mount::new(&store);
    assert_eq!(
        names(m.root()),
        [
            "%2F", "a", "a+b", "both", "d", "long", "marked", "q'\"<>&", "slash", "sp ace", "ümlaut"
        ]
    );
    for name in ["%2F", "a+b", "sp ace", "ümlaut", "q'\"<>&", "both/in"] {
        assert_eq!(fs::read(m.path(name)).unwrap(), b"x", "{name}");
    }
    for empty in ["a", "long", "slash", "d/sub"] {
        assert!(names(&m.path(empty)).is_empty(), "{empty}");
    }
    assert_eq!(names(&m.path("d")), ["sub"]);
    // What is hidden is not deleted.
    assert_eq!(errno(fs::remove_dir(m.path("a"))), libc::ENOTEMPTY);
    fs::remove_dir(m.path("slash")).unwrap();
    assert!(!store.names().contains(&"slash/".to_owned()));
    fs::remove_dir(m.path("d/sub")).unwrap();
    assert!(fs::metadata(m.path("d")).unwrap().is_dir());
    assert_eq!(errno(fs::write(m.path(".vsc-blob-hidden.1"), "")), libc::EPERM);
    assert_eq!(errno(fs::read(m.path(".vsc-blob-hidden.1"))), libc::ENOENT);
}

#[test]
fn siblings_that_sort_between_a_name_and_its_children_hide_nothing() {
    let store = store();
    for i in 0..40 {
        store.foreign_put(&format!("name-{i}"), "x", Metadata::new());
    }
    store.foreign_put("name/child", "x", Metadata::new());
    let m = Mount::new(&store);
    assert!(fs::metadata(m.path("name")).unwrap().is_dir());
    assert_eq!(errno(fs::metadata(m.path("name-"))), libc::ENOENT);
    assert!(fs::metadata(m.path("name-1")).unwrap().is_file());
}

#[test]
fn odd_names_of_ours_survive_a_remount() {
    let store = store();
    let m = Mount::new(&store);
    let odd = [
        "a\\b",
        "dot.",
        "...",
        "new\nline",
        "tab\tx",
        "\u{7f}",
        "‛quoted",
        "．",
        "日本語",
        " ",
        "-rf",
        "%41",
    ];
    for name in odd {
        fs::write(m.path(name), name).unwrap();
    }
    fs::create_dir(m.path("d.")).unwrap();
    fs::write(m.path("d./f"), "x").unwrap();
    m.end().unwrap();
    let m = Mount::new(&store);
    for name in odd {
        assert_eq!(fs::read(m.path(name)).unwrap(), name.as_bytes());
    }
    assert_eq!(names(m.root()).len(), odd.len() + 1);
    assert_eq!(names(&m.path("d.")), ["f"]);
    use std::os::unix::ffi::OsStrExt;
    let not_unicode = m.root().join(std::ffi::OsStr::from_bytes(b"\xff\xfe"));
    assert_eq!(errno(File::create(not_unicode)), libc::EILSEQ);
    // Characters that are none, and that no XML can carry: whatever makes a name.
    for name in ["\u{fffe}", "a\u{ffff}b"] {
        let path = m.path(name);
        assert_eq!(errno(File::create(&path)), libc::EILSEQ, "{name:?}");
        assert_eq!(errno(fs::create_dir(&path)), libc::EILSEQ, "{name:?}");
        assert_eq!(
            errno(fs::rename(m.path("new\nline"), &path)),
            libc::EILSEQ,
            "{name:?}"
        );
        let linked = std::os::unix::fs::symlink("x", &path);
        assert_eq!(errno(linked), libc::EILSEQ, "{name:?}");
    }
    assert_eq!(errno(File::create(m.path(&"x".repeat(256)))), libc::ENAMETOOLONG);
    let deep = (0..5).fold(m.root().to_owned(), |p, _| {
        let p = p.join("y".repeat(200));
        fs::create_dir(&p).unwrap();
        p
    });
    assert_eq!(
        errno(fs::create_dir(deep.join("z".repeat(200)))),
        libc::ENAMETOOLONG
    );
    assert_eq!(
        errno(File::create(deep.join("z".repeat(200)))),
        libc::ENAMETOOLONG
    );
}

#[test]
fn unfinished_files_are_listed() {
    let store = store();
    store.foreign_put("d/a", "x", Metadata::new());
    let m = Mount::new(&store);
    let mut f = File::create(m.path("d/new")).unwrap();
    f.write_all(b"12345").unwrap();
    assert_eq!(names(&m.path("d")), ["a", "new"]);
    outlive_timeouts();
    assert_eq!(names(&m.path("d")), ["a", "new"]);
    assert_eq!(fs::metadata(m.path("d/new")).unwrap().len(), 5);
    assert_eq!(errno(fs::remove_dir(m.path("d"))), libc::ENOTEMPTY);
    drop(f);
    assert_eq!(store.content("d/new").unwrap(), "12345".as_bytes());
}

#[test]
fn offsets_of_a_listing_stay_while_entries_come_and_go() {
    let store = store();
    for i in 0..500 {
        store.foreign_put(&format!("d/{i:04}"), "", Metadata::new());
    }
    let m = Mount::new(&store);
    let mut seen = Vec::new();
    for (n, entry) in fs::read_dir(m.path("d")).unwrap().enumerate() {
        let entry = entry.unwrap();
        if n % 3 == 0 {
            fs::remove_file(entry.path()).unwrap();
        }
        if n % 7 == 0 {
            File::create(m.path(&format!("d/new{n}"))).unwrap();
        }
        seen.push(entry.file_name().into_string().unwrap());
    }
    let old: std::collections::BTreeSet<_> = seen.iter().filter(|n| !n.starts_with("new")).collect();
    assert_eq!(old.len(), 500);
    let mut unique = seen.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), seen.len(), "an entry came twice");
}

#[test]
fn deleting_a_tree_while_reading_it() {
    let store = store();
    let m = Mount::new(&store);
    for i in 0..5 {
        fs::create_dir_all(m.path(&format!("t/{i}/x"))).unwrap();
        for j in 0..20 {
            fs::write(m.path(&format!("t/{i}/f{j}")), "x").unwrap();
        }
    }
    fs::remove_dir_all(m.path("t")).unwrap();
    assert!(store.names().is_empty());
}

/// A folder that gets another name while it is read in pages: what is left is asked for under the new name,
/// whether that sorts before or behind the old one.
#[test]
fn a_listing_goes_on_when_its_folder_is_renamed() {
    for to in ["c", "e"] {
        let store = store();
        for i in 0..5200 {
            store.foreign_put(&format!("d/{i:04}"), "", Metadata::new());
        }
        store.foreign_put("d/zz/f", "", Metadata::new());
        let m = Mount::with(&store, patient);
        let inode = fs::metadata(m.path("d/zz")).unwrap().ino();
        let mut entries = fs::read_dir(m.path("d")).unwrap();
        let mut seen: Vec<String> = Vec::new();
        let mut name = |entry: std::io::Result<fs::DirEntry>| {
            seen.push(entry.unwrap().file_name().into_string().unwrap());
        };
        name(entries.next().unwrap());
        fs::rename(m.path("d"), m.path(to)).unwrap();
        entries.for_each(name);
        let mut expected: Vec<String> = (0..5200).map(|i| format!("{i:04}")).collect();
        expected.push("zz".to_owned());
        seen.sort();
        assert!(
            seen == expected,
            "{to}: {} entries of {}",
            seen.len(),
            expected.len()
        );
        assert_eq!(fs::metadata(m.path(to).join("zz")).unwrap().ino(), inode);
        assert_eq!(names(m.root()), [to]);
    }
}
