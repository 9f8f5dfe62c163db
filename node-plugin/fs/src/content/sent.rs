//! A commit that was sent.

use std::ops::Range;

use blob_client::{Block, Body, Metadata};

use super::binding::Digest;

/// What was sent as the new version.
#[derive(Debug)]
pub(super) enum Form {
    /// Put Blob.
    Whole(Body),
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
