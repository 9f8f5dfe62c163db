//! Runs the cases one after another, each under a time limit, and prints a line for each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use crate::host::Host;
use crate::service::{Mode, Service};
use crate::system::{load, patience, wait_node, wait_unpinned};

/// Longest a case may take. The slowest waits several seconds for the driver, on a machine in software
/// emulation that may get little processor time.
fn limit() -> Duration {
    Duration::from_secs(240) * patience()
}

/// What a case works with.
#[derive(Debug, Clone)]
pub(crate) struct Bench {
    /// The host's side.
    pub(crate) service: Service,
}

impl Bench {
    /// Opens the host and starts the service.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            service: Service::start(Host::open()?),
        })
    }
}

/// A named case.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    /// Printed.
    pub(crate) name: &'static str,
    /// Does it.
    pub(crate) run: fn(&Bench) -> Result<()>,
}

/// Runs all cases; returns how many passed and failed.
pub(crate) fn run(bench: &Bench, cases: &[Case]) -> (usize, usize) {
    let (mut passed, mut failed) = (0, 0);
    for (index, case) in cases.iter().enumerate() {
        let began = Instant::now();
        match run_one(bench, *case) {
            Outcome::Passed => {
                passed += 1;
                println!("case ok {} ({} ms)", case.name, began.elapsed().as_millis());
            }
            Outcome::Failed(error) => {
                failed += 1;
                recover(bench);
                println!("case FAIL {}: {error:#}", case.name);
            }
            Outcome::Hanging => {
                // Its threads may hold the device: nothing that follows could be believed.
                failed += cases.len() - index;
                println!("case FAIL {}: still running after {:?}", case.name, limit());
                for rest in &cases[index + 1..] {
                    println!("case FAIL {}: not run", rest.name);
                }
                break;
            }
        }
    }
    (passed, failed)
}

enum Outcome {
    Passed,
    Failed(anyhow::Error),
    Hanging,
}

fn run_one(bench: &Bench, case: Case) -> Outcome {
    let (tell, told) = mpsc::channel();
    let bench = Arc::new(bench.clone());
    std::thread::spawn(move || {
        let result = catch_unwind(AssertUnwindSafe(|| {
            bench.service.begin();
            let result = (case.run)(&bench);
            bench.service.set(Mode::Serve);
            result.and_then(|()| settle(&bench))
        }))
        .unwrap_or_else(|panic| {
            Err(anyhow!(
                "panic: {}",
                panic
                    .downcast_ref::<String>()
                    .map_or("of unknown kind", String::as_str)
            ))
        });
        // Nobody listens any more when the case was given up.
        let _ = tell.send(result);
    });
    match told.recv_timeout(limit()) {
        Ok(Ok(())) => Outcome::Passed,
        Ok(Err(error)) => Outcome::Failed(error),
        Err(_) => Outcome::Hanging,
    }
}

/// After a failed case: what the next one expects to find, as far as it can be had again.
fn recover(bench: &Bench) {
    bench.service.let_go();
    bench.service.trouble();
    if !Path::new("/sys/module/azb_vsc").exists()
        && let Err(error) = load()
    {
        println!("recovering: {error:#}");
    }
    // Fails when the offer stands, which is well.
    let _ = bench.service.host().try_offer();
    if let Err(error) = wait_node(true) {
        println!("recovering: {error:#}");
    }
}

/// After each case: nothing held, nothing pinned, no complaint of the host.
fn settle(bench: &Bench) -> Result<()> {
    ensure!(
        bench.service.is_idle(),
        "the case has left requests with the host"
    );
    wait_unpinned()?;
    let trouble = bench.service.trouble();
    ensure!(trouble.is_empty(), "the host complained: {}", trouble.join("; "));
    Ok(())
}
