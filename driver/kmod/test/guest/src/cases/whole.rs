//! The module as a whole: loading, and what the kernel's log says.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};

use anyhow::{Result, ensure};
use vsc_driver::channel::Abi;
use vsc_driver::loader::{Module, ModuleStep, NodeStep, Outcome, Restriction, Step, Unloaded};

use crate::client::{Device, Line};
use crate::runner::Bench;
use crate::system::{KMEMLEAK, NODE, kernel_log, loader, soon, users, wait_until};

/// The loader finds the prebuilt module, the kernel takes it, and the node is there, for root alone.
pub(crate) fn load(_: &Bench) -> Result<()> {
    let report = loader().load()?;
    ensure!(report.code() == "Prebuilt", "{report}");
    ensure!(
        report.outcome == Outcome::Ready { abi: Abi::List },
        "{:?}",
        report.outcome
    );
    let meta = std::fs::metadata(NODE)?;
    ensure!(meta.file_type().is_char_device(), "the node is no device");
    ensure!(
        meta.permissions().mode() & 0o777 == 0o600,
        "mode {:o}",
        meta.permissions().mode()
    );
    Line::open(1)?.read(4096, 1)?;
    // Once more: in service already.
    let report = loader().load()?;
    ensure!(report.code() == "NodePresent", "{report}");
    Ok(())
}

/// The loader leaves a module alone that somebody uses, and takes it away when nobody does.
pub(crate) fn loader_unloads(_: &Bench) -> Result<()> {
    // A ring that was closed before Linux 6.7 looks for its last answers at intervals, and holds the node
    // open until then.
    wait_until("the cases before to let go of the node", soon(), || {
        users().is_ok_and(|n| n == 0)
    })?;
    let device = Device::open()?;
    let in_use = loader().unload()?;
    ensure!(
        matches!(&in_use.modules[..], [Unloaded::InUse { users: 1, .. }]),
        "with an open node: {in_use}"
    );
    ensure!(
        loader().status()?.modules
            == [Module {
                name: "azb_vsc".to_owned(),
                users: 1
            }],
        "{}",
        loader().status()?
    );
    drop(device);
    let done = loader().unload()?;
    ensure!(matches!(&done.modules[..], [Unloaded::Done { .. }]), "{done}");
    ensure!(
        !std::path::Path::new("/sys/module/azb_vsc").exists(),
        "the module is still there"
    );
    let status = loader().status()?;
    ensure!(
        status.offered
            && status.bound_to.is_none()
            && status.node == NodeStep::Absent
            && status.prebuilt == Some(true),
        "{status}"
    );
    let report = loader().load()?;
    ensure!(report.code() == "Prebuilt", "{report}");
    Ok(())
}

/// All cases before this one are ordinary operation: the module has nothing to say about it.
pub(crate) fn quiet_log(_: &Bench) -> Result<()> {
    let said: Vec<String> = kernel_log()?
        .into_iter()
        .filter(|line| line.contains("azb_vsc") && !is_loading_note(line))
        .collect();
    ensure!(said.is_empty(), "the module said: {}", said.join(" | "));
    Ok(())
}

/// What kernel and bus say about any driver from outside, once.
fn is_loading_note(line: &str) -> bool {
    [
        "taints kernel",
        "module verification failed",
        "registering driver",
    ]
    .iter()
    .any(|note| line.contains(note))
}

/// Whether this kernel looks for lost memory.
pub(crate) fn finds_leaks() -> bool {
    std::path::Path::new(KMEMLEAK).exists()
}

/// Nothing is lost of what the module has allocated since it was loaded: after an unload its functions have
/// no names any more.
pub(crate) fn no_leak(_: &Bench) -> Result<()> {
    // An object is told when it is old enough, and not seen in one scan more.
    for _ in 0..3 {
        std::fs::write(KMEMLEAK, "scan")?;
    }
    let text = std::fs::read_to_string(KMEMLEAK)?;
    let lost: Vec<&str> = text
        .split("unreferenced object")
        .filter(|object| object.contains("azb_"))
        .collect();
    ensure!(lost.is_empty(), "lost: {}", lost.join(" | "));
    Ok(())
}

/// A kernel that takes no more modules is recognized. Cannot be undone, so it comes last.
pub(crate) fn loader_meets_modules_disabled(_: &Bench) -> Result<()> {
    let done = loader().unload()?;
    ensure!(matches!(&done.modules[..], [Unloaded::Done { .. }]), "{done}");
    std::fs::write("/proc/sys/kernel/modules_disabled", "1")?;
    let report = loader().load()?;
    let forbidden = Step::Prebuilt(ModuleStep::Forbidden {
        by: Restriction::ModulesDisabled,
    });
    ensure!(
        report.outcome == Outcome::Https && report.steps.contains(&forbidden),
        "{report}"
    );
    Ok(())
}

/// No warning, oops, lock or memory report of the kernel in the whole run.
pub(crate) fn clean_kernel(_: &Bench) -> Result<()> {
    const SIGNS: [&str; 16] = [
        "WARNING:",
        "BUG:",
        "Oops",
        "KASAN",
        "UBSAN",
        "kernel BUG",
        "possible circular locking",
        "possible recursive locking",
        "inconsistent lock state",
        "suspicious RCU usage",
        "INFO: task",
        "sleeping function called",
        "general protection fault",
        "refcount_t",
        "list_add corruption",
        "list_del corruption",
    ];
    let found: Vec<String> = kernel_log()?
        .into_iter()
        .filter(|line| SIGNS.iter().any(|sign| line.contains(sign)))
        .collect();
    ensure!(found.is_empty(), "the kernel said: {}", found.join(" | "));
    Ok(())
}
