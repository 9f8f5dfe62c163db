//! Modes, owners, times, extended attributes, special files.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::common::*;
use crate::{patient, store};
use blob_client::{BlockId, Metadata, StoredHeaders};
use blob_fs::config::Ownership;

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
fn what_is_made_belongs_to_whom_the_mount_says() {
    let store = store();
    let m = Mount::with(&store, |c| {
        (c.uid, c.gid, c.file_mode, c.dir_mode) = (1000, 2000, 0o660, 0o2770);
        c.ownership = Ownership {
            uid: Some(1000),
            gid: Some(2000),
            file_umask: 0o007,
            dir_umask: 0o007,
            group_writes: true,
        };
    });
    let made = |name: &str, mode: u32| {
        let mut options = OpenOptions::new();
        drop(
            options
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(m.path(name))
                .unwrap(),
        );
    };
    // The umask of this process takes at least what the group may write.
    made("f", 0o644);
    made("run", 0o755);
    made("secret", 0o600);
    fs::create_dir(m.path("d")).unwrap();
    fs::set_permissions(m.path("d"), Permissions::from_mode(0o2755)).unwrap();
    fs::create_dir(m.path("d/e")).unwrap();
    symlink("f", m.path("l")).unwrap();
    let check = |m: &Mount| {
        for (name, mode) in [
            ("f", 0o660),
            ("run", 0o770),
            ("secret", 0o600),
            // What somebody sets is what there is.
            ("d", 0o2755),
            ("d/e", 0o2770),
            ("l", 0o777),
        ] {
            let meta = fs::symlink_metadata(m.path(name)).unwrap();
            let found = (meta.mode() & 0o7777, meta.uid(), meta.gid());
            assert_eq!(found, (mode, 1000, 2000), "{name}: {:o}", found.0);
        }
    };
    check(&m);
    m.end().unwrap();
    check(&Mount::with(&store, |c| {
        (c.uid, c.gid, c.file_mode, c.dir_mode) = (1000, 2000, 0o660, 0o2770);
    }));
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
        ["vsc_ctime", "vsc_mtime", "vsc_times_of"]
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

pub(crate) fn xattr(path: &Path, name: &str, value: &[u8]) -> std::io::Result<()> {
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

pub(crate) fn get_xattr(path: &Path, name: &str) -> std::io::Result<Vec<u8>> {
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
    // As long as the close of the reader above is under way, its version counts: ESTALE.
    eventually("the reader is gone", || {
        errno(fs::set_permissions(m.path("f"), Permissions::from_mode(0o644))) == libc::ENOENT
    });
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

/// As many as the service has room for: 8 KiB for names and values of all metadata, of which a byte of an
/// attribute takes four thirds.
#[test]
fn extended_attributes_have_some_5_kib_in_all() {
    let store = store();
    let m = Mount::new(&store);
    fs::write(m.path("f"), "x").unwrap();
    let mut taken = 0;
    let refused = loop {
        let name = format!("user.attribute-{taken}");
        match xattr(&m.path("f"), &name, &[b'v'; 100]) {
            Ok(()) => taken += name.len() - "user.".len() + 100,
            Err(error) => break error.raw_os_error(),
        }
    };
    assert_eq!(refused, Some(libc::ENOSPC));
    assert!(taken > 5 * 1024, "{taken} bytes");
    // One that is too large by itself, as the kernel would say of any file system.
    assert_eq!(
        xattr(&m.path("f"), "user.large", &[0; 9000])
            .unwrap_err()
            .raw_os_error(),
        Some(libc::E2BIG)
    );
    fs::write(m.path("f"), "the content goes through").unwrap();
    m.end().unwrap();
    assert_eq!(store.content("f").unwrap(), "the content goes through");
}

/// "Whoever edits, truncates, overwrites or renames a file keeps what its owner stored with the blob."
#[test]
fn what_the_owner_stored_stays() {
    let store = store();
    let m = Mount::new(&store);
    let stored = StoredHeaders::of_type("text/html").unwrap();
    let blocks = |n: u8| {
        vec![
            (BlockId(vec![n; 8]), vec![n; 5 << 20].into()),
            (BlockId(vec![n + 1; 8]), vec![n; 5 << 20].into()),
        ]
    };
    let kept = |name: &str| assert_eq!(store.properties(name).unwrap().stored, stored, "{name}");
    for name in ["append", "truncate", "overwrite", "rename", "touch", "d/inside"] {
        store.foreign_put(name, "0123456789", Metadata::new());
        store.foreign_stored(name, stored.clone());
    }
    store.foreign_blocks("large", blocks(1));
    store.foreign_stored("large", stored.clone());
    let append = |name: &str| {
        let mut file = OpenOptions::new().append(true).open(m.path(name)).unwrap();
        file.write_all(b"more").unwrap();
        file.sync_all().unwrap();
    };
    append("append");
    // Twice: the second starts from what the first has made.
    append("append");
    kept("append");
    let cut = OpenOptions::new().write(true).open(m.path("truncate")).unwrap();
    cut.set_len(3).unwrap();
    cut.sync_all().unwrap();
    drop(cut);
    kept("truncate");
    fs::write(m.path("overwrite"), "new").unwrap();
    kept("overwrite");
    fs::rename(m.path("rename"), m.path("renamed")).unwrap();
    kept("renamed");
    fs::set_permissions(m.path("touch"), Permissions::from_mode(0o600)).unwrap();
    kept("touch");
    let large = OpenOptions::new().write(true).open(m.path("large")).unwrap();
    large.write_at(b"x", 6 << 20).unwrap();
    large.sync_all().unwrap();
    drop(large);
    assert!(store.block_sizes("large").len() > 1);
    kept("large");
    fs::rename(m.path("d"), m.path("e")).unwrap();
    kept("e/inside");
    // What is said without a new version counts from the next open on.
    let other = StoredHeaders::of_type("text/css").unwrap();
    store.foreign_stored("append", other.clone());
    append("append");
    assert_eq!(store.properties("append").unwrap().stored, other);
    // New files are typed; folders and links are not.
    fs::write(m.path("new.json"), "{}").unwrap();
    fs::create_dir(m.path("dir.json")).unwrap();
    symlink("new.json", m.path("link.json")).unwrap();
    let typed = |name: &str| store.properties(name).unwrap().stored.content_type().to_owned();
    assert_eq!(typed("new.json"), "application/json");
    assert_eq!(typed("dir.json"), "application/octet-stream");
    assert_eq!(typed("link.json"), "application/octet-stream");
    m.end().unwrap();
}
