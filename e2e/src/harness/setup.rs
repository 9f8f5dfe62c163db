//! One test's world: a scratch folder, a blob service, the channel's device when wanted, and mounts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

use super::backend::{Backend, Kind};
use super::mount::{Mount, MountOptions};
use super::tree;
use crate::vsp::{self, HttpBackend, MockVsp};

/// Which way requests are to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// No device: everything over HTTPS (plain HTTP here, the services are on loopback).
    Https,
    /// The mock device in front of the same service.
    Channel,
}

/// A backend, a device and a scratch folder. Mounts made from it must end first: keep it alive longer than
/// they are.
#[derive(Debug)]
pub struct Setup {
    // Dropped in this order: the device before the service behind it, the folder it is mounted in last.
    device: Option<MockVsp>,
    backend: Backend,
    scratch: tempfile::TempDir,
}

impl Setup {
    /// Starts what the test stands on.
    pub fn new(kind: Kind, way: Way) -> Result<Self> {
        let backend = Backend::start(kind)?;
        let scratch = tree::scratch()?;
        let device = match way {
            Way::Https => None,
            Way::Channel => {
                let behind: Arc<dyn vsp::Backend> = match backend.store() {
                    Some(store) => Arc::clone(store) as Arc<dyn vsp::Backend>,
                    None => Arc::new(HttpBackend::new(None)?),
                };
                let folder = tree::folder(scratch.path().join("dev"))?;
                Some(MockVsp::mount(&folder, behind).context("mounting the mock device")?)
            }
        };
        Ok(Self {
            device,
            backend,
            scratch,
        })
    }

    /// The blob service.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// The mock device; fails when there is none.
    pub fn device(&self) -> Result<&MockVsp> {
        self.device.as_ref().context("this test has no device")
    }

    /// A folder of the local file system.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// How to mount over the way that was asked for.
    pub fn options(&self) -> MountOptions {
        MountOptions {
            device: self.device.as_ref().map(MockVsp::device),
            ..MountOptions::default()
        }
    }

    /// Mounts a container, which is made when it is not there, at a folder `name` of the scratch folder.
    pub fn mount(&self, container: &str, name: &str) -> Result<Mount> {
        self.mount_with(container, name, &self.options())
    }

    /// Likewise, with options.
    pub fn mount_with(&self, container: &str, name: &str, options: &MountOptions) -> Result<Mount> {
        self.backend.create_container(container)?;
        Mount::start(&self.backend, container, &self.folder(name)?, options)
    }

    /// A folder of that name in the scratch folder, made when it is not there.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.scratch().join(name);
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }
}
