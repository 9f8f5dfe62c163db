//! `driver load|status|unload`: the kernel module behind the channel.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use serde::Serialize;
use vsc_driver::loader::{Loader, LoaderConfig, Unloaded};

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
    /// Put the device into service, if the host offers it: with the kernel's own module, a prebuilt or a built one.
    #[command(
        after_help = "That no module could be loaded is no error: volumes then use HTTPS, and the exit code is 0. It is 1 only \
                      when the loader itself cannot work."
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
    /// Where this process sees the file system of the machine (in a container with it mounted at /host: /host). Its own
    /// modprobe, kernel headers and compiler are used.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub host_root: PathBuf,
    /// Build the module from the sources in this folder, with the machine's own headers and compiler, when nothing
    /// else serves the device. Not done without this option.
    #[arg(long, value_name = "DIR")]
    pub build: Option<PathBuf>,
    /// Do nothing: volumes use HTTPS, or a node that is there already.
    #[arg(long, env = "VSC_BLOB_CSI_DRIVER_OFF")]
    pub off: bool,
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
            Ok(match done {
                Unloaded::Done { .. } | Unloaded::NotLoaded => ExitCode::SUCCESS,
                Unloaded::NotOurs { .. } | Unloaded::InUse { .. } | Unloaded::Refused { .. } => {
                    ExitCode::FAILURE
                }
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
    let report = Loader::new(LoaderConfig {
        host_root: args.host_root.clone(),
        source: args.build.clone(),
        ..args.common.config()
    })
    .load()?;
    say(args.common.json, &report, &report)?;
    Ok(ExitCode::SUCCESS)
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
