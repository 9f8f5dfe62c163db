//! What every file of a volume works with.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use vsc_driver::buffer::Arena;

use super::dirty_log::{DirtyLog, NoLog};
use super::tuning::Tuning;
use crate::budget::{Budget, Share};
use crate::store::Store;

/// What every file of a volume needs.
#[derive(Debug, Clone)]
pub struct Env {
    /// The container.
    pub store: Arc<dyn Store>,
    /// Shared budget.
    pub budget: Arc<Budget>,
    /// The volume's part of it for dirty data.
    pub share: Arc<Share>,
    /// Shared arena.
    pub arena: Arc<Arena>,
    /// Runtime for background work.
    pub runtime: tokio::runtime::Handle,
    /// Sizes; [`Tuning::default`] outside of tests.
    pub tuning: Tuning,
    /// Where this file's dirty data is written down (one per file: the log knows the node).
    pub log: Arc<dyn DirtyLog>,
    /// False once the endpoint has shown that it has no Put Block From URL. One per volume.
    pub server_copy: Arc<AtomicBool>,
}

impl Env {
    /// An environment with the usual sizes and no log.
    pub fn new(
        store: Arc<dyn Store>,
        budget: Arc<Budget>,
        arena: Arc<Arena>,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        Self {
            store,
            share: budget.join(),
            budget,
            arena,
            runtime,
            tuning: Tuning::default(),
            log: Arc::new(NoLog),
            server_copy: Arc::new(AtomicBool::new(true)),
        }
    }

    /// The same with a log of dirty data, for one file.
    pub fn with_log(&self, log: Arc<dyn DirtyLog>) -> Self {
        Self { log, ..self.clone() }
    }
}
