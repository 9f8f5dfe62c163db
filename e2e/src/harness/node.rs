//! The node service alone, in names of its own, with volumes that are staged and nothing else: for tests of
//! what one process does for many mounts, and of its metrics.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use csi_proto::csi::{NodeStageVolumeRequest, NodeUnstageVolumeRequest};
use nix::sys::signal::Signal;
use url::Url;

use super::csi::{CsiClient, mount_capability};
use super::plugin::{NODE_ID, secrets};
use super::process::Running;
use super::shared::Shared;
use super::{PATIENCE, runtime, tools, wait_for};

/// How a node is started.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    /// `--budget`
    pub budget: u64,
    /// Names that only this node knows, by their lines of /etc/hosts; nobody else answers it a name.
    pub hosts: Option<String>,
    /// The channel's device; `None`: the node has none.
    pub device: Option<PathBuf>,
    /// Further options of the program.
    pub more: Vec<String>,
}

/// A running node service. Dropping it ends it and frees its mounts.
#[derive(Debug)]
pub struct Node {
    process: Running,
    client: CsiClient,
    health: SocketAddr,
    /// Mounts in it are seen here, whichever of our names the node has.
    shared: Shared,
}

/// Gives the program its own /etc/hosts, and nobody to ask for other names. What is mounted for that is seen
/// by nobody else.
const NAMES: &str = r#"
mount --bind "$0/hosts" /etc/hosts && mount --bind "$0/resolv.conf" /etc/resolv.conf && exec "$@"
"#;

impl Node {
    /// Starts it and waits until it answers.
    pub fn start(options: &NodeOptions) -> Result<Self> {
        let shared = Shared::new()?;
        let folder = shared.path();
        let program = tools::vsc_blob_csi()?;
        let mut command = match &options.hosts {
            None => Command::new(program),
            Some(hosts) => {
                std::fs::write(folder.join("hosts"), hosts)?;
                let nobody = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n";
                std::fs::write(folder.join("resolv.conf"), nobody)?;
                let mut command = shared.apart();
                command.args(["sh", "-c", NAMES]).arg(folder).arg(program);
                command
            }
        };
        let socket = folder.join("node.sock");
        command
            .args(["node", "--node-id", NODE_ID, "--device"])
            .arg(
                options
                    .device
                    .as_deref()
                    .unwrap_or(Path::new("/nonexistent/azure_blob")),
            )
            .args(["--health-address", "127.0.0.1:0", "--budget"])
            .arg(options.budget.to_string())
            .arg("--endpoint")
            .arg(&socket)
            .arg("--state-dir")
            .arg(folder.join("state"))
            .args(&options.more)
            .env_remove("RUST_LOG");
        let mut process = Running::start("node", &mut command)?;
        let health = process.wait_for_line("the address of the metrics", PATIENCE, |line| {
            let (_, rest) = line.split_once("address=")?;
            rest.split_whitespace().next()?.parse().ok()
        })?;
        let client = wait_for("the node to listen", PATIENCE, || {
            Ok(runtime().block_on(CsiClient::connect(&socket)).ok())
        })?;
        Ok(Self {
            process,
            client,
            health,
            shared,
        })
    }

    /// Changes the names that it knows.
    pub fn set_hosts(&self, hosts: &str) -> Result<()> {
        // In place: it is this file that the node sees.
        std::fs::write(self.shared.path().join("hosts"), hosts).context("writing the names of the node")
    }

    /// Stages a container of the emulators' account at this endpoint; where it is mounted.
    pub fn stage(&self, id: &str, server: &Url, container: &str, flags: &[&str]) -> Result<PathBuf> {
        self.stage_with(id, server, container, flags, secrets())
    }

    /// The same with these secrets.
    pub fn stage_with(
        &self,
        id: &str,
        server: &Url,
        container: &str,
        flags: &[&str],
        secrets: HashMap<String, String>,
    ) -> Result<PathBuf> {
        let at = self.path(id);
        std::fs::create_dir_all(&at)?;
        let context = [
            ("server", server.as_str().trim_end_matches('/')),
            ("containerName", container),
        ];
        let request = NodeStageVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: at.display().to_string(),
            volume_capability: Some(mount_capability(flags)),
            volume_context: context.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            secrets,
            ..NodeStageVolumeRequest::default()
        };
        runtime()
            .block_on(self.client.node.clone().node_stage_volume(request))
            .with_context(|| format!("staging {id}"))?;
        Ok(at)
    }

    /// Ends a volume: all that was written to it is stored.
    pub fn unstage(&self, id: &str) -> Result<()> {
        let request = NodeUnstageVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: self.path(id).display().to_string(),
        };
        runtime()
            .block_on(self.client.node.clone().node_unstage_volume(request))
            .with_context(|| format!("unstaging {id}"))?;
        Ok(())
    }

    fn path(&self, id: &str) -> PathBuf {
        self.shared.path().join(id)
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.shared.path()
    }

    /// Where it serves its metrics.
    pub fn health(&self) -> SocketAddr {
        self.health
    }

    /// Its process.
    pub fn process(&self) -> &Running {
        &self.process
    }

    /// What it counts, by name and labels as they are written.
    pub fn metrics(&self) -> Result<BTreeMap<String, f64>> {
        let mut stream = TcpStream::connect(self.health)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        if !head.starts_with("HTTP/1.1 200") {
            bail!("metrics: {head}\n{body}");
        }
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        let lines = body.lines().filter(|line| !line.starts_with('#'));
        Ok(lines.filter_map(sample).collect())
    }

    /// One of them.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let metrics = self.metrics()?;
        metrics
            .get(name)
            .copied()
            .with_context(|| format!("no {name} in {metrics:?}"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A clean end first; what is left is freed with the folder.
        if self.process.signal(Signal::SIGTERM).is_ok() {
            let _ = self.process.wait(PATIENCE);
        }
    }
}
