//! Requests that outlive their task, and a module that outlives its requests.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;

use crate::child::{self, CHILD_DATA};
use crate::client::{Control, Device};
use crate::memory::{Memory, PAGE};
use crate::runner::Bench;
use crate::service::{Mode, Task, pattern};
use crate::signals::{install_handler, send_signal};
use crate::system::{load, pending, pinned, soon, unload_module, wait_node, wait_unpinned, wait_until};

static SIGNALS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count_signal(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::SeqCst);
}

/// A signal with a handler does not end the wait; the handler runs after the answer.
pub(crate) fn plain_signal(bench: &Bench) -> Result<()> {
    install_handler(Signal::SIGUSR1, count_signal)?;
    let device = Device::open()?;
    let control = Control::new(Task::Sum)?;
    let data = Memory::written(PAGE)?;
    bench.service.set(Mode::Hold);
    let call = std::thread::spawn(move || device.submit(&control.frame((data.address(0), 8), 8)));
    let packet = bench.service.take_one()?;
    send_signal(&call, Signal::SIGUSR1)?;
    ensure!(!call.is_finished(), "the call was interrupted");
    bench.service.serve(&packet)?;
    let outcome = call.join().map_err(|_| anyhow!("the caller panicked"))?;
    ensure!(outcome == Ok((0, 8)), "{outcome:?}");
    wait_until("the signal's handler", soon(), || {
        SIGNALS.load(Ordering::SeqCst) == 1
    })
}

/// Kills a waiting task. It is gone before the host answers, its pages are not.
fn killed(bench: &Bench, role: &str, file: Option<&std::fs::File>) -> Result<()> {
    // The pages of a request before this one may still be on their way.
    wait_unpinned()?;
    bench.service.set(Mode::Hold);
    let mut child = child::start(role, file)?;
    let packet = bench.service.take_one()?;
    ensure!(
        pending()?.iter().any(|line| line.ends_with(" ioctl")),
        "the listing is {:?}",
        pending()?
    );
    child.kill()?;
    // Returns only when the task has left the call: the host still holds the request.
    let status = child::wait_gone(&mut child)?;
    ensure!(status.code().is_none(), "the child ended by itself: {status}");
    let listing = pending()?;
    ensure!(
        listing.len() == 1 && listing[0].ends_with(" abandoned"),
        "the listing is {listing:?}"
    );
    let pinned_now = pinned()?;
    ensure!(
        pinned_now >= (CHILD_DATA / PAGE) as u64 + 2,
        "{pinned_now} pages are pinned"
    );
    // The late write: the host refuses pages that are not pinned.
    bench.service.serve(&packet)?;
    wait_until("the request to go", soon(), || {
        pending().is_ok_and(|lines| lines.is_empty())
    })
}

/// A killed task whose memory is gone with it.
pub(crate) fn killed_private(bench: &Bench) -> Result<()> {
    for _ in 0..5 {
        killed(bench, "hold-private", None)?;
    }
    Ok(())
}

/// A killed task whose memory somebody else can still see: the late bytes arrive there.
pub(crate) fn killed_shared(bench: &Bench) -> Result<()> {
    let fd = memfd_create(c"shared", MFdFlags::MFD_CLOEXEC)?;
    nix::unistd::ftruncate(&fd, CHILD_DATA as i64)?;
    let memory = Memory::of_file(&fd, CHILD_DATA, true)?;
    let file = std::fs::File::from(fd);
    killed(bench, "hold-shared", Some(&file))?;
    ensure!(
        memory.read(0, CHILD_DATA) == pattern(1, CHILD_DATA),
        "the late bytes did not arrive"
    );
    Ok(())
}

/// The module cannot be unloaded while the node is open.
pub(crate) fn unload_refused(_: &Bench) -> Result<()> {
    let device = Device::open()?;
    let outcome = unload_module();
    ensure!(outcome == Err(Errno::EWOULDBLOCK), "{outcome:?}");
    drop(device);
    unload_module().context("unloading an idle module")?;
    wait_node(false)?;
    load()
}

/// Unloading with an abandoned request waits for the host's answer.
pub(crate) fn unload_waits(bench: &Bench) -> Result<()> {
    bench.service.set(Mode::Hold);
    let mut child = child::start("hold-private", None)?;
    let packet = bench.service.take_one()?;
    child.kill()?;
    child::wait_gone(&mut child)?;
    let unload = std::thread::spawn(unload_module);
    // The node goes first; the module stays for its request.
    wait_node(false)?;
    ensure!(!unload.is_finished(), "the module did not wait");
    bench.service.serve(&packet)?;
    unload.join().map_err(|_| anyhow!("unloading panicked"))??;
    load()
}
