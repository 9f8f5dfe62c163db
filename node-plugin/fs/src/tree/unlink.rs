//! unlink(2) and rmdir(2).

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::SystemTime;

use blob_client::{Condition, ETag, Error, ListItem, ListOptions, Metadata, Properties, Written};

use super::attrs::{Kind, kind_of};
use super::busy::Busy;
use super::core::Tree;
use super::hidden::{Shelters, mark};
use super::names;
use super::node::{Marker, Node, NodeId};
use super::table::{Asked, Found};
use crate::caller::{still_waits, undoing};
use crate::content::{File, FileError};
use crate::errno::{Errno, Result, fail};

/// Open content up to this many bytes is kept in memory when its blob is deleted; larger blobs are moved
/// detached.
const PIN_LIMIT: u64 = 8 << 20;

/// How often a deletion is repeated when somebody else changes the blob meanwhile.
const ATTEMPTS: usize = 5;

/// Why a blob was not deleted.
pub(super) enum Undeleted {
    /// There is none.
    Gone,
    /// It is something else now.
    Other(Box<Properties>),
    Failed(Errno),
}

impl From<Errno> for Undeleted {
    fn from(errno: Errno) -> Self {
        Self::Failed(errno)
    }
}

/// How open content was made independent of its blob.
pub(super) struct Detached {
    /// There never was a blob.
    pub(super) uncommitted: bool,
    content: How,
}

impl Detached {
    /// The blob was deleted or replaced.
    pub(super) fn departed(&self) {
        if let How::InMemory(content) = &self.content {
            content.departed();
        }
    }
}

enum How {
    /// Nobody has it open, or there is nothing to keep.
    Untouched,
    InMemory(Arc<File>),
    /// In a hidden blob.
    Hidden {
        content: Arc<File>,
        /// Its version under its name.
        original: Written,
        /// What is stored with it.
        metadata: Metadata,
        /// Its first version there.
        kept: ETag,
    },
}

impl Tree {
    /// The node of a name, asking the service if it is not known. Gates are held.
    pub(super) async fn resolve(&self, parent: NodeId, name: &str) -> Result<Arc<Node>> {
        if let Some(node) = self.table.lock().child(parent, name) {
            return Ok(node);
        }
        let id = self.find(parent, name).await?.ok_or(Errno(libc::ENOENT))?;
        self.node(id).map_err(|_| Errno(libc::ENOENT))
    }

    /// [`Tree::resolve`] for who holds no gates yet.
    pub(super) async fn resolve_ungated(&self, parent: NodeId, name: &str) -> Result<Arc<Node>> {
        let _gates = self.gates(parent).await?;
        self.resolve(parent, name).await
    }

    /// Before gates are taken: waits for requests that were lost and would bring back what is taken away, so
    /// that nobody waits with it who only looks for names beside it. Of what was never stored nothing is
    /// taken away.
    pub(super) async fn wait_for_lost(&self, parent: NodeId, name: &str) -> Result<()> {
        let (directory, node) = {
            let table = self.table.lock();
            (table.blob(parent), table.child(parent, name))
        };
        match directory {
            Some(directory) if node.is_none_or(|node| !node.state().uncommitted()) => Ok(self
                .env
                .store
                .wait_for_lost(&names::join(&directory, name))
                .await?),
            _ => Ok(()),
        }
    }

    /// True when the name leads to the node (still).
    pub(super) fn leads_to(&self, parent: NodeId, name: &str, node: &Node) -> bool {
        self.table
            .lock()
            .child(parent, name)
            .is_some_and(|n| n.id == node.id)
    }

    /// unlink(2).
    pub(crate) async fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        self.writable()?;
        let name = self.name_in(parent, name)?;
        self.wait_for_lost(parent, name).await?;
        let _gates = self.gates(parent).await?;
        let node = self.resolve(parent, name).await?;
        if node.kind == Kind::Directory {
            return fail(libc::EISDIR);
        }
        let _change = node.change.lock().await;
        still_waits()?;
        if !self.leads_to(parent, name, &node) {
            return fail(libc::ENOENT);
        }
        let (blob, asked) = {
            let table = self.table.lock();
            (table.blob(node.id).ok_or(Errno(libc::ENOENT))?, table.ask())
        };
        let gone = match self.drop_blob(&node, &blob).await {
            Ok(()) => Ok(()),
            Err(Undeleted::Gone) => fail(libc::ENOENT),
            Err(Undeleted::Other(now)) => {
                self.learn_blob(parent, name, &now, asked);
                return fail(libc::EISDIR);
            }
            Err(Undeleted::Failed(errno)) => Err(errno),
        };
        // Deleted by somebody else before us: the name is gone, but not by us.
        if !matches!(gone, Ok(()) | Err(Errno(libc::ENOENT))) {
            return gone;
        }
        node.state().ctime = SystemTime::now();
        self.keep_directory(parent);
        self.table.lock().remove(parent, name);
        self.touch(parent);
        gone
    }

    /// Deletes the blob of a file, keeping the content for those who have it open. Gates and `change` are
    /// held.
    async fn drop_blob(&self, node: &Arc<Node>, blob: &str) -> Result<(), Undeleted> {
        let _busy = Busy::new(node);
        let open = {
            let state = node.state();
            !state.uncommitted() && state.handles > 0
        };
        if open {
            // What somebody has open is copied first, and the copy would stay, too. Else the deletion itself
            // says it: a role may allow some names and not others.
            self.lacking.may_delete(&*self.env.store, blob).await?;
        }
        let detached = self.detach_content(node, blob).await?;
        if detached.uncommitted {
            // A blob of this name is somebody else's, and nobody here has seen it.
            detached.departed();
            return Ok(());
        }
        let known = node.state().etag.clone();
        let file = |now: &Properties| kind_of(now) != Kind::Directory;
        match self.delete_known(blob, known, file).await {
            Ok(()) => {
                detached.departed();
                Ok(())
            }
            Err(Undeleted::Gone) => {
                detached.departed();
                Err(Undeleted::Gone)
            }
            Err(other) => {
                undoing(self.reattach(node, blob, detached, None)).await;
                Err(other)
            }
        }
    }

    /// Deletes a blob in the version that is known. When there is another one by now, that is looked at, and
    /// deleted if it is still of the `same` kind: what nobody here has seen is not taken away, and a request
    /// that is executed late finds a version that is gone.
    pub(super) async fn delete_known(
        &self,
        blob: &str,
        known: Option<ETag>,
        same: impl Fn(&Properties) -> bool,
    ) -> Result<(), Undeleted> {
        let mut known = known;
        for _ in 0..ATTEMPTS {
            let etag = match known.take() {
                Some(etag) => etag,
                None => match self.env.store.head(blob, &Condition::none()).await {
                    Ok(now) if same(&now) => now.etag,
                    Ok(now) => return Err(Undeleted::Other(Box::new(now))),
                    Err(Error::BlobNotFound { .. }) => return Err(Undeleted::Gone),
                    Err(error) => return Err(Errno::from(error).into()),
                },
            };
            match self.env.store.delete(blob, &Condition::matches(&etag)).await {
                Ok(()) => return Ok(()),
                Err(Error::BlobNotFound { .. }) => return Err(Undeleted::Gone),
                Err(Error::ConditionNotMet { .. }) => {}
                Err(error) => {
                    self.note_undeleted(&error);
                    return Err(Errno::from(error).into());
                }
            }
        }
        // It changes faster than it can be deleted.
        Err(Errno(libc::EBUSY).into())
    }

    /// Takes over what a HEAD said about a name that was taken for something else.
    pub(super) fn learn_blob(&self, parent: NodeId, name: &str, now: &Properties, asked: Asked) {
        let found = Found {
            blob: Some(now),
            prefix: false,
        };
        self.table.lock().learn(parent, name, found, asked);
    }

    /// Makes open content independent of its blob, which is about to be deleted or replaced.
    pub(super) async fn detach_content(&self, node: &Arc<Node>, blob: &str) -> Result<Detached> {
        // What came of a commit whose answer was lost, and what was committed for want of memory, is known at
        // the latest when the content is held.
        let detached = |content: How| {
            let mut state = node.state();
            if !matches!(content, How::Hidden { .. }) {
                state.catch_up();
            }
            Detached {
                uncommitted: state.uncommitted(),
                content,
            }
        };
        let (content, open) = {
            let state = node.state();
            let open = state.handles > 0 || state.uncommitted();
            (state.content.clone(), open)
        };
        let Some(content) = content.filter(|_| open) else {
            return Ok(detached(How::Untouched));
        };
        content.give_refuge(Arc::new(Shelters(Arc::clone(&self.hidden))));
        match content.detach(PIN_LIMIT).await {
            Ok(true) => return Ok(detached(How::InMemory(content))),
            Ok(false) => {}
            // Its version is gone already; readers get ESTALE as they would have.
            Err(FileError::Stale) => return Ok(detached(How::Untouched)),
            Err(error) => return Err(error.into()),
        }
        tracing::debug!(
            node = node.id,
            size = content.size(),
            "a large open file is moved to a hidden blob"
        );
        let mut tries = 0;
        let (hold, etag, last_modified, (hidden, lease, written)) = loop {
            let hold = content.hold().await?;
            let last_modified = {
                let mut state = node.state();
                state.catch_up();
                state.modified
            };
            // What was never stored has nothing to load, and was detached.
            let Some(etag) = content.etag() else {
                return Ok(detached(How::Untouched));
            };
            match self.hidden.keep(blob, &etag, content.kind()).await {
                Ok(kept) => break (hold, etag, last_modified, kept),
                Err(Error::ConditionNotMet { .. }) if tries < ATTEMPTS => {}
                Err(Error::BlobNotFound { .. } | Error::ConditionNotMet { .. }) => {
                    return Ok(detached(How::Untouched));
                }
                Err(error) => return Err(error.into()),
            }
            // It may be that only its attributes were changed.
            tries += 1;
            drop(hold);
            let followed = match self.env.store.head(blob, &Condition::none()).await {
                Ok(now) => content.follow(now).await?,
                Err(Error::BlobNotFound { .. }) => false,
                Err(error) => return Err(error.into()),
            };
            if !followed {
                return Ok(detached(How::Untouched));
            }
        };
        let original = Written { etag, last_modified };
        let metadata = content.stored_metadata().unwrap_or_default();
        content.moved(hidden.clone(), Some((&written, &mark())));
        content.leased(lease, mark());
        node.state().hidden = Some(hidden);
        drop(hold);
        Ok(detached(How::Hidden {
            content,
            original,
            metadata,
            kept: written.etag,
        }))
    }

    /// The blob was not deleted or replaced after all, as far as anybody knows: handles go on with it.
    /// `back`: the version it has been put back as, if it was deleted meanwhile.
    pub(super) async fn reattach(
        &self,
        node: &Arc<Node>,
        blob: &str,
        detached: Detached,
        back: Option<&Written>,
    ) {
        match detached.content {
            How::Untouched => {}
            // What was written to it is stored by its own commits yet.
            How::InMemory(content) if back.is_none() && content.attach() => {}
            How::InMemory(content) => {
                // What is written to it now would go nowhere: its writers are told, and the next open asks
                // the service.
                content.give_up();
                let mut state = node.state();
                state.content = None;
                state.cached = false;
            }
            How::Hidden {
                content,
                original,
                metadata,
                kept,
            } => {
                match content.hold().await {
                    Ok(_hold) if content.etag().as_ref() == Some(&kept) => {
                        let version = back.unwrap_or(&original);
                        content.moved(blob.to_owned(), Some((version, &metadata)));
                    }
                    // Memory was short, and part of it is in the hidden blob only.
                    _ => content.give_up(),
                }
                let hidden = node.state().hidden.take();
                if let Some(hidden) = hidden {
                    self.hidden.drop_blob(&hidden).await;
                }
            }
        }
    }

    /// rmdir(2).
    pub(crate) async fn rmdir(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        self.writable()?;
        let name = self.name_in(parent, name)?;
        let id = self.resolve_ungated(parent, name).await?.id;
        self.wait_for_lost(parent, name).await?;
        // Nothing may be made below while it is looked at.
        let _gates = self.gates_for(&[parent], &[id]).await?;
        let node = self.resolve(parent, name).await?;
        if node.id != id {
            return fail(libc::ENOENT);
        }
        if node.kind != Kind::Directory {
            return fail(libc::ENOTDIR);
        }
        let (blob, asked) = {
            let table = self.table.lock();
            (table.blob(id).ok_or(Errno(libc::ENOENT))?, table.ask())
        };
        let slash = self.check_empty(&node, &blob).await?;
        match self.drop_markers(&node, &blob, slash).await {
            Ok(()) | Err(Undeleted::Gone) => {}
            Err(Undeleted::Other(now)) => {
                self.learn_blob(parent, name, &now, asked);
                return fail(libc::ENOTDIR);
            }
            Err(Undeleted::Failed(errno)) => return Err(errno),
        }
        self.keep_directory(parent);
        self.table.lock().remove(parent, name);
        self.touch(parent);
        Ok(())
    }

    /// `ENOTEMPTY` when there is anything in a directory; else the version of its marker `d/`, if it has one.
    pub(super) async fn check_empty(&self, node: &Arc<Node>, blob: &str) -> Result<Option<ETag>> {
        let mut options = ListOptions {
            prefix: names::below(blob),
            max_results: Some(2),
            ..ListOptions::default()
        };
        let mut slash = None;
        loop {
            let page = self.env.store.list(&options).await?;
            for item in page.items {
                match item {
                    ListItem::Blob { name, properties }
                        if name == options.prefix && properties.content_length == 0 =>
                    {
                        slash = Some(properties.etag);
                    }
                    _ => return fail(libc::ENOTEMPTY),
                }
            }
            options.marker = page.next_marker;
            if options.marker.is_none() {
                break;
            }
        }
        // Last: it takes a look at everything below that is known, and nobody looks anything up meanwhile.
        match self.table.lock().pinned_below(node.id) {
            true => fail(libc::ENOTEMPTY),
            false => Ok(slash),
        }
    }

    /// Deletes what makes an empty directory one: the marker `d/` in the version `slash`, and `d`.
    async fn drop_markers(&self, node: &Node, blob: &str, slash: Option<ETag>) -> Result<(), Undeleted> {
        if slash.is_some() {
            let empty = |now: &Properties| now.content_length == 0;
            match self.delete_known(&names::below(blob), slash, empty).await {
                Ok(()) | Err(Undeleted::Gone) => {}
                // Somebody has written into it: an entry that cannot be shown, and that is not ours to
                // delete.
                Err(Undeleted::Other(_)) => return Err(Errno(libc::ENOTEMPTY).into()),
                Err(failed) => return Err(failed),
            }
        }
        // One that had no marker when it was looked at may have been made by somebody else since.
        let known = {
            let state = node.state();
            state.etag.clone().filter(|_| state.marker == Marker::Blob)
        };
        let directory = |now: &Properties| kind_of(now) == Kind::Directory;
        self.delete_known(blob, known, directory).await
    }
}
