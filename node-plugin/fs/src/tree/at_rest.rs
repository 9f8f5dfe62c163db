//! A tree that nobody uses any more, for tests: what must be true of it.

use super::core::Tree;

impl Tree {
    /// Nothing is open, under way or owed, and the table is sound.
    pub(crate) fn assert_at_rest(&self) {
        let table = self.table.lock();
        table.assert_sound();
        assert_eq!(self.handles.all_files(), Vec::<u64>::new(), "open handles");
        for node in table.nodes() {
            let state = node.state();
            let id = node.id;
            assert_eq!((state.handles, state.flushed), (0, 0), "handles of {id}");
            assert!(!state.pinned() && !state.local(), "{id} is not stored: {state:?}");
            if let Some(content) = &state.content {
                content.assert_idle();
            }
        }
    }
}
