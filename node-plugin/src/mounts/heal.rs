//! Dead mounts that are made anew: counted here, and their targets bound again.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::manager::Mounts;
use super::mount::State;
use super::probe::Condition;
use crate::error::Result;

/// How often dead mounts were made anew.
#[derive(Debug, Default)]
pub struct Healing {
    healed: AtomicU64,
    failed: AtomicU64,
}

impl Healing {
    /// Counts an attempt.
    pub fn count<T>(&self, result: &Result<T>) {
        let count = match result {
            Ok(_) => &self.healed,
            Err(_) => &self.failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Mounts that were made anew.
    pub fn healed(&self) -> u64 {
        self.healed.load(Ordering::Relaxed)
    }

    /// Attempts that failed.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

impl Mounts {
    /// Mounts that are remembered, and that nobody serves. One that has been taken away, and whose last changes
    /// are being committed, is none of them.
    pub fn dead(&self) -> usize {
        let all = self.lock();
        let remembered = all.values().filter(|mount| mount.record.is_some());
        remembered
            .filter(|mount| match &mount.state {
                State::Starting | State::Dead => true,
                State::Serving(session) => !session.serving.is_serving(),
                State::Ending(_) => false,
            })
            .count()
    }

    /// Whether a dead mount is at a target of the volume at a path.
    pub async fn has_dead_targets(&self, path: &Path) -> Result<bool> {
        for target in self.record(path).into_iter().flat_map(|record| record.targets) {
            if matches!(self.condition(&target.0).await?, Condition::Dead(_)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Binds the volume that is mounted at a path to all its targets whose mounts are dead: a container that
    /// is restarted finds it there. One that cannot be bound keeps no other from it.
    ///
    /// # Errors
    /// The first failure.
    pub async fn rebind(&self, path: &Path) -> Result<()> {
        let mut first = Ok(());
        for (target, args) in self.record(path).into_iter().flat_map(|record| record.targets) {
            let dead = matches!(self.condition(&target).await, Ok(Condition::Dead(_)));
            if !dead {
                continue;
            }
            let bound = self.bind(path, &target, args).await;
            match &bound {
                Ok(()) => tracing::info!(path = %target.display(), "bound again"),
                Err(error) => tracing::warn!(path = %target.display(), %error, "not bound again"),
            }
            first = first.and(bound);
        }
        first
    }
}
