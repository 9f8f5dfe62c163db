//! A volume from mount to unmount: settings, errors, its end, its journal.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use crate::common::*;
use crate::store;
use blob_client::{BlobType, Metadata};
use blob_fs::Profile;
use blob_fs::store::fake::{Fault, Op};

/// Where the kernel shows its FUSE connections.
struct Control(tempfile::TempDir);

impl Control {
    fn mount() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let none: Option<&str> = None;
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(none, dir.path(), Some("fusectl"), flags, none).unwrap();
        Self(dir)
    }

    /// The connection of what is mounted there.
    fn of(&self, root: &Path) -> PathBuf {
        let line = listed(root);
        let device = line.split(' ').nth(2).unwrap();
        self.0.path().join(device.split_once(':').unwrap().1)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = nix::mount::umount(self.0.path());
    }
}

/// The line of a mount in mountinfo.
fn listed(root: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let root = root.to_str().unwrap();
    mounts.lines().find(|l| l.contains(root)).unwrap().to_owned()
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
fn a_folder_is_synced_with_what_is_closed_in_it() {
    let store = store();
    let m = Mount::new(&store);
    fs::create_dir(m.path("d")).unwrap();
    let folder = File::open(m.path("d")).unwrap();
    let mut open = File::create(m.path("d/open")).unwrap();
    open.write_all(b"x").unwrap();
    fs::write(m.path("d/closed"), "x").unwrap();
    folder.sync_all().unwrap();
    assert!(store.content("d").is_some() && store.content("d/closed").is_some());
    assert!(store.content("d/open").is_none(), "then say so");
    open.sync_all().unwrap();
    assert!(store.content("d/open").is_some());
}

/// Nobody writes down when a file was read, and the mount says so.
#[test]
fn access_times_are_as_the_mount_says() {
    let m = Mount::new(&store());
    let options = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = options
        .lines()
        .find(|l| l.contains(m.root().to_str().unwrap()))
        .unwrap();
    assert!(line.contains("noatime"), "{line}");
    fs::write(m.path("f"), "x").unwrap();
    let long_ago = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let times = fs::FileTimes::new().set_accessed(long_ago);
    fs::File::open(m.path("f")).unwrap().set_times(times).unwrap();
    assert_eq!(fs::read(m.path("f")).unwrap(), b"x");
    assert_eq!(fs::metadata(m.path("f")).unwrap().atime(), 1_000_000_000);
}

#[test]
fn statfs_says_what_programs_need() {
    let m = Mount::new(&store());
    let s = nix::sys::statvfs::statvfs(m.root()).unwrap();
    assert_eq!(s.name_max(), 255);
    assert!(s.blocks_available() > 0 && s.files_available() > 0);
    assert_eq!(s.blocks() * s.fragment_size(), 1 << 50);
    // Programs of 32 bits get EOVERFLOW for what does not fit into their fields; what counts in blocks of
    // f_bsize is to come to the same.
    for (what, value) in [
        ("blocks", s.blocks()),
        ("files", s.files()),
        ("block size", s.block_size()),
    ] {
        assert!(i32::try_from(value).is_ok(), "{what}: {value}");
    }
    assert_eq!(s.block_size(), s.fragment_size());
    let line = listed(m.root());
    assert!(line.contains("fuse.vsc-blob test-container"), "{line}");
    let device = line.split(' ').nth(2).unwrap();
    let kib = fs::read_to_string(format!("/sys/class/bdi/{device}/read_ahead_kb")).unwrap();
    assert_eq!(kib.trim(), "16384");
    // What was agreed on with the kernel.
    let control = Control::mount();
    let background = fs::read_to_string(control.of(m.root()).join("max_background"));
    assert_eq!(background.unwrap().trim(), "256");
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
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
    let error = blob_fs::fuse::mount(Path::new("/nonexistent"), "x", false).unwrap_err();
    assert!(error.to_string().contains("/nonexistent"), "{error}");
}

/// Whatever an operation panics in, its caller gets EIO, nobody waits for it, and the mount goes on.
#[test]
fn a_panic_is_eio_and_the_mount_goes_on() {
    let store = store();
    store.foreign_put("d/f", "content", Metadata::new());
    let m = Mount::new(&store);
    let act = || -> std::io::Result<()> {
        fs::metadata(m.path("d/absent"))
            .map(drop)
            .or_else(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })?;
        fs::read(m.path("d/f")).map(drop)?;
        let mut f = OpenOptions::new().append(true).open(m.path("d/f"))?;
        f.write_all(b"+")?;
        f.sync_all()?;
        fs::rename(m.path("d/f"), m.path("d/g"))?;
        fs::rename(m.path("d/g"), m.path("d/f"))
    };
    for nth in 0.. {
        store.fail_after(nth, Fault::Panic, 1);
        let outcome = act();
        let hit = store.heal();
        if !hit {
            outcome.unwrap();
            assert!(nth > 8, "only {nth} requests");
            break;
        }
        assert_eq!(errno(outcome), libc::EIO, "at {nth}");
        if File::open(m.path("d/f")).is_err() {
            fs::rename(m.path("d/g"), m.path("d/f")).unwrap();
        }
        let text = fs::read_to_string(m.path("d/f")).unwrap();
        assert_eq!(text.trim_end_matches('+'), "content", "at {nth}");
    }
}

/// Closes wait behind as many requests as the kernel lets out at a time: they are offered to whoever reads at
/// the very moment at which the connection ends.
#[test]
fn a_connection_that_ends_beside_requests_is_no_error() {
    const BACKGROUND: usize = 256;
    let control = Control::mount();
    let store = store();
    store.foreign_put("f", vec![1; 2 * 4096 * BACKGROUND], Metadata::new());
    let ended: Vec<_> = (0..20)
        .map(|_| {
            let m = Mount::new(&store);
            let connection = control.of(m.root());
            let file = File::open(m.path("f")).unwrap();
            let closed: Vec<_> = (0..100).map(|_| File::open(m.path("f")).unwrap()).collect();
            store.hold_answers(Op::Get);
            for page in 0..BACKGROUND {
                let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_WILLNEED;
                nix::fcntl::posix_fadvise(&file, 2 * 4096 * page as i64, 4096, advice).unwrap();
            }
            drop(closed);
            fs::write(connection.join("abort"), "1").unwrap();
            store.give_answers();
            drop(file);
            m.end()
        })
        .collect();
    for end in ended {
        end.unwrap();
    }
}
