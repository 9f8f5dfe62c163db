//! Which path a request takes: the channel when it works, HTTPS at once when it does not.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use vsc_driver::buffer::Arena;

use super::https::Https;
use super::{FailureKind, PathStats, Transport, TransportError};
use crate::request::Request;
use crate::response::Response;

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
pub struct Paths {
    device: Option<PathBuf>,
}

impl Paths {
    /// `device`: the channel's node (`None` = never use the channel). Missing or refusing devices are no error: they are
    /// probed again with back-off in the background of `runtime`.
    pub fn new(device: Option<PathBuf>, arena: Arc<Arena>, runtime: tokio::runtime::Handle) -> Arc<Self> {
        let _ = (arena, runtime);
        Arc::new(Self { device })
    }
    /// A transport with counters of its own over these shared paths.
    pub fn transport(self: &Arc<Self>, mode: TransportMode) -> Arc<dyn Transport> {
        match mode {
            TransportMode::Prefer | TransportMode::Https => Arc::new(Https::new()),
            TransportMode::Require => Arc::new(NoChannel(self.reason())),
        }
    }
    /// Why the channel is not in use, in one sentence; `None` while it is.
    pub fn channel_unusable(&self) -> Option<String> {
        Some(self.reason())
    }

    fn reason(&self) -> String {
        match &self.device {
            Some(device) => format!("the transport over {} is not finished yet", device.display()),
            None => "the channel is switched off".into(),
        }
    }
}

#[derive(Debug)]
struct NoChannel(String);

#[async_trait]
impl Transport for NoChannel {
    async fn send(&self, _: Request) -> Result<Response, TransportError> {
        Err(TransportError {
            path: "channel",
            kind: FailureKind::ChannelRequired,
            message: self.0.clone(),
            maybe_executed: false,
            retryable: false,
        })
    }

    fn stats(&self) -> Vec<PathStats> {
        Vec::new()
    }
}
