//! The environment's proxy: `https://` endpoints are reached through a tunnel that it makes (HTTP CONNECT).
//!
//! `HTTPS_PROXY` names it, `NO_PROXY` the hosts that are reached straight (see `no_proxy`).
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
use hyper_util::client::proxy::matcher::{Builder, Intercept, Matcher};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tower::Service;

use super::no_proxy::NoProxy;

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
pub(super) struct Proxies {
    through: Arc<Matcher>,
    except: NoProxy,
}

impl Proxies {
    /// As the environment says.
    pub(super) fn from_env() -> Self {
        let first = |names: [&str; 2]| names.iter().find_map(|name| std::env::var(name).ok());
        let proxy = |names| first(names).unwrap_or_default();
        Self::of(
            Matcher::builder()
                .all(proxy(["ALL_PROXY", "all_proxy"]))
                .https(proxy(["HTTPS_PROXY", "https_proxy"])),
            &first(["NO_PROXY", "no_proxy"]).unwrap_or_default(),
        )
    }

    /// Everything is reached straight.
    pub(super) fn none() -> Self {
        Self::of(Matcher::builder(), "")
    }

    fn of(through: Builder, except: &str) -> Self {
        Self {
            through: Arc::new(through.build()),
            except: NoProxy::new(except),
        }
    }

    /// The proxy for this endpoint, if there is one for it.
    fn proxy(&self, to: &Uri) -> Option<Intercept> {
        if to.scheme() != Some(&Scheme::HTTPS) || self.except.has(to.host()?, to.port_u16().unwrap_or(443)) {
            return None;
        }
        self.through.intercept(to)
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
        let Some(proxy) = self.proxies.proxy(&to) else {
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

    async fn connect(through: Builder, except: &str, to: &str) -> Result<TcpStream, BoxError> {
        let mut straight = HttpConnector::new();
        straight.enforce_http(false);
        let mut proxied = Proxies::of(through, except).over(straight);
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
        let through = Matcher::builder().https(format!("http://me:canary@{at}"));
        let mut stream = connect(through, "", "https://acct.blob.core.windows.net/photos")
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
        let through = || Matcher::builder().all("http://127.0.0.1:1");
        let except = "*.example.org,127.0.0.0/8";
        connect(through(), except, &format!("https://{endpoint}/"))
            .await
            .unwrap();
        connect(through(), "", &format!("http://{endpoint}/"))
            .await
            .unwrap();
        let error = connect(through(), except, "https://acct.blob.core.windows.net/")
            .await
            .unwrap_err();
        assert!(chain(&error).contains("127.0.0.1:1"), "{}", chain(&error));
    }

    #[tokio::test]
    async fn a_refusal_names_the_proxy_and_not_the_login() {
        for answer in ["403 Forbidden", "407 Proxy Authentication Required"] {
            let (at, served) = proxy(answer).await;
            let through = Matcher::builder().https(format!("http://me:canary@{at}"));
            let error = connect(through, "", "https://acct.blob.core.windows.net/")
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
            let through = Matcher::builder().https(other);
            let error = connect(through, "", "https://acct.blob.core.windows.net/")
                .await
                .unwrap_err();
            assert!(error.to_string().contains("HTTPS_PROXY"), "{error}");
        }
    }
}
