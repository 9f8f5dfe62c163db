//! `cluster-cleanup`: what the chart runs before it is uninstalled.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use crate::cluster::{Cleanup, Config, KubeCluster, Rate};

/// Options of `cluster-cleanup`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Runs in the cluster (the chart's pre-delete hook) and may be repeated. Volumes that pods still use stay \
mounted and are not served any more: delete those pods first.")]
pub struct CleanupArgs {
    /// Namespace of the driver.
    #[arg(long, value_name = "NAME")]
    pub namespace: String,
    /// The node plugins' DaemonSet, which is deleted.
    #[arg(long, value_name = "NAME")]
    pub daemon_set: String,
    /// How long to wait, in seconds, for the end of the node plugins; longer than the grace period of their
    /// pods. The nodes are cleaned in any case.
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
}

/// Does it.
pub async fn run(args: CleanupArgs) -> anyhow::Result<ExitCode> {
    let config = Config::incluster().context("this command runs in a pod, with a service account")?;
    let cluster = KubeCluster::new(config, crate::DRIVER_NAME, "")?.with_rate(Rate::CLEANUP);
    let cleanup = Cleanup {
        namespace: args.namespace,
        daemon_set: args.daemon_set,
        patience: Duration::from_secs(args.timeout),
    };
    let cleaned = cleanup.run(&cluster).await?;
    if !cleaned.ended {
        tracing::warn!(
            daemon_set = cleanup.daemon_set,
            "not all node plugins have ended within --timeout; is a node down?"
        );
    }
    tracing::info!(nodes = ?cleaned.nodes, "took the driver's marks off the nodes that still had them");
    Ok(ExitCode::SUCCESS)
}
