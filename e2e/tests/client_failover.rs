//! The client over both paths while the channel fails in every way the mock host knows: nothing is lost,
//! nothing is wrong, and the counters tell.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A failed unwrap is a failed test.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use blob_client::auth::{Credentials, TokenSource};
use blob_client::secret::Secret;
use blob_client::transport::failover::{Paths, TransportMode};
use blob_client::transport::{PathStats, Transport};
use blob_client::{
    BlockId, BlockRef, Body, Client, ClientConfig, Condition, Container, Error, ListOptions, Metadata,
    PutOptions, StageOptions,
};
use bytes::Bytes;
use e2e::store::{AccountKey, BlobStore, DEV_ACCOUNT, DEV_KEY, Operation, SasOptions, Server, StoreConfig};
use e2e::vsp::{FaultControl, Faults, MockVsp, Spoil};
use futures::future::join_all;
use vsc_driver::buffer::{Arena, Buffer};

/// A store reachable over both paths.
struct Node {
    arena: Arc<Arena>,
    store: Arc<BlobStore>,
    server: Server,
    mock: Option<MockVsp>,
    dir: tempfile::TempDir,
    paths: Arc<Paths>,
    transport: Arc<dyn Transport>,
}

impl Node {
    async fn new(mode: TransportMode) -> Self {
        Self::with_faults(mode, Some(Faults::default())).await
    }

    /// `faults`: of the mock from the start; `None` = no device yet.
    async fn with_faults(mode: TransportMode, faults: Option<Faults>) -> Self {
        let arena = Arena::new(512 << 20).unwrap();
        let store = BlobStore::new(StoreConfig::default()).unwrap();
        let server = store.serve(([127, 0, 0, 1], 0).into()).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mock = faults.map(|f| MockVsp::mount_with(dir.path(), store.clone(), f).unwrap());
        let paths = Paths::new(
            Some(dir.path().join("azure_blob")),
            Arc::clone(&arena),
            tokio::runtime::Handle::current(),
        );
        paths.settled().await;
        let transport = paths.transport(mode);
        Self {
            arena,
            store,
            server,
            mock,
            dir,
            paths,
            transport,
        }
    }

    fn client(&self, credentials: Credentials) -> Client {
        let config = ClientConfig::new(self.server.endpoint(), credentials);
        Client::new(config, Arc::clone(&self.transport), Arc::clone(&self.arena)).unwrap()
    }

    async fn container(&self) -> Container {
        let key = Credentials::SharedKey {
            account: DEV_ACCOUNT.into(),
            key: DEV_KEY.to_owned().into(),
        };
        let container = self.client(key).container("data").unwrap();
        container.create(&Metadata::new()).await.unwrap();
        container
    }

    fn faults(&self) -> FaultControl {
        self.mock.as_ref().unwrap().faults()
    }

    fn stats(&self, path: &str) -> PathStats {
        let all = self.transport.stats();
        all.into_iter().find(|s| s.path == path).unwrap()
    }

    async fn until_usable(&self) {
        let mut state = self.paths.watch_channel().unwrap();
        tokio::time::timeout(Duration::from_secs(60), state.wait_for(|s| s.unusable.is_none()))
            .await
            .expect("the channel comes back")
            .unwrap();
    }

    fn buffer(&self, bytes: &[u8]) -> Buffer {
        let mut buffer = self.arena.alloc(bytes.len()).unwrap();
        buffer.copy_from_slice(bytes);
        buffer
    }
}

/// Bytes without a period, different for each seed.
fn bytes(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| ((i + seed * 7919).wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

/// Writes and reads back a blob in blocks; every byte is compared.
async fn round_trip(node: &Node, c: &Container, seed: usize) {
    let name = format!("f{seed}");
    let len = 64 * 1024 + seed * 1000;
    let content = bytes(seed, len);
    let (head, tail) = content.split_at(len / 2);
    let ids = [BlockId(vec![1; 16]), BlockId(vec![2; 16])];
    c.stage(
        &name,
        &ids[0],
        node.buffer(head).freeze().into(),
        &StageOptions::default(),
    )
    .await
    .unwrap();
    c.stage(
        &name,
        &ids[1],
        Bytes::copy_from_slice(tail).into(),
        &StageOptions::default(),
    )
    .await
    .unwrap();
    let options = PutOptions {
        condition: Condition::absent(),
        ..PutOptions::default()
    };
    let blocks = ids.map(BlockRef::Uncommitted);
    let written = c.commit(&name, &blocks, &options).await.unwrap();
    let condition = Condition::matches(&written.etag);
    let dest = node.arena.alloc(len).unwrap();
    let got = c.get(&name, 0..len as u64, &condition, dest).await.unwrap();
    assert!(got.buffer[..] == content[..], "{name}");
    c.delete(&name, &condition).await.unwrap();
}

async fn round_trips(node: &Node, c: &Container, seeds: std::ops::Range<usize>) {
    join_all(seeds.map(|seed| round_trip(node, c, seed))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_copy_between_the_host_and_the_callers_memory() {
    let node = Node::new(TransportMode::Prefer).await;
    let c = node.container().await;
    let mock = node.mock.as_ref().unwrap();
    let content = bytes(1, 300_000);
    let slice = node.buffer(&content).freeze();
    c.put("b", slice.clone().into(), &PutOptions::default())
        .await
        .unwrap();
    let sent = mock.last_request().unwrap();
    assert_eq!(sent.data_buffer, slice.as_ptr().addr() as u64);
    assert_eq!(sent.data_valid, 300_000);

    // A part of a slice as well.
    c.put("part", slice.slice(5000..9000).into(), &PutOptions::default())
        .await
        .unwrap();
    let sent = mock.last_request().unwrap();
    assert_eq!(sent.data_buffer, slice.as_ptr().addr() as u64 + 5000);

    let dest = node.arena.alloc(100_000).unwrap();
    let address = dest.as_ptr().addr();
    let got = c.get("b", 7..100_007, &Condition::none(), dest).await.unwrap();
    assert_eq!(got.buffer.as_ptr().addr(), address);
    assert_eq!(mock.last_request().unwrap().data_buffer, address as u64);
    assert!(got.buffer[..] == content[7..100_007]);
    assert_eq!(node.stats("https").requests, 0);
    let channel = node.stats("channel");
    assert_eq!((channel.errors, channel.failed_over), (0, 0));
    assert_eq!(channel.bytes_out, 304_000);
    assert_eq!(channel.bytes_in, 100_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_for_the_channel_goes_over_https() {
    let node = Node::new(TransportMode::Prefer).await;
    let c = node.container().await;
    let content = Bytes::from(bytes(3, 33 << 20));
    let body = Body(vec![blob_client::Piece::Bytes(content.clone())]);
    c.put("big", body, &PutOptions::default()).await.unwrap();
    assert_eq!(node.stats("https").requests, 1);
    assert_eq!(node.stats("channel").failed_over, 0);
    let dest = node.arena.alloc(1 << 20).unwrap();
    let got = c
        .get("big", 32 << 20..33 << 20, &Condition::none(), dest)
        .await
        .unwrap();
    assert!(got.buffer[..] == content[32 << 20..]);
    assert_eq!(node.stats("https").requests, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_listings_fit_the_channel() {
    let node = Node::new(TransportMode::Require).await;
    let c = node.container().await;
    let options = PutOptions {
        metadata: Metadata::from([("k".to_owned(), "v".repeat(200))]),
        ..PutOptions::default()
    };
    let put = |i: usize| {
        let (c, options) = (c.clone(), options.clone());
        async move {
            c.put(&format!("name-{i:05}"), Body::default(), &options)
                .await
                .unwrap();
        }
    };
    join_all((0..600).map(put)).await;
    let page = c
        .list(&blob_client::ListOptions {
            metadata: true,
            ..Default::default()
        })
        .await
        .unwrap();
    assert_eq!((page.items.len(), page.next_marker), (600, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_device_goes_half_way_and_comes_back() {
    let node = Node::new(TransportMode::Prefer).await;
    let c = node.container().await;
    round_trips(&node, &c, 0..20).await;
    assert_eq!(node.stats("https").requests, 0);

    node.faults().update(|f| f.gone_after = Some(30));
    round_trips(&node, &c, 20..60).await;
    // Which request meets it is left to chance: one that may be sent twice moves and is counted, one that
    // may not is repeated by the client.
    assert!(node.stats("https").requests > 0);
    let reason = node.paths.channel_unusable().unwrap();
    assert!(reason.contains("azure_blob"), "{reason}");
    assert_eq!(node.stats("channel").reason, Some(reason));

    node.faults().reset();
    node.until_usable().await;
    let before = node.stats("channel").requests;
    round_trips(&node, &c, 60..70).await;
    assert!(node.stats("channel").requests > before);
    assert_eq!(node.paths.watch_channel().unwrap().borrow().changes, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_eagain_ends_on_https() {
    let node = Node::new(TransportMode::Prefer).await;
    let c = node.container().await;
    node.faults().update(|f| f.eagain_next = u64::MAX);
    round_trips(&node, &c, 0..8).await;
    assert!(node.stats("https").requests > 0);
    assert!(node.paths.channel_unusable().is_some());
    node.faults().reset();
    node.until_usable().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_never_return() {
    let node = Node::new(TransportMode::Prefer).await;
    let c = node.container().await;
    node.faults().update(|f| f.hold_next = u64::MAX);
    round_trips(&node, &c, 0..8).await;
    assert!(node.stats("channel").failed_over > 0);
    assert!(node.paths.channel_unusable().is_some());
    node.faults().reset();
    node.faults().release();
    node.until_usable().await;
    round_trips(&node, &c, 8..12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spoiled_answers_never_become_content() {
    for spoil in [
        Spoil::Short,
        Spoil::Empty,
        Spoil::Overlong,
        Spoil::Crc,
        Spoil::Body,
        Spoil::Magic,
        Spoil::Json,
        Spoil::Data,
        Spoil::Protocol,
    ] {
        let node = Node::new(TransportMode::Prefer).await;
        let c = node.container().await;
        let content = bytes(9, 200_000);
        c.put("b", node.buffer(&content).freeze().into(), &PutOptions::default())
            .await
            .unwrap();
        node.faults().update(|f| {
            f.spoil = spoil;
            f.spoil_next = 1;
        });
        let dest = node.arena.alloc(200_000).unwrap();
        let got = c.get("b", 0..200_000, &Condition::none(), dest).await.unwrap();
        assert!(got.buffer[..] == content[..], "{spoil:?}");
        assert_eq!(node.stats("channel").errors, 1, "{spoil:?}");
        assert_eq!(node.stats("channel").failed_over, 1, "{spoil:?}");
        assert_eq!(
            node.paths.channel_unusable(),
            None,
            "one failure is not an outage"
        );

        node.faults().update(|f| f.spoil_next = u64::MAX);
        round_trips(&node, &c, 0..6).await;
        // Where only payloads are short, the other calls go on well.
        if spoil != Spoil::Data {
            let reason = node.paths.channel_unusable().unwrap();
            assert!(reason.starts_with("too many requests failed"), "{reason}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_was_lost_is_not_a_lost_race() {
    let node = Node::new(TransportMode::Prefer).await;
    let c = node.container().await;
    // Executed, and the answer spoiled.
    let lose = async || {
        // A few good answers between, or the circuit would rightly open.
        for _ in 0..4 {
            c.properties().await.unwrap();
        }
        node.faults().update(|f| {
            f.spoil = Spoil::Crc;
            f.spoil_next = 1;
        });
    };
    let meta = Metadata::from([("mode".to_owned(), "0644".to_owned())]);
    let options = |condition: Condition| PutOptions {
        metadata: meta.clone(),
        stored: None,
        condition,
        ..PutOptions::default()
    };
    let head = async |name: &str| c.head(name, &Condition::none()).await.unwrap();

    lose().await;
    let body = Body::from(node.buffer(&bytes(2, 5000)).freeze());
    let first = c.put("a", body, &options(Condition::absent())).await.unwrap();
    assert_eq!(head("a").await.etag, first.etag);

    lose().await;
    let second = c
        .put("a", Body::default(), &options(Condition::matches(&first.etag)))
        .await
        .unwrap();
    assert_eq!(head("a").await.etag, second.etag);

    let id = BlockId(vec![5; 32]);
    c.stage(
        "a",
        &id,
        Bytes::from_static(b"block").into(),
        &StageOptions::default(),
    )
    .await
    .unwrap();
    lose().await;
    let third = c
        .commit(
            "a",
            &[BlockRef::Uncommitted(id)],
            &options(Condition::matches(&second.etag)),
        )
        .await
        .unwrap();
    assert_eq!(head("a").await.etag, third.etag);

    lose().await;
    let other = Metadata::from([("mode".to_owned(), "0600".to_owned())]);
    let fourth = c
        .set_metadata("a", &other, &Condition::matches(&third.etag))
        .await
        .unwrap();
    assert_eq!(head("a").await.etag, fourth.etag);

    lose().await;
    let copied = c
        .copy("a", Some(&fourth.etag), None, "b", None, &Condition::absent())
        .await
        .unwrap();
    assert_eq!(head("b").await.etag, copied.etag);

    lose().await;
    c.delete("a", &Condition::matches(&fourth.etag)).await.unwrap();
    lose().await;
    c.delete("b", &Condition::none()).await.unwrap();
    lose().await;
    let lease_blob = c.put("l", Body::default(), &PutOptions::default()).await;
    lease_blob.unwrap();
    lose().await;
    let lease = c.acquire_lease("l", Some(15)).await.unwrap();
    lose().await;
    c.release_lease("l", &lease).await.unwrap();
    let made = node
        .client(Credentials::SharedKey {
            account: DEV_ACCOUNT.into(),
            key: DEV_KEY.to_owned().into(),
        })
        .container("made")
        .unwrap();
    lose().await;
    made.create(&meta).await.unwrap();
    lose().await;
    made.delete_container().await.unwrap();
    assert_eq!(node.faults().get().spoil_next, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_race_stays_one_even_when_an_answer_was_lost() {
    let node = Node::new(TransportMode::Prefer).await;
    let c = node.container().await;
    let options = PutOptions {
        condition: Condition::absent(),
        ..PutOptions::default()
    };
    // Somebody else's empty lock file, made long before (the service's clock has whole seconds).
    let made = c.put("lock", Body::default(), &options).await.unwrap();
    let until = made.last_modified + Duration::from_secs(4);
    loop {
        let now = c.put("clock", Body::default(), &PutOptions::default()).await;
        if now.unwrap().last_modified >= until {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    node.faults().update(|f| {
        f.spoil = Spoil::Magic;
        f.spoil_next = 1;
    });
    assert!(matches!(
        c.put("lock", Body::default(), &options).await,
        Err(Error::AlreadyExists { .. })
    ));
    // The same name with other content.
    node.faults().update(|f| f.spoil_next = 1);
    assert!(matches!(
        c.put("lock", Bytes::from_static(b"x").into(), &options).await,
        Err(Error::AlreadyExists { .. })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_rest_reads_by_handle() {
    let (node, c, content, condition) = without_rest(500_000, |_| sas("racwdl")).await;
    let read = async |range: std::ops::Range<u64>| {
        let dest = node.arena.alloc(100_000).unwrap();
        let got = c.get("r", range.clone(), &condition, dest).await.unwrap();
        let end = (range.end as usize).min(content.len());
        assert!(got.buffer[..] == content[range.start as usize..end]);
        got.properties
    };
    let first = read(0..100_000).await;
    let before = node.stats("https").requests;
    for start in [0_u64, 100_000, 250_000, 450_000] {
        assert_eq!(read(start..start + 100_000).await, first);
    }
    assert_eq!(
        node.stats("https").requests,
        before,
        "known versions go by handle"
    );
    let counters = node.mock.as_ref().unwrap().counters();
    assert_eq!((counters.open, counters.read), (1, 4));
    // The channel is in use, and what does not go over it is told.
    assert_eq!(node.paths.channel_unusable(), None);
    let limits = node.paths.channel_limits().unwrap();
    assert!(limits.contains("no REST requests"), "{limits}");
    assert_eq!(node.stats("channel").errors, 0);

    // A device that returns has forgotten its handles: no reader notices.
    node.faults().update(|f| f.gone_after = Some(0));
    read(0..1000).await;
    node.faults().update(|f| {
        f.gone = false;
        f.gone_after = None;
    });
    node.until_usable().await;
    read(0..1000).await;
    // A new version is a new handle, and the old one is refused as changed.
    let other = node.client(sas("w")).container("data").unwrap();
    other
        .put("r", Bytes::from_static(b"new").into(), &PutOptions::default())
        .await
        .unwrap();
    let dest = node.arena.alloc(10).unwrap();
    assert!(matches!(
        c.get("r", 0..10, &condition, dest).await,
        Err(Error::ConditionNotMet { .. })
    ));
}

/// A host that takes no REST requests, a container of a client with these credentials, and a blob `r` of so
/// many bytes.
async fn without_rest(
    len: usize,
    credentials: impl Fn(&Node) -> Credentials,
) -> (Node, Container, Vec<u8>, Condition) {
    let faults = Faults {
        refuse_rest: true,
        ..Faults::default()
    };
    let node = Node::with_faults(TransportMode::Prefer, Some(faults)).await;
    let keyed = node.container().await;
    let content = bytes(4, len);
    let written = keyed
        .put("r", node.buffer(&content).freeze().into(), &PutOptions::default())
        .await
        .unwrap();
    let c = node.client(credentials(&node)).container("data").unwrap();
    (node, c, content, Condition::matches(&written.etag))
}

fn sas(rights: &str) -> Credentials {
    let key = AccountKey::new(DEV_ACCOUNT, DEV_KEY).unwrap();
    let options = SasOptions::new(rights, Duration::from_secs(3600));
    Credentials::Sas(key.container_sas("data", &options).into())
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_who_come_together_open_one_handle() {
    let (node, c, content, condition) = without_rest(100_000, |_| sas("r")).await;
    let read = async || {
        let dest = node.arena.alloc(content.len()).unwrap();
        let got = c.get("r", 0..100_000, &condition, dest).await.unwrap();
        assert!(got.buffer[..] == content[..]);
    };
    read().await;
    // Long enough in the host for all of them to ask before the first has an answer.
    node.faults().update(|f| f.latency_us = 100_000);
    join_all((0..8).map(|_| read())).await;
    let counters = node.mock.as_ref().unwrap().counters();
    assert_eq!((counters.open, counters.read), (1, 8));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_is_for_those_who_may_read() {
    let (node, reader, content, condition) = without_rest(100_000, |_| sas("r")).await;
    let read = async |c: &Container| {
        let dest = node.arena.alloc(content.len()).unwrap();
        c.get("r", 0..100_000, &condition, dest).await
    };
    for _ in 0..2 {
        read(&reader).await.unwrap();
    }
    assert_eq!(node.mock.as_ref().unwrap().counters().read, 1);
    // Another volume of the same node knows name and version from a listing.
    let other = node.client(sas("l")).container("data").unwrap();
    let error = read(&other).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
    assert_eq!(node.mock.as_ref().unwrap().counters().read, 1);
}

#[derive(Debug)]
struct OneToken;

#[async_trait]
impl TokenSource for OneToken {
    async fn token(&self) -> blob_client::Result<Secret<String>> {
        Ok("token-1".to_owned().into())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_goes_with_the_handle() {
    let (node, c, content, condition) = without_rest(100_000, |node| {
        node.store.accept_token("token-1");
        Credentials::Token(Arc::new(OneToken))
    })
    .await;
    let read = async || {
        let dest = node.arena.alloc(content.len()).unwrap();
        c.get("r", 0..100_000, &condition, dest).await
    };
    for _ in 0..3 {
        assert!(read().await.unwrap().buffer[..] == content[..]);
    }
    let counters = node.mock.as_ref().unwrap().counters();
    assert_eq!((counters.open, counters.read), (1, 2));
    // The host presents it with every read, so it ends when the token does.
    node.store.revoke_token("token-1");
    let error = read().await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
}

/// The third odd status of a host that has not shown yet that it knows REST counts as "it does not", and is a
/// guess all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_behind_the_status_that_decides_is_not_a_lost_race() {
    let node = Node::new(TransportMode::Prefer).await;
    node.store.create_container("data").unwrap();
    let key = Credentials::SharedKey {
        account: DEV_ACCOUNT.into(),
        key: DEV_KEY.to_owned().into(),
    };
    let c = node.client(key).container("data").unwrap();
    node.faults().update(|f| {
        f.spoil = Spoil::Status;
        f.spoil_next = 3;
    });
    for _ in 0..2 {
        c.properties().await.unwrap();
    }
    assert_eq!(node.paths.channel_limits(), None, "not decided yet");
    let options = PutOptions {
        condition: Condition::absent(),
        ..PutOptions::default()
    };
    c.put("new", Bytes::from_static(b"x").into(), &options)
        .await
        .unwrap();
    assert_eq!(node.faults().get().spoil_next, 0);
    assert!(node.paths.channel_limits().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_spoiled_answer_while_https_is_dead() {
    let mut node = Node::new(TransportMode::Prefer).await;
    let c = node.container().await;
    let content = bytes(5, 10_000);
    c.put("b", node.buffer(&content).freeze().into(), &PutOptions::default())
        .await
        .unwrap();
    // Nobody listens where the client's endpoint is; the host reaches the store all the same.
    node.server = node.store.serve(([127, 0, 0, 1], 0).into()).await.unwrap();
    let spoil = || {
        node.faults().update(|f| {
            f.spoil = Spoil::Crc;
            f.spoil_next = 1;
        });
    };
    spoil();
    let dest = node.arena.alloc(10_000).unwrap();
    let got = c.get("b", 0..10_000, &Condition::none(), dest).await.unwrap();
    assert!(got.buffer[..] == content[..]);
    spoil();
    let options = PutOptions {
        condition: Condition::absent(),
        ..PutOptions::default()
    };
    c.put("new", Bytes::from_static(b"x").into(), &options)
        .await
        .unwrap();
    assert_eq!(node.stats("https").errors, 2);
    assert_eq!(node.faults().get().spoil_next, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_devices_counters_are_told() {
    let node = Node::new(TransportMode::Prefer).await;
    let c = node.container().await;
    node.faults().update(|f| f.eagain_next = 3);
    c.properties().await.unwrap();
    let device = node.paths.device_stats();
    assert_eq!((device.eagain, device.written_off, device.reopened), (3, 0, 0));
    assert!(device.completed >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_appears_later_is_taken() {
    let mut node = Node::with_faults(TransportMode::Prefer, None).await;
    let c = node.container().await;
    round_trips(&node, &c, 0..2).await;
    assert_eq!(node.paths.channel_limits(), None);
    let stats = node.stats("channel");
    assert_eq!((stats.requests, stats.errors, stats.usable), (0, 0, false));
    assert!(stats.reason.unwrap().contains("azure_blob"));
    node.mock = Some(MockVsp::mount(node.dir.path(), node.store.clone()).unwrap());
    node.until_usable().await;
    round_trips(&node, &c, 2..4).await;
    assert!(node.stats("channel").requests > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_required_channel_that_is_missing_says_so_at_once() {
    let node = Node::with_faults(TransportMode::Require, None).await;
    let c = node.client(Credentials::Anonymous).container("data").unwrap();
    let began = std::time::Instant::now();
    let error = c.properties().await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(30));
    let Error::ChannelRequired { reason } = error else {
        panic!("{error}")
    };
    assert!(reason.contains("azure_blob"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_required_channel_that_blinks_is_waited_for() {
    let node = Node::new(TransportMode::Require).await;
    let c = node.container().await;
    node.faults().update(|f| {
        f.gone = true;
        f.return_after_ms = Some(500);
    });
    round_trips(&node, &c, 0..4).await;
    assert_eq!(node.stats("https").requests, 0);
}

/// An answer's length is not known before; a page that is as long as the one before it is asked for once.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_asked_for_once_over_the_channel() {
    let node = Node::new(TransportMode::Require).await;
    let c = node.container().await;
    let options = PutOptions {
        metadata: Metadata::from([("k".to_owned(), "v".repeat(7000))]),
        ..PutOptions::default()
    };
    for blob in 0..200 {
        c.put(&format!("{blob:03}"), Body::default(), &options)
            .await
            .unwrap();
    }
    node.store.reset_counters();
    let (mut pages, mut marker) = (0, None);
    loop {
        let wanted = ListOptions {
            marker,
            max_results: Some(50),
            metadata: true,
            ..ListOptions::default()
        };
        let page = c.list(&wanted).await.unwrap();
        assert_eq!(page.items.len(), 50);
        pages += 1;
        marker = page.next_marker;
        if marker.is_none() {
            break;
        }
    }
    // The first one twice: with the usual room, and with enough.
    assert_eq!(
        (pages, node.store.counters(Operation::ListBlobs).requests),
        (4, 5)
    );
}
