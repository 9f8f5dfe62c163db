//! The embedded store over real sockets: large bodies, faults of the connection, writers that race, odd
//! requests.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blob_client::Body;
use blob_client::request::{COLLECT, Request};
use blob_client::transport::https::Https;
use blob_client::transport::{Transport, TransportError};
use bytes::Bytes;
use e2e::store::{
    AccountKey, BlobStore, DEV_ACCOUNT, DEV_KEY, Fault, FaultRule, Operation, Server, StoreConfig,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// A store behind a socket, and a signing client.
struct Fixture {
    store: Arc<BlobStore>,
    server: Server,
    https: Https,
    key: AccountKey,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map(|value| value.to_str().unwrap())
            .unwrap_or_default()
    }
}

impl Fixture {
    async fn new(config: StoreConfig) -> Self {
        let store = BlobStore::new(config).unwrap();
        store.create_container("box").unwrap();
        let server = store.serve(([127, 0, 0, 1], 0).into()).await.unwrap();
        Self {
            store,
            server,
            https: Https::new(),
            key: AccountKey::new(DEV_ACCOUNT, DEV_KEY).unwrap(),
        }
    }

    async fn try_call(
        &self,
        method: &str,
        path: &str,
        headers: &[(String, String)],
        body: Bytes,
        timeout: Duration,
    ) -> Result<Answer, TransportError> {
        let method: Method = method.parse().unwrap();
        let url: http::Uri = format!("{}/box/{path}", self.server.endpoint()).parse().unwrap();
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(
                HeaderName::try_from(name.as_str()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        if method == Method::PUT {
            map.insert("content-length", HeaderValue::from(body.len()));
        }
        self.key
            .authorize(&method, &url, &mut map, body.len() as u64)
            .unwrap();
        let response = self
            .https
            .send(Request {
                method,
                url,
                headers: map,
                body: if body.is_empty() {
                    Body::default()
                } else {
                    body.into()
                },
                dest: None,
                collect: COLLECT,
                idempotent: false,
                avoid: None,
                timeout,
                moved: std::sync::Arc::default(),
                ledger: None,
            })
            .await?;
        Ok(Answer {
            status: response.status.as_u16(),
            headers: response.headers,
            body: response.body,
        })
    }

    async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Bytes) -> Answer {
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        self.try_call(method, path, &headers, body, Duration::from_secs(60))
            .await
            .unwrap()
    }

    async fn put(&self, name: &str, body: impl Into<Bytes>) -> Answer {
        self.call("PUT", name, &[("x-ms-blob-type", "BlockBlob")], body.into())
            .await
    }

    async fn get(&self, name: &str) -> Answer {
        self.call("GET", name, &[], Bytes::new()).await
    }

    async fn fails(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &'static [u8]) {
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let outcome = self
            .try_call(
                method,
                path,
                &headers,
                Bytes::from_static(body),
                Duration::from_millis(500),
            )
            .await;
        assert!(outcome.is_err(), "an answer came: {}", outcome.unwrap().status);
    }
}

fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

async fn large_bodies(config: StoreConfig) {
    let f = Fixture::new(config).await;
    let data = pattern(20 << 20, 1);
    assert_eq!(f.put("big", data.clone()).await.status, 201);
    let got = f.get("big").await;
    assert!(got.body == data, "20 MiB read back differ");
    for (start, end) in [
        (0, 1),
        (65_535, 65_537),
        (1 << 20, 9 << 20),
        ((20 << 20) - 3, 20 << 20),
    ] {
        let range = format!("bytes={start}-{}", end - 1);
        let got = f.call("GET", "big", &[("range", &range)], Bytes::new()).await;
        assert_eq!(got.status, 206);
        assert!(got.body == data[start..end], "{range} differs");
    }
    // Blocks out of several bodies, put together in another order.
    let parts: Vec<Vec<u8>> = (0..5).map(|i| pattern(3 << 20, i + 2)).collect();
    for (i, part) in parts.iter().enumerate() {
        let staged = f
            .call(
                "PUT",
                &format!("blocks?comp=block&blockid=000{i}"),
                &[],
                part.clone().into(),
            )
            .await;
        assert_eq!(staged.status, 201);
    }
    let list: String = [4, 0, 3]
        .iter()
        .map(|i| format!("<Latest>000{i}</Latest>"))
        .collect();
    let list = format!("<BlockList>{list}</BlockList>");
    assert_eq!(
        f.call("PUT", "blocks?comp=blocklist", &[], list.into())
            .await
            .status,
        201
    );
    let wanted = [&parts[4][..], &parts[0], &parts[3]].concat();
    assert!(f.get("blocks").await.body == wanted, "blocks read back differ");
}

#[tokio::test]
async fn large_bodies_in_memory() {
    large_bodies(StoreConfig::default()).await;
}

#[tokio::test]
async fn large_bodies_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    large_bodies(StoreConfig {
        folder: Some(folder.path().to_owned()),
        ..StoreConfig::default()
    })
    .await;
}

#[tokio::test]
async fn faults_of_the_connection() {
    let f = Fixture::new(StoreConfig::default()).await;
    f.put("b", vec![1; 100_000]).await;
    f.store.inject(FaultRule::next(
        Operation::GetBlob,
        Fault::CutBody { after: 50_000 },
    ));
    f.fails("GET", "b", &[], b"").await;
    assert_eq!(f.get("b").await.body.len(), 100_000);
    f.store
        .inject(FaultRule::next(Operation::GetBlob, Fault::CutBody { after: 0 }));
    f.fails("GET", "b", &[], b"").await;

    let block_blob = [("x-ms-blob-type", "BlockBlob")];
    f.store
        .inject(FaultRule::next(Operation::PutBlob, Fault::Disconnect));
    f.fails("PUT", "never", &block_blob, b"x").await;
    assert_eq!(f.get("never").await.status, 404, "not executed");
    f.store
        .inject(FaultRule::next(Operation::PutBlob, Fault::LoseAnswer));
    f.fails("PUT", "lost", &block_blob, b"x").await;
    assert_eq!(f.get("lost").await.status, 200, "executed, the answer was lost");
    f.store.inject(FaultRule::next(Operation::PutBlob, Fault::Hang));
    f.fails("PUT", "hung", &block_blob, b"x").await;
    assert_eq!(f.get("hung").await.status, 404);

    f.store.inject(FaultRule {
        blob_contains: Some("pick".into()),
        ..FaultRule::every(
            Operation::GetBlob,
            Fault::Answer {
                status: 503,
                code: "ServerBusy".into(),
                retry_after: Some(1),
            },
        )
    });
    assert_eq!(f.get("b").await.status, 200);
    for _ in 0..3 {
        let busy = f.get("picked").await;
        assert_eq!((busy.status, busy.header("retry-after")), (503, "1"));
    }
    f.store.clear_faults();
    assert_eq!(f.get("picked").await.status, 404);
}

#[tokio::test]
async fn latency_is_waited() {
    let f = Fixture::new(StoreConfig::default()).await;
    f.put("b", "x").await;
    f.store
        .set_latency(Some(Operation::GetBlob), Duration::from_millis(100));
    let began = Instant::now();
    let gets = futures::future::join_all((0..20).map(|_| f.get("b"))).await;
    assert!(gets.iter().all(|get| get.status == 200));
    assert!(began.elapsed() >= Duration::from_millis(100));
}

/// Compare and swap on one blob: with If-Match no increment may be lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_writers_lose_no_update() {
    let f = Arc::new(Fixture::new(StoreConfig::default()).await);
    f.put("counter", "0").await;
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let f = Arc::clone(&f);
        writers.spawn(async move {
            for _ in 0..15 {
                loop {
                    let now = f.get("counter").await;
                    let next: u32 = std::str::from_utf8(&now.body).unwrap().parse::<u32>().unwrap() + 1;
                    let headers = [("x-ms-blob-type", "BlockBlob"), ("if-match", now.header("etag"))];
                    let put = f.call("PUT", "counter", &headers, next.to_string().into()).await;
                    match put.status {
                        201 => break,
                        412 => {}
                        other => panic!("{other}"),
                    }
                }
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
    assert_eq!(&f.get("counter").await.body[..], b"120");
}

/// Names that come and go under many hands: what is listed is there, and the end state is empty.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn blobs_made_and_deleted_by_many() {
    let f = Arc::new(Fixture::new(StoreConfig::default()).await);
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..8 {
        let f = Arc::clone(&f);
        workers.spawn(async move {
            for turn in 0..40 {
                let name = format!("n{}", (turn * 7 + worker) % 5);
                assert_eq!(f.put(&name, "x").await.status, 201);
                let staged = f
                    .call(
                        "PUT",
                        &format!("{name}?comp=block&blockid=QQ%3D%3D"),
                        &[],
                        "y".into(),
                    )
                    .await;
                assert_eq!(staged.status, 201);
                let deleted = f.call("DELETE", &name, &[], Bytes::new()).await.status;
                assert!(deleted == 202 || deleted == 404, "{deleted}");
            }
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker.unwrap();
    }
    for i in 0..5 {
        // Whoever staged last may have left a block: a put and a delete clear it.
        f.put(&format!("n{i}"), "x").await;
        assert_eq!(
            f.call("DELETE", &format!("n{i}"), &[], Bytes::new()).await.status,
            202
        );
    }
    let url = "?restype=container&comp=list&include=uncommittedblobs";
    let list = f.call("GET", url, &[], Bytes::new()).await;
    assert_eq!(list.status, 200);
    assert!(!String::from_utf8_lossy(&list.body).contains("<Blob>"));
}

#[tokio::test]
async fn metadata_of_many_headers() {
    let f = Fixture::new(StoreConfig::default()).await;
    let names: Vec<String> = (0..400).map(|i| format!("x-ms-meta-k{i}")).collect();
    let mut headers: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "value")).collect();
    headers.push(("x-ms-blob-type", "BlockBlob"));
    assert_eq!(f.call("PUT", "b", &headers, "x".into()).await.status, 201);
    let head = f.call("HEAD", "b", &[], Bytes::new()).await;
    assert_eq!((head.status, head.header("x-ms-meta-k399")), (200, "value"));
}

/// Sends bytes as they are and reads the status line.
fn raw(f: &Fixture, request: &str) -> String {
    let mut stream = TcpStream::connect(f.server.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn odd_requests_get_an_answer() {
    let f = Fixture::new(StoreConfig::default()).await;
    let head = |line: &str, rest: &str| format!("{line} HTTP/1.1\r\nhost: x\r\n{rest}\r\n");
    let url = "/devstoreaccount1/box/b";
    assert_eq!(raw(&f, &head(&format!("PUT {url}"), "")), "HTTP/1.1 411");
    let huge = "content-length: 99999999999\r\n";
    assert_eq!(raw(&f, &head(&format!("PUT {url}"), huge)), "HTTP/1.1 413");
    assert_eq!(raw(&f, &head("GET /", "")), "HTTP/1.1 400");
    assert_eq!(raw(&f, &head("GET /other/box/b", "")), "HTTP/1.1 400");
    assert_eq!(
        raw(&f, &head(&format!("GET {url}"), "authorization: Basic eA==\r\n")),
        "HTTP/1.1 400"
    );
    assert_eq!(raw(&f, &head(&format!("PATCH {url}"), "")), "HTTP/1.1 401");
    assert_eq!(raw(&f, "nonsense\r\n\r\n"), "HTTP/1.1 400");
    // Host-style: the account is in the name of the host.
    let host = format!("GET /box/b HTTP/1.1\r\nhost: {DEV_ACCOUNT}.blob.localhost\r\n\r\n");
    assert_eq!(raw(&f, &host), "HTTP/1.1 401");
}

/// The test's only thread blocks; the store answers all the same, and its port closes when it is dropped.
#[tokio::test(flavor = "current_thread")]
async fn serves_on_its_own_threads_until_dropped() {
    let f = Fixture::new(StoreConfig::default()).await;
    let addr = f.server.addr();
    assert_eq!(
        raw(&f, "GET /devstoreaccount1/box/b HTTP/1.1\r\nhost: x\r\n\r\n"),
        "HTTP/1.1 401"
    );
    drop(f);
    assert!(TcpStream::connect(addr).is_err());
}
