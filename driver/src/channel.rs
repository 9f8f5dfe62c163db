//! Opening, probing and using the device: submission on a bounded pool of blocking threads, back-pressure, reopen.
//!
//! This module speaks of requests and completions. That the first door to the host is an ioctl is known to `ioctl`
//! alone; a second door (the rings mapped by uio) would stand beside it.

mod ioctl;
mod pool;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use self::pool::{Pool, TIMEOUTS};
use crate::buffer::{Buffer, PAGE, Slice};
use crate::uapi::MAX_PAGES;

/// How to reach the device and how patient to be.
#[derive(Debug, Clone)]
pub struct ChannelConfig {
    /// Device node, normally `/dev/azure_blob`.
    pub device: PathBuf,
    /// Blocking submission threads (requests in flight at most). Default 64.
    pub threads: usize,
    /// How long past its timeout a request may stay out before its thread is written off. Default 5 s.
    pub grace: Duration,
    /// Written-off threads at which the channel counts as stuck and takes no more requests, probes included, until one comes
    /// back. Default 4: a host that loses a single request for ever may serve all others, and whoever uses the channel finds
    /// that out by a probe; one that loses several at once is broken.
    pub stuck_after: usize,
}

impl Default for ChannelConfig {
    fn default() -> Self {
        Self {
            device: PathBuf::from("/dev/azure_blob"),
            threads: 64,
            grace: Duration::from_secs(5),
            stuck_after: 4,
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

/// Why a request did not complete.
///
/// `TimedOut` keeps the buffers until the host answers, because it may still write there. After all others they are free: either
/// nothing was sent, or the system call has returned, and it returns ENODEV for a request that the host had only once the
/// channel is closed, which ends the host's right to the pages.
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
    /// Requests now with the host or waiting for room in its ring, lost ones included.
    pub in_flight: usize,
    /// Requests now waiting for a thread.
    pub queued: usize,
}

/// An open channel; clones share it.
#[derive(Debug, Clone)]
pub struct Channel {
    inner: Arc<Inner>,
}

/// Ends the pool with the last clone (its threads hold the pool, not this).
#[derive(Debug)]
struct Inner {
    pool: Arc<Pool>,
    grace: Duration,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.pool.close();
    }
}

impl Channel {
    /// Opens the device and probes its ABI once (EFAULT on an unmapped struct = known number).
    ///
    /// Open it after the process's last credential change: the driver compares credentials (EACCES).
    pub fn open(config: ChannelConfig) -> Result<Self, ChannelError> {
        let grace = config.grace;
        let pool = Pool::open(config)?;
        Ok(Self {
            inner: Arc::new(Inner { pool, grace }),
        })
    }

    /// Sends one exchange and waits for the host, at most the request's timeout plus the grace.
    ///
    /// The exchange's timeout (clamped to 1..=120 s) covers waiting for a thread and for room in the ring as well; the
    /// host is given what is left of it. Dropping the future takes a request back only while no thread has taken it;
    /// afterwards its buffers stay with the submitting thread until the host answers. Needs a tokio runtime with time.
    pub async fn submit(&self, exchange: Exchange) -> Result<Completion, ChannelError> {
        exchange.check()?;
        let started = Instant::now();
        let timeout = exchange.timeout.clamp(TIMEOUTS.0, TIMEOUTS.1);
        let pool = &self.inner.pool;
        let ticket = pool.enqueue(exchange, started + timeout)?;
        match tokio::time::timeout(timeout + self.inner.grace, ticket.answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(ChannelError::Io {
                call: "submit",
                source: io::Error::other("the channel thread ended without an answer"),
            }),
            Err(_) => Err(pool.give_up(ticket.id, started.elapsed())),
        }
    }

    /// Whether a request could be sent now. Opens the device again if it is gone and the back-off (0.1 to 10 s) has
    /// passed, but sends nothing.
    pub async fn check(&self) -> Result<Abi, ChannelError> {
        let pool = Arc::clone(&self.inner.pool);
        tokio::task::spawn_blocking(move || pool.check())
            .await
            .map_err(|error| ChannelError::Io {
                call: "open",
                source: io::Error::other(error),
            })?
    }

    /// The ABI found at open (or at the latest reopen).
    pub fn abi(&self) -> Abi {
        self.inner.pool.abi()
    }

    /// Current counters.
    pub fn stats(&self) -> ChannelStats {
        self.inner.pool.stats()
    }
}

impl Exchange {
    /// What every driver refuses is refused here, with a reason.
    fn check(&self) -> Result<(), ChannelError> {
        if self.request.is_empty() || self.response.is_empty() {
            return Err(ChannelError::Io {
                call: "submit",
                source: io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "request and response buffers must not be empty",
                ),
            });
        }
        let data: &[u8] = match &self.data {
            Data::None => &[],
            Data::Out(slice) => slice,
            Data::In(buffer) => buffer,
        };
        let pages = pages(&self.request) + pages(&self.response) + pages(data);
        if pages > MAX_PAGES {
            return Err(ChannelError::TooLarge { pages });
        }
        Ok(())
    }
}

/// Pages a buffer touches; partly used ones count whole.
fn pages(buffer: &[u8]) -> usize {
    if buffer.is_empty() {
        0
    } else {
        (buffer.as_ptr().addr() % PAGE + buffer.len()).div_ceil(PAGE)
    }
}
