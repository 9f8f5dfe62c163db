//! unlink(2) and rmdir(2).

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::SystemTime;

use blob_client::{Condition, Error, ListItem, ListOptions};

use super::attrs::Kind;
use super::files::Busy;
use super::node::{Marker, Node, NodeId};
use super::{Tree, names};
use crate::errno::{Errno, Result, fail};
use crate::file::FileError;

/// Open content up to this many bytes is kept in memory when its blob is deleted; larger blobs are moved aside.
const PIN_LIMIT: u64 = 8 << 20;

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
        let _gates = self.gates(parent).await?;
        let node = self.resolve(parent, name).await?;
        if node.kind == Kind::Directory {
            return fail(libc::EISDIR);
        }
        let _change = node.change.lock().await;
        if !self.leads_to(parent, name, &node) {
            return fail(libc::ENOENT);
        }
        self.keep_directory(parent, name).await?;
        let blob = self.table.lock().blob(node.id).ok_or(Errno(libc::ENOENT))?;
        let gone = self.drop_blob(&node, &blob).await;
        // Deleted by somebody else before us: the name is gone, but not by us.
        if !matches!(gone, Ok(()) | Err(Errno(libc::ENOENT))) {
            return gone;
        }
        node.state().ctime = SystemTime::now();
        self.table.lock().remove(parent, name);
        self.touch(parent);
        gone
    }

    /// Deletes the blob of a file, keeping the content for those who have it open. Gates and `change` are held.
    pub(super) async fn drop_blob(&self, node: &Arc<Node>, blob: &str) -> Result<()> {
        let _busy = Busy::new(node);
        let uncommitted = self.set_aside(node, blob).await?;
        match self.env.store.delete(blob, &Condition::none()).await {
            Ok(()) => Ok(()),
            Err(Error::BlobNotFound { .. }) if uncommitted => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes open content independent of its blob, which is about to be deleted or replaced. True when there never was a blob.
    pub(super) async fn set_aside(&self, node: &Arc<Node>, blob: &str) -> Result<bool> {
        let (content, open, uncommitted) = {
            let state = node.state();
            (state.content.clone(), state.handles > 0, state.uncommitted)
        };
        let Some(content) = content.filter(|_| open || uncommitted) else {
            return Ok(uncommitted);
        };
        match content.detach(PIN_LIMIT).await {
            Ok(true) => return Ok(uncommitted),
            Ok(false) => {}
            // Its version is gone already; readers get ESTALE as they would have.
            Err(FileError::Stale) => return Ok(uncommitted),
            Err(error) => return Err(error.into()),
        }
        let hidden = names::join(&self.config.prefix, &names::hidden());
        tracing::debug!(
            node = node.id,
            size = content.size(),
            "a large open file is moved aside"
        );
        let _hold = content.hold().await?;
        let written = match content.etag() {
            None => None,
            Some(etag) => match self
                .env
                .store
                .copy(blob, Some(&etag), &hidden, None, &Condition::none())
                .await
            {
                Ok(written) => Some(written),
                Err(Error::BlobNotFound { .. } | Error::ConditionNotMet { .. }) => return Ok(uncommitted),
                Err(error) => return Err(error.into()),
            },
        };
        content.moved(hidden.clone(), written.as_ref());
        node.state().hidden = Some(hidden);
        Ok(uncommitted)
    }

    /// rmdir(2).
    pub(crate) async fn rmdir(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        self.writable()?;
        let name = self.name_in(parent, name)?;
        let id = self.resolve_ungated(parent, name).await?.id;
        // Nothing may be made below while it is looked at.
        let _gates = self.gates_for(&[parent], &[id]).await?;
        let node = self.resolve(parent, name).await?;
        if node.id != id {
            return fail(libc::ENOENT);
        }
        if node.kind != Kind::Directory {
            return fail(libc::ENOTDIR);
        }
        let blob = self.table.lock().blob(id).ok_or(Errno(libc::ENOENT))?;
        let slash = self.check_empty(&node, &blob).await?;
        self.keep_directory(parent, name).await?;
        self.drop_markers(&node, &blob, slash).await?;
        self.table.lock().remove(parent, name);
        self.touch(parent);
        Ok(())
    }

    /// `ENOTEMPTY` when there is anything in a directory; else whether it has the marker `d/`.
    pub(super) async fn check_empty(&self, node: &Arc<Node>, blob: &str) -> Result<bool> {
        {
            let table = self.table.lock();
            let children = table
                .dir(node.id)
                .map(|d| d.children.values().map(|c| c.id).collect::<Vec<_>>());
            for child in children.unwrap_or_default() {
                if table.node(child).is_some_and(|n| n.state().pinned()) {
                    return fail(libc::ENOTEMPTY);
                }
            }
        }
        let mut options = ListOptions {
            prefix: names::below(blob),
            max_results: Some(2),
            ..ListOptions::default()
        };
        let mut slash = false;
        loop {
            let page = self.env.store.list(&options).await?;
            for item in page.items {
                match item {
                    ListItem::Blob { name, properties }
                        if name == options.prefix && properties.content_length == 0 =>
                    {
                        slash = true;
                    }
                    _ => return fail(libc::ENOTEMPTY),
                }
            }
            options.marker = page.next_marker;
            if options.marker.is_none() {
                return Ok(slash);
            }
        }
    }

    /// Deletes what makes an empty directory one.
    pub(super) async fn drop_markers(&self, node: &Node, blob: &str, slash: bool) -> Result<()> {
        if slash {
            self.delete_quietly(&names::below(blob)).await?;
        }
        if node.state().marker == Marker::Blob {
            self.delete_quietly(blob).await?;
        }
        Ok(())
    }

    /// Deletes a blob that may be gone already.
    pub(super) async fn delete_quietly(&self, blob: &str) -> Result<()> {
        match self.env.store.delete(blob, &Condition::none()).await {
            Ok(()) | Err(Error::BlobNotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
