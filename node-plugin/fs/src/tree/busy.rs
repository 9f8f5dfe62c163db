//! Requests under way that change a node's version.

use super::node::Node;

/// Requests under way that change a node's version; answers from the service are not believed meanwhile.
pub(super) struct Busy<'a>(&'a Node);

impl<'a> Busy<'a> {
    pub(super) fn new(node: &'a Node) -> Self {
        node.state().busy += 1;
        Self(node)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.busy = state.busy.saturating_sub(1);
    }
}
