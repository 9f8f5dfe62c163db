//! Putting together the bytes of a range that is sent: what was written, zeros, and the base in between.

use std::ops::Range;
use std::sync::Arc;

use blob_client::{Body, Piece};
use bytes::Bytes;

use super::core::Core;
use super::error::FileError;
use super::overlay::Content;
use super::snapshot::Snapshot;

/// Zeros to send, again and again.
static ZEROS: &[u8] = &[0; 1 << 20];

impl Core {
    /// The bytes of a range of the snapshot.
    pub(super) async fn gather(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        range: Range<u64>,
    ) -> Result<Body, FileError> {
        let mut pieces = Vec::new();
        let mut at = range.start;
        let first = snapshot
            .segments
            .partition_point(|(s, seg)| s + seg.len <= range.start);
        for (start, segment) in &snapshot.segments[first..] {
            if *start >= range.end {
                break;
            }
            let clip = range.start.max(*start)..range.end.min(start + segment.len);
            self.gather_base(snapshot, at..clip.start, &mut pieces).await?;
            at = clip.end;
            match &segment.content {
                Content::Mem(slice, _) => pieces.push(Piece::Slice(
                    slice.slice((clip.start - start) as usize..(clip.end - start) as usize),
                )),
                Content::Hole => push_zeros(&mut pieces, clip.end - clip.start),
                // A snapshot has no open runs, and what is only staged is never sent again.
                Content::Open | Content::Remote => return Err(FileError::Stale),
            }
        }
        self.gather_base(snapshot, at..range.end, &mut pieces).await?;
        Ok(Body(pieces))
    }

    async fn gather_base(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        range: Range<u64>,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), FileError> {
        let mut at = range.start;
        while at < range.end {
            let index = snapshot.holes.partition_point(|h| h.end <= at);
            let hole = snapshot.holes.get(index).filter(|h| h.start < range.end);
            let data_end = hole.map_or(range.end, |h| h.start.max(at));
            if at < data_end {
                let slices = self.read_base(at..data_end).await?;
                pieces.extend(slices.into_iter().map(Piece::Slice));
            }
            at = hole.map_or(range.end, |h| h.end.min(range.end));
            push_zeros(pieces, at - data_end);
        }
        Ok(())
    }
}

fn push_zeros(pieces: &mut Vec<Piece>, mut len: u64) {
    while len > 0 {
        let now = len.min(ZEROS.len() as u64);
        pieces.push(Piece::Bytes(Bytes::from_static(&ZEROS[..now as usize])));
        len -= now;
    }
}

pub(super) fn zeros_body(len: u64) -> Body {
    let mut pieces = Vec::new();
    push_zeros(&mut pieces, len);
    Body(pieces)
}
