//! rename(2), RENAME_NOREPLACE and RENAME_EXCHANGE.
//!
//! A flat account has no rename: a file is copied inside the service and its old blob deleted, a directory is every blob below it copied, then
//! every old one deleted. Nothing old is deleted before everything new is there, so a failure in the middle leaves the source whole: copies
//! already made are taken back. A failure while deleting leaves both names, and is reported.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::SystemTime;

use blob_client::{Condition, ETag, Error, ListItem, ListOptions, Metadata, Properties, Written};
use futures::{StreamExt, TryStreamExt, stream};

use super::attrs::{self, Kind};
use super::files::Busy;
use super::node::{Marker, Node, NodeId};
use super::setattr::kind_of;
use super::{Tree, metadata_of, names};
use crate::errno::{Errno, Result, fail};

/// Copies or deletions of one directory under way at once.
const PARALLEL: usize = 16;
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

/// A blob that is moved along with a directory.
struct Moving {
    from: String,
    to: String,
    etag: ETag,
    metadata: Metadata,
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
            if let Some(target) = target {
                self.check_empty(target, &new_blob).await?;
            }
            self.move_directory(node, &blob, &new_blob).await?;
            // A marker of the target was overwritten, unless the directory that took its place has none.
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
            if let Some(target) = target {
                self.set_aside(target, new_blob).await?;
            }
            let metadata = self.moved_metadata(node, &properties);
            let copied = self
                .env
                .store
                .copy(blob, Some(&properties.etag), new_blob, Some(&metadata), condition)
                .await;
            let written = match copied {
                Ok(written) => written,
                Err(Error::AlreadyExists { .. }) => return fail(libc::EEXIST),
                // With a condition on the target it is the target's; without, the source was changed meanwhile.
                Err(Error::ConditionNotMet { .. }) if condition.if_absent => return fail(libc::EEXIST),
                Err(Error::ConditionNotMet { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            self.follow(node, &properties.etag, new_blob, &written);
            return match self
                .env
                .store
                .delete(blob, &Condition::matches(&properties.etag))
                .await
            {
                Ok(()) | Err(Error::BlobNotFound { .. }) => Ok(()),
                // Somebody wrote a new version under the old name after the copy: it is theirs.
                Err(Error::ConditionNotMet { .. }) => Ok(()),
                Err(error) => {
                    // Both names are there now; the old one must not go unnoticed.
                    tracing::warn!(%error, blob, "a renamed file is still stored under its old name, too");
                    Err(error.into())
                }
            };
        }
        fail(libc::ESTALE)
    }

    /// Metadata of a copy: the same, and the modification time that only `Last-Modified` told so far.
    fn moved_metadata(&self, node: &Node, properties: &Properties) -> Metadata {
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

    /// A node's blob was moved: its handles and what is known of it follow.
    fn follow(&self, node: &Node, from: &ETag, new_blob: &str, written: &Written) {
        let stamp = self.table.lock().tick();
        let content = {
            let mut state = node.state();
            let same = state.etag.as_ref() == Some(from);
            let mtime = state.mtime();
            state.written(written, stamp);
            if same {
                state.attrs.mtime.get_or_insert(mtime);
            } else {
                // The copy is of a version nobody here has seen: what is known is out of date, and says so.
                state.etag = None;
                state.cached = false;
            }
            state.content.clone()
        };
        if let Some(content) = content {
            // Handles on an older version stay with it, and find it gone.
            let known = content.etag().as_ref() == Some(from);
            content.moved(new_blob.to_owned(), known.then_some(written));
        }
    }

    /// Moves every blob of a directory. The gate of the directory is held for writing.
    async fn move_directory(&self, node: &Arc<Node>, blob: &str, new_blob: &str) -> Result<()> {
        let _busy = Busy::new(node);
        let below: Vec<Arc<Node>> = self.table.lock().below(node.id);
        for child in &below {
            let pinned = child.state().pinned();
            if pinned {
                let _change = child.change.lock().await;
                self.commit_changing(child).await?;
            }
        }
        let mut holds = Vec::new();
        for child in &below {
            let content = child.state().content.clone();
            if let Some(content) = content {
                holds.push(content.hold().await?);
                child.state().catch_up();
            }
        }
        let moving = self.blobs_below(node, blob, new_blob).await?;
        for moved in &moving {
            names::check_blob(&moved.to)?;
        }
        // Indices, as futures that borrow from a stream's items are not `Send` enough for a task.
        let all = &moving;
        let copied: Result<Vec<Written>> = stream::iter(0..all.len())
            .map(|i| self.copy_one(&all[i]))
            .buffered(PARALLEL)
            .try_collect()
            .await;
        let copied = match copied {
            Ok(copied) => copied,
            Err(errno) => {
                self.take_back(&moving).await;
                return Err(match errno {
                    // Somebody changed a file under our hands; nothing was moved.
                    Errno(libc::ESTALE | libc::ENOENT) => Errno(libc::EBUSY),
                    errno => errno,
                });
            }
        };
        self.follow_all(node, &below, blob, &moving, &copied);
        drop(holds);
        let deleted: Result<()> = stream::iter((0..all.len()).rev())
            .map(|i| self.delete_one(&all[i]))
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await;
        if deleted.is_err() {
            self.table.lock().distrust(node.id);
        }
        deleted
    }

    async fn copy_one(&self, moved: &Moving) -> Result<Written> {
        let (metadata, condition) = (Some(&moved.metadata), Condition::none());
        Ok(self
            .env
            .store
            .copy(&moved.from, Some(&moved.etag), &moved.to, metadata, &condition)
            .await?)
    }

    async fn delete_one(&self, moved: &Moving) -> Result<()> {
        match self
            .env
            .store
            .delete(&moved.from, &Condition::matches(&moved.etag))
            .await
        {
            // A file that somebody changed after it was copied stays, under the old name.
            Ok(()) | Err(Error::BlobNotFound { .. } | Error::ConditionNotMet { .. }) => Ok(()),
            Err(error) => {
                tracing::warn!(%error, blob = moved.from, "a moved file is still stored under its old name, too");
                Err(error.into())
            }
        }
    }

    /// All blobs of a directory, its markers first.
    async fn blobs_below(&self, node: &Node, blob: &str, new_blob: &str) -> Result<Vec<Moving>> {
        let mut moving = Vec::new();
        if node.state().marker == Marker::Blob {
            match self.env.store.head(blob, &Condition::none()).await {
                Ok(properties) if kind_of(&properties) == Kind::Directory => moving.push(Moving {
                    from: blob.to_owned(),
                    to: new_blob.to_owned(),
                    etag: properties.etag,
                    metadata: properties.metadata,
                }),
                Ok(_) | Err(Error::BlobNotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut options = ListOptions {
            prefix: names::below(blob),
            metadata: true,
            ..ListOptions::default()
        };
        loop {
            let page = self.env.store.list(&options).await?;
            for item in page.items {
                let ListItem::Blob { name, properties } = item else {
                    continue;
                };
                let Some(rest) = name.strip_prefix(blob) else {
                    continue;
                };
                let to = format!("{new_blob}{rest}");
                let metadata = self.moved_metadata(node, &properties);
                moving.push(Moving {
                    from: name,
                    to,
                    etag: properties.etag,
                    metadata,
                });
            }
            options.marker = page.next_marker;
            if options.marker.is_none() {
                break;
            }
        }
        if moving.is_empty() {
            // It vanished from under us but for its name: the marker is what is left to move.
            let attrs = node.state().attrs.clone();
            let metadata = metadata_of(&attrs, Kind::Directory, &self.defaults)?;
            let options = blob_client::PutOptions {
                metadata,
                ..Default::default()
            };
            let written = self
                .env
                .store
                .put(new_blob, blob_client::Body::default(), &options)
                .await?;
            let stamp = self.table.lock().tick();
            let mut state = node.state();
            state.marker = Marker::Blob;
            state.written(&written, stamp);
        }
        Ok(moving)
    }

    /// The nodes whose blobs were moved from below `blob` follow them.
    fn follow_all(
        &self,
        directory: &Arc<Node>,
        below: &[Arc<Node>],
        blob: &str,
        moving: &[Moving],
        copied: &[Written],
    ) {
        let moved: std::collections::HashMap<&str, (&Moving, &Written)> = moving
            .iter()
            .zip(copied)
            .filter_map(|(m, w)| Some((m.from.strip_prefix(blob)?, (m, w))))
            .collect();
        // The table knows the directory by its name, which is not where its blobs are in the middle of an exchange.
        let Some(base) = self.table.lock().blob(directory.id) else {
            return;
        };
        for node in below.iter().chain([directory]) {
            let Some(name) = self.table.lock().blob(node.id) else {
                continue;
            };
            if let Some((moving, written)) = name.strip_prefix(&base).and_then(|rest| moved.get(rest)) {
                self.follow(node, &moving.etag, &moving.to, written);
            }
        }
    }

    /// A move failed while copying: deletes the copies, the originals are all there.
    async fn take_back(&self, moving: &[Moving]) {
        stream::iter(moving)
            .for_each_concurrent(PARALLEL, |moved| async move {
                if let Err(errno) = self.delete_quietly(&moved.to).await {
                    tracing::warn!(%errno, blob = moved.to, "a copy of a failed rename is still stored");
                }
            })
            .await;
    }

    /// RENAME_EXCHANGE through a reserved name: at every moment each content is stored somewhere.
    async fn exchange(
        &self,
        a: &Place<'_>,
        node: &Arc<Node>,
        b: &Place<'_>,
        target: &Arc<Node>,
    ) -> Result<()> {
        let (blob, new_blob) = self.blobs(node, b)?;
        let aside = names::join(&self.config.prefix, &names::hidden());
        self.move_any(node, &blob, &aside).await?;
        if let Err(errno) = self.move_any(target, &new_blob, &blob).await {
            self.put_back(node, &aside, &blob).await;
            return Err(errno);
        }
        if let Err(errno) = self.move_any(node, &aside, &new_blob).await {
            self.put_back(target, &blob, &new_blob).await;
            self.put_back(node, &aside, &blob).await;
            return Err(errno);
        }
        self.table.lock().exchange(a.parent, a.name, b.parent, b.name);
        target.state().ctime = SystemTime::now();
        Ok(())
    }

    async fn put_back(&self, node: &Arc<Node>, from: &str, to: &str) {
        if let Err(errno) = self.move_any(node, from, to).await {
            tracing::error!(%errno, stored = from, belongs = to, "an exchange failed half-way and could not be undone");
        }
    }

    async fn move_any(&self, node: &Arc<Node>, from: &str, to: &str) -> Result<()> {
        if node.kind == Kind::Directory {
            return self.move_directory(node, from, to).await;
        }
        // Even a file that was never committed: the names of both blobs change, so both must be there.
        if node.state().uncommitted {
            self.commit_changing(node).await?;
        }
        self.move_file(node, from, to, None, &Condition::none()).await
    }
}
