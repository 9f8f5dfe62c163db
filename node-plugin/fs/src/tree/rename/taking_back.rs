//! Taking back a move of a directory that failed: what it copied, in the versions that it made, its claim
//! last. What another mount has taken over to go on with has another version, and stays.

use std::sync::atomic::AtomicBool;

use blob_client::{Condition, ETag, Error, Properties, Written};
use futures::{StreamExt, stream};

use super::directory::{Copied, PARALLEL, Progress};
use super::load::{Load, Moving};
use super::proof::Proof;
use super::silence::while_answered;
use crate::content::binding::same;
use crate::errno::Result;
use crate::log_limit::limited;
use crate::tree::attrs;
use crate::tree::core::Tree;
use crate::tree::node::{Marker, Node};

impl Tree {
    /// A move failed while copying: deletes the copies that it made, in the versions that it made; the
    /// originals are all there. The marker goes last, so that what could not be deleted is known as what it
    /// is. `before`: the marker of the empty directory that was there.
    pub(super) async fn take_back(
        &self,
        node: &Node,
        (load, new_blob): (&Load, &str),
        progress: &Progress,
        before: Option<&Properties>,
    ) {
        let (all, silent) = (&load.others, &AtomicBool::new(false));
        let claim = &progress.claim_at(new_blob);
        let left = stream::iter(0..progress.others.len())
            .map(|i| while_answered(silent, self.take_back_one(&all[i], &progress.others[i], *claim)))
            .buffer_unordered(PARALLEL)
            .filter_map(|deleted| async move { deleted.err() })
            .count()
            .await;
        if let Some(claim) = &progress.claim
            && left == 0
        {
            match before {
                Some(before) => drop(self.restore_marker(new_blob, claim, before).await),
                None => self.drop_marker(new_blob, &claim.etag).await,
            }
        }
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
        let gone = match (before, progress.marker.arrived()) {
            (Some(before), Some(arrived)) => self.restore_marker(new_blob, &arrived.written, before).await,
            (Some(before), None) => self.restore_unclear(marker, &progress.marker, before).await,
            (None, _) => self.take_back_one(marker, &progress.marker, None).await,
        };
        let gone = match gone {
            // Who has taken the claim over goes by the old marker.
            Ok(true) if load.made => self.delete_one(marker, &marker.etag).await.map(|()| {
                let mut state = node.state();
                state.marker = Marker::Implicit;
                state.etag = None;
            }),
            gone => gone.map(|_| ()),
        };
        if let Err(errno) = gone {
            tracing::debug!(%errno, "the marker of a failed rename is still stored");
        }
    }

    /// The marker of an empty directory that was overwritten says again what it said before. False when it is
    /// another's by now.
    async fn restore_marker(&self, new_blob: &str, ours: &Written, before: &Properties) -> Result<bool> {
        let condition = Condition::matches(&ours.etag);
        match self
            .env
            .store
            .set_metadata(new_blob, &before.metadata, &condition)
            .await
        {
            Ok(_) | Err(Error::BlobNotFound { .. }) => Ok(true),
            Err(Error::ConditionNotMet { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The same where nobody knows whether it was overwritten.
    async fn restore_unclear(&self, marker: &Moving, copied: &Copied, before: &Properties) -> Result<bool> {
        if !matches!(copied, Copied::Failed(_)) {
            return Ok(true);
        }
        match self.env.store.head(&marker.to, &Condition::none()).await {
            // The note names the very version of the old marker, and nobody else's claim is this one.
            Ok(now) if now.etag != before.etag && self.is_copy(&now, marker) => {
                let (etag, last_modified) = (now.etag, now.last_modified);
                let ours = Written { etag, last_modified };
                self.restore_marker(&marker.to, &ours, before).await
            }
            Ok(now) => Ok(now.etag == before.etag),
            Err(Error::BlobNotFound { .. }) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// By its metadata, this is the copy that was asked for.
    fn is_copy(&self, now: &Properties, moving: &Moving) -> bool {
        same(&now.metadata, &moving.metadata) && attrs::same_claim(&now.metadata, &moving.metadata)
    }

    /// Deletes a copy that was made, or may have been. False when it is another's by now. `claim`: the marker
    /// that this move has made, where there is one.
    async fn take_back_one(
        &self,
        moving: &Moving,
        copied: &Copied,
        claim: Option<(&str, &ETag)>,
    ) -> Result<bool> {
        let etag = match copied {
            Copied::Gone | Copied::Skipped | Copied::Taken | Copied::Met => return Ok(true),
            Copied::Arrived(arrived) => arrived.written.etag.clone(),
            Copied::Failed(_) => match self.env.store.head(&moving.to, &Condition::none()).await {
                Ok(now)
                    if self.is_copy(&now, moving)
                        && matches!(
                            self.proof(moving, &now).await?,
                            Proof::SameContent | Proof::OurCopy
                        ) =>
                {
                    // Who goes on with this move takes the claim over before he copies: what is there while
                    // the claim is still ours is none of his copies.
                    if let Some(claim) = claim
                        && !self.is_claimed(claim).await?
                    {
                        return Ok(false);
                    }
                    now.etag
                }
                Ok(_) => return Ok(false),
                Err(Error::BlobNotFound { .. }) => return Ok(true),
                Err(error) => return Err(error.into()),
            },
        };
        match self
            .env
            .store
            .delete(&moving.to, &Condition::matches(&etag))
            .await
        {
            Ok(()) | Err(Error::BlobNotFound { .. }) => Ok(true),
            Err(Error::ConditionNotMet { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
