//! Rights that the credential of a mount lacks: what needs one is refused (`EACCES`) before anything is
//! begun, and neither half-way nor by a close(2) that few programs look at.
//!
//! One that was there when it was asked for last is taken for given. One that was not is asked for again each
//! time, as somebody may have given it since (a role, a stored access policy, a newer credential): by a
//! change, in the same folder, of a blob that is not there, on a condition that none meets. Who may make it
//! is told that there is no such blob, everybody else that he may not.

use std::sync::atomic::{AtomicBool, Ordering};

use blob_client::{Body, Condition, ETag, Error, Metadata, PutOptions, StoredHeaders};

use super::names;
use crate::config::Rights;
use crate::errno::{Result, no_answer};
use crate::store::Store;

/// What was refused when it was asked for last.
#[derive(Debug)]
pub(super) struct Lacking {
    write: AtomicBool,
    delete: AtomicBool,
}

/// What the service said to somebody who asked for a right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Allowed,
    /// Something else stands in the way: what is wanted says so itself.
    Nothing,
}

fn verdict(asked: Result<(), Error>) -> Result<Said> {
    match asked {
        Ok(())
        | Err(Error::BlobNotFound { .. } | Error::ConditionNotMet { .. } | Error::AlreadyExists { .. }) => {
            Ok(Said::Allowed)
        }
        Err(error) if matches!(error, Error::Denied { .. }) || no_answer(&error) => Err(error.into()),
        Err(error) => {
            tracing::debug!(%error, "nobody knows whether a right is there");
            Ok(Said::Nothing)
        }
    }
}

/// A name beside a blob that nothing has.
fn beside(blob: &str) -> String {
    let folder = blob.rsplit_once('/').map_or("", |(folder, _)| folder);
    names::join(folder, &names::hidden())
}

/// Of a version that there never is.
fn never() -> Condition {
    Condition::matches(&ETag("\"0x0\"".to_owned()))
}

impl Lacking {
    pub(super) fn of(rights: Rights) -> Self {
        Self {
            write: AtomicBool::new(!rights.write),
            delete: AtomicBool::new(!rights.delete),
        }
    }

    /// `EACCES` without the right to delete: for what makes a copy first and deletes then.
    pub(super) async fn may_delete(&self, store: &dyn Store, blob: &str) -> Result<()> {
        if self.delete.load(Ordering::Relaxed) {
            let asked = store.delete(&beside(blob), &never()).await;
            if verdict(asked)? == Said::Allowed {
                self.delete.store(false, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// `EACCES` without the right to change a blob that is there.
    pub(super) async fn may_write(&self, store: &dyn Store, blob: &str) -> Result<()> {
        if self.write.load(Ordering::Relaxed) {
            let asked = store
                .set_metadata(&beside(blob), &Metadata::new(), &never())
                .await;
            if verdict(asked.map(drop))? == Said::Allowed {
                self.write.store(false, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// `EACCES` without the right to make a blob. A SAS may allow that and no change (`c` without `w`).
    pub(super) async fn may_create(&self, store: &dyn Store, blob: &str) -> Result<()> {
        if !self.write.load(Ordering::Relaxed) {
            return Ok(());
        }
        let options = PutOptions {
            condition: never(),
            stored: Some(StoredHeaders::default()),
            ..PutOptions::default()
        };
        let asked = store.put(&beside(blob), Body::default(), &options).await;
        verdict(asked.map(drop)).map(drop)
    }

    /// A deletion was refused. What deletes at its end asks from now on, before it begins.
    pub(super) fn note_undeleted(&self) {
        self.delete.store(true, Ordering::Relaxed);
    }
}
