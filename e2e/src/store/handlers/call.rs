//! An authorized request, and what every operation asks of it: container, lease, conditions.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, Method};

use crate::store::address::Target;
use crate::store::auth::Grant;
use crate::store::blob_store::BlobStore;
use crate::store::condition::{Conditions, Kind};
use crate::store::content::Content;
use crate::store::error::ServiceError;
use crate::store::headers;
use crate::store::lease::{Resource, Shown};
use crate::store::operation::Operation;
use crate::store::state::{Blob, Container, SlotState};

/// An authorized request.
pub(in crate::store) struct Call<'a> {
    pub(in crate::store) operation: Operation,
    pub(in crate::store) method: &'a Method,
    pub(in crate::store) target: &'a Target,
    pub(in crate::store) headers: &'a HeaderMap,
    pub(in crate::store) body: Content,
    pub(in crate::store) grant: &'a Grant,
    pub(in crate::store) peer: Option<IpAddr>,
}

impl Call<'_> {
    /// The container's name; operations on containers and blobs have one.
    pub(super) fn container_name(&self) -> Result<&str, ServiceError> {
        self.target
            .container
            .as_deref()
            .ok_or_else(ServiceError::invalid_uri)
    }
    /// The container, which must exist.
    pub(super) fn container(&self, store: &BlobStore) -> Result<Arc<Container>, ServiceError> {
        store.container(self.container_name()?)
    }
    /// The blob's name.
    pub(super) fn blob(&self) -> Result<&str, ServiceError> {
        self.target.blob.as_deref().ok_or_else(ServiceError::invalid_uri)
    }
    /// Checks `x-ms-lease-id` against the lease of the blob.
    pub(super) fn check_lease(&self, state: &mut SlotState, write: bool) -> Result<(), ServiceError> {
        let id = headers::lease_id(self.headers)?;
        state.lease.check(id, write, Resource::Blob, Instant::now())
    }
    /// Checks lease and conditions of a read, and gives the committed version.
    pub(super) fn read(&self, store: &BlobStore) -> Result<(Arc<Blob>, Shown), ServiceError> {
        let conditions = Conditions::of(self.headers)?;
        self.container(store)?.with_existing(self.blob()?, |state| {
            let state = state.ok_or_else(ServiceError::blob_not_found)?;
            let blob = state.blob.clone().ok_or_else(ServiceError::blob_not_found)?;
            conditions.check(Some(blob.version), Kind::Read)?;
            self.check_lease(state, false)?;
            Ok((blob, state.lease.shown(Instant::now())))
        })
    }
    /// Runs `change` on an existing blob after its lease and conditions have been checked.
    pub(super) fn change<R>(
        &self,
        store: &BlobStore,
        change: impl FnOnce(&Container, &mut SlotState, Arc<Blob>) -> Result<R, ServiceError>,
    ) -> Result<R, ServiceError> {
        let conditions = Conditions::of(self.headers)?;
        let container = self.container(store)?;
        container.with_existing(self.blob()?, |state| {
            let state = state.ok_or_else(ServiceError::blob_not_found)?;
            let blob = state.blob.clone().ok_or_else(ServiceError::blob_not_found)?;
            conditions.check(Some(blob.version), Kind::Write)?;
            self.check_lease(state, true)?;
            change(&container, state, blob)
        })
    }
    /// Checks conditions, lease and the right to overwrite before a blob is created or replaced.
    pub(super) fn check_create(
        &self,
        conditions: &Conditions,
        state: &mut SlotState,
    ) -> Result<(), ServiceError> {
        conditions.check(state.version(), Kind::Create)?;
        self.check_lease(state, true)?;
        if state.blob.is_some() && !self.grant.may_overwrite() {
            return Err(ServiceError::unauthorized_overwrite());
        }
        Ok(())
    }
}
