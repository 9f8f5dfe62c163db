//! Every call of the client, over HTTPS and over the channel, against a real service: the embedded store, or
//! the one that `BLOB_TEST_ENDPOINT` names (a path-style endpoint of the emulators' account).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A failed unwrap is a failed test.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use blob_client::auth::{Credentials, TokenSource};
use blob_client::secret::Secret;
use blob_client::transport::Transport;
use blob_client::transport::failover::{Paths, TransportMode};
use blob_client::{
    BlockId, BlockRef, Body, Client, ClientConfig, Condition, Container, Error, ListItem, ListOptions,
    Metadata, PutOptions, StageOptions, StoredHeaders,
};
use bytes::Bytes;
use e2e::store::{AccountKey, BlobStore, DEV_ACCOUNT, DEV_KEY, SasOptions, Server, StoreConfig};
use e2e::vsp::{Backend, HttpBackend, MockVsp};
use vsc_driver::buffer::Arena;

/// One way to a service.
struct Service {
    endpoint: url::Url,
    arena: Arc<Arena>,
    transport: Arc<dyn Transport>,
    _server: Option<Server>,
    _device: Option<(MockVsp, tempfile::TempDir)>,
}

impl Service {
    /// HTTPS, and the channel with nothing else beneath.
    async fn both() -> [Self; 2] {
        [
            Self::start(TransportMode::Https).await,
            Self::start(TransportMode::Require).await,
        ]
    }

    async fn start(mode: TransportMode) -> Self {
        let arena = Arena::new(256 << 20).unwrap();
        let (endpoint, server, backend): (url::Url, _, Arc<dyn Backend>) =
            match std::env::var("BLOB_TEST_ENDPOINT") {
                Ok(endpoint) => (
                    endpoint.parse().unwrap(),
                    None,
                    Arc::new(HttpBackend::new(None).unwrap()),
                ),
                Err(_) => {
                    let store = BlobStore::new(StoreConfig::default()).unwrap();
                    let server = store.serve(([127, 0, 0, 1], 0).into()).await.unwrap();
                    (server.endpoint(), Some(server), store)
                }
            };
        let device = (mode == TransportMode::Require).then(|| {
            let dir = tempfile::tempdir().unwrap();
            (MockVsp::mount(dir.path(), backend).unwrap(), dir)
        });
        let paths = Paths::new(
            device.as_ref().map(|(mock, _)| mock.device()),
            Arc::clone(&arena),
            tokio::runtime::Handle::current(),
        );
        if device.is_some() {
            assert_eq!(paths.settled().await, None);
        }
        Self {
            endpoint,
            arena,
            transport: paths.transport(mode),
            _server: server,
            _device: device,
        }
    }

    fn client(&self, credentials: Credentials) -> Client {
        Client::new(
            ClientConfig::new(self.endpoint.clone(), credentials),
            Arc::clone(&self.transport),
            Arc::clone(&self.arena),
        )
        .unwrap()
    }

    /// A fresh container; names are unique, so that a shared service can be used again.
    async fn container(&self) -> Container {
        let client = self.client(Credentials::SharedKey {
            account: DEV_ACCOUNT.into(),
            key: DEV_KEY.to_owned().into(),
        });
        let name = format!("t-{}", uuid::Uuid::new_v4());
        let container = client.container(&name).unwrap();
        container.create(&Metadata::new()).await.unwrap();
        container
    }

    async fn read(&self, container: &Container, blob: &str) -> Vec<u8> {
        let dest = self.arena.alloc(1 << 20).unwrap();
        let got = container
            .get(blob, 0..1 << 20, &Condition::none(), dest)
            .await
            .unwrap();
        assert_eq!(got.properties.content_length, got.buffer.len() as u64);
        got.buffer.to_vec()
    }
}

fn body(text: &str) -> Body {
    Bytes::copy_from_slice(text.as_bytes()).into()
}

fn meta(pairs: &[(&str, &str)]) -> Metadata {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

/// Runs a case over both ways.
macro_rules! over_both {
    ($($case:ident),* $(,)?) => {
        mod over {
            $(
                #[tokio::test]
                async fn $case() {
                    for service in super::Service::both().await {
                        super::$case(&service).await;
                    }
                }
            )*
        }
    };
}

over_both!(
    containers,
    put_read_ranges_and_conditions,
    bodies_of_several_pieces,
    blocks,
    names_round_trip,
    listing_by_delimiter_with_metadata,
    listing_of_more_metadata_than_fits,
    copies,
    leases,
    refused_credentials_say_what_to_look_at,
    a_container_sas_is_enough,
);

async fn containers(service: &Service) {
    let c = service.container().await;
    assert!(matches!(
        c.create(&Metadata::new()).await,
        Err(Error::AlreadyExists { .. })
    ));
    c.set_container_metadata(&meta(&[("owner", "me"), ("a_b", "1"), ("a1", "2")]), None)
        .await
        .unwrap();
    let (version, metadata) = c.properties().await.unwrap();
    assert!(!version.etag.0.is_empty());
    assert_eq!(metadata, meta(&[("owner", "me"), ("a_b", "1"), ("a1", "2")]));
    c.delete_container().await.unwrap();
    assert!(matches!(
        c.properties().await,
        Err(Error::ContainerNotFound { .. })
    ));
    assert!(matches!(
        c.head("x", &Condition::none()).await,
        Err(Error::ContainerNotFound { .. } | Error::BlobNotFound { .. })
    ));
}

async fn put_read_ranges_and_conditions(service: &Service) {
    let c = service.container().await;
    let options = PutOptions {
        metadata: meta(&[("mode", "0644"), ("x_y", "b"), ("x1", "a")]),
        stored: Some(StoredHeaders::of_type("text/plain").unwrap()),
        condition: Condition::absent(),
        ..PutOptions::default()
    };
    let first = c.put("a/b.txt", body("0123456789"), &options).await.unwrap();
    assert!(matches!(
        c.put("a/b.txt", body("x"), &options).await,
        Err(Error::AlreadyExists { .. })
    ));
    let head = c.head("a/b.txt", &Condition::none()).await.unwrap();
    assert_eq!(head.etag, first.etag);
    assert_eq!(head.metadata, options.metadata);
    assert_eq!(head.stored.content_type(), "text/plain");
    assert_eq!(head.content_length, 10);

    let get = async |range: std::ops::Range<u64>, condition: Condition| {
        let dest = service.arena.alloc(64).unwrap();
        c.get("a/b.txt", range, &condition, dest).await
    };
    let got = get(3..6, Condition::none()).await.unwrap();
    assert_eq!(&got.buffer[..], b"345");
    assert_eq!(got.properties, head);
    assert_eq!(&get(8..20, Condition::none()).await.unwrap().buffer[..], b"89");
    for past in [10..20, 100..101, 4..4] {
        let got = get(past, Condition::none()).await.unwrap();
        assert!(got.buffer.is_empty());
        assert_eq!(got.properties, head);
    }

    let second = c
        .put(
            "a/b.txt",
            body("second"),
            &PutOptions {
                condition: Condition::matches(&first.etag),
                ..PutOptions::default()
            },
        )
        .await
        .unwrap();
    assert_ne!(first.etag, second.etag);
    assert!(matches!(
        get(0..3, Condition::matches(&first.etag)).await,
        Err(Error::ConditionNotMet { .. })
    ));
    let unchanged = Condition {
        if_none_match: Some(second.etag.clone()),
        ..Condition::default()
    };
    assert!(matches!(
        get(0..3, unchanged).await,
        Err(Error::NotModified { .. })
    ));
    let stale = PutOptions {
        condition: Condition::matches(&first.etag),
        ..PutOptions::default()
    };
    assert!(matches!(
        c.put("a/b.txt", body("third"), &stale).await,
        Err(Error::ConditionNotMet { .. })
    ));
    assert_eq!(service.read(&c, "a/b.txt").await, b"second");

    let third = c
        .set_metadata(
            "a/b.txt",
            &meta(&[("k", "v w")]),
            &Condition::matches(&second.etag),
        )
        .await
        .unwrap();
    assert!(matches!(
        c.set_metadata("a/b.txt", &meta(&[]), &Condition::matches(&second.etag))
            .await,
        Err(Error::ConditionNotMet { .. })
    ));
    let head = c.head("a/b.txt", &Condition::none()).await.unwrap();
    assert_eq!((head.etag, head.metadata), (third.etag, meta(&[("k", "v w")])));

    assert!(matches!(
        c.delete("a/b.txt", &Condition::matches(&first.etag)).await,
        Err(Error::ConditionNotMet { .. })
    ));
    c.delete("a/b.txt", &Condition::none()).await.unwrap();
    assert!(matches!(
        c.delete("a/b.txt", &Condition::none()).await,
        Err(Error::BlobNotFound { .. })
    ));
    assert!(matches!(
        c.head("a/b.txt", &Condition::none()).await,
        Err(Error::BlobNotFound { .. })
    ));
    let empty = c
        .put("empty", Body::default(), &PutOptions::default())
        .await
        .unwrap();
    let dest = service.arena.alloc(16).unwrap();
    let got = c.get("empty", 0..16, &Condition::none(), dest).await.unwrap();
    assert_eq!((got.buffer.len(), got.properties.etag), (0, empty.etag));
}

async fn bodies_of_several_pieces(service: &Service) {
    let c = service.container().await;
    let mut buffer = service.arena.alloc(5000).unwrap();
    buffer.fill(b'x');
    let slice = buffer.freeze();
    let pieces = Body(vec![
        blob_client::Piece::Bytes(Bytes::from_static(b"head ")),
        blob_client::Piece::Slice(slice.slice(10..4010)),
        blob_client::Piece::Bytes(Bytes::new()),
        blob_client::Piece::Bytes(Bytes::from_static(b" tail")),
    ]);
    c.put("p", pieces, &PutOptions::default()).await.unwrap();
    let expected = [b"head ".as_slice(), &[b'x'; 4000], b" tail"].concat();
    assert_eq!(service.read(&c, "p").await, expected);
}

async fn blocks(service: &Service) {
    let c = service.container().await;
    assert!(matches!(c.block_list("b").await, Err(Error::BlobNotFound { .. })));
    let id = |n: u8| BlockId(vec![n; 24]);
    c.stage("b", &id(1), body("one"), &StageOptions::default())
        .await
        .unwrap();
    c.stage("b", &id(2), body("two"), &StageOptions::default())
        .await
        .unwrap();
    let list = c.block_list("b").await.unwrap();
    assert_eq!(list.committed.len(), 0);
    assert_eq!(list.uncommitted.len(), 2);
    let first = c
        .commit(
            "b",
            &[BlockRef::Uncommitted(id(2)), BlockRef::Latest(id(1))],
            &PutOptions {
                metadata: meta(&[("k", "v")]),
                condition: Condition::absent(),
                ..PutOptions::default()
            },
        )
        .await
        .unwrap();
    assert_eq!(service.read(&c, "b").await, b"twoone");
    c.stage("b", &id(3), body("three"), &StageOptions::default())
        .await
        .unwrap();
    let second = c
        .commit(
            "b",
            &[
                BlockRef::Committed(id(1)),
                BlockRef::Uncommitted(id(3)),
                BlockRef::Committed(id(2)),
            ],
            &PutOptions {
                condition: Condition::matches(&first.etag),
                ..PutOptions::default()
            },
        )
        .await
        .unwrap();
    assert_eq!(service.read(&c, "b").await, b"onethreetwo");
    let list = c.block_list("b").await.unwrap();
    let names: Vec<_> = list.committed.iter().map(|b| (b.id.clone(), b.size)).collect();
    assert_eq!(names, [(id(1), 3), (id(3), 5), (id(2), 3)]);
    assert_eq!((list.etag, list.content_length), (Some(second.etag), 11));
    assert!(matches!(
        c.commit(
            "b",
            &[],
            &PutOptions {
                condition: Condition::matches(&first.etag),
                ..PutOptions::default()
            }
        )
        .await,
        Err(Error::ConditionNotMet { .. })
    ));
    assert!(matches!(
        c.commit("b", &[BlockRef::Latest(id(9))], &PutOptions::default())
            .await,
        Err(Error::Service { status: 400, .. })
    ));
}

// No backslash: the service takes it for a slash.
const NAMES: &[&str] = &[
    "plain",
    "a b+c%d",
    "x%20y",
    "ä/ö ü/漢字/🦀",
    "q?a=1&b=2#frag",
    "a//b",
    "trailing/",
    "//",
    "dots/../up",
    "dots/./here",
    "...",
    "quote'\"<>&amp;",
    " lead and trail ",
    "semi;colon:at@,=",
    "tab\there",
    "[x]{y}|z^`~!*()",
];

async fn names_round_trip(service: &Service) {
    let c = service.container().await;
    for name in NAMES {
        c.put(name, body(name), &PutOptions::default()).await.unwrap();
    }
    let mut listed = Vec::new();
    let mut marker = None;
    loop {
        let page = c
            .list(&ListOptions {
                marker,
                max_results: Some(5),
                ..ListOptions::default()
            })
            .await
            .unwrap();
        for item in page.items {
            match item {
                ListItem::Blob { name, .. } => listed.push(name),
                ListItem::Prefix { name } => panic!("{name}"),
            }
        }
        marker = page.next_marker;
        if marker.is_none() {
            break;
        }
    }
    listed.sort();
    let mut expected: Vec<_> = NAMES.iter().map(|n| (*n).to_owned()).collect();
    expected.sort();
    assert_eq!(listed, expected);
    for name in NAMES {
        assert_eq!(service.read(&c, name).await, name.as_bytes(), "{name}");
        c.delete(name, &Condition::none()).await.unwrap();
    }
    assert!(c.list(&ListOptions::default()).await.unwrap().items.is_empty());
}

async fn listing_by_delimiter_with_metadata(service: &Service) {
    let c = service.container().await;
    let options = PutOptions {
        metadata: meta(&[("hdi_isfolder", "true")]),
        ..PutOptions::default()
    };
    c.put("d/e", body("1"), &PutOptions::default()).await.unwrap();
    c.put("d", Body::default(), &options).await.unwrap();
    c.put("d f/x", body("12"), &PutOptions::default()).await.unwrap();
    c.put("z", body("123"), &PutOptions::default()).await.unwrap();
    let page = c
        .list(&ListOptions {
            delimiter: Some("/".into()),
            metadata: true,
            ..ListOptions::default()
        })
        .await
        .unwrap();
    let mut seen: Vec<_> = page
        .items
        .iter()
        .map(|item| match item {
            ListItem::Blob { name, properties } => (
                name.clone(),
                Some((properties.content_length, properties.metadata.clone())),
            ),
            ListItem::Prefix { name } => (name.clone(), None),
        })
        .collect();
    seen.sort();
    assert_eq!(
        seen,
        [
            ("d".into(), Some((0, options.metadata))),
            ("d f/".into(), None),
            ("d/".into(), None),
            ("z".into(), Some((3, Metadata::new()))),
        ]
    );
    let page = c
        .list(&ListOptions {
            prefix: "d/".into(),
            ..ListOptions::default()
        })
        .await
        .unwrap();
    let ListItem::Blob { name, properties } = &page.items[0] else {
        panic!()
    };
    assert_eq!(name, "d/e");
    // One spelling of versions everywhere.
    assert_eq!(*properties, c.head("d/e", &Condition::none()).await.unwrap());
}

/// 8 KiB of metadata each, which XML writes five times as long: a page of the usual size would be 12 MiB.
async fn listing_of_more_metadata_than_fits(service: &Service) {
    const BLOBS: usize = 300;
    let c = service.container().await;
    let options = PutOptions {
        metadata: meta(&[("k", &"&".repeat(8 * 1024 - 1))]),
        ..PutOptions::default()
    };
    for blob in 0..BLOBS {
        c.put(&format!("{blob:03}"), Body::default(), &options)
            .await
            .unwrap();
    }
    let (mut seen, mut marker) = (Vec::new(), None);
    loop {
        let wanted = ListOptions {
            marker,
            metadata: true,
            ..ListOptions::default()
        };
        let page = c.list(&wanted).await.unwrap();
        for item in page.items {
            let ListItem::Blob { name, properties } = item else {
                panic!("{item:?}")
            };
            assert_eq!(properties.metadata, options.metadata);
            seen.push(name);
        }
        marker = page.next_marker;
        if marker.is_none() {
            break;
        }
    }
    let names: Vec<_> = (0..BLOBS).map(|blob| format!("{blob:03}")).collect();
    assert_eq!(seen, names);
}

async fn copies(service: &Service) {
    let c = service.container().await;
    let source = "from/a b%";
    let options = PutOptions {
        metadata: meta(&[("k", "v")]),
        ..PutOptions::default()
    };
    let first = c.put(source, body("content"), &options).await.unwrap();
    let copied = c
        .copy(
            source,
            Some(&first.etag),
            None,
            "to//x",
            None,
            &Condition::absent(),
        )
        .await
        .unwrap();
    let head = c.head("to//x", &Condition::none()).await.unwrap();
    assert_eq!((head.etag, head.metadata), (copied.etag, options.metadata));
    assert_eq!(service.read(&c, "to//x").await, b"content");
    assert!(
        c.copy(source, None, None, "to//x", None, &Condition::absent())
            .await
            .is_err()
    );
    c.copy(
        source,
        None,
        None,
        "to//x",
        Some(&meta(&[("n", "1")])),
        &Condition::none(),
    )
    .await
    .unwrap();
    assert_eq!(
        c.head("to//x", &Condition::none()).await.unwrap().metadata,
        meta(&[("n", "1")])
    );
    assert!(matches!(
        c.copy("nothing", None, None, "y", None, &Condition::none()).await,
        Err(Error::BlobNotFound { name }) if name == "nothing"
    ));
    let id = BlockId(vec![7; 8]);
    match c
        .stage_from(
            "s",
            &id,
            source,
            2..5,
            Some(&first.etag),
            &StageOptions::default(),
        )
        .await
    {
        Ok(()) => {
            c.commit("s", &[BlockRef::Latest(id)], &PutOptions::default())
                .await
                .unwrap();
            assert_eq!(service.read(&c, "s").await, b"nte");
        }
        // Azurite does not have the call.
        Err(Error::Service { status: 501, .. }) if std::env::var("BLOB_TEST_ENDPOINT").is_ok() => {}
        Err(error) => panic!("{error}"),
    }
}

async fn leases(service: &Service) {
    let c = service.container().await;
    c.put("l", body("1"), &PutOptions::default()).await.unwrap();
    let lease = c.acquire_lease("l", Some(15)).await.unwrap();
    assert!(matches!(
        c.acquire_lease("l", None).await,
        Err(Error::LeaseConflict { .. })
    ));
    assert!(matches!(
        c.put("l", body("2"), &PutOptions::default()).await,
        Err(Error::LeaseConflict { .. })
    ));
    let with_lease = Condition {
        lease: Some(lease.clone()),
        ..Condition::default()
    };
    c.put(
        "l",
        body("2"),
        &PutOptions {
            condition: with_lease,
            ..PutOptions::default()
        },
    )
    .await
    .unwrap();
    c.renew_lease("l", &lease).await.unwrap();
    c.release_lease("l", &lease).await.unwrap();
    c.acquire_lease("l", None).await.unwrap();
    c.break_lease("l").await.unwrap();
    c.put("l", body("3"), &PutOptions::default()).await.unwrap();
}

async fn refused_credentials_say_what_to_look_at(service: &Service) {
    let c = service.container().await;
    let refused = async |credentials: Credentials| {
        let client = service.client(credentials);
        let error = client
            .container(c.name())
            .unwrap()
            .properties()
            .await
            .unwrap_err();
        error.to_string()
    };
    let wrong_key = refused(Credentials::SharedKey {
        account: DEV_ACCOUNT.into(),
        key: "d3Jvbmcga2V5".to_owned().into(),
    })
    .await;
    assert!(wrong_key.contains("azurestorageaccountkey"), "{wrong_key}");
    let expired = refused(Credentials::Sas(
        "sv=2021-12-02&ss=b&srt=sco&sp=rl&se=2020-01-01T00:00:00Z&sig=AAAA"
            .to_owned()
            .into(),
    ))
    .await;
    assert!(
        expired.contains("azurestorageaccountsastoken") && expired.contains("expired at 2020-01-01"),
        "{expired}"
    );
}

async fn a_container_sas_is_enough(service: &Service) {
    let c = service.container().await;
    let key = AccountKey::new(DEV_ACCOUNT, DEV_KEY).unwrap();
    let sas = |permissions: &str| {
        let options = SasOptions::new(permissions, Duration::from_secs(3600));
        let sas = key.container_sas(c.name(), &options);
        let client = service.client(Credentials::Sas(sas.into()));
        client.container(c.name()).unwrap()
    };
    let all = sas("racwdl");
    all.put("a/ä b", body("one"), &PutOptions::default())
        .await
        .unwrap();
    assert_eq!(service.read(&all, "a/ä b").await, b"one");
    all.copy("a/ä b", None, None, "b", None, &Condition::absent())
        .await
        .unwrap();
    assert_eq!(all.list(&ListOptions::default()).await.unwrap().items.len(), 2);
    let read_only = sas("rl");
    assert_eq!(service.read(&read_only, "b").await, b"one");
    let error = read_only
        .put("c", body("x"), &PutOptions::default())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
    assert!(error.to_string().contains("\"rl\""), "{error}");
    all.delete("b", &Condition::none()).await.unwrap();
}

/// One token at a time, and the latest the service will take.
#[derive(Debug)]
struct Rotating {
    current: std::sync::atomic::AtomicU32,
}

#[async_trait::async_trait]
impl TokenSource for Rotating {
    async fn token(&self) -> blob_client::Result<Secret<String>> {
        Ok(format!("token-{}", self.current.load(Ordering::Relaxed)).into())
    }
    fn reject(&self) {
        self.current.fetch_add(1, Ordering::Relaxed);
    }
}

/// Only the embedded store takes tokens over plain HTTP.
#[tokio::test]
async fn tokens_are_sent_and_a_revoked_one_is_replaced() {
    let store = BlobStore::new(StoreConfig::default()).unwrap();
    store.accept_token("token-0");
    let server = store.serve(([127, 0, 0, 1], 0).into()).await.unwrap();
    let arena = Arena::new(64 << 20).unwrap();
    let https = Paths::new(None, Arc::clone(&arena), tokio::runtime::Handle::current())
        .transport(TransportMode::Prefer);
    let tokens = Arc::new(Rotating { current: 0.into() });
    let config = ClientConfig::new(server.endpoint(), Credentials::Token(tokens));
    let c = Client::new(config, https, Arc::clone(&arena))
        .unwrap()
        .container("data")
        .unwrap();
    c.create(&Metadata::new()).await.unwrap();
    c.put("s", body("source"), &PutOptions::default()).await.unwrap();
    store.revoke_token("token-0");
    store.accept_token("token-1");
    let id = BlockId(vec![1; 4]);
    c.stage_from("t", &id, "s", 1..4, None, &StageOptions::default())
        .await
        .unwrap();
    c.commit("t", &[BlockRef::Latest(id)], &PutOptions::default())
        .await
        .unwrap();
    let dest = arena.alloc(10).unwrap();
    let got = c.get("t", 0..10, &Condition::none(), dest).await.unwrap();
    assert_eq!(&got.buffer[..], b"our");
    store.revoke_token("token-1");
    let error = c.head("t", &Condition::none()).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
}
