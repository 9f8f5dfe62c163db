//! Processes of the driver end and come back: what keeps working, and what does not.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::storage::v1::CSINode;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::lab::{DRIVER, Lab, PATIENCE, is_ready, poll, watch};
use crate::node::PLUGIN;
use crate::objects::PodPlan;
use crate::space::Space;

/// Taint that keeps pods away from a node until the driver works there.
const TAINT: &str = "vsc-blob.csi.azure.com/agent-not-ready";

impl Lab {
    /// Ends the node plugin's pod and waits for its successor.
    pub(crate) async fn restart_node_plugin(&self) -> Result<Pod> {
        let pods = self.api::<Pod>(&self.settings.driver_namespace);
        let old = self.node_pod().await?;
        pods.delete(&old.name_any(), &DeleteParams::default()).await?;
        watch(&pods, &old.name_any(), "it is gone", |found| found.is_none()).await?;
        let new = self.ready_node_pod().await?;
        ensure!(new.uid() != old.uid(), "the same pod as before");
        Ok(new)
    }
}

fn restarts(pod: &Pod) -> i32 {
    let status = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    status
        .into_iter()
        .flatten()
        .map(|container| container.restart_count)
        .sum()
}

impl Lab {
    /// Kills the node plugin's process without a warning, and waits until the kubelet has started it again in
    /// its pod.
    pub(crate) async fn kill_node_plugin(&self) -> Result<()> {
        let pods = self.api::<Pod>(&self.settings.driver_namespace);
        let pod = self.node_pod().await?;
        let before = restarts(&pod);
        self.on_node(&format!("{PLUGIN}; kill -9 $pid")).await?;
        watch(&pods, &pod.name_any(), "it is started again", |found| {
            found.is_some_and(|pod| restarts(pod) > before && is_ready(pod))
        })
        .await?;
        Ok(())
    }
}

/// The node plugin's pod is replaced: what was acknowledged is in the service, new volumes mount, running
/// pods get ENOTCONN and work again after they are restarted.
pub(crate) async fn node_process_restarts(space: &Space) -> Result<()> {
    ends_and_comes_back(space, async || space.lab.restart_node_plugin().await.map(drop)).await
}

/// The same when it has no time for anything: killed, as by the kernel when memory is short.
pub(crate) async fn node_process_is_killed(space: &Space) -> Result<()> {
    ends_and_comes_back(space, async || space.lab.kill_node_plugin().await).await
}

async fn ends_and_comes_back(space: &Space, end: impl AsyncFn() -> Result<()>) -> Result<()> {
    let class = space.class(json!({}), json!({})).await?;
    space.claim("data", &class, "ReadWriteMany").await?;
    space.claim("other", &class, "ReadWriteMany").await?;
    space.pod(&PodPlan::new("running").claim("data")).await?;
    space.sh("running", "echo before > /data/file").await?;

    end().await?;

    // As it is (docs/volumes.md): the process that served the mount has ended.
    let now = space.sh("running", "cat /data/file").await;
    let text = now.map_or_else(|error| format!("{error:#}"), |text| format!("it reads {text:?}"));
    ensure!(text.contains("not connected"), "the running pod: {text}");
    println!("a running pod after the restart of the node plugin: Transport endpoint is not connected");

    space.pod(&PodPlan::new("new").claim("other")).await?;
    space.sh("new", "echo new > /data/file").await?;

    space.delete_pod("running").await?;
    space.pod(&PodPlan::new("again").claim("data")).await?;
    let seen = space.sh("again", "cat /data/file").await?;
    ensure!(seen == "before\n", "after the restart the volume has {seen:?}");
    Ok(())
}

/// Whether both replicas are those of this generation, and ready.
fn complete(generation: i64) -> impl Fn(Option<&Deployment>) -> bool {
    move |found| {
        let status = found.and_then(|found| found.status.as_ref());
        status.is_some_and(|status| {
            let counts = [status.replicas, status.updated_replicas, status.ready_replicas];
            status.observed_generation >= Some(generation) && counts == [Some(2); 3]
        })
    }
}

/// Two pods of a Deployment share a volume on one node, and the node plugin is killed: kubelet does not stage
/// the volume again while one of them is there, so the driver makes the mount anew by itself. A container
/// that is restarted has it again, and a rollout finishes.
pub(crate) async fn two_replicas_survive_a_killed_node_process(space: &Space) -> Result<()> {
    let class = space.class(json!({}), json!({})).await?;
    space.claim("data", &class, "ReadWriteMany").await?;
    let deployments = space.api::<Deployment>();
    let labels = json!({"app": "two"});
    let deployment = serde_json::from_value(json!({
        "metadata": {"name": "two"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            // The new pod has to be ready before an old one goes.
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{
                        "name": "main",
                        "image": space.lab.settings.app_image,
                        "imagePullPolicy": "IfNotPresent",
                        // Ends when its volume does not work: a container that is started binds it anew.
                        "command": ["sh", "-c", "while date > /data/$HOSTNAME; do sleep 1; done; exit 1"],
                        "readinessProbe": {
                            "exec": {"command": ["cat", "/data/kept"]},
                            "periodSeconds": 1,
                        },
                        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                    }],
                    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
                },
            },
        },
    }))?;
    space.pod(&PodPlan::new("writer").claim("data")).await?;
    space.sh("writer", "echo kept > /data/kept").await?;
    space.delete_pod("writer").await?;
    deployments.create(&PostParams::default(), &deployment).await?;
    watch(&deployments, "two", "both replicas are ready", complete(1)).await?;

    space.lab.kill_node_plugin().await?;

    let pods = space.api::<Pod>();
    let ours = ListParams::default().labels("app=two");
    poll(
        "containers to be restarted, and ready again",
        PATIENCE,
        async || {
            let found = pods.list(&ours).await?;
            let again = |pod: &Pod| restarts(pod) > 0 && is_ready(pod);
            Ok((found.items.len() == 2 && found.iter().all(again)).then_some(()))
        },
    )
    .await?;
    println!("restarted containers read and write, no pod was deleted");
    for pod in pods.list(&ours).await? {
        space.describe(&pod.name_any()).await?;
    }

    let restart = json!({"spec": {"template": {"metadata": {"annotations": {"restarted": "1"}}}}});
    deployments
        .patch("two", &PatchParams::default(), &Patch::Merge(restart))
        .await?;
    watch(&deployments, "two", "the rollout is finished", complete(2)).await?;
    Ok(())
}

/// The startup taint goes only when the driver is registered, and other taints stay.
pub(crate) async fn startup_taint(space: &Space) -> Result<()> {
    let lab = &space.lab;
    let nodes = lab.all::<Node>();
    let name = lab.node_name().await?;
    let other = "vsc-blob-e2e/other";
    let node = nodes.get(&name).await?;
    let before = node.spec.unwrap_or_default().taints.unwrap_or_default();
    let mut taints = serde_json::to_value(&before)?;
    let list = taints.as_array_mut().context("taints are a list")?;
    list.push(json!({"key": TAINT, "value": "true", "effect": "NoSchedule"}));
    // PreferNoSchedule keeps nothing away.
    list.push(json!({"key": other, "effect": "PreferNoSchedule"}));
    let patch = json!({"spec": {"taints": taints}});
    nodes
        .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    let result = async {
        let class = space.class(json!({}), json!({})).await?;
        space.claim("data", &class, "ReadWriteOnce").await?;
        let pod = lab.node_pod().await?;
        // A new node has a taint and no driver: the driver comes after the taint, as there.
        let pods = lab.api::<Pod>(&lab.settings.driver_namespace);
        pods.delete(&pod.name_any(), &DeleteParams::default()).await?;
        space.create_pod(&PodPlan::new("app").claim("data")).await?;
        let cleared = watch(&nodes, &name, "the startup taint is removed", |found| {
            found.is_some_and(|node| !has_taint(node, TAINT))
        })
        .await?
        .context("the node is there")?;
        let csi = lab.all::<CSINode>().get(&name).await?;
        ensure!(
            csi.spec.drivers.iter().any(|driver| driver.name == DRIVER),
            "the taint is gone and the driver is not registered"
        );
        ensure!(
            has_taint(&cleared, other),
            "another taint is gone too: {:?}",
            cleared.spec
        );
        space.ready("app").await?;
        Ok(())
    }
    .await;
    // Whatever happened, the node is left as it was found.
    let patch = json!({"spec": {"taints": before}});
    nodes
        .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    lab.ready_node_pod().await?;
    result
}

fn has_taint(node: &Node, key: &str) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.is_some_and(|all| all.iter().any(|taint| taint.key == key))
}

/// The controller that leads ends: another replica provisions.
pub(crate) async fn controller_fails_over(space: &Space) -> Result<()> {
    let lab = &space.lab;
    let controller = lab.controller().await?;
    let replicas = controller
        .status
        .and_then(|status| status.ready_replicas)
        .unwrap_or(0);
    ensure!(replicas >= 2, "{replicas} controllers are ready");
    let leases = lab.api::<Lease>(&lab.settings.driver_namespace);
    let leader = async || -> Result<String> {
        let all = leases.list(&ListParams::default()).await?;
        all.items
            .into_iter()
            .find(|lease| lease.name_any().contains(&DRIVER.replace('.', "-")))
            .and_then(|lease| lease.spec?.holder_identity)
            .context("a Lease of the provisioner has a holder")
    };
    let first = leader().await?;
    let pods = lab.api::<Pod>(&lab.settings.driver_namespace);
    let all = pods.list(&ListParams::default()).await?;
    let pod = all
        .items
        .iter()
        .map(|pod| pod.name_any())
        .find(|name| first.contains(name.as_str()))
        .with_context(|| format!("the leader {first} is one of the pods"))?;
    pods.delete(&pod, &DeleteParams::default()).await?;
    let class = space.class(json!({}), json!({})).await?;
    space.claim("data", &class, "ReadWriteOnce").await?;
    space.volume_of("data").await?;
    let second = poll("another leads", PATIENCE, async || {
        Ok(leader().await.ok().filter(|now| now != &first))
    })
    .await?;
    println!("{first} led, then {second}");
    Ok(())
}
