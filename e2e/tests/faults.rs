//! The channel fails while a tree is copied: the copy finishes, is equal, `cp` sees no error, and the
//! counters show the switch. And the table of faults: each kind of fault, over HTTPS and over the channel,
//! under a model of programs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

#[path = "faults/cell.rs"]
mod cell;
#[path = "faults/kinds.rs"]
mod kinds;
#[path = "faults/mapping.rs"]
mod mapping;
#[path = "faults/metronome.rs"]
mod metronome;
#[path = "faults/model.rs"]
mod model;
#[path = "faults/table.rs"]
mod table;

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::harness::backend::Kind;
use e2e::harness::mount::Counters;
use e2e::harness::process::Running;
use e2e::harness::setup::{Setup, Way};
use e2e::harness::tree;
use e2e::harness::wait_for;
use e2e::vsp::{Faults, Spoil};

/// A request that never returns is given up after its timeout; the copy waits that long, and not much longer.
const COPY_LIMIT: Duration = Duration::from_secs(300);

/// Copies the tree in, lets `fault` happen once half of it went over the channel, and compares after a
/// remount. `at` says in percent of the bytes when the fault happens.
fn copy_with(setup: &Setup, at: u64, fault: impl FnOnce(&mut Faults)) -> Result<Counters> {
    let tree = tree::large_tree()?;
    let mount = setup.mount("copy", "mnt")?;
    let device = setup.device()?;
    let target = mount.path().join("tree");
    let mut copy = Running::start(
        "cp",
        Command::new("cp").arg("-r").arg("--").arg(&tree).arg(&target),
    )?;
    wait_for("the copy to be under way", COPY_LIMIT, || {
        ensure!(
            copy.try_wait()?.is_none(),
            "the copy ended before the fault: {:?}",
            device.counters()
        );
        Ok((device.counters().bytes_in > tree::LARGE * at / 100).then_some(()))
    })?;
    let mut faults = device.faults().get();
    fault(&mut faults);
    let holds = faults.hold_next;
    device.faults().update(|now| *now = faults);
    let status = copy.wait(COPY_LIMIT)?;
    ensure!(status.success(), "cp: {status}\n{}", copy.output());
    ensure!(copy.output().is_empty(), "cp complained:\n{}", copy.output());
    // A process with a thread in the device cannot end, as with the real one: what is held returns before
    // that.
    let held = device.faults().release();
    ensure!(
        held as u64 == holds,
        "{held} requests were held at the end of the copy, not {holds}"
    );
    let counters = mount.unmount()?;
    println!("{counters:?}\n{:?}", device.counters());

    // Whatever is still wrong with the device, the second mount must read all of it as well.
    let mount = setup.mount("copy", "mnt")?;
    tree::assert_equal(&tree, &target)?;
    mount.unmount()?;
    Ok(counters)
}

/// Both ways carried data, and the switch is in the books.
fn assert_switched(counters: &Counters) -> Result<()> {
    ensure!(
        counters.channel.bytes_out > 0 && counters.https.bytes_out > 0,
        "{counters:?}"
    );
    ensure!(
        counters.channel.failed_over > 0,
        "no request changed over: {counters:?}"
    );
    Ok(())
}

#[test]
fn the_device_goes_half_way() -> Result<()> {
    let setup = Setup::new(Kind::Embedded, Way::Channel)?;
    let counters = copy_with(&setup, 50, |faults| faults.gone = true)?;
    assert_switched(&counters)?;
    ensure!(setup.device()?.counters().enodev > 0);
    Ok(())
}

#[test]
fn the_device_goes_and_comes_back() -> Result<()> {
    let setup = Setup::new(Kind::Embedded, Way::Channel)?;
    let mount = setup.mount("back", "mnt")?;
    let write = |name: &str| std::fs::write(mount.path().join(name), vec![7; 5 << 20]);
    write("before")?;
    let device = setup.device()?;
    ensure!(device.counters().bytes_in >= 5 << 20);
    device.faults().update(|faults| faults.gone = true);
    write("during")?;
    ensure!(device.counters().bytes_in < 10 << 20);
    device.faults().reset();
    // The channel is probed again with back-off; from then on it carries the data.
    let gone = device.counters().bytes_in;
    wait_for("the channel to be used again", COPY_LIMIT, || {
        write("after")?;
        Ok((device.counters().bytes_in > gone).then_some(()))
    })?;
    let counters = mount.unmount()?;
    ensure!(
        counters.https.bytes_out >= 5 << 20 && counters.channel.failed_over > 0,
        "{counters:?}"
    );
    let mount = setup.mount("back", "mnt")?;
    for name in ["before", "during", "after"] {
        ensure!(
            std::fs::read(mount.path().join(name))? == vec![7; 5 << 20],
            "{name}"
        );
    }
    mount.unmount()?;
    Ok(())
}

#[test]
fn the_ring_is_full_for_good() -> Result<()> {
    let setup = Setup::new(Kind::Embedded, Way::Channel)?;
    let counters = copy_with(&setup, 50, |faults| faults.eagain_probability = 1.0)?;
    assert_switched(&counters)?;
    ensure!(setup.device()?.counters().eagain > 0);
    Ok(())
}

/// A storm that leaves some requests through: back-pressure, not failure.
#[test]
fn the_ring_is_often_full() -> Result<()> {
    let setup = Setup::new(Kind::Embedded, Way::Channel)?;
    let counters = copy_with(&setup, 20, |faults| faults.eagain_probability = 0.7)?;
    ensure!(
        setup.device()?.counters().eagain > 20,
        "{:?}",
        setup.device()?.counters()
    );
    ensure!(
        counters.channel.bytes_out > tree::LARGE / 2,
        "the channel was given up: {counters:?}"
    );
    Ok(())
}

#[test]
fn a_request_never_returns() -> Result<()> {
    let setup = Setup::new(Kind::Embedded, Way::Channel)?;
    let counters = copy_with(&setup, 50, |faults| faults.hold_next = 1)?;
    assert_switched(&counters)?;
    Ok(())
}

/// Answers that cannot be trusted are not used, whichever way they are wrong.
#[test]
fn answers_are_spoiled() -> Result<()> {
    let setup = Setup::new(Kind::Embedded, Way::Channel)?;
    let bytes: Vec<u8> = (0..10_000_001_u32).map(|index| (index % 241) as u8).collect();
    let mount = setup.mount("spoiled", "mnt")?;
    let device = setup.device()?;
    let kinds = [
        Spoil::Short,
        Spoil::Empty,
        Spoil::Overlong,
        Spoil::Crc,
        Spoil::Body,
        Spoil::Magic,
        Spoil::Json,
        Spoil::Data,
        Spoil::Protocol,
    ];
    for spoil in kinds {
        device.faults().update(|faults| {
            faults.spoil = spoil;
            faults.spoil_next = 1;
        });
        let path = mount.path().join(format!("{spoil:?}"));
        std::fs::write(&path, &bytes)?;
        device.faults().update(|faults| faults.spoil_next = 1);
        ensure!(std::fs::read(&path)? == bytes, "{spoil:?}");
    }
    let counters = mount.unmount()?;
    println!("{counters:?}\n{:?}", device.counters());
    ensure!(counters.channel.failed_over > 0, "{counters:?}");
    device.faults().reset();
    let mount = setup.mount("spoiled", "mnt")?;
    for spoil in kinds {
        ensure!(
            std::fs::read(mount.path().join(format!("{spoil:?}")))? == bytes,
            "{spoil:?} after the remount"
        );
    }
    mount.unmount()?;
    Ok(())
}
