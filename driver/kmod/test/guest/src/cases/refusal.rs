//! What the ioctl refuses, and with which error.

use anyhow::{Result, ensure};
use nix::errno::Errno;
use vsc_driver::uapi::{CMD_LIST, CMD_UBUNTU, RequestSync};

use crate::child;
use crate::client::{Control, Device, Frame};
use crate::memory::{Memory, PAGE};
use crate::runner::Bench;
use crate::service::Task;
use crate::system::wait_unpinned;

fn refused(device: &Device, what: &str, request: RequestSync, errno: Errno) -> Result<()> {
    for command in [CMD_LIST, CMD_UBUNTU] {
        let outcome = device.call(command, &mut request.clone());
        ensure!(
            outcome == Err(errno),
            "{what} with {command:#x}: {outcome:?}, need {errno}"
        );
    }
    Ok(())
}

/// Both numbers are known (an unmapped struct is EFAULT), every other number is EINVAL.
pub(crate) fn numbers(_: &Bench) -> Result<()> {
    let device = Device::open()?;
    for command in [CMD_LIST, CMD_UBUNTU] {
        let outcome = device.call_at(command, 0);
        ensure!(outcome == Err(Errno::EFAULT), "{command:#x}: {outcome:?}");
    }
    // The first published number (a struct of 64 bytes), a wrong direction, a wrong size.
    for command in [0xC040_520A, 0x8048_52F0, 0xC050_52F0] {
        let outcome = device.call_at(command, 0);
        ensure!(outcome == Err(Errno::EINVAL), "{command:#x}: {outcome:?}");
    }
    // A client of the other number is served.
    let control = Control::new(Task::Sum)?;
    let data = Memory::written(PAGE)?;
    let mut request = control.frame((data.address(0), 100), 100).request();
    // Older clients leave rubbish in what was padding to them.
    request.reserved = 0xDEAD;
    device.call(CMD_UBUNTU, &mut request)?;
    ensure!((request.status, request.answer_len) == (0, 8), "{request:?}");
    let outcome = device.call(CMD_LIST, &mut request);
    ensure!(outcome == Err(Errno::EINVAL), "reserved field not 0: {outcome:?}");
    Ok(())
}

/// Every length is checked, each alone and all together, before anything else happens.
pub(crate) fn lengths(_: &Bench) -> Result<()> {
    const MAX: u32 = 32 << 20;
    let device = Device::open()?;
    let control = Control::new(Task::Sum)?;
    let data = Memory::written(PAGE)?;
    let good = control.frame((data.address(0), 100), 100).request();
    let with = |change: fn(&mut RequestSync)| {
        let mut request = good;
        change(&mut request);
        request
    };
    for (what, request) in [
        ("no request", with(|r| r.request_len = 0)),
        ("no response", with(|r| r.response_len = 0)),
        ("more valid than data", with(|r| r.data_valid = 101)),
        ("request too large", with(|r| r.request_len = MAX + 1)),
        ("response too large", with(|r| r.response_len = u32::MAX)),
        ("data too large", with(|r| r.data_len = MAX + 1)),
        // Each fits alone, together they are 8193 pages.
        ("sum too large", with(|r| r.data_len = MAX - PAGE as u32)),
        (
            "all at the limit",
            with(|r| {
                r.data_len = MAX;
                r.request_len = MAX;
                r.response_len = MAX;
            }),
        ),
    ] {
        refused(&device, what, request, Errno::EINVAL)?;
    }
    Ok(())
}

/// Addresses that are not the caller's memory.
pub(crate) fn addresses(_: &Bench) -> Result<()> {
    let device = Device::open()?;
    let control = Control::new(Task::Sum)?;
    let data = Memory::written(PAGE)?;
    let good = || control.frame((data.address(0), 100), 100);
    let kernel = 0xFFFF_8000_0000_0000;
    for bad in [0, kernel, u64::MAX - 3, 1 << 46] {
        let frames = [
            Frame {
                request: (bad, 16),
                ..good()
            },
            Frame {
                response: (bad, 64),
                ..good()
            },
            Frame {
                data: (bad, 100),
                ..good()
            },
        ];
        for frame in frames {
            refused(&device, &format!("{frame:x?}"), frame.request(), Errno::EFAULT)?;
        }
    }
    // A buffer of which only the first pages can be had: these must not stay pinned.
    let beyond = Memory::written(64 * PAGE)?;
    beyond.fence(4 * PAGE)?;
    let frame = Frame {
        data: (beyond.address(0), beyond.len() as u32),
        ..good()
    };
    refused(&device, "buffer past its mapping", frame.request(), Errno::EFAULT)?;
    wait_unpinned()
}

/// A process with other credentials than the opener's is refused, as the shipped drivers do.
pub(crate) fn foreign_credentials(_: &Bench) -> Result<()> {
    let device = Device::open()?;
    let errno = child::exit_errno(child::start("foreign", Some(device.file()))?)?;
    ensure!(errno == Errno::EACCES, "{errno}");
    Ok(())
}
