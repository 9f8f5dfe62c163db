//! Blobs of large files that were deleted while open: moved to a reserved name, leased as long as they are
//! needed, and collected when nobody holds them. Likewise blobs that have to be deleted before one of another
//! type can have their name: those carry that name, and are put back where nothing has taken their place.
//!
//! A block blob is made empty, leased, and then copied over under the lease, so that there is no moment in
//! which it has content and no holder. (Others cannot be made so: they are leased after the copy, and copied
//! again if somebody was quicker.) The mount renews the lease; when its process dies, the lease ends a minute
//! later, and the next mount that may write deletes the blob, or puts it back. What carries no mark of ours
//! is never deleted, whatever its name is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use blob_client::{
    BlobType, Body, Condition, ETag, Error, ListItem, ListOptions, Metadata, Properties, PutOptions, Result,
    StoredHeaders, Written,
};
use futures::{StreamExt, stream};
use tokio_util::task::TaskTracker;

use super::attrs::{self, ContentOf};
use super::names;
use crate::content::binding::MAX_METADATA;
use crate::content::{Keep, Refuge, Shelter};
use crate::log_limit::limited;
use crate::store::Store;

/// The mark, in the metadata of a hidden blob.
pub(crate) const MARK: &str = "vsc_hidden";
/// The name that the content of a hidden blob had, in Base64, as metadata holds ASCII only; absent for
/// deleted files.
const REPLACED: &str = "vsc_replaced";
/// Between two tries to put a blob back, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
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
    /// What its lines of the log are counted by.
    volume: usize,
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

/// A blob that has to be deleted before one of another type can have its name: the copy it comes back from,
/// if that one does not come about.
#[derive(Debug)]
pub(crate) struct Replaced {
    hidden: String,
    name: String,
    metadata: Metadata,
    stored: StoredHeaders,
    /// The version that is at the name still, or was, and whose deletion may be carried out late.
    pub(crate) deleted_late: Option<ETag>,
}

/// The name that the content of a hidden blob had, if that is to have it again.
pub(crate) fn replaced(metadata: &Metadata) -> Option<String> {
    let name = BASE64.decode(metadata.get(REPLACED)?).ok()?;
    String::from_utf8(name).ok()
}

/// What every hidden blob carries.
pub(crate) fn mark() -> Metadata {
    Metadata::from([(MARK.to_owned(), "true".to_owned())])
}

impl HiddenBlobs {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        runtime: tokio::runtime::Handle,
        prefix: String,
        volume: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            runtime,
            prefix,
            volume,
            held: Mutex::default(),
            deleting: TaskTracker::new(),
        })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many blobs are leased.
    pub(crate) fn leases(&self) -> usize {
        self.held().leases.len()
    }

    /// Copies this version of a blob, which is of this type, to a new hidden name: the name, its lease, and
    /// the version. `ConditionNotMet` or `BlobNotFound`: the version is gone already.
    pub(crate) async fn keep(
        self: &Arc<Self>,
        blob: &str,
        etag: &ETag,
        kind: BlobType,
    ) -> Result<(String, String, Written)> {
        self.keep_as((blob, etag, kind), None, &mark()).await
    }

    async fn keep_as(
        self: &Arc<Self>,
        (blob, etag, kind): (&str, &ETag, BlobType),
        stored: Option<&StoredHeaders>,
        metadata: &Metadata,
    ) -> Result<(String, String, Written)> {
        if kind != BlobType::Block {
            return self.keep_other((blob, etag), stored, metadata).await;
        }
        let (hidden, lease, _) = self.reserve().await?;
        let condition = Condition {
            lease: Some(lease.clone()),
            ..Condition::none()
        };
        match self
            .store
            .copy(blob, Some(etag), stored, &hidden, Some(metadata), &condition)
            .await
        {
            Ok(written) => Ok((hidden, lease, written)),
            Err(error) => {
                self.drop_blob(&hidden).await;
                Err(error)
            }
        }
    }

    /// The same of a page or append blob.
    async fn keep_other(
        self: &Arc<Self>,
        (blob, etag): (&str, &ETag),
        stored: Option<&StoredHeaders>,
        metadata: &Metadata,
    ) -> Result<(String, String, Written)> {
        let mut attempt = 1;
        loop {
            let hidden = names::join(&self.prefix, &names::hidden());
            let free = Condition::absent();
            let copied = self
                .store
                .copy(blob, Some(etag), stored, &hidden, Some(metadata), &free)
                .await;
            let written = match copied {
                Ok(written) => written,
                Err(error) => {
                    self.drop_blob(&hidden).await;
                    return Err(error);
                }
            };
            match self.store.acquire_lease(&hidden, LEASE).await {
                Ok(lease) => {
                    self.hold(hidden.clone(), lease.clone());
                    return Ok((hidden, lease, written));
                }
                // Another mount has just begun and swept.
                Err(Error::BlobNotFound { .. } | Error::LeaseConflict { .. }) if attempt < ATTEMPTS => {
                    attempt += 1;
                }
                Err(error) => {
                    self.drop_blob(&hidden).await;
                    return Err(error);
                }
            }
        }
    }

    /// Keeps what is at a name `now`, and what it is to have again: its metadata. `ConditionNotMet` when it
    /// has changed meanwhile.
    pub(crate) async fn keep_replaced(
        self: &Arc<Self>,
        name: &str,
        now: &Properties,
        metadata: Metadata,
    ) -> Result<Replaced> {
        let note = (REPLACED.to_owned(), BASE64.encode(name));
        let mut marked = metadata.clone();
        marked.extend(mark().into_iter().chain([note.clone()]));
        let size: usize = marked.iter().map(|(k, v)| k.len() + v.len()).sum();
        if size > MAX_METADATA {
            // Then only this mount knows the rest.
            marked = mark();
            marked.extend([note]);
        }
        let blob = (name, &now.etag, now.blob_type);
        match self.keep_as(blob, Some(&now.stored), &marked).await {
            Ok((hidden, _, _)) => Ok(Replaced {
                hidden,
                name: name.to_owned(),
                metadata,
                stored: now.stored.clone(),
                deleted_late: None,
            }),
            Err(Error::BlobNotFound { name }) => Err(Error::ConditionNotMet { name }),
            Err(error) => Err(error),
        }
    }

    /// Something else has the name now.
    pub(crate) async fn let_go(&self, replaced: Replaced) {
        self.drop_blob(&replaced.hidden).await;
    }

    /// Puts a blob back under its name, as soon as that can be done: the version there; `None` when somebody
    /// has the name, or it cannot be done now.
    pub(crate) async fn bring_back(self: &Arc<Self>, replaced: Replaced) -> Option<Written> {
        match self.try_bring_back(&replaced).await {
            Ok(back) => {
                self.let_go(replaced).await;
                back
            }
            Err(error) => {
                limited!(
                    error,
                    self.volume,
                    "a file was to be replaced, and could not be put back yet",
                    %error, blob = replaced.name, kept = replaced.hidden
                );
                let weak = Arc::downgrade(self);
                self.runtime.spawn(async move {
                    let mut pause = PAUSES.0;
                    loop {
                        tokio::time::sleep(pause).await;
                        pause = (2 * pause).min(PAUSES.1);
                        // The end of the mount leaves it to the next one.
                        let Some(hidden) = weak.upgrade() else { return };
                        if hidden.try_bring_back(&replaced).await.is_ok() {
                            hidden.let_go(replaced).await;
                            return;
                        }
                    }
                });
                None
            }
        }
    }

    async fn try_bring_back(&self, replaced: &Replaced) -> Result<Option<Written>> {
        let Replaced {
            hidden,
            name,
            metadata,
            stored,
            deleted_late,
        } = replaced;
        for _ in 0..ATTEMPTS {
            let back = put_back(&*self.store, hidden, (name, metadata, stored)).await?;
            let (None, Some(version)) = (&back, deleted_late) else {
                return Ok(back);
            };
            // It is still there, and its deletion may come yet: that must not find the version it names.
            match renew_version(&*self.store, name, metadata, version).await {
                Ok(Some(written)) => return Ok(Some(written)),
                Ok(None) => {}
                Err(Error::ConditionNotMet { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Err(Error::ConditionNotMet { name: name.clone() })
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
                    self.volume,
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
                    self.volume,
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
    pub(crate) async fn list(&self) -> Result<Vec<(String, Properties)>> {
        let options = ListOptions {
            prefix: format!("{}{}", names::below(&self.prefix), names::HIDDEN),
            metadata: true,
            ..ListOptions::default()
        };
        let page = self.store.list(&options).await?;
        let marked = page.items.into_iter().filter_map(|item| match item {
            ListItem::Blob { name, properties } if properties.metadata.contains_key(MARK) => {
                Some((name, properties))
            }
            _ => None,
        });
        Ok(marked.collect())
    }

    /// Deletes the blobs of a list that nobody holds, or puts them back.
    pub(crate) async fn collect(&self, listed: Vec<(String, Properties)>) {
        for (blob, now) in listed {
            match clear(&*self.store, &self.prefix, &blob, &now).await {
                Ok(Cleared::Held) => {}
                Ok(Cleared::Deleted) => limited!(
                    info,
                    self.volume,
                    "cleared what a mount that died had kept of a file",
                    blob
                ),
                Ok(Cleared::PutBack(name)) => limited!(
                    warn,
                    self.volume,
                    "put back what had to be deleted for a rename that did not come about",
                    blob = name
                ),
                Err(error) => {
                    limited!(
                        warn, self.volume, "a deleted file that nobody holds is still stored",
                        %error, blob
                    );
                    return;
                }
            }
        }
    }
}

/// Gives a blob of this version a new one, so that whoever still goes by the old one does nothing to it.
/// `None` when there is none any more; `ConditionNotMet` when there is another one.
pub(crate) async fn renew_version(
    store: &dyn Store,
    blob: &str,
    metadata: &Metadata,
    version: &ETag,
) -> Result<Option<Written>> {
    match store
        .set_metadata(blob, metadata, &Condition::matches(version))
        .await
    {
        Ok(written) => Ok(Some(written)),
        Err(Error::BlobNotFound { .. }) => Ok(None),
        // Also said of one that is gone.
        Err(other @ Error::ConditionNotMet { .. }) => match store.head(blob, &Condition::none()).await {
            Ok(_) => Err(other),
            Err(Error::BlobNotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    }
}

/// Copies a hidden blob to a name that nothing has: the version there, `None` when somebody has it.
async fn put_back(
    store: &dyn Store,
    hidden: &str,
    (name, metadata, stored): (&str, &Metadata, &StoredHeaders),
) -> Result<Option<Written>> {
    let free = Condition::absent();
    match store
        .copy(hidden, None, Some(stored), name, Some(metadata), &free)
        .await
    {
        Ok(written) => Ok(Some(written)),
        Err(Error::AlreadyExists { .. } | Error::ConditionNotMet { .. }) => Ok(None),
        // Of another type, it may be that the service says so first.
        Err(error) => match store.head(name, &Condition::none()).await {
            Ok(_) => Ok(None),
            Err(_) => Err(error),
        },
    }
}

/// Deletes a hidden blob of the volume below `prefix`, which was found as it is `now` and carries the mark,
/// unless somebody holds it; puts it back first where nothing has the name that it had.
pub(crate) async fn clear(store: &dyn Store, prefix: &str, blob: &str, now: &Properties) -> Result<Cleared> {
    let name = replaced(&now.metadata).filter(|name| name.starts_with(&names::below(prefix)));
    let cleared = match name {
        None => store
            .delete(blob, &Condition::matches(&now.etag))
            .await
            .map(|()| Cleared::Deleted),
        Some(name) => clear_replaced(store, blob, name, now).await,
    };
    match cleared {
        Ok(cleared) => Ok(cleared),
        // Held, gone, or something else by now.
        Err(Error::LeaseConflict { .. } | Error::BlobNotFound { .. } | Error::ConditionNotMet { .. }) => {
            Ok(Cleared::Held)
        }
        Err(error) => Err(error),
    }
}

/// What became of a hidden blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cleared {
    /// Somebody holds it, or it is something else by now.
    Held,
    Deleted,
    /// The same, after it was put back under this name.
    PutBack(String),
}

async fn clear_replaced(store: &dyn Store, blob: &str, name: String, now: &Properties) -> Result<Cleared> {
    // Whoever holds it puts it back himself.
    let lease = store.acquire_lease(blob, LEASE).await?;
    let mut metadata = now.metadata.clone();
    metadata.remove(MARK);
    metadata.remove(REPLACED);
    if metadata.is_empty() {
        // None at all would be that of the copy.
        metadata = ContentOf::of(now).bound(attrs::times_only(now.last_modified), store.now());
    }
    let back = put_back(store, blob, (&name, &metadata, &now.stored)).await?;
    let condition = Condition {
        lease: Some(lease),
        ..Condition::matches(&now.etag)
    };
    store.delete(blob, &condition).await?;
    Ok(match back {
        Some(_) => Cleared::PutBack(name),
        None => Cleared::Deleted,
    })
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
#[path = "hidden_tests.rs"]
mod tests;
