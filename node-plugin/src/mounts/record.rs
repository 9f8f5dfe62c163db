//! What the driver has mounted, on disk: it survives the process. No secrets in here.

use std::collections::BTreeMap;
use std::io;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};
use serde::{Deserialize, Serialize};

use crate::access::Access;

/// Format of the files; one of another format is left alone and reported.
const VERSION: u32 = 1;

/// A mounted volume and where it is published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// See [`VERSION`].
    version: u32,
    /// CSI volume id.
    pub volume_id: String,
    /// Where the file system is mounted: staging path, or target path of an inline volume.
    pub path: PathBuf,
    /// Published without a stage (inline volume).
    pub inline: bool,
    /// The capability it was staged with.
    pub access: Access,
    /// Volume context in lower case, without what kubelet adds per pod.
    pub context: BTreeMap<String, String>,
    /// Whether the stage brought secrets, which are not written down; not known of records of the first
    /// release, and of inline volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets_given: Option<bool>,
    /// The account's endpoint, which a Secret may have named: it is made anew of no other. Not known of
    /// inline volumes, and of records of earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Nobody serves it, and kubelet still takes it for staged: a process that ended has unmounted it while
    /// no pod had it. The boot of the machine in which that was: in the next one kubelet stages anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_aside: Option<String>,
    /// Where it is bound to.
    pub targets: BTreeMap<PathBuf, Target>,
}

/// Arguments of a NodePublishVolume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// `readonly` of the request.
    pub read_only: bool,
    /// The capability.
    pub access: Access,
}

impl Record {
    /// A volume that is published nowhere yet.
    pub fn new(volume_id: &str, path: &Path, access: Access, context: BTreeMap<String, String>) -> Self {
        Self {
            version: VERSION,
            volume_id: volume_id.to_owned(),
            path: path.to_owned(),
            inline: false,
            access,
            context,
            secrets_given: None,
            endpoint: None,
            set_aside: None,
            targets: BTreeMap::new(),
        }
    }
}

/// Which boot of the machine this is; `None` when the kernel does not say.
pub(super) fn this_boot() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

/// A record and the file it is in.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    /// The file.
    pub(super) file: PathBuf,
    /// What is in it.
    pub(super) record: Record,
}

/// The folder of the records, one file each.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// Changes are made one after the other: what one has read no other one may have changed.
    changing: Mutex<()>,
}

impl Folder {
    /// Reads the folder, creating it (0700) when it is not there.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Vec<Stored>)> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir(path)? {
            let file = entry?.path();
            if file.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let read = std::fs::read(&file).and_then(|text| Ok(serde_json::from_slice::<Record>(&text)?));
            match read {
                Ok(record) if record.version == VERSION => found.push(Stored { file, record }),
                Ok(record) => {
                    tracing::warn!(
                        file = %file.display(), version = record.version,
                        "record of another format; left alone"
                    );
                }
                Err(error) => tracing::warn!(file = %file.display(), %error, "unreadable record; left alone"),
            }
        }
        let folder = Self {
            path: path.to_owned(),
            changing: Mutex::default(),
        };
        Ok((folder, found))
    }

    /// Held while a record is read, changed and written.
    pub(super) fn changing(&self) -> MutexGuard<'_, ()> {
        // Nothing is in it.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a record, to the file of the one that it replaces if there is one.
    pub(super) fn write(&self, file: Option<PathBuf>, record: Record) -> io::Result<Stored> {
        let new = || self.path.join(format!("{}.json", uuid::Uuid::new_v4()));
        let file = file.unwrap_or_else(new);
        write(&file, &serde_json::to_vec_pretty(&record)?)?;
        Ok(Stored { file, record })
    }

    /// Removes a record's file; gone is gone.
    pub(super) fn remove(&self, file: &Path) -> io::Result<()> {
        match std::fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Can a record be written? For Probe, which comes every few seconds: nothing is written to find out.
    pub(super) fn check(&self) -> io::Result<()> {
        access(&self.path, AccessFlags::W_OK | AccessFlags::X_OK)?;
        let space = statvfs(&self.path)?;
        // Some file systems count no inodes.
        match space.blocks_available() == 0 || (space.files() > 0 && space.files_available() == 0) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
}

/// Whole or not at all: a crash leaves the old file.
fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = file.with_extension("new");
    let mut out = std::fs::File::create(&temporary)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    std::fs::rename(&temporary, file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;

    fn access() -> Access {
        use csi_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
        let capability = csi_proto::csi::VolumeCapability {
            access_mode: Some(AccessMode {
                mode: Mode::MultiNodeMultiWriter as i32,
            }),
            access_type: Some(AccessType::Mount(MountVolume::default())),
        };
        Access::parse(Some(&capability), Reason::CapabilityExceeded).unwrap()
    }

    #[test]
    fn records_survive_and_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = Path::new("/staging/1");
        let (records, found) = Folder::open(folder.path()).unwrap();
        assert!(found.is_empty());
        let record = Record::new("v", path, access(), BTreeMap::new());
        let mut stored = records.write(None, record).unwrap();
        let target = Target {
            read_only: true,
            access: access(),
        };
        stored.record.targets.insert("/pods/1".into(), target);
        let file = stored.file.clone();
        let changed = records.write(Some(stored.file), stored.record.clone()).unwrap();
        assert_eq!(changed.file, file);

        let (records, found) = Folder::open(folder.path()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].record, stored.record);
        records.remove(&file).unwrap();
        records.remove(&file).unwrap();
        assert!(Folder::open(folder.path()).unwrap().1.is_empty());
    }

    #[test]
    fn a_broken_record_does_not_stop_the_driver() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("x.json"), "{").unwrap();
        // Not even readable.
        std::fs::create_dir(folder.path().join("y.json")).unwrap();
        let (records, found) = Folder::open(folder.path()).unwrap();
        assert!(found.is_empty());
        records.check().unwrap();
        assert!(
            folder.path().join("x.json").exists(),
            "left for somebody to look at"
        );
    }

    /// As the released version wrote them: a node is upgraded with its mounts.
    #[test]
    fn a_record_of_an_earlier_release_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{
            "version": 1,
            "volume_id": "v",
            "path": "/staging/1",
            "inline": false,
            "access": {"mode": 5, "mount_flags": ["uid=1000"], "group": 2000},
            "context": {"containername": "photos"},
            "targets": {"/pods/1": {
                "read_only": true,
                "access": {"mode": 5, "mount_flags": ["uid=1000"], "group": 2000}
            }}
        }"#;
        std::fs::write(folder.path().join("x.json"), text).unwrap();
        let (_, found) = Folder::open(folder.path()).unwrap();
        let record = &found[0].record;
        assert_eq!(
            (record.volume_id.as_str(), record.path.as_path()),
            ("v", Path::new("/staging/1"))
        );
        assert_eq!(record.access.group, Some(2000));
        assert!(record.targets[Path::new("/pods/1")].read_only);
        assert_eq!((record.secrets_given, &record.endpoint), (None, &None));
        assert_eq!(record.set_aside, None);
    }

    #[test]
    fn a_check_writes_nothing_and_finds_what_is_wrong() {
        use nix::mount::{MsFlags, mount, umount};
        use std::os::unix::fs::MetadataExt as _;

        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let (records, _) = Folder::open(&state).unwrap();
        let changed = || {
            std::fs::metadata(&state)
                .map(|state| (state.mtime(), state.mtime_nsec()))
                .unwrap()
        };
        let before = changed();
        records.check().unwrap();
        assert_eq!(changed(), before, "something was written");
        std::fs::remove_dir(&state).unwrap();
        assert_eq!(records.check().unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::create_dir(&state).unwrap();
        // As root: a disk that is full, and one that is read-only.
        let tmpfs = |flags, options: &str| mount(Some("tmpfs"), &state, Some("tmpfs"), flags, Some(options));
        if tmpfs(MsFlags::empty(), "size=4096,nr_inodes=8").is_err() {
            eprintln!("no mounts here: nothing more is looked at");
            return;
        }
        let empty = records.check().map_err(|error| error.kind());
        std::fs::write(state.join("all"), [0; 4096]).unwrap();
        let full = records.check().map_err(|error| error.kind());
        umount(&state).unwrap();
        tmpfs(MsFlags::MS_RDONLY, "size=4096").unwrap();
        let read_only = records.check().map_err(|error| error.kind());
        umount(&state).unwrap();
        assert_eq!(empty, Ok(()));
        assert_eq!(full, Err(io::ErrorKind::StorageFull));
        assert_eq!(read_only, Err(io::ErrorKind::ReadOnlyFilesystem));
    }
}
