//! First process of the virtual machine: loads the module over the software host and runs the cases, one line
//! each.
//!
//! The last line is `kmod-guest: done, N passed, N failed`; the machine is then switched off. A machine that
//! stops without that line has failed.

mod cases;
mod child;
mod client;
mod host;
mod memory;
mod ring;
mod runner;
mod service;
mod signals;
mod system;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use vsc_driver::loader::Outcome;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(role) = arguments.get(1) {
        return child::run(role, &arguments[2..]);
    }
    if std::process::id() != 1 {
        eprintln!("kmod-guest is the first process of a virtual machine; start it with driver/kmod/test/run");
        return ExitCode::from(2);
    }
    let (passed, failed) = match prepare() {
        Ok(bench) => runner::run(&bench, &cases::all()),
        Err(error) => {
            println!("case FAIL prepare: {error:#}");
            (0, 1)
        }
    };
    println!("kmod-guest: done, {passed} passed, {failed} failed");
    system::power_off();
    ExitCode::SUCCESS
}

/// Mounts, the software host, and a service behind it. The module itself is loaded by the first case.
fn prepare() -> Result<runner::Bench> {
    system::mount_all()?;
    let report = system::loader().load()?;
    ensure!(
        report.outcome == Outcome::NotOffered { vmbus: false },
        "before there is a bus: {report}"
    );
    system::load_module("/modules/swhost.ko").context("the software host")?;
    runner::Bench::new()
}
