//! The asynchronous door.

use anyhow::{Result, ensure};
use vsc_driver::uapi::{CMD_LIST, RequestSync};

use crate::child::{self, CHILD_DATA};
use crate::client::{Control, Device};
use crate::memory::{Memory, PAGE};
use crate::ring::Ring;
use crate::runner::Bench;
use crate::service::{Mode, Task, checksum, pattern};
use crate::system::{pending, ring_cancels, soon, users, wait_until};

/// One request each way; the answer comes in the struct and in the completion.
pub(crate) fn both_ways(_: &Bench) -> Result<()> {
    let device = Device::open()?;
    let mut ring = Ring::new(8)?;
    let memory = Memory::untouched(9 * PAGE)?;
    let len = 8 * PAGE + 3;
    for (task, valid) in [(Task::Fill(11), 0), (Task::Sum, len)] {
        let control = Control::new(task)?;
        let index = ring.submit(
            &device,
            &control.frame((memory.address(1), len as u32), valid as u32),
        )?;
        let done = ring.wait()?;
        ensure!(done.index == index && done.result == 0, "{done:?}");
        ensure!(done.extra == 8 << 32, "{done:?}");
        ensure!(ring.answer(index)? == (0, 8), "{:?}", ring.answer(index)?);
        let seen = memory.read(1, len);
        ensure!(seen == pattern(11, len), "the host's bytes did not arrive");
        ensure!(control.sum() == checksum(&seen), "the response did not arrive");
    }
    let control = Control::new(Task::Fail(0x8007_0102))?;
    let index = ring.submit(&device, &control.frame((0, 0), 0))?;
    let done = ring.wait()?;
    ensure!(done.result == 0 && done.extra == 0x8007_0102, "{done:?}");
    ensure!(
        ring.answer(index)? == (0x8007_0102, 0),
        "{:?}",
        ring.answer(index)?
    );
    Ok(())
}

/// 256 requests in flight from one thread, answered in another order.
pub(crate) fn in_flight_256(bench: &Bench) -> Result<()> {
    const REQUESTS: usize = 256;
    const SIZE: usize = 5000;
    let device = Device::open()?;
    let mut ring = Ring::new(REQUESTS as u32)?;
    let memory = Memory::untouched(REQUESTS * 2 * PAGE)?;
    let controls: Vec<Control> = (0..REQUESTS)
        .map(|seed| Control::new(Task::Fill(seed as u64)))
        .collect::<Result<_>>()?;
    bench.service.set(Mode::Hold);
    for (at, control) in controls.iter().enumerate() {
        let index = ring.submit(
            &device,
            &control.frame((memory.address(at * 2 * PAGE + 9), SIZE as u32), 0),
        )?;
        ensure!(index == at, "index {index}");
    }
    let mut held = bench.service.take(REQUESTS)?;
    ensure!(
        pending()?.iter().filter(|line| line.ends_with(" uring")).count() == REQUESTS,
        "the listing shows {} requests",
        pending()?.len()
    );
    held.reverse();
    for packet in &held {
        bench.service.serve(packet)?;
    }
    let mut seen = vec![false; REQUESTS];
    for _ in 0..REQUESTS {
        let done = ring.wait()?;
        ensure!(done.result == 0 && done.extra == 8 << 32, "{done:?}");
        ensure!(!std::mem::replace(&mut seen[done.index], true), "{done:?} twice");
    }
    for (at, control) in controls.iter().enumerate() {
        let bytes = memory.read(at * 2 * PAGE + 9, SIZE);
        ensure!(
            bytes == pattern(at as u64, SIZE) && control.sum() == checksum(&bytes),
            "request {at} got other bytes"
        );
    }
    Ok(())
}

/// The same refusals as by ioctl, and those of the command area.
pub(crate) fn refusals(_: &Bench) -> Result<()> {
    let device = Device::open()?;
    let mut ring = Ring::new(8)?;
    let control = Control::new(Task::Sum)?;
    let mut frame = control.frame((0, 0), 0);
    let good = Box::new(frame.request());
    let at = |request: &RequestSync| std::ptr::from_ref(request).expose_provenance() as u64;
    let address = at(&good);
    let mut expect = |what: &str, command, area, errno: i32| -> Result<()> {
        ring.submit_area(&device, command, area, usize::MAX)?;
        let done = ring.wait()?;
        ensure!(done.result == -errno, "{what}: {done:?}");
        Ok(())
    };
    expect("reserved word", CMD_LIST, [address, 1], libc::EINVAL)?;
    expect("unknown number", 7, [address, 0], libc::EINVAL)?;
    expect("unmapped struct", CMD_LIST, [0, 0], libc::EFAULT)?;
    // Where a closed ring must wait for the host, the host must be told to end the request.
    let refused = if ring_cancels()? { 0 } else { libc::EINVAL };
    for (timeout_ms, errno) in [
        (0, refused),
        (300_001, refused),
        (u32::MAX, refused),
        (300_000, 0),
    ] {
        let request = Box::new(RequestSync { timeout_ms, ..*good });
        expect(
            &format!("time-out {timeout_ms}"),
            CMD_LIST,
            [at(&request), 0],
            errno,
        )?;
    }
    frame.request.1 = 0;
    ring.submit(&device, &frame)?;
    let done = ring.wait()?;
    ensure!(done.result == -libc::EINVAL, "no request: {done:?}");
    Ok(())
}

/// Waits until the host is the only one who has the `n` requests.
fn wait_abandoned(n: usize) -> Result<()> {
    wait_until("the requests to be abandoned", soon(), || {
        pending().is_ok_and(|lines| lines.len() == n && lines.iter().all(|line| line.ends_with(" abandoned")))
    })
}

/// A ring is closed with requests in flight: the host's late writes still land in pinned pages.
pub(crate) fn ring_closed(bench: &Bench) -> Result<()> {
    let device = Device::open()?;
    let memory = Memory::written(4 * PAGE)?;
    let control = Control::new(Task::Fill(5))?;
    let mut ring = Ring::new(8)?;
    bench.service.set(Mode::Hold);
    for _ in 0..4 {
        ring.submit(&device, &control.frame((memory.address(0), 4 * PAGE as u32), 0))?;
    }
    let held = bench.service.take(4)?;
    drop(device);
    wait_until("the ring alone to hold the node open", soon(), || {
        users().is_ok_and(|n| n == 1)
    })?;
    drop(ring);
    if ring_cancels()? {
        // It is gone before the host has answered; nothing but the host has the requests.
        wait_abandoned(4)?;
        wait_until("the ring to be gone", soon(), || users().is_ok_and(|n| n == 0))?;
    } else {
        let listing = pending()?;
        ensure!(
            listing.len() == 4 && listing.iter().all(|line| line.ends_with(" uring")),
            "the listing is {listing:?}"
        );
    }
    for packet in &held {
        bench.service.serve(packet)?;
    }
    ensure!(
        memory.read(0, 4 * PAGE) == pattern(5, 4 * PAGE),
        "the late bytes did not arrive"
    );
    Ok(())
}

/// A process is killed with requests in flight: it ends at once, the pages stay until the host has answered.
pub(crate) fn killed(bench: &Bench) -> Result<()> {
    bench.service.set(Mode::Hold);
    let mut child = child::start("hold-ring", None)?;
    let held = bench.service.take(4)?;
    child.kill()?;
    child::wait_gone(&mut child)?;
    if ring_cancels()? {
        wait_abandoned(4)?;
    }
    ensure!(pending()?.len() == 4, "{} requests pending", pending()?.len());
    for packet in &held {
        ensure!(packet.data.1 as usize == CHILD_DATA, "{packet:?}");
        bench.service.serve(packet)?;
    }
    wait_until("the requests to go", soon(), || {
        pending().is_ok_and(|lines| lines.is_empty())
    })
}
