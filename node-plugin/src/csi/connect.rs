//! From an account to a container that is known to answer.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use blob_client::auth::Credentials;
use blob_client::auth::entra::GivenToken;
use blob_client::auth::token_sources::TokenSources;
use blob_client::transport::failover::{Paths, TransportMode};
use blob_client::transport::{PathStats, Transport};
use blob_client::{
    Accounts, Client, ClientConfig, Condition, Container, ListItem, ListOptions, Metadata, Patience,
    Properties,
};
use blob_fs::Rights;
use blob_fs::tree::inspect::is_folder;
use vsc_driver::buffer::Arena;

use super::account::Account;
use super::entra;
use super::lending::Lending;
use super::volume_context::{Attributes, Keeping, Secrets};
use crate::error::{Error, Reason, Result};

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
    /// What all mounts of an account share.
    accounts: Accounts,
    /// What all volumes of an identity share.
    sources: TokenSources,
    lending: Lending,
    /// What is asked in the place of the paths.
    #[cfg(test)]
    instead: Option<Arc<dyn Transport>>,
}

impl Connector {
    /// A connector over shared paths. Identities of the node and the driver are lent within Azure's clouds.
    pub fn new(paths: Arc<Paths>, arena: Arc<Arena>) -> Self {
        Self {
            sources: TokenSources::new(paths.https()),
            paths,
            arena,
            transports: Arc::default(),
            accounts: Accounts::default(),
            lending: Lending::default(),
            #[cfg(test)]
            instead: None,
        }
    }

    /// The same, over something that is asked in the place of the paths.
    #[cfg(test)]
    pub(super) fn over(self, transport: Arc<dyn Transport>) -> Self {
        let instead = Some(transport);
        Self { instead, ..self }
    }

    /// The same, with other hosts to which identities are lent.
    pub fn with_lending(self, lending: Lending) -> Self {
        Self { lending, ..self }
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

    /// What all mounts of an account share, for counters.
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
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
            let identity = entra::identity(kind, attributes, secrets, pod_token, env)?;
            let login = entra::authority(attributes)?;
            self.lending
                .check(&identity, attributes, account, login.as_ref())?;
            Ok(Credentials::Token(self.sources.get(identity, login)?))
        })
    }

    /// A client of an account; nothing is sent yet.
    pub fn client(
        &self,
        account: &Account,
        credentials: Credentials,
        mode: TransportMode,
        keeping: &Keeping,
        patience: Patience,
    ) -> Result<Client> {
        let config = ClientConfig {
            content_types: keeping.content_types.clone(),
            unreadable_tags: keeping.unreadable_tags,
            accounts: self.accounts.clone(),
            ..ClientConfig::new(account.endpoint.clone(), credentials).within(patience)
        };
        let transport = self.paths.transport(mode);
        #[cfg(test)]
        let transport = self.instead.clone().unwrap_or(transport);
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
    in_time(account, async {
        container.check_reach()?;
        let asked = container.for_a_verdict(FIRST_ANSWER);
        check_flat(account, &asked).await?;
        let found = first(&asked, below(prefix)).await;
        found
            .map(drop)
            .map_err(|error| explain(account, container.name(), error))
    })
    .await
}

/// The same before a mount, and what would otherwise only be noticed by a pod: a prefix that is a file, a
/// prefix of a read-only volume below which there is nothing, rights that are missing. Nothing is changed.
pub async fn check_mount(
    account: &Account,
    container: &Container,
    prefix: &str,
    read_only: bool,
    credentials: CredentialKind,
) -> Result<Rights> {
    in_time(account, async {
        container.check_reach()?;
        let asked = container.for_a_verdict(FIRST_ANSWER);
        let explained = |error| explain(account, container.name(), error);
        check_flat(account, &asked).await?;
        let holds = first(&asked, below(prefix)).await.map_err(explained)?.is_some();
        if !holds && !prefix.is_empty() {
            // The first blob whose name begins like the prefix is the one of that name, if there is one.
            let own = first(&asked, prefix.to_owned()).await.map_err(explained)?;
            let own = own.filter(|(name, _)| name == prefix);
            match own {
                Some((_, properties)) if !is_folder(&properties) => {
                    return Err(Error::new(
                        Reason::PrefixNotDirectory,
                        format!("prefix: {prefix:?} is a file in container {:?}", container.name()),
                    ));
                }
                None if read_only => {
                    return Err(Error::new(
                        Reason::PrefixNotFound,
                        format!(
                            "prefix: nothing is below {prefix:?} in container {:?}",
                            container.name()
                        ),
                    ));
                }
                _ => {}
            }
        }
        rights(&asked, prefix, read_only, credentials)
            .await
            .map_err(explained)
    })
    .await
}

/// What another credential of a mount may do, after it has listed the container.
pub async fn check_rights(
    account: &Account,
    container: &Container,
    prefix: &str,
    read_only: bool,
    credentials: CredentialKind,
) -> Result<Rights> {
    in_time(account, async {
        container.check_reach()?;
        let asked = container.for_a_verdict(FIRST_ANSWER);
        let explained = |error| explain(account, container.name(), error);
        first(&asked, below(prefix)).await.map_err(explained)?;
        rights(&asked, prefix, read_only, credentials)
            .await
            .map_err(explained)
    })
    .await
}

/// Refuses accounts with a hierarchical namespace. An account of either kind answers this question, with the
/// right to list; so it is asked first.
async fn check_flat(account: &Account, container: &Container) -> Result<()> {
    let hierarchical = container.is_hierarchical().await;
    if hierarchical.map_err(|error| explain(account, container.name(), error))? {
        return Err(Error::new(
            Reason::NotSupportedYet,
            format!(
                "the account {:?} has a hierarchical namespace (Data Lake Storage Gen2), which is not \
                 supported yet; use an account without",
                account.name
            ),
        ));
    }
    Ok(())
}

/// How much a credential may do, as far as its kind says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialKind {
    /// The account's key: everything.
    Key,
    /// A SAS or a token: what it was given.
    Limited,
    /// None: reading at most.
    None,
}

impl CredentialKind {
    /// That of credentials.
    pub fn of(credentials: &Credentials) -> Self {
        match credentials {
            Credentials::SharedKey { .. } => Self::Key,
            Credentials::Sas(_) | Credentials::Token(_) => Self::Limited,
            Credentials::Anonymous => Self::None,
        }
    }
}

/// What a credential may do.
///
/// Asks for changes of a blob that is not there: who may make them is told so, everybody else that he may
/// not. What a SAS says of itself is not all: a stored policy, or the roles of who signed it, may say less.
async fn rights(
    container: &Container,
    prefix: &str,
    read_only: bool,
    credentials: CredentialKind,
) -> blob_client::Result<Rights> {
    match credentials {
        CredentialKind::Key => return Ok(Rights::ALL),
        CredentialKind::None => return Ok(Rights::NONE),
        CredentialKind::Limited if read_only => return Ok(Rights::NONE),
        CredentialKind::Limited => {}
    }
    let absent = format!(
        "{}.vsc-blob-hidden.{}",
        below(prefix),
        uuid::Uuid::new_v4().simple()
    );
    let never = Condition::none();
    let metadata = Metadata::new();
    let (write, delete) = futures::join!(
        container.set_metadata(&absent, &metadata, &never),
        container.delete(&absent, &never)
    );
    let allowed = |outcome: blob_client::Result<()>| match outcome {
        Ok(())
        | Err(blob_client::Error::BlobNotFound { .. } | blob_client::Error::ConditionNotMet { .. }) => {
            Ok(true)
        }
        Err(blob_client::Error::Denied { .. }) => Ok(false),
        Err(error) => Err(error),
    };
    Ok(Rights {
        write: allowed(write.map(drop))?,
        delete: allowed(delete)?,
    })
}

/// What the names of blobs below a prefix begin with.
fn below(prefix: &str) -> String {
    if prefix.is_empty() {
        String::new()
    } else {
        format!("{prefix}/")
    }
}

/// The first blob whose name begins like this.
async fn first(
    container: &Container,
    beginning: String,
) -> blob_client::Result<Option<(String, Properties)>> {
    let mut options = ListOptions {
        prefix: beginning,
        max_results: Some(1),
        metadata: true,
        ..ListOptions::default()
    };
    loop {
        let page = container.list(&options).await?;
        let blob = page.items.into_iter().find_map(|item| match item {
            ListItem::Blob { name, properties } => Some((name, properties)),
            ListItem::Prefix { .. } => None,
        });
        // A page may be empty and not the last.
        if blob.is_some() || page.next_marker.is_none() {
            return Ok(blob);
        }
        options.marker = page.next_marker;
    }
}

/// Ends questions to an account whose answers trickle.
async fn in_time<T>(account: &Account, asking: impl Future<Output = Result<T>>) -> Result<T> {
    let limit = FIRST_ANSWER + GRACE;
    tokio::time::timeout(limit, asking).await.unwrap_or_else(|_| {
        Err(Error::new(
            Reason::EndpointUnreachable,
            format!(
                "server: {} gave no whole answer within {limit:?}",
                account.endpoint
            ),
        ))
    })
}

/// The client's error with the field of the volume it is about.
pub fn explain(account: &Account, container: &str, error: blob_client::Error) -> Error {
    let endpoint = &account.endpoint;
    if matches!(&error, blob_client::Error::Service { code, .. } if code == "AccountRequiresHttps") {
        return Error::new(
            Reason::InvalidValue,
            format!("server: the account at {endpoint} takes https:// only (\"Secure transfer required\")"),
        );
    }
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
