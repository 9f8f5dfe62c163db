//! azure_core's HTTP seam over our own transport.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use azure_core::error::ErrorKind;
use azure_core::http::headers::{HeaderName as AzureName, HeaderValue as AzureValue, Headers};
use azure_core::http::request::Body as AzureBody;
use azure_core::http::{AsyncRawResponse, HttpClient, Request as AzureRequest, StatusCode};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};

use crate::body::Body;
use crate::request::{COLLECT, Request};
use crate::secret::Secret;
use crate::transport::Transport;
use crate::transport::path::Path;

const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct PooledClient {
    transport: Arc<dyn Transport>,
    route: Route,
    /// Header `Secret`.
    secret: Option<Secret<String>>,
}

#[derive(Debug)]
enum Route {
    /// As the library says.
    Direct,
    /// The same with `http` (a fake authority).
    Plain,
    /// This endpoint with the library's query.
    To(url::Url),
}

impl PooledClient {
    pub(super) fn to_authority(transport: Arc<dyn Transport>, authority: &url::Url) -> Self {
        Self {
            transport,
            route: if authority.scheme() == "http" {
                Route::Plain
            } else {
                Route::Direct
            },
            secret: None,
        }
    }

    pub(super) fn to_endpoint(
        transport: Arc<dyn Transport>,
        endpoint: Option<url::Url>,
        secret: Option<Secret<String>>,
    ) -> Self {
        Self {
            transport,
            route: endpoint.map_or(Route::Direct, Route::To),
            secret,
        }
    }

    fn url(&self, asked: &url::Url) -> Option<Uri> {
        let url = match &self.route {
            Route::Direct => asked.to_string(),
            Route::Plain => format!("http{}", asked.as_str().strip_prefix("https")?),
            Route::To(endpoint) => {
                let mut url = endpoint.clone();
                url.set_query(asked.query());
                url.to_string()
            }
        };
        url.parse().ok()
    }
}

fn wrong(message: impl std::fmt::Display) -> azure_core::Error {
    azure_core::Error::with_message(ErrorKind::Other, message.to_string())
}

#[async_trait]
impl HttpClient for PooledClient {
    async fn execute_request(&self, request: &AzureRequest) -> azure_core::Result<AsyncRawResponse> {
        let url = self
            .url(request.url())
            .ok_or_else(|| wrong("the token endpoint is no valid URL"))?;
        let method = Method::from_bytes(request.method().as_ref().as_bytes()).map_err(wrong)?;
        let body: Bytes = match request.body() {
            AzureBody::Bytes(bytes) => bytes.clone(),
            AzureBody::SeekableStream(_) => return Err(wrong("token requests have no streams")),
        };
        let mut headers = HeaderMap::new();
        for (name, value) in request.headers().iter() {
            headers.insert(
                HeaderName::try_from(name.as_str()).map_err(wrong)?,
                HeaderValue::from_str(value.as_str()).map_err(|_| wrong("a header of a token request"))?,
            );
        }
        if let Some(secret) = &self.secret {
            let mut value =
                HeaderValue::from_str(secret.expose()).map_err(|_| wrong("msisecret is no header value"))?;
            value.set_sensitive(true);
            headers.insert("secret", value);
        }
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        let response = self
            .transport
            .send(Request {
                method,
                url,
                headers,
                body: Body::from(body),
                dest: None,
                collect: COLLECT,
                idempotent: true,
                avoid: Some(Path::Channel),
                timeout: TIMEOUT,
                moved: Arc::default(),
                ledger: None,
            })
            .await
            .map_err(|error| azure_core::Error::with_error(ErrorKind::Io, error, "token request"))?;
        let mut headers = Headers::new();
        for (name, value) in &response.headers {
            headers.insert(
                AzureName::from(name.as_str().to_owned()),
                AzureValue::from(String::from_utf8_lossy(value.as_bytes()).into_owned()),
            );
        }
        Ok(AsyncRawResponse::from_bytes(
            StatusCode::from(response.status.as_u16()),
            headers,
            response.body,
        ))
    }
}
