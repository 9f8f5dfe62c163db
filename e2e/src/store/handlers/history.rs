//! What is kept of a blob beside its current version: snapshots, versions, what was deleted.

use super::call::{Access, Call};
use crate::store::blob_store::BlobStore;
use crate::store::error::ServiceError;
use crate::store::headers;
use crate::store::reply::Reply;
use crate::store::state::{Past, Reason};

/// Snapshot Blob: metadata that is given belongs to the snapshot.
pub(super) fn snapshot(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let metadata = headers::metadata(call.headers)?;
    let (id, version) = call.change(store, Access::Describe, |_, state, blob| {
        let id = store.clock.next().id();
        let mut kept = (*blob).clone();
        if !metadata.is_empty() {
            kept.metadata = metadata.into();
        }
        state.history.push(Past {
            id: id.clone(),
            reason: Reason::Snapshot,
            blob: kept.into(),
        });
        Ok((id, blob.version))
    })?;
    Ok(Reply::new(201).version(version).header("x-ms-snapshot", id))
}

/// Delete Blob with `snapshot` or `versionid`.
pub(super) fn delete(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let id = call.past_id().unwrap_or_default();
    call.container(store)?.with_existing(call.blob()?, |state| {
        let state = state.ok_or_else(ServiceError::blob_not_found)?;
        let before = state.history.len();
        state.history.retain(|past| past.id != id);
        if state.history.len() == before {
            return Err(ServiceError::blob_not_found());
        }
        Ok(())
    })?;
    Ok(Reply::new(202))
}

/// Undelete Blob: what was deleted last is the blob again, unless there is one; deleted snapshots come back,
/// too.
pub(super) fn undelete(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let container = call.container(store)?;
    let name = call.blob()?;
    container.with_existing(name, |state| {
        let state = state.ok_or_else(ServiceError::blob_not_found)?;
        state.expire(call.now);
        if state.blob.is_none() {
            let deleted = |past: &Past| matches!(past.reason, Reason::Deleted(_));
            let last = state
                .history
                .iter()
                .rposition(deleted)
                .ok_or_else(ServiceError::blob_not_found)?;
            let restored = state.history.remove(last);
            store.commit(&container, name, state, (*restored.blob).clone())?;
        }
        for past in &mut state.history {
            if let Reason::DeletedSnapshot(_) = past.reason {
                past.reason = Reason::Snapshot;
            }
        }
        Ok(())
    })?;
    Ok(Reply::new(200))
}
