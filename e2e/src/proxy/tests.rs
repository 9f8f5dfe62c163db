//! Each fault, as a client sees it that takes connections apart itself.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Canned, Certificates, Fault, FaultProxy, Only, Rule, When};
use crate::vsp::Backend;

const BODY: &[u8] = b"0123456789";
const DATE: &str = "Sat, 21 Nov 2026 10:00:00 GMT";

/// Counts what it executes, and answers ten bytes, or what a listing would be.
#[derive(Debug, Default)]
struct Service(AtomicUsize);

#[async_trait]
impl Backend for Service {
    async fn execute(&self, request: Request<Bytes>) -> io::Result<Response<Vec<Bytes>>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        let list = format!(
            "<EnumerationResults><Last-Modified>{DATE}</Last-Modified><Etag>1</Etag></EnumerationResults>"
        );
        let body = match request.uri().query() {
            Some("comp=list") => Bytes::from(list),
            _ => Bytes::from_static(BODY),
        };
        Response::builder()
            .header("last-modified", DATE)
            .body(vec![body])
            .map_err(io::Error::other)
    }
}

struct World {
    service: Arc<Service>,
    certificates: Certificates,
    proxy: FaultProxy,
    runtime: tokio::runtime::Runtime,
}

impl World {
    fn new() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let service = Arc::new(Service::default());
        let certificates = Certificates::new(&["127.0.0.1"]).unwrap();
        let behind: Arc<dyn Backend> = Arc::clone(&service) as Arc<dyn Backend>;
        let proxy = FaultProxy::start(runtime.handle(), behind, &certificates).unwrap();
        Self {
            service,
            certificates,
            proxy,
            runtime,
        }
    }

    async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        let pem = self.certificates.pem().as_bytes();
        roots.add(CertificateDer::from_pem_slice(pem).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.proxy.addr()).await?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// All that comes until the connection ends, and whether it was reset.
    async fn ask_to_the_end(&self, request: &str) -> io::Result<(String, bool)> {
        let mut stream = self.connect().await?;
        stream.write_all(request.as_bytes()).await?;
        let mut all = Vec::new();
        let mut piece = [0; 1000];
        loop {
            match stream.read(&mut piece).await {
                Ok(0) => return Ok((String::from_utf8(all).unwrap(), false)),
                Ok(read) => all.extend_from_slice(&piece[..read]),
                Err(error) => {
                    let reset = error.kind() == io::ErrorKind::ConnectionReset;
                    return Ok((String::from_utf8(all).unwrap(), reset));
                }
            }
        }
    }

    /// What comes back of a fault that ends the connection.
    fn answer(&self, fault: Fault, request: &str) -> (String, bool) {
        self.proxy.set(Rule::all(fault));
        let answer = self.runtime.block_on(self.ask_to_the_end(request)).unwrap();
        self.proxy.heal();
        answer
    }

    /// One answer out of a connection that stays.
    async fn ask(&self, stream: &mut TlsStream<TcpStream>, request: &str) -> String {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut all = String::new();
        loop {
            if let Some((head, body)) = all.split_once("\r\n\r\n") {
                let length = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: "))
                    .map_or(0, |length| length.parse::<usize>().unwrap());
                if body.len() >= length {
                    return all;
                }
            }
            let mut piece = [0; 1000];
            let read = stream.read(&mut piece).await.unwrap();
            assert!(read > 0, "closed after {all:?}");
            all.push_str(std::str::from_utf8(&piece[..read]).unwrap());
        }
    }

    fn executed(&self) -> usize {
        self.service.0.load(Ordering::SeqCst)
    }
}

const GET: &str = "GET /a HTTP/1.1\r\nhost: x\r\n\r\n";
const PUT: &str = "PUT /a HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody";
const LIST: &str = "GET /a?comp=list HTTP/1.1\r\nhost: x\r\n\r\n";

#[test]
fn well_requests_are_relayed_one_after_the_other() {
    let world = World::new();
    world.runtime.block_on(async {
        let mut stream = world.connect().await.unwrap();
        for request in [GET, PUT, GET] {
            let answer = world.ask(&mut stream, request).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(answer.ends_with("\r\n\r\n0123456789"), "{answer}");
        }
    });
    assert_eq!(world.executed(), 3);
    let counters = world.proxy.counters();
    assert_eq!((counters.connections, counters.requests), (1, 3));
}

#[test]
fn answers_break_off_where_they_should() {
    let world = World::new();
    let (head, reset) = world.answer(Fault::HeadReset, GET);
    assert!(
        reset && head.starts_with("HTTP/1.1 200") && !head.contains("\r\n\r\n"),
        "{head:?}"
    );
    let (body, reset) = world.answer(Fault::BodyReset, GET);
    assert!(reset && body.ends_with("\r\n\r\n01234"), "{body:?}");
    let (body, reset) = world.answer(Fault::BodyClosed, GET);
    assert!(!reset && body.ends_with("\r\n\r\n01234"), "{body:?}");
    assert_eq!(world.answer(Fault::Lost, GET), (String::new(), false));
    assert_eq!(world.executed(), 4, "all of these are executed");
    assert_eq!(world.answer(Fault::RequestReset, PUT), (String::new(), true));
    assert_eq!(world.executed(), 4, "and this is not");
}

#[test]
fn lengths_lie_where_they_should() {
    let world = World::new();
    let short = world.answer(Fault::ClosedAfter, GET).0;
    assert!(short.ends_with("\r\n\r\n0123456789"), "{short}");
    world.proxy.set(Rule::all(Fault::Short).only(Only::Reads));
    world.runtime.block_on(async {
        let mut stream = world.connect().await.unwrap();
        let short = world.ask(&mut stream, GET).await;
        assert!(short.contains("content-length: 5\r\n") && short.ends_with("\r\n\r\n01234"));
        let list = world.ask(&mut stream, LIST).await;
        assert!(list.ends_with("</EnumerationResults>"), "{list}");
        world.proxy.set(Rule::all(Fault::Long).only(Only::Reads));
        assert!(
            world
                .ask(&mut stream, GET)
                .await
                .contains("content-length: 110\r\n")
        );
    });
}

/// Each second connection, with all that comes on it; and some time only.
#[test]
fn rules_are_for_some_connections_and_for_some_time() {
    let world = World::new();
    let busy = || Rule::all(Fault::Answered(Canned::of_the_service(503, "ServerBusy")));
    let when = |when| Rule { when, ..busy() };
    let hour = Duration::from_secs(3600);
    world.runtime.block_on(async {
        world.proxy.set(when(When::OnEach(2)));
        for number in 0..4 {
            let mut stream = world.connect().await.unwrap();
            for request in [GET, PUT] {
                let answer = world.ask(&mut stream, request).await;
                assert_eq!(
                    answer.starts_with("HTTP/1.1 503"),
                    number % 2 == 0,
                    "{number}: {answer}"
                );
            }
        }
        let mut stream = world.connect().await.unwrap();
        for (from, to, hit) in [(Duration::ZERO, hour, true), (hour, 2 * hour, false)] {
            world.proxy.set(when(When::Between(from, to)));
            let answer = world.ask(&mut stream, GET).await;
            assert_eq!(answer.starts_with("HTTP/1.1 503"), hit, "{answer}");
        }
    });
    assert_eq!(world.proxy.counters().hits, 5);
}

#[test]
fn a_clock_that_is_ahead_is_ahead_everywhere() {
    let world = World::new();
    world
        .proxy
        .set(Rule::all(Fault::ClockAhead(Duration::from_secs(600))));
    let list = world.runtime.block_on(async {
        let mut stream = world.connect().await.unwrap();
        world.ask(&mut stream, LIST).await
    });
    assert_eq!(list.matches("Sat, 21 Nov 2026 10:10:00 GMT").count(), 2, "{list}");
    assert!(list.contains("<Etag>1</Etag>"), "{list}");
}

#[test]
fn somebody_else_answers() {
    let world = World::new();
    world.runtime.block_on(async {
        let mut stream = world.connect().await.unwrap();
        let busy = Canned::of_the_service(503, "ServerBusy").header("retry-after", "1");
        world.proxy.set(Rule::each(2, Fault::Answered(busy.clone())));
        assert!(world.ask(&mut stream, GET).await.starts_with("HTTP/1.1 200 "));
        let answer = world.ask(&mut stream, GET).await;
        assert!(
            answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"),
            "{answer}"
        );
        assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
        assert_eq!(world.executed(), 1);
        world.proxy.set(Rule::all(Fault::AnsweredAfter(busy)));
        assert!(world.ask(&mut stream, GET).await.starts_with("HTTP/1.1 503 "));
        assert_eq!(world.executed(), 2);
        world.proxy.set(Rule {
            when: When::Above(0),
            ..Rule::all(Fault::Doubled)
        });
        world.ask(&mut stream, GET).await;
        assert_eq!(world.executed(), 4);
    });
    // Not one byte of the body is sent.
    let (head, _) = PUT.split_once("body").unwrap();
    let (answer, _) = world.answer(Fault::Early(Canned::of_a_proxy(417)), head);
    assert!(answer.starts_with("HTTP/1.1 417 "), "{answer}");
}

#[test]
fn what_is_late_is_executed_when_all_is_well_again() {
    let world = World::new();
    let late = Fault::Late(Duration::from_secs(3600));
    world.proxy.set(Rule::all(late));
    let answer = world.runtime.block_on(world.ask_to_the_end(PUT)).unwrap();
    assert_eq!((answer, world.executed()), ((String::new(), true), 0));
    world.proxy.heal();
    assert_eq!(world.executed(), 1);
}

#[test]
fn connections_fail_and_come_back() {
    let world = World::new();
    let connect = || world.runtime.block_on(world.connect());
    let mut kept = connect().unwrap();
    world.proxy.set(Rule::all(Fault::Refused));
    // The one that was there is cut, and nobody is there for another.
    let cut = world.runtime.block_on(kept.read(&mut [0; 1]));
    assert!(cut.is_err(), "{cut:?}");
    loop {
        let error = connect().unwrap_err();
        if error.kind() == io::ErrorKind::ConnectionRefused {
            break;
        }
    }
    world.proxy.heal();
    // Listening again takes a moment.
    while connect().is_err() {}
    world.proxy.set(Rule::all(Fault::HandshakeReset));
    connect().unwrap_err();
    world.proxy.set(Rule::all(Fault::WrongCertificate));
    let error = connect().unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    world.proxy.set(Rule::all(Fault::Mute));
    let waits = world.runtime.block_on(async {
        let waiting = tokio::time::timeout(Duration::from_millis(100), world.connect());
        waiting.await.is_err()
    });
    assert!(waits);
    world.proxy.set(Rule::all(Fault::Silent));
    world.runtime.block_on(async {
        let mut stream = world.connect().await.unwrap();
        stream.write_all(GET.as_bytes()).await.unwrap();
        // Received, and never answered.
        while world.proxy.counters().requests == 0 {
            tokio::task::yield_now().await;
        }
    });
    world.proxy.heal();
    assert_eq!(world.executed(), 0);
    world.runtime.block_on(async {
        let mut stream = world.connect().await.unwrap();
        world.ask(&mut stream, GET).await;
    });
}
