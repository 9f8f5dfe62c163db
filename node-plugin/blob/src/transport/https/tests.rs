//! The transport against servers that behave, and servers that do not.

use std::future::Future;
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use vsc_driver::buffer::{Arena, Buffer};

use super::bodies::FRAME;
use super::*;
use crate::body::{Body, Piece};

/// A server whose connections are handled by `serve`, the how-manieth first; its URL.
async fn server<F, S>(serve: S) -> String
where
    S: Fn(usize, TcpStream) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/x", listener.local_addr().unwrap());
    tokio::spawn(async move {
        for n in 0.. {
            let Ok((stream, _)) = listener.accept().await else {
                return;
            };
            tokio::spawn(serve(n, stream));
        }
    });
    url
}

/// Reads one request, up to the end of a body of its Content-Length.
async fn read_request(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        if let Some(end) = all.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&all[..end]).to_lowercase();
            let length: usize = head
                .lines()
                .find_map(|l| l.strip_prefix("content-length: ")?.parse().ok())
                .unwrap_or(0);
            if all.len() >= end + 4 + length {
                return Some(all);
            }
        }
        match stream.read(&mut chunk).await {
            Ok(n) if n > 0 => all.extend_from_slice(&chunk[..n]),
            _ => return None,
        }
    }
}

fn arena() -> Arc<Arena> {
    Arena::new(64 << 20).unwrap()
}

fn plain() -> Https {
    Https::with_roots(rustls::RootCertStore::empty())
}

fn request(method: Method, url: &str, body: Body, dest: Option<Buffer>) -> Request {
    let mut headers = HeaderMap::new();
    if method == Method::PUT {
        headers.insert(http::header::CONTENT_LENGTH, body.len().into());
    }
    Request {
        method,
        url: url.parse().unwrap(),
        headers,
        body,
        dest,
        collect: crate::request::COLLECT,
        idempotent: true,
        avoid: None,
        timeout: Duration::from_secs(10),
        moved: Arc::default(),
        ledger: None,
    }
}

fn get(url: &str, dest: Option<Buffer>) -> Request {
    request(Method::GET, url, Body::default(), dest)
}

fn ok(body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

#[tokio::test]
async fn a_body_of_pieces_arrives_in_order_and_connections_are_kept() {
    let url = server(|connection, mut stream| async move {
        while let Some(request) = read_request(&mut stream).await {
            let head = request.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
            // Which connection, then what was sent.
            let echo = [&[connection as u8], &request[head..]].concat();
            stream.write_all(&ok(&echo)).await.unwrap();
        }
    })
    .await;
    let https = plain();
    let arena = arena();
    let long: Vec<u8> = (0..700_000_u32).map(|i| (i / 7) as u8).collect();
    let mut buffer = arena.alloc(long.len()).unwrap();
    buffer.copy_from_slice(&long);
    let body = Body(vec![
        Piece::Bytes(Bytes::from_static(b"first")),
        Piece::Bytes(Bytes::new()),
        Piece::Slice(buffer.freeze()),
        Piece::Bytes(Bytes::from_static(b"last")),
    ]);
    let expected = [b"\0first".as_slice(), &long, b"last"].concat();
    for _ in 0..3 {
        let answer = https
            .send(request(Method::PUT, &url, body.clone(), None))
            .await
            .unwrap();
        assert_eq!(answer.status, StatusCode::OK);
        assert!(answer.body[..] == expected[..]);
    }
    let stats = &https.stats()[0];
    assert_eq!((stats.requests, stats.errors), (3, 0));
    assert_eq!(stats.bytes_out, 3 * 700_009);
    assert_eq!(stats.bytes_in, 3 * 700_010);
}

#[tokio::test]
async fn an_answer_goes_to_its_destination_unless_it_is_an_error() {
    let url = server(|_, mut stream| async move {
        for answer in [
            ok(b"0123456789"),
            ok(b""),
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 3\r\n\r\nwhy".to_vec(),
            ok(b"0123456789a"),
        ] {
            read_request(&mut stream).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        }
    })
    .await;
    let https = plain();
    let arena = arena();
    let dest = || {
        let mut dest = arena.alloc(10).unwrap();
        dest.fill(b'-');
        Some(dest)
    };
    let answer = https.send(get(&url, dest())).await.unwrap();
    assert_eq!(&answer.dest.unwrap()[..], b"0123456789");
    assert!(answer.body.is_empty());
    assert_eq!(
        https.send(get(&url, dest())).await.unwrap().dest.unwrap().len(),
        0
    );
    let answer = https.send(get(&url, dest())).await.unwrap();
    assert_eq!(
        (answer.status, &answer.body[..]),
        (StatusCode::NOT_FOUND, &b"why"[..])
    );
    assert_eq!(&answer.dest.unwrap()[..], b"----------");
    let error = https.send(get(&url, dest())).await.unwrap_err();
    // As one that is too short: the next one may be right.
    assert_eq!((error.kind, error.retryable), (FailureKind::Malformed, true));
}

#[tokio::test]
async fn nobody_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/x", listener.local_addr().unwrap());
    drop(listener);
    let error = plain().send(get(&url, None)).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::Nobody);
    assert!(!error.maybe_executed && error.retryable);
    assert!(error.message.contains("refused"), "{error}");
}

#[tokio::test]
async fn a_name_that_nobody_has() {
    // Reserved for ever by RFC 2606.
    let error = plain()
        .send(get("http://account.blob.invalid/x", None))
        .await
        .unwrap_err();
    assert_eq!(error.kind, FailureKind::Nobody, "{error}");
    assert!(!error.maybe_executed && error.retryable);
    assert!(error.message.contains("lookup"), "{error}");
}

#[tokio::test]
async fn a_server_that_speaks_no_tls() {
    let url = server(|_, mut stream| async move {
        let mut hello = [0; 1024];
        let _ = stream.read(&mut hello).await;
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    })
    .await
    .replace("http://", "https://");
    let error = plain().send(get(&url, None)).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::Nobody, "{error}");
    assert!(!error.maybe_executed, "{error}");
}

#[tokio::test]
async fn an_answer_that_breaks_off() {
    let url = server(|_, mut stream| async move {
        read_request(&mut stream).await.unwrap();
        let half = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this";
        stream.write_all(half).await.unwrap();
    })
    .await;
    let arena = arena();
    for dest in [None, Some(arena.alloc(100).unwrap())] {
        let error = plain().send(get(&url, dest)).await.unwrap_err();
        assert_eq!(error.kind, FailureKind::Unreachable);
        assert!(error.maybe_executed && error.retryable, "{error}");
    }
    let url = server(|_, mut stream| async move {
        read_request(&mut stream).await.unwrap();
    })
    .await;
    let error = plain().send(get(&url, None)).await.unwrap_err();
    assert!(error.maybe_executed && error.retryable, "{error}");
}

#[tokio::test]
async fn slow_is_not_stalled() {
    // Twelve bytes at a tenth of the timeout each: longer than the timeout in all.
    let url = server(|_, mut stream| async move {
        read_request(&mut stream).await.unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n")
            .await
            .unwrap();
        for _ in 0..12 {
            tokio::time::sleep(Duration::from_millis(150)).await;
            stream.write_all(b"x").await.unwrap();
        }
    })
    .await;
    let mut slow = get(&url, Some(arena().alloc(12).unwrap()));
    slow.timeout = Duration::from_millis(1500);
    assert_eq!(plain().send(slow).await.unwrap().dest.unwrap().len(), 12);

    let url = server(|_, mut stream| async move {
        read_request(&mut stream).await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let mut stalled = get(&url, None);
    stalled.timeout = Duration::from_millis(50);
    let error = plain().send(stalled).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::TimedOut);
    assert!(error.maybe_executed && error.retryable);
}

#[tokio::test]
async fn dead_connections_of_the_pool_cost_one_attempt() {
    // The first three connections answer once and are dead from then on, without a sign of it.
    let met = Arc::new(tokio::sync::Barrier::new(3));
    let url = server(move |connection, mut stream| {
        let met = Arc::clone(&met);
        async move {
            while read_request(&mut stream).await.is_some() {
                if connection < 3 {
                    met.wait().await;
                }
                stream.write_all(&ok(b"here")).await.unwrap();
                if connection < 3 {
                    std::future::pending::<()>().await;
                }
            }
        }
    })
    .await;
    let https = plain();
    let three = futures::future::join_all((0..3).map(|_| https.send(get(&url, None)))).await;
    assert!(three.iter().all(Result::is_ok));
    let mut first = get(&url, None);
    first.timeout = Duration::from_millis(100);
    let error = https.send(first).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::TimedOut, "{error}");
    let answer = https.send(get(&url, None)).await.unwrap();
    assert_eq!(&answer.body[..], b"here");
}

#[tokio::test]
async fn an_answer_that_drips_for_ever_is_given_up() {
    let url = server(|_, mut stream| async move {
        read_request(&mut stream).await.unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
            .await
            .unwrap();
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let mut dripping = get(&url, Some(arena().alloc(1_000_000).unwrap()));
    dripping.timeout = Duration::from_millis(500);
    let https = plain();
    let guard = tokio::time::timeout(Duration::from_secs(60), https.send(dripping)).await;
    let error = guard.expect("it ends").unwrap_err();
    assert_eq!(error.kind, FailureKind::TimedOut, "{error}");
}

#[tokio::test]
async fn bytes_are_where_the_caller_has_them() {
    // Out: every frame is a view of the caller's memory.
    let arena = arena();
    let mut buffer = arena.alloc(3 * FRAME / 2).unwrap();
    buffer.fill(7);
    let slice = buffer.freeze();
    let mut pieces = Pieces::new(
        &Body::from(slice.clone()),
        Arc::new(Progress::new(Arc::default())),
    );
    let mut at = slice.as_ptr().addr();
    while let Some(frame) = pieces.frame().await {
        let data = frame.unwrap().into_data().unwrap();
        assert_eq!(data.as_ptr().addr(), at);
        at += data.len();
    }
    assert_eq!(at, slice.as_ptr().addr() + slice.len());
    // In: the answer lies in the destination that was given.
    let url = server(|_, mut stream| async move {
        read_request(&mut stream).await.unwrap();
        stream.write_all(&ok(&[9; 100_000])).await.unwrap();
    })
    .await;
    let dest = arena.alloc(100_000).unwrap();
    let address = dest.as_ptr().addr();
    let answer = plain().send(get(&url, Some(dest))).await.unwrap();
    let dest = answer.dest.unwrap();
    assert_eq!((dest.as_ptr().addr(), dest.len()), (address, 100_000));
    assert!(dest.iter().all(|b| *b == 9));
}

#[tokio::test]
async fn tls_with_a_certificate_that_is_trusted_and_one_that_is_not() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let url = server(move |_, stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut tls) = acceptor.accept(stream).await else {
                return;
            };
            let mut request = [0; 4096];
            if tls.read(&mut request).await.is_ok_and(|n| n > 0) {
                tls.write_all(&ok(b"over TLS")).await.unwrap();
                let _ = tls.shutdown().await;
            }
        }
    })
    .await
    .replace("http://127.0.0.1", "https://localhost");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let answer = Https::with_roots(roots).send(get(&url, None)).await.unwrap();
    assert_eq!(&answer.body[..], b"over TLS");

    let error = plain().send(get(&url, None)).await.unwrap_err();
    assert!(!error.retryable && !error.maybe_executed, "{error}");
    assert_eq!(error.kind, FailureKind::Nobody, "{error}");
    assert!(error.message.contains("certificate"), "{error}");
}

/// What is longer than may be kept is not received: neither when its length is said, nor when it is not.
#[tokio::test]
async fn a_body_that_is_too_long_is_not_kept() {
    let url = server(|connection, mut stream| async move {
        read_request(&mut stream).await.unwrap();
        let head: &[u8] = match connection {
            0 => b"HTTP/1.1 200 OK\r\ncontent-length: 1000001\r\n\r\n",
            1 => b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            _ => b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n",
        };
        stream.write_all(head).await.unwrap();
        for _ in 0..100 {
            let chunk = [b'x'; 10_000];
            let framed = [b"2710\r\n", &chunk[..], b"\r\n"].concat();
            let piece = if connection == 1 { &framed[..] } else { &chunk[..] };
            if stream.write_all(piece).await.is_err() {
                return;
            }
        }
        if connection == 1 {
            let _ = stream.write_all(b"1\r\nx\r\n0\r\n\r\n").await;
        }
        // Said beforehand, the client leaves before the end.
        let _ = stream.read(&mut [0]).await;
    })
    .await;
    let limited = || Request {
        collect: 1_000_000,
        ..get(&url, None)
    };
    for _ in 0..2 {
        let error = plain().send(limited()).await.unwrap_err();
        assert_eq!(error.kind, FailureKind::TooLong, "{error}");
    }
    assert_eq!(plain().send(limited()).await.unwrap().body.len(), 1_000_000);
}

/// Megabytes that are sent lie in this machine's memory at once, and leave it slowly: that is progress.
#[tokio::test]
async fn a_body_that_the_other_side_takes_slowly_is_not_given_up() {
    let listening = TcpSocket::new_v4().unwrap();
    listening.set_recv_buffer_size(64 << 10).unwrap();
    listening.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = listening.listen(1).unwrap();
    let url = format!("http://{}/x", listener.local_addr().unwrap());
    const BODY: usize = 2 << 20;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut taken, mut chunk) = (0, vec![0; 20 << 10]);
        while taken < BODY {
            taken += stream.read(&mut chunk).await.unwrap();
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        stream.write_all(&ok(b"taken")).await.unwrap();
        std::future::pending::<()>().await;
    });
    let mut slow = request(Method::PUT, &url, Body::from(Bytes::from(vec![7; BODY])), None);
    slow.timeout = Duration::from_secs(2);
    let answer = plain().send(slow).await.unwrap();
    assert_eq!(&answer.body[..], b"taken");
}
