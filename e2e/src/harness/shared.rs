//! A folder of mounts that is shared as kubelet's is.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{tools, tree};
use crate::fuse;

/// A folder whose mounts are the same for all who have names of their own.
#[derive(Debug)]
pub(super) struct Shared(tempfile::TempDir);

impl Shared {
    /// A new one.
    pub(super) fn new() -> Result<Self> {
        let folder = tree::scratch()?;
        let path = folder.path();
        tools::run(Command::new("mount").arg("--bind").arg(path).arg(path))?;
        let shared = Self(folder);
        tools::run(Command::new("mount").arg("--make-shared").arg(shared.0.path()))?;
        Ok(shared)
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    /// A command that runs the program which its further arguments name with mounts of its own, as a
    /// container has them: what it mounts in the folder appears here, and what is mounted here appears there.
    pub(super) fn apart(&self) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "unchanged", "sh", "-c", APART])
            .arg(self.path());
        command
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let under = format!("{}/", self.0.path().display());
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in table.lines().rev() {
            let mut fields = line.split(' ').skip(2);
            let (Some(device), Some(at)) = (fields.next(), fields.nth(1)) else {
                continue;
            };
            if at.starts_with(&under) {
                if let Some(connection) = fuse::connection_of(device) {
                    let _ = fuse::abort(connection);
                }
                let _ = Command::new("umount").arg("-l").arg(at).status();
            }
        }
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Of mounts that others have at the moment the program keeps none, so that theirs can end.
const APART: &str = r#"
others() {
    while read -r at; do
        case "$at" in "$0" | "$0"/*) ;; *) "$@" "$at" ;; esac
    done 2>/dev/null
}
awk '{ print $5 }' /proc/self/mountinfo | others mount --make-private
awk '/ - fuse[. ]/ { print $5 }' /proc/self/mountinfo | others umount -l
exec "$@"
"#;
