//! The one error type of the client.

use std::time::Duration;

use thiserror::Error;

/// Result of a client call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed, after retries.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// 404 with BlobNotFound or similar: no such blob.
    #[error("blob {name:?} does not exist")]
    BlobNotFound {
        /// Blob name.
        name: String,
    },
    /// 404 ContainerNotFound (or ContainerBeingDeleted).
    #[error("container {name:?} does not exist")]
    ContainerNotFound {
        /// Container name.
        name: String,
    },
    /// 409 ContainerAlreadyExists / BlobAlreadyExists.
    #[error("{name:?} already exists")]
    AlreadyExists {
        /// What exists.
        name: String,
    },
    /// 412 ConditionNotMet: If-Match / If-None-Match did not hold.
    #[error("{name:?} was changed by somebody else (condition not met)")]
    ConditionNotMet {
        /// Blob name.
        name: String,
    },
    /// 304: If-None-Match matched.
    #[error("{name:?} has not changed")]
    NotModified {
        /// Blob name.
        name: String,
    },
    /// 409/412 with a Lease* code.
    #[error("{name:?} is leased: {code}")]
    LeaseConflict {
        /// Blob or container name.
        name: String,
        /// Service's code.
        code: String,
    },
    /// 403, 401: wrong key, expired SAS, missing permission. `hint` says which field to look at.
    #[error("access denied by the service ({code}): {hint}")]
    Denied {
        /// Service's code, e.g. AuthenticationFailed.
        code: String,
        /// What to check.
        hint: String,
    },
    /// No token could be had.
    #[error("no access token: {message}")]
    Token {
        /// Reason.
        message: String,
        /// The identity service could not be asked, or had a bad moment; `false` = it refused, and waiting
        /// does not mend that.
        retryable: bool,
    },
    /// The blob has index tags which this identity may not read, so they would be lost.
    #[error(
        "{name:?} has index tags that this identity may not read, and would lose them: give the SAS the \
        right t \
         (or the role Storage Blob Data Owner), or set indexTags: drop"
    )]
    TagsUnreadable {
        /// Blob name.
        name: String,
    },
    /// The content is encrypted with a key that only its owner has.
    #[error("{name:?} is encrypted with a customer-provided key, which this driver is not given")]
    CustomerKey {
        /// Blob name.
        name: String,
    },
    /// A copy would be encrypted with another scope than the blob is.
    #[error(
        "{name:?} is encrypted with the scope {scope:?}, which is not its container's default: a copy made \
        by \
         the service would not be"
    )]
    EncryptionScope {
        /// Blob name.
        name: String,
        /// Its scope.
        scope: String,
    },
    /// The content is in the archive tier, where nobody can read or change it.
    #[error(
        "{name:?} is in the archive tier, where it can be neither read nor changed: {}",
        if *.rehydrating {
            "it is being taken out, which takes up to 15 hours; wait"
        } else {
            "give it another tier first (az storage blob set-tier --tier Hot), which takes up to 15 hours"
        }
    )]
    Archived {
        /// Blob name.
        name: String,
        /// It is on its way out.
        rehydrating: bool,
    },
    /// The blob has snapshots, which would be deleted with it.
    #[error(
        "{name:?} has snapshots and is not deleted with them: delete those first, by the tool that made them"
    )]
    SnapshotsPresent {
        /// Blob name.
        name: String,
    },
    /// Any other answer of the service.
    #[error("service answered {status} {code}: {message} (request {request_id})")]
    Service {
        /// HTTP status.
        status: u16,
        /// `x-ms-error-code`.
        code: String,
        /// First line of the message.
        message: String,
        /// `x-ms-request-id`.
        request_id: String,
    },
    /// The endpoint could not be reached, or the connection broke, until the deadline.
    #[error("cannot reach {endpoint}: {message}")]
    Unreachable {
        /// Endpoint URL without query.
        endpoint: String,
        /// Reason.
        message: String,
    },
    /// The deadline passed.
    #[error("no answer within {waited:?}")]
    DeadlineExceeded {
        /// Time waited.
        waited: Duration,
    },
    /// Not sent: an earlier request for this blob got no answer, and what this one does would be undone if
    /// that were executed yet.
    #[error("an earlier request for this blob got no answer and may be executed yet (waited {waited:?})")]
    EarlierRequest {
        /// Time waited.
        waited: Duration,
    },
    /// The volume demands the channel and the channel is not usable.
    #[error("the accelerated channel is required and not usable: {reason}")]
    ChannelRequired {
        /// Why not.
        reason: String,
    },
    /// The answer does not parse.
    #[error("malformed answer: {message}")]
    Malformed {
        /// What was wrong.
        message: String,
    },
    /// The answer is longer than what may be held in memory.
    #[error("{message}")]
    TooLong {
        /// How long it may be.
        message: String,
    },
    /// A caller's argument is wrong (bad container name, bad URL, ...).
    #[error("{field}: {message}")]
    Argument {
        /// Field.
        field: &'static str,
        /// What is wrong and how to mend it.
        message: String,
    },
    /// Local memory or system call.
    #[error("{call}: {source}")]
    Io {
        /// Call.
        call: &'static str,
        /// Reason.
        source: std::io::Error,
    },
}
