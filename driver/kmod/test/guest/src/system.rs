//! What an init must do, and questions to the kernel: modules, page pins, the log.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use vsc_driver::loader::{Loader, LoaderConfig, Outcome};

/// The node under test.
pub(crate) const NODE: &str = "/dev/azure_blob";
/// The listing of requests that the host holds.
pub(crate) const DEBUGFS: &str = "/sys/kernel/debug/azb_vsc";
/// The device below the bus, as the software host names it.
pub(crate) const BUS: &str = "/sys/bus/vmbus";

/// The file systems that the cases look into.
pub(crate) fn mount_all() -> Result<()> {
    for (kind, at) in [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("debugfs", "/sys/kernel/debug"),
        ("tmpfs", "/tmp"),
    ] {
        fs::create_dir_all(at)?;
        match mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>) {
            Ok(()) | Err(nix::errno::Errno::EBUSY) => {}
            Err(error) => bail!("mount {kind} at {at}: {error}"),
        }
    }
    Ok(())
}

/// Loads a module file without parameters.
pub(crate) fn load_module(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let file = File::open(path).with_context(|| path.display().to_string())?;
    finit_module(&file, c"", ModuleInitFlags::empty())
        .with_context(|| format!("finit_module {}", path.display()))
}

/// The project's loader, on this machine.
pub(crate) fn loader() -> Loader {
    Loader::new(LoaderConfig {
        prebuilt: "/modules".into(),
        node_wait: soon(),
        ..LoaderConfig::default()
    })
}

/// Loads the module under test, and waits for its node.
pub(crate) fn load() -> Result<()> {
    let report = loader().load()?;
    ensure!(matches!(report.outcome, Outcome::Ready { .. }), "{report}");
    Ok(())
}

/// References to the module under test: open nodes, and requests of a ring that holds one open.
pub(crate) fn users() -> Result<u64> {
    let path = "/sys/module/azb_vsc/refcnt";
    fs::read_to_string(path)
        .context(path)?
        .trim()
        .parse()
        .context(path)
}

/// Whether a ring of this kernel takes its commands back when it is closed (Linux 6.7).
pub(crate) fn ring_cancels() -> Result<bool> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut parts = release.split(['.', '-', '+']).map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor) >= (6, 7)),
        _ => bail!("kernel release {release:?}"),
    }
}

/// The name of the one device on the bus.
pub(crate) fn device_name() -> Result<String> {
    fs::read_dir(format!("{BUS}/devices"))?
        .next()
        .context("no device on the bus")??
        .file_name()
        .into_string()
        .map_err(|name| anyhow!("odd device name {}", name.display()))
}

/// Gives a device without a driver to the module under test.
pub(crate) fn bind(device: &str) -> std::io::Result<()> {
    fs::write(format!("{BUS}/drivers/azb_vsc/bind"), device)
}

/// Takes the device from the module under test; waits for the host to return what it holds.
pub(crate) fn unbind(device: &str) -> std::io::Result<()> {
    fs::write(format!("{BUS}/drivers/azb_vsc/unbind"), device)
}

/// Unloads the module under test; fails at once while it is in use.
pub(crate) fn unload_module() -> nix::Result<()> {
    delete_module(c"azb_vsc", DeleteModuleFlags::O_NONBLOCK)
}

/// Ends the machine.
pub(crate) fn power_off() {
    nix::unistd::sync();
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("power off: {error}");
}

/// Asks until the answer is yes, or fails after `limit`.
pub(crate) fn wait_until(what: &str, limit: Duration, mut yes: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + limit;
    while !yes() {
        if Instant::now() > end {
            bail!("waited {limit:?} for {what}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Longest wait for something that a software-emulated machine does in milliseconds.
pub(crate) fn soon() -> Duration {
    Duration::from_secs(40) * patience()
}

/// How many times as long as usual everything may take: a kernel that checks every access and every lock is
/// that slow.
pub(crate) fn patience() -> u32 {
    if Path::new(KMEMLEAK).exists() { 8 } else { 1 }
}

/// Where the debug kernel tells of lost memory; other kernels have no such file.
pub(crate) const KMEMLEAK: &str = "/sys/kernel/debug/kmemleak";

/// Waits for the node to be there (or not).
pub(crate) fn wait_node(there: bool) -> Result<()> {
    let what = if there { "the node" } else { "the node to go" };
    wait_until(what, soon(), || Path::new(NODE).exists() == there)
}

/// Page pins taken and released by the whole system since it started.
pub(crate) fn pins() -> Result<(u64, u64)> {
    let text = fs::read_to_string("/proc/vmstat")?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
            .with_context(|| format!("/proc/vmstat has no {name}"))
    };
    Ok((field("nr_foll_pin_acquired ")?, field("nr_foll_pin_released ")?))
}

/// Pages now pinned. The counters are per CPU and folded with a delay, which reading them with a refresh
/// avoids.
pub(crate) fn pinned() -> Result<u64> {
    // Any write asks the kernel to fold the per-CPU counters.
    if Path::new("/proc/sys/vm/stat_refresh").exists() {
        fs::write("/proc/sys/vm/stat_refresh", "1").context("vm.stat_refresh")?;
    }
    let (acquired, released) = pins()?;
    Ok(acquired - released)
}

/// Waits until no page is pinned: every request has been let go by both of its holders.
pub(crate) fn wait_unpinned() -> Result<()> {
    wait_until("all pages to be unpinned", soon(), || {
        pinned().is_ok_and(|n| n == 0)
    })
}

/// The listing of pending requests, without its heading.
pub(crate) fn pending() -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for device in fs::read_dir(DEBUGFS).context(DEBUGFS)? {
        let listing = fs::read_to_string(device?.path().join("pending"))?;
        lines.extend(listing.lines().skip(1).map(str::to_owned));
    }
    Ok(lines)
}

/// The kernel's log since the machine started, without timestamps.
pub(crate) fn kernel_log() -> Result<Vec<String>> {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")?;
    let mut lines = Vec::new();
    let mut record = vec![0; 8192];
    loop {
        match file.read(&mut record) {
            Ok(n) => {
                let text = String::from_utf8_lossy(&record[..n]);
                if let Some((_, message)) = text.split_once(';') {
                    lines.extend(message.lines().next().map(str::to_owned));
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(lines),
            // Records that were overwritten meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) => return Err(error).context("/dev/kmsg"),
        }
    }
}
