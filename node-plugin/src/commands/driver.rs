//! `driver load|status|unload`: the kernel module behind the channel.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use tracing::warn;
use vsc_driver::loader::{Loader, LoaderConfig, LoaderError, Report, Rung};

use super::DeviceArgs;

/// Options of `driver`.
#[derive(Debug, Clone, Args)]
pub struct DriverArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// See each action.
#[derive(Debug, Clone, Subcommand)]
pub enum Action {
    /// Put the device into service, if the host offers it: with the kernel's own module, a prebuilt or a
    /// built one.
    #[command(
        after_help = "The exit code is 0 whatever comes of it, for volumes use HTTPS where there is no \
                      channel, and a pod must start without it: the outcome is told in words, or in JSON \
                      with --json. With --strict the exit code is 1 when the host offers the device and it \
                      could not be put into service. Wrong options: 2."
    )]
    Load(LoadArgs),
    /// Say what is there: device, driver, node, modules, and what keeps the kernel from taking one.
    Status(CommonArgs),
    /// Unload the module that `load` has loaded. Never one that is in use.
    #[command(after_help = "The exit code is 1 when a module stays loaded.")]
    Unload(CommonArgs),
}

/// Options of all actions.
#[derive(Debug, Clone, Args)]
pub struct CommonArgs {
    /// Print one JSON object instead of sentences.
    #[arg(long)]
    pub json: bool,
    /// See [`DeviceArgs`].
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Folder of prebuilt modules: RELEASE/azb_vsc.ko and its manifest RELEASE/azb_vsc.json.
    #[arg(long, value_name = "DIR", default_value = "/usr/lib/vsc-blob-csi/modules")]
    pub prebuilt: PathBuf,
    /// Folder of the loader's lock and state; must be one that a restart of the machine empties.
    #[arg(long, value_name = "DIR", default_value = "/run/vsc-blob-csi")]
    pub state: PathBuf,
}

/// Options of `driver load`.
#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// See [`CommonArgs`].
    #[command(flatten)]
    pub common: CommonArgs,
    /// Where this process sees the file system of the machine (in a container with it mounted at /host:
    /// /host). Its own modprobe, kernel headers and compiler are used.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub host_root: PathBuf,
    /// Build the module from the sources in this folder, with the machine's own headers and compiler, when
    /// nothing else serves the device. Not done without this option.
    #[arg(long, value_name = "DIR")]
    pub build: Option<PathBuf>,
    /// Leave out a way to get a module; may be given several times.
    #[arg(
        long,
        value_name = "WAY",
        value_enum,
        value_delimiter = ',',
        env = "VSC_BLOB_CSI_DRIVER_SKIP"
    )]
    pub skip: Vec<Skip>,
    /// Exit with 1 when the host offers the device and it could not be put into service, or the loader could
    /// not work.
    #[arg(long)]
    pub strict: bool,
    /// Do nothing: volumes use HTTPS, or a node that is there already.
    #[arg(long, env = "VSC_BLOB_CSI_DRIVER_OFF")]
    pub off: bool,
}

/// A way to get a module that can be left out (a build is left out unless it is asked for).
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Skip {
    /// The module that the machine's kernel ships.
    InBox,
    /// A prebuilt module.
    Prebuilt,
}

impl From<Skip> for Rung {
    fn from(skip: Skip) -> Self {
        match skip {
            Skip::InBox => Self::InBox,
            Skip::Prebuilt => Self::Prebuilt,
        }
    }
}

impl CommonArgs {
    fn config(&self) -> LoaderConfig {
        LoaderConfig {
            device: self.device.device.clone(),
            prebuilt: self.prebuilt.clone(),
            state: self.state.clone(),
            ..LoaderConfig::default()
        }
    }
}

/// Does it.
pub fn run(args: &DriverArgs) -> Result<ExitCode> {
    match &args.action {
        Action::Load(args) => load(args),
        Action::Status(args) => {
            let status = Loader::new(args.config()).status()?;
            say(args.json, &status, &status)?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Unload(args) => {
            let done = Loader::new(args.config()).unload()?;
            say(args.json, &done, &done)?;
            Ok(if done.is_good() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
    }
}

fn load(args: &LoadArgs) -> Result<ExitCode> {
    if args.off {
        let off = serde_json::json!({"outcome": {"result": "off"}});
        say(
            args.common.json,
            &off,
            &"switched off: no module is loaded (--off or VSC_BLOB_CSI_DRIVER_OFF)",
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    let loader = Loader::new(LoaderConfig {
        host_root: args.host_root.clone(),
        source: args.build.clone(),
        skip: args.skip.iter().copied().map(Rung::from).collect(),
        ..args.common.config()
    });
    tell(loader.load(), args.common.json, args.strict)
}

/// Tells the outcome of a load, and whether the caller is to see a failure.
fn tell(outcome: Result<Report, LoaderError>, json: bool, strict: bool) -> Result<ExitCode> {
    let good = match outcome {
        Ok(report) => {
            say(json, &report, &report)?;
            report.is_good()
        }
        // The node plugin waits for this command to succeed; HTTPS needs nothing of what it could not do.
        Err(error) => {
            warn!(%error, "the loader could not work");
            let failed = serde_json::json!({"outcome": {"result": "failed", "reason": error.to_string()}});
            say(
                json,
                &failed,
                &format!("failed: {error}; nothing was loaded, so volumes use HTTPS"),
            )?;
            false
        }
    };
    Ok(if good || !strict {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Prints for a machine or for people.
fn say(json: bool, machine: &impl Serialize, people: &impl std::fmt::Display) -> Result<()> {
    use std::io::Write as _;
    let text = if json {
        serde_json::to_string(machine).context("writing JSON")?
    } else {
        people.to_string()
    };
    writeln!(std::io::stdout(), "{text}").context("standard output")
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::time::Duration;

    use super::*;

    /// A machine that is offered the device, and a loader on it.
    fn offered() -> (tempfile::TempDir, LoaderConfig) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("proc/sys/kernel/osrelease", "6.8.0-test\n".to_owned()),
            ("proc/sys/kernel/random/boot_id", "boot-1\n".to_owned()),
            (
                "sys/bus/vmbus/devices/one/class_id",
                format!("{{{}}}\n", vsc_driver::loader::CLASS_ID),
            ),
        ] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let config = LoaderConfig {
            root: root.path().to_owned(),
            host_root: root.path().to_owned(),
            prebuilt: root.path().join("modules"),
            state: root.path().join("state"),
            lock_wait: Duration::from_millis(50),
            ..LoaderConfig::default()
        };
        (root, config)
    }

    /// The exit codes without and with --strict.
    fn codes(config: &LoaderConfig) -> [ExitCode; 2] {
        [false, true].map(|strict| tell(Loader::new(config.clone()).load(), true, strict).unwrap())
    }

    const LENIENT: [ExitCode; 2] = [ExitCode::SUCCESS, ExitCode::FAILURE];

    #[test]
    fn no_module_is_no_failure() {
        let (_root, config) = offered();
        assert_eq!(codes(&config), LENIENT);
    }

    #[test]
    fn a_loader_that_hangs_elsewhere_keeps_no_pod_from_starting() {
        let (_root, config) = offered();
        fs::create_dir(&config.state).unwrap();
        let lock = File::create(config.state.join("driver.lock")).unwrap();
        lock.lock().unwrap();
        assert_eq!(codes(&config), LENIENT);
    }

    #[test]
    fn a_loader_that_cannot_work_keeps_no_pod_from_starting() {
        let (_root, config) = offered();
        fs::write(&config.state, "not a folder").unwrap();
        assert!(Loader::new(config.clone()).load().is_err());
        assert_eq!(codes(&config), LENIENT);
    }
}
