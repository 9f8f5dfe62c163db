//! Moving the blob of a file: copied inside the service, then deleted under its old name.

use std::sync::Arc;
use std::time::SystemTime;

use blob_client::{BlobType, Condition, ETag, Error, Metadata, Properties, Written};

use super::place::Moved;
use crate::caller::undoing;
use crate::errno::{Result, fail, fail_because};
use crate::log_limit::limited;
use crate::tree::attrs::{self, ContentOf, Kind, kind_of};
use crate::tree::busy::Busy;
use crate::tree::core::Tree;
use crate::tree::node::{Access, Node};

/// How often a copy is repeated when somebody else changes the source meanwhile.
const ATTEMPTS: usize = 5;

/// A copy that did not come about.
struct NotCopied {
    error: Error,
    /// What it was to replace had to be deleted first, and is there again, in this version.
    back: Option<Written>,
}

impl From<Error> for NotCopied {
    fn from(error: Error) -> Self {
        Self { error, back: None }
    }
}

/// The service says that it does not do it; after any other error a deletion may yet be carried out.
fn is_refusal(error: &Error) -> bool {
    match error {
        Error::Denied { .. }
        | Error::LeaseConflict { .. }
        | Error::ConditionNotMet { .. }
        | Error::SnapshotsPresent { .. }
        | Error::Archived { .. }
        | Error::CustomerKey { .. } => true,
        // It was not sent.
        Error::EarlierRequest { .. } => true,
        Error::Service { status, .. } => *status < 500,
        _ => false,
    }
}

impl Tree {
    /// Moves the blob of a file, link or special file; open handles follow. Over a target, in the version
    /// that is known or seen; where none is known, only if there is none.
    pub(super) async fn move_file(
        &self,
        node: &Arc<Node>,
        blob: &str,
        new_blob: &str,
        target: Option<&Arc<Node>>,
    ) -> Result<Moved> {
        let _busy = Busy::new(node);
        let _target_busy = target.map(|t| Busy::new(t));
        let (content, uncommitted) = {
            let state = node.state();
            (state.content.clone(), state.uncommitted())
        };
        // A target that is only here has no blob to replace.
        let target_stored = target.is_some_and(|t| !t.state().uncommitted());
        if let Some(content) = &content
            && uncommitted
            && !target_stored
        {
            // Nothing is in the service: only the name of the first commit changes. (Unless memory was short,
            // and it is.)
            let _hold = content.hold().await?;
            if content.etag().is_none() {
                // The last that can fail: what it replaces is as it was until then.
                if let Some(target) = target {
                    self.detach_content(target, new_blob).await?.departed();
                }
                content.moved(new_blob.to_owned(), None);
                return Ok(Moved::Done);
            }
        }
        self.may_move(blob).await?;
        if content.as_ref().is_some_and(|c| c.is_dirty()) || uncommitted {
            self.commit_changing(node).await?;
        }
        let mut there = match target.filter(|_| target_stored) {
            Some(target) => self.known_version(target, new_blob).await?,
            None => None,
        };
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
                return fail_because(libc::ESTALE, "somebody else has put something else in its place");
            }
            let detached = match target {
                Some(target) => Some((target, self.detach_content(target, new_blob).await?)),
                None => None,
            };
            let now = SystemTime::now();
            let stored = self.copied_metadata(&properties, Some(now));
            let copied = self
                .copy_over((blob, &properties), new_blob, there.take(), &stored)
                .await;
            match (&copied, detached) {
                (Ok(_), Some((_, detached))) => detached.departed(),
                (Err(not_copied), Some((target, detached))) => {
                    let back = not_copied.back.as_ref();
                    undoing(self.reattach(target, new_blob, detached, back)).await;
                }
                (_, None) => {}
            }
            let written = match copied.map_err(|not_copied| not_copied.error) {
                Ok(written) => written,
                // The source or the target was changed meanwhile.
                Err(Error::ConditionNotMet { .. } | Error::AlreadyExists { .. }) => {
                    match self.env.store.head(new_blob, &Condition::none()).await {
                        Ok(now) if target.is_some() && kind_of(&now) != Kind::Directory => {
                            there = Some((now.etag, now.blob_type));
                        }
                        Ok(_) => return Ok(Moved::Again),
                        Err(Error::BlobNotFound { .. }) => {}
                        Err(error) => return Err(error.into()),
                    }
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            node.state().ctime = now;
            self.rebind_to(node, Some(&properties.etag), new_blob, &written, Some(&stored));
            if let Some(content) = &content
                && content.etag().as_ref() == Some(&written.etag)
            {
                content.set_stored(&properties.stored);
            }
            let old = Written {
                etag: properties.etag,
                last_modified: properties.last_modified,
            };
            let deleted = self.env.store.delete(blob, &Condition::matches(&old.etag)).await;
            return match deleted {
                Ok(()) | Err(Error::BlobNotFound { .. }) => Ok(Moved::Done),
                // Somebody wrote a new version under the old name after the copy: it is theirs.
                Err(Error::ConditionNotMet { .. }) => Ok(Moved::Done),
                Err(error) => self
                    .source_remains(node, (blob, &old), (new_blob, &written), target, error)
                    .await
                    .map(|()| Moved::Done),
            };
        }
        fail(libc::EBUSY)
    }

    /// The version of a target, asked for where it is not known. `None`: there is no file, and no name to
    /// take from anybody.
    async fn known_version(&self, target: &Node, new_blob: &str) -> Result<Option<(ETag, BlobType)>> {
        let known = {
            let mut state = target.state();
            state.catch_up();
            let block = state.access == Access::ReadWrite;
            state.etag.clone().filter(|_| block)
        };
        if let Some(etag) = known {
            return Ok(Some((etag, BlobType::Block)));
        }
        match self.env.store.head(new_blob, &Condition::none()).await {
            // By now: a file does not take the place of a directory.
            Ok(now) if kind_of(&now) == Kind::Directory => Ok(None),
            Ok(now) => Ok(Some((now.etag, now.blob_type))),
            Err(Error::BlobNotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Copies a version onto a name, over the version that is `there`, or onto a free name.
    async fn copy_over(
        &self,
        (blob, properties): (&str, &Properties),
        new_blob: &str,
        there: Option<(ETag, BlobType)>,
        metadata: &Metadata,
    ) -> Result<Written, NotCopied> {
        let condition = match there {
            // The service copies a blob only over one of the same type.
            Some((etag, kind)) if kind != properties.blob_type => {
                return self
                    .copy_over_other((blob, properties), new_blob, &etag, metadata)
                    .await;
            }
            Some((etag, _)) => Condition::matches(&etag),
            None => Condition::absent(),
        };
        Ok(self
            .copy_version((blob, properties), new_blob, metadata, &condition)
            .await?)
    }

    /// The same over a version of another type, which has to be deleted first: not before there is a copy of
    /// it, from which it comes back if that of the moved file does not come about.
    async fn copy_over_other(
        &self,
        (blob, properties): (&str, &Properties),
        new_blob: &str,
        there: &ETag,
        metadata: &Metadata,
    ) -> Result<Written, NotCopied> {
        let (seen, free) = (Condition::matches(there), Condition::absent());
        let before = match self.env.store.head(new_blob, &seen).await {
            Ok(before) => before,
            Err(Error::BlobNotFound { .. }) => {
                return Ok(self
                    .copy_version((blob, properties), new_blob, metadata, &free)
                    .await?);
            }
            Err(error) => return Err(error.into()),
        };
        let kept = self.moved_metadata(&before);
        let mut replaced = self.hidden.keep_replaced(new_blob, &before, kept).await?;
        let copied = match self.env.store.delete(new_blob, &seen).await {
            Ok(()) | Err(Error::BlobNotFound { .. }) => {
                self.copy_version((blob, properties), new_blob, metadata, &free)
                    .await
            }
            Err(error) => {
                if !is_refusal(&error) {
                    replaced.deleted_late = Some(there.clone());
                }
                Err(error)
            }
        };
        match copied {
            Ok(written) => {
                self.hidden.let_go(replaced).await;
                Ok(written)
            }
            Err(error) => {
                let back = self.hidden.bring_back(replaced).await;
                Err(NotCopied { error, back })
            }
        }
    }

    async fn copy_version(
        &self,
        (blob, properties): (&str, &Properties),
        new_blob: &str,
        metadata: &Metadata,
        condition: &Condition,
    ) -> Result<Written, Error> {
        self.env
            .store
            .copy(
                blob,
                Some(&properties.etag),
                Some(&properties.stored),
                new_blob,
                Some(metadata),
                condition,
            )
            .await
    }

    /// `EPERM` in a container that keeps its blobs, and `EACCES` without the right to delete: a copy would
    /// stay beside what it was made of. Nobody knows of the container without the right to ask. A service
    /// that does not answer would not move anything either.
    pub(super) async fn may_move(&self, blob: &str) -> Result<()> {
        self.lacking.may_delete(&*self.env.store, blob).await?;
        match self.keeps_blobs().await? {
            true => fail(libc::EPERM),
            false => Ok(()),
        }
    }

    /// A file was copied to its new name and could not be deleted under the old one: it stays there, as the
    /// caller is told, and so do its handles. The copy is deleted if that takes nothing away from anybody.
    async fn source_remains(
        &self,
        node: &Arc<Node>,
        (blob, old): (&str, &Written),
        (new_blob, copy): (&str, &Written),
        target: Option<&Arc<Node>>,
        error: Error,
    ) -> Result<()> {
        let refused = is_refusal(&error);
        if !refused {
            match self.env.store.head(blob, &Condition::none()).await {
                Ok(now) if now.etag == old.etag => {}
                // Only the answer was lost; or somebody has written under the old name since.
                Ok(_) | Err(Error::BlobNotFound { .. }) => return Ok(()),
                Err(_) => {
                    // Nobody knows. The copy is there in either case: what is open goes on with it.
                    limited!(
                        warn, self.volume(), "a renamed file may still be stored under its old name, too",
                        %error, blob, new_blob
                    );
                    return Err(error.into());
                }
            }
        }
        self.note_undeleted(&error);
        self.rebind(node, Some(&copy.etag), blob, old);
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
        limited!(
            warn, self.volume(), "a file that could not be renamed is stored under its new name, too",
            %error, blob, new_blob
        );
        Err(error.into())
    }

    /// Metadata of a copy: the same, and the modification time that only `Last-Modified` told so far.
    pub(super) fn moved_metadata(&self, properties: &Properties) -> Metadata {
        self.copied_metadata(properties, None)
    }

    /// The same with another change time.
    fn copied_metadata(&self, properties: &Properties, ctime: Option<SystemTime>) -> Metadata {
        let (kind, mut attrs) = attrs::of(properties);
        attrs.mtime.get_or_insert(properties.last_modified);
        attrs.ctime = ctime.or(attrs.ctime).or(Some(properties.last_modified));
        let kind = if properties.is_directory {
            Kind::Directory
        } else {
            kind
        };
        // Too much metadata to add to it: then the copy is as it was.
        let metadata = attrs::encode(&attrs, kind, &self.defaults);
        let metadata = metadata.unwrap_or_else(|_| properties.metadata.clone());
        ContentOf::of(properties).bound(metadata, self.env.store.now())
    }

    /// A node's blob was moved: its handles and what is known of it follow. `from`: the version that was
    /// copied; `None` when what is at the new name is no copy of it.
    pub(super) fn rebind(&self, node: &Node, from: Option<&ETag>, new_blob: &str, written: &Written) {
        self.rebind_to(node, from, new_blob, written, None);
    }

    /// The same, and what is stored there, if that is not what was stored with the version that was copied.
    pub(super) fn rebind_to(
        &self,
        node: &Node,
        from: Option<&ETag>,
        new_blob: &str,
        written: &Written,
        stored: Option<&Metadata>,
    ) {
        let stamp = self.table.lock().tick();
        let content = {
            let mut state = node.state();
            let same = from.is_some() && state.etag.as_ref() == from;
            let mtime = state.mtime();
            state.written(written, stamp);
            let content = state.content.clone();
            if same {
                if let Some(stored) = stored
                    && let Ok(now) = state.metadata(node.kind, &self.defaults)
                {
                    // What was changed here since the version was seen stays so; the rest is as it is there.
                    let seen = content.as_ref().and_then(|c| c.known_metadata());
                    let seen = seen.unwrap_or_else(|| now.clone());
                    state.attrs = attrs::merged(&seen, &now, stored);
                }
                state.attrs.mtime.get_or_insert(mtime);
            } else {
                // The copy is of a version nobody here has seen: what is known is out of date, and says so.
                // The next open gets that one.
                state.etag = None;
                state.cached = false;
                state.content = None;
            }
            content
        };
        if let Some(content) = content {
            // Handles on an older version stay with it, and find it gone.
            let known = from.is_some() && content.etag().as_ref() == from;
            let before = content.stored_metadata().unwrap_or_default();
            let to = (written, stored.unwrap_or(&before));
            content.moved(new_blob.to_owned(), known.then_some(to));
        }
    }
}
