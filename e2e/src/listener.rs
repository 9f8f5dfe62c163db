//! HTTP/1.1 on a port, with or without TLS, on threads of its own: what the store and the token server listen
//! with.

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A certificate and its key, ready to serve.
#[derive(Clone)]
pub struct Tls(Arc<rustls::ServerConfig>);

impl Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads both from PEM files; the error says which of them is wrong.
    pub fn from_files(certificate: &Path, key: &Path) -> io::Result<Self> {
        let wrong = |path: &Path, error: &dyn std::fmt::Display| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{}: {error}", path.display()),
            )
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect)
            .map_err(|error| wrong(certificate, &error))?;
        let private = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, &error))?;
        Self::new(chain, private).map_err(|error| wrong(certificate, &error))
    }

    /// Of a certificate with those that vouch for it, and its key.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> io::Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(io::Error::other)?;
        Ok(Self(Arc::new(config)))
    }

    /// Takes connections with it.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.0))
    }
}

/// Who sends a request.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// Its address.
    pub addr: SocketAddr,
    /// Whether it came over TLS.
    pub tls: bool,
}

/// How a listener works.
#[derive(Debug)]
pub struct Settings {
    /// Name of its threads.
    pub name: &'static str,
    /// Where; port 0 = any.
    pub addr: SocketAddr,
    /// With TLS.
    pub tls: Option<Tls>,
    /// Threads that serve connections.
    pub threads: usize,
    /// Settings of each connection.
    pub connection: http1::Builder,
}

/// Serves until it is dropped.
#[derive(Debug)]
pub struct Listener {
    addr: SocketAddr,
    scheme: &'static str,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Listens, and answers each request with what `service` makes of it; its error ends the connection.
    pub fn start<S, F, B, E>(settings: Settings, service: S) -> io::Result<Self>
    where
        S: Fn(Peer, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Response<B>, E>> + Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
        E: Into<BoxError> + 'static,
    {
        let listener = TcpListener::bind(settings.addr)?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let name = settings.name;
        let scheme = if settings.tls.is_some() { "https" } else { "http" };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(settings.threads)
            .thread_name(name)
            .enable_all()
            .build()?;
        let acceptor = settings.tls.map(|tls| tls.acceptor());
        let connection = settings.connection;
        let serve = move |stream, addr| {
            let service = service.clone();
            let peer = Peer {
                addr,
                tls: acceptor.is_some(),
            };
            serve_one(stream, acceptor.clone(), connection.clone(), move |request| {
                service(peer, request)
            })
        };
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    result = accept(listener, serve) => {
                        if let Err(error) = result {
                            tracing::error!(%error, "{name} stopped listening");
                        }
                    }
                }
            });
        })?;
        Ok(Self {
            addr,
            scheme,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://ADDRESS:PORT` or `https://ADDRESS:PORT`.
    pub fn origin(&self) -> String {
        format!("{}://{}", self.scheme, self.addr)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(addr = %self.addr, "a listener panicked");
        }
    }
}

/// Gives each connection to `serve`, as a task of its own.
async fn accept<F>(listener: TcpListener, serve: impl Fn(TcpStream, SocketAddr) -> F) -> io::Result<()>
where
    F: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        let (stream, addr) = match listener.accept().await {
            Ok(accepted) => accepted,
            // A connection that died in the queue, or no descriptor free: the listener itself is fine.
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        // Answers are written whole; waiting for more would only delay them.
        let _ = stream.set_nodelay(true);
        let connection = serve(stream, addr);
        connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
}

async fn serve_one<S, F, B, E>(
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    connection: http1::Builder,
    service: S,
) -> Result<(), BoxError>
where
    S: Fn(Request<Incoming>) -> F,
    F: Future<Output = Result<Response<B>, E>>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
    E: Into<BoxError>,
{
    let stream: Box<dyn Stream> = match acceptor {
        None => Box::new(stream),
        Some(acceptor) => Box::new(acceptor.accept(stream).await?),
    };
    connection
        .serve_connection(TokioIo::new(stream), service_fn(service))
        .await?;
    Ok(())
}

/// Plain or TLS.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
