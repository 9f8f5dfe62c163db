//! The table behind its lock: what was recorded meanwhile is in the journal when the lock is given back.

use std::ops::{Deref, DerefMut};

use super::Table;
use crate::sync::{Mutex, MutexGuard};

/// The table behind its lock. Taken before any node's state, never across an await.
#[derive(Debug)]
pub(crate) struct SharedTable(Mutex<Table>);

/// Access to the table; what was recorded meanwhile is in the journal when it is dropped.
pub(crate) struct TableGuard<'a>(MutexGuard<'a, Table>);

impl SharedTable {
    pub(crate) fn new(table: Table) -> Self {
        Self(Mutex::new(table))
    }

    pub(crate) fn lock(&self) -> TableGuard<'_> {
        TableGuard(self.0.lock())
    }
}

impl Deref for TableGuard<'_> {
    type Target = Table;
    fn deref(&self) -> &Table {
        &self.0
    }
}

impl DerefMut for TableGuard<'_> {
    fn deref_mut(&mut self) -> &mut Table {
        &mut self.0
    }
}

impl Drop for TableGuard<'_> {
    fn drop(&mut self) {
        self.0.write_journal();
    }
}
