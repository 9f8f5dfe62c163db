//! Reading, writing, truncating and deleting files.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::common::*;
use crate::store;
use blob_client::Metadata;
use blob_fs::store::fake::{Fault, Op};

#[test]
fn files_are_written_and_read_back() {
    let store = store();
    let m = Mount::new(&store);
    fs::write(m.path("a.txt"), b"hello").unwrap();
    assert_eq!(store.content("a.txt").unwrap(), "hello".as_bytes());
    assert_eq!(fs::read(m.path("a.txt")).unwrap(), b"hello");
    let mut f = OpenOptions::new().append(true).open(m.path("a.txt")).unwrap();
    f.write_all(b", world").unwrap();
    f.sync_all().unwrap();
    assert_eq!(store.content("a.txt").unwrap(), "hello, world".as_bytes());
    f.set_len(4).unwrap();
    drop(f);
    assert_eq!(store.content("a.txt").unwrap(), "hell".as_bytes());
    let big: Vec<u8> = (0..5_000_000u32).map(|i| (i % 251) as u8).collect();
    fs::write(m.path("big"), &big).unwrap();
    assert!(fs::read(m.path("big")).unwrap() == big);
    m.end().unwrap();
    let m = Mount::new(&store);
    assert!(fs::read(m.path("big")).unwrap() == big);
    assert_eq!(names(m.root()), ["a.txt", "big"]);
}

#[test]
fn a_small_new_file_is_one_request_beside_the_question_for_its_name() {
    let store = store();
    let m = Mount::new(&store);
    fs::create_dir(m.path("d")).unwrap();
    store.reset_counters();
    fs::write(m.path("d/f"), b"x").unwrap();
    let counters = store.counters();
    let asked = (counters.of(Op::List), counters.of(Op::Put), counters.total());
    assert_eq!(asked, (1, 1, 2), "{counters:?}");
    m.end().unwrap();
    // Where absence is believed: the first question lists the folder that this mount has made.
    let m = Mount::with(&store, crate::patient);
    names(&m.path("d"));
    store.reset_counters();
    fs::write(m.path("d/g"), b"x").unwrap();
    let counters = store.counters();
    assert_eq!((counters.of(Op::Put), counters.total()), (1, 1), "{counters:?}");
}

#[test]
fn a_file_deleted_while_open_lives_until_it_is_closed() {
    let store = store();
    store.foreign_put("big", vec![7u8; 20 << 20], Metadata::new());
    let m = Mount::new(&store);
    fs::write(m.path("small"), "content").unwrap();
    let mut small = OpenOptions::new()
        .read(true)
        .write(true)
        .open(m.path("small"))
        .unwrap();
    let big = File::open(m.path("big")).unwrap();
    let mut new = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(m.path("new"))
        .unwrap();
    for name in ["small", "big", "new"] {
        fs::remove_file(m.path(name)).unwrap();
        assert_eq!(errno(fs::metadata(m.path(name))), libc::ENOENT);
    }
    assert!(names(m.root()).is_empty());
    assert_eq!(small.metadata().unwrap().nlink(), 0);
    small.seek(SeekFrom::End(0)).unwrap();
    small.write_all(b" more").unwrap();
    let mut text = String::new();
    small.seek(SeekFrom::Start(0)).unwrap();
    small.read_to_string(&mut text).unwrap();
    assert_eq!(text, "content more");
    new.write_all(b"unseen").unwrap();
    let mut byte = [0; 6];
    new.read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(&byte, b"unseen");
    let mut tail = [0; 10];
    big.read_exact_at(&mut tail, (20 << 20) - 10).unwrap();
    assert_eq!(tail, [7; 10]);
    // Something else may have the name meanwhile.
    fs::write(m.path("small"), "other").unwrap();
    drop((small, big, new));
    eventually("the hidden blob is deleted", || store.names() == ["small"]);
    assert_eq!(fs::read(m.path("small")).unwrap(), b"other");
}

/// What a process that died has left of deleted files goes with the next mount; what a live mount holds
/// stays, and what is not ours.
#[test]
fn hidden_blobs_that_nobody_holds_are_collected() {
    let store = store();
    let mark = || meta(&[("vsc_hidden", "true")]);
    store.foreign_put("big", vec![7u8; 20 << 20], Metadata::new());
    store.foreign_put(".vsc-blob-hidden.not-ours", "x", Metadata::new());
    let m = Mount::new(&store);
    let big = File::open(m.path("big")).unwrap();
    fs::remove_file(m.path("big")).unwrap();
    let held = || {
        let names = store.names();
        names
            .into_iter()
            .filter(|n| !n.ends_with("not-ours"))
            .collect::<Vec<_>>()
    };
    assert_eq!(held().len(), 1, "{:?}", held());
    assert_eq!(store.properties(&held()[0]).unwrap().metadata, mark());
    store.foreign_put(".vsc-blob-hidden.dead", "x", mark());
    store.foreign_put("sub/.vsc-blob-hidden.elsewhere", "x", mark());
    // A mount that must not write leaves everything.
    store.reset_counters();
    Mount::with(&store, |c| c.read_only = true).end().unwrap();
    assert_eq!(store.counters().of(Op::Delete), 0);
    let other = Mount::new(&store);
    eventually("both are tried", || store.counters().of(Op::Delete) == 2);
    eventually("what nobody holds is deleted", || {
        !store.names().contains(&".vsc-blob-hidden.dead".to_owned())
    });
    assert_eq!(held().len(), 2, "{:?}", held());
    let mut tail = [0; 10];
    big.read_exact_at(&mut tail, (20 << 20) - 10).unwrap();
    assert_eq!(tail, [7; 10]);
    // As if the process had died: nobody renews its leases.
    store.end_leases();
    drop(other);
    let other = Mount::new(&store);
    eventually("it is collected", || held() == ["sub/.vsc-blob-hidden.elsewhere"]);
    drop(big);
    drop(other);
    assert_eq!(
        store.names(),
        [".vsc-blob-hidden.not-ours", "sub/.vsc-blob-hidden.elsewhere"]
    );
}

/// Whatever goes wrong while a large open file is deleted: what is left is marked, so that it is collected.
#[test]
fn a_deletion_that_fails_leaves_nothing_unmarked() {
    for fault in [Fault::Lost, Fault::AnswerLost] {
        for nth in 0.. {
            let store = store();
            store.foreign_put("big", vec![7u8; 20 << 20], Metadata::new());
            let m = Mount::new(&store);
            let big = File::open(m.path("big")).unwrap();
            store.fail_after(nth, fault, u64::MAX);
            let removed = fs::remove_file(m.path("big"));
            let hit = store.heal();
            for name in store.names() {
                let marked = store
                    .properties(&name)
                    .unwrap()
                    .metadata
                    .contains_key("vsc_hidden");
                assert_eq!(marked, name != "big", "{fault:?} at {nth}: {name}");
            }
            drop(big);
            m.end().unwrap();
            store.end_leases();
            let m = Mount::new(&store);
            let wanted: &[&str] = if store.content("big").is_some() {
                &["big"]
            } else {
                &[]
            };
            eventually("the rest is collected", || store.names() == wanted);
            m.end().unwrap();
            if !hit {
                removed.unwrap();
                assert!(nth > 3, "only {nth} requests");
                break;
            }
        }
    }
}

#[test]
fn a_file_made_or_emptied_by_an_open_for_reading_is_stored() {
    let store = store();
    let m = Mount::new(&store);
    let open = |flags| {
        // SAFETY: a C string, and the descriptor is closed.
        unsafe {
            let fd = libc::open(c(&m.path("f")).as_ptr(), libc::O_RDONLY | flags, 0o644);
            assert!(fd >= 0);
            assert_eq!(libc::close(fd), 0);
        }
    };
    open(libc::O_CREAT);
    eventually("the new file in the service", || store.content("f").is_some());
    assert_eq!(store.content("f").unwrap(), "".as_bytes());
    fs::write(m.path("f"), "x").unwrap();
    open(libc::O_TRUNC);
    assert_eq!(store.content("f").unwrap(), "".as_bytes());
}

#[test]
fn a_running_program_is_not_emptied() {
    let store = store();
    let m = Mount::new(&store);
    fs::copy("/bin/sleep", m.path("program")).unwrap();
    let mut running = std::process::Command::new(m.path("program"))
        .arg("60")
        .spawn()
        .unwrap();
    // SAFETY: a C string.
    let fd = unsafe { libc::open(c(&m.path("program")).as_ptr(), libc::O_RDONLY | libc::O_TRUNC) };
    let error = std::io::Error::last_os_error();
    running.kill().unwrap();
    running.wait().unwrap();
    assert_eq!((fd, error.raw_os_error()), (-1, Some(libc::ETXTBSY)));
    assert!(fs::metadata(m.path("program")).unwrap().len() > 0);
}

#[test]
fn holes_and_allocation() {
    let store = store();
    let m = Mount::new(&store);
    let f = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(m.path("f"))
        .unwrap();
    f.write_all_at(&[1; 100_000], 0).unwrap();
    let fallocate = |mode, at, len| {
        // SAFETY: the descriptor is open.
        check(unsafe { libc::fallocate(f.as_raw_fd(), mode, at, len) })
    };
    fallocate(
        libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        10_000,
        50_000,
    )
    .unwrap();
    fallocate(0, 0, 200_000).unwrap();
    fallocate(libc::FALLOC_FL_KEEP_SIZE, 0, 900_000).unwrap();
    assert_eq!(
        errno(fallocate(libc::FALLOC_FL_COLLAPSE_RANGE, 0, 4096)),
        libc::EOPNOTSUPP
    );
    assert_eq!(f.metadata().unwrap().len(), 200_000);
    // SAFETY: the descriptor is open.
    let seek = |at, whence| unsafe { libc::lseek(f.as_raw_fd(), at, whence) };
    assert_eq!(seek(0, libc::SEEK_HOLE), 12_288);
    assert_eq!(seek(12_288, libc::SEEK_DATA), 57_344);
    assert_eq!(seek(150_000, libc::SEEK_DATA), -1);
    drop(f);
    let content = fs::read(m.path("f")).unwrap();
    assert_eq!(content.len(), 200_000);
    assert!(
        content[..10_000]
            .iter()
            .chain(&content[60_000..100_000])
            .all(|b| *b == 1)
    );
    assert!(
        content[10_000..60_000]
            .iter()
            .chain(&content[100_000..])
            .all(|b| *b == 0)
    );
}

#[test]
fn copy_file_range_copies() {
    let store = store();
    let m = Mount::new(&store);
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i % 253) as u8).collect();
    fs::write(m.path("a"), &data).unwrap();
    assert_eq!(fs::copy(m.path("a"), m.path("b")).unwrap(), data.len() as u64);
    assert!(store.content("b").unwrap() == data);
}

#[test]
fn mappings_are_written_back() {
    let store = store();
    let m = Mount::new(&store);
    fs::write(m.path("f"), vec![b'.'; 10_000]).unwrap();
    let f = OpenOptions::new()
        .read(true)
        .write(true)
        .open(m.path("f"))
        .unwrap();
    // SAFETY: a fresh shared mapping of an open file, unmapped below.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            10_000,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            f.as_raw_fd(),
            0,
        );
        assert_ne!(at, libc::MAP_FAILED);
        drop(f);
        at.cast::<u8>().add(5000).write(b'!');
        assert_eq!(libc::munmap(at, 10_000), 0);
    }
    eventually("the mapped write is committed", || {
        store.content("f").unwrap()[5000] == b'!'
    });
}

#[test]
fn truncation_by_name_is_durable() {
    let store = store();
    let m = Mount::new(&store);
    fs::write(m.path("f"), "0123456789").unwrap();
    nix::unistd::truncate(&m.path("f"), 4).unwrap();
    assert_eq!(store.content("f").unwrap(), "0123".as_bytes());
    nix::unistd::truncate(&m.path("f"), 6).unwrap();
    assert_eq!(store.content("f").unwrap(), "0123\0\0".as_bytes());
    assert_eq!(fs::read(m.path("f")).unwrap(), b"0123\0\0");
}
