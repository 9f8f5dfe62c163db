//! Signals to one thread.
#![expect(unsafe_code, reason = "signal handlers and pthread ids")]

use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Calls `handler`, which must be async-signal-safe, at this signal.
pub(crate) fn install_handler(signal: Signal, handler: extern "C" fn(libc::c_int)) -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(handler), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handlers of this program only count.
    unsafe { sigaction(signal, &action) }
        .map(drop)
        .context("sigaction")
}

/// Sends a signal to a thread that has not been joined.
pub(crate) fn send_signal<T>(thread: &JoinHandle<T>, signal: Signal) -> Result<()> {
    // SAFETY: the handle keeps the thread's id valid.
    let error = unsafe { libc::pthread_kill(thread.as_pthread_t(), signal as i32) };
    if error == 0 {
        Ok(())
    } else {
        Err(Errno::from_raw(error)).context("pthread_kill")
    }
}
