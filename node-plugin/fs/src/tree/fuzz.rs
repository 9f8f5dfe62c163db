//! Fuzz targets: names of blobs and files, and whatever stands in a blob's metadata.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::time::{Duration, UNIX_EPOCH};

use blob_client::{BlobType, ETag, Metadata, Properties, Protection, StoredHeaders};

use super::attrs::{self, Attrs, Defaults, Kind};
use super::names;
use crate::content::binding;

const DEFAULTS: Defaults = Defaults {
    uid: 10,
    gid: 20,
    file_mode: 0o644,
    dir_mode: 0o755,
};

/// Characters that need care, much more often than chance gives them.
const CARE: &[char] = &[
    '.', '\\', '\n', '\0', '/', '\u{1f}', '\u{7f}', '\u{201b}', '\u{ff3c}', '\u{ff0e}', '\u{2400}',
    '\u{241f}', '\u{2421}', '\u{fffe}', '\u{ffff}', '\u{feff}', '😀', 'é',
];

#[test]
fn names_lead_to_a_blob_and_back() {
    fuzzing::each(|pieces: &Vec<(bool, u8, char)>| {
        let name: String = pieces
            .iter()
            .map(|(care, which, other)| match care {
                true => CARE[usize::from(*which) % CARE.len()],
                false => *other,
            })
            .collect();
        leads_back(&name);
    });
}

/// A name of a file leads to a blob and back, and one of a blob to a file and back.
fn leads_back(name: &str) {
    let is_name = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']);
    if is_name && names::checked(OsStr::new(name)).is_ok() {
        let blob = names::encode(name);
        assert_eq!(names::shown(&blob, false).as_deref(), Some(name), "{blob:?}");
    }
    for in_root in [false, true] {
        // What is shown can be asked for, and is that blob.
        if let Some(shown) = names::shown(name, in_root) {
            assert_eq!(names::checked(OsStr::new(&*shown)).ok(), Some(&*shown));
            assert_eq!(names::encode(&shown), name);
        }
    }
}

#[test]
fn kept_names() {
    let words: Vec<String> = CARE.iter().map(char::to_string).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    fuzzing::bytes(
        concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/names"),
        &words,
        |bytes| {
            // The kernel hands over any bytes.
            let _ = names::checked(OsStr::from_bytes(bytes));
            leads_back(&String::from_utf8_lossy(bytes));
        },
    );
}

const KEYS: &[&str] = &[
    "hdi_isfolder",
    "is_symlink",
    "vsc_mode",
    "vsc_uid",
    "vsc_gid",
    "vsc_mtime",
    "vsc_ctime",
    "vsc_times_of",
    "vsc_atime",
    "vsc_kind",
    "vsc_xattr",
    "vsc_moved_from",
    "vsc_unknown",
    "owner",
];

const VALUES: &[&str] = &[
    "",
    "true",
    "TRUE",
    "0",
    "644",
    "7777",
    "10000",
    "-1",
    "4294967295",
    "4294967296",
    "1.000000000",
    "-1.999999999",
    "-0.5",
    "+5.0",
    "1.9999999999",
    "9223372036854775807.999999999",
    "-9223372036854775808.0",
    "fifo",
    "socket",
    "AWEAAWI=",
    "AWEAAWIBYQABYw==",
    "AWE=",
    "/////w==",
    "4.1800000000.-.0000000000000000",
    "4.1800000000..0000000000000000",
    "4.18446744073709551615.-.ffffffffffffffff",
    "18446744073709551615.0.1B2M2Y8AsgTpgAmY7PhCfg==.0",
    "....",
];

fn version(metadata: Metadata, content_length: u64, content_md5: Option<String>) -> Properties {
    Properties {
        etag: ETag("e".into()),
        last_modified: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        content_length,
        blob_type: BlobType::Block,
        metadata,
        stored: StoredHeaders::default(),
        content_md5,
        created: None,
        copied_from: None,
        is_directory: false,
        protection: Protection::default(),
    }
}

/// Attributes as they are seen: with the defaults of what is left out.
fn seen(kind: Kind, attrs: &Attrs) -> (u32, u32, u32, Attrs) {
    let bare = Attrs {
        mode: None,
        uid: None,
        gid: None,
        ..attrs.clone()
    };
    let mode = attrs.mode.unwrap_or(DEFAULTS.mode(kind));
    let (uid, gid) = (
        attrs.uid.unwrap_or(DEFAULTS.uid),
        attrs.gid.unwrap_or(DEFAULTS.gid),
    );
    (mode, uid, gid, bare)
}

/// Any metadata can be read; stored again, it says the same.
#[test]
fn metadata() {
    type Pairs = Vec<(u8, u8, Option<String>)>;
    fuzzing::each(|(pairs, size, md5): &(Pairs, u64, Option<u8>)| {
        let value = |which: &u8| VALUES[usize::from(*which) % VALUES.len()].to_owned();
        let stored: Metadata = pairs
            .iter()
            .map(|(key, which, other)| {
                let key = KEYS[usize::from(*key) % KEYS.len()].to_owned();
                (key, other.clone().unwrap_or_else(|| value(which)))
            })
            .collect();
        // An exact length now and then, so that notes about contents are looked at further.
        let size = if size % 2 == 0 { 4 } else { *size };
        says_the_same(&stored, size, md5.as_ref().map(value));
    });
}

fn says_the_same(stored: &Metadata, size: u64, md5: Option<String>) {
    let properties = version(stored.clone(), size, md5);
    binding::believed(&properties);
    let (kind, _) = attrs::of(&properties);
    assert_eq!(kind, attrs::kind_of(&properties));
    let (kind_too, read) = attrs::decode(stored);
    assert_eq!(kind, kind_too);
    for time in [read.mtime, read.ctime, read.atime].into_iter().flatten() {
        let (seconds, nanos) = attrs::seconds(time);
        assert_eq!(attrs::from_seconds(seconds, nanos), Some(time));
    }
    let Ok(again) = attrs::encode(&read, kind, &DEFAULTS) else {
        let held: usize = stored.iter().map(|(k, v)| k.len() + v.len()).sum();
        // A few bytes more than there was, where numbers were written shorter than we do.
        assert!(held + 200 > binding::MAX_METADATA, "{stored:?}");
        return;
    };
    let (kind_again, read_again) = attrs::decode(&again);
    assert_eq!(kind_again, kind);
    assert_eq!(seen(kind, &read_again), seen(kind, &read), "{stored:?}");
}

/// One key and its value a line; `length` and `md5` are the blob's own.
#[test]
fn kept_metadata() {
    let words: Vec<&str> = KEYS.iter().chain(VALUES).copied().collect();
    fuzzing::bytes(
        concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/metadata"),
        &words,
        |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let mut stored: Metadata = text
                .lines()
                .filter_map(|line| line.split_once(": "))
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect();
            let length = stored.remove("length").and_then(|length| length.parse().ok());
            let md5 = stored.remove("md5");
            says_the_same(&stored, length.unwrap_or(4), md5);
        },
    );
}
