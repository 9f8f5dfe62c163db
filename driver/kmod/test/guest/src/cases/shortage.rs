//! Every allocation fails once, in a kernel that can be told to.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
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

/// Runs `call` with its first allocation failing, then its second, until one run needs fewer. `check` judges
/// each outcome and puts things back. Returns how many allocations have failed.
fn starve<T>(mut call: impl FnMut() -> T, mut check: impl FnMut(T) -> Result<()>) -> Result<usize> {
    for (name, value) in [("ignore-gfp-wait", "N"), ("verbose", "0")] {
        let path = Path::new("/sys/kernel/debug/failslab").join(name);
        fs::write(&path, value).with_context(|| path.display().to_string())?;
    }
    // Opened once: opening allocates, and would be what fails.
    let counter = File::options().read(true).write(true).open(NTH).context(NTH)?;
    for nth in 1..MOST {
        counter.write_all_at(nth.to_string().as_bytes(), 0).context(NTH)?;
        let outcome = call();
        let mut left = [0; 16];
        let len = counter.read_at(&mut left, 0).context(NTH)?;
        counter.write_all_at(b"0", 0).context(NTH)?;
        check(outcome).with_context(|| format!("allocation {nth}"))?;
        if left[..len].trim_ascii() != b"0" {
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
