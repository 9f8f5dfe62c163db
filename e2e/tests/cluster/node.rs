//! What is on the node: labels and registration, and what a pod leaves behind.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::storage::v1::CSINode;
use kube::ResourceExt as _;
use kube::api::ListParams;
use serde_json::json;
use vsc_blob_csi::cluster::{CHANNEL_LABEL, CHANNEL_REASON};
use vsc_blob_csi::commands::size::ByteSize;

use crate::lab::{DRIVER, LAB, Lab, PATIENCE, poll};
use crate::objects::PodPlan;
use crate::space::Space;

impl Lab {
    /// Runs a script on the driver's node, as root in its process namespace; its files are below /host.
    pub(crate) async fn on_node(&self, script: &str) -> Result<String> {
        let pods = self.api::<Pod>(LAB);
        let eyes = pods.list(&ListParams::default().labels("app=eyes")).await?;
        let node = self.node_name().await?;
        let eye = eyes
            .into_iter()
            .find(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()) == Some(&node))
            .with_context(|| format!("no pod `eyes` on node {node}"))?;
        self.exec(LAB, &eye.name_any(), script).await
    }

    /// The node on which the driver runs.
    pub(crate) async fn node_name(&self) -> Result<String> {
        let nodes = self.all::<Node>().list(&ListParams::default()).await?;
        let mut names = nodes.into_iter().map(|node| node.name_any());
        match (names.next(), names.next()) {
            (Some(name), None) => Ok(name),
            _ => anyhow::bail!("the suite looks at one node: use a cluster with exactly one"),
        }
    }

    pub(crate) async fn node(&self) -> Result<Node> {
        let name = self.node_name().await?;
        Ok(self.all::<Node>().get(&name).await?)
    }

    /// Waits until the node's label says this about the channel.
    pub(crate) async fn channel_label(&self, wanted: Option<&str>) -> Result<Node> {
        poll(
            &format!("the node's label says {wanted:?}"),
            PATIENCE,
            async || {
                let node = self.node().await?;
                let fits = node.labels().get(CHANNEL_LABEL).map(String::as_str) == wanted;
                Ok(fits.then_some(node))
            },
        )
        .await
    }

    /// The mounts of volumes on the node (mountinfo of its first process), one line each.
    pub(crate) async fn mounts(&self) -> Result<Vec<String>> {
        let lines = self
            .on_node("grep fuse.vsc-blob /proc/1/mountinfo || true")
            .await?;
        Ok(lines.lines().map(str::to_owned).collect())
    }

    /// How many volumes the node plugin's budget serves, out of its arguments.
    async fn served_volumes(&self) -> Result<i32> {
        let set = self.daemon_set().await?;
        let pod = set.spec.template.spec.context("a DaemonSet has pods")?;
        let arguments = pod
            .containers
            .into_iter()
            .filter_map(|container| container.args)
            .flatten();
        let budget = arguments
            .filter_map(|argument| argument.strip_prefix("--budget=").map(str::to_owned))
            .next()
            .context("the node plugin has a budget")?;
        let budget: ByteSize = budget.parse().map_err(anyhow::Error::msg)?;
        Ok(i32::try_from(blob_fs::Budget::new(budget.0).mounts())?)
    }

    /// Names of the node plugin's threads, without the runtime's, which come and go with the work.
    async fn threads(&self) -> Result<Vec<String>> {
        let script = format!("{PLUGIN}; cat /proc/$pid/task/*/comm | grep -v tokio | sort");
        let lines = self.on_node(&script).await?;
        Ok(lines.lines().map(str::to_owned).collect())
    }

    /// How many connections to FUSE the node plugin has open.
    async fn fuse_descriptors(&self) -> Result<usize> {
        let script = format!("{PLUGIN}; ls -l /proc/$pid/fd | grep -c /dev/fuse || true");
        Ok(self.on_node(&script).await?.trim().parse()?)
    }
}

/// Shell: `pid` is the node plugin's process.
pub(crate) const PLUGIN: &str = "for d in /proc/[0-9]*; do \
    if grep -qx vsc-blob-csi $d/comm 2>/dev/null && tr '\\0' ' ' < $d/cmdline | grep -q ' node '; then \
    pid=${d#/proc/}; fi; done; \
    test -n \"$pid\"";

/// The CSINode object has the driver with a limit of volumes, the CSIDriver object exists, and the node says
/// that it has the channel.
pub(crate) async fn label_and_registration(space: &Space) -> Result<()> {
    let lab = &space.lab;
    let name = lab.node_name().await?;
    let csi = lab.all::<CSINode>().get(&name).await?;
    let ours = csi
        .spec
        .drivers
        .iter()
        .find(|driver| driver.name == DRIVER)
        .with_context(|| format!("the CSINode has {:?}", csi.spec.drivers))?;
    let limit = ours
        .allocatable
        .as_ref()
        .and_then(|allocatable| allocatable.count);
    let served = lab.served_volumes().await?;
    ensure!(
        limit == Some(served),
        "volumes per node: {limit:?}; the budget serves {served}"
    );
    let node = lab.channel_label(Some("available")).await?;
    let reason = node.annotations().get(CHANNEL_REASON);
    ensure!(
        reason.is_some_and(|text| !text.is_empty()),
        "no annotation {CHANNEL_REASON}"
    );
    let ready = lab.health("readyz").await?;
    let alive = lab.health("healthz").await?;
    println!("readyz: {}; healthz: {}", ready.trim(), alive.trim());
    Ok(())
}

/// After the last pod of a volume there is no mount, no directory, no thread and no connection of it.
pub(crate) async fn deletion_leaves_nothing(space: &Space) -> Result<()> {
    let lab = &space.lab;
    // Volumes of the cases before may still be on their way out.
    poll("no volume is mounted", PATIENCE, async || {
        Ok(lab.mounts().await?.is_empty().then_some(()))
    })
    .await?;
    let class = space.class(json!({}), json!({})).await?;
    space.claim("data", &class, "ReadWriteMany").await?;
    // The first use of the driver starts what it keeps (threads of the channel); the second must give back
    // all it takes.
    let mut threads = Vec::new();
    for round in 0..2 {
        let pods = ["one", "two"];
        let mut directories = Vec::new();
        for name in pods {
            let pod = space.pod(&PodPlan::new(name).claim("data")).await?;
            space.sh(name, &format!("echo {round} >> /data/{name}")).await?;
            let uid = pod.metadata.uid.context("a pod has a uid")?;
            directories.push(format!("/host/var/lib/kubelet/pods/{uid}"));
        }
        let during = lab.mounts().await?;
        ensure!(during.len() == 3, "one staging mount and two binds: {during:#?}");
        let open = lab.fuse_descriptors().await?;
        ensure!(open >= 1, "no connection to FUSE while a volume is mounted");
        for name in pods {
            space.delete_pod(name).await?;
        }
        poll("no volume is mounted", PATIENCE, async || {
            Ok(lab.mounts().await?.is_empty().then_some(()))
        })
        .await?;
        for directory in &directories {
            poll(&format!("{directory} is gone"), PATIENCE, async || {
                let left = lab
                    .on_node(&format!("ls -d {directory} 2>/dev/null || true"))
                    .await?;
                Ok(left.is_empty().then_some(()))
            })
            .await?;
        }
        poll("the staging directory is gone", PATIENCE, async || {
            let script =
                format!("ls /host/var/lib/kubelet/plugins/kubernetes.io/csi/{DRIVER} 2>/dev/null || true");
            Ok(lab.on_node(&script).await?.trim().is_empty().then_some(()))
        })
        .await?;
        poll(
            "no connection to FUSE is open",
            Duration::from_secs(20),
            async || Ok((lab.fuse_descriptors().await? == 0).then_some(())),
        )
        .await?;
        if round == 0 {
            threads = lab.threads().await?;
        } else {
            poll(
                "the threads are those of the first round",
                Duration::from_secs(20),
                async || Ok((lab.threads().await? == threads).then_some(())),
            )
            .await
            .with_context(|| format!("{threads:?} before"))?;
        }
    }
    Ok(())
}
