//! Fuzz targets: StorageClasses and requests to create a volume. What is handed on to the node, and
//! what the volume is called, lead to the place that was planned.

use std::collections::HashMap;

use csi_proto::csi::CapacityRange;

use super::{Place, VolumeId, capacity, identity_for_deletion, name_digest, volume_context};
use crate::csi::account::Account;
use crate::csi::volume_context::fuzz::{Setting, setting, told};
use crate::csi::volume_context::{Attributes, Scope, Secrets};

/// Settings of a class, those that say a place more often.
const CLASS: &[&str] = &[
    "storageAccount",
    "containerName",
    "containerNamePrefix",
    "prefix",
    "server",
    "storageEndpointSuffix",
    "onDelete",
    "AzureStorageAuthType",
    "AzureStorageIdentityClientID",
    "AzureStorageSPNTenantID",
    "profile",
    "contentType",
    "csi.storage.k8s.io/pvc/name",
];

type Create = (String, [Setting; 4], u8, (i64, i64));

fn created((name, settings, few, (required_bytes, limit_bytes)): &Create) -> Option<()> {
    let range = CapacityRange {
        required_bytes: *required_bytes,
        limit_bytes: *limit_bytes,
    };
    let few = usize::from(*few) % (settings.len() + 1);
    planned(
        name,
        settings.iter().take(few).map(|pair| setting(pair, CLASS)),
        range,
    )
}

fn planned(name: &str, settings: impl Iterator<Item = (String, String)>, range: CapacityRange) -> Option<()> {
    // As the provisioner names volumes.
    if name.is_empty() || name.contains('$') {
        return None;
    }
    if let Some(bytes) = told(capacity(Some(&range))) {
        assert!(bytes >= 0 && (range.limit_bytes == 0 || bytes <= range.limit_bytes));
    }
    let account = ("storageAccount".to_owned(), "account".to_owned());
    let mut parameters: HashMap<_, _> = HashMap::from([account]);
    parameters.extend(settings);
    // No claim is called so.
    if parameters
        .iter()
        .any(|(key, value)| key.starts_with("csi.") && value.contains('$'))
    {
        return None;
    }
    let mut attributes = told(Attributes::parse(&parameters, Scope::Class))?;
    attributes.claim.volume.get_or_insert_with(|| name.to_owned());
    let place = told(Place::plan(name, &attributes))?;
    let account = told(Account::resolve(&attributes, &Secrets::default()))?;
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if attributes.container.is_none() {
        assert!((3..=63).contains(&place.container.len()), "{place:?}");
        assert!(place.container.chars().all(fits), "{place:?}");
    } else if !place.container.chars().all(fits) || place.container.is_empty() {
        // The client refuses it.
        return None;
    }
    let context = volume_context(&parameters, &account, &place);
    let handed = Attributes::parse(&context, Scope::Attributes).unwrap();
    assert_eq!(
        handed.expanded_container().unwrap().as_deref(),
        Some(&*place.container)
    );
    assert_eq!(
        handed.expanded_prefix().unwrap().unwrap_or_default(),
        place.prefix
    );
    assert_eq!(Account::resolve(&handed, &Secrets::default()).unwrap(), account);
    let id = VolumeId {
        account,
        container: place.container,
        prefix: place.prefix,
        on_delete: attributes.on_delete,
        secret: None,
        auth_type: attributes.auth_type,
        identity: identity_for_deletion(&attributes),
        name: Some(name_digest(name)),
    };
    assert_eq!(VolumeId::parse(&id.to_string()), Some(id));
    Some(())
}

#[test]
fn requests_to_create() {
    fuzzing::each(|create: &Create| {
        created(create);
    });
}

/// The volume's name, `parameter` and its value, or `required` and `limit` bytes, a line.
#[test]
fn kept_requests_to_create() {
    let kinds = ["\nparameter ", "\nrequired ", "\nlimit "];
    let words: Vec<&str> = CLASS.iter().copied().chain(kinds).collect();
    fuzzing::bytes(
        concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/requests_to_create"),
        &words,
        |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let (mut range, mut settings) = (CapacityRange::default(), Vec::new());
            for line in text.lines().skip(1) {
                let (what, rest) = line.split_once(' ').unwrap_or((line, ""));
                match what {
                    "required" => range.required_bytes = rest.parse().unwrap_or_default(),
                    "limit" => range.limit_bytes = rest.parse().unwrap_or_default(),
                    _ => settings.extend(rest.split_once('=')),
                }
            }
            let settings = settings
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value.to_owned()));
            planned(text.lines().next().unwrap_or_default(), settings, range);
        },
    );
}

/// Ids of others' volumes are anything; one that parses is stable.
#[test]
fn volume_ids() {
    let words = [
        "#",
        "%23",
        "#auth=Key",
        "#name=",
        "://",
        "http://127.0.0.1:10000/a",
        "#retain",
        "/",
    ];
    fuzzing::bytes(
        concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/volume_ids"),
        &words,
        |bytes| {
            let text = String::from_utf8_lossy(bytes);
            for text in [
                text.to_string(),
                format!("account#container#{text}"),
                format!("account#c##delete#{text}"),
            ] {
                if let Some(id) = VolumeId::parse(&text) {
                    let written = id.to_string();
                    assert_eq!(VolumeId::parse(&written).map(|id| id.to_string()), Some(written));
                }
            }
        },
    );
}
