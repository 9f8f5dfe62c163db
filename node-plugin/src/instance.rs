//! One node process at a time: a lock on the state folder, which a successor waits for.
//!
//! Two processes of one node would take each other's sockets and records away. Kubernetes starts a second one
//! while the first still commits: after `kubectl delete --force`, and in updates with `maxSurge`.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::mounts::bounded::bounded;

/// Held by the one node process of a state folder, until its end.
#[derive(Debug)]
pub struct Instance {
    /// `None`: the file system has no locks.
    _lock: Option<Flock<File>>,
}

/// In the state folder while a successor waits: the predecessor leaves the folders as they are.
const SUCCESSOR: &str = "successor";

impl Instance {
    /// Makes the state folder (0700) where it is missing and takes its lock; where another process has it,
    /// waits for that one's end.
    ///
    /// # Errors
    /// The other process is there for longer than `patience`, or the folder cannot be had.
    pub async fn only(state: &Path, patience: Duration) -> anyhow::Result<Self> {
        let taken = || format!("--state-dir {}", state.display());
        if let Some(instance) = Self::take(state, FlockArg::LockExclusiveNonblock).with_context(taken)? {
            // Of one that did not live to see it.
            let _ = std::fs::remove_file(state.join(SUCCESSOR));
            return Ok(instance);
        }
        if let Err(error) = std::fs::write(state.join(SUCCESSOR), []) {
            tracing::debug!(%error, "the other process may take empty folders away");
        }
        tracing::info!(
            state = %state.display(), ?patience,
            "another node process of this driver has not ended yet; waiting for it"
        );
        let folder = state.to_owned();
        // Where it takes too long this process ends, and the thread with it.
        let waiting = bounded("flock", patience, move || {
            loop {
                match Self::take(&folder, FlockArg::LockExclusive) {
                    Ok(None) => {}
                    Ok(Some(instance)) => return Ok(instance),
                    Err(error) => return Err(error),
                }
            }
        });
        let waited = waiting.await;
        let _ = std::fs::remove_file(state.join(SUCCESSOR));
        let Ok(waited) = waited else {
            bail!(
                "--state-dir {}: another node process of this driver still holds it after {patience:?}; \
                 only one may serve a node: look for a pod of the driver that does not end",
                state.display()
            );
        };
        tracing::info!("the other node process has ended");
        waited.with_context(taken)
    }

    /// The lock; `None` when it is not to be had (or not on the folder that is at the path now: the
    /// predecessor took its empty one away).
    fn take(state: &Path, how: FlockArg) -> io::Result<Option<Self>> {
        DirBuilder::new().recursive(true).mode(0o700).create(state)?;
        match File::open(state) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            folder => Self::lock(folder?, state, how),
        }
    }

    /// The same of a folder that was at the path.
    fn lock(folder: File, state: &Path, how: FlockArg) -> io::Result<Option<Self>> {
        let own = folder.metadata()?;
        let lock = match Flock::lock(folder, how) {
            Ok(lock) => Some(lock),
            Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => return Ok(None),
            // NFS locks no folder that is open for reading, others nothing at all.
            Err((_, error @ (Errno::EBADF | Errno::ENOLCK | Errno::EOPNOTSUPP))) => {
                tracing::warn!(
                    state = %state.display(), %error,
                    "the state folder cannot be locked: nothing keeps a second node process away"
                );
                None
            }
            Err((_, error)) => return Err(error.into()),
        };
        let same = std::fs::metadata(state).is_ok_and(|at| (at.dev(), at.ino()) == (own.dev(), own.ino()));
        Ok(same.then_some(Self { _lock: lock }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("deep/state");
        let first = Instance::only(&state, PATIENCE).await.unwrap();
        let error = Instance::only(&state, Duration::from_millis(1))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("another node process"), "{error}");
        drop(first);
        Instance::only(&state, PATIENCE).await.unwrap();
    }

    /// A predecessor that had nothing mounted takes its folder away.
    #[tokio::test]
    async fn a_successor_has_a_folder_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let first = Instance::only(&state, PATIENCE).await.unwrap();
        // A successor waits for the lock of this folder, which goes with the first.
        let waited_for = File::open(&state).unwrap();
        std::fs::remove_dir(&state).unwrap();
        drop(first);
        let stale = Instance::lock(waited_for, &state, FlockArg::LockExclusive).unwrap();
        assert!(
            stale.is_none(),
            "the lock of a folder that nobody finds is worth nothing"
        );
        let second = Instance::only(&state, PATIENCE).await.unwrap();
        assert!(state.is_dir());
        // And it is that folder's lock which it has.
        assert!(Instance::only(&state, Duration::from_millis(1)).await.is_err());
        drop(second);
    }
}
