//! Immutability policies and legal holds of single blobs; the version stays.

use super::attributes::protection;
use super::call::{Access, Call};
use crate::store::attributes::Protection;
use crate::store::blob_store::BlobStore;
use crate::store::error::ServiceError;
use crate::store::headers;
use crate::store::reply::Reply;

/// Set Blob Immutability Policy: one that is locked can be extended and nothing else.
pub(super) fn set_policy(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let name = "x-ms-immutability-policy-until-date";
    let wanted = protection(call.headers)?;
    let until = wanted.until.ok_or_else(|| ServiceError::missing_header(name))?;
    change(store, call, |there| {
        if there.locked && there.until.is_some_and(|before| until < before) {
            return Err(ServiceError::blob_immutable_by_policy());
        }
        there.until = Some(until);
        there.locked |= wanted.locked;
        Ok(())
    })
}

/// Delete Blob Immutability Policy: not one that is locked.
pub(super) fn delete_policy(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let now = call.now;
    change(store, call, |there| {
        if there.locked && there.until.is_some_and(|until| now < until) {
            return Err(ServiceError::blob_immutable_by_policy());
        }
        there.until = None;
        there.locked = false;
        Ok(())
    })
}

/// Set Blob Legal Hold.
pub(super) fn set_legal_hold(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let held = headers::flag(call.headers, "x-ms-legal-hold");
    change(store, call, |there| {
        there.legal_hold = held;
        Ok(())
    })
    .map(|reply| reply.header("x-ms-legal-hold", held.to_string()))
}

fn change(
    store: &BlobStore,
    call: &Call<'_>,
    apply: impl FnOnce(&mut Protection) -> Result<(), ServiceError>,
) -> Result<Reply, ServiceError> {
    let name = call.blob()?;
    call.change(store, Access::Describe, |container, state, blob| {
        let mut next = (*blob).clone();
        apply(&mut next.attributes.protection)?;
        store.commit(container, name, state, next)
    })?;
    Ok(Reply::new(200))
}
