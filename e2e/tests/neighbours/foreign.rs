//! A client that is not ours: signed requests to the embedded store, with whatever headers an owner likes.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use e2e::harness::setup::Setup;
use e2e::store::{AccountKey, BlobStore, DEV_ACCOUNT, DEV_KEY};
use http::{HeaderName, HeaderValue, Method, Request};

/// Somebody with the account's key.
pub(crate) struct Foreign {
    store: Arc<BlobStore>,
    container: String,
    key: AccountKey,
}

/// What was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: http::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> String {
        let value = self
            .headers
            .get(name)
            .map(HeaderValue::as_bytes)
            .unwrap_or_default();
        String::from_utf8_lossy(value).into_owned()
    }
}

impl Foreign {
    /// Works in a container, which is made.
    pub(crate) fn new(setup: &Setup, container: &str) -> Result<Self> {
        setup.backend().create_container(container)?;
        Ok(Self {
            store: Arc::clone(setup.backend().store().context("the embedded store")?),
            container: container.to_owned(),
            key: AccountKey::new(DEV_ACCOUNT, DEV_KEY)?,
        })
    }

    /// One request; `path` is what follows the container.
    pub(crate) fn call(
        &self,
        method: &Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer> {
        let url: http::Uri = format!("http://127.0.0.1/{DEV_ACCOUNT}/{}{path}", self.container).parse()?;
        let mut request = Request::builder()
            .method(method)
            .uri(&url)
            .body(Bytes::copy_from_slice(body))?;
        let map = request.headers_mut();
        map.insert("x-ms-version", HeaderValue::from_static("2023-11-03"));
        for (name, value) in headers {
            map.insert(
                HeaderName::try_from(*name)?,
                HeaderValue::from_bytes(value.as_bytes())?,
            );
        }
        if !body.is_empty() {
            map.insert(http::header::CONTENT_LENGTH, body.len().into());
        }
        self.key.authorize(method, &url, map, body.len() as u64)?;
        let response = self.store.execute(request);
        Ok(Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.into_body().concat(),
        })
    }

    fn done(&self, method: &Method, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer> {
        let answer = self.call(method, path, headers, body)?;
        let code = answer.header("x-ms-error-code");
        ensure!(answer.status < 300, "{method} {path}: {} {code}", answer.status);
        Ok(answer)
    }

    /// Puts a block blob.
    pub(crate) fn put(&self, name: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer> {
        let all: Vec<_> = [("x-ms-blob-type", "BlockBlob")]
            .into_iter()
            .chain(headers.iter().copied())
            .collect();
        self.done(&Method::PUT, &format!("/{name}"), &all, body)
    }

    /// Puts a blob of blocks of this size.
    pub(crate) fn put_blocks(
        &self,
        name: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        block: usize,
    ) -> Result<Answer> {
        let mut list = String::from("<BlockList>");
        for (number, part) in body.chunks(block).enumerate() {
            // Eight characters are base64 of six bytes, whatever the digits.
            let id = format!("{number:08}");
            self.done(
                &Method::PUT,
                &format!("/{name}?comp=block&blockid={id}"),
                &[],
                part,
            )?;
            list.push_str(&format!("<Latest>{id}</Latest>"));
        }
        list.push_str("</BlockList>");
        self.done(
            &Method::PUT,
            &format!("/{name}?comp=blocklist"),
            headers,
            list.as_bytes(),
        )
    }

    /// Makes an append or page blob.
    pub(crate) fn make(&self, kind: &str, name: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        let all: Vec<_> = [("x-ms-blob-type", kind)]
            .into_iter()
            .chain(headers.iter().copied())
            .collect();
        self.done(&Method::PUT, &format!("/{name}"), &all, b"")
    }

    /// Appends to an append blob.
    pub(crate) fn append(&self, name: &str, bytes: &[u8]) -> Result<Answer> {
        self.done(&Method::PUT, &format!("/{name}?comp=appendblock"), &[], bytes)
    }

    /// Replaces metadata.
    pub(crate) fn set_metadata(&self, name: &str, metadata: &[(&str, &str)]) -> Result<Answer> {
        self.done(&Method::PUT, &format!("/{name}?comp=metadata"), metadata, b"")
    }

    /// Headers of a blob.
    pub(crate) fn head(&self, name: &str) -> Result<Answer> {
        self.done(&Method::HEAD, &format!("/{name}"), &[], b"")
    }

    /// Whether there is a blob of exactly this name.
    pub(crate) fn exists(&self, name: &str) -> Result<bool> {
        Ok(self.call(&Method::HEAD, &format!("/{name}"), &[], b"")?.status == 200)
    }

    /// Content of a blob.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>> {
        Ok(self.done(&Method::GET, &format!("/{name}"), &[], b"")?.body)
    }

    /// Tags of a blob, as the service writes them.
    pub(crate) fn tags(&self, name: &str) -> Result<String> {
        let body = self
            .done(&Method::GET, &format!("/{name}?comp=tags"), &[], b"")?
            .body;
        let text = String::from_utf8(body)?;
        let inner = text
            .split_once("<TagSet>")
            .and_then(|(_, rest)| rest.split_once("</TagSet>"));
        Ok(inner.map(|(tags, _)| tags.to_owned()).unwrap_or_default())
    }

    /// The headers that an owner may set, with their values.
    pub(crate) fn owned(&self, name: &str) -> Result<BTreeMap<&'static str, String>> {
        const OWNED: [&str; 8] = [
            "content-type",
            "content-encoding",
            "content-language",
            "content-disposition",
            "cache-control",
            "x-ms-access-tier",
            "x-ms-access-tier-inferred",
            "x-ms-tag-count",
        ];
        let head = self.head(name)?;
        Ok(OWNED
            .into_iter()
            .map(|header| (header, head.header(header)))
            .collect())
    }
}
