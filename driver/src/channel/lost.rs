//! Memory that stays with the host after its requests were given up, and who is told of it.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

/// Keeps the books of whoever sends requests.
pub trait Ledger: Send + Sync + Debug {
    /// `bytes` of a request that nobody waits for any more cannot be had back until the host returns it: what
    /// this returns is dropped then. Called with no lock of the channel held.
    fn lost(&self, bytes: usize) -> Box<dyn Any + Send>;
}

/// What the buffers of an exchange take, and who is told when they are lost.
#[derive(Debug, Clone, Default)]
pub(super) struct Load {
    pub(super) bytes: usize,
    pub(super) ledger: Option<Arc<dyn Ledger>>,
}

/// A request that nobody waits for any more, whose buffers the host has still.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) bytes: usize,
    /// What its ledger gave for it.
    #[expect(dead_code, reason = "is there to be dropped")]
    pub(super) charge: Option<Charge>,
}

/// See [`Ledger::lost`].
pub(super) struct Charge(#[expect(dead_code, reason = "is there to be dropped")] Box<dyn Any + Send>);

impl Debug for Charge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Charge")
    }
}

impl Load {
    pub(super) fn charge(&self) -> Option<Charge> {
        self.ledger.as_ref().map(|ledger| Charge(ledger.lost(self.bytes)))
    }
}
