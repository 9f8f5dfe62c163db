//! The virtual PCI bus that the host presents beside the device, with no device behind it.
//!
//! The driver that was posted to the kernel list made the bus ignore it. A module from outside cannot, but an
//! override in sysfs keeps pci-hyperv from probing it.

use std::fmt;
use std::fs;
use std::path::Path;

use serde::Serialize;

use super::sysfs::{driver_of, find_device};

/// Instance on the VMBus.
const INSTANCE: &str = "d4573da2-2caa-4711-a8f9-bbabf4ee9685";
/// Name of a driver that does not exist.
const NOBODY: &str = "vsc-blob-csi-none";

/// How it stands with the companion device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum Orphan {
    /// There is none.
    Absent,
    /// No driver may have it.
    Kept,
    /// A driver may take it.
    Free,
    /// A driver had it before; it is left there.
    Bound {
        /// Which.
        driver: String,
    },
    /// The override could not be written.
    Failed {
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Orphan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => write!(f, "none"),
            Self::Kept => write!(f, "kept from all drivers"),
            Self::Free => write!(f, "without a driver"),
            Self::Bound { driver } => write!(f, "with the driver {driver}"),
            Self::Failed { reason } => write!(f, "could not be kept from drivers: {reason}"),
        }
    }
}

/// Looks, and changes nothing.
pub(super) fn look(root: &Path) -> Orphan {
    let Some(device) = find_device(root, "device_id", INSTANCE) else {
        return Orphan::Absent;
    };
    if let Some(driver) = driver_of(&device) {
        return Orphan::Bound { driver };
    }
    match fs::read_to_string(device.join("driver_override")) {
        Ok(text) if text.trim() == NOBODY => Orphan::Kept,
        _ => Orphan::Free,
    }
}

/// Keeps drivers from it, now or, if one has it already, from the next time on.
pub(super) fn keep_from_drivers(root: &Path) -> Orphan {
    let Some(device) = find_device(root, "device_id", INSTANCE) else {
        return Orphan::Absent;
    };
    match fs::write(device.join("driver_override"), NOBODY) {
        Ok(()) => look(root),
        Err(error) => Orphan::Failed {
            reason: error.to_string(),
        },
    }
}
