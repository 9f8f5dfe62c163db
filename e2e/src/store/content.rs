//! Bytes of blobs: shared pieces, sliced and never copied.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use md5::{Digest, Md5};

use super::block_file::BlockFile;

/// One run of bytes.
#[derive(Debug, Clone)]
pub(super) enum Piece {
    /// In memory, shared.
    Memory(Bytes),
    /// In a file of the store's folder.
    File {
        /// The file; it stays as long as somebody holds it.
        file: Arc<BlockFile>,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Zeros that take no memory (page blobs).
    Zeros(u64),
}

/// Zeros are answered out of one shared page run.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

impl Piece {
    /// Length in bytes.
    pub(super) fn len(&self) -> u64 {
        match self {
            Piece::Memory(bytes) => bytes.len() as u64,
            Piece::File { len, .. } => *len,
            Piece::Zeros(len) => *len,
        }
    }
    /// A part of it; the range must lie inside.
    fn slice(&self, range: Range<u64>) -> Piece {
        match self {
            Piece::Memory(bytes) => Piece::Memory(bytes.slice(range.start as usize..range.end as usize)),
            Piece::File { file, offset, .. } => Piece::File {
                file: file.clone(),
                offset: offset + range.start,
                len: range.end - range.start,
            },
            Piece::Zeros(_) => Piece::Zeros(range.end - range.start),
        }
    }
    /// Takes up to `max` bytes off the front as memory: file pieces are read.
    pub(super) fn take(&mut self, max: usize) -> std::io::Result<Bytes> {
        let n = self.len().min(max as u64);
        let bytes = match self {
            Piece::Memory(bytes) => return Ok(bytes.split_to(n as usize)),
            Piece::File { file, offset, .. } => file.read(*offset, n as usize)?,
            Piece::Zeros(_) => Bytes::from_static(&ZEROS[..(n as usize).min(ZEROS.len())]),
        };
        *self = self.slice(bytes.len() as u64..self.len());
        Ok(bytes)
    }
}

/// A request body, a block or an answer: pieces one after the other.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    pieces: Vec<Piece>,
    len: u64,
}

impl Content {
    /// Total length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }
    /// Adds a piece at the end.
    pub(super) fn push(&mut self, piece: Piece) {
        if piece.len() > 0 {
            self.len += piece.len();
            self.pieces.push(piece);
        }
    }
    /// Adds all pieces of another.
    pub(super) fn append(&mut self, other: Content) {
        self.len += other.len;
        self.pieces.extend(other.pieces);
    }
    /// A part; parts past the end are left out.
    pub(super) fn slice(&self, range: Range<u64>) -> Content {
        let mut out = Content::default();
        let mut at = 0;
        for piece in &self.pieces {
            let end = at + piece.len();
            if at >= range.end {
                break;
            }
            if end > range.start {
                let from = range.start.max(at) - at;
                let to = range.end.min(end) - at;
                out.push(piece.slice(from..to));
            }
            at = end;
        }
        out
    }
    /// The pieces.
    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }
    /// The pieces, owned.
    pub(super) fn into_pieces(self) -> Vec<Piece> {
        self.pieces
    }
    /// Calls `f` with every run of bytes in order; files are read piecewise.
    pub(super) fn for_each(&self, mut f: impl FnMut(&Bytes) -> std::io::Result<()>) -> std::io::Result<()> {
        for piece in &self.pieces {
            let mut rest = piece.clone();
            while rest.len() > 0 {
                f(&rest.take(1 << 20)?)?;
            }
        }
        Ok(())
    }
    /// All of it as shared memory, unjoined.
    pub(super) fn into_bytes(self) -> std::io::Result<Vec<Bytes>> {
        let mut out = Vec::with_capacity(self.pieces.len());
        for mut piece in self.pieces {
            while piece.len() > 0 {
                out.push(piece.take(usize::MAX)?);
            }
        }
        Ok(out)
    }
    /// All of it in one run; copies unless it is one already. For XML bodies and small blobs.
    pub(super) fn joined(&self) -> std::io::Result<Bytes> {
        if let [Piece::Memory(bytes)] = self.pieces.as_slice() {
            return Ok(bytes.clone());
        }
        let mut out = Vec::with_capacity(self.len as usize);
        self.for_each(|bytes| {
            out.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(out.into())
    }
    /// MD5.
    pub(super) fn md5(&self) -> std::io::Result<[u8; 16]> {
        let mut md5 = Md5::new();
        self.for_each(|bytes| {
            md5.update(bytes);
            Ok(())
        })?;
        Ok(md5.finalize().into())
    }
    /// CRC-64 as Azure Storage computes it (the polynomial of CRC-64/NVME), little-endian as it goes into the
    /// header.
    pub(super) fn crc64(&self) -> std::io::Result<[u8; 8]> {
        static CRC: crc::Crc<u64, crc::Table<16>> = crc::Crc::<u64, crc::Table<16>>::new(&crc::CRC_64_NVME);
        let mut digest = CRC.digest();
        self.for_each(|bytes| {
            digest.update(bytes);
            Ok(())
        })?;
        Ok(digest.finalize().to_le_bytes())
    }
}

impl From<Bytes> for Content {
    fn from(bytes: Bytes) -> Self {
        let mut content = Self::default();
        content.push(Piece::Memory(bytes));
        content
    }
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

/// A staged or committed block.
#[derive(Debug)]
pub(super) struct Block {
    /// Its id, decoded; empty for the only block of a blob made by one Put Blob.
    pub(super) id: Vec<u8>,
    /// Its bytes.
    pub(super) content: Content,
}

/// The committed content of a blob: blocks with the offset each begins at.
#[derive(Debug, Clone, Default)]
pub(super) struct BlockRun {
    blocks: Vec<Arc<Block>>,
    /// `starts[i]` is where `blocks[i]` begins.
    starts: Vec<u64>,
    len: u64,
}

impl BlockRun {
    /// Blocks in order.
    pub(super) fn new(blocks: Vec<Arc<Block>>) -> Self {
        let mut len = 0;
        let starts = blocks
            .iter()
            .map(|block| {
                let start = len;
                len += block.content.len();
                start
            })
            .collect();
        Self { blocks, starts, len }
    }
    /// Length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }
    /// The blocks.
    pub(super) fn blocks(&self) -> &[Arc<Block>] {
        &self.blocks
    }
    /// Bytes of a range as slices of the blocks.
    pub(super) fn slice(&self, range: Range<u64>) -> Content {
        let mut out = Content::default();
        let end = range.end.min(self.len);
        if range.start >= end {
            return out;
        }
        // The last block that begins at or before the range; empty blocks at the same offset come before it.
        let first = self
            .starts
            .partition_point(|start| *start <= range.start)
            .saturating_sub(1);
        for (block, start) in self.blocks[first..].iter().zip(&self.starts[first..]) {
            if *start >= end {
                break;
            }
            out.append(
                block
                    .content
                    .slice(range.start.saturating_sub(*start)..end - start),
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::encoding::base64;
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn block(pieces: &[Vec<u8>]) -> Arc<Block> {
        let mut content = Content::default();
        for piece in pieces {
            content.push(Piece::Memory(piece.clone().into()));
        }
        Arc::new(Block {
            id: b"x".to_vec(),
            content,
        })
    }

    proptest! {
        #[test]
        fn a_slice_is_what_a_flat_buffer_gives(
            blocks in vec(vec(vec(any::<u8>(), 0..9), 0..4), 0..8),
            start in 0u64..120, len in 0u64..120,
        ) {
            let flat: Vec<u8> = blocks.iter().flatten().flatten().copied().collect();
            let run = BlockRun::new(blocks.iter().map(|b| block(b)).collect());
            prop_assert_eq!(run.len(), flat.len() as u64);
            let got = run.slice(start..start + len).joined().unwrap();
            let from = (start as usize).min(flat.len());
            let to = ((start + len) as usize).min(flat.len());
            prop_assert_eq!(&got[..], &flat[from..to]);
        }
    }

    #[test]
    fn slices_share_the_memory() {
        let bytes = Bytes::from(vec![7u8; 4096]);
        let run = BlockRun::new(vec![Arc::new(Block {
            id: vec![1],
            content: bytes.clone().into(),
        })]);
        let out = run.slice(100..200).into_bytes().unwrap();
        assert_eq!(out.len(), 1);
        assert_eq!(out[0].as_ptr(), bytes[100..].as_ptr());
    }

    #[test]
    fn zeros_are_zeros() {
        let mut content = Content::default();
        content.push(Piece::Zeros(200_000));
        assert_eq!(content.joined().unwrap(), vec![0u8; 200_000]);
        assert_eq!(content.slice(10..70_000).len(), 69_990);
    }

    #[test]
    fn checksums_have_known_values() {
        let content: Content = Bytes::from_static(b"123456789").into();
        assert_eq!(base64(&content.md5().unwrap()), "JfnnlDI7RTiF9RgfG2JNCw==");
        // Check value of CRC-64/NVME.
        assert_eq!(
            u64::from_le_bytes(content.crc64().unwrap()),
            0xAE8B_1486_0A79_9888
        );
    }
}
