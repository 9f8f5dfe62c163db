//! Get Blob Tags and Set Blob Tags: neither tier nor policy forbids them, and the version stays.

use super::call::{Access, Call};
use crate::store::blob_store::{BlobStore, folder_failed};
use crate::store::error::ServiceError;
use crate::store::reply::Reply;
use crate::store::tags;
use crate::store::xml::Xml;

/// Get Blob Tags.
pub(super) fn get(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let (blob, _) = call.read(store, false)?;
    let mut xml = Xml::new();
    tags::write(&mut xml, &blob.attributes.tags);
    Ok(Reply::xml(200, xml.finish()))
}

/// Set Blob Tags: all at once.
pub(super) fn set(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let tags = tags::parse_body(&call.body.joined().map_err(folder_failed)?)?;
    let name = call.blob()?;
    call.change(store, Access::Describe, |container, state, blob| {
        let mut next = (*blob).clone();
        next.attributes.tags = tags;
        store.commit(container, name, state, next)
    })?;
    Ok(Reply::new(204))
}
