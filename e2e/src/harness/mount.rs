//! `vsc-blob-csi mount` on a folder, as a child process, freed whatever happens.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use url::Url;

use super::backend::Backend;
use super::process::Running;
use super::{PATIENCE, tools, wait_for};
use crate::fuse::{abort, connection_at};
use crate::store::DEV_KEY;

/// How long a mount may be in use by processes that are just starting.
const BUSY: Duration = Duration::from_secs(5);

/// How to mount.
#[derive(Debug, Clone, Default)]
pub struct MountOptions {
    /// The channel's device; `None` = no such device (HTTPS only, without being told so).
    pub device: Option<PathBuf>,
    /// "Directory" inside the container that becomes the root.
    pub prefix: Option<String>,
    /// A shared access signature instead of the account key.
    pub sas: Option<String>,
    /// Further arguments of `vsc-blob-csi mount`.
    pub arguments: Vec<String>,
    /// Where the backend is reached, when not at its own endpoint.
    pub endpoint: Option<Url>,
    /// Further variables of its environment.
    pub environment: Vec<(String, OsString)>,
    /// A program with its arguments that runs the command given after them.
    pub launcher: Vec<OsString>,
}

impl MountOptions {
    /// Adds an argument.
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }
}

/// Counters of one path, as the program prints them at its end (`--stats-on-exit`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathCounters {
    /// Requests answered.
    pub requests: u64,
    /// Attempts without an answer.
    pub errors: u64,
    /// Payload bytes received.
    pub bytes_in: u64,
    /// Payload bytes sent.
    pub bytes_out: u64,
    /// Requests that moved to the other path.
    pub failed_over: u64,
}

/// Counters of a mount's two paths.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    /// The accelerated channel; zeros when it was never there.
    pub channel: PathCounters,
    /// HTTPS.
    pub https: PathCounters,
}

/// A mount served by a child process. Dropping it unmounts, and aborts and kills what does not end in time.
#[derive(Debug)]
pub struct Mount {
    process: Running,
    path: PathBuf,
    /// Minor device number = number of the FUSE connection; what is left to free a mount whose server is
    /// gone.
    connection: u64,
    mounted: bool,
}

impl Mount {
    /// Mounts a container of the backend at an existing folder and waits until the file system answers.
    pub fn start(backend: &Backend, container: &str, at: &Path, options: &MountOptions) -> Result<Self> {
        Self::over(backend.endpoint(), container, at, options)
    }

    /// Likewise, over an endpoint of the emulators' account.
    pub fn over(endpoint: &Url, container: &str, at: &Path, options: &MountOptions) -> Result<Self> {
        let endpoint = options.endpoint.as_ref().unwrap_or(endpoint);
        let mut url = format!("{}/{container}", endpoint.as_str().trim_end_matches('/'));
        if let Some(prefix) = &options.prefix {
            url = format!("{url}/{prefix}");
        }
        let program = tools::vsc_blob_csi()?;
        let mut command = match options.launcher.split_first() {
            None => Command::new(program),
            Some((launcher, arguments)) => {
                let mut command = Command::new(launcher);
                command.args(arguments).arg(program);
                command
            }
        };
        command
            .arg("mount")
            .arg(url)
            .arg(at)
            .arg("--stats-on-exit")
            // A device of the machine itself must not take part.
            .arg("--device")
            .arg(
                options
                    .device
                    .clone()
                    .unwrap_or_else(|| "/nonexistent/azure_blob".into()),
            )
            .args(&options.arguments)
            .envs(options.environment.iter().map(|(name, value)| (name, value)))
            .env_remove("AZURE_STORAGE_ACCOUNT");
        match &options.sas {
            Some(sas) => command
                .env_remove("AZURE_STORAGE_KEY")
                .env("AZURE_STORAGE_SAS_TOKEN", sas),
            None => command
                .env_remove("AZURE_STORAGE_SAS_TOKEN")
                .env("AZURE_STORAGE_KEY", DEV_KEY),
        };
        let mut process = Running::start("mount", &mut command)?;
        let connection = wait_for("the mount to be listed", PATIENCE, || {
            if let Some(status) = process.try_wait()? {
                bail!("vsc-blob-csi mount ended ({status}):\n{}", process.output());
            }
            connection_at(at)
        });
        let connection = match connection {
            Ok(connection) => connection,
            Err(error) => return Err(error.context(process.output())),
        };
        let mut mount = Self {
            process,
            path: at.into(),
            connection,
            mounted: true,
        };
        mount
            .process
            .wait_for_line("the message that the mount answers", PATIENCE, |line| {
                line.starts_with("mounted ").then_some(())
            })?;
        Ok(mount)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The serving process.
    pub fn process(&self) -> &Running {
        &self.process
    }

    /// Unmounts as a user would, waits until the process has ended well, and gives its last counters.
    pub fn unmount(mut self) -> Result<Counters> {
        // Busy for a moment is no error: a process that another thread of the test is just starting holds a
        // copy of every descriptor until it has become its program.
        wait_for("the mount not to be in use", BUSY, || {
            match tools::run(Command::new("umount").arg(&self.path)) {
                Err(error) if format!("{error:#}").contains("busy") => Ok(None),
                other => other.map(Some),
            }
        })?;
        self.mounted = false;
        let status = self.process.wait(PATIENCE)?;
        if !status.success() {
            bail!(
                "vsc-blob-csi mount ended badly ({status}):\n{}",
                self.process.output()
            );
        }
        counters(&self.process.output())
    }

    /// Kills the serving process without a chance to commit, and frees the mount.
    pub fn kill(mut self) -> Result<()> {
        self.process.signal(Signal::SIGKILL)?;
        self.process.wait(PATIENCE)?;
        self.free();
        Ok(())
    }

    fn free(&mut self) {
        if !std::mem::take(&mut self.mounted) {
            return;
        }
        let _ = abort(self.connection);
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            // A clean end first; a test that failed half-way may have left files open, hence the limit.
            let ended = Running::start("umount", Command::new("umount").arg(&self.path))
                .and_then(|mut umount| umount.wait(Duration::from_secs(10)));
            if ended.is_ok_and(|status| status.success()) {
                self.mounted = false;
                let _ = self.process.wait(Duration::from_secs(10));
            }
        }
        self.free();
    }
}

/// Reads lines like `VOLUME: channel: requests=1 errors=0 bytes_in=2 bytes_out=3 failed_over=0`.
fn counters(output: &str) -> Result<Counters> {
    let mut counters = Counters::default();
    let mut found = false;
    for line in output.lines() {
        let Some((before, fields)) = line.split_once(": requests=") else {
            continue;
        };
        let path = match before.rsplit(": ").next() {
            Some("channel") => &mut counters.channel,
            Some("https") => &mut counters.https,
            _ => bail!("counters of an unknown path: {line}"),
        };
        found = true;
        for field in format!("requests={fields}").split_whitespace() {
            let Some((name, value)) = field.split_once('=') else {
                continue;
            };
            let value = || value.parse::<u64>().with_context(|| line.to_owned());
            match name {
                "requests" => path.requests += value()?,
                "errors" => path.errors += value()?,
                "bytes_in" => path.bytes_in += value()?,
                "bytes_out" => path.bytes_out += value()?,
                "failed_over" => path.failed_over += value()?,
                _ => {}
            }
        }
    }
    if !found {
        bail!("the program printed no counters at its end:\n{output}");
    }
    Ok(counters)
}
