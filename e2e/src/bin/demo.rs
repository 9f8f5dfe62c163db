//! The demo: a volume is created, staged, published, written and read back over the channel, with nothing but
//! this machine.
//!
//! Real are the node and controller services, their unix sockets, the mounts and the ioctl; the device and
//! the blob service are the mock VSP and the embedded store of this crate.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use blob_client::transport::PathStats;
use clap::Parser;
use csi_proto::csi::{
    GetPluginInfoRequest, NodeGetInfoRequest, NodeGetVolumeStatsRequest, ProbeRequest,
    ValidateVolumeCapabilitiesRequest, volume_usage,
};
use e2e::harness::csi::{CsiClient, Volume, mount_capability};
use e2e::store::{BlobStore, DEV_ACCOUNT, DEV_KEY, Server, StoreConfig};
use e2e::vsp::MockVsp;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use vsc_blob_csi::commands::controller::{self, ControllerArgs};
use vsc_blob_csi::commands::node::{NodeArgs, NodePlugin};
use vsc_blob_csi::commands::size::ByteSize;
use vsc_blob_csi::commands::{BudgetArgs, DeviceArgs, KubernetesArgs, KubernetesMode, LendingArgs};
use vsc_blob_csi::grpc::server;
use vsc_blob_csi::mounts::holdings::CountInterval;
use vsc_blob_csi::socket::Socket;
use vsc_blob_csi::telemetry::health::HealthArgs;
use vsc_blob_csi::telemetry::metrics::Metrics;
use vsc_blob_csi::telemetry::traces::TracesArgs;

/// Shows the whole way of a volume on this machine, as root: CSI calls, a mount, files over the channel.
#[derive(Debug, Parser)]
struct Arguments {
    /// Exit when everything has been shown, instead of staying up until Ctrl-C.
    #[arg(long)]
    check: bool,
    /// Size of the file that is written and read back.
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    file_mib: u64,
}

/// Requests and bytes of one path, summed over all stagings.
#[derive(Debug, Clone, Copy, Default)]
struct Traffic {
    requests: u64,
    bytes: u64,
    errors: u64,
}

impl Traffic {
    fn add(&mut self, path: &PathStats) {
        self.requests += path.requests;
        self.bytes += path.bytes_in + path.bytes_out;
        self.errors += path.errors + path.failed_over;
    }
}

/// Of both paths.
#[derive(Debug, Clone, Copy, Default)]
struct Paths {
    channel: Traffic,
    https: Traffic,
}

impl Paths {
    fn add(&mut self, stats: impl IntoIterator<Item = (String, Vec<PathStats>)>) {
        for path in stats.into_iter().flat_map(|(_, paths)| paths) {
            match path.path {
                "channel" => self.channel.add(&path),
                _ => self.https.add(&path),
            }
        }
    }

    fn errors(&self) -> u64 {
        self.channel.errors + self.https.errors
    }
}

/// Everything that runs. Fields are dropped in the order in which they have to end.
struct Demo {
    node: CsiClient,
    controller: CsiClient,
    plugin: NodePlugin,
    stop: CancellationToken,
    volume: Volume,
    staged: bool,
    published: bool,
    /// Of the stagings that have ended.
    ended: Paths,
    device: MockVsp,
    _server: Server,
    folder: tempfile::TempDir,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    let arguments = Arguments::parse();
    ensure!(
        nix::unistd::geteuid().is_root(),
        "run the demo as root: it mounts file systems"
    );

    let interrupted = interrupted()?;
    let mut demo = Demo::start().await?;
    let shown = tokio::select! {
        shown = demo.show(arguments.file_mib << 20) => shown,
        () = interrupted.cancelled() => Err(anyhow!("interrupted")),
    };
    if shown.is_ok() && !arguments.check {
        let at = demo.volume.target.display();
        demo.print_traffic();
        println!("\nThe volume stays at {at} until Ctrl-C: look at it from another terminal.");
        interrupted.cancelled().await;
        println!();
    }
    // Cleaned up in every case; the first error counts.
    let cleaned = demo.clean_up().await;
    let ended = demo.traffic();
    if shown.is_ok() && cleaned.is_ok() {
        demo.print_traffic();
    }
    drop(demo);
    shown.and(cleaned)?;

    Ok(if ended.errors() == 0 && ended.channel.bytes > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Cancelled at the first Ctrl-C or SIGTERM.
fn interrupted() -> Result<CancellationToken> {
    let token = CancellationToken::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let mut signal = signal(kind).context("listening for signals")?;
        let token = token.clone();
        tokio::spawn(async move {
            signal.recv().await;
            token.cancel();
        });
    }
    Ok(token)
}

impl Demo {
    /// Starts the store, the device, the node and the controller.
    async fn start() -> Result<Self> {
        // Short, because unix socket paths must fit into 108 bytes.
        let folder = tempfile::Builder::new().prefix("vsc-demo-").tempdir()?;
        let at = |name: &str| -> Result<PathBuf> {
            let path = folder.path().join(name);
            fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
            Ok(path)
        };
        let store = BlobStore::new(StoreConfig::default())?;
        let server = store.serve(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
        println!("embedded blob store  {}", server.endpoint());
        let (device_folder, behind) = (at("dev")?, Arc::clone(&store));
        let device = spawn_blocking(move || MockVsp::mount(&device_folder, behind)).await??;
        println!("mock device          {}", device.device().display());

        let stop = CancellationToken::new();
        let sockets = ["node.sock", "controller.sock"].map(|name| folder.path().join(name));
        let device_args = DeviceArgs {
            device: device.device(),
        };
        let kubernetes = KubernetesArgs {
            kubernetes: KubernetesMode::Off,
            ..KubernetesArgs::default()
        };
        let plugin = NodePlugin::open(&NodeArgs {
            endpoint: endpoint(&sockets[0]),
            node_id: "demo-node".into(),
            state_dir: at("state")?,
            predecessor_timeout: blob_client::Patience::default(),
            registration_dir: None,
            kubelet_socket: None,
            driver_name: vsc_blob_csi::DRIVER_NAME.into(),
            device: device_args.clone(),
            budget: BudgetArgs {
                budget: ByteSize(512 << 20),
            },
            max_volumes: None,
            count_interval: CountInterval::default(),
            metrics_volumes: 100,
            no_seccomp: false,
            lending: LendingArgs::default(),
            health: HealthArgs::default(),
            traces: TracesArgs::default(),
            kubernetes: kubernetes.clone(),
        })?;
        serve(&sockets[0], plugin.routes(), &plugin.metrics, &stop)?;
        println!("node                 {}", endpoint(&sockets[0]));
        let (routes, metrics) = controller::routes(&ControllerArgs {
            endpoint: endpoint(&sockets[1]),
            node_id: "demo-node".into(),
            driver_name: vsc_blob_csi::DRIVER_NAME.into(),
            device: device_args,
            lending: LendingArgs::default(),
            health: HealthArgs::default(),
            traces: TracesArgs::default(),
            kubernetes,
        })?;
        serve(&sockets[1], routes, &metrics, &stop)?;
        println!("controller           {}\n", endpoint(&sockets[1]));

        let map = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        let volume = Volume {
            id: String::new(),
            context: map(&[
                ("storageAccount", DEV_ACCOUNT),
                ("server", server.endpoint().as_str()),
                ("containerNamePrefix", "demo"),
            ]),
            secrets: map(&[
                ("azurestorageaccountname", DEV_ACCOUNT),
                ("azurestorageaccountkey", DEV_KEY),
            ]),
            staging: at("staging")?,
            target: at("pod")?.join("volume"),
        };
        Ok(Self {
            node: CsiClient::connect(&sockets[0]).await?,
            controller: CsiClient::connect(&sockets[1]).await?,
            plugin,
            stop,
            volume,
            staged: false,
            published: false,
            ended: Paths::default(),
            device,
            _server: server,
            folder,
        })
    }

    /// The way of a volume, call by call.
    async fn show(&mut self, size: u64) -> Result<()> {
        let info = self
            .node
            .identity
            .get_plugin_info(GetPluginInfoRequest {})
            .await?
            .into_inner();
        said(
            "Identity.GetPluginInfo",
            format!("{} {}", info.name, info.vendor_version),
        );
        let probe = self.node.identity.probe(ProbeRequest {}).await?.into_inner();
        said(
            "Identity.Probe",
            format!("ready: {}", probe.ready.unwrap_or(false)),
        );
        let node = self
            .node
            .node
            .node_get_info(NodeGetInfoRequest {})
            .await?
            .into_inner();
        said("Node.NodeGetInfo", &node.node_id);

        let create = self.volume.create("pvc-demo");
        let created = self
            .controller
            .controller
            .create_volume(create)
            .await?
            .into_inner();
        let created = created.volume.context("CreateVolume answered without a volume")?;
        said("Controller.CreateVolume", &created.volume_id);
        self.volume.id = created.volume_id;
        self.volume.context = created.volume_context;
        let validate = ValidateVolumeCapabilitiesRequest {
            volume_id: self.volume.id.clone(),
            volume_context: self.volume.context.clone(),
            volume_capabilities: vec![mount_capability(&[])],
            secrets: self.volume.secrets.clone(),
            ..ValidateVolumeCapabilitiesRequest::default()
        };
        let valid = self
            .controller
            .controller
            .validate_volume_capabilities(validate)
            .await?
            .into_inner();
        let confirmed = if valid.confirmed.is_some() {
            "confirmed"
        } else {
            "refused"
        };
        said("Controller.ValidateVolumeCapabilities", confirmed);

        self.publish().await?;
        println!("    the volume appears at {}", self.volume.target.display());
        let file = self.volume.target.join("a folder/random.bin");
        let path = file.clone();
        spawn_blocking(move || write_random(&path, size)).await??;
        println!("    wrote {size} bytes to {}; fsync returned", file.display());
        self.unpublish().await?;

        // A fresh mount has nothing cached: what it reads comes from the service.
        self.publish().await?;
        let path = file.clone();
        spawn_blocking(move || compare_random(&path, size)).await??;
        println!("    read {size} bytes back through a fresh mount: equal");
        let stats = NodeGetVolumeStatsRequest {
            volume_id: self.volume.id.clone(),
            volume_path: self.volume.target.to_string_lossy().into_owned(),
            staging_target_path: self.volume.staging.to_string_lossy().into_owned(),
        };
        let stats = self.node.node.node_get_volume_stats(stats).await?.into_inner();
        let units: Vec<String> = stats
            .usage
            .iter()
            .map(|usage| match usage.unit() {
                volume_usage::Unit::Bytes => format!("{} bytes used", usage.used),
                volume_usage::Unit::Inodes => format!("{} inodes used", usage.used),
                volume_usage::Unit::Unknown => "an unknown unit".into(),
            })
            .collect();
        said("Node.NodeGetVolumeStats", units.join(", "));
        let host = self.device.counters();
        println!(
            "    the host counted {} requests, {} bytes from and {} bytes to the guest",
            host.requests, host.bytes_in, host.bytes_out
        );
        Ok(())
    }

    async fn publish(&mut self) -> Result<()> {
        self.node.node.node_stage_volume(self.volume.stage()).await?;
        self.staged = true;
        said("Node.NodeStageVolume", self.volume.staging.display());
        self.node.node.node_publish_volume(self.volume.publish()).await?;
        self.published = true;
        said("Node.NodePublishVolume", self.volume.target.display());
        Ok(())
    }

    async fn unpublish(&mut self) -> Result<()> {
        if self.published {
            self.node
                .node
                .node_unpublish_volume(self.volume.unpublish())
                .await?;
            self.published = false;
            said("Node.NodeUnpublishVolume", self.volume.target.display());
        }
        if self.staged {
            // Counters end with the volume's connection.
            let counters = self.plugin.connector.stats();
            self.node.node.node_unstage_volume(self.volume.unstage()).await?;
            self.staged = false;
            said("Node.NodeUnstageVolume", self.volume.staging.display());
            self.ended.add(counters);
        }
        Ok(())
    }

    /// Up to now, the staging that is there included.
    fn traffic(&self) -> Paths {
        let mut traffic = self.ended;
        if self.staged {
            traffic.add(self.plugin.connector.stats());
        }
        traffic
    }

    fn print_traffic(&self) {
        let traffic = self.traffic();
        let Paths { channel, https } = traffic;
        println!(
            "\nHTTPS:   {:>5} requests {:>12} bytes",
            https.requests, https.bytes
        );
        println!(
            "channel: {:>5} requests {:>12} bytes",
            channel.requests, channel.bytes
        );
        println!(
            "{} bytes over the channel, {} errors",
            channel.bytes,
            traffic.errors()
        );
    }

    /// Undoes everything, whatever state it is in.
    async fn clean_up(&mut self) -> Result<()> {
        let unpublished = self.unpublish().await;
        let deleted = if self.volume.id.is_empty() {
            Ok(())
        } else {
            let deleted = self
                .controller
                .controller
                .delete_volume(self.volume.delete())
                .await;
            said("Controller.DeleteVolume", &self.volume.id);
            deleted.map(drop)
        };
        self.stop.cancel();
        let left = self.plugin.mounts.shut_down().await;
        unpublished?;
        deleted?;
        ensure!(
            left == 0,
            "{left} mounts are left below {}",
            self.folder.path().display()
        );
        Ok(())
    }
}

fn endpoint(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

/// Serves in the background until `stop`.
fn serve(socket: &Path, routes: Routes, metrics: &Metrics, stop: &CancellationToken) -> Result<()> {
    let (socket, stop) = (socket.to_owned(), stop.clone().cancelled_owned());
    let rpcs = metrics.rpcs().clone();
    let (socket, incoming) = Socket::bind(&socket)?;
    tokio::spawn(async move {
        if let Err(error) = server::serve(&socket, incoming, routes, rpcs, stop).await {
            eprintln!("{error:#}");
        }
    });
    Ok(())
}

fn said(call: &str, answer: impl std::fmt::Display) {
    println!("{call:<38} {answer}");
}

const SEED: u64 = 2026;
const PIECE: usize = 1 << 20;

/// Writes bytes that can be made again, and waits until they are durable.
fn write_random(path: &Path, size: u64) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let mut random = SmallRng::seed_from_u64(SEED);
    let mut piece = vec![0; PIECE];
    let mut left = size;
    while left > 0 {
        let now = left.min(PIECE as u64) as usize;
        random.fill_bytes(&mut piece);
        file.write_all(&piece[..now])?;
        left -= now as u64;
    }
    file.sync_all().context("fsync")?;
    Ok(())
}

/// Reads them again and compares.
fn compare_random(path: &Path, size: u64) -> Result<()> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut random = SmallRng::seed_from_u64(SEED);
    let (mut expected, mut piece) = (vec![0; PIECE], vec![0; PIECE]);
    let mut offset = 0;
    while offset < size {
        let now = (size - offset).min(PIECE as u64) as usize;
        random.fill_bytes(&mut expected);
        file.read_exact(&mut piece[..now])
            .with_context(|| format!("reading at {offset}"))?;
        if piece[..now] != expected[..now] {
            bail!("{} differs in the MiB at {offset}", path.display());
        }
        offset += now as u64;
    }
    ensure!(
        file.read(&mut piece)? == 0,
        "{} is longer than what was written",
        path.display()
    );
    Ok(())
}
