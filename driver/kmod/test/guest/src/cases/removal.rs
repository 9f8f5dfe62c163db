//! The host takes the device away, and gives it back.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use anyhow::{Result, anyhow, bail, ensure};
use nix::errno::Errno;
use vsc_driver::channel::ChannelError;

use crate::client::{Control, Device, Line, fill};
use crate::memory::{Memory, PAGE};
use crate::ring::Ring;
use crate::runner::Bench;
use crate::service::{Mode, Task, pattern};
use crate::system::{self, device_name, pinned, soon, wait_node, wait_unpinned, wait_until};

const SIZE: usize = 3 * PAGE;

/// What the ioctl returned, and the caller's memory afterwards.
type Seen = (nix::Result<(u32, u32)>, Vec<u8>);
type Waiting = JoinHandle<Result<Seen>>;

/// A thread waiting in the ioctl for a fill of its own memory.
fn wait_in_ioctl(seed: u64) -> Waiting {
    std::thread::spawn(move || {
        let device = Device::open()?;
        let memory = Memory::written(SIZE)?;
        let control = Control::new(Task::Fill(seed))?;
        let outcome = device.submit(&control.frame((memory.address(0), SIZE as u32), 0));
        Ok((outcome, memory.read(0, SIZE)))
    })
}

fn join(waiting: Waiting) -> Result<Seen> {
    waiting.join().map_err(|_| anyhow!("a caller panicked"))?
}

fn offer_again(bench: &Bench) -> Result<()> {
    bench.service.host().offer()?;
    wait_node(true)
}

/// An open file of a device that is gone answers ENODEV, for ever; a new node works beside it.
fn is_inert(device: &Device) -> Result<()> {
    let memory = Memory::written(PAGE)?;
    let control = Control::new(Task::Sum)?;
    let outcome = device.submit(&control.frame((memory.address(0), 8), 8));
    ensure!(outcome == Err(Errno::ENODEV), "old file: {outcome:?}");
    Ok(())
}

/// Rescind with requests pending, which the host returns late: they succeed, into pinned pages.
pub(crate) fn drained(bench: &Bench) -> Result<()> {
    let old = Device::open()?;
    bench.service.set(Mode::Hold);
    let callers: Vec<_> = (0..4).map(wait_in_ioctl).collect();
    let held = bench.service.take(4)?;
    bench.service.host().rescind()?;
    wait_node(false)?;
    is_inert(&old)?;
    for packet in &held {
        bench.service.serve(packet)?;
    }
    for (seed, caller) in (0..).zip(callers) {
        let (outcome, seen) = join(caller)?;
        ensure!(outcome == Ok((0, 8)), "caller {seed}: {outcome:?}");
        ensure!(seen == pattern(seed, SIZE), "caller {seed} got other bytes");
    }
    offer_again(bench)?;
    is_inert(&old)?;
    bench.service.set(Mode::Serve);
    let memory = Memory::written(SIZE)?;
    fill(&Device::open()?, &memory, 0, SIZE, 77)
}

/// Rescind with requests that the host never returns: ENODEV, in bounded time.
pub(crate) fn unanswered(bench: &Bench) -> Result<()> {
    bench.service.set(Mode::Hold);
    let callers: Vec<_> = (0..3).map(wait_in_ioctl).collect();
    bench.service.take(3)?;
    bench.service.host().rescind()?;
    // The driver waits 5 s for a host that has revoked the channel.
    wait_until("the callers to be told", soon(), || {
        callers.iter().all(JoinHandle::is_finished)
    })?;
    for caller in callers {
        let (outcome, _) = join(caller)?;
        ensure!(outcome == Err(Errno::ENODEV), "{outcome:?}");
    }
    offer_again(bench)?;
    bench.service.set(Mode::Serve);
    let memory = Memory::written(SIZE)?;
    fill(&Device::open()?, &memory, 0, SIZE, 78)
}

/// Rescind with requests of a ring pending: what the host returns succeeds, the rest is told ENODEV, as is a
/// new one.
pub(crate) fn with_ring(bench: &Bench) -> Result<()> {
    let device = Device::open()?;
    let memory = Memory::written(4 * SIZE)?;
    let controls: Vec<Control> = (0..4)
        .map(|seed| Control::new(Task::Fill(seed)))
        .collect::<Result<_>>()?;
    let mut ring = Ring::new(8)?;
    bench.service.set(Mode::Hold);
    for (at, control) in controls.iter().enumerate() {
        ring.submit(
            &device,
            &control.frame((memory.address(at * SIZE), SIZE as u32), 0),
        )?;
    }
    let held = bench.service.take(4)?;
    bench.service.host().rescind()?;
    wait_node(false)?;
    for packet in &held[..2] {
        bench.service.serve(packet)?;
    }
    for _ in 0..4 {
        let done = ring.wait()?;
        let expected = if done.index < 2 { 0 } else { -libc::ENODEV };
        ensure!(done.result == expected, "{done:?}");
    }
    for seed in 0..2 {
        let seen = memory.read(seed * SIZE, SIZE);
        ensure!(
            seen == pattern(seed as u64, SIZE),
            "request {seed} got other bytes"
        );
    }
    ring.submit(&device, &controls[0].frame((memory.address(0), 8), 0))?;
    let done = ring.wait()?;
    ensure!(done.result == -libc::ENODEV, "on the old file: {done:?}");
    offer_again(bench)?;
    bench.service.set(Mode::Serve);
    fill(&Device::open()?, &memory, 0, SIZE, 80)
}

/// The rescind is noticed while a request is being sent: it may have reached the host or not, and no answer
/// to it can be matched. The caller is told ENODEV; the pages stay pinned until the channel is closed, for
/// the host may use them.
pub(crate) fn met_while_sent(bench: &Bench) -> Result<()> {
    for by_ring in [false, true] {
        wait_unpinned()?;
        let device = Device::open()?;
        let memory = Memory::written(SIZE)?;
        let control = Control::new(Task::Fill(6))?;
        let frame = control.frame((memory.address(0), SIZE as u32), 0);
        bench.service.set(Mode::Hold);
        bench.service.host().rescind_at_next_send()?;
        let errno = if by_ring {
            let mut ring = Ring::new(8)?;
            ring.submit(&device, &frame)?;
            -ring.wait()?.result
        } else {
            device.submit(&frame).map_or_else(|errno| errno as i32, |_| 0)
        };
        let pinned_now = pinned()?;
        ensure!(errno == libc::ENODEV, "by ring {by_ring}: error {errno}");
        ensure!(
            pinned_now == (SIZE / PAGE) as u64 + 2,
            "by ring {by_ring}: {pinned_now} pages are pinned"
        );
        // The host has seen it: its write still lands in pages that belong to nobody else.
        let packet = bench.service.take_one()?;
        bench.service.execute(&packet)?;
        ensure!(
            memory.read(0, SIZE) == pattern(6, SIZE),
            "the late bytes did not arrive"
        );
        wait_node(false)?;
        offer_again(bench)?;
        wait_unpinned()?;
        bench.service.set(Mode::Serve);
        fill(&Device::open()?, &memory, 0, SIZE, 81)?;
    }
    Ok(())
}

/// vsc-driver's channel sees the device go, says so, and finds the new one.
pub(crate) fn channel_reopens(bench: &Bench) -> Result<()> {
    let line = Line::open(4)?;
    line.read(SIZE, 1)?;
    bench.service.host().rescind()?;
    wait_node(false)?;
    let error = match line.submit(line.fill_exchange(SIZE, 2)?) {
        Ok(done) => bail!("status {:#x} from a device that is gone", done.status),
        Err(error) => error,
    };
    ensure!(
        matches!(error.downcast_ref(), Some(ChannelError::Gone { .. })),
        "{error:#}"
    );
    offer_again(bench)?;
    wait_until("the channel to reopen", soon(), || {
        line.runtime.block_on(line.channel.check()).is_ok()
    })?;
    line.read(SIZE, 3)?;
    let reopened = line.channel.stats().reopened;
    ensure!(reopened == 1, "reopened {reopened} times");
    Ok(())
}

/// Many callers while the device comes and goes: every call succeeds or says why not, with one of three
/// errors.
pub(crate) fn under_load(bench: &Bench) -> Result<()> {
    const CALLERS: usize = 8;
    const ROUNDS: usize = 8;
    let stop = AtomicBool::new(false);
    let (good, gone) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS as u64)
            .map(|seed| {
                let (stop, good, gone) = (&stop, &good, &gone);
                scope.spawn(move || -> Result<()> {
                    let memory = Memory::written(SIZE)?;
                    let control = Control::new(Task::Fill(seed))?;
                    while !stop.load(Ordering::Relaxed) {
                        let Ok(device) = Device::open() else {
                            gone.fetch_add(1, Ordering::Relaxed);
                            std::thread::yield_now();
                            continue;
                        };
                        loop {
                            memory.fill(0);
                            match device.submit(&control.frame((memory.address(0), SIZE as u32), 0)) {
                                Ok(answer) => {
                                    ensure!(answer == (0, 8), "answer {answer:?}");
                                    ensure!(memory.read(0, SIZE) == pattern(seed, SIZE), "other bytes");
                                    good.fetch_add(1, Ordering::Relaxed);
                                }
                                Err(Errno::ENODEV) => break,
                                Err(Errno::EAGAIN) => {}
                                Err(other) => bail!("{other}"),
                            }
                            if stop.load(Ordering::Relaxed) {
                                break;
                            }
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        let rounds = (0..ROUNDS).try_for_each(|_| {
            let before = good.load(Ordering::Relaxed);
            wait_until("some transfers", soon(), || {
                good.load(Ordering::Relaxed) >= before + 50 || callers.iter().all(|c| c.is_finished())
            })?;
            bench.service.host().rescind()?;
            offer_again(bench)
        });
        stop.store(true, Ordering::Relaxed);
        for caller in callers {
            caller.join().map_err(|_| anyhow!("a caller panicked"))??;
        }
        rounds
    })?;
    ensure!(
        good.load(Ordering::Relaxed) >= 50 * ROUNDS,
        "only {} transfers",
        good.load(Ordering::Relaxed)
    );
    Ok(())
}

/// The administrator unbinds the driver with the node open and a request pending: it waits for the host.
pub(crate) fn unbind(bench: &Bench) -> Result<()> {
    let device = device_name()?;
    let old = Device::open()?;
    bench.service.set(Mode::Hold);
    let caller = wait_in_ioctl(5);
    let packet = bench.service.take_one()?;
    let name = device.clone();
    let unbind = std::thread::spawn(move || system::unbind(&name));
    wait_node(false)?;
    ensure!(!unbind.is_finished(), "the driver did not wait");
    is_inert(&old)?;
    bench.service.serve(&packet)?;
    let (outcome, seen) = join(caller)?;
    ensure!(outcome == Ok((0, 8)), "{outcome:?}");
    ensure!(seen == pattern(5, SIZE), "other bytes");
    unbind.join().map_err(|_| anyhow!("unbind panicked"))??;
    system::bind(&device)?;
    wait_node(true)?;
    bench.service.set(Mode::Serve);
    let memory = Memory::written(SIZE)?;
    fill(&Device::open()?, &memory, 0, SIZE, 79)
}

/// The same with requests of a ring pending.
pub(crate) fn unbind_with_ring(bench: &Bench) -> Result<()> {
    let device = device_name()?;
    let old = Device::open()?;
    let memory = Memory::written(SIZE)?;
    let control = Control::new(Task::Fill(9))?;
    let frame = control.frame((memory.address(0), SIZE as u32), 0);
    let mut ring = Ring::new(8)?;
    bench.service.set(Mode::Hold);
    for _ in 0..3 {
        ring.submit(&old, &frame)?;
    }
    let held = bench.service.take(3)?;
    let name = device.clone();
    let unbind = std::thread::spawn(move || system::unbind(&name));
    wait_node(false)?;
    ensure!(!unbind.is_finished(), "the driver did not wait");
    let refused = ring.submit(&old, &frame)?;
    let done = ring.wait()?;
    ensure!(
        done.index == refused && done.result == -libc::ENODEV,
        "a request to a device that goes: {done:?}"
    );
    for packet in &held {
        bench.service.serve(packet)?;
    }
    for _ in 0..3 {
        let done = ring.wait()?;
        ensure!(done.result == 0, "{done:?}");
    }
    ensure!(memory.read(0, SIZE) == pattern(9, SIZE), "other bytes");
    unbind.join().map_err(|_| anyhow!("unbind panicked"))??;
    system::bind(&device)?;
    wait_node(true)?;
    bench.service.set(Mode::Serve);
    fill(&Device::open()?, &memory, 0, SIZE, 82)
}
