//! rename(2), RENAME_NOREPLACE and RENAME_EXCHANGE.
//!
//! A flat account has no rename: a file is copied inside the service and its old blob deleted; how a directory is moved, and what a failure in the
//! middle leaves, is in `moves.rs`. Nothing old is deleted before everything new is there.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::SystemTime;

use blob_client::{Condition, ETag, Error, Metadata, Properties, Written};

use super::attrs::{self, Kind};
use super::files::Busy;
use super::moves::Try;
use super::node::{Marker, Node, NodeId};
use super::setattr::kind_of;
use super::table::Found;
use super::{Tree, metadata_of, names};
use crate::errno::{Errno, Result, fail};

/// How often a copy is repeated when somebody else changes the source meanwhile.
const ATTEMPTS: usize = 5;

/// What to do about an existing target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replace {
    Yes,
    /// RENAME_NOREPLACE.
    No,
    /// RENAME_EXCHANGE.
    Exchange,
}

/// A name, its directory, and what it leads to.
struct Place<'a> {
    parent: NodeId,
    name: &'a str,
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
            // A marker of the target was overwritten, unless a file has the name of the directory that took its place.
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

    /// `ENOTEMPTY` when a directory with something in it is in the way, unless it is what an earlier try of the same move has left.
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
        tracing::info!(
            from = blob,
            to = new_blob,
            "going on with a rename that was interrupted"
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

    /// Moves the blob of a file, link or special file; open handles follow.
    async fn move_file(
        &self,
        node: &Arc<Node>,
        blob: &str,
        new_blob: &str,
        target: Option<&Arc<Node>>,
        condition: &Condition,
    ) -> Result<()> {
        let _busy = Busy::new(node);
        let _target_busy = target.map(|t| Busy::new(t));
        let (content, uncommitted) = {
            let state = node.state();
            (state.content.clone(), state.uncommitted)
        };
        // A target that is only here has no blob to replace.
        let target_stored = target.is_some_and(|t| !t.state().uncommitted);
        if let Some(content) = &content
            && uncommitted
            && !target_stored
        {
            if let Some(target) = target {
                self.set_aside(target, new_blob).await?;
            }
            // Nothing is in the service: only the name of the first commit changes. (Unless memory was short, and it is.)
            let _hold = content.hold().await?;
            if content.etag().is_none() {
                content.moved(new_blob.to_owned(), None);
                return Ok(());
            }
        }
        if content.as_ref().is_some_and(|c| c.is_dirty()) || uncommitted {
            self.commit_changing(node).await?;
        }
        for _ in 0..ATTEMPTS {
            let _hold = match &content {
                Some(content) => Some(content.hold().await?),
                None => None,
            };
            node.state().catch_up();
            let properties = match self.env.store.head(blob, &Condition::none()).await {
                Ok(properties) => properties,
                Err(error) => return Err(error.into()),
            };
            if kind_of(&properties) != node.kind {
                return fail(libc::ESTALE);
            }
            let aside = match target {
                Some(target) => Some((target, self.set_aside(target, new_blob).await?)),
                None => None,
            };
            let metadata = self.moved_metadata(node, &properties);
            let copied = self
                .env
                .store
                .copy(blob, Some(&properties.etag), new_blob, Some(&metadata), condition)
                .await;
            if copied.is_err()
                && let Some((target, aside)) = aside
            {
                self.put_back(target, new_blob, aside).await;
            }
            let written = match copied {
                Ok(written) => written,
                Err(Error::AlreadyExists { .. }) => return fail(libc::EEXIST),
                // With a condition on the target it is the target's; without, the source was changed meanwhile.
                Err(Error::ConditionNotMet { .. }) if condition.if_absent => return fail(libc::EEXIST),
                Err(Error::ConditionNotMet { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            self.follow(node, Some(&properties.etag), new_blob, &written);
            let old = Written {
                etag: properties.etag,
                last_modified: properties.last_modified,
            };
            return match self.env.store.delete(blob, &Condition::matches(&old.etag)).await {
                Ok(()) | Err(Error::BlobNotFound { .. }) => Ok(()),
                // Somebody wrote a new version under the old name after the copy: it is theirs.
                Err(Error::ConditionNotMet { .. }) => Ok(()),
                Err(error) => {
                    self.stay(node, (blob, &old), (new_blob, &written), target, error)
                        .await
                }
            };
        }
        fail(libc::ESTALE)
    }

    /// A file was copied to its new name and could not be deleted under the old one: it stays there, as the caller is told, and so do its handles. The
    /// copy is deleted if that takes nothing away from anybody.
    async fn stay(
        &self,
        node: &Arc<Node>,
        (blob, old): (&str, &Written),
        (new_blob, copy): (&str, &Written),
        target: Option<&Arc<Node>>,
        error: Error,
    ) -> Result<()> {
        let refused = match &error {
            Error::Denied { .. } | Error::LeaseConflict { .. } => true,
            Error::Service { status, .. } => *status < 500,
            _ => false,
        };
        if !refused {
            match self.env.store.head(blob, &Condition::none()).await {
                Ok(now) if now.etag == old.etag => {}
                // Only the answer was lost; or somebody has written under the old name since.
                Ok(_) | Err(Error::BlobNotFound { .. }) => return Ok(()),
                Err(_) => {
                    // Nobody knows. The copy is there in either case: what is open goes on with it.
                    tracing::warn!(%error, blob, new_blob, "a renamed file may still be stored under its old name, too");
                    return Err(error.into());
                }
            }
        }
        self.follow(node, Some(&copy.etag), blob, old);
        match target {
            // What it replaced is gone, and only the copy left to be shown.
            Some(target) => {
                let mut table = self.table.lock();
                let place = table
                    .link(target.id)
                    .map(|link| (link.parent, Arc::clone(&link.name)));
                if let Some((parent, name)) = place {
                    table.overwritten(parent, &name);
                }
            }
            // A deletion whose answer was lost may yet be carried out: then the copy is all there is.
            None if refused => {
                let same = Condition::matches(&copy.etag);
                match self.env.store.delete(new_blob, &same).await {
                    Ok(()) | Err(Error::BlobNotFound { .. } | Error::ConditionNotMet { .. }) => {
                        return Err(error.into());
                    }
                    Err(_) => {}
                }
            }
            None => {}
        }
        tracing::warn!(%error, blob, new_blob, "a file that could not be renamed is stored under its new name, too");
        Err(error.into())
    }

    /// Metadata of a copy: the same, and the modification time that only `Last-Modified` told so far.
    pub(super) fn moved_metadata(&self, node: &Node, properties: &Properties) -> Metadata {
        let (kind, mut attrs) = attrs::decode(&properties.metadata);
        attrs.mtime.get_or_insert(properties.last_modified);
        // Too much metadata to add to it: then the copy is as it was.
        metadata_of(
            &attrs,
            if properties.is_directory { node.kind } else { kind },
            &self.defaults,
        )
        .unwrap_or_else(|_| properties.metadata.clone())
    }

    /// A node's blob was moved: its handles and what is known of it follow. `from`: the version that was copied; `None` when what is at the new
    /// name is no copy of it.
    pub(super) fn follow(&self, node: &Node, from: Option<&ETag>, new_blob: &str, written: &Written) {
        let stamp = self.table.lock().tick();
        let content = {
            let mut state = node.state();
            let same = from.is_some() && state.etag.as_ref() == from;
            let mtime = state.mtime();
            state.written(written, stamp);
            let content = state.content.clone();
            if same {
                state.attrs.mtime.get_or_insert(mtime);
            } else {
                // The copy is of a version nobody here has seen: what is known is out of date, and says so. The next open gets that one.
                state.etag = None;
                state.cached = false;
                state.content = None;
            }
            content
        };
        if let Some(content) = content {
            // Handles on an older version stay with it, and find it gone.
            let known = from.is_some() && content.etag().as_ref() == from;
            content.moved(new_blob.to_owned(), known.then_some(written));
        }
    }

    /// RENAME_EXCHANGE through a third name: at every moment each content is stored somewhere, and shown.
    async fn exchange(
        &self,
        a: &Place<'_>,
        node: &Arc<Node>,
        b: &Place<'_>,
        target: &Arc<Node>,
    ) -> Result<()> {
        let (blob, new_blob) = self.blobs(node, b)?;
        let aside = names::join(&self.config.prefix, &names::aside());
        self.move_any(node, &blob, &aside).await?;
        if let Err(errno) = self.move_any(target, &new_blob, &blob).await {
            let _ = self.step_back(node, &aside, &blob).await;
            return Err(errno);
        }
        if let Err(errno) = self.move_any(node, &aside, &new_blob).await {
            if self.step_back(target, &blob, &new_blob).await.is_ok() {
                let _ = self.step_back(node, &aside, &blob).await;
            }
            return Err(errno);
        }
        self.table.lock().exchange(a.parent, a.name, b.parent, b.name);
        target.state().ctime = SystemTime::now();
        Ok(())
    }

    /// Undoes a step of an exchange, unless that would overwrite something: a step that failed may have been carried out all the same.
    async fn step_back(&self, node: &Arc<Node>, from: &str, to: &str) -> Result<()> {
        let undone = match self.ask(to).await {
            Ok((None, false)) => self.move_any(node, from, to).await,
            Ok(_) => fail(libc::EEXIST),
            Err(errno) => Err(errno),
        };
        if let Err(errno) = undone {
            tracing::error!(%errno, stored = from, belongs = to, "an exchange failed half-way and could not be undone");
        }
        undone
    }

    async fn move_any(&self, node: &Arc<Node>, from: &str, to: &str) -> Result<()> {
        if node.kind == Kind::Directory {
            return self.move_directory(node, from, to, Try::First).await;
        }
        // Even a file that was never committed: the names of both blobs change, so both must be there.
        if node.state().uncommitted {
            self.commit_changing(node).await?;
        }
        self.move_file(node, from, to, None, &Condition::none()).await
    }
}
