//! The channel as failover sees it: a transport that can be asked whether it is well.

use async_trait::async_trait;
use vsc_driver::channel::ChannelStats;

use super::Transport;
use crate::request::Request;
use crate::response::Response;

/// See the module.
#[async_trait]
pub(crate) trait Probed: Transport {
    /// Asks the host something harmless; `Err` says why the channel is not usable.
    async fn probe(&self) -> Result<(), String>;

    /// What the host does not take on a channel that is well otherwise, in one sentence.
    fn limits(&self) -> Option<String> {
        None
    }

    /// Shown what HTTPS answered to a request that was not for the channel.
    fn learn(&self, request: &Request, response: &Response);

    /// Counters of the device underneath.
    fn device_stats(&self) -> ChannelStats;
}
