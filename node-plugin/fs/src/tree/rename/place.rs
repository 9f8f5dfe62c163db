//! Where something is renamed from or to.

use crate::tree::node::NodeId;

/// A name and its directory.
pub(super) struct Place<'a> {
    pub(super) parent: NodeId,
    pub(super) name: &'a str,
}
