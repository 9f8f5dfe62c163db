//! `cluster-prepare`: what the chart runs before it is upgraded.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use crate::cluster::{Config, KubeCluster, Preparation, Prepared, Rate};

/// Options of `cluster-prepare`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Runs in the cluster (the chart's pre-upgrade hook) and may be repeated. volumeLifecycleModes of a CSIDriver \
object cannot be changed: an object with other modes is deleted, and helm makes it anew. Mounted volumes are \
not touched.")]
pub struct PreparationArgs {
    /// volumeLifecycleModes of the CSIDriver object after the upgrade.
    #[arg(
        long,
        value_name = "MODE[,MODE]",
        value_enum,
        value_delimiter = ',',
        required = true
    )]
    pub volume_lifecycle_modes: Vec<LifecycleMode>,
    /// How long to try, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
}

/// As what a volume can be mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LifecycleMode {
    /// By a claim.
    #[value(name = "Persistent")]
    Persistent,
    /// Inline, out of a pod.
    #[value(name = "Ephemeral")]
    Ephemeral,
}

impl LifecycleMode {
    /// The word of the API.
    fn name(self) -> String {
        match self {
            Self::Persistent => "Persistent",
            Self::Ephemeral => "Ephemeral",
        }
        .to_owned()
    }
}

/// Does it.
pub async fn run(args: PreparationArgs) -> anyhow::Result<ExitCode> {
    let config = Config::incluster().context("this command runs in a pod, with a service account")?;
    let cluster = KubeCluster::new(config, crate::DRIVER_NAME, "")?.with_rate(Rate::CLEANUP);
    let modes = args.volume_lifecycle_modes.into_iter();
    let preparation = Preparation {
        driver: crate::DRIVER_NAME.to_owned(),
        modes: modes.map(LifecycleMode::name).collect(),
        patience: Duration::from_secs(args.timeout),
    };
    match preparation.run(&cluster).await? {
        Prepared::Absent => tracing::info!("there is no CSIDriver object"),
        Prepared::Kept => tracing::info!("the CSIDriver object can be changed as it is to be"),
        Prepared::Deleted => {
            tracing::info!("deleted the CSIDriver object, whose volumeLifecycleModes are to be others");
        }
    }
    Ok(ExitCode::SUCCESS)
}
