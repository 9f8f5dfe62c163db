//! What the service does beside storing bytes: versions, soft delete, copies that take their time, pages of
//! listings that are short or empty, encryption scopes, blocks that grow old, answers before a body was read.

use std::fs::{self, File};
use std::io::Write;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::harness::{PATIENCE, wait_for};
use e2e::store::{Fault, FaultRule, Operation};
use http::Method;
use nix::errno::Errno;

use crate::foreign::Foreign;
use crate::{bytes, outcome, setup, sh};

/// How many versions of all blobs, and how many deleted ones, the container has.
fn versions(foreign: &Foreign) -> Result<(usize, usize)> {
    let query = "?restype=container&comp=list&include=";
    let versions = foreign
        .call(&Method::GET, &format!("{query}versions"), &[], b"")?
        .text();
    let deleted = foreign
        .call(&Method::GET, &format!("{query}deleted"), &[], b"")?
        .text();
    Ok((
        versions.matches("<VersionId>").count(),
        deleted.matches("<Deleted>true</Deleted>").count(),
    ))
}

/// Versions and what was deleted stay as the account wants it, and no program sees anything of them.
#[test]
fn history_stays_as_the_account_keeps_it() -> Result<()> {
    let setup = setup()?;
    let store = setup.backend().store().unwrap();
    store.configure(|account| account.versioning = true);
    let foreign = Foreign::new(&setup, "features")?;
    foreign.put("f", &[], b"1\n")?;
    let a = setup.mount("features", "a")?;
    for (command, wanted) in [
        ("echo 2 >> f", 2),
        // What is renamed leaves its versions behind.
        ("mv f g", 3),
        ("echo 3 >> g", 4),
        // Deleting takes none of them.
        ("rm g", 4),
    ] {
        sh(a.path(), command)?;
        let (versions, _) = versions(&foreign)?;
        ensure!(versions == wanted, "{command}: {versions} versions");
    }
    ensure!(sh(a.path(), "ls")?.is_empty());
    store.configure(|account| {
        account.versioning = false;
        account.soft_delete = Some(Duration::from_secs(86_400));
    });
    foreign.put("h", &[], b"1\n")?;
    sh(a.path(), "echo 2 >> h; mv h i; rm i")?;
    ensure!(sh(a.path(), "ls")?.is_empty());
    let (_, deleted) = versions(&foreign)?;
    ensure!(deleted >= 2, "{deleted} deleted blobs");
    let back = foreign.call(&Method::PUT, "/i?comp=undelete", &[], b"")?;
    ensure!(back.status == 200, "{back:?}");
    ensure!(fs::read(a.path().join("i"))? == b"1\n2\n");
    a.unmount()?;
    Ok(())
}

/// A copy that the service does later is waited for; one that does not come about leaves nothing at its
/// target.
#[test]
fn a_rename_waits_for_a_copy_that_is_pending() -> Result<()> {
    let setup = setup()?;
    let store = setup.backend().store().unwrap();
    let foreign = Foreign::new(&setup, "features")?;
    let a = setup.mount("features", "a")?;
    for success in [true, false] {
        let (from, to) = (format!("from{success}"), format!("to{success}"));
        foreign.put(&from, &[], b"content")?;
        store.inject(FaultRule::next(Operation::CopyBlob, Fault::PendingCopy));
        let ended = std::thread::scope(|scope| {
            let renamed = scope.spawn(|| outcome(fs::rename(a.path().join(&from), a.path().join(&to))));
            wait_for("a copy that is pending", PATIENCE, || {
                Ok((store.end_copies(success) > 0).then_some(()))
            })?;
            Ok::<_, anyhow::Error>(renamed.join().unwrap())
        })?;
        if success {
            ensure!(ended == Ok(()), "{ended:?}");
            ensure!(foreign.read(&to)? == b"content" && !foreign.exists(&from)?);
            sh(a.path(), &format!("echo more >> {to}"))?;
            ensure!(foreign.read(&to)? == b"contentmore\n");
        } else {
            ensure!(ended == Err(Errno::EIO), "{ended:?}");
            ensure!(foreign.read(&from)? == b"content");
            ensure!(!foreign.exists(&to)?, "an empty file is left");
        }
    }
    a.unmount()?;
    Ok(())
}

/// Pages of a listing may have one entry, or none and a marker.
#[test]
fn a_listing_of_short_and_empty_pages_is_whole() -> Result<()> {
    let setup = setup()?;
    let store = setup.backend().store().unwrap();
    let foreign = Foreign::new(&setup, "features")?;
    for name in ["d/a", "d/b/x", "d/c"] {
        foreign.put(name, &[], b"1")?;
    }
    let a = setup.mount("features", "a")?;
    for _ in 0..2 {
        let empty = Fault::ShortPage { entries: 0 };
        store.inject(FaultRule::next(Operation::ListBlobs, empty));
        let one = Fault::ShortPage { entries: 1 };
        store.inject(FaultRule::every(Operation::ListBlobs, one));
        let listed = sh(a.path(), "ls -F d")?;
        ensure!(listed == "a\nb/\nc\n", "{listed}");
        let ended = outcome(fs::remove_dir(a.path().join("d")));
        ensure!(ended == Err(Errno::ENOTEMPTY), "{ended:?}");
        store.clear_faults();
    }
    a.unmount()?;
    Ok(())
}

/// An edit stays in the blob's encryption scope, a rename does not leave it without a word.
#[test]
fn an_encryption_scope_is_not_left() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "features")?;
    let scope = [("x-ms-encryption-scope", "legal")];
    foreign.put("s", &scope, b"1\n")?;
    let mut content = bytes(20 << 20);
    foreign.put_blocks("large", &scope, &content, 4 << 20)?;
    let a = setup.mount("features", "a")?;
    sh(a.path(), "echo 2 >> s; echo end >> large")?;
    content.extend_from_slice(b"end\n");
    ensure!(foreign.read("s")? == b"1\n2\n" && foreign.read("large")? == content);
    for name in ["s", "large"] {
        ensure!(
            foreign.head(name)?.header("x-ms-encryption-scope") == "legal",
            "{name}"
        );
        let ended = outcome(fs::rename(a.path().join(name), a.path().join("t")));
        ensure!(ended == Err(Errno::EPERM), "{name}: {ended:?}");
        ensure!(foreign.exists(name)? && !foreign.exists("t")?, "{name}");
    }
    a.unmount()?;
    Ok(())
}

/// Blocks that nobody commits are gone after a week: a file that was open for longer is stored whole all the
/// same, or its writer is told.
#[test]
fn a_file_that_is_open_for_weeks_is_stored_whole_or_not_at_all() -> Result<()> {
    let setup = setup()?;
    let store = setup.backend().store().unwrap();
    let foreign = Foreign::new(&setup, "features")?;
    let a = setup.mount("features", "a")?;
    let content = bytes(40 << 20);
    let mut file = File::create(a.path().join("f"))?;
    file.write_all(&content)?;
    wait_for("blocks that are sent ahead", PATIENCE, || {
        Ok((store.counters(Operation::PutBlock).requests >= 4).then_some(()))
    })?;
    store.advance_clock(Duration::from_secs(8 * 86_400));
    match outcome(file.sync_all()) {
        Ok(()) => ensure!(foreign.read("f")? == content),
        told => ensure!(told == Err(Errno::ESTALE) && !foreign.exists("f")?, "{told:?}"),
    }
    drop(file);
    a.unmount()?;
    Ok(())
}

/// The service may refuse a request by its head, and close the connection while the body is still being sent.
#[test]
fn an_answer_before_the_body_is_heard() -> Result<()> {
    let setup = setup()?;
    let store = setup.backend().store().unwrap();
    let foreign = Foreign::new(&setup, "features")?;
    let a = setup.mount("features", "a")?;
    for (operation, len) in [(Operation::PutBlob, 1 << 20), (Operation::PutBlock, 20 << 20)] {
        store.inject(FaultRule::next(
            operation,
            Fault::EarlyAnswer {
                status: 503,
                code: "ServerBusy".into(),
            },
        ));
        let content = bytes(len);
        let mut file = File::create(a.path().join("f"))?;
        file.write_all(&content)?;
        file.sync_all()?;
        drop(file);
        ensure!(foreign.read("f")? == content, "{operation}");
    }
    a.unmount()?;
    Ok(())
}
