//! A thousand nodes in one process, in virtual time: what they ask of the API server when nothing happens,
//! when everything fails and when the API server was away; and how an account fares that was away for all of
//! them. The measures are printed as tables (`--nocapture`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A failed unwrap is a failed test.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use blob_client::auth::Credentials;
use blob_client::request::Request;
use blob_client::response::Response;
use blob_client::transport::{PathStats, Transport, TransportError};
use blob_client::{Client, ClientConfig, Condition, Container};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};
use vsc_blob_csi::cluster::{
    CHANNEL_LABEL, CHANNEL_REASON, Claims, KubeCluster, Membership, Reporter, VolumeAt,
};
use vsc_driver::buffer::Arena;

const DRIVER: &str = vsc_blob_csi::DRIVER_NAME;
const NODES: usize = 1000;
/// Pods of a node with a claim each, and how many of these fail in the hour of trouble.
const PODS: usize = 30;
const FAILING: usize = 10;

/// An API server that counts: by node, and by second.
#[derive(Debug)]
struct ApiServer {
    start: Instant,
    down: AtomicBool,
    by_node: Vec<AtomicUsize>,
    by_second: Mutex<Vec<usize>>,
    marked: Vec<AtomicBool>,
}

impl ApiServer {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            down: AtomicBool::new(false),
            by_node: (0..NODES).map(|_| AtomicUsize::new(0)).collect(),
            by_second: Mutex::default(),
            marked: (0..NODES).map(|_| AtomicBool::new(false)).collect(),
        })
    }

    fn client(self: &Arc<Self>, node: usize) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (code, body) = server.answer(node, request.method().as_str(), request.uri().path());
            let answer = http::Response::builder()
                .status(code)
                .header("content-type", "application/json")
                .body(Full::new(Bytes::from(body.to_string())));
            async move {
                sleep(Duration::from_millis(5)).await;
                Ok::<_, Infallible>(answer.unwrap())
            }
        });
        kube::Client::new(service, "default")
    }

    fn answer(&self, node: usize, method: &str, path: &str) -> (u16, Value) {
        self.by_node[node].fetch_add(1, Ordering::Relaxed);
        let second = self.start.elapsed().as_secs() as usize;
        let mut by_second = self.by_second.lock().unwrap();
        let needed = by_second.len().max(second + 1);
        by_second.resize(needed, 0);
        by_second[second] += 1;
        drop(by_second);
        if self.down.load(Ordering::Relaxed) {
            let status = json!({"kind": "Status", "status": "Failure", "message": "away", "code": 503});
            return (503, status);
        }
        let last = path.rsplit('/').next().unwrap();
        let body = match (method, path) {
            ("GET", path) if path.starts_with("/api/v1/nodes/") => {
                let reason = "requests go over the accelerated channel";
                let (labels, annotations) = match self.marked[node].load(Ordering::Relaxed) {
                    true => (
                        json!({CHANNEL_LABEL: "available"}),
                        json!({CHANNEL_REASON: reason}),
                    ),
                    false => (json!({}), json!({})),
                };
                json!({"metadata": {"name": last, "uid": last, "labels": labels, "annotations": annotations}})
            }
            ("PATCH", path) if path.starts_with("/api/v1/nodes/") => {
                self.marked[node].store(true, Ordering::Relaxed);
                json!({"kind": "PartialObjectMetadata", "metadata": {"name": last}})
            }
            ("GET", "/api/v1/pods") => {
                let pods = (0..PODS).map(|number| {
                    let claim = json!({"claimName": format!("c{number}")});
                    let volumes = json!([{"name": "v", "persistentVolumeClaim": claim}]);
                    json!({"metadata": {"name": format!("p{number}"), "namespace": "team"},
                           "spec": {"containers": [], "volumes": volumes}})
                });
                json!({"metadata": {}, "items": pods.collect::<Vec<_>>()})
            }
            ("GET", path) if path.contains("/persistentvolumeclaims/") => {
                json!({"metadata": {"name": last}, "spec": {"volumeName": format!("pv-{last}")}})
            }
            ("GET", path) if path.contains("/persistentvolumes/") => {
                let claim = json!({"namespace": "team", "name": last.trim_start_matches("pv-")});
                let csi = json!({"driver": DRIVER, "volumeHandle": last});
                json!({"metadata": {"name": last}, "spec": {"csi": csi, "claimRef": claim}})
            }
            (_, path) if path.contains("/events") => json!({"metadata": {"name": "e"}, "involvedObject": {}}),
            (method, path) => panic!("{method} {path}"),
        };
        (200, body)
    }

    /// Requests of each node and second since the last look.
    fn measure(&self, over: Duration) -> Measure {
        let by_node = self.by_node.iter().map(|count| count.swap(0, Ordering::Relaxed));
        let by_node: Vec<f64> = by_node.map(|count| count as f64 / over.as_secs_f64()).collect();
        let by_second = self.by_second.lock().unwrap();
        let since = by_second.len().saturating_sub(over.as_secs() as usize);
        Measure {
            mean: by_node.iter().sum::<f64>() / NODES as f64,
            most: by_node.iter().copied().fold(0.0, f64::max),
            peak: by_second[since..].iter().copied().max().unwrap_or(0),
        }
    }
}

/// Requests a second.
struct Measure {
    /// Of a node.
    mean: f64,
    /// Of the busiest node.
    most: f64,
    /// Of all nodes, in the busiest second.
    peak: usize,
}

struct Node {
    reporter: Reporter,
    channel: watch::Sender<blob_client::transport::failover::ChannelState>,
    _stop: DropGuard,
}

fn node(server: &Arc<ApiServer>, number: usize) -> Node {
    let name = format!("node-{number}");
    let cluster = Arc::new(KubeCluster::with_client(server.client(number), DRIVER, &name));
    let (channel, receiver) = watch::channel(Default::default());
    let reporter = Reporter::default();
    let membership = Membership {
        claims: Arc::new(Claims::new(cluster.clone(), DRIVER, &name)),
        cluster,
        node: name,
        driver: DRIVER.into(),
        channel: receiver,
        ready: Arc::new(|| Box::pin(std::future::ready(Ok(())))),
        unstored: Arc::new(Vec::new),
    };
    let stop = CancellationToken::new();
    tokio::spawn(membership.keep(reporter.clone(), stop.clone()));
    Node {
        reporter,
        channel,
        _stop: stop.drop_guard(),
    }
}

/// Every volume fails as kubelet repeats it: every two minutes.
async fn fail(nodes: &[Node], rounds: usize) {
    for _ in 0..rounds {
        for node in nodes {
            for volume in 0..FAILING {
                let volume = VolumeAt {
                    handle: format!("pv-c{volume}"),
                    path: format!("/nonexistent/{volume}/globalmount").into(),
                };
                node.reporter
                    .failed(volume, "EndpointUnreachable", "nobody answers");
            }
        }
        sleep(Duration::from_secs(120)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_fleet_keeps_to_its_budgets_at_the_api_server() {
    let server = ApiServer::new();
    let nodes: Vec<Node> = (0..NODES).map(|number| node(&server, number)).collect();
    let mut table = String::new();
    let mut row = |what: &str, over: Duration, most: Option<f64>| {
        let measure = server.measure(over);
        let budget = most.map_or("-".to_owned(), |most| most.to_string());
        table += &format!(
            "{what:<44} {:>8.4} {:>8.4} {budget:>8} {:>8}\n",
            measure.mean, measure.most, measure.peak
        );
        if let Some(most) = most {
            assert!(measure.most <= most, "{what}: {}", measure.most);
        }
    };
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);

    sleep(minutes(10)).await;
    row("all nodes start", minutes(10), Some(1.0));
    sleep(minutes(60)).await;
    row("an idle hour", minutes(60), Some(0.05));
    fail(&nodes, 5).await;
    row("ten volumes fail on each node", minutes(10), Some(1.0));
    server.down.store(true, Ordering::Relaxed);
    fail(&nodes, 3).await;
    row("the same, and the API server is away", minutes(6), Some(1.0));
    server.down.store(false, Ordering::Relaxed);
    sleep(minutes(5)).await;
    row("it is back", minutes(5), Some(1.0));
    for node in &nodes {
        assert_eq!(node.reporter.dropped(), 0);
        node.channel.send_modify(|state| {
            state.unusable = Some("the device is gone".into());
            state.changes += 1;
        });
    }
    sleep(minutes(5)).await;
    row("all nodes lose the channel at once", minutes(5), Some(1.0));
    println!("{NODES} nodes: requests a second to the API server");
    println!(
        "{:<44} {:>8} {:>8} {:>8} {:>8}",
        "", "mean", "most", "budget", "fleet"
    );
    print!("{table}");
}

/// What an account serves in a second, and how many requests it may owe for: a token bucket.
const SERVED: f64 = 500.0;
const BURST: f64 = 1000.0;
/// How often a node asks, when it is answered.
const EVERY: Duration = Duration::from_millis(2500);

#[derive(Debug)]
struct Served {
    tokens: f64,
    at: Instant,
    down: bool,
    /// Answered well, and asked at all, since the last look.
    good: usize,
    asked: usize,
}

/// An account that turns away what is too much, and everything while it is down.
#[derive(Debug)]
struct AccountModel(Mutex<Served>);

#[async_trait]
impl Transport for AccountModel {
    async fn send(&self, _: Request) -> Result<Response, TransportError> {
        sleep(Duration::from_millis(10)).await;
        let busy = {
            let mut served = self.0.lock().unwrap();
            let now = Instant::now();
            let gained = (now - served.at).as_secs_f64() * SERVED;
            served.tokens = (served.tokens + gained).min(BURST);
            served.at = now;
            served.asked += 1;
            let busy = served.down || served.tokens < 1.0;
            if !busy {
                served.tokens -= 1.0;
                served.good += 1;
            }
            busy
        };
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-ms-request-id", "r"),
            ("etag", "\"0x1\""),
            ("last-modified", "Thu, 01 Jan 1970 00:00:00 GMT"),
            ("content-length", "0"),
            ("x-ms-blob-type", "BlockBlob"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let status = if busy {
            headers.insert("x-ms-error-code", HeaderValue::from_static("ServerBusy"));
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::OK
        };
        Ok(Response {
            status,
            headers,
            body: Bytes::new(),
            dest: None,
        })
    }

    fn stats(&self) -> Vec<PathStats> {
        Vec::new()
    }
}

impl AccountModel {
    /// Answered well, and asked at all, in a second, until now.
    fn rates(&self, over: Duration) -> (f64, f64) {
        let mut served = self.0.lock().unwrap();
        let rates = [served.good, served.asked].map(|count| count as f64 / over.as_secs_f64());
        (served.good, served.asked) = (0, 0);
        (rates[0], rates[1])
    }
}

/// Asks as a program does: the next time when there is an answer, of whatever kind.
async fn ask(container: Container) {
    sleep(EVERY.mul_f64(rand::random_range(0.0..1.0))).await;
    loop {
        // An error is the program's to see.
        let _ = container.head("blob", &Condition::none()).await;
        sleep(EVERY.mul_f64(rand::random_range(0.8..1.2))).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_fleet_is_served_again_within_a_minute_after_an_outage_of_five() {
    let account = Arc::new(AccountModel(Mutex::new(Served {
        tokens: BURST,
        at: Instant::now(),
        down: false,
        good: 0,
        asked: 0,
    })));
    let arena = Arena::new(1 << 20).unwrap();
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..NODES {
        // Each is a process of its own: they share nothing but the account.
        let config = ClientConfig::new("http://127.0.0.1/acct".parse().unwrap(), Credentials::Anonymous);
        let client = Client::new(config, account.clone(), arena.clone()).unwrap();
        asking.spawn(ask(client.container("photos").unwrap()));
    }
    let ten = Duration::from_secs(10);
    sleep(ten * 2).await;
    account.rates(ten);
    sleep(ten * 4).await;
    let (before, asked) = account.rates(ten * 4);
    println!("{NODES} nodes, an account that serves {SERVED} requests a second");
    println!("{:<24} {:>10} {:>10}", "", "served/s", "asked/s");
    println!("{:<24} {before:>10.1} {asked:>10.1}", "before");
    account.0.lock().unwrap().down = true;
    for minute in 1..=5 {
        sleep(ten * 6).await;
        let (good, asked) = account.rates(ten * 6);
        println!(
            "{:<24} {good:>10.1} {asked:>10.1}",
            format!("outage, minute {minute}")
        );
        assert!(
            asked <= 2.0 * before,
            "an outage makes more load: {asked} a second"
        );
    }
    account.0.lock().unwrap().down = false;
    let mut recovered = None;
    for tens in 1..=9 {
        sleep(ten).await;
        let (good, asked) = account.rates(ten);
        println!(
            "{:<24} {good:>10.1} {asked:>10.1}",
            format!("{} s after it", tens * 10)
        );
        if good >= 0.9 * before {
            recovered = recovered.or(Some(tens * 10));
        }
    }
    println!("goodput is back after {recovered:?} s");
    assert!(recovered.is_some_and(|seconds| seconds <= 60), "{recovered:?}");
}
