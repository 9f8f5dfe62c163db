//! Every allocation fails once, in a kernel that can be told to.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;

use crate::client::{Control, Device, fill};
use crate::memory::{Memory, PAGE};
use crate::runner::Bench;
use crate::service::Task;
use crate::system::{self, device_name, wait_node, wait_unpinned};

/// The n-th allocation of the thread that writes n here fails.
const NTH: &str = "/proc/thread-self/fail-nth";
/// More allocations than any of the calls makes.
const MOST: usize = 400;

/// Whether this kernel can do that.
pub(crate) fn can_fail() -> bool {
    Path::new(NTH).exists()
}

/// Runs `call` with its first allocation failing, then its second, until one run needs fewer. `check` judges each outcome
/// and puts things back. Returns how many allocations have failed.
fn starve<T>(mut call: impl FnMut() -> T, mut check: impl FnMut(T) -> Result<()>) -> Result<usize> {
    for (name, value) in [("ignore-gfp-wait", "N"), ("verbose", "0")] {
        let path = Path::new("/sys/kernel/debug/failslab").join(name);
        fs::write(&path, value).with_context(|| path.display().to_string())?;
    }
    for nth in 1..MOST {
        fs::write(NTH, nth.to_string()).context(NTH)?;
        let outcome = call();
        let left = fs::read_to_string(NTH).context(NTH)?;
        fs::write(NTH, "0").context(NTH)?;
        check(outcome).with_context(|| format!("allocation {nth}"))?;
        if left.trim() != "0" {
            return Ok(nth - 1);
        }
    }
    bail!("more than {MOST} allocations in one call")
}

/// A request that finds no memory is refused with ENOMEM or EAGAIN, and leaves nothing pinned.
pub(crate) fn request(_: &Bench) -> Result<()> {
    let device = Device::open()?;
    let control = Control::new(Task::Sum)?;
    let memory = Memory::written(1024 * PAGE)?;
    let frame = control.frame((memory.address(0), memory.len() as u32), 100);
    let mut refused = 0;
    let failed = starve(
        || device.submit(&frame),
        |outcome| {
            refused += usize::from(outcome.is_err());
            ensure!(
                matches!(outcome, Ok((0, 8)) | Err(Errno::ENOMEM | Errno::EAGAIN)),
                "{outcome:?}"
            );
            wait_unpinned()
        },
    )?;
    ensure!(failed >= 3, "only {failed} allocations");
    ensure!(refused >= 1, "no request was refused");
    device.submit(&frame)?;
    Ok(())
}

/// A device that cannot be put into service for want of memory is left as it was found.
pub(crate) fn probe(_: &Bench) -> Result<()> {
    let device = device_name()?;
    let unbind = || -> Result<()> {
        system::unbind(&device)?;
        wait_node(false)
    };
    unbind()?;
    let mut refused = 0;
    let failed = starve(
        || system::bind(&device),
        |outcome| match outcome {
            Ok(()) => unbind(),
            Err(_) => {
                refused += 1;
                Ok(())
            }
        },
    )?;
    ensure!(
        failed >= 5 && refused >= 5,
        "{refused} refusals by {failed} failures"
    );
    system::bind(&device)?;
    wait_node(true)?;
    fill(&Device::open()?, &Memory::written(4 * PAGE)?, 1, 3 * PAGE, 56)
}
