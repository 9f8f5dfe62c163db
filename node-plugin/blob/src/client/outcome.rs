//! What a call came to, after its retries.

use std::time::SystemTime;

use http::StatusCode;
use vsc_driver::buffer::Buffer;

use crate::error::Error;
use crate::response::Response;

/// A success.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response,
}

/// What the service (or nobody) said in the end.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: Error,
    /// The answer's status, `None` when there was no answer.
    pub(super) status: Option<StatusCode>,
    pub(super) code: String,
    /// An earlier attempt of this call may have been executed although its answer was lost; the service's
    /// clock when the first such attempt was sent (`None` inside when not known).
    pub(super) lost: Option<Unanswered>,
    /// The destination, when it came back.
    pub(super) dest: Option<Buffer>,
}

/// An attempt that may have been executed without an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unanswered {
    /// Service's clock at the time the call began, when known.
    pub(super) since: Option<SystemTime>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self {
            error,
            status: None,
            code: String::new(),
            lost: None,
            dest: None,
        }
    }
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        failed.error
    }
}
