//! DeleteVolume: only what CreateVolume made, and gone is fine.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blob_client::{Condition, Container, Error as BlobError, ListItem, ListOptions, Metadata, Properties};
use blob_fs::tree::inspect::is_hidden;
use csi_proto::csi::DeleteVolumeRequest;
use futures::stream::StreamExt as _;
use tokio::time::Instant;

use super::ownership::{Mark, name_digest};
use super::{ControllerService, explain_identity, own_identity};
use crate::csi::connect;
use crate::csi::required;
use crate::csi::volume_context::{Attributes, OnDelete, Scope, Secrets};
use crate::csi::volume_id::VolumeId;
use crate::error::{Error, Reason, Result};

/// Single deletions under way at once.
const AT_ONCE: usize = 16;
/// Batches of deletions under way at once.
const BATCHES: usize = 4;
/// From this many blobs on a batch is worth its while.
const WORTH_A_BATCH: usize = 8;

/// Leased blobs that an error names.
const NAMED: usize = 3;

/// How far volumes have been looked through before their deletion, by volume id: where the next page of the
/// listing begins. A call that a deadline ends in the middle of millions of blobs is carried on by its
/// repetition.
#[derive(Debug, Clone, Default)]
pub(super) struct Looked(Arc<Mutex<HashMap<String, String>>>);

impl Looked {
    fn get(&self, volume: &str) -> Option<String> {
        self.lock().get(volume).cloned()
    }

    fn until(&self, volume: &str, next: Option<&str>) {
        match next {
            Some(next) => self.lock().insert(volume.to_owned(), next.to_owned()),
            None => self.lock().remove(volume),
        };
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, String>> {
        // Whole after a panic elsewhere: every change is one insert or remove.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Containers, with their endpoints, in which batches were refused and single deletions were not: a service,
/// a gateway or a credential that does not take them. It is not tried again for each call.
#[derive(Debug, Clone, Default)]
pub(super) struct Unbatched(Arc<Mutex<HashMap<String, Instant>>>);

impl Unbatched {
    /// Beyond so many all are tried again.
    const MOST: usize = 1024;
    /// So long: a gateway is replaced, a role is given.
    const FOR: Duration = Duration::from_secs(3600);

    fn has(&self, place: &str) -> bool {
        let mut places = self.lock();
        places.retain(|_, since| since.elapsed() < Self::FOR);
        places.contains_key(place)
    }

    fn note(&self, place: &str) {
        let mut places = self.lock();
        if places.len() >= Self::MOST {
            places.clear();
        }
        places.insert(place.to_owned(), Instant::now());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        // Whole after a panic elsewhere: every change is a step of its own.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of a volume.
enum Fate {
    /// It is not there any more.
    Gone,
    /// It is in the place, and not created by this driver.
    NotOurs,
    /// Blob and name of another volume inside it.
    Holds(String, String),
    /// Somebody else holds leases on blobs inside it; everything else is deleted.
    Leased(Leased),
}

/// Blobs that somebody else has leased.
#[derive(Debug, Default)]
struct Leased {
    /// Some of them.
    names: Vec<String>,
    all: usize,
}

impl Leased {
    fn add(&mut self, name: String) {
        self.all += 1;
        if self.names.len() < NAMED {
            self.names.push(name);
        }
    }

    fn is_empty(&self) -> bool {
        self.all == 0
    }
}

impl ControllerService {
    pub(super) async fn delete(&self, request: &DeleteVolumeRequest) -> Result<()> {
        let volume_id = required("volume_id", &request.volume_id)?;
        // An id that was never ours names no volume: gone (CSI, DeleteVolume, idempotency).
        let Some(id) = VolumeId::parse(volume_id) else {
            return Ok(());
        };
        if id.on_delete == OnDelete::Retain {
            return Ok(());
        }
        let _guard = self.in_flight.enter(volume_id)?;
        let secrets = self
            .secrets(Secrets::parse(&request.secrets)?, id.secret.as_ref())
            .await?;
        let container = self.container_of(&id, &secrets)?;
        let deleted = match id.prefix.as_str() {
            "" => self.delete_container(volume_id, &id, &container).await,
            prefix => self.delete_directory(volume_id, &id, &container, prefix).await,
        };
        match deleted {
            Ok(Fate::Gone) | Err(BlobError::ContainerNotFound { .. }) => Ok(()),
            Ok(Fate::NotOurs) => Err(Error::new(
                Reason::NotCreatedHere,
                format!("volume_id: {volume_id:?} was not created by this driver; nothing was deleted"),
            )),
            Ok(Fate::Holds(blob, name)) => Err(Error::new(
                Reason::HoldsAnotherVolume,
                format!(
                    "volume_id: {volume_id:?} holds {blob:?}, which belongs to volume {name:?}; nothing was \
                    deleted"
                ),
            )),
            Ok(Fate::Leased(Leased { names, all })) => Err(Error::new(
                Reason::BlobsLeased,
                format!(
                    "volume_id: {volume_id:?}: {all} blobs are leased and stay, for instance {}; everything \
                    else is deleted",
                    names.join(", ")
                ),
            )),
            Err(error) => {
                let error = connect::explain(&id.account, &id.container, error);
                Err(explain_identity(error, &request.secrets))
            }
        }
    }

    /// The request has no parameters: account, endpoint and identity come from the id, the credential from
    /// the secrets.
    fn container_of(&self, id: &VolumeId, secrets: &Secrets) -> Result<Container> {
        let mut attributes = Attributes::parse(&HashMap::new(), Scope::Attributes)?;
        attributes.auth_type = id.auth_type.or_else(|| own_identity(secrets));
        attributes.identity = id.identity.clone();
        if let Some(other) = secrets.account.as_ref().filter(|name| **name != id.account.name) {
            return Err(Error::new(
                Reason::ConflictingFields,
                format!(
                    "azurestorageaccountname of the Secret: it says {other:?}, the volume is in {:?}",
                    id.account.name
                ),
            ));
        }
        let client = self.client(&id.account, &attributes, secrets)?;
        Ok(connect::container(&client, &id.container)?.for_a_verdict(connect::FIRST_ANSWER))
    }

    async fn delete_container(
        &self,
        volume: &str,
        id: &VolumeId,
        container: &Container,
    ) -> Result<Fate, BlobError> {
        for last in [false, false, true] {
            let (seen, metadata) = container.properties().await?;
            if let Some(fate) = not_to_delete(volume, id, &metadata) {
                return Ok(fate);
            }
            if let Some(fate) = self.look(volume, container, "").await? {
                return Ok(fate);
            }
            match container.delete_container_seen(&seen).await {
                // Its attributes were changed; or it is another one by now, which is looked at.
                Err(BlobError::ConditionNotMet { .. }) if !last => {}
                deleted => return deleted.map(|()| Fate::Gone),
            }
        }
        Ok(Fate::Gone)
    }

    /// Content first, the marker last: a call that was cut off is finished by its repetition.
    async fn delete_directory(
        &self,
        volume: &str,
        id: &VolumeId,
        container: &Container,
        prefix: &str,
    ) -> Result<Fate, BlobError> {
        let inside = format!("{prefix}/");
        let mut looked = false;
        let place = format!("{} {}", id.account.endpoint, id.container);
        let mut deletion = Deletion {
            container,
            volume: prefix,
            batches: !self.unbatched.has(&place),
            refused: false,
            leased: Leased::default(),
        };
        let mut from = None;
        loop {
            // Before each page: who else deletes the volume may have finished, and the place may be another
            // volume's by now.
            let marker = match container.head(prefix, &Condition::none()).await {
                Ok(marker) => marker,
                Err(BlobError::BlobNotFound { .. }) => return Ok(Fate::Gone),
                Err(error) => return Err(error),
            };
            if let Some(fate) = not_to_delete(volume, id, &marker.metadata) {
                return Ok(fate);
            }
            if !std::mem::replace(&mut looked, true)
                && let Some(fate) = self.look(volume, container, &inside).await?
            {
                return Ok(fate);
            }
            let page = page(container, &inside, from.take()).await?;
            let found = !page.blobs.is_empty();
            deletion.delete_all(page.blobs).await?;
            if std::mem::take(&mut deletion.refused) {
                self.unbatched.note(&place);
            }
            if !deletion.leased.is_empty() {
                // They are found again from the beginning on.
                match page.next {
                    Some(next) if found => from = Some(next),
                    _ => return Ok(Fate::Leased(deletion.leased)),
                }
            } else if !found {
                match container.delete(prefix, &Condition::matches(&marker.etag)).await {
                    // Its attributes were changed, or it is another one.
                    Err(BlobError::ConditionNotMet { .. }) => continue,
                    Ok(()) | Err(BlobError::BlobNotFound { .. }) => return Ok(Fate::Gone),
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Looks for another volume below a prefix. CreateVolume puts none there; one may have been there before,
    /// or moved.
    async fn look(
        &self,
        volume: &str,
        container: &Container,
        prefix: &str,
    ) -> Result<Option<Fate>, BlobError> {
        loop {
            let options = ListOptions {
                prefix: prefix.to_owned(),
                marker: self.looked.get(volume),
                metadata: true,
                ..ListOptions::default()
            };
            let page = container.list(&options).await?;
            let found = page.items.into_iter().find_map(|item| match item {
                ListItem::Blob { name, properties } => Some((name, Mark::read(&properties.metadata)?)),
                ListItem::Prefix { .. } => None,
            });
            if let Some((blob, mark)) = found {
                // From the beginning the next time: it may be gone then, and others may not.
                self.looked.until(volume, None);
                return Ok(Some(Fate::Holds(blob, mark.name)));
            }
            self.looked.until(volume, page.next_marker.as_deref());
            if page.next_marker.is_none() {
                return Ok(None);
            }
        }
    }
}

/// The place's mark against the id; `None` when it is the volume that was meant.
fn not_to_delete(volume: &str, id: &VolumeId, metadata: &Metadata) -> Option<Fate> {
    let Some(mark) = Mark::read(metadata) else {
        return Some(Fate::NotOurs);
    };
    let meant = id
        .name
        .as_ref()
        .is_none_or(|digest| *digest == name_digest(&mark.name));
    if meant {
        return None;
    }
    tracing::info!(
        volume,
        holder = mark.name,
        "nothing is deleted: the volume is gone, and its place belongs to another one"
    );
    Some(Fate::Gone)
}

/// What a page of a listing shows.
struct Page {
    blobs: Vec<Blob>,
    next: Option<String>,
}

/// The first page from a marker on that shows anything.
async fn page(container: &Container, prefix: &str, from: Option<String>) -> Result<Page, BlobError> {
    let mut options = ListOptions {
        prefix: prefix.to_owned(),
        marker: from,
        // What says whether a blob is a mount's own.
        metadata: true,
        ..ListOptions::default()
    };
    let page = loop {
        let page = container.list(&options).await?;
        // A page may be empty and not the last.
        if !page.items.is_empty() || page.next_marker.is_none() {
            break page;
        }
        options.marker = page.next_marker;
    };
    let blobs = page.items.into_iter().filter_map(|item| match item {
        ListItem::Blob { name, properties } => Some((name, properties)),
        ListItem::Prefix { .. } => None,
    });
    Ok(Page {
        blobs: blobs.collect(),
        next: page.next_marker,
    })
}

type Blob = (String, Properties);

/// Deletes blobs of a volume, in the versions that were seen.
struct Deletion<'a> {
    container: &'a Container,
    /// What the volume's names are below of.
    volume: &'a str,
    /// Batches are sent.
    batches: bool,
    /// Batches have turned out not to be understood, or not allowed.
    refused: bool,
    leased: Leased,
}

impl Deletion<'_> {
    async fn delete_all(&mut self, mut blobs: Vec<Blob>) -> Result<(), BlobError> {
        let depth = |blob: &Blob| blob.0.matches('/').count();
        // Deepest first: a directory of a hierarchical account goes only when it is empty.
        blobs.sort_by_key(|blob| std::cmp::Reverse(depth(blob)));
        for level in blobs.chunk_by(|one, other| depth(one) == depth(other)) {
            let left = if self.batches && level.len() >= WORTH_A_BATCH {
                self.in_batches(level).await
            } else {
                level.to_vec()
            };
            self.singly(left).await?;
        }
        Ok(())
    }

    /// What is left is to be deleted by single requests, which tell what is wrong.
    async fn in_batches(&mut self, blobs: &[Blob]) -> Vec<Blob> {
        let container = self.container;
        let mut left = Vec::new();
        let chunks: Vec<Vec<Blob>> = blobs.chunks(Container::BATCH).map(<[Blob]>::to_vec).collect();
        let mut batches = futures::stream::iter(chunks)
            .map(|blobs| async move {
                let conditions: Vec<_> = blobs
                    .iter()
                    .map(|(name, seen)| (name.as_str(), Condition::matches(&seen.etag)))
                    .collect();
                let deleted = container.delete_batch(&conditions).await;
                (blobs, deleted)
            })
            .buffer_unordered(BATCHES);
        while let Some((blobs, deleted)) = batches.next().await {
            match deleted {
                Ok(outcomes) => {
                    // A single request says what a refusal means, also where a gateway understands the parts
                    // of a batch in its own way.
                    if !outcomes.iter().any(is_understood) {
                        self.batches = false;
                        self.refused |= are_refused(&outcomes);
                    }
                    let all = blobs.into_iter().zip(outcomes);
                    left.extend(all.filter(|(_, outcome)| outcome.is_err()).map(|(blob, _)| blob));
                }
                // Single requests say what it is.
                Err(error) => {
                    self.refused |= is_final(&error);
                    if std::mem::replace(&mut self.batches, false) {
                        tracing::info!(%error, "a batch was not deleted; deleting blob by blob");
                    }
                    left.extend(blobs);
                }
            }
        }
        left
    }

    async fn singly(&mut self, blobs: Vec<Blob>) -> Result<(), BlobError> {
        let (container, volume) = (self.container, self.volume);
        let mut deletions = futures::stream::iter(blobs)
            .map(|(name, seen)| async move {
                let deleted = delete_blob(container, volume, &name, &seen).await;
                (name, deleted)
            })
            .buffer_unordered(AT_ONCE);
        while let Some((name, deleted)) = deletions.next().await {
            match deleted {
                Err(BlobError::LeaseConflict { .. }) => self.leased.add(name),
                deleted => deleted?,
            }
        }
        Ok(())
    }
}

/// Whether what became of one part of a batch says that the batch was understood: a batch whose answer was
/// lost finds nothing any more when it is repeated, and what is leased, or was changed, is so in a single
/// request.
fn is_understood(deleted: &Result<(), BlobError>) -> bool {
    is_over(deleted) || matches!(deleted, Err(BlobError::LeaseConflict { .. }))
}

/// Whether a batch will not be taken the next time either: no trouble of the moment has refused it.
fn is_final(error: &BlobError) -> bool {
    match error {
        BlobError::Denied { .. } | BlobError::Malformed { .. } | BlobError::TooLong { .. } => true,
        // There is no such thing to this service; the container has just been listed.
        BlobError::ContainerNotFound { .. } => true,
        BlobError::Service { status, .. } => {
            (400..=499).contains(status) && ![408, 429].contains(status) || *status == 501
        }
        _ => false,
    }
}

/// Whether no part of a batch will be taken the next time either: a busy account takes the batch, and turns
/// its parts away, or the only one.
fn are_refused(outcomes: &[Result<(), BlobError>]) -> bool {
    let is_final = |part: &Result<(), BlobError>| part.as_ref().is_err_and(is_final);
    outcomes.iter().all(is_final)
}

/// Deleted, or not the version that was seen: what was written since is seen by the next listing, if the
/// volume is still there.
fn is_over(deleted: &Result<(), BlobError>) -> bool {
    matches!(
        deleted,
        Ok(()) | Err(BlobError::BlobNotFound { .. } | BlobError::ConditionNotMet { .. })
    )
}

async fn delete_blob(
    container: &Container,
    volume: &str,
    name: &str,
    seen: &Properties,
) -> Result<(), BlobError> {
    let version = Condition::matches(&seen.etag);
    let deleted = match container.delete(name, &version).await {
        // A mount holds it for a program that has the file open, or died with it. Its volume goes.
        Err(BlobError::LeaseConflict { .. }) if is_hidden(volume, name, seen) => {
            match container.break_lease(name).await {
                // The lease has ended by itself.
                Ok(()) | Err(BlobError::LeaseConflict { .. }) => container.delete(name, &version).await,
                Err(error) => Err(error),
            }
        }
        deleted => deleted,
    };
    if is_over(&deleted) { Ok(()) } else { deleted }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(status: u16) -> BlobError {
        BlobError::Service {
            status,
            code: String::new(),
            message: String::new(),
            request_id: String::new(),
        }
    }

    #[test]
    fn a_trouble_of_the_moment_does_not_end_batches() {
        let passing = [
            service(408),
            service(429),
            service(500),
            service(503),
            BlobError::DeadlineExceeded {
                waited: Duration::ZERO,
            },
        ];
        for error in &passing {
            assert!(!is_final(error), "{error}");
        }
        let denied = BlobError::Denied {
            code: "AuthorizationPermissionMismatch".into(),
            hint: String::new(),
        };
        let malformed = BlobError::Malformed {
            message: String::new(),
        };
        let unknown = BlobError::ContainerNotFound { name: String::new() };
        for error in [
            service(400),
            service(405),
            service(501),
            denied,
            malformed,
            unknown,
        ] {
            assert!(is_final(&error), "{error}");
        }
    }

    /// The answer to the first one was lost, or a mount that died has left everything leased.
    #[test]
    fn a_batch_that_finds_nothing_to_delete_was_understood() {
        let name = || "b".to_owned();
        let leased = BlobError::LeaseConflict {
            name: name(),
            code: "LeaseIdMissing".into(),
        };
        for part in [Ok(()), Err(BlobError::BlobNotFound { name: name() }), Err(leased)] {
            assert!(is_understood(&part), "{part:?}");
        }
        assert!(!is_understood(&Err(service(400))));
        assert!(are_refused(&[Err(service(400)), Err(service(403))]));
        assert!(!are_refused(&[Err(service(503))]));
        assert!(!are_refused(&[Err(service(400)), Err(service(500))]));
    }

    #[tokio::test(start_paused = true)]
    async fn batches_are_tried_again_after_an_hour() {
        let places = Unbatched::default();
        places.note("a");
        assert!(places.has("a") && !places.has("b"));
        tokio::time::advance(Unbatched::FOR).await;
        assert!(!places.has("a"));
    }
}
