//! How long programs wait: for work that makes no progress as long as the option `timeout` says, for work
//! that does as long as it takes.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use blob_client::{Metadata, Patience};
use blob_fs::store::fake::{FakeStore, Fault, Op};

use crate::common::*;
use crate::store;

const MIB: usize = 1 << 20;

/// A service that does not answer: everybody is told after the timeout, readers too, and not after the usual
/// minute.
#[test]
fn a_service_that_does_not_answer_keeps_nobody_waiting() {
    let store = store();
    store.foreign_put("d/old", "content", Metadata::new());
    let m = Mount::with(&store, |config| {
        config.timeout = Patience::of(Duration::from_secs(1));
        (config.attr_timeout, config.entry_timeout) = (Duration::ZERO, Duration::ZERO);
    });
    let read = File::open(m.path("d/old")).unwrap();
    let mut written = File::create(m.path("written")).unwrap();
    written.write_all(b"content").unwrap();
    store.close();
    let told = AtomicUsize::new(0);
    let is_told = |outcome: std::io::Result<()>| {
        assert_eq!(errno(outcome), libc::EIO);
        told.fetch_add(1, Ordering::Relaxed);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| is_told(read.read_at(&mut [0], 0).map(drop)));
        scope.spawn(|| is_told(written.sync_all()));
        scope.spawn(|| is_told(fs::metadata(m.path("d")).map(drop)));
        scope.spawn(|| {
            is_told(
                fs::read_dir(m.root())
                    .and_then(|mut all| all.next().unwrap())
                    .map(drop),
            )
        });
        scope.spawn(|| is_told(fs::create_dir(m.path("new"))));
        eventually("all are told", || told.load(Ordering::Relaxed) == 5);
        store.open();
    });
    // Nobody waits again right after that, until anything gets on.
    eventually("the service is asked again", || fs::read(m.path("d/old")).is_ok());
    assert_eq!(fs::read(m.path("d/old")).unwrap(), b"content");
    eventually("it takes what is written", || written.sync_all().is_ok());
    assert_eq!(store.content("written").unwrap(), &b"content"[..]);
}

/// Writers for which no room comes are told likewise, however many wait.
#[test]
fn writers_for_which_no_room_comes_are_told() {
    const WRITERS: usize = 30;
    let store = store();
    let resources = resources_of(32 * MIB);
    let m = Mount::on(&resources, &store, |config| {
        config.timeout = Patience::of(Duration::from_secs(1));
    });
    let direct = |n| {
        let mut options = OpenOptions::new();
        options.write(true).create(true).custom_flags(libc::O_DIRECT);
        options.open(m.path(&format!("file {n}"))).unwrap()
    };
    let files: Vec<_> = (0..WRITERS).map(direct).collect();
    store.close();
    let (data, told) = (vec![7; MIB], AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for file in &files {
            scope.spawn(|| {
                let refused = (0..64).find_map(|n| file.write_at(&data, n * MIB as u64).err());
                assert_eq!(refused.unwrap().raw_os_error(), Some(libc::EIO));
                told.fetch_add(1, Ordering::Relaxed);
            });
        }
        eventually("all are told", || told.load(Ordering::Relaxed) == WRITERS);
        store.open();
    });
    drop(files);
    m.end().unwrap();
}

struct Heal<'a>(&'a FakeStore);

impl Drop for Heal<'_> {
    fn drop(&mut self) {
        self.0.heal();
    }
}

/// A service that refuses each block and each file makes no room: who waits for some is told. Once it takes
/// them again, so does the volume.
#[test]
fn a_writer_for_which_the_service_makes_no_room_is_told() {
    let store = store();
    let resources = resources_of(32 * MIB);
    let m = Mount::on(&resources, &store, |config| {
        config.timeout = Patience::of(Duration::from_secs(1));
    });
    let mut options = OpenOptions::new();
    options.write(true).create(true).custom_flags(libc::O_DIRECT);
    let file = options.open(m.path("file")).unwrap();
    let data = vec![7; MIB];
    let refused = Fault::Status(403, "AuthorizationFailure");
    store.fail(Op::Put, refused, u64::MAX);
    store.fail(Op::Stage, refused, u64::MAX);
    let told = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        // Also when this fails.
        let _healed = Heal(&store);
        scope.spawn(|| {
            let refused = (0..64).find_map(|n| file.write_at(&data, n * MIB as u64).err());
            assert_eq!(refused.unwrap().raw_os_error(), Some(libc::EIO));
            told.fetch_add(1, Ordering::Relaxed);
        });
        eventually("the writer is told", || told.load(Ordering::Relaxed) == 1);
    });
    let stored = || file.write_all_at(&data, 0).and_then(|()| file.sync_all());
    eventually("there is room", || stored().is_ok());
    assert_eq!(store.content("file").unwrap()[..MIB], data);
}

/// A move of many files over a slow service takes many times the timeout, and nobody gives it up.
#[test]
fn a_rename_that_gets_on_has_no_clock() {
    const FILES: usize = 1200;
    let store = store();
    for n in 0..FILES {
        store.foreign_put(&format!("d/{n}"), "x", Metadata::new());
    }
    let timeout = Duration::from_secs(3);
    let m = Mount::with(&store, |config| config.timeout = Patience::of(timeout));
    let mut open = OpenOptions::new().append(true).open(m.path("d/7")).unwrap();
    // Sixteen at a time are copied, and then deleted.
    store.set_delay(timeout / 60);
    std::thread::scope(|scope| {
        let moved = scope.spawn(|| fs::rename(m.path("d"), m.path("e")));
        eventually("the move has begun", || store.counters().of(Op::Copy) > 0);
        // Who has something to store there waits for the move, and is not given up either.
        open.write_all(b"+").unwrap();
        open.sync_all().unwrap();
        moved.join().unwrap().unwrap();
    });
    store.set_delay(Duration::ZERO);
    assert!(store.names().iter().all(|name| name.starts_with('e')));
    assert_eq!(store.content("e/7").unwrap(), &b"x+"[..]);
    drop(open);
    assert_eq!(fs::read_dir(m.path("e")).unwrap().count(), FILES);
}

/// When the service stops answering in the middle of a move, each of its files is not waited for anew, and
/// nobody below waits for all of them.
#[test]
fn a_rename_that_is_cut_off_is_soon_over() {
    let store = store();
    for n in 0..300 {
        store.foreign_put(&format!("d/{n}"), "x", Metadata::new());
    }
    let m = Mount::new(&store);
    fs::metadata(m.path("d")).unwrap();
    store.fail(Op::Delete, blob_fs::store::fake::Fault::Lost, u64::MAX);
    assert_eq!(errno(fs::rename(m.path("d"), m.path("e"))), libc::EIO);
    let tried = store.counters().of(Op::Delete);
    assert!(tried <= 32, "{tried} deletions");
    store.heal();
    fs::rename(m.path("d"), m.path("e")).unwrap();
    assert_eq!(fs::read_dir(m.path("e")).unwrap().count(), 300);
}

/// What goes through memory is copied without holding a folder above still.
#[test]
fn a_copy_through_memory_holds_up_no_rename() {
    let store = store();
    store.refuse_stage_from(true);
    store.foreign_put("d/from", vec![7; 4 * MIB], Metadata::new());
    let m = Mount::new(&store);
    let from = File::open(m.path("d/from")).unwrap();
    let to = File::create(m.path("d/to")).unwrap();
    store.hold_answers(Op::Get);
    std::thread::scope(|scope| {
        let copied = scope.spawn(|| {
            let (null, len) = (std::ptr::null_mut(), 4 * MIB);
            // SAFETY: both are open files, and no offset is given.
            unsafe { libc::copy_file_range(from.as_raw_fd(), null, to.as_raw_fd(), null, len, 0) }
        });
        eventually("the source is read", || store.counters().of(Op::Get) > 0);
        let moved = scope.spawn(|| fs::rename(m.path("d"), m.path("e")));
        eventually("the folder is moved", || moved.is_finished());
        store.give_answers();
        moved.join().unwrap().unwrap();
        assert_eq!(copied.join().unwrap(), 4 * MIB as isize);
    });
    drop((from, to));
    assert!(fs::read(m.path("e/to")).unwrap() == vec![7; 4 * MIB]);
}

/// The end of a volume does not wait for each open file anew.
#[test]
fn the_end_tries_each_open_file_once() {
    let store = store();
    let m = Mount::new(&store);
    store.fail(Op::Put, blob_fs::store::fake::Fault::Lost, u64::MAX);
    let files: Vec<_> = (0..40)
        .map(|n| {
            let mut file = File::create(m.path(&format!("f{n}"))).unwrap();
            file.write_all(b"content").unwrap();
            file
        })
        .collect();
    let before = store.counters().of(Op::Put);
    assert!(abandoned(m, files).is_err(), "what is lost is told");
    let tried = store.counters().of(Op::Put) - before;
    assert!(tried <= 40, "{tried} requests");
}

/// Ends a mount whose files are open still: they are closed once it is.
fn abandoned(m: Mount, files: Vec<File>) -> std::io::Result<()> {
    let minor = nix::sys::stat::minor(std::os::unix::fs::MetadataExt::dev(
        &fs::metadata(m.root()).unwrap(),
    ));
    fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1").unwrap();
    let ended = m.end();
    drop(files);
    ended
}
