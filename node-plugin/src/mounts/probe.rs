//! Probes: whether a mount is there, and whether it answers.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::manager::Mounts;
use super::mount::{Mount, prune};
use super::mounter::says_dead;
use super::mountinfo::{self, Entry};
use crate::error::Result;

const UNANSWERED: &str = "an earlier stat has not returned yet";

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

impl Mounts {
    /// State of a path, after asking the file system there for its root: that takes a request to the service.
    pub async fn condition(&self, path: &Path) -> Result<Condition> {
        self.look(path, |_, _| false).await
    }

    /// State of a path as it is known here, without a request to the service: for calls that kubelet repeats
    /// for ever. A mount is asked when its latest request was not answered, which says nothing of now, and
    /// when this process does not serve it.
    pub async fn known_condition(&self, path: &Path) -> Result<Condition> {
        self.look(path, |top, table| {
            let all = self.lock();
            let mount = all.get(&owner(&all, top, table));
            mount.is_some_and(|mount| {
                let answered = mount
                    .session()
                    .is_some_and(|session| session.serving.trouble().is_none());
                answered && !mount.is_probing(top.minor)
            })
        })
        .await
    }

    /// `known`: whether a mount that is served here is known to answer.
    async fn look(&self, path: &Path, known: impl Fn(&Entry, &[Entry]) -> bool) -> Result<Condition> {
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
        if served == Some(true) && known(top, &table) {
            return Ok(Condition::Healthy);
        }
        let Err(error) = self.probe(top, &table).await else {
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
    pub(super) fn is_served(&self, connection: u32) -> Option<bool> {
        let all = self.lock();
        let sessions = all.values().filter_map(Mount::session);
        sessions
            .filter(|session| session.serving.connection() == connection)
            .map(|session| session.serving.is_serving())
            .max()
    }

    /// Asks the file system of a mount. While one stat hangs there is no second one, which would leave one
    /// more thread behind.
    async fn probe(&self, top: &Entry, table: &[Entry]) -> io::Result<()> {
        let owner = owner(&self.lock(), top, table);
        if self
            .lock()
            .get(&owner)
            .is_some_and(|mount| mount.is_probing(top.minor))
        {
            return Err(io::Error::new(io::ErrorKind::TimedOut, UNANSWERED));
        }
        let asking = Arc::new(());
        let returned = Arc::downgrade(&asking);
        let answer = self.calls.ask(&top.at, asking).await;
        if answer
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::TimedOut)
        {
            let mut all = self.lock();
            let mount = all.entry(owner).or_insert_with(Mount::new);
            mount.probing = Some((top.minor, returned));
            prune(&mut all);
        }
        answer
    }
}

/// The path of the mount whose file system is seen at another one: that which is served with its connection,
/// or at which it is mounted itself.
fn owner(all: &BTreeMap<PathBuf, Mount>, seen: &Entry, table: &[Entry]) -> PathBuf {
    let serves = |mount: &Mount| {
        let session = mount.session();
        session.is_some_and(|session| session.serving.connection() == seen.minor)
    };
    let mounted = |(path, mount): &(&PathBuf, &Mount)| {
        mount.record.is_some() && mountinfo::at(table, path).is_some_and(|own| own.same_file_system(seen))
    };
    let served = all.iter().find(|(_, mount)| serves(mount));
    let found = served.or_else(|| all.iter().find(mounted));
    found.map_or_else(|| seen.at.clone(), |(path, _)| path.clone())
}
