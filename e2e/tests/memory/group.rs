//! A memory cgroup, as a pod's container has one: the kernel ends who takes more than its limit.

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Removed when it is dropped; its processes have to be gone by then.
pub(crate) struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// One with a limit in bytes; `None`, which is told, on a machine that lets nobody make one.
    pub(crate) fn new(limit: u64) -> io::Result<Option<Self>> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "vsc-e2e-{}-{}",
            std::process::id(),
            MADE.fetch_add(1, Ordering::Relaxed)
        );
        // Version 1 has a tree for each controller, version 2 one for all.
        let (old, new) = (Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup"));
        let (root, knob) = match old.join("memory.limit_in_bytes").exists() {
            true => (old, "memory.limit_in_bytes"),
            false => (new, "memory.max"),
        };
        let group = Self(root.join(name));
        let made = fs::create_dir(&group.0)
            .and_then(|()| match root == new {
                true => fs::write(new.join("cgroup.subtree_control"), "+memory"),
                false => Ok(()),
            })
            .and_then(|()| fs::write(group.0.join(knob), limit.to_string()));
        match made {
            Ok(()) => Ok(Some(group)),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied
                ) =>
            {
                println!("without a limit of memory: {}: {error}", group.0.display());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What runs a command in it.
    pub(crate) fn launcher(&self) -> Vec<OsString> {
        let script = r#"echo $$ >"$0" && exec "$@""#;
        let procs = self.0.join("cgroup.procs");
        vec!["sh".into(), "-c".into(), script.into(), procs.into()]
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0)
            && error.kind() != ErrorKind::NotFound
        {
            eprintln!("{} stays: {error}", self.0.display());
        }
    }
}
