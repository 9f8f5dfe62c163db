//! What a blob's owner stored with it is stored again when the blob is written: headers, tier, scope, index
//! tags, and metadata whose bytes are not ASCII.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use http::{HeaderMap, Method};

use super::call::Call;
use super::{Container, UnreadableTags, headers};
use crate::body::Body;
use crate::error::{Error, Result};
use crate::names::encode_query;
use crate::stored::StoredHeaders;
use crate::types::{Condition, ETag, Metadata, PutOptions};
use crate::xml;

/// What the names of blobs begin with that mounts show to nobody.
const HIDDEN: &str = ".vsc-blob-hidden.";
/// The mark of those that a mount may delete when nobody holds them.
const MARK: &str = "vsc_hidden";
/// What the service calls the scope of blobs that are in none.
const OF_THE_ACCOUNT: &str = "$account-encryption-key";

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
        match self.readable_tags(blob).await? {
            Some(tags) if !tags.is_empty() => call.header("x-ms-tags", &tags),
            _ => Ok(call),
        }
    }

    /// Whether what is stored with a blob can be stored again with it: `TagsUnreadable` for index tags that
    /// this identity may not read, unless they are to be dropped. Asked until they are once readable.
    pub async fn check_keeping(&self, blob: &str, stored: &StoredHeaders) -> Result<()> {
        let refuse = self.account.unreadable_tags == UnreadableTags::Refuse;
        let known = self.account.tags_readable.load(Ordering::Relaxed);
        if stored.tags() == 0 || !refuse || known {
            return Ok(());
        }
        self.readable_tags(blob).await.map(drop)
    }

    /// The tags that a write of a blob stores again; `None` where they are lost.
    async fn readable_tags(&self, blob: &str) -> Result<Option<String>> {
        let asked = self.tags(blob).await;
        if matches!(asked, Ok(_) | Err(Error::Denied { .. })) {
            self.account.tags_readable.store(asked.is_ok(), Ordering::Relaxed);
        }
        match asked {
            Ok(tags) => Ok(Some(tags)),
            // The write itself says what is amiss.
            Err(Error::BlobNotFound { .. }) => Ok(None),
            Err(Error::Denied { code, hint }) => {
                let refuse = self.account.unreadable_tags == UnreadableTags::Refuse;
                if !self.account.warned_tags.swap(true, Ordering::Relaxed) {
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
                Ok(None)
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
    pub(super) async fn refuse_other_scope(
        &self,
        blob: &str,
        stored: &StoredHeaders,
        target: &str,
    ) -> Result<()> {
        let Some((_, scope)) = stored.encryption_scope() else {
            return Ok(());
        };
        let known = self.scopes().get(&self.name).cloned();
        let default = match known {
            Some(default) => default,
            None => {
                let default = match Box::pin(self.default_scope()).await {
                    // A SAS for one container cannot ask.
                    Err(Error::Denied { .. }) => Some(Box::pin(self.scope_of_new(target)).await?),
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

    /// The scope that a new blob of the container is in: that of one that is made beside another, and deleted
    /// again.
    async fn scope_of_new(&self, beside: &str) -> Result<String> {
        let folder = beside.rfind('/').map_or("", |end| &beside[..=end]);
        let name = format!("{folder}{HIDDEN}{}", uuid::Uuid::new_v4().simple());
        let options = PutOptions {
            metadata: Metadata::from([(MARK.to_owned(), "true".to_owned())]),
            stored: Some(StoredHeaders::default()),
            condition: Condition::absent(),
            ..PutOptions::default()
        };
        let written = self.put(&name, Body::default(), &options).await?;
        let headers = self.head_headers(&name, &Condition::none()).await;
        if let Err(error) = self.delete(&name, &Condition::matches(&written.etag)).await {
            tracing::debug!(
                container = %self.name, blob = name, %error,
                "a hidden blob stays; a later mount of its folder deletes it"
            );
        }
        let scope = headers::text(&headers?, "x-ms-encryption-scope");
        Ok(scope.unwrap_or_else(|| OF_THE_ACCOUNT.to_owned()))
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
