//! Every host of the internet, behind a proxy: storage accounts that refuse everybody, login hosts and a
//! metadata service that give a token to everybody. What reaches which host is written down.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::{runtime, tree};
use crate::listener::{Listener, Settings, Tls};

/// Longest head of a request for a tunnel.
const LONGEST_HEAD: usize = 4096;
/// The host under which the metadata service is written down.
pub const METADATA: &str = "metadata";
/// A path with this word is answered with a redirection to [`Canary::start`]'s `elsewhere`.
pub const REDIRECT: &str = "redirect";

/// A request as it reached a host.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The host that the client meant.
    pub host: String,
    /// Path and query.
    pub path: String,
    /// The header, or nothing.
    pub authorization: String,
    /// The body.
    pub body: String,
}

#[derive(Debug)]
struct Hosts {
    elsewhere: String,
    seen: Mutex<Vec<Seen>>,
}

/// Serves until it is dropped.
#[derive(Debug)]
pub struct Canary {
    hosts: Arc<Hosts>,
    proxy: SocketAddr,
    metadata: Listener,
    accepting: JoinHandle<()>,
    certificate: PathBuf,
    _folder: tempfile::TempDir,
}

impl Canary {
    /// For hosts of these names; redirections lead to `elsewhere`.
    pub fn start(names: &[&str], elsewhere: &str) -> Result<Self> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names)?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
        let acceptor = Tls::new(vec![CertificateDer::from(made.cert.der().to_vec())], key)?.acceptor();
        let folder = tree::scratch()?;
        let certificate = folder.path().join("ca.pem");
        std::fs::write(&certificate, made.cert.pem())?;

        let hosts = Arc::new(Hosts {
            elsewhere: elsewhere.to_owned(),
            seen: Mutex::default(),
        });
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = runtime().block_on(TcpListener::bind(any_port))?;
        let proxy = listener.local_addr()?;
        let accepting = runtime().spawn(accept(listener, acceptor, Arc::clone(&hosts)));
        let settings = Settings {
            name: "metadata",
            addr: any_port,
            tls: None,
            threads: 1,
            connection: http1::Builder::new(),
        };
        let metadata = Listener::start(settings, {
            let hosts = Arc::clone(&hosts);
            move |_, request| answer(Arc::clone(&hosts), METADATA.to_owned(), request)
        })?;
        Ok(Self {
            hosts,
            proxy,
            metadata,
            accepting,
            certificate,
            _folder: folder,
        })
    }

    /// What a program needs in its environment to take this for the internet.
    pub fn environment(&self) -> Vec<(String, String)> {
        let certificate = self.certificate.display().to_string();
        [
            ("HTTPS_PROXY", format!("http://{}", self.proxy)),
            ("NO_PROXY", String::new()),
            ("SSL_CERT_FILE", certificate),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    /// A metadata service, without a query.
    pub fn metadata(&self) -> String {
        format!("{}/metadata/identity/oauth2/token", self.metadata.origin())
    }

    /// What was seen since the last look.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.hosts.lock())
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Hosts {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, hosts: Arc<Hosts>) {
    // Connections end with this task.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, hosts) = (acceptor.clone(), Arc::clone(&hosts));
        connections.spawn(async move {
            if let Err(error) = tunnel(stream, acceptor, hosts).await {
                tracing::debug!(%error, "a tunnel ended");
            }
        });
    }
}

/// Makes the tunnel (HTTP CONNECT), and speaks for the host at its other end.
async fn tunnel(mut stream: TcpStream, acceptor: TlsAcceptor, hosts: Arc<Hosts>) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
        if head.len() > LONGEST_HEAD {
            bail!("the head of a request for a tunnel does not end");
        }
    }
    let head = String::from_utf8(head)?;
    let target = head
        .strip_prefix("CONNECT ")
        .and_then(|rest| rest.split(' ').next());
    let (host, _) = target
        .and_then(|target| target.rsplit_once(':'))
        .context("no request for a tunnel")?;
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    let stream = acceptor.accept(stream).await?;
    let host = host.to_owned();
    let service = service_fn(move |request| answer(Arc::clone(&hosts), host.clone(), request));
    http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await?;
    Ok(())
}

async fn answer(
    hosts: Arc<Hosts>,
    host: String,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = match body.collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        Err(error) => error.to_string(),
    };
    let authorization = head.headers.get("authorization");
    let seen = Seen {
        path: head.uri.to_string(),
        authorization: authorization
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .unwrap_or_default(),
        host,
        body,
    };
    let (status, header, body) = if seen.path.contains(REDIRECT) {
        let there = format!("https://{}{}", hosts.elsewhere, head.uri.path());
        (StatusCode::TEMPORARY_REDIRECT, ("location", there), String::new())
    } else if head.uri.path().ends_with("/token") {
        let json = ("content-type", "application/json".to_owned());
        (StatusCode::OK, json, token(&seen))
    } else {
        let code = "AuthorizationPermissionMismatch";
        let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message></Error>");
        (StatusCode::FORBIDDEN, ("x-ms-error-code", code.to_owned()), body)
    };
    hosts.lock().push(seen);
    let response = Response::builder().status(status).header(header.0, header.1);
    Ok(response
        .body(Full::new(Bytes::from(body)))
        .unwrap_or_else(|error| Response::new(Full::new(Bytes::from(error.to_string())))))
}

/// A token that tells what it was given for.
fn token(request: &Seen) -> String {
    let proof = url::form_urlencoded::parse(request.body.as_bytes())
        .find(|(key, _)| matches!(key.as_ref(), "client_assertion" | "client_secret"));
    let of = |proof: &str| format!("token-for-{proof}");
    let answer = match proof {
        Some((_, proof)) => serde_json::json!({
            "token_type": "Bearer",
            "access_token": of(&proof),
            "expires_in": 3600,
        }),
        // The metadata service writes numbers as text.
        None => serde_json::json!({
            "token_type": "Bearer",
            "access_token": of(METADATA),
            "expires_in": "3600",
            "expires_on": "4102444800",
            "resource": "https://storage.azure.com",
        }),
    };
    answer.to_string()
}
