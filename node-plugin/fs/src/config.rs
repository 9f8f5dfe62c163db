//! What a volume is configured with.

use std::sync::Arc;
use std::time::Duration;

use blob_client::Patience;

use crate::content::Tuning;
use crate::observer::Observer;
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

/// What a mount's options say of files and folders that are made through it. By default they are their
/// maker's, with the mode that it asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ownership {
    /// Everything belongs to this user.
    pub uid: Option<u32>,
    /// Everything belongs to this group.
    pub gid: Option<u32>,
    /// Permission bits that no file gets.
    pub file_umask: u32,
    /// Permission bits that no folder gets.
    pub dir_umask: u32,
    /// What its maker lets the group read the group may write, too (and search, in a folder). What the maker
    /// keeps from the group stays its own.
    pub group_writes: bool,
}

impl Ownership {
    /// The mode of something new, out of the one that its maker asked for.
    pub(crate) fn mode(&self, folder: bool, asked: u32) -> u32 {
        let owners = (asked & 0o700) >> 3;
        let shared = self.group_writes && asked & 0o040 != 0;
        let asked = if shared { asked | owners } else { asked };
        asked & !(if folder { self.dir_umask } else { self.file_umask } & 0o777)
    }
}

/// What the credential of a mount may do beside reading and listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    /// Write blobs (the letter `w` of a SAS).
    pub write: bool,
    /// Delete them (`d`).
    pub delete: bool,
}

impl Rights {
    /// Those of an account key.
    pub const ALL: Self = Self {
        write: true,
        delete: true,
    };
    /// Those of nobody.
    pub const NONE: Self = Self {
        write: false,
        delete: false,
    };
}

/// One file system to serve.
#[derive(Debug, Clone)]
pub struct VolumeConfig {
    /// Shown as the mount's source.
    pub name: String,
    /// The container.
    pub store: Arc<dyn Store>,
    /// "Directory" inside the container that is the root; empty = the whole container. No leading or trailing
    /// `/`.
    pub prefix: String,
    /// Refuse every change with EROFS.
    pub read_only: bool,
    /// What the credential is known to allow. What needs a right that is not there is refused with EACCES
    /// before anything is begun; the service is asked each time, as a right may be given at any moment.
    pub rights: Rights,
    /// Owner of everything that carries none in its metadata.
    pub uid: u32,
    /// Group likewise.
    pub gid: u32,
    /// Permission bits of files that carry none (umask already applied). Default 0o644... as the mount
    /// options say.
    pub file_mode: u32,
    /// Permission bits of directories that carry none.
    pub dir_mode: u32,
    /// Whose what is made here is, where that is not simply its maker's.
    pub ownership: Ownership,
    /// How long the kernel may keep attributes.
    pub attr_timeout: Duration,
    /// How long the kernel may keep names.
    pub entry_timeout: Duration,
    /// How long the kernel may keep the knowledge that a name is absent; zero: the service is asked each
    /// time.
    pub negative_timeout: Duration,
    /// Keep the kernel's page cache across opens while the ETag is unchanged.
    pub kernel_cache: bool,
    /// Folders of more blobs than this are not renamed (EXDEV): each of them is copied inside the service and
    /// deleted, and nobody sees how far that is. `mv` then copies file by file, and can be ended.
    pub rename_limit: usize,
    /// How long anybody waits for work that makes no progress; then it fails (EIO). All clocks of the mount
    /// follow from it, and so should those of the store.
    pub timeout: Patience,
    /// Tuning.
    pub profile: Profile,
    /// Is told of each operation that has ended.
    pub observer: Option<Arc<dyn Observer>>,
    /// Sizes of blocks and requests; anything but the default is for tests, which make them tiny.
    pub tuning: Tuning,
}

/// Most blobs of a folder that is renamed when nobody said otherwise: some minutes.
pub const RENAME_LIMIT: usize = 20_000;

impl Profile {
    /// How long absence is believed when nobody said so: not at all, so that what another mount has just made
    /// is found; a second where requests count for more.
    pub fn negative_timeout(self) -> Duration {
        match self {
            Self::General | Self::Streaming => Duration::ZERO,
            Self::SmallFiles | Self::ReadonlyShared => Duration::from_secs(1),
        }
    }
}

impl VolumeConfig {
    /// Defaults: read-write with all rights, root:root, 0o644/0o755, names and attributes kept for 1 s,
    /// absence never believed, kernel cache on, general profile, a minute for work that makes no progress.
    pub fn new(name: impl Into<String>, store: Arc<dyn Store>) -> Self {
        Self {
            name: name.into(),
            store,
            prefix: String::new(),
            read_only: false,
            rights: Rights::ALL,
            uid: 0,
            gid: 0,
            file_mode: 0o644,
            dir_mode: 0o755,
            ownership: Ownership::default(),
            attr_timeout: Duration::from_secs(1),
            entry_timeout: Duration::from_secs(1),
            negative_timeout: Profile::General.negative_timeout(),
            kernel_cache: true,
            rename_limit: RENAME_LIMIT,
            timeout: Patience::default(),
            profile: Profile::General,
            observer: None,
            tuning: Tuning::default(),
        }
    }
}
