//! Copies made by the service: Copy Blob and Put Block From URL.

use std::ops::Range;
use std::time::Duration;

use http::{HeaderMap, Method};
use tokio::time::Instant;
use vsc_driver::seldom::Seldom;

use super::call::{Call, ReadBy};
use super::keeping::refuse_customer_key;
use super::lost::not_before;
use super::outcome::Failed;
use super::writes::block_call;
use super::{Container, headers};
use crate::error::{Error, Result};
use crate::secret::Secret;
use crate::stored::StoredHeaders;
use crate::types::{BlockId, Condition, ETag, Metadata, StageOptions, Written};

/// Lines that each failed copy would write.
static LEFT: Seldom = Seldom::new();
static UNABORTED: Seldom = Seldom::new();

const FIRST_POLL: Duration = Duration::from_millis(50);
const LONGEST_POLL: Duration = Duration::from_secs(2);

impl Container {
    /// Put Block From URL out of a blob of the same account. `Service` error (501, or 409/403 codes) where
    /// the endpoint cannot: the caller then reads and stages.
    pub async fn stage_from(
        &self,
        blob: &str,
        id: &BlockId,
        source: &str,
        range: Range<u64>,
        source_etag: Option<&ETag>,
        options: &StageOptions<'_>,
    ) -> Result<()> {
        if range.is_empty() {
            return Err(Error::Argument {
                field: "range",
                message: "is empty; a block has at least one byte".into(),
            });
        }
        crate::names::check_blob(source)?;
        let mut call = block_call(blob, id, options)?
            .source(source, ReadBy::Service)
            .header(
                "x-ms-source-range",
                &format!("bytes={}-{}", range.start, range.end - 1),
            )?;
        if let Some(etag) = source_etag {
            call = call.header("x-ms-source-if-match", &etag.0)?;
        }
        match self.execute(call).await {
            Ok(_) => Ok(()),
            Err(failed) => Err(source_error(source, failed)),
        }
    }

    /// Copy Blob inside the container, waiting until the copy is complete. `stored`: what the source's owner
    /// stored with it, which comes along; `None` for copies that nobody sees. `metadata` None keeps the
    /// source's (as does an empty one: the service cannot tell them apart).
    pub async fn copy(
        &self,
        source: &str,
        source_etag: Option<&ETag>,
        stored: Option<&StoredHeaders>,
        target: &str,
        metadata: Option<&Metadata>,
        condition: &Condition,
    ) -> Result<Written> {
        crate::names::check_blob(source)?;
        let unsaid = StoredHeaders::default();
        let kept = stored.unwrap_or(&unsaid);
        refuse_customer_key(source, kept)?;
        self.refuse_other_scope(source, kept, target).await?;
        let mut call = Call::new(Method::PUT, Some(target))
            .source(source, ReadBy::Caller)
            .condition(condition)?
            .headers(kept.tier())
            .not_idempotent();
        if let Some(metadata) = metadata {
            let raw = self.raw_metadata(source, metadata, source_etag).await?;
            call = call.metadata_with(metadata, &raw)?;
        }
        call = self.keeping_tags(call, source, kept).await?;
        if let Some(etag) = source_etag {
            call = call.header("x-ms-source-if-match", &etag.0)?;
        }
        let headers = match self.execute(call).await {
            Ok(answer) => answer.response.headers,
            Err(failed) => self.lost_copy(source, target, failed).await?,
        };
        let copied = self.copied(target, headers).await?;
        match stored {
            Some(stored) => Ok(self.typed_after(source, stored, target, copied).await),
            None => Ok(copied),
        }
    }

    /// Waits for the copy that was begun.
    async fn copied(&self, target: &str, headers: HeaderMap) -> Result<Written> {
        let state = headers::text(&headers, "x-ms-copy-status");
        match (state.as_deref(), headers::text(&headers, "x-ms-copy-id")) {
            (Some("pending"), Some(copy_id)) => self.wait_for_copy(target, &copy_id).await,
            (Some("success") | None, _) => headers::written(&headers),
            (Some(other), _) => Err(copy_failed(target, other, &headers)),
        }
    }

    /// A blob of which nobody has said the type, under a name that says one: so it is after tools that write
    /// beside a file and rename onto it. Where that cannot be done the copy is as good without.
    async fn typed_after(
        &self,
        source: &str,
        stored: &StoredHeaders,
        target: &str,
        copied: Written,
    ) -> Written {
        let types = &self.account.content_types;
        let wanted = types.of(target);
        if !stored.is_untyped() || wanted.is_untyped() || types.of(source) == wanted {
            return copied;
        }
        let condition = Condition::matches(&copied.etag);
        let typed = stored.with_type_of(&wanted);
        match Box::pin(self.set_headers(target, &typed, &condition)).await {
            // The version that is there now, also when the answer to it was lost.
            Ok(written) => written,
            Err(error) => {
                tracing::debug!(
                    container = %self.name, target, %error,
                    "a renamed blob keeps its content type"
                );
                copied
            }
        }
    }

    pub(super) fn source_url(&self, source: &str, query: Option<&Secret<String>>) -> String {
        let url = format!(
            "{}{}",
            self.account.origin,
            self.account.path(&self.name, Some(source))
        );
        match query {
            Some(query) => format!("{url}?{}", query.expose()),
            None => url,
        }
    }

    /// Polls a pending copy. Gives up, and aborts the copy, when it makes no progress for the client's
    /// deadline.
    async fn wait_for_copy(&self, target: &str, copy_id: &str) -> Result<Written> {
        let mut pause = FIRST_POLL;
        let mut progress = String::new();
        let mut moved_at = Instant::now();
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_POLL);
            let headers = self.head_headers(target, &Condition::none()).await?;
            if headers::text(&headers, "x-ms-copy-id").as_deref() != Some(copy_id) {
                // Overwritten by another writer, which ends the copy.
                return Err(Error::ConditionNotMet {
                    name: target.to_owned(),
                });
            }
            match headers::text(&headers, "x-ms-copy-status").as_deref() {
                Some("success") => return headers::written(&headers),
                Some("pending") => {}
                other => {
                    let error = copy_failed(target, other.unwrap_or("unknown"), &headers);
                    self.drop_stump(target, &headers).await;
                    return Err(error);
                }
            }
            let now = headers::text(&headers, "x-ms-copy-progress").unwrap_or_default();
            if now != progress {
                progress = now;
                moved_at = Instant::now();
            } else if moved_at.elapsed() >= self.deadline {
                self.abort_copy(target, copy_id).await;
                return Err(Error::DeadlineExceeded {
                    waited: moved_at.elapsed(),
                });
            }
        }
    }

    /// A copy that did not come about leaves an empty target, which would be taken for a file. Failing to
    /// delete it changes nothing for the caller.
    async fn drop_stump(&self, target: &str, headers: &HeaderMap) {
        let Ok(seen) = headers::written(headers) else {
            return;
        };
        let condition = Condition::matches(&seen.etag);
        if let Err(error) = Box::pin(self.delete(target, &condition)).await
            && let Some(times) = LEFT.said()
        {
            tracing::warn!(
                container = %self.name, target, %error, times,
                "a copy that failed has left an empty blob"
            );
        }
    }

    /// Abort Copy Blob; leaves an empty target, as the service does. Failing to abort changes nothing for the
    /// caller.
    async fn abort_copy(&self, target: &str, copy_id: &str) {
        let call = Call::new(Method::PUT, Some(target))
            .query("comp", "copy")
            .query("copyid", copy_id)
            .header("x-ms-copy-action", "abort");
        let outcome = match call {
            Ok(call) => self.execute(call).await.map(|_| ()).map_err(Error::from),
            Err(error) => Err(error),
        };
        if let Err(error) = outcome
            && let Some(times) = UNABORTED.said()
        {
            tracing::warn!(
                container = %self.name, target, %copy_id, %error, times,
                "a copy without progress could not be aborted"
            );
        }
    }

    /// Blob of this container that a block blob is a copy of: the service forgets that when somebody writes
    /// the copy's content or headers.
    pub(super) fn copied_from(&self, headers: &HeaderMap) -> Option<String> {
        let complete = headers::text(headers, "x-ms-copy-status")?.eq_ignore_ascii_case("success");
        let block_blob = headers::text(headers, "x-ms-blob-type")?.eq_ignore_ascii_case("BlockBlob");
        let url = headers::text(headers, "x-ms-copy-source").filter(|_| complete && block_blob)?;
        let name = url.split('?').next()?.strip_prefix(&self.source_url("", None))?;
        let name = percent_encoding::percent_decode_str(name).decode_utf8().ok()?;
        Some(name.into_owned())
    }

    /// Copy Blob was refused: ours all the same, when the target says that it was copied from this source
    /// since the call began.
    async fn lost_copy(&self, source: &str, target: &str, failed: Failed) -> Result<HeaderMap> {
        let Some(lost) = failed.lost else {
            return Err(source_error(source, failed));
        };
        let refused = matches!(
            failed.error,
            Error::ConditionNotMet { .. } | Error::AlreadyExists { .. } | Error::LeaseConflict { .. }
        ) || failed.code == "PendingCopyOperation";
        if !refused {
            return Err(source_error(source, failed));
        }
        let headers = match self.head_headers(target, &Condition::none()).await {
            Err(Error::BlobNotFound { .. }) => return Err(failed.error),
            other => other?,
        };
        let from = headers::text(&headers, "x-ms-copy-source");
        let same_source =
            from.is_some_and(|url| url.split('?').next() == Some(self.source_url(source, None).as_str()));
        let written = headers::written(&headers)?;
        if same_source && not_before(written.last_modified, lost) {
            Ok(headers)
        } else {
            Err(failed.error)
        }
    }
}

/// Errors that speak of the source name it.
fn source_error(source: &str, failed: Failed) -> Error {
    match (failed.status.map(|s| s.as_u16()), failed.code.as_str()) {
        // The target need not exist, so what is missing is the source.
        (Some(404), code) if !code.starts_with("Container") => Error::BlobNotFound {
            name: source.to_owned(),
        },
        (Some(412), "SourceConditionNotMet" | "CannotVerifyCopySource") => Error::ConditionNotMet {
            name: source.to_owned(),
        },
        _ => failed.error,
    }
}

fn copy_failed(target: &str, state: &str, headers: &HeaderMap) -> Error {
    Error::Service {
        status: 500,
        code: format!("Copy-{state}"),
        message: format!(
            "the copy to {target:?} ended as {state}: {}",
            headers::text(headers, "x-ms-copy-status-description").unwrap_or_default()
        ),
        request_id: headers::text(headers, "x-ms-request-id").unwrap_or_default(),
    }
}
