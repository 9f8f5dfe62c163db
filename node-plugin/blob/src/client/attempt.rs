//! What one attempt came to, and what that means for the next one.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{StatusCode, header};
use vsc_driver::buffer::Buffer;

use super::call::Call;
use super::outcome::Failed;
use super::retry_after::retry_after;
use super::{Account, Container, headers, refusal};
use crate::auth::handle::{Held, Next, Refusals};
use crate::error::Error;
use crate::response::Response;
use crate::transport::path::Path;
use crate::transport::{FailureKind, TransportError};
use crate::xml;

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
    /// The next attempt takes from what the account's retries may cost (see `pace`).
    pub(super) costs: bool,
}

impl Again {
    /// Not for want of an answer: the next attempt is a different one.
    fn at_once(self) -> Self {
        Self {
            wait: Wait::No,
            costs: false,
            ..self
        }
    }
}

/// How long before the next attempt.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wait {
    /// As long as this client pauses.
    Pause,
    /// The same, and not less than the service asks for.
    AtLeast(Duration),
    /// The same, and less when there are newer credentials than these.
    Newer(u64),
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

/// What an answer says of the account, beside what it says of the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// The service is there, and works.
    Well,
    /// It turns requests away because there are too many; for so long, when it says how long.
    Busy(Option<Duration>),
    /// Nothing: no answer, one of somebody else, or one that does not tell.
    Nothing,
}

impl Container {
    /// Reads an attempt's outcome. `by`: what it was signed with; `dated`: the time that its signature names;
    /// `took`: how long it was under way.
    pub(super) fn judge(
        &self,
        call: &Call<'_>,
        outcome: Result<Response, TransportError>,
        (by, dated, took): (&Arc<Held>, SystemTime, Duration),
        once: &mut Once,
    ) -> (Attempt, Said) {
        let response = match outcome {
            Ok(response) => response,
            Err(error) => return (unanswered(&self.account, error), Said::Nothing),
        };
        let known = Known {
            now: SystemTime::now(),
            server_time: headers::date(&response.headers),
            of_the_service: headers::is_of_the_service(&response.headers),
        };
        if let Some(server) = known.server_time.filter(|_| known.of_the_service) {
            self.account.note_clock(server, known.now, took);
        }
        // These are said to those who are known only.
        if known.of_the_service && matches!(response.status.as_u16(), 200..=299 | 304 | 404 | 409 | 412 | 416)
        {
            self.account.credentials.accepted(by);
        }
        if response.status.is_success() {
            return self.succeeded(call, response, &known);
        }
        self.refused(call, response, (by, dated), &known, once)
    }

    /// A success, if it is one to this call.
    fn succeeded(&self, call: &Call<'_>, response: Response, known: &Known) -> (Attempt, Said) {
        // A read by handle has the headers that told its version.
        let ours = known.of_the_service || response.headers.contains_key(header::ETAG);
        let complete = headers::check_range(&response, call.range.as_ref()).and_then(|()| match call.root {
            Some(root) if ours => xml::check_end(&response.body, root),
            _ => Ok(()),
        });
        let error = match complete {
            Ok(()) if ours => return (Attempt::Done(response), Said::Well),
            Ok(()) => foreign(&self.account, response.status),
            Err(message) => Error::Malformed { message },
        };
        (no_answer(error, response.dest, Wait::Pause), Said::Nothing)
    }

    /// An answer that is no success.
    fn refused(
        &self,
        call: &Call<'_>,
        response: Response,
        (by, dated): (&Arc<Held>, SystemTime),
        known: &Known,
        once: &mut Once,
    ) -> (Attempt, Said) {
        let account = &*self.account;
        let status = response.status;
        let asked = retry_after(&response.headers, known.server_time.unwrap_or(known.now));
        let wait = asked.map_or(Wait::Pause, Wait::AtLeast);
        if !known.of_the_service {
            // Somebody on the way speaks of what he knows nothing of: his status is for the log only. (The
            // service's front end gives no id, either, to what it takes for no request; from outside it is
            // nobody else.)
            return (
                no_answer(foreign(account, status), response.dest, wait),
                Said::Nothing,
            );
        }
        let (code, message) = refusal::code_and_message(&response);
        let error = refusal::error(
            refusal::Refusal {
                status,
                code: &code,
                message,
                request_id: headers::text(&response.headers, "x-ms-request-id").unwrap_or_default(),
                server_time: known.server_time,
                now: known.now,
                by: &by.signer,
            },
            &self.name,
            call.blob,
        );
        let mut again = Again {
            failed: Failed {
                error,
                status: Some(status),
                code,
                lost: None,
                dest: response.dest,
            },
            wait,
            maybe_executed: false,
            nobody: false,
            by: By::Neither,
            costs: true,
        };
        match (status.as_u16(), again.failed.code.as_str()) {
            // Revoked or of an earlier key: worth one new token.
            (401, _) if by.signer.uses_tokens() && !once.rejected_token => {
                once.rejected_token = true;
                by.signer.reject_token();
                (Attempt::Again(again.at_once()), Said::Well)
            }
            // The signature names a time that the service's clock is far from: worth one by that clock.
            (403, "AuthenticationFailed")
                if !once.corrected_clock && account.corrects_clock(by, dated, known.server_time) =>
            {
                once.corrected_clock = true;
                (Attempt::Again(again.at_once()), Said::Well)
            }
            (status, code) if by.signer.may_be_stale(status, code) => {
                (self.stale(again, by, once), Said::Well)
            }
            // Turned away before anything was done. A service that is merely busy says so on every path.
            (503, "ServerBusy") | (429, _) => (Attempt::Again(again), Said::Busy(asked)),
            // Something else is under way there, and soon over.
            (409, code) if refusal::is_transient(code) => (Attempt::Again(again), Said::Well),
            // Failed somewhere on the way: done or not, nobody says.
            (408 | 500 | 502 | 503 | 504, _) => {
                again.maybe_executed = true;
                again.by = By::Service;
                (Attempt::Again(again), Said::Nothing)
            }
            _ => (Attempt::Refused(again.failed), Said::Well),
        }
    }
}

impl Container {
    /// An attempt whose credential is not accepted.
    fn stale(&self, again: Again, by: &Held, once: &mut Once) -> Attempt {
        // Whoever tries a credential, or waits for a verdict, wants to hear of it.
        let waits = self.signed_with.is_none() && self.nobody_after.is_none();
        let next = self.account.credentials.refused(by, &mut once.refusals, waits);
        match next {
            Next::AtOnce if self.signed_with.is_none() => {
                // Another identity has not had its second token.
                once.rejected_token = false;
                Attempt::Again(again.at_once())
            }
            Next::After(version) => {
                by.signer.reject_token();
                Attempt::Again(Again {
                    wait: Wait::Newer(version),
                    costs: false,
                    ..again
                })
            }
            Next::AtOnce | Next::Never => Attempt::Refused(again.failed),
        }
    }

    /// A request that was never sent, because nothing can sign it.
    pub(super) fn unsigned(&self, error: Error, by: &Held, once: &mut Once) -> Attempt {
        let refused = matches!(error, Error::Token { retryable: false, .. });
        match unsigned(error) {
            Attempt::Refused(failed) if refused => {
                let again = Again {
                    failed,
                    wait: Wait::Pause,
                    maybe_executed: false,
                    nobody: false,
                    by: By::Neither,
                    costs: false,
                };
                self.stale(again, by, once)
            }
            attempt => attempt,
        }
    }
}

/// What a call does at most once, however many attempts it has.
#[derive(Debug, Default)]
pub(super) struct Once {
    /// What it was refused with.
    pub(super) refusals: Refusals,
    rejected_token: bool,
    corrected_clock: bool,
}

/// What is known of an answer.
struct Known {
    now: SystemTime,
    server_time: Option<SystemTime>,
    of_the_service: bool,
}

/// No HTTP answer.
fn unanswered(account: &Account, error: TransportError) -> Attempt {
    let (again, maybe_executed) = (error.retryable, error.maybe_executed);
    let nobody = error.kind == FailureKind::Nobody;
    let by = By::Path(error.path);
    let failed = Failed::from(transport_error(account, error));
    if !again {
        return Attempt::Refused(failed);
    }
    Attempt::Again(Again {
        failed,
        wait: Wait::Pause,
        maybe_executed,
        nobody,
        by,
        costs: true,
    })
}

/// An answer that is as good as none.
fn no_answer(error: Error, dest: Option<Buffer>, wait: Wait) -> Attempt {
    Attempt::Again(Again {
        failed: Failed {
            dest,
            ..Failed::from(error)
        },
        wait,
        maybe_executed: true,
        nobody: false,
        by: By::Service,
        costs: true,
    })
}

/// What somebody on the way has said.
fn foreign(account: &Account, status: StatusCode) -> Error {
    Error::Unreachable {
        endpoint: account.endpoint(),
        message: format!(
            "{status} without a request id: not of the service, but of something between here and there (a \
             proxy, a gateway, a load balancer)"
        ),
    }
}

/// A request that was never sent.
fn unsigned(error: Error) -> Attempt {
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
        costs: false,
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
        FailureKind::TooLong => Error::TooLong {
            message: error.message,
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
