//! Volume: what a mount is - the serving session, and its end.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vsc_driver::buffer::Arena;

use crate::budget::Budget;
use crate::config::{Profile, VolumeConfig};
use crate::content::{Env, Tuning};
use crate::fuse;
use crate::journal::log::Log;
use crate::tree::{Held, Owing, Tree, names};

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
///
/// Dropping it leaves the session running until it is unmounted; [`Volume::join`] is the orderly end.
#[derive(Debug)]
pub struct Volume {
    tree: Arc<Tree>,
    tasks: TaskTracker,
    runtime: tokio::runtime::Handle,
    session: JoinHandle<io::Result<()>>,
    ended: CancellationToken,
}

impl Volume {
    /// Serves `config` on an already mounted `/dev/fuse` descriptor (see [`crate::fuse::mount`]), and returns
    /// once the root was reached in the service and the kernel's INIT has been answered. `mountpoint` is only
    /// used to tune the mount (read-ahead).
    ///
    /// On an error the descriptor is closed; the mount point is the caller's to unmount. Blocks on requests
    /// that run on `resources.runtime`: not for use on a current-thread runtime's own thread.
    ///
    /// # Errors
    /// `NotFound` for a missing container, `PermissionDenied` for a wrong key or expired SAS, and whatever
    /// else keeps the root from being read; or an error of the FUSE handshake.
    pub fn serve(
        config: VolumeConfig,
        fd: OwnedFd,
        mountpoint: PathBuf,
        resources: &Resources,
    ) -> io::Result<Self> {
        Self::serve_device(config, fd, resources, || fuse::device_at(&mountpoint))
    }

    /// The same for a mount that no path leads to yet.
    ///
    /// # Errors
    /// As [`Volume::serve`].
    pub fn serve_detached(
        config: VolumeConfig,
        device: OwnedFd,
        tree: &fuse::Tree,
        resources: &Resources,
    ) -> io::Result<Self> {
        Self::serve_device(config, device, resources, || {
            Ok(format!("0:{}", tree.connection()?))
        })
    }

    fn serve_device(
        config: VolumeConfig,
        fd: OwnedFd,
        resources: &Resources,
        device: impl FnOnce() -> io::Result<String>,
    ) -> io::Result<Self> {
        check(&config)?;
        let env = Env {
            tuning: Tuning {
                stored_for: config.tuning.stored_for.max(config.attr_timeout),
                ..config.tuning
            },
            patience: config.timeout,
            ..Env::new(
                Arc::clone(&config.store),
                Arc::clone(&resources.budget),
                Arc::clone(&resources.arena),
                resources.runtime.clone(),
            )
        };
        let profile = config.profile;
        let tree = Tree::new(config, env, Arc::new(Log::create()?.charged(&resources.budget)));
        wait_for(&resources.runtime, {
            let tree = Arc::clone(&tree);
            async move { tree.check_root().await }
        })?
        .map_err(unreachable_root)?;
        let tasks = TaskTracker::new();
        let session = fuse::serve(Arc::clone(&tree), fd, resources.runtime.clone(), tasks.clone())?;
        let ended = CancellationToken::new();
        let session = std::thread::Builder::new().name("fuse-session".into()).spawn({
            let ended = ended.clone().drop_guard();
            move || {
                let _ended = ended;
                match session.run() {
                    Err(error) if is_an_end(&error) => Ok(()),
                    other => other,
                }
            }
        })?;
        let read_ahead = match profile {
            Profile::General | Profile::Streaming | Profile::ReadonlyShared => 16 * 1024,
            Profile::SmallFiles => 1024,
        };
        let tuned = device().and_then(|device| fuse::set_read_ahead(&device, read_ahead));
        if let Err(error) = tuned {
            // Slower reads are no reason to refuse a mount (a read-only /sys, no root).
            tracing::debug!(%error, volume = tree.config().name, "cannot set the kernel's read-ahead");
        }
        Ok(Self {
            tree,
            tasks,
            runtime: resources.runtime.clone(),
            session,
            ended,
        })
    }

    /// Cancelled once the session has ended (unmounted, aborted, or failed); also while [`Volume::join`] is
    /// at work, which goes on to commit what was accepted.
    pub fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// False once the session has ended (unmounted, aborted, or failed).
    pub fn is_serving(&self) -> bool {
        !self.session.is_finished()
    }

    /// Commits everything dirty; the first error, if any. Blocks.
    pub fn sync(&self) -> io::Result<()> {
        let tree = Arc::clone(&self.tree);
        wait_for(&self.runtime, async move { tree.commit_all().await })?.map_err(io::Error::from)
    }

    /// Waits until the kernel has ended the session (after `umount`), and everything accepted is committed.
    /// Blocks.
    pub fn join(self) -> io::Result<()> {
        let Self {
            tree,
            tasks,
            runtime,
            session,
            ended: _,
        } = self;
        let ended = session
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the FUSE session panicked")));
        tasks.close();
        let finished = wait_for(&runtime, async move {
            operations_end(&tasks, &tree).await;
            tree.finish().await
        })?;
        finished.map_err(io::Error::from).and(ended)
    }

    /// What files that were closed owe the service: it was not there when they were, and is asked again.
    pub fn owing(&self) -> Owing {
        self.tree.owing()
    }

    /// Why the service does not serve it, as the latest request has shown; nothing is asked.
    pub fn trouble(&self) -> Option<String> {
        self.tree.trouble()
    }

    /// What it holds for the kernel and in the service now.
    pub fn held(&self) -> Held {
        self.tree.held()
    }

    /// The journal of this mount: the state a replacement process goes on from.
    pub fn journal(&self) -> Arc<Log> {
        Arc::clone(self.tree.journal())
    }
}

/// The connection has ended under a request that was being read: Linux says ECONNABORTED then where it says
/// ENODEV to who reads next (`fuse_dev_do_read` in fs/fuse/dev.c, 4.20 to 6.18).
fn is_an_end(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECONNABORTED)
}

/// What the kernel asked for before it ended the session ends by itself, as long as the volume gets on; what
/// gets nowhere for as long as its caller would wait does not keep the volume from its end.
async fn operations_end(tasks: &TaskTracker, tree: &Tree) {
    if tree.clock().within(pin!(tasks.wait())).await.is_none() {
        tracing::warn!(
            volume = tree.config().name,
            operations = tasks.len(),
            "the volume ends while operations are under way that get nowhere"
        );
    }
}

/// Refuses what would only fail later, and then less clearly.
fn check(config: &VolumeConfig) -> io::Result<()> {
    let prefix = &config.prefix;
    let wrong = |message: String| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    if !prefix.is_empty()
        && prefix
            .split('/')
            .any(|component| names::shown(component, false).is_none())
    {
        return wrong(format!(
            "prefix: {prefix:?} is no directory name; components must not be empty, `.`, `..`, \
             or end with a dot"
        ));
    }
    if names::check_blob(prefix).is_err() {
        return wrong(format!(
            "prefix: longer than the {} characters of a blob name",
            names::MAX_BLOB_NAME
        ));
    }
    Ok(())
}

/// Runs a future on the runtime and waits for it, wherever the caller itself runs.
fn wait_for<T: Send + 'static>(
    runtime: &tokio::runtime::Handle,
    future: impl Future<Output = T> + Send + 'static,
) -> io::Result<T> {
    let (send, receive) = std::sync::mpsc::sync_channel(1);
    runtime.spawn(async move {
        let _ = send.send(future.await);
    });
    receive
        .recv()
        .map_err(|_| io::Error::other("the runtime was shut down"))
}

fn unreachable_root(error: blob_client::Error) -> io::Error {
    use blob_client::Error as E;
    let kind = match &error {
        E::ContainerNotFound { .. } => io::ErrorKind::NotFound,
        E::Denied { .. } | E::Token { .. } => io::ErrorKind::PermissionDenied,
        E::DeadlineExceeded { .. } => io::ErrorKind::TimedOut,
        E::Unreachable { .. } => io::ErrorKind::NotConnected,
        _ => io::ErrorKind::Other,
    };
    // The client's own error is the source: callers may look for it.
    io::Error::new(kind, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fake::FakeStore;

    /// What gets nowhere is waited for as long as anybody would, and no longer.
    #[tokio::test(start_paused = true)]
    async fn operations_that_get_nowhere_do_not_keep_a_volume_from_its_end() {
        let store: Arc<dyn crate::Store> = Arc::new(FakeStore::new());
        let config = VolumeConfig::new("v", Arc::clone(&store));
        let timeout = config.timeout.whole();
        let arena = Arena::new(1 << 20).unwrap();
        let env = Env::new(store, Budget::new(0), arena, tokio::runtime::Handle::current());
        let tree = Tree::new(config, env, Arc::new(Log::create().unwrap()));
        let tasks = TaskTracker::new();
        let goes_on = tasks.spawn(std::future::pending::<()>());
        tasks.close();
        let ended = tokio::time::timeout(timeout * 2, operations_end(&tasks, &tree)).await;
        assert!(ended.is_ok() && !goes_on.is_finished());
        goes_on.abort();
    }

    #[test]
    fn prefixes_are_checked() {
        let with = |prefix: &str| {
            let mut config = VolumeConfig::new("v", Arc::new(FakeStore::new()));
            config.prefix = prefix.to_owned();
            check(&config)
        };
        for good in ["", "a", "a/b c/ü"] {
            with(good).unwrap();
        }
        for bad in ["/", "a/", "/a", "a//b", "a/../b", ".", "a.", "a\\b"] {
            assert_eq!(
                with(bad).unwrap_err().kind(),
                io::ErrorKind::InvalidInput,
                "{bad}"
            );
        }
        assert!(with(&"a".repeat(1025)).is_err());
    }
}
