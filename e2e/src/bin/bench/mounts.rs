//! The systems that are compared, and how each is mounted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::fuse::connection_at;
use e2e::harness::mount::{Mount, MountOptions};
use e2e::harness::process::Running;
use e2e::harness::setup::Setup;
use e2e::harness::tools::run;
use e2e::harness::{PATIENCE, wait_for};
use e2e::store::{DEV_ACCOUNT, DEV_KEY};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    /// Our mount, HTTPS only: the base of the ratios.
    Https,
    /// Our mount over the mock device.
    Channel,
    /// blobfuse2 with its block cache.
    Blobfuse2,
    /// rclone with its full cache.
    Rclone,
}

impl System {
    /// Shown in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Https => "HTTPS",
            Self::Channel => "channel",
            Self::Blobfuse2 => "blobfuse2",
            Self::Rclone => "rclone",
        }
    }

    /// True for programs of others.
    pub(crate) fn is_peer(self) -> bool {
        matches!(self, Self::Blobfuse2 | Self::Rclone)
    }

    /// First line of a peer's `--version`; `None` when it is not installed.
    pub(crate) fn version(self) -> Option<String> {
        let output = run(Command::new(self.name()).arg("--version")).ok()?;
        output.lines().next().map(str::to_owned)
    }
}

/// A mount of one of the systems. Dropping it frees it.
#[derive(Debug)]
pub(crate) enum Served {
    /// `vsc-blob-csi mount`.
    Ours(Mount),
    /// A peer.
    Peer(Peer),
}

/// A peer in the foreground, and where it is mounted.
#[derive(Debug)]
pub(crate) struct Peer {
    process: Running,
    at: PathBuf,
}

impl Served {
    /// Mounts the container and waits until the mount is there.
    pub(crate) fn start(system: System, setup: &Setup, container: &str) -> Result<Self> {
        let at = setup.folder("mnt")?;
        let mut command = match system {
            System::Https => {
                let options = MountOptions::default();
                return Ok(Self::Ours(Mount::start(
                    setup.backend(),
                    container,
                    &at,
                    &options,
                )?));
            }
            System::Channel => {
                let options = setup.options().arg("--transport").arg("require");
                return Ok(Self::Ours(Mount::start(
                    setup.backend(),
                    container,
                    &at,
                    &options,
                )?));
            }
            System::Blobfuse2 => blobfuse2(setup, container, &at)?,
            System::Rclone => rclone(setup, container, &at)?,
        };
        let mut process = Running::start(system.name(), &mut command)?;
        wait_for("the peer's mount", PATIENCE, || {
            if let Some(status) = process.try_wait()? {
                bail!("{} ended ({status}):\n{}", system.name(), process.output());
            }
            connection_at(&at)
        })?;
        Ok(Self::Peer(Peer { process, at }))
    }

    /// The mounted folder.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Ours(mount) => mount.path(),
            Self::Peer(peer) => &peer.at,
        }
    }

    /// The serving process.
    pub(crate) fn process(&self) -> &Running {
        match self {
            Self::Ours(mount) => mount.process(),
            Self::Peer(peer) => &peer.process,
        }
    }

    /// Unmounts and waits for a good end.
    pub(crate) fn stop(self) -> Result<()> {
        match self {
            Self::Ours(mount) => mount.unmount().map(drop),
            Self::Peer(mut peer) => {
                run(Command::new("umount").arg(&peer.at))?;
                let status = peer.process.wait(PATIENCE)?;
                ensure!(
                    status.success(),
                    "the peer ended badly ({status}):\n{}",
                    peer.process.output()
                );
                Ok(())
            }
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if matches!(connection_at(&self.at), Ok(Some(_))) {
            let detached = Running::start("umount", Command::new("umount").arg("-l").arg(&self.at));
            if let Ok(mut detached) = detached {
                let _ = detached.wait(Duration::from_secs(10));
            }
        }
    }
}

/// Defaults of the peer wherever there are any; the block cache, because its file cache is not durable at
/// fsync.
fn blobfuse2(setup: &Setup, container: &str, at: &Path) -> Result<Command> {
    let configuration = setup.scratch().join("blobfuse2.yaml");
    let endpoint = setup.backend().endpoint();
    let text = format!(
        "foreground: true\n\
         allow-other: true\n\
         logging:\n  type: silent\n\
         components: [libfuse, block_cache, attr_cache, azstorage]\n\
         azstorage:\n  type: block\n  account-name: {DEV_ACCOUNT}\n  account-key: {DEV_KEY}\n  \
         mode: key\n  endpoint: {endpoint}\n  container: {container}\n"
    );
    fs::write(&configuration, text).context("writing blobfuse2's configuration")?;
    let mut command = Command::new("blobfuse2");
    command
        .arg("mount")
        .arg(at)
        .arg("--config-file")
        .arg(configuration);
    Ok(command)
}

fn rclone(setup: &Setup, container: &str, at: &Path) -> Result<Command> {
    let mut command = Command::new("rclone");
    command
        .arg("mount")
        .arg(format!("bench:{container}"))
        .arg(at)
        .args(["--vfs-cache-mode", "full", "--cache-dir"])
        .arg(setup.folder("rclone-cache")?)
        .arg("--config")
        .arg("/dev/null")
        .env("RCLONE_CONFIG_BENCH_TYPE", "azureblob")
        .env("RCLONE_CONFIG_BENCH_ACCOUNT", DEV_ACCOUNT)
        .env("RCLONE_CONFIG_BENCH_KEY", DEV_KEY)
        .env(
            "RCLONE_CONFIG_BENCH_ENDPOINT",
            setup.backend().endpoint().as_str().trim_end_matches('/'),
        );
    Ok(command)
}
