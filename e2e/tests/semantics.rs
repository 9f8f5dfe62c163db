//! What docs/semantics.md promises, sentence by sentence, with the system calls themselves.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirEntryExt, FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use blob_client::Metadata;
use e2e::harness::backend::Kind;
use e2e::harness::mount::MountOptions;
use e2e::harness::setup::{Setup, Way};
use e2e::harness::tools::run;
use e2e::harness::{PATIENCE, wait_for};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FallocateFlags, Flock, FlockArg, RenameFlags, fallocate, renameat2};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::{Whence, lseek};

fn setup() -> Result<Setup> {
    Setup::new(Kind::Embedded, Way::Https)
}

/// The operating system's error of a result that must be one.
fn errno<T>(result: std::io::Result<T>) -> Errno {
    match result {
        Ok(_) => panic!("succeeded, but should not have"),
        Err(error) => Errno::from_raw(error.raw_os_error().unwrap_or_default()),
    }
}

// ------------------------------------------------------------------------------------------------ durability

/// "What fsync acknowledged is in the service", while the file is still open.
#[test]
fn fsync_reaches_the_service() -> Result<()> {
    let setup = setup()?;
    let mount = setup.mount("semantics", "mnt")?;
    let container = setup.backend().container("semantics")?;
    let mut file = File::create(mount.path().join("log"))?;
    let mut wanted = Vec::new();
    for round in 0..3u8 {
        let part = vec![round + 1; 3_000_000 + usize::from(round)];
        file.write_all(&part)?;
        wanted.extend(part);
        file.sync_all()?;
        ensure!(
            container.read("log")? == wanted,
            "round {round}: the service has other bytes"
        );
    }
    drop(file);
    mount.unmount()?;
    Ok(())
}

/// "What close acknowledged is in the service, not in a local file": the process dies right after.
#[test]
fn close_survives_the_death_of_the_process() -> Result<()> {
    let setup = setup()?;
    let mount = setup.mount("semantics", "mnt")?;
    // By a program of its own: other tests of this process start children, which inherit its open files and
    // close them, and from the third close of a file on a close does not wait.
    let source = setup.folder("source")?;
    fs::create_dir(source.join("folder"))?;
    for number in 0..20 {
        let file = source.join(format!("folder/file {number}"));
        fs::write(file, format!("content {number}\n"))?;
    }
    let large = vec![0x5a; 9 << 20];
    fs::write(source.join("large"), &large)?;
    let copied = Command::new("cp")
        .arg("-r")
        .args([source.join("folder"), source.join("large")])
        .arg(mount.path())
        .status()?;
    ensure!(copied.success(), "cp: {copied}");
    mount.kill()?;

    let mount = setup.mount("semantics", "mnt")?;
    for number in 0..20 {
        let text = fs::read_to_string(mount.path().join(format!("folder/file {number}")))?;
        ensure!(text == format!("content {number}\n"), "file {number}: {text:?}");
    }
    ensure!(fs::read(mount.path().join("large"))? == large);
    mount.unmount()?;
    Ok(())
}

/// A descriptor that cannot write has made the file all the same.
#[test]
fn a_file_created_for_reading_only_is_kept() -> Result<()> {
    let setup = setup()?;
    let mount = setup.mount("semantics", "mnt")?;
    let path = mount.path().join("made");
    let flags = nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_CREAT | nix::fcntl::OFlag::O_EXCL;
    drop(nix::fcntl::open(&path, flags, Mode::from_bits_truncate(0o600))?);
    ensure!(fs::metadata(&path)?.permissions().mode() & 0o777 == 0o600);
    mount.unmount()?;
    ensure!(setup.backend().container("semantics")?.read("made")?.is_empty());
    Ok(())
}

/// Stores through a shared mapping reach the service with msync or close.
#[test]
fn shared_mappings_reach_the_service() -> Result<()> {
    let setup = setup()?;
    let mount = setup.mount("semantics", "mnt")?;
    let path = mount.path().join("mapped");
    fs::write(&path, vec![b'.'; 100_000])?;
    // Python maps without unsafe code here.
    run(Command::new("python3")
        .arg("-c")
        .arg(
            "import mmap, sys\n\
         with open(sys.argv[1], 'r+b') as f:\n\
         \twith mmap.mmap(f.fileno(), 0) as m:\n\
         \t\tm[50000:50005] = b'hello'\n\
         \t\tm.flush()\n",
        )
        .arg(&path))?;
    let container = setup.backend().container("semantics")?;
    let bytes = container.read("mapped")?;
    ensure!(bytes.len() == 100_000 && &bytes[50_000..50_005] == b"hello");
    mount.unmount()?;
    Ok(())
}

// ------------------------------------------------------------------------------------------------ two mounts

/// "What close returned is visible to the next open anywhere": contents, sizes, new files.
#[test]
fn next_open_on_another_mount_sees_what_was_closed() -> Result<()> {
    let setup = setup()?;
    let one = setup.mount("shared", "one")?;
    let two = setup.mount("shared", "two")?;
    fs::write(one.path().join("new"), "new")?;
    ensure!(fs::read_to_string(two.path().join("new"))? == "new", "a new file");
    for round in 0..5 {
        // Longer and shorter in turn, so that a stale size shows.
        let text = format!("round {round} ").repeat(if round % 2 == 0 { 1000 } else { 10 });
        fs::write(one.path().join("file"), &text)?;
        ensure!(
            fs::read_to_string(two.path().join("file"))? == text,
            "round {round}, one -> two"
        );
        let answer = format!("answer {round}");
        fs::write(two.path().join("file"), &answer)?;
        ensure!(
            fs::read_to_string(one.path().join("file"))? == answer,
            "round {round}, two -> one"
        );
    }
    one.unmount()?;
    two.unmount()?;
    Ok(())
}

/// "At once": no time passes between the close, rename or unlink on one mount and the open on the other, over
/// either path.
#[test]
fn next_open_on_another_mount_is_right_at_once() -> Result<()> {
    for way in [Way::Https, Way::Channel] {
        let setup = Setup::new(Kind::Embedded, way)?;
        let one = setup.mount("shared", "one")?;
        let two = setup.mount("shared", "two")?;
        for round in 0..100 {
            // In turn, so that each side knows what it did itself, too.
            let (from, to) = if round % 2 == 0 {
                (one.path(), two.path())
            } else {
                (two.path(), one.path())
            };
            ensure!(!to.join("file").exists(), "round {round}: before");
            for text in ["created", "CREATED", "overwritten"] {
                fs::write(from.join("file"), text)?;
                let mut file = File::open(to.join("file"))?;
                ensure!(file.metadata()?.len() == text.len() as u64, "round {round}: size");
                let mut read = String::new();
                file.read_to_string(&mut read)?;
                ensure!(read == text, "round {round}: {read:?} instead of {text:?}");
            }
            ensure!(!to.join("renamed").exists());
            fs::rename(from.join("file"), from.join("renamed"))?;
            ensure!(fs::read_to_string(to.join("renamed"))? == "overwritten");
            ensure!(
                errno(File::open(to.join("file"))) == Errno::ENOENT,
                "round {round}: the old name"
            );
            let names: Vec<_> = fs::read_dir(to)?
                .map(|entry| entry.map(|entry| entry.file_name()))
                .collect::<std::io::Result<_>>()?;
            ensure!(names == ["renamed"], "round {round}: {names:?}");
            fs::remove_file(from.join("renamed"))?;
            ensure!(
                errno(File::open(to.join("renamed"))) == Errno::ENOENT,
                "round {round}: removed"
            );
        }
        one.unmount()?;
        two.unmount()?;
    }
    Ok(())
}

/// Names that are gone and attributes follow within the timeouts (one second by default) for who only looks
/// and does not open.
#[test]
fn names_of_another_mount_follow_within_the_timeouts() -> Result<()> {
    let setup = setup()?;
    let one = setup.mount("shared", "one")?;
    let two = setup.mount("shared", "two")?;
    let (there, here) = (one.path().join("appears"), two.path().join("appears"));
    ensure!(!here.exists());
    fs::write(&there, "x")?;
    ensure!(here.exists(), "absence is not believed");
    let names = |folder: &Path| -> Result<Vec<_>> {
        Ok(fs::read_dir(folder)?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<std::io::Result<_>>()?)
    };
    wait_for("the name in the listing", PATIENCE, || {
        Ok((names(two.path())? == ["appears"]).then_some(()))
    })?;
    fs::remove_file(&there)?;
    wait_for("a removed name to go", PATIENCE, || {
        Ok((!here.exists()).then_some(()))
    })?;
    wait_for("the listing without it", PATIENCE, || {
        Ok(names(two.path())?.is_empty().then_some(()))
    })?;
    one.unmount()?;
    two.unmount()?;
    Ok(())
}

/// Writes a file and waits until it is in the service. A close alone may not: programs that other tests of
/// this process start have its descriptors for a moment, and from the third close of one open on none waits.
fn store_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    Ok(file.sync_all()?)
}

/// "A reader keeps the version it opened" or is told: it never sees a mixture of two versions, nor the end of
/// another one, also when the new version is opened beside it.
#[test]
fn a_reader_never_sees_a_mixture() -> Result<()> {
    let setup = setup()?;
    let one = setup.mount("shared", "one")?;
    let two = setup.mount("shared", "two")?;
    let size = 24 << 20;
    for new_size in [size, 1000] {
        for beside in [false, true] {
            store_file(&one.path().join("file"), &vec![1; size])?;
            let mut reader = File::open(two.path().join("file"))?;
            let mut first = vec![0; 1 << 20];
            reader.read_exact(&mut first)?;
            ensure!(first.iter().all(|byte| *byte == 1));
            store_file(&one.path().join("file"), &vec![2; new_size])?;
            let newer = beside.then(|| File::open(two.path().join("file"))).transpose()?;
            if let Some(newer) = &newer {
                let mut byte = [0];
                newer.read_exact_at(&mut byte, 0)?;
                ensure!(byte == [2] && newer.metadata()?.len() == new_size as u64);
                ensure!(reader.metadata()?.len() == size as u64, "the reader's own size");
            }
            let mut rest = Vec::new();
            match reader.read_to_end(&mut rest) {
                Ok(_) => ensure!(
                    rest.len() == size - first.len() && rest.iter().all(|byte| *byte == 1),
                    "the rest is not of the version that was opened"
                ),
                // The service keeps only the latest version: what was not read ahead is gone, and the reader
                // is told.
                Err(error) => ensure!(error.raw_os_error() == Some(libc::ESTALE), "{error}"),
            }
            // The next open has the new version, whole.
            ensure!(fs::read(two.path().join("file"))? == vec![2; new_size]);
        }
    }
    one.unmount()?;
    two.unmount()?;
    Ok(())
}

/// One process follows a log, one appends to it on the same mount, and both mounts append in turn: no line is
/// lost.
#[test]
fn an_appender_beside_a_reader_of_an_older_version() -> Result<()> {
    let setup = setup()?;
    let one = setup.mount("shared", "one")?;
    let two = setup.mount("shared", "two")?;
    let append = |folder: &Path, line: &str| -> Result<()> {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(folder.join("log"))?;
        file.write_all(line.as_bytes())?;
        file.sync_all()?;
        Ok(())
    };
    let mut wanted = String::new();
    let mut readers = Vec::new();
    for round in 0..10 {
        for (folder, name) in [(one.path(), "one"), (two.path(), "two")] {
            let line = format!("{name} {round} {}\n", "x".repeat(round * 7));
            append(folder, &line)?;
            wanted += &line;
            // Left open, each on its version, which goes on while only this mount writes.
            let mut reader = File::open(two.path().join("log"))?;
            let mut read = String::new();
            reader.read_to_string(&mut read)?;
            ensure!(read == wanted, "round {round}: {read:?}");
            readers.push((reader, read.len()));
        }
        for (reader, length) in &readers {
            let mut bytes = vec![0; reader.metadata()?.len() as usize];
            match reader.read_exact_at(&mut bytes, 0) {
                Ok(()) => ensure!(
                    bytes.len() >= *length && wanted.as_bytes().starts_with(&bytes),
                    "round {round}: not a version of the log"
                ),
                Err(error) => ensure!(error.raw_os_error() == Some(libc::ESTALE), "{error}"),
            }
        }
    }
    ensure!(setup.backend().container("shared")?.read("log")? == wanted.as_bytes());
    drop(readers);
    one.unmount()?;
    two.unmount()?;
    Ok(())
}

/// "A writer that lost a race gets ESTALE", and the winner's bytes stay.
#[test]
fn the_loser_of_a_race_gets_estale() -> Result<()> {
    let setup = setup()?;
    let one = setup.mount("shared", "one")?;
    let two = setup.mount("shared", "two")?;
    fs::write(one.path().join("file"), "original")?;
    let open = |folder: &Path| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(folder.join("file"))
    };
    let mut winner = open(one.path())?;
    let mut loser = open(two.path())?;
    winner.write_all(b"WINNER!!")?;
    loser.write_all(b"loser")?;
    winner.sync_all()?;
    ensure!(errno(loser.sync_all()) == Errno::ESTALE);
    drop(winner);
    drop(loser);
    let container = setup.backend().container("shared")?;
    ensure!(container.read("file")? == b"WINNER!!");
    ensure!(
        fs::read(two.path().join("file"))? == b"WINNER!!",
        "the loser's mount goes on with the winner's version"
    );
    one.unmount()?;
    two.unmount()?;
    Ok(())
}

// ------------------------------------------------------------------------------------------------ one mount

#[test]
fn an_unlinked_file_lives_until_it_is_closed() -> Result<()> {
    let setup = setup()?;
    let mount = setup.mount("semantics", "mnt")?;
    let path = mount.path().join("temporary");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    file.write_all(b"before ")?;
    file.sync_all()?;
    fs::remove_file(&path)?;
    ensure!(!path.exists());
    file.write_all(b"after")?;
    file.seek(SeekFrom::Start(0))?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    ensure!(text == "before after", "{text:?}");
    ensure!(file.metadata()?.nlink() == 0, "an unlinked file has no links");
    // A new file of the same name is another file.
    fs::write(&path, "another")?;
    drop(file);
    ensure!(fs::read_to_string(&path)? == "another");
    fs::remove_file(&path)?;
    mount.unmount()?;
    ensure!(
        setup.backend().container("semantics")?.blobs()?.is_empty(),
        "blobs are left behind"
    );
    Ok(())
}

/// A large file that is deleted while open is kept under a hidden name, held by a lease; what a process that
/// was killed has left goes with the next mount.
#[test]
fn hidden_blobs_of_a_killed_process_are_collected() -> Result<()> {
    let setup = setup()?;
    let container = setup.backend().create_container("semantics")?;
    container.write(".vsc-blob-hidden.of-a-user", "not ours", &Metadata::new())?;
    let ours = || -> Result<Vec<String>> {
        let names = container.blobs()?.into_keys();
        Ok(names.filter(|name| !name.ends_with("of-a-user")).collect())
    };
    let mount = setup.mount("semantics", "one")?;
    let bytes = vec![0x5a; 20 << 20];
    fs::write(mount.path().join("large"), &bytes)?;
    let mut open = File::open(mount.path().join("large"))?;
    fs::remove_file(mount.path().join("large"))?;
    let hidden = ours()?;
    ensure!(
        hidden.len() == 1 && hidden[0].starts_with(".vsc-blob-hidden."),
        "{hidden:?}"
    );
    // Another mount begins while it is held.
    setup.mount("semantics", "two")?.unmount()?;
    let mut read = Vec::new();
    open.read_to_end(&mut read)?;
    ensure!(read == bytes);
    ensure!(ours()? == hidden);
    mount.kill()?;
    drop(open);
    ensure!(ours()? == hidden, "nobody was left to delete it");
    // A minute later it ends by itself.
    e2e::harness::runtime().block_on(container.client().break_lease(&hidden[0]))?;
    let mount = setup.mount("semantics", "two")?;
    wait_for("the hidden blob to be deleted", PATIENCE, || {
        Ok(ours()?.is_empty().then_some(()))
    })?;
    mount.unmount()?;
    ensure!(container.read(".vsc-blob-hidden.of-a-user")? == b"not ours");
    Ok(())
}

#[test]
fn renames() -> Result<()> {
    let setup = setup()?;
    let mount = setup.mount("semantics", "mnt")?;
    let root = mount.path().to_owned();
    let at = |name: &str| root.join(name);
    fs::write(at("a"), "a")?;
    fs::write(at("b"), "b")?;
    let rename_with = |from: &str, to: &str, flags| renameat2(AT_FDCWD, &at(from), AT_FDCWD, &at(to), flags);

    ensure!(rename_with("a", "b", RenameFlags::RENAME_NOREPLACE) == Err(Errno::EEXIST));
    rename_with("a", "b", RenameFlags::RENAME_EXCHANGE)?;
    ensure!(
        fs::read(at("a"))? == b"b" && fs::read(at("b"))? == b"a",
        "exchanged"
    );
    ensure!(rename_with("a", "missing", RenameFlags::RENAME_EXCHANGE) == Err(Errno::ENOENT));
    fs::rename(at("a"), at("b"))?;
    ensure!(!at("a").exists() && fs::read(at("b"))? == b"b", "replaced");

    // A folder with contents, over an empty one; the open file inside goes on under its new name.
    fs::create_dir_all(at("old/deep/deeper"))?;
    for number in 0..30 {
        fs::write(at(&format!("old/deep/{number}")), number.to_string())?;
    }
    let mut open = OpenOptions::new().append(true).open(at("old/deep/0"))?;
    fs::create_dir(at("new"))?;
    fs::rename(at("old"), at("new"))?;
    open.write_all(b" and more")?;
    drop(open);
    ensure!(fs::read(at("new/deep/0"))? == b"0 and more");
    ensure!(!at("old").exists() && at("new/deep/deeper").is_dir());
    ensure!(fs::read_dir(at("new/deep"))?.count() == 31);
    ensure!(
        errno(fs::rename(at("new"), at("new/deep/inside"))) == Errno::EINVAL,
        "into itself"
    );
    fs::create_dir_all(at("full/x"))?;
    ensure!(matches!(
        errno(fs::rename(at("new"), at("full"))),
        Errno::ENOTEMPTY | Errno::EEXIST
    ));
    ensure!(errno(fs::rename(at("b"), at("full"))) == Errno::EISDIR);
    ensure!(errno(fs::rename(at("full"), at("b"))) == Errno::ENOTDIR);
    mount.unmount()?;

    let mount = setup.mount("semantics", "mnt")?;
    ensure!(fs::read(at("new/deep/0"))? == b"0 and more" && fs::read(at("new/deep/29"))? == b"29");
    ensure!(!at("old").exists());
    mount.unmount()?;
    Ok(())
}

#[test]
fn holes() -> Result<()> {
    let setup = setup()?;
    let mount = setup.mount("semantics", "mnt")?;
    let path = mount.path().join("sparse");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    // 1 MiB of data, a hole up to 20 MiB, 1 MiB of data.
    file.write_all_at(&vec![7; 1 << 20], 0)?;
    file.write_all_at(&vec![8; 1 << 20], 20 << 20)?;
    ensure!(file.metadata()?.len() == 21 << 20);
    ensure!(lseek(&file, 0, Whence::SeekHole)? == 1 << 20);
    ensure!(lseek(&file, 2 << 20, Whence::SeekData)? == 20 << 20);
    ensure!(
        lseek(&file, 21 << 20, Whence::SeekData) == Err(Errno::ENXIO),
        "past the end"
    );
    // Punching keeps the size and reads as zeros.
    fallocate(
        &file,
        FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
        100_000,
        200_000,
    )?;
    let mut part = vec![1; 300_002];
    file.read_exact_at(&mut part, 99_999)?;
    ensure!(part[0] == 7 && part[200_001..].iter().all(|byte| *byte == 7));
    ensure!(part[1..200_001].iter().all(|byte| *byte == 0));
    // Allocation beyond the end extends with zeros.
    fallocate(&file, FallocateFlags::empty(), 21 << 20, 4096)?;
    ensure!(file.metadata()?.len() == (21 << 20) + 4096);
    let before = fs::read(&path)?;
    drop(file);
    mount.unmount()?;
    let mount = setup.mount("semantics", "mnt")?;
    ensure!(fs::read(&path)? == before, "other bytes after the remount");
    mount.unmount()?;
    Ok(())
}

#[test]
fn copy_file_range_copies() -> Result<()> {
    let setup = setup()?;
    let mount = setup.mount("semantics", "mnt")?;
    let bytes: Vec<u8> = (0..10_000_000_u32)
        .map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    fs::write(mount.path().join("from"), &bytes)?;
    // From an odd offset, by the system call itself: cp and the standard library may fall back to reading.
    let script = "import os, sys\n\
        source, target = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)\n\
        at, left = 1000001, 8000000\n\
        while left:\n\
        \x20   done = os.copy_file_range(source, target, left, at)\n\
        \x20   assert done > 0\n\
        \x20   at, left = at + done, left - done\n\
        os.close(target)\n";
    run(Command::new("python3")
        .args(["-c", script])
        .arg(mount.path().join("from"))
        .arg(mount.path().join("to")))?;
    let container = setup.backend().container("semantics")?;
    ensure!(container.read("to")? == bytes[1_000_001..9_000_001]);
    mount.unmount()?;
    Ok(())
}

#[test]
fn locks_hold_within_a_mount() -> Result<()> {
    let setup = setup()?;
    let mount = setup.mount("semantics", "mnt")?;
    let path = mount.path().join("lock");
    let held = Flock::lock(File::create(&path)?, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    // The refused file is dropped here, or it would keep the mount busy.
    let refused = Flock::lock(File::open(&path)?, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| errno)
        .err();
    ensure!(refused == Some(Errno::EWOULDBLOCK), "flock: {refused:?}");
    drop(held);
    Flock::lock(File::open(&path)?, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
    // fcntl: another process must be refused, and let in afterwards.
    let script = "import fcntl, subprocess, sys\n\
        f = open(sys.argv[1], 'r+')\n\
        fcntl.lockf(f, fcntl.LOCK_EX, 10, 5)\n\
        probe = 'import fcntl, sys\\nf = open(sys.argv[1], \"r+\")\\nfcntl.lockf(f, fcntl.LOCK_EX | \
        fcntl.LOCK_NB, 10, int(sys.argv[2]))'\n\
        run = lambda at: subprocess.run([sys.executable, '-c', probe, sys.argv[1], at], \
        stderr=subprocess.DEVNULL).returncode\n\
        assert run('0') != 0, 'overlapping range was given twice'\n\
        assert run('15') == 0, 'disjoint range was refused'\n\
        fcntl.lockf(f, fcntl.LOCK_UN, 10, 5)\n\
        assert run('0') == 0, 'released range was refused'\n";
    run(Command::new("python3").arg("-c").arg(script).arg(&path))?;
    mount.unmount()?;
    Ok(())
}

/// Inode numbers agree between readdir and stat, stay while mounted, and differ between files.
#[test]
fn inode_numbers_agree() -> Result<()> {
    let setup = setup()?;
    let mount = setup.mount("semantics", "mnt")?;
    fs::create_dir(mount.path().join("folder"))?;
    for number in 0..50 {
        fs::write(mount.path().join(format!("file {number}")), "x")?;
    }
    let mut seen = BTreeMap::new();
    for entry in fs::read_dir(mount.path())? {
        let entry = entry?;
        let stat = fs::symlink_metadata(entry.path())?;
        ensure!(
            entry.ino() == stat.ino(),
            "{:?}: readdir {}, stat {}",
            entry.file_name(),
            entry.ino(),
            stat.ino()
        );
        ensure!(
            seen.insert(stat.ino(), entry.file_name()).is_none(),
            "{} twice",
            stat.ino()
        );
    }
    ensure!(seen.len() == 51);
    // A rename keeps the number.
    let number = fs::metadata(mount.path().join("file 1"))?.ino();
    fs::rename(mount.path().join("file 1"), mount.path().join("folder/renamed"))?;
    ensure!(fs::metadata(mount.path().join("folder/renamed"))?.ino() == number);
    mount.unmount()?;
    Ok(())
}

#[test]
fn names_are_at_most_255_bytes() -> Result<()> {
    let setup = setup()?;
    let mount = setup.mount("semantics", "mnt")?;
    ensure!(nix::sys::statvfs::statvfs(mount.path())?.name_max() == 255);
    let longest = "n".repeat(255);
    fs::write(mount.path().join(&longest), "x")?;
    ensure!(errno(fs::write(mount.path().join("n".repeat(256)), "x")) == Errno::ENAMETOOLONG);
    fs::remove_file(mount.path().join(longest))?;
    mount.unmount()?;
    Ok(())
}

/// "Not offered, each with its errno: hard links, device nodes".
#[test]
fn what_is_not_offered_says_so() -> Result<()> {
    let setup = setup()?;
    let mount = setup.mount("semantics", "mnt")?;
    let path = mount.path().join("file");
    fs::write(&path, "x")?;
    ensure!(
        errno(fs::hard_link(&path, mount.path().join("link"))) == Errno::EPERM,
        "hard link"
    );
    for (name, kind) in [("block", SFlag::S_IFBLK), ("character", SFlag::S_IFCHR)] {
        let made = mknod(
            &mount.path().join(name),
            kind,
            Mode::S_IRUSR,
            nix::sys::stat::makedev(1, 3),
        );
        ensure!(made == Err(Errno::EPERM), "{name} device: {made:?}");
    }
    mount.unmount()?;
    Ok(())
}

#[test]
fn a_read_only_mount_refuses_every_change() -> Result<()> {
    let setup = setup()?;
    let mount = setup.mount("semantics", "mnt")?;
    fs::create_dir(mount.path().join("folder"))?;
    fs::write(mount.path().join("folder/file"), "content")?;
    mount.unmount()?;
    let before = setup.backend().container("semantics")?.blobs()?;

    let mount = setup.mount_with("semantics", "mnt", &MountOptions::default().arg("--read-only"))?;
    let root = mount.path();
    let file = root.join("folder/file");
    ensure!(fs::read(&file)? == b"content");
    let changes: [(&str, std::io::Result<()>); 9] = [
        ("create", fs::write(root.join("new"), "x")),
        ("write", OpenOptions::new().write(true).open(&file).map(drop)),
        ("unlink", fs::remove_file(&file)),
        ("mkdir", fs::create_dir(root.join("dir"))),
        ("rmdir", fs::remove_dir(root.join("folder"))),
        ("rename", fs::rename(&file, root.join("other"))),
        ("symlink", symlink("x", root.join("link"))),
        ("chmod", fs::set_permissions(&file, Permissions::from_mode(0o600))),
        (
            "truncate",
            OpenOptions::new()
                .write(true)
                .truncate(true)
                .open(&file)
                .map(drop),
        ),
    ];
    for (change, result) in changes {
        ensure!(errno(result) == Errno::EROFS, "{change}");
    }
    mount.unmount()?;
    ensure!(
        setup.backend().container("semantics")?.blobs()? == before,
        "something was written"
    );
    Ok(())
}

// ------------------------------------------------------------------------------------------------ what is
// kept

/// Modes, owners, times, xattrs and kinds of files are kept across a remount.
#[test]
fn attributes_are_kept_across_a_remount() -> Result<()> {
    let setup = setup()?;
    let mount = setup.mount("semantics", "mnt")?;
    let root = mount.path().to_owned();
    fs::write(root.join("file"), "content")?;
    fs::create_dir(root.join("folder"))?;
    symlink("file", root.join("link"))?;
    nix::unistd::mkfifo(&root.join("fifo"), Mode::from_bits_truncate(0o640))?;
    drop(std::os::unix::net::UnixListener::bind(root.join("socket"))?);
    // Nanoseconds, and a time before the epoch of most clocks.
    let (accessed, modified) = (
        SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789),
        SystemTime::UNIX_EPOCH + Duration::new(1_500_000_000, 987_654_321),
    );
    for (name, mode) in [("file", 0o4750), ("folder", 0o1733)] {
        let path = root.join(name);
        std::os::unix::fs::chown(&path, Some(1234), Some(4321))?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        for (key, value) in [
            ("user.color", "green"),
            ("user.With.UPPER", "white space, ümlaut\n"),
            ("user.empty", ""),
        ] {
            run(Command::new("setfattr").args(["-n", key, "-v", value]).arg(&path))?;
        }
        run(Command::new("setfattr")
            .args(["-n", "user.removed", "-v", "x"])
            .arg(&path))?;
        run(Command::new("setfattr").args(["-x", "user.removed"]).arg(&path))?;
        File::open(&path)?.set_times(fs::FileTimes::new().set_accessed(accessed).set_modified(modified))?;
    }
    let look = |name: &str| -> Result<String> {
        let path = root.join(name);
        let stat = fs::symlink_metadata(&path)?;
        let attributes = run(Command::new("getfattr")
            .args(["-h", "-d", "-e", "hex", "--absolute-names"])
            .arg(&path))?;
        Ok(format!(
            "mode {:o} owner {}:{} size {} modified {}.{:09} {attributes}",
            stat.mode(),
            stat.uid(),
            stat.gid(),
            if stat.is_dir() { 0 } else { stat.size() },
            stat.mtime(),
            stat.mtime_nsec(),
        ))
    };
    let names = ["file", "folder", "link", "fifo", "socket"];
    let before = names.map(|name| look(name).unwrap());
    ensure!(
        before[0].contains("mode 104750 owner 1234:4321 size 7 modified 1500000000.987654321"),
        "{}",
        before[0]
    );
    ensure!(before[0].matches("user.").count() == 3, "{}", before[0]);
    mount.unmount()?;

    let mount = setup.mount("semantics", "mnt")?;
    for (name, before) in names.iter().zip(&before) {
        let after = look(name)?;
        ensure!(after == *before, "{name}\nbefore {before}\nafter  {after}");
    }
    ensure!(fs::read_link(root.join("link"))? == Path::new("file"));
    ensure!(fs::symlink_metadata(root.join("fifo"))?.file_type().is_fifo());
    ensure!(fs::symlink_metadata(root.join("socket"))?.file_type().is_socket());
    // Rewriting the contents keeps the rest.
    fs::write(root.join("file"), "other content")?;
    ensure!(fs::metadata(root.join("file"))?.uid() == 1234);
    mount.unmount()?;
    let mount = setup.mount("semantics", "mnt")?;
    let stat = fs::metadata(root.join("file"))?;
    ensure!((stat.uid(), stat.gid(), stat.size()) == (1234, 4321, 13));
    mount.unmount()?;
    Ok(())
}

/// "Nothing else is written to a user's container": blobs of the files' names, markers with `hdi_isfolder`,
/// links with `is_symlink`.
#[test]
fn the_container_holds_what_is_written_down_and_nothing_else() -> Result<()> {
    let setup = setup()?;
    let mount = setup.mount("semantics", "mnt")?;
    let root = mount.path();
    fs::create_dir(root.join("folder"))?;
    fs::write(root.join("folder/a file"), "content")?;
    fs::write(root.join("top"), "")?;
    fs::create_dir(root.join("gone"))?;
    fs::write(root.join("gone/file"), "x")?;
    fs::remove_dir_all(root.join("gone"))?;
    symlink("folder/a file", root.join("link"))?;
    mount.unmount()?;
    let container = setup.backend().container("semantics")?;
    let blobs = container.blobs()?;
    let names: Vec<&str> = blobs.keys().map(String::as_str).collect();
    ensure!(names == ["folder", "folder/a file", "link", "top"], "{names:?}");
    ensure!(blobs["folder"].get("hdi_isfolder").map(String::as_str) == Some("true"));
    ensure!(blobs["link"].get("is_symlink").map(String::as_str) == Some("true"));
    ensure!(container.read("link")? == b"folder/a file");
    ensure!(container.read("folder/a file")? == b"content");
    // The times of the last write are kept to the nanosecond, which the service's own is not, and what they
    // belong to; defaults are not written.
    let kept: Vec<&String> = blobs["folder/a file"].keys().collect();
    ensure!(kept == ["vsc_ctime", "vsc_mtime", "vsc_times_of"], "{kept:?}");
    Ok(())
}

/// A prefix is the root: nothing outside it is seen or touched.
#[test]
fn a_prefix_is_the_root() -> Result<()> {
    let setup = setup()?;
    let container = setup.backend().create_container("prefixes")?;
    container.write("tenant/a/inside", "inside", &Metadata::new())?;
    container.write("tenant/ab", "outside", &Metadata::new())?;
    container.write("other", "outside", &Metadata::new())?;
    let mount = setup.mount_with(
        "prefixes",
        "mnt",
        &MountOptions {
            prefix: Some("tenant/a".into()),
            ..MountOptions::default()
        },
    )?;
    let names: Vec<_> = fs::read_dir(mount.path())?
        .map(|entry| entry.unwrap().file_name())
        .collect();
    ensure!(names == [OsStr::new("inside")], "{names:?}");
    fs::write(mount.path().join("new"), "new")?;
    mount.unmount()?;
    let names: Vec<String> = container.blobs()?.into_keys().collect();
    ensure!(
        names == ["other", "tenant/a/inside", "tenant/a/new", "tenant/ab"],
        "{names:?}"
    );
    Ok(())
}
