//! Why an operation on content fails.

use std::sync::Arc;

use thiserror::Error;

use crate::caller::GivenUp;

/// Why an operation on content failed.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum FileError {
    /// The blob was changed or deleted by somebody else since it was opened (ESTALE).
    #[error("the blob was changed by somebody else")]
    Stale,
    /// The blob cannot be written in place (page or append blob: EPERM... see errno.rs).
    #[error("{0} blobs cannot be written")]
    Unwritable(&'static str),
    /// Larger than a block blob can be (EFBIG).
    #[error("file too large")]
    TooLarge,
    /// More than a blob can hold was to be reserved (ENOSPC).
    #[error("no room for a file of that size")]
    NoSpace,
    /// The budget has no room for more dirty data and none could be made in time (EIO).
    #[error("no room for more unsent data: the service takes none")]
    NoRoom,
    /// Its turn came too late (EIO).
    #[error(transparent)]
    GivenUp(#[from] GivenUp),
    /// The service or the way to it.
    #[error(transparent)]
    Client(Arc<blob_client::Error>),
}

impl From<blob_client::Error> for FileError {
    fn from(error: blob_client::Error) -> Self {
        Self::Client(Arc::new(error))
    }
}

/// The runtime ended and took a task with it.
pub(crate) fn shutting_down() -> FileError {
    FileError::from(blob_client::Error::Io {
        call: "background work",
        source: std::io::Error::other("the file system is shutting down"),
    })
}

/// The request may have been executed although there is no good answer.
pub(super) fn is_unclear(error: &blob_client::Error) -> bool {
    use blob_client::Error;
    match error {
        Error::Service { status, .. } => *status >= 500,
        Error::Unreachable { .. }
        | Error::DeadlineExceeded { .. }
        | Error::Malformed { .. }
        | Error::Io { .. } => true,
        _ => false,
    }
}
