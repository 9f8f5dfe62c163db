//! Copies inside the store: Copy Blob, Copy Blob From URL, Put Blob From URL, and the source of Put Block From URL.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, Method, Uri};

use super::Call;
use crate::store::BlobStore;
use crate::store::address::Target;
use crate::store::auth::{Grant, Presented};
use crate::store::condition::{Conditions, Kind};
use crate::store::error::ServiceError;
use crate::store::headers::{self, ContentHeaders};
use crate::store::operation::Operation;
use crate::store::reply::Reply;
use crate::store::state::{Blob, CopyInfo};

/// A blob of this store named by `x-ms-copy-source`.
pub(super) struct Source {
    pub(super) blob: Arc<Blob>,
    url: String,
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

    /// With `as_caller`, the account key that signed the request opens the source too (Copy Blob inside one account).
    fn find(store: &BlobStore, call: &Call<'_>, as_caller: bool) -> Result<Self, ServiceError> {
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
        Ok(Self {
            blob,
            url: text.split('?').next().unwrap_or_default().to_owned(),
        })
    }
}

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
    let tier = super::blob::tier(call)?;
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
