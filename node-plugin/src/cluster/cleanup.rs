//! The end of an installation: node plugins end while they still have their rights, and no node keeps a mark
//! of the driver.
//!
//! `helm uninstall` deletes the DaemonSet and its rights in one breath. A node plugin that is then terminated
//! may not change its node any more, and label and annotation would stay. So the chart runs this before it
//! deletes anything.

use std::time::Duration;

use tokio::time::Instant;

use super::pace::Pauses;
use super::{CHANNEL_LABEL, CHANNEL_REASON, Cluster as _, Error, KubeCluster, Marks, Result};

/// Between two looks at a DaemonSet that ends.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What to take away.
#[derive(Debug, Clone)]
pub struct Cleanup {
    /// Namespace of the DaemonSet.
    pub namespace: String,
    /// The node plugins' DaemonSet.
    pub daemon_set: String,
    /// How long to wait for the end of its pods. A node that is down never ends its own: marks are then taken
    /// away without waiting for it.
    pub patience: Duration,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cleaned {
    /// Whether all node plugins have ended.
    pub ended: bool,
    /// Nodes that still had a mark, which is gone now.
    pub nodes: Vec<String>,
}

impl Cleanup {
    /// Deletes the DaemonSet, waits for its pods, then takes label and annotation off every node that still
    /// has one. What is gone already is no error.
    ///
    /// # Errors
    /// A right is missing ([`Error::Denied`]), or the API server gave no usable answer within the patience.
    pub async fn run(&self, cluster: &KubeCluster) -> Result<Cleaned> {
        let end = Instant::now() + self.patience;
        let (namespace, name) = (&self.namespace, &self.daemon_set);
        let mut ended = match repeated(end, || cluster.delete_daemon_set(namespace, name)).await {
            Err(Error::NotFound(_)) => true,
            other => other.map(|()| false)?,
        };
        while !ended && Instant::now() < end {
            ended = !repeated(end, || cluster.has_daemon_set(namespace, name)).await?;
            if !ended {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        // The nodes get a time of their own: they are what this is for.
        let end = Instant::now() + self.patience;
        let nodes = repeated(end, || cluster.marked_nodes()).await?;
        let none = Marks {
            labels: [(CHANNEL_LABEL.to_owned(), None)].into(),
            annotations: [(CHANNEL_REASON.to_owned(), None)].into(),
        };
        for node in &nodes {
            match repeated(end, || cluster.mark_node(node, &none)).await {
                // It has left the cluster meanwhile.
                Err(Error::NotFound(_)) => {}
                other => other?,
            }
        }
        Ok(Cleaned { ended, nodes })
    }
}

/// Asks until there is an answer that repetition would not change, or the time is over.
pub(super) async fn repeated<T, F: Future<Output = Result<T>>>(
    end: Instant,
    mut ask: impl FnMut() -> F,
) -> Result<T> {
    let mut pauses = Pauses::default();
    loop {
        let error = match ask().await {
            Err(error) if error.is_passing() => error,
            other => return other,
        };
        let pause = pauses.after(&error);
        if Instant::now() + pause >= end {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
    }
}
