//! Copies inside the store: Copy Blob, Copy Blob From URL, and Put Blob From URL.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use super::attributes::attributes;
use super::call::{Access, Call};
use super::source::Source;
use crate::store::aids::Fault;
use crate::store::blob_store::{BlobStore, PendingCopy};
use crate::store::condition::Conditions;
use crate::store::content::BlockRun;
use crate::store::error::ServiceError;
use crate::store::headers::{self, ContentHeaders};
use crate::store::reply::Reply;
use crate::store::state::{Blob, CopyInfo, CopyStatus};

/// Makes the target out of the source; with `pending` it is made when the copy ends.
fn place(
    store: &BlobStore,
    call: &Call<'_>,
    source: &Source,
    stored: ContentHeaders,
    pending: bool,
) -> Result<(Reply, String), ServiceError> {
    let given = headers::metadata(call.headers)?;
    let metadata = if given.is_empty() {
        source.blob.metadata.clone()
    } else {
        Arc::new(given)
    };
    let attributes = attributes(call)?;
    let conditions = Conditions::of(call.headers)?;
    let container = call.container(store)?;
    let name = call.blob()?;
    let id = uuid::Uuid::new_v4().to_string();
    let version = container.with_slot(name, |state| {
        call.check_create(&container, &conditions, state)?;
        if state
            .blob
            .as_ref()
            .is_some_and(|blob| blob.kind != source.blob.kind)
        {
            return Err(ServiceError::invalid_blob_type());
        }
        let version = store.clock.next();
        let copy = CopyInfo {
            id: id.clone(),
            source: source.url.clone(),
            status: CopyStatus::Success,
            total: source.blob.content.len(),
            completed: version.http_date(),
        };
        let blob = Blob {
            version,
            created: version,
            kind: source.blob.kind,
            content: source.blob.content.clone(),
            headers: stored,
            metadata,
            copy: Some(Arc::new(copy.clone())),
            attributes,
        };
        state.uncommitted = BTreeMap::new();
        if pending {
            let empty = Blob {
                content: BlockRun::default(),
                copy: Some(Arc::new(CopyInfo {
                    status: CopyStatus::Pending,
                    completed: String::new(),
                    ..copy
                })),
                ..blob.clone()
            };
            store.replace(&container, name, state, empty)?;
            let pending = PendingCopy {
                container: container.clone(),
                name: name.to_owned(),
                blob,
            };
            store
                .copies
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(pending);
        } else {
            store.replace(&container, name, state, blob)?;
        }
        Ok(version)
    })?;
    Ok((Reply::new(202).version(version), id))
}

/// Copy Blob and, with `x-ms-requires-sync: true`, Copy Blob From URL. Both are complete when answered,
/// unless a fault rule leaves the first one pending.
pub(super) fn copy(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let synchronous = headers::flag(call.headers, "x-ms-requires-sync");
    let source = Source::find(store, call, !synchronous)?;
    let pending = !synchronous && matches!(call.fault, Some(Fault::PendingCopy));
    let (reply, id) = place(store, call, &source, source.blob.headers.clone(), pending)?;
    let status = if pending {
        CopyStatus::Pending
    } else {
        CopyStatus::Success
    };
    Ok(reply
        .header("x-ms-copy-id", id)
        .header("x-ms-copy-status", status.name()))
}

/// Ends all pending copies; how many there were. The target gets a new version: what the caller was told is
/// the version of the empty blob at the beginning (REST: "Copy Blob", the header ETag).
pub(in crate::store) fn end(store: &BlobStore, success: bool) -> usize {
    let pending = std::mem::take(&mut *store.copies.lock().unwrap_or_else(PoisonError::into_inner));
    let mut ended = 0;
    for PendingCopy {
        container,
        name,
        mut blob,
    } in pending
    {
        container.with_existing(&name, |state| {
            let Some(state) = state else { return };
            let id = |blob: &Blob| blob.copy.as_ref().map(|copy| copy.id.clone());
            let Some(there) = state
                .blob
                .clone()
                .filter(|there| there.is_copy_pending() && id(there) == id(&blob))
            else {
                return;
            };
            if !success {
                blob = (*there).clone();
            }
            blob.version = store.clock.next();
            let status = if success {
                CopyStatus::Success
            } else {
                CopyStatus::Failed
            };
            finish(&mut blob, status);
            if let Err(error) = store.commit(&container, &name, state, blob) {
                tracing::error!(code = %error.code, name, "a copy could not be ended");
            } else {
                ended += 1;
            }
        });
    }
    ended
}

/// Notes the end of a copy.
fn finish(blob: &mut Blob, status: CopyStatus) {
    if let Some(copy) = &blob.copy {
        let mut copy = (**copy).clone();
        copy.status = status;
        copy.completed = blob.version.http_date();
        blob.copy = Some(Arc::new(copy));
    }
}

/// Put Blob From URL: content headers of the source unless the request has its own or says not to.
pub(super) fn put_from_url(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let source = Source::fetch(store, call)?;
    let mut stored = ContentHeaders::of(call.headers)?;
    if !headers::text(call.headers, "x-ms-copy-source-blob-properties")
        .is_some_and(|v| v.eq_ignore_ascii_case("false"))
    {
        let from = source.blob.headers.clone();
        stored.content_type = stored.content_type.or(from.content_type);
        stored.encoding = stored.encoding.or(from.encoding);
        stored.language = stored.language.or(from.language);
        stored.disposition = stored.disposition.or(from.disposition);
        stored.cache_control = stored.cache_control.or(from.cache_control);
    }
    stored.md5 = stored.md5.or(source.blob.headers.md5.clone());
    let (mut reply, _) = place(store, call, &source, stored, false)?;
    reply.status = http::StatusCode::CREATED;
    Ok(reply.written(&Default::default()))
}

/// Abort Copy Blob: the target stays, empty, with its metadata.
pub(super) fn abort(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let id = call.target.query.get("copyid").unwrap_or_default();
    let name = call.blob()?;
    call.change(store, Access::Describe, |container, state, blob| {
        if !blob.is_copy_pending() || blob.copy.as_ref().is_none_or(|copy| copy.id != id) {
            return Err(ServiceError::no_pending_copy());
        }
        let mut next = (*blob).clone();
        next.version = store.clock.next();
        finish(&mut next, CopyStatus::Aborted);
        store.commit(container, name, state, next)
    })?;
    Ok(Reply::new(204))
}
