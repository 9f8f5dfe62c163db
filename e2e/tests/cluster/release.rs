//! The helm release: its own test, upgrade, rollback, an update without the channel, and what is left after
//! uninstalling.

use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, Pod, Secret, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, StorageClass};
use kube::ResourceExt as _;
use kube::api::ListParams;
use serde_json::json;
use tokio::process::Command;
use vsc_blob_csi::cluster::{CHANNEL_LABEL, CHANNEL_REASON};

use crate::lab::{DRIVER, Lab, PATIENCE, SECRET, in_time, poll, watch};
use crate::objects::PodPlan;
use crate::provisioning::inline;
use crate::space::Space;

impl Lab {
    /// Runs helm; the answer is what it prints.
    async fn helm(&self, arguments: &[&str]) -> Result<String> {
        let run = async {
            let helm = std::env::var_os("HELM").unwrap_or_else(|| "helm".into());
            let output = Command::new(helm)
                .args(arguments)
                .args(["--namespace", &self.settings.driver_namespace])
                .stdin(Stdio::null())
                .kill_on_drop(true)
                .output()
                .await
                .context("helm")?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if !output.status.success() {
                bail!(
                    "{}: {text}{}",
                    output.status,
                    String::from_utf8_lossy(&output.stderr)
                );
            }
            Ok(text)
        };
        in_time(&format!("helm {}", arguments.join(" ")), run).await
    }

    /// `helm upgrade` with the installed values and these options over them.
    async fn upgrade(&self, over: &[&str]) -> Result<()> {
        let chart = self.settings.chart.display().to_string();
        let values = self.settings.values.display().to_string();
        let mut arguments = vec![
            "upgrade",
            &self.settings.release,
            &chart,
            "--values",
            &values,
            "--wait",
            "--timeout=110s",
        ];
        arguments.extend(over);
        self.helm(&arguments).await.map(drop)
    }

    /// Objects of the release, by its label, and those that bear the driver's name.
    async fn of_the_driver(&self) -> Result<Vec<String>> {
        let of_release = self.of_release();
        let namespace = self.settings.driver_namespace.as_str();
        let mut found = Vec::new();
        macro_rules! look {
            ($($kind:ident in $api:expr;)+) => {
                $(for object in $api.list(&of_release).await? {
                    found.push(format!("{} {}", stringify!($kind), object.name_any()));
                })+
            };
        }
        look! {
            Pod in self.api::<Pod>(namespace);
            Job in self.api::<Job>(namespace);
            DaemonSet in self.api::<DaemonSet>(namespace);
            ControllerRevision in self.api::<ControllerRevision>(namespace);
            Deployment in self.api::<Deployment>(namespace);
            ReplicaSet in self.api::<ReplicaSet>(namespace);
            PodDisruptionBudget in self.api::<PodDisruptionBudget>(namespace);
            NetworkPolicy in self.api::<NetworkPolicy>(namespace);
            ConfigMap in self.api::<ConfigMap>(namespace);
            ServiceAccount in self.api::<ServiceAccount>(namespace);
            Lease in self.api::<Lease>(namespace);
            Role in self.all::<Role>();
            RoleBinding in self.all::<RoleBinding>();
            ClusterRole in self.all::<ClusterRole>();
            ClusterRoleBinding in self.all::<ClusterRoleBinding>();
            CSIDriver in self.all::<CSIDriver>();
            StorageClass in self.all::<StorageClass>();
            ValidatingAdmissionPolicy in self.all::<ValidatingAdmissionPolicy>();
            ValidatingAdmissionPolicyBinding in self.all::<ValidatingAdmissionPolicyBinding>();
        }
        // Made without the release's label: by the provisioner, and by helm itself.
        let all = ListParams::default();
        for lease in self.api::<Lease>(namespace).list(&all).await? {
            if lease.name_any() == DRIVER.replace('.', "-") {
                found.push(format!("Lease {}", lease.name_any()));
            }
        }
        for secret in self.api::<Secret>(namespace).list(&all).await? {
            let of_helm = format!("sh.helm.release.v1.{}.", self.settings.release);
            if secret.name_any().starts_with(&of_helm) {
                found.push(format!("Secret {}", secret.name_any()));
            }
        }
        Ok(found)
    }

    /// Uid and `volumeLifecycleModes` of the CSIDriver object.
    async fn driver_object(&self) -> Result<(Option<String>, Vec<String>)> {
        let object = self.all::<CSIDriver>().get(DRIVER).await.context("CSIDriver")?;
        let modes = object.spec.volume_lifecycle_modes.unwrap_or_default();
        Ok((object.metadata.uid, modes))
    }

    /// The node plugin's pod that runs the DaemonSet's newest template.
    async fn updated_node_pod(&self) -> Result<Pod> {
        poll("the node plugin is updated and ready", PATIENCE, async || {
            let set = self.daemon_set().await?;
            let seen = set.status.as_ref().and_then(|status| status.observed_generation);
            let status = set.status.clone().unwrap_or_default();
            let done = seen == set.metadata.generation
                && status.updated_number_scheduled == Some(status.desired_number_scheduled)
                && status.number_ready == status.desired_number_scheduled;
            Ok(if done { self.node_pod().await.ok() } else { None })
        })
        .await
    }
}

/// A claim and a pod that writes: the driver works.
async fn works(space: &Space, class: &str, name: &str) -> Result<()> {
    space.claim(name, class, "ReadWriteOnce").await?;
    space.pod(&PodPlan::new(name).claim(name)).await?;
    let seen = space.sh(name, "echo x > /data/file && cat /data/file").await?;
    ensure!(seen == "x\n", "{name} reads {seen:?}");
    space.delete_pod(name).await?;
    space.delete_claim(name).await
}

/// The chart's own test: a round trip through a volume.
pub(crate) async fn helm_test(space: &Space) -> Result<()> {
    let lab = &space.lab;
    let said = lab
        .helm(&["test", &lab.settings.release, "--timeout=110s"])
        .await?;
    ensure!(said.contains("Succeeded"), "helm test says {said}");
    Ok(())
}

/// Whether an object is replaced by each update: pods, what makes them, and helm's records of the release.
fn comes_and_goes(object: &str) -> bool {
    ["Pod ", "ReplicaSet ", "ControllerRevision ", "Secret "]
        .iter()
        .any(|kind| object.starts_with(kind))
}

impl Lab {
    /// What the driver has in the cluster and on the node, without what each update replaces and without
    /// volumes.
    async fn possessions(&self) -> Result<Vec<String>> {
        let mut all = self.of_the_driver().await?;
        all.retain(|object| !comes_and_goes(object));
        let files = self
            .on_node(
                "cd /host/var/lib/kubelet && find plugins/*vsc-blob* plugins_registry/*vsc-blob* \
                 ! -name '*.json' 2>/dev/null; \
                 ls -d /host/run/*vsc-blob* 2>/dev/null; true",
            )
            .await?;
        all.extend(files.lines().map(str::to_owned));
        all.sort();
        Ok(all)
    }
}

/// Upgrade and rollback replace the pods and leave nothing beside what was there; volumes work after each.
pub(crate) async fn upgrade_and_rollback(space: &Space) -> Result<()> {
    let lab = &space.lab;
    let class = space.class(json!({}), json!({})).await?;
    let first = lab.updated_node_pod().await?;
    let before = lab.possessions().await?;
    lab.upgrade(&["--set-string", "logLevel=debug"]).await?;
    let second = lab.updated_node_pod().await?;
    ensure!(first.uid() != second.uid(), "the upgrade replaced no pod");
    works(space, &class, "upgraded").await?;
    lab.helm(&["rollback", &lab.settings.release, "--wait", "--timeout=110s"])
        .await?;
    let third = lab.updated_node_pod().await?;
    ensure!(second.uid() != third.uid(), "the rollback replaced no pod");
    works(space, &class, "rolled-back").await?;
    let mut after = Vec::new();
    let same = poll("the driver has what it had before", PATIENCE, async || {
        after = lab.possessions().await?;
        Ok((after == before).then_some(()))
    });
    same.await
        .with_context(|| format!("before: {before:#?}; after: {after:#?}"))?;
    // One pod for the node, and none of the earlier ones.
    let pods = lab.of_the_driver().await?;
    let node_pods = pods
        .iter()
        .filter(|object| object.contains("-node-") && object.starts_with("Pod "));
    ensure!(node_pods.count() == 1, "{pods:#?}");
    Ok(())
}

/// `volumeLifecycleModes` of the CSIDriver object cannot be changed: upgrade and rollback make it anew, off
/// and on, and what is mounted stays mounted.
pub(crate) async fn inline_volumes_off_and_on(space: &Space) -> Result<()> {
    let lab = &space.lab;
    let class = space.class(json!({}), json!({})).await?;
    lab.make_container(&space.name).await?;
    let plan = |pod: &str| PodPlan::new(pod).volume(inline(&space.name, Some(SECRET), &[]));
    let both = || vec!["Persistent".to_owned(), "Ephemeral".to_owned()];
    space.pod(&plan("before")).await?;
    let node = lab.ready_node_pod().await?;
    let (first, modes) = lab.driver_object().await?;
    ensure!(modes == both(), "installed with {modes:?}");

    lab.upgrade(&["--set-json", "csiDriver.inlineVolumes=false"])
        .await?;
    let (second, modes) = lab.driver_object().await?;
    ensure!(modes == ["Persistent"], "switched off it has {modes:?}");
    ensure!(
        first != second,
        "the object was changed, which the API server refuses"
    );
    space.create_pod(&plan("after")).await?;
    let told = "not supported by driver";
    space
        .event("after", told, |event| {
            event.message.as_deref().is_some_and(|text| text.contains(told))
        })
        .await?;
    works(space, &class, "with-a-claim").await?;
    let seen = space
        .sh("before", "echo x > /data/file && cat /data/file")
        .await?;
    ensure!(seen == "x\n", "the pod of before reads {seen:?}");

    lab.helm(&["rollback", &lab.settings.release, "--wait", "--timeout=110s"])
        .await?;
    let (third, modes) = lab.driver_object().await?;
    ensure!(modes == both(), "switched on again it has {modes:?}");
    ensure!(
        third != second,
        "the object was changed, which the API server refuses"
    );
    // The kubelet repeats what it was refused.
    space.ready("after").await?;
    let seen = space.sh("after", "cat /data/file").await?;
    ensure!(seen == "x\n", "the pod that waited reads {seen:?}");
    let still = lab.ready_node_pod().await?;
    ensure!(node.uid() == still.uid(), "the node plugin was replaced");

    // With the modes that it has, the object stays.
    lab.upgrade(&[]).await?;
    let (fourth, _) = lab.driver_object().await?;
    ensure!(
        fourth == third,
        "an upgrade that changes nothing made the object anew"
    );
    for pod in ["before", "after"] {
        space.delete_pod(pod).await?;
    }
    Ok(())
}

/// A node without the channel: the update goes through, nothing restarts, volumes work over HTTPS.
pub(crate) async fn update_without_the_channel(space: &Space) -> Result<()> {
    let lab = &space.lab;
    let class = space.class(json!({}), json!({})).await?;
    lab.set_vsp(false).await?;
    let result = async {
        lab.upgrade(&["--set-string", "logLevel=info"]).await?;
        let pod = lab.updated_node_pod().await?;
        let status = pod.status.clone().unwrap_or_default();
        let containers = status.container_statuses.into_iter().flatten();
        for container in containers.chain(status.init_container_statuses.into_iter().flatten()) {
            ensure!(
                container.restart_count == 0,
                "{} was restarted {} times",
                container.name,
                container.restart_count
            );
        }
        lab.channel_label(Some("unavailable")).await?;
        works(space, &class, "without").await
    }
    .await;
    lab.set_vsp(true).await?;
    result?;
    lab.channel_label(Some("available")).await?;
    Ok(())
}

/// After `helm uninstall` the cluster and the node have nothing of the driver.
pub(crate) async fn uninstall_leaves_nothing(space: &Space) -> Result<()> {
    let lab = &space.lab;
    // Volumes of the cases before go first: they need the driver.
    poll("no volume of the driver is left", PATIENCE, async || {
        let volumes = lab.all::<PersistentVolume>().list(&ListParams::default()).await?;
        let left = volumes.items.iter().any(|volume| {
            let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
            csi.is_some_and(|csi| csi.driver == DRIVER)
        });
        Ok((!left && lab.mounts().await?.is_empty()).then_some(()))
    })
    .await?;
    lab.helm(&["uninstall", &lab.settings.release, "--wait", "--timeout=110s"])
        .await?;

    let name = lab.node_name().await?;
    watch(
        &lab.all::<CSINode>(),
        &name,
        "the driver is not registered",
        |found| found.is_some_and(|node| node.spec.drivers.iter().all(|driver| driver.name != DRIVER)),
    )
    .await?;
    let node = lab.channel_label(None).await?;
    ensure!(!node.labels().contains_key(CHANNEL_LABEL), "the label is left");
    ensure!(
        !node.annotations().contains_key(CHANNEL_REASON),
        "the annotation is left"
    );

    // Pods of the hook, and what the controllers of Kubernetes made, go a little later than what they belong
    // to.
    let mut left = Vec::new();
    let gone = poll("nothing of the driver is left", PATIENCE, async || {
        left = lab.of_the_driver().await?;
        Ok(left.is_empty().then_some(()))
    })
    .await;
    gone.with_context(|| format!("left in the cluster: {left:#?}"))?;

    // Not in the list: plugins/kubernetes.io/csi/NAME, which is the kubelet's own and is never removed by it.
    let files = lab
        .on_node(
            "cd /host/var/lib/kubelet && ls -d plugins/*vsc-blob* plugins_registry/*vsc-blob* 2>/dev/null; \
             find plugins/kubernetes.io/csi/*vsc-blob* -mindepth 1 2>/dev/null; \
             ls -d /host/run/vsc-blob* 2>/dev/null; grep vsc-blob.csi /proc/1/mountinfo; true",
        )
        .await?;
    ensure!(files.is_empty(), "left on the node: {files}");
    Ok(())
}
