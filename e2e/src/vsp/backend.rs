//! What executes the requests that come through the device: the embedded store in process, or any blob
//! endpoint.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{HOST, HeaderValue};
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::store::BlobStore;

/// A blob service, as the mock VSP sees it.
#[async_trait]
pub trait Backend: Send + Sync + Debug {
    /// Executes one request with an absolute URI. Every HTTP status is an answer; an error means there was
    /// none. The answer's body may come in pieces, which are not joined.
    async fn execute(&self, request: Request<Bytes>) -> io::Result<Response<Vec<Bytes>>>;
}

#[async_trait]
impl Backend for BlobStore {
    async fn execute(&self, request: Request<Bytes>) -> io::Result<Response<Vec<Bytes>>> {
        self.execute_async(request).await
    }
}

/// A blob endpoint over HTTP or HTTPS: Azurite, the embedded store in another process, or the service itself.
#[derive(Debug)]
pub struct HttpBackend {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// Where requests go, when not where their URL says.
    endpoint: Option<(Scheme, Authority)>,
}

impl HttpBackend {
    /// Sends each request to the host its URL names, or all of them to `endpoint` (of which only scheme, host
    /// and port count: the path is part of what the guest has signed and stays).
    pub fn new(endpoint: Option<&Uri>) -> io::Result<Self> {
        let endpoint = match endpoint.map(|uri| uri.clone().into_parts()) {
            None => None,
            Some(parts) => match (parts.scheme, parts.authority) {
                (Some(scheme), Some(authority)) => Some((scheme, authority)),
                _ => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        "the endpoint needs scheme and host, like http://127.0.0.1:10000",
                    ));
                }
            },
        };
        // A machine without root certificates can still serve an endpoint over plain HTTP.
        let builder = match hyper_rustls::HttpsConnectorBuilder::new().with_native_roots() {
            Ok(builder) => builder,
            Err(error) => {
                tracing::debug!(%error, "no root certificates: only http endpoints will work");
                let tls = rustls::ClientConfig::builder_with_provider(Arc::new(
                    rustls::crypto::ring::default_provider(),
                ))
                .with_safe_default_protocol_versions()
                .map_err(io::Error::other)?
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
                hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls)
            }
        };
        let connector = builder.https_or_http().enable_http1().build();
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            endpoint,
        })
    }
}

#[async_trait]
impl Backend for HttpBackend {
    async fn execute(&self, request: Request<Bytes>) -> io::Result<Response<Vec<Bytes>>> {
        let mut request = request.map(Full::new);
        if let Some((scheme, authority)) = &self.endpoint {
            // By the host of its own URL the endpoint knows an account that is not in the path.
            if let Some(host) = request.uri().authority()
                && !request.headers().contains_key(HOST)
            {
                let host = HeaderValue::from_str(host.as_str()).map_err(io::Error::other)?;
                request.headers_mut().insert(HOST, host);
            }
            let mut parts = request.uri().clone().into_parts();
            parts.scheme = Some(scheme.clone());
            parts.authority = Some(authority.clone());
            *request.uri_mut() = Uri::from_parts(parts).map_err(io::Error::other)?;
        }
        let (parts, mut body) = self
            .client
            .request(request)
            .await
            .map_err(io::Error::other)?
            .into_parts();
        let mut pieces = Vec::new();
        while let Some(frame) = body.frame().await {
            if let Ok(piece) = frame.map_err(io::Error::other)?.into_data() {
                pieces.push(piece);
            }
        }
        Ok(Response::from_parts(parts, pieces))
    }
}
