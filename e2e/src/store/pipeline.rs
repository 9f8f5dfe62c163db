//! The way of a request: looked at, authorized, executed, worded, counted.

use std::net::IpAddr;
use std::sync::PoisonError;
use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderValue, Method};

use super::address::Target;
use super::aids::{Counters, Fault, RequestRecord};
use super::auth::Presented;
use super::blob_store::BlobStore;
use super::content::Content;
use super::error::ServiceError;
use super::handlers::{self, Call};
use super::headers;
use super::job::{Belated, Ending, Job};
use super::operation::Operation;
use super::reply::Reply;

impl BlobStore {
    /// Looks at a request: which operation it is and what is to happen to it.
    pub(super) fn plan(&self, parts: &http::request::Parts) -> Job {
        let host = parts
            .headers
            .get(http::header::HOST)
            .and_then(|host| host.to_str().ok());
        let target = Target::parse(&parts.uri, host, &self.account.name);
        let operation = match &target {
            Ok(target) => Operation::of(&parts.method, target, &parts.headers),
            Err(_) => Operation::Unsupported,
        };
        let blob = target.as_ref().ok().and_then(|target| target.blob.as_deref());
        let (wait, fault) = self.aids.plan(operation, blob);
        Job {
            target,
            operation,
            wait,
            fault,
        }
    }

    /// Executes a request (unless its fault says not to) and words the answer.
    pub(super) fn run(
        &self,
        job: Job,
        parts: &http::request::Parts,
        body: Content,
        peer: Option<IpAddr>,
    ) -> (http::Response<Content>, Ending) {
        let request_id = uuid::Uuid::new_v4().to_string();
        let head = parts.method == Method::HEAD;
        let bytes_in = body.len();
        let (result, ending) = match &job.fault {
            Some(Fault::Answer {
                status,
                code,
                retry_after,
            }) => {
                let mut error = injected(*status, code);
                error.retry_after = *retry_after;
                (Err(error), Ending::Whole)
            }
            Some(Fault::EarlyAnswer { status, code }) => (Err(injected(*status, code)), Ending::Whole),
            Some(Fault::Disconnect) => (Err(ServiceError::internal_error()), Ending::NoAnswer),
            Some(Fault::Late) => {
                self.postpone(&job, parts, &body, peer);
                (Err(ServiceError::internal_error()), Ending::NoAnswer)
            }
            Some(Fault::AnswerAfter { status, code }) => {
                // What it was is of no interest: the caller is not told.
                let _ = self.authorized(&job, parts, body, peer);
                (Err(injected(*status, code)), Ending::Whole)
            }
            Some(Fault::Hang) => (Err(ServiceError::internal_error()), Ending::Hang),
            fault => {
                let ending = match fault {
                    Some(Fault::LoseAnswer) => Ending::NoAnswer,
                    Some(Fault::CutBody { after }) => Ending::Cut(*after),
                    _ => Ending::Whole,
                };
                if let Some(Fault::Doubled) = fault {
                    self.postpone(&job, parts, &body, peer);
                }
                (self.authorized(&job, parts, body, peer), ending)
            }
        };
        let mut reply = result.unwrap_or_else(|error| {
            let operation = job.operation.name();
            tracing::debug!(operation, status = error.status, code = %error.code, "refused");
            Reply::error(&error, &request_id, head)
        });
        self.finish(&mut reply, parts, &request_id, head);
        let bytes_out = reply.body.len();
        let status = reply.status.as_u16();
        let record = || RequestRecord {
            operation: job.operation,
            container: job.target.as_ref().ok().and_then(|t| t.container.clone()),
            blob: job.target.as_ref().ok().and_then(|t| t.blob.clone()),
            range: headers::text(&parts.headers, "x-ms-range")
                .or_else(|| headers::text(&parts.headers, "range"))
                .map(str::to_owned),
            status,
            bytes_in,
            bytes_out,
        };
        self.aids.note(
            record,
            job.operation,
            Counters {
                requests: 1,
                errors: u64::from(status >= 400),
                bytes_in,
                bytes_out,
            },
        );
        let mut response = http::Response::new(reply.body);
        *response.status_mut() = reply.status;
        *response.headers_mut() = reply.headers;
        (response, ending)
    }

    /// Keeps a request for [`BlobStore::execute_late`].
    fn postpone(&self, job: &Job, parts: &http::request::Parts, body: &Content, peer: Option<IpAddr>) {
        let mut job = job.clone();
        job.fault = None;
        let belated = Belated {
            job,
            parts: parts.clone(),
            body: body.clone(),
            peer,
        };
        self.belated
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(belated);
    }

    fn authorized(
        &self,
        job: &Job,
        parts: &http::request::Parts,
        body: Content,
        peer: Option<IpAddr>,
    ) -> Result<Reply, ServiceError> {
        let target = job.target.as_ref().map_err(Clone::clone)?;
        let settings = self.settings();
        if settings.https_only && !target.secure {
            return Err(ServiceError::account_requires_https());
        }
        if let Some(version) = headers::text(&parts.headers, "x-ms-version")
            && !is_version(version)
        {
            return Err(ServiceError::invalid_header("x-ms-version", version));
        }
        let grant = self.account.authenticate(
            &Presented {
                method: &parts.method,
                target,
                headers: &parts.headers,
                body_len: body.len(),
                peer,
                now: SystemTime::now(),
            },
            |token| {
                self.tokens
                    .read()
                    .unwrap_or_else(PoisonError::into_inner)
                    .contains(token)
            },
        )?;
        let public = target
            .container
            .as_deref()
            .and_then(|name| self.container(name).ok())
            .map(|container| container.lock().public);
        grant.allows(job.operation, public)?;
        handlers::dispatch(
            self,
            &Call {
                operation: job.operation,
                method: &parts.method,
                target,
                headers: &parts.headers,
                body,
                grant: &grant,
                peer,
                fault: job.fault.as_ref(),
                settings: &settings,
                now: self.clock.now(),
                instant: self.clock.instant(),
            },
        )
    }

    /// Headers every answer has.
    fn finish(&self, reply: &mut Reply, parts: &http::request::Parts, request_id: &str, head: bool) {
        reply.set("server", "Windows-Azure-Blob/1.0 vsc-blob-e2e");
        reply.set("x-ms-request-id", request_id);
        reply.set("date", httpdate::fmt_http_date(SystemTime::now()));
        let version = headers::text(&parts.headers, "x-ms-version").filter(|version| is_version(version));
        reply.set("x-ms-version", version.unwrap_or(NEWEST_VERSION));
        if let Some(id) = headers::text(&parts.headers, "x-ms-client-request-id")
            && id.len() <= 1024
        {
            reply.set("x-ms-client-request-id", id);
        }
        let bodyless =
            reply.status == http::StatusCode::NOT_MODIFIED || reply.status == http::StatusCode::NO_CONTENT;
        if !head && !bodyless {
            reply
                .headers
                .insert(http::header::CONTENT_LENGTH, HeaderValue::from(reply.body.len()));
        }
    }

    /// Runs a job with its body in one piece and its answer as memory.
    pub(super) fn execute_job(
        &self,
        job: Job,
        parts: &http::request::Parts,
        body: Bytes,
    ) -> (http::Response<Vec<Bytes>>, Ending) {
        let fault = job.fault.clone();
        let (response, ending) = self.run(job, parts, body.into(), None);
        let (mut parts, body) = response.into_parts();
        if let Some(fault) = fault {
            parts.extensions.insert(fault);
        }
        let response = match body.into_bytes() {
            Ok(pieces) => http::Response::from_parts(parts, pieces),
            Err(error) => {
                tracing::error!(%error, "cannot read blob data from the folder");
                let reply = Reply::error(&ServiceError::internal_error(), "", false);
                let mut response = http::Response::new(reply.body.joined().into_iter().collect());
                *response.status_mut() = reply.status;
                *response.headers_mut() = reply.headers;
                response
            }
        };
        (response, ending)
    }
}

/// An error that a fault rule wants.
fn injected(status: u16, code: &str) -> ServiceError {
    let message = "Injected by a fault rule of the embedded blob store.";
    ServiceError::new(status, code.to_owned(), message)
}

/// What is answered to requests that name no version.
const NEWEST_VERSION: &str = "2025-11-05";

/// `YYYY-MM-DD`: the store speaks every version since 2015-04-05 the same way.
fn is_version(text: &str) -> bool {
    text.len() == 10
        && text.bytes().enumerate().all(|(i, b)| match i {
            4 | 7 => b == b'-',
            _ => b.is_ascii_digit(),
        })
}
