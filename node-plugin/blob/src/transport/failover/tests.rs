//! The choice between two scripted paths, in virtual time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use http::Method;
use vsc_driver::buffer::Arena;
use vsc_driver::channel::ChannelStats;

use super::*;
use crate::auth::Credentials;
use crate::body::Body;
use crate::transport::fake::{Fake, VERSION, answer, failure, failure_of, refusal, written};
use crate::transport::paths::Opener;
use crate::types::{Condition, PutOptions};
use crate::{Client, ClientConfig};

/// A channel whose answers and probes are scripted.
#[derive(Debug, Default, Clone)]
struct FakeChannel {
    fake: Fake,
    ill: Arc<Mutex<Option<String>>>,
    probes: Arc<AtomicU32>,
}

#[async_trait]
impl Transport for FakeChannel {
    async fn send(&self, request: Request) -> Result<Response, TransportError> {
        self.fake.send(request).await
    }
    fn stats(&self) -> Vec<PathStats> {
        Vec::new()
    }
}

#[async_trait]
impl Probed for FakeChannel {
    async fn probe(&self) -> Result<(), String> {
        self.probes.fetch_add(1, Ordering::Relaxed);
        self.ill.lock().unwrap().clone().map_or(Ok(()), Err)
    }
    fn learn(&self, _: &Request, _: &Response) {}
    fn device_stats(&self) -> ChannelStats {
        ChannelStats {
            eagain: 7,
            ..ChannelStats::default()
        }
    }
}

struct Both {
    channel: FakeChannel,
    https: Fake,
    paths: Arc<Paths>,
    arena: Arc<Arena>,
}

impl Both {
    async fn new() -> Self {
        let (channel, https) = (FakeChannel::default(), Fake::default());
        let opened = channel.clone();
        let opener: Opener = Box::new(move || {
            let channel = Arc::new(opened.clone()) as Arc<dyn Probed>;
            Box::pin(async move { Ok(channel) })
        });
        let runtime = tokio::runtime::Handle::current();
        let paths = Paths::over(Arc::new(https.clone()), Some(opener), &runtime);
        paths.settled().await;
        Self {
            channel,
            https,
            paths,
            arena: Arena::new(8 << 20).unwrap(),
        }
    }

    fn request(&self, idempotent: bool) -> Request {
        Request {
            method: Method::GET,
            url: "http://host/c/b".parse().unwrap(),
            headers: http::HeaderMap::new(),
            body: Body::default(),
            dest: Some(self.arena.alloc(1000).unwrap()),
            collect: crate::request::COLLECT,
            idempotent,
            avoid: None,
            timeout: Duration::from_secs(30),
            moved: Arc::default(),
            ledger: None,
        }
    }
}

fn broken() -> crate::transport::fake::Step {
    failure(FailureKind::Malformed, true, true)
}

fn content() -> crate::transport::fake::Step {
    answer(206, &VERSION, b"content")
}

#[tokio::test(start_paused = true)]
async fn a_read_that_fails_goes_over_https_at_once_with_its_own_destination() {
    let both = Both::new().await;
    let transport = both.paths.transport(TransportMode::Prefer);
    both.channel.fake.will(broken());
    both.https.will(content());
    let got = transport.send(both.request(true)).await.unwrap();
    assert_eq!(&got.dest.unwrap()[..], b"content");
    let (c, h) = (both.channel.fake.sent(), both.https.sent());
    assert_eq!(h[0].at, c[0].at);
    assert!(
        c[0].timeout < h[0].timeout,
        "the channel is given less than the whole time"
    );
    let stats = transport.stats();
    assert_eq!(stats[0].path, Path::Channel.name());
    assert_eq!(
        (stats[0].errors, stats[0].failed_over, stats[0].requests),
        (1, 1, 0)
    );
    assert_eq!((stats[1].requests, stats[1].bytes_in), (1, 7));
    // Another volume has counters of its own; the node's are the sum.
    let other = both.paths.transport(TransportMode::Prefer);
    assert_eq!(other.stats()[0].errors, 0);
    assert_eq!(both.paths.stats()[0].errors, 1);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_may_have_been_executed_is_the_clients_to_repeat() {
    let both = Both::new().await;
    let transport = both.paths.transport(TransportMode::Prefer);
    both.channel.fake.will(broken());
    let error = transport.send(both.request(false)).await.unwrap_err();
    assert!(error.maybe_executed);
    assert!(both.https.sent().is_empty());
    // One that was not executed goes on.
    both.channel
        .fake
        .will(failure(FailureKind::TimedOut, false, true));
    both.https.will(written());
    transport.send(both.request(false)).await.unwrap();
    // So does the client's next attempt.
    both.https.will(written());
    let mut again = both.request(false);
    again.avoid = Some(Path::Channel);
    transport.send(again).await.unwrap();
    assert_eq!(both.channel.fake.sent().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_for_the_channel_is_no_failure_of_it() {
    let both = Both::new().await;
    let transport = both.paths.transport(TransportMode::Prefer);
    for _ in 0..20 {
        both.channel
            .fake
            .will(failure(FailureKind::Unsuitable, false, false));
        both.https.will(written());
        transport.send(both.request(false)).await.unwrap();
    }
    assert_eq!(both.paths.channel_unusable(), None);
    let stats = transport.stats();
    assert_eq!((stats[0].errors, stats[0].failed_over), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_for_the_channel_may_have_been_executed_there() {
    let both = Both::new().await;
    let transport = both.paths.transport(TransportMode::Prefer);
    both.channel
        .fake
        .will(failure(FailureKind::Unsuitable, true, true));
    let error = transport.send(both.request(false)).await.unwrap_err();
    assert!(error.maybe_executed && error.retryable);
    assert!(both.https.sent().is_empty());
    // Reading twice is reading once.
    both.channel
        .fake
        .will(failure(FailureKind::Unsuitable, true, true));
    both.https.will(content());
    transport.send(both.request(true)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn no_memory_for_the_channel_is_no_failure_of_it_and_not_for_ever() {
    let both = Both::new().await;
    let prefer = both.paths.transport(TransportMode::Prefer);
    let require = both.paths.transport(TransportMode::Require);
    let no_memory = || failure(FailureKind::NoMemory, false, true);
    for _ in 0..20 {
        both.channel.fake.will(no_memory());
        both.https.will(written());
        prefer.send(both.request(false)).await.unwrap();
        both.channel.fake.will(no_memory());
        let error = require.send(both.request(false)).await.unwrap_err();
        assert_eq!((error.kind, error.retryable), (FailureKind::NoMemory, true));
    }
    assert_eq!(both.paths.channel_unusable(), None);
    assert_eq!(both.paths.stats()[0].errors, 0);
    assert_eq!(both.paths.device_stats().eagain, 7);
}

/// One spoiled answer must not tie a call to a path on which nobody is.
#[tokio::test(start_paused = true)]
async fn a_call_returns_to_the_channel_when_https_is_dead() {
    let both = Both::new().await;
    let client = Client::new(
        ClientConfig::new("http://host".parse().unwrap(), Credentials::Anonymous),
        both.paths.transport(TransportMode::Prefer),
        Arc::clone(&both.arena),
    )
    .unwrap();
    let c = client.container("data").unwrap();
    both.https
        .always(|| failure_of(Path::Https, FailureKind::Nobody, false, true));
    both.channel.fake.will(broken()).will(content());
    let dest = both.arena.alloc(7).unwrap();
    let got = c.get("b", 0..7, &Condition::none(), dest).await.unwrap();
    assert_eq!(&got.buffer[..], b"content");
    // A write that may have been executed, which failover leaves to the client.
    both.channel.fake.will(broken()).will(written());
    let options = PutOptions {
        condition: Condition::absent(),
        ..PutOptions::default()
    };
    c.put("b", Bytes::from_static(b"x").into(), &options)
        .await
        .unwrap();
    assert!(both.channel.fake.nothing_left());
    assert_eq!(both.https.sent().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn errors_of_the_service_are_answers() {
    let both = Both::new().await;
    let transport = both.paths.transport(TransportMode::Prefer);
    for _ in 0..20 {
        both.channel.fake.will(refusal(503, "ServerBusy"));
        let answer = transport.send(both.request(true)).await.unwrap();
        assert_eq!(answer.status.as_u16(), 503);
    }
    assert_eq!(both.paths.channel_unusable(), None);
    assert!(both.https.sent().is_empty());
}

#[tokio::test(start_paused = true)]
async fn repeated_failures_open_the_circuit_and_a_probe_closes_it() {
    let both = Both::new().await;
    let transport = both.paths.transport(TransportMode::Prefer);
    *both.channel.ill.lock().unwrap() = Some("the host is silent".into());
    both.https.always(content);
    for _ in 0..3 {
        both.channel.fake.will(broken());
        transport.send(both.request(true)).await.unwrap();
    }
    let reason = both.paths.channel_unusable().unwrap();
    assert!(reason.contains("scripted Malformed"), "{reason}");
    for _ in 0..50 {
        transport.send(both.request(true)).await.unwrap();
    }
    assert_eq!(both.channel.fake.sent().len(), 3);

    // The prober asks again and again, more and more seldom, and tells the newest reason.
    tokio::time::sleep(Duration::from_secs(600)).await;
    let probes = both.channel.probes.load(Ordering::Relaxed);
    assert!((15..40).contains(&probes), "{probes}");
    assert_eq!(both.paths.channel_unusable().unwrap(), "the host is silent");
    *both.channel.ill.lock().unwrap() = None;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(both.paths.settled().await, None);
    both.channel.fake.will(content());
    transport.send(both.request(true)).await.unwrap();
    assert_eq!(both.channel.fake.sent().len(), 4);
    assert_eq!(both.paths.watch_channel().unwrap().borrow().changes, 3);
}

#[tokio::test(start_paused = true)]
async fn one_failure_among_many_answers_is_no_outage() {
    let both = Both::new().await;
    let transport = both.paths.transport(TransportMode::Prefer);
    both.https.always(content);
    for i in 0..200 {
        both.channel
            .fake
            .will(if i % 10 == 0 { broken() } else { content() });
        transport.send(both.request(true)).await.unwrap();
    }
    assert_eq!(both.paths.channel_unusable(), None);
    // Every third is one.
    for i in 0..60 {
        both.channel
            .fake
            .will(if i % 3 == 0 { broken() } else { content() });
        transport.send(both.request(true)).await.unwrap();
    }
    assert!(both.paths.channel_unusable().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_path_that_is_down_is_left_at_once() {
    let both = Both::new().await;
    let transport = both.paths.transport(TransportMode::Prefer);
    both.https.always(content);
    both.channel
        .fake
        .will(failure(FailureKind::PathDown, false, true));
    transport.send(both.request(true)).await.unwrap();
    assert!(both.paths.channel_unusable().is_some());
    let stats = transport.stats();
    assert!(!stats[0].usable && stats[0].reason.is_some() && stats[1].usable);
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_is_required_is_never_replaced() {
    let both = Both::new().await;
    let transport = both.paths.transport(TransportMode::Require);
    both.channel.fake.will(broken());
    let error = transport.send(both.request(true)).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::Malformed);
    let mut again = both.request(true);
    again.avoid = Some(Path::Channel);
    both.channel.fake.will(content());
    transport.send(again).await.unwrap();
    *both.channel.ill.lock().unwrap() = Some("gone".into());
    both.channel
        .fake
        .will(failure(FailureKind::PathDown, false, true));
    let error = transport.send(both.request(true)).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::ChannelRequired);
    // It has been there, so it may come back within the call's deadline.
    let error = transport.send(both.request(true)).await.unwrap_err();
    assert!(error.retryable && error.kind == FailureKind::ChannelRequired);
    assert!(both.https.sent().is_empty());
}

#[tokio::test(start_paused = true)]
async fn https_alone_never_asks_the_channel() {
    let both = Both::new().await;
    let transport = both.paths.transport(TransportMode::Https);
    both.https.will(content());
    transport.send(both.request(true)).await.unwrap();
    assert!(both.channel.fake.sent().is_empty());
    assert_eq!(transport.stats().len(), 1);
    let off = Paths::over(
        Arc::new(both.https.clone()),
        None,
        &tokio::runtime::Handle::current(),
    );
    assert!(off.channel_unusable().unwrap().contains("switched off"));
    assert!(off.watch_channel().is_none());
    let error = off
        .transport(TransportMode::Require)
        .send(both.request(true))
        .await
        .unwrap_err();
    assert!(!error.retryable);
}
