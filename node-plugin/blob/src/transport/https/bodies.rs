//! Bodies: those of requests sent piece by piece, those of answers copied to where they belong.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use vsc_driver::buffer::Buffer;

use super::failure::{chain, is_silence};
use super::progress::Progress;
use crate::body::{Body, Piece};
use crate::transport::path::Path;
use crate::transport::{FailureKind, TransportError};

/// One frame of a request's body at most.
pub(super) const FRAME: usize = 256 * 1024;

/// A request body that hands hyper its pieces as they are, for a vectored write.
#[derive(Debug)]
pub(super) struct Pieces {
    rest: VecDeque<Bytes>,
    left: u64,
    progress: Arc<Progress>,
}

impl Pieces {
    pub(super) fn new(body: &Body, progress: Arc<Progress>) -> Self {
        let rest = body
            .0
            .iter()
            .map(|piece| match piece {
                Piece::Bytes(bytes) => bytes.clone(),
                Piece::Slice(slice) => slice.to_bytes(),
            })
            .filter(|bytes| !bytes.is_empty())
            .collect();
        Self {
            rest,
            left: body.len(),
            progress,
        }
    }
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    /// A long piece in several frames, each a view of the same memory: hyper asks for the next one when it
    /// has written most of the last, and that is the progress that shows.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(first) = self.rest.front_mut() else {
            self.progress.touch();
            return Poll::Ready(None);
        };
        let frame = if first.len() > FRAME {
            Some(first.split_to(FRAME))
        } else {
            self.rest.pop_front()
        };
        self.progress.sent(frame.as_ref().map_or(0, Bytes::len));
        Poll::Ready(frame.map(|bytes| {
            self.left -= bytes.len() as u64;
            Ok(Frame::data(bytes))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Copies a successful body to its destination as it arrives. This is the one copy that is ours: the pieces
/// are views of the connection's read buffer, which the kernel or, decrypting, TLS has filled.
pub(super) async fn receive_into(
    mut body: Incoming,
    dest: &mut Buffer,
    progress: &Progress,
) -> Result<(), TransportError> {
    let mut filled = 0;
    while let Some(data) = next_data(&mut body, progress).await? {
        let Some(room) = dest.get_mut(filled..filled + data.len()) else {
            return Err(TransportError {
                path: Path::Https,
                kind: FailureKind::Malformed,
                message: format!("the answer is longer than the {} bytes asked for", dest.len()),
                maybe_executed: true,
                retryable: true,
            });
        };
        room.copy_from_slice(&data);
        filled += data.len();
    }
    dest.set_len(filled);
    Ok(())
}

/// Collects a body of at most `limit` bytes.
pub(super) async fn collect(
    mut body: Incoming,
    limit: usize,
    progress: &Progress,
) -> Result<Bytes, TransportError> {
    // Said beforehand, it need not be received.
    if body.size_hint().exact().is_some_and(|len| len > limit as u64) {
        return Err(too_long(limit));
    }
    let mut first = Bytes::new();
    let mut rest: Option<BytesMut> = None;
    while let Some(data) = next_data(&mut body, progress).await? {
        let collected = rest.as_ref().map_or(first.len(), BytesMut::len);
        if collected + data.len() > limit {
            return Err(too_long(limit));
        }
        if first.is_empty() && rest.is_none() {
            first = data;
            continue;
        }
        let joined = rest.get_or_insert_with(|| BytesMut::from(first.as_ref()));
        joined.extend_from_slice(&data);
    }
    Ok(rest.map_or(first, BytesMut::freeze))
}

fn too_long(limit: usize) -> TransportError {
    TransportError {
        path: Path::Https,
        kind: FailureKind::TooLong,
        message: format!("the answer is longer than {limit} bytes"),
        maybe_executed: true,
        retryable: false,
    }
}

async fn next_data(body: &mut Incoming, progress: &Progress) -> Result<Option<Bytes>, TransportError> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Ok(frame)) => {
                // Trailers carry nothing of ours.
                if let Ok(data) = frame.into_data() {
                    progress.received(data.len());
                    return Ok(Some(data));
                }
            }
            Some(Err(error)) => {
                return Err(TransportError {
                    path: Path::Https,
                    kind: if is_silence(&error) {
                        FailureKind::TimedOut
                    } else {
                        FailureKind::Unreachable
                    },
                    message: format!("the answer broke off: {}", chain(&error)),
                    maybe_executed: true,
                    retryable: true,
                });
            }
        }
    }
}
