//! The benchmark: the same workloads on our mount over HTTPS and over the channel, and on the peers that are
//! installed, against one store and in one run. What counts are the ratios; absolute numbers belong to this
//! machine.

mod mounts;
mod table;
mod workloads;

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use e2e::harness::backend::Kind;
use e2e::harness::process::keep_quiet;
use e2e::harness::setup::{Setup, Way};

use crate::mounts::{Served, System};
use crate::table::{Sample, Table};
use crate::workloads::{Scale, WORKLOADS, Workload};

/// Measures our mounts side by side, and blobfuse2 and rclone where they are installed.
#[derive(Debug, Parser)]
struct Arguments {
    /// Workloads to run, by name; none = all of them.
    workloads: Vec<String>,
    /// Rounds; in each round every system runs once, in turn, so that drifts of the machine hit all of them.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// A tenth of the data: to see that it works, not to compare.
    #[arg(long)]
    quick: bool,
    /// List the workloads.
    #[arg(long)]
    list: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.list {
        for workload in WORKLOADS {
            println!("{:<14} {}", workload.name, workload.about);
        }
        return Ok(());
    }
    ensure!(
        nix::unistd::geteuid().is_root(),
        "run the benchmark as root: it mounts file systems"
    );
    ensure!(arguments.rounds > 0, "--rounds: at least 1");
    let chosen: Vec<&Workload> = match arguments.workloads.as_slice() {
        [] => WORKLOADS.iter().collect(),
        names => names
            .iter()
            .map(|name| {
                WORKLOADS
                    .iter()
                    .find(|workload| workload.name == name)
                    .with_context(|| format!("no workload {name:?}; --list names them"))
            })
            .collect::<Result<_>>()?,
    };
    // What the mounts say is part of the message when one of them fails.
    keep_quiet();
    let scale = Scale(if arguments.quick { 10 } else { 1 });

    let mut systems = vec![System::Https, System::Channel];
    for peer in [System::Blobfuse2, System::Rclone] {
        match peer.version() {
            Some(version) => {
                println!("{}: {version}", peer.name());
                systems.push(peer);
            }
            None => println!("{}: not installed, left out", peer.name()),
        }
    }
    println!(
        "store: embedded, in this process; {} round(s); medians, spread from least to most\n",
        arguments.rounds
    );

    for workload in chosen {
        let mut table = Table::new(workload, &systems);
        for round in 0..arguments.rounds {
            for system in &systems {
                match measure(workload, *system, scale) {
                    Ok(sample) => table.add(*system, sample),
                    // A peer that cannot do it is a result; our own failure is an error.
                    Err(error) if system.is_peer() => table.fail(*system, format!("{error:#}")),
                    Err(error) => {
                        return Err(error.context(format!(
                            "{}, {}, round {round}",
                            workload.name,
                            system.name()
                        )));
                    }
                }
            }
        }
        table.print();
    }
    Ok(())
}

/// One run on a fresh store and a fresh mount: nothing is cached anywhere but in the store.
fn measure(workload: &Workload, system: System, scale: Scale) -> Result<Sample> {
    let way = if system == System::Channel {
        Way::Channel
    } else {
        Way::Https
    };
    let setup = Setup::new(Kind::Embedded, way)?;
    let container = setup.backend().create_container("bench")?;
    (workload.prepare)(&container, scale)?;
    let store = setup.backend().store().context("the embedded store")?;

    let begin = Instant::now();
    let served = Served::start(system, &setup, "bench")?;
    let mounted = begin.elapsed();
    if let Some(warm) = workload.warm_up {
        warm(served.path(), scale)?;
    }
    let (cpu, wire) = (served.process().cpu_time()?, store.totals());
    let begin = Instant::now();
    let work = (workload.run)(served.path(), scale)?;
    let elapsed = begin.elapsed();
    let cpu = served.process().cpu_time()?.saturating_sub(cpu);
    let after = store.totals();
    let peak_rss = served.process().peak_rss()?;
    served.stop()?;
    if let Some(verify) = workload.verify {
        verify(&container, scale).with_context(|| format!("{} on {}", workload.name, system.name()))?;
    }
    Ok(Sample {
        elapsed,
        mounted,
        operations: work.operations,
        bytes: work.bytes,
        wire_bytes: after.bytes_in + after.bytes_out - wire.bytes_in - wire.bytes_out,
        requests: after.requests - wire.requests,
        cpu,
        peak_rss,
    })
}
