//! Fuzz targets: what a user writes about a volume, and what NodeStageVolume makes of it.

use std::collections::HashMap;

use csi_proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use csi_proto::csi::{NodeStageVolumeRequest, VolumeCapability};
use prost::Message as _;

use super::table::{ALWAYS, KEYS, option_names, secret_names};
use super::{Attributes, MountOptions, Scope, Secrets};
use crate::access::Access;
use crate::csi::account::Account;
use crate::csi::connect::CredentialKind;
use crate::error::{Error, Reason, Result};

/// What nobody may be told.
const SECRET: &str = "c2VjcmV0LXNlY3JldA";

/// Values of any setting.
const VALUES: &[&str] = &[
    "",
    " ",
    "true",
    "FALSE",
    "0",
    "-1",
    "+5",
    "644",
    "0o755",
    "1777",
    "4294967295",
    "4294967296",
    "account",
    "core.windows.net",
    "127.0.0.1:10000/devstoreaccount1",
    "http://127.0.0.1:10000/devstoreaccount1",
    "https://account.blob.core.windows.net/?sig=x",
    "https://user:password@host",
    "https://[::1]:1",
    "a/b/../c",
    "//",
    "${pvc.metadata.name}",
    "${pv.metadata.name}-${",
    "container",
    "Key",
    "SAS",
    "MSI",
    "fuse",
    "nfs",
    "disk",
    "none",
    "text/plain",
    "streaming",
];

/// A word and its value, mostly as tables have them.
pub(in crate::csi) type Setting = (u8, u8, u8, String);

pub(in crate::csi) fn setting((word, value, odd, other): &Setting, words: &[&str]) -> (String, String) {
    let word = words[usize::from(*word) % words.len()];
    let word = match odd % 16 {
        // A few letters more, and some in the other case.
        0 => format!("{other}{}", word.to_uppercase()),
        1 => word.to_uppercase(),
        _ => word.to_owned(),
    };
    let value = match odd >> 4 {
        0..3 => other.clone(),
        _ => VALUES[usize::from(*value) % VALUES.len()].to_owned(),
    };
    (word, value)
}

/// The error begins with the field that it is about, and is short.
pub(in crate::csi) fn told<T>(result: Result<T>) -> Option<T> {
    let Error { message, .. } = match result {
        Ok(value) => return Some(value),
        Err(error) => error,
    };
    let field = message.split_once(':').map_or("", |(field, _)| field);
    let known = [
        "mountOptions",
        "Secret",
        "volumeAttributes",
        "StorageClass parameters",
        "capacity_range",
    ];
    let mut keys = KEYS.iter().map(|key| key.name).chain(secret_names());
    assert!(
        known.contains(&field) || keys.any(|key| key == field) || field.starts_with("volume_capab"),
        "{message}"
    );
    assert!(message.len() < 1500, "{message}");
    assert!(!message.contains(SECRET), "{message}");
    None
}

fn every_option() -> impl Iterator<Item = &'static str> {
    option_names().chain(ALWAYS.iter().copied())
}

#[test]
fn mount_options() {
    let words: Vec<&str> = every_option().chain(VALUES.iter().copied()).collect();
    fuzzing::bytes(
        concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/mount_options"),
        &words,
        |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let lines: Vec<&str> = text.lines().collect();
            let whole = told(MountOptions::parse(&lines));
            // Whatever separates them.
            let one = told(MountOptions::parse(&[lines.join(",")]));
            assert_eq!(whole, one, "{text:?}");
            if let Some(options) = whole {
                for grouped in [false, true] {
                    let (file, dir) = options.modes(grouped);
                    assert!(file <= 0o777 && dir <= 0o7777, "{options:?}");
                }
                let _ = options.ownership(Some(1));
            }
        },
    );
}

/// An option says the same in each of its spellings.
#[test]
fn spelled_mount_options() {
    let words: Vec<&str> = every_option().collect();
    fuzzing::each(|(pair, spelling): &(Setting, u8)| {
        let (name, value) = setting(pair, &words);
        let plain = format!("{name}={value}");
        // Several, or with dashes of its own: another one.
        if plain.contains([',', ' ', '\t']) || name.starts_with(['-', '_']) {
            return;
        }
        let spelled = match spelling % 6 {
            0 => format!("--{plain}"),
            1 => format!("-o {plain}"),
            2 => format!("-o{plain}"),
            3 => format!("--{}={value}", name.replace('_', "-")),
            4 => format!(",{plain},"),
            _ => format!("{}={value}", name.to_ascii_uppercase()),
        };
        let [first, second] = [plain, spelled.clone()].map(|flag| MountOptions::parse(&[flag]));
        assert_eq!(first.is_ok(), second.is_ok(), "{spelled}: {first:?}, {second:?}");
        assert_eq!(told(first), told(second), "{spelled}");
    });
}

/// All that is looked at before anything is sent.
fn staged(request: &NodeStageVolumeRequest) -> Option<()> {
    let capability = request.volume_capability.as_ref();
    let access = told(Access::parse(capability, Reason::CapabilityExceeded))?;
    told(MountOptions::parse(&access.mount_flags));
    let secrets = told(Secrets::parse(&request.secrets));
    for scope in [Scope::Attributes, Scope::Class] {
        let attributes = told(Attributes::parse(&request.volume_context, scope));
        let (Some(attributes), Some(secrets)) = (attributes, &secrets) else {
            continue;
        };
        told(attributes.expanded_container());
        told(attributes.expanded_prefix());
        if let Some(account) = told(Account::resolve(&attributes, secrets)) {
            assert!(matches!(account.endpoint.scheme(), "http" | "https"));
            assert!(account.endpoint.query().is_none() && account.endpoint.password().is_none());
            let entra = |_| Err(Error::new(Reason::MissingCredentials, "AzureStorageAuthType: no"));
            if let Some(credentials) = told(account.credentials(&attributes, secrets, entra)) {
                assert!(!format!("{credentials:?}").contains(SECRET));
                let _ = CredentialKind::of(&credentials);
            }
        }
    }
    Some(())
}

/// Attributes, secrets, mount options - few of each, so that many are accepted - and the capability.
type Stage = ([Setting; 4], [Setting; 3], [Setting; 2], (u8, u8));

fn request((context, secret, flags, (mode, kind)): &Stage) -> NodeStageVolumeRequest {
    let keys: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    let secret_keys: Vec<&str> = secret_names().collect();
    let few = |all: &[Setting]| usize::from(*mode) % (all.len() + 1);
    let settings = context.iter().take(few(context)).map(|pair| setting(pair, &keys));
    let volume_context: HashMap<_, _> = settings.collect();
    let secrets = secret
        .iter()
        .map(|pair| setting(pair, &secret_keys))
        .map(|(key, value)| {
            let lower = key.to_lowercase();
            match lower.contains("name") || lower.contains("id") {
                true => (key, value),
                false => (key, format!("{SECRET}{value}")),
            }
        })
        .collect();
    let words: Vec<&str> = every_option().collect();
    let mount_flags = flags
        .iter()
        .map(|pair| setting(pair, &words))
        .map(|(name, value)| {
            if value.is_empty() {
                name
            } else {
                format!("{name}={value}")
            }
        })
        .collect();
    let access_type = match kind % 8 {
        0 => None,
        1 => Some(AccessType::Block(BlockVolume {})),
        kind => Some(AccessType::Mount(MountVolume {
            mount_flags,
            volume_mount_group: VALUES[usize::from(kind)].to_owned(),
            ..MountVolume::default()
        })),
    };
    NodeStageVolumeRequest {
        volume_capability: Some(VolumeCapability {
            access_type,
            access_mode: Some(AccessMode {
                mode: i32::from(*mode % 10),
            }),
        }),
        volume_context,
        secrets,
        ..NodeStageVolumeRequest::default()
    }
}

#[test]
fn requests_to_stage() {
    fuzzing::each(|stage: &Stage| {
        staged(&request(stage));
    });
}

/// `attribute`, `secret`, `option`, `group`, `mode` or `block`, and what is said of it, a line.
fn written(text: &str) -> NodeStageVolumeRequest {
    let mut request = NodeStageVolumeRequest::default();
    let (mut volume, mut mode, mut block) = (MountVolume::default(), 1, false);
    for line in text.lines() {
        let (what, rest) = line.split_once(' ').unwrap_or((line, ""));
        let pair = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        match what {
            "attribute" => request.volume_context.extend(rest.split_once('=').map(pair)),
            "secret" => request.secrets.extend(rest.split_once('=').map(pair)),
            "option" => volume.mount_flags.push(rest.to_owned()),
            "group" => volume.volume_mount_group = rest.to_owned(),
            "mode" => mode = rest.parse().unwrap_or_default(),
            "block" => block = true,
            _ => {}
        }
    }
    let access_type = match block {
        true => AccessType::Block(BlockVolume {}),
        false => AccessType::Mount(volume),
    };
    request.volume_capability = Some(VolumeCapability {
        access_type: Some(access_type),
        access_mode: Some(AccessMode { mode }),
    });
    request
}

#[test]
fn kept_requests_to_stage() {
    let kinds = ["\nattribute ", "\nsecret ", "\noption ", "\ngroup ", "\nmode "];
    let keys = KEYS.iter().map(|key| key.name).chain(secret_names());
    let words = keys.chain(every_option()).chain(VALUES.iter().copied());
    let words: Vec<&str> = words.chain(kinds).collect();
    fuzzing::bytes(
        concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/requests_to_stage"),
        &words,
        |bytes| {
            let request = written(&String::from_utf8_lossy(bytes));
            staged(&request);
            // As it comes over the socket, and with what is left of a message that was cut.
            let encoded = request.encode_to_vec();
            let decoded = NodeStageVolumeRequest::decode(encoded.as_slice()).unwrap();
            assert_eq!(decoded, request);
            if let Ok(cut) = NodeStageVolumeRequest::decode(&encoded[..encoded.len() / 2]) {
                staged(&cut);
            }
        },
    );
}

/// What no client of ours has encoded.
#[test]
fn bytes_of_requests_to_stage() {
    fuzzing::each(|(stage, changes): &(Stage, Vec<(u16, u8)>)| {
        let mut bytes = request(stage).encode_to_vec();
        for (at, byte) in changes {
            let at = usize::from(*at) % bytes.len().max(1);
            if let Some(old) = bytes.get_mut(at) {
                *old = *byte;
            }
        }
        if let Ok(request) = NodeStageVolumeRequest::decode(bytes.as_slice()) {
            staged(&request);
        }
    });
}
