//! Calls on the container itself.

use http::Method;

use super::call::Call;
use super::{Container, headers};
use crate::error::{Error, Result};
use crate::types::{ContainerState, Metadata, Written};

impl Container {
    pub(super) fn container_call(method: Method) -> Call<'static> {
        Call::new(method, None).query("restype", "container")
    }

    /// Create Container; `AlreadyExists` when it is there, `Service` with code ContainerBeingDeleted while a
    /// container of the name is still going away (that takes the service half a minute or more; try later).
    pub async fn create(&self, metadata: &Metadata) -> Result<Written> {
        let call = Self::container_call(Method::PUT)
            .metadata(metadata)?
            .not_idempotent();
        let failed = match self.execute(call).await {
            Ok(answer) => return headers::written(&answer.response.headers),
            Err(failed) => failed,
        };
        match failed.error {
            Error::AlreadyExists { .. } if failed.lost.is_some() => {
                // Ours, if it looks as ours should.
                let (written, stored) = self.properties().await?;
                if stored == *metadata {
                    return Ok(written);
                }
                Err(failed.error)
            }
            Error::ContainerNotFound { .. } => Err(Error::Service {
                status: failed.status.map_or(409, |s| s.as_u16()),
                code: failed.code,
                message: "the container is being deleted; try again later".into(),
                request_id: String::new(),
            }),
            error => Err(error),
        }
    }

    /// Get Container Properties: its metadata and version.
    pub async fn properties(&self) -> Result<(Written, Metadata)> {
        let answer = self.execute(Self::container_call(Method::GET)).await?;
        let headers = &answer.response.headers;
        Ok((headers::written(headers)?, headers::metadata(headers)))
    }

    /// Get Container Properties: what decides over its blobs.
    pub async fn state(&self) -> Result<ContainerState> {
        let answer = self.execute(Self::container_call(Method::GET)).await?;
        let headers = &answer.response.headers;
        let is = |name| headers::text(headers, name).is_some_and(|v| v.eq_ignore_ascii_case("true"));
        let kept = is("x-ms-has-immutability-policy") || is("x-ms-has-legal-hold");
        Ok(ContainerState {
            metadata: headers::metadata(headers),
            // With policies of versions a deleted or overwritten blob stays as an older version.
            keeps_blobs: kept && !is("x-ms-immutable-storage-with-versioning-enabled"),
        })
    }

    /// The scope that new blobs of the container are encrypted with.
    pub(super) async fn default_scope(&self) -> Result<Option<String>> {
        let answer = self.execute(Self::container_call(Method::GET)).await?;
        Ok(headers::text(
            &answer.response.headers,
            "x-ms-default-encryption-scope",
        ))
    }

    /// Set Container Metadata. The service takes no condition on what is there: who reads and then writes it
    /// holds a lease, and `LeaseConflict` says that it has ended.
    pub async fn set_container_metadata(&self, metadata: &Metadata, lease: Option<&str>) -> Result<Written> {
        let mut call = Self::container_call(Method::PUT)
            .query("comp", "metadata")
            .metadata(metadata)?;
        if let Some(lease) = lease {
            call = call.header("x-ms-lease-id", lease)?;
        }
        let answer = self.execute(call).await?;
        headers::written(&answer.response.headers)
    }

    /// Delete Container; `ContainerNotFound` when it is not there.
    pub async fn delete_container(&self) -> Result<()> {
        self.delete_if(Self::container_call(Method::DELETE)).await
    }

    /// The same, unless it was changed, or made anew, since it was seen so: `ConditionNotMet`. The service
    /// takes no ETag here, and a time in whole seconds; it takes longer to make a container anew.
    pub async fn delete_container_seen(&self, seen: &Written) -> Result<()> {
        let since = httpdate::fmt_http_date(seen.last_modified);
        let call = Self::container_call(Method::DELETE).header("if-unmodified-since", &since)?;
        self.delete_if(call).await
    }

    async fn delete_if(&self, call: Call<'_>) -> Result<()> {
        let call = call.not_idempotent();
        match self.execute(call).await {
            Ok(_) => Ok(()),
            Err(failed) => match failed.error {
                // Gone is what was asked for, and an attempt of ours may have done it.
                Error::ContainerNotFound { .. } if failed.lost.is_some() => Ok(()),
                error => Err(error),
            },
        }
    }

    /// Lease Container: acquire for `seconds` (15..=60); the lease id. It keeps others from deleting the
    /// container, and from getting a lease of it; not from writing its metadata without one.
    pub async fn acquire_container_lease(&self, seconds: u32) -> Result<String> {
        // Proposed by us: asking again for the same id is granted again, so a lost answer costs nothing.
        let id = uuid::Uuid::new_v4().to_string();
        let call = Self::container_call(Method::PUT)
            .query("comp", "lease")
            .header("x-ms-lease-action", "acquire")?
            .header("x-ms-lease-duration", &seconds.to_string())?
            .header("x-ms-proposed-lease-id", &id)?;
        self.execute(call).await?;
        Ok(id)
    }

    /// Lease Container: release.
    pub async fn release_container_lease(&self, lease: &str) -> Result<()> {
        let call = Self::container_call(Method::PUT)
            .query("comp", "lease")
            .header("x-ms-lease-action", "release")?
            .header("x-ms-lease-id", lease)?
            .not_idempotent();
        match self.execute(call).await {
            Ok(_) => Ok(()),
            Err(failed) => match failed.error {
                // No lease of that id any more, after an attempt that may have ended it.
                Error::LeaseConflict { .. } if failed.lost.is_some() => Ok(()),
                error => Err(error),
            },
        }
    }
}
