//! One REST call before it is signed.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use vsc_driver::buffer::Buffer;

use crate::auth::header_value;
use crate::body::{Body, Piece};
use crate::error::{Error, Result};
use crate::names;
use crate::request::COLLECT;
use crate::types::{Condition, Metadata};

/// Bytes at the ends of each piece of a body that tell it from another one.
const SAMPLE: usize = 4096;

/// A call before it is signed.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) blob: Option<&'a str>,
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
    pub(super) dest: Option<Buffer>,
    /// See [`Request::collect`](crate::request::Request::collect).
    pub(super) collect: usize,
    /// See [`Request::idempotent`](crate::request::Request::idempotent).
    pub(super) idempotent: bool,
    /// Bytes asked for, to be checked against what arrived.
    pub(super) range: Option<Range<u64>>,
    /// Root of the XML that answers it, likewise.
    pub(super) root: Option<&'static str>,
    /// What it copies.
    pub(super) source: Option<Source<'a>>,
}

/// The blob of the same container that a call copies. Each attempt gives leave to read it with what it is
/// signed with itself: of two credentials one may have ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) blob: &'a str,
    pub(super) read_by: ReadBy,
}

/// As whom the service reads a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadBy {
    /// As a reader of its own, who needs leave.
    Service,
    /// As the caller, where that is known by the request.
    Caller,
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
            collect: COLLECT,
            idempotent: true,
            range: None,
            root: None,
            source: None,
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

    /// It copies this blob.
    pub(super) fn source(mut self, blob: &'a str, read_by: ReadBy) -> Self {
        self.source = Some(Source { blob, read_by });
        self
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

    pub(super) fn metadata(mut self, metadata: &Metadata) -> Result<Self> {
        names::check_metadata(metadata)?;
        for (name, value) in metadata {
            self.headers.insert(metadata_header(name)?, header_value(value)?);
        }
        Ok(self)
    }

    /// Metadata whose values that are not ASCII stand in `raw`, byte for byte.
    pub(super) fn metadata_with(mut self, metadata: &Metadata, raw: &HeaderMap) -> Result<Self> {
        for (name, value) in metadata.iter().filter(|(_, value)| !value.is_ascii()) {
            let header = metadata_header(name)?;
            let Some(stored) = raw.get(&header) else {
                return Err(names::not_ascii(name, value));
            };
            self.headers.insert(header, stored.clone());
        }
        let ascii = |(_, value): &(&String, &String)| value.is_ascii();
        let said = metadata.iter().filter(ascii).map(|(k, v)| (k.clone(), v.clone()));
        self.metadata(&said.collect())
    }

    /// Headers that are there, or not.
    pub(super) fn headers(mut self, headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>) -> Self {
        self.headers.extend(headers);
        self
    }

    pub(super) fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    /// It is answered by XML with this root.
    pub(super) fn answered_by(mut self, root: &'static str) -> Self {
        self.root = Some(root);
        self
    }

    /// What it stores is data of a file: a change of names, of metadata or of a lease makes nobody room.
    pub(super) fn stores(&self) -> bool {
        self.method == Method::PUT && (self.source.is_some() || !self.body.is_empty())
    }

    /// Tells what is sent from other content, however often a call for it is made (blocks have another name
    /// each time): by the blob, the length and a sample.
    pub(super) fn content(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.blob, self.body.len()).hash(&mut hasher);
        for piece in &self.body.0 {
            let bytes: &[u8] = match piece {
                Piece::Bytes(bytes) => bytes,
                Piece::Slice(slice) => slice,
            };
            // All of a body could be told by no less than all of it; beginnings and ends differ in most.
            let ends = SAMPLE.min(bytes.len());
            bytes[..ends].hash(&mut hasher);
            bytes[bytes.len() - ends..].hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Sending it twice is not the same as sending it once: only this client repeats it, and then looks what
    /// happened.
    pub(super) fn not_idempotent(mut self) -> Self {
        self.idempotent = false;
        self
    }
}

fn metadata_header(name: &str) -> Result<HeaderName> {
    HeaderName::try_from(format!("x-ms-meta-{name}")).map_err(|e| Error::Argument {
        field: "metadata name",
        message: e.to_string(),
    })
}
