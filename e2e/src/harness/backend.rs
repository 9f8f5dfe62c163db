//! A blob service to mount: the embedded store in this process, or Azurite as a child.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use blob_client::auth::Credentials;
use blob_client::secret::Secret;
use blob_client::transport::failover::{Paths, TransportMode};
use blob_client::{Client, ClientConfig, Condition, Container, ListItem, ListOptions, Metadata, PutOptions};
use bytes::Bytes;
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
    arena: Arc<Arena>,
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
        let (client, arena) = client(&endpoint)?;
        Ok(Self {
            endpoint,
            client,
            arena,
            store: Some(store),
            _server: Some(server),
            _azurite: None,
        })
    }

    fn azurite() -> Result<Self> {
        let (running, port, folder) = start_azurite()?;
        let endpoint = Url::parse(&format!("http://127.0.0.1:{port}/{DEV_ACCOUNT}"))?;
        let (client, arena) = client(&endpoint)?;
        Ok(Self {
            endpoint,
            client,
            arena,
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

    /// What the container really holds, over HTTP and past every mount.
    pub fn container(&self, name: &str) -> Result<ContainerView> {
        Ok(ContainerView {
            container: self.client.container(name)?,
            arena: Arc::clone(&self.arena),
        })
    }

    /// Likewise, after making it when it is not there yet.
    pub fn create_container(&self, name: &str) -> Result<ContainerView> {
        let view = self.container(name)?;
        match runtime().block_on(view.container.create(&Metadata::new())) {
            Ok(_) | Err(blob_client::Error::AlreadyExists { .. }) => Ok(view),
            Err(error) => Err(error).with_context(|| format!("creating container {name}")),
        }
    }
}

/// A container as the service has it; blocking calls for tests.
#[derive(Debug)]
pub struct ContainerView {
    container: Container,
    arena: Arc<Arena>,
}

impl ContainerView {
    /// The client, for calls that have no shorthand here.
    pub fn client(&self) -> &Container {
        &self.container
    }

    /// All bytes of a blob.
    pub fn read(&self, blob: &str) -> Result<Vec<u8>> {
        const PART: usize = 4 << 20;
        let mut bytes = Vec::new();
        loop {
            let begin = bytes.len() as u64;
            let buffer = self.arena.alloc(PART)?;
            let range = begin..begin + PART as u64;
            let got = runtime().block_on(self.container.get(blob, range, &Condition::none(), buffer))?;
            bytes.extend_from_slice(&got.buffer);
            if bytes.len() as u64 >= got.properties.content_length || got.buffer.is_empty() {
                return Ok(bytes);
            }
        }
    }

    /// Puts a blob as some other program would.
    pub fn write(&self, blob: &str, bytes: impl Into<Bytes>, metadata: &Metadata) -> Result<()> {
        let options = PutOptions {
            metadata: metadata.clone(),
            ..PutOptions::default()
        };
        runtime().block_on(self.container.put(blob, bytes.into().into(), &options))?;
        Ok(())
    }

    /// All blobs with their metadata.
    pub fn blobs(&self) -> Result<BTreeMap<String, Metadata>> {
        let mut blobs = BTreeMap::new();
        let mut options = ListOptions {
            metadata: true,
            ..ListOptions::default()
        };
        loop {
            let page = runtime().block_on(self.container.list(&options))?;
            for item in page.items {
                if let ListItem::Blob { name, properties } = item {
                    blobs.insert(name, properties.metadata);
                }
            }
            match page.next_marker {
                Some(marker) => options.marker = Some(marker),
                None => return Ok(blobs),
            }
        }
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

/// A client with the emulators' account key, over HTTP only, and the arena of its buffers.
fn client(endpoint: &Url) -> Result<(Client, Arc<Arena>)> {
    let arena = Arena::new(1 << 30).context("making an arena")?;
    let paths = Paths::new(None, Arc::clone(&arena), runtime().handle().clone());
    let credentials = Credentials::SharedKey {
        account: DEV_ACCOUNT.into(),
        key: Secret::new(DEV_KEY.into()),
    };
    let config = ClientConfig {
        deadline: PATIENCE,
        attempt_timeout: PATIENCE / 2,
        ..ClientConfig::new(endpoint.clone(), credentials)
    };
    let client = Client::new(config, paths.transport(TransportMode::Https), Arc::clone(&arena))?;
    Ok((client, arena))
}
