//! The commands of the program: arguments, and what each does from start to end.

pub mod cleanup;
pub mod controller;
mod credentials;
pub mod doctor;
pub mod driver;
pub mod mount;
pub mod node;
pub mod preparation;
pub mod size;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use blob_client::transport::failover::Paths;
use blob_fs::{Budget, Resources};
use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use vsc_driver::buffer::Arena;

use crate::cluster::{Cluster, Config, KubeCluster, Rate};
use crate::csi::lending::{AllowedHost, Lending};
use crate::telemetry::{self, LogFormat};
use size::ByteSize;

/// Mounts Azure Blob containers as file systems.
///
/// In Kubernetes, `node` runs on every node and `controller` once per cluster. `mount` needs no Kubernetes,
/// and `doctor` says what works on this machine and why requests take the path they take.
///
/// Requests travel over the host-accelerated channel (/dev/azure_blob) where the machine has it, and over
/// HTTPS everywhere else.
#[derive(Debug, Parser)]
#[command(name = "vsc-blob-csi", version = crate::BUILD, max_term_width = 100)]
pub struct Cli {
    /// Shape of the log on stderr; RUST_LOG sets what is logged (for instance RUST_LOG=debug).
    #[arg(long, global = true, value_enum, default_value_t)]
    pub log_format: LogFormat,
    /// Refuse to start unless TLS, signatures and digests come out of a FIPS module (a build with the feature
    /// fips).
    #[arg(long, global = true, env = "VSC_BLOB_CSI_REQUIRE_FIPS")]
    pub require_fips: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// See each command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the CSI Node service: mount volumes for the pods of this node.
    Node(node::NodeArgs),
    /// Serve the CSI Controller service: create and delete volumes.
    Controller(controller::ControllerArgs),
    /// Mount one container at a directory, without Kubernetes.
    Mount(mount::MountArgs),
    /// Say what works on this machine: the channel's device, FUSE, mounts, and why HTTPS is used.
    Doctor(doctor::DoctorArgs),
    /// Load, inspect or unload the kernel module behind the channel.
    Driver(driver::DriverArgs),
    /// Before an upgrade: delete the CSIDriver object when a field that cannot be changed is to be another
    /// one.
    ClusterPrepare(preparation::PreparationArgs),
    /// Before an uninstallation: end the node plugins and take the driver's label and annotation off all
    /// nodes.
    ClusterCleanup(cleanup::CleanupArgs),
}

impl Cli {
    /// Runs the command to its end.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        anyhow::ensure!(
            !self.require_fips || blob_client::crypto::is_fips(),
            "--require-fips (VSC_BLOB_CSI_REQUIRE_FIPS, fips in the chart): this program is built without a \
             FIPS module; use an image of `deploy/image --fips`"
        );
        // Before a secret is read.
        crate::privileges::keep_secrets()?;
        let mut privileges = crate::privileges::Findings::default();
        if let Command::Node(args) = &self.command {
            // Before the first thread starts.
            privileges = crate::privileges::give_up()?;
            if !args.no_seccomp {
                crate::seccomp::confine()
                    .context("this kernel takes no filter of system calls; --no-seccomp serves without")?;
            }
        }
        let (name, traces) = match &self.command {
            Command::Node(args) => ("node", Some(&args.traces)),
            Command::Controller(args) => ("controller", Some(&args.traces)),
            _ => ("", None),
        };
        // Sends them to the end of the command.
        let _exporter = telemetry::start(self.log_format, name, traces)?;
        privileges.tell();
        match self.command {
            Command::Node(args) => {
                if args.no_seccomp {
                    tracing::warn!("--no-seccomp: every system call is allowed");
                }
                runtime()?.block_on(async { node::run(args, terminated()?).await })
            }
            Command::Controller(args) => {
                runtime()?.block_on(async { controller::run(args, terminated()?).await })
            }
            Command::Mount(args) => runtime()?.block_on(mount::run(args)),
            Command::Doctor(args) => runtime()?.block_on(doctor::run(args)),
            Command::Driver(args) => driver::run(&args),
            Command::ClusterPrepare(args) => runtime()?.block_on(preparation::run(args)),
            Command::ClusterCleanup(args) => runtime()?.block_on(cleanup::run(args)),
        }
    }
}

/// The channel.
#[derive(Debug, Clone, Args)]
pub struct DeviceArgs {
    /// Device node of the accelerated channel. A machine without it uses HTTPS.
    #[arg(long, value_name = "PATH", default_value = crate::DEVICE)]
    pub device: PathBuf,
}

/// The cluster.
#[derive(Debug, Clone, Default, Args)]
pub struct KubernetesArgs {
    /// Speak to the API server (node label, Events, startup taint, secretName): auto = where the program runs
    /// in a cluster, with its service account; off = never. Volumes are served in both cases.
    #[arg(long, value_enum, value_name = "auto|off", default_value_t)]
    pub kubernetes: KubernetesMode,
    /// Requests a second to the API server, on the average [default: 5; the controller's 20].
    #[arg(long, value_name = "N", value_parser = per_second)]
    pub kube_api_qps: Option<f64>,
    /// Requests to the API server at once, after a quiet time [default: 10; the controller's 40].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub kube_api_burst: Option<u32>,
}

fn per_second(text: &str) -> Result<f64, String> {
    let rate = text
        .parse()
        .ok()
        .filter(|rate: &f64| (0.01..=10_000.0).contains(rate));
    rate.ok_or_else(|| "a number from 0.01 to 10000".to_owned())
}

/// See [`KubernetesArgs`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum KubernetesMode {
    /// Where the environment has an in-cluster configuration.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// Kubernetes sets it in every container.
const IN_CLUSTER: &str = "KUBERNETES_SERVICE_HOST";

impl KubernetesArgs {
    /// The API server, when there is one to speak to; asked at the `usual` rate where the options say no
    /// other. Call it inside the runtime.
    pub fn connect(&self, driver: &str, node: &str, usual: Rate) -> Option<Arc<dyn Cluster>> {
        let rate = Rate {
            per_second: self.kube_api_qps.unwrap_or(usual.per_second),
            burst: self.kube_api_burst.unwrap_or(usual.burst),
        };
        if self.kubernetes == KubernetesMode::Off {
            return None;
        }
        if std::env::var_os(IN_CLUSTER).is_none() {
            tracing::info!("not in a Kubernetes cluster: no node label, no Events, no secretName");
            return None;
        }
        let config = Config::incluster().map_err(anyhow::Error::from);
        match config.and_then(|config| KubeCluster::new(config, driver, node)) {
            Ok(cluster) => Some(Arc::new(cluster.with_rate(rate))),
            Err(error) => {
                tracing::warn!(
                    "in a Kubernetes cluster, but without access to it: {error:#}; no node label, no \
                     Events, no secretName"
                );
                None
            }
        }
    }
}

/// To whom identities are lent.
#[derive(Debug, Clone, Default, Args)]
pub struct LendingArgs {
    /// Hosts that may get tokens of the machine's managed identity and of the driver's workload identity,
    /// beside the storage accounts and login hosts of Azure's clouds: names, addresses, or *.DOMAIN for all
    /// hosts below a domain. Volumes with a key, a SAS, a service principal or the pod's own token need none.
    #[arg(long, value_name = "HOST[,HOST...]", value_delimiter = ',')]
    pub allowed_endpoints: Vec<AllowedHost>,
}

impl LendingArgs {
    /// The rule.
    pub fn lending(&self) -> Lending {
        Lending::new(&self.allowed_endpoints)
    }
}

/// Memory.
#[derive(Debug, Clone, Args)]
pub struct BudgetArgs {
    /// Memory for data, metadata and unwritten changes of all mounts together, for instance 512MiB or 2GiB.
    #[arg(long, value_name = "BYTES", default_value = "512MiB")]
    pub budget: ByteSize,
}

impl BudgetArgs {
    /// What all mounts of the process share.
    pub fn resources(&self) -> anyhow::Result<Resources> {
        // Address space, not memory: twice the budget, so that a fragmented arena does not refuse what the
        // budget allows.
        let span = self.budget.0.saturating_mul(2).saturating_add(256 << 20);
        let arena =
            Arena::new(span).with_context(|| format!("--budget: reserving {span} bytes of address space"))?;
        let budget = Budget::new(self.budget.0);
        Ok(Resources {
            budget,
            arena,
            runtime: tokio::runtime::Handle::current(),
        })
    }
}

impl DeviceArgs {
    /// The paths of requests: channel and HTTPS.
    pub fn paths(&self, resources: &Resources) -> Arc<Paths> {
        Paths::within(
            Some(self.device.clone()),
            resources.arena.clone(),
            resources.runtime.clone(),
            resources.budget.most_at_a_device(),
        )
    }
}

/// How long the first look at the device may take before a command goes on without an answer.
const FIRST_LOOK: Duration = Duration::from_secs(5);

/// Waits for the first look at the device, so that the first request knows whether there is a channel. The
/// client tells in the log what it found.
async fn first_look(paths: &Paths) {
    // Late or not: requests go over HTTPS until the device has answered.
    let _ = tokio::time::timeout(FIRST_LOOK, paths.settled()).await;
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")
}

/// Done at the first SIGTERM or SIGINT.
fn terminated() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let mut term = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_rate_of_nothing_is_refused() {
        for refused in ["0", "-1", "nan", "inf", "x", ""] {
            assert!(per_second(refused).is_err(), "{refused}");
        }
        assert_eq!(per_second("0.5"), Ok(0.5));
    }

    /// A command line is world-readable: nothing on it may carry a secret.
    #[test]
    fn no_option_takes_a_secret() {
        for command in Cli::command().get_subcommands() {
            for option in command.get_arguments() {
                let name = option.get_id().as_str().to_lowercase();
                let secret = ["key", "sas", "token", "secret", "password"]
                    .iter()
                    .any(|word| name.contains(word));
                assert!(!secret, "{}: --{name}", command.get_name());
            }
        }
    }

    /// A stranger must be able to use it: every command and option says what it is.
    #[test]
    fn everything_is_explained() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for option in command.get_arguments() {
                assert!(
                    option.get_help().is_some(),
                    "{} {}",
                    command.get_name(),
                    option.get_id()
                );
            }
        }
    }
}
