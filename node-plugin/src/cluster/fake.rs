//! An API server in memory that records what it is asked, and fails on command.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;

use super::{Cluster, Error, EventView, Marks, NodeView, ObjectRef, PodView, Result, Taint, VolumeView};

/// Name of the one node.
pub(crate) const NODE: &str = "node-1";

/// A change by somebody else.
type Meanwhile = Box<dyn FnOnce(&mut NodeView) + Send>;

/// What is in the cluster.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) node: NodeView,
    pub(crate) drivers: Vec<String>,
    pub(crate) pods: Vec<PodView>,
    pub(crate) volumes: BTreeMap<String, VolumeView>,
    pub(crate) claims: BTreeMap<(String, String), String>,
    pub(crate) secrets: BTreeMap<(String, String), HashMap<String, String>>,
    pub(crate) events: BTreeMap<String, EventView>,
    pub(crate) calls: Vec<String>,
    /// Every request gets this.
    pub(crate) broken: Option<Error>,
    /// Requests whose record begins like this get that.
    pub(crate) refused: Vec<(String, Error)>,
    /// What somebody else does to the node just before the next write of taints.
    pub(crate) before_taints: Option<Meanwhile>,
    version: u64,
}

impl State {
    pub(crate) fn volume(&mut self, name: &str, driver: &str, handle: &str, claim: Option<ObjectRef>) {
        let view = VolumeView {
            driver: driver.into(),
            handle: handle.into(),
            claim,
            stage_secret: None,
        };
        self.volumes.insert(name.into(), view);
    }

    pub(crate) fn bound(&mut self, namespace: &str, claim: &str, volume: &str) {
        self.claims
            .insert((namespace.into(), claim.into()), volume.into());
    }

    /// (kind, name, reason, count) of every Event, sorted.
    pub(crate) fn told(&self) -> Vec<(&str, &str, &str, i32)> {
        let all = self.events.values();
        let mut told: Vec<_> = all
            .map(|e| (e.object.kind, e.object.name.as_str(), e.reason.as_str(), e.count))
            .collect();
        told.sort_unstable();
        told
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct FakeCluster {
    state: Mutex<State>,
    changed: Notify,
}

impl fmt::Debug for FakeCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeCluster")
    }
}

pub(crate) fn claim(namespace: &str, name: &str) -> ObjectRef {
    ObjectRef {
        kind: "PersistentVolumeClaim",
        namespace: namespace.into(),
        name: name.into(),
        uid: format!("uid-of-claim-{name}"),
    }
}

pub(crate) fn pod(namespace: &str, name: &str, claims: &[&str]) -> PodView {
    PodView {
        object: ObjectRef {
            kind: "Pod",
            namespace: namespace.into(),
            name: name.into(),
            uid: format!("uid-of-pod-{name}"),
        },
        claims: claims.iter().map(|&name| name.to_owned()).collect(),
        waits: false,
    }
}

pub(crate) fn taint(key: &str, effect: &str) -> Taint {
    Taint {
        key: key.into(),
        effect: effect.into(),
        ..Taint::default()
    }
}

impl FakeCluster {
    pub(crate) fn new() -> Arc<Self> {
        let fake = Self::default();
        fake.set(|state| {
            state.node.name = NODE.into();
            state.node.uid = "uid-of-node".into();
        });
        Arc::new(fake)
    }

    pub(crate) fn set<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state.lock().unwrap());
        self.changed.notify_waiters();
        result
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.set(|state| state.calls.clone())
    }

    /// Waits until the cluster is so.
    pub(crate) async fn until(&self, wanted: impl Fn(&State) -> bool) {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if wanted(&self.state.lock().unwrap()) {
                    return;
                }
                changed.await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(3600), waiting).await;
        assert!(waited.is_ok(), "not so within an hour: {:?}", self.calls());
    }

    fn asked<T>(&self, call: String, answer: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        self.set(|state| {
            state.calls.push(call.clone());
            if let Some(error) = &state.broken {
                return Err(error.clone());
            }
            if let Some((_, error)) = state.refused.iter().find(|(start, _)| call.starts_with(start)) {
                return Err(error.clone());
            }
            answer(state)
        })
    }
}

fn not_found<T>(what: &str) -> Result<T> {
    Err(Error::NotFound(format!("{what}: not found")))
}

fn apply(map: &mut BTreeMap<String, String>, changes: &BTreeMap<String, Option<String>>) {
    for (key, value) in changes {
        match value {
            Some(value) => map.insert(key.clone(), value.clone()),
            None => map.remove(key),
        };
    }
}

#[async_trait]
impl Cluster for FakeCluster {
    async fn node(&self, name: &str) -> Result<NodeView> {
        self.asked(format!("node {name}"), |state| {
            state.node.resource_version = state.version.to_string();
            Ok(state.node.clone())
        })
    }
    async fn mark_node(&self, name: &str, marks: &Marks) -> Result<()> {
        self.asked(format!("mark_node {name}"), |state| {
            apply(&mut state.node.labels, &marks.labels);
            apply(&mut state.node.annotations, &marks.annotations);
            state.version += 1;
            Ok(())
        })
    }
    async fn set_taints(&self, node: &NodeView, taints: &[Taint]) -> Result<()> {
        self.asked(format!("set_taints {}", node.name), |state| {
            if let Some(meanwhile) = state.before_taints.take() {
                meanwhile(&mut state.node);
                state.version += 1;
            }
            if node.resource_version != state.version.to_string() {
                return Err(Error::Conflict("the node has changed".into()));
            }
            state.node.taints = taints.to_vec();
            state.version += 1;
            Ok(())
        })
    }
    async fn drivers(&self, node: &str) -> Result<Vec<String>> {
        self.asked(format!("drivers {node}"), |state| Ok(state.drivers.clone()))
    }
    async fn pods(&self, node: &str) -> Result<Vec<PodView>> {
        self.asked(format!("pods {node}"), |state| Ok(state.pods.clone()))
    }
    async fn volume(&self, name: &str) -> Result<Option<VolumeView>> {
        self.asked(format!("volume {name}"), |state| match state.volumes.get(name) {
            Some(volume) => Ok(Some(volume.clone())),
            None => not_found(name),
        })
    }
    async fn bound_volume(&self, namespace: &str, claim: &str) -> Result<Option<String>> {
        self.asked(format!("bound_volume {namespace}/{claim}"), |state| {
            let key = (namespace.to_owned(), claim.to_owned());
            Ok(state.claims.get(&key).cloned())
        })
    }
    async fn create_event(&self, event: &EventView) -> Result<()> {
        self.asked(format!("create_event {}", event.object.name), |state| {
            state.events.insert(event.name.clone(), event.clone());
            Ok(())
        })
    }
    async fn update_event(&self, event: &EventView) -> Result<()> {
        self.asked(format!("update_event {}", event.object.name), |state| {
            match state.events.get_mut(&event.name) {
                Some(there) => *there = event.clone(),
                None => return not_found(&event.name),
            }
            Ok(())
        })
    }
    async fn secret(&self, namespace: &str, name: &str) -> Result<HashMap<String, String>> {
        self.asked(format!("secret {namespace}/{name}"), |state| {
            let key = (namespace.to_owned(), name.to_owned());
            match state.secrets.get(&key) {
                Some(secret) => Ok(secret.clone()),
                None => not_found(&format!("reading Secret {namespace}/{name}")),
            }
        })
    }
}
