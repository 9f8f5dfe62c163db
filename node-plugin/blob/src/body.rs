//! Bytes to send.

use vsc_driver::buffer::Slice;

/// Bytes to send: pieces, sent one after the other without joining them (HTTPS), or straight from
/// one arena slice (channel); several pieces over the channel are gathered into one buffer first.
#[derive(Debug, Clone, Default)]
pub struct Body(pub Vec<Piece>);

/// One piece of a body.
#[derive(Debug, Clone)]
pub enum Piece {
    /// Ordinary memory.
    Bytes(bytes::Bytes),
    /// Arena memory: the channel sends it without a copy.
    Slice(Slice),
}

impl Body {
    /// Total length in bytes.
    pub fn len(&self) -> u64 {
        self.0
            .iter()
            .map(|p| match p {
                Piece::Bytes(b) => b.len() as u64,
                Piece::Slice(s) => s.len() as u64,
            })
            .sum()
    }
    /// True when there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<bytes::Bytes> for Body {
    fn from(b: bytes::Bytes) -> Self {
        Self(vec![Piece::Bytes(b)])
    }
}

impl From<Slice> for Body {
    fn from(s: Slice) -> Self {
        Self(vec![Piece::Slice(s)])
    }
}
