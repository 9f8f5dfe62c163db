//! Writes whose answer was lost: was it ours that is stored now?
//!
//! A conditional write is executed, its answer is lost, and the retry is refused because the condition no
//! longer holds: by our own hand. Reporting that as a lost race would be a false `ESTALE`; ignoring the
//! refusal would be a silent overwrite. So after a refusal that follows a lost attempt the blob is read back.
//! The write counts as ours when all of this holds:
//!
//! 1. what is stored equals what was sent, byte for byte (Put Blob), or block id for block id (Put Block
//!    List: ids are random, nobody else commits them), with the same metadata;
//! 2. the blob was modified, by the service's own clock, not before the call began. An old blob that happens
//!    to be equal - somebody else's empty lock file - is not ours.
//!
//! What remains open: another writer who stores exactly the same bytes and metadata within the same seconds.
//! The stored state is then what both asked for.
//!
//! When the read-back itself gets no answer, its error is reported and not the refusal: nothing is known
//! then.

use std::time::{Duration, SystemTime};

use super::Container;
use super::keeping::same_metadata;
use super::outcome::{Failed, Unanswered};
use crate::body::{Body, Piece};
use crate::error::{Error, Result};
use crate::stored::StoredHeaders;
use crate::types::{BlockId, BlockRef, Condition, Metadata, Properties, PutOptions, Written};

/// `Date` and `Last-Modified` are whole seconds, each rounded down.
const CLOCK_GRAIN: Duration = Duration::from_secs(2);
/// Bytes compared per read.
const COMPARE_CHUNK: usize = 4 * 1024 * 1024;

impl Container {
    /// Put Blob was refused.
    pub(super) async fn lost_put(
        &self,
        blob: &str,
        body: &Body,
        options: &PutOptions,
        failed: Failed,
    ) -> Result<Written> {
        let Some(lost) = failed.lost.filter(|_| refused(&failed.error)) else {
            return Err(failed.error);
        };
        let Some(stored) = self.read_back(blob).await? else {
            return Err(failed.error);
        };
        let ours = since(&stored, lost)
            && stored.content_length == body.len()
            && same_metadata(&stored.metadata, &options.metadata)
            && self.same_content(blob, &stored, body).await?;
        self.decide(blob, &options.condition, ours, stored, failed)
    }

    /// Put Block List was refused. Besides the condition, the staged blocks may be gone: the lost attempt has
    /// used them.
    pub(super) async fn lost_commit(
        &self,
        blob: &str,
        blocks: &[BlockRef],
        options: &PutOptions,
        failed: Failed,
    ) -> Result<Written> {
        let used_up = failed.code == "InvalidBlockList";
        let Some(lost) = failed.lost.filter(|_| used_up || refused(&failed.error)) else {
            return Err(failed.error);
        };
        let Some(stored) = self.read_back(blob).await? else {
            return Err(failed.error);
        };
        let list = match self.block_list(blob).await {
            Err(Error::BlobNotFound { .. }) => return Err(failed.error),
            other => other?,
        };
        let ours = since(&stored, lost)
            && list.etag.as_ref() == Some(&stored.etag)
            && same_metadata(&stored.metadata, &options.metadata)
            && list
                .committed
                .iter()
                .map(|b| &b.id)
                .eq(blocks.iter().map(block_id));
        self.decide(blob, &options.condition, ours, stored, failed)
    }

    /// The same as [`settle`], for what may have made the blob.
    fn decide(
        &self,
        blob: &str,
        condition: &Condition,
        ours: bool,
        stored: Properties,
        failed: Failed,
    ) -> Result<Written> {
        let written = settle(ours, stored, failed)?;
        if condition.if_absent {
            let account = &self.account;
            account.late.was_executed(&self.name, blob, &*account.transport);
        }
        Ok(written)
    }

    /// Set Blob Metadata was refused.
    pub(super) async fn lost_metadata(
        &self,
        blob: &str,
        metadata: &Metadata,
        failed: Failed,
    ) -> Result<Written> {
        let Some(lost) = failed.lost.filter(|_| refused(&failed.error)) else {
            return Err(failed.error);
        };
        let Some(stored) = self.read_back(blob).await? else {
            return Err(failed.error);
        };
        let ours = since(&stored, lost) && same_metadata(&stored.metadata, metadata);
        settle(ours, stored, failed)
    }

    /// Set Blob Properties was refused, or got no answer at all.
    pub(super) async fn lost_headers(
        &self,
        blob: &str,
        sent: &StoredHeaders,
        failed: Failed,
    ) -> Result<Written> {
        let Some(lost) = failed.lost else {
            return Err(failed.error);
        };
        let Some(stored) = self.read_back(blob).await? else {
            return Err(failed.error);
        };
        let ours = since(&stored, lost) && stored.stored.says_what(sent);
        settle(ours, stored, failed)
    }

    /// Delete Blob was refused. Gone is what was asked for, and an attempt of ours may have done it; so may
    /// it when there is a blob again that was made since: that is somebody else's, not what was asked about.
    pub(super) async fn lost_delete(&self, blob: &str, failed: Failed) -> Result<()> {
        let Some(lost) = failed.lost else {
            return Err(failed.error);
        };
        match &failed.error {
            Error::BlobNotFound { .. } => return Ok(()),
            Error::ConditionNotMet { .. } => {}
            _ => return Err(failed.error),
        }
        let made_since = |now: &Properties| now.created.is_some_and(|made| not_before(made, lost));
        match self.read_back(blob).await? {
            Some(now) if !made_since(&now) => Err(failed.error),
            _ => Ok(()),
        }
    }

    async fn read_back(&self, blob: &str) -> Result<Option<Properties>> {
        // Boxed: the retry machinery below would otherwise be inlined into itself.
        match Box::pin(self.head(blob, &Condition::none())).await {
            Ok(properties) => Ok(Some(properties)),
            Err(Error::BlobNotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Compares the stored version with what was sent.
    async fn same_content(&self, blob: &str, stored: &Properties, body: &Body) -> Result<bool> {
        let condition = Condition::matches(&stored.etag);
        let mut offset = 0_u64;
        for piece in &body.0 {
            let bytes: &[u8] = match piece {
                Piece::Bytes(bytes) => bytes,
                Piece::Slice(slice) => slice,
            };
            for chunk in bytes.chunks(COMPARE_CHUNK) {
                let dest = self
                    .account
                    .arena
                    .alloc(chunk.len())
                    .map_err(|source| Error::Io {
                        call: "allocating a read buffer",
                        source,
                    })?;
                let end = offset + chunk.len() as u64;
                let got = match self.get(blob, offset..end, &condition, dest).await {
                    Ok(got) => got,
                    // Changed meanwhile: not the version that was looked at.
                    Err(Error::ConditionNotMet { .. } | Error::BlobNotFound { .. }) => return Ok(false),
                    Err(error) => return Err(error),
                };
                if got.buffer[..] != *chunk {
                    return Ok(false);
                }
                offset = end;
            }
        }
        Ok(true)
    }
}

/// Refusals that an executed attempt of our own can have caused.
fn refused(error: &Error) -> bool {
    matches!(error, Error::ConditionNotMet { .. } | Error::AlreadyExists { .. })
}

/// Whether the stored version is not older than the call. Without a known service clock only the comparison
/// speaks.
pub(super) fn since(stored: &Properties, lost: Unanswered) -> bool {
    not_before(stored.last_modified, lost)
}

pub(super) fn not_before(moment: SystemTime, lost: Unanswered) -> bool {
    lost.since
        .and_then(|t| t.checked_sub(CLOCK_GRAIN))
        .is_none_or(|earliest| moment >= earliest)
}

fn block_id(block: &BlockRef) -> &BlockId {
    match block {
        BlockRef::Committed(id) | BlockRef::Uncommitted(id) | BlockRef::Latest(id) => id,
    }
}

fn settle(ours: bool, stored: Properties, failed: Failed) -> Result<Written> {
    if !ours {
        return Err(failed.error);
    }
    tracing::debug!(etag = %stored.etag, "a write whose answer was lost is the stored version");
    Ok(Written {
        etag: stored.etag,
        last_modified: stored.last_modified,
    })
}
