//! What the service forbids is said where a program looks: leases, policies.

use std::fs::{self, OpenOptions};
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::store::{Immutability, Operation};
use http::Method;
use nix::errno::Errno;

use crate::foreign::Foreign;
use crate::{outcome, setup, sh};

/// "Write once, read many": each blob arrives by one request, and what cannot be leaves nothing half done.
#[test]
fn a_container_under_a_policy_takes_files_once() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "worm")?;
    let store = setup.backend().store().unwrap();
    store.set_immutability("worm", Some(Immutability::default()))?;
    let a = setup.mount("worm", "a")?;
    store.reset_counters();
    sh(a.path(), "echo hi > f")?;
    ensure!(foreign.read("f")? == b"hi\n");
    ensure!(
        store.counters(Operation::PutBlob).requests == 1,
        "{:?}",
        store.counters(Operation::PutBlob)
    );
    sh(a.path(), "dd if=/dev/urandom of=big bs=1M count=20 status=none")?;
    ensure!(foreign.head("big")?.header("content-length") == (20 << 20).to_string());
    ensure!(store.counters(Operation::PutBlockList).requests == 1);
    let ended = outcome(fs::rename(a.path().join("f"), a.path().join("g")));
    ensure!(ended == Err(Errno::EPERM), "rename: {ended:?}");
    ensure!(
        foreign.exists("f")? && !foreign.exists("g")?,
        "the rename is half done"
    );
    let ended = outcome(fs::remove_file(a.path().join("f")));
    ensure!(ended == Err(Errno::EPERM), "unlink: {ended:?}");
    ensure!(foreign.read("f")? == b"hi\n");
    a.unmount()?;
    Ok(())
}

#[test]
fn a_leased_blob_is_refused_when_it_is_opened_for_writing() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "leased")?;
    foreign.put("l", &[], b"1\n")?;
    let lease = [("x-ms-lease-action", "acquire"), ("x-ms-lease-duration", "-1")];
    let id = foreign
        .call(&Method::PUT, "/l?comp=lease", &lease, b"")?
        .header("x-ms-lease-id");
    let a = setup.mount("leased", "a")?;
    let path = a.path().join("l");
    for options in [
        OpenOptions::new().append(true),
        OpenOptions::new().write(true).truncate(true),
    ] {
        let ended = outcome(options.open(&path));
        ensure!(matches!(ended, Err(Errno::EBUSY | Errno::ETXTBSY)), "{ended:?}");
    }
    ensure!(fs::read(&path)? == b"1\n");
    let release = [("x-ms-lease-action", "release"), ("x-ms-lease-id", &id)];
    ensure!(foreign.call(&Method::PUT, "/l?comp=lease", &release, b"")?.status == 200);
    sh(a.path(), "echo 2 >> l")?;
    ensure!(foreign.read("l")? == b"1\n2\n");
    a.unmount()?;
    Ok(())
}

/// The archive is out of reach: reading and writing say so at once, and nothing is lost that a program
/// believed in.
#[test]
fn an_archived_blob_is_refused_when_it_is_opened() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "archive")?;
    foreign.put("f", &[("x-ms-access-tier", "Archive")], b"1\n")?;
    let a = setup.mount("archive", "a")?;
    ensure!(fs::metadata(a.path().join("f"))?.len() == 2);
    let ended = outcome(OpenOptions::new().append(true).open(a.path().join("f")));
    ensure!(ended.is_err(), "opened for writing");
    ensure!(fs::read(a.path().join("f")).is_err());
    let tier = [("x-ms-access-tier", "Hot")];
    ensure!(foreign.call(&Method::PUT, "/f?comp=tier", &tier, b"")?.status == 202);
    setup
        .backend()
        .store()
        .unwrap()
        .advance_clock(Duration::from_secs(16 * 3600));
    ensure!(fs::read(a.path().join("f"))? == b"1\n");
    a.unmount()?;
    Ok(())
}
