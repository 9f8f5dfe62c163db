//! What became of a commit: whether the service has what was sent.

use blob_client::{Body, Condition, Error, Metadata, Piece, Written};

use super::binding::md5_of_bytes;
use super::core::{Core, size_class};
use super::error::FileError;
use super::sent::{Form, Sent};

/// What became of a commit whose answer was lost.
pub(super) enum Verdict {
    /// It was executed; and what is stored with it now.
    Ours(Written, Metadata),
    /// The blob is still what it was before.
    Unchanged,
    /// Somebody else was quicker.
    Foreign,
}

impl Core {
    /// Looks whether the service has what was sent.
    pub(super) async fn verify(&self, sent: &Sent) -> Result<Verdict, FileError> {
        let (blob, base) = {
            let state = self.lock();
            (state.blob.clone(), state.base.as_ref().map(|b| b.etag.clone()))
        };
        let store = &self.env.store;
        let now = match store.head(&blob, &Condition::none()).await {
            Ok(properties) => properties,
            Err(Error::BlobNotFound { .. }) if base.is_none() => return Ok(Verdict::Unchanged),
            Err(Error::BlobNotFound { .. }) => return Ok(Verdict::Foreign),
            Err(error) => return Err(error.into()),
        };
        if base.as_ref() == Some(&now.etag) {
            return Ok(Verdict::Unchanged);
        }
        // Of two who make the same file at once, its attributes tell which one did. Later somebody may just
        // have changed them.
        let made_alike = base.is_none() && now.metadata != sent.metadata;
        if now.content_length != sent.size || made_alike {
            return Ok(Verdict::Foreign);
        }
        let same = match &sent.form {
            Form::Blocks(blocks) => {
                let list = store.block_list(&blob).await?;
                list.etag.as_ref() == Some(&now.etag) && list.committed == *blocks
            }
            Form::Whole(_) | Form::Sum(_) if sent.size == 0 => true,
            Form::Whole(_) | Form::Sum(_) => {
                let _room = self.env.share.acquire_read(size_class(sent.size)).await;
                let buffer = self.buffer(sent.size as usize)?;
                let condition = Condition::matches(&now.etag);
                let got = store.get(&blob, 0..sent.size, &condition, buffer).await?;
                match &sent.form {
                    Form::Whole(body) => same_bytes(body, &got.buffer),
                    Form::Sum(sum) => md5_of_bytes(&got.buffer) == *sum,
                    Form::Blocks(_) => false,
                }
            }
        };
        if !same {
            return Ok(Verdict::Foreign);
        }
        let written = Written {
            etag: now.etag,
            last_modified: now.last_modified,
        };
        Ok(Verdict::Ours(written, now.metadata))
    }
}

fn same_bytes(body: &Body, bytes: &[u8]) -> bool {
    let mut rest = bytes;
    for piece in &body.0 {
        let piece: &[u8] = match piece {
            Piece::Bytes(bytes) => bytes,
            Piece::Slice(slice) => slice,
        };
        match rest.strip_prefix(piece) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    rest.is_empty()
}

/// The condition did not hold: the blob is not the version it was.
pub(super) fn is_foreign(error: &Error) -> bool {
    matches!(
        error,
        Error::ConditionNotMet { .. } | Error::AlreadyExists { .. } | Error::BlobNotFound { .. }
    )
}
