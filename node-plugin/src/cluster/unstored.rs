//! Volumes whose closed files the service does not take: told when that begins and when it is over.

use std::time::Duration;

use super::{Membership, Reporter, VolumeAt};
use crate::csi::status::Change;

/// How often volumes are looked at.
const PERIOD: Duration = Duration::from_secs(10);

/// Notes when closed files of a volume begin to be owed, and when all are stored; never ends.
pub(super) async fn watch(membership: &Membership, reporter: &Reporter) {
    let mut told: Vec<VolumeAt> = Vec::new();
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = (membership.unstored)();
        for (volume, message) in &now {
            if !told.contains(volume) {
                reporter.changed(volume.clone(), Change::DataNotStored, message);
            }
        }
        let now: Vec<VolumeAt> = now.into_iter().map(|(volume, _)| volume).collect();
        for volume in told.into_iter().filter(|volume| !now.contains(volume)) {
            reporter.changed(volume, Change::DataStored, Change::DataStored.message());
        }
        told = now;
    }
}
