//! Lease Blob.

use http::Method;

use super::Container;
use super::call::Call;
use crate::error::{Error, Result};

impl Container {
    fn lease_call<'a>(blob: &'a str, action: &str) -> Result<Call<'a>> {
        Call::new(Method::PUT, Some(blob))
            .query("comp", "lease")
            .header("x-ms-lease-action", action)
    }

    /// Lease Blob: acquire for `seconds` (15..=60, or `None` for ever); the lease id.
    pub async fn acquire_lease(&self, blob: &str, seconds: Option<u32>) -> Result<String> {
        if seconds.is_some_and(|s| !(15..=60).contains(&s)) {
            return Err(Error::Argument {
                field: "lease duration",
                message: "must be 15 to 60 seconds, or for ever".into(),
            });
        }
        // Proposed by us: asking again for the same id is granted again, so a lost answer costs nothing.
        let id = uuid::Uuid::new_v4().to_string();
        let duration = seconds.map_or_else(|| "-1".to_owned(), |s| s.to_string());
        let call = Self::lease_call(blob, "acquire")?
            .header("x-ms-lease-duration", &duration)?
            .header("x-ms-proposed-lease-id", &id)?;
        self.execute(call).await?;
        Ok(id)
    }

    /// Lease Blob: renew.
    pub async fn renew_lease(&self, blob: &str, lease: &str) -> Result<()> {
        let call = Self::lease_call(blob, "renew")?.header("x-ms-lease-id", lease)?;
        self.execute(call).await?;
        Ok(())
    }

    /// Lease Blob: release.
    pub async fn release_lease(&self, blob: &str, lease: &str) -> Result<()> {
        let call = Self::lease_call(blob, "release")?
            .header("x-ms-lease-id", lease)?
            .not_idempotent();
        self.end_lease(call).await
    }

    /// Lease Blob: break at once.
    pub async fn break_lease(&self, blob: &str) -> Result<()> {
        let call = Self::lease_call(blob, "break")?
            .header("x-ms-lease-break-period", "0")?
            .not_idempotent();
        self.end_lease(call).await
    }

    async fn end_lease(&self, call: Call<'_>) -> Result<()> {
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
