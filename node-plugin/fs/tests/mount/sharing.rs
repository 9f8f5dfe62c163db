//! Several mounts of one container, and several writers of one file.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;

use crate::common::*;
use crate::store;
use blob_client::Metadata;

#[test]
fn two_mounts_see_each_others_closed_files_at_the_next_open() {
    let store = store();
    let (a, b) = (Mount::new(&store), Mount::new(&store));
    for round in 0..5 {
        let text = format!("round {round} {}", "x".repeat(round * 10));
        fs::write(a.path("f"), &text).unwrap();
        assert_eq!(fs::read_to_string(b.path("f")).unwrap(), text);
        let mut f = OpenOptions::new().append(true).open(b.path("f")).unwrap();
        f.write_all(b"+b").unwrap();
        drop(f);
        assert_eq!(fs::read_to_string(a.path("f")).unwrap(), text + "+b");
    }
}

/// No time passes between what one mount closed and what the other opens; what it knew before must not matter.
#[test]
fn the_next_open_is_right_at_once() {
    let store = store();
    let (a, b) = (Mount::new(&store), Mount::new(&store));
    fs::create_dir(a.path("d")).unwrap();
    for round in 0..100 {
        let (f, g) = (format!("d/f{}", round % 3), format!("d/g{}", round % 3));
        // Everything that can be known beforehand is asked for.
        assert_eq!(errno(fs::metadata(b.path(&f))), libc::ENOENT);
        assert!(names(&b.path("d")).is_empty());
        let text = format!("{round} created");
        fs::write(a.path(&f), &text).unwrap();
        assert_eq!(fs::read_to_string(b.path(&f)).unwrap(), text, "created");
        assert_eq!(names(&b.path("d")).len(), 1);
        // Of the same size, then of another.
        for text in [format!("{round} CREATED"), format!("{round} overwritten")] {
            fs::metadata(b.path(&f)).unwrap();
            fs::write(a.path(&f), &text).unwrap();
            let written = fs::metadata(a.path(&f)).unwrap();
            let mut file = File::open(b.path(&f)).unwrap();
            let seen = file.metadata().unwrap();
            assert_eq!(seen.len(), text.len() as u64);
            assert_eq!(seen.modified().unwrap(), written.modified().unwrap());
            let mut read = String::new();
            file.read_to_string(&mut read).unwrap();
            assert_eq!(read, text, "overwritten");
        }
        assert_eq!(errno(fs::metadata(b.path(&g))), libc::ENOENT);
        fs::rename(a.path(&f), a.path(&g)).unwrap();
        assert_eq!(
            fs::read_to_string(b.path(&g)).unwrap(),
            format!("{round} overwritten")
        );
        assert_eq!(
            errno(File::open(b.path(&f))),
            libc::ENOENT,
            "the old name is still opened"
        );
        fs::remove_file(a.path(&g)).unwrap();
        assert_eq!(
            errno(File::open(b.path(&g))),
            libc::ENOENT,
            "a removed file is still opened"
        );
    }
}

/// Who creates exclusively is told the truth, too: lock files are made this way.
#[test]
fn exclusive_creation_goes_by_what_is_there_now() {
    let store = store();
    let (a, b) = (Mount::new(&store), Mount::new(&store));
    for _ in 0..20 {
        drop(File::create_new(a.path("lock")).unwrap());
        assert_eq!(errno(File::create_new(b.path("lock"))), libc::EEXIST);
        assert!(b.path("lock").exists());
        fs::remove_file(a.path("lock")).unwrap();
        drop(File::create_new(b.path("lock")).unwrap());
        assert_eq!(errno(File::create_new(a.path("lock"))), libc::EEXIST);
        fs::remove_file(b.path("lock")).unwrap();
        fs::create_dir(b.path("d")).unwrap();
        assert!(a.path("d").exists());
        fs::remove_dir(b.path("d")).unwrap();
        fs::create_dir(a.path("d")).unwrap();
        fs::remove_dir(a.path("d")).unwrap();
    }
}

#[test]
fn a_reader_keeps_its_version_and_a_late_writer_is_told() {
    let store = store();
    let (a, b) = (Mount::new(&store), Mount::new(&store));
    fs::write(a.path("f"), "one").unwrap();
    let mut reader = File::open(b.path("f")).unwrap();
    let mut first = [0; 1];
    reader.read_exact(&mut first).unwrap();
    let mut writer = OpenOptions::new().write(true).open(b.path("f")).unwrap();
    writer.write_all(b"ONE").unwrap();
    fs::write(a.path("f"), "two!").unwrap();
    assert_eq!(errno(writer.sync_all()), libc::ESTALE);
    drop(writer);
    // New opens see the new version.
    assert_eq!(fs::read(b.path("f")).unwrap(), b"two!");
    assert_eq!(store.content("f").unwrap(), "two!".as_bytes());
}

#[test]
fn a_reader_with_pages_keeps_its_version_beside_readers_of_the_new_one() {
    let store = store();
    store.foreign_put("f", "old content", Metadata::new());
    let m = Mount::new(&store);
    let old = File::open(m.path("f")).unwrap();
    let mut text = [0; 11];
    old.read_exact_at(&mut text, 0).unwrap();
    store.foreign_put("f", "NEW CONTENT", Metadata::new());
    assert_eq!(fs::read(m.path("f")).unwrap(), b"NEW CONTENT");
    old.read_exact_at(&mut text, 0).unwrap();
    assert!(&text == b"old content" || &text == b"NEW CONTENT");
    drop(old);
    assert_eq!(fs::read(m.path("f")).unwrap(), b"NEW CONTENT");
}

#[test]
fn writing_to_a_file_that_somebody_else_deleted_is_told() {
    let store = store();
    store.foreign_put("f", "x", Metadata::new());
    let m = Mount::new(&store);
    let mut f = OpenOptions::new().append(true).open(m.path("f")).unwrap();
    store.foreign_delete("f");
    outlive_timeouts();
    assert!(names(m.root()).is_empty());
    f.write_all(b"y").unwrap();
    assert_eq!(errno(f.sync_all()), libc::ESTALE);
    drop(f);
    assert!(store.names().is_empty());
    fs::write(m.path("f"), "anew").unwrap();
    assert_eq!(store.content("f").unwrap(), "anew".as_bytes());
}

#[test]
fn changes_of_others_show_after_the_timeouts() {
    let store = store();
    store.foreign_put("d/a", "x", Metadata::new());
    let m = Mount::new(&store);
    assert_eq!(names(&m.path("d")), ["a"]);
    assert!(!m.path("d/b").exists());
    store.foreign_put("d/b", "xyz", Metadata::new());
    store.foreign_delete("d/a");
    outlive_timeouts();
    assert_eq!(names(&m.path("d")), ["b"]);
    assert_eq!(fs::metadata(m.path("d/b")).unwrap().len(), 3);
    assert!(!m.path("d/a").exists());
    // A file becomes a directory.
    store.foreign_delete("d/b");
    store.foreign_put("d/b/c", "x", Metadata::new());
    outlive_timeouts();
    assert_eq!(names(&m.path("d/b")), ["c"]);
}

#[test]
fn a_file_gone_under_an_open_with_create_is_made_anew() {
    let store = store();
    store.foreign_put("f", "x", Metadata::new());
    let m = Mount::new(&store);
    assert!(m.path("f").exists());
    store.foreign_delete("f");
    fs::write(m.path("f"), "new").unwrap();
    assert_eq!(store.content("f").unwrap(), "new".as_bytes());
}

#[test]
fn exclusive_creation() {
    let store = store();
    let m = Mount::new(&store);
    File::create_new(m.path("f")).unwrap();
    assert_eq!(errno(File::create_new(m.path("f"))), libc::EEXIST);
    store.foreign_put("g", "x", Metadata::new());
    outlive_timeouts();
    assert_eq!(errno(File::create_new(m.path("g"))), libc::EEXIST);
    assert_eq!(store.content("f").unwrap(), "".as_bytes());
}

#[test]
fn appends_of_several_writers_lose_nothing() {
    let store = store();
    let m = Mount::new(&store);
    let path = m.path("log");
    let writers: Vec<_> = (0..4)
        .map(|w| {
            let path = path.clone();
            std::thread::spawn(move || {
                for i in 0..50 {
                    let mut f = OpenOptions::new().append(true).create(true).open(&path).unwrap();
                    f.write_all(format!("{w}:{i}\n").as_bytes()).unwrap();
                }
            })
        })
        .collect();
    writers.into_iter().for_each(|w| w.join().unwrap());
    let text = fs::read_to_string(&path).unwrap();
    let lines: std::collections::BTreeSet<_> = text.lines().collect();
    assert_eq!((text.lines().count(), lines.len()), (200, 200));
    assert_eq!(store.content("log").unwrap(), text.as_bytes());
}
