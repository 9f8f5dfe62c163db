//! A host that answers nonsense.

use anyhow::{Result, anyhow, ensure};
use nix::errno::Errno;

use crate::client::{Control, Device, fill};
use crate::host::{Packet, answer_body, completion};
use crate::memory::{Memory, PAGE};
use crate::runner::Bench;
use crate::service::{Mode, Task};
use crate::system::{kernel_log, pending};

const COMPLETION: u16 = 11;
const DATA_INBAND: u16 = 6;

/// Sends a request, lets `spoil` act on it while it is held, and returns what the caller got.
fn held(bench: &Bench, spoil: impl FnOnce(&Packet) -> Result<()>) -> Result<nix::Result<(u32, u32)>> {
    let device = Device::open()?;
    let control = Control::new(Task::Sum)?;
    let data = Memory::written(PAGE)?;
    bench.service.set(Mode::Hold);
    let outcome = std::thread::scope(|scope| {
        let call = scope.spawn(|| device.submit(&control.frame((data.address(0), 64), 64)));
        let spoiled = bench.service.take_one().and_then(|packet| {
            let spoiled = spoil(&packet);
            if spoiled.is_err() {
                // Frees the caller, so that the case ends.
                bench.service.host().answer(packet.id, 0, 0)?;
            }
            spoiled
        });
        let outcome = call.join().map_err(|_| anyhow!("the caller panicked"));
        spoiled.and(outcome)
    });
    bench.service.set(Mode::Serve);
    outcome
}

/// The device still works.
fn still_works() -> Result<()> {
    let memory = Memory::written(4 * PAGE)?;
    fill(&Device::open()?, &memory, 1, 3 * PAGE, 99)
}

/// A completion without room for an answer ends its request with EPROTO.
pub(crate) fn short_answer(bench: &Bench) -> Result<()> {
    for body in [&[][..], &[0; 8]] {
        let outcome = held(bench, |packet| {
            bench
                .service
                .host()
                .put_patiently(&completion(COMPLETION, packet.id, body))
        })?;
        ensure!(outcome == Err(Errno::EPROTO), "{} bytes: {outcome:?}", body.len());
    }
    still_works()
}

/// An answer that claims more bytes than the response buffer has.
pub(crate) fn oversized_answer(bench: &Bench) -> Result<()> {
    for len in [65, u32::MAX] {
        let outcome = held(bench, |packet| bench.service.host().answer(packet.id, 0, len))?;
        ensure!(outcome == Err(Errno::EPROTO), "{len} bytes: {outcome:?}");
    }
    let outcome = held(bench, |packet| bench.service.host().answer(packet.id, 0, 64))?;
    ensure!(outcome == Ok((0, 64)), "exactly full: {outcome:?}");
    still_works()
}

/// Ids that are not in use, never were, or are addresses.
pub(crate) fn unknown_id(bench: &Bench) -> Result<()> {
    let outcome = held(bench, |packet| {
        let host = bench.service.host();
        for id in [0, packet.id + 1, 1024, 1025, 0xFFFF_8880_0000_1000, u64::MAX] {
            host.answer(id, 5, 6)?;
        }
        host.answer(packet.id, 1, 2)
    })?;
    ensure!(outcome == Ok((1, 2)), "{outcome:?}");
    ensure!(
        kernel_log()?
            .iter()
            .any(|line| line.contains("answer to unknown request")),
        "the log does not say so"
    );
    still_works()
}

/// The second answer to one request is not accepted.
pub(crate) fn answered_twice(bench: &Bench) -> Result<()> {
    let outcome = held(bench, |packet| {
        bench.service.host().answer(packet.id, 1, 2)?;
        bench.service.host().answer(packet.id, 3, 4)
    })?;
    ensure!(outcome == Ok((1, 2)), "{outcome:?}");
    still_works()
}

/// Packets that are no completion are left alone, also with a good id.
pub(crate) fn wrong_type(bench: &Bench) -> Result<()> {
    let outcome = held(bench, |packet| {
        let host = bench.service.host();
        for kind in [0, DATA_INBAND, 9, 0x7FFF] {
            host.put_patiently(&completion(kind, packet.id, &answer_body(7, 7)))?;
        }
        ensure!(pending()?.len() == 1, "the request is gone");
        host.answer(packet.id, 1, 2)
    })?;
    ensure!(outcome == Ok((1, 2)), "{outcome:?}");
    still_works()
}

/// Ten thousand random packets while a request is held. Their ids are larger than any that the driver gives
/// out.
pub(crate) fn flood(bench: &Bench) -> Result<()> {
    let outcome = held(bench, |packet| {
        let host = bench.service.host();
        let mut state = 0x1234_5678_9ABC_DEF1_u64;
        for _ in 0..10_000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let kind = if state & 1 == 0 {
                COMPLETION
            } else {
                (state >> 8) as u16
            };
            let body = vec![(state >> 16) as u8; (state >> 24) as usize % 3000];
            let mut bytes = completion(kind, state | 1 << 40, &body);
            // Sometimes the header lies about where the data starts, but never about the length: the ring
            // itself would be lost with it, in the bus driver.
            if state & 6 == 0 {
                bytes[2..4].copy_from_slice(&((state >> 32) as u16).to_le_bytes());
            }
            host.put_patiently(&bytes)?;
        }
        host.answer(packet.id, 1, 2)
    })?;
    ensure!(outcome == Ok((1, 2)), "{outcome:?}");
    still_works()
}
