//! The store itself: its account, its containers, and what is kept in its folder.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use super::aids::Aids;
use super::auth::Account;
use super::content::Content;
use super::error::ServiceError;
use super::folder::Folder;
use super::state::{Blob, Container, SlotState};
use super::version::Clock;

/// The account of emulators: name `devstoreaccount1`.
pub const DEV_ACCOUNT: &str = "devstoreaccount1";
/// The public, well-known key of that account.
pub const DEV_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Settings of a store.
#[derive(Clone)]
pub struct StoreConfig {
    /// Account name.
    pub account: String,
    /// Account key, base64.
    pub key: String,
    /// Keep blobs in this folder too.
    pub folder: Option<PathBuf>,
}

impl std::fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreConfig")
            .field("account", &self.account)
            .field("key", &"***")
            .field("folder", &self.folder)
            .finish()
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            account: DEV_ACCOUNT.into(),
            key: DEV_KEY.into(),
            folder: None,
        }
    }
}

/// The service itself, without a socket: what HTTP connections and the mock VSP both call.
#[derive(Debug)]
pub struct BlobStore {
    pub(super) account: Account,
    pub(super) containers: RwLock<BTreeMap<String, Arc<Container>>>,
    pub(super) clock: Clock,
    pub(super) folder: Option<Folder>,
    pub(super) tokens: RwLock<HashSet<String>>,
    pub(super) aids: Aids,
}

impl Drop for BlobStore {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            folder.close();
        }
    }
}

impl BlobStore {
    /// An empty store (or what the folder holds).
    pub fn new(config: StoreConfig) -> std::io::Result<Arc<Self>> {
        let clock = Clock::default();
        let mut containers = BTreeMap::new();
        let folder = match &config.folder {
            None => None,
            Some(path) => {
                let (folder, loaded) = Folder::open(path)?;
                for (container, blobs) in loaded {
                    clock.seen(container.lock().version);
                    for (name, blob) in blobs {
                        clock.seen(blob.version);
                        container.with_slot(&name, |state| state.blob = Some(Arc::new(blob)));
                    }
                    containers.insert(container.name.clone(), Arc::new(container));
                }
                Some(folder)
            }
        };
        Ok(Arc::new(Self {
            account: Account::new(&config.account, &config.key)?,
            containers: RwLock::new(containers),
            clock,
            folder,
            tokens: RwLock::default(),
            aids: Aids::default(),
        }))
    }

    /// A container by name.
    pub(super) fn container(&self, name: &str) -> Result<Arc<Container>, ServiceError> {
        self.containers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
            .ok_or_else(ServiceError::container_not_found)
    }

    /// Writes a body to the folder, when there is one.
    pub(super) fn keep(&self, content: Content) -> Result<Content, ServiceError> {
        match &self.folder {
            None => Ok(content),
            Some(folder) => folder.keep(content).map_err(folder_failed),
        }
    }

    /// Makes a version of a blob the committed one.
    pub(super) fn commit(
        &self,
        container: &Container,
        name: &str,
        state: &mut SlotState,
        blob: Blob,
    ) -> Result<(), ServiceError> {
        container.while_there(|| match &self.folder {
            Some(folder) => folder
                .save_blob(&container.name, name, &blob)
                .map_err(folder_failed),
            None => Ok(()),
        })?;
        state.blob = Some(Arc::new(blob));
        Ok(())
    }
}

/// The folder could not be read or written.
pub(super) fn folder_failed(error: std::io::Error) -> ServiceError {
    tracing::error!(%error, "the store's folder failed");
    ServiceError::internal_error().detail("Reason", error.to_string())
}
