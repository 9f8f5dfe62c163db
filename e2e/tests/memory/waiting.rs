//! What programs can make a mount hold: writes that wait while the service takes nothing, files that are
//! deleted while they are open, and folders of blobs with much metadata.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use blob_client::Metadata;
use e2e::fuse;
use e2e::harness::backend::Kind;
use e2e::harness::mount::Mount;
use e2e::harness::setup::{Setup, Way};
use e2e::store::{Fault, FaultRule, Operation};

use crate::group::MemoryGroup;
use crate::{ALLOWANCE, MIB, check, pattern};

const BUDGET: u64 = 128 * MIB;
/// What the container of a mount may have in all, with what the kernel keeps for it.
const CONTAINER: u64 = BUDGET + 256 * MIB;
/// Threads that write at the same time, what one call to write(2) can hand over each: more of them than may
/// wait on disk, so that the device is not read for a while.
const WRITERS: usize = 2000;
/// Files that are deleted while they are open: eight times the budget. And those of the long run.
const DELETED: usize = 130;
const DELETED_IN_A_LONG_RUN: usize = 500;
/// Of each of them: the most that is kept in memory.
const SIZE: u64 = 8 * MIB;
/// Folders that are listed at once, blobs in each, and bytes of metadata of each, which is about the most
/// there can be.
const LISTED: (u64, u64, usize) = (5, 5000, 8000);
/// Files that are read, and as many that are written, while the host keeps what it gets; and their size.
const KEPT: (u64, u64) = (8, 48 * MIB);
/// How long what must come may take.
const LIMIT: Duration = Duration::from_secs(120);

fn until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !done()? {
        ensure!(begin.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// The mount, in a container of its own, which has to be dropped after it.
fn mount(setup: &Setup, container: &str) -> Result<(Option<MemoryGroup>, Mount)> {
    let group = MemoryGroup::new(CONTAINER).context("a memory cgroup")?;
    let mut options = setup.options().arg("--budget").arg(BUDGET.to_string());
    options.launcher = group.as_ref().map(MemoryGroup::launcher).unwrap_or_default();
    let mount = setup.mount_with(container, "mnt", &options)?;
    Ok((group, mount))
}

fn bytes(seed: u64, size: u64) -> Vec<u8> {
    (0..size / 8)
        .flat_map(|word| pattern(seed * size + word * 8))
        .collect()
}

#[test]
fn writers_that_the_service_keeps_waiting_stay_within_the_budget() -> Result<()> {
    let setup = Setup::new(Kind::Embedded, Way::Https)?;
    let container = setup.backend().create_container("waiting")?;
    let store = setup.backend().store().context("an embedded store")?;
    let (_group, mount) = mount(&setup, "waiting")?;
    let data = bytes(0, MIB);
    let files = (0..WRITERS)
        .map(|n| File::create(mount.path().join(format!("file {n}"))))
        .collect::<std::io::Result<Vec<_>>>()?;
    for operation in [Operation::PutBlob, Operation::PutBlock] {
        let busy = Fault::Answer {
            status: 503,
            code: "ServerBusy".into(),
            retry_after: Some(1),
        };
        store.inject(FaultRule::every(operation, busy));
    }
    let connection = fuse::connection_at(mount.path())?.context("the mount's connection")?;
    let written = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let writers: Vec<_> = files
            .into_iter()
            .map(|mut file| {
                let (data, written) = (&data, &written);
                scope.spawn(move || {
                    file.write_all(data)?;
                    written.fetch_add(1, Ordering::SeqCst);
                    file.sync_all()
                })
            })
            .collect();
        // Each of them waits for the mount, in its write or its fsync.
        until("writers that wait", || Ok(fuse::waiting(connection)? >= WRITERS))?;
        let peak = mount.process().peak_rss()?;
        let before = written.load(Ordering::SeqCst);
        store.clear_faults();
        ensure!(
            before < WRITERS / 2,
            "{before} writes found room: that is no test"
        );
        ensure!(
            peak <= BUDGET + ALLOWANCE,
            "peak RSS of {} MiB with {WRITERS} writers, {before} of them done",
            peak / MIB
        );
        for writer in writers {
            if let Err(error) = writer.join().expect("a writer panicked") {
                bail!("a write: {error}");
            }
        }
        Ok(())
    })?;
    for n in 0..WRITERS {
        ensure!(container.read(&format!("file {n}"))? == data, "file {n}");
    }
    check("2,000 writers that wait", BUDGET, mount)
}

#[test]
fn files_deleted_while_open_stay_within_the_budget() -> Result<()> {
    deleted_while_open(DELETED)
}

#[test]
#[ignore = "4 GiB"]
fn many_files_deleted_while_open_stay_within_the_budget() -> Result<()> {
    deleted_while_open(DELETED_IN_A_LONG_RUN)
}

fn deleted_while_open(count: usize) -> Result<()> {
    let setup = Setup::new(Kind::Embedded, Way::Https)?;
    let container = setup.backend().create_container("deleted")?;
    for n in 0..count {
        container.write(&format!("file {n}"), bytes(n as u64, SIZE), &Metadata::new())?;
    }
    let (_group, mount) = mount(&setup, "deleted")?;
    let path = |n: usize| mount.path().join(format!("file {n}"));
    let mut open = Vec::new();
    for n in 0..count {
        open.push(File::options().read(true).write(true).open(path(n))?);
        fs::remove_file(path(n)).with_context(|| format!("rm of file {n}"))?;
    }
    for (n, file) in open.iter_mut().enumerate() {
        let mut read = Vec::new();
        file.write_all(b"mine")?;
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut read)?;
        let mut expected = bytes(n as u64, SIZE);
        expected.splice(..4, *b"mine");
        ensure!(read == expected, "file {n} is not what it was");
    }
    drop(open);
    check(
        &format!("{count} files of 8 MiB deleted while open"),
        BUDGET,
        mount,
    )?;
    ensure!(container.blobs()?.is_empty(), "{:?}", container.blobs()?.keys());
    Ok(())
}

/// The host takes requests and never answers them: what it keeps is the budget's, and everything is read and
/// written over HTTPS.
#[test]
fn requests_that_the_host_keeps_stay_within_the_budget() -> Result<()> {
    let setup = Setup::new(Kind::Embedded, Way::Channel)?;
    let container = setup.backend().create_container("kept")?;
    for n in 0..KEPT.0 {
        container.write(&format!("old {n}"), bytes(n, KEPT.1), &Metadata::new())?;
    }
    let (_group, mount) = mount(&setup, "kept")?;
    let device = setup.device()?;
    let open = |n: u64| -> Result<(File, File)> {
        let [old, new] = ["old", "new"].map(|which| mount.path().join(format!("{which} {n}")));
        Ok((File::open(old)?, File::create(new)?))
    };
    let files = (0..KEPT.0).map(open).collect::<Result<Vec<_>>>()?;
    // Of all that is asked at once from now on; what comes later goes over HTTPS.
    device.faults().update(|faults| faults.hold_next = u64::MAX);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..)
            .zip(files)
            .flat_map(|(n, (mut old, mut new))| {
                let reader = scope.spawn(move || -> Result<()> {
                    let mut read = Vec::new();
                    old.read_to_end(&mut read)?;
                    ensure!(read == bytes(n, KEPT.1), "old {n}");
                    Ok(())
                });
                let writer = scope.spawn(move || -> Result<()> {
                    new.write_all(&bytes(n, KEPT.1))?;
                    Ok(new.sync_all()?)
                });
                [reader, writer]
            })
            .collect();
        all.into_iter()
            .try_for_each(|program| program.join().expect("a thread panicked"))
    })?;
    let peak = mount.process().peak_rss()?;
    device.faults().reset();
    let kept = device.faults().release();
    println!("{kept} requests were kept; peak RSS {} MiB", peak / MIB);
    ensure!(kept > 2, "the host kept {kept} requests: that is no test");
    check("a host that keeps what it gets", BUDGET, mount)?;
    for n in 0..KEPT.0 {
        ensure!(
            container.read(&format!("new {n}"))? == bytes(n, KEPT.1),
            "new {n}"
        );
    }
    Ok(())
}

#[test]
fn listings_of_much_metadata_stay_within_the_budget() -> Result<()> {
    let (folders, blobs, bytes) = LISTED;
    let setup = Setup::new(Kind::Embedded, Way::Https)?;
    let container = setup.backend().create_container("listed")?;
    let metadata = Metadata::from([("note".to_owned(), "x".repeat(bytes))]);
    std::thread::scope(|scope| {
        let fill = |folder| {
            let (container, metadata) = (&container, &metadata);
            scope.spawn(move || {
                (0..blobs).try_for_each(|n| container.write(&format!("{folder}/{n}"), Vec::new(), metadata))
            })
        };
        let all: Vec<_> = (0..folders).map(fill).collect();
        all.into_iter()
            .try_for_each(|filled| filled.join().expect("a thread panicked"))
    })?;
    let (_group, mount) = mount(&setup, "listed")?;
    std::thread::scope(|scope| {
        let list = |folder: u64| {
            let path = mount.path().join(folder.to_string());
            scope.spawn(move || fs::read_dir(path).map(Iterator::count))
        };
        let all: Vec<_> = (0..folders).map(list).collect();
        for listed in all {
            let entries = listed.join().expect("a thread panicked")?;
            ensure!(entries as u64 == blobs, "{entries} entries of {blobs}");
        }
        Ok(())
    })?;
    check("5 listings of 5,000 blobs with 8 KiB of metadata", BUDGET, mount)
}
