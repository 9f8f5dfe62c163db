//! Little memory: many names, deleted files that grow, a service that does not answer.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use blob_client::Metadata;

use crate::common::*;
use crate::store;

const MIB: usize = 1 << 20;
/// The least there is.
const SMALL: usize = 32 * MIB;
/// Writes that hang are a failed test.
const HANG: Duration = Duration::from_secs(100);

fn pattern(at: usize) -> Vec<u8> {
    (at..at + MIB)
        .map(|at| (at ^ (at >> 8) ^ (at >> 20)) as u8)
        .collect()
}

/// Many more names than the budget has room for, listed and looked at: what is known of them stays within its
/// part, and others can write.
#[test]
fn more_names_than_memory() {
    const NAMES: usize = 100_000;
    let store = store();
    for n in 0..NAMES {
        store.foreign_put(&format!("many/file {n:06}"), "", Metadata::new());
    }
    let resources = resources_of(SMALL);
    let mount = Mount::on(&resources, &store, |_| {});
    let mut seen = HashSet::new();
    let mut most = 0;
    for (n, entry) in fs::read_dir(mount.path("many")).unwrap().enumerate() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        // Some of them are held by the kernel, too.
        if n % 10 == 0 {
            assert_eq!(fs::metadata(mount.path("many").join(&name)).unwrap().len(), 0);
        }
        assert!(seen.insert(name), "an entry twice");
        most = most.max(resources.budget.usage().metadata);
    }
    assert_eq!(seen.len(), NAMES);
    // All of it would be 90 MiB. What the kernel holds is let go of between two reads of the directory, so a
    // quick reader is ahead of that for a while.
    assert!(most < 2 * SMALL, "{most} bytes of metadata");
    let part = SMALL / 4;
    eventually("metadata shrinks to its part", || {
        resources.budget.usage().metadata <= part
    });
    // What was let go of is there all the same.
    for n in (0..NAMES).step_by(9_999) {
        let name = format!("file {n:06}");
        assert!(mount.path("many").join(&name).exists(), "{name}");
    }
    let mut file = File::create(mount.path("written")).unwrap();
    for n in 0..40 {
        file.write_all(&pattern(n * MIB)).unwrap();
    }
    file.sync_all().unwrap();
    assert_eq!(store.content("written").unwrap().len(), 40 * MIB);
}

fn check(file: &mut File, mib: usize) {
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut bytes = vec![0; MIB];
    for n in 0..mib {
        file.read_exact(&mut bytes).unwrap();
        assert!(bytes == pattern(n * MIB), "MiB {n}");
    }
    assert_eq!(file.read(&mut bytes).unwrap(), 0);
}

fn hidden(store: &blob_fs::store::fake::FakeStore) -> usize {
    let names = store.names();
    names
        .iter()
        .filter(|n| n.starts_with(".vsc-blob-hidden."))
        .count()
}

/// What is written to a file after it was deleted goes to a blob that no name leads to when memory is short,
/// and comes back from there.
#[test]
fn a_temporary_file_may_be_larger_than_memory() {
    let store = store();
    let resources = resources_of(SMALL);
    let mount = Mount::on(&resources, &store, |_| {});
    let open = |name: &str| {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(mount.path(name))
            .unwrap()
    };
    // Never stored, and stored but small.
    for (name, stored) in [("fresh", false), ("small", true)] {
        if stored {
            fs::write(mount.path(name), "x").unwrap();
        }
        let mut file = open(name);
        fs::remove_file(mount.path(name)).unwrap();
        for n in 0..80 {
            file.write_all(&pattern(n * MIB)).unwrap();
        }
        assert_eq!(hidden(&store), 1);
        assert_eq!(names(mount.root()), Vec::<String>::new());
        file.sync_all().unwrap();
        check(&mut file, 80);
        file.write_at(b"again", 0).unwrap();
        drop(file);
        eventually("the hidden blob is deleted", || store.names().is_empty());
        eventually("its memory is free", || resources.budget.usage().dirty == 0);
    }
}

/// A large file that was moved aside is written on under its lease.
#[test]
fn a_large_deleted_file_may_grow_beyond_memory() {
    let store = store();
    let resources = resources_of(SMALL);
    let mount = Mount::on(&resources, &store, |_| {});
    let old: Vec<u8> = (0..20).flat_map(|n| pattern(n * MIB)).collect();
    store.foreign_put("large", old, Metadata::new());
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(true).open(mount.path("large")).unwrap();
    fs::remove_file(mount.path("large")).unwrap();
    file.seek(SeekFrom::End(0)).unwrap();
    for n in 20..80 {
        file.write_all(&pattern(n * MIB)).unwrap();
    }
    check(&mut file, 80);
    let kept = store.names();
    assert_eq!(kept.len(), 1);
    let metadata = store.properties(&kept[0]).unwrap().metadata;
    assert!(metadata.contains_key("vsc_hidden"), "{metadata:?}");
    drop(file);
    eventually("the hidden blob is deleted", || store.names().is_empty());
}

/// Two volumes share the memory, and the service of one does not answer: the other one's writers get on, and
/// so do reads of the first that need nothing of the service, however many writers wait.
#[test]
fn a_service_that_does_not_answer_stops_only_its_own_writers() {
    const WRITERS: usize = 24;
    let (dead, healthy) = (store(), store());
    let resources = resources_of(SMALL);
    let first = Mount::on(&resources, &dead, |_| {});
    let second = Mount::on(&resources, &healthy, |_| {});
    let direct = |name: &str| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options
            .custom_flags(libc::O_DIRECT)
            .open(first.path(name))
            .unwrap()
    };
    let mine = direct("mine");
    let files: Vec<_> = (0..WRITERS).map(|n| direct(&format!("file {n}"))).collect();
    mine.write_at(&pattern(0), 0).unwrap();
    dead.close();
    let begun = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for file in &files {
            scope.spawn(|| {
                for n in 0..4 {
                    begun.fetch_add(1, Ordering::Relaxed);
                    file.write_at(&pattern(n * MIB), (n * MIB) as u64).unwrap();
                }
            });
        }
        let (send, done) = mpsc::channel();
        let (begun, mine, second) = (&begun, &mine, &second);
        scope.spawn(move || {
            // Everybody waits.
            eventually("writers wait", || begun.load(Ordering::Relaxed) >= WRITERS);
            let mut back = vec![0; MIB];
            mine.read_at(&mut back, 0).unwrap();
            assert!(back == pattern(0));
            let mut file = File::create(second.path("written")).unwrap();
            for n in 0..64 {
                file.write_all(&pattern(n * MIB)).unwrap();
            }
            file.sync_all().unwrap();
            let _ = send.send(());
        });
        let in_time = done.recv_timeout(HANG);
        dead.open();
        assert!(in_time.is_ok(), "held up by another volume");
    });
    assert_eq!(healthy.content("written").unwrap().len(), 64 * MIB);
    drop((files, mine));
    drop(first);
    for n in 0..WRITERS {
        assert_eq!(dead.content(&format!("file {n}")).unwrap().len(), 4 * MIB, "{n}");
    }
}
