//! Health over HTTP for Kubernetes' probes: `/healthz` (the process works), `/readyz` (the node can mount),
//! `/metrics`.
//!
//! The process is asked the way kubelet asks it: Probe over its own CSI socket. Any answer within the
//! deadline means that it lives. Network, service and API server have no part in that: ending the process
//! would mend none of them, and would cost running pods their mounts.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use csi_proto::csi::ProbeRequest;
use csi_proto::csi::identity_client::IdentityClient;
use http::{Method, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::metrics::Metrics;
use crate::csi::identity::Check;
use crate::grpc::server;
use crate::mounts::bounded::{BoundedError, bounded};

/// How long the own socket may take to answer. Longer than any check of Probe.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long the checks of the own sockets may take. With what Probe allows itself for a disk that hangs (3 s)
/// it is less than the time that the kubelet gives an answer (5 s).
const CHECKS: Duration = Duration::from_secs(1);
/// Everybody who asks within this time gets the same answer.
const FRESH: Duration = Duration::from_secs(1);
/// Connections at a time: kubelet and a collector need two.
const CONNECTIONS: usize = 32;
/// How long a client may take to say what it wants, and to read the answer.
const CLIENT: Duration = Duration::from_secs(10);
/// After an accept that failed, normally for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The format of [`Metrics::text`].
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where health is served.
#[derive(Debug, Clone, Default, Args)]
pub struct HealthArgs {
    /// Serve /healthz, /readyz and /metrics over HTTP at this address, for instance 0.0.0.0:29653 or
    /// `[::]:29653`. Off when not given.
    #[arg(long, value_name = "IP:PORT", value_parser = address)]
    pub health_address: Option<SocketAddr>,
}

impl HealthArgs {
    /// Starts serving, if an address is given. Ends when what it returns is dropped. `socket` is being
    /// listened on already; once `stopping` is cancelled the process counts as alive and not ready, however
    /// long its end takes. `checks` come before the question to the socket: they mend what they can, and what
    /// they find makes it not ready.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn start(
        &self,
        socket: PathBuf,
        checks: Vec<Check>,
        metrics: Metrics,
        stopping: CancellationToken,
    ) -> anyhow::Result<Option<AbortOnDropHandle<()>>> {
        let Some(address) = self.health_address else {
            return Ok(None);
        };
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("--health-address {address}"))?;
        let address = listener.local_addr().context("--health-address")?;
        tracing::info!(%address, "serving health and metrics");
        let health = Arc::new(Health {
            socket,
            checks: checks.into(),
            checking: Arc::default(),
            metrics,
            stopping,
            latest: Mutex::default(),
        });
        Ok(Some(AbortOnDropHandle::new(tokio::spawn(accept(
            listener, health,
        )))))
    }
}

/// `IP:PORT`. An IPv6 address may come without its brackets, as Kubernetes gives the address of a pod: the
/// last part is the port.
fn address(text: &str) -> Result<SocketAddr, String> {
    let plain = || {
        let (ip, port) = text.rsplit_once(':')?;
        Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?))
    };
    text.parse()
        .ok()
        .or_else(plain)
        .ok_or_else(|| "not IP:PORT, for instance 0.0.0.0:29653 or [::]:29653".to_owned())
}

/// What the process said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Ready,
    /// It answers, and this is what is wrong.
    NotReady(String),
    /// It does not answer; why.
    Silent(String),
}

struct Health {
    socket: PathBuf,
    checks: Arc<[Check]>,
    /// A look at them has not ended yet.
    checking: Arc<AtomicBool>,
    metrics: Metrics,
    stopping: CancellationToken,
    latest: Mutex<Option<(Instant, State)>>,
}

type Answer = Response<Full<Bytes>>;

impl Health {
    /// Asks the own socket; one question at a time.
    async fn state(&self) -> State {
        let mut latest = self.latest.lock().await;
        if let Some((at, state)) = &*latest
            && at.elapsed() < FRESH
        {
            return state.clone();
        }
        // First: they bind a socket anew that was taken away.
        let wrong = self.wrong().await;
        let state = match tokio::time::timeout(DEADLINE, self.ask()).await {
            Ok(State::Ready) if !wrong.is_empty() => State::NotReady(wrong.join("; ")),
            Ok(state) => state,
            Err(_) => State::Silent(format!(
                "{} gave no answer within {DEADLINE:?}",
                self.socket.display()
            )),
        };
        if let State::Silent(why) = &state {
            tracing::error!(why, "the own socket does not answer");
        }
        *latest = Some((Instant::now(), state.clone()));
        state
    }

    /// What the checks say: a disk that hangs is a reason not to be ready, and none to be killed.
    async fn wrong(&self) -> Vec<String> {
        // One at a time: a thread that hangs stays.
        if self.checking.swap(true, Ordering::AcqRel) {
            return vec!["the checks before have not ended yet".to_owned()];
        }
        let (checks, checking) = (Arc::clone(&self.checks), Arc::clone(&self.checking));
        let checked = bounded("check", CHECKS, move || {
            let wrong: Vec<String> = checks.iter().filter_map(|check| check().err()).collect();
            checking.store(false, Ordering::Release);
            wrong
        });
        match checked.await {
            Ok(wrong) => wrong,
            Err(error) => {
                // Without a thread nobody else takes it back.
                if matches!(error, BoundedError::Thread { .. }) {
                    self.checking.store(false, Ordering::Release);
                }
                vec![error.to_string()]
            }
        }
    }

    async fn ask(&self) -> State {
        let channel = match server::connect(&self.socket).await {
            Ok(channel) => channel,
            Err(error) => return State::Silent(format!("{error:#}")),
        };
        match IdentityClient::new(channel).probe(ProbeRequest {}).await {
            Ok(answer) if answer.get_ref().ready != Some(false) => State::Ready,
            Ok(_) => State::NotReady("Probe: not ready".to_owned()),
            // The transport's own errors.
            Err(status) if std::error::Error::source(&status).is_some() => {
                State::Silent(format!("{}: {status}", self.socket.display()))
            }
            Err(status) => State::NotReady(status.message().to_owned()),
        }
    }

    async fn answer(&self, method: &Method, path: &str) -> Answer {
        if method != Method::GET && method != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".to_owned());
        }
        let stopping = self.stopping.is_cancelled();
        match path {
            "/healthz" if stopping => text(StatusCode::OK, "stopping\n".to_owned()),
            "/healthz" => match self.state().await {
                State::Ready | State::NotReady(_) => text(StatusCode::OK, "ok\n".to_owned()),
                State::Silent(why) => unavailable(&why),
            },
            "/readyz" if stopping => unavailable("stopping"),
            "/readyz" => match self.state().await {
                State::Ready => text(StatusCode::OK, "ok\n".to_owned()),
                State::NotReady(why) | State::Silent(why) => unavailable(&why),
            },
            "/metrics" => match self.metrics.text() {
                Ok(metrics) => typed(StatusCode::OK, OPEN_METRICS, metrics),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            },
            _ => text(
                StatusCode::NOT_FOUND,
                "there are /healthz, /readyz and /metrics\n".to_owned(),
            ),
        }
    }
}

fn unavailable(why: &str) -> Answer {
    text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"))
}

fn text(status: StatusCode, body: String) -> Answer {
    typed(status, "text/plain; charset=utf-8", body)
}

fn typed(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    let value = header::HeaderValue::from_static(content_type);
    answer.headers_mut().insert(header::CONTENT_TYPE, value);
    answer
}

async fn accept(listener: TcpListener, health: Arc<Health>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let health = Arc::clone(&health);
                tokio::spawn(async move {
                    serve(stream, health).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "health: a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One question per connection: probes come seldom, and idle connections would use up the room.
async fn serve(stream: TcpStream, health: Arc<Health>) {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let health = Arc::clone(&health);
        async move {
            let answer = health.answer(request.method(), request.uri().path()).await;
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(CLIENT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // A client that goes away or dawdles is its own business.
    let _ = tokio::time::timeout(DEADLINE + CLIENT, connection).await;
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use blob_client::transport::failover::Paths;
    use csi_proto::csi::identity_server::IdentityServer;
    use http_body_util::BodyExt as _;
    use tonic::service::Routes;
    use vsc_driver::buffer::Arena;

    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::csi::identity::IdentityService;
    use crate::csi::registration::RegistrationService;
    use crate::socket::Socket;

    #[test]
    fn an_address_is_taken_with_and_without_brackets() {
        for (text, wanted) in [
            ("10.1.2.3:29653", "10.1.2.3:29653"),
            ("[fd00::1]:29653", "[fd00::1]:29653"),
            ("fd00::1:29653", "[fd00::1]:29653"),
            (":::29653", "[::]:29653"),
            ("0.0.0.0:0", "0.0.0.0:0"),
        ] {
            assert_eq!(address(text).unwrap().to_string(), wanted, "{text}");
        }
        for text in [
            "29653",
            ":29653",
            "10.1.2.3",
            "fd00::1",
            "[fd00::1]",
            "host:1",
            "10.1.2.3:99999",
        ] {
            assert!(address(text).is_err(), "{text}");
        }
    }

    fn health(socket: &Path) -> Health {
        let arena = Arena::new(64 << 20).unwrap();
        let paths = Paths::new(None, arena, tokio::runtime::Handle::current());
        Health {
            socket: socket.to_owned(),
            checks: Arc::default(),
            checking: Arc::default(),
            metrics: Metrics::new(paths, None),
            stopping: CancellationToken::new(),
            latest: Mutex::default(),
        }
    }

    async fn get(health: &Health, path: &str) -> (u16, String) {
        let answer = health.answer(&Method::GET, path).await;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    fn identity(socket: &Path, checks: Vec<Check>) -> AbortOnDropHandle<()> {
        let (socket, incoming) = Socket::bind(socket).unwrap();
        let routes = Routes::new(IdentityServer::new(IdentityService::new("n", checks)));
        AbortOnDropHandle::new(tokio::spawn(async move {
            let never = std::future::pending();
            let _ = server::serve(&socket, incoming, routes, Default::default(), never).await;
        }))
    }

    #[tokio::test]
    async fn a_process_that_answers_is_alive_and_says_whether_it_is_ready() {
        let folder = tempfile::tempdir().unwrap();
        let good = folder.path().join("good.sock");
        let _serving = identity(&good, Vec::new());
        let healthy = health(&good);
        assert_eq!(get(&healthy, "/healthz").await, (200, "ok\n".into()));
        assert_eq!(get(&healthy, "/readyz").await, (200, "ok\n".into()));
        assert_eq!(get(&healthy, "/").await.0, 404);
        assert_eq!(healthy.answer(&Method::POST, "/healthz").await.status(), 405);

        let bad = folder.path().join("bad.sock");
        let check: Check = Arc::new(|| Err("/dev/fuse: not there".into()));
        let _serving = identity(&bad, vec![check]);
        let unready = health(&bad);
        assert_eq!(get(&unready, "/healthz").await.0, 200, "a restart would not help");
        let (status, why) = get(&unready, "/readyz").await;
        assert_eq!(status, 503);
        assert!(why.contains("/dev/fuse: not there"), "{why}");
    }

    /// A restart would take all mounts of the node away, and not mend the disk.
    #[tokio::test]
    async fn a_disk_that_hangs_is_no_reason_to_be_killed() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("csi.sock");
        let _serving = identity(&socket, Vec::new());
        let (end, hangs) = std::sync::mpsc::channel::<()>();
        let (hangs, looks) = (std::sync::Mutex::new(hangs), Arc::new(AtomicUsize::new(0)));
        let mut health = health(&socket);
        let look = Arc::clone(&looks);
        health.checks = Arc::new([Arc::new(move || {
            look.fetch_add(1, Ordering::SeqCst);
            let _ = hangs.lock().unwrap().recv();
            Ok(())
        }) as Check]);
        for _ in 0..3 {
            *health.latest.lock().await = None;
            assert_eq!(get(&health, "/healthz").await.0, 200);
            assert_eq!(get(&health, "/readyz").await.0, 503);
        }
        assert_eq!(
            looks.load(Ordering::SeqCst),
            1,
            "one thread hangs, not one for each probe"
        );
        drop(end);
        while health.checking.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
        *health.latest.lock().await = None;
        assert_eq!(get(&health, "/readyz").await.0, 200);
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_hangs_is_not_alive() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("csi.sock");
        // Accepts, by the kernel, and never answers.
        let _listener = Socket::bind(&socket).unwrap();
        let (status, why) = get(&health(&socket), "/healthz").await;
        assert_eq!(status, 503);
        assert!(why.contains("no answer within 5s"), "{why}");
    }

    #[tokio::test]
    async fn a_socket_that_is_gone_is_not_alive_unless_the_process_is_ending() {
        let health = health(Path::new("/nonexistent/csi.sock"));
        let (status, why) = get(&health, "/healthz").await;
        assert_eq!(status, 503);
        assert!(why.contains("/nonexistent/csi.sock"), "{why}");
        health.stopping.cancel();
        assert_eq!(get(&health, "/healthz").await.0, 200);
        assert_eq!(get(&health, "/readyz").await, (503, "stopping\n".into()));
    }

    #[tokio::test]
    async fn a_node_is_ready_once_kubelet_has_registered_the_driver() {
        use csi_proto::registration::RegistrationStatus;
        use csi_proto::registration::registration_server::Registration as _;

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("csi.sock");
        let _serving = identity(&path, Vec::new());
        let registration = RegistrationService::new("d", &path);
        let registry = folder.path().join("registry");
        let (socket, _incoming) = Socket::bind(&registration.socket(&registry)).unwrap();
        let mut health = health(&path);
        health.checks = Arc::new([registration.check(socket)]);
        // Its own answer, not the one of a moment ago.
        let fresh = async |path: &str| {
            *health.latest.lock().await = None;
            get(&health, path).await
        };
        let unregistered = async || {
            let (status, why) = fresh("/readyz").await;
            assert_eq!(status, 503);
            assert!(why.contains("not registered the driver yet"), "{why}");
            assert_eq!(fresh("/healthz").await.0, 200, "a restart would not help");
        };
        let told = async |plugin_registered: bool| {
            let status = RegistrationStatus {
                plugin_registered,
                ..RegistrationStatus::default()
            };
            let request = tonic::Request::new(status);
            registration.notify_registration_status(request).await.unwrap();
        };
        unregistered().await;
        told(true).await;
        assert_eq!(fresh("/readyz").await.0, 200);
        told(false).await;
        unregistered().await;
        told(true).await;
        // A socket that vanished is there again, and kubelet has to come again.
        std::fs::remove_dir_all(&registry).unwrap();
        unregistered().await;
        assert!(registration.socket(&registry).exists());
        told(true).await;
        assert_eq!(fresh("/readyz").await.0, 200);
    }

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let args = HealthArgs {
            health_address: Some(address),
        };
        let health = health(Path::new("/x"));
        let error = args
            .start(health.socket, Vec::new(), health.metrics, health.stopping)
            .await
            .unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(&format!("--health-address {address}")), "{error}");
    }
}
