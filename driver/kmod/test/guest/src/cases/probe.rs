//! A device that cannot be put into service: what was begun is undone, and the next attempt succeeds.

use anyhow::{Result, ensure};

use crate::client::{Device, fill};
use crate::memory::{Memory, PAGE};
use crate::runner::Bench;
use crate::system::{self, BUS, device_name, kernel_log, soon, wait_node, wait_until};

/// Offers a device that the module cannot serve, for the reason in `said`.
fn fails(bench: &Bench, said: &str, spoil: impl FnOnce() -> Result<()>) -> Result<()> {
    let count = || -> Result<usize> { Ok(kernel_log()?.iter().filter(|line| line.contains(said)).count()) };
    bench.service.host().rescind()?;
    wait_node(false)?;
    spoil()?;
    let before = count()?;
    bench.service.host().offer()?;
    wait_until(said, soon(), || count().is_ok_and(|n| n > before))?;
    wait_until("the device to be without a driver", soon(), || {
        device_name().is_ok_and(|name| !bound(&name))
    })
}

fn bound(device: &str) -> bool {
    std::path::Path::new(BUS)
        .join("devices")
        .join(device)
        .join("driver")
        .exists()
}

/// The same device serves as soon as nothing is in the way.
fn serves() -> Result<()> {
    system::bind(&device_name()?)?;
    wait_node(true)?;
    let memory = Memory::written(4 * PAGE)?;
    fill(&Device::open()?, &memory, 1, 3 * PAGE, 55)
}

/// The host refuses to open the channel.
pub(crate) fn open_refused(bench: &Bench) -> Result<()> {
    fails(bench, "cannot open the channel", || {
        bench.service.host().refuse_next_open()
    })?;
    serves()
}

/// The node's name is taken: the channel that was opened before is closed again.
pub(crate) fn name_taken(bench: &Bench) -> Result<()> {
    let failed = fails(bench, "cannot create /dev/azure_blob", || {
        bench.service.host().decoy(true)
    });
    bench.service.host().decoy(false)?;
    failed?;
    ensure!(
        !std::path::Path::new(system::NODE).exists(),
        "a node without a device"
    );
    serves()
}
