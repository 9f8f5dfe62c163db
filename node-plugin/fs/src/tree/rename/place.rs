//! Where something is renamed from or to, and how a try ended.

use crate::tree::node::NodeId;

/// A name and its directory.
pub(super) struct Place<'a> {
    pub(super) parent: NodeId,
    pub(super) name: &'a str,
}

/// How a try to move something ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moved {
    Done,
    /// The target is not what it was taken for: nothing was moved, and what is there now is to be looked at.
    Again,
}
