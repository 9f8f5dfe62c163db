//! The published part of the payload: 32-byte headers, CRC-64/NVME, JSON body, and our request field names.
//!
//! ```text
//! request   "HsReq001" | u32 format | u32 method | u64 crc64 | u64 0 | JSON
//! response  "HsRes001" | u32 format | u32 0      | u64 crc64 | u64 0 | JSON
//! ```
//! Little-endian. The CRC covers header (its own field zero) and body, so that every flipped bit
//! and every cut shows.
//! Both directions are here: the client writes requests and reads responses, the mock VSP does the reverse.

pub mod request;
pub mod response;
#[cfg(test)]
mod tests;

use crc::{CRC_64_NVME, Crc, Table};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Bytes of either header.
pub const HEADER_LEN: usize = 32;
/// Capacity of a response buffer in bytes, as the published library has it.
pub const RESPONSE_CAPACITY: usize = 32 * 1024;

const REQUEST_MAGIC: &[u8; 8] = b"HsReq001";
const RESPONSE_MAGIC: &[u8; 8] = b"HsRes001";
const FORMAT_JSON: u32 = 1;
const CRC_AT: usize = 16;

static CRC64: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_NVME);

/// What the host is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Method {
    /// Opens a blob for reading; answers a handle.
    Open,
    /// Reads a range of an open blob into the data buffer.
    Read,
    /// Ends a handle.
    Close,
    /// Our extension: one REST call passed through as data. A VSP may refuse it.
    Rest,
}

impl Method {
    /// The number on the wire.
    pub fn code(self) -> u32 {
        match self {
            Self::Open => 1,
            Self::Read => 2,
            Self::Close => 3,
            Self::Rest => 0x80,
        }
    }

    /// The method with this number, if it is one of ours.
    pub fn from_code(code: u32) -> Option<Self> {
        [Self::Open, Self::Read, Self::Close, Self::Rest]
            .into_iter()
            .find(|m| m.code() == code)
    }
}

/// Why a payload was not accepted, or could not be written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Shorter than a header, or longer than its buffer.
    #[error("a payload of {len} bytes where {least} to {most} can be")]
    Length {
        /// Bytes it claims to have.
        len: usize,
        /// At least this many are needed.
        least: usize,
        /// At most this many are there.
        most: usize,
    },
    /// Not the eight letters that start this kind of payload.
    #[error("wrong magic at the start of the payload")]
    Magic,
    /// The checksum does not fit the bytes.
    #[error("the payload's CRC-64 is {computed:#018x}, its header says {stated:#018x}")]
    Crc {
        /// Over the bytes that arrived.
        computed: u64,
        /// In the header.
        stated: u64,
    },
    /// A body format other than JSON.
    #[error("unknown payload format {0}")]
    Format(u32),
    /// The body is not the JSON that was expected.
    #[error("payload body: {0}")]
    Json(#[from] serde_json::Error),
}

/// A checked request, as the host sees it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RequestFrame<'a> {
    /// Method number; see [`Method::from_code`].
    pub method: u32,
    /// The JSON body, not yet parsed (it may hold credentials: not in Debug).
    pub body: &'a [u8],
}

impl std::fmt::Debug for RequestFrame<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "RequestFrame(method {:#x}, {} bytes)",
            self.method,
            self.body.len()
        )
    }
}

/// Writes a request into `buffer`; answers the bytes used.
pub fn encode_request<T: Serialize>(
    method: Method,
    body: &T,
    buffer: &mut [u8],
) -> Result<usize, FrameError> {
    encode(REQUEST_MAGIC, method.code(), body, buffer)
}

/// Checks a request and finds its parts.
pub fn decode_request(bytes: &[u8]) -> Result<RequestFrame<'_>, FrameError> {
    let (method, body) = decode(REQUEST_MAGIC, bytes)?;
    Ok(RequestFrame { method, body })
}

/// Writes a response into `buffer`; answers the bytes used.
pub fn encode_response<T: Serialize>(body: &T, buffer: &mut [u8]) -> Result<usize, FrameError> {
    encode(RESPONSE_MAGIC, 0, body, buffer)
}

/// Checks the first `len` bytes of a response buffer and parses the body.
pub fn decode_response<T: DeserializeOwned>(buffer: &[u8], len: u32) -> Result<T, FrameError> {
    let bytes = usize::try_from(len)
        .ok()
        .and_then(|len| buffer.get(..len))
        .ok_or(FrameError::Length {
            len: len as usize,
            least: HEADER_LEN,
            most: buffer.len(),
        })?;
    let (_, body) = decode(RESPONSE_MAGIC, bytes)?;
    Ok(serde_json::from_slice(body)?)
}

/// CRC-64/NVME over a header whose own field counts as zero, and what follows it.
fn checksum(bytes: &[u8]) -> u64 {
    let mut digest = CRC64.digest();
    digest.update(&bytes[..CRC_AT]);
    digest.update(&[0; 8]);
    digest.update(&bytes[CRC_AT + 8..]);
    digest.finalize()
}

fn encode<T: Serialize>(
    magic: &[u8; 8],
    word: u32,
    body: &T,
    buffer: &mut [u8],
) -> Result<usize, FrameError> {
    let most = buffer.len();
    let too_long = |len| FrameError::Length {
        len,
        least: HEADER_LEN,
        most,
    };
    let Some((header, room)) = buffer.split_at_mut_checked(HEADER_LEN) else {
        return Err(too_long(HEADER_LEN));
    };
    let mut rest = &mut *room;
    if let Err(error) = serde_json::to_writer(&mut rest, body) {
        // The writer's only failure is a full buffer: say how much it would have taken.
        return Err(if error.is_io() {
            too_long(HEADER_LEN + serde_json::to_vec(body)?.len())
        } else {
            error.into()
        });
    }
    let len = most - rest.len();
    header[..8].copy_from_slice(magic);
    header[8..12].copy_from_slice(&FORMAT_JSON.to_le_bytes());
    header[12..16].copy_from_slice(&word.to_le_bytes());
    header[CRC_AT..].fill(0);
    let crc = checksum(&buffer[..len]);
    buffer[CRC_AT..CRC_AT + 8].copy_from_slice(&crc.to_le_bytes());
    Ok(len)
}

/// Checks magic, checksum and format; answers the word after the format, and the body.
fn decode<'a>(magic: &[u8; 8], bytes: &'a [u8]) -> Result<(u32, &'a [u8]), FrameError> {
    let Some((header, body)) = bytes.split_first_chunk::<HEADER_LEN>() else {
        return Err(FrameError::Length {
            len: bytes.len(),
            least: HEADER_LEN,
            most: usize::MAX,
        });
    };
    if !header.starts_with(magic) {
        return Err(FrameError::Magic);
    }
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
    let stated = u64::from_le_bytes(std::array::from_fn(|i| header[CRC_AT + i]));
    let computed = checksum(bytes);
    if stated != computed {
        return Err(FrameError::Crc { computed, stated });
    }
    match word(8) {
        FORMAT_JSON => Ok((word(12), body)),
        other => Err(FrameError::Format(other)),
    }
}
