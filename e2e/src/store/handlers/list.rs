//! List Blobs: pages in byte order, names folded at a delimiter.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::call::Call;
use super::paging::{decode_marker, encode_marker, endpoint, max_results};
use crate::store::aids::Fault;
use crate::store::blob_store::BlobStore;
use crate::store::error::ServiceError;
use crate::store::headers::Metadata;
use crate::store::lease::Shown;
use crate::store::reply::Reply;
use crate::store::state::{Blob, Past, Reason, Slot, SlotState};
use crate::store::tags;
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
    let entries = match call.fault {
        Some(Fault::ShortPage { entries }) => max.min(*entries),
        _ => max,
    };
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
    check_include(include, call)?;
    let show = Show {
        metadata: included("metadata"),
        uncommitted: included("uncommittedblobs"),
        snapshots: included("snapshots"),
        versions: included("versions"),
        deleted: included("deleted"),
        tags: included("tags"),
        permissions: included("permissions"),
    };
    let container = call.container(store)?;
    let now = call.instant;
    let (lines, next) = page(
        &container.read(),
        prefix,
        delimiter,
        &start,
        entries,
        |slot: &Arc<Slot>| {
            let mut state = slot.lock();
            state.expire(call.now);
            let entries = entries_of(&state, &show, now);
            (!entries.is_empty()).then_some(entries)
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
            Line::Blob(name, entries) => {
                for entry in entries {
                    write(&mut xml, &name, &entry, &show, call);
                }
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

/// What a listing is asked to show.
struct Show {
    metadata: bool,
    uncommitted: bool,
    snapshots: bool,
    versions: bool,
    deleted: bool,
    tags: bool,
    permissions: bool,
}

/// One `<Blob>` of a name.
struct Entry {
    /// None: staged blocks and nothing committed.
    blob: Option<Arc<Blob>>,
    /// None: the current one.
    past: Option<Past>,
    lease: Shown,
}

/// The words of `include` (REST: "List Blobs"). A flat account has no permissions to show.
fn check_include(include: &str, call: &Call<'_>) -> Result<(), ServiceError> {
    for word in include.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match word.to_ascii_lowercase().as_str() {
            "metadata"
            | "uncommittedblobs"
            | "snapshots"
            | "versions"
            | "deleted"
            | "tags"
            | "copy"
            | "immutabilitypolicy"
            | "legalhold"
            | "deletedwithversions" => {}
            "permissions" if call.settings.hierarchical => {}
            _ => return Err(ServiceError::invalid_query("include", include)),
        }
    }
    Ok(())
}

fn entries_of(state: &SlotState, show: &Show, now: Instant) -> Vec<Entry> {
    let lease = state.lease.shown(now);
    let wanted = |past: &&Past| match past.reason {
        Reason::Snapshot => show.snapshots,
        Reason::Version => show.versions,
        Reason::Deleted(_) | Reason::DeletedSnapshot(_) => show.deleted,
    };
    let past = state.history.iter().filter(wanted);
    let mut entries: Vec<Entry> = past
        .map(|past| Entry {
            blob: Some(past.blob.clone()),
            past: Some(past.clone()),
            lease,
        })
        .collect();
    match &state.blob {
        Some(blob) => entries.push(Entry {
            blob: Some(blob.clone()),
            past: None,
            lease,
        }),
        None if show.uncommitted && !state.uncommitted.is_empty() => {
            entries.push(Entry {
                blob: None,
                past: None,
                lease,
            });
        }
        None => {}
    }
    entries
}

fn write(xml: &mut Xml, name: &str, entry: &Entry, show: &Show, call: &Call<'_>) {
    xml.open("Blob");
    xml.name("Name", name);
    match &entry.past {
        Some(past) if past.reason == Reason::Snapshot => xml.text("Snapshot", &past.id),
        Some(past) if past.reason == Reason::Version => xml.text("VersionId", &past.id),
        Some(past) => {
            if matches!(past.reason, Reason::DeletedSnapshot(_)) {
                xml.text("Snapshot", &past.id);
            }
            xml.text("Deleted", "true");
        }
        None => {
            if show.versions
                && call.settings.versioning
                && let Some(blob) = &entry.blob
            {
                xml.text("VersionId", &blob.version.id());
                xml.text("IsCurrentVersion", "true");
            }
        }
    }
    xml.open("Properties");
    properties(xml, entry.blob.as_deref(), &entry.lease, call.now);
    if show.permissions {
        xml.text("Owner", "$superuser");
        xml.text("Group", "$superuser");
        xml.text("Permissions", "rw-r-----");
        xml.text("Acl", "user::rw-,group::r--,other::---");
    }
    xml.close("Properties");
    if let Some(blob) = &entry.blob {
        if show.metadata {
            metadata(xml, &blob.metadata);
        }
        if show.tags && !blob.attributes.tags.is_empty() {
            tags::write(xml, &blob.attributes.tags);
        }
    }
    xml.text("OrMetadata", "");
    xml.close("Blob");
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

fn properties(xml: &mut Xml, blob: Option<&Blob>, lease: &Shown, now: SystemTime) {
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
    let tier = blob.attributes.tier_at(now);
    xml.text("AccessTier", tier.unwrap_or("Hot"));
    if tier.is_none() {
        xml.text("AccessTierInferred", "true");
    }
    if let Some(status) = blob.attributes.archive_status(now) {
        xml.text("ArchiveStatus", &status);
    }
    if let Some(scope) = &blob.attributes.encryption.scope {
        xml.text("EncryptionScope", scope);
    }
    if !blob.attributes.tags.is_empty() {
        xml.text("TagCount", &blob.attributes.tags.len().to_string());
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
