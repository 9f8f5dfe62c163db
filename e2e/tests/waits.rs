//! How long programs wait: on a service that does not answer as long as the option `timeout` says, on a slow
//! line as long as it takes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::fuse::{connection_at, waiting};
use e2e::harness::backend::Kind;
use e2e::harness::mount::{Mount, MountOptions};
use e2e::harness::process::Running;
use e2e::harness::setup::{Setup, Way};
use e2e::harness::{PATIENCE, tools, tree, wait_for};
use nix::sys::signal::Signal;
use rand::RngCore;

/// Long before anybody is told who waits as long as is usual (a minute).
const SOON: Duration = Duration::from_secs(30);
/// Set for a test that is in a network of its own.
const INSIDE: &str = "VSC_BLOB_E2E_SLOW_NETWORK";

/// A container in a store that can be stopped, mounted by somebody who is not patient.
struct Frozen {
    // Dropped in this order.
    mount: Option<Mount>,
    store: Running,
    endpoint: url::Url,
    scratch: tempfile::TempDir,
}

impl Frozen {
    fn new() -> Result<Self> {
        let mut store = Running::start(
            "store",
            Command::new(env!("CARGO_BIN_EXE_store"))
                .args(["--listen", "127.0.0.1:0", "--container", "data"])
                .env_remove("AZURE_STORAGE_KEY"),
        )?;
        let endpoint = store.wait_for_line("its endpoint", PATIENCE, |line| line.parse().ok())?;
        let mut frozen = Self {
            mount: None,
            store,
            endpoint,
            scratch: tree::scratch()?,
        };
        frozen.mount_anew()?;
        Ok(frozen)
    }

    /// Unmounts what is mounted, and mounts the container, of which nothing is known here then.
    fn mount_anew(&mut self) -> Result<()> {
        if let Some(mount) = self.mount.take() {
            mount.unmount()?;
        }
        let at = self.scratch.path().join("mnt");
        fs::create_dir_all(&at)?;
        let options = MountOptions::default().arg("--timeout").arg("2s");
        self.mount = Some(Mount::over(&self.endpoint, "data", &at, &options)?);
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join("mnt").join(name)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // What is to be committed at the end waits for nothing.
        let _ = self.store.signal(Signal::SIGCONT);
    }
}

#[test]
fn nobody_waits_longer_than_the_timeout_for_a_service_that_does_not_answer() -> Result<()> {
    let mut frozen = Frozen::new()?;
    fs::create_dir(frozen.path("d"))?;
    fs::write(frozen.path("d/old"), "content")?;
    frozen.mount_anew()?;
    let mut written = File::create(frozen.path("written"))?;
    written.write_all(b"closed while nobody answered")?;
    frozen.store.signal(Signal::SIGSTOP)?;

    let (old, folder) = (frozen.path("d/old"), frozen.path("d"));
    let programs = |what: &str| -> Result<Vec<Running>> {
        let new = frozen.path(&format!("d/{what}"));
        let mut touch = Command::new("touch");
        touch.arg(new);
        let mut all = vec![touch];
        for (program, path) in [("cat", &old), ("ls", &folder), ("stat", &old), ("rm", &old)] {
            all.push(Command::new(program));
            all.last_mut().context("a program")?.arg(path);
        }
        all.iter_mut()
            .map(|command| Running::start(what, command))
            .collect()
    };
    // Each is told, and ends by itself.
    for mut program in programs("told")? {
        let status = program.wait(SOON)?;
        let output = program.output();
        ensure!(
            !status.success() && output.contains("Input/output error"),
            "{status}: {output}"
        );
    }
    // Who is killed in the middle of it is gone as soon.
    let killed = programs("killed")?;
    let mount = frozen.scratch.path().join("mnt");
    let connection = connection_at(&mount)?.context("nothing is mounted there")?;
    wait_for("requests to wait", SOON, || {
        Ok((waiting(connection)? > 0).then_some(()))
    })?;
    for mut program in killed {
        program.signal(Signal::SIGKILL)?;
        ensure!(!program.wait(SOON)?.success());
    }
    ensure!(
        written.sync_all().is_err(),
        "nothing is stored, and fsync says so"
    );
    drop(written);

    frozen.store.signal(Signal::SIGCONT)?;
    wait_for("the service to be used again", SOON, || Ok(fs::read(&old).ok()))?;
    frozen.mount_anew()?;
    ensure!(fs::read(frozen.path("written"))? == b"closed while nobody answered");
    ensure!(
        fs::read(&old)? == b"content",
        "what failed is not carried out later"
    );
    Ok(())
}

/// Runs a test of this file once more, in a network namespace where so many kilobits a second go through.
fn in_a_slow_network(test: &str, kilobits: u32, limit: Duration) -> Result<()> {
    let network = format!(
        "ip link set dev lo mtu 1500 up && \
         tc qdisc add dev lo root tbf rate {kilobits}kbit burst 70kb latency 400ms && exec \"$@\""
    );
    let mut inside = Running::start(
        test,
        Command::new("unshare")
            .args(["--net", "sh", "-c", &network, "sh"])
            .arg(std::env::current_exe()?)
            .args(["--exact", test, "--include-ignored", "--nocapture"])
            .env(INSIDE, "yes"),
    )?;
    let status = inside.wait(limit)?;
    ensure!(status.success(), "{status}:\n{}", inside.output());
    Ok(())
}

/// Bytes that went over the loopback of this network so far.
fn carried() -> Result<u64> {
    let table = fs::read_to_string("/proc/self/net/dev")?;
    let line = table.lines().find_map(|line| line.trim().strip_prefix("lo:"));
    let received = line.and_then(|fields| fields.split_whitespace().next());
    Ok(received.context("no loopback")?.parse()?)
}

/// Writes a file over the slow line: everything is sent once, and nobody gives up.
fn slow_upload(size: usize, timeout: &str) -> Result<()> {
    let setup = Setup::new(Kind::Embedded, Way::Https)?;
    let options = setup.options().arg("--timeout").arg(timeout);
    let mount = setup.mount_with("slow", "mnt", &options)?;
    let mut content = vec![0; size];
    rand::rng().fill_bytes(&mut content);
    let before = carried()?;
    let mut file = File::create(mount.path().join("f"))?;
    file.write_all(&content)?;
    file.sync_all()?;
    drop(file);
    let carried = carried()? - before;
    tools::run(Command::new("tc").args(["qdisc", "del", "dev", "lo", "root"]))?;
    ensure!(setup.backend().container("slow")?.read("f")? == content);
    ensure!(carried < size as u64 * 3 / 2, "{carried} bytes for {size}");
    mount.unmount()?;
    Ok(())
}

/// 8 MiB in one request that takes many times as long as nobody may wait without progress.
#[test]
fn a_slow_uplink_takes_the_time_it_takes() -> Result<()> {
    match std::env::var_os(INSIDE) {
        Some(_) => slow_upload(8 << 20, "4s"),
        None => in_a_slow_network("a_slow_uplink_takes_the_time_it_takes", 3200, 4 * PATIENCE),
    }
}

#[test]
#[ignore = "a quarter of an hour"]
fn a_slow_uplink_takes_a_large_file() -> Result<()> {
    match std::env::var_os(INSIDE) {
        Some(_) => slow_upload(64 << 20, "60s"),
        None => in_a_slow_network("a_slow_uplink_takes_a_large_file", 800, 30 * PATIENCE),
    }
}
