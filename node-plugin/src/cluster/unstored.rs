//! Volumes whose closed files the service does not take: told when that begins, when it is over, and when
//! something is lost by it.

use std::time::Duration;

use super::{Membership, Reporter, Unsaved, VolumeAt};
use crate::error::Change;

/// How often volumes are looked at.
const PERIOD: Duration = Duration::from_secs(10);

/// Notes when closed files of a volume begin to be owed, when all are stored, and when some are given up;
/// never ends. A volume that is unmounted meanwhile is stored or not by then: nobody here can say it.
pub(super) async fn watch(membership: &Membership, reporter: &Reporter) {
    let mut before: Vec<(VolumeAt, Unsaved)> = Vec::new();
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = (membership.unstored)();
        for (volume, unsaved) in &now {
            let known = before.iter().find(|(known, _)| known == volume);
            let (owed, lost) = known.map_or((false, 0), |(_, known)| (known.message.is_some(), known.lost));
            let tell = |change: Change, message: &str| reporter.changed(volume.clone(), change, message);
            if unsaved.lost > lost {
                let message = format!("{} (files: {})", Change::DataLost.message(), unsaved.lost - lost);
                tell(Change::DataLost, &message);
            }
            match &unsaved.message {
                Some(message) if !owed => tell(Change::DataNotStored, message),
                None if owed && unsaved.lost == lost => {
                    tell(Change::DataStored, Change::DataStored.message())
                }
                _ => {}
            }
        }
        before = now;
    }
}
