//! The operations, one function each.

mod append;
mod blob;
mod block;
pub(super) mod container;
mod copy;
mod list;
mod service;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, Method};

use super::BlobStore;
use super::address::Target;
use super::auth::Grant;
use super::content::Content;
use super::error::ServiceError;
use super::lease::{Outcome, Resource};
use super::operation::Operation;
use super::reply::Reply;
use super::state::{Blob, Container, SlotState};
use super::{condition, folder_failed, headers};

/// An authorized request.
pub(super) struct Call<'a> {
    pub(super) operation: Operation,
    pub(super) method: &'a Method,
    pub(super) target: &'a Target,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: Content,
    pub(super) grant: &'a Grant,
    pub(super) peer: Option<IpAddr>,
}

impl Call<'_> {
    /// The container's name; operations on containers and blobs have one.
    fn container_name(&self) -> Result<&str, ServiceError> {
        self.target
            .container
            .as_deref()
            .ok_or_else(ServiceError::invalid_uri)
    }
    /// The container, which must exist.
    fn container(&self, store: &BlobStore) -> Result<Arc<Container>, ServiceError> {
        store.container(self.container_name()?)
    }
    /// The blob's name.
    fn blob(&self) -> Result<&str, ServiceError> {
        self.target.blob.as_deref().ok_or_else(ServiceError::invalid_uri)
    }
    /// Checks `x-ms-lease-id` against the lease of the blob.
    fn check_lease(&self, state: &mut SlotState, write: bool) -> Result<(), ServiceError> {
        let id = headers::lease_id(self.headers)?;
        state.lease.check(id, write, Resource::Blob, Instant::now())
    }
    /// Checks lease and conditions of a read, and gives the committed version.
    fn read(&self, store: &BlobStore) -> Result<(Arc<Blob>, super::lease::Shown), ServiceError> {
        let conditions = condition::Conditions::of(self.headers)?;
        self.container(store)?.with_existing(self.blob()?, |state| {
            let state = state.ok_or_else(ServiceError::blob_not_found)?;
            let blob = state.blob.clone().ok_or_else(ServiceError::blob_not_found)?;
            conditions.check(Some(blob.version), condition::Kind::Read)?;
            self.check_lease(state, false)?;
            Ok((blob, state.lease.shown(Instant::now())))
        })
    }
    /// Runs `change` on an existing blob after its lease and conditions have been checked.
    fn change<R>(
        &self,
        store: &BlobStore,
        change: impl FnOnce(&Container, &mut SlotState, Arc<Blob>) -> Result<R, ServiceError>,
    ) -> Result<R, ServiceError> {
        let conditions = condition::Conditions::of(self.headers)?;
        let container = self.container(store)?;
        container.with_existing(self.blob()?, |state| {
            let state = state.ok_or_else(ServiceError::blob_not_found)?;
            let blob = state.blob.clone().ok_or_else(ServiceError::blob_not_found)?;
            conditions.check(Some(blob.version), condition::Kind::Write)?;
            self.check_lease(state, true)?;
            change(&container, state, blob)
        })
    }
    /// Checks conditions, lease and the right to overwrite before a blob is created or replaced.
    fn check_create(
        &self,
        conditions: &condition::Conditions,
        state: &mut SlotState,
    ) -> Result<(), ServiceError> {
        conditions.check(state.version(), condition::Kind::Create)?;
        self.check_lease(state, true)?;
        if state.blob.is_some() && !self.grant.may_overwrite() {
            return Err(ServiceError::unauthorized_overwrite());
        }
        Ok(())
    }
}

impl BlobStore {
    /// Makes a version of a blob the committed one.
    pub(super) fn commit(
        &self,
        container: &Container,
        name: &str,
        state: &mut SlotState,
        blob: Blob,
    ) -> Result<(), ServiceError> {
        container.while_there(|| match &self.folder {
            Some(folder) => folder
                .save_blob(&container.name, name, &blob)
                .map_err(folder_failed),
            None => Ok(()),
        })?;
        state.blob = Some(Arc::new(blob));
        Ok(())
    }
}

/// Answer of Lease Blob and Lease Container.
fn lease_reply(outcome: Outcome) -> Reply {
    Reply::new(outcome.status)
        .maybe("x-ms-lease-id", outcome.id)
        .maybe("x-ms-lease-time", outcome.time.map(|seconds| seconds.to_string()))
}

/// Headers of a lease in properties.
fn with_lease(reply: Reply, lease: &super::lease::Shown) -> Reply {
    reply
        .header("x-ms-lease-state", lease.state)
        .header("x-ms-lease-status", lease.status)
        .maybe("x-ms-lease-duration", lease.duration)
}

/// Executes an operation.
pub(super) fn dispatch(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    use Operation::*;
    match call.operation {
        ListContainers => service::list_containers(store, call),
        GetServiceProperties => service::properties(),
        GetAccountInformation => service::account_information(),
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
        DeleteBlob => blob::delete(store, call),
        CopyBlob => copy::copy(store, call),
        AbortCopyBlob => copy::abort(store, call),
        LeaseBlob => blob::lease(store, call),
        AppendBlock => append::append_block(store, call),
        PutPage => append::put_page(store, call),
        Unsupported => Err(ServiceError::not_implemented()
            .detail("Method", call.method.as_str())
            .detail("Comp", call.target.query.get("comp").unwrap_or_default())),
    }
}
