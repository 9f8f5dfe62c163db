//! Which storage account, where it listens, and who we are to it: attributes and secrets resolved.

use blob_client::auth::Credentials;
use blob_client::secret::Secret;
use url::{Host, Url};

use super::volume_context::{Attributes, AuthType, Secrets, TokenKind};
use crate::error::{Error, Reason, Result};

/// Suffix of the public cloud.
const PUBLIC_CLOUD: &str = "core.windows.net";

/// A storage account's blob endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Account name.
    pub name: String,
    /// Blob endpoint, account included where it is part of the path (emulators).
    pub endpoint: Url,
}

impl Account {
    /// The account that attributes and secrets name; they must agree.
    pub fn resolve(attributes: &Attributes, secrets: &Secrets) -> Result<Self> {
        let name = agree(
            ("storageAccount", attributes.account.as_deref()),
            (
                "azurestorageaccountname of the Secret",
                secrets.account.as_deref(),
            ),
        )?;
        match &attributes.server {
            Some(server) => {
                if attributes.endpoint_suffix.is_some() {
                    return Err(Error::new(
                        Reason::ConflictingFields,
                        "storageEndpointSuffix: server names the whole endpoint already",
                    ));
                }
                Self::at_server(server, name)
            }
            None => {
                let name = name.ok_or_else(|| {
                    Error::new(
                        Reason::MissingField,
                        "storageAccount: neither it, nor server, nor azurestorageaccountname in the Secret \
                        is set",
                    )
                })?;
                let suffix = attributes.endpoint_suffix.as_deref().unwrap_or(PUBLIC_CLOUD);
                Self::in_cloud(name, suffix)
            }
        }
    }

    /// `https://NAME.blob.SUFFIX`
    pub fn in_cloud(name: &str, suffix: &str) -> Result<Self> {
        check_name(name)?;
        let suffix = suffix.trim_matches('.');
        let suffix = suffix.strip_prefix("blob.").unwrap_or(suffix);
        let endpoint = Url::parse(&format!("https://{name}.blob.{suffix}"));
        let endpoint = endpoint.map_err(|e| wrong("storageEndpointSuffix", suffix, &e.to_string()))?;
        if endpoint.path() != "/" || more_than_a_place(&endpoint) {
            let wanted = "only the domain of the cloud is wanted, for instance core.windows.net";
            return Err(wrong("storageEndpointSuffix", suffix, wanted));
        }
        Ok(Self {
            name: name.to_owned(),
            endpoint,
        })
    }

    /// A written endpoint: a URL, or a host alone (https).
    fn at_server(server: &str, name: Option<&str>) -> Result<Self> {
        let text = if server.contains("://") {
            server.to_owned()
        } else {
            format!("https://{server}")
        };
        let parsed = Url::parse(&text);
        if may_hold_a_secret(server) || parsed.as_ref().is_ok_and(more_than_a_place) {
            return Err(Error::new(
                Reason::InvalidValue,
                "server: only scheme, host, port and an emulator's account; a SAS belongs into the Secret",
            ));
        }
        let mut endpoint = parsed.map_err(|e| wrong("server", server, &e.to_string()))?;
        if !matches!(endpoint.scheme(), "http" | "https") {
            return Err(wrong(
                "server",
                server,
                "the scheme must be https, or http for an emulator",
            ));
        }
        let in_path = first_segment(&endpoint).map(str::to_owned);
        let host_names_it = in_path.is_none() && !always_in_path(&endpoint);
        let name = if account_in_path(&endpoint) && !host_names_it {
            let name = agree(
                ("storageAccount", name),
                ("the path of server", in_path.as_deref()),
            )?;
            let name = name.ok_or_else(|| {
                Error::new(
                    Reason::MissingField,
                    format!(
                        "storageAccount: server {server:?} does not say which account of the emulator is \
                        meant"
                    ),
                )
            })?;
            endpoint.set_path(&format!("/{name}"));
            name.to_owned()
        } else {
            if let Some(path) = in_path {
                return Err(wrong(
                    "server",
                    server,
                    &format!("the path {path:?} belongs into containerName or prefix"),
                ));
            }
            match (name, first_label(&endpoint)) {
                (Some(name), _) => name.to_owned(),
                (None, Some(label)) => label.to_owned(),
                (None, None) => return Err(wrong("server", server, "no host")),
            }
        };
        check_name(&name)?;
        Ok(Self { name, endpoint })
    }

    /// Splits `ENDPOINT/CONTAINER[/PREFIX]`, as the `mount` command takes it; prefix without slashes at its
    /// ends.
    pub fn split_url(text: &str) -> Result<(Self, String, String)> {
        let url = Url::parse(text).map_err(|e| wrong("URL", text, &e.to_string()))?;
        if more_than_a_place(&url) {
            return Err(Error::new(
                Reason::InvalidValue,
                "URL: no query or user name; a SAS belongs into AZURE_STORAGE_SAS_TOKEN, where `ps` does \
                not show it",
            ));
        }
        let mut segments: Vec<String> = Vec::new();
        for segment in url.path().split('/').filter(|s| !s.is_empty()) {
            let decoded = percent_encoding::percent_decode_str(segment).decode_utf8();
            segments.push(
                decoded
                    .map_err(|_| wrong("URL", text, "the path is not UTF-8"))?
                    .into_owned(),
            );
        }
        let mut segments = segments.into_iter();
        let mut endpoint = url.clone();
        endpoint.set_path("");
        let name = if account_in_path(&url) {
            segments
                .next()
                .ok_or_else(|| wrong("URL", text, "account and container are missing in the path"))?
        } else {
            first_label(&url)
                .ok_or_else(|| wrong("URL", text, "no host"))?
                .to_owned()
        };
        check_name(&name)?;
        if account_in_path(&url) {
            endpoint.set_path(&format!("/{name}"));
        }
        let container = segments
            .next()
            .ok_or_else(|| wrong("URL", text, "the container is missing in the path"))?;
        let prefix = segments.collect::<Vec<_>>().join("/");
        Ok((Self { name, endpoint }, container, prefix))
    }

    /// Credentials of the demanded kind; `entra` makes those that are tokens.
    pub fn credentials(
        &self,
        attributes: &Attributes,
        secrets: &Secrets,
        entra: impl FnOnce(TokenKind) -> Result<Credentials>,
    ) -> Result<Credentials> {
        let kind = attributes.auth_type.unwrap_or_else(|| {
            if attributes.identity.with_pod_token {
                AuthType::WorkloadIdentity
            } else if secrets.key.is_none() && secrets.sas.is_some() {
                AuthType::Sas
            } else {
                AuthType::Key
            }
        });
        match kind {
            AuthType::Key => match &secrets.key {
                Some(key) => self.shared_key(key.clone()),
                None => Err(secrets.missing("azurestorageaccountkey", kind.name())),
            },
            AuthType::Sas => match &secrets.sas {
                Some(sas) => Ok(Credentials::Sas(sas.clone())),
                None => Err(secrets.missing("azurestorageaccountsastoken", kind.name())),
            },
            AuthType::Anonymous => Ok(Credentials::Anonymous),
            AuthType::Msi => entra(TokenKind::Msi),
            AuthType::Spn => entra(TokenKind::Spn),
            AuthType::WorkloadIdentity => entra(TokenKind::WorkloadIdentity),
        }
    }

    /// Key of this account; it must be base64.
    pub fn shared_key(&self, key: Secret<String>) -> Result<Credentials> {
        use base64::Engine as _;
        if base64::engine::general_purpose::STANDARD
            .decode(key.expose())
            .is_err()
        {
            return Err(Error::new(
                Reason::InvalidValue,
                "azurestorageaccountkey: not base64; copy the key of the account as the portal shows it",
            ));
        }
        Ok(Credentials::SharedKey {
            account: self.name.clone(),
            key,
        })
    }
}

/// Emulators carry the account in the path: whatever has a port of its own and is no blob endpoint by name.
fn account_in_path(url: &Url) -> bool {
    let named = url
        .host_str()
        .is_some_and(|host| host.split('.').nth(1) == Some("blob"));
    always_in_path(url) || url.port().is_some() && !named
}

/// Emulators behind a Service of the cluster (NAME.NAMESPACE.svc...), and bare hosts, whose name names no
/// account.
fn always_in_path(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => {
            let mut labels = name.trim_end_matches('.').split('.').skip(1).peekable();
            labels.peek().is_none() || labels.nth(1) == Some("svc")
        }
        Some(Host::Ipv4(_) | Host::Ipv6(_)) => true,
        None => false,
    }
}

fn first_label(url: &Url) -> Option<&str> {
    url.host_str()
        .and_then(|host| host.split('.').next())
        .filter(|label| !label.is_empty())
}

fn first_segment(url: &Url) -> Option<&str> {
    url.path().split('/').find(|segment| !segment.is_empty())
}

/// One value out of two places that may both name it.
fn agree<'a>(a: (&str, Option<&'a str>), b: (&str, Option<&'a str>)) -> Result<Option<&'a str>> {
    match (a.1, b.1) {
        (Some(x), Some(y)) if x != y => Err(Error::new(
            Reason::ConflictingFields,
            format!("{}: it says {}, {} says {}", a.0, shown(x), b.0, shown(y)),
        )),
        (x, y) => Ok(x.or(y)),
    }
}

/// REST, "Storage account name": 3 to 24 lower-case letters and digits. A private endpoint's host may have
/// dashes (`account-secondary`).
fn check_name(name: &str) -> Result<()> {
    let fits = (3..=40).contains(&name.len())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if fits {
        return Ok(());
    }
    Err(wrong(
        "storageAccount",
        name,
        "3 to 24 lower-case letters and digits are wanted",
    ))
}

fn wrong(field: &str, value: &str, why: &str) -> Error {
    Error::new(Reason::InvalidValue, format!("{field}: {}: {why}", shown(value)))
}

/// Whether a URL says more than where something is.
pub(super) fn more_than_a_place(url: &Url) -> bool {
    url.query().is_some()
        || url.fragment().is_some()
        || !url.username().is_empty()
        || url.password().is_some()
}

/// Messages reach the log, Events and the status of objects that more people read than may read Secrets: a
/// pasted SAS URL or a password in front of a host must not be repeated.
fn may_hold_a_secret(value: &str) -> bool {
    value.contains(['?', '@', '#']) || value.to_ascii_lowercase().contains("sig=")
}

/// A value as messages quote it.
pub(super) fn shown(value: &str) -> String {
    if may_hold_a_secret(value) {
        "(not repeated: it may hold a secret)".to_owned()
    } else {
        format!("{value:?}")
    }
}

#[cfg(test)]
mod tests;
