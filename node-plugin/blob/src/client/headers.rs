//! Reading the headers of answers.

use std::ops::Range;
use std::time::SystemTime;

use http::HeaderMap;

use crate::error::{Error, Result};
use crate::protection::Protection;
use crate::response::Response;
use crate::stored::StoredHeaders;
use crate::types::{BlobType, ETag, Metadata, Properties, Written};
use crate::xml;

/// A header as text; metadata may hold bytes that are no UTF-8.
pub(super) fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers
        .get(name)
        .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
}

pub(super) fn date(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(&text(headers, "date")?).ok()
}

fn required(headers: &HeaderMap, name: &'static str) -> Result<String> {
    text(headers, name).ok_or_else(|| Error::Malformed {
        message: format!("the answer has no {name} header"),
    })
}

fn last_modified(headers: &HeaderMap) -> Result<SystemTime> {
    let value = required(headers, "last-modified")?;
    httpdate::parse_http_date(&value).map_err(|_| Error::Malformed {
        message: format!("Last-Modified {value:?} is no date"),
    })
}

/// Whether the service has said this, and not a proxy or gateway: all its answers have an id.
pub(super) fn is_of_the_service(headers: &HeaderMap) -> bool {
    headers.contains_key("x-ms-request-id") || headers.contains_key("x-ms-error-code")
}

/// ETag and Last-Modified of an answer.
pub(super) fn written(headers: &HeaderMap) -> Result<Written> {
    Ok(Written {
        etag: ETag(required(headers, "etag")?),
        last_modified: last_modified(headers)?,
    })
}

pub(super) fn metadata(headers: &HeaderMap) -> Metadata {
    headers
        .iter()
        .filter_map(|(name, value)| {
            let name = name.as_str().strip_prefix("x-ms-meta-")?;
            Some((
                name.to_owned(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            ))
        })
        .collect()
}

/// Properties of a blob whose whole length is known.
pub(super) fn properties(headers: &HeaderMap, content_length: u64) -> Result<Properties> {
    let version = written(headers)?;
    let metadata = metadata(headers);
    Ok(Properties {
        etag: version.etag,
        last_modified: version.last_modified,
        content_length,
        blob_type: text(headers, "x-ms-blob-type").map_or(BlobType::Block, |t| xml::blob_type(&t)),
        is_directory: text(headers, "x-ms-resource-type")
            .is_some_and(|t| t.eq_ignore_ascii_case("directory")),
        stored: StoredHeaders::of_answer(headers),
        // A ranged read says so of the whole blob.
        content_md5: text(headers, "x-ms-blob-content-md5")
            .or_else(|| text(headers, "content-md5"))
            .filter(|t| !t.is_empty()),
        created: text(headers, "x-ms-creation-time").and_then(|t| httpdate::parse_http_date(&t).ok()),
        copied_from: None,
        protection: Protection::of_answer(headers),
        metadata,
    })
}

/// Length of the whole blob, from Get Blob's headers.
pub(super) fn whole_length(headers: &HeaderMap, arrived: u64) -> u64 {
    content_range(headers).map_or(arrived, |(_, _, total)| total)
}

/// `Content-Range: bytes first-last/total` as (first, end, total).
fn content_range(headers: &HeaderMap) -> Option<(u64, u64, u64)> {
    let value = text(headers, "content-range")?;
    let (span, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = span.split_once('-')?;
    let last: u64 = last.parse().ok()?;
    Some((first.parse().ok()?, last.checked_add(1)?, total.parse().ok()?))
}

/// Whether the bytes that arrived are the bytes asked for: a proxy's or device's mistake must not become file
/// content.
pub(super) fn check_range(response: &Response, range: Option<&Range<u64>>) -> Result<(), String> {
    let (Some(range), Some(dest)) = (range, &response.dest) else {
        return Ok(());
    };
    let arrived = dest.len() as u64;
    if let Some((first, end, total)) = content_range(&response.headers) {
        let expected = range.start..range.end.min(total);
        if (first..end) != expected || Some(arrived) != end.checked_sub(first) {
            return Err(format!(
                "asked for bytes {}..{}, got {arrived} bytes marked {first}..{end} of {total}",
                range.start, range.end
            ));
        }
        return Ok(());
    }
    // Without Content-Range it is the whole blob.
    let length: Option<u64> = text(&response.headers, "content-length").and_then(|t| t.parse().ok());
    if range.start != 0 || length.is_some_and(|l| l != arrived) {
        return Err(format!(
            "asked for bytes {}..{}, got {arrived} bytes without Content-Range",
            range.start, range.end
        ));
    }
    Ok(())
}
