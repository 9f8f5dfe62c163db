//! The seam to the kernel: mounting, serving, binding, unmounting. One real implementation, one fake in tests.

use std::fmt::Debug;
use std::io;
use std::path::Path;

use blob_fs::{Resources, Volume, VolumeConfig};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::mountinfo::{self, Mount};

/// Where FUSE connections can be aborted.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// A file system being served.
pub trait Serving: Send + Sync + Debug {
    /// False once the session has ended.
    fn is_serving(&self) -> bool;
    /// Commits everything dirty.
    fn sync(&self) -> io::Result<()>;
    /// Waits for the end of the session after an unmount, and until everything accepted is committed.
    fn join(self: Box<Self>) -> io::Result<()>;
}

/// Space and inodes of a file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes: total, used, available.
    pub bytes: [u64; 3],
    /// Inodes: total, used, available.
    pub inodes: [u64; 3],
}

/// System calls on mounts. Every method may block for ever on a mount whose server is stuck: call them through
/// [`super::bounded`].
pub trait Mounter: Send + Sync + Debug + 'static {
    /// The mount table.
    fn table(&self) -> io::Result<Vec<Mount>>;
    /// Mounts a file system at a directory and serves it; returns once the kernel has shaken hands.
    fn serve(&self, config: VolumeConfig, at: &Path, resources: &Resources) -> io::Result<Box<dyn Serving>>;
    /// Asks the file system at a path, past the kernel's caches, and for its root directory.
    fn answers(&self, at: &Path) -> io::Result<()>;
    /// statvfs.
    fn usage(&self, at: &Path) -> io::Result<Usage>;
    /// Makes `source` appear at `target`.
    fn bind(&self, source: &Path, target: &Path, read_only: bool) -> io::Result<()>;
    /// Unmounts the uppermost mount at a path; `detach` takes it out of the tree even when it is in use.
    fn unmount(&self, at: &Path, detach: bool) -> io::Result<()>;
    /// Ends a FUSE connection: everything blocked on it returns with an error.
    fn abort(&self, mount: &Mount) -> io::Result<()>;
}

/// The real thing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kernel;

impl Serving for Volume {
    fn is_serving(&self) -> bool {
        Volume::is_serving(self)
    }
    fn sync(&self) -> io::Result<()> {
        Volume::sync(self)
    }
    fn join(self: Box<Self>) -> io::Result<()> {
        Volume::join(*self)
    }
}

impl Mounter for Kernel {
    fn table(&self) -> io::Result<Vec<Mount>> {
        mountinfo::read()
    }

    fn serve(&self, config: VolumeConfig, at: &Path, resources: &Resources) -> io::Result<Box<dyn Serving>> {
        let fd = blob_fs::fuse::mount(at, &config.name, config.read_only)?;
        match Volume::serve(config, fd, at.to_owned(), resources) {
            Ok(volume) => Ok(Box::new(volume)),
            Err(error) => {
                // Nobody serves it: take it away again, whatever the unmount says the first error is the one to tell.
                let _ = umount2(at, MntFlags::MNT_DETACH);
                Err(error)
            }
        }
    }

    fn answers(&self, at: &Path) -> io::Result<()> {
        // The kernel may answer a stat out of its cache for as long as attr_timeout says; a statfs always asks the server.
        nix::sys::statvfs::statvfs(at)?;
        let found = std::fs::metadata(at)?;
        if found.is_dir() {
            Ok(())
        } else {
            Err(io::Error::from(Errno::ENOTDIR))
        }
    }

    fn usage(&self, at: &Path) -> io::Result<Usage> {
        let v = nix::sys::statvfs::statvfs(at)?;
        let block = v.fragment_size();
        let bytes = |blocks: u64| blocks.saturating_mul(block);
        Ok(Usage {
            bytes: [
                bytes(v.blocks()),
                bytes(v.blocks().saturating_sub(v.blocks_free())),
                bytes(v.blocks_available()),
            ],
            inodes: [
                v.files(),
                v.files().saturating_sub(v.files_free()),
                v.files_available(),
            ],
        })
    }

    fn bind(&self, source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
        const NONE: Option<&str> = None;
        mount(Some(source), target, NONE, MsFlags::MS_BIND, NONE)?;
        if read_only {
            // A bind takes the source's flags; read-only needs a second call (mount(2), "Creating a bind mount"), and that
            // one sets all flags anew: those of our file systems are said again.
            let kept = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | kept;
            if let Err(error) = mount(NONE, target, NONE, flags, NONE) {
                let _ = umount2(target, MntFlags::MNT_DETACH);
                return Err(error.into());
            }
        }
        Ok(())
    }

    fn unmount(&self, at: &Path, detach: bool) -> io::Result<()> {
        let mut flags = MntFlags::UMOUNT_NOFOLLOW;
        if detach {
            flags |= MntFlags::MNT_DETACH;
        }
        Ok(umount2(at, flags)?)
    }

    fn abort(&self, mount: &Mount) -> io::Result<()> {
        let control = Path::new(CONNECTIONS).join(mount.minor.to_string()).join("abort");
        if !control.exists() {
            mount_control()?;
        }
        match std::fs::write(&control, "1") {
            // The connection has ended by itself.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

/// The control file system is not mounted in every container.
fn mount_control() -> io::Result<()> {
    if std::fs::read_dir(CONNECTIONS)?.next().is_some() {
        return Ok(());
    }
    let none: Option<&str> = None;
    match mount(
        Some("fusectl"),
        CONNECTIONS,
        Some("fusectl"),
        MsFlags::empty(),
        none,
    ) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
