//! What one attempt came to, and what that means for the next one.

use std::time::{Duration, SystemTime};

use http::StatusCode;

use super::call::Call;
use super::outcome::Failed;
use super::retry_after::retry_after;
use super::{Account, Container, headers, refusal};
use crate::error::Error;
use crate::response::Response;
use crate::transport::path::Path;
use crate::transport::{FailureKind, TransportError};

/// What one attempt came to.
pub(super) enum Attempt {
    Done(Response),
    /// Final: nothing a retry could change.
    Refused(Failed),
    /// Worth another try.
    Again(Again),
}

/// An attempt that is worth another one.
pub(super) struct Again {
    pub(super) failed: Failed,
    pub(super) wait: Wait,
    pub(super) maybe_executed: bool,
    /// There was nobody to answer.
    pub(super) nobody: bool,
    /// Who gave no usable answer.
    pub(super) by: By,
}

/// How long before the next attempt.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wait {
    /// As long as this client pauses.
    Pause,
    /// The same, and not less than the service asks for.
    AtLeast(Duration),
    No,
}

/// Where an attempt failed, which decides where the next one goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// This path gave no answer.
    Path(Path),
    /// The answer was a failure, over whichever path.
    Service,
    /// No path had a part in it, or every path would fare the same.
    Neither,
}

impl Container {
    /// Reads an attempt's outcome.
    pub(super) fn judge(
        &self,
        call: &Call<'_>,
        outcome: Result<Response, TransportError>,
        rejected_token: &mut bool,
    ) -> Attempt {
        let account = &*self.account;
        let response = match outcome {
            Ok(response) => response,
            Err(error) => {
                let (again, maybe_executed) = (error.retryable, error.maybe_executed);
                let nobody = error.kind == FailureKind::Nobody;
                let by = By::Path(error.path);
                let failed = Failed::from(transport_error(account, error));
                return if again {
                    Attempt::Again(Again {
                        failed,
                        wait: Wait::Pause,
                        maybe_executed,
                        nobody,
                        by,
                    })
                } else {
                    Attempt::Refused(failed)
                };
            }
        };
        let now = SystemTime::now();
        let server_time = headers::date(&response.headers);
        if let Some(server) = server_time {
            account.note_clock(server, now);
        }
        if response.status.is_success() {
            return match headers::check_range(&response, call.range.as_ref()) {
                Ok(()) => Attempt::Done(response),
                Err(message) => Attempt::Again(Again {
                    failed: Failed {
                        dest: response.dest,
                        ..Failed::from(Error::Malformed { message })
                    },
                    wait: Wait::Pause,
                    maybe_executed: true,
                    nobody: false,
                    by: By::Service,
                }),
            };
        }
        let status = response.status;
        let by_the_service = headers::is_of_the_service(&response.headers);
        let (code, message) = refusal::code_and_message(&response);
        let error = refusal::error(
            account,
            refusal::Refusal {
                status,
                code: &code,
                message,
                request_id: headers::text(&response.headers, "x-ms-request-id").unwrap_or_default(),
                server_time,
                now,
            },
            &self.name,
            call.blob,
        );
        let failed = Failed {
            error,
            status: Some(status),
            code,
            lost: None,
            dest: response.dest,
        };
        if status == StatusCode::UNAUTHORIZED && account.signer.uses_tokens() && !*rejected_token {
            // Revoked or of an earlier key: worth one new token.
            *rejected_token = true;
            account.signer.reject_token();
            return Attempt::Again(Again {
                failed,
                wait: Wait::No,
                maybe_executed: false,
                nobody: false,
                by: By::Neither,
            });
        }
        let wait =
            retry_after(&response.headers, server_time.unwrap_or(now)).map_or(Wait::Pause, Wait::AtLeast);
        match status.as_u16() {
            // Turned away before anything was done. A service that is merely busy says so on every path.
            408 | 429 | 503 if by_the_service => Attempt::Again(Again {
                failed,
                wait,
                maybe_executed: false,
                nobody: false,
                by: By::Neither,
            }),
            // Somebody on the way speaks of a blob that he knows nothing of.
            404 | 409 | 412 if !by_the_service => Attempt::Again(Again {
                failed: Failed {
                    error: Error::Malformed {
                        message: format!("{status} by something between here and the service"),
                    },
                    ..failed
                },
                wait,
                maybe_executed: true,
                nobody: false,
                by: By::Service,
            }),
            // Failed somewhere on the way: done or not, nobody says.
            408 | 429 | 500 | 502 | 503 | 504 => Attempt::Again(Again {
                failed,
                wait,
                maybe_executed: true,
                nobody: false,
                by: By::Service,
            }),
            _ => Attempt::Refused(failed),
        }
    }
}

/// A request that was never sent.
pub(super) fn unsigned(error: Error) -> Attempt {
    let retryable = matches!(error, Error::Token { retryable: true, .. });
    let failed = Failed::from(error);
    if !retryable {
        return Attempt::Refused(failed);
    }
    Attempt::Again(Again {
        failed,
        wait: Wait::Pause,
        maybe_executed: false,
        // A fetch has retries of its own behind it.
        nobody: true,
        by: By::Neither,
    })
}

fn transport_error(account: &Account, error: TransportError) -> Error {
    match error.kind {
        FailureKind::ChannelRequired => Error::ChannelRequired {
            reason: error.message,
        },
        FailureKind::TimedOut => Error::DeadlineExceeded {
            waited: account.attempt_timeout,
        },
        FailureKind::Malformed => Error::Malformed {
            message: error.to_string(),
        },
        FailureKind::NoMemory => Error::Io {
            call: "allocating buffers for a request",
            source: std::io::Error::new(std::io::ErrorKind::OutOfMemory, error.message),
        },
        FailureKind::Unreachable | FailureKind::Nobody | FailureKind::PathDown | FailureKind::Unsuitable => {
            Error::Unreachable {
                endpoint: account.endpoint(),
                message: error.to_string(),
            }
        }
    }
}

#[cfg(test)]
mod tests;
        FailureKind::TooLong => Error::TooLong {
            message: error.message,
        },
