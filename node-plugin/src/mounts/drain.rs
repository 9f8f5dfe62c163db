//! The end of a mount: unmounted, committed, forgotten - and that of all of them with the process.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::manager::{Mounts, node_error};
use super::mount::{Mount, State, prune};
use super::mounter::{Mounter, Serving};
use super::mountinfo;
use super::probe::Condition;
use super::record::this_boot;
use crate::error::{Error, Reason, Result};

/// Whose connection an unmount may abort. An abort loses what is not committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Abort {
    /// Nobody's: it is one of several binds, and is taken out of the tree at most.
    Never,
    /// That of a mount which nobody serves.
    Dead,
}

/// Mounts at one path that are taken down at most by one call; more is a loop of somebody mounting. Each end
/// of a node process leaves a dead one below the next.
const MOST_STACKED: usize = 256;

/// A file system that takes nothing more, with a thread that commits what was accepted.
#[derive(Debug, Clone)]
pub(super) struct Drain {
    /// Its session has ended: what takes time now is the commit.
    ended: CancellationToken,
    /// How the commit ended.
    outcome: watch::Receiver<Option<Result<(), String>>>,
}

impl Drain {
    /// Of a file system that is not mounted any more.
    fn of_unmounted(serving: Box<dyn Serving>) -> io::Result<Self> {
        Self::begin(serving.ended(), move || serving.join())
    }

    /// Of one that pods use, and that stays where it is: most is committed while it still takes more, then
    /// its connection ends, and what came meanwhile is committed as well. Nothing that was accepted is lost,
    /// and nothing is accepted that nobody would commit.
    fn in_use(serving: Box<dyn Serving>, mounter: Arc<dyn Mounter>, path: PathBuf) -> io::Result<Self> {
        Self::begin(serving.ended(), move || {
            if let Err(error) = serving.sync() {
                tracing::warn!(path = %path.display(), %error, "not committed yet; tried again");
            }
            match mounter.abort(serving.connection()) {
                Ok(()) => serving.join(),
                // It goes on taking more until the process ends; a join would wait for ever.
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "the connection could not be ended");
                    serving.sync()
                }
            }
        })
    }

    fn begin(
        ended: CancellationToken,
        work: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let (done, outcome) = watch::channel(None);
        #[cfg(test)]
        if let Some(steps) = super::steps::here() {
            steps.work(move || {
                done.send_replace(Some(work().map_err(|error| error.to_string())));
            });
            return Ok(Self { ended, outcome });
        }
        std::thread::Builder::new()
            .name("commit".to_owned())
            .spawn(move || {
                let result = work().map_err(|error| error.to_string());
                done.send_replace(Some(result));
            })?;
        Ok(Self { ended, outcome })
    }

    /// Its outcome: why not everything is in the service, if so.
    async fn outcome(&mut self) -> Option<String> {
        match self.outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.as_ref().and_then(|result| result.clone().err()),
            Err(_) => Some("the thread that commits them panicked".to_owned()),
        }
    }
}

impl Mounts {
    /// Unmounts a volume, waits until everything accepted is committed, and forgets it. Nothing there is
    /// fine.
    ///
    /// # Errors
    /// `CommitPending` when the commit takes longer than a call may, or the process is about to end: the next
    /// call goes on waiting for it.
    pub async fn stop(&self, path: &Path) -> Result<()> {
        self.unmount(path, Abort::Dead).await?;
        self.drain(path)?;
        let committed = self.committed(path).await;
        self.forget_committed(path, committed)
    }

    /// After a commit nothing is to be remembered; one that is not over goes on.
    fn forget_committed(&self, path: &Path, committed: Result<()>) -> Result<()> {
        match &committed {
            Err(error) if error.reason == Reason::CommitPending => {}
            _ => self.forget(path)?,
        }
        committed
    }

    /// Begins the commit of what was mounted at a path, and is not any more.
    pub(super) fn drain(&self, path: &Path) -> Result<()> {
        self.begin_drain(path, Drain::of_unmounted)
    }

    fn begin_drain(
        &self,
        path: &Path,
        begin: impl FnOnce(Box<dyn Serving>) -> io::Result<Drain>,
    ) -> Result<()> {
        let mut all = self.lock();
        let Some(mount) = all.get_mut(path) else {
            return Ok(());
        };
        match std::mem::replace(&mut mount.state, State::Dead) {
            State::Serving(session) => {
                let drain = begin(session.serving).map_err(|e| node_error(path, &e))?;
                mount.state = State::Ending(drain);
            }
            other => mount.state = other,
        }
        Ok(())
    }

    /// Waits until what was mounted at a path, and is not any more, has committed its last changes.
    ///
    /// # Errors
    /// `CommitPending` when it takes longer than a call may. When the process is about to end, no call waits:
    /// its end does.
    pub(super) async fn committed(&self, path: &Path) -> Result<()> {
        let ends = async {
            let mut end_by = self.end_by.subscribe();
            // The sender is our own.
            let _ = end_by.wait_for(Option::is_some).await;
        };
        self.committed_before(path, self.calls.patience.commit, ends)
            .await
    }

    async fn committed_before(
        &self,
        path: &Path,
        limit: Duration,
        end: impl Future<Output = ()>,
    ) -> Result<()> {
        let drain = match self.lock().get(path).map(|mount| &mount.state) {
            Some(State::Ending(drain)) => Some(drain.clone()),
            _ => None,
        };
        let Some(mut drain) = drain else {
            return Ok(());
        };
        let ended = drain.ended.clone();
        let pending = |why: String| {
            Err(Error::new(
                Reason::CommitPending,
                format!(
                    "{}: unmounted, but the last changes are not committed {why}",
                    path.display()
                ),
            ))
        };
        let failure = tokio::select! {
            biased;
            failure = drain.outcome() => failure,
            () = end => return pending("yet, and the process ends".to_owned()),
            () = tokio::time::sleep(limit) => {
                if ended.is_cancelled() {
                    return pending(format!("after {limit:?}"));
                }
                // Held from another mount namespace; its thread goes on serving and committing until that
                // ends.
                tracing::warn!(path = %path.display(), ?limit, "the file system is still in use elsewhere");
                None
            }
        };
        let mut all = self.lock();
        if let Some(mount) = all.get_mut(path)
            && matches!(mount.state, State::Ending(_))
        {
            mount.state = State::Dead;
        }
        prune(&mut all);
        drop(all);
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

    /// The process is about to end: from now on the time of [`Mounts::shut_down`] runs, which is that of the
    /// calls at work as well.
    pub fn end_soon(&self) {
        let by = Instant::now() + self.calls.patience.shut_down;
        self.end_by.send_if_modified(|end_by| {
            let first = end_by.is_none();
            end_by.get_or_insert(by);
            first
        });
    }

    /// The end of the process: commits everything, unmounts what no pod uses.
    ///
    /// A volume that pods use stays mounted, and takes nothing more: its pods get ENOTCONN. Unmounting it
    /// here would let them go on writing, to the node's disk. Returns the number of volumes left in place.
    pub async fn shut_down(&self) -> usize {
        self.end_soon();
        let by = self.end_by.borrow().unwrap_or_else(Instant::now);
        self.closed.store(true, Ordering::SeqCst);
        let left = &AtomicUsize::new(0);
        if tokio::time::timeout_at(by, self.end_all(left)).await.is_err() {
            tracing::error!("the process ends before all changes are committed");
        }
        left.load(Ordering::Relaxed)
    }

    /// Ends what is at work, and what calls that are at work make, wherever they do: one that publishes at a
    /// pod's directory may make the volume anew at another path. `left`: those that are not unmounted yet.
    async fn end_all(&self, left: &AtomicUsize) {
        let mut seen = BTreeSet::new();
        loop {
            let paths: Vec<(PathBuf, bool)> = {
                let all = self.lock();
                let ends = all.iter().filter(|(path, mount)| {
                    (mount.is_at_work() || mount.is_in_flight()) && !seen.contains(*path)
                });
                ends.map(|(path, mount)| (path.clone(), mount.is_at_work()))
                    .collect()
            };
            if paths.is_empty() {
                return;
            }
            let at_work = paths.iter().filter(|(_, at_work)| *at_work).count();
            left.fetch_add(at_work, Ordering::Relaxed);
            let ends = paths.iter().map(|(path, before)| async move {
                // A call whose caller has gone: what it mounts, or where it binds the volume, ends as well.
                self.until_idle(path).await;
                let is_at_work = self.lock().get(path).is_some_and(Mount::is_at_work);
                match (before, is_at_work) {
                    (false, false) => return,
                    (false, true) => _ = left.fetch_add(1, Ordering::Relaxed),
                    (true, _) => {}
                }
                if self.end(path).await {
                    left.fetch_sub(1, Ordering::Relaxed);
                }
            });
            join_all(ends).await;
            seen.extend(paths.into_iter().map(|(path, _)| path));
        }
    }

    /// The end of the process for one volume. True when it is not mounted any more.
    async fn end(&self, path: &Path) -> bool {
        let in_use = match self.record(path) {
            Some(record) if record.inline => !matches!(self.mount_at(path).await, Ok(None)),
            // Also when nobody can say.
            _ => !matches!(self.bound_at(path).await, Ok(bound) if bound.is_empty()),
        };
        let ended = if in_use {
            self.drain_in_use(path).await
        } else {
            self.end_unused(path).await
        };
        if let Err(error) = &ended {
            tracing::error!(path = %path.display(), %error, "at the end of the process");
        }
        !in_use && ended.is_ok()
    }

    async fn end_unused(&self, path: &Path) -> Result<()> {
        // First: of one that is unmounted and not remembered the next publish would not know.
        let kept = match self.set_aside(path) {
            Ok(kept) => kept,
            Err(error) => {
                // It stays where it is, as one that is dead.
                self.drain_in_use(path).await?;
                return Err(error);
            }
        };
        if let Err(error) = self.unmount(path, Abort::Dead).await {
            // It stays where it is, and what it has accepted is committed.
            self.drain_in_use(path).await?;
            return Err(error);
        }
        self.drain(path)?;
        let committed = self.committed_at_the_end(path).await;
        match kept {
            true => committed,
            false => self.forget_committed(path, committed),
        }
    }

    /// Notes that a staged volume is unmounted with the process, and stays staged for kubelet: a pod may come
    /// to the next process. Whether that is so.
    fn set_aside(&self, path: &Path) -> Result<bool> {
        let Some(boot) = this_boot() else { return Ok(false) };
        if self.record(path).is_none_or(|record| record.inline) {
            return Ok(false);
        }
        self.change_record(path, |record| record.set_aside = Some(boot))?;
        Ok(true)
    }

    async fn drain_in_use(&self, path: &Path) -> Result<()> {
        let mounter = self.calls.mounter();
        match self.mount_at(path).await {
            Ok(None) => self.drain(path)?,
            // Also when nobody can say.
            Ok(Some(_)) | Err(_) => {
                self.begin_drain(path, |serving| Drain::in_use(serving, mounter, path.to_owned()))?;
            }
        }
        self.committed_at_the_end(path).await
    }

    /// The end of the process waits where calls do not.
    async fn committed_at_the_end(&self, path: &Path) -> Result<()> {
        let limit = self.calls.patience.commit;
        self.committed_before(path, limit, std::future::pending()).await
    }

    /// Unmounts everything of ours at a path. A dead mount is detached, and so is a bind that does not
    /// answer; see [`Abort`].
    pub(super) async fn unmount(&self, path: &Path, abort: Abort) -> Result<()> {
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
}
