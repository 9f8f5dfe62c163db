//! Gates: while something is worked on by its blob name, no directory above it moves.

use std::sync::Arc;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::core::Tree;
use super::node::NodeId;
use super::table::Table;
use crate::caller::still_waits;
use crate::errno::{Errno, Result};

/// Held gates.
#[derive(Debug)]
pub(crate) struct Gates {
    _read: Vec<OwnedRwLockReadGuard<()>>,
    _write: Vec<OwnedRwLockWriteGuard<()>>,
}

/// A gate to take: depth and id give the order, the same for everybody.
type Wanted = (usize, NodeId, bool, Arc<RwLock<()>>);

impl Tree {
    /// The gates of the directories above `id`, and of `id` itself when it is a directory, for reading.
    /// `ENOENT` when no name leads there any more.
    pub(crate) async fn gates(&self, id: NodeId) -> Result<Gates> {
        self.gates_for(&[id], &[]).await
    }

    /// Gates of all of `ids` and what is above them for reading, but those of `moving` for writing. `EIO`
    /// when whoever waits for the operation was told so meanwhile.
    pub(crate) async fn gates_for(&self, ids: &[NodeId], moving: &[NodeId]) -> Result<Gates> {
        loop {
            let wanted = wanted(&self.table.lock(), ids, moving).ok_or(Errno(libc::ENOENT))?;
            let mut gates = Gates {
                _read: Vec::with_capacity(wanted.len()),
                _write: Vec::new(),
            };
            for (_, _, write, gate) in &wanted {
                let gate = || Arc::clone(gate);
                if *write {
                    gates._write.push(match gate().try_write_owned() {
                        Ok(free) => free,
                        Err(_) => gate().write_owned().await,
                    });
                } else {
                    gates._read.push(match gate().try_read_owned() {
                        Ok(free) => free,
                        Err(_) => gate().read_owned().await,
                    });
                }
            }
            // A directory may have moved while we waited: then these are the wrong gates.
            let now = self::wanted(&self.table.lock(), ids, moving).ok_or(Errno(libc::ENOENT))?;
            if wanted.iter().map(|w| w.1).eq(now.iter().map(|w| w.1)) {
                still_waits()?;
                return Ok(gates);
            }
        }
    }
}

fn wanted(table: &Table, ids: &[NodeId], moving: &[NodeId]) -> Option<Vec<Wanted>> {
    let mut wanted: Vec<Wanted> = Vec::new();
    for id in ids.iter().chain(moving) {
        for (depth, id) in table.path(*id)?.into_iter().enumerate() {
            if let Some(directory) = &table.link(id)?.node.directory {
                wanted.push((depth, id, moving.contains(&id), Arc::clone(&directory.gate)));
            }
        }
    }
    wanted.sort_by_key(|(depth, id, _, _)| (*depth, *id));
    wanted.dedup_by_key(|w| w.1);
    Some(wanted)
}
