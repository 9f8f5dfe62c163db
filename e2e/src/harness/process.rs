//! Child processes that end with the test, and what they print.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::wait_for;

static QUIET: AtomicBool = AtomicBool::new(false);

/// Collects what children print without showing it: for programs, where nobody holds it back as libtest does.
pub fn keep_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// A running child in a process group of its own, its output collected. Dropping it kills the group.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    output: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Running {
    /// Starts the command; its standard output and error are collected line by line and shown when the test
    /// fails.
    pub fn start(name: &str, command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let output = Arc::new(Mutex::new(String::new()));
        let mut readers = Vec::new();
        if let Some(pipe) = child.stdout.take() {
            readers.push(collect(name, pipe, Arc::clone(&output)));
        }
        if let Some(pipe) = child.stderr.take() {
            readers.push(collect(name, pipe, Arc::clone(&output)));
        }
        Ok(Self {
            name: name.into(),
            child,
            status: None,
            output,
            readers,
        })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything printed so far.
    pub fn output(&self) -> String {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first printed line that `choose` makes something of; fails when the process ends before.
    pub fn wait_for_line<T>(
        &mut self,
        what: &str,
        limit: Duration,
        choose: impl Fn(&str) -> Option<T>,
    ) -> Result<T> {
        wait_for(what, limit, || {
            if let Some(found) = self.output().lines().find_map(&choose) {
                return Ok(Some(found));
            }
            if let Some(status) = self.try_wait()? {
                bail!("{} ended ({status}) before {what}:\n{}", self.name, self.output());
            }
            Ok(None)
        })
    }

    /// The exit status, once it has ended.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self
                .child
                .try_wait()
                .with_context(|| format!("waiting for {}", self.name))?;
        }
        Ok(self.status)
    }

    /// Waits for the end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        let status = wait_for(&what, limit, || self.try_wait())?;
        for reader in self.readers.drain(..) {
            // A reader cannot panic with anything worth reporting; its lines are in `output` already.
            let _ = reader.join();
        }
        Ok(status)
    }

    /// Sends a signal to the process itself.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid(), signal).with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// Peak resident memory so far, in bytes (`VmHWM`).
    pub fn peak_rss(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|value| value.trim().strip_suffix(" kB"))
            .and_then(|value| value.parse::<u64>().ok())
            .with_context(|| format!("no VmHWM for {}", self.name))?;
        Ok(kib * 1024)
    }

    /// CPU time used so far by all threads, user and system.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id()))?;
        // The name in parentheses may hold anything; fields 14 and 15 counted from 1 are clock ticks.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_whitespace().collect())
            .unwrap_or_default();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
        let (Some(user), Some(system)) = (ticks(11), ticks(12)) else {
            bail!("cannot read the CPU time of {}", self.name)
        };
        let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
        Ok(Duration::from_secs_f64(
            (user + system) as f64 / per_second as f64,
        ))
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.try_wait(), Ok(Some(_))) {
            return;
        }
        // By group: a program under test may have started helpers.
        let _ = killpg(self.pid(), Signal::SIGKILL);
        // Not for ever: a thread inside a device ends only with its request, and the device may be dropped
        // after this.
        let _ = self.wait(Duration::from_secs(5));
    }
}

fn collect(name: &str, pipe: impl Read + Send + 'static, into: Arc<Mutex<String>>) -> JoinHandle<()> {
    let name = name.to_owned();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n') {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line);
            if !QUIET.load(Ordering::Relaxed) {
                // libtest shows this only when the test fails.
                eprintln!("[{name}] {line}");
            }
            let mut into = into.lock().unwrap_or_else(PoisonError::into_inner);
            into.push_str(&line);
            into.push('\n');
        }
    })
}
