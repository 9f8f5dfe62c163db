//! One call: signed anew for each attempt, sent, and repeated while that can help and the deadline allows.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::Method;
use rand::Rng as _;
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};
use vsc_driver::buffer::{Arena, Buffer};

use super::Container;
use super::attempt::{Again, Attempt, By, Once, Said, Wait};
use super::call::Call;
use super::outcome::{Answer, Failed, Unanswered};
use crate::auth::handle::Held;
use crate::error::{Error, Result};
use crate::names;
use crate::progress::Moved;
use crate::request::Request;
use crate::response::Response;
use crate::trace::TRACE;
use crate::transport::path::Path;
use crate::transport::{FailureKind, TransportError};

/// The first pause is at most this long, whatever the jitter.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Less than this is left: another attempt would only hide the reason of the last one.
const SHORTEST_ATTEMPT: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A signature that has waited so long is made anew: the service takes none of long ago, and a token ends.
const SIGNED_FOR: Duration = Duration::from_secs(60);
/// A body of so many bytes goes out in one go, and says nothing of the line.
const ONE_GO: u64 = 64 << 10;
/// An exchange that takes this part of an attempt's time is worth telling the volume that it gets on.
const LONG_EXCHANGE: u32 = 4;

/// Whether an error is one that every call of the volume would get. Who may not write may still read.
fn is_of_the_volume(error: &Error, reads: bool) -> bool {
    match error {
        Error::Unreachable { .. }
        | Error::DeadlineExceeded { .. }
        | Error::Token { .. }
        | Error::ChannelRequired { .. }
        | Error::ContainerNotFound { .. } => true,
        Error::Denied { .. } => reads,
        Error::Service { status, .. } => *status >= 500,
        _ => false,
    }
}

impl Container {
    /// Sends a call until it is answered for good or the deadline passes. Progress puts that off.
    pub(super) async fn execute(&self, call: Call<'_>) -> Result<Answer, Failed> {
        let mut sent = 0;
        let content = call.stores().then(|| call.content());
        let reads = matches!(call.method, Method::GET | Method::HEAD);
        let answer = self.repeat(call, content.unwrap_or_default(), &mut sent).await;
        self.note_trouble(&answer, reads);
        if let Some(content) = content
            && answer.is_err()
        {
            self.account.progress.note_in_vain(content, sent);
        }
        answer
    }

    fn note_trouble(&self, answer: &Result<Answer, Failed>, reads: bool) {
        let trouble = match answer {
            Ok(_) => None,
            Err(failed) if is_of_the_volume(&failed.error, reads) => Some(failed.error.to_string()),
            // About one blob; or our own, which says nothing of the service.
            Err(failed) if failed.status.is_some() => None,
            Err(_) => return,
        };
        self.account.progress.note_trouble(trouble);
    }

    /// `sent`: bytes that an attempt has moved at most.
    async fn repeat(&self, mut call: Call<'_>, content: u64, sent: &mut u64) -> Result<Answer, Failed> {
        if let Some(blob) = call.blob {
            names::check_blob(blob)?;
        }
        let account = &*self.account;
        let mut dest = Destination::new(call.dest.take());
        let mut tries = Tries::begin(self.deadline, account.service_now());
        tries.content = content;
        account
            .late
            .wait(&self.name, &call, &*account.transport, tries.deadline)
            .await?;
        tries.since = account.service_now();
        account.share.began();
        // Why the attempt before was not the last.
        let mut earlier = None;
        loop {
            let room = dest.take(&account.arena)?;
            let dated = account.signing_time();
            let by = self.signer(&tries.once);
            let signed = self.sign(&call, (&by, dated), room, tries.avoid, tries.deadline);
            let attempted = match signed.await {
                Ok(request) => {
                    let attempted = self.attempt(&call, request, (by, dated), &mut tries).await;
                    *sent = tries.moved;
                    match attempted {
                        Some(attempted) => attempted,
                        None => return Err(tries.end(earlier.unwrap_or_else(|| tries.too_late()))),
                    }
                }
                Err(error) => self.unsigned(error, &by, &mut tries.once),
            };
            let mut again = match attempted {
                Attempt::Done(response) => return Ok(Answer { response }),
                Attempt::Refused(failed) => return Err(tries.end(failed)),
                Attempt::Again(again) if tries.is_of_our_own(&again) => return Err(tries.end(again.failed)),
                Attempt::Again(again) => again,
            };
            tries.note(&again);
            if let Some(id) = tries.sent.take().filter(|_| again.maybe_executed) {
                account.late.note(&self.name, &call, id, &*account.transport);
            }
            let until = tries.last_moment(&again, self.nobody_after);
            let Some(pause) = tries.pause(&again, until) else {
                return Err(tries.end(again.failed));
            };
            tracing::debug!(
                container = %self.name,
                method = %call.method,
                attempt = tries.attempt,
                pause_ms = pause.as_millis() as u64,
                error = %again.failed.error,
                "trying again"
            );
            dest.put_back(again.failed.dest.take());
            match again.wait {
                Wait::Newer(version) => account.credentials.newer_than(version, pause).await,
                _ => tokio::time::sleep(pause).await,
            }
            if again.costs && !account.share.repeat(until).await {
                return Err(tries.end(again.failed));
            }
            earlier = Some(again.failed);
            tries.attempt += 1;
            if let Some(observer) = account.observer.get() {
                observer.repeated();
            }
        }
    }

    /// What the next attempt is signed with.
    fn signer(&self, once: &Once) -> Arc<Held> {
        let one = self.signed_with.clone();
        one.unwrap_or_else(|| self.account.credentials.pick(&once.refusals))
    }

    /// Sends one attempt when it is its turn; `None` when that is not in time.
    async fn attempt(
        &self,
        call: &Call<'_>,
        mut request: Request,
        (mut by, mut dated): (Arc<Held>, SystemTime),
        tries: &mut Tries,
    ) -> Option<Attempt> {
        let account = &*self.account;
        let asked = Instant::now();
        // While the volume gets on it is only this one's turn that takes long.
        let until = || before(tries.deadline.max(account.progress.latest() + self.deadline));
        let turn = account.share.turn_while(until).await?;
        let sent = Instant::now();
        // So long as that was allowed it is not taken from the attempt.
        let in_line = tries.deadline + (sent - asked);
        tries.deadline = tries
            .deadline
            .max(in_line.min(account.progress.latest() + self.deadline));
        if sent - asked > SIGNED_FOR {
            dated = account.signing_time();
            by = self.signer(&tries.once);
            let room = request.dest.take();
            let signed = self.sign(call, (&by, dated), room, tries.avoid, tries.deadline);
            match signed.await {
                Ok(anew) => request = anew,
                Err(error) => return Some(self.unsigned(error, &by, &mut tries.once)),
            }
        }
        tries.sent = request.id();
        let sent = Instant::now();
        let left = tries.deadline.saturating_duration_since(sent);
        if left < SHORTEST_ATTEMPT {
            return None;
        }
        request.timeout = request.timeout.min(left);
        let moved = Arc::new(Moved::new(
            &account.progress,
            tries.content,
            tries.moved,
            request.timeout / LONG_EXCHANGE,
        ));
        request.moved = Arc::clone(&moved);
        let body = request.body.len();
        let span = self.span(call, &request, tries.attempt);
        let outcome = account.transport.send(request).instrument(span.clone()).await;
        note(&span, &outcome);
        let waits = moved.bytes() != body || body > ONE_GO && moved.is_untaken();
        let stalled = is_silence(&outcome) && moved.bytes() > 0 && waits;
        let (attempted, said) = self.judge(call, outcome, (&by, dated, sent.elapsed()), &mut tries.once);
        tries.learn(&moved);
        match said {
            Said::Well => {
                match attempted {
                    Attempt::Done(_) if call.stores() => account.progress.note_stored(),
                    _ => account.progress.note(),
                }
                turn.well();
            }
            Said::Busy(pause) => {
                turn.busy(pause);
                if let Some(observer) = account.observer.get() {
                    observer.throttled();
                }
            }
            Said::Nothing if stalled => turn.stalled(),
            Said::Nothing => {}
        }
        Some(attempted)
    }
}

impl Container {
    /// For traces; empty unless somebody collects them.
    fn span(&self, call: &Call<'_>, request: &Request, attempt: u32) -> Span {
        let method = call.method.as_str();
        let part = call.query.iter().find(|(name, _)| *name == "comp");
        tracing::info_span!(
            target: TRACE, "request", otel.name = method, otel.kind = "client",
            otel.status_code = Empty, az.namespace = "Microsoft.Storage", http.request.method = method,
            server.address = self.account.origin, container = %self.name, blob = call.blob,
            comp = part.map(|(_, comp)| comp.as_str()), http.request.resend_count = attempt,
            az.client_request_id = request.id().map(tracing::field::display),
            az.service_request_id = Empty, http.response.status_code = Empty, error.type = Empty
        )
    }
}

/// Notes in a trace what became of a request.
fn note(span: &Span, outcome: &Result<Response, TransportError>) {
    if span.is_disabled() {
        return;
    }
    match outcome {
        Ok(response) => {
            span.record("http.response.status_code", response.status.as_u16());
            let header = |name: &str| response.headers.get(name).and_then(|value| value.to_str().ok());
            if let Some(id) = header("x-ms-request-id") {
                span.record("az.service_request_id", id);
            }
            if response.status.is_client_error() || response.status.is_server_error() {
                span.record("otel.status_code", "ERROR");
                if let Some(code) = header("x-ms-error-code") {
                    span.record("error.type", code);
                }
            }
        }
        Err(error) => {
            span.record("otel.status_code", "ERROR");
            span.record("error.type", tracing::field::debug(error.kind));
        }
    }
}

/// Nothing moved any more.
fn is_silence(outcome: &Result<Response, TransportError>) -> bool {
    matches!(outcome, Err(error) if error.kind == FailureKind::TimedOut)
}

/// The last moment for an attempt that has to be over then.
fn before(deadline: Instant) -> Instant {
    deadline.checked_sub(SHORTEST_ATTEMPT).unwrap_or(deadline)
}

/// What the attempts of one call have in common.
struct Tries {
    began: Instant,
    /// How long they may go without progress.
    patience: Duration,
    /// When that is over, as things stand.
    deadline: Instant,
    /// See [`Call::content`].
    content: u64,
    /// Bytes that one of them has moved at most.
    moved: u64,
    /// Service's clock when the call began, when known.
    since: Option<SystemTime>,
    /// The attempt that is made now, from 0.
    attempt: u32,
    once: Once,
    /// The request that is out.
    sent: Option<uuid::Uuid>,
    /// An attempt may have been executed without an answer.
    lost: Option<Unanswered>,
    /// The path that the next attempt should not take.
    avoid: Option<Path>,
}

impl Tries {
    fn begin(patience: Duration, since: Option<SystemTime>) -> Self {
        let began = Instant::now();
        Self {
            began,
            patience,
            deadline: began + patience,
            content: 0,
            moved: 0,
            since,
            attempt: 0,
            once: Once::default(),
            sent: None,
            lost: None,
            avoid: None,
        }
    }

    /// How far an attempt has come.
    fn learn(&mut self, moved: &Moved) {
        if let Some(at) = moved.got_on() {
            self.moved = moved.bytes();
            self.deadline = self.deadline.max(at + self.patience);
        }
    }

    /// What an attempt without an answer for good says about those that follow.
    fn note(&mut self, again: &Again) {
        if again.maybe_executed {
            self.lost = self.lost.or(Some(Unanswered { since: self.since }));
        }
        self.avoid = match again.by {
            // One path may be well while nobody is reached over the other.
            By::Path(path) => Some(path),
            // Maybe the other path has a better one.
            By::Service if self.avoid == Some(Path::Channel) => None,
            By::Service => Some(Path::Channel),
            By::Neither => self.avoid,
        };
    }

    /// A copy that is pending may be the one that an earlier attempt has begun: looked at, not waited for.
    fn is_of_our_own(&self, again: &Again) -> bool {
        self.lost.is_some() && again.failed.code == "PendingCopyOperation"
    }

    /// When the next attempt has to be on its way.
    fn last_moment(&self, again: &Again, nobody_after: Option<Duration>) -> Instant {
        before(match nobody_after {
            Some(patience) if again.nobody => self.deadline.min(self.began + patience),
            _ => self.deadline,
        })
    }

    /// How long to wait before the next attempt; `None` when none is worth making.
    fn pause(&self, again: &Again, until: Instant) -> Option<Duration> {
        let pause = match again.wait {
            Wait::Pause | Wait::Newer(_) => pause(self.attempt),
            Wait::AtLeast(least) => pause(self.attempt).max(least),
            Wait::No => Duration::ZERO,
        };
        (pause < until.saturating_duration_since(Instant::now())).then_some(pause)
    }

    /// The account's turn came too late.
    fn too_late(&self) -> Failed {
        Failed::from(Error::DeadlineExceeded {
            waited: self.began.elapsed(),
        })
    }

    /// The call's failure, with what it says of all attempts.
    fn end(&self, mut failed: Failed) -> Failed {
        failed.lost = self.lost;
        if matches!(failed.error, Error::DeadlineExceeded { .. }) {
            failed.error = Error::DeadlineExceeded {
                waited: self.began.elapsed(),
            };
        }
        failed
    }
}

/// Where a call's answer goes, over all attempts.
struct Destination {
    /// Its full length; `None` when the call has none.
    len: Option<usize>,
    buffer: Option<Buffer>,
}

impl Destination {
    fn new(buffer: Option<Buffer>) -> Self {
        Self {
            len: buffer.as_ref().map(|d| d.len()),
            buffer,
        }
    }

    /// For one attempt. A new one where the last went down with its attempt: a device may still write there.
    fn take(&mut self, arena: &Arc<Arena>) -> Result<Option<Buffer>> {
        match (self.buffer.take(), self.len) {
            (Some(mut buffer), Some(len)) => {
                buffer.set_len(len);
                Ok(Some(buffer))
            }
            (None, Some(len)) => arena.alloc(len).map(Some).map_err(|source| Error::Io {
                call: "allocating a read buffer",
                source,
            }),
            (_, None) => Ok(None),
        }
    }

    fn put_back(&mut self, buffer: Option<Buffer>) {
        self.buffer = buffer;
    }
}

/// Doubling pauses, each drawn from its upper half; the first from 100 to 200 ms.
fn pause(attempt: u32) -> Duration {
    let longest = FIRST_PAUSE
        .saturating_mul(1 << attempt.min(10))
        .min(LONGEST_PAUSE);
    longest.mul_f64(rand::rng().random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests;
