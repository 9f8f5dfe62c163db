//! HTTP/1.1 as bytes: requests taken off a connection, answers put on it.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A head that is longer is none: 8 KiB of metadata, a header each, fit several times.
const LONGEST_HEAD: usize = 256 << 10;
/// One read of the connection.
const READ: usize = 64 << 10;
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// A connection with the bytes that were read too many.
#[derive(Debug)]
pub(super) struct Wire<S> {
    stream: S,
    read: BytesMut,
}

/// A request without its body.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) target: String,
    pub(super) headers: HeaderMap,
    /// Of its body.
    pub(super) length: usize,
}

/// An answer as it goes out.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// Its head, as it is for a request of this method.
    pub(super) fn head(&self, method: &Method) -> Vec<u8> {
        let reason = self.status.canonical_reason().unwrap_or_default();
        let mut head = format!("HTTP/1.1 {} {reason}\r\n", self.status.as_u16()).into_bytes();
        let mut put = |name: &[u8], value: &[u8]| {
            head.extend_from_slice(&[name, b": ", value, b"\r\n"].concat());
        };
        for (name, value) in &self.headers {
            put(name.as_str().as_bytes(), value.as_bytes());
        }
        if !self.headers.contains_key(CONTENT_LENGTH) && self.has_body(method) {
            put(b"content-length", self.body.len().to_string().as_bytes());
        }
        head.extend_from_slice(b"\r\n");
        head
    }

    /// Whether it has a body after its head.
    pub(super) fn has_body(&self, method: &Method) -> bool {
        let bodyless = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&self.status);
        *method != Method::HEAD && !bodyless
    }

    /// Takes another body, with its length.
    pub(super) fn set_body(&mut self, body: Bytes) {
        self.headers
            .insert(CONTENT_LENGTH, HeaderValue::from(body.len() as u64));
        self.body = body;
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            read: BytesMut::new(),
        }
    }

    /// The connection itself.
    pub(super) fn stream(&self) -> &S {
        &self.stream
    }

    /// The next request's head; `None` when the peer has closed the connection before it.
    pub(super) async fn head(&mut self) -> io::Result<Option<Head>> {
        loop {
            let end = self
                .read
                .windows(END_OF_HEAD.len())
                .position(|window| window == END_OF_HEAD);
            if let Some(end) = end {
                let head = self.read.split_to(end);
                self.read.advance(END_OF_HEAD.len());
                return parse(&head).map(Some);
            }
            if self.read.len() > LONGEST_HEAD {
                return Err(wrong("the head of a request does not end"));
            }
            if self.more().await? == 0 {
                return if self.read.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }

    /// So much of its body.
    pub(super) async fn body(&mut self, length: usize) -> io::Result<Bytes> {
        while self.read.len() < length {
            if self.more().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.read.split_to(length).freeze())
    }

    async fn more(&mut self) -> io::Result<usize> {
        self.read.reserve(READ);
        self.stream.read_buf(&mut self.read).await
    }

    /// Puts bytes on the connection.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Says that nothing more comes.
    pub(super) async fn end(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }

    /// The same, and reads to the end of what the peer sends.
    pub(super) async fn close(&mut self) -> io::Result<()> {
        self.end().await?;
        loop {
            self.read.clear();
            if self.more().await? == 0 {
                return Ok(());
            }
        }
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn parse(head: &[u8]) -> io::Result<Head> {
    let text = std::str::from_utf8(head).map_err(|_| wrong("a head that is not UTF-8"))?;
    let mut lines = text.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(wrong("a request line without a target"));
    };
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| wrong("a header without a colon"))?;
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(io::Error::other)?;
        headers.append(
            name,
            HeaderValue::from_bytes(value.trim().as_bytes()).map_err(io::Error::other)?,
        );
    }
    if headers.contains_key(TRANSFER_ENCODING) {
        return Err(wrong("a body in chunks, which this proxy does not take"));
    }
    let length = match headers.get(CONTENT_LENGTH).map(HeaderValue::to_str) {
        None => 0,
        Some(Ok(text)) => text.parse().map_err(io::Error::other)?,
        Some(Err(error)) => return Err(io::Error::other(error)),
    };
    Ok(Head {
        method: method.parse().map_err(io::Error::other)?,
        target: target.to_owned(),
        headers,
        length,
    })
}
