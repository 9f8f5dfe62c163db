//! The device and its drivers, as the files of the kernel show them.

use std::fs;
use std::path::{Path, PathBuf};

/// Class of the device on the VMBus, as `class_id` in sysfs spells it without braces.
pub const CLASS_ID: &str = "0590b792-db64-45cc-81db-b8d70c577c9e";
/// The module that some kernels ship.
pub const IN_BOX: &str = "hv_azure_blob";
/// Our own module.
pub const OURS: &str = "azb_vsc";

/// A path that may be absolute, below `root`.
pub(super) fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// First word of a small file; `None` if it cannot be read.
pub(super) fn read_word(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.split_whitespace().next().map(str::to_owned)
}

/// The device on the bus whose file `attribute` holds `{guid}`.
pub(super) fn find_device(root: &Path, attribute: &str, guid: &str) -> Option<PathBuf> {
    let devices = fs::read_dir(root.join("sys/bus/vmbus/devices")).ok()?;
    devices.flatten().map(|entry| entry.path()).find(|device| {
        read_word(&device.join(attribute))
            .is_some_and(|id| id.trim_matches(['{', '}']).eq_ignore_ascii_case(guid))
    })
}

/// Name of the driver that a device is bound to.
pub(super) fn driver_of(device: &Path) -> Option<String> {
    let target = fs::read_link(device.join("driver")).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}
