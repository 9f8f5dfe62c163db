//! The seam to the kernel: mounting, serving, binding, unmounting. One real implementation, one fake in
//! tests.

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use blob_fs::{Held, Owing, Resources, Volume, VolumeConfig};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::mount::{OpenTreeFlags, open_tree};
use tokio_util::sync::CancellationToken;

use super::mountinfo::{self, Entry};
use super::placing::{Place, put};
use super::setattr::set_apart;

/// Where FUSE connections can be aborted.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// A file system being served.
pub trait Serving: Send + Sync + Debug {
    /// Number of its connection: the minor of its mounts in the mount table.
    fn connection(&self) -> u32;
    /// False once the session has ended.
    fn is_serving(&self) -> bool;
    /// Cancelled once the session has ended, also while `join` is at work.
    fn ended(&self) -> CancellationToken;
    /// Commits everything dirty.
    fn sync(&self) -> io::Result<()>;
    /// What files that were closed owe the service. Does not wait for anything.
    fn owing(&self) -> Owing;
    /// Why the service does not serve it, as its latest request has shown. Does not wait for anything.
    fn trouble(&self) -> Option<String> {
        None
    }
    /// What it holds for the kernel and in the service. Does not wait for anything.
    fn held(&self) -> Held;
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

/// A file system that is mounted and served, and that nobody sees: no path of the node leads to it. Dropping
/// it takes the mount away, unless it was attached. That may block as an unmount does.
#[derive(Debug)]
pub struct Detached {
    /// Number of its connection.
    pub connection: u32,
    /// A path by which this process reaches it.
    pub(super) at: PathBuf,
    /// What keeps it mounted.
    pub(super) kept: Box<dyn Kept>,
}

/// See [`Detached`].
pub trait Kept: Send + Sync + Debug {
    /// The mount itself, if there is one.
    fn tree(&self) -> Option<BorrowedFd<'_>>;
}

impl Kept for blob_fs::fuse::Tree {
    fn tree(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}

/// System calls on mounts. Every method may block for ever on a mount whose server is stuck: call them
/// through [`super::bounded`].
pub trait Mounter: Send + Sync + Debug + 'static {
    /// The mount table.
    fn table(&self) -> io::Result<Vec<Entry>>;
    /// Mounts a file system where nobody sees it, and serves it; returns once the kernel has shaken hands.
    /// After an error nothing of it is mounted.
    fn serve(&self, config: VolumeConfig, resources: &Resources) -> io::Result<(Box<dyn Serving>, Detached)>;
    /// Makes it appear at a place.
    fn attach(&self, mount: &Detached, to: &Place) -> io::Result<()>;
    /// Asks the file system at a path, past the kernel's caches, and for its root directory.
    fn answers(&self, at: &Path) -> io::Result<()>;
    /// statvfs.
    fn usage(&self, at: &Path) -> io::Result<Usage>;
    /// Makes the file system of a mount appear at another place as well; nothing appears when it is not at
    /// its path any more.
    fn bind(&self, source: &Entry, to: &Place, read_only: bool) -> io::Result<()>;
    /// Unmounts the uppermost mount at a path; `detach` takes it out of the tree even when it is in use.
    fn unmount(&self, at: &Path, detach: bool) -> io::Result<()>;
    /// Ends a FUSE connection: everything blocked on it returns with an error.
    fn abort(&self, connection: u32) -> io::Result<()>;
}

/// The real thing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kernel;

/// A volume and the number of its connection.
#[derive(Debug)]
struct Served {
    volume: Volume,
    connection: u32,
}

impl Serving for Served {
    fn connection(&self) -> u32 {
        self.connection
    }
    fn is_serving(&self) -> bool {
        self.volume.is_serving()
    }
    fn ended(&self) -> CancellationToken {
        self.volume.ended()
    }
    fn sync(&self) -> io::Result<()> {
        self.volume.sync()
    }
    fn owing(&self) -> Owing {
        self.volume.owing()
    }
    fn trouble(&self) -> Option<String> {
        self.volume.trouble()
    }
    fn held(&self) -> Held {
        self.volume.held()
    }
    fn join(self: Box<Self>) -> io::Result<()> {
        self.volume.join()
    }
}

/// Whether an answer of a FUSE mount says that nobody serves it any more: the kernel gives these itself,
/// never a file system that runs. Whatever else fails there is a service that fails.
pub fn says_dead(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
}

/// Takes the mount of a connection away that has not ended. Another one that has come to the same path
/// meanwhile stays: the call that mounted this one may have taken so long that its caller gave up and mounted
/// anew. After its end the kernel gives the number to the next file system, and it says nothing any more.
pub(super) fn unmount_only(mounter: &dyn Mounter, at: &Path, connection: u32) -> io::Result<()> {
    match mountinfo::at(&mounter.table()?, at) {
        Some(top) if top.is_ours() && top.minor == connection => mounter.unmount(at, true),
        _ => Ok(()),
    }
}

/// Whether the file system behind a descriptor of `/dev/fuse` has been unmounted or aborted (fuse: its poll).
fn has_ended(device: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(device.as_fd(), PollFlags::empty())];
    poll(&mut asked, PollTimeout::ZERO).is_ok()
        && asked[0]
            .revents()
            .is_some_and(|events| events.contains(PollFlags::POLLERR))
}

/// The connection of the uppermost mount at a path.
fn connection_at(at: &Path) -> io::Result<u32> {
    match mountinfo::at(&mountinfo::read()?, at) {
        Some(top) if top.is_ours() => Ok(top.minor),
        _ => Err(io::Error::other(format!(
            "{}: mounted, and not in the mount table",
            at.display()
        ))),
    }
}

impl Kernel {
    /// Mounts a file system at a directory, spelled as the mount table spells it, and serves it; returns once
    /// the kernel has shaken hands. After an error nothing of it is mounted.
    pub fn serve_at(
        &self,
        config: VolumeConfig,
        at: &Path,
        resources: &Resources,
    ) -> io::Result<Box<dyn Serving>> {
        let fd = blob_fs::fuse::mount(at, &config.name, config.read_only)?;
        // Asked at once: later somebody else's mount may be on top.
        let known = connection_at(at).and_then(|connection| Ok((connection, fd.try_clone()?)));
        let (connection, device) = known.inspect_err(|_| {
            // Mounted this moment, so it is on top; the error that matters is the other one.
            let _ = umount2(at, MntFlags::MNT_DETACH);
        })?;
        match Volume::serve(config, fd, at.to_owned(), resources) {
            Ok(volume) => Ok(Box::new(Served { volume, connection })),
            Err(error) => {
                if !has_ended(&device) {
                    // Nobody serves it: take it away again, whatever the unmount says the first error is the
                    // one to tell.
                    let _ = unmount_only(self, at, connection);
                }
                Err(error)
            }
        }
    }
}

impl Mounter for Kernel {
    fn table(&self) -> io::Result<Vec<Entry>> {
        mountinfo::read()
    }

    fn serve(&self, config: VolumeConfig, resources: &Resources) -> io::Result<(Box<dyn Serving>, Detached)> {
        let mount = blob_fs::fuse::mount_detached(&config.name, config.read_only)?;
        let (connection, at) = (mount.tree.connection()?, mount.tree.path());
        let volume = Volume::serve_detached(config, mount.device, &mount.tree, resources)?;
        let detached = Detached {
            connection,
            at,
            kept: Box::new(mount.tree),
        };
        Ok((Box::new(Served { volume, connection }), detached))
    }

    fn attach(&self, mount: &Detached, to: &Place) -> io::Result<()> {
        let tree = mount.kept.tree().ok_or(io::ErrorKind::InvalidInput)?;
        put(to, tree)
    }

    fn answers(&self, at: &Path) -> io::Result<()> {
        // The kernel may answer a stat out of its cache for as long as attr_timeout says; a statfs always
        // asks the server.
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

    fn bind(&self, source: &Entry, to: &Place, read_only: bool) -> io::Result<()> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, &source.at, flags)?;
        // Of whatever is at the path in this moment; without asking who serves it.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let found = statx(&tree, "", flags, StatxFlags::TYPE)?;
        if (found.stx_dev_major, found.stx_dev_minor) != (source.major, source.minor) {
            return Err(io::Error::other("the volume was not there any more"));
        }
        set_apart(tree.as_fd(), read_only)?;
        put(to, tree)
    }

    fn unmount(&self, at: &Path, detach: bool) -> io::Result<()> {
        let mut flags = MntFlags::UMOUNT_NOFOLLOW;
        if detach {
            flags |= MntFlags::MNT_DETACH;
        }
        Ok(umount2(at, flags)?)
    }

    fn abort(&self, connection: u32) -> io::Result<()> {
        let control = Path::new(CONNECTIONS).join(connection.to_string()).join("abort");
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
