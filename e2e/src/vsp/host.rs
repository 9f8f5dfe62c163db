//! What the host does with one request: read it from the guest, execute it, write the answer into the guest.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{AUTHORIZATION, ETAG, HeaderName, HeaderValue, IF_MATCH, RANGE};
use http::{Method as HttpMethod, Request, StatusCode};
use nix::errno::Errno;
use serde::de::DeserializeOwned;
use vsc_driver::framing::request::{self, Authorization, SCHEMA_VERSION};
use vsc_driver::framing::response::{
    MAX_INLINE_BODY, Response, STORE_PAYLOAD_TOO_LARGE, STORE_SUCCESS, STORE_UNREACHABLE,
};
use vsc_driver::framing::{HEADER_LEN, Method, decode_request, encode_response};
use vsc_driver::uapi::{MAX_PAGES, RequestSync, STATUS_TIMEOUT};

use super::backend::Backend;
use super::behind::{self, Behind};
use super::faults::{Control, Plan, Reject, Spoil, Tally};
use super::memory::Guest;

/// Host status for a request it cannot make sense of (HRESULT of ERROR_INVALID_DATA).
const STATUS_BAD_REQUEST: u32 = 0x8007_000D;
/// Host status for a method it does not have (HRESULT of ERROR_NOT_SUPPORTED).
const STATUS_NOT_SUPPORTED: u32 = 0x8007_0032;
/// Store error of a failed OPEN or READ; an example value of the public tests. The HTTP status says more.
const STORE_FAILURE: i64 = 137_400_330;

/// Host status for an answer larger than the response buffer (HRESULT of ERROR_INSUFFICIENT_BUFFER).
const STATUS_NO_ROOM: u32 = 0x8007_007A;

const PAGE: u64 = 4096;
const SERVICE_VERSION: &str = "2021-12-02";

/// The 8 bytes the kernel would copy back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    pub(super) status: u32,
    pub(super) len: u32,
}

/// Everything behind the device.
#[derive(Debug)]
pub(super) struct Host {
    backend: Arc<dyn Backend>,
    control: Arc<Control>,
    handles: Mutex<HashMap<String, OpenBlob>>,
}

#[derive(Debug, Clone)]
struct OpenBlob {
    url: String,
    authorization: Option<Authorization>,
    etag: Option<HeaderValue>,
}

/// What is to be written into the guest, and what is to be answered.
#[derive(Debug, Default)]
struct Outcome {
    status: u32,
    /// `None`: nothing is written into the response buffer.
    body: Option<Response>,
    data: Vec<Bytes>,
}

impl Outcome {
    fn refused(status: u32) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }
}

impl Host {
    pub(super) fn new(backend: Arc<dyn Backend>, control: Arc<Control>) -> Self {
        Self {
            backend,
            control,
            handles: Mutex::default(),
        }
    }

    /// One call of the ioctl, checked in the order of the posted driver.
    pub(super) async fn call(&self, tid: u32, request: RequestSync) -> Result<Answer, Errno> {
        let refused = |errno| {
            Tally::add(&self.control.tally.refused, 1);
            errno
        };
        check(&request).map_err(refused)?;
        let guest = Guest::new(tid).map_err(refused)?;
        let frame = guest
            .read(request.request_buffer, request.request_len as usize)
            .map_err(refused)?;
        guest
            .probe(request.response_buffer, request.response_len)
            .map_err(refused)?;
        guest
            .probe(request.data_buffer, request.data_len)
            .map_err(refused)?;

        let mut plan = self.control.admit(&request).map_err(|reject| match reject {
            Reject::Full => {
                Tally::add(&self.control.tally.eagain, 1);
                Errno::EAGAIN
            }
            Reject::Denied => Errno::EACCES,
            Reject::Gone => {
                Tally::add(&self.control.tally.enodev, 1);
                Errno::ENODEV
            }
        })?;
        let _done = Done(&self.control);
        if plan.silent {
            // The kernel copies back what the guest itself had put there.
            return Ok(Answer {
                status: request.status,
                len: request.answer_len,
            });
        }
        if let Some(status) = plan.status {
            return Ok(Answer { status, len: 0 });
        }
        let payload = Bytes::from(
            guest
                .read(request.data_buffer, request.data_valid as usize)
                .map_err(refused)?,
        );
        Tally::add(&self.control.tally.bytes_in, payload.len());

        if let Some(postponed) = plan.postpone.take() {
            // An error means that the mock is being torn down, as below.
            let _ = postponed.await;
        }
        let work = self.execute(&frame, payload, &request, &plan);
        let mut outcome = match request.timeout_ms {
            0 => work.await,
            ms => tokio::time::timeout(Duration::from_millis(ms.into()), work)
                .await
                .unwrap_or_else(|_| Outcome::refused(STATUS_TIMEOUT)),
        };
        if let Some(held) = plan.hold {
            // An error means that the mock is being torn down; the answer can go all the same.
            let _ = held.await;
        }
        if let Some(late) = plan.late {
            tokio::time::sleep(late).await;
        }
        if plan.spoil == Some(Spoil::Protocol) {
            return Err(Errno::EPROTO);
        }
        if plan.spoil == Some(Spoil::Status) {
            return Ok(Answer {
                status: STATUS_NO_ROOM,
                len: 0,
            });
        }
        if plan.spoil == Some(Spoil::Data) {
            halve(&mut outcome);
        }
        self.answer(guest, &request, outcome, plan.spoil).map_err(refused)
    }

    /// Writes payload and response into the guest.
    fn answer(
        &self,
        guest: Guest,
        request: &RequestSync,
        outcome: Outcome,
        spoil: Option<Spoil>,
    ) -> Result<Answer, Errno> {
        guest.write(request.data_buffer, &outcome.data)?;
        Tally::add(
            &self.control.tally.bytes_out,
            outcome.data.iter().map(Bytes::len).sum(),
        );
        let mut answer = Answer {
            status: outcome.status,
            len: 0,
        };
        if let Some(body) = outcome.body {
            let mut response = vec![0; request.response_len as usize];
            let encoded = match spoil {
                Some(Spoil::Json) => encode_response(&"no object", &mut response),
                _ => encode_response(&body, &mut response),
            };
            match encoded {
                Ok(len) => {
                    response.truncate(len);
                    let len = spoil.map_or(len, |spoil| spoil_response(spoil, &mut response, request));
                    answer.len = len as u32;
                    if spoil != Some(Spoil::Unwritten) {
                        guest.write(request.response_buffer, &[Bytes::from(response)])?;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "response does not fit the guest's buffer");
                    answer.status = STATUS_NO_ROOM;
                }
            }
        }
        Tally::add(&self.control.tally.requests, 1);
        Ok(answer)
    }

    async fn execute(&self, frame: &[u8], payload: Bytes, request: &RequestSync, plan: &Plan) -> Outcome {
        let started = Instant::now();
        if !plan.latency.is_zero() {
            tokio::time::sleep(plan.latency).await;
        }
        let tally = &self.control.tally;
        let (method, json) = match decode_request(frame) {
            Ok(frame) => (Method::from_code(frame.method), frame.body),
            Err(error) => {
                tracing::debug!(%error, "request frame refused");
                return Outcome::refused(STATUS_BAD_REQUEST);
            }
        };
        let sent = payload.len();
        let executed = match method {
            Some(Method::Open) => {
                Tally::add(&tally.open, 1);
                match parse(json) {
                    Ok(body) => self.open(body, plan.behind).await,
                    Err(status) => return Outcome::refused(status),
                }
            }
            Some(Method::Read) => {
                Tally::add(&tally.read, 1);
                match parse(json) {
                    Ok(body) => self.read(body, request.data_len, plan.behind).await,
                    Err(status) => return Outcome::refused(status),
                }
            }
            Some(Method::Close) => {
                Tally::add(&tally.close, 1);
                match parse(json) {
                    Ok(body) => self.close(body),
                    Err(status) => return Outcome::refused(status),
                }
            }
            Some(Method::Rest) if !plan.refuse_rest => {
                Tally::add(&tally.rest, 1);
                match parse(json) {
                    Ok(body) => self.rest(body, payload, request, plan.behind).await,
                    Err(status) => return Outcome::refused(status),
                }
            }
            _ => {
                Tally::add(&tally.unknown, 1);
                return Outcome::refused(STATUS_NOT_SUPPORTED);
            }
        };
        let (mut body, data) = match executed {
            Ok(done) => done,
            Err(error) => {
                let body = Response {
                    status: STORE_UNREACHABLE,
                    http_status: StatusCode::BAD_GATEWAY.as_u16(),
                    error_description: error.to_string(),
                    ..Response::default()
                };
                (body, Vec::new())
            }
        };
        body.schema_version = SCHEMA_VERSION;
        if body.error_description.is_empty() {
            body.error_description = "OK".into();
        }
        if body.response_type.is_empty() {
            body.response_type = method.map(|method| format!("{method:?}")).unwrap_or_default();
        }
        body.response_timestamp = Some(httpdate::fmt_http_date(SystemTime::now()));
        let received: usize = data.iter().map(Bytes::len).sum();
        let transfer = self.control.transfer(sent + received);
        if !transfer.is_zero() {
            tokio::time::sleep(transfer).await;
        }
        body.elapsed_time_ms = started.elapsed().as_secs_f64() * 1000.0;
        Outcome {
            status: 0,
            body: Some(body),
            data,
        }
    }

    async fn open(&self, open: request::Open, behind: Option<Behind>) -> io::Result<(Response, Vec<Bytes>)> {
        let mut head = blob_request(HttpMethod::HEAD, &open.url, open.authorization.as_ref())?;
        if let Some(etag) = &open.if_match {
            head.headers_mut()
                .insert(IF_MATCH, etag.parse().map_err(io::Error::other)?);
        }
        let answer = behind::execute(&*self.backend, head, behind).await?;
        let mut body = describe(&answer, open.client_request_id);
        if answer.status() == StatusCode::OK {
            let key = uuid::Uuid::new_v4().to_string();
            let blob = OpenBlob {
                url: open.url,
                authorization: open.authorization,
                etag: answer.headers().get(ETAG).cloned(),
            };
            self.handles
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(key.clone(), blob);
            body.handle_key = Some(key);
        }
        Ok((body, Vec::new()))
    }

    async fn read(
        &self,
        read: request::Read,
        room: u32,
        behind: Option<Behind>,
    ) -> io::Result<(Response, Vec<Bytes>)> {
        let handle = self
            .handles
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&read.handle_key)
            .cloned();
        let Some(blob) = handle else {
            return Ok((unknown_handle(read.client_request_id), Vec::new()));
        };
        if read.length == 0 || read.length > u64::from(room) {
            let body = Response {
                error_description: format!("length {} where the data buffer has {room}", read.length),
                ..failure(StatusCode::BAD_REQUEST, read.client_request_id)
            };
            return Ok((body, Vec::new()));
        }
        let authorization = read.authorization.as_ref().or(blob.authorization.as_ref());
        let mut get = blob_request(HttpMethod::GET, &blob.url, authorization)?;
        let last = read.offset.saturating_add(read.length - 1);
        let range = format!("bytes={}-{last}", read.offset)
            .parse()
            .map_err(io::Error::other)?;
        get.headers_mut().insert(RANGE, range);
        if let Some(etag) = blob.etag {
            get.headers_mut().insert(IF_MATCH, etag);
        }
        let answer = behind::execute(&*self.backend, get, behind).await?;
        let mut body = describe(&answer, read.client_request_id);
        let mut data = Vec::new();
        if answer.status() == StatusCode::PARTIAL_CONTENT {
            data = cut(answer.into_body(), read.length as usize);
            body.bytes_read = Some(data.iter().map(|piece| piece.len() as u64).sum());
        }
        Ok((body, data))
    }

    fn close(&self, close: request::Close) -> io::Result<(Response, Vec<Bytes>)> {
        let known = self
            .handles
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&close.handle_key);
        let body = match known {
            Some(_) => Response {
                status: STORE_SUCCESS,
                http_status: 200,
                x_ms_client_request_id: Some(close.client_request_id),
                ..Response::default()
            },
            None => unknown_handle(close.client_request_id),
        };
        Ok((body, Vec::new()))
    }

    async fn rest(
        &self,
        rest: request::Rest,
        payload: Bytes,
        request: &RequestSync,
        behind: Option<Behind>,
    ) -> io::Result<(Response, Vec<Bytes>)> {
        let mut call = Request::builder().method(rest.method.as_str()).uri(&rest.target);
        for (name, value) in &rest.headers {
            call = call.header(name, value);
        }
        let call = call.body(payload).map_err(io::Error::other)?;
        let answer = behind::execute(&*self.backend, call, behind).await?;
        let status = answer.status();
        let mut body = Response {
            status: STORE_SUCCESS,
            http_status: status.as_u16(),
            headers: Some(
                answer
                    .headers()
                    .iter()
                    .map(|(name, value)| {
                        (
                            name.to_string(),
                            String::from_utf8_lossy(value.as_bytes()).into_owned(),
                        )
                    })
                    .collect(),
            ),
            ..Response::default()
        };
        let data = answer.into_body();
        let len: usize = data.iter().map(Bytes::len).sum();
        let into_buffer = status.is_success() && request.data_valid == 0 && request.data_len > 0;
        if into_buffer && len <= request.data_len as usize {
            body.bytes_read = Some(len as u64);
            return Ok((body, data));
        }
        body.bytes_read = Some(0);
        if into_buffer || (status.is_success() && len > MAX_INLINE_BODY) {
            body.status = STORE_PAYLOAD_TOO_LARGE;
            body.error_description = format!("a payload of {len} bytes where {} can be", request.data_len);
        } else {
            body.body = Some(cut(data, MAX_INLINE_BODY).concat()).filter(|body| !body.is_empty());
        }
        Ok((body, Vec::new()))
    }
}

/// Lowers the number of requests that are out, also when the task is dropped with the mock.
struct Done<'a>(&'a Control);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.done();
    }
}

/// Lengths, as the posted driver checks them before it takes a page.
fn check(request: &RequestSync) -> Result<(), Errno> {
    if request.request_len == 0 || request.response_len == 0 || request.data_len < request.data_valid {
        return Err(Errno::EINVAL);
    }
    let buffers = [
        (request.request_buffer, request.request_len),
        (request.response_buffer, request.response_len),
        (request.data_buffer, request.data_len),
    ];
    let pages: u64 = buffers
        .into_iter()
        .filter(|&(_, len)| len > 0)
        .map(|(address, len)| (address % PAGE + u64::from(len)).div_ceil(PAGE))
        .sum();
    if pages > MAX_PAGES as u64 {
        Err(Errno::EINVAL)
    } else {
        Ok(())
    }
}

/// The body, or the host status for one that is not understood.
fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, u32> {
    serde_json::from_slice(json).map_err(|error| {
        tracing::debug!(%error, "request body refused");
        STATUS_BAD_REQUEST
    })
}

fn blob_request(
    method: HttpMethod,
    url: &str,
    authorization: Option<&Authorization>,
) -> io::Result<Request<Bytes>> {
    let mut request = Request::builder()
        .method(method)
        .uri(url)
        .header(HeaderName::from_static("x-ms-version"), SERVICE_VERSION)
        .body(Bytes::new())
        .map_err(io::Error::other)?;
    if let Some(authorization) = authorization {
        let scheme = if authorization.kind == "AadBearer" {
            "Bearer"
        } else {
            &authorization.kind
        };
        let value =
            HeaderValue::from_str(&format!("{scheme} {}", authorization.token)).map_err(io::Error::other)?;
        request.headers_mut().insert(AUTHORIZATION, value);
    }
    Ok(request)
}

/// The published fields that every answer of the store gives.
fn describe(answer: &http::Response<Vec<Bytes>>, client_request_id: String) -> Response {
    let header = |name: &str| {
        answer
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(String::from)
    };
    let status = answer.status();
    Response {
        status: if status.is_success() {
            STORE_SUCCESS
        } else {
            STORE_FAILURE
        },
        http_status: status.as_u16(),
        error_description: if status.is_success() {
            String::new()
        } else {
            header("x-ms-error-code").unwrap_or_else(|| status.to_string())
        },
        x_ms_request_id: header("x-ms-request-id"),
        x_ms_version: header("x-ms-version"),
        x_ms_client_request_id: Some(client_request_id),
        ..Response::default()
    }
}

fn failure(status: StatusCode, client_request_id: String) -> Response {
    Response {
        status: STORE_FAILURE,
        http_status: status.as_u16(),
        x_ms_client_request_id: Some(client_request_id),
        ..Response::default()
    }
}

fn unknown_handle(client_request_id: String) -> Response {
    Response {
        error_description: "no such handleKey".into(),
        ..failure(StatusCode::NOT_FOUND, client_request_id)
    }
}

/// The first `len` bytes of a list of pieces.
fn cut(mut pieces: Vec<Bytes>, len: usize) -> Vec<Bytes> {
    let mut room = len;
    pieces.retain_mut(|piece| {
        piece.truncate(room);
        room -= piece.len();
        !piece.is_empty()
    });
    pieces
}

/// Pretends that half of the payload was all there is.
fn halve(outcome: &mut Outcome) {
    if let Some(body) = &mut outcome.body
        && let Some(bytes) = &mut body.bytes_read
    {
        *bytes /= 2;
        outcome.data = cut(std::mem::take(&mut outcome.data), *bytes as usize);
    }
}

/// Spoils an encoded response; answers the length to be claimed.
fn spoil_response(spoil: Spoil, response: &mut [u8], request: &RequestSync) -> usize {
    let len = response.len();
    match spoil {
        Spoil::Short => len / 2,
        Spoil::Empty => 0,
        Spoil::Overlong => request.response_len as usize + 1,
        Spoil::Crc | Spoil::Body | Spoil::Magic => {
            let at = match spoil {
                Spoil::Crc => 16,
                Spoil::Body => len.saturating_sub(1).max(HEADER_LEN),
                _ => 0,
            };
            if let Some(byte) = response.get_mut(at) {
                *byte ^= 1;
            }
            len
        }
        Spoil::Json | Spoil::Data | Spoil::Unwritten | Spoil::Protocol | Spoil::Status => len,
    }
}
