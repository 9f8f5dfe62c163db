//! Copies inside the store: Copy Blob, Copy Blob From URL, and Put Blob From URL.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::call::Call;
use super::source::Source;
use super::tier::tier;
use crate::store::blob_store::BlobStore;
use crate::store::condition::Conditions;
use crate::store::error::ServiceError;
use crate::store::headers::{self, ContentHeaders};
use crate::store::reply::Reply;
use crate::store::state::{Blob, CopyInfo};

/// Makes the target out of the source.
fn place(
    store: &BlobStore,
    call: &Call<'_>,
    source: &Source,
    stored: ContentHeaders,
) -> Result<(Reply, String), ServiceError> {
    let given = headers::metadata(call.headers)?;
    let metadata = if given.is_empty() {
        source.blob.metadata.clone()
    } else {
        Arc::new(given)
    };
    let tier = tier(call)?;
    let conditions = Conditions::of(call.headers)?;
    let container = call.container(store)?;
    let name = call.blob()?;
    let id = uuid::Uuid::new_v4().to_string();
    let version = container.with_slot(name, |state| {
        call.check_create(&conditions, state)?;
        if state
            .blob
            .as_ref()
            .is_some_and(|blob| blob.kind != source.blob.kind)
        {
            return Err(ServiceError::invalid_blob_type());
        }
        let version = store.clock.next();
        let blob = Blob {
            version,
            created: version,
            kind: source.blob.kind,
            content: source.blob.content.clone(),
            headers: stored,
            metadata,
            copy: Some(Arc::new(CopyInfo {
                id: id.clone(),
                source: source.url.clone(),
                completed: version.http_date(),
            })),
            tier,
        };
        store.commit(&container, name, state, blob)?;
        state.uncommitted = BTreeMap::new();
        Ok(version)
    })?;
    Ok((Reply::new(202).version(version), id))
}

/// Copy Blob and, with `x-ms-requires-sync: true`, Copy Blob From URL. Both are complete when answered.
pub(super) fn copy(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let source = Source::find(store, call, !headers::flag(call.headers, "x-ms-requires-sync"))?;
    let (reply, id) = place(store, call, &source, source.blob.headers.clone())?;
    Ok(reply
        .header("x-ms-copy-id", id)
        .header("x-ms-copy-status", "success"))
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
    let (mut reply, _) = place(store, call, &source, stored)?;
    reply.status = http::StatusCode::CREATED;
    Ok(reply.written(&Default::default()))
}

/// Abort Copy Blob: there is never a copy under way.
pub(super) fn abort(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    call.change(store, |_, _, _| Err(ServiceError::no_pending_copy()))
}
