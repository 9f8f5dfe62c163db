//! What keeps a kernel from taking a module that its vendor has not signed.

use std::fmt;
use std::fs;
use std::path::Path;

use serde::Serialize;

use super::read_word;

/// The variable of the firmware that tells whether Secure Boot is on: four bytes of attributes, then one of value.
const SECURE_BOOT: &str = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// A reason why a module cannot be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Restriction {
    /// `modules_disabled` is set: no module at all until the machine is started again.
    ModulesDisabled,
    /// The kernel is locked down.
    Lockdown,
    /// `sig_enforce` is set.
    SigEnforce,
    /// The firmware's Secure Boot is on; distributions then enforce signatures.
    SecureBoot,
}

impl Restriction {
    /// Whether it stops a module that carries a signature. The kernel decides by its keys then, which we cannot see.
    pub(super) fn stops_signed(self) -> bool {
        self == Self::ModulesDisabled
    }
}

impl fmt::Display for Restriction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ModulesDisabled => {
                "loading modules is switched off until the next start (modules_disabled)"
            }
            Self::Lockdown => "the kernel is locked down and takes signed modules only",
            Self::SigEnforce => "the kernel takes signed modules only (sig_enforce)",
            Self::SecureBoot => "Secure Boot is on, so the kernel takes signed modules only",
        })
    }
}

/// All that apply, the strongest first. A file that is missing restricts nothing.
pub(super) fn all(root: &Path) -> Vec<Restriction> {
    let is = |path: &str, value: &str| read_word(&root.join(path)).is_some_and(|word| word == value);
    let mut found = Vec::new();
    if is("proc/sys/kernel/modules_disabled", "1") {
        found.push(Restriction::ModulesDisabled);
    }
    // "none [integrity] confidentiality": the brackets mark the mode in force.
    let lockdown = fs::read_to_string(root.join("sys/kernel/security/lockdown")).unwrap_or_default();
    if lockdown.contains('[') && !lockdown.contains("[none]") {
        found.push(Restriction::Lockdown);
    }
    if is("sys/module/module/parameters/sig_enforce", "Y") {
        found.push(Restriction::SigEnforce);
    }
    if fs::read(root.join(SECURE_BOOT)).is_ok_and(|value| value.get(4) == Some(&1)) {
        found.push(Restriction::SecureBoot);
    }
    found
}
