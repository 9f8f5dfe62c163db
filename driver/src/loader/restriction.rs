//! What keeps a kernel from taking a module that its vendor has not signed.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

/// The variable of the firmware that tells whether Secure Boot is on: four bytes of attributes, then one of
/// value.
const SECURE_BOOT: &str = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// Folders that hold something on every machine that has them, the outermost first.
const MOUNTED: [&str; 3] = ["sys/firmware", "sys/firmware/efi/efivars", "sys/kernel/security"];

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
    /// Whether it stops a module that carries a signature. The kernel decides by its keys then, which we
    /// cannot see.
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

/// A file that would tell whether a restriction applies, and cannot be read: it may apply or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unread {
    /// Which file.
    pub path: String,
    /// Why not.
    pub reason: String,
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{} could not be read: {}", self.path, self.reason)
    }
}

/// What is known of the restrictions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Restrictions {
    /// All that apply, the strongest first.
    pub(super) found: Vec<Restriction>,
    /// What could not be looked at.
    pub(super) unread: Vec<Unread>,
}

impl Restrictions {
    /// The text of a file; `None` if it is missing, which restricts nothing, or cannot be read, which is
    /// noted.
    fn read(&mut self, root: &Path, path: &str) -> Option<Vec<u8>> {
        match fs::read(root.join(path)) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                // In a container the folder may be covered: there, nothing that is missing means anything.
                let reason = match error.kind() {
                    io::ErrorKind::NotFound => covered(root, path)?,
                    _ => error.to_string(),
                };
                self.unread.push(Unread {
                    path: path.to_owned(),
                    reason,
                });
                None
            }
        }
    }
}

/// Why a file is missing that the machine may well have: it lies below a folder that is never empty, but is
/// so here, because a container runtime has covered it or the file system that belongs there is not mounted.
fn covered(root: &Path, path: &str) -> Option<String> {
    MOUNTED
        .iter()
        .filter(|folder| path.starts_with(*folder))
        .find(|folder| fs::read_dir(root.join(folder)).is_ok_and(|mut entries| entries.next().is_none()))
        .map(|folder| format!("/{folder} is empty here"))
}

/// Looks at all of them.
pub(super) fn all(root: &Path) -> Restrictions {
    let mut all = Restrictions::default();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
    let disabled = all.read(root, "proc/sys/kernel/modules_disabled").map(text);
    if disabled.is_some_and(|text| text == "1") {
        all.found.push(Restriction::ModulesDisabled);
    }
    // "none [integrity] confidentiality": the brackets mark the mode in force.
    let lockdown = all.read(root, "sys/kernel/security/lockdown").map(text);
    if lockdown.is_some_and(|text| text.contains('[') && !text.contains("[none]")) {
        all.found.push(Restriction::Lockdown);
    }
    let enforced = all
        .read(root, "sys/module/module/parameters/sig_enforce")
        .map(text);
    if enforced.is_some_and(|text| text == "Y") {
        all.found.push(Restriction::SigEnforce);
    }
    if all
        .read(root, SECURE_BOOT)
        .is_some_and(|value| value.get(4) == Some(&1))
    {
        all.found.push(Restriction::SecureBoot);
    }
    all
}

/// Whether the kernel may want signatures, for all that can be seen.
pub(super) fn may_apply(root: &Path) -> bool {
    let all = all(root);
    !all.found.is_empty() || !all.unread.is_empty()
}

/// Whether this process has the right to load modules; `None` if that cannot be found out.
pub(super) fn may_load(root: &Path) -> Option<bool> {
    /// CAP_SYS_MODULE of linux/capability.h.
    const SYS_MODULE: u32 = 16;
    let status = fs::read_to_string(root.join("proc/self/status")).ok()?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    Some(mask >> SYS_MODULE & 1 == 1)
}
