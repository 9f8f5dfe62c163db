//! Back-pressure: EAGAIN, and that it passes.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, anyhow, ensure};
use vsc_driver::channel::Channel;

use crate::client::{Control, Device, Frame, Line, check_fill};
use crate::memory::{Memory, PAGE};
use crate::ring::Ring;
use crate::runner::Bench;
use crate::service::{Mode, Task};
use crate::system::{soon, wait_until};

const EAGAIN: i32 = -libc::EAGAIN;

/// Submits until a request is refused with EAGAIN; returns how many were accepted.
fn fill_up(ring: &mut Ring, device: &Device, frame: &Frame, at_most: usize) -> Result<usize> {
    for accepted in 0..at_most {
        ring.submit(device, frame)?;
        // A refusal is posted during the submission, an accepted request not before the host answers.
        if let Some(done) = ring.ready() {
            ensure!(done.result == EAGAIN, "refused with {}", done.result);
            return Ok(accepted);
        }
    }
    Err(anyhow!("{at_most} requests were accepted"))
}

/// Collects `n` completions, all good.
fn collect(ring: &mut Ring, n: usize) -> Result<()> {
    for _ in 0..n {
        let done = ring.wait()?;
        ensure!(done.result == 0, "request {}: {}", done.index, done.result);
    }
    Ok(())
}

/// The host reads nothing: the ring takes some large packets, then says EAGAIN; what it took is served later.
pub(crate) fn ring_full(bench: &Bench) -> Result<()> {
    let device = Device::open()?;
    let control = Control::new(Task::Sum)?;
    let memory = Memory::written(1024 * PAGE)?;
    let frame = control.frame((memory.address(0), memory.len() as u32), 100);
    let mut ring = Ring::new(64)?;
    bench.service.set(Mode::Pause);
    ring.submit(&device, &frame)?;
    bench.service.wait_stalled()?;
    // About 8.3 KiB of page list in 124 KiB of ring, after the packet that the host has taken out.
    let accepted = 1 + fill_up(&mut ring, &device, &frame, 40)?;
    ensure!((10..=20).contains(&accepted), "{accepted} requests fitted");

    // A request of the other door is told the same.
    let outcome = device.submit(&frame);
    ensure!(
        outcome == Err(nix::errno::Errno::EAGAIN),
        "ioctl with a full ring: {outcome:?}"
    );
    bench.service.set(Mode::Serve);
    collect(&mut ring, accepted)?;
    // There is room again.
    ring.submit(&device, &frame)?;
    collect(&mut ring, 1)
}

/// The host takes requests and answers none: after 1024 there is no id left.
pub(crate) fn ids_used_up(bench: &Bench) -> Result<()> {
    let device = Device::open()?;
    let control = Control::new(Task::Sum)?;
    let frame = control.frame((0, 0), 0);
    let mut ring = Ring::new(2048)?;
    bench.service.set(Mode::Hold);
    let mut accepted = 0;
    // The host may be slower than we are: then the ring is full first, and empties.
    wait_until("all ids to be used", soon(), || {
        let added = fill_up(&mut ring, &device, &frame, 1025);
        accepted += added.unwrap_or_default();
        accepted >= 1024
    })?;
    ensure!(accepted == 1024, "{accepted} requests accepted");
    let held = bench.service.take(1024)?;
    let outcome = device.submit(&frame);
    ensure!(
        outcome == Err(nix::errno::Errno::EAGAIN),
        "ioctl without an id: {outcome:?}"
    );
    for packet in &held {
        bench.service.host().answer(packet.id, 0, 0)?;
    }
    collect(&mut ring, 1024)
}

/// No more than a quarter of the machine's memory may be pinned.
pub(crate) fn pin_budget(bench: &Bench) -> Result<()> {
    let device = Device::open()?;
    let control = Control::new(Task::Sum)?;
    // One piece of memory in all requests: it is counted for each.
    let memory = Memory::written(4096 * PAGE)?;
    let frame = control.frame((memory.address(0), memory.len() as u32), 8);
    let total = nix::sys::sysinfo::sysinfo()?.ram_total() as usize / PAGE;
    let mut ring = Ring::new(256)?;
    bench.service.set(Mode::Hold);
    let mut accepted = 0;
    // Large packets fill the ring before the host has read them.
    wait_until("the budget to be used up", soon(), || {
        accepted += fill_up(&mut ring, &device, &frame, 200).unwrap_or_default();
        (accepted + 1) * 4098 > total / 4
    })?;
    let held = bench.service.take(accepted)?;
    let outcome = device.submit(&frame);
    ensure!(
        outcome == Err(nix::errno::Errno::EAGAIN),
        "beyond the budget: {outcome:?}"
    );
    ensure!(
        accepted * 4098 <= total / 4,
        "{accepted} requests of 4098 pages accepted, {total} pages of memory"
    );
    for packet in &held {
        bench.service.host().answer(packet.id, 0, 0)?;
    }
    collect(&mut ring, accepted)?;
    ensure!(accepted > 0, "no request accepted");
    // Wait for the pages: the last reference may be dropped by a worker of the kernel.
    crate::system::wait_unpinned()?;
    bench.service.set(Mode::Serve);
    device.submit(&frame)?;
    Ok(())
}

/// vsc-driver's channel meets a full ring, waits, and loses nothing.
pub(crate) fn channel_rides_it_out(bench: &Bench) -> Result<()> {
    // 4.3 KiB of page list each: less than 30 fit into the ring.
    const REQUESTS: usize = 48;
    const SIZE: usize = 512 * PAGE;
    let line = Line::open(REQUESTS)?;
    bench.service.set(Mode::Pause);
    let submit = |channel: Channel, exchange| async move { channel.submit(exchange).await };
    let tasks: Vec<_> = (0..REQUESTS)
        .map(|seed| {
            let exchange = line.fill_exchange(SIZE, seed as u64)?;
            Ok(line.runtime.spawn(submit(line.channel.clone(), exchange)))
        })
        .collect::<Result<_>>()?;
    let refusals = AtomicUsize::new(0);
    wait_until("EAGAIN", soon(), || {
        refusals.store(line.channel.stats().eagain as usize, Ordering::Relaxed);
        refusals.load(Ordering::Relaxed) > 0
    })?;
    bench.service.set(Mode::Serve);
    for (seed, task) in tasks.into_iter().enumerate() {
        let done = line.runtime.block_on(task)??;
        check_fill(&done, SIZE, seed as u64)?;
    }
    Ok(())
}
