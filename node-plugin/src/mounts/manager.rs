//! The mounts of this process and the steps a volume takes through them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blob_fs::{Resources, VolumeConfig};
use tokio::sync::Semaphore;

use super::bounded::{BoundedError, bounded};
use super::holdings::{Counter, Holdings};
use super::mounter::{Mounter, Serving, Usage};
use super::mountinfo::{self, Mount};
use super::record::{Record, Records, Target};
use crate::csi::status::{Error, Reason, Result};

/// How long each kind of step may take before it counts as hung.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// A stat of the root directory. The answer may need a request to the service.
    pub answer: Duration,
    /// mount(2) and the kernel's handshake.
    pub mount: Duration,
    /// umount(2).
    pub unmount: Duration,
    /// Committing what is dirty at the end. Kubelet gives a call two minutes.
    pub commit: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(15),
            mount: Duration::from_secs(30),
            unmount: Duration::from_secs(10),
            commit: Duration::from_secs(90),
        }
    }
}

/// State of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// No mount there.
    NotMounted,
    /// Somebody else's mount, with its type.
    Foreign(String),
    /// Ours, and not answering; why.
    Dead(String),
    /// Ours and answering.
    Healthy,
}

/// All mounts of a node plugin.
#[derive(Debug)]
pub struct Mounts {
    mounter: Arc<dyn Mounter>,
    resources: Resources,
    records: Records,
    live: Mutex<BTreeMap<PathBuf, Live>>,
    patience: Patience,
    /// File systems that may be served at a time.
    limit: usize,
    /// See [`Counter::new`].
    turn: Arc<Semaphore>,
}

/// A file system being served.
#[derive(Debug)]
struct Live {
    serving: Box<dyn Serving>,
    counter: Arc<Counter>,
}

/// Mounts at one path that are taken down at most; more is a loop of somebody mounting.
const MOST_STACKED: usize = 32;

impl Mounts {
    /// Mounts with their records in `state`.
    pub fn new(
        mounter: Arc<dyn Mounter>,
        resources: Resources,
        state: &Path,
        patience: Patience,
    ) -> io::Result<Self> {
        let records = Records::open(state)?;
        Ok(Self {
            mounter,
            limit: resources.budget.mounts(),
            resources,
            records,
            live: Mutex::default(),
            patience,
            turn: Arc::new(Semaphore::new(1)),
        })
    }

    /// What is remembered of mounts.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// The same with another limit than what the budget serves.
    pub fn with_limit(self, limit: usize) -> Self {
        Self { limit, ..self }
    }

    /// File systems that may be served at a time.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whether one more file system may be served. Asked before a volume's container is: calls that come at the same moment may go
    /// past the limit by a few, which the budget bears.
    ///
    /// # Errors
    /// `TooManyVolumes`.
    pub fn room(&self) -> Result<()> {
        let served = self.served();
        if served < self.limit {
            return Ok(());
        }
        Err(Error::new(
            Reason::TooManyVolumes,
            format!(
                "--max-volumes: this node serves {served} volumes, and its budget of {} MiB is for {}",
                self.resources.budget.total() >> 20,
                self.limit
            ),
        ))
    }

    /// File systems that this process serves now.
    pub fn served(&self) -> usize {
        self.lock()
            .values()
            .filter(|live| live.serving.is_serving())
            .count()
    }

    /// Forgets volumes of which nothing is mounted any more (the machine was restarted). Dead mounts are remembered: the
    /// next stage of their volume takes them down.
    pub async fn forget_gone(&self) -> Result<()> {
        let table = self.table().await?;
        for record in self.records.all() {
            let mut places = std::iter::once(&record.path).chain(record.targets.keys());
            if !places.any(|path| mountinfo::at(&table, path).is_some_and(Mount::is_ours)) {
                tracing::info!(volume_id = record.volume_id, path = %record.path.display(), "no longer mounted");
                self.records
                    .remove(&record.path)
                    .map_err(|e| node_error(&record.path, &e))?;
            }
        }
        Ok(())
    }

    /// State of a path.
    pub async fn condition(&self, path: &Path) -> Result<Condition> {
        let table = self.table().await?;
        let Some(top) = mountinfo::at(&table, path) else {
            return Ok(Condition::NotMounted);
        };
        if !top.is_ours() {
            return Ok(Condition::Foreign(top.fs_type.clone()));
        }
        if let Some(live) = self.lock().get(path)
            && !live.serving.is_serving()
        {
            return Ok(Condition::Dead("its session has ended".into()));
        }
        let (mounter, at) = (self.mounter.clone(), path.to_owned());
        Ok(
            match bounded("stat", self.patience.answer, move || mounter.answers(&at)).await {
                Ok(Ok(())) => Condition::Healthy,
                Ok(Err(error)) => Condition::Dead(error.to_string()),
                Err(error) => Condition::Dead(error.to_string()),
            },
        )
    }

    /// Mounts and serves a volume at an existing directory, waits until it answers, and remembers it.
    pub async fn start(&self, record: Record, config: VolumeConfig) -> Result<()> {
        let path = record.path.clone();
        let (mounter, at, resources) = (self.mounter.clone(), path.clone(), self.resources.clone());
        let counter = Counter::new(
            Arc::clone(&config.store),
            &config.prefix,
            self.resources.runtime.clone(),
            Arc::clone(&self.turn),
        );
        let served = bounded("mount", self.patience.mount, move || {
            mounter.serve(config, &at, &resources)
        })
        .await;
        let failure = match served {
            Ok(Ok(serving)) => {
                self.lock().insert(path.clone(), Live { serving, counter });
                match self.condition(&path).await? {
                    Condition::Healthy => match self.records.put(record) {
                        Ok(()) => return Ok(()),
                        Err(error) => {
                            Error::new(Reason::NodeError, format!("state of {}: {error}", path.display()))
                        }
                    },
                    other => Error::new(
                        Reason::FileSystemSilent,
                        format!("{}: mounted, but it does not answer: {other:?}", path.display()),
                    ),
                }
            }
            Ok(Err(error)) => Error::new(
                Reason::MountFailed,
                format!("mount of {}: {error}", path.display()),
            ),
            Err(error) => Error::new(
                Reason::MountFailed,
                format!("mount of {}: {error}", path.display()),
            ),
        };
        // Half a mount is worse than none: a pod would write into it, or beneath it.
        if let Err(error) = self.stop(&path).await {
            tracing::warn!(path = %path.display(), %error, "could not take a failed mount down");
        }
        Err(failure)
    }

    /// Unmounts a volume, waits until everything accepted is committed, and forgets it. Nothing there is fine.
    pub async fn stop(&self, path: &Path) -> Result<()> {
        self.unmount(path, true).await?;
        let serving = self.lock().remove(path).map(|live| live.serving);
        self.records.remove(path).map_err(|e| node_error(path, &e))?;
        let Some(serving) = serving else { return Ok(()) };
        match bounded("commit", self.patience.commit, move || serving.join()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Error::new(
                Reason::ServiceError,
                format!(
                    "{}: unmounted, but the last changes could not be committed: {error}",
                    path.display()
                ),
            )),
            Err(error @ BoundedError::TimedOut { .. }) => {
                // Held from another mount namespace; its thread goes on serving and committing until that ends.
                tracing::warn!(path = %path.display(), %error, "the file system is still in use elsewhere");
                Ok(())
            }
            Err(error) => Err(node_error(path, &error)),
        }
    }

    /// Binds a mounted volume to a pod's directory, creating it.
    pub async fn bind(&self, source: &Path, target: &Path, args: Target) -> Result<()> {
        self.prepare_target(target).await?;
        let (mounter, from, to, read_only) = (
            self.mounter.clone(),
            source.to_owned(),
            target.to_owned(),
            args.read_only,
        );
        let bound = bounded("bind", self.patience.mount, move || {
            mounter.bind(&from, &to, read_only)
        })
        .await;
        flatten(bound).map_err(|error| {
            Error::new(
                Reason::MountFailed,
                format!("bind of {} to {}: {error}", source.display(), target.display()),
            )
        })?;
        let remembered = self.records.update(source, |record| {
            record.targets.insert(target.to_owned(), args);
        });
        remembered.map_err(|e| node_error(source, &e))
    }

    /// Takes a pod's directory away. Nothing there is fine; files left in it are not ours to delete.
    pub async fn unbind(&self, target: &Path) -> Result<()> {
        self.unmount(target, false).await?;
        self.remove_target(target).await?;
        for record in self
            .records
            .all()
            .iter()
            .filter(|r| r.targets.contains_key(target))
        {
            let forgotten = self
                .records
                .update(&record.path, |r| drop(r.targets.remove(target)));
            forgotten.map_err(|e| node_error(target, &e))?;
        }
        Ok(())
    }

    /// Creates a target directory; a file there is an error, an existing directory is fine.
    pub async fn prepare_target(&self, target: &Path) -> Result<()> {
        let path = target.to_owned();
        let found = bounded(
            "mkdir",
            self.patience.answer,
            move || match std::fs::symlink_metadata(&path) {
                Ok(found) => Ok(found.is_dir()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    std::fs::create_dir_all(&path).map(|()| true)
                }
                Err(error) => Err(error),
            },
        );
        match flatten(found.await) {
            Ok(true) => Ok(()),
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
        let path = target.to_owned();
        let removed = bounded("rmdir", self.patience.answer, move || std::fs::remove_dir(&path)).await;
        match flatten(removed) {
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

    /// The mount at a path, if it is one of this driver.
    pub async fn mount_at(&self, path: &Path) -> Result<Option<Mount>> {
        Ok(mountinfo::at(&self.table().await?, path)
            .filter(|m| m.is_ours())
            .cloned())
    }

    /// Paths of this node where the file system mounted at `path` is visible too.
    pub async fn bound_at(&self, path: &Path) -> Result<Vec<PathBuf>> {
        let table = self.table().await?;
        let Some(mount) = mountinfo::at(&table, path).filter(|m| m.is_ours()) else {
            return Ok(Vec::new());
        };
        Ok(table
            .iter()
            .filter(|m| m.same_file_system(mount) && m.at != path)
            .map(|m| m.at.clone())
            .collect())
    }

    /// Space and inodes at a path.
    pub async fn usage(&self, path: &Path) -> Result<Usage> {
        let (mounter, at) = (self.mounter.clone(), path.to_owned());
        let usage = bounded("statvfs", self.patience.answer, move || mounter.usage(&at)).await;
        flatten(usage).map_err(|e| node_error(path, &e))
    }

    /// What the volume mounted at `path` (its own mount, not a bind of it) holds, as far as it has been counted.
    pub async fn holdings(&self, path: &Path) -> Option<Holdings> {
        let counter = self.lock().get(path).map(|live| Arc::clone(&live.counter))?;
        counter.holdings().await
    }

    /// The end of the process: commits everything, unmounts what no pod uses.
    ///
    /// A volume that pods use stays mounted: its pods get ENOTCONN when the process is gone. Unmounting it here would
    /// let them go on writing, to the node's disk. Returns the number of volumes left in place.
    pub async fn shut_down(&self) -> usize {
        let paths: Vec<PathBuf> = self.lock().keys().cloned().collect();
        let mut left = 0;
        for path in paths {
            let in_use = match self.records.get(&path) {
                Some(record) if record.inline => true,
                _ => !self.bound_at(&path).await.unwrap_or_default().is_empty(),
            };
            if in_use {
                left += 1;
                self.sync(&path).await;
            } else if let Err(error) = self.stop(&path).await {
                tracing::warn!(path = %path.display(), %error, "could not unmount at the end");
                left += 1;
            }
        }
        left
    }

    /// Commits what is dirty in one mount.
    async fn sync(&self, path: &Path) {
        let Some(live) = self.lock().remove(path) else {
            return;
        };
        let work = move || (live.serving.sync(), live);
        match bounded("sync", self.patience.commit, work).await {
            Ok((result, live)) => {
                if let Err(error) = result {
                    tracing::error!(path = %path.display(), %error, "changes could not be committed");
                }
                self.lock().insert(path.to_owned(), live);
            }
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "changes could not be committed in time")
            }
        }
    }

    /// Unmounts everything of ours at a path. A dead or hung mount is detached; `abort` ends its connection too, which
    /// is right for the mount itself and wrong for one of several binds.
    async fn unmount(&self, path: &Path, abort: bool) -> Result<()> {
        for _ in 0..MOST_STACKED {
            let table = self.table().await?;
            let Some(mount) = mountinfo::at(&table, path).cloned() else {
                return Ok(());
            };
            if !mount.is_ours() {
                return Err(Error::new(
                    Reason::TargetInUse,
                    format!(
                        "{}: a mount of type {} is there, which is not this driver's",
                        path.display(),
                        mount.fs_type
                    ),
                ));
            }
            let (mounter, at) = (self.mounter.clone(), path.to_owned());
            let plain = bounded("umount", self.patience.unmount, move || {
                mounter.unmount(&at, false)
            })
            .await;
            let error = match plain {
                Ok(Ok(())) => continue,
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EINVAL) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            match self.condition(path).await? {
                Condition::Healthy => {
                    let text = format!("umount of {}: {error}", path.display());
                    return Err(Error::new(Reason::UnmountFailed, text));
                }
                Condition::NotMounted => return Ok(()),
                state => {
                    tracing::warn!(path = %path.display(), error, ?state, "detaching a dead mount");
                    self.detach(&mount, abort).await?;
                }
            }
        }
        Err(Error::new(
            Reason::UnmountFailed,
            format!("{}: it is mounted again and again", path.display()),
        ))
    }

    /// Takes a mount out of the tree, whoever uses it.
    async fn detach(&self, mount: &Mount, abort: bool) -> Result<()> {
        let (mounter, doomed) = (self.mounter.clone(), mount.clone());
        let detached = bounded("umount -l", self.patience.unmount, move || {
            if abort {
                // First: whoever is blocked on it holds locks that the unmount may want.
                mounter.abort(&doomed)?;
            }
            mounter.unmount(&doomed.at, true)
        });
        match flatten(detached.await) {
            Ok(()) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            Err(error) => Err(Error::new(
                Reason::UnmountFailed,
                format!("lazy umount of {}: {error}", mount.at.display()),
            )),
        }
    }

    async fn table(&self) -> Result<Vec<Mount>> {
        let mounter = self.mounter.clone();
        let table = bounded("mountinfo", self.patience.answer, move || mounter.table()).await;
        flatten(table).map_err(|e| Error::new(Reason::NodeError, format!("/proc/self/mountinfo: {e}")))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Live>> {
        // Whole after a panic elsewhere: every change is one insert or remove.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn node_error(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::new(Reason::NodeError, format!("{}: {error}", path.display()))
}

/// Both kinds of failure of a bounded system call as one.
fn flatten<T>(result: Result<io::Result<T>, BoundedError>) -> io::Result<T> {
    match result {
        Ok(result) => result,
        Err(BoundedError::TimedOut { call, limit }) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{call} did not return within {limit:?}"),
        )),
        Err(BoundedError::Thread { source, .. }) => Err(source),
    }
}

#[cfg(test)]
mod tests;
