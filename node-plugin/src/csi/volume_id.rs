//! The id of a volume this driver created: readable, and enough to delete it without the StorageClass.
//!
//! `ACCOUNT#CONTAINER#PREFIX#ON_DELETE`, followed by what the volume needs of these, in this order:
//! `#ENDPOINT` when it is not the public cloud's, `#NAMESPACE/NAME` when the class named a Secret by
//! `secretName`, `#auth=`, `#msi=` and their like for the identity that the class named, and `#name=DIGEST`
//! of the volume's CSI name. In prefix and values `%` and `#` are percent-encoded. Volume ids that users
//! write for static volumes may be anything; they do not parse here.

use std::fmt;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use url::Url;

use super::account::{Account, more_than_a_place};
use super::named_secret::SecretRef;
use super::volume_context::{AuthType, Identity, OnDelete};

const SEPARATORS: &AsciiSet = &CONTROLS.add(b'%').add(b'#');
const AUTH: &str = "auth";
const NAME: &str = "name";

/// Where a created volume is and what happens to it on deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeId {
    /// The account.
    pub account: Account,
    /// The container.
    pub container: String,
    /// Directory inside the container; empty when the container is the volume.
    pub prefix: String,
    /// What DeleteVolume does.
    pub on_delete: OnDelete,
    /// The Secret that the class named, for DeleteVolume, which gets no parameters.
    pub secret: Option<SecretRef>,
    /// `AzureStorageAuthType` of the class, for the same reason.
    pub auth_type: Option<AuthType>,
    /// The identity that the class named, without the pods' own.
    pub identity: Identity,
    /// Digest of the volume's CSI name; `None` in ids that were given before it was written down.
    pub name: Option<String>,
}

/// Settings of an identity by their keys in an id: short, because CSI gives a string 128 bytes.
fn settings(identity: &mut Identity) -> [(&'static str, &mut Option<String>); 8] {
    [
        ("msi", &mut identity.msi_client_id),
        ("msires", &mut identity.msi_resource_id),
        ("msiat", &mut identity.msi_endpoint),
        ("spn", &mut identity.spn_client_id),
        ("spntenant", &mut identity.spn_tenant_id),
        ("client", &mut identity.client_id),
        ("tenant", &mut identity.tenant_id),
        ("login", &mut identity.aad_endpoint),
    ]
}

impl VolumeId {
    /// Reads an id of ours; `None` for any other.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('#');
        let name = parts.next().filter(|p| !p.is_empty())?;
        let container = parts.next().filter(|p| !p.is_empty())?;
        let prefix = percent_decode_str(parts.next()?).decode_utf8().ok()?;
        let on_delete = match parts.next()? {
            "delete" => OnDelete::Delete,
            "retain" => OnDelete::Retain,
            _ => return None,
        };
        let mut id = Self {
            account: Account::in_cloud(name, "core.windows.net").ok()?,
            container: container.to_owned(),
            prefix: prefix.into_owned(),
            on_delete,
            secret: None,
            auth_type: None,
            identity: Identity::default(),
            name: None,
        };
        // An empty one stood for the public cloud before a Secret.
        for part in parts.filter(|part| !part.is_empty()) {
            id.read(part)?;
        }
        Some(id)
    }

    /// One part of those that tell by themselves what they are; `None` when it is none of them.
    fn read(&mut self, part: &str) -> Option<()> {
        if let Some((key, value)) = part.split_once('=') {
            let value = || Some(percent_decode_str(value).decode_utf8().ok()?.into_owned());
            if key == AUTH {
                self.auth_type = Some(AuthType::named(&value()?)?);
                return Some(());
            }
            if key == NAME {
                self.name = Some(value()?);
                return Some(());
            }
            let mut settings = settings(&mut self.identity).into_iter();
            if let Some((_, setting)) = settings.find(|(known, _)| *known == key) {
                *setting = Some(value()?);
                return Some(());
            }
        }
        if part.contains("://") {
            let endpoint = Url::parse(part).ok()?;
            let is_ours = matches!(endpoint.scheme(), "http" | "https") && !more_than_a_place(&endpoint);
            self.account.endpoint = is_ours.then_some(endpoint)?;
            return Some(());
        }
        let (namespace, name) = part.split_once('/')?;
        self.secret = Some(SecretRef::new(namespace, name).ok()?);
        Some(())
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on_delete = match self.on_delete {
            OnDelete::Delete => "delete",
            OnDelete::Retain => "retain",
        };
        let encoded = |text| utf8_percent_encode(text, SEPARATORS);
        let prefix = encoded(&self.prefix);
        write!(f, "{}#{}#{prefix}#{on_delete}", self.account.name, self.container)?;
        let cloud = Account::in_cloud(&self.account.name, "core.windows.net").map(|a| a.endpoint);
        if cloud.ok().as_ref() != Some(&self.account.endpoint) {
            write!(f, "#{}", self.account.endpoint.as_str().trim_end_matches('/'))?;
        }
        if let Some(SecretRef { namespace, name }) = &self.secret {
            write!(f, "#{namespace}/{name}")?;
        }
        if let Some(auth_type) = self.auth_type {
            write!(f, "#{AUTH}={}", auth_type.name())?;
        }
        let mut identity = self.identity.clone();
        for (key, value) in settings(&mut identity) {
            if let Some(value) = value {
                write!(f, "#{key}={}", encoded(value))?;
            }
        }
        if let Some(name) = &self.name {
            write!(f, "#{NAME}={}", encoded(name))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(account: Account, container: &str, prefix: &str) -> VolumeId {
        VolumeId {
            account,
            container: container.into(),
            prefix: prefix.into(),
            on_delete: OnDelete::Delete,
            secret: None,
            auth_type: None,
            identity: Identity::default(),
            name: None,
        }
    }

    #[test]
    fn ids_are_readable() {
        let id = at(
            Account::in_cloud("acct", "core.windows.net").unwrap(),
            "pvc-1",
            "",
        );
        assert_eq!(id.to_string(), "acct#pvc-1##delete");
        let named = VolumeId {
            secret: Some(SecretRef::new("team", "storage-key").unwrap()),
            name: Some("0123456789".into()),
            ..id.clone()
        };
        assert_eq!(
            named.to_string(),
            "acct#pvc-1##delete#team/storage-key#name=0123456789"
        );
        let managed = VolumeId {
            auth_type: Some(AuthType::Msi),
            identity: Identity {
                msi_client_id: Some("b4d0".into()),
                ..Identity::default()
            },
            ..id
        };
        assert_eq!(managed.to_string(), "acct#pvc-1##delete#auth=MSI#msi=b4d0");
        let (account, container, prefix) =
            Account::split_url("http://127.0.0.1:10000/devstoreaccount1/shared/team/data").unwrap();
        let id = VolumeId {
            on_delete: OnDelete::Retain,
            ..at(account, &container, &prefix)
        };
        assert_eq!(
            id.to_string(),
            "devstoreaccount1#shared#team/data#retain#http://127.0.0.1:10000/devstoreaccount1"
        );
    }

    /// Volumes outlive the release that created them.
    #[test]
    fn ids_of_earlier_releases_are_read() {
        let id = VolumeId::parse("acct#pvc-1##delete##team/storage-key").unwrap();
        assert_eq!(id.secret, Some(SecretRef::new("team", "storage-key").unwrap()));
        assert_eq!((id.name, id.auth_type), (None, None));
        let id = VolumeId::parse("devstoreaccount1#c#p#delete#http://127.0.0.1:1/devstoreaccount1#team/k");
        assert_eq!(
            id.unwrap().account.endpoint.as_str(),
            "http://127.0.0.1:1/devstoreaccount1"
        );
    }

    #[test]
    fn other_ids_do_not_parse() {
        for other in [
            "",
            "fake-vol-id",
            "rg#acct#container#uuid",
            "acct#c##maybe",
            "#c##delete",
            "acct###delete",
            "acct#c##delete##team",
            "acct#c##delete##team/../nodes",
            "acct#c##delete#auth=Password",
            "acct#c##delete#colour=blue",
            "acct#c##delete#colour://blue",
            "acct#c##delete#https://host/?sig=x",
        ] {
            assert_eq!(VolumeId::parse(other), None, "{other}");
        }
    }

    proptest::proptest! {
        #[test]
        fn ids_read_back(
            name in "[a-z0-9]{3,24}",
            container in "[a-z0-9-]{3,63}",
            prefix in "[^/\u{0}]{0,40}(/[^/\u{0}]{1,20}){0,2}",
            retain: bool,
            port in 0u16..,
            secret in proptest::option::of(("[a-z]{1,8}", "[a-z0-9]{1,8}")),
            auth in 0usize..4,
            values in proptest::collection::vec(proptest::option::of("[^\u{0}]{1,30}"), 8),
            digest in proptest::option::of("[0-9a-f]{10}"),
        ) {
            let mut id = at(Account::in_cloud(&name, "core.windows.net").unwrap(), &container, &prefix);
            if port > 1000 {
                id.account.endpoint = Url::parse(&format!("http://127.0.0.1:{port}/{name}")).unwrap();
            }
            if retain {
                id.on_delete = OnDelete::Retain;
            }
            id.secret = secret.map(|(namespace, name)| SecretRef::new(&namespace, &name).unwrap());
            let identities = [AuthType::Msi, AuthType::Spn, AuthType::WorkloadIdentity];
            id.auth_type = std::iter::once(None).chain(identities.map(Some)).nth(auth).unwrap();
            for ((_, setting), value) in settings(&mut id.identity).into_iter().zip(values) {
                *setting = value;
            }
            id.name = digest;
            proptest::prop_assert_eq!(VolumeId::parse(&id.to_string()), Some(id));
        }
    }
}
