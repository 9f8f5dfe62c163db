//! Blobs of large files that were deleted while open: moved to a reserved name, leased as long as they are
//! needed, and collected when nobody holds them.
//!
//! A blob is made empty, leased, and then copied over under the lease, so that there is no moment in which it
//! has content and no holder. The mount renews the lease; when its process dies, the lease ends a minute
//! later, and the next mount that may write deletes the blob. What carries no mark of ours is never deleted,
//! whatever its name is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use blob_client::{
    Body, Condition, ETag, Error, ListItem, ListOptions, Metadata, PutOptions, Result, StoredHeaders, Written,
};
use futures::{StreamExt, stream};
use tokio_util::task::TaskTracker;

use super::names;
use crate::cause;
use crate::content::{Keep, Refuge, Shelter};
use crate::log_limit::limited;
use crate::store::Store;

/// The mark, in the metadata of a hidden blob.
pub(crate) const MARK: &str = "vsc_hidden";
/// How long a lease lasts without being renewed, in seconds: the longest that ends by itself.
const LEASE: u32 = 60;
/// How often leases are renewed: two may fail.
const RENEW: Duration = Duration::from_secs(20);
/// How long one renewal may take: one that hangs does not let the others lapse.
const RENEWAL: Duration = Duration::from_secs(10);
/// Renewals under way at once.
const RENEWED_AT_ONCE: usize = 64;
/// Names tried when somebody collects a blob between its creation and its lease.
const ATTEMPTS: usize = 3;

/// The hidden blobs of one mount.
#[derive(Debug)]
pub(crate) struct HiddenBlobs {
    store: Arc<dyn Store>,
    runtime: tokio::runtime::Handle,
    /// The volume's directory.
    prefix: String,
    held: Mutex<Held>,
    /// Deletions of blobs whose files are gone.
    deleting: TaskTracker,
}

#[derive(Debug, Default)]
struct Held {
    /// Lease of each blob.
    leases: HashMap<String, String>,
    renewing: bool,
}

/// What every hidden blob carries.
pub(crate) fn mark() -> Metadata {
    Metadata::from([(MARK.to_owned(), "true".to_owned())])
}

impl HiddenBlobs {
    pub(crate) fn new(store: Arc<dyn Store>, runtime: tokio::runtime::Handle, prefix: String) -> Arc<Self> {
        Arc::new(Self {
            store,
            runtime,
            prefix,
            held: Mutex::default(),
            deleting: TaskTracker::new(),
        })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies this version of a blob to a new hidden name: the name, its lease, and the version.
    /// `ConditionNotMet` or `BlobNotFound`: the version is gone already.
    pub(crate) async fn keep(self: &Arc<Self>, blob: &str, etag: &ETag) -> Result<(String, String, Written)> {
        let (hidden, lease, _) = self.reserve().await?;
        let condition = Condition {
            lease: Some(lease.clone()),
            ..Condition::none()
        };
        match self
            .store
            .copy(blob, Some(etag), None, &hidden, Some(&mark()), &condition)
            .await
        {
            Ok(written) => Ok((hidden, lease, written)),
            Err(error) => {
                self.drop_blob(&hidden).await;
                Err(error)
            }
        }
    }

    /// A new blob of ours, empty and leased.
    async fn reserve(self: &Arc<Self>) -> Result<(String, String, Written)> {
        let mut attempt = 1;
        loop {
            let hidden = names::join(&self.prefix, &names::hidden());
            let options = PutOptions {
                metadata: mark(),
                stored: Some(StoredHeaders::default()),
                ..PutOptions::default()
            };
            let written = self.store.put(&hidden, Body::default(), &options).await?;
            match self.store.acquire_lease(&hidden, LEASE).await {
                Ok(lease) => {
                    self.hold(hidden.clone(), lease.clone());
                    return Ok((hidden, lease, written));
                }
                // Another mount has just begun and swept.
                Err(Error::BlobNotFound { .. }) if attempt < ATTEMPTS => attempt += 1,
                Err(error) => {
                    let _ = self.store.delete(&hidden, &Condition::none()).await;
                    return Err(error);
                }
            }
        }
    }

    fn hold(self: &Arc<Self>, hidden: String, lease: String) {
        let mut held = self.held();
        held.leases.insert(hidden, lease);
        if std::mem::replace(&mut held.renewing, true) {
            return;
        }
        let weak = Arc::downgrade(self);
        self.runtime.spawn(async move {
            let mut rounds = tokio::time::interval_at(tokio::time::Instant::now() + RENEW, RENEW);
            loop {
                rounds.tick().await;
                match weak.upgrade() {
                    Some(hidden) if hidden.renew().await => {}
                    _ => return,
                }
            }
        });
    }

    /// Renews all leases; false when there are none.
    async fn renew(&self) -> bool {
        let leases: Vec<(String, String)> = {
            let mut held = self.held();
            held.renewing = !held.leases.is_empty();
            held.leases.iter().map(|(b, l)| (b.clone(), l.clone())).collect()
        };
        let ended = stream::iter(leases.clone())
            .map(|(blob, lease)| async move {
                let renewed = tokio::time::timeout(RENEWAL, self.store.renew_lease(&blob, &lease)).await;
                let error = match renewed {
                    Ok(Ok(())) => return None,
                    Ok(Err(error)) => error.to_string(),
                    Err(late) => late.to_string(),
                };
                Some((blob, error))
            })
            .buffer_unordered(RENEWED_AT_ONCE)
            .collect::<Vec<_>>()
            .await;
        for (blob, error) in ended.into_iter().flatten() {
            // A lease that ended can be renewed as long as nobody else took the blob.
            if self.held().leases.contains_key(&blob) {
                limited!(
                    warn,
                    cause::volume(),
                    "the lease of a deleted file that is still open could not be renewed",
                    %error, blob
                );
            }
        }
        !leases.is_empty()
    }

    /// Nobody needs a hidden blob any more.
    pub(crate) async fn drop_blob(&self, hidden: &str) {
        let lease = self.held().leases.remove(hidden);
        let leased = lease.is_some();
        let condition = Condition {
            lease,
            ..Condition::none()
        };
        let mut deleted = self.store.delete(hidden, &condition).await;
        if leased && matches!(deleted, Err(Error::LeaseConflict { .. })) {
            // The lease ended meanwhile.
            deleted = self.store.delete(hidden, &Condition::none()).await;
        }
        match deleted {
            Ok(()) | Err(Error::BlobNotFound { .. }) => {}
            Err(error) => {
                limited!(
                    warn,
                    cause::volume(),
                    "a file deleted while open is still stored; a later mount deletes it",
                    %error, blob = hidden
                );
            }
        }
    }

    /// Waits until the blobs of files that are gone are deleted.
    pub(crate) async fn drained(&self) {
        self.deleting.close();
        self.deleting.wait().await;
        self.deleting.reopen();
    }

    /// One page of the volume's hidden blobs: those of other mounts, and of processes that died.
    pub(crate) async fn list(&self) -> Result<Vec<(String, ETag)>> {
        let options = ListOptions {
            prefix: format!("{}{}", names::below(&self.prefix), names::HIDDEN),
            metadata: true,
            ..ListOptions::default()
        };
        let page = self.store.list(&options).await?;
        let marked = page.items.into_iter().filter_map(|item| match item {
            ListItem::Blob { name, properties } if properties.metadata.contains_key(MARK) => {
                Some((name, properties.etag))
            }
            _ => None,
        });
        Ok(marked.collect())
    }

    /// Deletes the blobs of a list that nobody holds.
    pub(crate) async fn collect(&self, listed: Vec<(String, ETag)>) {
        for (blob, etag) in listed {
            match self.store.delete(&blob, &Condition::matches(&etag)).await {
                Ok(()) => tracing::info!(blob, "deleted what a mount that died had kept of a deleted file"),
                Err(
                    Error::LeaseConflict { .. } | Error::BlobNotFound { .. } | Error::ConditionNotMet { .. },
                ) => {}
                Err(error) => {
                    limited!(
                        warn, cause::volume(), "a deleted file that nobody holds is still stored",
                        %error, blob
                    );
                    return;
                }
            }
        }
    }
}

/// Hidden blobs for files that were in memory when they were deleted, and grew.
#[derive(Debug)]
pub(crate) struct Shelters(pub(crate) Arc<HiddenBlobs>);

#[async_trait]
impl Refuge for Shelters {
    async fn make(&self) -> Result<Shelter> {
        let (blob, lease, written) = self.0.reserve().await?;
        tracing::debug!(blob, "a deleted file that is still open goes to the service");
        let guard = Guard {
            hidden: Arc::clone(&self.0),
            blob: blob.clone(),
        };
        Ok(Shelter {
            blob,
            written,
            lease,
            metadata: mark(),
            _guard: Box::new(guard),
        })
    }
}

/// Deletes a hidden blob when its file is gone.
#[derive(Debug)]
struct Guard {
    hidden: Arc<HiddenBlobs>,
    blob: String,
}

impl Keep for Guard {}

impl Drop for Guard {
    fn drop(&mut self) {
        let (hidden, blob) = (Arc::clone(&self.hidden), std::mem::take(&mut self.blob));
        let deleting = async move { hidden.drop_blob(&blob).await };
        self.hidden.deleting.spawn_on(deleting, &self.hidden.runtime);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fake::{FakeStore, Op};

    /// Where each request takes seconds, all leases are renewed in time all the same.
    #[tokio::test(start_paused = true)]
    async fn many_leases_are_renewed_side_by_side() {
        let store = Arc::new(FakeStore::new());
        let runtime = tokio::runtime::Handle::current();
        let hidden = HiddenBlobs::new(store.clone(), runtime, String::new());
        for _ in 0..40 {
            hidden.reserve().await.unwrap();
        }
        store.set_delay(Duration::from_secs(5));
        tokio::time::sleep(RENEW + RENEWAL).await;
        assert_eq!(store.counters().of(Op::RenewLease), 40);
        // And again, before they would end.
        tokio::time::sleep(RENEW + RENEWAL).await;
        assert_eq!(store.counters().of(Op::RenewLease), 80);
    }
}
