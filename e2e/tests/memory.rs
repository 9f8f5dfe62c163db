//! One budget bounds the memory of a mount, a small one as well as a large one: while streams are read, and
//! while many files are written, mapped and read at once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

#[path = "memory/group.rs"]
mod group;
#[path = "memory/waiting.rs"]
mod waiting;

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use blob_client::{BlockId, BlockRef, Condition, PutOptions, StageOptions};
use bytes::Bytes;
use e2e::harness::backend::{ContainerView, Kind};
use e2e::harness::mount::Mount;
use e2e::harness::process::Running;
use e2e::harness::runtime;
use e2e::harness::setup::{Setup, Way};

const MIB: u64 = 1 << 20;
const READERS: usize = 8;
const BLOCK: u64 = 8 * MIB;
const BLOCKS: u64 = 128;
/// The least, the demo's, and the default.
const BUDGETS: [u64; 3] = [32 * MIB, 256 * MIB, 512 * MIB];
/// Writers that work at the same time, each on a file of its own.
const WRITERS: usize = 40;
/// What each of them writes.
const WRITTEN: u64 = 24 * MIB;
/// How long the mappings may take, beside all the writers and with little memory.
const MAPPING_LIMIT: Duration = Duration::from_secs(300);
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
        runtime().block_on(container.client().stage(
            blob,
            &id,
            Bytes::from(bytes).into(),
            &StageOptions::default(),
        ))?;
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

/// The program's peak is within the budget and what it may need beside it.
fn check(what: &str, budget: u64, mount: Mount) -> Result<()> {
    let peak = mount.process().peak_rss()?;
    let counters = mount.unmount()?;
    println!(
        "{what}: peak RSS {} MiB, budget {} MiB; {} MiB read and {} MiB written over the channel, {} and {} \
         over HTTPS",
        peak / MIB,
        budget / MIB,
        counters.channel.bytes_in / MIB,
        counters.channel.bytes_out / MIB,
        counters.https.bytes_in / MIB,
        counters.https.bytes_out / MIB,
    );
    ensure!(
        peak <= budget + ALLOWANCE,
        "{what}: peak RSS of {} MiB is over the budget of {} MiB + {} MiB",
        peak / MIB,
        budget / MIB,
        ALLOWANCE / MIB
    );
    Ok(())
}

fn mount(setup: &Setup, container: &str, budget: u64) -> Result<Mount> {
    let options = setup.options().arg("--budget").arg(budget.to_string());
    setup.mount_with(container, "mnt", &options)
}

/// A file of 1 GiB, and copies of it that share its bytes with it in the embedded store.
fn put_streams(setup: &Setup, container: &str) -> Result<()> {
    let container = setup.backend().create_container(container)?;
    put_one_gibibyte(&container, "stream 0")?;
    for reader in 1..READERS {
        runtime().block_on(container.client().copy(
            "stream 0",
            None,
            None,
            &format!("stream {reader}"),
            None,
            &Condition::none(),
        ))?;
    }
    Ok(())
}

#[test]
fn eight_streams_stay_within_the_budget() -> Result<()> {
    let setup = Setup::new(Kind::Embedded, Way::Channel)?;
    put_streams(&setup, "streams")?;
    for budget in BUDGETS {
        let mount = mount(&setup, "streams", budget)?;
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
        check("eight streams", budget, mount)?;
    }
    Ok(())
}

/// Reads places all over a file through a mapping, in another process: Python maps without unsafe code here.
/// For each place the kernel reads as far as it reads ahead, 16 MiB.
fn map(path: &Path, seed: usize) -> Result<Running> {
    let script = "import mmap, random, struct, sys\n\
        path, places = sys.argv[1], random.Random(int(sys.argv[2]))\n\
        with open(path, 'rb') as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:\n\
        \tfor _ in range(16):\n\
        \t\tat = places.randrange(len(m) // 8) * 8\n\
        \t\tassert struct.unpack_from('<Q', m, at)[0] == at ^ 0x5bd1e99500000001, at\n";
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(path).arg(seed.to_string());
    Running::start("mapping", &mut command)
}

/// Writes a file whose words say where they are, in pieces of an odd size.
fn write(path: &Path) -> Result<()> {
    let bytes: Vec<u8> = (0..WRITTEN / 8).flat_map(|word| pattern(word * 8)).collect();
    let mut file = File::create(path)?;
    for piece in bytes.chunks(777_777) {
        file.write_all(piece)?;
    }
    file.sync_all()?;
    Ok(())
}

fn mixed_load_stays_within_the_budget(way: Way) -> Result<()> {
    let setup = Setup::new(Kind::Embedded, way)?;
    put_streams(&setup, "mixed")?;
    for budget in BUDGETS {
        let mount = mount(&setup, "mixed", budget)?;
        let mut mappings = (0..READERS)
            .map(|reader| map(&mount.path().join(format!("stream {reader}")), reader))
            .collect::<Result<Vec<_>>>()?;
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let path = mount.path().join(format!("written {writer}"));
                    scope.spawn(move || write(&path))
                })
                .collect();
            for writer in writers {
                writer.join().expect("a writer panicked")?;
            }
            anyhow::Ok(())
        })?;
        for mapping in &mut mappings {
            let status = mapping.wait(MAPPING_LIMIT)?;
            ensure!(status.success(), "{}", mapping.output());
        }
        for writer in 0..WRITERS {
            let read = stream(&mount.path().join(format!("written {writer}")))?;
            ensure!(read == WRITTEN, "file {writer} has {read} bytes");
        }
        check("40 writers and 8 mappings", budget, mount)?;
    }
    Ok(())
}

#[test]
fn writers_and_mappings_stay_within_the_budget_over_the_channel() -> Result<()> {
    mixed_load_stays_within_the_budget(Way::Channel)
}

/// Something over HTTPS is outside of the budget still: on a busy machine the peak was 325 MiB with a budget
/// of 256 MiB, 5 MiB too much, and 579 MiB with one of 512 MiB, 3 MiB too much.
#[test]
#[ignore = "an open point: under load the peak over HTTPS can be a few MiB too high; 40 s"]
fn writers_and_mappings_stay_within_the_budget_over_https() -> Result<()> {
    mixed_load_stays_within_the_budget(Way::Https)
}
