//! Request headers of the service, parsed: metadata, content headers, ranges, checksums, lease ids.

use std::collections::BTreeMap;
use std::ops::Range;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use super::content::Content;
use super::encoding::{base64, unbase64};
use super::error::ServiceError;

/// A header as text, trimmed; `None` when absent, empty or not UTF-8.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get(name)
        .and_then(|value| std::str::from_utf8(value.as_bytes()).ok())
        .map(str::trim)
        .filter(|text| !text.is_empty())
}

/// A header that holds a number.
pub(super) fn number(headers: &HeaderMap, name: &'static str) -> Result<Option<u64>, ServiceError> {
    match text(headers, name) {
        None => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| ServiceError::invalid_header(name, text)),
    }
}

/// `true` or `false`.
pub(super) fn flag(headers: &HeaderMap, name: &str) -> bool {
    text(headers, name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

/// `x-ms-lease-id`.
pub(super) fn lease_id(headers: &HeaderMap) -> Result<Option<&str>, ServiceError> {
    guid(headers, "x-ms-lease-id")
}

/// A header that holds a GUID.
pub(super) fn guid<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a str>, ServiceError> {
    match text(headers, name) {
        None => Ok(None),
        Some(text) => match uuid::Uuid::try_parse(text) {
            Ok(_) => Ok(Some(text)),
            Err(_) => Err(ServiceError::invalid_header(name, text)),
        },
    }
}

/// User metadata, names in lower case.
pub(super) type Metadata = BTreeMap<String, String>;

/// `x-ms-meta-*`. Names follow the rules of C# identifiers; all of it together is at most 8 KiB.
pub(super) fn metadata(headers: &HeaderMap) -> Result<Metadata, ServiceError> {
    let mut out = Metadata::new();
    let mut size = 0;
    for (name, value) in headers {
        let Some(name) = name.as_str().strip_prefix("x-ms-meta-") else {
            continue;
        };
        if name.is_empty() {
            return Err(ServiceError::empty_metadata_key());
        }
        let first_ok = !name.starts_with(|c: char| c.is_ascii_digit());
        if !first_ok || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(ServiceError::invalid_metadata().detail("MetadataName", name));
        }
        let value = std::str::from_utf8(value.as_bytes()).map_err(|_| ServiceError::invalid_metadata())?;
        size += name.len() + value.len();
        // Repeated headers are joined, as HTTP does.
        out.entry(name.to_owned())
            .and_modify(|old| {
                old.push(',');
                old.push_str(value);
            })
            .or_insert_with(|| value.to_owned());
    }
    if size > 8192 {
        return Err(ServiceError::metadata_too_large());
    }
    Ok(out)
}

/// Adds `x-ms-meta-*` to an answer.
pub(super) fn put_metadata(out: &mut HeaderMap, metadata: &Metadata) {
    for (name, value) in metadata {
        if let (Ok(name), Ok(value)) = (
            HeaderName::try_from(format!("x-ms-meta-{name}")),
            HeaderValue::from_bytes(value.as_bytes()),
        ) {
            out.insert(name, value);
        }
    }
}

/// Content headers stored with a blob.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ContentHeaders {
    pub(super) content_type: Option<String>,
    pub(super) encoding: Option<String>,
    pub(super) language: Option<String>,
    pub(super) disposition: Option<String>,
    pub(super) cache_control: Option<String>,
    /// Base64.
    pub(super) md5: Option<String>,
}

impl ContentHeaders {
    /// `x-ms-blob-content-*` and `x-ms-blob-cache-control`.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, ServiceError> {
        let get = |name: &str| text(headers, name).map(str::to_owned);
        let md5 = get("x-ms-blob-content-md5");
        if let Some(md5) = &md5
            && unbase64(md5).is_none_or(|bytes| bytes.len() != 16)
        {
            return Err(ServiceError::invalid_md5());
        }
        Ok(Self {
            content_type: get("x-ms-blob-content-type"),
            encoding: get("x-ms-blob-content-encoding"),
            language: get("x-ms-blob-content-language"),
            disposition: get("x-ms-blob-content-disposition"),
            cache_control: get("x-ms-blob-cache-control"),
            md5,
        })
    }
    /// The same, with the plain HTTP headers where the `x-ms-` ones are absent (Put Blob).
    pub(super) fn of_put(headers: &HeaderMap) -> Result<Self, ServiceError> {
        let mut out = Self::of(headers)?;
        let fill = |slot: &mut Option<String>, name: &str| {
            if slot.is_none() {
                *slot = text(headers, name).map(str::to_owned);
            }
        };
        fill(&mut out.content_type, "content-type");
        fill(&mut out.encoding, "content-encoding");
        fill(&mut out.language, "content-language");
        fill(&mut out.cache_control, "cache-control");
        Ok(out)
    }
}

/// A range asked for: first byte and, when given, last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AskedRange {
    first: u64,
    last: Option<u64>,
}

impl AskedRange {
    /// `x-ms-range` before `Range`. What is not `bytes=a-` or `bytes=a-b` is ignored, as the service ignores
    /// what it does not support.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        text(headers, "x-ms-range")
            .or_else(|| text(headers, "range"))
            .and_then(Self::parse)
    }
    /// Parses `bytes=a-b`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.trim().strip_prefix("bytes=")?.split_once('-')?;
        let first = first.trim().parse().ok()?;
        let last = match last.trim() {
            "" => None,
            last => Some(last.parse().ok()?),
        };
        (last.is_none_or(|last| last >= first)).then_some(Self { first, last })
    }
    /// The bytes of a resource of this length; `InvalidRange` when it begins past the end.
    pub(super) fn within(self, len: u64) -> Result<Range<u64>, ServiceError> {
        if self.first >= len {
            return Err(ServiceError::invalid_range());
        }
        let end = self.last.map_or(len, |last| last.saturating_add(1).min(len));
        Ok(self.first..end)
    }
}

/// Checksums of a body that the request asked to be checked; to be echoed in the answer.
#[derive(Debug, Default)]
pub(super) struct Checked {
    pub(super) md5: Option<String>,
    pub(super) crc64: Option<String>,
}

/// Checks `Content-MD5` and `x-ms-content-crc64` against a body.
pub(super) fn check_body(
    headers: &HeaderMap,
    md5_header: &'static str,
    crc_header: &'static str,
    body: &Content,
) -> Result<Checked, ServiceError> {
    let mut out = Checked::default();
    if let Some(given) = text(headers, md5_header) {
        let bytes = unbase64(given)
            .filter(|bytes| bytes.len() == 16)
            .ok_or_else(ServiceError::invalid_md5)?;
        let real = body.md5().map_err(|_| ServiceError::internal_error())?;
        if bytes != real {
            return Err(ServiceError::md5_mismatch()
                .detail("UserSpecifiedMd5", given)
                .detail("ServerCalculatedMd5", base64(&real)));
        }
        out.md5 = Some(given.to_owned());
    }
    if let Some(given) = text(headers, crc_header) {
        let real = base64(&body.crc64().map_err(|_| ServiceError::internal_error())?);
        if given != real {
            return Err(ServiceError::crc64_mismatch()
                .detail("UserSpecifiedCrc64", given)
                .detail("ServerCalculatedCrc64", real));
        }
        out.crc64 = Some(real);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let parse = AskedRange::parse;
        assert_eq!(parse("bytes=0-0").unwrap().within(10).unwrap(), 0..1);
        assert_eq!(parse("bytes=3-").unwrap().within(10).unwrap(), 3..10);
        assert_eq!(parse("bytes=3-100").unwrap().within(10).unwrap(), 3..10);
        assert_eq!(
            parse("bytes=9-18446744073709551615").unwrap().within(10).unwrap(),
            9..10
        );
        assert!(parse("bytes=10-").unwrap().within(10).is_err());
        assert!(parse("bytes=0-").unwrap().within(0).is_err());
        for wrong in ["bytes=-5", "bytes=5-3", "items=0-1", "bytes=a-b", ""] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn metadata_rules() {
        let parse = |name: &str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(
                HeaderName::try_from(name).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
            metadata(&headers).map_err(|e| e.code.into_owned())
        };
        assert_eq!(
            parse("x-ms-meta-Name", "v").unwrap(),
            Metadata::from([("name".into(), "v".into())])
        );
        assert_eq!(parse("x-ms-meta-", "v"), Err("EmptyMetadataKey".into()));
        assert_eq!(parse("x-ms-meta-a-b", "v"), Err("InvalidMetadata".into()));
        assert_eq!(parse("x-ms-meta-1a", "v"), Err("InvalidMetadata".into()));
        assert_eq!(
            parse("x-ms-meta-a", &"v".repeat(9000)),
            Err("MetadataTooLarge".into())
        );
        assert!(parse("x-ms-other", "v").unwrap().is_empty());
    }
}
