//! The calls that change the machine, or ask more of it than its files say.
#![expect(
    unsafe_code,
    reason = "a child process changes its root before it starts the node's own program"
)]

use std::ffi::CString;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};

use crate::channel::{Abi, Channel, ChannelConfig, ChannelError};

/// MODULE_INIT_COMPRESSED_FILE of the kernel's linux/module.h.
const COMPRESSED: ModuleInitFlags = ModuleInitFlags::from_bits_retain(4);

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// With exit code 0.
    pub success: bool,
    /// What it said, both streams.
    pub output: String,
}

/// The calls of the loader.
pub trait System: Debug {
    /// `finit_module` without parameters. A compressed file is unpacked by the kernel, where it can (5.17 and later).
    fn load_module(&self, module: &File, compressed: bool) -> Result<(), Errno>;

    /// `delete_module` of an unused module; EWOULDBLOCK when it is in use. Never by force.
    fn unload_module(&self, name: &str) -> Result<(), Errno>;

    /// Runs a program of the file system below `root`, to its end.
    fn run(&self, root: &Path, program: &str, arguments: &[&str]) -> io::Result<Ran>;

    /// Opens the device node and finds out how it is spoken to.
    fn probe(&self, node: &Path) -> Result<Abi, ChannelError>;
}

/// The running kernel.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kernel;

impl System for Kernel {
    fn load_module(&self, module: &File, compressed: bool) -> Result<(), Errno> {
        let flags = if compressed {
            COMPRESSED
        } else {
            ModuleInitFlags::empty()
        };
        finit_module(module, c"", flags)
    }

    fn unload_module(&self, name: &str) -> Result<(), Errno> {
        let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
        delete_module(&name, DeleteModuleFlags::O_NONBLOCK)
    }

    fn run(&self, root: &Path, program: &str, arguments: &[&str]) -> io::Result<Ran> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
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
        let output = command.output()?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        Ok(Ran {
            success: output.status.success(),
            output: text,
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
