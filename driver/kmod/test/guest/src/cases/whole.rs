//! The module as a whole: loading, and what the kernel's log says.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};

use anyhow::{Result, ensure};
use vsc_driver::channel::Abi;

use crate::client::Line;
use crate::runner::Bench;
use crate::system::{MODULE, NODE, kernel_log, load_module, wait_node};

/// The module loads, finds the offer and makes the node, for root alone.
pub(crate) fn load(_: &Bench) -> Result<()> {
    load_module(MODULE)?;
    wait_node(true)?;
    let meta = std::fs::metadata(NODE)?;
    ensure!(meta.file_type().is_char_device(), "the node is no device");
    ensure!(
        meta.permissions().mode() & 0o777 == 0o600,
        "mode {:o}",
        meta.permissions().mode()
    );
    let line = Line::open(1)?;
    ensure!(line.channel.abi() == Abi::List, "ABI {:?}", line.channel.abi());
    line.read(4096, 1)
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
