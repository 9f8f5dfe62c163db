//! Getting the kernel module in place: the ladder from "not offered" to a node that answers, and back.
//!
//! Everything that is read or called goes through a root directory and a [`System`], so that every rung can
//! be shown on a machine that has no such device. Rule: whatever happens here, volumes still work over HTTPS;
//! so a rung that fails is an outcome with a reason, not an error.

mod config;
mod error;
mod index;
mod manifest;
mod orphan;
mod prose;
mod report;
mod restriction;
mod rungs;
mod state;
mod sysfs;
mod system;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::PathBuf;

use tracing::info;

use self::state::Lock;
use self::sysfs::{driver_of, find_device, inside, read_word};
use crate::channel::ChannelError;

pub use self::config::{LoaderConfig, Rung};
pub use self::error::LoaderError;
pub use self::manifest::Manifest;
pub use self::orphan::Orphan;
pub use self::report::{
    Module, ModuleStep, NodeStep, Outcome, Outdated, Report, Status, Step, Unloaded, Unloading,
};
pub use self::restriction::{Restriction, Unread};
pub use self::state::LoadedModule;
pub use self::sysfs::{CLASS_ID, IN_BOX, OURS};
pub use self::system::{Insert, Kernel, Ran, System};

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

    /// Climbs the ladder until the node answers or nothing is left: the node as it is, the kernel's own
    /// module, a prebuilt one, one built here. Touches nothing on a machine that is not offered the device.
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
            in_box: index::in_box(&self.config.host_root, &kernel),
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

    /// Whether the prebuilt file for this kernel is another one than we have loaded. A manifest that does not
    /// fit says nothing.
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
