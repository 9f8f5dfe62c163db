//! Moving a directory on a flat account: every blob below it is copied inside the service, then every old one
//! is deleted.
//!
//! What makes a move that ends in the middle (an error, a killed process) one that can be finished is a note
//! on the new directory's marker: the key [`attrs::MOVED_FROM`] with the ETag of the old directory's marker.
//! The steps:
//!
//! 1. A directory without a marker gets one.
//! 2. The marker is copied, with the note: this claims the new name, which must be free, or an empty
//!    directory in the version that was seen. Of two directories that are moved to one name, one gets it.
//! 3. Everything else is copied, each to a free name.
//! 4. Everything old but the marker is deleted, each only in the version that was copied.
//! 5. The old marker is deleted; the note is taken off.
//!
//! A failure up to step 3 is undone: the copies are deleted, the new marker last. If that fails as well, or
//! if nobody is left to do it, every blob is at its old name at least. From step 4 on every blob is at its
//! new name at least. In both cases the same rename, by any mount, finds the note, knows by the ETag that it
//! is the same directory, and goes on: it copies what is not there yet, and deletes. As the first one may be
//! alive, only slow, the second makes what it finds its own, the claim first, by giving it a new version:
//! that is not taken back; and so with what the first one copies meanwhile, as long as nobody else has taken
//! the claim over in turn. So the last one to claim the name gets it. What somebody else wrote at a new name
//! meanwhile (`proof.rs`) stays, as does what is at the old one, and the rename says ENOTEMPTY.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blob_client::{Body, Condition, ETag, Error, Properties, PutOptions, StoredHeaders, Written};
use futures::{StreamExt, stream};

use super::load::{Load, Moving, Try};
use super::place::Moved;
use super::proof::Proof;
use super::silence::while_answered;
use crate::content::binding::same;
use crate::errno::{Errno, Result, fail};
use crate::log_limit::limited;
use crate::tree::attrs::{self, Kind};
use crate::tree::busy::Busy;
use crate::tree::core::Tree;
use crate::tree::hidden::renew_version;
use crate::tree::names;
use crate::tree::node::{Marker, Node};

/// Copies or deletions of one directory under way at once.
pub(super) const PARALLEL: usize = 16;
/// How often a copy is repeated when somebody else changes its source meanwhile.
const ATTEMPTS: usize = 5;

/// What is at a blob's new name.
pub(super) struct Arrived {
    pub(super) written: Written,
    /// The version at the old name that it stands for, and that may be deleted.
    version: ETag,
    /// What it is, where others have changed its metadata at the new name.
    changed: Option<Box<Properties>>,
}

/// How copying one blob ended.
pub(super) enum Copied {
    Arrived(Arrived),
    /// Nothing is at the old name any more.
    Gone,
    /// Not tried, as another one had failed.
    Skipped,
    /// Somebody else's blob is at the new name, and stays.
    Taken,
    /// What is at the new name is not what it was when it was looked at.
    Met,
    /// It may be there or not.
    Failed(Errno),
}

impl Copied {
    pub(super) fn arrived(&self) -> Option<&Arrived> {
        match self {
            Self::Arrived(arrived) => Some(arrived),
            _ => None,
        }
    }

    fn failed(&self) -> bool {
        matches!(self, Self::Taken | Self::Met | Self::Failed(_))
    }
}

/// What was done so far.
pub(super) struct Progress {
    /// The marker at the new name.
    pub(super) marker: Copied,
    /// Where the directory has no marker to copy: one that only claims the name.
    pub(super) claim: Option<Written>,
    pub(super) others: Vec<Copied>,
}

impl Progress {
    /// The claim of the new name, in the version that was made.
    pub(super) fn claim_at<'a>(&'a self, new_blob: &'a str) -> Option<(&'a str, &'a ETag)> {
        let arrived = self.marker.arrived().map(|arrived| &arrived.written);
        let written = arrived.or(self.claim.as_ref())?;
        Some((new_blob, &written.etag))
    }
}

/// What is at a blob's new name before it is copied.
enum There {
    /// A marker of the empty directory that is replaced.
    Empty(ETag),
    /// Of an earlier try, or written by somebody since.
    Earlier(Box<Properties>),
}

impl Tree {
    /// Moves every blob of a directory. The gate of the directory is held for writing.
    pub(super) async fn move_directory(
        &self,
        node: &Arc<Node>,
        blob: &str,
        new_blob: &str,
        nth: Try,
        most: usize,
    ) -> Result<Moved> {
        self.may_move(blob).await?;
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
        let load = self.load(node, blob, new_blob, most).await?;
        let long = load.marker.iter().chain(&load.others);
        if let Some(error) = long
            .map(|moved| names::check_blob(&moved.to))
            .find_map(Result::err)
        {
            if let (Some(marker), true) = (&load.marker, load.made) {
                self.drop_marker(blob, &marker.etag).await;
                node.state().marker = Marker::Implicit;
            }
            return Err(error);
        }
        let there = match &nth {
            Try::First => HashMap::new(),
            Try::Over { marker, slash } => {
                let marker = marker.iter().map(|m| (new_blob.to_owned(), m.etag.clone()));
                let slash = slash.iter().map(|etag| (names::below(new_blob), etag.clone()));
                marker
                    .chain(slash)
                    .map(|(name, etag)| (name, There::Empty(etag)))
                    .collect()
            }
            Try::Again => self
                .already_there(new_blob)
                .await?
                .into_iter()
                .map(|(name, at)| (name, There::Earlier(Box::new(at))))
                .collect(),
        };
        let again = matches!(nth, Try::Again);
        let progress = self.copy_all(&load, new_blob, &there, again).await;
        if let Copied::Gone = progress.marker {
            // Somebody else moves or removes the directory: what is left of it has to be looked at.
            return Ok(Moved::Again);
        }
        if progress.marker.failed() || progress.others.iter().any(Copied::failed) {
            return self.give_up(node, (&load, new_blob), &progress, nth).await;
        }
        let moved = load
            .marker
            .iter()
            .zip(std::iter::once(&progress.marker))
            .chain(load.others.iter().zip(&progress.others))
            .filter_map(|(moving, copied)| Some((moving, copied.arrived()?)));
        self.rebind_all(node, &below, blob, moved);
        drop(holds);
        let deleted = self.delete_all(&load, &progress).await;
        if deleted.is_err() {
            self.table.lock().distrust(node.id);
            deleted?;
        }
        if let (Some(marker), Some(arrived)) = (&load.marker, progress.marker.arrived()) {
            // What was replaced was there for everybody, and so is what took its place, also with nothing in
            // it.
            let replaced = load.others.is_empty() && matches!(&nth, Try::Over { marker: Some(_), .. });
            let made = load.made && !again && !replaced;
            self.take_note_off(node, marker, &arrived.written, made, load.others.is_empty())
                .await;
        }
        if let Some(claim) = &progress.claim {
            self.drop_marker(new_blob, &claim.etag).await;
        }
        if again {
            // What arrived in earlier tries is not in the table.
            self.table.lock().distrust(node.id);
        }
        Ok(Moved::Done)
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

    /// Something could not be copied: takes back what was, and says why.
    async fn give_up(
        &self,
        node: &Node,
        (load, new_blob): (&Load, &str),
        progress: &Progress,
        nth: Try,
    ) -> Result<Moved> {
        let claimed = progress.marker.arrived().is_some() || progress.claim.is_some();
        let errno = std::iter::once(&progress.marker)
            .chain(&progress.others)
            .find_map(|copied| match copied {
                Copied::Failed(errno) => Some(*errno),
                _ => None,
            });
        match &nth {
            // What is there may have no other name any more.
            Try::Again => self.table.lock().distrust(node.id),
            Try::First => self.take_back(node, (load, new_blob), progress, None).await,
            Try::Over { marker, .. } => {
                self.take_back(node, (load, new_blob), progress, marker.as_deref())
                    .await;
            }
        }
        match errno {
            Some(errno) => Err(errno),
            // The name was taken, and is not what was known of it; or somebody writes below it.
            None if !claimed && !matches!(nth, Try::Again) => Ok(Moved::Again),
            None => fail(libc::ENOTEMPTY),
        }
    }

    /// Copies the marker, then everything else, until something fails. `again`: where another try left off.
    async fn copy_all(
        &self,
        load: &Load,
        new_blob: &str,
        there: &HashMap<String, There>,
        again: bool,
    ) -> Progress {
        let mut progress = Progress {
            marker: Copied::Skipped,
            claim: None,
            others: Vec::new(),
        };
        match &load.marker {
            Some(marker) => progress.marker = self.copy_one(marker, there.get(&marker.to)).await,
            None => match self.claim(new_blob, there.get(new_blob)).await {
                Ok(claim) => progress.claim = Some(claim),
                Err(copied) => progress.marker = copied,
            },
        }
        if progress.marker.failed() || matches!(progress.marker, Copied::Gone) {
            return progress;
        }
        let failed = AtomicBool::new(false);
        let claim = progress.claim_at(new_blob).filter(|_| again);
        // Indices, as futures that borrow from a stream's items are not `Send` enough for a task.
        let all = &load.others;
        progress.others = stream::iter(0..all.len())
            .map(|i| {
                let failed = &failed;
                async move {
                    if failed.load(Ordering::Relaxed) {
                        return Copied::Skipped;
                    }
                    let copied = self.copy_beside(&all[i], there.get(&all[i].to), claim).await;
                    failed.fetch_or(copied.failed(), Ordering::Relaxed);
                    copied
                }
            })
            .buffered(PARALLEL)
            .collect()
            .await;
        progress
    }

    /// Claims the new name of a directory that has no marker of its own.
    async fn claim(&self, new_blob: &str, there: Option<&There>) -> Result<Written, Copied> {
        let condition = match there {
            None => Condition::absent(),
            Some(There::Empty(etag)) => Condition::matches(etag),
            // An earlier try came so far: that marker is the claim.
            Some(There::Earlier(at)) => match self.take_over(new_blob, at, true).await {
                Ok(Some(written)) => return Ok(written),
                Ok(None) => Condition::absent(),
                Err(Error::ConditionNotMet { .. }) => return Err(Copied::Taken),
                Err(error) => return Err(Copied::Failed(error.into())),
            },
        };
        let metadata = attrs::encode(&attrs::Attrs::default(), Kind::Directory, &self.defaults);
        let mut metadata = metadata.map_err(Copied::Failed)?;
        attrs::claim(&mut metadata);
        let options = PutOptions {
            metadata,
            condition,
            stored: Some(StoredHeaders::default()),
            ..PutOptions::default()
        };
        match self.env.store.put(new_blob, Body::default(), &options).await {
            Ok(written) => Ok(written),
            Err(Error::AlreadyExists { .. } | Error::ConditionNotMet { .. }) => Err(Copied::Taken),
            Err(error) => Err(Copied::Failed(error.into())),
        }
    }

    /// Takes a marker away that was made for a while only.
    pub(super) async fn drop_marker(&self, blob: &str, version: &ETag) {
        match self.env.store.delete(blob, &Condition::matches(version)).await {
            Ok(()) | Err(Error::BlobNotFound { .. }) => {}
            Err(error) => tracing::debug!(%error, blob, "a directory keeps its marker"),
        }
    }

    /// What an earlier try copied, or claimed, becomes this one's: by a new version, as whoever made it may
    /// still be there, and takes back what has his version. `None` when he has.
    async fn take_over(
        &self,
        new_blob: &str,
        at: &Properties,
        claims: bool,
    ) -> Result<Option<Written>, Error> {
        let mut metadata = at.metadata.clone();
        if claims {
            attrs::claim(&mut metadata);
        }
        renew_version(&*self.env.store, new_blob, &metadata, &at.etag).await
    }

    /// Copies one blob. `claim`: of a move that goes on with an earlier try, which may still be at work: what
    /// that has copied since is taken over as well, as long as nobody has taken over from this one. So the
    /// last one to claim the name gets it.
    async fn copy_beside(
        &self,
        moving: &Moving,
        there: Option<&There>,
        claim: Option<(&str, &ETag)>,
    ) -> Copied {
        let mut copied = self.copy_one(moving, there).await;
        let Some(claim) = claim else { return copied };
        for _ in 0..ATTEMPTS {
            if !matches!(copied, Copied::Met) {
                break;
            }
            match self.is_claimed(claim).await {
                Ok(true) => {}
                Ok(false) => return Copied::Taken,
                Err(errno) => return Copied::Failed(errno),
            }
            let there = match self.env.store.head(&moving.to, &Condition::none()).await {
                Ok(now) => Some(There::Earlier(Box::new(now))),
                Err(Error::BlobNotFound { .. }) => None,
                Err(error) => return Copied::Failed(error.into()),
            };
            copied = self.copy_one(moving, there.as_ref()).await;
        }
        copied
    }

    /// Whether this version of the claim of a name is still the one that is there.
    pub(super) async fn is_claimed(&self, (name, version): (&str, &ETag)) -> Result<bool> {
        match self.env.store.head(name, &Condition::matches(version)).await {
            Ok(_) => Ok(true),
            Err(Error::BlobNotFound { .. } | Error::ConditionNotMet { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn copy_one(&self, moving: &Moving, there: Option<&There>) -> Copied {
        let claims = moving.metadata.contains_key(attrs::MOVED_FROM);
        let condition = match there {
            None => Condition::absent(),
            Some(There::Empty(etag)) => Condition::matches(etag),
            Some(There::Earlier(at)) => {
                let arrived = match self.proof(moving, at).await {
                    Ok(Proof::SameContent) if same(&at.metadata, &moving.metadata) => Some(true),
                    // Only attributes differ, and those that were changed last stay. Both times are by the
                    // service's clock.
                    Ok(Proof::SameContent) => Some(at.last_modified > moving.modified),
                    Ok(Proof::OurCopy) => Some(false),
                    // Taken back meanwhile.
                    Ok(Proof::Gone) => None,
                    // Somebody wrote it, and may not know of what is at the old name.
                    Ok(Proof::Nothing) => {
                        limited!(
                            warn,
                            self.volume(),
                            "an interrupted rename cannot go on: somebody else's file is at the new name",
                            from = moving.from,
                            to = moving.to
                        );
                        return Copied::Taken;
                    }
                    Err(errno) => return Copied::Failed(errno),
                };
                match arrived {
                    None => Condition::absent(),
                    Some(false) => Condition::matches(&at.etag),
                    Some(true) => match self.take_over(&moving.to, at, claims).await {
                        Ok(Some(written)) => {
                            return Copied::Arrived(Arrived {
                                written,
                                version: moving.etag.clone(),
                                changed: (!same(&at.metadata, &moving.metadata)).then(|| at.clone()),
                            });
                        }
                        Ok(None) => Condition::absent(),
                        Err(Error::ConditionNotMet { .. }) => return Copied::Met,
                        Err(error) => return Copied::Failed(error.into()),
                    },
                }
            }
        };
        let (mut version, mut metadata, mut stored) = (moving.etag.clone(), None, None);
        for _ in 0..ATTEMPTS {
            let to_store = metadata.as_ref().unwrap_or(&moving.metadata);
            let copied = self
                .env
                .store
                .copy(
                    &moving.from,
                    Some(&version),
                    Some(stored.as_ref().unwrap_or(&moving.stored)),
                    &moving.to,
                    Some(to_store),
                    &condition,
                )
                .await;
            match copied {
                Ok(written) => {
                    return Copied::Arrived(Arrived {
                        written,
                        version,
                        changed: None,
                    });
                }
                Err(Error::BlobNotFound { .. }) => return Copied::Gone,
                // The version at the old name, or what is at the new one, is not what it was.
                Err(Error::AlreadyExists { .. } | Error::ConditionNotMet { .. }) => {}
                Err(error) => return Copied::Failed(error.into()),
            }
            match self.env.store.head(&moving.from, &Condition::none()).await {
                Ok(now) if now.etag == version => return Copied::Met,
                Ok(now) => {
                    let mut moved = self.moved_metadata(&now);
                    // The note goes with the marker's new version.
                    if claims {
                        moved.insert(attrs::MOVED_FROM.to_owned(), now.etag.0.clone());
                        attrs::claim(&mut moved);
                    }
                    (version, metadata, stored) = (now.etag, Some(moved), Some(now.stored));
                }
                Err(Error::BlobNotFound { .. }) => return Copied::Gone,
                Err(error) => return Copied::Failed(error.into()),
            }
        }
        Copied::Failed(Errno(libc::EBUSY))
    }

    /// Deletes what was copied under its old names, the marker last.
    async fn delete_all(&self, load: &Load, progress: &Progress) -> Result<()> {
        let all: Vec<(&Moving, &ETag)> = load
            .others
            .iter()
            .zip(&progress.others)
            .filter_map(|(moving, copied)| Some((moving, &copied.arrived()?.version)))
            .collect();
        let (all, silent) = (&all, &AtomicBool::new(false));
        let failed = stream::iter((0..all.len()).rev())
            .map(|i| while_answered(silent, self.delete_one(all[i].0, all[i].1)))
            .buffer_unordered(PARALLEL)
            .filter_map(|deleted| async move { deleted.err() })
            .collect::<Vec<Errno>>()
            .await;
        if let Some(errno) = failed.first() {
            return Err(*errno);
        }
        match (&load.marker, progress.marker.arrived()) {
            (Some(marker), Some(arrived)) => self.delete_one(marker, &arrived.version).await,
            _ => Ok(()),
        }
    }

    pub(super) async fn delete_one(&self, moved: &Moving, version: &ETag) -> Result<()> {
        match self
            .env
            .store
            .delete(&moved.from, &Condition::matches(version))
            .await
        {
            // A file that somebody changed after it was copied stays, under the old name.
            Ok(()) | Err(Error::BlobNotFound { .. } | Error::ConditionNotMet { .. }) => Ok(()),
            Err(error) => {
                self.note_undeleted(&error);
                limited!(
                    warn, self.volume(), "a moved file is still stored under its old name, too",
                    %error, blob = moved.from
                );
                Err(error.into())
            }
        }
    }

    /// The move is complete: its note goes, or the marker if it was only made to carry the note.
    async fn take_note_off(&self, node: &Node, marker: &Moving, written: &Written, made: bool, empty: bool) {
        let condition = Condition::matches(&written.etag);
        if made {
            match self.env.store.delete(&marker.to, &condition).await {
                Ok(()) | Err(Error::BlobNotFound { .. }) => {
                    let mut state = node.state();
                    state.marker = if empty { Marker::Kept } else { Marker::Implicit };
                    state.etag = None;
                }
                Err(error) => tracing::debug!(%error, blob = marker.to, "a directory keeps its marker"),
            }
            return;
        }
        let metadata = attrs::without_note(marker.metadata.clone());
        match self
            .env
            .store
            .set_metadata(&marker.to, &metadata, &condition)
            .await
        {
            Ok(now) => {
                let stamp = self.table.lock().tick();
                let mut state = node.state();
                // Else what is known of the directory is of another version than the one that was moved.
                if state.etag.as_ref() == Some(&written.etag) {
                    state.written(&now, stamp);
                }
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
                let changed = arrived.changed.as_ref().filter(|_| node.id != directory.id);
                if let Some(now) = changed {
                    node.state().ctime = attrs::of(now).1.ctime.unwrap_or(now.last_modified);
                }
                let (version, stored) = (Some(&arrived.version), changed.map(|now| &now.metadata));
                self.rebind_to(node, version, &moving.to, &arrived.written, stored);
            }
        }
    }
}
