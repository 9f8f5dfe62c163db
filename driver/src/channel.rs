//! Opening, probing and using the device: submission on a bounded pool of blocking threads, back-pressure,
//! reopen.
//!
//! This module speaks of requests and completions. That the first door to the host is an ioctl is known to
//! `ioctl` alone; a second door (the rings mapped by uio) would stand beside it.

mod abi;
mod config;
mod error;
mod exchange;
mod ioctl;
mod lost;
mod pool;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::abi::Abi;
pub use self::config::{ChannelConfig, ChannelStats};
pub use self::error::ChannelError;
pub use self::exchange::{Completion, Data, Exchange};
pub use self::lost::Ledger;
use self::lost::Load;
use self::pool::{Pool, TIMEOUTS};

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
    /// The exchange's timeout (clamped to 1..=120 s) covers waiting for a thread, for its bytes to be among
    /// those that may be out (`most_bytes`), and for room in the ring as well; the host is given what is left
    /// of it. Dropping the future takes a request back only while no thread has taken it; afterwards its
    /// buffers stay with the submitting thread until the host answers. Needs a tokio runtime with time.
    pub async fn submit(&self, exchange: Exchange) -> Result<Completion, ChannelError> {
        self.submit_for(exchange, None).await
    }

    /// The same for somebody who keeps books of the memory: `ledger` is told when nobody waits for the
    /// request any more - it was given up, or the future was dropped - while the host has its buffers.
    pub async fn submit_for(
        &self,
        exchange: Exchange,
        ledger: Option<Arc<dyn Ledger>>,
    ) -> Result<Completion, ChannelError> {
        exchange.check()?;
        let load = Load {
            bytes: exchange.held(),
            ledger,
        };
        let started = Instant::now();
        let timeout = exchange.timeout.clamp(TIMEOUTS.0, TIMEOUTS.1);
        let pool = &self.inner.pool;
        let mut ticket = pool.enqueue(exchange, load, started + timeout)?;
        match tokio::time::timeout(timeout + self.inner.grace, ticket.answer()).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(ChannelError::Io {
                call: "submit",
                source: io::Error::other("the channel thread ended without an answer"),
            }),
            Err(_) => Err(pool.give_up(ticket.id(), started.elapsed())),
        }
    }

    /// Whether a request could be sent now. Opens the device again if it is gone and the back-off (0.1 to 10
    /// s) has passed, but sends nothing.
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

    /// Whether the host has the exchange of this id still: one that was given up may be executed as long as
    /// it has.
    pub fn has(&self, exchange: &[u8; 16]) -> bool {
        self.inner.pool.has(exchange)
    }

    /// Current counters.
    pub fn stats(&self) -> ChannelStats {
        self.inner.pool.stats()
    }
}
