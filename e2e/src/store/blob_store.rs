//! The store itself: its account, its containers, and what is kept in its folder.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use super::aids::Aids;
use super::auth::Account;
use super::content::Content;
use super::error::ServiceError;
use super::folder::Folder;
use super::job::Belated;
use super::settings::AccountSettings;
use super::state::{Blob, Container, Past, Reason, SlotState};
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
    pub(super) settings: RwLock<AccountSettings>,
    /// Requests to be executed late.
    pub(super) belated: Mutex<Vec<Belated>>,
    /// Names of deleted containers, each with the end of its deletion.
    pub(super) deletions: Mutex<HashMap<String, SystemTime>>,
    /// Copies that are pending.
    pub(super) copies: Mutex<Vec<PendingCopy>>,
}

/// A copy that was accepted and has not ended: what its target becomes when it does.
#[derive(Debug)]
pub(super) struct PendingCopy {
    pub(super) container: Arc<Container>,
    pub(super) name: String,
    pub(super) blob: Blob,
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
            settings: RwLock::default(),
            belated: Mutex::default(),
            deletions: Mutex::default(),
            copies: Mutex::default(),
        }))
    }

    /// The account's settings now.
    pub(super) fn settings(&self) -> AccountSettings {
        self.settings
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
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

    /// Makes a version of a blob the committed one, and keeps the one before as the account wants it.
    pub(super) fn replace(
        &self,
        container: &Container,
        name: &str,
        state: &mut SlotState,
        blob: Blob,
    ) -> Result<(), ServiceError> {
        let before = state.blob.clone();
        self.commit(container, name, state, blob)?;
        self.retire(state, before);
        Ok(())
    }

    /// Keeps a blob that is no longer the current one: as a version, or for as long as it can be restored.
    pub(super) fn retire(&self, state: &mut SlotState, before: Option<Arc<Blob>>) {
        let Some(blob) = before else { return };
        let settings = self.settings();
        let reason = match (settings.versioning, settings.soft_delete) {
            (true, _) => Reason::Version,
            (false, Some(kept)) => Reason::Deleted(self.clock.now() + kept),
            (false, None) => return,
        };
        state.history.push(Past {
            id: blob.version.id(),
            reason,
            blob,
        });
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
