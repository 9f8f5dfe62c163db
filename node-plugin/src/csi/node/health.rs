//! Statistics and health: what kubelet asks about a volume, in the words of old and new interfaces.

use std::time::Duration;

use csi_proto::csi::node_get_storage_health_response::StorageBackendHealth;
use csi_proto::csi::volume_health::VolumeHealthEntry;
use csi_proto::csi::volume_usage::Unit;
use csi_proto::csi::*;

use blob_fs::Owing;

use super::{NodeService, resolved};
use crate::csi::required;
use crate::error::{Change, Error, Reason, Result};
use crate::mounts::Condition;
use crate::mounts::holdings::{Counted, Holdings};
use crate::mounts::mounter::Usage;
use crate::mounts::record::Record;

/// How long closed files may be on their way to the service before it is told: longer than any hiccup.
const TOLD_AFTER: Duration = Duration::from_secs(30);

impl NodeService {
    pub(super) async fn stats(
        &self,
        request: &NodeGetVolumeStatsRequest,
    ) -> Result<NodeGetVolumeStatsResponse> {
        let volume_id = required("volume_id", &request.volume_id)?;
        let path = required("volume_path", &request.volume_path)?;
        let not_there = || {
            let text = format!("volume_path: volume {volume_id:?} is not at {path}");
            Error::new(Reason::PathNotFound, text)
        };
        let path = resolved("volume_path", path).map_err(|_| not_there())?;
        let known = self.mounts.records().into_iter().find(|record| {
            record.volume_id == volume_id && (record.path == path || record.targets.contains_key(&path))
        });
        let Some(record) = known else {
            return Err(not_there());
        };
        match self.mounts.known_condition(&path).await? {
            Condition::NotMounted | Condition::Foreign(_) => Err(not_there()),
            Condition::Dead(why) => Ok(abnormal(Reason::MountDead, &self.with_failure(volume_id, why))),
            Condition::Silent(why) => Ok(abnormal(Reason::MountSilent, &why)),
            Condition::Healthy => {
                let space = self.mounts.usage(&path).await?;
                let held = self.mounts.holdings(&record.path).await;
                let owed = unstored(&self.mounts.owing(&record.path));
                Ok(NodeGetVolumeStatsResponse {
                    usage: usage(with_holdings(space, &held)),
                    volume_condition: Some(VolumeCondition {
                        abnormal: owed.is_some(),
                        message: owed.unwrap_or_else(|| answers(&held)),
                    }),
                })
            }
        }
    }

    pub(super) async fn volume_health(
        &self,
        request: &NodeGetVolumeHealthRequest,
    ) -> Result<NodeGetVolumeHealthResponse> {
        let volume_id = required("volume_id", &request.volume_id)?;
        let mounted: Vec<Record> = self
            .mounts
            .records()
            .into_iter()
            .filter(|r| r.volume_id == volume_id && r.set_aside.is_none())
            .collect();
        let mut health_statuses = Vec::new();
        if mounted.is_empty() {
            // What is mounted here says more than a call for another pod that failed.
            let failure = self.mounts.failure(volume_id).ok_or_else(|| {
                let text = format!("volume_id: {volume_id:?} is not on this node");
                Error::new(Reason::VolumeNotFound, text)
            })?;
            health_statuses.push(inaccessible(failure.reason, failure.message));
        }
        for record in mounted {
            let (reason, message) = match self.mounts.known_condition(&record.path).await? {
                Condition::Healthy => match unstored(&self.mounts.owing(&record.path)) {
                    None => continue,
                    Some(message) => {
                        health_statuses.push(VolumeHealthEntry {
                            status: VolumeHealthErrorType::Degraded as i32,
                            reason: Change::DataNotStored.to_string(),
                            message,
                        });
                        break;
                    }
                },
                Condition::Dead(why) => {
                    let why = self.with_failure(volume_id, why);
                    (Reason::MountDead, unanswered(Reason::MountDead, &why))
                }
                Condition::Silent(why) => (Reason::MountSilent, unanswered(Reason::MountSilent, &why)),
                Condition::NotMounted | Condition::Foreign(_) => (
                    Reason::MountDead,
                    format!("not mounted at {} any more", record.path.display()),
                ),
            };
            health_statuses.push(inaccessible(reason, message));
            // (status, reason) must be unique.
            break;
        }
        let volume_health = VolumeHealth {
            volume_id: volume_id.to_owned(),
            health_statuses,
        };
        Ok(NodeGetVolumeHealthResponse {
            volume_health: Some(volume_health),
        })
    }

    /// Why a mount is dead, and still is.
    fn with_failure(&self, volume_id: &str, why: String) -> String {
        match self.mounts.failure(volume_id) {
            Some(failure) => format!("{why}; {failure}"),
            None => why,
        }
    }

    /// Degraded when the node has the channel's device and cannot use it. A node without the device is as it
    /// should be.
    pub(super) fn storage_health(&self) -> NodeGetStorageHealthResponse {
        let offered = self.device.as_ref().is_some_and(|device| device.exists());
        let paths = self.connector.paths();
        let told = match (paths.channel_unusable(), paths.channel_limits()) {
            (Some(why), _) => Some(("ChannelUnusable", format!("requests go over HTTPS: {why}"))),
            (None, Some(what)) => Some(("ChannelLimited", format!("other requests go over HTTPS: {what}"))),
            (None, None) => None,
        };
        let backend_health = told
            .filter(|_| offered)
            .map(|(reason, message)| StorageBackendHealth {
                status: StorageHealthErrorType::StorageDegraded as i32,
                reason: reason.into(),
                message,
                volume_capability: None,
            });
        NodeGetStorageHealthResponse {
            backend_health: backend_health.into_iter().collect(),
        }
    }
}

/// Statistics of a mount that does not answer.
fn abnormal(reason: Reason, why: &str) -> NodeGetVolumeStatsResponse {
    NodeGetVolumeStatsResponse {
        // Kubelet drops an answer without usage, and the condition with it.
        usage: usage(Usage::default()),
        volume_condition: Some(VolumeCondition {
            abnormal: true,
            message: unanswered(reason, why),
        }),
    }
}

fn unanswered(reason: Reason, why: &str) -> String {
    format!("the mount does not answer ({why}); {}", reason.hint())
}

fn inaccessible(reason: Reason, message: String) -> VolumeHealthEntry {
    VolumeHealthEntry {
        status: VolumeHealthErrorType::Inaccessible as i32,
        reason: reason.to_string(),
        message,
    }
}

/// What is to be told of files that were closed and are not stored; nothing while the service had only little
/// time for them.
pub(crate) fn unstored(owing: &Owing) -> Option<String> {
    let age = owing.oldest.filter(|age| *age >= TOLD_AFTER)?;
    let (files, bytes, seconds) = (owing.files, owing.bytes, age.as_secs());
    Some(format!(
        "the service does not take what was written: {files} closed files of {bytes} bytes together are not \
         stored, the first of them for {seconds} s; they are kept in memory and sent again until it does"
    ))
}

/// A file system without a size, with what is known of its content.
fn with_holdings(space: Usage, held: &Counted) -> Usage {
    let Counted::Holds(Holdings { bytes, blobs, .. }) = *held else {
        return space;
    };
    let filled = |[total, _, _]: [u64; 3], used: u64| [total, used, total.saturating_sub(used)];
    Usage {
        bytes: filled(space.bytes, bytes),
        inodes: filled(space.inodes, blobs),
    }
}

/// The condition of a mount that answers, and how much the numbers beside it say.
fn answers(held: &Counted) -> String {
    let held = match held {
        Counted::Holds(held) => held,
        Counted::NotYet => {
            return "the file system answers; its used space is not counted yet and shown as 0".to_owned();
        }
        Counted::Off => {
            return "the file system answers; its used space is not counted (--count-interval) and shown as 0"
                .to_owned();
        }
    };
    let mut text = "the file system answers".to_owned();
    if !held.all {
        text += &format!(
            "; the volume holds more than {} blobs, and only so many are in the used space",
            held.blobs
        );
    }
    if let Some(example) = &held.example {
        text += &format!(
            "; {} blobs are not shown, because their names are no paths or those of folders (the first: \
             {example:?})",
            held.unshown
        );
    }
    text
}

fn usage(usage: Usage) -> Vec<VolumeUsage> {
    [(Unit::Bytes, usage.bytes), (Unit::Inodes, usage.inodes)]
        .map(|(unit, [total, used, available])| VolumeUsage {
            available: i64::try_from(available).unwrap_or(i64::MAX),
            total: i64::try_from(total).unwrap_or(i64::MAX),
            used: i64::try_from(used).unwrap_or(i64::MAX),
            unit: unit as i32,
        })
        .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_stored_is_told_after_a_while() {
        let owing = |seconds| Owing {
            files: 3,
            bytes: 4096,
            oldest: Some(Duration::from_secs(seconds)),
            ..Owing::default()
        };
        assert_eq!(unstored(&Owing::default()), None);
        assert_eq!(unstored(&owing(29)), None, "on its way");
        let told = unstored(&owing(31)).unwrap();
        for fact in ["3 closed files", "4096 bytes", "31 s", "sent again"] {
            assert!(told.contains(fact), "{fact}: {told}");
        }
    }

    #[test]
    fn what_is_used_is_what_was_counted() {
        let space = Usage {
            bytes: [1 << 50, 0, 1 << 50],
            inodes: [1 << 40, 0, 1 << 40],
        };
        let held = Holdings {
            bytes: 1000,
            blobs: 7,
            all: true,
            ..Holdings::default()
        };
        let counted = Counted::Holds(held.clone());
        let known = with_holdings(space, &counted);
        assert_eq!(known.bytes, [1 << 50, 1000, (1 << 50) - 1000]);
        assert_eq!(known.inodes, [1 << 40, 7, (1 << 40) - 7]);
        assert_eq!(answers(&counted), "the file system answers");
        for (nothing, told) in [
            (Counted::NotYet, "not counted yet"),
            (Counted::Off, "--count-interval"),
        ] {
            assert_eq!(with_holdings(space, &nothing), space);
            assert!(answers(&nothing).contains(told), "{nothing:?}");
        }
        let part = Holdings {
            all: false,
            unshown: 2,
            example: Some("a//b".to_owned()),
            ..held
        };
        let told = answers(&Counted::Holds(part));
        assert!(told.contains("more than 7 blobs"), "{told}");
        assert!(
            told.contains("2 blobs are not shown") && told.contains("\"a//b\""),
            "{told}"
        );
    }
}
