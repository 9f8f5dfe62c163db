//! One exchange with the host: a request framed, submitted, and its response checked.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use vsc_driver::buffer::{Arena, Buffer, PAGE};
use vsc_driver::channel::{Channel, ChannelConfig, ChannelError, Data, Exchange, Ledger};
use vsc_driver::framing::response::Response as HostResponse;
use vsc_driver::framing::{self, FrameError, RESPONSE_CAPACITY};

use super::failure::{CallError, channel_error, malformed, no_memory, unsuitable};
use crate::transport::TransportError;

/// Room for a request's header and JSON; most need one page (a URL with a SAS, a dozen headers), metadata up
/// to 8 KiB more.
pub(super) const REQUEST_SIZES: [usize; 2] = [2 * PAGE, 32 * PAGE];
/// A host that is well answers a probe in well under a millisecond.
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// The host at the other end of the channel.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) channel: Channel,
    arena: Arc<Arena>,
}

impl Host {
    /// Opens the device (blocks for a few system calls).
    pub(super) fn open(config: ChannelConfig, arena: Arc<Arena>) -> Result<Self, ChannelError> {
        Ok(Self {
            channel: Channel::open(config)?,
            arena,
        })
    }

    /// One exchange: request framed, submitted, response checked.
    pub(super) async fn call<T: Serialize>(
        &self,
        method: framing::Method,
        body: &T,
        id: [u8; 16],
        timeout: Duration,
        data: Data,
        ledger: Option<&Arc<dyn Ledger>>,
    ) -> Result<(HostResponse, Data), CallError> {
        let exchange = Exchange {
            id,
            timeout,
            request: self.framed(method, body)?,
            response: self.alloc(RESPONSE_CAPACITY)?,
            data,
        };
        let submitted = self.channel.submit_for(exchange, ledger.map(Arc::clone));
        let done = submitted.await.map_err(channel_error)?;
        if done.status != 0 {
            return Err(CallError::Status(done.status));
        }
        let host = framing::decode_response::<HostResponse>(&done.exchange.response, done.response_len)
            .map_err(|error| malformed(format!("the host's response: {error}"), true))?;
        Ok((host, done.exchange.data))
    }

    fn framed<T: Serialize>(&self, method: framing::Method, body: &T) -> Result<Buffer, TransportError> {
        let mut needed = REQUEST_SIZES[0];
        loop {
            let mut buffer = self.alloc(needed)?;
            // A signature, a token or a SAS is in it.
            buffer.holds_secrets();
            match framing::encode_request(method, body, &mut buffer) {
                Ok(len) => {
                    buffer.set_len(len);
                    return Ok(buffer);
                }
                Err(FrameError::Length { len, .. }) if needed < len && len <= REQUEST_SIZES[1] => {
                    needed = REQUEST_SIZES[1];
                }
                Err(error) => return Err(unsuitable(format!("request does not fit the channel: {error}"))),
            }
        }
    }

    pub(super) fn alloc(&self, len: usize) -> Result<Buffer, TransportError> {
        self.arena
            .alloc(len)
            .map_err(|error| no_memory(error.to_string()))
    }
}
