//! To whom the identities of the node and of the driver are lent.
//!
//! An account key, a SAS, a service principal and a pod's own token belong to whoever writes the volume. The
//! node's managed identity and the driver's workload identity do not: who may use them decides what everybody
//! in the cluster can reach, and a token that is sent to a wrong host is good for whoever reads it there. So
//! - an inline volume, which every author of a pod can write, gets neither of them;
//! - a PersistentVolume or a class, which administrators write, gets them for account endpoints and login
//!   hosts of Azure's clouds, and for hosts that are allowed by name (`--allowed-endpoints`).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use blob_client::auth::entra::{Assertion, Identity};
use url::{Host, Url};

use super::account::Account;
use super::volume_context::{Attributes, AuthType};
use crate::error::{Error, Reason, Result};

/// Below these are the Blob endpoints of storage accounts and nothing else. Azure docs: "Storage account
/// overview" (standard endpoints, NAME.blob.core.windows.net, and DNS zone endpoints,
/// NAME.zNN.blob.storage.azure.net), "Azure Government developer guide" (blob.core.usgovcloudapi.net),
/// "Azure in China: check endpoints" (blob.core.chinacloudapi.cn). A private endpoint's name is below them
/// too (NAME.privatelink.blob.core.windows.net).
const ACCOUNTS: [&str; 4] = [
    "blob.core.windows.net",
    "blob.core.chinacloudapi.cn",
    "blob.core.usgovcloudapi.net",
    "blob.storage.azure.net",
];

/// Login hosts. Entra docs: "National clouds", table "Microsoft Entra authentication endpoints"; "Azure in
/// China: check endpoints" has the earlier name of the one in China, login.chinacloudapi.cn.
const LOGINS: [&str; 4] = [
    "login.microsoftonline.com",
    "login.microsoftonline.us",
    "login.partner.microsoftonline.cn",
    "login.chinacloudapi.cn",
];

/// A host that may get tokens of the node and the driver: `store.example.com`, `10.0.0.7`, `[fd00::7]`, or
/// `*.example.com` for every host below a domain. Case and a point at the end do not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedHost {
    /// As [`Url::host_str`] has it.
    name: String,
    below: bool,
}

impl AllowedHost {
    fn has(&self, host: &str) -> bool {
        match self.below {
            true => is_below(host, &self.name),
            false => host == self.name,
        }
    }
}

impl FromStr for AllowedHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!(
                "{text:?}: {why}; a host is wanted, without scheme, port and path, or *.DOMAIN for all hosts \
                 below a domain"
            )
        };
        let rest = text.strip_prefix("*.");
        let (below, name) = (rest.is_some(), rest.unwrap_or(text));
        if name.contains('*') {
            return Err(wrong("a * stands for whole labels at the beginning"));
        }
        let host = Host::parse(without_point(name)).map_err(|error| wrong(&error.to_string()))?;
        if below && !matches!(host, Host::Domain(_)) {
            return Err(wrong("no host is below an address"));
        }
        let name = host.to_string();
        if name.split('.').any(str::is_empty) {
            return Err(wrong("a label is empty"));
        }
        // The rules for URLs let more through than names of hosts have.
        let usual = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if matches!(host, Host::Domain(_)) && !name.bytes().all(usual) {
            return Err(wrong("no name of a host"));
        }
        Ok(Self { name, below })
    }
}

impl fmt::Display for AllowedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.below { "*." } else { "" })?;
        f.write_str(&self.name)
    }
}

/// The hosts to which identities are lent.
#[derive(Debug, Clone, Default)]
pub struct Lending(Arc<[AllowedHost]>);

impl Lending {
    /// Those of Azure's clouds and these.
    pub fn new(allowed: &[AllowedHost]) -> Self {
        Self(allowed.into())
    }

    /// Refuses an identity of the node or the driver to an account, or to a login endpoint (`None`: the
    /// public cloud's), that is neither known nor allowed. Whoever brings an identity of his own may send
    /// its tokens where he likes.
    pub fn check(
        &self,
        identity: &Identity,
        attributes: &Attributes,
        account: &Account,
        login: Option<&Url>,
    ) -> Result<()> {
        let whose = match identity {
            Identity::Managed { .. } => "managed identity of the node",
            Identity::Workload {
                assertion: Assertion::File(_),
                ..
            } => {
                if let Some(login) = login {
                    let known = |host: &str| LOGINS.contains(&host);
                    let (field, whose) = ("AzureStorageAADEndpoint", "token of the driver's service account");
                    self.check_host(field, whose, login, known)?;
                }
                "workload identity of the driver"
            }
            Identity::Workload {
                assertion: Assertion::Given(_),
                ..
            }
            | Identity::ServicePrincipal { .. } => return Ok(()),
        };
        let field = match (
            &attributes.server,
            &attributes.endpoint_suffix,
            &attributes.account,
        ) {
            (Some(_), ..) => "server",
            (None, Some(_), _) => "storageEndpointSuffix",
            (None, None, Some(_)) => "storageAccount",
            // DeleteVolume is told nothing else.
            (None, None, None) => "volume_id",
        };
        let known = |host: &str| ACCOUNTS.iter().any(|suffix| is_below(host, suffix));
        self.check_host(field, whose, &account.endpoint, known)
    }

    fn check_host(&self, field: &str, whose: &str, to: &Url, known: impl Fn(&str) -> bool) -> Result<()> {
        let host = without_point(to.host_str().unwrap_or_default());
        if known(host) || self.0.iter().any(|allowed| allowed.has(host)) {
            return Ok(());
        }
        Err(Error::new(
            Reason::IdentityRefused,
            format!(
                "{field}: the {whose} goes to hosts of Azure's clouds and to allowed ones, and {host:?} is \
                 neither; if it is to get it, add {host:?} to allowedEndpoints of the chart"
            ),
        ))
    }
}

/// Refuses what would lend an identity to an inline volume, or let its author say who is asked for tokens and
/// who gets them.
pub fn check_inline(attributes: &Attributes) -> Result<()> {
    let refused = |text: String| Err(Error::new(Reason::IdentityRefused, text));
    let whose = match attributes.auth_type {
        Some(AuthType::Msi) => Some("managed identity of the node"),
        Some(AuthType::WorkloadIdentity) if !attributes.identity.with_pod_token => {
            Some("workload identity of the driver")
        }
        // Without a kind it is the key or SAS of the Secret, or the pod's own token.
        Some(
            AuthType::Key | AuthType::Sas | AuthType::Spn | AuthType::WorkloadIdentity | AuthType::Anonymous,
        )
        | None => None,
    };
    if let Some(whose) = whose {
        return refused(format!(
            "AzureStorageAuthType: an inline volume does not get the {whose}"
        ));
    }
    for (field, value) in [
        ("MSIEndpoint", &attributes.identity.msi_endpoint),
        ("AzureStorageAADEndpoint", &attributes.identity.aad_endpoint),
    ] {
        if value.is_some() {
            return refused(format!("{field}: an inline volume cannot set it"));
        }
    }
    Ok(())
}

fn is_below(host: &str, suffix: &str) -> bool {
    let front = host
        .strip_suffix(suffix)
        .and_then(|front| front.strip_suffix('.'));
    front.is_some_and(|front| !front.is_empty() && !front.ends_with('.'))
}

fn without_point(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

#[cfg(test)]
mod tests;
