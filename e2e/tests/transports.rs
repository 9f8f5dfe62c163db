//! A tree of 2,000 files with one of 300 MiB is copied in, and is equal after a remount: over the channel and
//! over HTTPS, with the embedded store and with Azurite behind either.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::harness::backend::Kind;
use e2e::harness::mount::MountOptions;
use e2e::harness::setup::{Setup, Way};
use e2e::harness::tree;
use e2e::store::{AccountKey, DEV_ACCOUNT, DEV_KEY, SasOptions};

/// `cp -r`, unmount, mount again, `diff -r`; then how much went which way.
fn copy_and_compare(kind: Kind, way: Way) -> Result<()> {
    let setup = Setup::new(kind, way)?;
    let tree = tree::large_tree()?;
    let mount = setup.mount("copy", "mnt")?;
    tree::copy(&tree, &mount.path().join("tree"))?;
    let written = mount.unmount()?;
    let mount = setup.mount("copy", "mnt")?;
    tree::assert_equal(&tree, &mount.path().join("tree"))?;
    let read = mount.unmount()?;
    println!("writing: {written:?}\nreading: {read:?}");

    let (used, unused, way_back) = match way {
        Way::Channel => (&written.channel, &written.https, &read.channel),
        Way::Https => (&written.https, &written.channel, &read.https),
    };
    ensure!(used.bytes_out >= tree::LARGE, "{written:?}");
    ensure!(way_back.bytes_in >= tree::LARGE, "{read:?}");
    ensure!(
        unused.bytes_out == 0,
        "{} bytes took the other way",
        unused.bytes_out
    );
    ensure!(used.errors + used.failed_over == 0, "{used:?}");
    if way == Way::Channel {
        // The other side of the device counted the same: no mistake in our own books.
        let host = setup.device()?.counters();
        ensure!(
            host.bytes_in >= tree::LARGE && host.bytes_out >= tree::LARGE,
            "{host:?}"
        );
    }
    Ok(())
}

#[test]
fn channel_to_the_embedded_store() -> Result<()> {
    copy_and_compare(Kind::Embedded, Way::Channel)
}

#[test]
fn https_to_the_embedded_store() -> Result<()> {
    copy_and_compare(Kind::Embedded, Way::Https)
}

#[test]
fn channel_to_azurite() -> Result<()> {
    copy_and_compare(Kind::Azurite, Way::Channel)
}

#[test]
fn https_to_azurite() -> Result<()> {
    copy_and_compare(Kind::Azurite, Way::Https)
}

/// `transport: https`: a device that is there carries none of the volume's data (the process may look whether
/// it works).
#[test]
fn https_mode_sends_nothing_over_the_device() -> Result<()> {
    let setup = Setup::new(Kind::Embedded, Way::Channel)?;
    let mount = setup.mount_with("modes", "mnt", &setup.options().arg("--transport").arg("https"))?;
    std::fs::write(mount.path().join("file"), vec![1; 3 << 20])?;
    let counters = mount.unmount()?;
    ensure!(counters.https.bytes_out >= 3 << 20, "{counters:?}");
    ensure!(counters.channel.requests == 0, "{counters:?}");
    let host = setup.device()?.counters();
    ensure!(host.bytes_in < 1 << 20, "{host:?}");
    Ok(())
}

/// `transport: require` refuses to mount without the channel, and says why.
#[test]
fn require_mode_refuses_without_a_device() -> Result<()> {
    let setup = Setup::new(Kind::Embedded, Way::Https)?;
    let error = setup
        .mount_with(
            "modes",
            "mnt",
            &MountOptions::default().arg("--transport").arg("require"),
        )
        .expect_err("mounted without the channel");
    let message = format!("{error:#}");
    ensure!(
        message.contains("azure_blob") || message.contains("channel"),
        "{message}"
    );
    Ok(())
}

/// A host that knows OPEN, READ and CLOSE only: reads take the channel once the version is known from a
/// first answer over HTTPS (with a SAS, which an OPEN can carry), everything else HTTPS.
#[test]
fn a_host_without_the_rest_extension_still_reads() -> Result<()> {
    let setup = Setup::new(Kind::Embedded, Way::Channel)?;
    setup
        .device()?
        .faults()
        .update(|faults| faults.refuse_rest = true);
    let key = AccountKey::new(DEV_ACCOUNT, DEV_KEY).context("the account key")?;
    let sas = key.container_sas("old-host", &SasOptions::new("racwdl", Duration::from_secs(3600)));
    let options = MountOptions {
        sas: Some(sas),
        ..setup.options()
    };
    const SIZE: u32 = 120_000_003;
    let bytes: Vec<u8> = (0..SIZE).map(|index| (index % 251) as u8).collect();
    let mount = setup.mount_with("old-host", "mnt", &options)?;
    std::fs::write(mount.path().join("file"), &bytes)?;
    let written = mount.unmount()?;
    ensure!(
        written.channel.bytes_out == 0 && written.https.bytes_out >= u64::from(SIZE),
        "{written:?}"
    );
    let mount = setup.mount_with("old-host", "mnt", &options)?;
    ensure!(std::fs::read(mount.path().join("file"))? == bytes);
    let counters = mount.unmount()?;
    ensure!(counters.channel.bytes_in > u64::from(SIZE) / 2, "{counters:?}");
    let host = setup.device()?.counters();
    ensure!(
        host.open > 0 && host.read > 0 && host.close > 0 && host.rest == 0,
        "{host:?}"
    );
    Ok(())
}
