//! A mounted mock over a small store of known bytes, a channel to it, and exchanges ready to send.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use e2e::vsp::{Backend, Faults, MockVsp};
use http::{Method as HttpMethod, Request, Response, StatusCode};
use serde::Serialize;
use vsc_driver::buffer::{Arena, Buffer};
use vsc_driver::channel::{Channel, ChannelConfig, ChannelError, Completion, Data, Exchange};
use vsc_driver::framing::request::{Rest, SCHEMA_VERSION};
use vsc_driver::framing::response::Response as Answer;
use vsc_driver::framing::{FrameError, Method, RESPONSE_CAPACITY, decode_response, encode_request};

/// A store of known bytes: `/pattern?len=N` is N bytes of [`pattern`], everything else is what was put there.
#[derive(Debug, Default)]
pub(crate) struct Pattern {
    pub(crate) blobs: Mutex<HashMap<String, Bytes>>,
}

/// Byte `i` of the pattern: no period that a shifted or repeated page could hide in.
pub(crate) fn pattern(i: usize) -> u8 {
    (i.wrapping_mul(2_654_435_761) >> 13) as u8
}

pub(crate) fn pattern_bytes(len: usize) -> Vec<u8> {
    (0..len).map(pattern).collect()
}

#[async_trait]
impl Backend for Pattern {
    async fn execute(&self, request: Request<Bytes>) -> io::Result<Response<Vec<Bytes>>> {
        let path = request.uri().path().to_owned();
        if path == "/unreachable" {
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "nobody there"));
        }
        if *request.method() == HttpMethod::PUT {
            self.blobs.lock().unwrap().insert(path, request.into_body());
            return Ok(Response::builder()
                .status(StatusCode::CREATED)
                .body(vec![])
                .unwrap());
        }
        let blob = match request.uri().query().and_then(|q| q.strip_prefix("len=")) {
            Some(len) => Bytes::from(pattern_bytes(len.parse().unwrap())),
            None => match self.blobs.lock().unwrap().get(&path) {
                Some(blob) => blob.clone(),
                None => {
                    let error = Bytes::from_static(b"<Error><Code>BlobNotFound</Code></Error>");
                    return Ok(Response::builder()
                        .status(StatusCode::NOT_FOUND)
                        .header("x-ms-error-code", "BlobNotFound")
                        .body(vec![error])
                        .unwrap());
                }
            },
        };
        let mut status = StatusCode::OK;
        let mut body = blob.clone();
        if let Some(range) = request.headers().get("range") {
            let (from, to) = range
                .to_str()
                .unwrap()
                .strip_prefix("bytes=")
                .unwrap()
                .split_once('-')
                .unwrap();
            let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
            status = StatusCode::PARTIAL_CONTENT;
            if from >= blob.len() {
                status = StatusCode::RANGE_NOT_SATISFIABLE;
                body = Bytes::new();
            } else {
                body = blob.slice(from..blob.len().min(to + 1));
            }
        }
        if *request.method() == HttpMethod::HEAD {
            body = Bytes::new();
        }
        // Uneven pieces, so that a vectored write has seams to get wrong.
        let third = body.len() / 3;
        let pieces = vec![
            body.slice(..third),
            Bytes::new(),
            body.slice(third..third * 2),
            body.slice(third * 2..),
        ];
        Ok(Response::builder()
            .status(status)
            .header("etag", "\"0x1\"")
            .header("x-ms-request-id", "r-1")
            .body(pieces)
            .unwrap())
    }
}

/// Fields drop in order: the mock before its folder.
pub(crate) struct Fixture {
    pub(crate) mock: MockVsp,
    pub(crate) store: Arc<Pattern>,
    pub(crate) arena: Arc<Arena>,
    _dir: tempfile::TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(Faults::default())
    }

    pub(crate) fn with(faults: Faults) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Pattern::default());
        let mock = MockVsp::mount_with(dir.path(), Arc::clone(&store) as Arc<dyn Backend>, faults).unwrap();
        Self {
            mock,
            store,
            arena: Arena::new(512 << 20).unwrap(),
            _dir: dir,
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        self._dir.path()
    }

    pub(crate) fn config(&self) -> ChannelConfig {
        ChannelConfig {
            device: self.mock.device(),
            grace: Duration::from_millis(300),
            ..ChannelConfig::default()
        }
    }

    pub(crate) fn channel(&self) -> Channel {
        Channel::open(self.config()).unwrap()
    }

    pub(crate) fn exchange<T: Serialize>(&self, method: Method, body: &T, data: Data) -> Exchange {
        let mut request = self.arena.alloc(8192).unwrap();
        let len = encode_request(method, body, &mut request).unwrap();
        request.set_len(len);
        Exchange {
            id: *b"test-test-test-1",
            timeout: Duration::from_secs(20),
            request,
            response: self.arena.alloc(RESPONSE_CAPACITY).unwrap(),
            data,
        }
    }

    pub(crate) fn rest(&self, method: &str, target: &str, data: Data) -> Exchange {
        let body = Rest {
            schema_version: SCHEMA_VERSION,
            method: method.into(),
            target: format!("http://store{target}"),
            headers: vec![("x-ms-version".into(), "2021-12-02".into())],
        };
        self.exchange(Method::Rest, &body, data)
    }

    /// A read of `len` pattern bytes into a fresh buffer.
    pub(crate) fn get(&self, len: usize) -> Exchange {
        let buffer = self.arena.alloc(len).unwrap();
        self.rest("GET", &format!("/pattern?len={len}"), Data::In(buffer))
    }
}

/// Parses the response of a completed exchange.
pub(crate) fn answer(completion: &Completion) -> Result<Answer, FrameError> {
    decode_response(&completion.exchange.response, completion.response_len)
}

pub(crate) fn data_in(completion: &Completion) -> &Buffer {
    match &completion.exchange.data {
        Data::In(buffer) => buffer,
        other => panic!("{other:?}"),
    }
}

/// Sends a small read and checks all of it.
pub(crate) async fn works(fixture: &Fixture, channel: &Channel) -> Result<(), ChannelError> {
    let completion = channel.submit(fixture.get(10_000)).await?;
    assert_eq!(completion.status, 0);
    let answer = answer(&completion).unwrap();
    assert_eq!((answer.http_status, answer.bytes_read), (200, Some(10_000)));
    assert_eq!(data_in(&completion)[..], pattern_bytes(10_000)[..]);
    Ok(())
}

/// Waits for a condition; the limit only ends a test that would fail anyway.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "never happened: {what}"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
