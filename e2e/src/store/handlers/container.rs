//! Operations on containers.

use std::collections::btree_map::Entry;
use std::sync::{Arc, PoisonError};

use http::HeaderMap;

use super::call::Call;
use super::lease::{lease_reply, with_lease};
use crate::store::blob_store::{BlobStore, folder_failed};
use crate::store::condition::{Conditions, Kind};
use crate::store::error::ServiceError;
use crate::store::headers::{self, Metadata};
use crate::store::lease::{Lease, Resource};
use crate::store::reply::Reply;
use crate::store::settings::Immutability;
use crate::store::state::{Container, ContainerState, PublicAccess};
use crate::store::version::Version;
use crate::store::xml::Xml;

/// `x-ms-blob-public-access`.
fn public_access(headers: &HeaderMap) -> Result<PublicAccess, ServiceError> {
    let name = "x-ms-blob-public-access";
    match headers::text(headers, name) {
        None => Ok(PublicAccess::None),
        Some("container") => Ok(PublicAccess::Container),
        Some("blob") => Ok(PublicAccess::Blob),
        Some(other) => Err(ServiceError::invalid_header(name, other)),
    }
}

/// The same as the service writes it.
pub(super) fn public_name(public: PublicAccess) -> Option<&'static str> {
    match public {
        PublicAccess::None => None,
        PublicAccess::Blob => Some("blob"),
        PublicAccess::Container => Some("container"),
    }
}

/// REST: "Naming and referencing containers".
fn check_name(name: &str) -> Result<(), ServiceError> {
    if matches!(name, "$root" | "$logs" | "$web") {
        return Ok(());
    }
    if !(3..=63).contains(&name.len()) {
        return Err(ServiceError::new(
            400,
            "OutOfRangeInput",
            "The specified resource name length is not within the permissible limits.",
        ));
    }
    let ok = name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--");
    if ok {
        Ok(())
    } else {
        Err(ServiceError::invalid_resource_name())
    }
}

/// Create Container.
pub(super) fn create_call(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let metadata = headers::metadata(call.headers)?;
    let public = public_access(call.headers)?;
    let version = create(store, call.container_name()?, metadata, public)?;
    Ok(Reply::new(201).version(version))
}

/// Makes a container.
pub(in crate::store) fn create(
    store: &BlobStore,
    name: &str,
    metadata: Metadata,
    public: PublicAccess,
) -> Result<Version, ServiceError> {
    check_name(name)?;
    let now = store.clock.now();
    let mut deletions = store.deletions.lock().unwrap_or_else(PoisonError::into_inner);
    deletions.retain(|_, done| now < *done);
    if deletions.contains_key(name) {
        return Err(ServiceError::container_being_deleted());
    }
    drop(deletions);
    let mut containers = store.containers.write().unwrap_or_else(PoisonError::into_inner);
    let Entry::Vacant(entry) = containers.entry(name.to_owned()) else {
        return Err(ServiceError::container_already_exists());
    };
    let version = store.clock.next();
    let state = ContainerState {
        version,
        metadata,
        public,
        lease: Lease::default(),
        immutability: None,
    };
    if let Some(folder) = &store.folder {
        folder.save_container(name, &state).map_err(folder_failed)?;
    }
    entry.insert(Arc::new(Container::new(name.to_owned(), state)));
    Ok(version)
}

/// Get Container Properties, Get Container Metadata.
pub(super) fn properties(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let container = call.container(store)?;
    let mut state = container.lock();
    let id = headers::lease_id(call.headers)?;
    state.lease.check(id, false, Resource::Container, call.instant)?;
    let policy = state.immutability;
    let has = |which: fn(&Immutability) -> bool| policy.as_ref().is_some_and(which).to_string();
    let mut reply = Reply::new(200)
        .version(state.version)
        .maybe("x-ms-blob-public-access", public_name(state.public))
        .header("x-ms-has-immutability-policy", has(|policy| !policy.legal_hold))
        .header("x-ms-has-legal-hold", has(|policy| policy.legal_hold))
        .header("x-ms-default-encryption-scope", "$account-encryption-key")
        .header("x-ms-deny-encryption-scope-override", "false");
    reply = with_lease(reply, &state.lease.shown(call.instant));
    headers::put_metadata(&mut reply.headers, &state.metadata);
    Ok(reply)
}

/// Checks lease and conditions, applies a change, saves, and gives the new version.
fn change(
    store: &BlobStore,
    call: &Call<'_>,
    apply: impl FnOnce(&mut ContainerState),
) -> Result<Version, ServiceError> {
    let conditions = Conditions::of(call.headers)?;
    let container = call.container(store)?;
    let mut state = container.lock();
    conditions.check(Some(state.version), Kind::Write)?;
    let id = headers::lease_id(call.headers)?;
    // A lease guards the container's deletion; an id given elsewhere must match.
    state.lease.check(id, false, Resource::Container, call.instant)?;
    let mut next = state.clone();
    apply(&mut next);
    next.version = store.clock.next();
    container.while_there(|| match &store.folder {
        Some(folder) => folder
            .save_container(&container.name, &next)
            .map_err(folder_failed),
        None => Ok(()),
    })?;
    *state = next;
    Ok(state.version)
}

/// Set Container Metadata.
pub(super) fn set_metadata(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let metadata = headers::metadata(call.headers)?;
    let version = change(store, call, |state| state.metadata = metadata)?;
    Ok(Reply::new(200).version(version))
}

/// Get Container ACL: the public level; there are no stored policies.
pub(super) fn get_acl(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let container = call.container(store)?;
    let state = container.lock();
    let mut xml = Xml::new();
    xml.text("SignedIdentifiers", "");
    Ok(Reply::xml(200, xml.finish())
        .version(state.version)
        .maybe("x-ms-blob-public-access", public_name(state.public)))
}

/// Set Container ACL: the public level; policies are refused.
pub(super) fn set_acl(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let public = public_access(call.headers)?;
    let body = call.body.joined().map_err(folder_failed)?;
    if body.windows(18).any(|part| part == b"<SignedIdentifier>") {
        return Err(ServiceError::not_implemented().detail("Reason", "stored access policies"));
    }
    let version = change(store, call, |state| state.public = public)?;
    Ok(Reply::new(200).version(version))
}

/// Delete Container. The name is taken until the deletion is done (REST: "Delete Container", remarks).
pub(super) fn delete(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let conditions = Conditions::of(call.headers)?;
    let name = call.container_name()?;
    let mut containers = store.containers.write().unwrap_or_else(PoisonError::into_inner);
    let container = containers
        .get(name)
        .ok_or_else(ServiceError::container_not_found)?
        .clone();
    let mut state = container.lock();
    conditions.check(Some(state.version), Kind::Write)?;
    let id = headers::lease_id(call.headers)?;
    state.lease.check(id, true, Resource::Container, call.instant)?;
    container.end(|| match &store.folder {
        Some(folder) => folder.remove_container(name).map_err(folder_failed),
        None => Ok(()),
    })?;
    containers.remove(name);
    let done = call.now + call.settings.container_deletion;
    store
        .deletions
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(name.to_owned(), done);
    Ok(Reply::new(202))
}

/// Lease Container.
pub(super) fn lease(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let conditions = Conditions::of(call.headers)?;
    let container = call.container(store)?;
    let mut state = container.lock();
    conditions.check(Some(state.version), Kind::Write)?;
    let outcome = state.lease.act(call.headers, call.instant)?;
    Ok(lease_reply(outcome).version(state.version))
}
