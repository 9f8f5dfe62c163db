//! `mock-vsp`: the accelerated channel's device at a path of your choice, in front of any blob endpoint.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use e2e::vsp::{CONTROL_NAME, DEVICE_NAME, Faults, HttpBackend, MockVsp};
use nix::mount::{MntFlags, umount2};
use tokio::signal::unix::{SignalKind, signal};

/// A stand-in for the Azure Blob VSC device, for machines whose host does not offer one.
///
/// Mounts a small file system at DIR (needs root and /dev/fuse). DIR/azure_blob answers the same ioctl as the
/// device /dev/azure_blob and executes what comes through it against a blob endpoint; point a program's
/// --device there. DIR/control shows state and counters when read, and takes faults when written. Ctrl-C
/// unmounts.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  mock-vsp /run/vsp
      sends each request to the host that its URL names
  mock-vsp /run/vsp --endpoint http://127.0.0.1:10000
      sends all of them to Azurite
  mock-vsp /run/vsp --set latency_us=2000 --set bytes_per_second=500000000
      pretends that the host is slower than it is
  cat /run/vsp/control
      shows every fault that can be set, and the counters
  echo eagain_next=100 > /run/vsp/control
      the next 100 requests meet a full ring
  echo gone=true return_after_ms=5000 > /run/vsp/control
      the device goes away and comes back after five seconds
  echo hold_next=1 > /run/vsp/control; echo release > /run/vsp/control
      one request does not return until it is released
  echo reset > /run/vsp/control
      no more faults"
)]
struct Args {
    /// Directory to mount at; created when missing
    dir: PathBuf,

    /// Send all requests to this endpoint (scheme, host and port; the path stays as the request has it)
    /// instead of the host that their URL names
    #[arg(long, value_name = "URL")]
    endpoint: Option<http::Uri>,

    /// Make a symbolic link to the device here, relative where both have the same parent. The directory of
    /// the link can be handed to a container (HostToContainer) before DIR is mounted: what is mounted below
    /// it later is seen there
    #[arg(long, value_name = "PATH")]
    link: Option<PathBuf>,

    /// Fault or profile from the start, as DIR/control takes it; can be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Takes a mount away whose server was killed: nothing can be mounted or made there otherwise.
fn free_dead_mount(dir: &Path) -> anyhow::Result<()> {
    match std::fs::metadata(dir) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => umount2(dir, MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount what is left at {}", dir.display())),
        _ => Ok(()),
    }
}

/// Makes `link` point to the device in `dir`, in place of an older link.
fn link_device(link: &Path, dir: &Path) -> anyhow::Result<()> {
    let target = match (link.parent(), dir.parent(), dir.file_name()) {
        (Some(here), Some(there), Some(name)) if here == there => Path::new(name).join(DEVICE_NAME),
        _ => std::path::absolute(dir)?.join(DEVICE_NAME),
    };
    match std::fs::symlink_metadata(link) {
        Ok(found) if found.file_type().is_symlink() => std::fs::remove_file(link)?,
        Ok(_) => anyhow::bail!(
            "--link {}: exists and is no symbolic link; remove it",
            link.display()
        ),
        Err(_) => {}
    }
    std::os::unix::fs::symlink(target, link).with_context(|| format!("--link {}", link.display()))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(std::io::stderr)
        .init();

    // Before the mount, so that a signal right after it finds somebody.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;

    let backend = HttpBackend::new(args.endpoint.as_ref()).context("--endpoint")?;
    free_dead_mount(&args.dir)?;
    std::fs::create_dir_all(&args.dir)
        .with_context(|| format!("cannot create the directory {}", args.dir.display()))?;
    let mock = MockVsp::mount_with(&args.dir, Arc::new(backend), Faults::default()).with_context(|| {
        format!(
            "cannot mount at {} (it needs root, /dev/fuse and a directory)",
            args.dir.display()
        )
    })?;
    for word in &args.set {
        mock.faults()
            .command(word)
            .with_context(|| format!("--set {word}"))?;
    }

    if let Some(link) = &args.link {
        link_device(link, &args.dir)?;
    }

    let to = args
        .endpoint
        .map_or_else(|| "the endpoint each request names".into(), |uri| uri.to_string());
    let mut out = std::io::stdout().lock();
    writeln!(out, "device   {}", args.dir.join(DEVICE_NAME).display())?;
    writeln!(out, "control  {}", args.dir.join(CONTROL_NAME).display())?;
    writeln!(out, "requests go to {to}; Ctrl-C unmounts")?;
    out.flush()?;
    drop(out);

    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    let counters = mock.counters();
    // Unmounting joins the file system's thread, which must not hold up the runtime.
    tokio::task::spawn_blocking(move || drop(mock)).await?;
    if let Some(link) = &args.link {
        std::fs::remove_file(link).with_context(|| format!("--link {}", link.display()))?;
    }
    println!(
        "{} requests ({} rest, {} open, {} read, {} close, {} unknown), {} bytes in, {} bytes out",
        counters.requests,
        counters.rest,
        counters.open,
        counters.read,
        counters.close,
        counters.unknown,
        counters.bytes_in,
        counters.bytes_out
    );
    Ok(())
}
