//! Answers before they become HTTP: status, headers, shared body.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::content::Content;
use super::error::ServiceError;
use super::headers::Checked;
use super::version::Version;
use super::xml::Xml;

/// One answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Content,
}

impl Reply {
    /// An answer without a body.
    pub(super) fn new(status: u16) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            headers: HeaderMap::with_capacity(24),
            body: Content::default(),
        }
    }

    /// An XML body.
    pub(super) fn xml(status: u16, body: String) -> Self {
        let mut reply = Self::new(status).header("content-type", "application/xml");
        reply.body = body.into();
        reply
    }

    /// Sets a header; a value no header can carry is left out.
    pub(super) fn header(mut self, name: &'static str, value: impl AsRef<str>) -> Self {
        self.set(name, value);
        self
    }

    /// The same on a reference.
    pub(super) fn set(&mut self, name: &'static str, value: impl AsRef<str>) {
        if let Ok(value) = HeaderValue::from_bytes(value.as_ref().as_bytes()) {
            self.headers.insert(HeaderName::from_static(name), value);
        }
    }

    /// Sets a header when there is a value.
    pub(super) fn maybe(self, name: &'static str, value: Option<impl AsRef<str>>) -> Self {
        match value {
            Some(value) => self.header(name, value),
            None => self,
        }
    }

    /// `ETag` and `Last-Modified`.
    pub(super) fn version(self, version: Version) -> Self {
        self.header("etag", version.etag())
            .header("last-modified", version.http_date())
    }

    /// What every write answers: encryption, and the checksums that were checked.
    pub(super) fn written(self, checked: &Checked) -> Self {
        self.header("x-ms-request-server-encrypted", "true")
            .maybe("content-md5", checked.md5.as_deref())
            .maybe("x-ms-content-crc64", checked.crc64.as_deref())
    }

    /// An error as the service words it; HEAD and 304 carry no body.
    pub(super) fn error(error: &ServiceError, request_id: &str, bodyless: bool) -> Self {
        let mut reply = Self::new(error.status)
            .header("x-ms-error-code", &*error.code)
            .maybe(
                "retry-after",
                error.retry_after.map(|seconds| seconds.to_string()),
            );
        if error.status == 401 {
            reply.set(
                "www-authenticate",
                "Bearer authorization_uri=https://login.microsoftonline.com/common/oauth2/authorize \
                 resource_id=https://storage.azure.com",
            );
        }
        if bodyless || error.status == 304 {
            return reply;
        }
        let mut xml = Xml::new();
        xml.open("Error");
        xml.text("Code", &error.code);
        let time = time::OffsetDateTime::now_utc()
            .format(&time::format_description::well_known::Rfc3339)
            .unwrap_or_default();
        xml.text(
            "Message",
            &format!("{}\nRequestId:{request_id}\nTime:{time}", error.message),
        );
        for (name, value) in &error.details {
            xml.text(name, value);
        }
        xml.close("Error");
        reply.set("content-type", "application/xml");
        reply.body = xml.finish().into();
        reply
    }
}
