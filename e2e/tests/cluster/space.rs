//! A case's own namespace, with the Secret of the store in it, and what the case makes there.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use futures::future::LocalBoxFuture;
use k8s_openapi::api::core::v1::{
    Event, Namespace, PersistentVolume, PersistentVolumeClaim, Pod, Secret, ServiceAccount,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::lab::{DRIVER, LAB, Lab, MARK, PATIENCE, SECRET, STORE, is_ready, poll, watch};
use crate::objects::PodPlan;

/// A namespace, and the names that a case may use in the whole cluster (they begin with it).
pub(crate) struct Space {
    pub(crate) lab: Arc<Lab>,
    pub(crate) name: String,
}

impl Space {
    /// Runs a case in a namespace of its own; a failure is told with what happened there.
    pub(crate) fn run(
        lab: &Arc<Lab>,
        case: &str,
        run: for<'a> fn(&'a Space) -> LocalBoxFuture<'a, Result<()>>,
    ) -> Result<()> {
        lab.runtime.block_on(async {
            let begin = Instant::now();
            let space = Self::open(lab, case)
                .await
                .context("making the case's namespace")?;
            let result = run(&space).await;
            let result = match result {
                Ok(()) => Ok(()),
                Err(error) => {
                    let story = space
                        .story()
                        .await
                        .unwrap_or_else(|e| format!("not known: {e:#}"));
                    Err(error
                        .context(format!("{:?} after its begin", begin.elapsed()))
                        .context(story))
                }
            };
            let closed = space.close().await.context("removing what the case made");
            result.and(closed)
        })
    }

    async fn open(lab: &Arc<Lab>, case: &str) -> Result<Self> {
        let name = format!("e2e-{}", case.replace("::", "-").replace('_', "-"));
        let space = Self {
            lab: lab.clone(),
            name,
        };
        let namespaces: Api<Namespace> = lab.all();
        // One of a former run may still be ending.
        watch(&namespaces, &space.name, "it is gone", |found| found.is_none()).await?;
        let namespace = json!({"metadata": {"name": space.name, "labels": {MARK: "case"}}});
        create(&namespaces, namespace).await?;
        space.secret(SECRET, &[]).await?;
        let accounts: Api<ServiceAccount> = lab.api(&space.name);
        watch(&accounts, "default", "the API server made it", |found| {
            found.is_some()
        })
        .await?;
        Ok(space)
    }

    /// Deletes the namespace, without waiting for its end, and what the case made outside of it.
    async fn close(&self) -> Result<()> {
        let now = DeleteParams::default();
        let mine = ListParams::default().labels(&format!("{MARK}={}", self.name));
        self.lab.all::<Namespace>().delete(&self.name, &now).await?;
        let classes: Api<StorageClass> = self.lab.all();
        classes.delete_collection(&now, &mine).await?;
        let volumes: Api<PersistentVolume> = self.lab.all();
        volumes.delete_collection(&now, &mine).await?;
        Ok(())
    }

    /// Pods and Events, for the message of a failure.
    async fn story(&self) -> Result<String> {
        let mut lines = vec!["in its namespace:".to_owned()];
        for pod in self.api::<Pod>().list(&ListParams::default()).await? {
            let status = pod.status.clone().unwrap_or_default();
            lines.push(format!(
                "  pod {}: {}, ready: {}",
                pod.name_any(),
                status.phase.unwrap_or_default(),
                is_ready(&pod)
            ));
        }
        for event in self.api::<Event>().list(&ListParams::default()).await? {
            lines.push(format!(
                "  {} {} {}: {}",
                event.involved_object.kind.unwrap_or_default(),
                event.involved_object.name.unwrap_or_default(),
                event.reason.unwrap_or_default(),
                event.message.unwrap_or_default()
            ));
        }
        Ok(lines.join("\n"))
    }

    /// Objects of this namespace.
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        self.lab.api(&self.name)
    }

    /// Makes the store's Secret under this name, with some keys replaced.
    pub(crate) async fn secret(&self, name: &str, replaced: &[(&str, &str)]) -> Result<()> {
        let mut data = json!({
            "azurestorageaccountname": e2e::store::DEV_ACCOUNT,
            "azurestorageaccountkey": e2e::store::DEV_KEY,
        });
        for (key, value) in replaced {
            data[*key] = json!(value);
        }
        let secret = json!({"metadata": {"name": name}, "stringData": data});
        create(&self.api::<Secret>(), secret).await?;
        Ok(())
    }

    /// Makes a StorageClass; the answer is its name. A parameter that is null is left out; `more` are fields
    /// beside `parameters`.
    pub(crate) async fn class(&self, parameters: Value, more: Value) -> Result<String> {
        let mut all = json!({
            "server": STORE,
            "csi.storage.k8s.io/provisioner-secret-name": SECRET,
            "csi.storage.k8s.io/provisioner-secret-namespace": LAB,
            "csi.storage.k8s.io/node-stage-secret-name": SECRET,
            "csi.storage.k8s.io/node-stage-secret-namespace": LAB,
        });
        merge(&mut all, parameters);
        if let Value::Object(all) = &mut all {
            all.retain(|_, value| !value.is_null());
        }
        let mut class = json!({
            "metadata": {"name": self.name, "labels": {MARK: self.name}},
            "provisioner": DRIVER,
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "Immediate",
            "parameters": all,
        });
        merge(&mut class, more);
        create(&self.lab.all::<StorageClass>(), class).await?;
        Ok(self.name.clone())
    }

    /// Makes a claim.
    pub(crate) async fn claim(&self, name: &str, class: &str, mode: &str) -> Result<()> {
        let claim = json!({
            "metadata": {"name": name},
            "spec": {
                "storageClassName": class,
                "accessModes": [mode],
                "resources": {"requests": {"storage": "1Gi"}},
            },
        });
        create(&self.api::<PersistentVolumeClaim>(), claim).await?;
        Ok(())
    }

    /// Makes a PersistentVolume and a claim `data` for it alone. `more` goes into the volume's spec.
    pub(crate) async fn static_volume(&self, container: &str, mode: &str, more: Value) -> Result<()> {
        self.static_volume_for("data", container, mode, more).await
    }

    /// The same with a claim of another name.
    pub(crate) async fn static_volume_for(
        &self,
        claim: &str,
        container: &str,
        mode: &str,
        more: Value,
    ) -> Result<()> {
        let name = format!("{}-{claim}", self.name);
        let mut spec = json!({
            "capacity": {"storage": "1Gi"},
            "accessModes": [mode],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "claimRef": {"name": claim, "namespace": self.name},
            "csi": {
                "driver": DRIVER,
                "volumeHandle": format!("{}-{container}", self.name),
                "volumeAttributes": {"server": STORE, "containerName": container},
                "nodeStageSecretRef": {"name": SECRET, "namespace": self.name},
            },
        });
        merge(&mut spec, more);
        let volume = json!({"metadata": {"name": name, "labels": {MARK: self.name}}, "spec": spec});
        create(&self.lab.all::<PersistentVolume>(), volume).await?;
        let claim = json!({
            "metadata": {"name": claim},
            "spec": {
                "storageClassName": "",
                "volumeName": name,
                "accessModes": [mode],
                "resources": {"requests": {"storage": "1Gi"}},
            },
        });
        create(&self.api::<PersistentVolumeClaim>(), claim).await?;
        Ok(())
    }

    /// The volume a claim is bound to, once it is.
    pub(crate) async fn volume_of(&self, claim: &str) -> Result<PersistentVolume> {
        let claims: Api<PersistentVolumeClaim> = self.api();
        let bound = watch(&claims, claim, "it is bound", |found| {
            found
                .and_then(|claim| claim.status.as_ref()?.phase.as_deref())
                .is_some_and(|phase| phase == "Bound")
        })
        .await?;
        let name = bound
            .and_then(|claim| claim.spec?.volume_name)
            .context("a bound claim names its volume")?;
        Ok(self.lab.all::<PersistentVolume>().get(&name).await?)
    }

    /// Deletes a claim and waits until its volume is gone too.
    pub(crate) async fn delete_claim(&self, claim: &str) -> Result<()> {
        let volume = self.volume_of(claim).await?.name_any();
        self.api::<PersistentVolumeClaim>()
            .delete(claim, &DeleteParams::default())
            .await?;
        watch(
            &self.lab.all::<PersistentVolume>(),
            &volume,
            "it is deleted with its claim",
            |found| found.is_none(),
        )
        .await?;
        Ok(())
    }

    /// Makes a pod without waiting for it.
    pub(crate) async fn create_pod(&self, plan: &PodPlan) -> Result<Pod> {
        let pod = plan.clone().build(&self.lab.settings.app_image);
        create(&self.api::<Pod>(), pod).await
    }

    /// Makes a pod and waits until it is ready.
    pub(crate) async fn pod(&self, plan: &PodPlan) -> Result<Pod> {
        self.create_pod(plan).await?;
        self.ready(plan.name()).await
    }

    /// Waits until a pod is ready.
    pub(crate) async fn ready(&self, pod: &str) -> Result<Pod> {
        let found = watch(&self.api::<Pod>(), pod, "it is ready", |found| {
            found.is_some_and(is_ready)
        })
        .await?;
        found.context("a ready pod is there")
    }

    /// Deletes a pod and waits for its end.
    pub(crate) async fn delete_pod(&self, pod: &str) -> Result<()> {
        let pods: Api<Pod> = self.api();
        pods.delete(pod, &DeleteParams::default()).await?;
        watch(&pods, pod, "it is gone", |found| found.is_none()).await?;
        Ok(())
    }

    /// Runs a script in a pod; an error has its output.
    pub(crate) async fn sh(&self, pod: &str, script: &str) -> Result<String> {
        self.lab.exec(&self.name, pod, script).await
    }

    /// Waits for an Event about an object of this namespace.
    pub(crate) async fn event(
        &self,
        object: &str,
        what: &str,
        fits: impl Fn(&Event) -> bool,
    ) -> Result<Event> {
        let events: Api<Event> = self.api();
        let about = ListParams::default().fields(&format!("involvedObject.name={object}"));
        let what = format!("an Event of {object} tells {what}");
        let found = poll(&what, PATIENCE, async || {
            let all = events.list(&about).await?;
            Ok(all.items.into_iter().find(|event| fits(event)))
        })
        .await?;
        println!("{}/{object}: {}", self.name, shown(&found));
        Ok(found)
    }

    /// Prints the Events of an object of this namespace as `kubectl describe` does.
    pub(crate) async fn describe(&self, object: &str) -> Result<()> {
        let events: Api<Event> = self.api();
        let about = ListParams::default().fields(&format!("involvedObject.name={object}"));
        for event in events.list(&about).await? {
            println!("{}/{object}: {}", self.name, shown(&event));
        }
        Ok(())
    }
}

/// An Event in the columns of `kubectl describe`: type, reason, age, from, message.
pub(crate) fn shown(event: &Event) -> String {
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    let last = last.or_else(|| event.event_time.as_ref().map(|time| time.0));
    let age = last.map_or("<unknown>".to_owned(), |last| {
        format!("{}s", Timestamp::now().duration_since(last).as_secs())
    });
    let times = match event.count {
        Some(count) if count > 1 => format!(" (x{count})"),
        _ => String::new(),
    };
    let source = event
        .source
        .as_ref()
        .and_then(|source| source.component.as_deref());
    let source = source.filter(|from| !from.is_empty());
    let from = source.or(event.reporting_component.as_deref());
    format!(
        "{}  {}  {age}{times}  {}  {}",
        event.type_.as_deref().unwrap_or_default(),
        event.reason.as_deref().unwrap_or_default(),
        from.unwrap_or_default(),
        event.message.as_deref().unwrap_or_default().trim_end()
    )
}

/// Makes an object out of JSON.
pub(crate) async fn create<K>(api: &Api<K>, object: Value) -> Result<K>
where
    K: kube::Resource + Clone + Debug + Serialize + DeserializeOwned,
{
    let typed = serde_json::from_value(object.clone()).with_context(|| format!("in {object}"))?;
    let made = api.create(&PostParams::default(), &typed).await;
    made.with_context(|| format!("creating {object}"))
}

/// Puts the fields of `more` into `into`, level by level.
fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more,
    }
}
