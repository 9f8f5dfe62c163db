//! `doctor`: what works on this machine, and why requests take the path they take.

use std::fs::OpenOptions;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde::Serialize;
use vsc_driver::loader::{Loader, LoaderConfig, NodeStep, Outdated, Restriction};

use self::volume::VolumeReport;
use super::DeviceArgs;
use crate::mounts::bounded::bounded;
use crate::mounts::mounter::{Kernel, Mounter, says_dead};
use crate::mounts::mountinfo;

pub mod reach;
mod volume;

/// How long a mount or the device may take to answer before it counts as dead here.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where no device is.
const NOWHERE: &str = "/nonexistent/azure_blob";

/// Options of `doctor`.
#[derive(Debug, Clone, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Credentials of URL come from the environment, as for `mount`: AZURE_STORAGE_KEY or \
                  AZURE_STORAGE_SAS_TOKEN.

The exit code is 0 when volumes can be mounted here, over whichever path, and everything was mended that \
                  could be; 1 when not."
)]
pub struct DoctorArgs {
    /// Look at something else than this machine.
    #[command(subcommand)]
    pub of: Option<DoctorCommand>,
    /// Look through this container as well, ENDPOINT/CONTAINER[/PREFIX]: for names that no mount shows, and
    /// for what was left half done. One request for each 5,000 blobs.
    #[arg(value_name = "URL")]
    pub url: Option<String>,
    /// Mend it: finish renames of folders that were cut off, delete what deleted files held and nobody holds.
    #[arg(long, requires = "url")]
    pub mend: bool,
    /// Print one JSON object instead of sentences.
    #[arg(long)]
    pub json: bool,
    /// See [`DeviceArgs`].
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// See each command.
#[derive(Debug, Clone, Subcommand)]
pub enum DoctorCommand {
    /// Follow the way of a volume of the cluster to the service: objects, Secret, DNS, TCP, TLS, clock,
    /// token, rights, with the time of each step.
    Volume(reach::ReachArgs),
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
    /// Cryptography.
    pub fips: FipsReport,
    /// Mounts of this driver.
    pub mounts: Vec<MountReport>,
    /// The container that was asked about.
    pub volume: Option<VolumeReport>,
}

/// Whether cryptography is, and has to be, that of a FIPS module.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct FipsReport {
    /// This program's is.
    pub program: bool,
    /// The kernel is in FIPS mode (`fips=1` on its command line).
    pub kernel: bool,
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
    /// State in one word: `NodePresent`, `NodeClosed`, `NodeUnusable`, `NotOffered`, `NoModule`, `NoNode`.
    pub code: &'static str,
    /// Loaded modules that serve the device.
    pub modules: Vec<String>,
    /// What keeps the kernel from taking modules.
    pub restrictions: Vec<Restriction>,
    /// The module in the kernel is another one than the prebuilt one that is here now.
    pub outdated: Option<Outdated>,
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
    /// Why it does not answer; `None` when it does.
    pub problem: Option<String>,
    /// Nobody serves it any more.
    pub dead: bool,
}

/// Looks, tells, and answers whether volumes can be mounted.
pub async fn run(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    if let Some(DoctorCommand::Volume(args)) = &args.of {
        return reach::run(args).await;
    }
    let config = LoaderConfig {
        device: args.device.device.clone(),
        ..LoaderConfig::default()
    };
    let mut report = examine(config).await?;
    if let Some(url) = &args.url {
        report.volume = Some(volume::examine(url, args.mend, &args.device).await?);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", sentences(&report));
    }
    let failed = report.volume.as_ref().is_some_and(VolumeReport::failed);
    Ok(if report.fuse.usable && !failed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Looks at everything; at the channel as the loader sees it.
pub async fn examine(config: LoaderConfig) -> anyhow::Result<Report> {
    let channel = examine_channel(config).await?;
    let mut mounts = Vec::new();
    for mount in mountinfo::read()?.into_iter().filter(mountinfo::Entry::is_ours) {
        let at = mount.at.clone();
        let answer = bounded("stat", PATIENCE, move || Kernel.answers(&at)).await;
        mounts.push(MountReport {
            dead: matches!(&answer, Ok(Err(error)) if says_dead(error)),
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
        fips: FipsReport {
            program: blob_client::crypto::is_fips(),
            kernel: std::fs::read_to_string("/proc/sys/crypto/fips_enabled")
                .is_ok_and(|text| text.trim() == "1"),
        },
        mounts,
        volume: None,
    })
}

/// A host that is stuck lets nobody open the device: what is to be told then is all the rest.
async fn examine_channel(config: LoaderConfig) -> anyhow::Result<ChannelReport> {
    let device = config.device.display().to_string();
    let without_device = LoaderConfig {
        device: NOWHERE.into(),
        ..config.clone()
    };
    let status = bounded("ioctl", PATIENCE, move || Loader::new(config).status()).await;
    let status = match status {
        Ok(status) => status.context("looking at the channel")?,
        Err(error) => {
            let loader = Loader::new(without_device);
            let mut status = loader.status().context("looking at the channel")?;
            status.node = NodeStep::Unusable {
                reason: format!("it does not answer: {error}"),
            };
            status
        }
    };
    let abi = match status.node {
        NodeStep::Present { abi } => Some(abi.name()),
        _ => None,
    };
    let present = status.node != NodeStep::Absent;
    let problem = status.problem().map(|problem| {
        if present && !nix::unistd::geteuid().is_root() {
            format!("{problem} ({device}; run as root)")
        } else if present {
            format!("{problem} ({device})")
        } else {
            format!("{problem} ({device} is not there)")
        }
    });
    Ok(ChannelReport {
        device,
        offered: status.vmbus.then_some(status.offered),
        present,
        abi,
        code: status.code(),
        modules: status.modules.into_iter().map(|module| module.name).collect(),
        restrictions: status.restrictions,
        outdated: status.outdated,
        problem,
    })
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
    if report.fips.program {
        lines.push("Cryptography: a FIPS module (AWS-LC).".into());
    } else if report.fips.kernel {
        lines.push(
            "Cryptography: this machine is in FIPS mode, and this program has no FIPS module; use an image \
            of `deploy/image --fips`."
                .into(),
        );
    }
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
    if !channel.modules.is_empty() {
        lines.push(format!(
            "Channel: kernel modules: {}.",
            channel.modules.join(", ")
        ));
    }
    if let Some(outdated) = &channel.outdated {
        lines.push(format!("Channel: {outdated}."));
    }
    for restriction in &channel.restrictions {
        lines.push(format!("Kernel: {restriction}."));
    }
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
        lines.push(
            "FUSE: /sys/fs/fuse/connections is not mounted; the node plugin mounts it when it has to abort a \
             stuck mount."
                .into(),
        );
    }
    if report.mounts.is_empty() {
        lines.push("Mounts: none of this driver.".into());
    }
    for mount in &report.mounts {
        let state = match &mount.problem {
            None => "answers".to_owned(),
            Some(problem) if mount.dead => {
                format!("DEAD: {problem}; free it with `umount -l {}`", mount.path)
            }
            // Its changes would be lost.
            Some(problem) => {
                format!("does not answer for now: {problem}; do not unmount it while a process serves it")
            }
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
    if let Some(volume) = &report.volume {
        lines.extend(volume::sentences(volume));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const DEVICE: &str = "sys/bus/vmbus/devices/one";
    const SECURE_BOOT: &str = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

    /// A machine out of a folder.
    fn machine(files: &[(&str, &[u8])]) -> (tempfile::TempDir, LoaderConfig) {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, bytes: &[u8]| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        };
        write("proc/sys/kernel/osrelease", b"6.8.0-test\n");
        write("proc/sys/kernel/random/boot_id", b"boot-1\n");
        for (path, bytes) in files {
            write(path, bytes);
        }
        let at = |path: &str| root.path().join(path);
        let config = LoaderConfig {
            root: root.path().to_owned(),
            host_root: root.path().to_owned(),
            prebuilt: at("modules"),
            state: at("state"),
            ..LoaderConfig::default()
        };
        (root, config)
    }

    fn class(id: &str) -> Vec<u8> {
        format!("{{{id}}}\n").into_bytes()
    }

    async fn told(files: &[(&str, &[u8])], code: &str, words: &[&str]) {
        let (_root, config) = machine(files);
        let report = examine(config).await.unwrap();
        assert_eq!(report.transport, "https");
        assert_eq!(report.channel.code, code);
        let text = sentences(&report);
        for word in words.iter().chain(&["over HTTPS, because"]) {
            assert!(text.contains(word), "no {word:?} in\n{text}");
        }
        serde_json::to_string(&report).unwrap();
    }

    #[tokio::test]
    async fn why_there_is_no_channel() {
        let class_file = format!("{DEVICE}/class_id");
        let other = class("f8615163-df3e-46c5-913f-f2d2f965ed0e");
        let ours = class(vsc_driver::loader::CLASS_ID);
        let offered = (class_file.as_str(), ours.as_slice());
        told(
            &[],
            "NotOffered",
            &["no Hyper-V guest", "/dev/azure_blob is not there"],
        )
        .await;
        told(
            &[(&class_file, &other)],
            "NotOffered",
            &["the host does not offer the device"],
        )
        .await;
        // The folder of prebuilt modules is there, with one for another kernel.
        told(
            &[offered, ("modules/6.1.0-other/azb_vsc.json", b"{}")],
            "NoModule",
            &[
                "no kernel module for it is loaded",
                "no prebuilt one for the kernel 6.8.0-test",
            ],
        )
        .await;
        // The container does not have the folder, as on most nodes.
        told(
            &[offered],
            "NoModule",
            &["prebuilt ones, for the kernel 6.8.0-test, cannot be seen from here"],
        )
        .await;
        told(
            &[offered, (SECURE_BOOT, &[6, 0, 0, 0, 1])],
            "NoModule",
            &["Secure Boot is on"],
        )
        .await;
        told(
            &[offered, ("sys/module/azb_vsc/refcnt", b"0\n")],
            "NoNode",
            &["azb_vsc is loaded, but its node is not there"],
        )
        .await;
        told(
            &[offered, ("dev/azure_blob", b"")],
            "NodeUnusable",
            &["cannot be used", "speaks neither known ABI"],
        )
        .await;
    }

    #[tokio::test]
    async fn this_machine_can_be_examined() {
        let config = LoaderConfig {
            device: Path::new("/nonexistent/azure_blob").to_owned(),
            ..LoaderConfig::default()
        };
        let report = examine(config).await.unwrap();
        assert!(report.why_https.unwrap().contains("/nonexistent/azure_blob"));
        assert_eq!(report.fips.program, cfg!(feature = "fips"));
    }

    #[tokio::test]
    async fn a_machine_in_fips_mode_is_told() {
        let (_root, config) = machine(&[]);
        let mut report = examine(config).await.unwrap();
        for (program, kernel, words) in [
            (false, false, None),
            (false, true, Some("no FIPS module")),
            (true, true, Some("Cryptography: a FIPS module")),
        ] {
            report.fips = FipsReport { program, kernel };
            let text = sentences(&report);
            match words {
                Some(words) => assert!(text.contains(words), "{text}"),
                None => assert!(!text.contains("Cryptography"), "{text}"),
            }
        }
    }
}
