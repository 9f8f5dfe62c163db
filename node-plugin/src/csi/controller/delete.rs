//! DeleteVolume: only what CreateVolume made, and gone is fine.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blob_client::{Condition, Container, ETag, Error as BlobError, ListItem, ListOptions, Metadata};
use csi_proto::csi::DeleteVolumeRequest;
use futures::stream::{StreamExt as _, TryStreamExt as _};

use super::ownership::{Mark, name_digest};
use super::{ControllerService, explain_identity, own_identity};
use crate::csi::connect;
use crate::csi::required;
use crate::csi::volume_context::{Attributes, OnDelete, Scope, Secrets};
use crate::csi::volume_id::VolumeId;
use crate::error::{Error, Reason, Result};

/// Deletions under way at once.
const AT_ONCE: usize = 16;

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

/// What became of a volume.
enum Fate {
    /// It is not there any more.
    Gone,
    /// It is in the place, and not created by this driver.
    NotOurs,
    /// Blob and name of another volume inside it.
    Holds(String, String),
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
            if empty_a_page(container, &inside).await? {
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

/// Deletes what a page of a listing shows below a prefix, in the versions that it shows; true when it shows
/// nothing.
async fn empty_a_page(container: &Container, prefix: &str) -> Result<bool, BlobError> {
    let mut options = ListOptions {
        prefix: prefix.to_owned(),
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
    // Deepest first: a directory of a hierarchical account goes only when it is empty.
    let mut blobs: Vec<(String, ETag)> = page
        .items
        .into_iter()
        .filter_map(|item| match item {
            ListItem::Blob { name, properties } => Some((name, properties.etag)),
            ListItem::Prefix { .. } => None,
        })
        .collect();
    if blobs.is_empty() {
        return Ok(true);
    }
    blobs.sort_by_key(|(name, _)| std::cmp::Reverse(name.matches('/').count()));
    let mut level = usize::MAX;
    let mut batch = Vec::new();
    for (name, etag) in blobs {
        let depth = name.matches('/').count();
        if depth != level {
            delete_all(container, std::mem::take(&mut batch)).await?;
            level = depth;
        }
        batch.push((name, etag));
    }
    delete_all(container, batch).await?;
    Ok(false)
}

async fn delete_all(container: &Container, blobs: Vec<(String, ETag)>) -> Result<(), BlobError> {
    futures::stream::iter(blobs)
        .map(|(name, etag)| async move {
            match container.delete(&name, &Condition::matches(&etag)).await {
                // What was written since is seen by the next listing, if the volume is still there.
                Err(BlobError::BlobNotFound { .. } | BlobError::ConditionNotMet { .. }) => Ok(()),
                result => result,
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}
