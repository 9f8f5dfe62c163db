//! Why a request did not complete.

use std::time::Duration;

use thiserror::Error;

/// Why a request did not complete.
///
/// `TimedOut` keeps the buffers until the host answers, because it may still write there. After all others
/// they are free: either nothing was sent, or the system call has returned, and it returns ENODEV for a
/// request that the host had only once the channel is closed, which ends the host's right to the pages.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// The device was open and was removed (ENODEV/ENOENT/ENXIO).
    #[error("the channel device {device} is gone; it is reopened when it comes back")]
    Gone {
        /// Device path.
        device: String,
        /// The request had been given to the device, so the host may have executed it before it went.
        sent: bool,
    },
    /// There is no device node to begin with.
    #[error("there is no channel device {device}")]
    Missing {
        /// Device path.
        device: String,
    },
    /// Neither ioctl number is known to the device.
    #[error("the channel device {device} speaks neither known ABI")]
    UnknownAbi {
        /// Device path.
        device: String,
    },
    /// Ring full for longer than the request's deadline.
    #[error("the channel stayed full (EAGAIN) until the request's deadline")]
    Busy,
    /// The request did not come back within its timeout plus grace.
    #[error("the channel did not answer within {waited:?}")]
    TimedOut {
        /// Time waited.
        waited: Duration,
    },
    /// Too many threads are written off; nothing is sent until they return.
    #[error("the channel is stuck: {written_off} requests never came back, with {bytes} bytes of memory")]
    Stuck {
        /// Threads lost in the ioctl.
        written_off: usize,
        /// What their buffers, and those of requests whose callers have left, hold.
        bytes: usize,
    },
    /// The three buffers need more pages than one packet carries.
    #[error("request too large for the channel: {pages} pages, at most 8192")]
    TooLarge {
        /// Pages needed.
        pages: usize,
    },
    /// The driver does not take requests of this process, or has no memory for this one. Nothing was sent.
    #[error(
        "the channel's driver refuses the request ({source}): the device has to be opened by the process \
         that uses it, with the credentials it has then"
    )]
    Refused {
        /// The operating system's error.
        source: std::io::Error,
    },
    /// Any other failure of open or ioctl.
    #[error("channel {call}: {source}")]
    Io {
        /// The call that failed.
        call: &'static str,
        /// The operating system's error.
        source: std::io::Error,
    },
}
