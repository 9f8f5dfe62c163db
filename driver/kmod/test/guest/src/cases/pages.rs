//! Pages that the process has not yet got for itself: what the shipped drivers get wrong.
//!
//! They take response and data without write intent, so the host may write to the shared zero page, to a page
//! shared with a forked child, or to a file that is mapped privately.

use std::fs::File;
use std::io::Write;

use anyhow::{Result, ensure};
use nix::errno::Errno;
use vsc_driver::uapi::CMD_LIST;

use crate::client::{Control, Device, Frame, fill, sum};
use crate::memory::{Memory, PAGE, Twin};
use crate::runner::Bench;
use crate::service::{Task, checksum};

/// Request, response and data in one and the same page.
pub(crate) fn one_page_for_all(_: &Bench) -> Result<()> {
    let device = Device::open()?;
    let memory = Memory::written(PAGE)?;
    memory.write(0, &Task::Fill(42).encode());
    let answer = device.submit(&Frame {
        request: (memory.address(0), 16),
        response: (memory.address(64), 8),
        data: (memory.address(128), 1000),
        valid: 0,
        guid: [1; 16],
    })?;
    ensure!(answer == (0, 8), "answer {answer:?}");
    let data = memory.read(128, 1000);
    ensure!(
        data == crate::service::pattern(42, 1000),
        "the data did not arrive"
    );
    ensure!(
        memory.read(64, 8) == checksum(&data).to_le_bytes(),
        "the response did not arrive"
    );
    Ok(())
}

/// Data and response that the process has never touched, or only read.
pub(crate) fn zero_page(_: &Bench) -> Result<()> {
    let device = Device::open()?;
    let untouched = Memory::untouched(5 * PAGE)?;
    fill(&device, &untouched, 10, 4 * PAGE, 1)?;

    // Reading maps the shared zero page.
    let only_read = Memory::untouched(5 * PAGE)?;
    ensure!(
        only_read.read(0, 5 * PAGE).iter().all(|&byte| byte == 0),
        "new memory is not zero"
    );
    fill(&device, &only_read, 10, 4 * PAGE, 2)?;

    // The response in an untouched page too.
    let response = Memory::untouched(PAGE)?;
    let control = Control::new(Task::Fill(3))?;
    let mut frame = control.frame((only_read.address(0), 100), 0);
    frame.response = (response.address(0), 64);
    device.submit(&frame)?;
    ensure!(
        response.read(0, 8) == checksum(&only_read.read(0, 100)).to_le_bytes(),
        "the response did not arrive"
    );

    let zero = Memory::untouched(PAGE)?;
    ensure!(
        zero.read(0, PAGE).iter().all(|&byte| byte == 0),
        "the shared zero page is not zero any more"
    );
    // As a source the zero page is as good as any.
    sum(&device, &zero, 0, PAGE)
}

/// Pages shared with a forked child: the parent sees the host's bytes, the child keeps its own.
pub(crate) fn fork_copy(_: &Bench) -> Result<()> {
    let device = Device::open()?;
    let memory = Memory::untouched(8 * PAGE)?;
    memory.fill(0x5C);
    let twin = Twin::new(&memory, 0x5C)?;
    fill(&device, &memory, 0, 8 * PAGE, 4)?;
    ensure!(twin.unchanged()?, "the host's bytes reached the child");
    // The pages are ours alone now: they stay so over a second transfer.
    fill(&device, &memory, 0, 8 * PAGE, 5)
}

/// A file mapped privately keeps its bytes.
pub(crate) fn private_file(_: &Bench) -> Result<()> {
    let device = Device::open()?;
    let path = "/tmp/private";
    File::create(path)?.write_all(&[0x77; 4 * PAGE])?;
    let file = File::options().read(true).write(true).open(path)?;
    let memory = Memory::of_file(&file, 4 * PAGE, false)?;
    // Reading maps the file's own pages.
    ensure!(memory.read(0, 4 * PAGE) == [0x77; 4 * PAGE], "the file is wrong");
    fill(&device, &memory, 5, 3 * PAGE, 6)?;
    ensure!(
        std::fs::read(path)? == [0x77; 4 * PAGE],
        "the host's bytes reached the file"
    );
    Ok(())
}

/// Read-only memory is refused where the host writes, and good where it reads.
pub(crate) fn read_only(_: &Bench) -> Result<()> {
    let device = Device::open()?;
    let control = Control::new(Task::Sum)?;
    let data = Memory::written(PAGE)?;
    let locked = Memory::written(PAGE)?;
    locked.write(0, &Task::Sum.encode());
    let locked = locked.read_only()?;
    let good = || control.frame((data.address(0), 50), 50);
    for frame in [
        Frame {
            data: (locked.address(0), 50),
            ..good()
        },
        Frame {
            response: (locked.address(0), 64),
            ..good()
        },
    ] {
        let outcome = device.call(CMD_LIST, &mut frame.request());
        ensure!(outcome == Err(Errno::EFAULT), "{frame:x?}: {outcome:?}");
    }
    let answer = device.submit(&Frame {
        request: (locked.address(0), 16),
        ..good()
    })?;
    ensure!(answer == (0, 8), "request in read-only memory: {answer:?}");
    ensure!(
        control.sum() == checksum(&data.read(0, 50)),
        "the host saw other bytes"
    );
    Ok(())
}
