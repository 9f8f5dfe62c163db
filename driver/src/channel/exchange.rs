//! One request with its buffers, on the way to the host and back.

use std::io;
use std::time::Duration;

use super::error::ChannelError;
use crate::buffer::{Buffer, PAGE, Slice};
use crate::uapi::MAX_PAGES;

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

impl Exchange {
    /// Memory that its buffers keep from others.
    pub(super) fn held(&self) -> usize {
        let data = match &self.data {
            Data::None => 0,
            Data::Out(slice) => slice.held(),
            Data::In(buffer) => buffer.capacity(),
        };
        self.request.capacity() + self.response.capacity() + data
    }

    /// What every driver refuses is refused here, with a reason.
    pub(super) fn check(&self) -> Result<(), ChannelError> {
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
