//! Operations that got no answer just now: who has waited for one in the kernel does not wait for that anew.
//!
//! The kernel has one inode worked on by one program at a time: a folder by who looks a name up in it, makes
//! or removes one, a file by who writes it, changes its size or makes it durable. It asks for the next one
//! when the one before was answered, also with an error: of a hundred programs the last one would wait a
//! hundred times as long as the first.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::caller::Clock;
use crate::sync::Mutex;
use crate::tree::NodeId;

/// What the kernel locks while it waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Locked {
    /// One inode, for who only asks. Looking a name up in a folder counts: it waits for who changes that.
    Asks(NodeId),
    /// One inode, for who changes it: what cannot be stored may well be read.
    Changes(NodeId),
    /// All renames from one folder to another.
    Renames,
}

/// See the module; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Silence(Arc<Mutex<HashMap<Locked, Instant>>>);

impl Silence {
    /// An operation under these locks got no answer. For so long nobody need wait there, unless the volume
    /// gets on.
    pub(super) fn note(&self, locks: &[Locked], long: Duration) {
        let mut known = self.0.lock();
        known.retain(|_, at| at.elapsed() < long);
        known.extend(locks.iter().map(|lock| (*lock, Instant::now())));
    }

    /// Whether who held one of these locks got no answer so shortly before, and nobody else did since.
    pub(super) fn is_known(&self, locks: &[Locked], long: Duration, clock: &Clock) -> bool {
        let known = self.0.lock();
        let mut noted = locks.iter().filter_map(|lock| known.get(lock));
        noted.any(|at| at.elapsed() < long && !clock.got_on_after(*at))
    }
}
