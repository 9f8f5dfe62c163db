//! One call: signed anew for each attempt, sent, and repeated while that can help and the deadline allows.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use rand::Rng as _;
use tokio::time::Instant;
use vsc_driver::buffer::Buffer;

use super::{API_VERSION, Account, Container, answers};
use crate::auth::{Draft, header_value, secret_header};
use crate::error::{Error, Result};
use crate::names;
use crate::request::Request;
use crate::response::Response;
use crate::transport::vsc::CHANNEL;
use crate::transport::{FailureKind, TransportError};
use crate::types::{Body, Condition};

const USER_AGENT: &str = concat!("vsc-blob-csi/", env!("CARGO_PKG_VERSION"));
/// The first pause is at most this long, whatever the jitter.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Less than this is left: another attempt would only hide the reason of the last one.
const SHORTEST_ATTEMPT: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A call before it is signed.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) blob: Option<&'a str>,
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
    pub(super) dest: Option<Buffer>,
    /// See [`Request::idempotent`].
    pub(super) idempotent: bool,
    /// Bytes asked for, to be checked against what arrived.
    pub(super) range: Option<Range<u64>>,
}

impl<'a> Call<'a> {
    pub(super) fn new(method: Method, blob: Option<&'a str>) -> Self {
        Self {
            method,
            blob,
            query: Vec::new(),
            headers: HeaderMap::new(),
            body: Body::default(),
            dest: None,
            idempotent: true,
            range: None,
        }
    }

    pub(super) fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    pub(super) fn header(mut self, name: &'static str, value: &str) -> Result<Self> {
        self.headers
            .insert(HeaderName::from_static(name), header_value(value)?);
        Ok(self)
    }

    /// As [`header`](Self::header), kept out of debug output.
    pub(super) fn secret_header(mut self, name: &'static str, value: &str) -> Result<Self> {
        self.headers
            .insert(HeaderName::from_static(name), secret_header(value)?);
        Ok(self)
    }

    pub(super) fn condition(mut self, condition: &Condition) -> Result<Self> {
        if let Some(etag) = &condition.if_match {
            self.headers.insert(header::IF_MATCH, header_value(&etag.0)?);
        }
        if condition.if_absent {
            self.headers
                .insert(header::IF_NONE_MATCH, HeaderValue::from_static("*"));
        } else if let Some(etag) = &condition.if_none_match {
            self.headers.insert(header::IF_NONE_MATCH, header_value(&etag.0)?);
        }
        if let Some(lease) = &condition.lease {
            self = self.header("x-ms-lease-id", lease)?;
        }
        Ok(self)
    }

    pub(super) fn metadata(mut self, metadata: &crate::types::Metadata) -> Result<Self> {
        names::check_metadata(metadata)?;
        for (name, value) in metadata {
            let name = HeaderName::try_from(format!("x-ms-meta-{name}")).map_err(|e| Error::Argument {
                field: "metadata name",
                message: e.to_string(),
            })?;
            self.headers.insert(name, header_value(value)?);
        }
        Ok(self)
    }

    pub(super) fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    /// Sending it twice is not the same as sending it once: only this client repeats it, and then looks what happened.
    pub(super) fn not_idempotent(mut self) -> Self {
        self.idempotent = false;
        self
    }
}

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
    /// An earlier attempt of this call may have been executed although its answer was lost; the service's clock
    /// when the first such attempt was sent (`None` inside when not known).
    pub(super) lost: Option<Lost>,
    /// The destination, when it came back.
    pub(super) dest: Option<Buffer>,
}

/// An attempt that may have been executed without an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lost {
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

/// What one attempt came to.
enum Attempt {
    Done(Response),
    /// Final: nothing a retry could change.
    Refused(Failed),
    /// Worth another try.
    Again {
        failed: Failed,
        wait: Wait,
        maybe_executed: bool,
        /// There was nobody to answer.
        nobody: bool,
        /// Who gave no usable answer.
        by: By,
    },
}

/// How long before the next attempt.
#[derive(Debug, Clone, Copy)]
enum Wait {
    /// As long as this client pauses.
    Pause,
    /// The same, and not less than the service asks for.
    AtLeast(Duration),
    No,
}

/// Where an attempt failed, which decides where the next one goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// This path gave no answer.
    Path(&'static str),
    /// The answer was a failure, over whichever path.
    Service,
    /// No path had a part in it, or every path would fare the same.
    Neither,
}

impl Container {
    /// Sends a call until it is answered for good or the deadline passes.
    pub(super) async fn execute(&self, mut call: Call<'_>) -> Result<Answer, Failed> {
        if let Some(blob) = call.blob {
            names::check_blob(blob)?;
        }
        let account = &*self.account;
        let began = Instant::now();
        let deadline = began + self.deadline;
        let since = account.service_now();
        let mut dest = call.dest.take();
        let dest_len = dest.as_ref().map(|d| d.len());
        let mut lost: Option<Lost> = None;
        let mut rejected_token = false;
        let mut attempt = 0_u32;
        let mut avoid_channel = false;
        loop {
            if dest.is_none()
                && let Some(len) = dest_len
            {
                // The last destination went down with its attempt: a device may still write there.
                dest = Some(account.arena.alloc(len).map_err(|source| Error::Io {
                    call: "allocating a read buffer",
                    source,
                })?);
            }
            let attempted = match self.sign(&call, dest.take(), avoid_channel, deadline).await {
                Ok(request) => {
                    let outcome = account.transport.send(request).await;
                    self.judge(&call, outcome, &mut rejected_token)
                }
                Err(error) => unsigned(error),
            };
            let (mut failed, wait, by, give_up) = match attempted {
                Attempt::Done(response) => return Ok(Answer { response }),
                Attempt::Refused(mut failed) => {
                    failed.lost = lost;
                    return Err(failed);
                }
                Attempt::Again {
                    failed,
                    wait,
                    maybe_executed,
                    nobody,
                    by,
                } => {
                    if maybe_executed {
                        lost = lost.or(Some(Lost { since }));
                    }
                    let give_up = match self.nobody_after {
                        Some(patience) if nobody => deadline.min(began + patience),
                        _ => deadline,
                    };
                    (failed, wait, by, give_up)
                }
            };
            failed.lost = lost;
            avoid_channel = match by {
                // The channel may be well while nobody is reached over HTTPS.
                By::Path(path) => path == CHANNEL,
                // Maybe the other path has a better one.
                By::Service => !avoid_channel,
                By::Neither => avoid_channel,
            };
            let pause = match wait {
                Wait::Pause => pause(attempt),
                Wait::AtLeast(least) => pause(attempt).max(least),
                Wait::No => Duration::ZERO,
            };
            let now = Instant::now();
            if pause + SHORTEST_ATTEMPT >= give_up.saturating_duration_since(now) {
                if matches!(failed.error, Error::DeadlineExceeded { .. }) {
                    failed.error = Error::DeadlineExceeded {
                        waited: now.saturating_duration_since(began),
                    };
                }
                return Err(failed);
            }
            tracing::debug!(
                container = %self.name,
                method = %call.method,
                attempt,
                pause_ms = pause.as_millis() as u64,
                error = %failed.error,
                "trying again"
            );
            dest = restored(failed.dest.take(), dest_len);
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    async fn sign(
        &self,
        call: &Call<'_>,
        dest: Option<Buffer>,
        avoid_channel: bool,
        deadline: Instant,
    ) -> Result<Request> {
        let account = &*self.account;
        let mut headers = call.headers.clone();
        headers.insert("x-ms-version", HeaderValue::from_static(API_VERSION));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        headers.insert(
            "x-ms-client-request-id",
            header_value(&uuid::Uuid::new_v4().to_string())?,
        );
        if matches!(call.method, Method::PUT | Method::POST) {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(call.body.len()));
        }
        let mut draft = Draft {
            method: call.method.clone(),
            path: account.path(&self.name, call.blob),
            query: call
                .query
                .iter()
                .map(|(k, v)| ((*k).to_owned(), v.clone()))
                .collect(),
            headers,
        };
        let query = tokio::time::timeout_at(deadline, account.signer.sign(&mut draft, SystemTime::now()))
            .await
            .map_err(|_| no_token_in_time())??;
        let left = deadline.saturating_duration_since(Instant::now());
        let mark = if query.is_empty() { "" } else { "?" };
        let url: Uri = format!("{}{}{mark}{query}", account.origin, draft.path)
            .parse()
            .map_err(|e: http::uri::InvalidUri| Error::Argument {
                field: "blob name",
                // The URL itself may hold a SAS.
                message: format!("makes no valid URL ({e}); the longest is 64 KiB"),
            })?;
        Ok(Request {
            method: draft.method,
            url,
            headers: draft.headers,
            body: call.body.clone(),
            dest,
            idempotent: call.idempotent,
            avoid_channel,
            timeout: account.attempt_timeout.min(left),
        })
    }

    fn judge(
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
                    Attempt::Again {
                        failed,
                        wait: Wait::Pause,
                        maybe_executed,
                        nobody,
                        by,
                    }
                } else {
                    Attempt::Refused(failed)
                };
            }
        };
        let now = SystemTime::now();
        let server_time = answers::date(&response.headers);
        if let Some(server) = server_time {
            account.note_clock(server, now);
        }
        if response.status.is_success() {
            return match answers::check_range(&response, call.range.as_ref()) {
                Ok(()) => Attempt::Done(response),
                Err(message) => Attempt::Again {
                    failed: Failed {
                        dest: response.dest,
                        ..Failed::from(Error::Malformed { message })
                    },
                    wait: Wait::Pause,
                    maybe_executed: true,
                    nobody: false,
                    by: By::Service,
                },
            };
        }
        let status = response.status;
        let (code, message) = answers::code_and_message(&response);
        let error = answers::error(
            account,
            answers::Refusal {
                status,
                code: &code,
                message,
                request_id: answers::text(&response.headers, "x-ms-request-id").unwrap_or_default(),
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
            return Attempt::Again {
                failed,
                wait: Wait::No,
                maybe_executed: false,
                nobody: false,
                by: By::Neither,
            };
        }
        let wait = answers::retry_after(&response.headers, server_time.unwrap_or(now))
            .map_or(Wait::Pause, Wait::AtLeast);
        match status.as_u16() {
            // Turned away before anything was done. A service that is merely busy says so on every path.
            408 | 429 | 503 => Attempt::Again {
                failed,
                wait,
                maybe_executed: false,
                nobody: false,
                by: By::Neither,
            },
            // Failed somewhere on the way: done or not, nobody says.
            500 | 502 | 504 => Attempt::Again {
                failed,
                wait,
                maybe_executed: true,
                nobody: false,
                by: By::Service,
            },
            _ => Attempt::Refused(failed),
        }
    }
}

/// The deadline passed while waiting for a token.
pub(super) fn no_token_in_time() -> Error {
    Error::Token {
        message: "the identity service did not answer before the call's deadline".into(),
        retryable: true,
    }
}

/// A request that was never sent.
fn unsigned(error: Error) -> Attempt {
    let retryable = matches!(error, Error::Token { retryable: true, .. });
    let failed = Failed::from(error);
    if !retryable {
        return Attempt::Refused(failed);
    }
    Attempt::Again {
        failed,
        wait: Wait::Pause,
        maybe_executed: false,
        // A fetch has retries of its own behind it.
        nobody: true,
        by: By::Neither,
    }
}

/// A destination that came back is used again, at its full length.
fn restored(dest: Option<Buffer>, len: Option<usize>) -> Option<Buffer> {
    let (mut dest, len) = (dest?, len?);
    dest.set_len(len);
    Some(dest)
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

/// Doubling pauses, each drawn from its upper half; the first from 100 to 200 ms.
pub(super) fn pause(attempt: u32) -> Duration {
    let longest = FIRST_PAUSE
        .saturating_mul(1 << attempt.min(10))
        .min(LONGEST_PAUSE);
    longest.mul_f64(rand::rng().random_range(0.5..=1.0))
}
