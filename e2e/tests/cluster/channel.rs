//! The channel in the cluster: bytes go over it, pods do not notice when it goes, and the cluster is told.

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::ResourceExt as _;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use vsc_blob_csi::cluster::CHANNEL_REASON;

use crate::lab::{DRIVER, LAB, Lab, PATIENCE, poll};
use crate::metrics::Page;
use crate::objects::PodPlan;
use crate::space::Space;

const TRANSFERRED: &str = "vsc_blob_transferred_bytes_total";
const REQUESTS: &str = "vsc_blob_requests_total";

impl Lab {
    /// Ends the mock VSP on every node, or lets it run again; waits until its pod is gone or ready, not for
    /// the driver.
    pub(crate) async fn set_vsp(&self, running: bool) -> Result<()> {
        let sets = self.api::<DaemonSet>(LAB);
        // A selector that no node has.
        let selector = if running {
            Value::Null
        } else {
            json!({"vsc-blob-e2e/no-such-node": "true"})
        };
        let patch = json!({"spec": {"template": {"spec": {"nodeSelector": selector}}}});
        sets.patch("mock-vsp", &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        let what = if running {
            "the mock VSP runs"
        } else {
            "the mock VSP has ended"
        };
        poll(what, PATIENCE, async || {
            let pods = self.api::<Pod>(LAB);
            let pods = pods.list(&ListParams::default().labels("app=mock-vsp")).await?;
            let set = sets.get("mock-vsp").await?.status.unwrap_or_default();
            let fits = if running {
                set.number_ready >= 1 && set.number_ready == set.desired_number_scheduled
            } else {
                pods.items.is_empty()
            };
            Ok(fits.then_some(()))
        })
        .await
    }
}

/// What pods wrote and read went over the channel, in the driver's own counters and in the mock's.
pub(crate) async fn bytes_over_the_channel(space: &Space) -> Result<()> {
    let lab = &space.lab;
    lab.channel_label(Some("available")).await?;
    let written = |page: &Page| page.sum(TRANSFERRED, &[("path", "channel"), ("direction", "write")]);
    let read = |page: &Page| page.sum(TRANSFERRED, &[("path", "channel"), ("direction", "read")]);
    let before = lab.metrics().await?;
    let class = space.class(json!({"transport": "require"}), json!({})).await?;
    space.claim("data", &class, "ReadWriteMany").await?;
    space.pod(&PodPlan::new("writer").claim("data")).await?;
    let sum = space
        .sh(
            "writer",
            "dd if=/dev/urandom of=/data/file bs=1M count=16 2>/dev/null && sha256sum < /data/file",
        )
        .await?;
    // Another mount of the volume has nothing cached.
    space.delete_pod("writer").await?;
    poll("the volume is unmounted", PATIENCE, async || {
        Ok(lab.mounts().await?.is_empty().then_some(()))
    })
    .await?;
    space.pod(&PodPlan::new("reader").claim("data")).await?;
    let again = space.sh("reader", "sha256sum < /data/file").await?;
    ensure!(sum == again, "written {sum}, read {again}");
    let after = lab.metrics().await?;
    for (what, before, after) in [
        ("written", written(&before), written(&after)),
        ("read", read(&before), read(&after)),
    ] {
        let bytes = after - before;
        println!("bytes {what} over the channel: {bytes}");
        ensure!(
            bytes >= f64::from(16 << 20),
            "only {bytes} bytes {what} over the channel"
        );
    }
    // Not by cat: busybox's copies inside the kernel, which ends at the size that the file tells, and it
    // tells none.
    let control = lab
        .on_node("dd if=/host/var/lib/vsc-blob-e2e/vsp/control bs=64k count=1 2>/dev/null")
        .await?;
    let counters: Value = serde_json::from_str(&control)?;
    let requests = counters["counters"]["requests"].as_u64();
    ensure!(
        requests.is_some_and(|count| count > 0),
        "the mock VSP has counted {requests:?} requests"
    );
    ensure!(
        after.sum("vsc_blob_channel_usable", &[]) == 1.0,
        "the page: {}",
        after.text()
    );
    Ok(())
}

/// Writes, reads back and compares without end; an error of any step is counted and kept.
const LOAD: &str = "i=0; echo 0 > /tmp/rounds; : > /tmp/errors
( while :; do
    i=$((i + 1))
    head -c 200000 /dev/urandom > /tmp/one 2>>/tmp/errors
    { cp /tmp/one /data/$HOSTNAME.$((i % 5)) && cmp /tmp/one /data/$HOSTNAME.$((i % 5)) && \
ls /data >/dev/null; } 2>>/tmp/errors || echo \"round $i\" >> /tmp/errors
    echo $i > /tmp/rounds
  done ) &";

async fn rounds(space: &Space, pod: &str) -> Result<u64> {
    // The file is empty for an instant while it is written.
    poll("the pod counts its rounds", PATIENCE, async || {
        Ok(space.sh(pod, "cat /tmp/rounds").await?.trim().parse().ok())
    })
    .await
}

/// Waits until both pods have done some rounds more, and sees that no step failed.
async fn goes_on(space: &Space) -> Result<()> {
    for pod in ["one", "two"] {
        let from = rounds(space, pod).await?;
        poll(&format!("{pod} works"), PATIENCE, async || {
            Ok((rounds(space, pod).await? >= from + 5).then_some(()))
        })
        .await?;
        let errors = space.sh(pod, "cat /tmp/errors").await?;
        ensure!(errors.is_empty(), "{pod} saw errors: {errors}");
    }
    Ok(())
}

/// The mock VSP is stopped while pods write and read: they see no error, the label and Events tell; with the
/// VSP back the channel is used again.
pub(crate) async fn channel_stops_under_load(space: &Space) -> Result<()> {
    let lab = &space.lab;
    lab.channel_label(Some("available")).await?;
    let class = space.class(json!({}), json!({})).await?;
    space.claim("data", &class, "ReadWriteMany").await?;
    for name in ["one", "two"] {
        space
            .create_pod(&PodPlan::new(name).claim("data").script(LOAD))
            .await?;
    }
    space.ready("one").await?;
    space.ready("two").await?;
    goes_on(space).await?;

    lab.set_vsp(false).await?;
    let node = lab.channel_label(Some("unavailable")).await?;
    let reason = node
        .annotations()
        .get(CHANNEL_REASON)
        .cloned()
        .unwrap_or_default();
    println!("annotation without the channel: {reason}");
    ensure!(!reason.is_empty(), "no annotation {CHANNEL_REASON}");
    goes_on(space).await?;
    ensure!(
        lab.metrics().await?.sum("vsc_blob_channel_usable", &[]) == 0.0,
        "the metric says usable"
    );
    told(space, "ChannelLost", "Warning").await?;
    // Nobody who must have the channel gets a volume now, and is told so.
    let container = format!("{}-strict", space.name);
    lab.make_container(&container).await?;
    let attributes = json!({"csi": {"volumeAttributes": {"transport": "require"}}});
    space
        .static_volume_for("strict", &container, "ReadWriteMany", attributes)
        .await?;
    space.create_pod(&PodPlan::new("strict").claim("strict")).await?;
    space
        .event("strict", "ChannelRequired", |event| {
            event
                .message
                .as_deref()
                .unwrap_or_default()
                .contains("[ChannelRequired]")
        })
        .await?;

    lab.set_vsp(true).await?;
    lab.channel_label(Some("available")).await?;
    told(space, "ChannelRestored", "Normal").await?;
    let before = lab.metrics().await?.sum(REQUESTS, &[("path", "channel")]);
    poll("requests go over the channel again", PATIENCE, async || {
        let now = lab.metrics().await?.sum(REQUESTS, &[("path", "channel")]);
        Ok((now > before + 20.0).then_some(()))
    })
    .await?;
    goes_on(space).await?;
    // What had to have the channel starts by itself.
    space.ready("strict").await?;
    Ok(())
}

/// An Event with this reason about the node; it comes when the channel has settled.
async fn told(space: &Space, reason: &str, kind: &str) -> Result<()> {
    let ours = |event: &Event| {
        event.reason.as_deref() == Some(reason)
            && event.type_.as_deref() == Some(kind)
            && (event.reporting_component.as_deref() == Some(DRIVER)
                || event
                    .source
                    .as_ref()
                    .and_then(|source| source.component.as_deref())
                    == Some(DRIVER))
    };
    let node = space.lab.node_name().await?;
    poll(
        &format!("an Event of the node tells {reason}"),
        PATIENCE,
        async || {
            let events = space.lab.api::<Event>("default");
            let about = ListParams::default().fields(&format!("involvedObject.name={node}"));
            Ok(events.list(&about).await?.items.into_iter().find(ours))
        },
    )
    .await?;
    Ok(())
}
