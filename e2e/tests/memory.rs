//! One budget bounds the memory of a mount: eight readers stream 1 GiB each.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Result, ensure};
use blob_client::{BlockId, BlockRef, Condition, PutOptions};
use bytes::Bytes;
use e2e::harness::backend::{ContainerView, Kind};
use e2e::harness::runtime;
use e2e::harness::setup::{Setup, Way};

const MIB: u64 = 1 << 20;
const READERS: usize = 8;
const BLOCK: u64 = 8 * MIB;
const BLOCKS: u64 = 128;
const BUDGET: u64 = 256 * MIB;
/// What the program may need beside its budget: code, stacks, connections.
const ALLOWANCE: u64 = 64 * MIB;

/// Every 8 bytes say where they are, so that a piece of another place or file is noticed.
fn pattern(offset: u64) -> [u8; 8] {
    (offset ^ 0x5bd1_e995_0000_0001).to_le_bytes()
}

fn put_one_gibibyte(container: &ContainerView, blob: &str) -> Result<()> {
    let mut ids = Vec::new();
    for block in 0..BLOCKS {
        let mut bytes = Vec::with_capacity(BLOCK as usize);
        for word in 0..BLOCK / 8 {
            bytes.extend(pattern(block * BLOCK + word * 8));
        }
        let id = BlockId(format!("{block:08}").into_bytes());
        runtime().block_on(container.client().stage(blob, &id, Bytes::from(bytes).into()))?;
        ids.push(BlockRef::Uncommitted(id));
    }
    runtime().block_on(container.client().commit(blob, &ids, &PutOptions::default()))?;
    Ok(())
}

/// Reads the file to its end and checks a word of every page; the bytes read.
fn stream(path: &Path) -> Result<u64> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; MIB as usize];
    let mut offset = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(offset);
        }
        for at in (0..read).filter(|at| (offset + *at as u64).is_multiple_of(4096)) {
            ensure!(
                buffer.get(at..at + 8) == Some(&pattern(offset + at as u64)[..]),
                "wrong bytes at {}",
                offset + at as u64
            );
        }
        offset += read as u64;
    }
}

#[test]
fn eight_streams_stay_within_the_budget() -> Result<()> {
    let setup = Setup::new(Kind::Embedded, Way::Channel)?;
    let container = setup.backend().create_container("streams")?;
    put_one_gibibyte(&container, "stream 0")?;
    for reader in 1..READERS {
        // A copy shares its bytes with the source in the embedded store: one GiB serves all.
        runtime().block_on(container.client().copy(
            "stream 0",
            None,
            &format!("stream {reader}"),
            None,
            &Condition::none(),
        ))?;
    }
    let options = setup.options().arg("--budget").arg(BUDGET.to_string());
    let mount = setup.mount_with("streams", "mnt", &options)?;
    let at_rest = mount.process().peak_rss()?;
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|reader| {
                let path = mount.path().join(format!("stream {reader}"));
                scope.spawn(move || stream(&path))
            })
            .collect();
        for reader in readers {
            let read = reader.join().expect("a reader panicked")?;
            ensure!(read == BLOCK * BLOCKS, "a stream ended after {read} bytes");
        }
        Ok(())
    })?;
    let peak = mount.process().peak_rss()?;
    let counters = mount.unmount()?;
    println!(
        "peak RSS {} MiB ({} MiB before reading); budget {} MiB; {} MiB read over {}",
        peak / MIB,
        at_rest / MIB,
        BUDGET / MIB,
        (counters.channel.bytes_in + counters.https.bytes_in) / MIB,
        if counters.channel.bytes_in > 0 {
            "the channel"
        } else {
            "HTTPS"
        },
    );
    ensure!(
        peak <= BUDGET + ALLOWANCE,
        "peak RSS of {} MiB is over the budget of {} MiB + {} MiB",
        peak / MIB,
        BUDGET / MIB,
        ALLOWANCE / MIB
    );
    Ok(())
}
