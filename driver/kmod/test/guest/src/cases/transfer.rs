//! Bytes through the device, both ways.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, anyhow, ensure};
use nix::errno::Errno;

use crate::client::{Control, Device, Frame, Line, fill, sum};
use crate::memory::{Memory, PAGE};
use crate::runner::Bench;
use crate::service::{Mode, Task};

/// Every field of the packet, for a request with awkward offsets. (The host checks the framing of all
/// packets.)
pub(crate) fn wire_format(bench: &Bench) -> Result<()> {
    let device = Device::open()?;
    let memory = Memory::written(8 * PAGE)?;
    let frame = Frame {
        request: (memory.address(100), 16),
        response: (memory.address(5 * PAGE - 3), 70),
        data: (memory.address(PAGE + 5), 2 * PAGE as u32),
        valid: 77,
        guid: *b"0123456789abcdef",
    };
    memory.write(100, &Task::Fail(0x8007_0102).encode());
    bench.service.set(Mode::Hold);
    let (answer, packet) = std::thread::scope(|scope| {
        let call = scope.spawn(|| device.submit(&frame));
        let packet = bench.service.take_one().and_then(|packet| {
            bench.service.serve(&packet)?;
            Ok(packet)
        });
        (call.join(), packet)
    });
    let packet = packet?;
    let answer = answer.map_err(|_| anyhow!("the caller panicked"))??;
    ensure!(answer == (0x8007_0102, 0), "answer {answer:x?}");
    let page = PAGE as u32;
    ensure!(packet.timeout == 30_000, "{packet:?}");
    ensure!(packet.data == (5, 2 * page), "{packet:?}");
    ensure!(packet.data_valid == 77, "{packet:?}");
    ensure!(packet.request == (3 * page + 100, 16), "{packet:?}");
    ensure!(packet.response == (4 * page + page - 3, 70), "{packet:?}");
    ensure!(packet.pfns.len() == 6, "{packet:?}");
    ensure!(packet.guid == frame.guid, "{packet:?}");
    ensure!(
        (1..=u64::from(u32::MAX)).contains(&packet.id),
        "id {:#x} is an address",
        packet.id
    );
    Ok(())
}

/// Sizes around every boundary, through vsc-driver's channel, with checksums.
pub(crate) fn size_classes(_: &Bench) -> Result<()> {
    let line = Line::open(4)?;
    let mut sizes = vec![1, 2, 7, 511, 512, 513];
    for order in 0..=8 {
        let size = PAGE << order;
        sizes.extend([size - 1, size, size + 1]);
    }
    sizes.extend([(2 << 20) + 1, 4 << 20, (8 << 20) - 1, 16 << 20]);
    for (seed, size) in (1..).zip(sizes) {
        line.read(size, seed)?;
        line.write(size, seed)?;
    }
    Ok(())
}

/// 1 to 64 requests at once.
pub(crate) fn threads(_: &Bench) -> Result<()> {
    for threads in [1, 2, 4, 8, 16, 32, 64] {
        let line = Line::open(threads)?;
        let seed = AtomicU64::new(1000 * threads as u64);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|_| {
                    scope.spawn(|| {
                        for size in [100, 3 * PAGE + 17, 64 * 1024] {
                            let seed = seed.fetch_add(1, Ordering::Relaxed);
                            line.read(size, seed)?;
                            line.write(size, seed)?;
                        }
                        anyhow::Ok(())
                    })
                })
                .collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)
        })?;
        let completed = line.channel.stats().completed;
        ensure!(
            completed == 6 * threads as u64,
            "{completed} completed with {threads} threads"
        );
    }
    Ok(())
}

/// Exactly 8192 pages go through; one more is refused.
pub(crate) fn largest(_: &Bench) -> Result<()> {
    let line = Line::open(1)?;
    let largest = 8190 * PAGE;
    line.read(largest, 7)?;
    line.write(largest, 8)?;

    let device = Device::open()?;
    let memory = Memory::untouched(8191 * PAGE)?;
    fill(&device, &memory, 0, largest, 9)?;
    // The same bytes one further in the page touch one page more.
    let control = Control::new(Task::Sum)?;
    let outcome = device.submit(&control.frame((memory.address(1), largest as u32), 0));
    ensure!(outcome == Err(Errno::EINVAL), "8193 pages: {outcome:?}");
    Ok(())
}

/// Buffers need no alignment, and not a byte beside them changes.
pub(crate) fn unaligned(_: &Bench) -> Result<()> {
    let device = Device::open()?;
    let memory = Memory::written(40 * PAGE)?;
    for (offset, len) in [
        (1, 1),
        (PAGE - 1, 2),
        (PAGE - 1, PAGE + 2),
        (4095, 1),
        (3, 4093),
        (3, 4094),
        (17, 30 * PAGE + 1),
    ] {
        memory.fill(0xA5);
        fill(&device, &memory, offset, len, (offset + len) as u64)?;
        sum(&device, &memory, offset, len)?;
        let before = memory.read(0, offset);
        let after = memory.read(offset + len, memory.len() - offset - len);
        ensure!(
            before.iter().chain(&after).all(|&byte| byte == 0xA5),
            "bytes beside the buffer changed ({len} at {offset})"
        );
    }
    Ok(())
}

/// The host's status is passed on, and the call itself succeeds.
pub(crate) fn host_status(_: &Bench) -> Result<()> {
    let line = Line::open(1)?;
    for status in [1, 0x8007_0102, u32::MAX] {
        let exchange = line.exchange(Task::Fail(status), vsc_driver::channel::Data::None)?;
        let done = line.submit(exchange)?;
        ensure!(
            (done.status, done.response_len) == (status, 0),
            "status {:#x}, {} bytes",
            done.status,
            done.response_len
        );
    }
    Ok(())
}
