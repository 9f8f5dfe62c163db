//! File system operations on real mounts over a container in memory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]
#![allow(unsafe_code, reason = "system calls that std does not offer")]

mod common;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use blob_client::{BlobType, Metadata};
use blob_fs::Profile;
use blob_fs::store::fake::{FakeStore, Fault, Op};
use common::*;

fn store() -> Arc<FakeStore> {
    Arc::new(FakeStore::new())
}

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
fn a_small_new_file_is_one_request() {
    let store = store();
    let m = Mount::new(&store);
    fs::create_dir(m.path("d")).unwrap();
    store.reset_counters();
    fs::write(m.path("d/f"), b"x").unwrap();
    let counters = store.counters();
    assert_eq!((counters.of(Op::Put), counters.total()), (1, 1), "{counters:?}");
}

/// Timeouts that no test outlives: counters then do not depend on how fast the machine is.
fn patient(config: &mut blob_fs::VolumeConfig) {
    let minute = Duration::from_secs(60);
    (config.attr_timeout, config.entry_timeout, config.negative_timeout) = (minute, minute, minute);
}

#[test]
fn a_listing_is_one_request_per_page_and_no_head() {
    let store = store();
    for i in 0..12_000 {
        store.foreign_put(&format!("d/f{i}"), "x", meta(&[("vsc_mode", "600")]));
    }
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
    m.end().unwrap();
    let m = Mount::new(&store);
    assert_eq!(names(m.root()), ["a", "c", "f"]);
    assert_eq!(names(&m.path("a")), ["b"]);
    fs::remove_dir(m.path("a/b")).unwrap();
    fs::remove_dir(m.path("a")).unwrap();
    fs::remove_dir(m.path("c")).unwrap();
    assert_eq!(store.names(), ["f"]);
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
fn attributes_survive_a_remount() {
    let store = store();
    let m = Mount::new(&store);
    fs::write(m.path("f"), "x").unwrap();
    fs::create_dir(m.path("d")).unwrap();
    store.foreign_put("foreign", "x", meta(&[("owner", "alice")]));
    store.foreign_put("implicit/x", "x", Metadata::new());
    for (name, mode) in [
        ("f", 0o640),
        ("d", 0o2711),
        ("foreign", 0o600),
        ("implicit", 0o700),
        ("", 0o750),
    ] {
        fs::set_permissions(m.path(name), Permissions::from_mode(mode)).unwrap();
        std::os::unix::fs::lchown(m.path(name), Some(12), Some(34)).unwrap();
        // Changing the owner drops set-group-id of files only.
        let time = UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
        File::open(m.path(name))
            .unwrap()
            .set_times(fs::FileTimes::new().set_modified(time))
            .unwrap();
    }
    xattr(&m.path("f"), "user.color", b"\0\xff blue").unwrap();
    m.end().unwrap();
    let m = Mount::new(&store);
    for (name, mode) in [
        ("f", 0o640),
        ("d", 0o2711),
        ("foreign", 0o600),
        ("implicit", 0o700),
        ("", 0o750),
    ] {
        let meta = fs::metadata(m.path(name)).unwrap();
        assert_eq!(
            (meta.mode() & 0o7777, meta.uid(), meta.gid()),
            (mode, 12, 34),
            "{name:?}"
        );
        assert_eq!(
            (meta.mtime(), meta.mtime_nsec()),
            (1_234_567_890, 123_456_789),
            "{name:?}"
        );
    }
    assert_eq!(get_xattr(&m.path("f"), "user.color").unwrap(), b"\0\xff blue");
    assert_eq!(
        store
            .properties("foreign")
            .unwrap()
            .metadata
            .get("owner")
            .unwrap(),
        "alice"
    );
    assert_eq!(fs::read(m.path("foreign")).unwrap(), b"x");
}

#[test]
fn defaults_come_from_the_mount_and_are_not_stored() {
    let store = store();
    store.foreign_put("f", "x", Metadata::new());
    let m = Mount::with(&store, |c| {
        (c.uid, c.gid, c.file_mode, c.dir_mode) = (1000, 2000, 0o600, 0o700);
    });
    let meta = fs::metadata(m.path("f")).unwrap();
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o7777),
        (1000, 2000, 0o600)
    );
    assert_eq!(m.root().metadata().unwrap().mode() & 0o7777, 0o700);
    let f = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(m.path("g"))
        .unwrap();
    std::os::unix::fs::fchown(&f, Some(1000), Some(2000)).unwrap();
    drop(f);
    let stored = store.properties("g").unwrap().metadata;
    assert_eq!(
        stored.keys().map(String::as_str).collect::<Vec<_>>(),
        ["vsc_mtime"]
    );
}

#[test]
fn attributes_of_an_open_file_travel_with_its_commit() {
    let store = store();
    let m = Mount::new(&store);
    let f = File::create(m.path("f")).unwrap();
    (&f).write_all(b"x").unwrap();
    store.reset_counters();
    f.set_permissions(Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(m.path("f"), Permissions::from_mode(0o611)).unwrap();
    assert_eq!(store.counters().total(), 0);
    drop(f);
    assert_eq!(store.counters().total(), 1);
    assert_eq!(
        store.properties("f").unwrap().metadata.get("vsc_mode").unwrap(),
        "611"
    );
}

fn xattr(path: &Path, name: &str, value: &[u8]) -> std::io::Result<()> {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: all pointers are valid for the lengths given.
    check(unsafe {
        libc::setxattr(
            c(path).as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    })
}

fn get_xattr(path: &Path, name: &str) -> std::io::Result<Vec<u8>> {
    let name = std::ffi::CString::new(name).unwrap();
    let mut value = vec![0; 65536];
    // SAFETY: all pointers are valid for the lengths given.
    let len = unsafe {
        libc::getxattr(
            c(path).as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    if len < 0 {
        return Err(std::io::Error::last_os_error());
    }
    value.truncate(len as usize);
    Ok(value)
}

#[test]
fn extended_attributes() {
    let store = store();
    let m = Mount::new(&store);
    fs::write(m.path("f"), "x").unwrap();
    assert_eq!(errno(get_xattr(&m.path("f"), "user.a")), libc::ENODATA);
    xattr(&m.path("f"), "user.a", b"1").unwrap();
    xattr(&m.path("f"), "user.b", b"").unwrap();
    assert_eq!(get_xattr(&m.path("f"), "user.a").unwrap(), b"1");
    let mut list = vec![0u8; 100];
    // SAFETY: the buffer has the length given.
    let len = unsafe { libc::listxattr(c(&m.path("f")).as_ptr(), list.as_mut_ptr().cast(), list.len()) };
    assert_eq!(&list[..len as usize], b"user.a\0user.b\0");
    let name = std::ffi::CString::new("user.a").unwrap();
    // SAFETY: both are C strings.
    check(unsafe { libc::removexattr(c(&m.path("f")).as_ptr(), name.as_ptr()) }).unwrap();
    assert_eq!(errno(get_xattr(&m.path("f"), "user.a")), libc::ENODATA);
    assert_eq!(errno(xattr(&m.path("f"), "user.big", &[1; 7000])), libc::ENOSPC);
    assert_eq!(errno(xattr(&m.path("f"), "user.big", &[1; 9000])), libc::E2BIG);
    assert_eq!(errno(xattr(&m.path("f"), "trusted.x", b"")), libc::EOPNOTSUPP);
    assert_eq!(fs::read(m.path("f")).unwrap(), b"x");
}

#[test]
fn special_files_and_links() {
    let store = store();
    let m = Mount::new(&store);
    symlink("some/tärget", m.path("l")).unwrap();
    nix::unistd::mkfifo(&m.path("p"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(m.path("s")).unwrap();
    drop(listener);
    store.foreign_put("theirs", "../x", meta(&[("is_symlink", "true")]));
    m.end().unwrap();
    let m = Mount::new(&store);
    assert_eq!(fs::read_link(m.path("l")).unwrap(), Path::new("some/tärget"));
    assert_eq!(fs::read_link(m.path("theirs")).unwrap(), Path::new("../x"));
    assert_eq!(fs::symlink_metadata(m.path("l")).unwrap().len(), 12);
    let fifo = fs::metadata(m.path("p")).unwrap();
    assert!(fifo.file_type().is_fifo());
    assert_eq!(fifo.mode() & 0o7777, 0o600);
    assert!(fs::metadata(m.path("s")).unwrap().file_type().is_socket());
    assert_eq!(store.content("l").unwrap(), "some/tärget".as_bytes());
    let device = nix::sys::stat::mknod(
        &m.path("dev"),
        nix::sys::stat::SFlag::S_IFCHR,
        nix::sys::stat::Mode::empty(),
        0,
    );
    assert_eq!(device.unwrap_err(), nix::errno::Errno::EPERM);
    assert_eq!(errno(fs::hard_link(m.path("p"), m.path("p2"))), libc::EPERM);
    // A FIFO is the kernel's own once opened.
    let path = m.path("p");
    let writer = std::thread::spawn(move || fs::write(path, "through").unwrap());
    assert_eq!(fs::read(m.path("p")).unwrap(), b"through");
    writer.join().unwrap();
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
fn two_mounts_see_each_others_closed_files_at_the_next_open() {
    let store = store();
    let (a, b) = (Mount::new(&store), Mount::new(&store));
    for round in 0..5 {
        let text = format!("round {round} {}", "x".repeat(round * 10));
        fs::write(a.path("f"), &text).unwrap();
        if round == 0 {
            eventually("absence expires", || b.path("f").exists());
        }
        assert_eq!(fs::read_to_string(b.path("f")).unwrap(), text);
        let mut f = OpenOptions::new().append(true).open(b.path("f")).unwrap();
        f.write_all(b"+b").unwrap();
        drop(f);
        assert_eq!(fs::read_to_string(a.path("f")).unwrap(), text + "+b");
    }
}

#[test]
fn a_reader_keeps_its_version_and_a_late_writer_is_told() {
    let store = store();
    let (a, b) = (Mount::new(&store), Mount::new(&store));
    fs::write(a.path("f"), "one").unwrap();
    eventually("absence expires", || b.path("f").exists());
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
    assert_eq!(seek(0, libc::SEEK_HOLE), 10_000);
    assert_eq!(seek(10_000, libc::SEEK_DATA), 60_000);
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

#[test]
fn read_only_mounts_refuse_changes_and_other_blob_kinds_writing() {
    let store = store();
    store.foreign_put("f", "x", Metadata::new());
    store.foreign_put("log", "x", Metadata::new());
    store.set_blob_type("log", BlobType::Append);
    let m = Mount::with(&store, |c| c.read_only = true);
    assert_eq!(fs::read(m.path("f")).unwrap(), b"x");
    assert_eq!(errno(fs::write(m.path("g"), "")), libc::EROFS);
    assert_eq!(errno(fs::remove_file(m.path("f"))), libc::EROFS);
    m.end().unwrap();
    let m = Mount::new(&store);
    assert_eq!(fs::read(m.path("log")).unwrap(), b"x");
    assert_eq!(
        errno(OpenOptions::new().append(true).open(m.path("log"))),
        libc::EPERM
    );
    fs::remove_file(m.path("log")).unwrap();
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

#[test]
fn the_streaming_profile_and_prefixes() {
    let store = store();
    store.foreign_put("outside", "x", Metadata::new());
    store.foreign_put("vol/one/in", "x", Metadata::new());
    let m = Mount::with(&store, |c| {
        c.prefix = "vol/one".into();
        c.profile = Profile::Streaming;
    });
    assert_eq!(names(m.root()), ["in"]);
    let data = vec![3u8; 4 << 20];
    fs::write(m.path("big"), &data).unwrap();
    assert!(fs::read(m.path("big")).unwrap() == data);
    fs::set_permissions(m.root(), Permissions::from_mode(0o711)).unwrap();
    let big = File::open(m.path("big")).unwrap();
    fs::remove_file(m.path("big")).unwrap();
    drop(big);
    m.end().unwrap();
    let m = Mount::with(&store, |c| c.prefix = "vol/one".into());
    assert_eq!(m.root().metadata().unwrap().mode() & 0o7777, 0o711);
    assert_eq!(store.names(), ["outside", "vol/one", "vol/one/in"]);
}

#[test]
fn statfs_says_what_programs_need() {
    let m = Mount::new(&store());
    let s = nix::sys::statvfs::statvfs(m.root()).unwrap();
    assert_eq!(s.name_max(), 255);
    assert!(s.blocks_available() > 0 && s.files_available() > 0);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts
        .lines()
        .find(|l| l.contains(m.root().to_str().unwrap()))
        .unwrap();
    assert!(line.contains("fuse.vsc-blob test-container"), "{line}");
    let device = line.split(' ').nth(2).unwrap();
    let kib = fs::read_to_string(format!("/sys/class/bdi/{device}/read_ahead_kb")).unwrap();
    assert_eq!(kib.trim(), "16384");
}

#[test]
fn what_was_written_and_not_closed_is_committed_at_the_end() {
    let store = store();
    let m = Mount::new(&store);
    let mut f = File::create(m.path("f")).unwrap();
    f.write_all(b"unclosed").unwrap();
    m.volume().sync().unwrap();
    assert_eq!(store.content("f").unwrap(), "unclosed".as_bytes());
    assert!(m.volume().is_serving());
    f.write_all(b"!").unwrap();
    drop(f);
    m.end().unwrap();
    assert_eq!(store.content("f").unwrap(), "unclosed!".as_bytes());
}

#[test]
fn the_journal_knows_what_a_replacement_needs() {
    let store = store();
    let m = Mount::new(&store);
    fs::create_dir(m.path("d")).unwrap();
    let mut f = File::create(m.path("d/f")).unwrap();
    f.write_all(b"not there yet").unwrap();
    let journal = m.volume().journal();
    let state = journal.state().unwrap();
    let id = |name: &str| {
        state
            .nodes
            .iter()
            .find(|(_, (_, n))| n == name)
            .map(|(id, _)| *id)
            .unwrap()
    };
    assert_eq!(state.nodes[&id("f")].0, id("d"));
    assert_eq!(state.nodes[&id("d")].0, 1);
    assert_eq!(f.metadata().unwrap().ino(), id("f"));
    assert_eq!(state.handles.values().filter(|h| h.0 == id("f")).count(), 1);
    let dirty: Vec<_> = state.dirty[&id("f")]
        .extents
        .iter()
        .map(|(at, e)| (*at, e.len, e.arena.is_some()))
        .collect();
    assert_eq!(dirty, [(0, 13, true)]);
    // mkdir and create were answered.
    assert_eq!(
        state.replies.iter().map(|r| (r.1, r.2)).collect::<Vec<_>>(),
        [(0, id("d")), (0, id("f"))]
    );
    f.sync_all().unwrap();
    let id = id("f");
    let state = journal.state().unwrap();
    assert!(state.dirty.is_empty());
    assert_eq!(state.versions[&id], store.properties("d/f").unwrap().etag.0);
    drop(f);
    fs::remove_file(m.path("d/f")).unwrap();
    eventually("node and handle are forgotten", || {
        let state = journal.state().unwrap();
        state.handles.is_empty() && !state.nodes.contains_key(&id)
    });
}

#[test]
fn errors_of_the_service_have_numbers() {
    let store = store();
    let m = Mount::new(&store);
    store.fail(Op::Put, Fault::Status(403, "AuthorizationFailure"), 1);
    let mut f = File::create(m.path("f")).unwrap();
    f.write_all(b"x").unwrap();
    assert_eq!(errno(f.sync_all()), libc::EACCES);
    f.sync_all().unwrap();
    store.fail(Op::List, Fault::Lost, 100);
    assert_eq!(errno(fs::metadata(m.path("unknown/x"))), libc::EIO);
    store.heal();
    assert_eq!(errno(fs::metadata(m.path("unknown/x"))), libc::ENOENT);
}

#[test]
fn a_missing_container_is_said_at_once() {
    let store = store();
    store.fail(Op::List, Fault::Status(404, "ContainerNotFound"), 1);
    let dir = tempfile::tempdir().unwrap();
    let config = blob_fs::VolumeConfig::new("gone", store as Arc<dyn blob_fs::Store>);
    let fd = blob_fs::fuse::mount(dir.path(), "gone", false).unwrap();
    let error = blob_fs::Volume::serve(config, fd, dir.path().to_owned(), resources()).unwrap_err();
    nix::mount::umount(dir.path()).unwrap();
    assert!(
        matches!(
            error.kind(),
            std::io::ErrorKind::NotFound | std::io::ErrorKind::Other
        ),
        "{error}"
    );
    let error = blob_fs::fuse::mount(Path::new("/nonexistent"), "x", false).unwrap_err();
    assert!(error.to_string().contains("/nonexistent"), "{error}");
}

#[test]
fn changes_of_attributes_leave_the_modification_time() {
    let store = store();
    store.foreign_put("f", "x", Metadata::new());
    let m = Mount::new(&store);
    let mtime = fs::metadata(m.path("f")).unwrap().modified().unwrap();
    // `Last-Modified` has whole seconds.
    outlive_timeouts();
    fs::set_permissions(m.path("f"), Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fs::metadata(m.path("f")).unwrap().modified().unwrap(), mtime);
    xattr(&m.path("f"), "user.a", b"1").unwrap();
    m.end().unwrap();
    let m = Mount::new(&store);
    assert_eq!(fs::metadata(m.path("f")).unwrap().modified().unwrap(), mtime);
    assert!(store.properties("f").unwrap().last_modified > mtime);
}

#[test]
fn attributes_set_on_top_of_somebody_elses_version() {
    let store = store();
    store.foreign_put("f", "old", Metadata::new());
    let m = Mount::with(&store, patient);
    assert_eq!(fs::metadata(m.path("f")).unwrap().len(), 3);
    store.foreign_put("f", "newer", meta(&[("owner", "bob")]));
    fs::set_permissions(m.path("f"), Permissions::from_mode(0o600)).unwrap();
    let stored = store.properties("f").unwrap().metadata;
    assert_eq!(
        (stored["owner"].as_str(), stored["vsc_mode"].as_str()),
        ("bob", "600")
    );
    assert_eq!(fs::metadata(m.path("f")).unwrap().len(), 5);
    assert_eq!(fs::read(m.path("f")).unwrap(), b"newer");
    store.foreign_delete("f");
    assert_eq!(
        errno(fs::set_permissions(m.path("f"), Permissions::from_mode(0o644))),
        libc::ENOENT
    );
}

#[test]
fn times_can_be_set_and_count_on() {
    let store = store();
    let m = Mount::new(&store);
    fs::write(m.path("f"), "x").unwrap();
    let f = OpenOptions::new().write(true).open(m.path("f")).unwrap();
    let old = UNIX_EPOCH - Duration::new(100, 250_000_000);
    f.set_times(fs::FileTimes::new().set_modified(old).set_accessed(UNIX_EPOCH))
        .unwrap();
    let meta = f.metadata().unwrap();
    assert_eq!(
        (meta.modified().unwrap(), meta.accessed().unwrap()),
        (old, UNIX_EPOCH)
    );
    let before = SystemTime::now() - Duration::from_secs(1);
    (&f).write_all(b"y").unwrap();
    assert!(f.metadata().unwrap().modified().unwrap() > before);
    drop(f);
    let mtime = fs::metadata(m.path("f")).unwrap().modified().unwrap();
    m.end().unwrap();
    let m = Mount::new(&store);
    assert_eq!(fs::metadata(m.path("f")).unwrap().modified().unwrap(), mtime);
}
