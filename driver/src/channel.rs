//! Opening, probing and using the device: submission on a bounded pool of blocking threads, back-pressure, reopen.

use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::buffer::{Buffer, Slice};

/// How to reach the device and how patient to be.
#[derive(Debug, Clone)]
pub struct ChannelConfig {
    /// Device node, normally `/dev/azure_blob`.
    pub device: PathBuf,
    /// Blocking submission threads (requests in flight at most). Default 64.
    pub threads: usize,
    /// How long past its timeout a request may stay out before the channel counts as stuck. Default 5 s.
    pub grace: Duration,
}

impl Default for ChannelConfig {
    fn default() -> Self {
        Self {
            device: PathBuf::from("/dev/azure_blob"),
            threads: 64,
            grace: Duration::from_secs(5),
        }
    }
}

/// The data buffer of an exchange: what the host reads from or writes into.
#[derive(Debug)]
pub enum Data {
    /// No data buffer.
    None,
    /// The host reads these bytes (`data_valid` = their length).
    Out(Slice),
    /// The host writes into this buffer, up to its length (`data_valid` = 0).
    In(Buffer),
}

/// One request: three buffers and a deadline. The channel owns the buffers until the host has answered.
#[derive(Debug)]
pub struct Exchange {
    /// Transaction id, printed by the kernel's debugfs listing.
    pub id: [u8; 16],
    /// Passed to the host; clamped to 1..=120 s.
    pub timeout: Duration,
    /// Header and JSON, ready to send.
    pub request: Buffer,
    /// Room for the answer's header and JSON.
    pub response: Buffer,
    /// Payload in or out.
    pub data: Data,
}

/// What came back: the same buffers and the host's 8-byte answer.
#[derive(Debug)]
pub struct Completion {
    /// The exchange as submitted; the host has written into `response` and `Data::In`.
    pub exchange: Exchange,
    /// Host status, 0 = the host executed the request (the payload may still carry an error).
    pub status: u32,
    /// Bytes of `response` that are valid.
    pub response_len: u32,
}

/// Why a request did not complete. `Gone`, `Stuck` and `TimedOut` keep the buffers (the host may still write there).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// The device node is missing or was removed (ENODEV/ENOENT/ENXIO).
    #[error("the channel device {device} is gone; it is reopened when it comes back")]
    Gone {
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
    #[error("the channel is stuck: {written_off} requests never came back")]
    Stuck {
        /// Threads lost in the ioctl.
        written_off: usize,
    },
    /// The three buffers need more pages than one packet carries.
    #[error("request too large for the channel: {pages} pages, at most 8192")]
    TooLarge {
        /// Pages needed.
        pages: usize,
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

/// Which command number the device answered to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abi {
    /// 0xC04852F0: the number posted to the kernel list (v2-v5).
    List,
    /// 0xC048520A: Ubuntu's in-box module and the published Java library.
    Ubuntu,
}

/// Counters and state, for metrics and `doctor`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChannelStats {
    /// Requests the host answered.
    pub completed: u64,
    /// EAGAIN answers retried.
    pub eagain: u64,
    /// Times the device was reopened after ENODEV.
    pub reopened: u64,
    /// Threads now lost in an ioctl past its deadline.
    pub written_off: usize,
}

/// An open channel; clones share it.
#[derive(Debug, Clone)]
pub struct Channel {}

impl Channel {
    /// Opens the device and probes its ABI once (EFAULT on an unmapped struct = known number).
    ///
    /// Open it after the process's last credential change: the driver compares credentials (EACCES).
    pub fn open(config: ChannelConfig) -> Result<Self, ChannelError> {
        let _ = config;
        todo!()
    }

    /// Sends one exchange and waits for the host. Dropping the future does not cancel the request;
    /// its buffers stay with the submitting thread until the host answers.
    pub async fn submit(&self, exchange: Exchange) -> Result<Completion, ChannelError> {
        let _ = exchange;
        todo!()
    }

    /// The ABI found at open (or at the latest reopen).
    pub fn abi(&self) -> Abi {
        todo!()
    }

    /// Current counters.
    pub fn stats(&self) -> ChannelStats {
        todo!()
    }
}
