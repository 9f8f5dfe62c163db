//! Moving a directory on a flat account: every blob below it is copied inside the service, then every old one
//! is deleted.
//!
//! What makes a move that ends in the middle (an error, a killed process) one that can be finished is a note
//! on the new directory's marker: the key [`attrs::MOVED_FROM`] with the ETag of the old directory's marker.
//! The steps:
//!
//! 1. A directory without a marker gets one.
//! 2. The marker is copied, with the note.
//! 3. Everything else is copied.
//! 4. Everything old but the marker is deleted, each only in the version that was copied.
//! 5. The old marker is deleted; the note is taken off.
//!
//! A failure up to step 3 is undone: the copies are deleted, the new marker last. If that fails as well, or
//! if nobody is left to do it, every blob is at its old name at least. From step 4 on every blob is at its
//! new name at least. In both cases the same rename, by any mount, finds the note, knows by the ETag that it
//! is the same directory, and goes on: it copies what is not there yet, and deletes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use blob_client::{
    Body, Condition, ETag, Error, ListItem, ListOptions, Metadata, Properties, PutOptions, StoredHeaders,
    Written,
};
use futures::{StreamExt, TryStreamExt, stream};

use crate::budget::Permit;
use crate::errno::{Errno, Result, fail};
use crate::log_limit::limited;
use crate::tree::attrs::{self, Kind, kind_of};
use crate::tree::busy::Busy;
use crate::tree::core::Tree;
use crate::tree::names;
use crate::tree::node::{Marker, Node};

/// Copies or deletions of one directory under way at once.
const PARALLEL: usize = 16;

/// Whether a move is the first try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Try {
    First,
    /// Likewise, over an empty directory.
    Over,
    /// The target holds what an earlier try left.
    Again,
}

/// A blob that is moved along with a directory.
struct Moving {
    from: String,
    to: String,
    etag: ETag,
    size: u64,
    modified: SystemTime,
    metadata: Metadata,
    stored: StoredHeaders,
}

/// What is at a blob's new name.
struct Arrived {
    written: Written,
    /// It is the same content, not what somebody wrote there since.
    same: bool,
}

/// The blobs of a directory.
struct Load {
    /// The directory's own marker; none where a file has its name, which the directory hides.
    marker: Option<Moving>,
    /// The marker was made for the move.
    made: bool,
    others: Vec<Moving>,
    /// For all of this.
    _charge: Permit,
}

impl Tree {
    /// Moves every blob of a directory. The gate of the directory is held for writing.
    pub(super) async fn move_directory(
        &self,
        node: &Arc<Node>,
        blob: &str,
        new_blob: &str,
        nth: Try,
    ) -> Result<()> {
        let _busy = Busy::new(node);
        let below: Vec<Arc<Node>> = self.table.lock().below(node.id);
        self.commit_all_of(&below).await?;
        let mut holds = Vec::new();
        for child in &below {
            let content = child.state().content.clone();
            if let Some(content) = content {
                holds.push(content.hold().await?);
                child.state().catch_up();
            }
        }
        let load = self.load(node, blob, new_blob).await?;
        for moved in load.marker.iter().chain(&load.others) {
            names::check_blob(&moved.to)?;
        }
        let there = match nth {
            Try::First | Try::Over => HashMap::new(),
            Try::Again => self.already_there(new_blob).await?,
        };
        let (marker, copied) = match self.copy_all(&load, &there).await {
            Ok(copied) => copied,
            Err(errno) => {
                match nth {
                    Try::First | Try::Over => self.take_back(node, &load, nth).await,
                    // What is there may have no other name any more.
                    Try::Again => self.table.lock().distrust(node.id),
                }
                return Err(match errno {
                    // Somebody changed a file under our hands; nothing was moved.
                    Errno(libc::ESTALE | libc::ENOENT) => Errno(libc::EBUSY),
                    errno => errno,
                });
            }
        };
        let moved = load
            .marker
            .iter()
            .zip(&marker)
            .chain(load.others.iter().zip(&copied));
        self.rebind_all(node, &below, blob, moved);
        drop(holds);
        let deleted = self.delete_all(&load).await;
        if deleted.is_err() {
            self.table.lock().distrust(node.id);
            return deleted;
        }
        if let (Some(marker), Some(arrived)) = (&load.marker, marker) {
            self.take_note_off(node, marker, &arrived.written, load.made && nth != Try::Again)
                .await;
        }
        if nth == Try::Again {
            // What arrived in earlier tries is not in the table.
            self.table.lock().distrust(node.id);
        }
        Ok(())
    }

    /// True when `new_blob` holds what an earlier try to move the directory `blob` there has left. `ENOENT`
    /// when nothing is left to move: all that was lost of the earlier try is its answer.
    pub(super) async fn was_moving(&self, blob: &str, new_blob: &str) -> Result<bool> {
        let any = Condition::none();
        let (old, new) = futures::join!(
            self.env.store.head(blob, &any),
            self.env.store.head(new_blob, &any)
        );
        let (old, new) = match (old, new) {
            (Ok(old), Ok(new)) => (old, new),
            (Err(Error::BlobNotFound { .. }), _) => {
                return if self.has_below(blob).await? {
                    Ok(false)
                } else {
                    fail(libc::ENOENT)
                };
            }
            (_, Err(Error::BlobNotFound { .. })) => return Ok(false),
            (Err(error), _) | (_, Err(error)) => return Err(error.into()),
        };
        Ok(kind_of(&old) == Kind::Directory && new.metadata.get(attrs::MOVED_FROM) == Some(&old.etag.0))
    }

    /// Commits what nodes have that the service has not. Gates are held.
    pub(super) async fn commit_all_of(&self, nodes: &[Arc<Node>]) -> Result<()> {
        for node in nodes {
            let pinned = node.state().pinned();
            if pinned {
                let _change = node.change.lock().await;
                self.commit_changing(node).await?;
            }
        }
        Ok(())
    }

    /// All blobs of a directory, with a marker.
    async fn load(&self, node: &Node, blob: &str, new_blob: &str) -> Result<Load> {
        let (marker, made) = self.marker_of(node, blob, new_blob).await?;
        let mut others = Vec::new();
        let mut charge = self.env.budget.charge_metadata(0);
        let mut bytes = 0;
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
                let Some(tail) = name.strip_prefix(blob) else {
                    continue;
                };
                let to = format!("{new_blob}{tail}");
                let metadata = self.moved_metadata(node, &properties);
                let texts = metadata.iter().map(|(k, v)| k.len() + v.len() + 64);
                bytes += size_of::<Moving>() + name.len() + to.len() + texts.sum::<usize>();
                others.push(Moving {
                    from: name,
                    to,
                    etag: properties.etag,
                    size: properties.content_length,
                    modified: properties.last_modified,
                    metadata,
                    stored: properties.stored,
                });
            }
            charge.resize(bytes);
            options.marker = page.next_marker;
            if options.marker.is_none() {
                break;
            }
        }
        if marker.is_none() && others.is_empty() {
            return fail(libc::ENOENT);
        }
        Ok(Load {
            marker,
            made,
            others,
            _charge: charge,
        })
    }

    /// The marker of a directory, made if there is none. `None` where a file has its name.
    async fn marker_of(&self, node: &Node, blob: &str, new_blob: &str) -> Result<(Option<Moving>, bool)> {
        let moving = |etag: ETag, modified: SystemTime, mut metadata: Metadata, stored: StoredHeaders| {
            metadata.insert(attrs::MOVED_FROM.to_owned(), etag.0.clone());
            Some(Moving {
                from: blob.to_owned(),
                to: new_blob.to_owned(),
                etag,
                size: 0,
                modified,
                metadata,
                stored,
            })
        };
        let mut known = node.state().marker == Marker::Blob;
        // Twice: what is known may be out of date.
        for _ in 0..2 {
            if known {
                match self.env.store.head(blob, &Condition::none()).await {
                    Ok(p) if kind_of(&p) == Kind::Directory => {
                        return Ok((moving(p.etag, p.last_modified, p.metadata, p.stored), false));
                    }
                    Ok(_) => return Ok((None, false)),
                    Err(Error::BlobNotFound { .. }) => known = false,
                    Err(error) => return Err(error.into()),
                }
                continue;
            }
            let attrs = node.state().attrs.clone();
            let metadata = attrs::encode(&attrs, Kind::Directory, &self.defaults)?;
            let options = PutOptions {
                metadata: metadata.clone(),
                condition: Condition::absent(),
                stored: Some(StoredHeaders::default()),
            };
            match self.env.store.put(blob, Body::default(), &options).await {
                Ok(written) => {
                    let stamp = self.table.lock().tick();
                    let mut state = node.state();
                    state.marker = Marker::Blob;
                    state.written(&written, stamp);
                    let stored = StoredHeaders::default();
                    return Ok((
                        moving(written.etag, written.last_modified, metadata, stored),
                        true,
                    ));
                }
                Err(Error::AlreadyExists { .. } | Error::ConditionNotMet { .. }) => known = true,
                Err(error) => return Err(error.into()),
            }
        }
        // It comes and goes.
        fail(libc::EBUSY)
    }

    /// What is below a directory's blob name, and its marker.
    async fn already_there(&self, blob: &str) -> Result<HashMap<String, Properties>> {
        let mut there = HashMap::new();
        match self.env.store.head(blob, &Condition::none()).await {
            Ok(properties) => {
                there.insert(blob.to_owned(), properties);
            }
            Err(Error::BlobNotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let mut options = ListOptions {
            prefix: names::below(blob),
            metadata: true,
            ..ListOptions::default()
        };
        loop {
            let page = self.env.store.list(&options).await?;
            for item in page.items {
                if let ListItem::Blob { name, properties } = item {
                    there.insert(name, properties);
                }
            }
            options.marker = page.next_marker;
            if options.marker.is_none() {
                return Ok(there);
            }
        }
    }

    /// Copies the marker, then everything else.
    async fn copy_all(
        &self,
        load: &Load,
        there: &HashMap<String, Properties>,
    ) -> Result<(Option<Arrived>, Vec<Arrived>)> {
        let marker = match &load.marker {
            Some(marker) => Some(self.copy_one(marker, there).await?),
            None => None,
        };
        // Indices, as futures that borrow from a stream's items are not `Send` enough for a task.
        let all = &load.others;
        let copied = stream::iter(0..all.len())
            .map(|i| self.copy_one(&all[i], there))
            .buffered(PARALLEL)
            .try_collect()
            .await?;
        Ok((marker, copied))
    }

    async fn copy_one(&self, moved: &Moving, there: &HashMap<String, Properties>) -> Result<Arrived> {
        if let Some(at) = there.get(&moved.to) {
            let same = at.content_length == moved.size && at.metadata == moved.metadata;
            let modified =
                |metadata: &Metadata, at: SystemTime| attrs::decode(metadata).1.mtime.unwrap_or(at);
            let newer = modified(&at.metadata, at.last_modified) > modified(&moved.metadata, moved.modified);
            if same || newer {
                let written = Written {
                    etag: at.etag.clone(),
                    last_modified: at.last_modified,
                };
                return Ok(Arrived { written, same });
            }
        }
        let (metadata, condition) = (Some(&moved.metadata), Condition::none());
        let written = self
            .env
            .store
            .copy(
                &moved.from,
                Some(&moved.etag),
                Some(&moved.stored),
                &moved.to,
                metadata,
                &condition,
            )
            .await?;
        Ok(Arrived { written, same: true })
    }

    /// Deletes what was copied under its old names, the marker last.
    async fn delete_all(&self, load: &Load) -> Result<()> {
        let all = &load.others;
        stream::iter((0..all.len()).rev())
            .map(|i| self.delete_one(&all[i]))
            .buffer_unordered(PARALLEL)
            .try_collect::<()>()
            .await?;
        match &load.marker {
            Some(marker) => self.delete_one(marker).await,
            None => Ok(()),
        }
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
                limited!(
                    warn, self.volume(), "a moved file is still stored under its old name, too",
                    %error, blob = moved.from
                );
                Err(error.into())
            }
        }
    }

    /// The move is complete: its note goes, or the marker if it was only made to carry the note.
    async fn take_note_off(&self, node: &Node, marker: &Moving, written: &Written, made: bool) {
        let condition = Condition::matches(&written.etag);
        if made {
            match self.env.store.delete(&marker.to, &condition).await {
                Ok(()) | Err(Error::BlobNotFound { .. }) => {
                    let mut state = node.state();
                    state.marker = Marker::Implicit;
                    state.etag = None;
                }
                Err(error) => tracing::debug!(%error, blob = marker.to, "a directory keeps its marker"),
            }
            return;
        }
        let metadata = without_note(marker);
        match self
            .env
            .store
            .set_metadata(&marker.to, &metadata, &condition)
            .await
        {
            Ok(written) => {
                let stamp = self.table.lock().tick();
                node.state().written(&written, stamp);
            }
            // The version that the note names is gone for ever: it means nothing any more, and goes with the
            // next change.
            Err(error) => tracing::debug!(%error, blob = marker.to, "the note of a move stays"),
        }
    }

    /// The nodes whose blobs were moved from below `blob` follow them.
    fn rebind_all<'a>(
        &self,
        directory: &Arc<Node>,
        below: &[Arc<Node>],
        blob: &str,
        moved: impl Iterator<Item = (&'a Moving, &'a Arrived)>,
    ) {
        let moved: HashMap<&str, (&Moving, &Arrived)> = moved
            .filter_map(|(m, a)| Some((m.from.strip_prefix(blob)?, (m, a))))
            .collect();
        // The table knows the directory by its name, which is not where its blobs are in the middle of an
        // exchange.
        let Some(base) = self.table.lock().blob(directory.id) else {
            return;
        };
        for node in below.iter().chain([directory]) {
            let Some(name) = self.table.lock().blob(node.id) else {
                continue;
            };
            if let Some((moving, arrived)) = name.strip_prefix(&base).and_then(|rest| moved.get(rest)) {
                let from = arrived.same.then_some(&moving.etag);
                self.rebind(node, from, &moving.to, &arrived.written);
            }
        }
    }

    /// A move failed while copying: deletes the copies, the originals are all there. The marker goes last, so
    /// that what could not be deleted is known as what it is.
    async fn take_back(&self, node: &Node, load: &Load, nth: Try) {
        let all = &load.others;
        let left = stream::iter(0..all.len())
            .map(|i| self.delete_quietly(&all[i].to))
            .buffer_unordered(PARALLEL)
            .filter_map(|deleted| async move { deleted.err() })
            .count()
            .await;
        let Some(marker) = &load.marker else {
            return;
        };
        if left > 0 {
            limited!(
                warn,
                self.volume(),
                "copies of a failed rename are still stored; the same rename goes on from them",
                left,
                from = marker.from,
                to = marker.to
            );
            return;
        }
        let gone = match nth {
            // There was an empty directory before.
            Try::Over => {
                let metadata = without_note(marker);
                let any = Condition::none();
                let set = self.env.store.set_metadata(&marker.to, &metadata, &any);
                set.await.map(|_| ()).map_err(Errno::from)
            }
            _ => self.delete_quietly(&marker.to).await,
        };
        let gone = match gone {
            Ok(()) if load.made => self.delete_one(marker).await.map(|()| {
                let mut state = node.state();
                state.marker = Marker::Implicit;
                state.etag = None;
            }),
            gone => gone,
        };
        if let Err(errno) = gone {
            tracing::debug!(%errno, "the marker of a failed rename is still stored");
        }
    }
}

/// What a directory's marker carries after the move.
fn without_note(marker: &Moving) -> Metadata {
    let mut metadata = marker.metadata.clone();
    metadata.remove(attrs::MOVED_FROM);
    metadata
}
