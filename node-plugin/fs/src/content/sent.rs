//! A commit that was sent.

use std::ops::Range;

use blob_client::{Block, Body, Metadata};

use super::binding::{Digest, md5_of};

/// What was sent as the new version.
#[derive(Debug)]
pub(super) enum Form {
    /// Put Blob.
    Whole(Body),
    /// The same, of which only the MD5 is kept: it may be long until the service tells what became of it.
    Sum([u8; 16]),
    /// Put Block List.
    Blocks(Vec<Block>),
}

/// A commit that was sent, and what has to be known when it turns out to have succeeded.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(super) form: Form,
    pub(super) metadata: Metadata,
    /// Of the content.
    pub(super) digest: Digest,
    /// What of it is the tree's ([`super::state::State::merged`]).
    pub(super) given: Metadata,
    pub(super) size: u64,
    pub(super) epoch: u64,
    /// Ranges that differ from the version before.
    pub(super) changed: Vec<Range<u64>>,
    pub(super) holes: Vec<Range<u64>>,
}

impl Sent {
    /// Lets go of the memory that was sent: part of it may be cached data of the version before.
    pub(super) fn without_body(mut self) -> Self {
        if let Form::Whole(body) = &self.form {
            self.form = Form::Sum(match self.digest {
                Digest::Md5(sum) => sum,
                Digest::Unknown | Digest::None => md5_of(body),
            });
        }
        self
    }
}
