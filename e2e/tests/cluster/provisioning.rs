//! Where a volume comes from and where it goes: classes, claims, static and inline volumes.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Secret};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::lab::{DRIVER, LAB, MARK, SECRET, STORE, STORE_TLS, watch};
use crate::objects::PodPlan;
use crate::space::{Space, create};
use crate::store::container_sas;

/// The container of a volume that the driver made: the second part of its id.
pub(crate) fn container_of(volume: &PersistentVolume) -> Result<String> {
    let id = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.csi.as_ref())
        .map(|csi| csi.volume_handle.clone())
        .context("the volume is a CSI volume")?;
    let container = id.split('#').nth(1).map(str::to_owned);
    container.with_context(|| format!("the volume's id {id} names its container"))
}

/// A class without containerName: each claim is a container, which goes with the claim.
pub(crate) async fn container_for_each_claim(space: &Space) -> Result<()> {
    let class = space.class(json!({}), json!({})).await?;
    space.claim("data", &class, "ReadWriteOnce").await?;
    let pod = PodPlan::new("writer").claim("data");
    space.pod(&pod).await?;
    space.sh("writer", "echo hello > /data/file").await?;
    let volume = space.volume_of("data").await?;
    let container = container_of(&volume)?;
    let found = space.lab.blob(&container, "file").await?;
    ensure!(
        found.as_deref() == Some("hello\n"),
        "the store has {found:?} in {container}"
    );
    space.delete_pod("writer").await?;
    space.delete_claim("data").await?;
    let left = space.lab.listing(&container).await?;
    ensure!(
        left.is_none(),
        "the container {container} is still there: {left:?}"
    );
    Ok(())
}

/// One class, one container, a directory for each claim; only a SAS for the data of that container is needed.
pub(crate) async fn prefix_for_each_claim(space: &Space) -> Result<()> {
    let container = space.name.clone();
    space.lab.make_container(&container).await?;
    // In a namespace that the driver may read, for the provisioner.
    let sas = json!({
        "metadata": {"name": container, "labels": {MARK: container}},
        "stringData": {
            "azurestorageaccountname": e2e::store::DEV_ACCOUNT,
            "azurestorageaccountsastoken": container_sas(&container)?,
        },
    });
    let secrets = space.lab.api::<Secret>(LAB);
    create(&secrets, sas).await?;
    let result = with_a_sas(space, &container).await;
    secrets.delete(&container, &DeleteParams::default()).await?;
    result
}

async fn with_a_sas(space: &Space, container: &str) -> Result<()> {
    let class = space
        .class(
            json!({
                "containerName": container,
                "prefix": "teams/${pvc.metadata.namespace}/${pvc.metadata.name}",
                "csi.storage.k8s.io/provisioner-secret-name": container,
                "csi.storage.k8s.io/node-stage-secret-name": container,
            }),
            json!({}),
        )
        .await?;
    for claim in ["one", "two"] {
        space.claim(claim, &class, "ReadWriteOnce").await?;
        space.create_pod(&PodPlan::new(claim).claim(claim)).await?;
    }
    for claim in ["one", "two"] {
        space.ready(claim).await?;
        space.sh(claim, &format!("echo {claim} > /data/file")).await?;
    }
    for claim in ["one", "two"] {
        let seen = space.sh(claim, "ls /data").await?;
        ensure!(seen == "file\n", "{claim} sees {seen:?}");
        let blob = format!("teams/{}/{claim}/file", space.name);
        let found = space.lab.blob(container, &blob).await?;
        ensure!(
            found == Some(format!("{claim}\n")),
            "the store has {found:?} at {blob}"
        );
    }
    space.delete_pod("one").await?;
    space.delete_claim("one").await?;
    let left = space
        .lab
        .listing(container)
        .await?
        .context("the container stays")?;
    ensure!(
        !left.contains(&format!("teams/{}/one", space.name)) && left.contains("two/file"),
        "after deleting one of two claims: {left}"
    );
    // The other one too, while its Secret is there.
    space.delete_pod("two").await?;
    space.delete_claim("two").await
}

/// A PersistentVolume over a container that exists, with the blobs that others put there.
pub(crate) async fn static_volume(space: &Space) -> Result<()> {
    let container = space.name.clone();
    space.lab.make_container(&container).await?;
    space
        .lab
        .put_blob(&container, "deep/from-rest", "by REST")
        .await?;
    space
        .static_volume(&container, "ReadWriteMany", json!({}))
        .await?;
    space.pod(&PodPlan::new("app").claim("data")).await?;
    let seen = space
        .sh(
            "app",
            "cat /data/deep/from-rest; echo by pod > /data/deep/from-pod",
        )
        .await?;
    ensure!(seen == "by REST", "the pod reads {seen:?}");
    let found = space.lab.blob(&container, "deep/from-pod").await?;
    ensure!(found.as_deref() == Some("by pod\n"), "the store has {found:?}");
    // Deleting a static volume's claim leaves volume and data alone.
    space.delete_pod("app").await?;
    space
        .api::<PersistentVolumeClaim>()
        .delete("data", &DeleteParams::default())
        .await?;
    let name = format!("{}-data", space.name);
    watch(
        &space.lab.all::<PersistentVolume>(),
        &name,
        "it is released",
        |found| {
            found
                .and_then(|volume| volume.status.as_ref()?.phase.as_deref())
                .is_some_and(|phase| phase == "Released")
        },
    )
    .await?;
    ensure!(
        space.lab.blob(&container, "deep/from-pod").await?.is_some(),
        "the data is gone"
    );
    Ok(())
}

/// A volume source on the store.
pub(crate) fn inline(container: &str, secret: Option<&str>, more: &[(&str, &str)]) -> serde_json::Value {
    let mut volume = json!({"csi": {
        "driver": DRIVER,
        "volumeAttributes": {"server": STORE, "containerName": container},
    }});
    for (key, value) in more {
        volume["csi"]["volumeAttributes"][*key] = json!(value);
    }
    if let Some(secret) = secret {
        volume["csi"]["nodePublishSecretRef"] = json!({"name": secret});
    }
    volume
}

/// A volume written into the pod: it lives as long as the pod, its data longer.
pub(crate) async fn inline_volume(space: &Space) -> Result<()> {
    let container = space.name.clone();
    space.lab.make_container(&container).await?;
    let plan = PodPlan::new("app").volume(inline(&container, Some(SECRET), &[]));
    space.pod(&plan).await?;
    space.sh("app", "echo inline > /data/file").await?;
    space.delete_pod("app").await?;
    let found = space.lab.blob(&container, "file").await?;
    ensure!(found.as_deref() == Some("inline\n"), "the store has {found:?}");
    Ok(())
}

/// A pod names Secrets of its own namespace only: else it would read with other people's keys.
pub(crate) async fn inline_secret_of_another_namespace(space: &Space) -> Result<()> {
    let container = space.name.clone();
    space.lab.make_container(&container).await?;
    let more = [("secretName", SECRET), ("secretNamespace", LAB)];
    let plan = PodPlan::new("app").volume(inline(&container, None, &more));
    space.create_pod(&plan).await?;
    let event = space
        .event("app", "that the namespace is refused", |event| {
            let text = event.message.as_deref().unwrap_or_default();
            text.contains("secretNamespace") && text.contains(LAB)
        })
        .await?;
    ensure!(
        event.type_.as_deref() == Some("Warning"),
        "its type is {:?}",
        event.type_
    );
    Ok(())
}

/// Whoever may write a pod may not be the node for it.
pub(crate) async fn inline_lends_no_identity(space: &Space) -> Result<()> {
    let container = space.name.clone();
    space.lab.make_container(&container).await?;
    let more = [("server", STORE_TLS), ("AzureStorageAuthType", "MSI")];
    let plan = PodPlan::new("app").volume(inline(&container, None, &more));
    space.create_pod(&plan).await?;
    let event = space
        .event("app", "that the identity is refused", |event| {
            let text = event.message.as_deref().unwrap_or_default();
            event.reason.as_deref() == Some("FailedMount") && text.contains("[IdentityRefused]")
        })
        .await?;
    let text = event.message.unwrap_or_default();
    ensure!(
        text.contains("AzureStorageAuthType") && text.contains("PersistentVolume"),
        "it says {text:?}"
    );
    Ok(())
}

/// `${pvc.metadata.*}` in containerName.
pub(crate) async fn names_out_of_the_claim(space: &Space) -> Result<()> {
    let class = space
        .class(
            json!({"containerName": "in-${pvc.metadata.namespace}-${pvc.metadata.name}"}),
            json!({}),
        )
        .await?;
    space.claim("data", &class, "ReadWriteOnce").await?;
    space.pod(&PodPlan::new("app").claim("data")).await?;
    space.sh("app", "echo named > /data/file").await?;
    let container = format!("in-{}-data", space.name);
    let found = space.lab.blob(&container, "file").await?;
    ensure!(
        found.as_deref() == Some("named\n"),
        "the store has {found:?} in {container}"
    );
    Ok(())
}

/// onDelete: retain keeps the container when the volume is deleted.
pub(crate) async fn retained_data(space: &Space) -> Result<()> {
    let class = space.class(json!({"onDelete": "retain"}), json!({})).await?;
    space.claim("data", &class, "ReadWriteOnce").await?;
    space.pod(&PodPlan::new("app").claim("data")).await?;
    space.sh("app", "echo kept > /data/file").await?;
    let container = container_of(&space.volume_of("data").await?)?;
    space.delete_pod("app").await?;
    space.delete_claim("data").await?;
    let found = space.lab.blob(&container, "file").await?;
    ensure!(found.as_deref() == Some("kept\n"), "the store has {found:?}");
    Ok(())
}

/// reclaimPolicy: Retain keeps the PersistentVolume too, and another claim can have it.
pub(crate) async fn reclaim_policy_retain(space: &Space) -> Result<()> {
    let class = space.class(json!({}), json!({"reclaimPolicy": "Retain"})).await?;
    space.claim("data", &class, "ReadWriteOnce").await?;
    space.pod(&PodPlan::new("app").claim("data")).await?;
    space.sh("app", "echo kept > /data/file").await?;
    let volume = space.volume_of("data").await?;
    let container = container_of(&volume)?;
    let name = volume.name_any();
    space.delete_pod("app").await?;
    space
        .api::<PersistentVolumeClaim>()
        .delete("data", &DeleteParams::default())
        .await?;
    let volumes = space.lab.all::<PersistentVolume>();
    watch(&volumes, &name, "it is released", |found| {
        found
            .and_then(|volume| volume.status.as_ref()?.phase.as_deref())
            .is_some_and(|phase| phase == "Released")
    })
    .await?;
    // As an administrator gives it to another claim.
    let free = json!({"spec": {"claimRef": null}});
    volumes
        .patch(&name, &PatchParams::default(), &Patch::Merge(free))
        .await?;
    let again = json!({
        "metadata": {"name": "again"},
        "spec": {
            "storageClassName": class,
            "volumeName": name,
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    });
    create(&space.api::<PersistentVolumeClaim>(), again).await?;
    space.pod(&PodPlan::new("again").claim("again")).await?;
    let seen = space.sh("again", "cat /data/file").await?;
    ensure!(seen == "kept\n", "the second claim's pod reads {seen:?}");
    space.delete_pod("again").await?;
    space
        .api::<PersistentVolumeClaim>()
        .delete("again", &DeleteParams::default())
        .await?;
    volumes.delete(&name, &DeleteParams::default()).await?;
    watch(&volumes, &name, "it is gone", |found| found.is_none()).await?;
    let found = space.lab.blob(&container, "file").await?;
    ensure!(found.as_deref() == Some("kept\n"), "the store has {found:?}");
    Ok(())
}

/// mountOptions of a class reach the mount.
pub(crate) async fn mount_options(space: &Space) -> Result<()> {
    let options = json!({"mountOptions": ["uid=1234", "gid=2345", "file_mode=0640", "dir_mode=0750"]});
    let class = space.class(json!({}), options).await?;
    space.claim("data", &class, "ReadWriteOnce").await?;
    space.pod(&PodPlan::new("app").claim("data")).await?;
    let container = container_of(&space.volume_of("data").await?)?;
    space.lab.put_blob(&container, "file", "x").await?;
    let seen = space.sh("app", "stat -c '%u %g %a' /data /data/file").await?;
    ensure!(seen == "1234 2345 750\n1234 2345 640\n", "the pod sees {seen:?}");
    Ok(())
}

/// secretName in a class: the controller reads it to make and delete the container, the node to mount it.
pub(crate) async fn secret_by_name_of_a_class(space: &Space) -> Result<()> {
    let parameters = json!({
        "secretName": SECRET,
        "secretNamespace": LAB,
        "csi.storage.k8s.io/provisioner-secret-name": null,
        "csi.storage.k8s.io/provisioner-secret-namespace": null,
        "csi.storage.k8s.io/node-stage-secret-name": null,
        "csi.storage.k8s.io/node-stage-secret-namespace": null,
    });
    let class = space.class(parameters, json!({})).await?;
    space.claim("data", &class, "ReadWriteOnce").await?;
    space.pod(&PodPlan::new("app").claim("data")).await?;
    space.sh("app", "echo by name > /data/file").await?;
    let container = container_of(&space.volume_of("data").await?)?;
    let found = space.lab.blob(&container, "file").await?;
    ensure!(found.as_deref() == Some("by name\n"), "the store has {found:?}");
    space.delete_pod("app").await?;
    space.delete_claim("data").await?;
    let left = space.lab.listing(&container).await?;
    ensure!(
        left.is_none(),
        "the container {container} is still there: {left:?}"
    );
    Ok(())
}

/// secretName and secretNamespace instead of a Secret that the kubelet brings.
pub(crate) async fn secret_by_name(space: &Space) -> Result<()> {
    let container = space.name.clone();
    space.lab.make_container(&container).await?;
    space
        .static_volume(
            &container,
            "ReadWriteMany",
            json!({"csi": {
                "nodeStageSecretRef": null,
                "volumeAttributes": {"secretName": SECRET, "secretNamespace": LAB},
            }}),
        )
        .await?;
    space.pod(&PodPlan::new("app").claim("data")).await?;
    space.sh("app", "echo by name > /data/file").await?;
    let found = space.lab.blob(&container, "file").await?;
    ensure!(found.as_deref() == Some("by name\n"), "the store has {found:?}");
    Ok(())
}
