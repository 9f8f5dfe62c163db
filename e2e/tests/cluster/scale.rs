//! How quick, and how many.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::api::{DeleteParams, PropagationPolicy};
use serde_json::json;

use crate::lab::{PATIENCE, poll, watch};
use crate::objects::PodPlan;
use crate::space::{Space, create};

/// From making a claim and its pod to the pod's first byte in the service.
const FIRST_BYTE: Duration = Duration::from_secs(5);

/// The promise is kept when a cluster with nothing else to do keeps it. A machine that does something else at
/// the moment only makes it slower, so the quickest of a few tries counts.
pub(crate) async fn first_byte_of_a_claim(space: &Space) -> Result<()> {
    let class = space
        .class(json!({"containerName": "first-${pvc.metadata.name}"}), json!({}))
        .await?;
    let mut best = Duration::MAX;
    for attempt in 0..3 {
        let name = format!("try-{attempt}");
        let begin = Instant::now();
        space.claim(&name, &class, "ReadWriteOnce").await?;
        space
            .create_pod(&PodPlan::new(&name).claim(&name).script("echo x > /data/first"))
            .await?;
        poll("the first byte is in the store", PATIENCE, async || {
            let found = space.lab.blob(&format!("first-{name}"), "first").await?;
            Ok(found.filter(|content| content == "x\n"))
        })
        .await?;
        let took = begin.elapsed();
        println!("claim to first byte: {:.2} s", took.as_secs_f64());
        best = best.min(took);
    }
    ensure!(
        best < FIRST_BYTE,
        "the quickest try took {best:?}, promised is {FIRST_BYTE:?}"
    );
    Ok(())
}

/// How many pods start at once, each with a claim of its own.
const PODS: i32 = 30;

/// Thirty claims and pods at once; each writes into its own volume. Then all go.
pub(crate) async fn thirty_pods(space: &Space) -> Result<()> {
    let container = space.name.clone();
    space.lab.make_container(&container).await?;
    let class = space
        .class(
            json!({"containerName": container, "prefix": "${pvc.metadata.name}"}),
            json!({}),
        )
        .await?;
    let mut pod = PodPlan::new("")
        .script("echo $HOSTNAME > /data/name")
        .set("/metadata", json!({"labels": {"app": "many"}}))
        .set("/spec/restartPolicy", json!("Always"))
        .set("/spec/terminationGracePeriodSeconds", json!(2))
        .set(
            "/spec/containers/0/volumeMounts",
            json!([{"name": "data", "mountPath": "/data"}]),
        )
        .build(&space.lab.settings.app_image);
    let template = json!({"metadata": pod["metadata"].take(), "spec": pod["spec"].take()});
    let begin = Instant::now();
    let sets = space.api::<StatefulSet>();
    let set = json!({
        "metadata": {"name": "many"},
        "spec": {
            "serviceName": "many",
            "replicas": PODS,
            "podManagementPolicy": "Parallel",
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Delete"},
            "selector": {"matchLabels": {"app": "many"}},
            "template": template,
            "volumeClaimTemplates": [{
                "metadata": {"name": "data"},
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "storageClassName": class,
                    "resources": {"requests": {"storage": "1Gi"}},
                },
            }],
        },
    });
    create(&sets, set).await?;
    watch(&sets, "many", "all its pods are ready", |found| {
        found
            .and_then(|set| set.status.as_ref()?.ready_replicas)
            .is_some_and(|ready| ready == PODS)
    })
    .await?;
    println!(
        "{PODS} claims and pods ready after {:.1} s",
        begin.elapsed().as_secs_f64()
    );
    for number in 0..PODS {
        let blob = format!("data-many-{number}/name");
        let found = poll(&format!("{blob} is in the store"), PATIENCE, async || {
            space.lab.blob(&container, &blob).await
        })
        .await?;
        ensure!(found == format!("many-{number}\n"), "{blob} is {found:?}");
    }
    let mounted = space.lab.mounts().await?.len();
    ensure!(mounted >= 2 * PODS as usize, "{mounted} mounts on the node");
    let begin = Instant::now();
    let all = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Foreground),
        ..DeleteParams::default()
    };
    sets.delete("many", &all).await?;
    watch(&sets, "many", "it is gone with its pods", |found| found.is_none()).await?;
    poll("no volume is mounted", PATIENCE, async || {
        Ok(space.lab.mounts().await?.is_empty().then_some(()))
    })
    .await?;
    println!(
        "and gone, with every mount, after {:.1} s",
        begin.elapsed().as_secs_f64()
    );
    Ok(())
}
