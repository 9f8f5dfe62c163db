//! rename(2), RENAME_NOREPLACE and RENAME_EXCHANGE.
//!
//! A flat account has no rename: a file is copied inside the service and its old blob deleted; how a
//! directory is moved, and what a failure in the middle leaves, is in `directory.rs`. Nothing old is deleted
//! before everything new is there.

mod directory;
mod exchange;
mod file;
mod place;

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::SystemTime;

use blob_client::Condition;

use self::directory::Try;
use self::place::Place;
use super::attrs::Kind;
use super::core::Tree;
use super::names;
use super::node::{Marker, Node, NodeId};
use super::table::Found;
use crate::errno::{Errno, Result, fail};
use crate::log_limit::limited;

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
            return fail(libc::ESTALE);
        }
        let same = target.as_ref().is_some_and(|t| t.id == node.id);
        match (replace, &target) {
            (Replace::Exchange, None) => return fail(libc::ENOENT),
            (Replace::No, Some(_)) => return fail(libc::EEXIST),
            _ if same => return Ok(()),
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
        match (&target, replace) {
            (Some(target), Replace::Exchange) => self.exchange(&from, &node, &to, target).await?,
            _ => {
                self.move_over(&from, &node, &to, target.as_ref(), replace)
                    .await?
            }
        }
        node.state().ctime = SystemTime::now();
        self.touch(from.parent);
        self.touch(to.parent);
        Ok(())
    }

    async fn move_over(
        &self,
        from: &Place<'_>,
        node: &Arc<Node>,
        to: &Place<'_>,
        target: Option<&Arc<Node>>,
        replace: Replace,
    ) -> Result<()> {
        let (blob, new_blob) = self.blobs(node, to)?;
        match target.map(|t| t.kind) {
            Some(Kind::Directory) if node.kind != Kind::Directory => return fail(libc::EISDIR),
            Some(kind) if kind != Kind::Directory && node.kind == Kind::Directory => {
                return fail(libc::ENOTDIR);
            }
            _ => {}
        }
        if from.parent != to.parent {
            self.keep_directory(from.parent, from.name).await?;
        }
        if node.kind == Kind::Directory {
            let nth = match target {
                Some(target) => {
                    let asked = self.table.lock().ask();
                    let may = self.may_move_over(&blob, target, &new_blob).await;
                    if may == Err(Errno(libc::ENOENT)) {
                        let nothing = Found {
                            blob: None,
                            prefix: false,
                        };
                        self.table.lock().learn(from.parent, from.name, nothing, asked);
                    }
                    may?
                }
                None => Try::First,
            };
            self.move_directory(node, &blob, &new_blob, nth).await?;
            // A marker of the target was overwritten, unless a file has the name of the directory that took
            // its place.
            if target.is_some_and(|t| t.state().marker == Marker::Blob)
                && node.state().marker == Marker::Implicit
            {
                self.delete_quietly(&new_blob).await?;
            }
        } else {
            let condition = if replace == Replace::No {
                Condition::absent()
            } else {
                Condition::none()
            };
            self.move_file(node, &blob, &new_blob, target, &condition).await?;
        }
        self.table
            .lock()
            .rename(from.parent, from.name, to.parent, to.name);
        Ok(())
    }

    /// `ENOTEMPTY` when a directory with something in it is in the way, unless it is what an earlier try of
    /// the same move has left.
    async fn may_move_over(&self, blob: &str, target: &Arc<Node>, new_blob: &str) -> Result<Try> {
        match self.check_empty(target, new_blob).await {
            Ok(_) => return Ok(Try::Over),
            Err(Errno(libc::ENOTEMPTY)) => {}
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
        Ok(Try::Again)
    }

    fn blobs(&self, node: &Node, to: &Place<'_>) -> Result<(String, String)> {
        let table = self.table.lock();
        let blob = table.blob(node.id).ok_or(Errno(libc::ENOENT))?;
        let new_blob = names::join(&table.blob(to.parent).ok_or(Errno(libc::ENOENT))?, to.name);
        names::check_blob(&new_blob)?;
        Ok((blob, new_blob))
    }
}
