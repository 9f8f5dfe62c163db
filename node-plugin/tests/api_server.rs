//! The kube side of the cluster seam against a small API server on loopback: verbs, paths, bodies, and every
//! kind of refusal.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A failed unwrap is a failed test.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use vsc_blob_csi::cluster::{
    CHANNEL_LABEL, CHANNEL_REASON, Cleaned, Cleanup, Cluster, Config, Error, EventView, KubeCluster, Marks,
    ObjectRef, Preparation, Prepared, Taint,
};

const DRIVER: &str = vsc_blob_csi::DRIVER_NAME;

/// A request as it came.
#[derive(Debug, Clone)]
struct Asked {
    method: String,
    /// Path and query.
    path: String,
    content_type: String,
    body: Value,
}

#[derive(Debug, Default)]
struct State {
    asked: Vec<Asked>,
    answers: VecDeque<(u16, Value)>,
    /// What is answered to a method and path when no answer is prepared, however often.
    always: Vec<(String, Value)>,
    /// Accepts requests and never answers.
    silent: bool,
}

/// An API server that gives prepared answers.
struct Server {
    state: Arc<Mutex<State>>,
    cluster: KubeCluster,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn({
            let state = state.clone();
            async move {
                // Connections end with this task.
                let mut connections = tokio::task::JoinSet::new();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let state = state.clone();
                    let service = service_fn(move |request| answer(state.clone(), request));
                    connections.spawn(
                        hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service),
                    );
                }
            }
        });
        let config = Config::new(format!("http://{address}").parse().unwrap());
        let cluster = KubeCluster::new(config, DRIVER, "node-1").unwrap();
        Self { state, cluster, task }
    }

    /// The next answer.
    fn answers(&self, code: u16, body: Value) {
        self.state.lock().unwrap().answers.push_back((code, body));
    }

    /// The answer to `METHOD PATH` from now on.
    fn always_answers(&self, to: &str, body: Value) {
        self.state.lock().unwrap().always.push((to.to_owned(), body));
    }

    fn refuses(&self, code: u16, reason: &str, message: &str) {
        self.answers(code, failure(code, reason, message));
    }

    /// The requests since the last look.
    fn all_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }

    /// The only request since the last look.
    fn asked(&self) -> Asked {
        let mut asked = self.all_asked();
        assert_eq!(asked.len(), 1, "{asked:?}");
        asked.remove(0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let (silent, (code, body)) = {
        let mut state = state.lock().unwrap();
        let line = format!("{} {}", parts.method, parts.uri.path());
        let known = state.always.iter().find(|(to, _)| *to == line);
        let known = known.map(|(_, body)| (200, body.clone()));
        state.asked.push(Asked {
            method: parts.method.to_string(),
            path: parts.uri.to_string(),
            content_type: parts
                .headers
                .get("content-type")
                .map(|v| v.to_str().unwrap().to_owned())
                .unwrap_or_default(),
            body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        });
        let none = || (500, failure(500, "InternalError", "no answer prepared"));
        (
            state.silent,
            state.answers.pop_front().or(known).unwrap_or_else(none),
        )
    };
    if silent {
        std::future::pending::<()>().await;
    }
    let response = Response::builder()
        .status(StatusCode::from_u16(code).unwrap())
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())));
    Ok(response.unwrap())
}

fn failure(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
           "reason": reason, "code": code})
}

fn node(taints: Value) -> Value {
    json!({"kind": "Node", "apiVersion": "v1",
           "metadata": {"name": "node-1", "uid": "u-1", "resourceVersion": "41", "labels": {"a": "b"}},
           "spec": {"taints": taints, "aFieldOfTomorrow": true}})
}

fn event(object: ObjectRef) -> EventView {
    EventView {
        name: format!("{}.0123", object.name),
        object,
        warning: true,
        reason: "ContainerNotFound".into(),
        message: "containerName: no such container".into(),
        count: 3,
        first: Timestamp::UNIX_EPOCH,
        last: Timestamp::UNIX_EPOCH,
    }
}

fn pod() -> ObjectRef {
    ObjectRef {
        kind: "Pod",
        namespace: "team".into(),
        name: "reader".into(),
        uid: "u-2".into(),
    }
}

#[tokio::test]
async fn a_node_is_read_and_only_its_metadata_is_patched() {
    let server = Server::start().await;
    server.answers(
        200,
        node(json!([{"key": "k", "effect": "NoSchedule", "value": "v"}])),
    );
    let view = server.cluster.node("node-1").await.unwrap();
    assert_eq!((view.uid.as_str(), view.resource_version.as_str()), ("u-1", "41"));
    assert_eq!(
        (view.labels["a"].as_str(), view.taints[0].key.as_str()),
        ("b", "k")
    );
    let asked = server.asked();
    assert_eq!(
        (asked.method.as_str(), asked.path.as_str()),
        ("GET", "/api/v1/nodes/node-1")
    );

    server.answers(
        200,
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                               "metadata": {"name": "node-1"}}),
    );
    let marks = Marks {
        labels: [("l".to_owned(), Some("1".to_owned()))].into(),
        annotations: [("gone".to_owned(), None)].into(),
    };
    server.cluster.mark_node("node-1", &marks).await.unwrap();
    let asked = server.asked();
    assert_eq!(asked.method, "PATCH");
    assert!(asked.path.starts_with("/api/v1/nodes/node-1"), "{}", asked.path);
    assert_eq!(asked.content_type, "application/merge-patch+json");
    assert_eq!(
        asked.body,
        json!({"metadata": {"labels": {"l": "1"}, "annotations": {"gone": null}}})
    );
}

#[tokio::test]
async fn taints_are_written_for_the_version_that_was_read() {
    let server = Server::start().await;
    let startup = json!({"key": "vsc.blob.csi.azure.com/agent-not-ready", "effect": "NoExecute"});
    let other = json!({"key": "dedicated", "effect": "NoSchedule", "value": "gpu"});
    server.answers(200, node(json!([startup, other])));
    let view = server.cluster.node("node-1").await.unwrap();
    server.asked();
    let kept: Vec<Taint> = view.taints[1..].to_vec();
    server.refuses(409, "Conflict", "the object has been modified");
    let error = server.cluster.set_taints(&view, &kept).await.unwrap_err();
    assert!(
        matches!(&error, Error::Conflict(text) if text.contains("node-1")),
        "{error:?}"
    );
    assert!(error.is_passing());
    let asked = server.asked();
    assert_eq!(
        (asked.method.as_str(), asked.content_type.as_str()),
        ("PATCH", "application/merge-patch+json")
    );
    assert_eq!(
        asked.body,
        json!({"metadata": {"resourceVersion": "41"}, "spec": {"taints": [other]}})
    );
}

#[tokio::test]
async fn drivers_come_from_the_csinode() {
    let server = Server::start().await;
    server.answers(
        200,
        json!({"kind": "CSINode", "apiVersion": "storage.k8s.io/v1", "metadata": {"name": "node-1"},
        "spec": {"drivers": [{"name": DRIVER, "nodeID": "node-1", "topologyKeys": null}]}}),
    );
    assert_eq!(server.cluster.drivers("node-1").await.unwrap(), [DRIVER]);
    assert_eq!(server.asked().path, "/apis/storage.k8s.io/v1/csinodes/node-1");
    server.refuses(404, "NotFound", "csinodes \"node-1\" not found");
    assert!(server.cluster.drivers("node-1").await.unwrap().is_empty());
}

#[tokio::test]
async fn pods_of_one_node_with_their_claims() {
    let server = Server::start().await;
    server.answers(
        200,
        json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [
        {"metadata": {"name": "reader", "namespace": "team", "uid": "u-2"},
         "spec": {"containers": [], "volumes": [
            {"name": "d", "persistentVolumeClaim": {"claimName": "data"}},
            {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}},
            {"name": "e", "emptyDir": {}}]}}]}),
    );
    let pods = server.cluster.pods("node-1").await.unwrap();
    assert_eq!(pods.len(), 1);
    assert_eq!(pods[0].object, pod());
    assert_eq!(pods[0].claims, ["data", "reader-scratch"]);
    let path = server.asked().path;
    assert!(path.starts_with("/api/v1/pods?"), "{path}");
    assert!(path.contains("fieldSelector=spec.nodeName%3Dnode-1"), "{path}");
}

#[tokio::test]
async fn volumes_and_claims_by_name() {
    let server = Server::start().await;
    server.answers(
        200,
        json!({"metadata": {"name": "pv-1"}, "spec": {
        "csi": {"driver": DRIVER, "volumeHandle": "h",
            "nodeStageSecretRef": {"namespace": "team", "name": "storage-key"}},
        "claimRef": {"kind": "PersistentVolumeClaim", "namespace": "team", "name": "data", "uid": "u-3"}}}),
    );
    let view = server.cluster.volume("pv-1").await.unwrap().unwrap();
    assert_eq!((view.driver.as_str(), view.handle.as_str()), (DRIVER, "h"));
    assert_eq!(view.claim.unwrap().uid, "u-3");
    assert_eq!(
        view.stage_secret,
        Some(("team".to_owned(), "storage-key".to_owned()))
    );
    assert_eq!(server.asked().path, "/api/v1/persistentvolumes/pv-1");
    server.answers(
        200,
        json!({"metadata": {"name": "pv-2"}, "spec": {"nfs": {"server": "s", "path": "/"}}}),
    );
    assert_eq!(server.cluster.volume("pv-2").await.unwrap(), None);
    server.asked();

    server.answers(
        200,
        json!({"metadata": {"name": "data"}, "spec": {"volumeName": "pv-1"}}),
    );
    let bound = server.cluster.bound_volume("team", "data").await.unwrap();
    assert_eq!(bound.as_deref(), Some("pv-1"));
    let path = server.asked().path;
    assert_eq!(path, "/api/v1/namespaces/team/persistentvolumeclaims/data");
    server.answers(200, json!({"metadata": {"name": "data"}, "spec": {}}));
    assert_eq!(server.cluster.bound_volume("team", "data").await.unwrap(), None);
}

#[tokio::test]
async fn an_event_is_what_kubectl_describe_looks_for() {
    let server = Server::start().await;
    server.answers(
        201,
        json!({"metadata": {"name": "reader.0123"}, "involvedObject": {}}),
    );
    server.cluster.create_event(&event(pod())).await.unwrap();
    let asked = server.asked();
    assert_eq!(asked.method, "POST");
    assert!(
        asked.path.starts_with("/api/v1/namespaces/team/events"),
        "{}",
        asked.path
    );
    let body = &asked.body;
    assert_eq!(
        body["involvedObject"],
        json!({"apiVersion": "v1", "kind": "Pod", "namespace": "team", "name": "reader", "uid": "u-2"})
    );
    assert_eq!(
        body["metadata"],
        json!({"name": "reader.0123", "namespace": "team"})
    );
    for (key, value) in [
        ("type", json!("Warning")),
        ("reason", json!("ContainerNotFound")),
        ("message", json!("containerName: no such container")),
        ("count", json!(3)),
        ("reportingComponent", json!(DRIVER)),
        ("reportingInstance", json!("node-1")),
        ("source", json!({"component": DRIVER, "host": "node-1"})),
        ("firstTimestamp", json!("1970-01-01T00:00:00Z")),
    ] {
        assert_eq!(body[key], value, "{key}");
    }

    // The second of two attempts, when the answer to the first was lost.
    server.refuses(409, "AlreadyExists", "events \"reader.0123\" already exists");
    server.cluster.create_event(&event(pod())).await.unwrap();
    server.asked();

    server.answers(
        200,
        json!({"metadata": {"name": "reader.0123"}, "involvedObject": {}}),
    );
    server.cluster.update_event(&event(pod())).await.unwrap();
    let asked = server.asked();
    assert_eq!(asked.method, "PATCH");
    assert!(
        asked
            .path
            .starts_with("/api/v1/namespaces/team/events/reader.0123"),
        "{}",
        asked.path
    );
    assert_eq!(
        asked.body,
        json!({
            "count": 3,
            "message": "containerName: no such container",
            "lastTimestamp": "1970-01-01T00:00:00Z",
        })
    );
}

#[tokio::test]
async fn events_of_a_node_are_in_the_default_namespace() {
    let server = Server::start().await;
    server.answers(201, json!({"metadata": {"name": "n"}, "involvedObject": {}}));
    let object = ObjectRef {
        kind: "Node",
        namespace: String::new(),
        name: "node-1".into(),
        uid: "u-1".into(),
    };
    server.cluster.create_event(&event(object)).await.unwrap();
    let asked = server.asked();
    assert!(
        asked.path.starts_with("/api/v1/namespaces/default/events"),
        "{}",
        asked.path
    );
    assert_eq!(asked.body["metadata"]["namespace"], "default");
    assert_eq!(asked.body["involvedObject"].get("namespace"), None);
}

#[tokio::test]
async fn a_secret_is_read_by_name_and_only_its_texts() {
    let server = Server::start().await;
    // "a2V5" is "key", "/w==" is a byte that is no text.
    server.answers(
        200,
        json!({"metadata": {"name": "s"}, "data": {"azurestorageaccountkey": "a2V5", "jks": "/w=="}}),
    );
    let secret = server.cluster.secret("team", "s").await.unwrap();
    assert_eq!(secret.len(), 1);
    assert_eq!(secret["azurestorageaccountkey"], "key");
    let asked = server.asked();
    assert_eq!(
        (asked.method.as_str(), asked.path.as_str()),
        ("GET", "/api/v1/namespaces/team/secrets/s")
    );
}

#[tokio::test]
async fn every_refusal_is_told_apart_and_nothing_is_repeated_behind_the_callers_back() {
    let server = Server::start().await;
    let said = "secrets \"s\" is forbidden: User \"system:serviceaccount:kube-system:n\" cannot get";
    type Right = fn(&Error) -> bool;
    let cases: [(u16, &str, Right); 8] = [
        (401, "Unauthorized", |e| matches!(e, Error::Denied(_))),
        (403, "Forbidden", |e| matches!(e, Error::Denied(_))),
        (404, "NotFound", |e| matches!(e, Error::NotFound(_))),
        (422, "Invalid", |e| matches!(e, Error::Other(_))),
        (429, "TooManyRequests", |e| matches!(e, Error::Busy { .. })),
        (500, "InternalError", |e| matches!(e, Error::Unavailable(_))),
        (503, "ServiceUnavailable", |e| matches!(e, Error::Unavailable(_))),
        (504, "Timeout", |e| matches!(e, Error::Unavailable(_))),
    ];
    for (code, reason, right) in cases {
        server.refuses(code, reason, said);
        let error = server.cluster.secret("team", "s").await.unwrap_err();
        assert!(right(&error), "{code}: {error:?}");
        assert!(error.to_string().contains(said), "{error}");
        assert!(error.to_string().contains("team/s"), "{error}");
        assert_eq!(error.is_passing(), matches!(code, 429 | 500..), "{code}");
        // Exactly one request.
        server.asked();
    }
    let mut busy = failure(429, "TooManyRequests", "slow down");
    busy["details"] = json!({"retryAfterSeconds": 7});
    server.answers(429, busy);
    let error = server.cluster.node("node-1").await.unwrap_err();
    assert!(
        matches!(error, Error::Busy { after: Some(after), .. } if after == Duration::from_secs(7)),
        "{error:?}"
    );
    server.asked();
    let text =
        "events is forbidden: unable to create new content in namespace team because it is being terminated";
    server.refuses(403, "Forbidden", text);
    let error = server.cluster.create_event(&event(pod())).await.unwrap_err();
    assert!(
        matches!(error, Error::NotFound(_)),
        "a namespace that goes is no missing right: {error:?}"
    );
}

#[tokio::test]
async fn a_server_that_is_gone_or_silent_is_unavailable() {
    let server = Server::start().await;
    server.state.lock().unwrap().silent = true;
    let hasty = server.cluster.clone().with_patience(Duration::from_millis(200));
    let error = hasty.node("node-1").await.unwrap_err();
    assert!(
        matches!(&error, Error::Unavailable(text) if text.contains("no answer within")),
        "{error:?}"
    );
    let cluster = server.cluster.clone();
    server.task.abort();
    while !server.task.is_finished() {
        tokio::task::yield_now().await;
    }
    let error = cluster.node("node-1").await.unwrap_err();
    assert!(matches!(&error, Error::Unavailable(_)), "{error:?}");
    assert!(
        error.to_string().contains("refused"),
        "the cause is named: {error}"
    );
}

/// Whatever they are for and however many wait: a node with much trouble is none of the API server.
#[tokio::test(start_paused = true)]
async fn requests_keep_to_the_rate() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let service = tower::service_fn({
        let asked = asked.clone();
        move |_: Request<kube::client::Body>| {
            asked.lock().unwrap().push(tokio::time::Instant::now());
            let body = Full::new(Bytes::from(node(json!([])).to_string()));
            std::future::ready(Ok::<_, Infallible>(Response::new(body)))
        }
    });
    let client = kube::Client::new(service, "default");
    let cluster = KubeCluster::with_client(client, DRIVER, "node-1");
    let start = tokio::time::Instant::now();
    let all = (0..100).map(|_| {
        // Clones share it.
        let cluster = cluster.clone();
        async move { cluster.node("node-1").await.unwrap() }
    });
    futures::future::join_all(all).await;
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 100);
    for (number, at) in asked.iter().enumerate() {
        // Ten at once, then five a second; the clock counts in milliseconds.
        let seconds = (*at - start).as_secs_f64();
        let least = (number as f64 - 9.0) / 5.0 - 0.01;
        assert!(seconds >= least, "request {number} after {seconds} s");
    }
}

fn marked(name: &str, labels: Value, annotations: Value) -> Value {
    json!({"metadata": {"name": name, "labels": labels, "annotations": annotations}})
}

fn nodes(items: &[Value], more: &str) -> Value {
    json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
           "metadata": {"continue": more}, "items": items})
}

fn cleanup(patience: Duration) -> Cleanup {
    Cleanup {
        namespace: "kube-system".into(),
        daemon_set: "blob-node".into(),
        patience,
    }
}

/// Method and path, without the query.
fn lines(asked: &[Asked]) -> Vec<String> {
    let line = |asked: &Asked| format!("{} {}", asked.method, asked.path.split('?').next().unwrap());
    asked.iter().map(line).collect()
}

#[tokio::test]
async fn the_cleanup_waits_for_the_node_plugins_and_takes_the_marks_off() {
    let server = Server::start().await;
    let set = json!({"kind": "DaemonSet", "apiVersion": "apps/v1", "metadata": {"name": "blob-node"}});
    let patched = || json!({"kind": "PartialObjectMetadata", "metadata": {"name": "n"}});
    server.answers(200, set);
    // Its pods are still ending; then a passing trouble; then it is gone.
    server.answers(
        200,
        json!({"kind": "PartialObjectMetadata", "metadata": {"name": "blob-node"}}),
    );
    server.refuses(503, "ServiceUnavailable", "the server is starting");
    server.refuses(404, "NotFound", "daemonsets.apps \"blob-node\" not found");
    // Two pages of nodes; of those that are marked, one leaves the cluster meanwhile.
    let down = marked(
        "down",
        json!({CHANNEL_LABEL: "available"}),
        json!({CHANNEL_REASON: "fine"}),
    );
    let clean = marked("clean", json!({"a": "b"}), json!({}));
    server.answers(200, nodes(&[down, clean], "page-2"));
    let half = marked("half", json!({}), json!({CHANNEL_REASON: "why"}));
    server.answers(200, nodes(&[half], ""));
    server.answers(200, patched());
    server.refuses(404, "NotFound", "nodes \"half\" not found");

    let cleaned = cleanup(Duration::from_secs(60))
        .run(&server.cluster)
        .await
        .unwrap();
    let nodes = vec!["down".to_owned(), "half".to_owned()];
    assert_eq!(cleaned, Cleaned { ended: true, nodes });
    let asked = server.all_asked();
    let set = "/apis/apps/v1/namespaces/kube-system/daemonsets/blob-node";
    assert_eq!(
        lines(&asked),
        [
            format!("DELETE {set}"),
            format!("GET {set}"),
            format!("GET {set}"),
            format!("GET {set}"),
            "GET /api/v1/nodes".into(),
            "GET /api/v1/nodes".into(),
            "PATCH /api/v1/nodes/down".into(),
            "PATCH /api/v1/nodes/half".into(),
        ]
    );
    // Foreground: the DaemonSet stays until its pods are gone, and their rights with it.
    assert_eq!(asked[0].body["propagationPolicy"], "Foreground");
    assert!(asked[5].path.contains("continue=page-2"), "{}", asked[5].path);
    assert_eq!(
        asked[6].body,
        json!({"metadata": {"labels": {CHANNEL_LABEL: null}, "annotations": {CHANNEL_REASON: null}}})
    );
}

#[tokio::test]
async fn the_cleanup_of_what_is_gone_does_nothing_and_a_missing_right_is_told() {
    let server = Server::start().await;
    server.refuses(404, "NotFound", "daemonsets.apps \"blob-node\" not found");
    server.answers(200, nodes(&[], ""));
    let cleaned = cleanup(Duration::from_secs(60))
        .run(&server.cluster)
        .await
        .unwrap();
    assert_eq!(
        cleaned,
        Cleaned {
            ended: true,
            nodes: Vec::new()
        }
    );
    assert_eq!(server.all_asked().len(), 2);

    server.refuses(403, "Forbidden", "cannot delete resource \"daemonsets\"");
    let error = cleanup(Duration::from_secs(60))
        .run(&server.cluster)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::Denied(text) if text.contains("kube-system/blob-node")),
        "{error:?}"
    );
}

/// A node that is down never ends its pod: its marks go nevertheless.
#[tokio::test]
async fn the_cleanup_does_not_wait_for_a_node_that_is_down() {
    let server = Server::start().await;
    let set = "/apis/apps/v1/namespaces/kube-system/daemonsets/blob-node";
    let ending = json!({"kind": "PartialObjectMetadata", "metadata": {"name": "blob-node"}});
    let down = marked("down", json!({CHANNEL_LABEL: "available"}), json!({}));
    let deleted = json!({"kind": "DaemonSet", "apiVersion": "apps/v1", "metadata": {"name": "blob-node"}});
    for (to, body) in [
        (format!("DELETE {set}"), deleted),
        (format!("GET {set}"), ending),
        ("GET /api/v1/nodes".to_owned(), nodes(&[down], "")),
        (
            "PATCH /api/v1/nodes/down".to_owned(),
            json!({"kind": "PartialObjectMetadata", "metadata": {"name": "down"}}),
        ),
    ] {
        server.always_answers(&to, body);
    }
    let cleaned = cleanup(Duration::from_secs(1))
        .run(&server.cluster)
        .await
        .unwrap();
    assert_eq!(
        cleaned,
        Cleaned {
            ended: false,
            nodes: vec!["down".to_owned()]
        }
    );
}

const CSI_DRIVER: &str = "/apis/storage.k8s.io/v1/csidrivers/vsc-blob.csi.azure.com";

fn csi_driver(uid: &str, modes: Value) -> Value {
    json!({"kind": "CSIDriver", "apiVersion": "storage.k8s.io/v1",
           "metadata": {"name": DRIVER, "uid": uid}, "spec": {"volumeLifecycleModes": modes}})
}

fn preparation(modes: &[&str], patience: Duration) -> Preparation {
    Preparation {
        driver: DRIVER.to_owned(),
        modes: modes.iter().map(|mode| (*mode).to_owned()).collect(),
        patience,
    }
}

/// Inline volumes on and off: in both directions the object that cannot be changed goes, and it only.
#[tokio::test]
async fn the_preparation_deletes_an_object_with_other_modes() {
    let (one, both) = (json!(["Persistent"]), json!(["Persistent", "Ephemeral"]));
    for (there, wanted) in [
        (one.clone(), &["Persistent", "Ephemeral"][..]),
        (both, &["Persistent"][..]),
        // What the API server fills in, where it is not written.
        (Value::Null, &["Ephemeral", "Persistent"][..]),
    ] {
        let server = Server::start().await;
        server.answers(200, csi_driver("uid-1", there));
        // Another one has its name by the time it is to be deleted.
        server.refuses(409, "Conflict", "the UID in the precondition is not the object's");
        server.answers(200, csi_driver("uid-2", json!(["Ephemeral"])));
        server.answers(200, csi_driver("uid-2", json!(["Ephemeral"])));
        server.refuses(404, "NotFound", "csidrivers.storage.k8s.io not found");
        let preparation = preparation(wanted, Duration::from_secs(60));
        let prepared = preparation.run(&server.cluster).await.unwrap();
        assert_eq!(prepared, Prepared::Deleted);
        let asked = server.all_asked();
        let [get, delete] = ["GET", "DELETE"].map(|verb| format!("{verb} {CSI_DRIVER}"));
        assert_eq!(
            lines(&asked),
            [&get, &delete, &get, &delete, &get].map(String::as_str)
        );
        for (request, uid) in [(1, "uid-1"), (3, "uid-2")] {
            assert_eq!(asked[request].body["preconditions"]["uid"], uid);
        }
    }
}

#[tokio::test]
async fn the_preparation_leaves_an_object_with_the_wanted_modes() {
    for (there, wanted) in [
        (json!(["Persistent"]), &["Persistent"][..]),
        (json!([]), &["Persistent"][..]),
        (Value::Null, &["Persistent"][..]),
        // Their order says nothing.
        (
            json!(["Ephemeral", "Persistent"]),
            &["Persistent", "Ephemeral"][..],
        ),
    ] {
        let server = Server::start().await;
        server.answers(200, csi_driver("uid-1", there));
        let preparation = preparation(wanted, Duration::from_secs(60));
        assert_eq!(preparation.run(&server.cluster).await.unwrap(), Prepared::Kept);
        assert_eq!(server.asked().method, "GET");
    }
    let server = Server::start().await;
    server.refuses(503, "ServiceUnavailable", "the server is starting");
    server.refuses(404, "NotFound", "csidrivers.storage.k8s.io not found");
    let preparation = preparation(&["Persistent"], Duration::from_secs(60));
    assert_eq!(preparation.run(&server.cluster).await.unwrap(), Prepared::Absent);
    assert_eq!(server.all_asked().len(), 2);
}

#[tokio::test]
async fn a_preparation_that_cannot_be_made_is_told() {
    let server = Server::start().await;
    server.answers(200, csi_driver("uid-1", json!(["Persistent", "Ephemeral"])));
    server.refuses(403, "Forbidden", "cannot delete resource \"csidrivers\"");
    let persistent = preparation(&["Persistent"], Duration::from_secs(60));
    let error = persistent.run(&server.cluster).await.unwrap_err();
    assert!(
        matches!(&error, Error::Denied(text) if text.contains(DRIVER)),
        "{error:?}"
    );
    // Somebody's finalizer holds it.
    for verb in ["GET", "DELETE"] {
        let body = csi_driver("uid-1", json!(["Persistent", "Ephemeral"]));
        server.always_answers(&format!("{verb} {CSI_DRIVER}"), body);
    }
    let persistent = preparation(&["Persistent"], Duration::from_secs(1));
    let error = persistent.run(&server.cluster).await.unwrap_err();
    assert!(
        matches!(&error, Error::Other(text) if text.contains("does not go")),
        "{error:?}"
    );
}

/// In a cluster the API server speaks TLS: a client for it must come up with the one TLS provider there is.
#[tokio::test]
async fn a_client_for_https_comes_up() {
    let mut config = Config::new("https://127.0.0.1:1".parse().unwrap());
    config.root_cert = Some(Vec::new());
    config.proxy_url = Some("http://proxy.invalid:3128".parse().unwrap());
    let cluster = KubeCluster::new(config, DRIVER, "node-1").unwrap();
    let error = cluster.node("node-1").await.unwrap_err();
    assert!(
        error.to_string().contains("refused"),
        "not through the proxy: {error}"
    );
}
