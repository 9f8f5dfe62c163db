//! Names on the wire: percent-encoding of blob names and query values, syntax of container and metadata
//! names.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::error::{Error, Result};
use crate::types::Metadata;

/// Everything but the unreserved characters of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// As [`RESERVED`], but `/` separates path segments and stays.
const PATH: &AsciiSet = &RESERVED.remove(b'/');

/// Longest blob name the service takes, in characters (REST: "Naming and referencing containers, blobs, and
/// metadata").
const BLOB_NAME_MAX: usize = 1024;

/// A blob name as it stands in a path. Empty, `.` and `..` segments are part of the name, so a segment of
/// dots is written `%2E`: no proxy and no HTTP library may take it for a relative path.
pub(crate) fn encode_blob(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + name.len() / 4);
    for (i, segment) in name.split('/').enumerate() {
        if i > 0 {
            out.push('/');
        }
        if segment == "." || segment == ".." {
            for _ in 0..segment.len() {
                out.push_str("%2E");
            }
        } else {
            out.extend(utf8_percent_encode(segment, PATH));
        }
    }
    out
}

/// A query value (or key) as it goes on the wire.
pub(crate) fn encode_query(value: &str) -> String {
    utf8_percent_encode(value, RESERVED).to_string()
}

/// Refuses blob names that cannot be sent at all; what the service dislikes beyond that it says itself.
pub(crate) fn check_blob(name: &str) -> Result<()> {
    let wrong = |message: &str| {
        Err(Error::Argument {
            field: "blob name",
            message: message.to_owned(),
        })
    };
    if name.is_empty() {
        return wrong("is empty; a blob needs a name of 1 to 1,024 characters");
    }
    // The service counts UTF-16 code units.
    if name.encode_utf16().count() > BLOB_NAME_MAX {
        return wrong("is longer than 1,024 characters; use a shorter path");
    }
    Ok(())
}

/// Container names: 3 to 63 of `a-z0-9-`, no hyphen first, last or doubled; or one of the service's own.
pub(crate) fn check_container(name: &str) -> Result<()> {
    if matches!(name, "$root" | "$web" | "$logs" | "$blobchangefeed") {
        return Ok(());
    }
    let long_enough = (3..=63).contains(&name.len());
    let plain = name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let hyphens = name.starts_with('-') || name.ends_with('-') || name.contains("--");
    if long_enough && plain && !hyphens {
        return Ok(());
    }
    Err(Error::Argument {
        field: "containerName",
        message: format!(
            "{name:?} is no container name: use 3 to 63 lower-case letters, digits and single hyphens, \
             beginning and ending with a letter or digit"
        ),
    })
}

/// Metadata names are C# identifiers; values must survive as HTTP header values unchanged.
pub(crate) fn check_metadata(metadata: &Metadata) -> Result<()> {
    for (name, value) in metadata {
        let mut bytes = name.bytes();
        let first = bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
        if !first || !bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
            return Err(Error::Argument {
                field: "metadata name",
                message: format!(
                    "{name:?}: use lower-case letters, digits and underscores, not beginning with a digit"
                ),
            });
        }
        let printable = value.bytes().all(|b| (0x20..0x7f).contains(&b));
        if !printable || value.trim() != value {
            return Err(not_ascii(name, value));
        }
    }
    Ok(())
}

/// A value that no header carries unchanged.
pub(crate) fn not_ascii(name: &str, value: &str) -> Error {
    Error::Argument {
        field: "metadata value",
        message: format!(
            "the value {value:?} of {name:?} must be printable ASCII without spaces at its ends; encode it \
            first"
        ),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reserved_characters_are_encoded_and_slashes_stay() {
        assert_eq!(encode_blob("a b+c%d?e#f\\g"), "a%20b%2Bc%25d%3Fe%23f%5Cg");
        assert_eq!(encode_blob("a//b/"), "a//b/");
        assert_eq!(encode_blob("ä/\u{1}"), "%C3%A4/%01");
    }

    #[test]
    fn dot_segments_survive() {
        assert_eq!(encode_blob("a/../b/./c/...d/.."), "a/%2E%2E/b/%2E/c/...d/%2E%2E");
    }

    #[test]
    fn container_names() {
        for good in ["abc", "a-b", "$root", "0aa", &"x".repeat(63)] {
            assert!(check_container(good).is_ok(), "{good}");
        }
        for bad in [
            "ab",
            "A-b",
            "-ab",
            "ab-",
            "a--b",
            "a_b",
            "",
            "a/b",
            &"x".repeat(64),
        ] {
            assert!(check_container(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn metadata_must_be_header_safe() {
        let one = |k: &str, v: &str| check_metadata(&Metadata::from([(k.into(), v.into())]));
        assert!(one("hdi_isfolder", "true").is_ok());
        assert!(one("_x1", "a b").is_ok());
        for (k, v) in [
            ("1a", "x"),
            ("a-b", "x"),
            ("", "x"),
            ("A", "x"),
            ("a", "ä"),
            ("a", " x"),
            ("a", "x\n"),
        ] {
            assert!(one(k, v).is_err(), "{k:?} {v:?}");
        }
    }

    proptest! {
        #[test]
        fn encoding_round_trips_and_is_a_path(name in "\\PC{1,40}|[\\x00-\\x7f]{1,40}|(\\.{1,3}/){1,5}") {
            let encoded = encode_blob(&name);
            let uri: http::Uri = format!("http://h/c/{encoded}").parse().unwrap();
            prop_assert_eq!(uri.path(), format!("/c/{encoded}"));
            prop_assert!(uri.query().is_none());
            let decoded = percent_encoding::percent_decode_str(&encoded).decode_utf8().unwrap();
            prop_assert_eq!(decoded.as_ref(), name.as_str());
            // No library that knows relative paths changes it into another name's path.
            prop_assert!(encoded.split('/').all(|s| s != "." && s != ".."));
        }
    }
}
