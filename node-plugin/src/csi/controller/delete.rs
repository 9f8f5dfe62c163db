//! DeleteVolume: only what CreateVolume made, and gone is fine.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blob_client::{Condition, Container, Error as BlobError, ListItem, ListOptions, Metadata};
use csi_proto::csi::DeleteVolumeRequest;
use futures::stream::{StreamExt as _, TryStreamExt as _};

use super::ownership::{Mark, name_digest};
use super::{ControllerService, explain_identity, own_identity};
use crate::csi::connect;
use crate::csi::required;
use crate::csi::status::{Error, Reason, Result};
use crate::csi::volume_context::{Attributes, OnDelete, Scope, Secrets};
use crate::csi::volume_id::VolumeId;

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
        let _guard = self.guards.enter(volume_id)?;
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
        let (_, metadata) = container.properties().await?;
        if let Some(fate) = not_to_delete(volume, id, &metadata) {
            return Ok(fate);
        }
        if let Some(fate) = self.look(volume, container, "").await? {
            return Ok(fate);
        }
        container.delete_container().await.map(|()| Fate::Gone)
    }

    /// Content first, the marker last: a call that was cut off is finished by its repetition.
    async fn delete_directory(
        &self,
        volume: &str,
        id: &VolumeId,
        container: &Container,
        prefix: &str,
    ) -> Result<Fate, BlobError> {
        match container.head(prefix, &Condition::none()).await {
            Ok(properties) => {
                if let Some(fate) = not_to_delete(volume, id, &properties.metadata) {
                    return Ok(fate);
                }
            }
            Err(BlobError::BlobNotFound { .. }) => return Ok(Fate::Gone),
            Err(error) => return Err(error),
        }
        let inside = format!("{prefix}/");
        if let Some(fate) = self.look(volume, container, &inside).await? {
            return Ok(fate);
        }
        empty(container, &inside).await?;
        delete_one(container, prefix).await?;
        Ok(Fate::Gone)
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

/// Deletes every blob below a prefix.
async fn empty(container: &Container, prefix: &str) -> Result<(), BlobError> {
    loop {
        let options = ListOptions {
            prefix: prefix.to_owned(),
            ..ListOptions::default()
        };
        let page = container.list(&options).await?;
        // Deepest first: a directory of a hierarchical account goes only when it is empty.
        let mut names: Vec<String> = page
            .items
            .into_iter()
            .filter_map(|item| match item {
                ListItem::Blob { name, .. } => Some(name),
                ListItem::Prefix { .. } => None,
            })
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        names.sort_by_key(|name| std::cmp::Reverse(name.matches('/').count()));
        let mut level = usize::MAX;
        let mut batch: Vec<String> = Vec::new();
        for name in names {
            let depth = name.matches('/').count();
            if depth != level {
                delete_all(container, std::mem::take(&mut batch)).await?;
                level = depth;
            }
            batch.push(name);
        }
        delete_all(container, batch).await?;
    }
}

async fn delete_all(container: &Container, names: Vec<String>) -> Result<(), BlobError> {
    futures::stream::iter(names)
        .map(|name| async move { delete_one(container, &name).await })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

async fn delete_one(container: &Container, name: &str) -> Result<(), BlobError> {
    match container.delete(name, &Condition::none()).await {
        Err(BlobError::BlobNotFound { .. }) => Ok(()),
        result => result,
    }
}
