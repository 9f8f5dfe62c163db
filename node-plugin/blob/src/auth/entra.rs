//! Entra ID tokens: workload identity, managed identity, service principal.
//!
//! The protocol is azure_identity's; caching is ours, and its HTTP goes through our own connection pool, so
//! that the program has one TLS provider and endpoints can be replaced.

mod http;

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use azure_core::cloud::{CloudConfiguration, CustomConfiguration};
use azure_core::credentials::{Secret as AzureSecret, TokenCredential};
use azure_core::error::ErrorKind;
use azure_core::http::{ClientMethodOptions, ClientOptions, Transport as AzureTransport};
use azure_identity::{
    ClientAssertion, ClientAssertionCredential, ClientAssertionCredentialOptions, ClientSecretCredential,
    ClientSecretCredentialOptions, ManagedIdentityCredential, ManagedIdentityCredentialOptions,
    UserAssignedId,
};

use self::http::PooledClient;
use super::TokenSource;
use super::token_cache::{CachedToken, Fetch, Fetched};
use crate::error::{Error, Result};
use crate::secret::Secret;
use crate::transport::Transport;

/// What every token is for.
const SCOPE: &str = "https://storage.azure.com/.default";
const PUBLIC_AUTHORITY: &str = "https://login.microsoftonline.com";
/// One fetch, its retries included. A call's own deadline is longer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);

/// Who asks for tokens. Two are the same when their secrets are, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// A federated token (of the pod's or the driver's service account) is exchanged for an access token.
    Workload {
        /// `tenantID`.
        tenant_id: String,
        /// `ClientID`.
        client_id: String,
        /// The federated token.
        assertion: Assertion,
    },
    /// The node's managed identity.
    Managed {
        /// Which of the node's identities; `None` = system-assigned.
        user_assigned: Option<UserAssigned>,
        /// `MSIEndpoint`: asked instead of the instance metadata service.
        endpoint: Option<url::Url>,
        /// `msisecret`, sent to that endpoint as header `Secret`.
        secret: Option<Secret<String>>,
    },
    /// An application with a client secret.
    ServicePrincipal {
        /// `AzureStorageSPNTenantID`.
        tenant_id: String,
        /// `AzureStorageSPNClientID`.
        client_id: String,
        /// `azurestoragespnclientsecret`.
        secret: Secret<String>,
    },
}

/// One of several managed identities of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserAssigned {
    /// `AzureStorageIdentityClientID`.
    ClientId(String),
    /// Object id.
    ObjectId(String),
    /// `AzureStorageIdentityResourceID`.
    ResourceId(String),
}

/// Where the federated token of a workload identity comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assertion {
    /// A projected service account token; read anew for every exchange, because the kubelet renews it.
    File(PathBuf),
    /// Handed over by the kubelet with the volume (CSI `tokenRequests`), and again before it expires.
    Given(GivenToken),
}

/// A federated token that is replaced while it is in use; clones share it.
#[derive(Debug, Clone)]
pub struct GivenToken(Arc<RwLock<Secret<String>>>);

impl GivenToken {
    /// The first token.
    pub fn new(token: Secret<String>) -> Self {
        Self(Arc::new(RwLock::new(token)))
    }
    /// A newer one (NodePublishVolume is called again when `requiresRepublish` is set).
    pub fn replace(&self, token: Secret<String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = token;
    }
    /// The latest one.
    pub fn get(&self) -> Secret<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Clones are the same one; each pod has its own, whatever it says at the moment.
impl PartialEq for GivenToken {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for GivenToken {}

#[async_trait]
impl ClientAssertion for Assertion {
    async fn secret(&self, _: Option<ClientMethodOptions<'_>>) -> azure_core::Result<String> {
        match self {
            Self::Given(token) => Ok(token.get().expose().clone()),
            Self::File(path) => tokio::fs::read_to_string(path)
                .await
                .map(|text| text.trim().to_owned())
                .map_err(|error| {
                    azure_core::Error::with_message(
                        ErrorKind::Credential,
                        format!("the federated token file {}: {error}", path.display()),
                    )
                }),
        }
    }
}

/// A source of storage tokens for `identity`, cached and refreshed in the background.
///
/// `authority` replaces the public cloud's login endpoint (`AzureStorageAADEndpoint`); `https` carries the
/// requests (normally [`Paths::https`](crate::transport::failover::Paths::https); never the channel). Nothing
/// is fetched yet.
pub fn token_source(
    identity: Identity,
    authority: Option<url::Url>,
    https: Arc<dyn Transport>,
) -> Result<Arc<dyn TokenSource>> {
    let authority =
        authority.unwrap_or(
            PUBLIC_AUTHORITY
                .parse()
                .map_err(|e: url::ParseError| Error::Argument {
                    field: "AzureStorageAADEndpoint",
                    message: e.to_string(),
                })?,
        );
    if super::is_in_the_clear(&authority) {
        return Err(Error::Argument {
            field: "AzureStorageAADEndpoint",
            message: "is http:// and would send the identity's secret or token in the clear; use https://"
                .into(),
        });
    }
    let source = Entra {
        identity,
        authority,
        https,
    };
    // Shows wrong ids now and not at the first read.
    source.credential().map_err(|error| Error::Argument {
        field: source.id_fields(),
        message: error.to_string(),
    })?;
    Ok(Arc::new(CachedToken::new(source)))
}

#[derive(Debug)]
struct Entra {
    identity: Identity,
    authority: url::Url,
    https: Arc<dyn Transport>,
}

impl Entra {
    fn id_fields(&self) -> &'static str {
        match &self.identity {
            Identity::Workload { .. } => "tenantID, ClientID",
            Identity::Managed { .. } => "AzureStorageIdentityClientID, AzureStorageIdentityResourceID",
            Identity::ServicePrincipal { .. } => "AzureStorageSPNTenantID, AzureStorageSPNClientID",
        }
    }

    /// A new credential for each token: the library's own cache would give back the token that the service
    /// has just refused.
    fn credential(&self) -> azure_core::Result<Arc<dyn TokenCredential>> {
        Ok(match &self.identity {
            Identity::Workload {
                tenant_id,
                client_id,
                assertion,
            } => ClientAssertionCredential::new(
                tenant_id.clone(),
                client_id.clone(),
                assertion.clone(),
                Some(ClientAssertionCredentialOptions {
                    client_options: self.authority_options(),
                }),
            )?,
            Identity::ServicePrincipal {
                tenant_id,
                client_id,
                secret,
            } => ClientSecretCredential::new(
                tenant_id,
                client_id.clone(),
                AzureSecret::new(secret.expose().clone()),
                Some(ClientSecretCredentialOptions {
                    client_options: self.authority_options(),
                }),
            )?,
            Identity::Managed {
                user_assigned,
                endpoint,
                secret,
            } => {
                let client =
                    PooledClient::to_endpoint(Arc::clone(&self.https), endpoint.clone(), secret.clone());
                let mut options = ManagedIdentityCredentialOptions::default();
                options.client_options.transport = Some(AzureTransport::new(Arc::new(client)));
                options.user_assigned_id = user_assigned.clone().map(|id| match id {
                    UserAssigned::ClientId(id) => UserAssignedId::ClientId(id),
                    UserAssigned::ObjectId(id) => UserAssignedId::ObjectId(id),
                    UserAssigned::ResourceId(id) => UserAssignedId::ResourceId(id),
                });
                ManagedIdentityCredential::new(Some(options))?
            }
        })
    }

    fn authority_options(&self) -> ClientOptions {
        let mut cloud = CustomConfiguration::default();
        // The library insists on https; the client below puts the scheme back.
        let mut host = self.authority.to_string();
        if let Some(rest) = host.strip_prefix("http://") {
            host = format!("https://{rest}");
        }
        cloud.authority_host = host;
        let client = PooledClient::to_authority(Arc::clone(&self.https), &self.authority);
        ClientOptions {
            transport: Some(AzureTransport::new(Arc::new(client))),
            cloud: Some(Arc::new(CloudConfiguration::Custom(cloud))),
            ..ClientOptions::default()
        }
    }
}

#[async_trait]
impl Fetch for Entra {
    async fn fetch(&self) -> Result<Fetched> {
        let failed = |message: String, retryable| Error::Token {
            message: format!("{message} (check {})", self.id_fields()),
            retryable,
        };
        let credential = self.credential().map_err(|e| failed(e.to_string(), false))?;
        let fetched = tokio::time::timeout(FETCH_TIMEOUT, credential.get_token(&[SCOPE], None))
            .await
            .map_err(|_| failed(format!("no answer within {FETCH_TIMEOUT:?}"), true))?
            .map_err(|e| failed(first_lines(&e), is_retryable(&e)))?;
        let expires = SystemTime::from(fetched.expires_on);
        Ok(Fetched {
            token: Secret::new(fetched.token.secret().to_owned()),
            lifetime: expires.duration_since(SystemTime::now()).unwrap_or_default(),
        })
    }
}

/// Whether another try can bring a token: the endpoint was not reached, was busy or answered nonsense. What
/// it refuses (a wrong secret, an identity it does not know) and what never left this machine stays as it is.
fn is_retryable(error: &azure_core::Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut reached = false;
    while let Some(error) = next {
        match error
            .downcast_ref::<azure_core::Error>()
            .map(azure_core::Error::kind)
        {
            Some(ErrorKind::HttpResponse { status, .. }) => {
                let status = u16::from(*status);
                return matches!(status, 408 | 429) || status >= 500;
            }
            Some(ErrorKind::Io | ErrorKind::DataConversion) => reached = true,
            _ => {}
        }
        next = error.source();
    }
    reached
}

/// The message without the library's troubleshooting links and blank lines.
fn first_lines(error: &azure_core::Error) -> String {
    let text = error.to_string();
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("To troubleshoot"))
        .take(3)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests;
