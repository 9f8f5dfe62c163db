//! Where volumes are published: pods' directories, made, bound, found and taken away.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::drain::Abort;
use super::manager::Mounts;
use super::mountinfo::{self, Entry};
use super::placing::{Place, is_for_good};
use super::record::{Record, Target};
use crate::error::{Error, Reason, Result};

/// Why a volume was not bound.
#[derive(Debug)]
pub(super) struct NotBound {
    pub(super) error: Error,
    /// For as long as the pod lives.
    pub(super) lasting: bool,
}

impl From<Error> for NotBound {
    fn from(error: Error) -> Self {
        Self {
            error,
            lasting: false,
        }
    }
}

impl Mounts {
    /// Binds a mounted volume to a pod's directory, creating it; in the place of a mount of ours that is
    /// there.
    pub async fn bind(&self, source: &Path, target: &Path, args: Target) -> Result<()> {
        let bound = self.try_bind(source, target, args).await;
        bound.map_err(|failed| failed.error)
    }

    /// The same, and whether another attempt would help.
    pub(super) async fn try_bind(
        &self,
        source: &Path,
        target: &Path,
        args: Target,
    ) -> std::result::Result<(), NotBound> {
        self.check_late(target)?;
        let Some(staged) = self.mount_at(source).await? else {
            return Err(Error::new(
                Reason::NotStaged,
                format!("{}: the volume is not mounted there any more", source.display()),
            )
            .into());
        };
        self.prepare_target(target).await?;
        let to = self.place(target, true).await?;
        let at_work = Arc::new(());
        let late = Arc::downgrade(&at_work);
        let bound = self.calls.bind(&staged, to, args.read_only, at_work).await;
        bound.map_err(|error| {
            self.keep_while_late(target, &error, late);
            let text = format!("bind of {} to {}: {error}", source.display(), target.display());
            NotBound {
                error: Error::new(Reason::MountFailed, text),
                lasting: is_for_good(&error),
            }
        })?;
        Ok(self.remember_target(source, target, args)?)
    }

    /// A place for a mount, and the mount of ours that is there, which nobody serves: whoever still waits for
    /// its answers is let go on.
    pub(super) async fn place(&self, at: &Path, seen: bool) -> Result<Place> {
        let over = self.mount_at(at).await?;
        #[cfg(test)]
        if super::steps::lacks(super::steps::Mutant::UnmountFirst)
            && let Some(dead) = &over
        {
            self.calls.detach(dead, false).await?;
            let (at, over) = (at.to_owned(), None);
            return Ok(Place { at, over, seen });
        }
        if let Some(dead) = &over
            && self.is_served(dead.minor) != Some(true)
            && let Err(error) = self.calls.abort(dead).await
        {
            tracing::warn!(path = %at.display(), %error, "could not abort the connection of a dead mount");
        }
        Ok(Place {
            at: at.to_owned(),
            over,
            seen,
        })
    }

    /// Notes where a volume is published.
    pub fn remember_target(&self, source: &Path, target: &Path, args: Target) -> Result<()> {
        self.change_record(source, |record| {
            record.targets.insert(target.to_owned(), args);
        })
    }

    /// Takes a pod's directory away. Nothing there is fine; files left in it are not ours to delete.
    pub async fn unbind(&self, target: &Path) -> Result<()> {
        self.unmount(target, Abort::Never).await?;
        self.remove_target(target).await?;
        let records = self.records();
        for record in records.iter().filter(|r| r.targets.contains_key(target)) {
            self.change_record(&record.path, |r| drop(r.targets.remove(target)))?;
        }
        Ok(())
    }

    /// Creates a target directory; a file there is an error, an existing directory is fine when it is empty.
    /// What a pod finds there is the volume's, never the node's: files in it were written while nothing was
    /// mounted, and a mount over them would hide that.
    pub async fn prepare_target(&self, target: &Path) -> Result<()> {
        // A dead mount must not be asked anything; below it nobody could write.
        if self.mount_at(target).await?.is_some() {
            return Ok(());
        }
        match self.calls.make_directory(target).await {
            Ok(true) => match self.calls.is_empty(target).await {
                Ok(true) => Ok(()),
                Ok(false) => Err(Error::new(
                    Reason::FilesOnNodeDisk,
                    format!(
                        "target_path: {} holds files of the node's disk, and nothing is mounted over them",
                        target.display()
                    ),
                )),
                Err(error) => Err(Error::new(
                    Reason::NodeError,
                    format!("target_path: {} cannot be read: {error}", target.display()),
                )),
            },
            Ok(false) => Err(Error::new(
                Reason::TargetNotDirectory,
                format!("target_path: {} exists and is no directory", target.display()),
            )),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Err(Error::new(
                Reason::TargetNotDirectory,
                format!("target_path: a parent of {} is no directory", target.display()),
            )),
            Err(error) => Err(Error::new(
                Reason::NodeError,
                format!("target_path: {} cannot be created: {error}", target.display()),
            )),
        }
    }

    /// Removes an empty target directory.
    pub async fn remove_target(&self, target: &Path) -> Result<()> {
        match self.calls.remove_directory(target).await {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Err(Error::new(
                Reason::TargetNotDirectory,
                format!(
                    "target_path: {} is no directory; it was not made by this driver and stays",
                    target.display()
                ),
            )),
            Err(error) => Err(Error::new(
                Reason::TargetInUse,
                format!("target_path: {} cannot be removed: {error}", target.display()),
            )),
        }
    }

    /// Whose path this is: the volume whose file system is mounted or bound there; when it is none of them,
    /// those that are remembered there.
    pub async fn volumes_at(&self, path: &Path) -> Result<Vec<Record>> {
        let mut records = self.records();
        let table = self.calls.table().await?;
        if let Some(there) = mountinfo::at(&table, path).filter(|m| m.is_ours()) {
            let of = |record: &Record| {
                mountinfo::at(&table, &record.path).is_some_and(|mount| mount.same_file_system(there))
            };
            if let Some(index) = records.iter().position(of) {
                return Ok(vec![records.swap_remove(index)]);
            }
        }
        records.retain(|record| record.path == path || record.targets.contains_key(path));
        Ok(records)
    }

    /// Those of the targets at which a mount of this driver is still to be seen.
    pub async fn still_mounted(
        &self,
        mut targets: BTreeMap<PathBuf, Target>,
    ) -> Result<BTreeMap<PathBuf, Target>> {
        let table = self.calls.table().await?;
        targets.retain(|target, _| mountinfo::at(&table, target).is_some_and(Entry::is_ours));
        Ok(targets)
    }

    /// The mount at a path, if it is one of this driver.
    pub async fn mount_at(&self, path: &Path) -> Result<Option<Entry>> {
        Ok(mountinfo::at(&self.calls.table().await?, path)
            .filter(|m| m.is_ours())
            .cloned())
    }

    /// Whether a mount of this driver is at a path, or may come there yet; also when nobody can say.
    pub async fn may_be_mounted(&self, path: &Path) -> bool {
        self.check_late(path).is_err() || !matches!(self.mount_at(path).await, Ok(None))
    }

    /// Paths of this node where the file system mounted at `path` is visible too.
    pub async fn bound_at(&self, path: &Path) -> Result<Vec<PathBuf>> {
        let table = self.calls.table().await?;
        let Some(mount) = mountinfo::at(&table, path).filter(|m| m.is_ours()) else {
            return Ok(Vec::new());
        };
        Ok(table
            .iter()
            .filter(|m| m.same_file_system(mount) && m.at != path)
            .map(|m| m.at.clone())
            .collect())
    }
}
