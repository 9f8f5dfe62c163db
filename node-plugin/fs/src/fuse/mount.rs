//! Mounting: `/dev/fuse` and mount(2).

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::mount::{MsFlags, mount as mount_syscall};

/// Largest read and write request, bytes: what 256 pages hold, the kernel's default limit.
pub(crate) const MAX_REQUEST: u32 = 1 << 20;

/// Opens `/dev/fuse` and mounts it at `mountpoint` (an existing directory) by mount(2), as root. Options:
/// `allow_other`, `default_permissions`, `max_read`, and `ro` when asked for; source = `name`, type
/// `fuse.vsc-blob`.
///
/// The mount is `noatime`, `nosuid` and `nodev`: whoever may write the container must not become root on the
/// node. Until [`crate::Volume::serve`] runs on the descriptor, whoever touches the mount waits; dropping it
/// ends the connection, and the mount point has to be unmounted.
pub fn mount(mountpoint: &Path, name: &str, read_only: bool) -> std::io::Result<OwnedFd> {
    let device = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map_err(|error| {
            std::io::Error::new(
                error.kind(),
                format!("cannot open /dev/fuse (is the fuse module loaded?): {error}"),
            )
        })?;
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read={MAX_REQUEST}",
        device.as_raw_fd()
    );
    // Reading is not written down: each would be a version of the blob.
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    if read_only {
        flags |= MsFlags::MS_RDONLY;
    }
    mount_syscall(
        Some(name),
        mountpoint,
        Some("fuse.vsc-blob"),
        flags,
        Some(options.as_str()),
    )
    .map_err(|errno| {
        let error = std::io::Error::from(errno);
        std::io::Error::new(
            error.kind(),
            format!("cannot mount at {}: {error}", mountpoint.display()),
        )
    })?;
    Ok(device.into())
}
