//! What programs can make a mount hold while the service takes nothing: writes that wait, files that are
//! deleted while they are open.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use blob_client::Metadata;
use e2e::fuse;
use e2e::harness::backend::Kind;
use e2e::harness::setup::{Setup, Way};
use e2e::store::{Fault, FaultRule, Operation};

use crate::{ALLOWANCE, MIB, check, mount, pattern};

const BUDGET: u64 = 128 * MIB;
/// Programs that write at the same time, what one call to write(2) can hand over each.
const WRITERS: usize = 500;
/// Files that are deleted while they are open: eight times the budget.
const DELETED: usize = 130;
/// Of each of them: the most that is kept in memory.
const SIZE: u64 = 8 * MIB;
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
    let mount = mount(&setup, "waiting", BUDGET)?;
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
    check("500 writers that wait", BUDGET, mount)
}

#[test]
fn files_deleted_while_open_stay_within_the_budget() -> Result<()> {
    let setup = Setup::new(Kind::Embedded, Way::Https)?;
    let container = setup.backend().create_container("deleted")?;
    for n in 0..DELETED {
        container.write(&format!("file {n}"), bytes(n as u64, SIZE), &Metadata::new())?;
    }
    let mount = mount(&setup, "deleted", BUDGET)?;
    let path = |n: usize| mount.path().join(format!("file {n}"));
    let mut open = Vec::new();
    for n in 0..DELETED {
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
    check("130 files of 8 MiB deleted while open", BUDGET, mount)?;
    ensure!(container.blobs()?.is_empty(), "{:?}", container.blobs()?.keys());
    Ok(())
}
