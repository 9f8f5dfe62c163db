//! Renames of files and directories, and what a failure in the middle leaves.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::common::*;
use crate::store;
use blob_client::Metadata;
use blob_fs::store::fake::{Fault, Op};

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

fn rename2(from: &Path, to: &Path, flags: u32) -> std::io::Result<()> {
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

#[test]
fn an_exchange_that_fails_loses_nothing() {
    for (op, nth) in [(Op::Copy, 0), (Op::Copy, 1), (Op::Copy, 2)] {
        let store = store();
        let m = Mount::new(&store);
        fs::write(m.path("a"), "A").unwrap();
        fs::write(m.path("b"), "B").unwrap();
        // Faults hit the next calls: let `nth` of them pass by waiting at the gate's counter.
        let before = store.counters().of(op);
        let path = (m.path("a"), m.path("b"));
        let failing = Arc::clone(&store);
        let watcher = std::thread::spawn(move || {
            if nth == 0 {
                failing.fail(op, Fault::Status(500, "InternalError"), 1);
                return;
            }
            while failing.counters().of(op) < before + nth {
                std::thread::yield_now();
            }
            failing.fail(op, Fault::Status(500, "InternalError"), 1);
        });
        if nth == 0 {
            watcher.join().unwrap();
            assert!(rename2(&path.0, &path.1, libc::RENAME_EXCHANGE).is_err());
        } else {
            let _ = rename2(&path.0, &path.1, libc::RENAME_EXCHANGE);
            store.heal();
            watcher.join().unwrap();
        }
        store.heal();
        let mut contents = [fs::read(m.path("a")).unwrap(), fs::read(m.path("b")).unwrap()];
        contents.sort();
        assert_eq!(contents, [b"A", b"B"], "{op:?} {nth}");
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
