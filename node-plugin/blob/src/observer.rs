//! What is told of each request of one volume: for metrics.

use std::time::Duration;

use crate::transport::path::Path;

/// A request that went out over one path, and what came of it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// Which one.
    pub path: Path,
    /// The HTTP status of the answer; `None` when there was none.
    pub status: Option<u16>,
    /// From its being handed to the path to its answer, or to the end of the waiting.
    pub took: Duration,
    /// Bytes of its body; of one that was not answered they may not have arrived.
    pub sent: u64,
    /// Bytes of the answer's body.
    pub received: u64,
}

/// Is told of the requests of one volume. Called between an answer and its use: an implementation must be
/// quick and must not block.
pub trait Observer: Send + Sync + std::fmt::Debug {
    /// A request was answered over a path, or was not. One that failed on the channel and went over HTTPS at
    /// once are two.
    fn exchanged(&self, exchange: &Exchange);
    /// The service turned a request away because the account, or the blob, is asked for too much (503
    /// ServerBusy, 429).
    fn throttled(&self);
    /// A call goes out once more, because its attempt before came to nothing that is final.
    fn repeated(&self);
}
