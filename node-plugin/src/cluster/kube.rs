//! The API server through the kube client, with the service account of the pod.

use std::collections::{BTreeMap, HashMap};
use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
pub use kube::Config;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use super::rate::{Limiter, Rate};
use super::{
    CHANNEL_LABEL, CHANNEL_REASON, Cluster, CsiDriverView, Error, EventView, Marks, NodeView, ObjectRef,
    PodView, Result, Taint, VolumeView,
};

/// Longest time for one request.
const REQUEST: Duration = Duration::from_secs(10);
/// How many nodes are asked for at a time.
const PAGE: u32 = 500;
/// Events about nodes are kept here (as kubelet does).
const NODE_EVENTS: &str = "default";

/// See the module.
#[derive(Clone)]
pub struct KubeCluster {
    client: kube::Client,
    /// Reported by Events: the driver's name and the instance, which is the node's name.
    driver: String,
    node: String,
    patience: Duration,
    /// Shared by all that speak for this program.
    limiter: Arc<Limiter>,
}

impl fmt::Debug for KubeCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubeCluster")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl KubeCluster {
    /// A client of the API server that `config` names; nothing is sent yet. Call it inside the runtime.
    pub fn new(mut config: Config, driver: &str, node: &str) -> anyhow::Result<Self> {
        // The callers decide about repetition. A proxy of the environment is for storage accounts and Entra
        // ID; the API server is inside the cluster.
        config.default_retry = false;
        config.proxy_url = None;
        blob_client::crypto::install();
        Ok(Self::with_client(kube::Client::try_from(config)?, driver, node))
    }

    /// Speaks through a client that is there, at the rate of a node ([`Rate::NODE`]).
    pub fn with_client(client: kube::Client, driver: &str, node: &str) -> Self {
        Self {
            client,
            driver: driver.to_owned(),
            node: node.to_owned(),
            patience: REQUEST,
            limiter: Arc::new(Limiter::new(Rate::NODE)),
        }
    }

    /// Asks at this rate. Call it before the client is shared: each call begins with a full burst.
    pub fn with_rate(mut self, rate: Rate) -> Self {
        self.limiter = Arc::new(Limiter::new(rate));
        self
    }

    /// Waits at most this long for an answer, instead of ten seconds.
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    async fn ask<T>(&self, what: &str, request: impl Future<Output = kube::Result<T>>) -> Result<T> {
        // The server's time begins when it is asked.
        self.limiter.turn().await;
        match tokio::time::timeout(self.patience, request).await {
            Ok(answer) => answer.map_err(|error| told(what, &error)),
            Err(_) => Err(Error::Unavailable(format!(
                "{what}: no answer within {:?}",
                self.patience
            ))),
        }
    }

    fn nodes(&self) -> Api<core::Node> {
        Api::all(self.client.clone())
    }

    fn events(&self, object: &ObjectRef) -> Api<core::Event> {
        Api::namespaced(self.client.clone(), event_namespace(object))
    }
}

fn event_namespace(object: &ObjectRef) -> &str {
    match object.namespace.as_str() {
        "" => NODE_EVENTS,
        namespace => namespace,
    }
}

#[async_trait]
impl Cluster for KubeCluster {
    async fn node(&self, name: &str) -> Result<NodeView> {
        let node = self
            .ask(&format!("reading node {name:?}"), self.nodes().get(name))
            .await?;
        Ok(NodeView {
            name: name.to_owned(),
            uid: node.metadata.uid.unwrap_or_default(),
            resource_version: node.metadata.resource_version.unwrap_or_default(),
            labels: node.metadata.labels.unwrap_or_default(),
            annotations: node.metadata.annotations.unwrap_or_default(),
            taints: node.spec.and_then(|spec| spec.taints).unwrap_or_default(),
        })
    }

    async fn mark_node(&self, name: &str, marks: &Marks) -> Result<()> {
        // A merge patch: null removes a key, and keys that are not named stay.
        let patch = Patch::Merge(json!({
            "metadata": { "labels": marks.labels, "annotations": marks.annotations },
        }));
        let nodes = self.nodes();
        let params = PatchParams::default();
        let request = nodes.patch_metadata(name, &params, &patch);
        self.ask(&format!("label of node {name:?}"), request)
            .await
            .map(drop)
    }

    async fn set_taints(&self, node: &NodeView, taints: &[Taint]) -> Result<()> {
        // A list is replaced as a whole: the version makes sure that it is the one that was read.
        let patch = Patch::Merge(json!({
            "metadata": { "resourceVersion": node.resource_version },
            "spec": { "taints": taints },
        }));
        let nodes = self.nodes();
        let params = PatchParams::default();
        let request = nodes.patch(&node.name, &params, &patch);
        self.ask(&format!("taints of node {:?}", node.name), request)
            .await
            .map(drop)
    }

    async fn drivers(&self, node: &str) -> Result<Vec<String>> {
        let all: Api<CSINode> = Api::all(self.client.clone());
        let found = self
            .ask(&format!("reading CSINode {node:?}"), all.get_opt(node))
            .await?;
        let drivers = found.map(|found| found.spec.drivers).unwrap_or_default();
        Ok(drivers.into_iter().map(|driver| driver.name).collect())
    }

    async fn pods(&self, node: &str) -> Result<Vec<PodView>> {
        let all: Api<core::Pod> = Api::all(self.client.clone());
        // Out of the API server's cache: many nodes may ask at once.
        let params = ListParams::default()
            .fields(&format!("spec.nodeName={node}"))
            .match_any();
        let pods = self
            .ask(&format!("listing pods of node {node:?}"), all.list(&params))
            .await?;
        Ok(pods.items.into_iter().map(pod_view).collect())
    }

    async fn volume(&self, name: &str) -> Result<Option<VolumeView>> {
        let all: Api<core::PersistentVolume> = Api::all(self.client.clone());
        let volume = self
            .ask(&format!("reading PersistentVolume {name:?}"), all.get(name))
            .await?;
        let Some(spec) = volume.spec else { return Ok(None) };
        let Some(csi) = spec.csi else { return Ok(None) };
        let claim = spec.claim_ref.map(|claim| ObjectRef {
            kind: "PersistentVolumeClaim",
            namespace: claim.namespace.unwrap_or_default(),
            name: claim.name.unwrap_or_default(),
            uid: claim.uid.unwrap_or_default(),
        });
        Ok(Some(VolumeView {
            driver: csi.driver,
            handle: csi.volume_handle,
            claim,
            stage_secret: csi
                .node_stage_secret_ref
                .and_then(|secret| Some((secret.namespace?, secret.name?))),
        }))
    }

    async fn bound_volume(&self, namespace: &str, claim: &str) -> Result<Option<String>> {
        let claims: Api<core::PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let what = format!("reading PersistentVolumeClaim {namespace}/{claim}");
        let found = self.ask(&what, claims.get_opt(claim)).await?;
        Ok(found
            .and_then(|claim| claim.spec)
            .and_then(|spec| spec.volume_name)
            .filter(|name| !name.is_empty()))
    }

    async fn create_event(&self, event: &EventView) -> Result<()> {
        let what = format!("Event about {} {:?}", event.object.kind, event.object.name);
        let body = self.event(event);
        let events = self.events(&event.object);
        let params = PostParams::default();
        match self.ask(&what, events.create(&params, &body)).await {
            // An earlier attempt whose answer was lost.
            Err(Error::Conflict(_)) => Ok(()),
            other => other.map(drop),
        }
    }

    async fn update_event(&self, event: &EventView) -> Result<()> {
        let what = format!("Event about {} {:?}", event.object.kind, event.object.name);
        let patch = Patch::Merge(json!({
            "count": event.count,
            "message": event.message,
            "lastTimestamp": Time(event.last),
        }));
        let events = self.events(&event.object);
        let params = PatchParams::default();
        let request = events.patch(&event.name, &params, &patch);
        self.ask(&what, request).await.map(drop)
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<HashMap<String, String>> {
        let secrets: Api<core::Secret> = Api::namespaced(self.client.clone(), namespace);
        let what = format!("reading Secret {namespace}/{name}");
        let secret = self.ask(&what, secrets.get(name)).await?;
        let data: BTreeMap<String, _> = secret.data.unwrap_or_default();
        let texts = data
            .into_iter()
            .filter_map(|(key, value)| Some((key, String::from_utf8(value.0).ok()?)));
        Ok(texts.collect())
    }
}

/// What upgrade and end of an installation need; see [`super::Preparation`] and [`super::Cleanup`].
impl KubeCluster {
    fn daemon_sets(&self, namespace: &str) -> Api<DaemonSet> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Deletes a DaemonSet, which goes after its pods have gone.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is not there.
    pub async fn delete_daemon_set(&self, namespace: &str, name: &str) -> Result<()> {
        let sets = self.daemon_sets(namespace);
        let after_its_pods = DeleteParams::foreground();
        let request = sets.delete(name, &after_its_pods);
        self.ask(&format!("deleting DaemonSet {namespace}/{name}"), request)
            .await
            .map(drop)
    }

    /// Whether a DaemonSet is there, also one that is ending.
    ///
    /// # Errors
    /// The API server's, as in [`Cluster`].
    pub async fn has_daemon_set(&self, namespace: &str, name: &str) -> Result<bool> {
        let sets = self.daemon_sets(namespace);
        let request = sets.get_metadata_opt(name);
        let found = self
            .ask(&format!("reading DaemonSet {namespace}/{name}"), request)
            .await?;
        Ok(found.is_some())
    }

    /// Names of the nodes that have the channel's label or annotation.
    ///
    /// # Errors
    /// The API server's, as in [`Cluster`].
    pub async fn marked_nodes(&self) -> Result<Vec<String>> {
        let nodes = self.nodes();
        let mut marked = Vec::new();
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = self.ask("listing nodes", nodes.list_metadata(&params)).await?;
            let of_page = page.items.into_iter().filter(|node| {
                let (labels, annotations) = (&node.metadata.labels, &node.metadata.annotations);
                labels.as_ref().is_some_and(|all| all.contains_key(CHANNEL_LABEL))
                    || annotations
                        .as_ref()
                        .is_some_and(|all| all.contains_key(CHANNEL_REASON))
            });
            marked.extend(of_page.filter_map(|node| node.metadata.name));
            match page.metadata.continue_.filter(|more| !more.is_empty()) {
                Some(more) => params = params.continue_token(&more),
                None => return Ok(marked),
            }
        }
    }

    fn csi_drivers(&self) -> Api<CSIDriver> {
        Api::all(self.client.clone())
    }

    /// The CSIDriver object of a name.
    ///
    /// # Errors
    /// The API server's, as in [`Cluster`].
    pub async fn csi_driver(&self, name: &str) -> Result<Option<CsiDriverView>> {
        let drivers = self.csi_drivers();
        let request = drivers.get_opt(name);
        let found = self.ask(&format!("reading CSIDriver {name:?}"), request).await?;
        Ok(found.map(|found| {
            let uid = found.metadata.uid.unwrap_or_default();
            CsiDriverView::new(uid, found.spec.volume_lifecycle_modes.unwrap_or_default())
        }))
    }

    /// Deletes the CSIDriver object of a name, if it is still the one with this uid.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none, [`Error::Conflict`] when it is another one.
    pub async fn delete_csi_driver(&self, name: &str, uid: &str) -> Result<()> {
        let drivers = self.csi_drivers();
        let that_one = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let request = drivers.delete(name, &that_one);
        self.ask(&format!("deleting CSIDriver {name:?}"), request)
            .await
            .map(drop)
    }

    fn event(&self, event: &EventView) -> core::Event {
        let object = &event.object;
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        core::Event {
            metadata: ObjectMeta {
                name: text(&event.name),
                namespace: text(event_namespace(object)),
                ..ObjectMeta::default()
            },
            involved_object: core::ObjectReference {
                api_version: text("v1"),
                kind: text(object.kind),
                namespace: text(&object.namespace),
                name: text(&object.name),
                uid: text(&object.uid),
                ..core::ObjectReference::default()
            },
            type_: text(if event.warning { "Warning" } else { "Normal" }),
            reason: text(&event.reason),
            message: text(&event.message),
            count: Some(event.count),
            first_timestamp: Some(Time(event.first)),
            last_timestamp: Some(Time(event.last)),
            // `kubectl describe` shows the source, newer readers the reporting component.
            source: Some(core::EventSource {
                component: text(&self.driver),
                host: text(&self.node),
            }),
            reporting_component: text(&self.driver),
            reporting_instance: text(&self.node),
            ..core::Event::default()
        }
    }
}

fn pod_view(pod: core::Pod) -> PodView {
    let name = pod.metadata.name.unwrap_or_default();
    let waits = pod.status.and_then(|status| status.phase).as_deref() == Some("Pending");
    let volumes = pod.spec.and_then(|spec| spec.volumes).unwrap_or_default();
    let claims = volumes.into_iter().filter_map(|volume| {
        let named = volume.persistent_volume_claim.map(|claim| claim.claim_name);
        // A generic ephemeral volume's claim is named after pod and volume.
        named.or_else(|| volume.ephemeral.map(|_| format!("{name}-{}", volume.name)))
    });
    let claims = claims.collect();
    PodView {
        object: ObjectRef {
            kind: "Pod",
            namespace: pod.metadata.namespace.unwrap_or_default(),
            name,
            uid: pod.metadata.uid.unwrap_or_default(),
        },
        claims,
        waits,
    }
}

/// Now, as the API server counts it.
pub(super) fn now() -> Timestamp {
    Timestamp::now()
}

/// The client's error with what was asked for.
fn told(what: &str, error: &kube::Error) -> Error {
    let status = match error {
        kube::Error::Api(status) => status,
        kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_) => {
            return Error::Unavailable(format!("{what}: {}", chain(error)));
        }
        _ => return Error::Other(format!("{what}: {}", chain(error))),
    };
    let message = format!("{what}: {}", status.message);
    match status.code {
        // A namespace on its way out refuses new objects: as good as gone.
        403 if status.message.contains("being terminated") => Error::NotFound(message),
        401 | 403 => Error::Denied(message),
        404 => Error::NotFound(message),
        409 => Error::Conflict(message),
        429 => {
            let seconds = status.details.as_ref().map(|d| d.retry_after_seconds);
            let after = seconds
                .filter(|s| *s > 0)
                .map(|s| Duration::from_secs(u64::from(s)));
            Error::Busy { message, after }
        }
        500.. => Error::Unavailable(format!("{message} ({})", status.code)),
        _ => Error::Other(format!("{message} ({})", status.code)),
    }
}

fn chain(error: &kube::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}
