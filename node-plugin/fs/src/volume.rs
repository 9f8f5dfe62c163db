//! Volume: what a mount is - configuration, the serving session, its end.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use vsc_driver::buffer::Arena;

use crate::budget::Budget;
use crate::store::Store;

/// What a volume is tuned for (volumes.md, `profile`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// Mixed use through the kernel's page cache.
    #[default]
    General,
    /// Large sequential files: direct I/O.
    Streaming,
    /// Many small files: long attribute life, listing prefetch.
    SmallFiles,
    /// Read-only data shared by many pods.
    ReadonlyShared,
}

/// One file system to serve.
#[derive(Debug, Clone)]
pub struct VolumeConfig {
    /// Shown as the mount's source.
    pub name: String,
    /// The container.
    pub store: Arc<dyn Store>,
    /// "Directory" inside the container that is the root; empty = the whole container. No leading or trailing `/`.
    pub prefix: String,
    /// Refuse every change with EROFS.
    pub read_only: bool,
    /// Owner of everything that carries none in its metadata.
    pub uid: u32,
    /// Group likewise.
    pub gid: u32,
    /// Permission bits of files that carry none (umask already applied). Default 0o644... as the mount options say.
    pub file_mode: u32,
    /// Permission bits of directories that carry none.
    pub dir_mode: u32,
    /// How long the kernel may keep attributes.
    pub attr_timeout: Duration,
    /// How long the kernel may keep names.
    pub entry_timeout: Duration,
    /// How long the kernel may keep the knowledge that a name is absent.
    pub negative_timeout: Duration,
    /// Keep the kernel's page cache across opens while the ETag is unchanged.
    pub kernel_cache: bool,
    /// Tuning.
    pub profile: Profile,
}

impl VolumeConfig {
    /// Defaults: read-write, root:root, 0o644/0o755, 1 s timeouts, kernel cache on, general profile.
    pub fn new(name: impl Into<String>, store: Arc<dyn Store>) -> Self {
        Self {
            name: name.into(),
            store,
            prefix: String::new(),
            read_only: false,
            uid: 0,
            gid: 0,
            file_mode: 0o644,
            dir_mode: 0o755,
            attr_timeout: Duration::from_secs(1),
            entry_timeout: Duration::from_secs(1),
            negative_timeout: Duration::from_secs(1),
            kernel_cache: true,
            profile: Profile::General,
        }
    }
}

/// What all mounts of a process share.
#[derive(Debug, Clone)]
pub struct Resources {
    /// Bytes for data, metadata and dirty blocks of all mounts.
    pub budget: Arc<Budget>,
    /// Where every buffer comes from.
    pub arena: Arc<Arena>,
    /// Runtime that misses and uploads run on.
    pub runtime: tokio::runtime::Handle,
}

/// A mounted, serving volume.
#[derive(Debug)]
pub struct Volume {}

impl Volume {
    /// Serves `config` on an already mounted `/dev/fuse` descriptor (see [`crate::fuse::mount`]), and returns once the
    /// kernel's INIT has been answered. `mountpoint` is only used to tune the mount (read-ahead) and for messages.
    pub fn serve(
        config: VolumeConfig,
        fd: OwnedFd,
        mountpoint: PathBuf,
        resources: &Resources,
    ) -> std::io::Result<Self> {
        let _ = (config, fd, mountpoint, resources);
        todo!()
    }

    /// False once the session has ended (unmounted, aborted, or failed).
    pub fn is_serving(&self) -> bool {
        todo!()
    }

    /// Commits everything dirty; the first error, if any.
    pub fn sync(&self) -> std::io::Result<()> {
        todo!()
    }

    /// Waits until the kernel has ended the session (after `umount`), and everything accepted is committed.
    pub fn join(self) -> std::io::Result<()> {
        todo!()
    }
}
