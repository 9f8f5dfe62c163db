//! Before an upgrade: the CSIDriver object goes when a field that cannot be changed is to be another one.
//!
//! The API server refuses to change `volumeLifecycleModes`, and `helm upgrade` would fail with that. Helm
//! makes what is missing, so the chart runs this before it changes anything. While the object is away, mounts
//! stay, and kubelet repeats what needs it.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::cleanup::repeated;
use super::pace::Pauses;
use super::{Error, KubeCluster, Result};

/// What kubelet may mount the driver's volumes as, when the CSIDriver object does not say it.
const DEFAULT_MODE: &str = "Persistent";

/// A CSIDriver object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsiDriverView {
    /// `metadata.uid`
    pub uid: String,
    /// `spec.volumeLifecycleModes`
    pub modes: BTreeSet<String>,
}

impl CsiDriverView {
    pub(super) fn new(uid: String, modes: Vec<String>) -> Self {
        let mut modes: BTreeSet<String> = modes.into_iter().collect();
        if modes.is_empty() {
            modes.insert(DEFAULT_MODE.to_owned());
        }
        Self { uid, modes }
    }
}

/// What the upgrade wants.
#[derive(Debug, Clone)]
pub struct Preparation {
    /// Name of the driver and of its CSIDriver object.
    pub driver: String,
    /// `volumeLifecycleModes` of the object that is to come.
    pub modes: BTreeSet<String>,
    /// How long to try.
    pub patience: Duration,
}

/// What became of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prepared {
    /// There was none.
    Absent,
    /// It has the wanted modes.
    Kept,
    /// It had others, and is gone.
    Deleted,
}

impl Preparation {
    /// Looks at the object, and deletes it when its modes are others; that one only, by its uid.
    ///
    /// # Errors
    /// A right is missing ([`Error::Denied`]), or the object is still there when the patience is over.
    pub async fn run(&self, cluster: &KubeCluster) -> Result<Prepared> {
        let end = Instant::now() + self.patience;
        let mut pauses = Pauses::default();
        let mut prepared = Prepared::Absent;
        loop {
            let found = repeated(end, || cluster.csi_driver(&self.driver)).await?;
            let Some(found) = found else { return Ok(prepared) };
            if found.modes == self.modes {
                return Ok(Prepared::Kept);
            }
            let still_there = match cluster.delete_csi_driver(&self.driver, &found.uid).await {
                Ok(()) | Err(Error::NotFound(_)) if prepared == Prepared::Absent => {
                    prepared = Prepared::Deleted;
                    continue;
                }
                // A finalizer of somebody's may hold it.
                Ok(()) | Err(Error::NotFound(_)) => {
                    Error::Other(format!("CSIDriver {:?} is deleted and does not go", self.driver))
                }
                // It is another one meanwhile, or there was no answer: looked at again.
                Err(error) if error.is_passing() => error,
                Err(error) => return Err(error),
            };
            let pause = pauses.after(&still_there);
            if Instant::now() + pause >= end {
                return Err(still_there);
            }
            tokio::time::sleep(pause).await;
        }
    }
}
