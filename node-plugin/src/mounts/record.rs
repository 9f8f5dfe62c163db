//! What the driver has mounted, on disk: it survives the process. No secrets in here.

use std::collections::BTreeMap;
use std::io;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::csi::capability::Access;

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
            targets: BTreeMap::new(),
        }
    }
}

/// All records, in memory and in one file each.
#[derive(Debug)]
pub struct Records {
    folder: PathBuf,
    by_path: Mutex<BTreeMap<PathBuf, (PathBuf, Record)>>,
}

impl Records {
    /// Reads the folder, creating it (0700) when it is not there.
    pub fn open(folder: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        let mut by_path = BTreeMap::new();
        for entry in std::fs::read_dir(folder)? {
            let file = entry?.path();
            if file.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let read = std::fs::read(&file).and_then(|text| Ok(serde_json::from_slice::<Record>(&text)?));
            match read {
                Ok(record) if record.version == VERSION => {
                    by_path.insert(record.path.clone(), (file, record));
                }
                Ok(record) => {
                    tracing::warn!(
                        file = %file.display(), version = record.version,
                        "record of another format; left alone"
                    );
                }
                Err(error) => tracing::warn!(file = %file.display(), %error, "unreadable record; left alone"),
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            by_path: Mutex::new(by_path),
        })
    }

    /// The record of a mount.
    pub fn get(&self, path: &Path) -> Option<Record> {
        self.lock().get(path).map(|(_, record)| record.clone())
    }

    /// All of them.
    pub fn all(&self) -> Vec<Record> {
        self.lock().values().map(|(_, record)| record.clone()).collect()
    }

    /// Writes a record, replacing the one of the same path.
    pub fn put(&self, record: Record) -> io::Result<()> {
        let mut by_path = self.lock();
        let file = match by_path.get(&record.path) {
            Some((file, _)) => file.clone(),
            None => self.folder.join(format!("{}.json", uuid::Uuid::new_v4())),
        };
        write(&file, &serde_json::to_vec_pretty(&record)?)?;
        by_path.insert(record.path.clone(), (file, record));
        Ok(())
    }

    /// Changes a record, if it is there.
    pub fn update(&self, path: &Path, change: impl FnOnce(&mut Record)) -> io::Result<()> {
        let Some(mut record) = self.get(path) else {
            return Ok(());
        };
        change(&mut record);
        self.put(record)
    }

    /// Forgets a mount.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        let mut by_path = self.lock();
        if let Some((file, _)) = by_path.get(path) {
            match std::fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            by_path.remove(path);
        }
        Ok(())
    }

    /// Can a record be written? For Probe.
    pub fn check(&self) -> io::Result<()> {
        tempfile_in(&self.folder).map(drop)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, (PathBuf, Record)>> {
        // Whole after a panic elsewhere: the file is written before the map changes.
        self.by_path.lock().unwrap_or_else(PoisonError::into_inner)
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

/// A file that is gone when dropped.
fn tempfile_in(folder: &Path) -> io::Result<std::fs::File> {
    let path = folder.join(format!("probe-{}", uuid::Uuid::new_v4()));
    let file = std::fs::File::create_new(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csi::status::Reason;

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
        let records = Records::open(folder.path()).unwrap();
        records
            .put(Record::new("v", path, access(), BTreeMap::new()))
            .unwrap();
        let target = Target {
            read_only: true,
            access: access(),
        };
        records
            .update(path, |r| drop(r.targets.insert("/pods/1".into(), target.clone())))
            .unwrap();

        let records = Records::open(folder.path()).unwrap();
        let record = records.get(path).unwrap();
        assert_eq!(record.volume_id, "v");
        assert_eq!(record.targets.get(Path::new("/pods/1")), Some(&target));
        assert_eq!(records.all().len(), 1);
        records.remove(path).unwrap();
        records.remove(path).unwrap();
        assert!(Records::open(folder.path()).unwrap().all().is_empty());
    }

    #[test]
    fn a_broken_record_does_not_stop_the_driver() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("x.json"), "{").unwrap();
        // Not even readable.
        std::fs::create_dir(folder.path().join("y.json")).unwrap();
        let records = Records::open(folder.path()).unwrap();
        assert!(records.all().is_empty());
        records.check().unwrap();
        assert!(
            folder.path().join("x.json").exists(),
            "left for somebody to look at"
        );
    }
}
