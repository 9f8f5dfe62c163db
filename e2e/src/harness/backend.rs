//! A blob service to mount: the embedded store in this process, or Azurite as a child.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use blob_client::auth::Credentials;
use blob_client::secret::Secret;
use blob_client::transport::failover::{Paths, TransportMode};
use blob_client::{Client, ClientConfig, Container, Metadata};
use url::Url;
use vsc_driver::buffer::Arena;

use super::process::Running;
use super::tools::Tool;
use super::{PATIENCE, runtime, tree};
use crate::store::{BlobStore, DEV_ACCOUNT, DEV_KEY, Server, StoreConfig};

/// Which service stands behind a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The embedded store, in this process.
    Embedded,
    /// Azurite, a child process.
    Azurite,
}

/// A running blob service with the emulators' account. Stops when dropped.
#[derive(Debug)]
pub struct Backend {
    endpoint: Url,
    client: Client,
    store: Option<Arc<BlobStore>>,
    // Both only live here to be stopped.
    _server: Option<Server>,
    _azurite: Option<(Running, tempfile::TempDir)>,
}

impl Backend {
    /// Starts a service and waits until it answers.
    pub fn start(kind: Kind) -> Result<Self> {
        match kind {
            Kind::Embedded => Self::embedded(),
            Kind::Azurite => Self::azurite(),
        }
    }

    fn embedded() -> Result<Self> {
        let store = BlobStore::new(StoreConfig::default()).context("starting the embedded store")?;
        let server = runtime()
            .block_on(store.serve(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))))
            .context("listening for the embedded store")?;
        let endpoint = server.endpoint();
        Ok(Self {
            client: client(&endpoint)?,
            endpoint,
            store: Some(store),
            _server: Some(server),
            _azurite: None,
        })
    }

    fn azurite() -> Result<Self> {
        let (running, port, folder) = start_azurite()?;
        let endpoint = Url::parse(&format!("http://127.0.0.1:{port}/{DEV_ACCOUNT}"))?;
        Ok(Self {
            client: client(&endpoint)?,
            endpoint,
            store: None,
            _server: None,
            _azurite: Some((running, folder)),
        })
    }

    /// `http://127.0.0.1:PORT/devstoreaccount1`.
    pub fn endpoint(&self) -> &Url {
        &self.endpoint
    }

    /// The embedded store, when it is that.
    pub fn store(&self) -> Option<&Arc<BlobStore>> {
        self.store.as_ref()
    }

    /// A client of the container, over HTTP and past every mount: what the service really holds.
    pub fn container(&self, name: &str) -> Result<Container> {
        Ok(self.client.container(name)?)
    }

    /// Makes a container and gives its client.
    pub fn create_container(&self, name: &str) -> Result<Container> {
        let container = self.container(name)?;
        runtime()
            .block_on(container.create(&Metadata::new()))
            .with_context(|| format!("creating container {name}"))?;
        Ok(container)
    }
}

/// Starts Azurite on a free port with its files in a folder of its own: the process, the port, the folder.
pub fn start_azurite() -> Result<(Running, u16, tempfile::TempDir)> {
    let folder = tree::scratch()?;
    let mut running = Running::start(
        "azurite",
        Command::new("node")
            .arg(Tool::Azurite.path()?)
            .args([
                "--silent",
                "--disableTelemetry",
                "--skipApiVersionCheck",
                "--blobHost",
                "127.0.0.1",
            ])
            .args(["--blobPort", "0", "--location"])
            .arg(folder.path()),
    )?;
    let port = running.wait_for_line("Azurite's port", PATIENCE, |line| {
        line.strip_prefix("Azurite Blob service successfully listens on http://127.0.0.1:")?
            .trim()
            .parse()
            .ok()
    })?;
    Ok((running, port, folder))
}

/// A client with the emulators' account key, over HTTP only.
fn client(endpoint: &Url) -> Result<Client> {
    let arena = Arena::new(1 << 30).context("making an arena")?;
    let paths = Paths::new(None, Arc::clone(&arena), runtime().handle().clone());
    let config = ClientConfig {
        endpoint: endpoint.clone(),
        credentials: Credentials::SharedKey {
            account: DEV_ACCOUNT.into(),
            key: Secret::new(DEV_KEY.into()),
        },
        deadline: PATIENCE,
        attempt_timeout: PATIENCE / 2,
    };
    Ok(Client::new(config, paths.transport(TransportMode::Https), arena)?)
}
