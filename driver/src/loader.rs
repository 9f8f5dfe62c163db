//! Getting the kernel module in place: the ladder from "not offered" to a node that answers, and back.
//!
//! Everything that is read or called goes through a root directory and a [`System`], so that every rung can be shown on
//! a machine that has no such device. Rule: whatever happens here, volumes still work over HTTPS; so a rung that fails
//! is an outcome with a reason, not an error.

mod manifest;
mod modules;
mod orphan;
mod report;
mod restriction;
mod state;
mod system;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use tracing::info;

use self::state::Lock;
use crate::channel::{Abi, ChannelError};

pub use self::manifest::Manifest;
pub use self::modules::Rung;
pub use self::orphan::Orphan;
pub use self::report::{
    Module, ModuleStep, NodeStep, Outcome, Outdated, Report, Status, Step, Unloaded, Unloading,
};
pub use self::restriction::{Restriction, Unread};
pub use self::state::LoadedModule;
pub use self::system::{Insert, Kernel, Ran, System};

/// Class of the device on the VMBus, as `class_id` in sysfs spells it without braces.
pub const CLASS_ID: &str = "0590b792-db64-45cc-81db-b8d70c577c9e";
/// The module that some kernels ship.
pub const IN_BOX: &str = "hv_azure_blob";
/// Our own module.
pub const OURS: &str = "azb_vsc";

/// Where things are, and how patient to be.
#[derive(Debug, Clone)]
pub struct LoaderConfig {
    /// Where `sys`, `proc` and `dev` are; `/` outside of tests.
    pub root: PathBuf,
    /// Where the node's own `lib/modules` is: `/`, or the place where a container sees the node's file system.
    pub host_root: PathBuf,
    /// The device node, below `root`.
    pub device: PathBuf,
    /// Prebuilt modules: `RELEASE/azb_vsc.ko` and `RELEASE/azb_vsc.json`.
    pub prebuilt: PathBuf,
    /// Sources of the module (driver/kmod) to build against the node's headers; `None` switches that rung off.
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

/// What keeps the loader from working at all. Neither that no module could be loaded nor that another loader is at work is
/// among it: see [`Outcome`].
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoaderError {
    /// A file of the loader itself, or one of the kernel that is always there.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// Another loader is at work, or hangs. Only from [`unload`](Loader::unload).
    #[error("{path} has been locked by another loader for more than {waited:?}")]
    Locked {
        /// The lock file.
        path: String,
        /// Time waited.
        waited: Duration,
    },
}

impl LoaderError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        |source| Self::File { path, source }
    }
}

/// Loads, looks and unloads.
#[derive(Debug)]
pub struct Loader<S = Kernel> {
    config: LoaderConfig,
    system: S,
}

impl Loader {
    /// A loader for the running kernel.
    pub fn new(config: LoaderConfig) -> Self {
        Self::with_system(config, Kernel)
    }
}

impl<S: System> Loader<S> {
    /// A loader that makes its calls elsewhere.
    pub fn with_system(config: LoaderConfig, system: S) -> Self {
        Self { config, system }
    }

    /// Climbs the ladder until the node answers or nothing is left: the node as it is, the kernel's own module, a prebuilt one,
    /// one built here. Touches nothing on a machine that is not offered the device.
    ///
    /// # Errors
    /// Only when the loader itself cannot work: see [`LoaderError`].
    pub fn load(&self) -> Result<Report, LoaderError> {
        let kernel = self.release()?;
        let mut report = Report::new(kernel);
        let Some(device) = self.offered() else {
            report.outcome = Outcome::NotOffered {
                vmbus: self.root("sys/bus/vmbus").is_dir(),
            };
            return Ok(report);
        };

        let _lock = match Lock::take(&self.config) {
            Ok(lock) => lock,
            Err(LoaderError::Locked { path, waited }) => {
                report.outcome = Outcome::Locked {
                    path,
                    seconds: waited.as_secs(),
                };
                return Ok(report);
            }
            Err(error) => return Err(error),
        };
        report.orphan = orphan::keep_from_drivers(&self.config.root);
        report.outdated = self.outdated(&report.kernel)?;
        let node = self.node();
        report.steps.push(Step::Node(node.clone()));
        if let NodeStep::Present { abi } = node {
            report.outcome = Outcome::Ready { abi };
            return Ok(report);
        }
        if node == NodeStep::Closed {
            report.outcome = Outcome::Closed;
            return Ok(report);
        }

        report.unread = restriction::all(&self.config.root).unread;
        for rung in [Rung::InBox, Rung::Prebuilt, Rung::Build] {
            let outcome = self.climb(rung, &report.kernel, &device);
            report.steps.push(rung.step(outcome.clone()));
            if let ModuleStep::TimedOut { .. } = outcome {
                // It may end yet, and would then meet what another rung has done.
                break;
            }
            if let ModuleStep::Loaded { abi, module } = outcome {
                info!(
                    module,
                    abi = abi.name(),
                    "the channel's kernel module is in place"
                );
                report.outcome = Outcome::Ready { abi };
                return Ok(report);
            }
            if let ModuleStep::Closed { module } = outcome {
                info!(module, "the channel's kernel module is in place");
                report.outcome = Outcome::Closed;
                return Ok(report);
            }
        }
        report.outcome = Outcome::Https;
        Ok(report)
    }

    /// What is there now; changes nothing.
    ///
    /// # Errors
    /// See [`LoaderError`].
    pub fn status(&self) -> Result<Status, LoaderError> {
        let kernel = self.release()?;
        let device = self.offered();
        let restrictions = restriction::all(&self.config.root);
        Ok(Status {
            vmbus: self.root("sys/bus/vmbus").is_dir(),
            offered: device.is_some(),
            bound_to: device.as_deref().and_then(driver_of),
            node: self.node(),
            modules: [IN_BOX, OURS]
                .into_iter()
                .filter_map(|name| self.loaded(name))
                .collect(),
            restrictions: restrictions.found,
            unread: restrictions.unread,
            in_box: modules::in_box(&self.config.host_root, &kernel),
            prebuilt: self
                .config
                .prebuilt
                .is_dir()
                .then(|| Manifest::read(&self.config.prebuilt, &kernel).is_ok_and(|found| found.is_some())),
            loaded_by_us: state::read(&self.config)?,
            outdated: self.outdated(&kernel)?,
            orphan: orphan::look(&self.config.root),
            kernel,
        })
    }

    /// Unloads what [`load`](Self::load) has loaded. Never a module that is in use, nor one of somebody else.
    ///
    /// # Errors
    /// See [`LoaderError`].
    pub fn unload(&self) -> Result<Unloading, LoaderError> {
        let _lock = Lock::take(&self.config)?;
        let ours = state::read(&self.config)?;
        let mut modules = Vec::new();
        for name in [OURS, IN_BOX] {
            let known = ours.iter().any(|known| known.module == name);
            match self.loaded(name) {
                Some(module) if known => modules.push(self.unload_one(module)?),
                Some(module) => modules.push(Unloaded::NotOurs { module: module.name }),
                None if known => state::forget(&self.config, name)?,
                None => {}
            }
        }
        Ok(Unloading { modules })
    }

    fn unload_one(&self, module: Module) -> Result<Unloaded, LoaderError> {
        // The kernel asks again, without a gap; this is for the message, and for not trying.
        if module.users > 0 {
            return Ok(Unloaded::InUse {
                module: module.name,
                users: module.users,
            });
        }
        match self.system.unload_module(&module.name) {
            Ok(()) => {
                state::forget(&self.config, &module.name)?;
                Ok(Unloaded::Done { module: module.name })
            }
            Err(nix::errno::Errno::EWOULDBLOCK) => Ok(Unloaded::InUse {
                users: self.loaded(&module.name).map_or(0, |now| now.users),
                module: module.name,
            }),
            Err(errno) => Ok(Unloaded::Refused {
                module: module.name,
                reason: errno.desc().to_owned(),
            }),
        }
    }

    /// Whether the prebuilt file for this kernel is another one than we have loaded. A manifest that does not fit says nothing.
    fn outdated(&self, kernel: &str) -> Result<Option<Outdated>, LoaderError> {
        let Ok(Some(manifest)) = Manifest::read(&self.config.prebuilt, kernel) else {
            return Ok(None);
        };
        Ok(state::read(&self.config)?
            .into_iter()
            .filter(|known| known.module == OURS && self.loaded(OURS).is_some())
            .filter_map(|known| known.digest)
            .find(|digest| !digest.eq_ignore_ascii_case(&manifest.sha256))
            .map(|loaded| Outdated {
                module: OURS.to_owned(),
                loaded,
                prebuilt: manifest.sha256,
            }))
    }

    fn root(&self, path: &str) -> PathBuf {
        self.config.root.join(path)
    }

    /// `uname -r`.
    fn release(&self) -> Result<String, LoaderError> {
        let path = self.root("proc/sys/kernel/osrelease");
        let text = fs::read_to_string(&path).map_err(LoaderError::file(&path))?;
        Ok(text.trim().to_owned())
    }

    /// The sysfs folder of the device, if the host offers it.
    fn offered(&self) -> Option<PathBuf> {
        find_device(&self.config.root, "class_id", CLASS_ID)
    }

    /// Whether the node is there and answers.
    fn node(&self) -> NodeStep {
        let path = inside(&self.config.root, &self.config.device);
        if !path.exists() {
            return NodeStep::Absent;
        }
        match self.system.probe(&path) {
            Ok(abi) => NodeStep::Present { abi },
            // A container that is not privileged may look at the node and not open it.
            Err(ChannelError::Io { call: "open", source })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                NodeStep::Closed
            }
            Err(error) => NodeStep::Unusable {
                reason: error.to_string(),
            },
        }
    }

    /// A module that is in the kernel now.
    fn loaded(&self, name: &str) -> Option<Module> {
        let folder = self.root("sys/module").join(name);
        folder.is_dir().then(|| Module {
            name: name.to_owned(),
            users: read_word(&folder.join("refcnt"))
                .and_then(|word| word.parse().ok())
                .unwrap_or(0),
        })
    }
}

impl Abi {
    /// One word for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Ubuntu => "ubuntu",
        }
    }
}

/// A path that may be absolute, below `root`.
fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// First word of a small file; `None` if it cannot be read.
fn read_word(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.split_whitespace().next().map(str::to_owned)
}

/// The device on the bus whose file `attribute` holds `{guid}`.
fn find_device(root: &Path, attribute: &str, guid: &str) -> Option<PathBuf> {
    let devices = fs::read_dir(root.join("sys/bus/vmbus/devices")).ok()?;
    devices.flatten().map(|entry| entry.path()).find(|device| {
        read_word(&device.join(attribute))
            .is_some_and(|id| id.trim_matches(['{', '}']).eq_ignore_ascii_case(guid))
    })
}

/// Name of the driver that a device is bound to.
fn driver_of(device: &Path) -> Option<String> {
    let target = fs::read_link(device.join("driver")).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}
