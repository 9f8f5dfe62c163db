//! The environment's proxy: `https://` endpoints are reached through a tunnel that it makes (HTTP CONNECT).
//!
//! `HTTPS_PROXY` names it, `NO_PROXY` the hosts that are reached straight; both are read as curl reads them.
//! Plain `http://` is spoken to emulators and to the machine's identity endpoint, which no proxy can reach,
//! and never takes one.

use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use http::uri::Scheme;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tower::Service;

type BoxError = Box<dyn StdError + Send + Sync>;

/// Why there is no connection. The proxy is named without what logs in to it.
#[derive(Debug, Error)]
enum ProxyError {
    #[error("through the proxy {proxy} (HTTPS_PROXY)")]
    Tunnel { proxy: String, source: BoxError },
    #[error("HTTPS_PROXY: a proxy at http://HOST:PORT is wanted, not {scheme}://")]
    Scheme { scheme: String },
}

/// Which endpoints are reached through which proxy.
#[derive(Debug, Clone)]
pub(super) struct Proxies(Arc<Matcher>);

impl Proxies {
    /// As the environment says.
    pub(super) fn from_env() -> Self {
        Self(Arc::new(Matcher::from_env()))
    }

    /// Everything is reached straight.
    pub(super) fn none() -> Self {
        Self(Arc::new(Matcher::builder().build()))
    }

    /// A connector that keeps to it.
    pub(super) fn over(self, straight: HttpConnector) -> Proxied {
        Proxied {
            straight,
            proxies: self,
        }
    }
}

/// See [`Proxies::over`].
#[derive(Debug, Clone)]
pub(super) struct Proxied {
    straight: HttpConnector,
    proxies: Proxies,
}

impl Service<Uri> for Proxied {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.straight.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let proxy = match to.scheme() == Some(&Scheme::HTTPS) {
            true => self.proxies.0.intercept(&to),
            false => None,
        };
        let Some(proxy) = proxy else {
            let connecting = self.straight.call(to);
            return Box::pin(async move { connecting.await.map_err(Into::into) });
        };
        let at = proxy.uri();
        if at.scheme() != Some(&Scheme::HTTP) {
            let scheme = at.scheme_str().unwrap_or_default().to_owned();
            return Box::pin(async move { Err(ProxyError::Scheme { scheme }.into()) });
        }
        let told = match (at.host(), at.port_u16()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (host, _) => host.unwrap_or_default().to_owned(),
        };
        let mut tunnel = Tunnel::new(at.clone(), self.straight.clone());
        if let Some(login) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(login.clone());
        }
        let connecting = tunnel.call(to);
        Box::pin(async move {
            connecting.await.map_err(|error| {
                let source = error.into();
                ProxyError::Tunnel { proxy: told, source }.into()
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A proxy for one connection that gives this answer, and then speaks for the endpoint; what it was
    /// asked.
    async fn proxy(answer: &'static str) -> (String, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(stream.read_u8().await.unwrap());
            }
            stream
                .write_all(format!("HTTP/1.1 {answer}\r\n\r\n").as_bytes())
                .await
                .unwrap();
            // As with TLS the client speaks first, unless it has left after a refusal.
            if stream.read_exact(&mut [0; 5]).await.is_ok() {
                stream.write_all(b"the endpoint").await.unwrap();
            }
            String::from_utf8(asked).unwrap()
        });
        (at, served)
    }

    async fn connect(matcher: Matcher, to: &str) -> Result<TcpStream, BoxError> {
        let mut straight = HttpConnector::new();
        straight.enforce_http(false);
        let mut proxied = Proxies(Arc::new(matcher)).over(straight);
        std::future::poll_fn(|cx| proxied.poll_ready(cx)).await?;
        proxied.call(to.parse()?).await.map(TokioIo::into_inner)
    }

    fn chain(error: &BoxError) -> String {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        text
    }

    #[tokio::test]
    async fn https_goes_through_a_tunnel_and_logs_in() {
        let (at, served) = proxy("200 Connection established").await;
        let matcher = Matcher::builder().https(format!("http://me:canary@{at}")).build();
        let mut stream = connect(matcher, "https://acct.blob.core.windows.net/photos")
            .await
            .unwrap();
        stream.write_all(b"hello").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "the endpoint");
        let asked = served.await.unwrap();
        assert!(
            asked.starts_with("CONNECT acct.blob.core.windows.net:443 HTTP/1.1\r\n"),
            "{asked}"
        );
        // me:canary
        assert!(asked.contains("Basic bWU6Y2FuYXJ5"), "{asked}");
    }

    #[tokio::test]
    async fn exceptions_and_plain_http_go_straight() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap();
        // Nobody listens at the proxy's place.
        let matcher = || {
            Matcher::builder()
                .all("http://127.0.0.1:1")
                .no("example.org,127.0.0.0/8")
                .build()
        };
        connect(matcher(), &format!("https://{endpoint}/")).await.unwrap();
        let everything = Matcher::builder().all("http://127.0.0.1:1").build();
        connect(everything, &format!("http://{endpoint}/")).await.unwrap();
        let error = connect(matcher(), "https://acct.blob.core.windows.net/")
            .await
            .unwrap_err();
        assert!(chain(&error).contains("127.0.0.1:1"), "{}", chain(&error));
    }

    #[tokio::test]
    async fn a_refusal_names_the_proxy_and_not_the_login() {
        for answer in ["403 Forbidden", "407 Proxy Authentication Required"] {
            let (at, served) = proxy(answer).await;
            let matcher = Matcher::builder().https(format!("http://me:canary@{at}")).build();
            let error = connect(matcher, "https://acct.blob.core.windows.net/")
                .await
                .unwrap_err();
            let text = chain(&error);
            assert!(
                text.contains(&at) && text.contains("HTTPS_PROXY") && !text.contains("canary"),
                "{text}"
            );
            served.await.unwrap();
        }
    }

    #[tokio::test]
    async fn other_kinds_of_proxies_are_refused() {
        for other in ["https://127.0.0.1:1", "socks5://127.0.0.1:1"] {
            let matcher = Matcher::builder().https(other).build();
            let error = connect(matcher, "https://acct.blob.core.windows.net/")
                .await
                .unwrap_err();
            assert!(error.to_string().contains("HTTPS_PROXY"), "{error}");
        }
    }
}
