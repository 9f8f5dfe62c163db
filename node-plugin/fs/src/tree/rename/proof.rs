//! What is at a new name of a move that was cut off: whether it may be overwritten, or stand for the old one.

use blob_client::{BlobType, Condition, Error, Properties};

use super::load::Moving;
use crate::content::{Base, Described, File, FileError, Reader, described_same};
use crate::errno::{Errno, Result};
use crate::tree::core::Tree;

/// Bytes that are compared at once.
const PART: usize = 4 << 20;

/// What is proven of the blob at a new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// It has the content of the one at the old name.
    SameContent,
    /// It was copied from the old name, and nobody has written it since.
    OurCopy,
    /// It is not there any more: whoever copied it has taken it back.
    Gone,
    /// Nothing: it may be all that there is of what somebody wrote.
    Nothing,
}

impl Tree {
    /// What is known of `there`, at the new name of `moving`. Both are what a listing said.
    pub(super) async fn proof(&self, moving: &Moving, there: &Properties) -> Result<Proof> {
        let same_size = there.content_length == moving.size && there.blob_type == moving.kind;
        if same_size && (moving.size == 0 || self.described_same(moving, there).await?) {
            return Ok(Proof::SameContent);
        }
        let now = match self.env.store.head(&moving.to, &Condition::none()).await {
            Ok(now) if now.etag != there.etag => return Ok(Proof::Nothing),
            Ok(now) if now.copied_from.as_ref() == Some(&moving.from) => return Ok(Proof::OurCopy),
            Ok(now) => now,
            Err(Error::BlobNotFound { .. }) => return Ok(Proof::Gone),
            Err(error) => return Err(error.into()),
        };
        if same_size && self.same_bytes(moving, &now).await? {
            return Ok(Proof::SameContent);
        }
        Ok(Proof::Nothing)
    }

    /// Whether all of both is told to be the same.
    async fn described_same(&self, moving: &Moving, there: &Properties) -> Result<bool> {
        if moving.kind != BlobType::Block {
            return Ok(false);
        }
        let (old, new) = futures::join!(
            self.env.store.block_list(&moving.from),
            self.env.store.block_list(&moving.to)
        );
        let (old, new) = match (old, new) {
            (Ok(old), Ok(new)) => (old, new),
            (Err(Error::BlobNotFound { .. }), _) | (_, Err(Error::BlobNotFound { .. })) => return Ok(false),
            (Err(error), _) | (_, Err(error)) => return Err(error.into()),
        };
        let versions = old.etag.as_ref() == Some(&moving.etag) && new.etag.as_ref() == Some(&there.etag);
        let told_old = Described {
            size: moving.size,
            content_md5: moving.content_md5.as_ref(),
            blocks: &old.committed,
        };
        let told_new = Described {
            size: there.content_length,
            content_md5: there.content_md5.as_ref(),
            blocks: &new.committed,
        };
        Ok(versions && described_same(told_old, told_new) == moving.size)
    }

    /// Whether both are the same, byte for byte; each in the version that was seen.
    async fn same_bytes(&self, moving: &Moving, there: &Properties) -> Result<bool> {
        let base = Base {
            etag: moving.etag.clone(),
            size: moving.size,
            kind: moving.kind,
            content_md5: None,
            created: None,
            metadata: moving.metadata.clone(),
            stored: None,
        };
        let old = File::open(self.env.clone(), moving.from.clone(), base);
        let new = File::open(self.env.clone(), moving.to.clone(), Base::from(there));
        let readers = (Reader::default(), Reader::default());
        let mut at = 0;
        while at < moving.size {
            let parts = futures::join!(old.read(&readers.0, at, PART), new.read(&readers.1, at, PART));
            let (old, new) = match parts {
                (Ok(old), Ok(new)) => (old, new),
                (Err(FileError::Stale), _) | (_, Err(FileError::Stale)) => return Ok(false),
                (Err(error), _) | (_, Err(error)) => return Err(Errno::from(error)),
            };
            if old.is_empty() || old[..] != new[..] {
                return Ok(false);
            }
            at += old.len() as u64;
        }
        Ok(true)
    }
}
