//! rename(2), RENAME_NOREPLACE and RENAME_EXCHANGE.
//!
//! A flat account has no rename: a file is copied inside the service and its old blob deleted; how a
//! directory is moved, and what a failure in the middle leaves, is in `directory.rs`. Nothing old is deleted
//! before everything new is there.

mod directory;
mod exchange;
mod file;
mod load;
mod place;
mod proof;
mod silence;
mod taking_back;

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::SystemTime;

use blob_client::{Condition, Error};
use futures::{StreamExt, stream};

use self::load::Try;
use self::place::{Moved, Place};
use super::attrs::{self, Kind, kind_of};
use super::core::Tree;
use super::names;
use super::node::{Node, NodeId};
use super::table::Found;
use crate::caller::still_waits;
use crate::errno::{Errno, Result, fail};
use crate::log_limit::limited;

/// How often a rename is tried when the target turns out to be something else than was known.
const ATTEMPTS: usize = 5;
/// Files below a folder that is to move whose data is sent at the same time.
const SENT_AT_ONCE: usize = 4;

/// What to do about an existing target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replace {
    Yes,
    /// RENAME_NOREPLACE.
    No,
    /// RENAME_EXCHANGE.
    Exchange,
}

impl Tree {
    /// rename(2) and renameat2(2).
    pub(crate) async fn rename(
        &self,
        parent: NodeId,
        name: &OsStr,
        new_parent: NodeId,
        new_name: &OsStr,
        replace: Replace,
    ) -> Result<()> {
        self.writable()?;
        let from = Place {
            parent,
            name: self.name_in(parent, name)?,
        };
        let to = Place {
            parent: new_parent,
            name: self.name_in(new_parent, new_name)?,
        };
        for _ in 0..ATTEMPTS {
            if self.try_rename(&from, &to, replace).await? == Moved::Done {
                return Ok(());
            }
        }
        // The target changes faster than it can be looked at.
        fail(libc::EBUSY)
    }

    /// One try, by what is known of both names.
    async fn try_rename(&self, from: &Place<'_>, to: &Place<'_>, replace: Replace) -> Result<Moved> {
        let node = self.resolve_ungated(from.parent, from.name).await?;
        let target = match self.resolve_ungated(to.parent, to.name).await {
            Ok(target) => Some(target),
            Err(Errno(libc::ENOENT)) => None,
            Err(errno) => return Err(errno),
        };
        {
            let table = self.table.lock();
            if table.is_below(to.parent, node.id)
                || (replace == Replace::Exchange
                    && target.as_ref().is_some_and(|t| table.is_below(from.parent, t.id)))
            {
                return fail(libc::EINVAL);
            }
        }
        let moving: Vec<NodeId> = [Some(&node), target.as_ref()]
            .into_iter()
            .flatten()
            .filter(|n| n.kind == Kind::Directory)
            .map(|n| n.id)
            .collect();
        let mut unsent = self.table.lock().below(node.id);
        unsent.push(Arc::clone(&node));
        unsent.retain(|node| node.state().pinned());
        if !unsent.is_empty() {
            self.check_ahead((from, &node), (to, target.as_ref()), replace)
                .await?;
            // What was written below is sent first, as far as it can be: whoever works there waits for the
            // rest only.
            stream::iter(unsent)
                .for_each_concurrent(SENT_AT_ONCE, |node| async move {
                    // The commit below says why not.
                    let _ = self.stage_ahead(&node).await;
                })
                .await;
        }
        self.wait_for_lost(from.parent, from.name).await?;
        let _gates = self.gates_for(&[from.parent, to.parent], &moving).await?;
        // Both may have been something else before the gates were ours.
        if !self.leads_to(from.parent, from.name, &node) {
            return fail(libc::ENOENT);
        }
        let unchanged = match &target {
            Some(target) => self.leads_to(to.parent, to.name, target),
            None => self.table.lock().child(to.parent, to.name).is_none(),
        };
        if !unchanged {
            return Ok(Moved::Again);
        }
        let same = target.as_ref().is_some_and(|t| t.id == node.id);
        match (replace, &target) {
            (Replace::Exchange, None) => return fail(libc::ENOENT),
            (Replace::No, Some(_)) => return fail(libc::EEXIST),
            _ if same => return Ok(Moved::Done),
            _ => {}
        }
        let (first, second) = match &target {
            Some(target) if target.id < node.id => (Some(target), Some(&node)),
            target => (Some(&node), target.as_ref()),
        };
        let _first = match first {
            Some(node) => Some(node.change.lock().await),
            None => None,
        };
        let _second = match second {
            Some(node) => Some(node.change.lock().await),
            None => None,
        };
        still_waits()?;
        let moved = match (&target, replace) {
            (Some(target), Replace::Exchange) => {
                self.exchange(from, &node, to, target).await?;
                Moved::Done
            }
            _ => match self.move_over(from, &node, to, target.as_ref()).await {
                // Something has come below a name that was free: then it is not.
                Err(Errno(libc::ENOTEMPTY)) if replace == Replace::No => return fail(libc::EEXIST),
                moved => moved?,
            },
        };
        if moved == Moved::Done {
            node.renamed(SystemTime::now());
            self.touch(from.parent);
            self.touch(to.parent);
        }
        Ok(moved)
    }

    /// What a rename is refused for whatever is written below is told before any of that is sent.
    async fn check_ahead(
        &self,
        (from, node): (&Place<'_>, &Arc<Node>),
        (to, target): (&Place<'_>, Option<&Arc<Node>>),
        replace: Replace,
    ) -> Result<()> {
        let folder = |node: &Node| node.kind == Kind::Directory;
        match (replace, target) {
            (Replace::Exchange, None) => return fail(libc::ENOENT),
            (Replace::No, Some(_)) => return fail(libc::EEXIST),
            (Replace::Yes, Some(target)) if folder(target) && !folder(node) => return fail(libc::EISDIR),
            _ => {}
        }
        let _gates = self.gates_for(&[from.parent, to.parent], &[]).await?;
        let (blob, new_blob) = self.blobs(node, to)?;
        match target {
            Some(target) if replace == Replace::Exchange && folder(target) => {
                self.within_limit(&new_blob).await?;
            }
            Some(target) if replace == Replace::Yes && folder(target) => {
                let empty = self.check_empty(target, &new_blob).await;
                if matches!(empty, Err(Errno(libc::ENOTEMPTY))) {
                    // What was begun is finished, however large it is.
                    return match self.was_moving(&blob, &new_blob).await? {
                        true => Ok(()),
                        false => fail(libc::ENOTEMPTY),
                    };
                }
                empty?;
            }
            _ => {}
        }
        match folder(node) {
            true => self.within_limit(&blob).await,
            false => Ok(()),
        }
    }

    async fn move_over(
        &self,
        from: &Place<'_>,
        node: &Arc<Node>,
        to: &Place<'_>,
        target: Option<&Arc<Node>>,
    ) -> Result<Moved> {
        let (blob, new_blob) = self.blobs(node, to)?;
        match target.map(|t| t.kind) {
            Some(Kind::Directory) if node.kind != Kind::Directory => return fail(libc::EISDIR),
            Some(kind) if kind != Kind::Directory && node.kind == Kind::Directory => {
                return self.not_a_directory(to, &new_blob).await;
            }
            _ => {}
        }
        let moved = if node.kind == Kind::Directory {
            let asked = self.table.lock().ask();
            let moved = async {
                let nth = match target {
                    Some(target) => self.may_move_over(&blob, target, &new_blob).await?,
                    None => Some(Try::First),
                };
                match nth {
                    Some(nth) => {
                        let most = match &nth {
                            // What was begun is finished.
                            Try::Again => usize::MAX,
                            Try::First | Try::Over { .. } => self.config.rename_limit,
                        };
                        self.move_directory(node, &blob, &new_blob, nth, most).await
                    }
                    None => Ok(Moved::Again),
                }
            };
            let moved = moved.await;
            if matches!(moved, Err(Errno(libc::ENOENT))) {
                let nothing = Found {
                    blob: None,
                    prefix: false,
                };
                self.table.lock().learn(from.parent, from.name, nothing, asked);
            }
            moved?
        } else {
            self.move_file(node, &blob, &new_blob, target).await?
        };
        match moved {
            Moved::Done => {
                self.keep_directory(from.parent);
                self.table
                    .lock()
                    .rename(from.parent, from.name, to.parent, to.name);
            }
            Moved::Again => {
                self.look_again(to.parent, to.name).await?;
            }
        }
        Ok(moved)
    }

    /// A file is where a directory is to go: if it still is one.
    async fn not_a_directory(&self, to: &Place<'_>, new_blob: &str) -> Result<Moved> {
        match self.env.store.head(new_blob, &Condition::none()).await {
            Ok(now) if kind_of(&now) != Kind::Directory => fail(libc::ENOTDIR),
            Ok(_) | Err(Error::BlobNotFound { .. }) => {
                self.look_again(to.parent, to.name).await?;
                // It may be one that only this mount has, so far.
                let here = self.table.lock().child(to.parent, to.name);
                match here {
                    Some(node) if node.kind != Kind::Directory => fail(libc::ENOTDIR),
                    _ => Ok(Moved::Again),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// How a directory may take the place of another: that one is empty, or what an earlier try of the same
    /// move has left. `ENOTEMPTY` for any other; `None` when there is no directory any more.
    async fn may_move_over(&self, blob: &str, target: &Arc<Node>, new_blob: &str) -> Result<Option<Try>> {
        let marker = match self.env.store.head(new_blob, &Condition::none()).await {
            Ok(now) if kind_of(&now) == Kind::Directory => Some(now),
            // A file has taken the name; or it is one that the directory hides, and must not be overwritten.
            Ok(_) if self.has_below(new_blob).await? => return fail(libc::ENOTEMPTY),
            Ok(_) => return Ok(None),
            Err(Error::BlobNotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        // Another directory is on its way to this name: it is as good as full.
        let claimed = marker
            .as_ref()
            .is_some_and(|m| m.metadata.contains_key(attrs::MOVED_FROM));
        match self.check_empty(target, new_blob).await {
            Ok(slash) if !claimed => {
                return Ok(Some(Try::Over {
                    marker: marker.map(Box::new),
                    slash,
                }));
            }
            Ok(_) | Err(Errno(libc::ENOTEMPTY)) => {}
            Err(errno) => return Err(errno),
        }
        if !self.was_moving(blob, new_blob).await? {
            return fail(libc::ENOTEMPTY);
        }
        let below = self.table.lock().below(target.id);
        self.commit_all_of(&below).await?;
        limited!(
            info,
            self.volume(),
            "going on with a rename that was interrupted",
            from = blob,
            to = new_blob
        );
        Ok(Some(Try::Again))
    }

    fn blobs(&self, node: &Node, to: &Place<'_>) -> Result<(String, String)> {
        let table = self.table.lock();
        let blob = table.blob(node.id).ok_or(Errno(libc::ENOENT))?;
        let new_blob = names::join(&table.blob(to.parent).ok_or(Errno(libc::ENOENT))?, to.name);
        names::check_blob(&new_blob)?;
        Ok((blob, new_blob))
    }
}
