//! Why an exchange with the host gave no HTTP answer, and what that says of the path.

use vsc_driver::channel::ChannelError;
use vsc_driver::uapi::STATUS_TIMEOUT;

use crate::transport::path::Path;
use crate::transport::{FailureKind, TransportError};

/// Host status for a method it does not have (HRESULT of ERROR_NOT_SUPPORTED).
pub(super) const STATUS_NOT_SUPPORTED: u32 = 0x8007_0032;

pub(super) const NO_REST: &str = "the host takes no REST requests on the channel";

/// Why one exchange gave no response.
#[derive(Debug)]
pub(super) enum CallError {
    /// The host answered with this status and nothing else.
    Status(u32),
    Transport(TransportError),
}

impl From<TransportError> for CallError {
    fn from(error: TransportError) -> Self {
        Self::Transport(error)
    }
}

/// Why a REST exchange is not an HTTP answer.
#[derive(Debug)]
pub(super) enum NotAnswered {
    /// The answer's payload did not fit; the request was executed.
    TooLarge,
    Other(TransportError),
}

impl From<NotAnswered> for TransportError {
    fn from(failure: NotAnswered) -> Self {
        match failure {
            NotAnswered::TooLarge => TransportError {
                path: Path::Channel,
                kind: FailureKind::Unsuitable,
                message: "the answer does not fit one channel request".into(),
                maybe_executed: true,
                // The client has to look what became of a write before HTTPS may have it.
                retryable: true,
            },
            NotAnswered::Other(error) => error,
        }
    }
}

impl From<TransportError> for NotAnswered {
    fn from(error: TransportError) -> Self {
        Self::Other(error)
    }
}

pub(super) fn unsuitable(message: String) -> TransportError {
    TransportError {
        path: Path::Channel,
        kind: FailureKind::Unsuitable,
        message,
        maybe_executed: false,
        retryable: false,
    }
}

pub(super) fn too_long(limit: usize) -> TransportError {
    TransportError {
        path: Path::Channel,
        kind: FailureKind::TooLong,
        message: format!("the answer is longer than {limit} bytes"),
        maybe_executed: true,
        retryable: false,
    }
}

pub(super) fn no_memory(message: String) -> TransportError {
    TransportError {
        path: Path::Channel,
        kind: FailureKind::NoMemory,
        message: format!("no memory for a channel request: {message}"),
        maybe_executed: false,
        retryable: true,
    }
}

pub(super) fn malformed(message: String, maybe_executed: bool) -> TransportError {
    TransportError {
        path: Path::Channel,
        kind: FailureKind::Malformed,
        message,
        maybe_executed,
        retryable: true,
    }
}

pub(super) fn host_status(status: u32) -> TransportError {
    TransportError {
        path: Path::Channel,
        kind: if status == STATUS_TIMEOUT {
            FailureKind::TimedOut
        } else {
            FailureKind::Unreachable
        },
        message: format!("the host answered status {status:#010x}"),
        maybe_executed: true,
        retryable: true,
    }
}

pub(super) fn channel_error(error: ChannelError) -> TransportError {
    let message = error.to_string();
    // (kind, may have been executed, may be tried again)
    let (kind, maybe_executed, retryable) = match error {
        ChannelError::Gone { sent, .. } => (FailureKind::PathDown, sent, true),
        ChannelError::UnknownAbi { .. } => (FailureKind::PathDown, false, false),
        ChannelError::Stuck { .. } => (FailureKind::PathDown, false, true),
        ChannelError::Refused { .. } => (FailureKind::Unreachable, false, true),
        ChannelError::Busy => (FailureKind::TimedOut, false, true),
        // Later than the host itself was allowed: whether it still listens is for the prober to find out.
        ChannelError::TimedOut { .. } => (FailureKind::PathDown, true, true),
        ChannelError::TooLarge { .. } => (FailureKind::Unsuitable, false, false),
        _ => (FailureKind::Unreachable, true, true),
    };
    TransportError {
        path: Path::Channel,
        kind,
        message,
        maybe_executed,
        retryable,
    }
}
