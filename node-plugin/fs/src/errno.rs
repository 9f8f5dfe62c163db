//! The single table from error to errno.
//!
//! - `ESTALE`: the blob was changed or deleted by somebody else since it was opened (the handle's version is
//!   gone; opening again gives the new one); or a metadata change kept losing the race for the blob's
//!   version, after it was repeated several times on a fresh one.
//! - `ENOENT`: no such blob.
//! - `ENXIO`: the container is gone: the device behind the mount does not exist any more.
//! - `EACCES`: wrong key, expired SAS, missing permission, a token that was refused: the answer is about
//!   rights, and asking again gives the same.
//! - `EBUSY`: a lease of somebody else protects the blob, or something is under way there that passes (a copy
//!   by the service, a write while it is read).
//! - `EIO`: unreachable, no answer in time, no token because nobody answered, channel required but gone,
//!   malformed answer: nothing a program could do about it; the log has the reason. Also when the service
//!   refuses as busy, after all retries, and when it takes so little that a write found no room in time.
//! - `EPERM`: page and append blobs opened for writing: like an immutable file, readable, never writable
//!   here.
//! - `EFBIG`: larger than a block blob can be.
//! - `ENOSPC`: 507 or an account over its limits; `fallocate` of more than a block blob can be.

use std::fmt;

use crate::caller::GivenUp;
use crate::cause::{self, Cause};
use crate::content::FileError;
use crate::log_limit::{Kind, limited};

/// An error number, as the kernel takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&std::io::Error::from_raw_os_error(self.0), f)
    }
}

impl std::error::Error for Errno {}

impl Errno {
    /// Something is wrong that somebody should know of: not an answer that programs live with every day.
    /// (`ENXIO` is what lseek(2) says past the last data; a container that is gone is noted as news.)
    pub(crate) fn is_trouble(self) -> bool {
        matches!(self.0, libc::EIO | libc::EACCES | libc::ENOSPC | libc::ESTALE)
    }
}

impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}

/// Result of a file system operation.
pub type Result<T, E = Errno> = std::result::Result<T, E>;

/// Why something is `ESTALE` that was looked up just before: the kernel looks again.
pub(crate) const NAME_GONE: &str = "its name is gone since it was looked up";
/// Why something is `EIO` that was made just before.
pub(crate) const NOT_MADE: &str = "what was made is gone already";

/// An `Err` with an error number of libc.
pub(crate) fn fail<T>(errno: i32) -> Result<T> {
    Err(Errno(errno))
}

/// The same with a reason that is noted for the log's line on the operation: of a number that the log warns
/// of, no error of the service tells it.
pub(crate) fn fail_because<T>(errno: i32, why: &str) -> Result<T> {
    Err(because(errno, why))
}

/// The number alone of [`fail_because`].
pub(crate) fn because(errno: i32, why: &str) -> Errno {
    cause::note(|| why);
    Errno(errno)
}

/// Nobody says anything, or says that it cannot now: whoever is asked next will not either.
pub(crate) fn no_answer(error: &blob_client::Error) -> bool {
    use blob_client::Error as E;
    match error {
        E::Unreachable { .. } | E::DeadlineExceeded { .. } => true,
        E::Service { status, .. } => matches!(status, 500 | 502..=504),
        _ => false,
    }
}

/// Codes of conflicts (409) that are over after a while.
const PASSING: [&str; 6] = [
    "AccountBeingCreated",
    "BlobModifiedWhileReading",
    "ContainerBeingDisabled",
    "PendingCopyOperation",
    "SnapshotOperationRateExceeded",
    "SystemInUse",
];

impl From<&blob_client::Error> for Errno {
    fn from(error: &blob_client::Error) -> Self {
        use blob_client::Error as E;
        Self(match error {
            E::BlobNotFound { .. } => libc::ENOENT,
            E::ContainerNotFound { .. } => libc::ENXIO,
            E::AlreadyExists { .. } => libc::EEXIST,
            E::ConditionNotMet { .. } => libc::ESTALE,
            E::LeaseConflict { .. } => libc::EBUSY,
            E::Denied { .. }
            // One that the identity service refused; when it could not be asked, nothing is known about the
            // rights.
            | E::Token { retryable: false, .. }
            | E::TagsUnreadable { .. }
            | E::Service {
                status: 401 | 403, ..
            } => libc::EACCES,
            E::Service { status: 507, .. } => libc::ENOSPC,
            E::Service { status: 413, .. } => libc::EFBIG,
            // Names the service does not take (a reserved character the mapping does not know of).
            E::Service {
                status: 400, code, ..
            } if code == "InvalidUri" || code == "InvalidResourceName" => libc::EINVAL,
            // It passes by itself: a copy, a deletion or something else is under way there.
            E::Service { status: 409, code, .. } if PASSING.contains(&code.as_str()) => libc::EBUSY,
            E::Archived { rehydrating, .. } if *rehydrating => libc::EBUSY,
            E::Archived { .. }
            | E::CustomerKey { .. }
            | E::EncryptionScope { .. }
            | E::SnapshotsPresent { .. } => libc::EPERM,
            // The account lacks a feature, or the blob's state forbids it (immutability policies).
            E::Service { status: 409, .. } => libc::EPERM,
            E::Argument { .. } => libc::EINVAL,
            E::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            // NotModified is an answer, not a failure: reaching this table with it is a fault of the caller.
            _ => libc::EIO,
        })
    }
}

impl From<blob_client::Error> for Errno {
    fn from(error: blob_client::Error) -> Self {
        report(&error)
    }
}

/// The number for an error. What it says is kept for the log's line on the operation: the number alone says
/// too little.
fn report(error: &blob_client::Error) -> Errno {
    let errno = Errno::from(error);
    let is_news = is_news(error);
    if !errno.is_trouble() && !is_news {
        tracing::debug!(%error, errno = errno.0, "the blob service refused an operation");
        return errno;
    }
    let said = cause::chain(error);
    let noted = cause::note(|| match is_news {
        true => Cause::news(said.clone()),
        false => Cause::from(said.clone()),
    });
    if !noted {
        let error = said;
        let (volume, kind) = (cause::volume(), Kind("service", errno.0));
        limited!(warn, volume, kind => "the blob service failed an operation", error, errno = errno.0);
    }
    errno
}

/// What programs are told with a number that they get every day, or that says little: what only the blob's
/// owner can change, and a container that is gone.
fn is_news(error: &blob_client::Error) -> bool {
    use blob_client::Error as E;
    matches!(
        error,
        E::Archived { .. }
            | E::CustomerKey { .. }
            | E::EncryptionScope { .. }
            | E::SnapshotsPresent { .. }
            | E::ContainerNotFound { .. }
    )
}

impl From<GivenUp> for Errno {
    fn from(error: GivenUp) -> Self {
        cause::note(|| error.to_string());
        Self(libc::EIO)
    }
}

impl From<FileError> for Errno {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Stale => because(
                libc::ESTALE,
                "the blob was changed or deleted by somebody else since it was opened",
            ),
            FileError::Unwritable(_) => Self(libc::EPERM),
            FileError::TooLarge => Self(libc::EFBIG),
            FileError::NoSpace => because(libc::ENOSPC, &error.to_string()),
            FileError::NoRoom => because(libc::EIO, &error.to_string()),
            FileError::GivenUp(error) => error.into(),
            FileError::Client(error) => match report(&error) {
                // An open file whose blob is gone is not a missing name.
                Errno(libc::ENOENT) => Self(libc::ESTALE),
                errno => errno,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_errors_have_their_own_numbers() {
        assert_eq!(Errno::from(FileError::Stale).0, libc::ESTALE);
        assert_eq!(Errno::from(FileError::Unwritable("append")).0, libc::EPERM);
        assert_eq!(Errno::from(FileError::TooLarge).0, libc::EFBIG);
        assert_eq!(Errno::from(FileError::NoSpace).0, libc::ENOSPC);
        assert_eq!(Errno::from(FileError::NoRoom).0, libc::EIO);
        let gone = blob_client::Error::BlobNotFound { name: "a".into() };
        assert_eq!(Errno::from(&gone).0, libc::ENOENT);
        assert_eq!(Errno::from(FileError::from(gone)).0, libc::ESTALE);
    }

    #[test]
    fn conflicts_that_pass_are_ebusy_and_those_that_stay_are_eperm() {
        let conflict = |code: &str| {
            Errno::from(&blob_client::Error::Service {
                status: 409,
                code: code.into(),
                message: String::new(),
                request_id: String::new(),
            })
            .0
        };
        for code in [
            "PendingCopyOperation",
            "BlobModifiedWhileReading",
            "AccountBeingCreated",
            "SystemInUse",
            "SnapshotOperationRateExceeded",
        ] {
            assert_eq!(conflict(code), libc::EBUSY, "{code}");
        }
        for code in [
            "BlobImmutableDueToPolicy",
            "InvalidBlobType",
            "FeatureVersionMismatch",
        ] {
            assert_eq!(conflict(code), libc::EPERM, "{code}");
        }
        for (rehydrating, errno) in [(true, libc::EBUSY), (false, libc::EPERM)] {
            let name = String::new();
            let archived = blob_client::Error::Archived { name, rehydrating };
            assert_eq!(Errno::from(&archived).0, errno);
        }
    }

    #[test]
    fn rights_are_eacces_and_silence_is_eio() {
        let denied = blob_client::Error::Denied {
            code: "AuthenticationFailed".into(),
            hint: String::new(),
        };
        assert_eq!(Errno::from(&denied).0, libc::EACCES);
        let silent = blob_client::Error::DeadlineExceeded {
            waited: std::time::Duration::from_secs(1),
        };
        assert_eq!(Errno::from(&silent).0, libc::EIO);
        let no_token = |retryable| blob_client::Error::Token {
            message: String::new(),
            retryable,
        };
        assert_eq!(Errno::from(&no_token(false)).0, libc::EACCES);
        assert_eq!(Errno::from(&no_token(true)).0, libc::EIO);
    }
}
