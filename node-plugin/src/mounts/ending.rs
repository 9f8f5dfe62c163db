//! Unmounts that are not over: a file system that is not mounted any more and commits what was accepted.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::mounter::Serving;
use crate::csi::status::{Error, Reason, Result};

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

/// Those of a node plugin, by the path where they were mounted.
#[derive(Debug, Default)]
pub(super) struct Endings(Mutex<BTreeMap<PathBuf, Ending>>);

impl Endings {
    /// Begins the end of what was mounted at a path.
    pub(super) fn begin(&self, path: &Path, serving: Box<dyn Serving>) -> io::Result<()> {
        let ending = Ending::of(serving)?;
        self.lock().insert(path.to_owned(), ending);
        Ok(())
    }

    /// Where they were mounted.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.lock().keys().cloned().collect()
    }

    /// Waits until what was mounted at a path, and is not any more, has committed its last changes.
    pub(super) async fn committed(&self, path: &Path, limit: Duration) -> Result<()> {
        let Some(mut ending) = self.lock().get(path).cloned() else {
            return Ok(());
        };
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
                // Held from another mount namespace; its thread goes on serving and committing until that
                // ends.
                tracing::warn!(path = %path.display(), ?limit, "the file system is still in use elsewhere");
                None
            }
        };
        self.lock().remove(path);
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

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Ending>> {
        // Whole after a panic elsewhere: every change is one insert or remove.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
