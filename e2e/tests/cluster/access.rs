//! Who may do what with a volume: read-only, many readers, many writers, one pod, groups and users.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::lab::watch;
use crate::objects::PodPlan;
use crate::space::Space;

/// A claim on a container of the case's own.
async fn volume(space: &Space, mode: &str) -> Result<String> {
    let container = space.name.clone();
    space.lab.make_container(&container).await?;
    space.static_volume(&container, mode, json!({})).await?;
    Ok(container)
}

async fn refused(space: &Space, pod: &str, script: &str, words: &str) -> Result<()> {
    match space.sh(pod, script).await {
        Ok(output) => anyhow::bail!("`{script}` in {pod} works: {output}"),
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(
                text.contains(words),
                "`{script}` in {pod} fails otherwise: {text}"
            );
            Ok(())
        }
    }
}

/// `readOnly: true` beside the claim: the pod reads and cannot write.
pub(crate) async fn read_only_claim(space: &Space) -> Result<()> {
    let container = volume(space, "ReadWriteMany").await?;
    space.lab.put_blob(&container, "file", "read me").await?;
    let plan = PodPlan::new("reader").volume(json!({
        "persistentVolumeClaim": {"claimName": "data", "readOnly": true},
    }));
    space.pod(&plan).await?;
    let seen = space.sh("reader", "cat /data/file").await?;
    ensure!(seen == "read me", "the pod reads {seen:?}");
    refused(space, "reader", "echo x > /data/new", "Read-only file system").await?;
    refused(space, "reader", "rm /data/file", "Read-only file system").await
}

/// ReadOnlyMany to several pods at once.
pub(crate) async fn read_only_many(space: &Space) -> Result<()> {
    let container = volume(space, "ReadOnlyMany").await?;
    space.lab.put_blob(&container, "file", "read me").await?;
    let readers = ["one", "two", "three"];
    for name in readers {
        space.create_pod(&PodPlan::new(name).claim("data")).await?;
    }
    for name in readers {
        space.ready(name).await?;
        let seen = space.sh(name, "cat /data/file").await?;
        ensure!(seen == "read me", "{name} reads {seen:?}");
        refused(space, name, "echo x > /data/new", "Read-only file system").await?;
    }
    Ok(())
}

/// ReadWriteMany: what one pod has closed, the other opens; and the store's REST interface has it.
pub(crate) async fn read_write_many(space: &Space) -> Result<()> {
    let container = volume(space, "ReadWriteMany").await?;
    for name in ["one", "two"] {
        space.create_pod(&PodPlan::new(name).claim("data")).await?;
    }
    space.ready("one").await?;
    space.ready("two").await?;
    for (writer, reader) in [("one", "two"), ("two", "one")] {
        space
            .sh(writer, &format!("echo of {writer} > /data/{writer}"))
            .await?;
        let seen = space.sh(reader, &format!("cat /data/{writer}")).await?;
        ensure!(seen == format!("of {writer}\n"), "{reader} reads {seen:?}");
        let found = space.lab.blob(&container, writer).await?;
        ensure!(found == Some(format!("of {writer}\n")), "the store has {found:?}");
    }
    Ok(())
}

/// ReadWriteOncePod: a second pod waits until the first has gone.
pub(crate) async fn read_write_once_pod(space: &Space) -> Result<()> {
    let class = space.class(json!({}), json!({})).await?;
    space.claim("data", &class, "ReadWriteOncePod").await?;
    space.pod(&PodPlan::new("first").claim("data")).await?;
    space.sh("first", "echo first > /data/file").await?;
    space.create_pod(&PodPlan::new("second").claim("data")).await?;
    watch(
        &space.api::<Pod>(),
        "second",
        "the scheduler refuses it",
        |found| {
            found
                .and_then(|pod| pod.status.as_ref()?.conditions.as_ref())
                .is_some_and(|all| {
                    all.iter().any(|one| {
                        one.type_ == "PodScheduled"
                            && one.status == "False"
                            && one
                                .message
                                .as_deref()
                                .is_some_and(|text| text.contains("ReadWriteOncePod"))
                    })
                })
        },
    )
    .await?;
    space.delete_pod("first").await?;
    space.ready("second").await?;
    let seen = space.sh("second", "cat /data/file").await?;
    ensure!(seen == "first\n", "the second pod reads {seen:?}");
    Ok(())
}

/// fsGroup: the kubelet hands it to the driver (VOLUME_MOUNT_GROUP), and a user of that group writes.
pub(crate) async fn fs_group(space: &Space) -> Result<()> {
    let container = volume(space, "ReadWriteMany").await?;
    space.lab.put_blob(&container, "old", "x").await?;
    let plan = PodPlan::new("app").claim("data").set(
        "/spec/securityContext",
        json!({"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 3000}),
    );
    space.pod(&plan).await?;
    let seen = space
        .sh(
            "app",
            "mkdir /data/dir && echo x > /data/dir/new && echo more >> /data/old && stat -c '%g %a' /data \
             /data/old && stat -c '%u' /data/dir/new",
        )
        .await?;
    ensure!(seen == "3000 2775\n3000 664\n1000\n", "the pod sees {seen:?}");
    Ok(())
}

/// A user that is not root, without fsGroup, with a read-only root and no capability.
pub(crate) async fn non_root(space: &Space) -> Result<()> {
    let container = volume(space, "ReadWriteMany").await?;
    let plan = PodPlan::new("app")
        .claim("data")
        .set(
            "/spec/securityContext",
            json!({
                "runAsNonRoot": true,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"}
            }),
        )
        .set(
            "/spec/containers/0/securityContext",
            json!({
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]}
            }),
        );
    space.pod(&plan).await?;
    space
        .sh(
            "app",
            "mkdir /data/dir && echo mine > /data/dir/file && mv /data/dir/file /data/dir/moved",
        )
        .await?;
    let found = space.lab.blob(&container, "dir/moved").await?;
    ensure!(found.as_deref() == Some("mine\n"), "the store has {found:?}");
    Ok(())
}

/// subPath: a directory of the volume, made when it is missing.
pub(crate) async fn sub_path(space: &Space) -> Result<()> {
    let container = volume(space, "ReadWriteMany").await?;
    let plan = PodPlan::new("app")
        .claim("data")
        .set("/spec/containers/0/volumeMounts/0/subPath", json!("tenants/a"));
    space.pod(&plan).await?;
    space.sh("app", "echo below > /data/file").await?;
    let found = space.lab.blob(&container, "tenants/a/file").await?;
    ensure!(found.as_deref() == Some("below\n"), "the store has {found:?}");
    let seen = space.sh("app", "ls /data").await?;
    ensure!(seen == "file\n", "the pod sees {seen:?}");
    Ok(())
}
