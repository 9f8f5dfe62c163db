//! The calls that change the machine, or ask more of it than its files say.
#![expect(
    unsafe_code,
    reason = "a child process changes its root before it starts the node's own program"
)]

use std::ffi::{CStr, CString};
use std::fmt::Debug;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::channel::{Abi, Channel, ChannelConfig, ChannelError};

/// MODULE_INIT_COMPRESSED_FILE of the kernel's linux/module.h.
const COMPRESSED: ModuleInitFlags = ModuleInitFlags::from_bits_retain(4);
/// A parameter that every module has (Documentation/admin-guide/kernel-parameters.txt of the kernel).
const ASYNC_PROBE: &CStr = c"async_probe";
/// How often a child is looked after.
const POLL: Duration = Duration::from_millis(20);

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// With exit code 0.
    pub success: bool,
    /// What it said, both streams.
    pub output: String,
}

/// How a module is to be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Insert {
    /// The file is compressed. The kernel unpacks it, where it can (5.17 and later).
    pub compressed: bool,
    /// The call does not wait for the module's driver to find its devices. Without it a host that does not
    /// answer would hold the caller in the kernel, where no signal reaches it.
    pub asynchronous: bool,
}

/// The calls of the loader. Each is made by a thread of its own, which is left behind when it takes too long.
pub trait System: Debug + Clone + Send + 'static {
    /// `finit_module`.
    fn load_module(&self, module: &File, how: Insert) -> Result<(), Errno>;

    /// `delete_module` of an unused module; EWOULDBLOCK when it is in use. Never by force.
    fn unload_module(&self, name: &str) -> Result<(), Errno>;

    /// Runs a program of the file system below `root` to its end, and ends it (with what it has started)
    /// after `limit`: [`io::ErrorKind::TimedOut`].
    fn run(&self, root: &Path, program: &str, arguments: &[&str], limit: Duration) -> io::Result<Ran>;

    /// Opens the device node and finds out how it is spoken to.
    fn probe(&self, node: &Path) -> Result<Abi, ChannelError>;
}

/// The running kernel.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kernel;

impl System for Kernel {
    fn load_module(&self, module: &File, how: Insert) -> Result<(), Errno> {
        let flags = if how.compressed {
            COMPRESSED
        } else {
            ModuleInitFlags::empty()
        };
        let parameters = if how.asynchronous { ASYNC_PROBE } else { c"" };
        finit_module(module, parameters, flags)
    }

    fn unload_module(&self, name: &str) -> Result<(), Errno> {
        let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
        delete_module(&name, DeleteModuleFlags::O_NONBLOCK)
    }

    fn run(&self, root: &Path, program: &str, arguments: &[&str], limit: Duration) -> io::Result<Ran> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C");
        if root != Path::new("/") {
            let root = root.to_owned();
            // SAFETY: after the fork only two system calls are made, with a path that was allocated before.
            unsafe {
                command.pre_exec(move || {
                    nix::unistd::chroot(&root)?;
                    nix::unistd::chdir("/")?;
                    Ok(())
                });
            }
        }
        let mut child = command.spawn()?;
        let said = [collect(child.stdout.take()), collect(child.stderr.take())];
        let began = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if began.elapsed() >= limit {
                end_group(&child);
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(POLL);
        };
        // A grandchild may keep a stream open; what it would say is not waited for without end.
        let output = said
            .into_iter()
            .flatten()
            .filter_map(|said| said.recv_timeout(limit.saturating_sub(began.elapsed())).ok())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .collect();
        Ok(Ran {
            success: status.success(),
            output,
        })
    }

    fn probe(&self, node: &Path) -> Result<Abi, ChannelError> {
        let config = ChannelConfig {
            device: node.to_owned(),
            threads: 1,
            ..ChannelConfig::default()
        };
        Channel::open(config).map(|channel| channel.abi())
    }
}

/// Reads a stream to its end, beside the caller.
fn collect(stream: Option<impl Read + Send + 'static>) -> Option<Receiver<Vec<u8>>> {
    let mut stream = stream?;
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is worth having as well; nobody may listen any more.
        let _ = stream.read_to_end(&mut bytes);
        let _ = tell.send(bytes);
    });
    Some(told)
}

/// Kills a child and what it has started. It is not waited for: in the kernel no signal may reach it.
fn end_group(child: &Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // It may have ended meanwhile.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Makes a call in a thread of its own. `None` when it has not returned after `limit`; the thread is left
/// behind then.
pub(super) fn within<T: Send + 'static>(
    limit: Duration,
    call: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        // Nobody listens any more when it took too long.
        let _ = tell.send(call());
    });
    told.recv_timeout(limit).ok()
}
