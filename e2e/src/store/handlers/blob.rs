//! Operations on whole blobs.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderValue, Method};

use super::attributes::{attributes, tier};
use super::call::{Access, Call};
use super::history;
use super::lease::{lease_reply, with_lease};
use crate::store::blob_store::{BlobStore, folder_failed};
use crate::store::condition::{Conditions, Kind};
use crate::store::content::{Block, BlockRun, Content, Piece};
use crate::store::encoding::{base64, unbase64};
use crate::store::error::ServiceError;
use crate::store::headers::{self, AskedRange, Checked, ContentHeaders};
use crate::store::reply::Reply;
use crate::store::state::{Blob, BlobKind, CopyStatus, Reason};

/// Put Blob's limit.
const MAX_PUT: u64 = 5_000 << 20;
/// Bodies without a checksum get their MD5 computed up to this size (see the module of the store).
const MD5_LIMIT: u64 = 256 * 1024;
/// A range whose checksum is asked for may be this long.
const MAX_HASHED_RANGE: u64 = 4 << 20;

/// Put Blob.
pub(super) fn put(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let name = "x-ms-blob-type";
    let kind = match headers::text(call.headers, name) {
        None => return Err(ServiceError::missing_header(name)),
        Some(text) if text.eq_ignore_ascii_case("BlockBlob") => BlobKind::Block,
        Some(text) if text.eq_ignore_ascii_case("AppendBlob") => BlobKind::Append,
        Some(text) if text.eq_ignore_ascii_case("PageBlob") => BlobKind::Page,
        Some(other) => return Err(ServiceError::invalid_header(name, other)),
    };
    if call.body.len() > MAX_PUT {
        return Err(ServiceError::request_body_too_large());
    }
    if kind != BlobKind::Block && call.body.len() > 0 {
        return Err(ServiceError::invalid_header(
            "Content-Length",
            call.body.len().to_string(),
        ));
    }
    let mut stored = ContentHeaders::of_put(call.headers)?;
    let metadata = headers::metadata(call.headers)?;
    let attributes = attributes(call)?;
    let mut checked = headers::check_body(call.headers, "content-md5", "x-ms-content-crc64", &call.body)?;
    if kind == BlobKind::Block {
        check_stored_md5(&mut stored, &mut checked, &call.body)?;
    }
    let content = match kind {
        BlobKind::Page => page_blob_content(call)?,
        _ => store.keep(call.body.clone())?,
    };
    let blocks = if content.len() == 0 {
        Vec::new()
    } else {
        vec![Arc::new(Block {
            id: Vec::new(),
            content,
        })]
    };
    let conditions = Conditions::of(call.headers)?;
    let container = call.container(store)?;
    let blob_name = call.blob()?;
    let version = container.with_slot(blob_name, |state| {
        call.check_create(&container, &conditions, state)?;
        let version = store.clock.next();
        let blob = Blob {
            version,
            created: version,
            kind,
            content: BlockRun::new(blocks),
            headers: stored,
            metadata: Arc::new(metadata),
            copy: None,
            attributes,
        };
        store.replace(&container, blob_name, state, blob)?;
        state.uncommitted = BTreeMap::new();
        Ok::<_, ServiceError>(version)
    })?;
    Ok(Reply::new(201).version(version).written(&checked))
}

/// The MD5 stored with a blob of one body: the one given, checked; or the one computed.
fn check_stored_md5(
    stored: &mut ContentHeaders,
    checked: &mut Checked,
    body: &Content,
) -> Result<(), ServiceError> {
    let failed = folder_failed;
    if let Some(given) = &stored.md5 {
        let real = body.md5().map_err(failed)?;
        if unbase64(given).as_deref() != Some(&real) {
            return Err(ServiceError::md5_mismatch()
                .detail("UserSpecifiedMd5", given)
                .detail("ServerCalculatedMd5", base64(&real)));
        }
    } else if checked.md5.is_some() {
        stored.md5 = checked.md5.clone();
    } else if body.len() <= MD5_LIMIT {
        stored.md5 = Some(base64(&body.md5().map_err(failed)?));
    }
    checked.md5 = stored.md5.clone();
    Ok(())
}

fn page_blob_content(call: &Call<'_>) -> Result<Content, ServiceError> {
    let name = "x-ms-blob-content-length";
    let len = headers::number(call.headers, name)?.ok_or_else(|| ServiceError::missing_header(name))?;
    if len % 512 != 0 || len > 8 << 40 {
        return Err(ServiceError::invalid_header(name, len.to_string()));
    }
    let mut content = Content::default();
    content.push(Piece::Zeros(len));
    Ok(content)
}

/// Headers of Get Blob and Get Blob Properties.
fn properties(blob: &Blob, lease: &crate::store::lease::Shown) -> Reply {
    let stored = &blob.headers;
    let mut reply = Reply::new(200)
        .version(blob.version)
        .header("accept-ranges", "bytes")
        .header(
            "content-type",
            stored
                .content_type
                .as_deref()
                .unwrap_or("application/octet-stream"),
        )
        .maybe("content-encoding", stored.encoding.as_deref())
        .maybe("content-language", stored.language.as_deref())
        .maybe("content-disposition", stored.disposition.as_deref())
        .maybe("cache-control", stored.cache_control.as_deref())
        .header("x-ms-blob-type", blob.kind.name())
        .header("x-ms-creation-time", blob.created.http_date())
        .header("x-ms-server-encrypted", "true");
    reply = with_lease(reply, lease);
    match blob.kind {
        BlobKind::Block => {}
        BlobKind::Append => reply.set(
            "x-ms-blob-committed-block-count",
            blob.content.blocks().len().to_string(),
        ),
        BlobKind::Page => reply.set("x-ms-blob-sequence-number", "0"),
    }
    if let Some(copy) = &blob.copy {
        reply.set("x-ms-copy-id", &copy.id);
        reply.set("x-ms-copy-source", &copy.source);
        reply.set("x-ms-copy-status", copy.status.name());
        if !copy.completed.is_empty() {
            reply.set("x-ms-copy-completion-time", &copy.completed);
        }
        reply.set(
            "x-ms-copy-progress",
            format!("{}/{}", blob.content.len(), copy.total),
        );
        if copy.status == CopyStatus::Failed {
            reply.set(
                "x-ms-copy-status-description",
                "500 InternalServerError \"Copy failed.\"",
            );
        }
    }
    let attributes = &blob.attributes;
    if !attributes.tags.is_empty() {
        reply.set("x-ms-tag-count", attributes.tags.len().to_string());
    }
    reply = reply
        .maybe("x-ms-encryption-scope", attributes.encryption.scope.as_deref())
        .maybe(
            "x-ms-encryption-key-sha256",
            attributes.encryption.key_sha256.as_deref(),
        );
    if let Some(until) = attributes.protection.until {
        reply.set(
            "x-ms-immutability-policy-until-date",
            httpdate::fmt_http_date(until),
        );
        let mode = if attributes.protection.locked {
            "locked"
        } else {
            "unlocked"
        };
        reply.set("x-ms-immutability-policy-mode", mode);
    }
    if attributes.protection.legal_hold {
        reply.set("x-ms-legal-hold", "true");
    }
    headers::put_metadata(&mut reply.headers, &blob.metadata);
    reply
}

/// Get Blob and Get Blob Properties.
pub(super) fn get(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let (blob, lease) = call.read(store, *call.method == Method::GET)?;
    let len = blob.content.len();
    let mut reply = properties(&blob, &lease);
    if call.settings.versioning {
        reply.set("x-ms-version-id", blob.version.id());
        if call.past_id().is_none() {
            reply.set("x-ms-is-current-version", "true");
        }
    }
    if *call.method == Method::HEAD {
        reply
            .headers
            .insert(http::header::CONTENT_LENGTH, HeaderValue::from(len));
        let tier = blob.attributes.tier_at(call.now);
        reply.set("x-ms-access-tier", tier.unwrap_or("Hot"));
        if tier.is_none() {
            reply.set("x-ms-access-tier-inferred", "true");
        }
        reply = reply.maybe("x-ms-archive-status", blob.attributes.archive_status(call.now));
        if let Some(md5) = &blob.headers.md5 {
            reply.set("content-md5", md5);
        }
    } else if let Some(asked) = AskedRange::of(call.headers) {
        let range = asked
            .within(len)
            .map_err(|error| error.detail("BlobLength", len.to_string()))?;
        let content = blob.content.slice(range.clone());
        for (wanted, header) in [
            ("x-ms-range-get-content-md5", "content-md5"),
            ("x-ms-range-get-content-crc64", "x-ms-content-crc64"),
        ] {
            if !headers::flag(call.headers, wanted) {
                continue;
            }
            if content.len() > MAX_HASHED_RANGE {
                return Err(ServiceError::out_of_range_input().detail("HeaderName", wanted));
            }
            let sum = match header {
                "content-md5" => content.md5().map(|sum| base64(&sum)),
                _ => content.crc64().map(|sum| base64(&sum)),
            };
            reply.set(header, sum.map_err(folder_failed)?);
        }
        reply.status = http::StatusCode::PARTIAL_CONTENT;
        reply.set(
            "content-range",
            format!("bytes {}-{}/{len}", range.start, range.end - 1),
        );
        if let Some(md5) = &blob.headers.md5 {
            reply.set("x-ms-blob-content-md5", md5);
        }
        reply.body = content;
    } else {
        reply.body = blob.content.slice(0..len);
        if let Some(md5) = &blob.headers.md5 {
            reply.set("content-md5", md5);
        }
    }
    // A SAS may carry response headers of its own.
    for (field, header) in [
        ("rscc", "cache-control"),
        ("rscd", "content-disposition"),
        ("rsce", "content-encoding"),
        ("rscl", "content-language"),
        ("rsct", "content-type"),
    ] {
        if call.target.query.has("sig")
            && let Some(value) = call.target.query.get(field)
        {
            reply.set(header, value);
        }
    }
    Ok(reply)
}

/// Get Blob Metadata.
pub(super) fn get_metadata(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let (blob, _) = call.read(store, false)?;
    let mut reply = Reply::new(200).version(blob.version);
    headers::put_metadata(&mut reply.headers, &blob.metadata);
    Ok(reply)
}

/// Replaces the blob by a changed copy of itself with a new version; `keep`: the account may want to keep the
/// one before.
fn alter(
    store: &BlobStore,
    call: &Call<'_>,
    keep: bool,
    apply: impl FnOnce(&mut Blob),
) -> Result<Reply, ServiceError> {
    let name = call.blob()?;
    let version = call.change(store, Access::Modify, |container, state, blob| {
        let mut next = (*blob).clone();
        apply(&mut next);
        next.version = store.clock.next();
        let version = next.version;
        store.commit(container, name, state, next)?;
        if keep && call.settings.versioning {
            store.retire(state, Some(blob));
        }
        Ok(version)
    })?;
    Ok(Reply::new(200).version(version))
}

/// Set Blob Metadata.
pub(super) fn set_metadata(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let metadata = headers::metadata(call.headers)?;
    alter(store, call, true, |blob| blob.metadata = Arc::new(metadata))
        .map(|reply| reply.header("x-ms-request-server-encrypted", "true"))
}

/// Set Blob Properties: all content headers at once; those not given are cleared.
pub(super) fn set_properties(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let stored = ContentHeaders::of(call.headers)?;
    alter(store, call, false, |blob| blob.headers = stored)
}

/// Set Blob Tier: the version stays. An archived blob is rehydrated, which takes hours (REST: "Set Blob
/// Tier").
pub(super) fn set_tier(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let tier = tier(call)?.ok_or_else(|| ServiceError::missing_header("x-ms-access-tier"))?;
    let name = call.blob()?;
    let rehydrates = call.change(store, Access::Tier, |container, state, blob| {
        let mut next = (*blob).clone();
        let rehydrates = next.attributes.set_tier(tier, call.now);
        store.commit(container, name, state, next)?;
        Ok(rehydrates)
    })?;
    Ok(Reply::new(if rehydrates { 202 } else { 200 }))
}

/// Delete Blob. Snapshots stand in the way unless the request says what becomes of them (REST: "Delete
/// Blob").
pub(super) fn delete(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let name = call.blob()?;
    if call.past_id().is_some() {
        return history::delete(store, call);
    }
    let snapshots = headers::text(call.headers, "x-ms-delete-snapshots").map(str::to_ascii_lowercase);
    let permanent = call.change(store, Access::Delete, |container, state, blob| {
        let only = match snapshots.as_deref() {
            None if state.has_snapshots() => return Err(ServiceError::snapshots_present()),
            None | Some("include") => false,
            Some("only") => true,
            Some(other) => return Err(ServiceError::invalid_header("x-ms-delete-snapshots", other)),
        };
        let kept = call.settings.soft_delete;
        for past in state
            .history
            .iter_mut()
            .filter(|past| past.reason == Reason::Snapshot)
        {
            past.reason = Reason::DeletedSnapshot(call.now + kept.unwrap_or_default());
        }
        state.expire(call.now);
        if only {
            return Ok(kept.is_none());
        }
        if let Some(folder) = &store.folder {
            folder.remove_blob(&container.name, name).map_err(folder_failed)?;
        }
        state.blob = None;
        store.retire(state, Some(blob));
        state.uncommitted = BTreeMap::new();
        state.lease = Default::default();
        Ok(kept.is_none() && !call.settings.versioning)
    })?;
    Ok(Reply::new(202).header("x-ms-delete-type-permanent", permanent.to_string()))
}

/// Lease Blob: the version stays.
pub(super) fn lease(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let conditions = Conditions::of(call.headers)?;
    call.container(store)?.with_existing(call.blob()?, |state| {
        let state = state.ok_or_else(ServiceError::blob_not_found)?;
        let version = state.version().ok_or_else(ServiceError::blob_not_found)?;
        conditions.check(Some(version), Kind::Write)?;
        let outcome = state.lease.act(call.headers, call.instant)?;
        Ok(lease_reply(outcome).version(version))
    })
}
