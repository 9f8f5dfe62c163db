//! What is measured. Every cold workload shows by the bytes on the wire that it was cold; every durable one
//! is read back from the store.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use blob_client::{BlockId, BlockRef, Metadata, PutOptions, StageOptions};
use bytes::Bytes;
use e2e::harness::backend::ContainerView;
use e2e::harness::runtime;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const MIB: u64 = 1 << 20;

/// Divides the amounts of data.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale(pub(crate) u64);

impl Scale {
    fn of(self, amount: u64) -> u64 {
        amount / self.0
    }
}

/// What the number of a workload means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Metric {
    /// Bytes asked for over time.
    MibPerSecond,
    /// Operations over time.
    PerSecond,
    /// Time of the whole.
    Milliseconds,
    /// Time until the mount answered.
    MountMilliseconds,
}

impl Metric {
    /// Head of the column.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::MibPerSecond => "MiB/s",
            Self::PerSecond => "1/s",
            Self::Milliseconds | Self::MountMilliseconds => "ms",
        }
    }

    /// Whether a larger number is the better one.
    pub(crate) fn more_is_better(self) -> bool {
        matches!(self, Self::MibPerSecond | Self::PerSecond)
    }
}

/// What a run did.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Work {
    /// Operations.
    pub(crate) operations: u64,
    /// Bytes asked for.
    pub(crate) bytes: u64,
}

/// One workload.
#[derive(Debug)]
pub(crate) struct Workload {
    /// On the command line and in the table.
    pub(crate) name: &'static str,
    /// One line.
    pub(crate) about: &'static str,
    /// What its number means.
    pub(crate) metric: Metric,
    /// Fills the container before the mount.
    pub(crate) prepare: fn(&ContainerView, Scale) -> Result<()>,
    /// Runs on the mount before the measured part.
    pub(crate) warm_up: Option<fn(&Path, Scale) -> Result<()>>,
    /// The measured part.
    pub(crate) run: fn(&Path, Scale) -> Result<Work>,
    /// Looks into the container after the unmount.
    pub(crate) verify: Option<fn(&ContainerView, Scale) -> Result<()>>,
}

/// All of them.
pub(crate) const WORKLOADS: &[Workload] = &[
    Workload {
        name: "cold-read",
        about: "one stream reads a file of 1 GiB from beginning to end, nothing cached",
        metric: Metric::MibPerSecond,
        prepare: put_large,
        warm_up: None,
        run: read_sequentially,
        verify: None,
    },
    Workload {
        name: "warm-read",
        about: "the first 64 MiB of a file are read again",
        metric: Metric::MibPerSecond,
        prepare: put_large,
        warm_up: Some(read_beginning),
        run: |at, scale| {
            read_beginning(at, scale)?;
            Ok(Work {
                operations: scale.of(64),
                bytes: scale.of(64) * MIB,
            })
        },
        verify: None,
    },
    Workload {
        name: "random-4k",
        about: "16 threads read 4 KiB at random places of a file of 1 GiB, nothing cached",
        metric: Metric::PerSecond,
        prepare: put_large,
        warm_up: None,
        run: |at, scale| read_randomly(at, scale, 4096, scale.of(8000)),
        verify: None,
    },
    Workload {
        name: "random-1m",
        about: "16 threads read 1 MiB at random places of a file of 1 GiB, nothing cached",
        metric: Metric::MibPerSecond,
        prepare: put_large,
        warm_up: None,
        run: |at, scale| read_randomly(at, scale, MIB, scale.of(1000)),
        verify: None,
    },
    Workload {
        name: "write",
        about: "one file of 1 GiB is written and made durable by fsync, then read back from the store",
        metric: Metric::MibPerSecond,
        prepare: |_, _| Ok(()),
        warm_up: None,
        run: write_sequentially,
        verify: Some(verify_written),
    },
    Workload {
        name: "create",
        about: "8 threads create 1,000 files of 4 KiB, each made durable by fsync",
        metric: Metric::PerSecond,
        prepare: |_, _| Ok(()),
        warm_up: None,
        run: create_files,
        verify: Some(verify_created),
    },
    Workload {
        name: "delete",
        about: "8 threads delete 1,000 files",
        metric: Metric::PerSecond,
        prepare: |container, scale| put_small(container, scale.of(1000), 4096),
        warm_up: Some(|at, _| list(at).map(drop)),
        run: delete_files,
        verify: Some(|container, _| {
            let left = container.blobs()?.len();
            ensure!(left == 0, "{left} blobs are left in the store");
            Ok(())
        }),
    },
    Workload {
        name: "list",
        about: "the first `ls -l` of a folder with 5,000 files",
        metric: Metric::Milliseconds,
        prepare: |container, scale| put_small(container, scale.of(5000), 16),
        warm_up: None,
        run: |at, scale| {
            let operations = list(at)?;
            ensure!(operations == scale.of(5000), "{operations} entries listed");
            Ok(Work { operations, bytes: 0 })
        },
        verify: None,
    },
    Workload {
        name: "mount",
        about: "from starting the program to the first byte of a file",
        metric: Metric::MountMilliseconds,
        prepare: |container, _| put_small(container, 1, 4096),
        warm_up: None,
        run: |at, _| {
            let bytes = fs::read(at.join("small-0"))?.len() as u64;
            Ok(Work { operations: 1, bytes })
        },
        verify: None,
    },
];

fn large(scale: Scale) -> u64 {
    scale.of(1024) * MIB
}

/// The eight bytes at an offset: each place of a file has its own.
fn word(offset: u64) -> [u8; 8] {
    (offset / 8)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(23)
        .to_le_bytes()
}

/// One MiB of a file.
fn piece(number: u64) -> Vec<u8> {
    (0..MIB / 8)
        .flat_map(|index| word(number * MIB + index * 8))
        .collect()
}

fn put_large(container: &ContainerView, scale: Scale) -> Result<()> {
    let mut blocks = Vec::new();
    for number in 0..large(scale) / MIB {
        let id = BlockId(format!("{number:08}").into_bytes());
        runtime().block_on(container.client().stage(
            "large",
            &id,
            Bytes::from(piece(number)).into(),
            &StageOptions::default(),
        ))?;
        blocks.push(BlockRef::Uncommitted(id));
    }
    runtime().block_on(
        container
            .client()
            .commit("large", &blocks, &PutOptions::default()),
    )?;
    Ok(())
}

fn put_small(container: &ContainerView, count: u64, size: usize) -> Result<()> {
    for number in 0..count {
        container.write(&format!("small-{number}"), vec![b'x'; size], &Metadata::new())?;
    }
    Ok(())
}

fn read_sequentially(at: &Path, scale: Scale) -> Result<Work> {
    let mut file = File::open(at.join("large"))?;
    let mut buffer = vec![0; MIB as usize];
    let mut bytes = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        bytes += read as u64;
    }
    ensure!(bytes == large(scale), "the file ended after {bytes} bytes");
    Ok(Work {
        operations: bytes / MIB,
        bytes,
    })
}

fn read_beginning(at: &Path, scale: Scale) -> Result<()> {
    let file = File::open(at.join("large"))?;
    let mut buffer = vec![0; MIB as usize];
    for number in 0..scale.of(64) {
        file.read_exact_at(&mut buffer, number * MIB)?;
    }
    Ok(())
}

fn read_randomly(at: &Path, scale: Scale, size: u64, count: u64) -> Result<Work> {
    const THREADS: u64 = 16;
    let each = count / THREADS;
    in_threads(THREADS, |thread| {
        let file = File::open(at.join("large"))?;
        let mut random = SmallRng::seed_from_u64(thread);
        let mut buffer = vec![0; size as usize];
        for _ in 0..each {
            let offset = random.random_range(0..large(scale) / size) * size;
            file.read_exact_at(&mut buffer, offset)?;
            // The first word is enough to notice bytes of another place.
            ensure!(
                buffer.get(..8) == Some(&word(offset)[..]),
                "wrong bytes at {offset}"
            );
        }
        Ok(())
    })?;
    Ok(Work {
        operations: each * THREADS,
        bytes: each * THREADS * size,
    })
}

fn write_sequentially(at: &Path, scale: Scale) -> Result<Work> {
    let mut file = File::create(at.join("written"))?;
    for number in 0..large(scale) / MIB {
        file.write_all(&piece(number))?;
    }
    file.sync_all()?;
    Ok(Work {
        operations: large(scale) / MIB,
        bytes: large(scale),
    })
}

fn verify_written(container: &ContainerView, scale: Scale) -> Result<()> {
    let bytes = container.read("written")?;
    ensure!(
        bytes.len() as u64 == large(scale),
        "the store has {} bytes",
        bytes.len()
    );
    for (number, part) in bytes.chunks(MIB as usize).enumerate() {
        ensure!(
            part == piece(number as u64),
            "the store has other bytes in MiB {number}"
        );
    }
    Ok(())
}

const FILE_THREADS: u64 = 8;

fn create_files(at: &Path, scale: Scale) -> Result<Work> {
    let each = scale.of(1000) / FILE_THREADS;
    in_threads(FILE_THREADS, |thread| {
        for number in 0..each {
            let mut file = File::create(at.join(format!("created-{thread}-{number}")))?;
            file.write_all(&[b'c'; 4096])?;
            file.sync_all()?;
        }
        Ok(())
    })?;
    Ok(Work {
        operations: each * FILE_THREADS,
        bytes: each * FILE_THREADS * 4096,
    })
}

fn verify_created(container: &ContainerView, scale: Scale) -> Result<()> {
    let wanted = scale.of(1000) / FILE_THREADS * FILE_THREADS;
    let blobs = container.blobs()?;
    ensure!(
        blobs.len() as u64 == wanted,
        "{} blobs in the store instead of {wanted}",
        blobs.len()
    );
    let name = blobs.keys().next_back().context("no blob")?;
    ensure!(container.read(name)? == [b'c'; 4096], "other bytes in the store");
    Ok(())
}

fn delete_files(at: &Path, scale: Scale) -> Result<Work> {
    let count = scale.of(1000);
    in_threads(FILE_THREADS, |thread| {
        for number in (0..count).filter(|number| number % FILE_THREADS == thread) {
            fs::remove_file(at.join(format!("small-{number}")))?;
        }
        Ok(())
    })?;
    Ok(Work {
        operations: count,
        bytes: 0,
    })
}

/// Names and attributes, as `ls -l` reads them; the number of entries.
fn list(at: &Path) -> Result<u64> {
    let mut entries = 0;
    let mut size = 0;
    for entry in fs::read_dir(at)? {
        size += entry?.metadata()?.size();
        entries += 1;
    }
    ensure!(entries == 0 || size > 0, "files without a size");
    Ok(entries)
}

fn in_threads(threads: u64, work: impl Fn(u64) -> Result<()> + Sync) -> Result<()> {
    let work = &work;
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || work(thread)))
            .collect();
        for thread in running {
            match thread.join() {
                Ok(result) => result?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(())
    })
}
