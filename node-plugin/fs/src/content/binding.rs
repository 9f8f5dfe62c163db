//! What a blob's times belong to.
//!
//! Times of ours are kept in the blob's metadata, and other tools carry metadata along when they write
//! another content. So what is written with times says which content they are of, and which other metadata
//! they were stored with:
//!
//! `vsc_times_of` = `SIZE.MOMENT.DIGEST.OTHERS`
//!
//! the size of the content; when it was sent, in seconds since 1970 by the service's clock; its
//! `Content-MD5`, `-` for a content of blocks, which has none, or nothing where it is not known; a hash of
//! all other metadata. Where the digest proves the content the moment says nothing. Where it cannot, a
//! version that the service dates much later is somebody else's.
//!
//! Times without it are believed, as those of versions of this driver that did not write it.

use std::hash::Hasher;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blob_client::{BlobType, Body, Metadata, Piece, Properties};
use md5::{Digest as _, Md5};
use siphasher::sip::SipHasher24;

/// Modification time.
pub(crate) const MTIME: &str = "vsc_mtime";
/// Change time.
pub(crate) const CTIME: &str = "vsc_ctime";
/// See the module.
pub(crate) const TIMES_OF: &str = "vsc_times_of";
/// Tells claims of one name from each other (`tree::rename`).
pub(crate) const CLAIM: &str = "vsc_claim";

/// What the service takes as metadata, names and values together, in bytes (REST: "Set Blob Metadata").
pub(crate) const MAX_METADATA: usize = 8 * 1024;

/// So much later than its moment a version of ours may be: requests are repeated for minutes.
const LATEST: Duration = Duration::from_secs(20 * 60);

/// Contents up to this are digested when they are sent.
const MAX_DIGESTED: u64 = 1 << 20;

/// What is known of a content's `Content-MD5`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Digest {
    /// Nothing.
    #[default]
    Unknown,
    /// There is none.
    None,
    /// It.
    Md5([u8; 16]),
}

impl Digest {
    /// As an answer of the service has it.
    pub(crate) fn of(content_md5: Option<&str>) -> Self {
        let Some(text) = content_md5 else {
            return Self::None;
        };
        let bytes = STANDARD.decode(text).ok().and_then(|md5| md5.try_into().ok());
        bytes.map_or(Self::Unknown, Self::Md5)
    }

    /// Of a version.
    pub(crate) fn of_version(now: &Properties) -> Self {
        Self::of_kind(now.blob_type, now.content_md5.as_deref())
    }

    /// Of a blob of this type. Who writes pages leaves the digest of what was there before.
    pub(crate) fn of_kind(kind: BlobType, content_md5: Option<&str>) -> Self {
        match kind {
            BlobType::Page => Self::Unknown,
            _ => Self::of(content_md5),
        }
    }

    /// Of a content that is put in one piece, where it is not so large that somebody would wait for it.
    pub(crate) fn of_whole(body: &Body, size: u64) -> Self {
        if size > MAX_DIGESTED {
            return Self::Unknown;
        }
        Self::Md5(md5_of(body))
    }

    /// As it is said to the service with the content, so that what is stored there is this one: not every
    /// service makes one of each size, and what it makes otherwise is no proof of what was sent.
    pub(crate) fn said(&self) -> Option<String> {
        matches!(self, Self::Md5(_)).then(|| self.to_string())
    }
}

/// The digest of what is sent.
pub(super) fn md5_of(body: &Body) -> [u8; 16] {
    let mut md5 = Md5::new();
    for piece in &body.0 {
        match piece {
            Piece::Bytes(bytes) => md5.update(bytes),
            Piece::Slice(slice) => md5.update(&slice[..]),
        }
    }
    md5.finalize().into()
}

/// The digest of what came back.
pub(super) fn md5_of_bytes(bytes: &[u8]) -> [u8; 16] {
    Md5::digest(bytes).into()
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown => Ok(()),
            Self::None => f.write_str("-"),
            Self::Md5(md5) => f.write_str(&STANDARD.encode(md5)),
        }
    }
}

/// Notes what the times in this metadata belong to: a content that is sent, or left as it is, now. Without
/// times there is nothing to note; where there is no room, nothing is noted.
pub(crate) fn bind(metadata: &mut Metadata, size: u64, digest: Digest, now: SystemTime) {
    metadata.remove(TIMES_OF);
    if !metadata.contains_key(MTIME) && !metadata.contains_key(CTIME) {
        return;
    }
    let moment = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let text = format!("{size}.{moment}.{digest}.{:016x}", others(metadata));
    let taken: usize = metadata.iter().map(|(k, v)| k.len() + v.len()).sum();
    if taken + TIMES_OF.len() + text.len() <= MAX_METADATA {
        metadata.insert(TIMES_OF.to_owned(), text);
    }
}

/// Which of a blob's times are those of the version that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Believed {
    /// The content is the one that they were stored with.
    pub(crate) mtime: bool,
    /// So is all metadata.
    pub(crate) ctime: bool,
}

/// Looks at a version.
pub(crate) fn believed(now: &Properties) -> Believed {
    let Some(text) = now.metadata.get(TIMES_OF) else {
        return Believed {
            mtime: true,
            ctime: false,
        };
    };
    let mtime = is_of(text, now) == Some(true);
    let same = text.rsplit_once('.').is_some_and(|(_, hash)| {
        u64::from_str_radix(hash, 16).is_ok_and(|hash| hash == others(&now.metadata))
    });
    Believed {
        mtime,
        ctime: mtime && same,
    }
}

/// `None` when the text is not one of ours.
fn is_of(text: &str, now: &Properties) -> Option<bool> {
    let mut parts = text.splitn(3, '.');
    let size: u64 = parts.next()?.parse().ok()?;
    let moment: u64 = parts.next()?.parse().ok()?;
    let (digest, _) = parts.next()?.rsplit_once('.')?;
    if size != now.content_length {
        return Some(false);
    }
    let found = Digest::of_version(now);
    match digest {
        "" => {}
        // Of older versions of this driver.
        _ if now.blob_type == BlobType::Page => {}
        "-" if found == Digest::None => {}
        "-" => return Some(false),
        known => return Some(Digest::of(Some(known)) == found && found != Digest::Unknown),
    }
    let latest = UNIX_EPOCH
        .checked_add(Duration::from_secs(moment))?
        .checked_add(LATEST)?;
    Some(now.last_modified <= latest)
}

/// The same metadata, whatever its times belong to, and whoever claims the name with it.
pub(crate) fn same(a: &Metadata, b: &Metadata) -> bool {
    let rest = |metadata: &Metadata| {
        let mut rest = metadata.clone();
        rest.remove(TIMES_OF);
        rest.remove(CLAIM);
        rest
    };
    a == b || rest(a) == rest(b)
}

/// A hash of all metadata but what times belong to. Values that are not ASCII are left out: answers and
/// listings spell them differently.
fn others(metadata: &Metadata) -> u64 {
    let mut hasher = SipHasher24::new();
    for (key, value) in metadata {
        if key == TIMES_OF || !value.is_ascii() {
            continue;
        }
        for text in [key, value] {
            hasher.write(text.as_bytes());
            hasher.write_u8(0);
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use blob_client::{ETag, Protection, StoredHeaders};
    use bytes::Bytes;

    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn blob(content: &'static [u8], whole: bool, metadata: Metadata, later: u64) -> Properties {
        let digest = Digest::of_whole(&Bytes::from_static(content).into(), content.len() as u64);
        Properties {
            etag: ETag("e".into()),
            last_modified: UNIX_EPOCH + NOW + Duration::from_secs(later),
            content_length: content.len() as u64,
            blob_type: BlobType::Block,
            metadata,
            stored: StoredHeaders::default(),
            content_md5: whole.then(|| digest.to_string()),
            created: None,
            copied_from: None,
            is_directory: false,
            protection: Protection::default(),
        }
    }

    fn bound(content: &'static [u8], digest: Digest) -> Metadata {
        let mut metadata = Metadata::from([
            (MTIME.to_owned(), "1.000000000".to_owned()),
            ("owner".to_owned(), "alice".to_owned()),
        ]);
        bind(&mut metadata, content.len() as u64, digest, UNIX_EPOCH + NOW);
        metadata
    }

    fn both(now: &Properties) -> (bool, bool) {
        let believed = believed(now);
        (believed.mtime, believed.ctime)
    }

    #[test]
    fn a_digest_tells_another_content_of_the_same_size() {
        let digest = Digest::of_whole(&Bytes::from_static(b"mine").into(), 4);
        let metadata = bound(b"mine", digest);
        let (hour, years) = (3600, 100_000_000);
        for later in [0, hour, years] {
            assert_eq!(both(&blob(b"mine", true, metadata.clone(), later)), (true, true));
        }
        assert_eq!(both(&blob(b"hers", true, metadata.clone(), 0)), (false, false));
        assert_eq!(both(&blob(b"mine", false, metadata.clone(), 0)), (false, false));
        assert_eq!(both(&blob(b"longer", true, metadata, 0)), (false, false));
    }

    #[test]
    fn without_a_digest_the_time_tells_what_it_can() {
        for (digest, whole) in [
            (Digest::None, false),
            (Digest::Unknown, false),
            (Digest::Unknown, true),
        ] {
            let metadata = bound(b"mine", digest);
            assert_eq!(both(&blob(b"mine", whole, metadata.clone(), 60)), (true, true));
            assert_eq!(
                both(&blob(b"mine", whole, metadata.clone(), 3600)),
                (false, false)
            );
            assert_eq!(both(&blob(b"longer", whole, metadata, 0)), (false, false));
        }
        // Somebody has put a content in one piece over one of blocks.
        assert_eq!(
            both(&blob(b"hers", true, bound(b"mine", Digest::None), 0)),
            (false, false)
        );
    }

    /// Pages are written without a word about the digest.
    #[test]
    fn the_digest_of_a_page_blob_tells_nothing() {
        let digest = Digest::of_whole(&Bytes::from_static(b"mine").into(), 4);
        let page = |digest, later| Properties {
            blob_type: BlobType::Page,
            ..blob(b"mine", true, bound(b"mine", digest), later)
        };
        assert_eq!(Digest::of_version(&page(digest, 0)), Digest::Unknown);
        for digest in [digest, Digest::Unknown] {
            assert_eq!(both(&page(digest, 60)), (true, true));
            assert_eq!(both(&page(digest, 3600)), (false, false));
        }
    }

    #[test]
    fn a_change_of_metadata_elsewhere_moves_the_change_time_only() {
        let mut metadata = bound(b"mine", Digest::Unknown);
        metadata.insert("owner".into(), "bob".into());
        assert_eq!(both(&blob(b"mine", true, metadata, 0)), (true, false));
    }

    #[test]
    fn times_of_older_versions_and_broken_notes() {
        let mut metadata = Metadata::from([(MTIME.to_owned(), "1.000000000".to_owned())]);
        assert_eq!(both(&blob(b"mine", true, metadata.clone(), 0)), (true, false));
        for broken in ["", "4", "4.x.-.0", "4.1.", "....", "4.99999999999999999999.-.0"] {
            metadata.insert(TIMES_OF.into(), broken.into());
            assert_eq!(
                both(&blob(b"mine", true, metadata.clone(), 0)),
                (false, false),
                "{broken}"
            );
        }
    }

    #[test]
    fn nothing_is_noted_without_times_or_room() {
        let mut metadata = Metadata::from([("owner".to_owned(), "alice".to_owned())]);
        bind(&mut metadata, 4, Digest::None, UNIX_EPOCH + NOW);
        assert!(!metadata.contains_key(TIMES_OF));
        metadata.insert(MTIME.into(), "1.0".into());
        metadata.insert("large".into(), "x".repeat(MAX_METADATA - 60));
        bind(&mut metadata, 4, Digest::None, UNIX_EPOCH + NOW);
        assert!(!metadata.contains_key(TIMES_OF));
    }
}
