//! Which path a request takes: the channel when it works, HTTPS at once when it does not.

use std::path::PathBuf;
use std::sync::Arc;

use vsc_driver::buffer::Arena;

use super::Transport;

/// A volume's wish (volumes.md, `transport`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransportMode {
    /// Channel when the node has it, HTTPS otherwise.
    #[default]
    Prefer,
    /// Channel only.
    Require,
    /// HTTPS only.
    Https,
}

/// Process-wide: the channel with its circuit breaker and prober, and the HTTPS connection pool.
#[derive(Debug)]
pub struct Paths {}

impl Paths {
    /// `device`: the channel's node (`None` = never use the channel). Missing or refusing devices are no error: they are
    /// probed again with back-off in the background of `runtime`.
    pub fn new(device: Option<PathBuf>, arena: Arc<Arena>, runtime: tokio::runtime::Handle) -> Arc<Self> {
        let _ = (device, arena, runtime);
        todo!()
    }
    /// A transport with counters of its own over these shared paths.
    pub fn transport(self: &Arc<Self>, mode: TransportMode) -> Arc<dyn Transport> {
        let _ = mode;
        todo!()
    }
    /// Why the channel is not in use, in one sentence; `None` while it is.
    pub fn channel_unusable(&self) -> Option<String> {
        todo!()
    }
}
