//! What a volume can do, checked against what is asked of it.

use csi_proto::csi::VolumeCapability;
use csi_proto::csi::volume_capability::access_mode::Mode;
use csi_proto::csi::volume_capability::{AccessType, MountVolume};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Reason, Result};

/// A capability this driver can offer: file system access in one mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Access mode, by the interface's number.
    mode: i32,
    /// Mount flags, as given.
    pub mount_flags: Vec<String>,
    /// Group that owns the volume (the pod's fsGroup).
    pub group: Option<u32>,
}

impl Access {
    /// Reads a capability; `unsupported` is the row for one that is well-formed and cannot be offered (the
    /// code differs between creation and the node).
    pub fn parse(capability: Option<&VolumeCapability>, unsupported: Reason) -> Result<Self> {
        let field = "volume_capability";
        let capability =
            capability.ok_or_else(|| Error::new(Reason::MissingField, format!("{field}: it is not set")))?;
        let mount: &MountVolume = match &capability.access_type {
            Some(AccessType::Mount(mount)) => mount,
            Some(AccessType::Block(_)) => {
                return Err(Error::new(
                    unsupported,
                    format!("{field}: block access; a container offers files (volumeMode: Filesystem)"),
                ));
            }
            None => {
                return Err(Error::new(
                    Reason::MissingField,
                    format!("{field}.access_type: it is not set"),
                ));
            }
        };
        let mode = capability
            .access_mode
            .as_ref()
            .map(|m| m.mode)
            .unwrap_or_default();
        if matches!(Mode::try_from(mode), Err(_) | Ok(Mode::Unknown)) {
            return Err(Error::new(
                Reason::MissingField,
                format!("{field}.access_mode: {mode} is not an access mode"),
            ));
        }
        let group = match mount.volume_mount_group.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                Error::new(
                    Reason::InvalidValue,
                    format!("{field}.mount.volume_mount_group: {text:?} is not a numeric group id"),
                )
            })?),
        };
        Ok(Self {
            mode,
            mount_flags: mount.mount_flags.clone(),
            group,
        })
    }

    /// The access mode.
    pub fn mode(&self) -> Mode {
        Mode::try_from(self.mode).unwrap_or(Mode::Unknown)
    }

    /// True when the mode only reads.
    pub fn read_only(&self) -> bool {
        matches!(
            self.mode(),
            Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly
        )
    }

    /// May the volume be published at a second path of the node? (CSI, NodePublishVolume, second table.)
    pub fn several_targets(&self) -> bool {
        matches!(
            self.mode(),
            Mode::SingleNodeMultiWriter
                | Mode::MultiNodeReaderOnly
                | Mode::MultiNodeSingleWriter
                | Mode::MultiNodeMultiWriter
        )
    }

    /// Names what differs between two accesses, for the error.
    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        if self.mode != other.mode {
            return Some("volume_capability.access_mode");
        }
        if self.mount_flags != other.mount_flags {
            return Some("volume_capability.mount.mount_flags");
        }
        (self.group != other.group).then_some("volume_capability.mount.volume_mount_group")
    }
}
