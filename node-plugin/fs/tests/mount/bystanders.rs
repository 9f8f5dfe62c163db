//! How long programs wait that have nothing to do with what takes long: a rename of a large folder, slow
//! files, a slow volume. Measured against what the same programs take before it, so that a busy machine is no
//! reason to fail.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use blob_client::{Metadata, Patience};
use blob_fs::store::fake::{FakeStore, Op};

use crate::common::*;
use crate::store;

/// What nobody waits longer for than this, on a machine that has nothing else to do.
const MOST: Duration = Duration::from_secs(2);
/// How much longer than before anything may take on one that is busy.
const FACTOR: u32 = 20;
/// Before, and while it lasts.
const ROUNDS: usize = 25;
/// Who has not ended then waits for what takes long.
const LIMIT: Duration = Duration::from_secs(60);
const LARGE: usize = 12 << 20;

/// What a program does beside: its longest wait.
fn round(at: &Path, number: usize) -> (Duration, &'static str) {
    let mut longest = (Duration::ZERO, "");
    let mut begun = Instant::now();
    let mut done = |what| {
        longest = longest.max((begun.elapsed(), what));
        begun = Instant::now();
    };
    assert_eq!(fs::metadata(at.join("old")).unwrap().len(), 3);
    done("stat");
    // Past the kernel's cache.
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(at.join("old"))
        .unwrap();
    done("open");
    let mut read = [0; 4096];
    assert_eq!(direct.read_at(&mut read, 0).unwrap(), 3);
    done("read");
    drop(direct);
    assert!(!names(at).is_empty());
    done("list");
    let new = at.join(format!("new {number}"));
    let mut file = File::create(&new).unwrap();
    done("create");
    file.write_all(b"small").unwrap();
    file.sync_all().unwrap();
    done("write");
    drop(file);
    fs::remove_file(new).unwrap();
    done("remove");
    longest
}

/// Rounds of programs, each in one of these folders; the longest wait of all.
fn rounds(folders: &[&Path]) -> (Duration, &'static str) {
    let (told, waits) = channel();
    for folder in folders {
        let (told, folder) = (told.clone(), folder.to_path_buf());
        // Not scoped: one that hangs must not hold the test up.
        std::thread::spawn(move || {
            let longest = (0..ROUNDS).map(|number| round(&folder, number)).max();
            let _ = told.send(longest.unwrap());
        });
    }
    let all = folders
        .iter()
        .map(|_| waits.recv_timeout(LIMIT).expect("a bystander waits, or failed"));
    all.max().unwrap()
}

/// Programs in these folders wait as long as before, or nearly, while something `lasts`.
fn wait_no_longer(what: &str, folders: &[&Path], lasts: impl FnOnce() -> (Duration, &'static str)) {
    let before = rounds(folders);
    let beside = lasts();
    let most = MOST.max(before.0 * FACTOR);
    println!("{what}: {beside:?} beside it, {before:?} before, {most:?} at most");
    assert!(
        beside.0 <= most,
        "{what}: {beside:?} beside it, {before:?} before"
    );
}

fn furnished() -> std::sync::Arc<FakeStore> {
    let store = store();
    for folder in ["beside", "big"] {
        store.foreign_put(&format!("{folder}/old"), "old", Metadata::new());
    }
    store
}

fn timeless(config: &mut blob_fs::VolumeConfig) {
    // Each name is asked for, and what takes long takes as long as it likes.
    (config.attr_timeout, config.entry_timeout) = (Duration::ZERO, Duration::ZERO);
    config.timeout = Patience::of(Duration::from_secs(600));
}

#[test]
fn nobody_waits_beside_a_rename_of_a_large_folder() {
    let store = furnished();
    for n in 0..2000 {
        store.foreign_put(&format!("top/large/{n}"), "x", Metadata::new());
    }
    let m = Mount::with(&store, timeless);
    let folders = [m.path("beside"), m.path("big"), m.root().to_owned()];
    store.foreign_put("old", "old", Metadata::new());
    let folders: Vec<&Path> = folders.iter().map(|path| &**path).collect();
    wait_no_longer("a rename of 2,000 files", &folders, || {
        store.hold_answers(Op::Copy);
        let (from, to) = (m.path("top/large"), m.path("top/moved"));
        let moved = std::thread::spawn(move || fs::rename(from, to));
        eventually("it has begun", || store.counters().of(Op::Copy) > 0);
        let beside = rounds(&folders);
        assert!(!moved.is_finished(), "it was over: that is no test");
        store.give_answers();
        moved.join().unwrap().unwrap();
        beside
    });
    assert_eq!(names(&m.path("top/moved")).len(), 2000);
    m.end().unwrap();
}

#[test]
fn four_slow_files_hold_no_other_file_of_their_volume_up() {
    let store = furnished();
    let m = Mount::with(&store, timeless);
    let folders = [m.path("beside"), m.path("big")];
    let folders: Vec<&Path> = folders.iter().map(|path| &**path).collect();
    let files: Vec<File> = (0..4)
        .map(|n| {
            let mut file = File::create(m.path(&format!("big/slow {n}"))).unwrap();
            file.write_all(&vec![n; LARGE]).unwrap();
            file
        })
        .collect();
    wait_no_longer("four slow files", &folders, || {
        store.hold_answers(Op::Stage);
        let uploads: Vec<_> = files
            .into_iter()
            .map(|file| std::thread::spawn(move || file.sync_all()))
            .collect();
        eventually("all are being sent", || store.counters().of(Op::Stage) >= 4);
        let beside = rounds(&folders);
        assert!(uploads.iter().all(|upload| !upload.is_finished()));
        store.give_answers();
        uploads
            .into_iter()
            .for_each(|upload| upload.join().unwrap().unwrap());
        beside
    });
    m.end().unwrap();
    for n in 0..4 {
        assert_eq!(store.content(&format!("big/slow {n}")).unwrap(), vec![n; LARGE]);
    }
}

#[test]
fn a_slow_volume_holds_no_other_one_up() {
    let (slow, store) = (furnished(), furnished());
    let resources = resources_of(64 << 20);
    let [slow_one, m] = [&slow, &store].map(|store| Mount::on(&resources, store, timeless));
    let folders = [m.path("beside"), m.path("big")];
    let folders: Vec<&Path> = folders.iter().map(|path| &**path).collect();
    let files: Vec<File> = (0..12)
        .map(|n| File::create(slow_one.path(&format!("big/slow {n}"))).unwrap())
        .collect();
    wait_no_longer("a volume of which nobody answers", &folders, || {
        slow.close();
        let all: Vec<_> = files
            .into_iter()
            .map(|mut file| {
                // More than there is room for.
                std::thread::spawn(move || file.write_all(&vec![1; LARGE]).and_then(|()| file.sync_all()))
            })
            .collect();
        let looks = slow_one.path("beside/old");
        let looks = std::thread::spawn(move || fs::read(looks));
        let beside = rounds(&folders);
        assert!(!looks.is_finished() && all.iter().any(|one| !one.is_finished()));
        slow.open();
        for one in all {
            one.join().unwrap().unwrap();
        }
        assert_eq!(looks.join().unwrap().unwrap(), b"old");
        beside
    });
    slow_one.end().unwrap();
    m.end().unwrap();
}
