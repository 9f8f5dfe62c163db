//! What becomes of each header that the service documents.

use std::sync::Arc;

use http::Method;

use super::*;
use crate::client::tests::container;
use crate::transport::fake::{Fake, Sent, VERSION, answer, written};
use crate::types::{BlockId, BlockRef, Condition, PutOptions};

/// What becomes of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Read, and sent back under this name by an edit (Put Blob, Put Block List).
    Kept(&'static str),
    /// Read, and sent back by an edit as well as by a copy, which the service makes without it.
    KeptByCopies(&'static str),
    /// The service keeps it in a copy by itself; an edit makes another content, for which it is not true.
    OfTheContent,
    /// A request of ours sets it anew each time.
    Ours,
    /// Never sent, and a blob that has it is refused or stays as it is.
    Refused,
    /// Tells of the blob or the answer; nothing that an owner stores.
    Told,
}
use Fate::*;

/// REST: response headers of Get Blob Properties and Get Blob.
const READ: &[(&str, &str, Fate)] = &[
    ("last-modified", "", Told),
    ("x-ms-creation-time", "Sat, 21 Nov 2026 10:00:00 GMT", Told),
    ("x-ms-meta-k", "v", Ours),
    ("x-ms-tag-count", "1", KeptByCopies("x-ms-tags")),
    ("x-ms-or-policy-id", "p", Told),
    ("x-ms-or-p_r", "complete", Told),
    ("x-ms-blob-type", "BlockBlob", Told),
    ("x-ms-copy-completion-time", "Sat, 21 Nov 2026 10:00:00 GMT", Told),
    ("x-ms-copy-status-description", "d", Told),
    ("x-ms-copy-id", "i", Told),
    ("x-ms-copy-progress", "1/1", Told),
    ("x-ms-copy-source", "http://s", Told),
    ("x-ms-copy-status", "success", Told),
    ("x-ms-incremental-copy", "true", Told),
    ("x-ms-copy-destination-snapshot", "t", Told),
    ("x-ms-lease-duration", "infinite", Told),
    ("x-ms-lease-state", "leased", Told),
    ("x-ms-lease-status", "locked", Told),
    ("content-length", "3", Told),
    ("content-range", "", Told),
    ("content-type", "text/html", Kept("x-ms-blob-content-type")),
    ("etag", "", Told),
    ("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg==", OfTheContent),
    ("x-ms-blob-content-md5", "1B2M2Y8AsgTpgAmY7PhCfg==", OfTheContent),
    ("x-ms-content-crc64", "AAAAAAAAAAA=", Told),
    ("content-encoding", "gzip", Kept("x-ms-blob-content-encoding")),
    ("content-language", "de", Kept("x-ms-blob-content-language")),
    (
        "content-disposition",
        "attachment",
        Kept("x-ms-blob-content-disposition"),
    ),
    ("cache-control", "max-age=60", Kept("x-ms-blob-cache-control")),
    ("x-ms-blob-sequence-number", "1", Told),
    ("x-ms-request-id", "r", Told),
    ("x-ms-version", "2021-12-02", Told),
    ("date", "Sat, 21 Nov 2026 10:00:00 GMT", Told),
    ("accept-ranges", "bytes", Told),
    ("x-ms-blob-committed-block-count", "1", Told),
    ("x-ms-server-encrypted", "true", Told),
    // Of a blob that has it nothing is written at all; the others have it not.
    ("x-ms-encryption-key-sha256", "", Refused),
    ("x-ms-encryption-scope", "scope", Kept("x-ms-encryption-scope")),
    ("x-ms-access-tier", "Cool", KeptByCopies("x-ms-access-tier")),
    ("x-ms-access-tier-inferred", "false", Told),
    ("x-ms-archive-status", "rehydrate-pending-to-hot", Told),
    (
        "x-ms-access-tier-change-time",
        "Sat, 21 Nov 2026 10:00:00 GMT",
        Told,
    ),
    ("x-ms-rehydrate-priority", "High", Told),
    ("x-ms-last-access-time", "Sat, 21 Nov 2026 10:00:00 GMT", Told),
    ("x-ms-blob-sealed", "true", Told),
    // While they hold the service refuses each write; later they say nothing.
    (
        "x-ms-immutability-policy-until-date",
        "Sat, 21 Nov 2026 10:00:00 GMT",
        Refused,
    ),
    ("x-ms-immutability-policy-mode", "unlocked", Refused),
    ("x-ms-legal-hold", "false", Refused),
    ("x-ms-version-id", "2026-11-21T10:00:00.0000000Z", Told),
    ("x-ms-is-current-version", "true", Told),
    ("x-ms-expiry-time", "Sat, 21 Nov 2036 10:00:00 GMT", Told),
    ("x-ms-owner", "$superuser", Told),
    ("x-ms-group", "$superuser", Told),
    ("x-ms-permissions", "rwxr-xr-x", Told),
    ("x-ms-acl", "user::rwx", Told),
    ("x-ms-resource-type", "file", Told),
    ("x-ms-client-request-id", "c", Told),
    ("vary", "Origin", Told),
];

/// REST: request headers of Put Blob (block blobs), Put Block List and Copy Blob. Each is said by us, out of
/// what was read, or never.
const WRITTEN: &[(&str, Fate)] = &[
    ("authorization", Ours),
    ("date", Told),
    ("x-ms-date", Ours),
    ("x-ms-version", Ours),
    ("content-length", Ours),
    ("content-type", Told),
    ("content-encoding", Told),
    ("content-language", Told),
    ("cache-control", Told),
    ("content-md5", Told),
    ("x-ms-content-crc64", Told),
    ("x-ms-structured-body", Told),
    ("x-ms-structured-content-length", Told),
    ("x-ms-blob-type", Ours),
    ("x-ms-blob-content-type", Kept("")),
    ("x-ms-blob-content-encoding", Kept("")),
    ("x-ms-blob-content-language", Kept("")),
    ("x-ms-blob-content-disposition", Kept("")),
    ("x-ms-blob-cache-control", Kept("")),
    ("x-ms-blob-content-md5", OfTheContent),
    ("x-ms-meta-k", Ours),
    ("x-ms-lease-id", Ours),
    ("x-ms-tags", KeptByCopies("")),
    ("x-ms-access-tier", KeptByCopies("")),
    ("x-ms-rehydrate-priority", Told),
    ("x-ms-encryption-scope", Kept("")),
    ("x-ms-encryption-key", Refused),
    ("x-ms-encryption-key-sha256", Refused),
    ("x-ms-encryption-algorithm", Refused),
    ("x-ms-encryption-context", Told),
    ("x-ms-immutability-policy-until-date", Refused),
    ("x-ms-immutability-policy-mode", Refused),
    ("x-ms-legal-hold", Refused),
    ("x-ms-expiry-option", Told),
    ("x-ms-expiry-time", Told),
    ("x-ms-seal-blob", Told),
    ("x-ms-requires-sync", Told),
    ("x-ms-copy-source", Ours),
    ("x-ms-source-if-match", Ours),
    ("x-ms-source-lease-id", Told),
    ("if-match", Ours),
    ("if-none-match", Ours),
    ("if-modified-since", Told),
    ("if-unmodified-since", Told),
    ("x-ms-if-tags", Told),
    ("origin", Told),
    ("x-ms-client-request-id", Ours),
    ("user-agent", Ours),
];

const TAGS: &[u8] = b"<?xml version=\"1.0\"?><Tags><TagSet><Tag><Key>a b</Key><Value>1&amp;2</Value></Tag>\
    </TagSet></Tags>";

/// A blob with everything an owner can store, read and written again: by an edit of each kind, and by a copy.
async fn round() -> [Sent; 3] {
    let mut stored: Vec<(&'static str, &str)> = READ
        .iter()
        .filter(|(_, value, _)| !value.is_empty())
        .map(|(name, value, _)| (*name, *value))
        .collect();
    stored.extend(VERSION);
    let fake = Fake::default();
    fake.will(answer(200, &stored, b""));
    let c = container(&fake);
    let properties = c.head("b", &Condition::none()).await.unwrap();
    let options = PutOptions {
        metadata: properties.metadata.clone(),
        stored: Some(properties.stored.clone()),
        condition: Condition::matches(&properties.etag),
        ..PutOptions::default()
    };
    let tags = || answer(200, &[], TAGS);
    fake.will(tags()).will(written());
    c.put("b", Default::default(), &options).await.unwrap();
    fake.will(tags()).will(written());
    let block = BlockRef::Latest(BlockId(vec![1]));
    c.commit("b", &[block], &options).await.unwrap();
    // The service copies into the container's scope, which is this one.
    let scope = [VERSION[0], VERSION[1], ("x-ms-default-encryption-scope", "scope")];
    fake.will(answer(200, &scope, b"")).will(tags()).will(written());
    let (etag, kept, any) = (&properties.etag, &properties.stored, &options.condition);
    c.copy("b", Some(etag), Some(kept), "t", Some(&properties.metadata), any)
        .await
        .unwrap();
    assert!(fake.nothing_left());
    let sent: Vec<Sent> = fake
        .sent()
        .into_iter()
        .filter(|s| s.method == Method::PUT)
        .collect();
    sent.try_into().unwrap()
}

#[tokio::test]
async fn each_header_of_the_service_has_its_fate() {
    let requests = round().await;
    let copy = &requests[2];
    let expected = |name: &str, value: &str| match name {
        "x-ms-tags" => "a%20b=1%262".to_owned(),
        _ => value.to_owned(),
    };
    for (name, value, fate) in READ {
        for (at, request) in requests.iter().enumerate() {
            match fate {
                Kept(back) if at < 2 => assert_eq!(request.header(back), expected(back, value), "{name}"),
                // The service copies them.
                Kept(back) => assert_eq!(request.header(back), "", "{name}"),
                KeptByCopies(back) => assert_eq!(request.header(back), expected(back, value), "{name}"),
                Ours | OfTheContent | Refused | Told => {}
            }
        }
    }
    for (name, fate) in WRITTEN {
        for request in &requests {
            if matches!(fate, Refused | Told | OfTheContent) {
                assert_eq!(request.header(name), "", "{name}");
            }
        }
    }
    // And nothing is sent that the table does not know.
    for request in &requests {
        for name in request.headers.keys() {
            let known = WRITTEN.iter().any(|(known, _)| known == name);
            assert!(known, "{name} is sent and not in the table");
        }
    }
    assert_eq!(copy.header("x-ms-meta-k"), "v");
}

/// The page of the documentation has a row for each header that an owner can store.
#[test]
fn the_documentation_says_the_same() {
    let page = include_str!("../../../../docs/semantics.md");
    let row = |name: &str| {
        page.lines()
            .find(|l| l.starts_with('|') && l.contains(&format!("`{name}`")))
    };
    for (name, _, fate) in READ {
        let words = match fate {
            Kept(_) | KeptByCopies(_) => "kept",
            OfTheContent => "of the new content",
            Refused => "refused",
            Ours | Told => continue,
        };
        let row = row(name).unwrap_or_else(|| panic!("docs/semantics.md has no row for {name}"));
        assert!(row.contains(words), "{row}: {words}");
    }
}

#[test]
fn what_nobody_said_is_not_said() {
    let inferred = [
        ("x-ms-access-tier", "Cool"),
        ("x-ms-access-tier-inferred", "true"),
    ];
    let smart = [("x-ms-access-tier", "Smart")];
    let archived = [("x-ms-access-tier", "Archive")];
    for headers in [
        &[("content-type", "application/octet-stream")][..],
        &inferred,
        &smart,
        &archived,
        &[],
    ] {
        let headers: HeaderMap = headers
            .iter()
            .map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v)))
            .collect();
        assert_eq!(
            StoredHeaders::of_answer(&headers),
            StoredHeaders::default(),
            "{headers:?}"
        );
    }
    let unsaid = StoredHeaders::default();
    assert_eq!(unsaid.content_type(), "application/octet-stream");
    assert!(unsaid.is_untyped() && unsaid.tier().is_none() && unsaid.encryption_scope().is_none());
}

#[test]
fn bytes_that_are_not_ascii_stay_as_they_are() {
    let mut headers = HeaderMap::new();
    headers.insert(
        "content-disposition",
        HeaderValue::from_bytes(b"a=\"\xdc\"").unwrap(),
    );
    let stored = StoredHeaders::of_answer(&headers);
    let sent = stored.content_headers();
    assert!(sent.iter().any(|(name, value)| {
        name == "x-ms-blob-content-disposition" && value.as_bytes() == b"a=\"\xdc\""
    }));
}

#[test]
fn new_files_are_typed_by_their_extension() {
    for (name, typed) in [
        ("site/a.html", "text/html"),
        ("a.CSS", "text/css"),
        ("a.js", "text/javascript"),
        ("a.tar.gz", "application/gzip"),
        ("b.json", "application/json"),
        ("b.png", "image/png"),
        ("noext", DEFAULT_CONTENT_TYPE),
        ("a.b/noext", DEFAULT_CONTENT_TYPE),
        ("x.tmp123", DEFAULT_CONTENT_TYPE),
        (".html", DEFAULT_CONTENT_TYPE),
    ] {
        assert_eq!(ContentTypes::ByExtension.of(name).content_type(), typed, "{name}");
    }
    let fixed = ContentTypes::Fixed(StoredHeaders::of_type("text/plain").unwrap());
    assert_eq!(fixed.of("a.html").content_type(), "text/plain");
    assert!(ContentTypes::Unsaid.of("a.html").is_untyped());
    assert!(StoredHeaders::of_type("a\nb").is_err());
}

#[test]
fn a_listing_says_the_same_as_the_blob() {
    let of_listing = StoredHeaders::of_listing(|element| {
        Some(match element {
            "Content-Type" => "text/html",
            "Content-Encoding" => "gzip",
            "Content-Language" => "de",
            "Content-Disposition" => "attachment",
            "Cache-Control" => "max-age=60",
            "Content-MD5" => "1B2M2Y8AsgTpgAmY7PhCfg==",
            "AccessTier" => "Cool",
            "EncryptionScope" => "scope",
            "TagCount" => "1",
            _ => return None,
        })
    });
    let headers: HeaderMap = READ
        .iter()
        .filter(|(_, value, _)| !value.is_empty())
        .map(|(k, v, _)| (HeaderName::from_static(k), HeaderValue::from_static(v)))
        .collect();
    assert_eq!(of_listing, StoredHeaders::of_answer(&headers));
    let shared = of_listing.clone();
    assert!(Arc::ptr_eq(
        &shared.fields.unwrap(),
        of_listing.fields.as_ref().unwrap()
    ));
}
