//! Where the loader finds things, and what it may do.

use std::path::PathBuf;
use std::time::Duration;

/// A way to get a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    /// The module that the node's kernel ships.
    InBox,
    /// A prebuilt module of ours.
    Prebuilt,
    /// A module built on the node.
    Build,
}

/// Where things are, and how patient to be.
#[derive(Debug, Clone)]
pub struct LoaderConfig {
    /// Where `sys`, `proc` and `dev` are; `/` outside of tests.
    pub root: PathBuf,
    /// Where the node's own `lib/modules` is: `/`, or the place where a container sees the node's file
    /// system.
    pub host_root: PathBuf,
    /// The device node, below `root`.
    pub device: PathBuf,
    /// Prebuilt modules: `RELEASE/azb_vsc.ko` and `RELEASE/azb_vsc.json`.
    pub prebuilt: PathBuf,
    /// Sources of the module (driver/kmod) to build against the node's headers; `None` switches that rung
    /// off.
    pub source: Option<PathBuf>,
    /// Rungs that are left out.
    pub skip: Vec<Rung>,
    /// Folder of the lock and of the state file; must not survive a reboot to no purpose, so below `/run`.
    pub state: PathBuf,
    /// How long the node may take to appear after a module was loaded.
    pub node_wait: Duration,
    /// How long another loader may hold the lock.
    pub lock_wait: Duration,
    /// How long loading a module may take, without a build.
    pub load_wait: Duration,
    /// How long a build may take.
    pub build_wait: Duration,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        Self {
            root: "/".into(),
            host_root: "/".into(),
            device: "/dev/azure_blob".into(),
            prebuilt: "/usr/lib/vsc-blob-csi/modules".into(),
            source: None,
            skip: Vec::new(),
            state: "/run/vsc-blob-csi".into(),
            node_wait: Duration::from_secs(10),
            lock_wait: Duration::from_secs(60),
            load_wait: Duration::from_secs(60),
            build_wait: Duration::from_secs(600),
        }
    }
}
