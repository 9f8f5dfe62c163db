//! Renames of files and directories, and what a failure in the middle leaves.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use crate::common::*;
use crate::store;
use blob_client::Metadata;
use blob_fs::store::fake::{FakeStore, Fault, Op};
use bytes::Bytes;

/// What can go wrong with a request: once, or with all from there on.
const FAULTS: [(Fault, u64); 4] = [
    (Fault::Lost, 1),
    (Fault::Lost, u64::MAX),
    (Fault::AnswerLost, 1),
    (Fault::AnswerLost, u64::MAX),
];

#[test]
fn renames_of_files() {
    let store = store();
    let m = Mount::new(&store);
    fs::write(m.path("a"), "A").unwrap();
    fs::set_permissions(m.path("a"), Permissions::from_mode(0o600)).unwrap();
    fs::write(m.path("b"), "B").unwrap();
    fs::create_dir(m.path("d")).unwrap();
    let mut old_b = File::open(m.path("b")).unwrap();
    fs::rename(m.path("a"), m.path("b")).unwrap();
    assert_eq!(fs::read(m.path("b")).unwrap(), b"A");
    assert_eq!(fs::metadata(m.path("b")).unwrap().mode() & 0o7777, 0o600);
    let mut text = String::new();
    old_b.read_to_string(&mut text).unwrap();
    assert_eq!(text, "B");
    fs::rename(m.path("b"), m.path("d/c")).unwrap();
    assert_eq!(store.names(), ["d", "d/c"]);
    fs::create_dir(m.path("e")).unwrap();
    assert_eq!(errno(fs::rename(m.path("d/c"), m.path("e"))), libc::EISDIR);
    fs::remove_dir(m.path("e")).unwrap();
    assert_eq!(errno(fs::rename(m.path("d"), m.path("d/x"))), libc::EINVAL);
    assert_eq!(errno(fs::rename(m.path("nothing"), m.path("x"))), libc::ENOENT);
    // An open file that was never committed, over one that exists.
    let mut new = File::create(m.path("n")).unwrap();
    new.write_all(b"new").unwrap();
    fs::rename(m.path("n"), m.path("m")).unwrap();
    assert!(!store.names().contains(&"n".to_owned()));
    new.write_all(b"er").unwrap();
    fs::rename(m.path("m"), m.path("d/c")).unwrap();
    new.write_all(b"!").unwrap();
    drop(new);
    assert_eq!(fs::read(m.path("d/c")).unwrap(), b"newer!");
    assert_eq!(store.names(), ["d", "d/c"]);
    assert_eq!(store.content("d/c").unwrap(), "newer!".as_bytes());
}

pub(crate) fn rename2(from: &Path, to: &Path, flags: u32) -> std::io::Result<()> {
    // SAFETY: both are C strings.
    check(unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            c(from).as_ptr(),
            libc::AT_FDCWD,
            c(to).as_ptr(),
            flags,
        )
    } as libc::c_int)
}

#[test]
fn noreplace_and_exchange() {
    let store = store();
    let m = Mount::new(&store);
    fs::write(m.path("a"), "A").unwrap();
    fs::write(m.path("b"), "B").unwrap();
    fs::create_dir(m.path("d")).unwrap();
    fs::write(m.path("d/in"), "I").unwrap();
    assert_eq!(
        errno(rename2(&m.path("a"), &m.path("b"), libc::RENAME_NOREPLACE)),
        libc::EEXIST
    );
    rename2(&m.path("a"), &m.path("c"), libc::RENAME_NOREPLACE).unwrap();
    let open = File::open(m.path("c")).unwrap();
    rename2(&m.path("c"), &m.path("b"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(fs::read(m.path("b")).unwrap(), b"A");
    assert_eq!(fs::read(m.path("c")).unwrap(), b"B");
    rename2(&m.path("b"), &m.path("d"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(fs::read(m.path("d")).unwrap(), b"A");
    assert_eq!(fs::read(m.path("b/in")).unwrap(), b"I");
    let mut byte = [0];
    open.read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(&byte, b"A");
    assert_eq!(
        errno(rename2(&m.path("b"), &m.path("nothing"), libc::RENAME_EXCHANGE)),
        libc::ENOENT
    );
    assert_eq!(store.names(), ["b", "b/in", "c", "d"]);
    drop(open);
    m.end().unwrap();
    let m = Mount::new(&store);
    assert_eq!(fs::read(m.path("d")).unwrap(), b"A");
    assert_eq!(fs::read(m.path("b/in")).unwrap(), b"I");
}

/// Contents of all blobs, wherever they are.
fn contents(store: &FakeStore) -> Vec<Bytes> {
    let names = store.names();
    let mut contents: Vec<_> = names.iter().filter_map(|name| store.content(name)).collect();
    contents.sort();
    contents.dedup();
    contents
}

/// Whatever request goes wrong, once or from there on: both contents are stored, and shown at their names or
/// at the one they met at.
#[test]
fn an_exchange_that_fails_loses_nothing() {
    for (fault, times) in FAULTS {
        for nth in 0.. {
            let store = store();
            let m = Mount::new(&store);
            fs::write(m.path("a"), "A").unwrap();
            fs::write(m.path("b"), "B").unwrap();
            store.fail_after(nth, fault, times);
            let exchanged = rename2(&m.path("a"), &m.path("b"), libc::RENAME_EXCHANGE);
            if !store.heal() {
                exchanged.unwrap();
                assert_eq!(fs::read(m.path("a")).unwrap(), b"B");
                assert!(nth > 8, "only {nth} requests");
                break;
            }
            assert_eq!(contents(&store), ["A", "B"], "{fault:?} x {times} at {nth}");
            drop(m);
            let m = Mount::new(&store);
            let mut shown: Vec<_> = names(m.root())
                .iter()
                .map(|name| {
                    let expected =
                        ["a", "b"].contains(&name.as_str()) || name.starts_with(".vsc-blob-exchange.");
                    assert!(expected, "{name}");
                    fs::read(m.path(name)).unwrap()
                })
                .collect();
            shown.sort();
            shown.dedup();
            assert_eq!(shown, [b"A", b"B"], "{fault:?} x {times} at {nth}");
        }
    }
}

#[test]
fn renames_of_directories() {
    let store = store();
    store.foreign_put("implicit/deep/f", "I", Metadata::new());
    store.foreign_put("implicit//odd", "O", Metadata::new());
    let m = Mount::new(&store);
    fs::create_dir_all(m.path("d/sub/empty")).unwrap();
    fs::write(m.path("d/f"), "1").unwrap();
    fs::write(m.path("d/sub/g"), "2").unwrap();
    let mtime = fs::metadata(m.path("d/f")).unwrap().modified().unwrap();
    let mut open = OpenOptions::new().append(true).open(m.path("d/sub/g")).unwrap();
    let mut new = File::create(m.path("d/sub/new")).unwrap();
    new.write_all(b"n").unwrap();
    open.write_all(b"+").unwrap();
    fs::rename(m.path("d"), m.path("e")).unwrap();
    open.write_all(b"+").unwrap();
    new.write_all(b"n").unwrap();
    drop((open, new));
    assert_eq!(fs::read(m.path("e/sub/g")).unwrap(), b"2++");
    assert_eq!(fs::read(m.path("e/sub/new")).unwrap(), b"nn");
    assert_eq!(fs::metadata(m.path("e/f")).unwrap().modified().unwrap(), mtime);
    assert_eq!(errno(fs::metadata(m.path("d"))), libc::ENOENT);
    // Over an empty directory, not over a full one.
    fs::create_dir(m.path("x")).unwrap();
    fs::rename(m.path("e"), m.path("x")).unwrap();
    fs::create_dir(m.path("y")).unwrap();
    assert_eq!(errno(fs::rename(m.path("y"), m.path("x"))), libc::ENOTEMPTY);
    fs::rename(m.path("implicit"), m.path("y")).unwrap();
    assert_eq!(fs::read(m.path("y/deep/f")).unwrap(), b"I");
    assert_eq!(
        store.names(),
        [
            "x",
            "x/f",
            "x/sub",
            "x/sub/empty",
            "x/sub/g",
            "x/sub/new",
            "y//odd",
            "y/deep/f"
        ]
    );
    m.end().unwrap();
    let m = Mount::new(&store);
    assert_eq!(fs::read(m.path("x/sub/g")).unwrap(), b"2++");
    assert_eq!(names(&m.path("x/sub")), ["empty", "g", "new"]);
}

#[test]
fn a_directory_rename_that_fails_changes_nothing() {
    let store = store();
    let m = Mount::new(&store);
    fs::create_dir(m.path("d")).unwrap();
    for i in 0..20 {
        fs::write(m.path(&format!("d/{i}")), "x").unwrap();
    }
    let before = store.names();
    store.fail(Op::Copy, Fault::Status(500, "InternalError"), 3);
    assert_eq!(errno(fs::rename(m.path("d"), m.path("e"))), libc::EIO);
    store.heal();
    assert_eq!(store.names(), before);
    assert_eq!(names(&m.path("d")).len(), 20);
    fs::rename(m.path("d"), m.path("e")).unwrap();
    assert_eq!(names(&m.path("e")).len(), 20);
}

/// Whatever request goes wrong, every file is at its old or its new name, and the same rename, by the same
/// mount or another, finishes the move.
#[test]
fn a_directory_rename_that_is_cut_off_loses_nothing_and_can_be_finished() {
    let files = ["1", "2", "sub/3", "sub/deep/4"];
    for implicit in [false, true] {
        for (fault, times) in FAULTS {
            for remount in [false, true] {
                for nth in 0.. {
                    let what =
                        format!("implicit {implicit}, {fault:?} x {times} at {nth}, remount {remount}");
                    let store = store();
                    for file in files {
                        store.foreign_put(&format!("old/{file}"), file, Metadata::new());
                    }
                    if !implicit {
                        store.foreign_put("old", "", meta(&[("hdi_isfolder", "true"), ("vsc_mode", "700")]));
                    }
                    store.foreign_put("old/empty", "", meta(&[("hdi_isfolder", "true")]));
                    let mut m = Mount::new(&store);
                    let listed = names(&m.path("old"));
                    store.fail_after(nth, fault, times);
                    let first = fs::rename(m.path("old"), m.path("new"));
                    let hit = store.heal();
                    for file in files {
                        let found = ["old", "new"].map(|at| store.content(&format!("{at}/{file}")));
                        assert!(
                            found.iter().flatten().any(|c| c == file),
                            "{what}: {file} is lost"
                        );
                    }
                    if remount {
                        drop(m);
                        m = Mount::new(&store);
                    }
                    let again = first.is_err().then(|| fs::rename(m.path("old"), m.path("new")));
                    if let Some(Err(error)) = again {
                        // All that was lost is the answer; the name may be known for a while.
                        assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{what}");
                        eventually("the old name expires", || fs::metadata(m.path("old")).is_err());
                    }
                    assert_eq!(errno(fs::metadata(m.path("old"))), libc::ENOENT, "{what}");
                    assert_eq!(names(&m.path("new")), listed, "{what}");
                    for file in files {
                        assert_eq!(
                            fs::read_to_string(m.path("new").join(file)).unwrap(),
                            file,
                            "{what}"
                        );
                    }
                    if !implicit {
                        let mode = fs::metadata(m.path("new")).unwrap().mode();
                        assert_eq!(mode & 0o7777, 0o700, "{what}");
                    }
                    let left: Vec<_> = store
                        .names()
                        .into_iter()
                        .filter(|n| n.starts_with("old"))
                        .collect();
                    assert!(left.is_empty(), "{what}: {left:?}");
                    if !hit {
                        assert!(nth > 15, "only {nth} requests");
                        assert_eq!(store.names().contains(&"new".to_owned()), !implicit);
                        for name in store.names() {
                            let metadata = store.properties(&name).unwrap().metadata;
                            assert!(!metadata.contains_key("vsc_moved_from"), "{name}");
                        }
                        break;
                    }
                }
            }
        }
    }
}

/// Only the same directory goes on: a full one that happens to be in the way stays as it is, and so does
/// what was written at the new name meanwhile.
#[test]
fn a_directory_rename_is_finished_by_the_same_directory_only() {
    let store = store();
    let m = Mount::new(&store);
    fs::create_dir(m.path("old")).unwrap();
    for i in 0..5 {
        fs::write(m.path(&format!("old/{i}")), "first").unwrap();
    }
    // Everything is copied, nothing deleted.
    store.fail(Op::Delete, Fault::Status(500, "InternalError"), 1000);
    assert_eq!(errno(fs::rename(m.path("old"), m.path("new"))), libc::EIO);
    store.heal();
    fs::write(m.path("new/1"), "second, at the new name").unwrap();
    fs::write(m.path("old/2"), "second, at the old name").unwrap();
    // Another directory is not the one that was being moved.
    fs::create_dir(m.path("other")).unwrap();
    fs::write(m.path("other/0"), "other").unwrap();
    assert_eq!(errno(fs::rename(m.path("other"), m.path("new"))), libc::ENOTEMPTY);
    // Nobody knows whether what was written at a new name is to replace what is at the old one.
    assert_eq!(errno(fs::rename(m.path("old"), m.path("new"))), libc::ENOTEMPTY);
    let read = |name: &str| fs::read_to_string(m.path(name)).unwrap();
    assert_eq!(
        (read("old/1"), read("new/1")),
        ("first".into(), "second, at the new name".into())
    );
    fs::remove_file(m.path("old/1")).unwrap();
    fs::rename(m.path("old"), m.path("new")).unwrap();
    assert_eq!(read("new/0"), "first");
    assert_eq!(read("new/1"), "second, at the new name");
    assert_eq!(read("new/2"), "second, at the old name");
    assert_eq!(names(m.root()), ["new", "other"]);
    // It is an ordinary directory again.
    fs::create_dir(m.path("old")).unwrap();
    assert_eq!(errno(fs::rename(m.path("old"), m.path("new"))), libc::ENOTEMPTY);
    // An empty directory in the way of a move that fails is still there.
    fs::create_dir(m.path("empty")).unwrap();
    store.fail(Op::Copy, Fault::Status(500, "InternalError"), 1000);
    assert!(fs::rename(m.path("other"), m.path("empty")).is_err());
    store.heal();
    outlive_timeouts();
    assert!(names(&m.path("empty")).is_empty());
    assert_eq!(names(&m.path("other")), ["0"]);
}

#[test]
fn a_lookup_during_a_directory_rename_waits_for_it() {
    let store = store();
    let m = Mount::new(&store);
    fs::create_dir(m.path("d")).unwrap();
    for i in 0..50 {
        fs::write(m.path(&format!("d/{i}")), "x").unwrap();
    }
    let open = OpenOptions::new().append(true).open(m.path("d/7")).unwrap();
    let inode = open.metadata().unwrap().ino();
    let inside = File::open(m.path("d")).unwrap();
    outlive_timeouts();
    store.set_delay(Duration::from_millis(20));
    let (from, to) = (m.path("d"), m.path("e"));
    let rename = std::thread::spawn(move || fs::rename(from, to).unwrap());
    while !rename.is_finished() {
        // By the open directory: the name on the way there is locked by the kernel.
        let name = std::ffi::CString::new("7").unwrap();
        // SAFETY: an open descriptor, a C string, and a structure to fill in.
        let stat = unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            check(libc::fstatat(inside.as_raw_fd(), name.as_ptr(), &mut stat, 0)).map(|()| stat.st_ino)
        };
        assert_eq!(stat.unwrap(), inode);
    }
    rename.join().unwrap();
    store.set_delay(Duration::ZERO);
    let mut open = open;
    open.write_all(b"y").unwrap();
    drop((open, inside));
    assert_eq!(store.content("e/7").unwrap(), "xy".as_bytes());
}

/// Files made in a folder on its way are in it when it has arrived.
#[test]
fn files_made_during_a_directory_rename_move_along() {
    const MANY: usize = 500;
    let store = store();
    let m = Mount::with(&store, crate::patient);
    fs::create_dir(m.path("d")).unwrap();
    for i in 0..50 {
        fs::write(m.path(&format!("d/{i}")), "x").unwrap();
    }
    // The kernel knows that they are not there, and makes them without asking for the name, which would wait
    // for the rename.
    for i in 0..MANY {
        assert!(!m.path(&format!("d/new{i}")).exists());
    }
    let inside = File::open(m.path("d")).unwrap();
    store.set_delay(Duration::from_millis(10));
    let (from, to) = (m.path("d"), m.path("e"));
    let rename = std::thread::spawn(move || fs::rename(from, to).unwrap());
    let mut made = 0;
    while !rename.is_finished() && made < MANY {
        let name = std::ffi::CString::new(format!("new{made}")).unwrap();
        // SAFETY: an open descriptor and a C string; the descriptor that comes out is owned by the file.
        let mut file = unsafe {
            let flags = libc::O_WRONLY | libc::O_CREAT;
            let fd = libc::openat(inside.as_raw_fd(), name.as_ptr(), flags, 0o644);
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            File::from_raw_fd(fd)
        };
        file.write_all(b"new").unwrap();
        file.sync_all().unwrap();
        made += 1;
    }
    rename.join().unwrap();
    store.set_delay(Duration::ZERO);
    drop(inside);
    for i in 0..made {
        let name = format!("e/new{i}");
        assert_eq!(fs::read(m.path(&name)).unwrap(), b"new", "{name}");
        assert_eq!(store.content(&name).unwrap(), "new".as_bytes());
    }
    assert!(store.names().iter().all(|name| name.starts_with('e')));
}

/// Somebody's lease or snapshots: the file stays what and where it was, also for who has it open.
#[test]
fn a_rename_whose_deletion_is_refused_changes_nothing() {
    for (fault, expected) in [
        (Fault::Status(412, "LeaseIdMissing"), libc::EBUSY),
        (Fault::Status(409, "SnapshotsPresent"), libc::EPERM),
    ] {
        let store = store();
        let m = Mount::new(&store);
        fs::write(m.path("f"), "content").unwrap();
        let mut open = OpenOptions::new().append(true).open(m.path("f")).unwrap();
        store.fail(Op::Delete, fault, 1);
        assert_eq!(errno(fs::rename(m.path("f"), m.path("g"))), expected);
        assert_eq!(store.names(), ["f"], "the copy is taken back");
        open.write_all(b"+").unwrap();
        open.sync_all().unwrap();
        assert_eq!(store.content("f").unwrap(), "content+".as_bytes());
        // Over another file, which the copy has replaced already: both names have the content, and the handle
        // the old one.
        fs::write(m.path("g"), "replaced").unwrap();
        let mut replaced = File::open(m.path("g")).unwrap();
        store.fail(Op::Delete, fault, 1);
        assert_eq!(errno(fs::rename(m.path("f"), m.path("g"))), expected);
        open.write_all(b"+").unwrap();
        open.sync_all().unwrap();
        assert_eq!(store.content("f").unwrap(), "content++".as_bytes());
        assert_eq!(fs::read(m.path("g")).unwrap(), b"content+");
        let mut text = String::new();
        replaced.read_to_string(&mut text).unwrap();
        assert_eq!(text, "replaced");
        drop((open, replaced));
        fs::rename(m.path("f"), m.path("g")).unwrap();
        assert_eq!(fs::read(m.path("g")).unwrap(), b"content++");
        assert_eq!(store.names(), ["g"]);
    }
}

/// A rename moves what the service has, and what was known before is not shown for it.
#[test]
fn a_rename_of_an_unseen_version_shows_that_version() {
    let store = store();
    let m = Mount::new(&store);
    fs::write(m.path("f"), "known here").unwrap();
    assert_eq!(fs::read(m.path("f")).unwrap(), b"known here");
    store.foreign_put("f", "written elsewhere", Metadata::new());
    fs::rename(m.path("f"), m.path("g")).unwrap();
    assert_eq!(fs::read(m.path("g")).unwrap(), b"written elsewhere");
    assert_eq!(fs::metadata(m.path("g")).unwrap().len(), 17);
    // Who has the older version open for writing is told.
    let mut open = OpenOptions::new().append(true).open(m.path("g")).unwrap();
    store.foreign_put("g", "again", Metadata::new());
    fs::rename(m.path("g"), m.path("h")).unwrap();
    open.write_all(b"+").unwrap();
    assert_eq!(errno(open.sync_all()), libc::ESTALE);
    assert_eq!(fs::read(m.path("h")).unwrap(), b"again");
    drop(open);
    assert_eq!(store.content("h").unwrap(), "again".as_bytes());
}

/// A folder of too many blobs is not renamed: `mv` copies it, in sight, and can be ended.
#[test]
fn a_folder_above_the_limit_is_another_device() {
    let store = store();
    let m = Mount::with(&store, |config| config.rename_limit = 3);
    for n in 0..3 {
        fs::create_dir_all(m.path("small")).unwrap();
        fs::write(m.path(&format!("small/{n}")), "x").unwrap();
        store.foreign_put(&format!("large/d/{n}"), "x", Metadata::new());
    }
    store.foreign_put("large/more", "x", Metadata::new());
    let before = store.names();
    assert_eq!(errno(fs::rename(m.path("large"), m.path("moved"))), libc::EXDEV);
    assert_eq!(store.names(), before, "nothing was changed");
    fs::rename(m.path("small"), m.path("moved small")).unwrap();
    // Within it.
    fs::rename(m.path("large/d"), m.path("large/e")).unwrap();
    let mv = std::process::Command::new("mv")
        .args([m.path("large"), m.path("moved")])
        .status()
        .unwrap();
    assert!(mv.success());
    assert_eq!(fs::read(m.path("moved/e/2")).unwrap(), b"x");
    assert!(!m.path("large").exists());
}

/// Neither are two folders exchanged of which one is above it: nothing is copied to find that out.
#[test]
fn folders_above_the_limit_are_not_exchanged() {
    let store = store();
    let m = Mount::with(&store, |config| config.rename_limit = 3);
    for n in 0..5 {
        store.foreign_put(&format!("large/{n}"), "x", Metadata::new());
    }
    store.foreign_put("small/x", "x", Metadata::new());
    let before = store.names();
    for (a, b) in [("small", "large"), ("large", "small")] {
        let exchanged = rename2(&m.path(a), &m.path(b), libc::RENAME_EXCHANGE);
        assert_eq!(errno(exchanged), libc::EXDEV);
    }
    assert_eq!(store.names(), before);
    assert_eq!(store.counters().of(Op::Copy), 0);
}

/// Requests of a mount that are not answered yet.
fn unanswered(m: &Mount) -> usize {
    let connection = nix::sys::stat::minor(fs::metadata(m.root()).unwrap().dev());
    let path = format!("/sys/fs/fuse/connections/{connection}/waiting");
    fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

/// A file that is being sent holds nobody up who looks for names beside it, also while its folder is to be
/// moved: that waits for the upload, and they do not wait for that.
#[test]
fn nobody_waits_for_an_upload_below_a_folder_that_is_to_move() {
    let store = store();
    let m = Mount::new(&store);
    fs::create_dir(m.path("d")).unwrap();
    fs::write(m.path("d/other"), "x").unwrap();
    store.hold_answers(Op::Stage);
    let data = vec![7; 20 << 20];
    std::thread::scope(|scope| {
        let upload = scope.spawn(|| {
            let mut file = File::create(m.path("d/large")).unwrap();
            file.write_all(&data).unwrap();
            file.sync_all().unwrap();
        });
        eventually("the upload has begun", || store.counters().of(Op::Stage) > 0);
        let moved = scope.spawn(|| fs::rename(m.path("d"), m.path("e")).unwrap());
        eventually("both wait", || unanswered(&m) >= 2);
        for _ in 0..3 {
            assert_eq!(fs::read(m.path("d/other")).unwrap(), b"x");
            fs::write(m.path("d/other"), "x").unwrap();
        }
        assert!(!upload.is_finished() && !moved.is_finished());
        store.give_answers();
        moved.join().unwrap();
        upload.join().unwrap();
    });
    assert_eq!(fs::read(m.path("e/large")).unwrap(), data);
    m.end().unwrap();
    assert_eq!(store.content("e/large").unwrap(), data);
    assert_eq!(store.content("d/large"), None);
}

/// What is taken away while a request for it is lost waits until that cannot be executed any more. Nobody
/// waits with it who looks at what is beside it, also in a folder that is to move.
#[test]
fn nobody_waits_with_what_waits_for_a_lost_request() {
    let store = store();
    for name in ["d/f", "d/g", "d/other", "d/empty/x"] {
        store.foreign_put(name, "x", Metadata::new());
    }
    let m = Mount::with(&store, |config| {
        // Each name is asked for.
        config.entry_timeout = Duration::ZERO;
        config.attr_timeout = Duration::ZERO;
    });
    fs::remove_file(m.path("d/empty/x")).unwrap();
    // The kernel keeps a directory to itself that changes, but for names that it knows.
    assert_eq!(fs::read(m.path("d/other")).unwrap(), b"x");
    type Step<'a> = Box<dyn Fn() -> std::io::Result<()> + Send + Sync + 'a>;
    let steps: [Step<'_>; 4] = [
        Box::new(|| fs::remove_file(m.path("d/f"))),
        Box::new(|| fs::rename(m.path("d/g"), m.path("h"))),
        Box::new(|| fs::remove_dir(m.path("d/empty"))),
        Box::new(|| fs::rename(m.path("d"), m.path("e"))),
    ];
    std::thread::scope(|scope| {
        for step in &steps {
            store.unsettle(true);
            let waits = scope.spawn(step);
            eventually("it waits", || unanswered(&m) >= 1);
            let (told, read) = std::sync::mpsc::channel();
            let other = m.path("d/other");
            scope.spawn(move || told.send(fs::read(other)));
            let read = read.recv_timeout(Duration::from_secs(30));
            let waited = !waits.is_finished();
            store.unsettle(false);
            assert_eq!(read.expect("it waits with it").unwrap(), b"x");
            assert!(waited);
            waits.join().unwrap().unwrap();
        }
    });
    drop(steps);
    assert_eq!(fs::read(m.path("e/other")).unwrap(), b"x");
    assert_eq!(store.content("h").unwrap(), &b"x"[..]);
    let left = store.names();
    assert!(
        !left.iter().any(|name| name.split('/').next() == Some("d")),
        "{left:?}"
    );
    m.end().unwrap();
}

/// What a rename is refused for in any case is told before anything is sent for it.
#[test]
fn what_a_rename_is_refused_for_is_told_before_anything_is_sent() {
    let store = store();
    let m = Mount::with(&store, |config| config.rename_limit = 3);
    for n in 0..5 {
        store.foreign_put(&format!("large/{n}"), "x", Metadata::new());
    }
    for name in ["small/x", "full/x"] {
        store.foreign_put(name, "x", Metadata::new());
    }
    let open = ["large/new", "small/new"].map(|name| {
        let mut file = File::create(m.path(name)).unwrap();
        file.write_all(&vec![7; 12 << 20]).unwrap();
        file
    });
    // The first block of each goes by itself.
    let asked = |op| store.counters().of(op);
    eventually("full blocks are sent", || asked(Op::Stage) == 2);
    let refused = |from: &str, to: &str| errno(fs::rename(m.path(from), m.path(to)));
    assert_eq!(refused("large", "moved"), libc::EXDEV);
    assert_eq!(refused("small", "full"), libc::ENOTEMPTY);
    let exchanged = rename2(&m.path("small"), &m.path("large"), libc::RENAME_EXCHANGE);
    assert_eq!(errno(exchanged), libc::EXDEV);
    let kept = rename2(&m.path("small"), &m.path("full"), libc::RENAME_NOREPLACE);
    assert_eq!(errno(kept), libc::EEXIST);
    assert_eq!((asked(Op::Stage), asked(Op::Commit), asked(Op::Copy)), (2, 0, 0));
    drop(open);
    m.end().unwrap();
    assert_eq!(store.content("large/new").unwrap().len(), 12 << 20);
}
