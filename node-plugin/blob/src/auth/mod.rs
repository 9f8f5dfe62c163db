//! Who we are to the service: account key, SAS, anonymous, or a token.

pub mod entra;
pub mod handle;
mod sas;
mod shared_key;
mod token_cache;
pub mod token_sources;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use crate::error::{Error, Result};
use crate::names::encode_query;
use crate::secret::Secret;
use shared_key::{SharedKey, ToSign};

/// How long a SAS of our own for the source of a copy stays good: long enough for one call with its retries.
const SOURCE_SAS_LIFETIME: Duration = Duration::from_secs(15 * 60);
/// Beyond this difference the service refuses a signature whatever the key (REST: "Authorize requests", 15
/// minutes).
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(15 * 60);

/// Credentials of a volume.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// Account key (base64), SharedKey signatures.
    SharedKey {
        /// Account name.
        account: String,
        /// Base64 key.
        key: Secret<String>,
    },
    /// Shared access signature: a query string without the leading `?`.
    Sas(Secret<String>),
    /// Public container.
    Anonymous,
    /// Entra ID bearer tokens.
    Token(Arc<dyn TokenSource>),
}

/// The same credential: a source of tokens is the same as itself.
impl PartialEq for Credentials {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::SharedKey { account, key },
                Self::SharedKey {
                    account: other,
                    key: another,
                },
            ) => (account, key) == (other, another),
            (Self::Sas(sas), Self::Sas(other)) => sas == other,
            (Self::Anonymous, Self::Anonymous) => true,
            (Self::Token(source), Self::Token(other)) => Arc::ptr_eq(source, other),
            _ => false,
        }
    }
}

/// Gives bearer tokens for `https://storage.azure.com/.default`; caches and refreshes by itself.
#[async_trait]
pub trait TokenSource: Send + Sync + std::fmt::Debug {
    /// A token that is valid for at least the next minute.
    async fn token(&self) -> Result<Secret<String>>;

    /// The service did not accept the latest token: the next [`TokenSource::token`] fetches a new one.
    fn reject(&self) {}

    /// When the latest token ends; `None` where there is none, or where it has ended because nobody needed
    /// another one since.
    fn ends(&self) -> Option<SystemTime> {
        None
    }
}

/// Whether what is sent to this place can be read on the way: `http://` to another machine.
pub(crate) fn is_in_the_clear(place: &url::Url) -> bool {
    let local = match place.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    };
    place.scheme() == "http" && !local
}

/// A request before it is signed.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) method: Method,
    /// Percent-encoded, beginning with `/`.
    pub(crate) path: String,
    /// Decoded names and values.
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: HeaderMap,
}

/// Credentials in the form that signs.
#[derive(Debug)]
pub(crate) struct Signer(Kind);

#[derive(Debug)]
enum Kind {
    /// The prepared key of the FIPS module is large.
    SharedKey(Box<SharedKey>),
    Sas(Secret<String>),
    Anonymous,
    Token(Arc<dyn TokenSource>),
}

/// When a credential ends, as far as it says so itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    /// The moment.
    pub at: SystemTime,
    /// What ends.
    pub what: Ending,
}

/// A kind of credential that ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// A shared access signature, by what it says of itself (`se`, `ske`).
    Sas,
    /// An access token, which is fetched anew before that.
    Token,
}

/// How the service may read the source of a copy.
#[derive(Debug, Default)]
pub(crate) struct SourceAccess {
    /// To be appended to the source's URL: a SAS.
    pub(crate) query: Option<Secret<String>>,
    /// Value of `x-ms-copy-source-authorization`.
    pub(crate) authorization: Option<HeaderValue>,
}

impl Signer {
    pub(crate) fn new(credentials: &Credentials) -> Result<Self> {
        Ok(Self(match credentials {
            Credentials::SharedKey { account, key } => {
                Kind::SharedKey(Box::new(SharedKey::new(account, key.expose())?))
            }
            Credentials::Sas(sas) => Kind::Sas(Secret::new(sas::parse(sas.expose())?)),
            Credentials::Anonymous => Kind::Anonymous,
            Credentials::Token(source) => Kind::Token(Arc::clone(source)),
        }))
    }

    pub(crate) fn uses_tokens(&self) -> bool {
        matches!(self.0, Kind::Token(_))
    }

    /// When the credential ends, as far as it says so itself.
    pub(crate) fn ends(&self) -> Option<End> {
        let (at, what) = match &self.0 {
            Kind::Sas(sas) => (sas::ends(sas.expose())?, Ending::Sas),
            Kind::Token(source) => (source.ends()?, Ending::Token),
            Kind::SharedKey(_) | Kind::Anonymous => return None,
        };
        Some(End { at, what })
    }

    /// Whether a refusal may be for a credential that was replaced: a signature or token that is not
    /// accepted, and not a right that is missing.
    pub(crate) fn may_be_stale(&self, status: u16, code: &str) -> bool {
        match &self.0 {
            Kind::Anonymous => false,
            Kind::Token(_) => status == 401,
            Kind::SharedKey(_) | Kind::Sas(_) => (status, code) == (403, "AuthenticationFailed"),
        }
    }

    /// Whether a request is refused when this machine's clock is wrong.
    pub(crate) fn signs_the_time(&self) -> bool {
        matches!(self.0, Kind::SharedKey(_))
    }

    /// Refuses credentials that can serve single blobs and no volume.
    pub(crate) fn check_reach(&self) -> Result<()> {
        match &self.0 {
            Kind::Sas(sas) => sas::check_reach(sas.expose()),
            Kind::SharedKey(_) | Kind::Anonymous | Kind::Token(_) => Ok(()),
        }
    }

    /// Dates and authorizes the draft; the query string as it goes on the wire.
    pub(crate) async fn sign(&self, draft: &mut Draft, now: SystemTime) -> Result<String> {
        draft
            .headers
            .insert(X_MS_DATE, header_value(&httpdate::fmt_http_date(now))?);
        let mut query = draft
            .query
            .iter()
            .map(|(k, v)| format!("{}={}", encode_query(k), encode_query(v)))
            .collect::<Vec<_>>()
            .join("&");
        match &self.0 {
            Kind::SharedKey(key) => {
                let value = key.authorization(&ToSign {
                    method: &draft.method,
                    path: &draft.path,
                    query: &draft.query,
                    headers: &draft.headers,
                });
                draft
                    .headers
                    .insert(header::AUTHORIZATION, secret_header(&value)?);
            }
            Kind::Sas(sas) => {
                if !query.is_empty() {
                    query.push('&');
                }
                query.push_str(sas.expose());
            }
            Kind::Anonymous => {}
            Kind::Token(source) => {
                let token = source.token().await?;
                draft.headers.insert(
                    header::AUTHORIZATION,
                    secret_header(&format!("Bearer {}", token.expose()))?,
                );
            }
        }
        Ok(query)
    }

    /// Leave to read `blob`, for the service itself when it copies.
    pub(crate) async fn source_access(
        &self,
        container: &str,
        blob: &str,
        now: SystemTime,
    ) -> Result<SourceAccess> {
        Ok(match &self.0 {
            Kind::SharedKey(key) => SourceAccess {
                query: Some(Secret::new(sas::read_one_blob(
                    key,
                    container,
                    blob,
                    now,
                    SOURCE_SAS_LIFETIME,
                )?)),
                authorization: None,
            },
            Kind::Sas(sas) => SourceAccess {
                query: Some(sas.clone()),
                authorization: None,
            },
            Kind::Anonymous => SourceAccess::default(),
            Kind::Token(source) => SourceAccess {
                query: None,
                authorization: Some(secret_header(&format!(
                    "Bearer {}",
                    source.token().await?.expose()
                ))?),
            },
        })
    }

    /// The same for a copy inside the account: only a SAS is needed there, everybody else is known by the
    /// request.
    pub(crate) fn same_account_access(&self) -> SourceAccess {
        let query = match &self.0 {
            Kind::Sas(sas) => Some(sas.clone()),
            _ => None,
        };
        SourceAccess {
            query,
            authorization: None,
        }
    }

    /// The service answered 401: a token source fetches a new token next time.
    pub(crate) fn reject_token(&self) {
        if let Kind::Token(source) = &self.0 {
            source.reject();
        }
    }

    /// What to look at after a 401 or 403. `server_time` is the answer's `Date`.
    pub(crate) fn hint(&self, code: &str, server_time: Option<SystemTime>, now: SystemTime) -> String {
        let skew = server_time.map(|t| t.duration_since(now).unwrap_or_else(|behind| behind.duration()));
        if let (Some(skew), false) = (skew, matches!(self.0, Kind::Anonymous))
            && skew > MAX_CLOCK_SKEW
        {
            return format!(
                "this machine's clock is {} s away from the service's; set the time (NTP)",
                skew.as_secs()
            );
        }
        if matches!(code, "IpAuthorizationError" | "AuthorizationSourceIPMismatch") {
            return "the addresses the SAS allows do not include this node's; widen sip= or leave it out"
                .to_owned();
        }
        let mut hint = self.credential_hint(code, now);
        if code == "AuthorizationFailure" {
            hint.push_str("; or the account's firewall refuses this node's network");
        }
        hint
    }

    fn credential_hint(&self, code: &str, now: SystemTime) -> String {
        match (&self.0, code) {
            (Kind::SharedKey(_), "KeyBasedAuthenticationNotPermitted") => {
                "the account forbids keys; set AzureStorageAuthType to MSI, SPN or \
                 WorkloadIdentity"
                    .to_owned()
            }
            (Kind::SharedKey(key), _) => format!(
                "the key in secret key azurestorageaccountkey is not one of account {:?}; \
                 check azurestorageaccountname and whether the key was rotated",
                key.account()
            ),
            (Kind::Sas(sas), _) => sas_hint(sas.expose(), code, now),
            (Kind::Anonymous, _) => {
                "the container is not public; give a key or SAS in the volume's secret and set \
                 AzureStorageAuthType"
                    .to_owned()
            }
            (Kind::Token(_), "AuthorizationPermissionMismatch") => {
                "the identity lacks a role on this container; assign Storage Blob Data Contributor".to_owned()
            }
            (Kind::Token(_), _) => {
                "the access token is not accepted; check the identity's tenant and its role on the \
                 account"
                    .to_owned()
            }
        }
    }
}

/// What to look at in a SAS that is not accepted.
fn sas_hint(sas: &str, code: &str, now: SystemTime) -> String {
    let it = "the SAS in secret key azurestorageaccountsastoken";
    if let Some(end) = sas::expired(sas, now) {
        return format!("{it} expired at {end}; put a new one there");
    }
    if let Some(start) = sas::not_yet(sas, now) {
        return format!("{it} begins at {start}, which is still to come; wait, or leave st= out");
    }
    if let Some(end) = sas::key_expired(sas, now) {
        return format!(
            "the user delegation key that {it} is signed with expired at {end}; put a new one there"
        );
    }
    if code == "AuthorizationProtocolMismatch" {
        return format!("{it} is for https only (spr=); use https:// in server, or a SAS for both");
    }
    let missing = matches!(
        code,
        "AuthorizationPermissionMismatch"
            | "AuthorizationResourceTypeMismatch"
            | "AuthorizationServiceMismatch"
    );
    if missing && let Some(rights) = sas::field(sas, "sp") {
        return format!(
            "{it} allows {rights:?} only; this call needs more (read, add, create, write, delete, list on \
             blobs and containers)"
        );
    }
    if let Some(policy) = sas::field(sas, "si") {
        return format!(
            "{it} takes its rights from the stored access policy {policy:?}, which may have ended, been \
            changed \
             or removed; look at the container's policies"
        );
    }
    format!(
        "{it} is not accepted; check that it was copied whole, belongs to this container and that its key \
        was \
         not rotated"
    )
}

pub(crate) const X_MS_DATE: HeaderName = HeaderName::from_static("x-ms-date");

/// A header value out of text that the caller has checked or built.
pub(crate) fn header_value(text: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(text).map_err(|_| Error::Argument {
        field: "header value",
        message: format!("{text:?} holds characters that no HTTP header carries"),
    })
}

/// As [`header_value`], kept out of debug output and error messages.
pub(crate) fn secret_header(text: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(text).map_err(|_| Error::Token {
        message: "the token or signature holds characters that no HTTP header carries".into(),
        retryable: false,
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
