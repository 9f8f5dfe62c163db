//! `controller`: the CSI Controller and Identity services of the cluster.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use csi_proto::csi::controller_server::ControllerServer;
use csi_proto::csi::identity_server::IdentityServer;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use vsc_driver::buffer::Arena;

use super::{DeviceArgs, KubernetesArgs, LendingArgs};
use crate::cluster::Rate;
use crate::csi::connect::Connector;
use crate::csi::controller::ControllerService;
use crate::csi::identity::{IdentityService, in_place};
use crate::grpc::server;
use crate::socket::Socket;
use crate::telemetry::health::HealthArgs;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::TracesArgs;

/// Address space for the few small buffers of a controller.
const ARENA: usize = 64 << 20;

/// Options of `controller`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Runs beside external-provisioner (started with --extra-create-metadata, so that ${pvc.metadata.name} is \
known). Credentials come with each call from the Secret named in the StorageClass \
(csi.storage.k8s.io/provisioner-secret-name); none are given here, and no Azure Resource Manager rights are \
needed.")]
pub struct ControllerArgs {
    /// Unix socket of the CSI services.
    #[arg(long, value_name = "unix:///PATH", default_value = "unix:///csi/csi.sock")]
    pub endpoint: String,
    /// Name of the node it runs on, for the log.
    #[arg(long, value_name = "NAME", env = "NODE_ID", default_value = "")]
    pub node_id: String,
    /// Name of the CSI driver.
    #[arg(long, value_name = "NAME", default_value = crate::DRIVER_NAME)]
    pub driver_name: String,
    /// See [`DeviceArgs`].
    #[command(flatten)]
    pub device: DeviceArgs,
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

/// The gRPC services of a controller, and what it counts. Call it inside the runtime.
pub fn routes(args: &ControllerArgs) -> anyhow::Result<(Routes, Metrics)> {
    let arena = Arena::new(ARENA)?;
    let runtime = tokio::runtime::Handle::current();
    let paths = blob_client::transport::failover::Paths::new(
        Some(args.device.device.clone()),
        arena.clone(),
        runtime,
    );
    let metrics = Metrics::new(paths.clone(), None);
    let connector = Connector::new(paths, arena).with_lending(args.lending.lending());
    let mut service = ControllerService::new(connector);
    if let Some(cluster) = args
        .kubernetes
        .connect(&args.driver_name, &args.node_id, Rate::CONTROLLER)
    {
        service = service.in_cluster(cluster);
    }
    // Nothing of the machine is needed but the network, which every call needs anew: no checks.
    let identity = IdentityService::new(&args.driver_name, Vec::new());
    let routes = Routes::new(IdentityServer::new(identity)).add_service(ControllerServer::new(service));
    Ok((routes, metrics))
}

/// Serves until `stop` is done, finishing the calls at work.
pub async fn run(args: ControllerArgs, stop: impl Future<Output = ()>) -> anyhow::Result<ExitCode> {
    let socket = server::socket_path(&args.endpoint)?;
    let (socket, incoming) = Socket::bind(&socket)?;
    tracing::info!(
        node = args.node_id, socket = %socket.path().display(), version = crate::VERSION,
        "serving the controller"
    );
    let (routes, metrics) = routes(&args)?;
    let stopping = CancellationToken::new();
    let _health = args
        .health
        .start(
            socket.path().to_owned(),
            vec![in_place(Arc::clone(&socket))],
            metrics.clone(),
            stopping.clone(),
        )
        .await?;
    let stop = async {
        stop.await;
        stopping.cancel();
    };
    server::serve(&socket, incoming, routes, metrics.rpcs().clone(), stop).await?;
    Ok(ExitCode::SUCCESS)
}
