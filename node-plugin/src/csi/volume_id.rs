//! The id of a volume this driver created: readable, and enough to delete it without the StorageClass.
//!
//! `ACCOUNT#CONTAINER#PREFIX#ON_DELETE`, `#ENDPOINT` when it is not the public cloud's, and `#NAMESPACE/NAME` when the
//! class named a Secret by `secretName` (after an empty `#` in the public cloud). In the prefix `%` and `#` are
//! percent-encoded. Volume ids that users write for static volumes may be anything; they do not parse here.

use std::fmt;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use url::Url;

use super::account::Account;
use super::named_secret::SecretRef;
use super::volume_context::OnDelete;

const SEPARATORS: &AsciiSet = &CONTROLS.add(b'%').add(b'#');

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
}

impl VolumeId {
    /// Reads an id of ours; `None` for any other.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(6, '#');
        let name = parts.next().filter(|p| !p.is_empty())?;
        let container = parts.next().filter(|p| !p.is_empty())?;
        let prefix = percent_decode_str(parts.next()?).decode_utf8().ok()?;
        let on_delete = match parts.next()? {
            "delete" => OnDelete::Delete,
            "retain" => OnDelete::Retain,
            _ => return None,
        };
        let cloud = Account::in_cloud(name, "core.windows.net").ok()?;
        let endpoint = match parts.next() {
            Some(endpoint) if !endpoint.is_empty() => Url::parse(endpoint).ok()?,
            _ => cloud.endpoint,
        };
        let secret = match parts.next() {
            Some(secret) => {
                let (namespace, name) = secret.split_once('/')?;
                Some(SecretRef::new(namespace, name).ok()?)
            }
            None => None,
        };
        Some(Self {
            account: Account {
                name: cloud.name,
                endpoint,
            },
            container: container.to_owned(),
            prefix: prefix.into_owned(),
            on_delete,
            secret,
        })
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on_delete = match self.on_delete {
            OnDelete::Delete => "delete",
            OnDelete::Retain => "retain",
        };
        let prefix = utf8_percent_encode(&self.prefix, SEPARATORS);
        write!(f, "{}#{}#{prefix}#{on_delete}", self.account.name, self.container)?;
        let cloud = Account::in_cloud(&self.account.name, "core.windows.net").map(|a| a.endpoint);
        if cloud.ok().as_ref() != Some(&self.account.endpoint) {
            write!(f, "#{}", self.account.endpoint.as_str().trim_end_matches('/'))?;
        } else if self.secret.is_some() {
            f.write_str("#")?;
        }
        if let Some(SecretRef { namespace, name }) = &self.secret {
            write!(f, "#{namespace}/{name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_readable() {
        let id = VolumeId {
            account: Account::in_cloud("acct", "core.windows.net").unwrap(),
            container: "pvc-1".into(),
            prefix: String::new(),
            on_delete: OnDelete::Delete,
            secret: None,
        };
        assert_eq!(id.to_string(), "acct#pvc-1##delete");
        let named = VolumeId {
            secret: Some(SecretRef::new("team", "storage-key").unwrap()),
            ..id
        };
        assert_eq!(named.to_string(), "acct#pvc-1##delete##team/storage-key");
        let (account, container, prefix) =
            Account::split_url("http://127.0.0.1:10000/devstoreaccount1/shared/team/data").unwrap();
        let id = VolumeId {
            account,
            container,
            prefix,
            on_delete: OnDelete::Retain,
            secret: None,
        };
        assert_eq!(
            id.to_string(),
            "devstoreaccount1#shared#team/data#retain#http://127.0.0.1:10000/devstoreaccount1"
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
        ] {
            assert_eq!(VolumeId::parse(other), None, "{other}");
        }
    }

    proptest::proptest! {
        #[test]
        fn ids_read_back(name in "[a-z0-9]{3,24}", container in "[a-z0-9-]{3,63}", prefix in "[^/\u{0}]{0,40}(/[^/\u{0}]{1,20}){0,2}", retain: bool, port in 0u16.., secret in proptest::option::of(("[a-z]{1,8}", "[a-z0-9]{1,8}"))) {
            let mut account = Account::in_cloud(&name, "core.windows.net").unwrap();
            if port > 1000 {
                account.endpoint = Url::parse(&format!("http://127.0.0.1:{port}/{name}")).unwrap();
            }
            let on_delete = if retain { OnDelete::Retain } else { OnDelete::Delete };
            let secret = secret.map(|(namespace, name)| SecretRef::new(&namespace, &name).unwrap());
            let id = VolumeId { account, container, prefix, on_delete, secret };
            proptest::prop_assert_eq!(VolumeId::parse(&id.to_string()), Some(id));
        }
    }
}
