//! The services and the paths to them, each started when the first case needs it.

use std::fmt;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, anyhow, bail};
use blob_client::transport::Transport;
use blob_client::transport::failover::{Paths, TransportMode};
use blob_client::transport::https::Https;
use e2e::harness::backend::{Backend, Kind};
use e2e::harness::runtime;
use e2e::store::{DEV_ACCOUNT, DEV_KEY};
use e2e::vsp::{HttpBackend, MockVsp};
use url::Url;
use vsc_driver::buffer::Arena;

/// A service and the path to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// The embedded store over HTTP: what the others are compared with.
    Embedded,
    /// Azurite over HTTP.
    Azurite,
    /// The embedded store over the accelerated channel.
    EmbeddedChannel,
    /// Azurite behind the accelerated channel.
    AzuriteChannel,
    /// The service itself: an account that the environment names.
    Account,
}

impl Target {
    pub(crate) const LOCAL: [Target; 4] = [
        Target::Embedded,
        Target::Azurite,
        Target::EmbeddedChannel,
        Target::AzuriteChannel,
    ];

    pub(crate) fn is_azurite(self) -> bool {
        matches!(self, Target::Azurite | Target::AzuriteChannel)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Target::Embedded => "embedded",
            Target::Azurite => "azurite",
            Target::EmbeddedChannel => "embedded over the channel",
            Target::AzuriteChannel => "azurite over the channel",
            Target::Account => "account",
        })
    }
}

/// A storage account of the service, with its key. The cases make containers in it and delete them again.
pub(crate) struct Account {
    endpoint: Url,
    name: String,
    key: String,
}

impl Account {
    /// The variables that name it.
    const ENDPOINT: &str = "VSC_BLOB_CONFORMANCE_ENDPOINT";
    const KEY: &str = "VSC_BLOB_CONFORMANCE_KEY";

    /// Why the cases of the service are not run.
    pub(crate) fn missing() -> String {
        format!("{} and {} name no account", Self::ENDPOINT, Self::KEY)
    }

    /// What the environment names: `https://NAME.blob.core.windows.net` (of whatever cloud), and the
    /// account's key.
    pub(crate) fn given() -> Result<Option<Account>> {
        let (Ok(endpoint), Ok(key)) = (std::env::var(Self::ENDPOINT), std::env::var(Self::KEY)) else {
            return Ok(None);
        };
        let endpoint = Url::parse(&endpoint).context(Self::ENDPOINT)?;
        let name = endpoint.host_str().and_then(|host| host.split_once(".blob."));
        let (name, _) = name.with_context(|| format!("{}: not NAME.blob.SUFFIX", Self::ENDPOINT))?;
        Ok(Some(Account {
            name: name.to_owned(),
            endpoint: endpoint.clone(),
            key,
        }))
    }
}

/// Services, each started when the first case needs it.
#[derive(Default)]
pub(crate) struct Services {
    // The paths first: a device goes away before the service behind it.
    paths: [OnceLock<Result<Path, String>>; 5],
    embedded: OnceLock<Result<Backend, String>>,
    azurite: OnceLock<Result<Backend, String>>,
}

/// A service and a transport to it.
pub(crate) struct Path {
    pub(crate) endpoint: Url,
    pub(crate) account: String,
    pub(crate) key: String,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) arena: Arc<Arena>,
    pub(crate) device: Option<(MockVsp, tempfile::TempDir)>,
}

impl Services {
    pub(crate) fn get(&self, target: Target) -> Result<&Path> {
        self.paths[target as usize]
            .get_or_init(|| self.open(target).map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow!("{target} could not be started: {error}"))
    }

    fn backend(&self, kind: Kind) -> Result<&Backend> {
        let cell = match kind {
            Kind::Embedded => &self.embedded,
            Kind::Azurite => &self.azurite,
        };
        cell.get_or_init(|| Backend::start(kind).map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow!("{error}"))
    }

    fn open(&self, target: Target) -> Result<Path> {
        if target == Target::Account {
            let account = Account::given()?.context("no account was given")?;
            return Ok(Path {
                endpoint: account.endpoint,
                account: account.name,
                key: account.key,
                transport: Arc::new(Https::new()),
                arena: Arena::new(256 << 20)?,
                device: None,
            });
        }
        let kind = if target.is_azurite() {
            Kind::Azurite
        } else {
            Kind::Embedded
        };
        let backend = self.backend(kind)?;
        let arena = Arena::new(256 << 20)?;
        let endpoint = backend.endpoint().clone();
        if matches!(target, Target::Embedded | Target::Azurite) {
            return Ok(Path {
                endpoint,
                account: DEV_ACCOUNT.into(),
                key: DEV_KEY.into(),
                transport: Arc::new(Https::new()),
                arena,
                device: None,
            });
        }
        let behind: Arc<dyn e2e::vsp::Backend> = match backend.store() {
            Some(store) => Arc::clone(store) as _,
            None => Arc::new(HttpBackend::new(None)?),
        };
        let folder = tempfile::tempdir()?;
        let device = MockVsp::mount(folder.path(), behind)?;
        let paths = Paths::new(
            Some(device.device()),
            Arc::clone(&arena),
            runtime().handle().clone(),
        );
        if let Some(reason) = runtime().block_on(paths.settled()) {
            bail!("the channel is not usable: {reason}");
        }
        Ok(Path {
            endpoint,
            account: DEV_ACCOUNT.into(),
            key: DEV_KEY.into(),
            // Nothing may slip through over HTTPS.
            transport: paths.transport(TransportMode::Require),
            arena,
            device: Some((device, folder)),
        })
    }
}
