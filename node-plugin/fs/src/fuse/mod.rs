//! The only place that knows fuser: adapter, mount, kernel tuning.

use std::os::fd::OwnedFd;
use std::path::Path;

/// Opens `/dev/fuse` and mounts it at `mountpoint` (an existing directory) by mount(2), as root.
/// Options: `allow_other`, `default_permissions`, `max_read`, and `ro` when asked for; source = `name`, type `fuse.vsc-blob`.
pub fn mount(mountpoint: &Path, name: &str, read_only: bool) -> std::io::Result<OwnedFd> {
    let _ = (mountpoint, name, read_only);
    todo!()
}
