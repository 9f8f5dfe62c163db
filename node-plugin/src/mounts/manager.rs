//! The mounts of this process and the steps a volume takes through them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blob_fs::observer::Observer;
use blob_fs::{Held, Owing, Resources, VolumeConfig};
use futures::future::join_all;
use tokio::sync::Semaphore;

use super::bounded::bounded;
use super::calls::{Calls, Patience};
use super::ending::Endings;
use super::holdings::{Counter, Holdings};
use super::mounter::{Mounter, Serving, Usage, says_dead};
use super::mountinfo::{self, Mount};
use super::record::{Record, Records};
use crate::csi::status::{Error, Reason, Result};

mod targets;

/// State of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// No mount there.
    NotMounted,
    /// Somebody else's mount, with its type.
    Foreign(String),
    /// Ours, and nobody serves it any more; why.
    Dead(String),
    /// Ours and served, but its root cannot be had for now: the service fails, or takes too long. Pods may
    /// have open files in it and changes on their way, and it goes on by itself: it is never taken away by
    /// force.
    Silent(String),
    /// Ours and answering.
    Healthy,
}

/// Whose connection an unmount may abort. An abort loses what is not committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Abort {
    /// Nobody's: it is one of several binds, and is taken out of the tree at most.
    Never,
    /// That of a mount which nobody serves.
    Dead,
    /// That of a mount which does not answer either: nobody has used it yet.
    Silent,
}

/// All mounts of a node plugin.
#[derive(Debug)]
pub struct Mounts {
    calls: Calls,
    resources: Resources,
    records: Records,
    live: Mutex<BTreeMap<PathBuf, Live>>,
    /// Unmounted, and not committed to the end yet.
    ending: Endings,
    /// File systems that may be served at a time.
    limit: usize,
    /// See [`Counter::new`].
    turn: Arc<Semaphore>,
    /// Is told of each operation of all of them.
    observer: Option<Arc<dyn Observer>>,
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
            calls: Calls::new(mounter, patience),
            limit: resources.budget.mounts(),
            resources,
            records,
            live: Mutex::default(),
            ending: Endings::default(),
            turn: Arc::new(Semaphore::new(1)),
            observer: None,
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

    /// The same, with somebody who is told of each operation.
    pub fn with_observer(self, observer: Arc<dyn Observer>) -> Self {
        Self {
            observer: Some(observer),
            ..self
        }
    }

    /// File systems that may be served at a time.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whether one more file system may be served. Asked before a volume's container is: calls that come at
    /// the same moment may go past the limit by a few, which the budget bears.
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

    /// Forgets volumes of which nothing is mounted any more (the machine was restarted). Dead mounts are
    /// remembered: the next stage of their volume takes them down.
    pub async fn forget_gone(&self) -> Result<()> {
        let table = self.calls.table().await?;
        for record in self.records.all() {
            let mut places = std::iter::once(&record.path).chain(record.targets.keys());
            if !places.any(|path| mountinfo::at(&table, path).is_some_and(Mount::is_ours)) {
                tracing::info!(
                    volume_id = record.volume_id, path = %record.path.display(),
                    "no longer mounted"
                );
                self.records
                    .remove(&record.path)
                    .map_err(|e| node_error(&record.path, &e))?;
            }
        }
        Ok(())
    }

    /// State of a path.
    pub async fn condition(&self, path: &Path) -> Result<Condition> {
        let table = self.calls.table().await?;
        let Some(top) = mountinfo::at(&table, path) else {
            return Ok(Condition::NotMounted);
        };
        if !top.is_ours() {
            return Ok(Condition::Foreign(top.fs_type.clone()));
        }
        let served = self.is_served(top.minor);
        if served == Some(false) {
            return Ok(Condition::Dead("its session has ended".into()));
        }
        let Err(error) = self.calls.ask(top).await else {
            return Ok(Condition::Healthy);
        };
        let why = error.to_string();
        // Of a process that is not this one, and has stopped.
        let abandoned = error.kind() == io::ErrorKind::TimedOut && served.is_none();
        Ok(if says_dead(&error) || abandoned {
            Condition::Dead(why)
        } else {
            Condition::Silent(why)
        })
    }

    /// Whether the session of a connection goes on; `None` when it is not one of this process. The kernel
    /// gives the number of a connection that has ended to the next one, so that the one that goes on counts.
    fn is_served(&self, connection: u32) -> Option<bool> {
        self.lock()
            .values()
            .filter(|live| live.serving.connection() == connection)
            .map(|live| live.serving.is_serving())
            .max()
    }

    /// Mounts and serves a volume at an existing directory, waits until it answers, and remembers it.
    pub async fn start(&self, record: Record, mut config: VolumeConfig) -> Result<()> {
        let path = record.path.clone();
        config.observer = self.observer.clone().or(config.observer);
        match self.committed(&path).await {
            Err(error) if error.reason == Reason::CommitPending => return Err(error),
            // Told now, because the call that waited for it has gone.
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "changes of the former mount are lost")
            }
            Ok(()) => {}
        }
        let counter = Counter::new(
            Arc::clone(&config.store),
            &config.prefix,
            self.resources.runtime.clone(),
            Arc::clone(&self.turn),
        );
        let served = self.calls.serve(config, &path, &self.resources).await;
        let failure = match served {
            Ok(serving) => {
                self.lock().insert(path.clone(), Live { serving, counter });
                match self.condition(&path).await {
                    Ok(Condition::Healthy) => match self.records.put(record) {
                        Ok(()) => return Ok(()),
                        Err(error) => {
                            Error::new(Reason::NodeError, format!("state of {}: {error}", path.display()))
                        }
                    },
                    Ok(other) => Error::new(
                        Reason::FileSystemSilent,
                        format!("{}: mounted, but it does not answer: {other:?}", path.display()),
                    ),
                    Err(error) => error,
                }
            }
            Err(error) => Error::new(
                Reason::MountFailed,
                format!("mount of {}: {error}", path.display()),
            ),
        };
        // Half a mount is worse than none: a pod would write into it, or beneath it.
        if let Err(error) = self.take_down(&path, Abort::Silent).await {
            tracing::warn!(path = %path.display(), %error, "could not take a failed mount down");
        }
        Err(failure)
    }

    /// Unmounts a volume, waits until everything accepted is committed, and forgets it. Nothing there is
    /// fine.
    ///
    /// # Errors
    /// `CommitPending` when the commit takes longer than a call may: the next call goes on waiting for it.
    pub async fn stop(&self, path: &Path) -> Result<()> {
        self.take_down(path, Abort::Dead).await
    }

    async fn take_down(&self, path: &Path, abort: Abort) -> Result<()> {
        self.unmount(path, abort).await?;
        let live = self.lock().remove(path);
        if let Some(live) = live {
            self.ending
                .begin(path, live.serving)
                .map_err(|e| node_error(path, &e))?;
        }
        let committed = self.committed(path).await;
        match &committed {
            Err(error) if error.reason == Reason::CommitPending => {}
            _ => self.records.remove(path).map_err(|e| node_error(path, &e))?,
        }
        committed
    }

    /// Waits for the end of what was mounted at a path; see [`Endings::committed`].
    async fn committed(&self, path: &Path) -> Result<()> {
        self.ending.committed(path, self.calls.patience.commit).await
    }

    /// Whether this process serves a file system that is mounted at a path itself.
    pub fn serves(&self, path: &Path) -> bool {
        self.lock().contains_key(path)
    }

    /// Space and inodes at a path.
    pub async fn usage(&self, path: &Path) -> Result<Usage> {
        let usage = self.calls.usage(path).await;
        usage.map_err(|e| node_error(path, &e))
    }

    /// What the volume mounted at `path` (its own mount, not a bind of it) holds, as far as it has been
    /// counted.
    pub async fn holdings(&self, path: &Path) -> Option<Holdings> {
        let counter = self.lock().get(path).map(|live| Arc::clone(&live.counter))?;
        counter.holdings().await
    }

    /// What closed files of the volume that is mounted at `path` itself owe the service.
    pub fn owing(&self, path: &Path) -> Owing {
        let live = self.lock();
        live.get(path)
            .map(|live| live.serving.owing())
            .unwrap_or_default()
    }

    /// The same of every volume, by the path of its own mount.
    pub fn all_owing(&self) -> Vec<(PathBuf, Owing)> {
        let live = self.lock();
        live.iter()
            .map(|(path, live)| (path.clone(), live.serving.owing()))
            .collect()
    }

    /// What all volumes hold for the kernel and in the service.
    pub fn all_held(&self) -> Held {
        let live = self.lock();
        live.values()
            .map(|live| live.serving.held())
            .fold(Held::default(), |sum, held| Held {
                handles: sum.handles + held.handles,
                inodes: sum.inodes + held.inodes,
                leases: sum.leases + held.leases,
            })
    }

    /// The end of the process: commits everything, unmounts what no pod uses.
    ///
    /// A volume that pods use stays mounted: its pods get ENOTCONN when the process is gone. Unmounting it
    /// here would let them go on writing, to the node's disk. Returns the number of volumes left in place.
    pub async fn shut_down(&self) -> usize {
        let mut paths: Vec<PathBuf> = self.lock().keys().cloned().collect();
        paths.extend(self.ending.paths());
        let gone = AtomicUsize::new(0);
        let gone = &gone;
        let ends = paths.iter().map(|path| async move {
            if self.end(path).await {
                gone.fetch_add(1, Ordering::Relaxed);
            }
        });
        let limit = self.calls.patience.shut_down;
        if tokio::time::timeout(limit, join_all(ends)).await.is_err() {
            tracing::error!(?limit, "the process ends before all changes are committed");
        }
        paths.len() - gone.load(Ordering::Relaxed)
    }

    /// The end of the process for one volume. True when it is not mounted any more.
    async fn end(&self, path: &Path) -> bool {
        let in_use = match self.records.get(path) {
            Some(record) if record.inline => self.lock().contains_key(path),
            _ => !self.bound_at(path).await.unwrap_or_default().is_empty(),
        };
        if in_use {
            self.sync(path).await;
            return false;
        }
        let stopped = self.stop(path).await;
        if let Err(error) = &stopped {
            tracing::warn!(path = %path.display(), %error, "could not unmount at the end");
        }
        stopped.is_ok()
    }

    /// Commits what is dirty in one mount.
    async fn sync(&self, path: &Path) {
        let Some(live) = self.lock().remove(path) else {
            return;
        };
        let work = move || (live.serving.sync(), live);
        match bounded("sync", self.calls.patience.commit, work).await {
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

    /// Unmounts everything of ours at a path. A dead mount is detached, and so is a bind that does not
    /// answer; see [`Abort`].
    async fn unmount(&self, path: &Path, abort: Abort) -> Result<()> {
        for _ in 0..MOST_STACKED {
            let table = self.calls.table().await?;
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
            let error = match self.calls.unmount(path).await {
                Ok(()) => continue,
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => continue,
                Err(error) => error,
            };
            let failed = |why: &str| {
                let text = format!("umount of {}: {error}{why}", path.display());
                Err(Error::new(Reason::UnmountFailed, text))
            };
            match self.condition(path).await? {
                Condition::Healthy => return failed(""),
                Condition::Silent(why) if abort == Abort::Dead => {
                    return failed(&format!(
                        "; the mount is served and does not answer for now: {why}"
                    ));
                }
                Condition::NotMounted | Condition::Foreign(_) => {}
                state @ (Condition::Dead(_) | Condition::Silent(_)) => {
                    tracing::warn!(
                        path = %path.display(), %error, ?state,
                        "detaching a mount that does not answer"
                    );
                    self.calls.detach(&mount, abort != Abort::Never).await?;
                }
            }
        }
        Err(Error::new(
            Reason::UnmountFailed,
            format!("{}: it is mounted again and again", path.display()),
        ))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Live>> {
        // Whole after a panic elsewhere: every change is one insert or remove.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn node_error(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::new(Reason::NodeError, format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
