//! Mounting: `/dev/fuse` and mount(2), or fsmount(2) for a mount that no path leads to yet.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount as mount_syscall};
use rustix::fs::{AtFlags, StatxFlags, statx};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};

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
    let device = open_device()?;
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

fn open_device() -> io::Result<File> {
    let opened = File::options().read(true).write(true).open("/dev/fuse");
    opened.map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("cannot open /dev/fuse (is the fuse module loaded?): {error}"),
        )
    })
}

/// A file system that is mounted, and that no path of the machine leads to: it can be served and asked before
/// anybody else sees it. Dropping it takes the mount away, unless it was attached to a path by move_mount(2).
#[derive(Debug)]
pub struct Detached {
    /// Of `/dev/fuse`, to be served.
    pub device: OwnedFd,
    /// The mount.
    pub tree: Tree,
}

/// The mount of [`Detached`].
#[derive(Debug)]
pub struct Tree(OwnedFd);

impl Tree {
    /// Number of its connection: the minor of its device, of which the major is 0. Nobody has to serve it.
    pub fn connection(&self) -> io::Result<u32> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        Ok(statx(&self.0, "", flags, StatxFlags::TYPE)?.stx_dev_minor)
    }

    /// A path of this process alone that leads to it, through a symbolic link.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The same as [`mount`], at no path.
pub fn mount_detached(name: &str, read_only: bool) -> io::Result<Detached> {
    let device = open_device()?;
    let mounted = || -> rustix::io::Result<OwnedFd> {
        let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let (descriptor, largest) = (device.as_raw_fd().to_string(), MAX_REQUEST.to_string());
        for (key, value) in [
            ("source", name),
            ("subtype", "vsc-blob"),
            ("fd", &descriptor),
            ("rootmode", "40000"),
            ("user_id", "0"),
            ("group_id", "0"),
            ("max_read", &largest),
        ] {
            fsconfig_set_string(&context, key, value)?;
        }
        fsconfig_set_flag(&context, "default_permissions")?;
        fsconfig_set_flag(&context, "allow_other")?;
        let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOATIME;
        if read_only {
            fsconfig_set_flag(&context, "ro")?;
            attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    let tree = mounted().map_err(|errno| {
        let error = io::Error::from(errno);
        io::Error::new(error.kind(), format!("cannot mount: {error}"))
    })?;
    Ok(Detached {
        device: device.into(),
        tree: Tree(tree),
    })
}
