//! The operations, one function each.

mod append;
mod attributes;
mod batch;
mod blob;
mod block;
mod call;
pub(super) mod container;
pub(super) mod copy;
mod history;
mod lease;
mod list;
mod paging;
mod protection;
mod service;
mod source;
mod tags;

pub(super) use self::call::Call;

use super::blob_store::BlobStore;
use super::error::ServiceError;
use super::operation::Operation;
use super::reply::Reply;

/// Executes an operation.
pub(super) fn dispatch(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    use Operation::*;
    match call.operation {
        ListContainers => service::list_containers(store, call),
        GetServiceProperties => service::properties(),
        GetAccountInformation => service::account_information(call),
        CreateContainer => container::create_call(store, call),
        GetContainerProperties => container::properties(store, call),
        SetContainerMetadata => container::set_metadata(store, call),
        GetContainerAcl => container::get_acl(store, call),
        SetContainerAcl => container::set_acl(store, call),
        DeleteContainer => container::delete(store, call),
        LeaseContainer => container::lease(store, call),
        ListBlobs => list::list(store, call),
        PutBlob => blob::put(store, call),
        PutBlobFromUrl => copy::put_from_url(store, call),
        PutBlock => block::put(store, call),
        PutBlockFromUrl => block::put_from_url(store, call),
        PutBlockList => block::put_list(store, call),
        GetBlockList => block::get_list(store, call),
        GetBlob | GetBlobProperties => blob::get(store, call),
        GetBlobMetadata => blob::get_metadata(store, call),
        SetBlobMetadata => blob::set_metadata(store, call),
        SetBlobProperties => blob::set_properties(store, call),
        SetBlobTier => blob::set_tier(store, call),
        SnapshotBlob => history::snapshot(store, call),
        UndeleteBlob => history::undelete(store, call),
        GetBlobTags => tags::get(store, call),
        SetBlobTags => tags::set(store, call),
        SetImmutabilityPolicy => protection::set_policy(store, call),
        DeleteImmutabilityPolicy => protection::delete_policy(store, call),
        SetLegalHold => protection::set_legal_hold(store, call),
        DeleteBlob => blob::delete(store, call),
        CopyBlob => copy::copy(store, call),
        AbortCopyBlob => copy::abort(store, call),
        LeaseBlob => blob::lease(store, call),
        BlobBatch => batch::batch(store, call),
        AppendBlock => append::append_block(store, call),
        PutPage => append::put_page(store, call),
        Unsupported => Err(ServiceError::not_implemented()
            .detail("Method", call.method.as_str())
            .detail("Comp", call.target.query.get("comp").unwrap_or_default())),
    }
}
