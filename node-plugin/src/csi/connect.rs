//! From an account to a container that is known to answer.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use blob_client::auth::Credentials;
use blob_client::auth::entra::GivenToken;
use blob_client::transport::failover::{Paths, TransportMode};
use blob_client::transport::{PathStats, Transport};
use blob_client::{Client, ClientConfig, Container, ListOptions};
use vsc_driver::buffer::Arena;

use super::account::Account;
use super::entra;
use super::status::{Error, Reason, Result};
use super::volume_context::{Attributes, Keeping, Secrets};

/// Whole time a call may take, retries included.
const DEADLINE: Duration = Duration::from_secs(60);
/// One attempt.
const ATTEMPT: Duration = Duration::from_secs(30);
/// The first question to a container, which a CSI call waits for.
pub const FIRST_ANSWER: Duration = Duration::from_secs(20);
/// An answer that trickles may go past its deadline, but not for longer than this.
const GRACE: Duration = Duration::from_secs(5);

/// A transport and the endpoint it was handed out for.
type Known = (String, Weak<dyn Transport>);

/// What all clients of the process share.
#[derive(Debug, Clone)]
pub struct Connector {
    paths: Arc<Paths>,
    arena: Arc<Arena>,
    /// Transports that were handed out, by what they are for; gone with their volume.
    transports: Arc<Mutex<Vec<Known>>>,
}

impl Connector {
    /// A connector over shared paths.
    pub fn new(paths: Arc<Paths>, arena: Arc<Arena>) -> Self {
        Self {
            paths,
            arena,
            transports: Arc::default(),
        }
    }

    /// Counters per path of every account connection that is in use.
    pub fn stats(&self) -> Vec<(String, Vec<PathStats>)> {
        let transports = self.transports.lock().unwrap_or_else(PoisonError::into_inner);
        let live = transports
            .iter()
            .filter_map(|(name, t)| Some((name.clone(), t.upgrade()?.stats())));
        live.collect()
    }

    /// The paths, for health and counters.
    pub fn paths(&self) -> &Arc<Paths> {
        &self.paths
    }

    /// Credentials of a volume. `pod_token`: of the pod's service account, where kubelet gave one.
    pub fn credentials(
        &self,
        account: &Account,
        attributes: &Attributes,
        secrets: &Secrets,
        pod_token: Option<&GivenToken>,
    ) -> Result<Credentials> {
        account.credentials(attributes, secrets, |kind| {
            let env = |name: &str| std::env::var(name).ok();
            entra::credentials(kind, attributes, secrets, pod_token, self.paths.https(), env)
        })
    }

    /// A client of an account; nothing is sent yet.
    pub fn client(
        &self,
        account: &Account,
        credentials: Credentials,
        mode: TransportMode,
        keeping: &Keeping,
    ) -> Result<Client> {
        let config = ClientConfig {
            deadline: DEADLINE,
            attempt_timeout: ATTEMPT,
            content_types: keeping.content_types.clone(),
            unreadable_tags: keeping.unreadable_tags,
            ..ClientConfig::new(account.endpoint.clone(), credentials)
        };
        let transport = self.paths.transport(mode);
        let mut known = self.transports.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(_, t)| t.strong_count() > 0);
        known.push((account.endpoint.to_string(), Arc::downgrade(&transport)));
        Ok(Client::new(config, transport, self.arena.clone())?)
    }
}

/// The container by name; a wrong name is told as `containerName`.
pub fn container(client: &Client, name: &str) -> Result<Container> {
    client.container(name).map_err(|error| match error {
        blob_client::Error::Argument { message, .. } => {
            Error::new(Reason::InvalidValue, format!("containerName: {message}"))
        }
        other => other.into(),
    })
}

/// Asks a container one question, with the right that every mount needs: listing. A SAS for one container may
/// list and may not read the container's properties.
pub async fn check(account: &Account, container: &Container, prefix: &str) -> Result<()> {
    let options = ListOptions {
        prefix: if prefix.is_empty() {
            String::new()
        } else {
            format!("{prefix}/")
        },
        max_results: Some(1),
        ..ListOptions::default()
    };
    container.check_reach()?;
    let asked = container.for_a_verdict(FIRST_ANSWER);
    let answered = async {
        // The same right, and an account of either kind answers it; so it is asked first.
        if asked.is_hierarchical().await? {
            return Ok(true);
        }
        asked.list(&options).await.map(|_| false)
    };
    match tokio::time::timeout(FIRST_ANSWER + GRACE, answered).await {
        Ok(Ok(false)) => Ok(()),
        Ok(Ok(true)) => Err(Error::new(
            Reason::NotSupportedYet,
            format!(
                "the account {:?} has a hierarchical namespace (Data Lake Storage Gen2), which is not \
                 supported yet; use an account without",
                account.name
            ),
        )),
        Ok(Err(error)) => Err(explain(account, container.name(), error)),
        Err(_) => Err(Error::new(
            Reason::EndpointUnreachable,
            format!(
                "server: {} gave no whole answer within {:?}",
                account.endpoint,
                FIRST_ANSWER + GRACE
            ),
        )),
    }
}

/// The client's error with the field of the volume it is about.
pub fn explain(account: &Account, container: &str, error: blob_client::Error) -> Error {
    let endpoint = &account.endpoint;
    let error = Error::from(error);
    let message = match error.reason {
        Reason::ContainerNotFound => {
            format!("containerName: container {container:?} does not exist at {endpoint}")
        }
        Reason::AuthenticationFailed | Reason::AccessDenied => {
            format!("container {container:?} at {endpoint}: {}", error.message)
        }
        Reason::EndpointUnreachable | Reason::ServiceTimeout => {
            format!("server: {endpoint}: {}", error.message)
        }
        Reason::ChannelRequired => format!("transport: {}", error.message),
        _ => error.message,
    };
    Error::new(error.reason, message)
}
