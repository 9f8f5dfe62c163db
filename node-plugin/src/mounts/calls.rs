//! System calls on mounts and directories of the node, each with its limit.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blob_fs::{Resources, VolumeConfig};

use super::bounded::{BoundedError, bounded, bounded_or};
use super::mounter::{Detached, Mounter, Serving, Usage, unmount_only};
use super::mountinfo::Entry;
use super::placing::Place;
use crate::error::{Error, Reason, Result};

/// How long each kind of step may take before it counts as hung.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// A stat of the root directory. The answer may need a request to the service.
    pub answer: Duration,
    /// What asks only the kernel: the mount table, a directory of the node, a lazy unmount.
    pub local: Duration,
    /// mount(2) and the kernel's handshake.
    pub mount: Duration,
    /// A mount that appears at its place.
    pub appear: Duration,
    /// umount(2).
    pub unmount: Duration,
    /// Committing what is dirty at the end. Kubelet gives a call two minutes.
    pub commit: Duration,
    /// The end of all volumes together, and of the calls at work, from the moment at which the process is
    /// told to end. The chart gives it two minutes.
    pub shut_down: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(15),
            local: Duration::from_secs(30),
            mount: Duration::from_secs(30),
            appear: Duration::from_secs(30),
            unmount: Duration::from_secs(10),
            commit: Duration::from_secs(90),
            shut_down: Duration::from_secs(100),
        }
    }
}

/// The kernel of the node, asked in a way that always returns.
#[derive(Debug)]
pub(super) struct Calls {
    mounter: Arc<dyn Mounter>,
    pub(super) patience: Patience,
}

impl Calls {
    pub(super) fn new(mounter: Arc<dyn Mounter>, patience: Patience) -> Self {
        Self { mounter, patience }
    }

    /// The mount table.
    pub(super) async fn table(&self) -> Result<Vec<Entry>> {
        let mounter = self.mounter.clone();
        let table = bounded("mountinfo", self.patience.local, move || mounter.table()).await;
        flatten(table).map_err(|e| Error::new(Reason::NodeError, format!("/proc/self/mountinfo: {e}")))
    }

    /// The kernel itself, for threads that may block.
    pub(super) fn mounter(&self) -> Arc<dyn Mounter> {
        self.mounter.clone()
    }

    /// Asks the file system at a path; `asking` is dropped when the thread that asks has its answer.
    pub(super) async fn ask(&self, at: &Path, asking: Arc<()>) -> io::Result<()> {
        let (mounter, at) = (self.mounter.clone(), at.to_owned());
        let answer = bounded("stat", self.patience.answer, move || {
            let _asking = asking;
            mounter.answers(&at)
        });
        flatten(answer.await)
    }

    /// Mounts and serves a volume where nobody sees it. One that comes when nobody waits for it any more is
    /// taken away by being dropped.
    pub(super) async fn serve(
        &self,
        config: VolumeConfig,
        resources: &Resources,
    ) -> io::Result<(Box<dyn Serving>, Detached)> {
        let (mounter, resources) = (self.mounter.clone(), resources.clone());
        let work = move || mounter.serve(config, &resources);
        flatten(bounded("mount", self.patience.mount, work).await)
    }

    /// Makes a mount appear at a place; `at_work` is dropped when the thread that does it has ended.
    pub(super) async fn attach(&self, mount: Arc<Detached>, to: Place, at_work: Arc<()>) -> io::Result<()> {
        let late = self.late(&to, mount.connection, at_work);
        let mounter = self.mounter.clone();
        let work = move || mounter.attach(&mount, &to);
        flatten(bounded_or("attach", self.patience.appear, work, late).await)
    }

    /// Takes a mount away that nobody has seen.
    pub(super) async fn discard(&self, mount: Arc<Detached>) -> io::Result<()> {
        let dropped = bounded("umount", self.patience.unmount, move || {
            drop(mount);
            Ok(())
        });
        flatten(dropped.await)
    }

    /// Makes a mount of ours appear at another place too; `at_work` as in [`Calls::attach`].
    pub(super) async fn bind(
        &self,
        staged: &Entry,
        to: Place,
        read_only: bool,
        at_work: Arc<()>,
    ) -> io::Result<()> {
        let late = self.late(&to, staged.minor, at_work);
        let (mounter, from) = (self.mounter.clone(), staged.clone());
        let work = move || mounter.bind(&from, &to, read_only);
        flatten(bounded_or("bind", self.patience.appear, work, late).await)
    }

    /// What is done with a mount of a connection that appears when nobody waits for it any more. One that has
    /// replaced another stays: below it is the node's disk.
    fn late(&self, to: &Place, connection: u32, at_work: Arc<()>) -> impl FnOnce(io::Result<()>) + use<> {
        let (mounter, at, replaces) = (self.mounter.clone(), to.at.clone(), to.over.is_some());
        move |appeared| {
            let _at_work = at_work;
            if appeared.is_ok() && !replaces {
                take_away_late(&*mounter, &at, connection);
            }
        }
    }

    /// Ends the connection of a mount that nobody serves: whoever waits for an answer gets an error. Nothing
    /// is done when it is not there any more: its number may be another one's by now.
    pub(super) async fn abort(&self, mount: &Entry) -> io::Result<()> {
        let (mounter, mount) = (self.mounter.clone(), mount.clone());
        let abort = bounded("abort", self.patience.local, move || {
            let same =
                |other: &Entry| (other.id, &other.at, other.minor) == (mount.id, &mount.at, mount.minor);
            match mounter.table()?.iter().any(same) {
                true => mounter.abort(mount.minor),
                false => Ok(()),
            }
        });
        flatten(abort.await)
    }

    /// The same for one that is kept, so that the number is its own.
    pub(super) async fn abort_kept(&self, mount: &Arc<Detached>) -> io::Result<()> {
        let (mounter, mount) = (self.mounter.clone(), mount.clone());
        flatten(
            bounded("abort", self.patience.local, move || {
                mounter.abort(mount.connection)
            })
            .await,
        )
    }

    /// umount(2) of the uppermost mount at a path.
    pub(super) async fn unmount(&self, path: &Path) -> io::Result<()> {
        let (mounter, at) = (self.mounter.clone(), path.to_owned());
        let plain = bounded("umount", self.patience.unmount, move || {
            mounter.unmount(&at, false)
        });
        flatten(plain.await)
    }

    /// Takes a mount out of the tree, whoever uses it.
    pub(super) async fn detach(&self, mount: &Entry, abort: bool) -> Result<()> {
        let (mounter, doomed) = (self.mounter.clone(), mount.clone());
        let detached = bounded("umount -l", self.patience.local, move || {
            // First: whoever is blocked on it holds locks that the unmount may want. Without it they stay
            // blocked, but the path is free.
            if abort && let Err(error) = mounter.abort(doomed.minor) {
                tracing::warn!(
                    path = %doomed.at.display(), %error,
                    "could not abort the connection of a dead mount"
                );
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

    /// Whether a directory holds nothing.
    pub(super) async fn is_empty(&self, path: &Path) -> io::Result<bool> {
        let path = path.to_owned();
        let read = bounded("readdir", self.patience.local, move || {
            Ok(std::fs::read_dir(&path)?.next().is_none())
        });
        flatten(read.await)
    }

    /// Creates a directory and those above it; whether a directory is there now.
    pub(super) async fn make_directory(&self, path: &Path) -> io::Result<bool> {
        let path = path.to_owned();
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
        flatten(found.await)
    }

    /// Removes an empty directory.
    pub(super) async fn remove_directory(&self, path: &Path) -> io::Result<()> {
        let path = path.to_owned();
        flatten(bounded("rmdir", self.patience.local, move || std::fs::remove_dir(&path)).await)
    }

    /// Space and inodes at a path.
    pub(super) async fn usage(&self, path: &Path) -> io::Result<Usage> {
        let (mounter, at) = (self.mounter.clone(), path.to_owned());
        flatten(bounded("statvfs", self.patience.answer, move || mounter.usage(&at)).await)
    }
}

fn take_away_late(mounter: &dyn Mounter, at: &Path, connection: u32) {
    tracing::warn!(path = %at.display(), "a mount came too late and is taken away");
    if let Err(error) = unmount_only(mounter, at, connection) {
        tracing::warn!(path = %at.display(), %error, "could not take a late mount away");
    }
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
