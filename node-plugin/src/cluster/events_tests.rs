//! Who is told what, how often, and what becomes of it when the API server is away.

use std::sync::Mutex;

use blob_client::transport::failover::ChannelState;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::cluster::fake::{FakeCluster, NODE, claim, pod};
use crate::cluster::{Claims, Unsaved};

const DRIVER: &str = crate::DRIVER_NAME;

struct World {
    cluster: Arc<FakeCluster>,
    reporter: Reporter,
    channel: watch::Sender<ChannelState>,
    unstored: Arc<Mutex<Vec<(VolumeAt, Unsaved)>>>,
    folder: tempfile::TempDir,
    _stop: tokio_util::sync::DropGuard,
}

fn world() -> World {
    let cluster = FakeCluster::new();
    let reporter = Reporter::default();
    let (channel, receiver) = watch::channel(ChannelState::default());
    let unstored: Arc<Mutex<Vec<(VolumeAt, Unsaved)>>> = Arc::default();
    let membership = Membership {
        cluster: cluster.clone(),
        node: NODE.into(),
        driver: DRIVER.into(),
        claims: Arc::new(Claims::new(cluster.clone(), DRIVER, NODE)),
        channel: receiver,
        ready: Arc::new(|| Box::pin(std::future::ready(Ok(())))),
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
async fn a_failure_is_told_to_the_claim_and_counted_and_the_pod_is_left_to_kubelet() {
    let world = world();
    let volume = world.staged();
    world
        .reporter
        .failed(volume.clone(), "ContainerNotFound", "containerName: no \"x\"");
    let reason = "ContainerNotFound";
    let once = [("PersistentVolumeClaim", "data", reason, 1)];
    world.cluster.until(|state| state.told() == once).await;
    world
        .reporter
        .failed(volume.clone(), reason, "containerName: no \"y\"");
    let twice = once.map(|(kind, name, reason, _)| (kind, name, reason, 2));
    world.cluster.until(|state| state.told() == twice).await;
    world.cluster.set(|state| {
        let event = state.events.values().next().unwrap();
        assert!(event.warning);
        assert_eq!(event.message, "containerName: no \"y\"");
        assert_eq!(event.object, claim("team", "data"));
        assert!(event.last >= event.first);
    });
    // Another reason is another Event.
    world.reporter.failed(volume, "AccessDenied", "m");
    world.cluster.until(|state| state.told().len() == 2).await;
}

/// Kubelet repeats a call every two minutes, for as long as a pod wants the volume.
#[tokio::test(start_paused = true)]
async fn a_volume_that_fails_for_an_hour_costs_one_request_for_each_failure() {
    let world = world();
    let volume = world.staged();
    world.reporter.failed(volume.clone(), "NodeError", "m");
    world.cluster.until(|state| state.events.len() == 1).await;
    let before = world.cluster.calls().len();
    for _ in 0..30 {
        world.reporter.failed(volume.clone(), "NodeError", "m");
        tokio::time::sleep(Duration::from_secs(120)).await;
    }
    let calls = world.cluster.calls().split_off(before);
    let events = calls.iter().filter(|call| call.contains("_event ")).count();
    // One for each failure; the node is looked at every five minutes, the claim searched every ten.
    assert_eq!(events, 30, "{calls:?}");
    assert!(calls.len() < 30 + 20 + 6 * 8, "{} {calls:?}", calls.len());
}

#[tokio::test(start_paused = true)]
async fn what_has_no_claim_is_told_to_the_node() {
    let world = world();
    world.staged();
    let volume = VolumeAt {
        handle: "inline".into(),
        path: "/var/lib/kubelet/pods/uid-of-pod-other/volumes/kubernetes.io~csi/v/mount".into(),
    };
    world.reporter.failed(volume.clone(), "UnknownKey", "no such key");
    let told = [("Node", NODE, "UnknownKey", 1)];
    world.cluster.until(|state| state.told() == told).await;
    world.cluster.set(|state| {
        assert_eq!(state.events.values().next().unwrap().object.uid, "uid-of-node");
        state.calls.clear();
    });
    world.reporter.failed(volume, "UnknownKey", "no such key");
    let told = [("Node", NODE, "UnknownKey", 2)];
    world.cluster.until(|state| state.told() == told).await;
    assert_eq!(world.cluster.calls(), [format!("update_event {NODE}")]);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_the_server_forgot_is_made_anew() {
    let world = world();
    let volume = world.staged();
    world.reporter.failed(volume.clone(), "NodeError", "m");
    world.cluster.until(|state| state.events.len() == 1).await;
    world.cluster.set(|state| state.events.clear());
    world.reporter.failed(volume, "NodeError", "m");
    world.cluster.until(|state| state.events.len() == 1).await;
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
        world.reporter.failed(volume.clone(), "NodeError", "m");
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    world.cluster.set(|state| state.broken = None);
    let told = [("PersistentVolumeClaim", "data", "NodeError", 3)];
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
        .set(|state| state.refused.push(("create_event data".into(), denied)));
    world.reporter.failed(volume, "NodeError", "m");
    let unknown = VolumeAt {
        handle: "unknown".into(),
        path: world.folder.path().join("other"),
    };
    world.reporter.failed(unknown, "NodeError", "m");
    let told = [("Node", NODE, "NodeError", 1)];
    world.cluster.until(|state| state.told() == told).await;
    assert_eq!(world.reporter.dropped(), 1);
    let created = |call: &&String| call.as_str() == "create_event data";
    assert_eq!(world.cluster.calls().iter().filter(created).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn changes_of_the_channel_are_told_to_the_node_once_they_have_settled() {
    let world = world();
    world.staged();
    world.cluster.until(|state| !state.node.labels.is_empty()).await;
    let start = Instant::now();
    world.channel.send_replace(ChannelState {
        unusable: Some("the device is gone".into()),
        changes: 1,
    });
    let lost = [("Node", NODE, "ChannelLost", 1)];
    world.cluster.until(|state| state.told() == lost).await;
    assert!(start.elapsed() >= SETTLES / 2, "{:?}", start.elapsed());
    // Another reason for the same state is no change.
    world.channel.send_replace(ChannelState {
        unusable: Some("the device cannot be opened".into()),
        changes: 1,
    });
    tokio::time::sleep(SETTLES * 4).await;
    world.channel.send_replace(ChannelState {
        unusable: None,
        changes: 2,
    });
    world.cluster.until(|state| state.events.len() == 2).await;
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
    ];
    world.cluster.until(|state| state.told() == all).await;
    // No pod is looked for.
    assert!(!world.cluster.calls().contains(&format!("pods {NODE}")));
}

/// A channel that flaps ten times a minute, for ten minutes.
#[tokio::test(start_paused = true)]
async fn a_channel_that_flaps_is_told_twice_a_minute_at_most() {
    let world = world();
    world.cluster.until(|state| !state.node.labels.is_empty()).await;
    let start = Instant::now();
    for change in 1..=100 {
        world.channel.send_replace(ChannelState {
            unusable: (change % 2 == 1).then(|| "the device is gone".into()),
            changes: change,
        });
        tokio::time::sleep(Duration::from_secs(6)).await;
    }
    let seconds = start.elapsed().as_secs() as usize;
    let calls = world.cluster.calls();
    let events = calls.iter().filter(|call| call.contains("_event ")).count();
    assert!(events <= 2 * seconds / 24 + 2, "{events} in {seconds} s");
    assert!(calls.len() <= seconds / 2, "{} in {seconds} s", calls.len());
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
    let begun = [("PersistentVolumeClaim", "data", "DataNotStored", 1)];
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
        .until(|state| {
            state
                .told()
                .contains(&("PersistentVolumeClaim", "data", "DataLost", 1))
        })
        .await;
    // A volume that is unmounted meanwhile: nobody says that all is well.
    set(Unsaved { lost: 2, ..owed });
    tokio::time::sleep(Duration::from_secs(60)).await;
    world.unstored.lock().unwrap().clear();
    tokio::time::sleep(Duration::from_secs(60)).await;
    world.cluster.set(|state| {
        assert!(
            state
                .told()
                .contains(&("PersistentVolumeClaim", "data", "DataStored", 1)),
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
