//! An authorized request, and what every operation asks of it: container, lease, conditions.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::{HeaderMap, Method};

use crate::store::address::Target;
use crate::store::aids::Fault;
use crate::store::attributes::Availability;
use crate::store::auth::Grant;
use crate::store::blob_store::BlobStore;
use crate::store::condition::{Conditions, Kind};
use crate::store::content::Content;
use crate::store::error::ServiceError;
use crate::store::headers;
use crate::store::lease::{Resource, Shown};
use crate::store::operation::Operation;
use crate::store::settings::AccountSettings;
use crate::store::state::{Blob, Container, Past, Reason, SlotState};
use crate::store::tags::{self, Tags};

/// An authorized request.
pub(in crate::store) struct Call<'a> {
    pub(in crate::store) operation: Operation,
    pub(in crate::store) method: &'a Method,
    pub(in crate::store) target: &'a Target,
    pub(in crate::store) headers: &'a HeaderMap,
    pub(in crate::store) body: Content,
    pub(in crate::store) grant: &'a Grant,
    pub(in crate::store) peer: Option<IpAddr>,
    /// What a fault rule wants of the operation itself.
    pub(in crate::store) fault: Option<&'a Fault>,
    pub(in crate::store) settings: &'a AccountSettings,
    /// The store's time.
    pub(in crate::store) now: SystemTime,
    pub(in crate::store) instant: Instant,
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
        state.lease.check(id, write, Resource::Blob, self.instant)
    }
    /// Checks lease and conditions of a read, and gives the committed version, or the snapshot or version
    /// that the URL names. `content`: its bytes are wanted, and not only what is told about it.
    pub(super) fn read(&self, store: &BlobStore, content: bool) -> Result<(Arc<Blob>, Shown), ServiceError> {
        let conditions = Conditions::of(self.headers)?;
        self.container(store)?.with_existing(self.blob()?, |state| {
            let state = state.ok_or_else(ServiceError::blob_not_found)?;
            state.expire(self.now);
            let blob = match self.past_id() {
                Some(id) => self.past(state, id)?,
                None => state.blob.clone().ok_or_else(ServiceError::blob_not_found)?,
            };
            conditions.check(Some(blob.version), Kind::Read)?;
            self.check_tags(Some(&blob))?;
            self.check_lease(state, false)?;
            self.check_key(&blob)?;
            if content {
                self.check_online(&blob)?;
            }
            Ok((blob, state.lease.shown(self.instant)))
        })
    }
    /// `snapshot` or `versionid` of the URL.
    pub(super) fn past_id(&self) -> Option<&str> {
        let query = &self.target.query;
        query
            .get("snapshot")
            .or_else(|| query.get("versionid"))
            .filter(|id| !id.is_empty())
    }
    fn past(&self, state: &SlotState, id: &str) -> Result<Arc<Blob>, ServiceError> {
        let current = state
            .blob
            .iter()
            .filter(|blob| self.settings.versioning && blob.version.id() == id);
        let readable =
            |past: &&Past| past.id == id && matches!(past.reason, Reason::Snapshot | Reason::Version);
        let kept = state.history.iter().filter(readable);
        let found = current.cloned().chain(kept.map(|past| past.blob.clone())).next();
        found.ok_or_else(ServiceError::blob_not_found)
    }
    /// Runs `change` on an existing blob after its lease and conditions have been checked, and whether the
    /// blob may be changed in this way at all.
    pub(super) fn change<R>(
        &self,
        store: &BlobStore,
        access: Access,
        change: impl FnOnce(&Container, &mut SlotState, Arc<Blob>) -> Result<R, ServiceError>,
    ) -> Result<R, ServiceError> {
        let conditions = Conditions::of(self.headers)?;
        let container = self.container(store)?;
        container.with_existing(self.blob()?, |state| {
            let state = state.ok_or_else(ServiceError::blob_not_found)?;
            state.expire(self.now);
            let blob = state.blob.clone().ok_or_else(ServiceError::blob_not_found)?;
            conditions.check(Some(blob.version), Kind::Write)?;
            self.check_tags(Some(&blob))?;
            self.check_lease(state, true)?;
            self.guard(&container, state, access)?;
            change(&container, state, blob)
        })
    }
    /// Checks conditions, lease and the right to overwrite before a blob is created or replaced.
    pub(super) fn check_create(
        &self,
        container: &Container,
        conditions: &Conditions,
        state: &mut SlotState,
    ) -> Result<(), ServiceError> {
        state.expire(self.now);
        conditions.check(state.version(), Kind::Create)?;
        self.check_tags(state.blob.as_deref())?;
        self.check_lease(state, true)?;
        if state.blob.is_some() && !self.grant.may_overwrite() {
            return Err(ServiceError::unauthorized_overwrite());
        }
        self.guard(container, state, Access::Overwrite)
    }
    /// `x-ms-if-tags` (REST: "Specifying conditional headers for Blob service operations").
    fn check_tags(&self, blob: Option<&Blob>) -> Result<(), ServiceError> {
        let Some(condition) = headers::text(self.headers, "x-ms-if-tags") else {
            return Ok(());
        };
        if !self.grant.may_tag() {
            return Err(ServiceError::permission_mismatch());
        }
        let none = Tags::new();
        let there = blob.map_or(&none, |blob| &blob.attributes.tags);
        if blob.is_some() && tags::holds(condition, there)? {
            Ok(())
        } else {
            Err(ServiceError::condition_not_met())
        }
    }
    /// The customer's key (REST: "Provide an encryption key on a request to Blob Storage").
    fn check_key(&self, blob: &Blob) -> Result<(), ServiceError> {
        let given = headers::text(self.headers, "x-ms-encryption-key-sha256");
        match (blob.attributes.encryption.key_sha256.as_deref(), given) {
            (None, None) => Ok(()),
            (Some(_), None) => Err(ServiceError::blob_uses_customer_key()),
            (key, given) if key == given => Ok(()),
            _ => Err(ServiceError::blob_key_mismatch()),
        }
    }
    /// Content in the archive is out of reach (REST: "Blob Storage error codes", BlobArchived).
    fn check_online(&self, blob: &Blob) -> Result<(), ServiceError> {
        match blob.attributes.availability(self.now) {
            Availability::Online => Ok(()),
            Availability::Archived => Err(ServiceError::blob_archived()),
            Availability::Rehydrating => Err(ServiceError::blob_being_rehydrated()),
        }
    }
    /// Whether tier, protection, encryption and a pending copy let the blob that is there be changed so.
    pub(super) fn guard(
        &self,
        container: &Container,
        state: &SlotState,
        access: Access,
    ) -> Result<(), ServiceError> {
        let Some(blob) = &state.blob else { return Ok(()) };
        match access {
            Access::Overwrite => self.check_online(blob)?,
            Access::Modify | Access::Append => {
                self.check_key(blob)?;
                self.check_online(blob)?;
            }
            Access::Tier if blob.attributes.availability(self.now) == Availability::Rehydrating => {
                return Err(ServiceError::blob_being_rehydrated());
            }
            Access::Tier | Access::Delete | Access::Describe => {}
        }
        if matches!(access, Access::Tier | Access::Describe) {
            return Ok(());
        }
        if blob.is_copy_pending() && access != Access::Delete {
            return Err(ServiceError::pending_copy());
        }
        let by_hold = |held: bool| match held {
            true => Err(ServiceError::blob_immutable_by_hold()),
            false => Err(ServiceError::blob_immutable_by_policy()),
        };
        match container.lock().immutability {
            Some(policy) if access != Access::Append || !policy.appends => return by_hold(policy.legal_hold),
            _ => {}
        }
        let protection = &blob.attributes.protection;
        if protection.holds(self.now) {
            return by_hold(protection.legal_hold);
        }
        Ok(())
    }
}

/// What is done to a blob that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Replaced as a whole, or blocks are staged for that.
    Overwrite,
    /// Its metadata, headers or pages change, or a snapshot is taken of it.
    Modify,
    /// Bytes are added to an append blob.
    Append,
    /// Its tier is set.
    Tier,
    /// Its tags or its protection are set, or its copy is aborted: what neither tier nor policy forbids.
    Describe,
    /// Deleted.
    Delete,
}
