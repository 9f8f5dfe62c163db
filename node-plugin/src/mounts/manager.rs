//! The mounts of this process and the steps a volume takes through them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use blob_fs::{Resources, VolumeConfig};
use futures::future::join_all;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::bounded::{BoundedError, bounded, bounded_or};
use super::holdings::{Counter, Holdings};
use super::mounter::{Mounter, Serving, Usage, says_dead, unmount_only};
use super::mountinfo::{self, Mount};
use super::record::{Record, Records, Target};
use crate::csi::status::{Error, Reason, Result};

/// How long each kind of step may take before it counts as hung.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// A stat of the root directory. The answer may need a request to the service.
    pub answer: Duration,
    /// What asks only the kernel: the mount table, a directory of the node, a lazy unmount.
    pub local: Duration,
    /// mount(2) and the kernel's handshake.
    pub mount: Duration,
    /// umount(2).
    pub unmount: Duration,
    /// Committing what is dirty at the end. Kubelet gives a call two minutes.
    pub commit: Duration,
    /// The end of all volumes together when the process ends. The chart gives it two minutes, calls at work among them.
    pub shut_down: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(15),
            local: Duration::from_secs(30),
            mount: Duration::from_secs(30),
            unmount: Duration::from_secs(10),
            commit: Duration::from_secs(90),
            shut_down: Duration::from_secs(100),
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
    /// Ours, and nobody serves it any more; why.
    Dead(String),
    /// Ours and served, but its root cannot be had for now: the service fails, or takes too long. Pods may have open files in it
    /// and changes on their way, and it goes on by itself: it is never taken away by force.
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
    mounter: Arc<dyn Mounter>,
    resources: Resources,
    records: Records,
    live: Mutex<BTreeMap<PathBuf, Live>>,
    /// Unmounted, and not committed to the end yet.
    ending: Mutex<BTreeMap<PathBuf, Ending>>,
    /// Connections of which a stat has not returned in time; gone with the thread that waits for it.
    stuck: Mutex<BTreeMap<u32, Weak<()>>>,
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

/// A file system after its unmount, with a thread that commits what was accepted.
#[derive(Debug, Clone)]
struct Ending {
    /// Its session has ended: what takes time now is the commit.
    ended: CancellationToken,
    /// How the commit ended.
    outcome: watch::Receiver<Option<Result<(), String>>>,
}

impl Ending {
    fn of(serving: Box<dyn Serving>) -> io::Result<Self> {
        let ended = serving.ended();
        let (done, outcome) = watch::channel(None);
        std::thread::Builder::new()
            .name("commit".to_owned())
            .spawn(move || {
                let result = serving.join().map_err(|error| error.to_string());
                done.send_replace(Some(result));
            })?;
        Ok(Self { ended, outcome })
    }
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
            ending: Mutex::default(),
            stuck: Mutex::default(),
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
        let served = self.is_served(top.minor);
        if served == Some(false) {
            return Ok(Condition::Dead("its session has ended".into()));
        }
        let Err(error) = self.ask(top).await else {
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

    /// Whether the session of a connection goes on; `None` when it is not one of this process. The kernel gives the number of a
    /// connection that has ended to the next one, so that the one that goes on counts.
    fn is_served(&self, connection: u32) -> Option<bool> {
        self.lock()
            .values()
            .filter(|live| live.serving.connection() == connection)
            .map(|live| live.serving.is_serving())
            .max()
    }

    /// Asks the file system of a mount. While one stat hangs there is no second one, which would leave one more thread behind.
    async fn ask(&self, mount: &Mount) -> io::Result<()> {
        let stuck = |connection| {
            let stuck = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
            stuck
                .get(&connection)
                .is_some_and(|asking: &Weak<()>| asking.strong_count() > 0)
        };
        if stuck(mount.minor) {
            let text = "an earlier stat has not returned yet";
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        let (mounter, at, asking) = (self.mounter.clone(), mount.at.clone(), Arc::new(()));
        let returned = Arc::downgrade(&asking);
        let answer = bounded("stat", self.patience.answer, move || {
            let _asking = asking;
            mounter.answers(&at)
        })
        .await;
        if let Err(BoundedError::TimedOut { .. }) = answer {
            let mut stuck = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
            stuck.retain(|_, asking| asking.strong_count() > 0);
            stuck.insert(mount.minor, returned);
        }
        flatten(answer)
    }

    /// Mounts and serves a volume at an existing directory, waits until it answers, and remembers it.
    pub async fn start(&self, record: Record, config: VolumeConfig) -> Result<()> {
        let path = record.path.clone();
        match self.committed(&path).await {
            Err(error) if error.reason == Reason::CommitPending => return Err(error),
            // Told now, because the call that waited for it has gone.
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "changes of the former mount are lost")
            }
            Ok(()) => {}
        }
        let (mounter, at, resources) = (self.mounter.clone(), path.clone(), self.resources.clone());
        let counter = Counter::new(
            Arc::clone(&config.store),
            &config.prefix,
            self.resources.runtime.clone(),
            Arc::clone(&self.turn),
        );
        let late = {
            let (mounter, at) = (mounter.clone(), path.clone());
            move |served: io::Result<Box<dyn Serving>>| {
                let Some(serving) = served.ok().filter(|serving| serving.is_serving()) else {
                    return;
                };
                tracing::warn!(path = %at.display(), "a mount came too late and is taken away");
                if let Err(error) = unmount_only(&*mounter, &at, serving.connection()) {
                    tracing::warn!(path = %at.display(), %error, "could not take a late mount away");
                }
            }
        };
        let work = move || mounter.serve(config, &at, &resources);
        let served = bounded_or("mount", self.patience.mount, work, late).await;
        let failure = match flatten(served) {
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

    /// Unmounts a volume, waits until everything accepted is committed, and forgets it. Nothing there is fine.
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
            let ending = Ending::of(live.serving).map_err(|e| node_error(path, &e))?;
            self.ending().insert(path.to_owned(), ending);
        }
        let committed = self.committed(path).await;
        match &committed {
            Err(error) if error.reason == Reason::CommitPending => {}
            _ => self.records.remove(path).map_err(|e| node_error(path, &e))?,
        }
        committed
    }

    /// Waits until what was mounted at a path, and is not any more, has committed its last changes.
    async fn committed(&self, path: &Path) -> Result<()> {
        let Some(mut ending) = self.ending().get(path).cloned() else {
            return Ok(());
        };
        let limit = self.patience.commit;
        let outcome = tokio::time::timeout(limit, ending.outcome.wait_for(Option::is_some)).await;
        let failure = match outcome {
            Ok(Ok(outcome)) => outcome.as_ref().and_then(|result| result.clone().err()),
            Ok(Err(_)) => Some("the thread that commits them panicked".to_owned()),
            Err(_) if ending.ended.is_cancelled() => {
                return Err(Error::new(
                    Reason::CommitPending,
                    format!(
                        "{}: unmounted, but the last changes are not committed after {limit:?}",
                        path.display()
                    ),
                ));
            }
            Err(_) => {
                // Held from another mount namespace; its thread goes on serving and committing until that ends.
                tracing::warn!(path = %path.display(), ?limit, "the file system is still in use elsewhere");
                None
            }
        };
        self.ending().remove(path);
        match failure {
            None => Ok(()),
            Some(error) => Err(Error::new(
                Reason::ServiceError,
                format!(
                    "{}: unmounted, but the last changes could not be committed: {error}",
                    path.display()
                ),
            )),
        }
    }

    /// Binds a mounted volume to a pod's directory, creating it.
    pub async fn bind(&self, source: &Path, target: &Path, args: Target) -> Result<()> {
        let Some(staged) = self.mount_at(source).await? else {
            return Err(Error::new(
                Reason::NotStaged,
                format!("{}: the volume is not mounted there any more", source.display()),
            ));
        };
        self.prepare_target(target).await?;
        let failed = |error: &dyn std::fmt::Display| {
            Error::new(
                Reason::MountFailed,
                format!("bind of {} to {}: {error}", source.display(), target.display()),
            )
        };
        let late = {
            let (mounter, at) = (self.mounter.clone(), target.to_owned());
            move |bound: io::Result<()>| {
                if bound.is_ok() && unmount_only(&*mounter, &at, staged.minor).is_err() {
                    tracing::warn!(path = %at.display(), "could not take a bind away that came too late");
                }
            }
        };
        let (mounter, from, to) = (self.mounter.clone(), source.to_owned(), target.to_owned());
        let work = move || mounter.bind(&from, &to, args.read_only);
        let bound = bounded_or("bind", self.patience.mount, work, late).await;
        flatten(bound).map_err(|error| failed(&error))?;
        // The mount may have gone in between: then it is the node's own disk that was bound.
        let there = self.mount_at(target).await?;
        if !there.is_some_and(|there| there.same_file_system(&staged)) {
            let (mounter, at) = (self.mounter.clone(), target.to_owned());
            let undone = bounded("umount -l", self.patience.local, move || {
                mounter.unmount(&at, true)
            });
            if let Err(error) = flatten(undone.await) {
                tracing::error!(path = %target.display(), %error, "a bind of something else could not be undone");
            }
            return Err(failed(&"the volume was not there any more"));
        }
        self.remember_target(source, target, args)
    }

    /// Notes where a volume is published.
    pub fn remember_target(&self, source: &Path, target: &Path, args: Target) -> Result<()> {
        let remembered = self.records.update(source, |record| {
            record.targets.insert(target.to_owned(), args);
        });
        remembered.map_err(|e| node_error(source, &e))
    }

    /// Takes a pod's directory away. Nothing there is fine; files left in it are not ours to delete.
    pub async fn unbind(&self, target: &Path) -> Result<()> {
        self.unmount(target, Abort::Never).await?;
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
            self.patience.local,
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
        let removed = bounded("rmdir", self.patience.local, move || std::fs::remove_dir(&path)).await;
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

    /// Whose path this is: the volume whose file system is mounted or bound there; when it is none of them, those that are
    /// remembered there.
    pub async fn volumes_at(&self, path: &Path) -> Result<Vec<Record>> {
        let mut records = self.records.all();
        let table = self.table().await?;
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

    /// Whether this process serves a file system that is mounted at a path itself.
    pub fn serves(&self, path: &Path) -> bool {
        self.lock().contains_key(path)
    }

    /// Those of the targets at which a mount of this driver is still to be seen.
    pub async fn still_mounted(
        &self,
        mut targets: BTreeMap<PathBuf, Target>,
    ) -> Result<BTreeMap<PathBuf, Target>> {
        let table = self.table().await?;
        targets.retain(|target, _| mountinfo::at(&table, target).is_some_and(Mount::is_ours));
        Ok(targets)
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
        let mut paths: Vec<PathBuf> = self.lock().keys().cloned().collect();
        paths.extend(self.ending().keys().cloned());
        let gone = AtomicUsize::new(0);
        let gone = &gone;
        let ends = paths.iter().map(|path| async move {
            if self.end(path).await {
                gone.fetch_add(1, Ordering::Relaxed);
            }
        });
        let limit = self.patience.shut_down;
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

    /// Unmounts everything of ours at a path. A dead mount is detached, and so is a bind that does not answer; see [`Abort`].
    async fn unmount(&self, path: &Path, abort: Abort) -> Result<()> {
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
            let error = match flatten(plain) {
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
                    tracing::warn!(path = %path.display(), %error, ?state, "detaching a mount that does not answer");
                    self.detach(&mount, abort != Abort::Never).await?;
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
        let detached = bounded("umount -l", self.patience.local, move || {
            // First: whoever is blocked on it holds locks that the unmount may want. Without it they stay blocked, but the path is free.
            if abort && let Err(error) = mounter.abort(&doomed) {
                tracing::warn!(path = %doomed.at.display(), %error, "could not abort the connection of a dead mount");
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
        let table = bounded("mountinfo", self.patience.local, move || mounter.table()).await;
        flatten(table).map_err(|e| Error::new(Reason::NodeError, format!("/proc/self/mountinfo: {e}")))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Live>> {
        // Whole after a panic elsewhere: every change is one insert or remove.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ending(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Ending>> {
        // Whole after a panic elsewhere, like the other.
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
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
