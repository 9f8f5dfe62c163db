//! Attributes of a node and how they are kept in blob metadata.
//!
//! Only what differs from the mount's defaults is written. All keys are lower case (the service ignores case)
//! and ours begin with `vsc_`:
//!
//! | key | value |
//! |---|---|
//! | `vsc_mode` | permission bits, octal, set-user-id, set-group-id and sticky included |
//! | `vsc_uid`, `vsc_gid` | decimal |
//! | `vsc_mtime` | modification time (1); absent = `Last-Modified` |
//! | `vsc_ctime` | change time (1); absent = `Last-Modified` |
//! | `vsc_times_of` | which content and metadata the times belong to, see [`crate::content::binding`] |
//! | `vsc_atime` | access time (1), only when a program has set it; absent = the modification time |
//! | `vsc_kind` | `fifo` or `socket` |
//! | `vsc_xattr` | user extended attributes (2) |
//! | `hdi_isfolder` | `true`: directory marker (the field's convention) |
//! | `is_symlink` | `true`: symbolic link, the content is its target (blobfuse2's convention) |
//! | `vsc_moved_from` | on a directory that is being moved here: ETag of the marker at the old name |
//! | `vsc_claim` | likewise: a random number, by which who claims the name knows his marker from another's |
//!
//! 1. Seconds since 1970, `.`, nanoseconds with nine digits.
//! 2. Base64 of repeated (name length, 1 byte; name; value length, 2 bytes big-endian; value).
//!
//! Every other key belongs to somebody else and is kept as it is. A value of ours that does not parse is left
//! alone as well, and the default is shown.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use blob_client::{Metadata, Properties};

use crate::content::binding::{self, CLAIM, CTIME, Digest, MAX_METADATA, MTIME, TIMES_OF};
use crate::content::merge;
use crate::errno::{Result, fail_because};

/// Directory marker.
pub(crate) const IS_FOLDER: &str = "hdi_isfolder";
/// Symbolic link.
pub(crate) const IS_SYMLINK: &str = "is_symlink";
/// Note of a directory's move that is under way.
pub(crate) const MOVED_FROM: &str = "vsc_moved_from";
const MODE: &str = "vsc_mode";
const UID: &str = "vsc_uid";
const GID: &str = "vsc_gid";
const ATIME: &str = "vsc_atime";
const KIND: &str = "vsc_kind";
const XATTR: &str = "vsc_xattr";

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
    Symlink,
    Fifo,
    Socket,
}

/// Owner and permissions of what carries none (mount options).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defaults {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) file_mode: u32,
    pub(crate) dir_mode: u32,
}

impl Defaults {
    /// Permission bits of a kind.
    pub(crate) fn mode(&self, kind: Kind) -> u32 {
        match kind {
            Kind::Directory => self.dir_mode,
            // Nobody looks at a link's own bits; every file system shows these.
            Kind::Symlink => 0o777,
            Kind::File | Kind::Fifo | Kind::Socket => self.file_mode,
        }
    }
}

/// Attributes that a blob's metadata carries; `None` = the default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attrs {
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) mtime: Option<SystemTime>,
    pub(crate) atime: Option<SystemTime>,
    /// What is to be stored as change time, or was; `None` in a node, which has one of its own.
    pub(crate) ctime: Option<SystemTime>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Keys of others, and ours that do not parse.
    pub(crate) foreign: Metadata,
}

/// What an entry of a map costs beside its bytes: its place in the map, and two allocations.
const ENTRY_BYTES: usize = 80;

impl Attrs {
    /// Memory that they take beside the structure itself, about.
    pub(crate) fn heap(&self) -> usize {
        let foreign = self.foreign.iter().map(|(key, value)| key.len() + value.len());
        let xattrs = self.xattrs.iter().map(|(name, value)| name.len() + value.len());
        foreign.chain(xattrs).map(|bytes| bytes + ENTRY_BYTES).sum()
    }

    /// Drops set-user-id, and set-group-id where it means execution; true if there was one.
    pub(crate) fn kill_privileges(&mut self, kind: Kind, defaults: &Defaults) -> bool {
        let mode = self.mode.unwrap_or(defaults.mode(kind));
        let mut kept = mode & !libc::S_ISUID;
        if mode & libc::S_IXGRP != 0 {
            kept &= !libc::S_ISGID;
        }
        if kind == Kind::Directory || kept == mode {
            return false;
        }
        self.mode = Some(kept);
        true
    }
}

/// True when this metadata makes its blob a directory marker.
pub(crate) fn is_folder(metadata: &Metadata) -> bool {
    metadata
        .get(IS_FOLDER)
        .is_some_and(|v| v.eq_ignore_ascii_case("true"))
}

/// What a blob is.
pub(super) fn kind_of(properties: &Properties) -> Kind {
    if properties.is_directory {
        Kind::Directory
    } else {
        decode(&properties.metadata).0
    }
}

/// What a blob is, and its attributes.
pub(crate) fn decode(metadata: &Metadata) -> (Kind, Attrs) {
    let truth = |key: &str| metadata.get(key).is_some_and(|v| v.eq_ignore_ascii_case("true"));
    let mut kind = if truth(IS_FOLDER) {
        Kind::Directory
    } else if truth(IS_SYMLINK) {
        Kind::Symlink
    } else {
        Kind::File
    };
    let mut attrs = Attrs::default();
    for (key, value) in metadata {
        let understood = match key.as_str() {
            // Written again according to the kind.
            IS_FOLDER => kind == Kind::Directory,
            IS_SYMLINK => kind == Kind::Symlink,
            MODE => {
                attrs.mode = u32::from_str_radix(value, 8).ok().filter(|m| *m <= 0o7777);
                attrs.mode.is_some()
            }
            UID => {
                attrs.uid = value.parse().ok();
                attrs.uid.is_some()
            }
            GID => {
                attrs.gid = value.parse().ok();
                attrs.gid.is_some()
            }
            MTIME => {
                attrs.mtime = parse_time(value);
                attrs.mtime.is_some()
            }
            CTIME => {
                attrs.ctime = parse_time(value);
                attrs.ctime.is_some()
            }
            // Written again with each version.
            TIMES_OF => true,
            ATIME => {
                attrs.atime = parse_time(value);
                attrs.atime.is_some()
            }
            KIND => match value.as_str() {
                "fifo" if kind == Kind::File => {
                    kind = Kind::Fifo;
                    true
                }
                "socket" if kind == Kind::File => {
                    kind = Kind::Socket;
                    true
                }
                _ => false,
            },
            XATTR => match parse_xattrs(value) {
                Some(xattrs) => {
                    attrs.xattrs = xattrs;
                    true
                }
                None => false,
            },
            // A note about the blob at this place, not an attribute that goes where the blob goes.
            MOVED_FROM | CLAIM => true,
            _ => false,
        };
        if !understood {
            attrs.foreign.insert(key.clone(), value.clone());
        }
    }
    (kind, attrs)
}

/// What a blob is, and its attributes, without times that are another version's.
pub(crate) fn of(properties: &Properties) -> (Kind, Attrs) {
    let (kind, mut attrs) = decode(&properties.metadata);
    let believed = binding::believed(properties);
    attrs.mtime = attrs.mtime.filter(|_| believed.mtime);
    attrs.ctime = attrs.ctime.filter(|_| believed.ctime);
    (kind, attrs)
}

/// Attributes of metadata that two have changed.
pub(crate) fn merged(old: &Metadata, mine: &Metadata, theirs: &Metadata) -> Attrs {
    let attrs = decode(&merge(old, mine, theirs)).1;
    Attrs { ctime: None, ..attrs }
}

/// Makes this metadata that of a claim of its own: a marker of another mount with the same attributes, made
/// at the same moment, is never taken for the one whose answer was lost.
pub(crate) fn claim(metadata: &mut Metadata) {
    let text = format!("{:016x}", rand::random::<u64>());
    metadata.insert(CLAIM.to_owned(), text);
}

/// Whether both are of one claim, or of none.
pub(crate) fn same_claim(a: &Metadata, b: &Metadata) -> bool {
    a.get(CLAIM) == b.get(CLAIM)
}

/// Metadata of a directory without what a move notes in it.
pub(crate) fn without_note(mut metadata: Metadata) -> Metadata {
    metadata.remove(MOVED_FROM);
    metadata.remove(CLAIM);
    metadata
}

/// What the content of a version is, as far as its times go by it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ContentOf {
    pub(crate) size: u64,
    pub(crate) digest: Digest,
}

impl ContentOf {
    /// Nothing.
    pub(crate) const EMPTY: Self = Self {
        size: 0,
        digest: Digest::Unknown,
    };

    /// Of what the service says.
    pub(crate) fn of(properties: &Properties) -> Self {
        Self {
            size: properties.content_length,
            digest: Digest::of_version(properties),
        }
    }

    /// Metadata that is stored with this content now, by the service's clock.
    pub(crate) fn bound(self, mut metadata: Metadata, now: SystemTime) -> Metadata {
        binding::bind(&mut metadata, self.size, self.digest, now);
        metadata
    }
}

/// The metadata to store. `ENOSPC` when it is more than the service takes.
pub(crate) fn encode(attrs: &Attrs, kind: Kind, defaults: &Defaults) -> Result<Metadata> {
    let mut metadata = attrs.foreign.clone();
    let mut put = |key: &str, value: String| metadata.insert(key.to_owned(), value);
    match kind {
        Kind::Directory => put(IS_FOLDER, "true".to_owned()),
        Kind::Symlink => put(IS_SYMLINK, "true".to_owned()),
        Kind::Fifo => put(KIND, "fifo".to_owned()),
        Kind::Socket => put(KIND, "socket".to_owned()),
        Kind::File => None,
    };
    if let Some(mode) = attrs.mode.filter(|m| *m != defaults.mode(kind)) {
        put(MODE, format!("{mode:o}"));
    }
    if let Some(uid) = attrs.uid.filter(|u| *u != defaults.uid) {
        put(UID, uid.to_string());
    }
    if let Some(gid) = attrs.gid.filter(|g| *g != defaults.gid) {
        put(GID, gid.to_string());
    }
    if let Some(mtime) = attrs.mtime {
        put(MTIME, format_time(mtime));
    }
    if let Some(atime) = attrs.atime {
        put(ATIME, format_time(atime));
    }
    if !attrs.xattrs.is_empty() {
        put(XATTR, format_xattrs(&attrs.xattrs)?);
    }
    let size: usize = metadata.iter().map(|(k, v)| k.len() + v.len()).sum();
    if size > MAX_METADATA {
        return fail_because(
            libc::ENOSPC,
            "attributes and others' metadata are more than the 8 KiB a blob has for them",
        );
    }
    // Nobody asks for this one: where there is no room for it, `Last-Modified` has to do.
    let ctime = attrs.ctime.map(format_time);
    if let Some(ctime) = ctime.filter(|ctime| size + CTIME.len() + ctime.len() <= MAX_METADATA) {
        metadata.insert(CTIME.to_owned(), ctime);
    }
    Ok(metadata)
}

/// The metadata to store with content. Times of ours are left out where others' metadata leaves no room for
/// them: no reason to lose the content.
pub(crate) fn encode_fitting(attrs: &Attrs, kind: Kind, defaults: &Defaults) -> Result<Metadata> {
    encode(attrs, kind, defaults).or_else(|_| {
        let without = Attrs {
            mtime: None,
            atime: None,
            ctime: None,
            ..attrs.clone()
        };
        encode(&without, kind, defaults)
    })
}

/// Metadata of a file of which nothing is known but when it was changed.
pub(crate) fn times_only(mtime: SystemTime) -> Metadata {
    Metadata::from([(MTIME.to_owned(), format_time(mtime))])
}

/// Seconds and nanoseconds since 1970; the seconds are rounded down, so that nanoseconds count forward.
pub(crate) fn seconds(time: SystemTime) -> (i64, u32) {
    match time.duration_since(UNIX_EPOCH) {
        Ok(d) => (i64::try_from(d.as_secs()).unwrap_or(i64::MAX), d.subsec_nanos()),
        Err(before) => {
            let d = before.duration();
            let secs = i64::try_from(d.as_secs()).map_or(i64::MIN, |s| -s);
            match d.subsec_nanos() {
                0 => (secs, 0),
                nanos => (secs.saturating_sub(1), 1_000_000_000 - nanos),
            }
        }
    }
}

/// The time of [`seconds`]; `None` where the clock cannot hold it.
pub(crate) fn from_seconds(secs: i64, nanos: u32) -> Option<SystemTime> {
    let whole = Duration::from_secs(secs.unsigned_abs());
    let base = if secs >= 0 {
        UNIX_EPOCH.checked_add(whole)
    } else {
        UNIX_EPOCH.checked_sub(whole)
    };
    base?.checked_add(Duration::from_nanos(u64::from(nanos)))
}

fn format_time(time: SystemTime) -> String {
    let (secs, nanos) = seconds(time);
    format!("{secs}.{nanos:09}")
}

fn parse_time(text: &str) -> Option<SystemTime> {
    let (secs, nanos) = text.split_once('.').unwrap_or((text, "0"));
    let digits = nanos.len();
    if digits == 0 || digits > 9 || !nanos.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos = nanos.parse::<u32>().ok()? * 10u32.pow(9 - u32::try_from(digits).ok()?);
    from_seconds(secs.parse().ok()?, nanos)
}

fn format_xattrs(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<String> {
    let mut bytes = Vec::new();
    for (name, value) in xattrs {
        let (Ok(name_len), Ok(value_len)) = (u8::try_from(name.len()), u16::try_from(value.len())) else {
            return fail_because(
                libc::ENOSPC,
                "an extended attribute has a longer name or value than can be stored",
            );
        };
        bytes.push(name_len);
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(&value_len.to_be_bytes());
        bytes.extend_from_slice(value);
    }
    Ok(BASE64.encode(bytes))
}

fn parse_xattrs(text: &str) -> Option<BTreeMap<Vec<u8>, Vec<u8>>> {
    let bytes = BASE64.decode(text).ok()?;
    let mut rest = bytes.as_slice();
    let mut xattrs = BTreeMap::new();
    while let Some((name_len, tail)) = rest.split_first() {
        let (name, tail) = tail.split_at_checked(usize::from(*name_len))?;
        let (value_len, tail) = tail.split_first_chunk::<2>()?;
        let (value, tail) = tail.split_at_checked(usize::from(u16::from_be_bytes(*value_len)))?;
        xattrs.insert(name.to_vec(), value.to_vec());
        rest = tail;
    }
    Some(xattrs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEFAULTS: Defaults = Defaults {
        uid: 10,
        gid: 20,
        file_mode: 0o644,
        dir_mode: 0o755,
    };

    #[test]
    fn nothing_is_written_for_defaults() {
        let attrs = Attrs {
            mode: Some(0o644),
            uid: Some(10),
            gid: Some(20),
            ..Attrs::default()
        };
        assert_eq!(encode(&attrs, Kind::File, &DEFAULTS).unwrap(), Metadata::new());
        let attrs = Attrs {
            mode: Some(0o755),
            ..Attrs::default()
        };
        let marker = encode(&attrs, Kind::Directory, &DEFAULTS).unwrap();
        assert_eq!(
            marker,
            Metadata::from([(IS_FOLDER.to_owned(), "true".to_owned())])
        );
    }

    #[test]
    fn other_peoples_keys_and_broken_values_survive() {
        let metadata = Metadata::from(
            [
                ("owner", "alice"),
                ("vsc_mode", "rwx"),
                ("vsc_uid", "0"),
                ("is_symlink", "false"),
                ("vsc_mtime", "soon"),
            ]
            .map(|(k, v)| (k.to_owned(), v.to_owned())),
        );
        let (kind, mut attrs) = decode(&metadata);
        assert_eq!(kind, Kind::File);
        assert_eq!((attrs.mode, attrs.uid, attrs.mtime), (None, Some(0), None));
        assert_eq!(encode(&attrs, kind, &DEFAULTS).unwrap(), metadata);
        attrs.mode = Some(0o600);
        assert_eq!(
            encode(&attrs, kind, &DEFAULTS)
                .unwrap()
                .get("vsc_mode")
                .map(String::as_str),
            Some("600")
        );
    }

    #[test]
    fn kinds_survive() {
        for kind in [
            Kind::Directory,
            Kind::File,
            Kind::Symlink,
            Kind::Fifo,
            Kind::Socket,
        ] {
            let metadata = encode(&Attrs::default(), kind, &DEFAULTS).unwrap();
            assert_eq!(decode(&metadata).0, kind);
        }
        assert!(is_folder(&Metadata::from([(
            IS_FOLDER.to_owned(),
            "True".to_owned()
        )])));
    }

    #[test]
    fn too_much_is_enospc() {
        let mut attrs = Attrs::default();
        attrs.xattrs.insert(b"a".to_vec(), vec![0; 7000]);
        assert_eq!(encode(&attrs, Kind::File, &DEFAULTS).unwrap_err().0, libc::ENOSPC);
        attrs.xattrs.insert(b"a".to_vec(), vec![0; 70_000]);
        assert_eq!(encode(&attrs, Kind::File, &DEFAULTS).unwrap_err().0, libc::ENOSPC);
    }

    #[test]
    fn times_before_1970() {
        let t = UNIX_EPOCH - Duration::from_nanos(1);
        assert_eq!(seconds(t), (-1, 999_999_999));
        assert_eq!(from_seconds(-1, 999_999_999), Some(t));
        assert_eq!(parse_time(&format_time(t)), Some(t));
        assert_eq!(parse_time("12.5"), from_seconds(12, 500_000_000));
    }

    fn time() -> impl Strategy<Value = SystemTime> {
        (-5_000_000_000i64..50_000_000_000, 0u32..1_000_000_000)
            .prop_map(|(s, n)| from_seconds(s, n).unwrap())
    }

    prop_compose! {
        fn attrs()(
            mode in prop::option::of(0u32..=0o7777),
            uid in prop::option::of(any::<u32>()),
            gid in prop::option::of(any::<u32>()),
            mtime in prop::option::of(time()),
            atime in prop::option::of(time()),
            ctime in prop::option::of(time()),
            xattrs in prop::collection::btree_map(
                prop::collection::vec(any::<u8>(), 1..20), prop::collection::vec(any::<u8>(), 0..50), 0..5),
            foreign in prop::collection::btree_map("[a-z][a-z0-9_]{0,10}", "[ -~]{0,20}", 0..4),
        ) -> Attrs {
            let foreign = foreign.into_iter().filter(|(k, _)| !k.starts_with("vsc_")).collect();
            Attrs { mode, uid, gid, mtime, atime, ctime, xattrs, foreign }
        }
    }

    proptest! {
        #[test]
        fn what_is_stored_is_what_is_read(attrs in attrs()) {
            for kind in [Kind::Directory, Kind::File, Kind::Symlink, Kind::Fifo, Kind::Socket] {
                let metadata = encode(&attrs, kind, &DEFAULTS).unwrap();
                let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
                prop_assert!(metadata.iter().all(|(k, v)| k.bytes().all(plain) && v.is_ascii()));
                let (read_kind, read) = decode(&metadata);
                prop_assert_eq!(read_kind, kind);
                let mode = |a: &Attrs| a.mode.unwrap_or(DEFAULTS.mode(kind));
                prop_assert_eq!(mode(&read), mode(&attrs));
                prop_assert_eq!(read.uid.unwrap_or(10), attrs.uid.unwrap_or(10));
                prop_assert_eq!(read.gid.unwrap_or(20), attrs.gid.unwrap_or(20));
                prop_assert_eq!(read.mtime, attrs.mtime);
                prop_assert_eq!(read.atime, attrs.atime);
                prop_assert_eq!(read.ctime, attrs.ctime);
                prop_assert_eq!(&read.xattrs, &attrs.xattrs);
                prop_assert_eq!(&read.foreign, &attrs.foreign);
            }
        }

        #[test]
        fn garbage_is_no_panic(text in "\\PC{0,40}") {
            let metadata = [MODE, UID, MTIME, CTIME, ATIME, TIMES_OF, KIND, XATTR]
                .into_iter().map(|k| (k.to_owned(), text.clone())).collect();
            decode(&metadata);
        }
    }
}
