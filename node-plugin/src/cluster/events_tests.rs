//! Who is told what, how often, and what becomes of it when the API server is away.

use std::sync::Mutex;

use blob_client::transport::failover::ChannelState;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::cluster::Unsaved;
use crate::cluster::fake::{FakeCluster, NODE, claim, pod};

const DRIVER: &str = crate::DRIVER_NAME;

struct World {
    cluster: Arc<FakeCluster>,
    reporter: Reporter,
    channel: watch::Sender<ChannelState>,
    targets: Arc<Mutex<Vec<PathBuf>>>,
    unstored: Arc<Mutex<Vec<(VolumeAt, Unsaved)>>>,
    folder: tempfile::TempDir,
    _stop: tokio_util::sync::DropGuard,
}

fn world() -> World {
    let cluster = FakeCluster::new();
    let reporter = Reporter::default();
    let (channel, receiver) = watch::channel(ChannelState::default());
    let targets = Arc::new(Mutex::new(Vec::new()));
    let unstored: Arc<Mutex<Vec<(VolumeAt, Unsaved)>>> = Arc::default();
    let membership = Membership {
        cluster: cluster.clone(),
        node: NODE.into(),
        driver: DRIVER.into(),
        channel: receiver,
        ready: Arc::new(|| Box::pin(std::future::ready(Ok(())))),
        targets: Arc::new({
            let targets = targets.clone();
            move || targets.lock().unwrap().clone()
        }),
        unstored: Arc::new({
            let unstored = unstored.clone();
            move || unstored.lock().unwrap().clone()
        }),
    };
    let stop = CancellationToken::new();
    tokio::spawn(membership.keep(reporter.clone(), stop.clone()));
    World {
        cluster,
        reporter,
        channel,
        targets,
        unstored,
        folder: tempfile::tempdir().unwrap(),
        _stop: stop.drop_guard(),
    }
}

impl World {
    /// A volume `h` of claim team/data, used by pod `reader` of this node, at a staging path as kubelet 1.36
    /// leaves it.
    fn staged(&self) -> VolumeAt {
        self.cluster.set(|state| {
            state.pods.push(pod("team", "reader", &["data"]));
            state.pods.push(pod("team", "other", &["else"]));
            state.pods.push(pod("elsewhere", "namesake", &["data"]));
            state.bound("team", "data", "pv-1");
            state.volume("pv-1", DRIVER, "h", Some(claim("team", "data")));
        });
        VolumeAt {
            handle: "h".into(),
            path: self.folder.path().join("globalmount"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_stage_is_told_to_the_pods_and_the_claim_and_counted() {
    let world = world();
    let volume = world.staged();
    world
        .reporter
        .staging_failed(volume.clone(), "ContainerNotFound", "containerName: no \"x\"");
    let reason = "ContainerNotFound";
    let once = [
        ("PersistentVolumeClaim", "data", reason, 1),
        ("Pod", "reader", reason, 1),
    ];
    world.cluster.until(|state| state.told() == once).await;
    world
        .reporter
        .staging_failed(volume.clone(), reason, "containerName: no \"y\"");
    let twice = once.map(|(kind, name, reason, _)| (kind, name, reason, 2));
    world.cluster.until(|state| state.told() == twice).await;
    world.cluster.set(|state| {
        let pod = state.events.values().find(|e| e.object.kind == "Pod").unwrap();
        assert!(pod.warning);
        assert_eq!(pod.message, "containerName: no \"y\"");
        assert_eq!(
            pod.object,
            crate::cluster::fake::pod("team", "reader", &[]).object
        );
        assert!(pod.last >= pod.first);
    });
    // Another reason is another Event.
    world.reporter.staging_failed(volume, "AccessDenied", "m");
    world.cluster.until(|state| state.told().len() == 4).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_publish_is_told_to_its_pod_without_looking_for_it() {
    let world = world();
    world.staged();
    let path = world.folder.path().join("mount");
    std::fs::write(
        world.folder.path().join("vol_data.json"),
        r#"{"specVolID":"pv-1"}"#,
    )
    .unwrap();
    let volume = VolumeAt {
        handle: "h".into(),
        path,
    };
    let me = pod("team", "reader", &[]).object;
    world
        .reporter
        .publishing_failed(volume, Some(me), "MountDead", "dead");
    let told = [
        ("PersistentVolumeClaim", "data", "MountDead", 1),
        ("Pod", "reader", "MountDead", 1),
    ];
    world.cluster.until(|state| state.told() == told).await;
    assert!(!world.cluster.calls().contains(&format!("pods {NODE}")));
}

#[tokio::test(start_paused = true)]
async fn without_pod_info_the_target_path_names_the_pod() {
    let world = world();
    world.staged();
    let volume = VolumeAt {
        handle: "inline".into(),
        path: "/var/lib/kubelet/pods/uid-of-pod-other/volumes/kubernetes.io~csi/v/mount".into(),
    };
    world
        .reporter
        .publishing_failed(volume, None, "UnknownKey", "no such key");
    let told = [("Pod", "other", "UnknownKey", 1)];
    world.cluster.until(|state| state.told() == told).await;
}

#[tokio::test(start_paused = true)]
async fn an_event_that_the_server_forgot_is_made_anew() {
    let world = world();
    let volume = world.staged();
    world.reporter.staging_failed(volume.clone(), "NodeError", "m");
    world.cluster.until(|state| state.events.len() == 2).await;
    world.cluster.set(|state| state.events.clear());
    world.reporter.staging_failed(volume, "NodeError", "m");
    world.cluster.until(|state| state.events.len() == 2).await;
    world
        .cluster
        .set(|state| assert!(state.events.values().all(|event| event.count == 1)));
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_comes_back_gets_what_waited() {
    let world = world();
    let volume = world.staged();
    world
        .cluster
        .set(|state| state.broken = Some(Error::Unavailable("refused".into())));
    for _ in 0..3 {
        world.reporter.staging_failed(volume.clone(), "NodeError", "m");
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    world.cluster.set(|state| state.broken = None);
    let told = [
        ("PersistentVolumeClaim", "data", "NodeError", 3),
        ("Pod", "reader", "NodeError", 3),
    ];
    world.cluster.until(|state| state.told() == told).await;
    assert_eq!(world.reporter.dropped(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_written_is_dropped_and_counted_and_does_not_hold_up_the_next() {
    let world = world();
    let volume = world.staged();
    let denied = Error::Denied("events is forbidden".into());
    world
        .cluster
        .set(|state| state.refused.push(("create_event reader".into(), denied)));
    world.reporter.staging_failed(volume, "NodeError", "m");
    let told = [("PersistentVolumeClaim", "data", "NodeError", 1)];
    world.cluster.until(|state| state.told() == told).await;
    while world.reporter.dropped() == 0 {
        tokio::task::yield_now().await;
    }
    let created = |call: &&String| call.as_str() == "create_event reader";
    assert_eq!(world.cluster.calls().iter().filter(created).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn changes_of_the_channel_are_told_to_the_node_and_the_pods_that_are_concerned() {
    let world = world();
    world.staged();
    *world.targets.lock().unwrap() =
        vec!["/var/lib/kubelet/pods/uid-of-pod-reader/volumes/kubernetes.io~csi/pv-1/mount".into()];
    world.cluster.until(|state| !state.node.labels.is_empty()).await;
    world.channel.send_replace(ChannelState {
        unusable: Some("the device is gone".into()),
        changes: 1,
    });
    let lost = [
        ("Node", NODE, "ChannelLost", 1),
        ("Pod", "reader", "ChannelLost", 1),
    ];
    world.cluster.until(|state| state.told() == lost).await;
    // Another reason for the same state is no change.
    world.channel.send_replace(ChannelState {
        unusable: Some("the device cannot be opened".into()),
        changes: 1,
    });
    world.channel.send_replace(ChannelState {
        unusable: None,
        changes: 2,
    });
    world.cluster.until(|state| state.events.len() == 4).await;
    world.cluster.set(|state| {
        for event in state.events.values() {
            assert_eq!(event.warning, event.reason == "ChannelLost");
            assert_eq!(event.message.contains("the device is gone"), event.warning);
            assert_eq!(event.count, 1);
        }
    });
    // Lost and restored while nobody looked: both are told.
    world.channel.send_replace(ChannelState {
        unusable: None,
        changes: 4,
    });
    let all = [
        ("Node", NODE, "ChannelLost", 2),
        ("Node", NODE, "ChannelRestored", 2),
        ("Pod", "reader", "ChannelLost", 2),
        ("Pod", "reader", "ChannelRestored", 2),
    ];
    world.cluster.until(|state| state.told() == all).await;
}

#[tokio::test(start_paused = true)]
async fn what_the_service_does_not_take_is_told_once_and_so_is_its_end() {
    let world = world();
    let volume = world.staged();
    let text = "the service does not take what was written".to_owned();
    let owed = Unsaved {
        message: Some(text.clone()),
        lost: 0,
    };
    let set = |unsaved: Unsaved| *world.unstored.lock().unwrap() = vec![(volume.clone(), unsaved)];
    set(owed.clone());
    let begun = [
        ("PersistentVolumeClaim", "data", "DataNotStored", 1),
        ("Pod", "reader", "DataNotStored", 1),
    ];
    world.cluster.until(|state| state.told() == begun).await;
    world.cluster.set(|state| {
        assert!(
            state
                .events
                .values()
                .all(|event| event.warning && event.message == text)
        );
    });
    // Told once, as long as it lasts.
    tokio::time::sleep(Duration::from_secs(600)).await;
    set(Unsaved::default());
    let over = [
        ("PersistentVolumeClaim", "data", "DataNotStored", 1),
        ("PersistentVolumeClaim", "data", "DataStored", 1),
        ("Pod", "reader", "DataNotStored", 1),
        ("Pod", "reader", "DataStored", 1),
    ];
    world.cluster.until(|state| state.told() == over).await;
    // Somebody else's version has won: that is no good end.
    set(owed.clone());
    tokio::time::sleep(Duration::from_secs(60)).await;
    set(Unsaved {
        message: None,
        lost: 2,
    });
    world
        .cluster
        .until(|state| state.told().contains(&("Pod", "reader", "DataLost", 1)))
        .await;
    // A volume that is unmounted meanwhile: nobody says that all is well.
    set(Unsaved { lost: 2, ..owed });
    tokio::time::sleep(Duration::from_secs(60)).await;
    world.unstored.lock().unwrap().clear();
    tokio::time::sleep(Duration::from_secs(60)).await;
    world.cluster.set(|state| {
        assert!(
            state.told().contains(&("Pod", "reader", "DataStored", 1)),
            "{:?}",
            state.told()
        );
    });
}

#[test]
fn long_messages_are_cut_at_a_character() {
    assert_eq!(shortened("short"), "short");
    let long = "ü".repeat(LONGEST_MESSAGE);
    let cut = shortened(&long);
    assert!(
        cut.len() <= LONGEST_MESSAGE && cut.len() > LONGEST_MESSAGE - 8,
        "{}",
        cut.len()
    );
    assert!(cut.ends_with("ü…"));
}

#[test]
fn names_of_events_fit() {
    let name = event_name(&"p".repeat(253));
    assert!(name.len() <= 253, "{}", name.len());
    assert_ne!(event_name("p"), event_name("p"));
}
