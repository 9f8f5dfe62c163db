//! What a failed call tells the cluster: the pod and the claim that wait for it.

use blob_client::transport::failover::{ChannelState, Paths};
use blob_fs::{Budget, Resources};
use tokio_util::sync::CancellationToken;
use vsc_driver::buffer::Arena;

use super::*;
use crate::cluster::fake::{FakeCluster, NODE, claim, pod};
use crate::cluster::{Membership, Reporter};
use crate::mounts::Kernel;
use crate::mounts::manager::Patience;

const UID: &str = "uid-of-pod-reader";

struct World {
    service: NodeService,
    cluster: Arc<FakeCluster>,
    folder: tempfile::TempDir,
    _stop: tokio_util::sync::DropGuard,
}

/// A node in a cluster with one claim, `team/data`, of volume `h`, used by pod `team/reader`.
fn world() -> World {
    let runtime = tokio::runtime::Handle::current();
    let arena = Arena::new(64 << 20).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let resources = Resources {
        budget: Budget::new(32 << 20),
        arena: arena.clone(),
        runtime: runtime.clone(),
    };
    let mounts = Mounts::new(
        Arc::new(Kernel),
        resources,
        &folder.path().join("state"),
        Patience::default(),
    );
    let cluster = FakeCluster::new();
    cluster.set(|state| {
        state.pods.push(pod("team", "reader", &["data"]));
        state.bound("team", "data", "pv-1");
        state.volume("pv-1", crate::DRIVER_NAME, "h", Some(claim("team", "data")));
    });
    let link = Link {
        cluster: cluster.clone(),
        driver: crate::DRIVER_NAME.into(),
        node: NODE.into(),
        reporter: Reporter::default(),
    };
    let membership = Membership {
        cluster: cluster.clone(),
        node: NODE.into(),
        driver: crate::DRIVER_NAME.into(),
        channel: tokio::sync::watch::channel(ChannelState::default()).1,
        ready: Arc::new(|| Box::pin(std::future::ready(Ok(())))),
        targets: Arc::new(Vec::new),
    };
    let stop = CancellationToken::new();
    tokio::spawn(membership.keep(link.reporter.clone(), stop.clone()));
    let connector = Connector::new(Paths::new(None, arena.clone(), runtime), arena);
    let service = NodeService::new(NODE, Arc::new(mounts.unwrap()), connector, None);
    World {
        service: service.in_cluster(link),
        cluster,
        folder,
        _stop: stop.drop_guard(),
    }
}

fn capability() -> VolumeCapability {
    use volume_capability::access_mode::Mode;
    use volume_capability::{AccessMode, AccessType, MountVolume};
    VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode {
            mode: Mode::MultiNodeMultiWriter as i32,
        }),
    }
}

fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

#[tokio::test]
async fn a_failed_stage_becomes_an_event_of_the_pod_and_the_claim() {
    let world = world();
    let staging = world.folder.path().join("globalmount");
    std::fs::create_dir(&staging).unwrap();
    let request = NodeStageVolumeRequest {
        volume_id: "h".into(),
        staging_target_path: staging.display().to_string(),
        volume_capability: Some(capability()),
        volume_context: map(&[("contianerName", "photos")]),
        ..NodeStageVolumeRequest::default()
    };
    let status = world.service.node_stage_volume(Request::new(request)).await;
    let said = status.unwrap_err().message().to_owned();
    let told = [
        ("PersistentVolumeClaim", "data", "UnknownKey", 1),
        ("Pod", "reader", "UnknownKey", 1),
    ];
    world.cluster.until(|state| state.told() == told).await;
    world.cluster.set(|state| {
        for event in state.events.values() {
            assert_eq!(event.message, said, "what kubelet gets is what people read");
        }
    });
}

#[tokio::test]
async fn a_failed_inline_volume_becomes_an_event_of_its_pod() {
    let world = world();
    let target = world
        .folder
        .path()
        .join(format!("pods/{UID}/volumes/kubernetes.io~csi/v/mount"));
    let request = NodePublishVolumeRequest {
        volume_id: "csi-1".into(),
        target_path: target.display().to_string(),
        volume_capability: Some(capability()),
        volume_context: map(&[
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.name", "reader"),
            ("csi.storage.k8s.io/pod.namespace", "team"),
            ("csi.storage.k8s.io/pod.uid", UID),
            ("storageAccount", "acct"),
            ("containerName", "photos"),
            ("secretName", "storage-key"),
            ("secretNamespace", "kube-system"),
        ]),
        ..NodePublishVolumeRequest::default()
    };
    let status = world.service.node_publish_volume(Request::new(request)).await;
    assert_eq!(status.unwrap_err().code(), tonic::Code::PermissionDenied);
    let told = [("Pod", "reader", "SecretNamespaceRefused", 1)];
    world.cluster.until(|state| state.told() == told).await;
    assert!(!target.exists(), "nothing is left behind");
}
