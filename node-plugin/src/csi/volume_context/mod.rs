//! What a user writes about a volume, as types: volumeAttributes, StorageClass parameters, secrets, mount
//! options.
//!
//! The keys and their meaning are those of the tables in `table`, of which docs/volume-reference.md is made;
//! they follow blob.csi.azure.com where the meaning is the same. Nothing is ignored in silence: an unknown
//! key is refused with the nearest known one, and so is a setting that this release cannot honor.

mod keeping;
mod keys;
pub mod mount_options;
pub mod secrets;
mod table;
pub mod template;

use std::collections::HashMap;

use blob_client::transport::failover::TransportMode;
use blob_fs::Profile;

use keeping::INDEX_TAGS;
pub use keeping::{Keeping, content_types};
pub use keys::Scope;
use keys::{Keys, invalid};
pub use mount_options::MountOptions;
pub use secrets::Secrets;
pub use table::{
    ALWAYS, INSTEAD, KEYS, Key, MountOption, OPTIONS, Place, SECRET_KEYS, SYSTEM_PREFIXES, SecretKey,
    VARIABLES, Values,
};
pub use template::Claim;

use crate::error::{Error, Reason, Result};

/// `AzureStorageAuthType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthType {
    /// Account key.
    Key,
    /// Shared access signature.
    Sas,
    /// Managed identity.
    Msi,
    /// Service principal with a client secret.
    Spn,
    /// A pod's or the driver's federated service-account token.
    WorkloadIdentity,
    /// Public container.
    Anonymous,
}

const AUTH_TYPES: &[(&str, AuthType)] = &[
    ("Key", AuthType::Key),
    ("SAS", AuthType::Sas),
    ("MSI", AuthType::Msi),
    ("SPN", AuthType::Spn),
    ("WorkloadIdentity", AuthType::WorkloadIdentity),
    ("Anonymous", AuthType::Anonymous),
];

impl AuthType {
    /// The word that users write.
    pub fn name(self) -> &'static str {
        AUTH_TYPES
            .iter()
            .find(|(_, t)| *t == self)
            .map_or("Key", |(name, _)| name)
    }

    /// The reverse of [`name`](Self::name).
    pub fn named(word: &str) -> Option<Self> {
        AUTH_TYPES.iter().find(|(name, _)| *name == word).map(|(_, t)| *t)
    }
}

/// The kinds of [`AuthType`] that are tokens of Entra ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// [`AuthType::Msi`]
    Msi,
    /// [`AuthType::Spn`]
    Spn,
    /// [`AuthType::WorkloadIdentity`]
    WorkloadIdentity,
}

impl TokenKind {
    /// The word that users write.
    pub fn name(self) -> &'static str {
        match self {
            Self::Msi => AuthType::Msi,
            Self::Spn => AuthType::Spn,
            Self::WorkloadIdentity => AuthType::WorkloadIdentity,
        }
        .name()
    }
}

/// `onDelete`: what happens to the data when the volume is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDelete {
    /// Container or prefix is deleted.
    #[default]
    Delete,
    /// Everything stays.
    Retain,
}

/// Identity settings, each as written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// `AzureStorageIdentityClientID`: user-assigned managed identity.
    pub msi_client_id: Option<String>,
    /// `AzureStorageIdentityResourceID`: the same by resource id.
    pub msi_resource_id: Option<String>,
    /// `MSIEndpoint`.
    pub msi_endpoint: Option<String>,
    /// `AzureStorageSPNClientID`.
    pub spn_client_id: Option<String>,
    /// `AzureStorageSPNTenantID`.
    pub spn_tenant_id: Option<String>,
    /// `AzureStorageAADEndpoint`.
    pub aad_endpoint: Option<String>,
    /// `ClientID`: application of the workload identity.
    pub client_id: Option<String>,
    /// `tenantID`.
    pub tenant_id: Option<String>,
    /// `mountWithWorkloadIdentityToken`: use the pod's own token.
    pub with_pod_token: bool,
}

/// Settings of a volume, from volumeAttributes or a StorageClass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// `storageAccount`.
    pub account: Option<String>,
    /// `containerName`, as written (a class may hold variables).
    pub container: Option<String>,
    /// `containerNamePrefix`; class only.
    pub container_prefix: Option<String>,
    /// `prefix`, without `/` at its ends.
    pub prefix: Option<String>,
    /// `server`.
    pub server: Option<String>,
    /// `storageEndpointSuffix`, e.g. `core.windows.net`.
    pub endpoint_suffix: Option<String>,
    /// `secretName`.
    pub secret_name: Option<String>,
    /// `secretNamespace`.
    pub secret_namespace: Option<String>,
    /// `AzureStorageAuthType`; `None` when not given: Key, or SAS when only a SAS is in the Secret.
    pub auth_type: Option<AuthType>,
    /// Identity settings.
    pub identity: Identity,
    /// `onDelete`; class only.
    pub on_delete: OnDelete,
    /// True when `onDelete` was written, not assumed.
    pub on_delete_given: bool,
    /// `transport`.
    pub transport: TransportMode,
    /// `contentType`, `indexTags`.
    pub keeping: Keeping,
    /// `profile`.
    pub profile: Profile,
    /// `csi.storage.k8s.io/ephemeral`: an inline volume, published without a stage.
    pub ephemeral: bool,
    /// What is known of the claim (class only).
    pub claim: Claim,
}

impl Attributes {
    /// Reads and checks the keys of `scope`.
    pub fn parse(map: &HashMap<String, String>, scope: Scope) -> Result<Self> {
        let keys = Keys::check(map, scope)?;
        check_protocol(&keys)?;
        check_not_yet(&keys)?;
        Ok(Self {
            account: keys.owned("storageAccount"),
            container: keys.owned("containerName"),
            container_prefix: keys.owned("containerNamePrefix"),
            prefix: prefix(&keys)?,
            server: keys.owned("server"),
            endpoint_suffix: keys.owned("storageEndpointSuffix"),
            secret_name: keys.owned("secretName"),
            secret_namespace: keys.owned("secretNamespace"),
            auth_type: keys.choice("AzureStorageAuthType", AUTH_TYPES)?,
            identity: Identity {
                msi_client_id: keys.owned("AzureStorageIdentityClientID"),
                msi_resource_id: keys.owned("AzureStorageIdentityResourceID"),
                msi_endpoint: keys.owned("MSIEndpoint"),
                spn_client_id: keys.owned("AzureStorageSPNClientID"),
                spn_tenant_id: keys.owned("AzureStorageSPNTenantID"),
                aad_endpoint: keys.owned("AzureStorageAADEndpoint"),
                client_id: keys.owned("ClientID"),
                tenant_id: keys.owned("tenantID"),
                with_pod_token: keys.boolean("mountWithWorkloadIdentityToken")?.unwrap_or(false),
            },
            on_delete: keys.choice("onDelete", ON_DELETE)?.unwrap_or_default(),
            on_delete_given: keys.get("onDelete").is_some(),
            transport: keys.choice("transport", TRANSPORTS)?.unwrap_or_default(),
            keeping: Keeping::parse(&keys)?,
            profile: keys.choice("profile", PROFILES)?.unwrap_or_default(),
            ephemeral: keys.system("csi.storage.k8s.io/ephemeral") == Some("true"),
            claim: Claim {
                name: keys.system("csi.storage.k8s.io/pvc/name").map(str::to_owned),
                namespace: keys.system("csi.storage.k8s.io/pvc/namespace").map(str::to_owned),
                volume: keys.system("csi.storage.k8s.io/pv/name").map(str::to_owned),
            },
        })
    }

    /// `containerName` with its variables replaced.
    pub fn expanded_container(&self) -> Result<Option<String>> {
        self.container
            .as_deref()
            .map(|t| template::expand("containerName", t, &self.claim))
            .transpose()
    }

    /// `prefix` with its variables replaced; what they stand for must not make another path of it.
    pub fn expanded_prefix(&self) -> Result<Option<String>> {
        let Some(template) = self.prefix.as_deref() else {
            return Ok(None);
        };
        directories(&template::expand("prefix", template, &self.claim)?)
    }
}

const ON_DELETE: &[(&str, OnDelete)] = &[("delete", OnDelete::Delete), ("retain", OnDelete::Retain)];
const TRANSPORTS: &[(&str, TransportMode)] = &[
    ("prefer", TransportMode::Prefer),
    ("require", TransportMode::Require),
    ("https", TransportMode::Https),
];
const PROFILES: &[(&str, Profile)] = &[
    ("general", Profile::General),
    ("streaming", Profile::Streaming),
    ("smallfiles", Profile::SmallFiles),
    ("readonly-shared", Profile::ReadonlyShared),
];

/// FUSE only; NFS is another driver's.
fn check_protocol(keys: &Keys) -> Result<()> {
    let Some(protocol) = keys.get("protocol") else {
        return Ok(());
    };
    match protocol.to_ascii_lowercase().as_str() {
        "fuse" | "fuse2" => Ok(()),
        "nfs" | "aznfs" => Err(Error::new(
            Reason::ProtocolNotSupported,
            format!("protocol: {protocol:?} is not offered by this driver"),
        )),
        _ => Err(invalid("protocol", protocol, "fuse or fuse2")),
    }
}

/// Settings that this release does not implement: refused, never ignored.
fn check_not_yet(keys: &Keys) -> Result<()> {
    let refuse = |message: &str| Err(Error::new(Reason::NotSupportedYet, message));
    match keys.choice("cacheMedium", &[("none", false), ("disk", true)])? {
        Some(true) => {
            return refuse(
                "cacheMedium: the local disk cache is not available yet; leave it out or set none",
            );
        }
        Some(false) => {}
        None if keys.get("cacheSizeMB").is_some() => {
            return refuse("cacheSizeMB: the local disk cache is not available yet");
        }
        None => {}
    }
    if keys.boolean("isHnsEnabled")? == Some(true) {
        return refuse(
            "isHnsEnabled: accounts with a hierarchical namespace are not supported yet; use an account \
             without",
        );
    }
    if keys.get("secretNamespace").is_some() && keys.get("secretName").is_none() {
        return Err(Error::new(
            Reason::MissingField,
            "secretName: secretNamespace is set without it",
        ));
    }
    Ok(())
}

fn prefix(keys: &Keys) -> Result<Option<String>> {
    keys.get("prefix").map_or(Ok(None), directories)
}

/// Directories, without the slashes at the ends; `.`, `..` and empty ones have no meaning in a mount.
fn directories(written: &str) -> Result<Option<String>> {
    let path = written.trim_matches('/');
    if path.is_empty() {
        return Ok(None);
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        let wanted = "a path of directories without empty parts, . or ..";
        return Err(invalid("prefix", written, wanted));
    }
    Ok(Some(path.to_owned()))
}

#[cfg(test)]
pub(in crate::csi) mod fuzz;
#[cfg(test)]
mod tests;
