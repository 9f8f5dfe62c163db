//! The blob that a copy reads.

use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, Method, Uri};

use super::call::Call;
use crate::store::address::Target;
use crate::store::attributes::Availability;
use crate::store::auth::{Grant, Presented};
use crate::store::blob_store::BlobStore;
use crate::store::condition::{Conditions, Kind};
use crate::store::error::ServiceError;
use crate::store::headers;
use crate::store::operation::Operation;
use crate::store::state::Blob;

/// A blob of this store named by `x-ms-copy-source`.
pub(super) struct Source {
    pub(super) blob: Arc<Blob>,
    pub(super) url: String,
}

/// The source could not be read: the status tells why, the code is always the same.
fn cannot_verify(status: u16, why: &str) -> ServiceError {
    ServiceError::new(status, "CannotVerifyCopySource", why.to_owned())
}

impl Source {
    /// Reads the source as the URL's SAS, its token, or anybody may.
    pub(super) fn fetch(store: &BlobStore, call: &Call<'_>) -> Result<Self, ServiceError> {
        Self::find(store, call, false)
    }

    /// With `as_caller`, the account key that signed the request opens the source too (Copy Blob inside one
    /// account).
    pub(super) fn find(store: &BlobStore, call: &Call<'_>, as_caller: bool) -> Result<Self, ServiceError> {
        let name = "x-ms-copy-source";
        let text = headers::text(call.headers, name).ok_or_else(|| ServiceError::missing_header(name))?;
        let invalid = || ServiceError::invalid_header(name, text.split('?').next().unwrap_or_default());
        let uri: Uri = text.parse().map_err(|_| invalid())?;
        let target = Target::parse(&uri, None, store.account()).map_err(|_| invalid())?;
        let (Some(container), Some(blob_name)) = (&target.container, &target.blob) else {
            return Err(invalid());
        };
        let mut source_headers = HeaderMap::new();
        if let Some(token) = call.headers.get("x-ms-copy-source-authorization") {
            source_headers.insert(http::header::AUTHORIZATION, token.clone());
        }
        let grant = if as_caller && *call.grant == Grant::Owner && !target.query.has("sig") {
            Grant::Owner
        } else {
            store
                .account
                .authenticate(
                    &Presented {
                        method: &Method::GET,
                        target: &target,
                        headers: &source_headers,
                        body_len: 0,
                        peer: call.peer,
                        now: SystemTime::now(),
                    },
                    |token| {
                        store
                            .tokens
                            .read()
                            .unwrap_or_else(std::sync::PoisonError::into_inner)
                            .contains(token)
                    },
                )
                .map_err(|error| cannot_verify(error.status, &error.message))?
        };
        let found = store.container(container);
        let public = found.as_ref().ok().map(|container| container.lock().public);
        grant
            .allows(Operation::GetBlob, public)
            .map_err(|error| cannot_verify(error.status, &error.message))?;
        let missing = || cannot_verify(404, "The specified blob does not exist.");
        let blob = found
            .map_err(|_| cannot_verify(404, "The specified container does not exist."))?
            .with_existing(blob_name, |state| state.and_then(|state| state.blob.clone()))
            .ok_or_else(missing)?;
        Conditions::of_source(call.headers)?.check(Some(blob.version), Kind::Source)?;
        if blob.attributes.availability(call.now) != Availability::Online {
            return Err(ServiceError::blob_archived());
        }
        Ok(Self {
            blob,
            url: text.split('?').next().unwrap_or_default().to_owned(),
        })
    }
}
