//! List Blobs: pages in byte order, names folded at a delimiter.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::call::Call;
use super::paging::{decode_marker, encode_marker, endpoint, max_results};
use crate::store::blob_store::BlobStore;
use crate::store::error::ServiceError;
use crate::store::headers::Metadata;
use crate::store::lease::Shown;
use crate::store::reply::Reply;
use crate::store::state::{Blob, Slot};
use crate::store::xml::Xml;

/// One line of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line<T> {
    /// A blob.
    Blob(String, T),
    /// A common prefix.
    Prefix(String),
}

/// One page out of sorted names: `lookup` gives what is shown of a name, or nothing for names that are not
/// shown. Returns the first name of the next page.
pub(super) fn page<V, T>(
    names: &BTreeMap<String, V>,
    prefix: &str,
    delimiter: &str,
    start: &str,
    max: usize,
    mut lookup: impl FnMut(&V) -> Option<T>,
) -> (Vec<Line<T>>, Option<String>) {
    let mut out = Vec::new();
    let mut from = if start > prefix {
        start.to_owned()
    } else {
        prefix.to_owned()
    };
    'restart: loop {
        for (name, value) in names.range(from.clone()..) {
            let Some(rest) = name.strip_prefix(prefix) else {
                return (out, None);
            };
            let Some(shown) = lookup(value) else { continue };
            if out.len() == max {
                return (out, Some(name.clone()));
            }
            let fold = match delimiter {
                "" => None,
                delimiter => rest.find(delimiter).map(|at| prefix.len() + at + delimiter.len()),
            };
            match fold {
                None => out.push(Line::Blob(name.clone(), shown)),
                Some(end) => {
                    let folded = &name[..end];
                    out.push(Line::Prefix(folded.to_owned()));
                    match after(folded) {
                        // Everything below the prefix is this one line: go on behind it.
                        Some(next) => {
                            from = next;
                            continue 'restart;
                        }
                        None => return (out, None),
                    }
                }
            }
        }
        return (out, None);
    }
}

/// The first string behind all strings that begin with `prefix`, in byte order.
fn after(prefix: &str) -> Option<String> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        let next = match last {
            '\u{d7ff}' => Some('\u{e000}'),
            other => char::from_u32(other as u32 + 1),
        };
        if let Some(next) = next {
            chars.push(next);
            return Some(chars.into_iter().collect());
        }
    }
    None
}

/// List Blobs.
pub(super) fn list(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let query = &call.target.query;
    let prefix = query.get("prefix").unwrap_or_default();
    let delimiter = query.get("delimiter").unwrap_or_default();
    let marker = query.get("marker").unwrap_or_default();
    let max = max_results(query)?;
    let start = match marker {
        "" => String::new(),
        marker => decode_marker(marker)?,
    };
    let include = query.get("include").unwrap_or_default();
    let included = |what: &str| {
        include
            .split(',')
            .any(|item| item.trim().eq_ignore_ascii_case(what))
    };
    let (with_metadata, with_uncommitted) = (included("metadata"), included("uncommittedblobs"));
    let container = call.container(store)?;
    let now = Instant::now();
    let (lines, next) = page(
        &container.read(),
        prefix,
        delimiter,
        &start,
        max,
        |slot: &Arc<Slot>| {
            let state = slot.lock();
            match &state.blob {
                Some(blob) => Some((Some(blob.clone()), state.lease.shown(now))),
                None if with_uncommitted && !state.uncommitted.is_empty() => {
                    Some((None, state.lease.shown(now)))
                }
                None => None,
            }
        },
    );
    let mut xml = Xml::new();
    xml.open_with(
        "EnumerationResults",
        &[
            ("ServiceEndpoint", &endpoint(store, call)),
            ("ContainerName", &container.name),
        ],
    );
    if query.has("prefix") {
        xml.name("Prefix", prefix);
    }
    if !marker.is_empty() {
        xml.text("Marker", marker);
    }
    if query.has("maxresults") {
        xml.text("MaxResults", &max.to_string());
    }
    if !delimiter.is_empty() {
        xml.name("Delimiter", delimiter);
    }
    xml.open("Blobs");
    for line in lines {
        match line {
            Line::Prefix(name) => {
                xml.open("BlobPrefix");
                xml.name("Name", &name);
                xml.close("BlobPrefix");
            }
            Line::Blob(name, (blob, lease)) => {
                xml.open("Blob");
                xml.name("Name", &name);
                xml.open("Properties");
                properties(&mut xml, blob.as_deref(), &lease);
                xml.close("Properties");
                if with_metadata && let Some(blob) = &blob {
                    metadata(&mut xml, &blob.metadata);
                }
                xml.text("OrMetadata", "");
                xml.close("Blob");
            }
        }
    }
    xml.close("Blobs");
    xml.text(
        "NextMarker",
        &next.map(|name| encode_marker(&name)).unwrap_or_default(),
    );
    xml.close("EnumerationResults");
    Ok(Reply::xml(200, xml.finish()))
}

/// `<Metadata>`.
pub(super) fn metadata(xml: &mut Xml, metadata: &Metadata) {
    if metadata.is_empty() {
        xml.text("Metadata", "");
        return;
    }
    xml.open("Metadata");
    for (name, value) in metadata {
        xml.text(name, value);
    }
    xml.close("Metadata");
}

fn properties(xml: &mut Xml, blob: Option<&Blob>, lease: &Shown) {
    let Some(blob) = blob else {
        // Staged blocks and nothing committed.
        xml.text("Content-Length", "0");
        xml.text("BlobType", "BlockBlob");
        return;
    };
    let stored = &blob.headers;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    xml.text("Creation-Time", &blob.created.http_date());
    xml.text("Last-Modified", &blob.version.http_date());
    xml.text("Etag", blob.version.etag().trim_matches('"'));
    xml.text("Content-Length", &blob.content.len().to_string());
    xml.text(
        "Content-Type",
        stored
            .content_type
            .as_deref()
            .unwrap_or("application/octet-stream"),
    );
    xml.text("Content-Encoding", &text(&stored.encoding));
    xml.text("Content-Language", &text(&stored.language));
    xml.text("Content-CRC64", "");
    xml.text("Content-MD5", &text(&stored.md5));
    xml.text("Cache-Control", &text(&stored.cache_control));
    xml.text("Content-Disposition", &text(&stored.disposition));
    xml.text("BlobType", blob.kind.name());
    xml.text("AccessTier", blob.tier.as_deref().unwrap_or("Hot"));
    if blob.tier.is_none() {
        xml.text("AccessTierInferred", "true");
    }
    xml.text("LeaseStatus", lease.status);
    xml.text("LeaseState", lease.state);
    if let Some(duration) = lease.duration {
        xml.text("LeaseDuration", duration);
    }
    xml.text("ServerEncrypted", "true");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All lines of a listing, by the definition: fold, then drop repeats.
    fn model(names: &BTreeMap<String, bool>, prefix: &str, delimiter: &str) -> Vec<Line<()>> {
        let mut out: Vec<Line<()>> = Vec::new();
        for name in names.iter().filter(|(_, shown)| **shown).map(|(name, _)| name) {
            let Some(rest) = name.strip_prefix(prefix) else {
                continue;
            };
            let line = match (delimiter, rest.split_once(delimiter)) {
                ("", _) | (_, None) => Line::Blob(name.clone(), ()),
                (_, Some((first, _))) => Line::Prefix(format!("{prefix}{first}{delimiter}")),
            };
            if out.last() != Some(&line) {
                out.push(line);
            }
        }
        out
    }

    fn name() -> impl Strategy<Value = String> {
        proptest::string::string_regex("[ab/é\u{d7ff}\u{10ffff}]{1,6}").unwrap()
    }

    proptest! {
        #[test]
        fn pages_put_together_are_the_whole_listing(
            names in proptest::collection::btree_map(name(), any::<bool>(), 0..40),
            prefix in "[ab/]{0,2}",
            delimiter in prop_oneof![Just(""), Just("/"), Just("b"), Just("//"), Just("\u{10ffff}")],
            max in 1usize..6,
        ) {
            let mut got = Vec::new();
            let mut start = String::new();
            for _ in 0..100 {
                let shown = |shown: &bool| shown.then_some(());
                let (lines, next) = page(&names, &prefix, delimiter, &start, max, shown);
                prop_assert!(lines.len() <= max);
                got.extend(lines);
                match next {
                    None => break,
                    Some(next) => {
                        start = decode_marker(&encode_marker(&next))
                            .map_err(|error| TestCaseError::fail(error.code.into_owned()))?;
                    }
                }
            }
            prop_assert_eq!(got, model(&names, &prefix, delimiter));
        }
    }

    #[test]
    fn the_string_behind_a_prefix() {
        assert_eq!(after("a/").as_deref(), Some("a0"));
        assert_eq!(after("a\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(after("\u{d7ff}").as_deref(), Some("\u{e000}"));
        assert_eq!(after("\u{10ffff}"), None);
    }
}
