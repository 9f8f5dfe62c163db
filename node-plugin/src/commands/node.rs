//! `node`: the CSI Node and Identity services of one node.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use blob_client::transport::failover::ChannelState;
use blob_fs::Budget;
use blob_fs::budget::MOUNT_SHARE;
use clap::Args;
use csi_proto::csi::identity_server::IdentityServer;
use csi_proto::csi::node_server::NodeServer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::size::ByteSize;
use super::{BudgetArgs, DeviceArgs, KubernetesArgs, LendingArgs};
use crate::cluster::{Claims, Link, Membership, Rate, Reporter, Unsaved, VolumeAt};
use crate::csi::connect::Connector;
use crate::csi::identity::{Check, IdentityService, in_place};
use crate::csi::node::{NodeService, unstored};
use crate::csi::registration::RegistrationService;
use crate::grpc::server;
use crate::instance::Instance;
use crate::mounts::calls::Patience;
use crate::mounts::holdings::CountInterval;
use crate::mounts::{Kernel, Mounts, check_kernel};
use crate::socket::Socket;
use crate::telemetry::health::HealthArgs;
use crate::telemetry::metrics::{Metrics, NodeParts};
use crate::telemetry::operations::Operations;
use crate::telemetry::traces::TracesArgs;
use crate::telemetry::volumes::Volumes;

/// Options of `node`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Runs as root, with /dev/fuse and with the kubelet directory mounted Bidirectional. Credentials of volumes \
come with each call from Secrets; none are given here.

At SIGTERM the node plugin finishes calls, commits all changes and unmounts volumes that no pod uses. \
Volumes in use stay mounted but are not served any more: their containers get errors (ENOTCONN) until they \
are restarted. The next node process mounts such volumes anew at its start.")]
pub struct NodeArgs {
    /// Unix socket of the CSI services.
    #[arg(long, value_name = "unix:///PATH", default_value = "unix:///csi/csi.sock")]
    pub endpoint: String,
    /// Name of this node in the cluster (spec.nodeName).
    #[arg(long, value_name = "NAME", env = "NODE_ID")]
    pub node_id: String,
    /// Folder in which the driver remembers its mounts across restarts; no secrets are written.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/kubelet/plugins/vsc-blob.csi.azure.com/state"
    )]
    pub state_dir: PathBuf,
    /// How long to wait at the start for another node process of the same --state-dir to end: as long as it
    /// may take for its end. Only one at a time serves a node. From 1s to 1h.
    #[arg(long, value_name = "TIME", default_value = "2m")]
    pub predecessor_timeout: blob_client::Patience,
    /// Register with kubelet through this folder, normally /var/lib/kubelet/plugins_registry. Without it
    /// another program (node-driver-registrar) has to.
    #[arg(long, value_name = "DIR")]
    pub registration_dir: Option<PathBuf>,
    /// The CSI socket's path as kubelet sees it, when it differs from --endpoint (a container's mount).
    #[arg(long, value_name = "PATH", requires = "registration_dir")]
    pub kubelet_socket: Option<PathBuf>,
    /// Name of the CSI driver.
    #[arg(long, value_name = "NAME", default_value = crate::DRIVER_NAME)]
    pub driver_name: String,
    /// See [`DeviceArgs`].
    #[command(flatten)]
    pub device: DeviceArgs,
    /// See [`BudgetArgs`].
    #[command(flatten)]
    pub budget: BudgetArgs,
    /// Volumes that this node serves at most, and tells the scheduler. A budget serves one for each 4 MiB
    /// [default: as many as --budget serves].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_volumes: Option<u32>,
    /// How often the used space of a volume is counted at most, for `NodeGetVolumeStats`: from 1m to 7d, or
    /// off. A count lists the volume's blobs, one request for each 5,000 of them and 20 at most.
    #[arg(long, value_name = "TIME|off", default_value_t)]
    pub count_interval: CountInterval,
    /// Volumes that /metrics names by their ids, at most; what others do is summed up as "other". 0 names
    /// none.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub metrics_volumes: usize,
    /// Allow every system call. Without it those that serving mounts does not need fail; for machines where
    /// one is missed, which is a bug to report.
    #[arg(long)]
    pub no_seccomp: bool,
    /// See [`LendingArgs`].
    #[command(flatten)]
    pub lending: LendingArgs,
    /// See [`HealthArgs`].
    #[command(flatten)]
    pub health: HealthArgs,
    /// See [`TracesArgs`].
    #[command(flatten)]
    pub traces: TracesArgs,
    /// See [`KubernetesArgs`].
    #[command(flatten)]
    pub kubernetes: KubernetesArgs,
}

impl NodeArgs {
    /// The limit of volumes.
    fn limit(&self, budget: &Budget) -> anyhow::Result<usize> {
        let served = budget.mounts();
        match self.max_volumes.map(|max| max as usize) {
            Some(max) if max > served => bail!(
                "--max-volumes: {max} volumes need --budget {} at least; with {} it can be {served}",
                ByteSize(max.saturating_mul(MOUNT_SHARE)),
                ByteSize(budget.total()),
            ),
            max => Ok(max.unwrap_or(served)),
        }
    }
}

/// The parts of a node plugin, for the command and for programs that run it in process.
#[derive(Debug, Clone)]
pub struct NodePlugin {
    /// Its mounts.
    pub mounts: Arc<Mounts>,
    /// Its connections; [`Connector::stats`] counts per volume and path.
    pub connector: Connector,
    /// What it counts.
    pub metrics: Metrics,
    identity: IdentityService,
    service: NodeService,
    link: Option<Link>,
}

impl NodePlugin {
    /// Sets everything up; nothing is served yet. Call it inside the runtime.
    pub fn open(args: &NodeArgs) -> anyhow::Result<Self> {
        let resources = args.budget.resources()?;
        let budget = Arc::clone(&resources.budget);
        let connector = Connector::new(args.device.paths(&resources), resources.arena.clone())
            .with_lending(args.lending.lending());
        let operations = Arc::new(Operations::default());
        let volumes = Volumes::new(args.metrics_volumes, Arc::clone(&operations));
        let mounts = Mounts::new(Arc::new(Kernel), resources, &args.state_dir, Patience::default())
            .with_context(|| format!("--state-dir {}", args.state_dir.display()))?
            .with_limit(args.limit(&budget)?)
            .with_counts(args.count_interval)
            .with_observers(volumes.clone());
        let mounts = Arc::new(mounts);
        let identity = IdentityService::new(
            &args.driver_name,
            vec![fuse_check(), kernel_check(), state_check(mounts.clone())],
        );
        let metrics = Metrics::new(
            connector.paths().clone(),
            Some(NodeParts {
                mounts: mounts.clone(),
                operations,
                volumes,
                budget,
                accounts: connector.accounts().clone(),
            }),
        );
        let device = Some(args.device.device.clone());
        let mut service = NodeService::new(&args.node_id, mounts.clone(), connector.clone(), device);
        let (driver, node) = (&args.driver_name, &args.node_id);
        let cluster = args.kubernetes.connect(driver, node, Rate::NODE);
        let link = cluster.map(|cluster| Link {
            claims: Arc::new(Claims::new(cluster.clone(), driver, node)),
            cluster,
            driver: args.driver_name.clone(),
            node: args.node_id.clone(),
            reporter: Reporter::default(),
        });
        if let Some(link) = &link {
            service = service.in_cluster(link.clone());
        }
        Ok(Self {
            mounts,
            connector,
            metrics,
            identity,
            service,
            link,
        })
    }

    /// The gRPC services.
    pub fn routes(&self) -> Routes {
        Routes::new(IdentityServer::new(self.identity.clone()))
            .add_service(NodeServer::new(self.service.clone()))
    }

    /// Keeps the node's label, annotation and taint and sends Events until `stop`; does nothing outside a
    /// cluster.
    async fn keep_membership(&self, stop: CancellationToken) {
        let Some(link) = self.link.clone() else { return };
        let paths = self.connector.paths();
        // What is known before the first look is neither a label nor a change.
        super::first_look(paths).await;
        let channel = paths.watch_channel().unwrap_or_else(|| {
            let state = ChannelState {
                unusable: paths.channel_unusable(),
                changes: 0,
            };
            watch::channel(state).1
        });
        let (identity, owing) = (self.identity.clone(), self.mounts.clone());
        let membership = Membership {
            cluster: link.cluster,
            node: link.node,
            driver: link.driver,
            claims: link.claims,
            channel,
            ready: Arc::new(move || {
                let identity = identity.clone();
                Box::pin(async move { identity.ready().await.map_err(|error| error.message) })
            }),
            unstored: Arc::new(move || volumes_unstored(&owing)),
        };
        membership.keep(link.reporter, stop).await;
    }
}

/// The volumes of this node, with what the service has not taken of each.
fn volumes_unstored(mounts: &Mounts) -> Vec<(VolumeAt, Unsaved)> {
    let owing = mounts.all_owing().into_iter();
    let told = owing.filter_map(|(path, owing)| {
        let handle = mounts.record(&path)?.volume_id;
        let unsaved = Unsaved {
            message: unstored(&owing),
            lost: owing.given_up,
        };
        Some((VolumeAt { handle, path }, unsaved))
    });
    told.collect()
}

/// Serves until `stop` is done; then ends as the help says.
pub async fn run(
    args: NodeArgs,
    stop: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<ExitCode> {
    let socket = server::socket_path(&args.endpoint)?;
    let mut stop = Box::pin(stop);
    // Before anything is read or bound that a predecessor still uses. Held to the end of this function.
    let _instance = tokio::select! {
        instance = Instance::only(&args.state_dir, args.predecessor_timeout.whole()) => instance?,
        () = &mut stop => {
            tracing::info!("stopped before the other node process had ended");
            return Ok(ExitCode::SUCCESS);
        }
    };
    let plugin = NodePlugin::open(&args)?;
    let stopping = CancellationToken::new();
    tokio::spawn({
        let (stopping, mounts) = (stopping.clone(), plugin.mounts.clone());
        async move {
            stop.await;
            // Calls at work have their time out of the same two minutes.
            mounts.end_soon();
            stopping.cancel();
        }
    });
    plugin.mounts.forget_gone().await?;
    let (socket, incoming) = Socket::bind(&socket)?;
    let mut checks = vec![in_place(Arc::clone(&socket))];
    let registration = match &args.registration_dir {
        None => None,
        Some(registry) => {
            let seen = args.kubelet_socket.as_deref().unwrap_or(socket.path());
            let service = RegistrationService::new(&args.driver_name, seen);
            let (socket, incoming) = Socket::bind(&service.socket(registry))?;
            checks.push(service.check(Arc::clone(&socket)));
            Some((service, socket, incoming))
        }
    };
    let _health = args
        .health
        .start(
            socket.path().to_owned(),
            checks,
            plugin.metrics.clone(),
            stopping.clone(),
        )
        .await?;
    tracing::info!(
        node = args.node_id, socket = %socket.path().display(), version = crate::VERSION,
        "serving the node"
    );

    let csi = server::serve(
        &socket,
        incoming,
        plugin.routes(),
        plugin.metrics.rpcs().clone(),
        stopping.clone().cancelled_owned(),
    );
    let registration = async {
        let Some((service, socket, incoming)) = registration else {
            return Ok(());
        };
        server::serve_watcher(
            &socket,
            incoming,
            service.routes(),
            stopping.clone().cancelled_owned(),
        )
        .await
    };
    let membership = tokio::spawn({
        let (plugin, stopping) = (plugin.clone(), stopping.clone());
        async move { plugin.keep_membership(stopping).await }
    });
    tokio::spawn({
        let (service, stopping) = (plugin.service.clone(), stopping.clone());
        async move { service.heal_all(stopping).await }
    });
    tokio::try_join!(csi, registration)?;

    tracing::info!("stopped serving; unmounting what no pod uses");
    let (left, _) = tokio::join!(plugin.mounts.shut_down(), membership);
    if left > 0 {
        tracing::warn!(
            left,
            "volumes in use stay mounted; their pods get ENOTCONN until they are restarted"
        );
    }
    crate::folders::remove_empty(&args.state_dir, socket.path());
    Ok(ExitCode::SUCCESS)
}

fn fuse_check() -> Check {
    Arc::new(|| {
        let opened = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        opened.map(drop).map_err(|e| {
            format!(
                "/dev/fuse cannot be opened: {e} (is the module fuse loaded, and the container privileged?)"
            )
        })
    })
}

fn kernel_check() -> Check {
    Arc::new(check_kernel)
}

fn state_check(mounts: Arc<Mounts>) -> Check {
    Arc::new(move || {
        mounts
            .check_folder()
            .map_err(|e| format!("--state-dir cannot be written: {e}"))
    })
}
