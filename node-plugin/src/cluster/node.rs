//! The node object: label and annotation of the channel, and the startup taint.

use std::time::Duration;

use blob_client::transport::failover::ChannelState;
use tokio::time::Instant;

use super::pace::{Pauses, Told};
use super::{CHANNEL_LABEL, CHANNEL_REASON, Marks, Membership, NodeView, Result, STARTUP_TAINTS};

/// How often the node is looked at when nothing happens: somebody may have taken the label away, or made the
/// node anew.
const LOOK_AGAIN: Duration = Duration::from_secs(300);
/// How often at first: whoever makes the node (a cloud's node pool) may put its taints on after the driver is
/// there, and no pod comes until this one is off.
const LOOK_FIRST: Duration = Duration::from_secs(30);
/// How long that is.
const AT_FIRST: Duration = Duration::from_secs(600);
/// Least time between two changes of the label: a channel that comes and goes is no reason to burden the API
/// server.
const BETWEEN: Duration = Duration::from_secs(10);
/// Taking the label away may not keep the program from ending.
const LEAVING: Duration = Duration::from_secs(5);
/// Longest annotation, in characters; the reason is one sentence.
const LONGEST_REASON: usize = 512;

/// What is left to do on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Left {
    Nothing,
    /// The startup taint stays, and why.
    Taint(String),
}

/// Keeps the node object current; never ends.
pub(super) async fn keep(membership: &Membership) {
    let told = Told::new("node label and startup taint");
    let mut channel = membership.channel.clone();
    let mut pauses = Pauses::default();
    let mut waits_for: Option<String> = None;
    let begun = Instant::now();
    loop {
        let state = channel.borrow_and_update().clone();
        let result = reconcile(membership, &state).await;
        told.note(&result);
        match result {
            Ok(Left::Nothing) => {
                if waits_for.take().is_some() {
                    tracing::info!("the startup taint is off this node");
                }
                pauses.reset();
                tokio::time::sleep(BETWEEN).await;
                let longest = match begun.elapsed() < AT_FIRST {
                    true => LOOK_FIRST,
                    false => LOOK_AGAIN,
                };
                changed_within(&mut channel, longest.mul_f64(rand::random_range(0.8..1.2))).await;
            }
            Ok(Left::Taint(why)) => {
                if waits_for.as_ref() != Some(&why) {
                    tracing::info!(why, "the startup taint stays on this node");
                    waits_for = Some(why);
                }
                changed_within(&mut channel, pauses.next()).await;
            }
            Err(error) => tokio::time::sleep(pauses.after(&error)).await,
        }
    }
}

/// Takes label and annotation away: a label that is there means a driver that is there.
pub(super) async fn leave(membership: &Membership) {
    let marks = Marks {
        labels: [(CHANNEL_LABEL.to_owned(), None)].into(),
        annotations: [(CHANNEL_REASON.to_owned(), None)].into(),
    };
    let marked = membership.cluster.mark_node(&membership.node, &marks);
    match tokio::time::timeout(LEAVING, marked).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!("the node keeps its label: {error}"),
        Err(_) => tracing::warn!("the node keeps its label: no answer within {LEAVING:?}"),
    }
}

async fn changed_within(channel: &mut tokio::sync::watch::Receiver<ChannelState>, longest: Duration) {
    let changed = async {
        if channel.changed().await.is_err() {
            // A channel that is switched off stays so.
            std::future::pending::<()>().await;
        }
    };
    // Late or changed: both are a reason to look.
    let _ = tokio::time::timeout(longest, changed).await;
}

async fn reconcile(membership: &Membership, channel: &ChannelState) -> Result<Left> {
    let mut node = membership.cluster.node(&membership.node).await?;
    let (label, reason) = marks_of(channel);
    let there = |map: &std::collections::BTreeMap<String, String>, key, value: &str| {
        map.get(key).is_some_and(|v| v == value)
    };
    if !there(&node.labels, CHANNEL_LABEL, label) || !there(&node.annotations, CHANNEL_REASON, &reason) {
        let marks = Marks {
            labels: [(CHANNEL_LABEL.to_owned(), Some(label.to_owned()))].into(),
            annotations: [(CHANNEL_REASON.to_owned(), Some(reason))].into(),
        };
        membership.cluster.mark_node(&membership.node, &marks).await?;
        if is_tainted(&node) {
            // The label has changed the version.
            node = membership.cluster.node(&membership.node).await?;
        }
    }
    untaint(membership, &node).await
}

fn marks_of(channel: &ChannelState) -> (&'static str, String) {
    match &channel.unusable {
        None => ("available", "requests go over the accelerated channel".into()),
        Some(reason) => ("unavailable", reason.chars().take(LONGEST_REASON).collect()),
    }
}

/// Takes the startup taint off when this node can serve and kubelet knows the driver.
async fn untaint(membership: &Membership, node: &NodeView) -> Result<Left> {
    if !is_tainted(node) {
        return Ok(Left::Nothing);
    }
    if let Err(why) = (membership.ready)().await {
        return Ok(Left::Taint(why));
    }
    let drivers = membership.cluster.drivers(&membership.node).await?;
    if !drivers.contains(&membership.driver) {
        return Ok(Left::Taint(format!(
            "kubelet has not registered {} yet (CSINode)",
            membership.driver
        )));
    }
    let others: Vec<_> = node
        .taints
        .iter()
        .filter(|taint| !STARTUP_TAINTS.contains(&taint.key.as_str()))
        .cloned()
        .collect();
    membership.cluster.set_taints(node, &others).await?;
    tracing::info!("took the startup taint off this node");
    Ok(Left::Nothing)
}

fn is_tainted(node: &NodeView) -> bool {
    node.taints
        .iter()
        .any(|taint| STARTUP_TAINTS.contains(&taint.key.as_str()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::watch;

    use super::*;
    use crate::cluster::fake::{FakeCluster, NODE, taint};
    use crate::cluster::{Claims, Error, Reporter, STARTUP_TAINT};

    fn lost(reason: &str, changes: u64) -> ChannelState {
        ChannelState {
            unusable: Some(reason.into()),
            changes,
        }
    }

    struct World {
        cluster: Arc<FakeCluster>,
        channel: watch::Sender<ChannelState>,
        ready: Arc<AtomicBool>,
        stop: tokio_util::sync::CancellationToken,
        running: tokio::task::JoinHandle<()>,
    }

    fn start(prepare: impl FnOnce(&mut crate::cluster::fake::State)) -> World {
        let cluster = FakeCluster::new();
        cluster.set(prepare);
        let (channel, receiver) = watch::channel(lost("no device on this node", 0));
        let ready = Arc::new(AtomicBool::new(true));
        let membership = Membership {
            cluster: cluster.clone(),
            node: NODE.into(),
            driver: crate::DRIVER_NAME.into(),
            claims: Arc::new(Claims::new(cluster.clone(), crate::DRIVER_NAME, NODE)),
            channel: receiver,
            ready: Arc::new({
                let ready = ready.clone();
                move || {
                    let ready = match ready.load(Ordering::Relaxed) {
                        true => Ok(()),
                        false => Err("/dev/fuse is missing".into()),
                    };
                    Box::pin(std::future::ready(ready))
                }
            }),
            unstored: Arc::new(Vec::new),
        };
        let stop = tokio_util::sync::CancellationToken::new();
        let running = tokio::spawn(membership.keep(Reporter::default(), stop.clone()));
        World {
            cluster,
            channel,
            ready,
            stop,
            running,
        }
    }

    fn marks(state: &crate::cluster::fake::State) -> (Option<&str>, Option<&str>) {
        (
            state.node.labels.get(CHANNEL_LABEL).map(String::as_str),
            state.node.annotations.get(CHANNEL_REASON).map(String::as_str),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn the_label_follows_the_channel_and_goes_with_the_driver() {
        let world = start(|state| {
            state
                .node
                .labels
                .insert("kubernetes.io/os".into(), "linux".into());
        });
        let no = (Some("unavailable"), Some("no device on this node"));
        world.cluster.until(|state| marks(state) == no).await;
        world.channel.send_replace(ChannelState {
            unusable: None,
            changes: 1,
        });
        world
            .cluster
            .until(|state| marks(state).0 == Some("available"))
            .await;
        world.channel.send_replace(lost("the host took it away", 2));
        let lost = (Some("unavailable"), Some("the host took it away"));
        world.cluster.until(|state| marks(state) == lost).await;
        world.stop.cancel();
        world.running.await.unwrap();
        world.cluster.set(|state| {
            assert_eq!(marks(state), (None, None));
            assert_eq!(state.node.labels["kubernetes.io/os"], "linux");
        });
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_written_when_nothing_changed_and_a_lost_label_comes_back() {
        let world = start(|_| {});
        world.cluster.until(|state| marks(state).0.is_some()).await;
        // Several looks later.
        tokio::time::sleep(LOOK_AGAIN * 5).await;
        let calls = world.cluster.calls();
        assert_eq!(
            calls.iter().filter(|c| c.starts_with("mark_node")).count(),
            1,
            "{calls:?}"
        );
        let looks = calls.iter().filter(|c| c.starts_with("node ")).count();
        assert_eq!(calls.len(), looks + 1, "one request for each look: {calls:?}");
        // Some twenty in the first ten minutes, then one in five.
        assert!((15..=35).contains(&looks), "{looks}");
        world.cluster.set(|state| state.node.labels.clear());
        world.cluster.until(|state| marks(state).0.is_some()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_is_away_is_asked_at_growing_distance_until_it_is_back() {
        let world = start(|state| state.broken = Some(Error::Unavailable("refused".into())));
        tokio::time::sleep(Duration::from_secs(600)).await;
        let asked = world.cluster.calls().len();
        assert!((10..=40).contains(&asked), "asked {asked} times in ten minutes");
        world.cluster.set(|state| state.broken = None);
        world.cluster.until(|state| marks(state).0.is_some()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_taint_goes_when_the_node_is_ready_and_registered_and_no_other_goes_with_it() {
        let others = vec![taint("dedicated", "NoSchedule"), taint("spot", "NoExecute")];
        let world = start(|state| {
            state.node.taints = vec![
                others[0].clone(),
                taint(STARTUP_TAINT, "NoExecute"),
                others[1].clone(),
                taint(STARTUP_TAINT, "NoSchedule"),
            ];
        });
        world.ready.store(false, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(300)).await;
        world.cluster.set(|state| {
            assert_eq!(state.node.taints.len(), 4, "not ready");
            state.drivers.push("disk.csi.azure.com".into());
        });
        world.ready.store(true, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(300)).await;
        world.cluster.set(|state| {
            assert_eq!(state.node.taints.len(), 4, "not registered");
            state.drivers.push(crate::DRIVER_NAME.into());
        });
        world.cluster.until(|state| state.node.taints == others).await;
    }

    /// Label and taint are of one domain; node templates with the taint that was documented before work on.
    #[tokio::test(start_paused = true)]
    async fn both_spellings_of_the_taint_are_taken_off() {
        let domain = |key: &str| key.split('/').next().unwrap().to_owned();
        assert_eq!(domain(STARTUP_TAINT), domain(CHANNEL_LABEL));
        for key in [
            "vsc-blob.csi.azure.com/agent-not-ready",
            "vsc.blob.csi.azure.com/agent-not-ready",
        ] {
            let world = start(|state| {
                state.node.taints = vec![taint(key, "NoSchedule")];
                state.drivers.push(crate::DRIVER_NAME.into());
            });
            world.cluster.until(|state| state.node.taints.is_empty()).await;
        }
    }

    /// A node pool puts its taints on when it finds the new node, which may be after the driver.
    #[tokio::test(start_paused = true)]
    async fn a_taint_that_comes_late_is_off_within_a_minute() {
        let world = start(|state| state.drivers.push(crate::DRIVER_NAME.into()));
        world.cluster.until(|state| marks(state).0.is_some()).await;
        tokio::time::sleep(AT_FIRST - Duration::from_secs(60)).await;
        let calls = world.cluster.calls();
        // One for each look, and one more after the label was written.
        assert!(calls.len() <= 3 + (AT_FIRST.as_secs() / 20) as usize, "{calls:?}");
        let late = tokio::time::Instant::now();
        world
            .cluster
            .set(|state| state.node.taints = vec![taint(STARTUP_TAINT, "NoSchedule")]);
        world.cluster.until(|state| state.node.taints.is_empty()).await;
        assert!(late.elapsed() < Duration::from_secs(60), "{:?}", late.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_taint_that_comes_between_reading_and_writing_is_kept() {
        let world = start(|state| {
            state.node.taints = vec![taint(STARTUP_TAINT, "NoSchedule")];
            state.drivers.push(crate::DRIVER_NAME.into());
            // Before the first attempt to write, somebody else writes.
            state.before_taints = Some(Box::new(|node| {
                node.taints
                    .push(taint("node.kubernetes.io/unreachable", "NoExecute"));
            }));
        });
        let kept = vec![taint("node.kubernetes.io/unreachable", "NoExecute")];
        world.cluster.until(|state| state.node.taints == kept).await;
        let calls = world.cluster.calls();
        assert_eq!(
            calls.iter().filter(|c| c.starts_with("set_taints")).count(),
            2,
            "{calls:?}"
        );
    }
}
