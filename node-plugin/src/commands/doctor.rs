//! `doctor`: what works on this machine, and why requests take the path they take.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use vsc_driver::channel::{Abi, Channel, ChannelConfig, ChannelError};

use super::DeviceArgs;
use crate::mounts::bounded::bounded;
use crate::mounts::mounter::{Kernel, Mounter};
use crate::mounts::mountinfo;

/// Class of the VMBus device behind the channel (vsc-channel.md, loader).
const CLASS_ID: &str = "0590b792-db64-45cc-81db-b8d70c577c9e";
const VMBUS: &str = "/sys/bus/vmbus/devices";
/// How long a mount may take to answer before it counts as dead here.
const PATIENCE: Duration = Duration::from_secs(5);

/// Options of `doctor`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "The exit code is 0 when volumes can be mounted here, over whichever path; 1 when not."
)]
pub struct DoctorArgs {
    /// Print one JSON object instead of sentences.
    #[arg(long)]
    pub json: bool,
    /// See [`DeviceArgs`].
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Everything that was looked at.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Report {
    /// Version of the program.
    pub version: String,
    /// Path of requests: `channel` or `https`.
    pub transport: &'static str,
    /// Why HTTPS, in one sentence.
    pub why_https: Option<String>,
    /// The channel.
    pub channel: ChannelReport,
    /// FUSE.
    pub fuse: FuseReport,
    /// Mounts of this driver.
    pub mounts: Vec<MountReport>,
}

/// The channel's device.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct ChannelReport {
    /// Device node looked at.
    pub device: String,
    /// Does the host offer the device on VMBus? `None` when this is no Hyper-V guest.
    pub offered: Option<bool>,
    /// Is the device node there?
    pub present: bool,
    /// Command number the device answers to: `list` (0xC04852F0) or `ubuntu` (0xC048520A).
    pub abi: Option<&'static str>,
    /// Why it cannot be used.
    pub problem: Option<String>,
}

/// FUSE.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct FuseReport {
    /// `/dev/fuse` can be opened.
    pub usable: bool,
    /// Why not.
    pub problem: Option<String>,
    /// Stuck mounts can be aborted (`/sys/fs/fuse/connections` is mounted).
    pub abortable: bool,
    /// `max_pages_limit` of the kernel, in pages of 4 KiB.
    pub max_pages_limit: Option<u64>,
}

/// One mount.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct MountReport {
    /// Where.
    pub path: String,
    /// account/container
    pub source: String,
    /// Refuses writes.
    pub read_only: bool,
    /// Number of its FUSE connection.
    pub connection: u32,
    /// Why it is dead; `None` when it answers.
    pub problem: Option<String>,
}

/// Looks, tells, and answers whether volumes can be mounted.
pub async fn run(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let report = examine(&args.device.device).await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", sentences(&report));
    }
    Ok(if report.fuse.usable {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Looks at everything.
pub async fn examine(device: &Path) -> anyhow::Result<Report> {
    let channel = examine_channel(device);
    let mut mounts = Vec::new();
    for mount in mountinfo::read()?.into_iter().filter(mountinfo::Mount::is_ours) {
        let at = mount.at.clone();
        let answer = bounded("stat", PATIENCE, move || Kernel.answers(&at)).await;
        mounts.push(MountReport {
            path: mount.at.display().to_string(),
            read_only: mount.read_only(),
            connection: mount.minor,
            problem: match answer {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(error) => Some(error.to_string()),
            },
            source: mount.source,
        });
    }
    Ok(Report {
        version: crate::VERSION.to_owned(),
        transport: if channel.problem.is_none() {
            "channel"
        } else {
            "https"
        },
        why_https: channel.problem.clone(),
        channel,
        fuse: examine_fuse(),
        mounts,
    })
}

fn examine_channel(device: &Path) -> ChannelReport {
    let offered = offered(Path::new(VMBUS));
    let present = device.exists();
    let shown = device.display();
    let opened = present.then(|| {
        Channel::open(ChannelConfig {
            device: device.to_owned(),
            threads: 1,
            ..Default::default()
        })
    });
    let (abi, problem) = match opened {
        Some(Ok(channel)) => (Some(channel.abi()), None),
        Some(Err(ChannelError::Io { source, .. })) if source.kind() == io::ErrorKind::PermissionDenied => (
            None,
            Some(format!("{shown} may not be opened by this user; run as root")),
        ),
        Some(Err(error)) => (None, Some(error.to_string())),
        None => (None, Some(absent(device, offered))),
    };
    let abi = abi.map(|abi| match abi {
        Abi::List => "list",
        Abi::Ubuntu => "ubuntu",
    });
    ChannelReport {
        device: shown.to_string(),
        offered,
        present,
        abi,
        problem,
    }
}

fn absent(device: &Path, offered: Option<bool>) -> String {
    let shown = device.display();
    match offered {
        Some(true) => {
            format!("the host offers the device, but {shown} is not there: its kernel module is not loaded")
        }
        Some(false) => format!("the host does not offer the device to this machine ({shown} is not there)"),
        None => format!("this machine is no Hyper-V guest, so there is no channel ({shown} is not there)"),
    }
}

/// Is the channel's class among the devices of the bus?
fn offered(bus: &Path) -> Option<bool> {
    let devices = std::fs::read_dir(bus).ok()?;
    let class = |entry: io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(entry.ok()?.path().join("class_id")).ok()
    };
    Some(
        devices
            .filter_map(class)
            .any(|id| id.trim().trim_matches(['{', '}']).eq_ignore_ascii_case(CLASS_ID)),
    )
}

fn examine_fuse() -> FuseReport {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let limit = std::fs::read_to_string("/proc/sys/fs/fuse/max_pages_limit");
    FuseReport {
        problem: opened.as_ref().err().map(|error| match error.kind() {
            io::ErrorKind::NotFound => "/dev/fuse is not there; load the kernel module fuse".to_owned(),
            _ => format!("/dev/fuse cannot be opened: {error}"),
        }),
        usable: opened.is_ok(),
        abortable: mountinfo::read().is_ok_and(|all| all.iter().any(|m| m.fs_type == "fusectl")),
        max_pages_limit: limit.ok().and_then(|text| text.trim().parse().ok()),
    }
}

/// The report in plain words.
fn sentences(report: &Report) -> String {
    let mut lines = vec![format!("vsc-blob-csi {}", report.version)];
    match &report.why_https {
        None => lines.push("Requests: over the accelerated channel.".into()),
        Some(why) => lines.push(format!("Requests: over HTTPS, because {why}.")),
    }
    let channel = &report.channel;
    let answer = |yes: Option<bool>| match yes {
        Some(true) => "yes",
        Some(false) => "no",
        None => "no Hyper-V bus here",
    };
    lines.push(format!(
        "Channel: offered by the host: {}; device {}: {}; ABI: {}.",
        answer(channel.offered),
        channel.device,
        if channel.present { "present" } else { "not there" },
        channel.abi.unwrap_or("not known")
    ));
    let fuse = &report.fuse;
    match &fuse.problem {
        None => lines.push("FUSE: usable.".into()),
        Some(problem) => lines.push(format!("FUSE: not usable: {problem}.")),
    }
    if let Some(pages) = fuse.max_pages_limit {
        lines.push(format!(
            "FUSE: one request carries at most {} KiB (fs.fuse.max_pages_limit).",
            pages * 4
        ));
    }
    if !fuse.abortable {
        lines.push("FUSE: /sys/fs/fuse/connections is not mounted; the node plugin mounts it when it has to abort a stuck mount.".into());
    }
    if report.mounts.is_empty() {
        lines.push("Mounts: none of this driver.".into());
    }
    for mount in &report.mounts {
        let state = match &mount.problem {
            None => "answers".to_owned(),
            Some(problem) => format!("DEAD: {problem}; free it with `umount -l {}`", mount.path),
        };
        let access = if mount.read_only {
            "read-only"
        } else {
            "read-write"
        };
        lines.push(format!(
            "Mount: {} at {} ({access}, connection {}): {state}.",
            mount.source, mount.path, mount.connection
        ));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_machine_without_the_device_says_why_https() {
        let report = examine(Path::new("/nonexistent/azure_blob")).await.unwrap();
        assert_eq!(report.transport, "https");
        assert!(
            report
                .why_https
                .as_ref()
                .unwrap()
                .contains("/nonexistent/azure_blob")
        );
        let text = sentences(&report);
        assert!(
            text.contains("over HTTPS, because") && text.contains("not there"),
            "{text}"
        );
        serde_json::to_string(&report).unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_no_device_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let report = examine(file.path()).await.unwrap();
        assert!(report.channel.present && report.channel.abi.is_none());
        assert!(report.why_https.is_some());
    }

    #[test]
    fn the_bus_is_searched_by_class() {
        let bus = tempfile::tempdir().unwrap();
        assert_eq!(offered(&bus.path().join("none")), None);
        std::fs::create_dir(bus.path().join("a")).unwrap();
        std::fs::write(
            bus.path().join("a/class_id"),
            "{f8615163-df3e-46c5-913f-f2d2f965ed0e}\n",
        )
        .unwrap();
        assert_eq!(offered(bus.path()), Some(false));
        std::fs::create_dir(bus.path().join("b")).unwrap();
        std::fs::write(bus.path().join("b/class_id"), format!("{{{CLASS_ID}}}\n")).unwrap();
        assert_eq!(offered(bus.path()), Some(true));
    }
}
