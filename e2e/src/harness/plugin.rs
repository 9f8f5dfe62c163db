//! The CSI plugin as two child processes, node and controller, on unix sockets - and clients of both.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use nix::sys::signal::Signal;

use super::backend::Backend;
use super::csi::CsiClient;
use super::process::Running;
use super::shared::Shared;
use super::{PATIENCE, runtime, tools, wait_for};
use crate::store::{DEV_ACCOUNT, DEV_KEY};

/// Name of the node in all suites.
pub const NODE_ID: &str = "node-1";

/// Everything the program can say, so that a secret in a log would be seen.
const EVERYTHING: &str = "trace,h2=info,hyper=info,tonic=info";

/// What node and controller are started with beside what every suite needs.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// Hosts to which identities of the node and the driver are lent.
    pub allowed_endpoints: Vec<String>,
    /// Variables of the environment.
    pub environment: Vec<(String, String)>,
    /// The node has mounts of its own, as in a container.
    pub apart: bool,
}

impl Default for Surroundings {
    /// Services and token endpoints of the suites are on loopback.
    fn default() -> Self {
        Self {
            allowed_endpoints: vec!["127.0.0.1".to_owned()],
            environment: Vec::new(),
            apart: false,
        }
    }
}

impl Surroundings {
    fn put_on(&self, command: &mut Command) {
        if !self.allowed_endpoints.is_empty() {
            command
                .arg("--allowed-endpoints")
                .arg(self.allowed_endpoints.join(","));
        }
        command.envs(self.environment.iter().cloned());
    }
}

/// A running node and controller. Dropping it ends both and frees their mounts.
#[derive(Debug)]
pub struct Plugin {
    node: Running,
    controller: Running,
    folder: Shared,
    device: PathBuf,
    surroundings: Surroundings,
}

impl Plugin {
    /// Starts both and waits until they answer. `device`: the channel's; `None` = no such device.
    pub fn start(device: Option<&Path>) -> Result<Self> {
        Self::start_in(device, Surroundings::default())
    }

    /// The same in other surroundings.
    pub fn start_in(device: Option<&Path>, surroundings: Surroundings) -> Result<Self> {
        let folder = Shared::new()?;
        let device = device.map_or_else(|| "/nonexistent/azure_blob".into(), Path::to_path_buf);
        let mut command = Command::new(tools::vsc_blob_csi()?);
        command.args(["controller", "--node-id", NODE_ID, "--endpoint"]);
        command
            .arg(folder.path().join("controller.sock"))
            .arg("--device")
            .arg(&device)
            .env("RUST_LOG", EVERYTHING);
        surroundings.put_on(&mut command);
        let controller = Running::start("controller", &mut command)?;
        std::fs::create_dir(folder.path().join("registry"))?;
        let plugin = Self {
            node: start_node(&folder, &device, &surroundings)?,
            controller,
            folder,
            device,
            surroundings,
        };
        plugin.controller()?;
        plugin.node()?;
        Ok(plugin)
    }

    /// Ends the node (`Signal::SIGKILL`: without a chance to clean up) and starts it anew on the same state.
    pub fn restart_node(&mut self, signal: Signal) -> Result<()> {
        self.node.signal(signal)?;
        self.node.wait(PATIENCE)?;
        self.node = start_node(&self.folder, &self.device, &self.surroundings)?;
        self.node().map(drop)
    }

    /// Starts a second process of the node beside the first, with the same state and sockets.
    pub fn second_node(&self) -> Result<Running> {
        start_node(&self.folder, &self.device, &self.surroundings)
    }

    /// Waits for the end of the node, whose place a second process takes.
    pub fn succeeded_by(&mut self, second: Running) -> Result<()> {
        self.node.wait(PATIENCE)?;
        self.node = second;
        self.node().map(drop)
    }

    /// Scratch folder of this plugin, for staging and target paths.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Socket of the node.
    pub fn node_socket(&self) -> PathBuf {
        self.folder.path().join("node.sock")
    }

    /// Socket of the controller.
    pub fn controller_socket(&self) -> PathBuf {
        self.folder.path().join("controller.sock")
    }

    /// Registration socket of the node, which it makes after the one for calls.
    pub fn registration_socket(&self) -> Result<PathBuf> {
        let registry = self.folder.path().join("registry");
        wait_for("the registration socket", PATIENCE, || {
            let entry = std::fs::read_dir(&registry)?.next().transpose()?;
            Ok(entry.map(|entry| entry.path()))
        })
    }

    /// The controller's process.
    pub fn controller_process(&self) -> &Running {
        &self.controller
    }

    /// The node's process.
    pub fn node_process(&self) -> &Running {
        &self.node
    }

    /// A client of the node, once it listens.
    pub fn node(&self) -> Result<CsiClient> {
        connect(&self.node_socket())
    }

    /// A client of the controller, once it listens.
    pub fn controller(&self) -> Result<CsiClient> {
        connect(&self.controller_socket())
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        // A clean end first, so that mounts go the ordinary way; what is left is freed with the folder.
        if self.node.signal(Signal::SIGTERM).is_ok() {
            let _ = self.node.wait(PATIENCE);
        }
    }
}

fn start_node(shared: &Shared, device: &Path, surroundings: &Surroundings) -> Result<Running> {
    let (folder, program) = (shared.path(), tools::vsc_blob_csi()?);
    let mut command = if surroundings.apart {
        let mut command = shared.apart();
        command.arg(program);
        command
    } else {
        Command::new(program)
    };
    command.args(["node", "--node-id", NODE_ID, "--budget", "128MiB", "--endpoint"]);
    command.arg(format!("unix://{}", folder.join("node.sock").display()));
    command.arg("--device").arg(device);
    command.arg("--state-dir").arg(folder.join("state"));
    command.arg("--registration-dir").arg(folder.join("registry"));
    command.env("RUST_LOG", EVERYTHING);
    surroundings.put_on(&mut command);
    Running::start("node", &mut command)
}

fn connect(socket: &Path) -> Result<CsiClient> {
    let what = format!("somebody to listen at {}", socket.display());
    wait_for(&what, PATIENCE, || {
        Ok(runtime().block_on(CsiClient::connect(socket)).ok())
    })
}

/// Secrets of the emulators' account.
pub fn secrets() -> HashMap<String, String> {
    HashMap::from([
        ("azurestorageaccountname".to_owned(), DEV_ACCOUNT.to_owned()),
        ("azurestorageaccountkey".to_owned(), DEV_KEY.to_owned()),
    ])
}

/// volumeAttributes (or class parameters) that lead to the backend.
pub fn attributes(backend: &Backend, more: &[(&str, &str)]) -> HashMap<String, String> {
    let server = backend.endpoint().as_str().trim_end_matches('/').to_owned();
    let more = more
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    std::iter::once(("server".to_owned(), server))
        .chain(more)
        .collect()
}
