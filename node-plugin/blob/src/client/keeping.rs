//! What a blob's owner stored with it is stored again when the blob is written: headers, tier, scope, index
//! tags, and metadata whose bytes are not ASCII.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use http::{HeaderMap, Method};

use super::call::Call;
use super::{Container, UnreadableTags};
use crate::error::{Error, Result};
use crate::names::encode_query;
use crate::stored::StoredHeaders;
use crate::types::{Condition, ETag, Metadata, PutOptions};
use crate::xml;

impl Container {
    /// The headers of Put Blob and Put Block List that come out of their options.
    pub(super) async fn keeping<'a>(
        &self,
        call: Call<'a>,
        blob: &str,
        options: &PutOptions,
    ) -> Result<Call<'a>> {
        let stored = match &options.stored {
            Some(stored) => stored.clone(),
            None => self.account.content_types.of(blob),
        };
        refuse_customer_key(blob, &stored)?;
        let if_match = options.condition.if_match.as_ref();
        let raw = self.raw_metadata(blob, &options.metadata, if_match).await?;
        let call = call
            .metadata_with(&options.metadata, &raw)?
            .condition(&options.condition)?
            .headers(stored.content_headers())
            .headers(stored.tier())
            .headers(stored.encryption_scope());
        self.keeping_tags(call, blob, &stored).await
    }

    /// With the index tags that this blob has now.
    pub(super) async fn keeping_tags<'a>(
        &self,
        call: Call<'a>,
        blob: &str,
        stored: &StoredHeaders,
    ) -> Result<Call<'a>> {
        if stored.tags() == 0 {
            return Ok(call);
        }
        match self.tags(blob).await {
            Ok(tags) if tags.is_empty() => Ok(call),
            Ok(tags) => call.header("x-ms-tags", &tags),
            // The write itself says what is amiss.
            Err(Error::BlobNotFound { .. }) => Ok(call),
            Err(Error::Denied { code, hint }) => {
                let refuse = self.account.unreadable_tags == UnreadableTags::Refuse;
                if !self.account.tags_told.swap(true, Ordering::Relaxed) {
                    let what = if refuse {
                        "blobs with index tags are not written, because this identity may not read the tags"
                    } else {
                        "blobs lose their index tags when they are written: this identity may not read them"
                    };
                    tracing::warn!(container = %self.name, blob, %code, %hint, "{what}");
                }
                if refuse {
                    return Err(Error::TagsUnreadable {
                        name: blob.to_owned(),
                    });
                }
                Ok(call)
            }
            Err(error) => Err(error),
        }
    }

    /// Get Blob Tags, in the form in which `x-ms-tags` takes them.
    async fn tags(&self, blob: &str) -> Result<String> {
        let call = Call::new(Method::GET, Some(blob))
            .query("comp", "tags")
            .answered_by("Tags");
        let answer = Box::pin(self.execute(call)).await?;
        let tags = xml::tags(&answer.response.body)?;
        let pair = |(key, value): &(String, String)| format!("{}={}", encode_query(key), encode_query(value));
        Ok(tags.iter().map(pair).collect::<Vec<_>>().join("&"))
    }

    /// A copy is encrypted with its container's default scope: another one would be left without a word.
    pub(super) async fn refuse_other_scope(&self, blob: &str, stored: &StoredHeaders) -> Result<()> {
        let Some((_, scope)) = stored.encryption_scope() else {
            return Ok(());
        };
        let known = self.scopes().get(&self.name).cloned();
        let default = match known {
            Some(default) => default,
            None => {
                let default = match Box::pin(self.default_scope()).await {
                    // A SAS for one container cannot ask: the service decides.
                    Err(Error::Denied { .. }) => None,
                    other => other?,
                };
                self.scopes().insert(Arc::clone(&self.name), default.clone());
                default
            }
        };
        match default {
            Some(default) if default.as_bytes() != scope.as_bytes() => Err(Error::EncryptionScope {
                name: blob.to_owned(),
                scope: String::from_utf8_lossy(scope.as_bytes()).into_owned(),
            }),
            _ => Ok(()),
        }
    }

    fn scopes(&self) -> MutexGuard<'_, HashMap<Arc<str>, Option<String>>> {
        self.account.scopes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The blob's own headers, when some of this metadata is not ASCII: listings and texts do not hold its
    /// bytes.
    pub(super) async fn raw_metadata(
        &self,
        blob: &str,
        metadata: &Metadata,
        if_match: Option<&ETag>,
    ) -> Result<HeaderMap> {
        if metadata.values().all(|value| value.is_ascii()) {
            return Ok(HeaderMap::new());
        }
        let condition = if_match.map_or_else(Condition::none, Condition::matches);
        Box::pin(self.head_headers(blob, &condition)).await
    }
}

/// A blob that is encrypted with its owner's key would be written without it.
pub(super) fn refuse_customer_key(blob: &str, stored: &StoredHeaders) -> Result<()> {
    if stored.has_customer_key() {
        return Err(Error::CustomerKey {
            name: blob.to_owned(),
        });
    }
    Ok(())
}

/// Whether metadata read back is what was sent. What is not ASCII reads differently in answers and listings.
pub(super) fn same_metadata(stored: &Metadata, sent: &Metadata) -> bool {
    stored.len() == sent.len()
        && stored.iter().zip(sent).all(|((name, value), (key, given))| {
            name == key && (value == given || !value.is_ascii() && !given.is_ascii())
        })
}

#[cfg(test)]
mod tests;
