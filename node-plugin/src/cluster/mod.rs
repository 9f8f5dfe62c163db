//! What the driver tells Kubernetes and asks of it: node label and taint, Events, Secrets by name. All of it
//! is optional.
//!
//! Without an API server the node serves as it does with one: nothing here is waited for by a publish, but
//! the Secret that its volume names.
//!
//! # Rights
//! Exactly these are used; the chart grants them and no more.
//!
//! | who | API group | resource | verbs | for |
//! |---|---|---|---|---|
//! | node | core | nodes | get, patch | label and annotation of the channel, the startup taint |
//! | node | storage.k8s.io | csinodes | get | does kubelet know the driver? then the taint can go |
//! | node | core | pods | list (field selector `spec.nodeName`) | which claim a volume is of (before 1.37) |
//! | node | core | persistentvolumes, persistentvolumeclaims | get | whose claim a Secret or an Event is of |
//! | node | core | events | create, patch | Events and their count |
//! | node, controller | core | secrets, in namespaces that are named | get | `secretName` |
//! | node | core | secrets, likewise | get | `nodeStageSecretRef` of what is mounted |
//! | uninstall hook | apps | the node plugins' DaemonSet, by name | get, delete | ends them while they may |
//! | uninstall hook | core | nodes | list, patch | label and annotation of nodes that are down |
//! | upgrade hook | storage.k8s.io | csidrivers, by name | get, delete | one that cannot be changed |
//!
//! RBAC cannot limit `nodes: patch` to the node a pod runs on; a ValidatingAdmissionPolicy can.
//!
//! # Rate
//! All requests of a program go through one token bucket ([`Rate`]), and what was found out about claims is
//! believed for ten minutes ([`Claims`]): a thousand nodes with the same trouble are none of the API server.

mod cleanup;
mod events;
#[cfg(test)]
pub(crate) mod fake;
mod kube;
mod node;
mod pace;
mod preparation;
mod queue;
mod rate;
mod unstored;
mod volumes;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use blob_client::transport::failover::ChannelState;
use futures::future::BoxFuture;
pub use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::kube::{Config, KubeCluster};
pub use cleanup::{Cleaned, Cleanup};
pub use events::Reporter;
pub use preparation::{CsiDriverView, Preparation, Prepared};
pub use rate::Rate;
pub(crate) use volumes::pod_uid;
pub use volumes::{Claims, VolumeAt};

/// Label of the node: `available` or `unavailable`. It is there while the driver runs on the node.
pub const CHANNEL_LABEL: &str = "vsc-blob.csi.azure.com/channel";
/// Annotation of the node: one sentence that says why the label has its value.
pub const CHANNEL_REASON: &str = "vsc-blob.csi.azure.com/channel-reason";
/// Key of the taint that a node may start with, so that no pod comes before the driver is there.
pub const STARTUP_TAINT: &str = "vsc-blob.csi.azure.com/agent-not-ready";
/// That key, and the one that was asked for at first: a node template that still has it keeps no node empty.
pub const STARTUP_TAINTS: [&str; 2] = [STARTUP_TAINT, "vsc.blob.csi.azure.com/agent-not-ready"];

/// Why Kubernetes did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The object is not there.
    #[error("{0}")]
    NotFound(String),
    /// The service account lacks the right, or is not known.
    #[error("{0}")]
    Denied(String),
    /// The object has changed since it was read.
    #[error("{0}")]
    Conflict(String),
    /// The API server asks to come again later, perhaps with a time to wait.
    #[error("the API server is busy: {message}")]
    Busy {
        /// What it said.
        message: String,
        /// How long it asks to wait.
        after: Option<Duration>,
    },
    /// No answer, or one of a server in trouble.
    #[error("the API server cannot be reached: {0}")]
    Unavailable(String),
    /// An answer that repetition does not change.
    #[error("{0}")]
    Other(String),
}

impl Error {
    /// True when the same request may succeed later.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Conflict(_) | Self::Busy { .. } | Self::Unavailable(_))
    }
}

/// Result of a request to the API server.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An object that an Event can be about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ObjectRef {
    /// `Pod`, `PersistentVolumeClaim` or `Node`; all of core/v1.
    pub kind: &'static str,
    /// Empty for a node.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Empty where it is not known.
    pub uid: String,
}

/// A node, as far as the driver is concerned.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeView {
    /// `metadata.name`
    pub name: String,
    /// `metadata.uid`
    pub uid: String,
    /// `metadata.resourceVersion`
    pub resource_version: String,
    /// `metadata.labels`
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`
    pub annotations: BTreeMap<String, String>,
    /// `spec.taints`
    pub taints: Vec<Taint>,
}

/// A pod and the claims it uses, those of its generic ephemeral volumes included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodView {
    /// The pod.
    pub object: ObjectRef,
    /// Names of claims in the pod's namespace.
    pub claims: Vec<String>,
    /// It has not started yet.
    pub waits: bool,
}

/// A PersistentVolume of any CSI driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeView {
    /// `spec.csi.driver`
    pub driver: String,
    /// `spec.csi.volumeHandle`
    pub handle: String,
    /// `spec.claimRef`
    pub claim: Option<ObjectRef>,
    /// Namespace and name of `spec.csi.nodeStageSecretRef`
    pub stage_secret: Option<(String, String)>,
}

/// What an Event says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventView {
    /// `metadata.name`: chosen before the first attempt, so that a repetition makes no second one.
    pub name: String,
    /// What it is about.
    pub object: ObjectRef,
    /// Warning, or Normal.
    pub warning: bool,
    /// One CamelCase word.
    pub reason: String,
    /// At most 1024 bytes (validation of the API server).
    pub message: String,
    /// How often it happened.
    pub count: i32,
    /// When it happened first.
    pub first: Timestamp,
    /// When it happened last.
    pub last: Timestamp,
}

/// The API server: single requests, none of which is repeated in here.
///
/// Callers decide about repetition ([`Error::is_passing`]) and its pace. Every request ends within seconds,
/// with [`Error::Unavailable`] when no answer came. Nothing is cached: what is answered is what the server
/// said.
#[async_trait]
pub trait Cluster: fmt::Debug + Send + Sync {
    /// One node.
    async fn node(&self, name: &str) -> Result<NodeView>;
    /// Sets labels and annotations of a node, `None` removes one; everything else of the node stays as it is.
    async fn mark_node(&self, name: &str, marks: &Marks) -> Result<()>;
    /// Replaces the taints of a node if it has not changed since it was read, else [`Error::Conflict`].
    async fn set_taints(&self, node: &NodeView, taints: &[Taint]) -> Result<()>;
    /// The CSI drivers that kubelet has registered on a node; none when the CSINode object is not there.
    async fn drivers(&self, node: &str) -> Result<Vec<String>>;
    /// All pods of a node; the list may be seconds old.
    async fn pods(&self, node: &str) -> Result<Vec<PodView>>;
    /// A PersistentVolume by name, `None` when it is not one of a CSI driver.
    async fn volume(&self, name: &str) -> Result<Option<VolumeView>>;
    /// Name of the PersistentVolume that a claim is bound to.
    async fn bound_volume(&self, namespace: &str, claim: &str) -> Result<Option<String>>;
    /// Makes an Event; one of this name that is there already counts as made.
    async fn create_event(&self, event: &EventView) -> Result<()>;
    /// Sets count, message and time of an Event of ours.
    async fn update_event(&self, event: &EventView) -> Result<()>;
    /// The text values of a Secret; others are left out.
    async fn secret(&self, namespace: &str, name: &str) -> Result<HashMap<String, String>>;
}

/// Changes to labels and annotations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    /// `metadata.labels`
    pub labels: BTreeMap<String, Option<String>>,
    /// `metadata.annotations`
    pub annotations: BTreeMap<String, Option<String>>,
}

/// Tells whether the node can serve; the sentence says what is missing.
pub type Ready = Arc<dyn Fn() -> BoxFuture<'static, std::result::Result<(), String>> + Send + Sync>;

/// The cluster as the CSI services see it.
#[derive(Debug, Clone)]
pub struct Link {
    /// The API server.
    pub cluster: Arc<dyn Cluster>,
    /// Name of the driver.
    pub driver: String,
    /// Name of the node the program runs on.
    pub node: String,
    /// Whose the volumes of this node are.
    pub claims: Arc<Claims>,
    /// Takes failures, to be told as Events.
    pub reporter: Reporter,
}

/// What the service has not taken of a volume's closed files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unsaved {
    /// What is to be told of files that it has not taken for a while.
    pub message: Option<String>,
    /// Files whose data was given up since the volume was mounted.
    pub lost: u64,
}

/// The volumes of this node, with what is not stored of each.
pub type Unstored = Arc<dyn Fn() -> Vec<(VolumeAt, Unsaved)> + Send + Sync>;

/// What a node does in its cluster while it serves.
#[derive(Clone)]
pub struct Membership {
    /// The API server.
    pub cluster: Arc<dyn Cluster>,
    /// Name of the node.
    pub node: String,
    /// Name of the driver.
    pub driver: String,
    /// Whose the volumes of this node are.
    pub claims: Arc<Claims>,
    /// State of the channel.
    pub channel: watch::Receiver<ChannelState>,
    /// See [`Ready`].
    pub ready: Ready,
    /// See [`Unstored`].
    pub unstored: Unstored,
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership")
            .field("cluster", &self.cluster)
            .field("node", &self.node)
            .field("driver", &self.driver)
            .finish_non_exhaustive()
    }
}

impl Membership {
    /// Keeps label, annotation and taint, and sends Events, until `stop`; then takes label and annotation
    /// away.
    pub async fn keep(self, reporter: Reporter, stop: CancellationToken) {
        let sending = events::send(&self, &reporter);
        let watching = events::watch_transport(&self, &reporter);
        let owing = unstored::watch(&self, &reporter);
        let marking = node::keep(&self);
        let all = async { tokio::join!(sending, watching, owing, marking) };
        // None of them ends by itself.
        let _ = stop.run_until_cancelled(all).await;
        node::leave(&self).await;
    }
}
