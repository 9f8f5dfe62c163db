//! Put Blob, Put Block, Put Block List, Set Blob Metadata, Delete Blob.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Method;
use tokio::time::Instant;

use super::call::Call;
use super::keeping::refuse_customer_key;
use super::{Container, headers};
use crate::body::Body;
use crate::error::{Error, Result};
use crate::stored::StoredHeaders;
use crate::types::{BlockId, BlockList, BlockRef, Condition, Metadata, PutOptions, StageOptions, Written};
use crate::xml;

impl Container {
    /// Put Blob (block blob, one request).
    pub async fn put(&self, blob: &str, body: Body, options: &PutOptions) -> Result<Written> {
        let call = self
            .keeping(Call::new(Method::PUT, Some(blob)), blob, options)
            .await?
            .header("x-ms-blob-type", "BlockBlob")?
            .body(body.clone());
        let call = match &options.content_md5 {
            Some(md5) => call.header("x-ms-blob-content-md5", md5)?,
            None => call,
        };
        let call = if is_conditional(&options.condition) {
            call.not_idempotent()
        } else {
            call
        };
        match self.execute(call).await {
            Ok(answer) => headers::written(&answer.response.headers),
            Err(failed) => self.lost_put(blob, &body, options, failed).await,
        }
    }

    /// Put Block.
    pub async fn stage(
        &self,
        blob: &str,
        id: &BlockId,
        body: Body,
        options: &StageOptions<'_>,
    ) -> Result<()> {
        let call = block_call(blob, id, options)?.body(body);
        self.execute(call).await?;
        Ok(())
    }

    /// Put Block List.
    pub async fn commit(&self, blob: &str, blocks: &[BlockRef], options: &PutOptions) -> Result<Written> {
        let body = Bytes::from(xml::block_list_body(blocks));
        // Never idempotent: what a first commit took from the staged blocks, a second one finds no longer
        // staged.
        let call = Call::new(Method::PUT, Some(blob)).query("comp", "blocklist");
        let call = self
            .keeping(call, blob, options)
            .await?
            .body(body.into())
            .not_idempotent();
        match self.execute(call).await {
            Ok(answer) => headers::written(&answer.response.headers),
            Err(failed) => self.lost_commit(blob, blocks, options, failed).await,
        }
    }

    /// Get Block List (committed and uncommitted). `BlobNotFound` when neither exists.
    pub async fn block_list(&self, blob: &str) -> Result<BlockList> {
        let call = Call::new(Method::GET, Some(blob))
            .query("comp", "blocklist")
            .query("blocklisttype", "all")
            .answered_by("BlockList");
        let answer = self.execute(call).await?;
        let mut list = xml::block_list(&answer.response.body)?;
        let headers = &answer.response.headers;
        list.content_length = headers::text(headers, "x-ms-blob-content-length")
            .and_then(|t| t.parse().ok())
            .unwrap_or_default();
        // Without a committed version there is no Last-Modified, and the ETag (if any) is nobody's version.
        list.etag = headers::written(headers).ok().map(|w| w.etag);
        Ok(list)
    }

    /// Set Blob Metadata (replaces all).
    pub async fn set_metadata(
        &self,
        blob: &str,
        metadata: &Metadata,
        condition: &Condition,
    ) -> Result<Written> {
        let raw = self
            .raw_metadata(blob, metadata, condition.if_match.as_ref())
            .await?;
        let call = Call::new(Method::PUT, Some(blob))
            .query("comp", "metadata")
            .metadata_with(metadata, &raw)?
            .condition(condition)?;
        let call = if is_conditional(condition) {
            call.not_idempotent()
        } else {
            call
        };
        match self.execute(call).await {
            Ok(answer) => headers::written(&answer.response.headers),
            Err(failed) => self.lost_metadata(blob, metadata, failed).await,
        }
    }

    /// Set Blob Properties: the content's headers, of the content as it is.
    pub(super) async fn set_headers(
        &self,
        blob: &str,
        stored: &StoredHeaders,
        condition: &Condition,
    ) -> Result<Written> {
        let call = Call::new(Method::PUT, Some(blob))
            .query("comp", "properties")
            .headers(stored.content_headers())
            .headers(stored.content_md5())
            .condition(condition)?
            .not_idempotent();
        match self.execute(call).await {
            Ok(answer) => headers::written(&answer.response.headers),
            Err(failed) => self.lost_headers(blob, stored, failed).await,
        }
    }

    /// Waits for requests that got no answer and may be executed yet, where that would undo a deletion of
    /// this blob or of one below its name: for callers that hold nothing yet that others wait for. The
    /// deletion itself looks once more.
    pub async fn wait_for_lost(&self, blob: &str) -> Result<()> {
        let account = &*self.account;
        let deadline = Instant::now() + self.deadline;
        account
            .late
            .wait_for_lost(&self.name, blob, &*account.transport, deadline)
            .await
    }

    /// Delete Blob. One that has snapshots stays: `SnapshotsPresent`.
    pub async fn delete(&self, blob: &str, condition: &Condition) -> Result<()> {
        let call = Call::new(Method::DELETE, Some(blob))
            .condition(condition)?
            .not_idempotent();
        match self.execute(call).await {
            Ok(_) => Ok(()),
            Err(failed) => self.lost_delete(blob, failed).await,
        }
    }
}

/// Whether a second execution can be answered differently from the first.
fn is_conditional(condition: &Condition) -> bool {
    condition.if_match.is_some() || condition.if_absent || condition.if_none_match.is_some()
}

/// Put Block and Put Block From URL, without what is staged.
pub(super) fn block_call<'a>(blob: &'a str, id: &BlockId, options: &StageOptions<'_>) -> Result<Call<'a>> {
    if let Some(stored) = options.stored {
        refuse_customer_key(blob, stored)?;
    }
    // REST, Put Block: at most 64 bytes before base64.
    if id.0.is_empty() || id.0.len() > 64 {
        return Err(Error::Argument {
            field: "block id",
            message: format!("has {} bytes; it needs 1 to 64", id.0.len()),
        });
    }
    let call = Call::new(Method::PUT, Some(blob))
        .query("comp", "block")
        .query("blockid", STANDARD.encode(&id.0))
        .headers(options.stored.and_then(StoredHeaders::encryption_scope));
    match options.lease {
        Some(lease) => call.header("x-ms-lease-id", lease),
        None => Ok(call),
    }
}
