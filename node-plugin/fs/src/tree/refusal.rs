//! What the service would refuse to who opens a file, as far as the blob's properties tell: open(2) says so,
//! and not the first read(2) or the close(2) that few programs look at.

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use blob_client::{Availability, Error, Properties, Protection, StoredHeaders};

use super::core::Tree;
use crate::cause;
use crate::errno::{Errno, Result, no_answer};
use crate::log_limit::{Kind, limited};

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wants {
    Read,
    Write,
}

/// The error number of who wants this, and the service's code for it.
fn refusal(protection: &Protection, wants: Wants, now: SystemTime) -> Option<(i32, &'static str)> {
    match protection.availability {
        Availability::Archived => return Some((libc::EPERM, "BlobArchived")),
        Availability::Rehydrating => return Some((libc::EBUSY, "BlobBeingRehydrated")),
        Availability::Online => {}
    }
    let kept = protection.immutable_until.is_some_and(|until| until > now);
    match wants {
        Wants::Read => None,
        Wants::Write if protection.legal_hold => Some((libc::EPERM, "BlobImmutableDueToLegalHold")),
        Wants::Write if kept => Some((libc::EPERM, "BlobImmutableDueToPolicy")),
        Wants::Write if protection.leased => Some((libc::EBUSY, "LeaseIdMissing")),
        Wants::Write => None,
    }
}

impl Tree {
    /// What is written to a file whose content is encoded is stored as it is: told once.
    pub(super) fn warn_of_encoding(&self, blob: &str, stored: &StoredHeaders) {
        let Some(encoding) = stored.content_encoding() else {
            return;
        };
        if !self.warned_encoding.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                volume = self.config.name,
                blob,
                encoding,
                "files are written to whose content is encoded, as their header says: the bytes are stored \
                 as programs write them"
            );
        }
    }

    /// Refuses to open a blob for what the service would refuse: by the blob's own properties, by those of
    /// its container, for want of the right to write it, or to read what has to be stored again with it.
    pub(super) async fn check_open(&self, blob: &str, properties: &Properties, wants: Wants) -> Result<()> {
        if let Some((errno, code)) = refusal(&properties.protection, wants, SystemTime::now()) {
            return self.refuse(blob, errno, code);
        }
        if wants == Wants::Read {
            return Ok(());
        }
        self.lacking.may_write(&*self.env.store, blob).await?;
        if self.keeps_blobs().await? {
            return self.refuse(blob, libc::EPERM, "BlobImmutableDueToPolicy");
        }
        Ok(self.env.store.check_keeping(blob, &properties.stored).await?)
    }

    /// Whether a policy of the container keeps the blobs it holds: they are neither changed nor deleted.
    /// Nobody knows without the right to ask. What is asked is remembered, until something is refused.
    pub(super) async fn keeps_blobs(&self) -> Result<bool> {
        if self.deletes.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match self.env.store.container_state().await {
            Ok(container) if container.keeps_blobs => Ok(true),
            Ok(_) | Err(Error::Denied { .. }) => {
                self.deletes.store(true, Ordering::Relaxed);
                Ok(false)
            }
            Err(error) if no_answer(&error) => Err(error.into()),
            Err(error) => {
                tracing::debug!(%error, "nobody knows whether the container keeps its blobs");
                Ok(false)
            }
        }
    }

    /// A deletion was refused: what deletes at its end asks before it begins, from now on.
    pub(super) fn note_undeleted(&self, error: &Error) {
        match error {
            Error::Denied { .. } => self.lacking.note_undeleted(),
            // A policy that is younger than this mount, or that could not be asked for.
            Error::Service { code, .. } if code.starts_with("BlobImmutable") => {
                self.deletes.store(false, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    fn refuse(&self, blob: &str, errno: i32, code: &'static str) -> Result<()> {
        let error = Errno(errno);
        cause::note(|| format!("the service would refuse it ({code})"));
        // Else the operation's own line says it.
        if !error.is_trouble() {
            limited!(
                warn,
                self.volume(),
                Kind("a file is not opened", errno) =>
                    "a file is not opened for what the service would refuse",
                blob,
                code,
                %error
            );
        }
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_has_ended_refuses_nothing() {
        let now = SystemTime::now();
        let until = |until: SystemTime| Protection {
            immutable_until: Some(until),
            ..Protection::default()
        };
        let refused =
            |protection: &Protection| refusal(protection, Wants::Write, now).map(|(errno, _)| errno);
        assert_eq!(refused(&until(now - Duration::from_secs(1))), None);
        assert_eq!(refused(&until(now + Duration::from_secs(1))), Some(libc::EPERM));
    }
}
