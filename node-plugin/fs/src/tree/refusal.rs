//! What the service would refuse to who opens a file, as far as the blob's properties tell: open(2) says so,
//! and not the first read(2) or the close(2) that few programs look at.

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use blob_client::{Availability, Protection, StoredHeaders};

use super::core::Tree;
use crate::cause;
use crate::errno::{Errno, Result};
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
    pub(super) fn tell_encoding(&self, blob: &str, stored: &StoredHeaders) {
        let Some(encoding) = stored.content_encoding() else {
            return;
        };
        if !self.encoding_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                volume = self.config.name,
                blob,
                encoding,
                "files are written to whose content is encoded, as their header says: the bytes are stored \
                 as programs write them"
            );
        }
    }

    /// Refuses to open a blob for what the service would refuse.
    pub(super) fn check_protection(&self, blob: &str, protection: &Protection, wants: Wants) -> Result<()> {
        let Some((errno, code)) = refusal(protection, wants, SystemTime::now()) else {
            return Ok(());
        };
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
