//! Roles of this program when it is started again as a child of a case.
#![expect(unsafe_code, reason = "adopting a descriptor that the parent has left open")]

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use vsc_driver::uapi::{CMD_LIST, RequestSync};

use crate::client::{Control, Device, Frame};
use crate::memory::Memory;
use crate::ring::Ring;
use crate::service::Task;
use crate::system::{soon, wait_until};

/// Bytes of data in a child's request.
pub(crate) const CHILD_DATA: usize = 64 * 1024;

/// Starts a child in a role, with one descriptor kept open for it.
pub(crate) fn start(role: &str, file: Option<&File>) -> Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(role).stdin(Stdio::null()).stdout(Stdio::null());
    if let Some(file) = file {
        let fd = file.as_raw_fd();
        command.arg(fd.to_string());
        // SAFETY: fcntl is async-signal-safe; the descriptor belongs to the parent, which outlives the call.
        unsafe {
            command.pre_exec(move || {
                nix::fcntl::fcntl(
                    std::os::fd::BorrowedFd::borrow_raw(fd),
                    nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
                )
                .map(drop)
                .map_err(std::io::Error::from)
            });
        }
    }
    command.spawn().context(role.to_owned())
}

/// Waits for a killed child to be gone; fails when the driver keeps it.
pub(crate) fn wait_gone(child: &mut Child) -> Result<ExitStatus> {
    let mut status = None;
    wait_until("the killed process to be gone", soon(), || {
        status = child.try_wait().ok().flatten();
        status.is_some()
    })?;
    status.context("no status")
}

/// The child's exit code, which is an errno (0 = the call succeeded).
pub(crate) fn exit_errno(mut child: Child) -> Result<nix::errno::Errno> {
    let status = child.wait()?;
    let code = status.code().with_context(|| format!("child: {status}"))?;
    Ok(nix::errno::Errno::from_raw(code))
}

/// Runs a role.
pub(crate) fn run(role: &str, arguments: &[String]) -> ExitCode {
    match act(role, arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("kmod-guest {role}: {error:#}");
            ExitCode::from(255)
        }
    }
}

fn act(role: &str, arguments: &[String]) -> Result<u8> {
    let adopted = || -> Result<File> {
        let fd = arguments.first().context("no descriptor")?.parse()?;
        // SAFETY: the parent has left this descriptor open for us, and nobody else in this process uses it.
        Ok(unsafe { File::from_raw_fd(fd) })
    };
    let outcome = match role {
        // A request with a data buffer in private memory.
        "hold-private" => fill(&Device::open()?, &Memory::written(CHILD_DATA)?),
        // The same with a data buffer in the parent's file.
        "hold-shared" => {
            let memory = Memory::of_file(adopted()?, CHILD_DATA, true)?;
            fill(&Device::open()?, &memory)
        }
        // A call on a device that somebody else has opened.
        "foreign" => Device::inherited(adopted()?).call(CMD_LIST, &mut RequestSync::default()),
        // Requests through io_uring, never waited for.
        "hold-ring" => {
            let device = Device::open()?;
            let memory = Memory::written(CHILD_DATA)?;
            let control = Control::new(Task::Fill(1))?;
            let mut ring = Ring::new(8)?;
            for _ in 0..4 {
                ring.submit(&device, &frame(&control, &memory))?;
            }
            while ring.wait().is_ok() {}
            Ok(())
        }
        other => bail!("unknown role {other}"),
    };
    Ok(outcome.map_or_else(|errno| errno as i32 as u8, |()| 0))
}

fn frame(control: &Control, memory: &Memory) -> Frame {
    control.frame((memory.address(0), memory.len() as u32), 0)
}

fn fill(device: &Device, memory: &Memory) -> nix::Result<()> {
    let control = Control::new(Task::Fill(1)).map_err(|_| nix::errno::Errno::ENOMEM)?;
    device.submit(&frame(&control, memory)).map(drop)
}
