//! Several mounts of one container, and several writers of one file.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use std::path::Path;
use std::time::Duration;

use blob_client::{BlobType, Metadata};
use blob_fs::store::fake::Op;

use crate::common::*;
use crate::{patient, store};

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

/// A program has closed its file when close(2) returns. The kernel's RELEASE comes later, and a descriptor
/// that was duplicated (here, or by a fork) may never be closed: neither makes this mount believe that the
/// version it wrote is the last.
#[test]
fn a_closed_writer_is_no_reason_not_to_ask() {
    let store = store();
    let (a, b) = (Mount::new(&store), Mount::new(&store));
    let mut writer = File::create(a.path("f")).unwrap();
    writer.write_all(b"of a").unwrap();
    drop(writer.try_clone().unwrap());
    let mut appender = OpenOptions::new().append(true).open(b.path("f")).unwrap();
    appender.write_all(b", of b").unwrap();
    appender.sync_all().unwrap();
    drop(appender);
    assert_eq!(fs::read_to_string(a.path("f")).unwrap(), "of a, of b");
    // It writes again: on top of a version that is gone.
    writer.write_all(b" again").unwrap();
    assert_eq!(errno(writer.sync_all()), libc::ESTALE);
    drop(writer);
    assert_eq!(fs::read_to_string(a.path("f")).unwrap(), "of a, of b");

    // While nobody else has written, the descriptor goes on with the file that everybody opens.
    let mut writer = File::create(a.path("g")).unwrap();
    for text in ["one ", "two "] {
        writer.write_all(text.as_bytes()).unwrap();
        drop(writer.try_clone().unwrap());
        assert!(fs::read_to_string(a.path("g")).unwrap().ends_with(text));
    }
    writer.write_all(b"three").unwrap();
    assert_eq!(fs::read_to_string(a.path("g")).unwrap(), "one two three");
    writer.sync_all().unwrap();
    drop(writer);
    assert_eq!(fs::read_to_string(b.path("g")).unwrap(), "one two three");
}

/// No time passes between what one mount closed and what the other opens; what it knew before must not
/// matter.
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
    assert_eq!(&text, b"old content");
    // Without its pages, too.
    drop_pages(&old);
    old.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"old content");
    drop(old);
    assert_eq!(fs::read(m.path("f")).unwrap(), b"NEW CONTENT");
}

/// The kernel asks again for what is read next.
fn drop_pages(file: &File) {
    // SAFETY: the descriptor is open.
    let done = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(done, 0);
}

/// `tail -f` on an older version beside a logger: the kernel must not take the size of one for the other's.
#[test]
fn an_appender_beside_a_reader_of_an_older_version_overwrites_nothing() {
    let store = store();
    let m = Mount::new(&store);
    let (old, new) = ("o".repeat(100), "n".repeat(150));
    store.foreign_put("log", old.clone(), Metadata::new());
    let tail = File::open(m.path("log")).unwrap();
    let mut read = [0; 4096];
    assert_eq!(tail.read_at(&mut read, 0).unwrap(), 100);
    store.foreign_put("log", new.clone(), Metadata::new());
    let mut log = OpenOptions::new().append(true).open(m.path("log")).unwrap();
    assert_eq!(log.metadata().unwrap().len(), 150);
    log.write_all(b"+1").unwrap();
    drop_pages(&tail);
    assert_eq!(
        tail.read_at(&mut read, 0).unwrap(),
        100,
        "the reader has its version"
    );
    assert_eq!(&read[..100], old.as_bytes());
    assert_eq!(tail.metadata().unwrap().len(), 100);
    log.write_all(b"+2").unwrap();
    log.sync_all().unwrap();
    assert_eq!(store.content("log").unwrap(), format!("{new}+1+2").as_bytes());
    assert_ne!(tail.metadata().unwrap().ino(), log.metadata().unwrap().ino());
}

/// What is not there any more of the version that a reader has is ESTALE, not the end of the file.
#[test]
fn a_reader_of_a_longer_version_is_not_told_that_the_file_ends() {
    let store = store();
    let m = Mount::new(&store);
    store.foreign_put("f", vec![b'o'; 64 << 20], Metadata::new());
    let old = File::open(m.path("f")).unwrap();
    let mut byte = [0];
    old.read_exact_at(&mut byte, 0).unwrap();
    store.foreign_put("f", "short", Metadata::new());
    let new = File::open(m.path("f")).unwrap();
    assert_eq!(new.metadata().unwrap().len(), 5);
    assert_eq!(fs::metadata(m.path("f")).unwrap().len(), 5);
    assert_eq!(errno(old.read_exact_at(&mut byte, 63 << 20)), libc::ESTALE);
    assert_eq!(old.metadata().unwrap().len(), 64 << 20);
}

/// A mapping of the new version leaves the pages of the old one alone.
#[test]
fn a_mapping_of_a_newer_version_is_not_what_an_older_reader_sees() {
    let store = store();
    let m = Mount::new(&store);
    store.foreign_put("f", "old content", Metadata::new());
    let old = File::open(m.path("f")).unwrap();
    let mut text = [0; 11];
    old.read_exact_at(&mut text, 0).unwrap();
    store.foreign_put("f", "NEW CONTENT", Metadata::new());
    let new = File::open(m.path("f")).unwrap();
    drop_pages(&old);
    // SAFETY: a fresh mapping of an open file, read within the file's one page, and unmapped.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            11,
            libc::PROT_READ,
            libc::MAP_SHARED,
            new.as_raw_fd(),
            0,
        );
        assert_ne!(at, libc::MAP_FAILED);
        assert_eq!(std::slice::from_raw_parts(at.cast::<u8>(), 11), b"NEW CONTENT");
        assert_eq!(libc::munmap(at, 11), 0);
    }
    old.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"old content");
}

/// A mount of a single file has no name to look at again: while it is open here in an older version it cannot
/// be opened, afterwards it can.
#[test]
fn a_file_that_is_mounted_by_itself_can_be_opened_again() {
    let store = store();
    let m = Mount::new(&store);
    store.foreign_put("f", "one", Metadata::new());
    let alone = tempfile::NamedTempFile::new().unwrap();
    let none: Option<&str> = None;
    let bind = nix::mount::MsFlags::MS_BIND;
    nix::mount::mount(Some(&m.path("f")), alone.path(), none, bind, none).unwrap();
    let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let old = File::open(alone.path()).unwrap();
        store.foreign_put("f", "longer", Metadata::new());
        assert_eq!(errno(File::open(alone.path())), libc::ESTALE);
        drop(old);
        eventually("the old version is closed", || {
            fs::read(alone.path()).is_ok_and(|text| text == b"longer")
        });
    }));
    nix::mount::umount(alone.path()).unwrap();
    looked.unwrap();
}

/// That somebody has a file open for reading is no reason not to ask what is there now.
#[test]
fn names_of_files_open_for_reading_are_asked_for() {
    let store = store();
    let m = Mount::new(&store);
    store.foreign_put("f", "one", Metadata::new());
    let reader = File::open(m.path("f")).unwrap();
    store.foreign_put("f", "longer", Metadata::new());
    outlive_timeouts();
    assert_eq!(fs::metadata(m.path("f")).unwrap().len(), 6);
    assert_eq!(reader.metadata().unwrap().len(), 3);
    let second = File::open(m.path("f")).unwrap();
    store.foreign_delete("f");
    outlive_timeouts();
    assert!(!m.path("f").exists());
    // At once for who makes it anew.
    store.foreign_put("f", "other", Metadata::new());
    assert!(m.path("f").exists());
    let third = File::open(m.path("f")).unwrap();
    store.foreign_delete("f");
    drop(File::create_new(m.path("f")).unwrap());
    assert_eq!(second.metadata().unwrap().len(), 6);
    assert_eq!(third.metadata().unwrap().len(), 5);
    // A change by name is one of what is there now, too.
    let fourth = File::open(m.path("f")).unwrap();
    store.foreign_put("f", "changed", Metadata::new());
    fs::set_permissions(m.path("f"), fs::Permissions::from_mode(0o600)).unwrap();
    nix::unistd::truncate(&m.path("f"), 4).unwrap();
    assert_eq!(store.content("f").unwrap(), "chan".as_bytes());
    assert_eq!(store.properties("f").unwrap().metadata["vsc_mode"], "600");
    drop((reader, second, third, fourth));
}

/// A folder that somebody else deletes takes nothing with it that was not stored yet.
#[test]
fn a_folder_deleted_elsewhere_does_not_take_unsaved_data_with_it() {
    let store = store();
    let m = Mount::new(&store);
    let marker = || meta(&[("hdi_isfolder", "true")]);
    store.foreign_put("d", "", marker());
    store.foreign_put("d/old", "old", Metadata::new());
    let mut new = File::create(m.path("d/new")).unwrap();
    new.write_all(b"new").unwrap();
    let mut old = OpenOptions::new().append(true).open(m.path("d/old")).unwrap();
    old.write_all(b"er").unwrap();
    store.foreign_delete("d/old");
    store.foreign_delete("d");
    outlive_timeouts();
    names(m.root());
    let _ = fs::metadata(m.path("d"));
    // The one was never stored, the other was deleted under its writer.
    new.sync_all().unwrap();
    assert_eq!(errno(old.sync_all()), libc::ESTALE);
    drop((new, old));
    assert_eq!(store.content("d/new").unwrap(), "new".as_bytes());
    assert_eq!(fs::read(m.path("d/new")).unwrap(), b"new");
    assert_eq!(store.names(), ["d/new"]);
}

/// Two mounts can both make a file that is not there yet, but only one of them is told that it has: the other
/// by its close.
#[test]
fn of_two_exclusive_creations_at_once_one_is_kept() {
    let store = store();
    let (a, b) = (Mount::new(&store), Mount::new(&store));
    let mut first = File::create_new(a.path("lock")).unwrap();
    let mut second = File::create_new(b.path("lock")).unwrap();
    first.write_all(b"a").unwrap();
    second.write_all(b"b").unwrap();
    second.sync_all().unwrap();
    assert_eq!(errno(first.sync_all()), libc::ESTALE);
    assert_eq!(store.content("lock").unwrap(), "b".as_bytes());
    // A folder is there when mkdir returns.
    fs::create_dir(a.path("d")).unwrap();
    assert_eq!(errno(fs::create_dir(b.path("d"))), libc::EEXIST);
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

/// What a mount shows of a file that grows elsewhere: the new bytes, under the same number.
#[test]
fn a_file_that_grows_elsewhere_stays_the_same_file() {
    for large in [false, true] {
        let store = store();
        let (a, b) = (Mount::new(&store), Mount::new(&store));
        let mut all = match large {
            false => b"first\n".to_vec(),
            true => vec![b'x'; 9 << 20],
        };
        fs::write(b.path("log"), &all).unwrap();
        let mut reader = File::open(a.path("log")).unwrap();
        let number = reader.metadata().unwrap().ino();
        let mut seen = Vec::new();
        reader.read_to_end(&mut seen).unwrap();
        assert_eq!(seen.len(), all.len());
        for n in 0..3 {
            let line = format!("line {n}\n");
            append(&b.path("log"), line.as_bytes());
            all.extend_from_slice(line.as_bytes());
            // By its name, by its descriptor, and by who opens it anew.
            eventually("the new size", || {
                fs::metadata(a.path("log")).unwrap().len() == all.len() as u64
            });
            assert_eq!(fs::metadata(a.path("log")).unwrap().ino(), number, "{large} {n}");
            assert_eq!(reader.metadata().unwrap().len(), all.len() as u64);
            let mut new = Vec::new();
            reader.read_to_end(&mut new).unwrap();
            assert_eq!(String::from_utf8(new).unwrap(), line);
            assert!(fs::read(a.path("log")).unwrap() == all);
        }
        // Another content is another file.
        fs::write(b.path("new"), vec![b'y'; all.len() + 10]).unwrap();
        fs::rename(b.path("new"), b.path("log")).unwrap();
        outlive_timeouts();
        assert_ne!(fs::metadata(a.path("log")).unwrap().ino(), number);
    }
}

fn append(path: &Path, line: &[u8]) {
    let mut file = OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(line).unwrap();
}

/// A program that ends with the test, whichever way that ends: it has a file of the mount open.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `tail` on one node, a program that writes lines on another: each line once.
#[test]
fn tail_shows_each_new_line_once() {
    for follow in ["-f", "-F"] {
        for kind in [BlobType::Block, BlobType::Append] {
            let store = store();
            let (a, b) = (Mount::new(&store), Mount::new(&store));
            let lines: String = (1..=1000).map(|n| format!("{n}\n")).collect();
            fs::write(b.path("log"), &lines).unwrap();
            store.set_blob_type("log", kind);
            let out = tempfile::NamedTempFile::new().unwrap();
            let _tail = Ended(
                std::process::Command::new("tail")
                    .args(["-s", "0.1", "-n", "1", follow])
                    .arg(a.path("log"))
                    .stdout(out.reopen().unwrap())
                    .spawn()
                    .unwrap(),
            );
            let shown = || fs::read_to_string(out.path()).unwrap();
            eventually("the last line", || shown() == "1000\n");
            let mut expected = "1000\n".to_owned();
            for n in 1001..=1005 {
                let line = format!("{n}\n");
                match kind {
                    BlobType::Append => assert!(store.foreign_append("log", line.as_bytes())),
                    _ => append(&b.path("log"), line.as_bytes()),
                }
                expected.push_str(&line);
                eventually("the new line", || shown().len() >= expected.len());
            }
            assert_eq!(shown(), expected, "tail {follow}, {kind:?}");
        }
    }
}

/// The same bytes with other attributes are the same file, and no reason to lose what was written here.
#[test]
fn a_change_of_attributes_elsewhere_disturbs_nobody() {
    let store = store();
    let (a, b) = (Mount::new(&store), Mount::new(&store));
    let content: Vec<u8> = (0..40u32 << 20).map(|n| (n >> 12) as u8).collect();
    fs::write(b.path("large"), &content).unwrap();
    fs::write(b.path("out"), "start\n").unwrap();
    let mut reader = File::open(a.path("large")).unwrap();
    let mut seen = vec![0; 1 << 20];
    reader.read_exact(&mut seen).unwrap();
    let mut writer = OpenOptions::new().append(true).open(a.path("out")).unwrap();
    writer.write_all(b"w\n").unwrap();
    eventually("the blocks of the file", || {
        store.counters().of(Op::BlockList) > 0
    });
    for path in ["large", "out"] {
        fs::set_permissions(b.path(path), fs::Permissions::from_mode(0o640)).unwrap();
    }
    reader.read_to_end(&mut seen).unwrap();
    assert!(seen == content);
    writer.sync_all().unwrap();
    drop(writer);
    assert_eq!(store.content("out").unwrap(), "start\nw\n".as_bytes());
    for mount in [&a, &b] {
        outlive_timeouts();
        let mode = fs::metadata(mount.path("out")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
    }
    // What both changed is as the one says who wrote last; the rest is as it was changed.
    let mut writer = OpenOptions::new().append(true).open(a.path("out")).unwrap();
    writer.write_all(b"x\n").unwrap();
    fs::set_permissions(b.path("out"), fs::Permissions::from_mode(0o604)).unwrap();
    let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_000_000));
    writer.set_times(times).unwrap();
    drop(writer);
    outlive_timeouts();
    let there = fs::metadata(b.path("out")).unwrap();
    assert_eq!(there.permissions().mode() & 0o7777, 0o604);
    assert_eq!(there.mtime(), 1_000_000);
    assert_eq!(store.content("out").unwrap(), "start\nw\nx\n".as_bytes());
}

/// Its attributes are what they are to be already, but it is another file by now.
#[test]
fn a_chmod_that_changes_nothing_finds_the_file_that_replaced_another() {
    let store = store();
    let m = Mount::with(&store, patient);
    store.foreign_put("f", "one", Metadata::new());
    let open = File::open(m.path("f")).unwrap();
    let shown = open.metadata().unwrap().permissions();
    store.foreign_put("f", "another", Metadata::new());
    fs::set_permissions(m.path("f"), shown).unwrap();
    assert_eq!(fs::read(m.path("f")).unwrap(), b"another");
}
