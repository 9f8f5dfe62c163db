//! Containers restart in a loop while the node plugin is killed and the store is away.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::errors::is_ours;
use crate::lab::{LAB, Lab, PATIENCE, poll};
use crate::provisioning::container_of;
use crate::space::{Space, create};

/// Each has a back-off of its own: together they start often.
const CONTAINERS: [&str; 3] = ["a", "b", "c"];

/// Writes and reads marks, no two of which are alike, and ends: after two of them, or with the first that
/// fails. Notes beside the volume which of them fsync has acknowledged.
const ROUND: &str = r#"starts=$(cat /noted/starts.$NAME 2>/dev/null || echo 0)
starts=$((starts + 1))
echo $starts > /noted/starts.$NAME
for i in 1 2; do
    mark=$NAME.$starts.$i
    echo $mark | dd of=/data/$mark conv=fsync 2>/dev/null || exit 1
    echo $mark >> /noted/marks
    [ "$(cat /data/$mark)" = $mark ] || exit 1
    sleep 1
done
echo $NAME.$starts >> /noted/rounds"#;

/// Shell: `pid` is the store's process.
const STORE_PROCESS: &str = "for d in /proc/[0-9]*; do \
    if grep -qx store $d/comm 2>/dev/null && \
    tr '\\0' ' ' < $d/cmdline | grep -q -e --identities=/identities/; then \
    pid=${d#/proc/}; fi; done; \
    test -n \"$pid\"";

/// What the store does for a while.
#[derive(Debug, Clone, Copy)]
enum Outage {
    /// New connections are refused: its Service has no endpoint.
    Refuses,
    /// Nothing is answered: its process is stopped.
    Hangs,
}

impl Lab {
    async fn begin(&self, outage: Outage) -> Result<()> {
        match outage {
            Outage::Refuses => self.select_no_store(true).await,
            Outage::Hangs => self.signal_store("STOP").await,
        }
    }

    async fn end(&self, outage: Outage) -> Result<()> {
        match outage {
            Outage::Refuses => self.select_no_store(false).await,
            Outage::Hangs => self.signal_store("CONT").await,
        }
    }

    async fn signal_store(&self, signal: &str) -> Result<()> {
        self.on_node(&format!("{STORE_PROCESS}; kill -{signal} $pid"))
            .await
            .map(drop)
    }

    /// Takes the store out of its Service, or puts it back, and waits until the node's network does so.
    async fn select_no_store(&self, no_store: bool) -> Result<()> {
        let (nobody, answer, what) = match no_store {
            true => (json!("true"), "refused", "connections to the store are refused"),
            false => (Value::Null, "HTTP/", "the store answers"),
        };
        let patch = json!({"spec": {"selector": {"vsc-blob-e2e/no-such-pod": nobody}}});
        let service = self
            .api::<Service>(LAB)
            .patch("store", &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        let address = service
            .spec
            .and_then(|spec| spec.cluster_ip)
            .context("the store's Service has an address")?;
        let ask = format!("wget -O /dev/null http://{address}:10000/ 2>&1 || true");
        poll(what, PATIENCE, async || {
            let said = self.on_node(&ask).await?;
            Ok(said.contains(answer).then_some(()))
        })
        .await
    }
}

/// A pod whose containers restart, as the node has it.
struct Looping<'a> {
    space: &'a Space,
    name: &'static str,
    /// The pod's folder on the node.
    folder: String,
}

impl<'a> Looping<'a> {
    /// Makes the pod and waits until each of its containers has been restarted.
    async fn start(space: &'a Space, name: &'static str) -> Result<Self> {
        let container = |container: &&str| {
            json!({
                "name": container,
                "image": space.lab.settings.app_image,
                "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", ROUND],
                "env": [{"name": "NAME", "value": format!("{name}-{container}")}],
                "volumeMounts": [
                    {"name": "data", "mountPath": "/data"},
                    {"name": "noted", "mountPath": "/noted"},
                ],
            })
        };
        let pod = json!({
            "metadata": {"name": name},
            "spec": {
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "restartPolicy": "Always",
                "terminationGracePeriodSeconds": 0,
                "containers": CONTAINERS.iter().map(container).collect::<Vec<_>>(),
                "volumes": [
                    {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
                    {"name": "noted", "emptyDir": {}},
                ],
            },
        });
        let pod = create(&space.api::<Pod>(), pod).await?;
        let uid = pod.metadata.uid.context("a pod has a uid")?;
        let looping = Self {
            space,
            name,
            folder: format!("/host/var/lib/kubelet/pods/{uid}"),
        };
        poll(
            &format!("each container of {name} restarts"),
            PATIENCE,
            async || {
                let counts = looping.containers().await?;
                let again = counts.len() == CONTAINERS.len() && counts.iter().all(|(count, _)| *count > 0);
                Ok(again.then_some(()))
            },
        )
        .await?;
        Ok(looping)
    }

    /// Of each container: how often it was restarted, and whether it runs.
    async fn containers(&self) -> Result<Vec<(i32, bool)>> {
        let pod = self.space.api::<Pod>().get(self.name).await?;
        let all = pod.status.and_then(|status| status.container_statuses);
        let one = all.into_iter().flatten().map(|container| {
            let runs = container.state.is_some_and(|state| state.running.is_some());
            (container.restart_count, runs)
        });
        Ok(one.collect())
    }

    /// With its mount dead and nobody to make it anew none can go on.
    async fn has_ended(&self) -> Result<()> {
        let what = format!("no container of {} runs", self.name);
        poll(&what, PATIENCE, async || {
            let none = self.containers().await?.iter().all(|(_, runs)| !runs);
            Ok(none.then_some(()))
        })
        .await
    }

    /// Lines of a file that the containers write beside the volume.
    async fn noted(&self, file: &str) -> Result<Vec<String>> {
        let path = format!("{}/volumes/kubernetes.io~empty-dir/noted/{file}", self.folder);
        let script = format!("cat {path} 2>/dev/null || true");
        let lines = self.space.lab.on_node(&script).await?;
        Ok(lines.lines().map(str::to_owned).collect())
    }

    /// Waits until a container that was started after this has written and read.
    async fn goes_on(&self) -> Result<()> {
        let before = self.noted("rounds").await?.len();
        let what = format!("a container of {} writes and reads again", self.name);
        poll(&what, PATIENCE, async || {
            let now = self.noted("rounds").await?.len();
            Ok((now > before).then_some(()))
        })
        .await
    }

    /// What is in the directory below the volume's mount, on the node's own disk. `first` is done there
    /// before (shell, the directory is `$below`).
    async fn below_the_mount(&self, volume: &str, first: &str) -> Result<String> {
        let folder = format!("{}/volumes/kubernetes.io~csi/{volume}", self.folder);
        // Bound without what is mounted on it, and apart from what will be.
        let script = format!(
            "set -e; look=$(mktemp -d); mount --bind {folder} $look; \
             trap 'umount $look; rmdir $look' EXIT; mount --make-private $look; \
             below=$look/mount; test $(stat -c %d $below) = $(stat -c %d $look); \
             {first}; find $below -xdev -mindepth 1"
        );
        self.space.lab.on_node(&script).await
    }
}

/// Containers restart while the node plugin is replaced and killed, and while the store refuses connections
/// or hangs: not one byte of theirs reaches the node's disk, what fsync acknowledged is in the store, and at
/// the end they write and read again. Meanwhile the claim says why its volume is not to be had.
pub(crate) async fn containers_restart_while_plugin_and_store_fail(space: &Space) -> Result<()> {
    let lab = &space.lab;
    // Past the channel: the mock keeps its connections to the store.
    let class = space.class(json!({"transport": "https"}), json!({})).await?;
    space.claim("data", &class, "ReadWriteMany").await?;
    let volume = space.volume_of("data").await?;
    let first = Looping::start(space, "first").await?;
    // The look sees what is below: a file that is put there.
    let name = volume.name_any();
    let seen = first.below_the_mount(&name, "touch $below/control").await?;
    ensure!(
        seen.trim_end().ends_with("/mount/control"),
        "the look sees {seen:?}"
    );
    first.below_the_mount(&name, "rm $below/control").await?;
    // Kubelet waits longer each time that it starts a process again; with a new pod it begins anew.
    lab.restart_node_plugin().await?;

    during(lab, Outage::Refuses, async || {
        lab.kill_node_plugin().await?;
        space
            .event("data", "that the mount cannot be made anew", |event| {
                let text = event.message.as_deref().unwrap_or_default();
                is_ours(event)
                    && event.reason.as_deref() == Some("EndpointUnreachable")
                    && text.contains("cannot be made anew")
            })
            .await?;
        lab.kill_node_plugin().await?;
        first.has_ended().await
    })
    .await?;

    // With containers that kubelet does not let wait for long yet.
    let second = Looping::start(space, "second").await?;
    during(lab, Outage::Hangs, async || {
        lab.kill_node_plugin().await?;
        second.has_ended().await
    })
    .await?;
    second.goes_on().await?;

    let container = container_of(&volume)?;
    for pod in [first, second] {
        let found = pod.below_the_mount(&name, ":").await?;
        ensure!(
            found.is_empty(),
            "{} has written to the node's disk: {found}",
            pod.name
        );
        let marks = pod.noted("marks").await?;
        for mark in &marks {
            let stored = lab.blob(&container, mark).await?;
            ensure!(
                stored.as_deref() == Some(&format!("{mark}\n")),
                "fsync has acknowledged {mark}, and the store has {stored:?}"
            );
        }
        let restarts = pod
            .containers()
            .await?
            .iter()
            .map(|(count, _)| count)
            .sum::<i32>();
        println!(
            "{}: {restarts} restarts, {} marks in the store",
            pod.name,
            marks.len()
        );
        space.describe(pod.name).await?;
    }
    space.describe("data").await
}

/// Does something while the store is away, and brings it back whatever comes of it.
async fn during<T>(lab: &Lab, outage: Outage, what: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
    let begun = lab.begin(outage).await;
    let done = match begun {
        Ok(()) => what().await,
        Err(error) => Err(error),
    };
    let ended = lab.end(outage).await;
    let done = done.with_context(|| format!("while the store is away ({outage:?})"))?;
    ended.map(|()| done)
}
