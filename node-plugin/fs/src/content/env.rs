//! What every file of a volume works with.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use blob_client::{Patience, Progress};
use vsc_driver::buffer::Arena;

use super::dirty_log::{DirtyLog, NoLog};
use super::tuning::Tuning;
use crate::budget::{Budget, Losses, Share};
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
    /// How long anybody waits for work that makes no progress.
    pub patience: Patience,
    /// When the volume's work got on last.
    pub progress: Progress,
    /// Sizes; [`Tuning::default`] outside of tests.
    pub tuning: Tuning,
    /// Where this file's dirty data is written down (one per file: the log knows the node).
    pub log: Arc<dyn DirtyLog>,
    /// False once the endpoint has shown that it has no Put Block From URL. One per volume.
    pub server_copy: Arc<AtomicBool>,
}

impl Env {
    /// An environment with the usual sizes and times, and no log.
    pub fn new(
        store: Arc<dyn Store>,
        budget: Arc<Budget>,
        arena: Arc<Arena>,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        let progress = store.progress();
        let share = budget.join_with(progress.clone());
        store.keep_books(Losses::of(&share));
        Self {
            store,
            share,
            budget,
            arena,
            runtime,
            patience: Patience::default(),
            progress,
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
