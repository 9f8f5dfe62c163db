//! DeleteVolume: only what CreateVolume made, and gone is fine.

use std::collections::HashMap;

use blob_client::{Condition, Container, Error as BlobError, ListItem, ListOptions};
use csi_proto::csi::DeleteVolumeRequest;
use futures::stream::{StreamExt as _, TryStreamExt as _};

use super::ControllerService;
use super::ownership::Mark;
use crate::csi::account::Account;
use crate::csi::connect;
use crate::csi::required;
use crate::csi::status::{Error, Reason, Result};
use crate::csi::volume_context::{Attributes, AuthType, OnDelete, Scope, Secrets};
use crate::csi::volume_id::VolumeId;

/// Deletions under way at once.
const AT_ONCE: usize = 16;

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
            "" => delete_container(&container).await,
            prefix => delete_directory(&container, prefix).await,
        };
        match deleted {
            Ok(true) | Err(BlobError::ContainerNotFound { .. }) => Ok(()),
            Ok(false) => Err(Error::new(
                Reason::NotCreatedHere,
                format!("volume_id: {volume_id:?} was not created by this driver; nothing was deleted"),
            )),
            Err(error) => {
                let mut error = connect::explain(&id.account, &id.container, error);
                if error.reason == Reason::TokenUnavailable && request.secrets.is_empty() {
                    error.message.push_str(
                        "; the call brought no key or SAS either (csi.storage.k8s.io/provisioner-secret-name in the class)",
                    );
                }
                Err(error)
            }
        }
    }

    /// The request has no parameters: account and endpoint come from the id, the credential from the secrets.
    fn container_of(&self, id: &VolumeId, secrets: &Secrets) -> Result<Container> {
        let mut attributes = Attributes::parse(&HashMap::new(), Scope::Attributes)?;
        attributes.auth_type = auth_type(secrets);
        if let Some(other) = secrets.account.as_ref().filter(|name| **name != id.account.name) {
            return Err(Error::new(
                Reason::ConflictingFields,
                format!(
                    "azurestorageaccountname of the Secret: it says {other:?}, the volume is in {:?}",
                    id.account.name
                ),
            ));
        }
        let account: &Account = &id.account;
        let credentials = self.connector.credentials(account, &attributes, secrets, None)?;
        let client = self
            .connector
            .client(account, credentials, attributes.transport)?;
        Ok(connect::container(&client, &id.container)?.for_a_verdict(connect::FIRST_ANSWER))
    }
}

/// Without key and SAS the driver's own identity does it: a service principal from the Secret, the workload identity of the
/// controller's service account, or the node's managed identity.
fn auth_type(secrets: &Secrets) -> Option<AuthType> {
    if secrets.key.is_some() || secrets.sas.is_some() {
        None
    } else if secrets.spn_client_secret.is_some() {
        Some(AuthType::Spn)
    } else if std::env::var_os("AZURE_FEDERATED_TOKEN_FILE").is_some() {
        Some(AuthType::WorkloadIdentity)
    } else {
        Some(AuthType::Msi)
    }
}

/// True when it was this driver's and is gone.
async fn delete_container(container: &Container) -> Result<bool, BlobError> {
    let (_, metadata) = container.properties().await?;
    if Mark::read(&metadata).is_none() {
        return Ok(false);
    }
    container.delete_container().await.map(|()| true)
}

/// Content first, the marker last: a call that was cut off is finished by its repetition.
async fn delete_directory(container: &Container, prefix: &str) -> Result<bool, BlobError> {
    match container.head(prefix, &Condition::none()).await {
        Ok(properties) if Mark::read(&properties.metadata).is_none() => return Ok(false),
        Ok(_) => {}
        Err(BlobError::BlobNotFound { .. }) => return Ok(true),
        Err(error) => return Err(error),
    }
    loop {
        let options = ListOptions {
            prefix: format!("{prefix}/"),
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
            break;
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
    delete_one(container, prefix).await?;
    Ok(true)
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
