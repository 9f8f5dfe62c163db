//! Dead mounts that are made anew: counted here, in turn, and their targets bound again.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::bind::NotBound;
use super::manager::Mounts;
use super::mount::{Mount, State};
use super::probe::Condition;
use crate::error::{Error, Reason, Result};

/// Volumes that are made anew at a time: after a restart all are dead, and share the network and the services
/// that give tokens with what else goes on.
const AT_ONCE: usize = 4;
/// What takes longer waits for a service that hangs, and lets another volume have its turn.
const TURN: Duration = Duration::from_secs(1);
/// As long as no more than these wait so: each asks for tokens and Secrets, and has a connection.
const WAITING: usize = 16;
/// Longest pause before the first attempt, so that the nodes of a cluster do not all ask at once.
pub const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between attempts.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The attempts to make dead mounts anew.
#[derive(Debug)]
pub struct Healing {
    healed: AtomicU64,
    failed: AtomicU64,
    turns: Semaphore,
    waiting: Semaphore,
    /// By the path of the mount.
    latest: Mutex<BTreeMap<PathBuf, Failed>>,
}

/// The latest attempt at a mount, which has failed.
#[derive(Debug)]
struct Failed {
    error: Error,
    /// It had secrets of a call.
    given: bool,
    pause: Duration,
    until: Instant,
}

impl Default for Healing {
    fn default() -> Self {
        Self {
            healed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            turns: Semaphore::new(AT_ONCE),
            waiting: Semaphore::new(WAITING),
            latest: Mutex::default(),
        }
    }
}

impl Healing {
    /// Does something when it is its turn. What takes long gives its turn back, unless too many have: then it
    /// keeps it until one of them has ended, as all do within the limits of what they ask.
    pub async fn in_turn<T>(&self, work: impl Future<Output = T>) -> T {
        // The semaphores are never closed.
        let turn = self.turns.acquire().await.ok();
        tokio::pin!(work);
        if let Ok(done) = tokio::time::timeout(TURN, &mut work).await {
            return done;
        }
        let _waits = tokio::select! {
            biased;
            done = &mut work => return done,
            waits = self.waiting.acquire() => waits.ok(),
        };
        drop(turn);
        work.await
    }

    /// Counts an attempt at a mount, and remembers why it failed. `given`: it had secrets of a call.
    pub fn note(&self, path: &Path, given: bool, result: &Result<()>) {
        let Err(error) = result else {
            self.healed.fetch_add(1, Ordering::Relaxed);
            return self.forget(path);
        };
        self.note_failure();
        let mut latest = self.latest();
        let before = latest.get(path).map(|failed| failed.pause);
        let pause = before.map_or(FIRST_PAUSE, |pause| (pause * 2).min(LONGEST_PAUSE));
        let failed = Failed {
            error: error.clone(),
            given,
            pause,
            until: Instant::now() + pause,
        };
        latest.insert(path.to_owned(), failed);
    }

    /// Counts an attempt that failed for a target only.
    pub fn note_failure(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Why the latest attempt failed, when it is too early for the next one: kubelet repeats its calls for
    /// every pod. One that brings secrets does not wait for one that had none.
    pub fn too_early(&self, path: &Path, given: bool) -> Option<Error> {
        let latest = self.latest();
        let failed = latest.get(path)?;
        let rests = Instant::now() < failed.until && (failed.given || !given);
        rests.then(|| failed.error.clone())
    }

    /// Nothing is mounted there any more.
    pub(super) fn forget(&self, path: &Path) {
        self.latest().remove(path);
    }

    fn latest(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Failed>> {
        // Whole after a panic elsewhere: every change is one insert or remove.
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
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

/// What was not bound again.
#[derive(Debug, Default)]
pub struct Rebound {
    /// The first failure that the next attempt may not have.
    pub failed: Option<Error>,
    /// The first one that lasts for as long as its pod.
    pub lasting: Option<Error>,
}

impl Mounts {
    /// Mounts that are remembered, and that nobody serves. One that has been taken away, and whose last
    /// changes are being committed, is none of them, and neither is one that a former process has unmounted.
    pub fn dead(&self) -> usize {
        let all = self.lock();
        let is_mounted = |mount: &&Mount| {
            let stored = mount.record.as_ref();
            stored.is_some_and(|stored| stored.record.set_aside.is_none())
        };
        let remembered = all.values().filter(is_mounted);
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

    /// Whether the mount at a target is dead.
    ///
    /// # Errors
    /// Nobody can say: it is not served here, and what it says is not that nobody does.
    async fn known_dead(&self, target: &Path) -> Result<bool> {
        let why = match self.condition(target).await? {
            Condition::Dead(_) => return Ok(true),
            Condition::NotMounted | Condition::Foreign(_) | Condition::Healthy => return Ok(false),
            Condition::Silent(why) => why,
        };
        let there = self.mount_at(target).await?;
        if there.is_none_or(|there| self.is_served(there.minor) == Some(true)) {
            return Ok(false);
        }
        Err(Error::new(
            Reason::MountSilent,
            format!(
                "target_path: the mount at {} does not answer: {why}",
                target.display()
            ),
        ))
    }

    /// Binds the volume that is mounted at a path to all its targets whose mounts are dead: a container that
    /// is restarted finds it there. One that cannot be bound keeps no other from it.
    pub async fn rebind(&self, path: &Path) -> Rebound {
        let mut rebound = Rebound::default();
        for (target, args) in self.record(path).into_iter().flat_map(|record| record.targets) {
            if self.end_by.borrow().is_some() {
                // It would only have to be taken down again.
                let error = Error::new(Reason::OperationPending, "the process ends");
                rebound.failed.get_or_insert(error);
                return rebound;
            }
            match self.known_dead(&target).await {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    rebound.failed.get_or_insert(error);
                    continue;
                }
            }
            match self.try_bind(path, &target, args).await {
                Ok(()) => tracing::info!(path = %target.display(), "bound again"),
                Err(NotBound { error, lasting }) => {
                    tracing::warn!(path = %target.display(), %error, "not bound again");
                    let first = match lasting {
                        true => &mut rebound.lasting,
                        false => &mut rebound.failed,
                    };
                    first.get_or_insert(error);
                }
            }
        }
        rebound
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn services_that_hang_keep_no_volume_from_its_turn() {
        let healing = Healing::default();
        let hang = futures::future::join_all((0..WAITING).map(|_| healing.in_turn(pending::<()>())));
        tokio::select! {
            biased;
            _ = hang => unreachable!("they hang"),
            done = healing.in_turn(async { 7 }) => assert_eq!(done, 7),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_that_take_long_are_bounded_too() {
        let healing = Healing::default();
        let (now, most) = (AtomicU64::new(0), AtomicU64::new(0));
        let attempt = async || {
            let others = now.fetch_add(1, Ordering::Relaxed);
            most.fetch_max(others + 1, Ordering::Relaxed);
            tokio::time::sleep(30 * TURN).await;
            now.fetch_sub(1, Ordering::Relaxed);
        };
        futures::future::join_all((0..100).map(|_| healing.in_turn(attempt()))).await;
        assert_eq!(most.into_inner(), (AT_ONCE + WAITING) as u64);
    }

    #[tokio::test(start_paused = true)]
    async fn a_volume_rests_after_a_failure_longer_each_time() {
        let healing = Healing::default();
        let path = Path::new("/staging");
        let error = Error::new(Reason::MountDead, "x");
        assert_eq!(healing.too_early(path, false), None);
        for pause in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            healing.note(path, false, &Err(error.clone()));
            tokio::time::advance(Duration::from_millis(pause * 1000 - 1)).await;
            assert_eq!(healing.too_early(path, false).as_ref(), Some(&error), "{pause}");
            assert_eq!(healing.too_early(path, true), None, "it brings what was missing");
            tokio::time::advance(Duration::from_millis(2)).await;
            assert_eq!(healing.too_early(path, false), None, "{pause}");
        }
        healing.note(path, true, &Err(error.clone()));
        assert_eq!(healing.too_early(path, true), Some(error));
        healing.note(path, false, &Ok(()));
        assert_eq!(healing.too_early(path, true), None);
        assert_eq!((healing.healed(), healing.failed()), (1, 12));
    }
}
