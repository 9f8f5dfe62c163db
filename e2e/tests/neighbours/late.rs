//! Requests that the service executes after all, when their caller has long repeated them and gone on.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use anyhow::{Result, ensure};
use e2e::harness::setup::Setup;
use e2e::store::{Fault, FaultRule, Operation};

use crate::foreign::Foreign;
use crate::setup;

/// The request was lost on its way to an answer, or something in between sent it twice.
const FAULTS: [Fault; 2] = [Fault::Late, Fault::Doubled];

/// Executes what was kept, which must be something, and what it was answered.
fn execute_late(setup: &Setup, what: &str) -> Result<Vec<u16>> {
    let store = setup.backend().store().unwrap();
    ensure!(store.late_requests() > 0, "{what}: nothing was late");
    Ok(store.execute_late())
}

fn inject(setup: &Setup, operation: Operation, fault: &Fault) {
    setup
        .backend()
        .store()
        .unwrap()
        .inject(FaultRule::next(operation, fault.clone()));
}

#[test]
fn a_late_delete_spares_what_was_made_since() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "late")?;
    let a = setup.mount("late", "a")?;
    let path = a.path().join("f");
    for fault in &FAULTS {
        fs::write(&path, "old")?;
        inject(&setup, Operation::DeleteBlob, fault);
        fs::remove_file(&path)?;
        fs::write(&path, "new")?;
        let answered = execute_late(&setup, "unlink")?;
        ensure!(
            foreign.exists("f")? && foreign.read("f")? == b"new",
            "{fault:?}: {answered:?}"
        );
    }
    a.unmount()?;
    Ok(())
}

#[test]
fn a_late_write_does_not_bring_old_content_back() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "late")?;
    let a = setup.mount("late", "a")?;
    for (number, fault) in FAULTS.iter().enumerate() {
        let name = format!("f{number}");
        let path = a.path().join(&name);
        inject(&setup, Operation::PutBlob, fault);
        fs::write(&path, "old")?;
        fs::write(&path, "new")?;
        let answered = execute_late(&setup, "create")?;
        ensure!(foreign.read(&name)? == b"new", "{fault:?}, created: {answered:?}");
        inject(&setup, Operation::PutBlob, fault);
        fs::write(&path, "older")?;
        fs::write(&path, "newer")?;
        let answered = execute_late(&setup, "overwrite")?;
        ensure!(
            foreign.read(&name)? == b"newer",
            "{fault:?}, overwritten: {answered:?}"
        );
    }
    a.unmount()?;
    Ok(())
}

#[test]
fn a_late_copy_of_a_rename_spares_what_was_written_since() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "late")?;
    let a = setup.mount("late", "a")?;
    for (number, fault) in FAULTS.iter().enumerate() {
        let (from, to) = (format!("from{number}"), format!("to{number}"));
        fs::write(a.path().join(&from), "moved")?;
        inject(&setup, Operation::CopyBlob, fault);
        fs::rename(a.path().join(&from), a.path().join(&to))?;
        fs::write(a.path().join(&to), "new")?;
        // The name that was left may be used anew, too.
        fs::write(a.path().join(&from), "another")?;
        let answered = execute_late(&setup, "rename")?;
        ensure!(foreign.read(&to)? == b"new", "{fault:?}: {answered:?}");
        ensure!(foreign.read(&from)? == b"another", "{fault:?}: {answered:?}");
    }
    a.unmount()?;
    Ok(())
}

#[test]
fn a_late_rmdir_spares_the_folder_that_was_made_since() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "late")?;
    let a = setup.mount("late", "a")?;
    let path = a.path().join("d");
    for fault in &FAULTS {
        fs::create_dir(&path)?;
        inject(&setup, Operation::DeleteBlob, fault);
        fs::remove_dir(&path)?;
        fs::create_dir(&path)?;
        fs::set_permissions(&path, PermissionsExt::from_mode(0o700))?;
        let answered = execute_late(&setup, "rmdir")?;
        ensure!(foreign.exists("d")?, "{fault:?}: {answered:?}");
        fs::remove_dir(&path)?;
    }
    a.unmount()?;
    Ok(())
}

/// What a chmod asked for late does not undo what was written or set since.
#[test]
fn a_late_change_of_metadata_undoes_nothing() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "late")?;
    let a = setup.mount("late", "a")?;
    let path = a.path().join("f");
    fs::write(&path, "1")?;
    for fault in &FAULTS {
        inject(&setup, Operation::SetBlobMetadata, fault);
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600))?;
        fs::set_permissions(&path, PermissionsExt::from_mode(0o640))?;
        let told = foreign.head("f")?.header("etag");
        let answered = execute_late(&setup, "chmod")?;
        ensure!(
            foreign.head("f")?.header("etag") == told,
            "{fault:?}: {answered:?}"
        );
    }
    a.unmount()?;
    let b = setup.mount("late", "b")?;
    let mode = fs::metadata(b.path().join("f"))?.mode() & 0o7777;
    ensure!(mode == 0o640, "{mode:o}");
    b.unmount()?;
    Ok(())
}

/// A request that was executed and answered with an error is no error of the program's. (ServerBusy is the
/// service's word that it was not.)
#[test]
fn an_error_after_the_execution_is_no_lost_race() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "late")?;
    let a = setup.mount("late", "a")?;
    let path = a.path().join("f");
    for (status, code) in [
        (500, "InternalError"),
        (503, "Unavailable"),
        (500, "OperationTimedOut"),
    ] {
        for operation in [Operation::PutBlob, Operation::DeleteBlob, Operation::CopyBlob] {
            let what = format!("{operation} answered {status} {code}");
            fs::write(&path, "0")?;
            inject(
                &setup,
                operation,
                &Fault::AnswerAfter {
                    status,
                    code: code.into(),
                },
            );
            match operation {
                Operation::PutBlob => fs::write(&path, &what)?,
                Operation::DeleteBlob => fs::remove_file(&path)?,
                _ => {
                    fs::rename(&path, a.path().join("g"))?;
                    fs::rename(a.path().join("g"), &path)?;
                }
            }
            match operation {
                Operation::PutBlob => ensure!(foreign.read("f")? == what.as_bytes(), "{what}"),
                Operation::DeleteBlob => ensure!(!foreign.exists("f")?, "{what}"),
                _ => ensure!(foreign.read("f")? == b"0" && !foreign.exists("g")?, "{what}"),
            }
        }
    }
    a.unmount()?;
    Ok(())
}
