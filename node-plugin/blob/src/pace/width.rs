//! How many requests are out at the same time.
//!
//! The width shrinks by a fifth when the service says that it is busy, or a body stops on its way, once for
//! all who were out then, and grows by one with each round of good answers. Who has to wait is served volume
//! by volume: one that asks much makes no other wait for all of it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

/// Requests that are out at most. Each has a connection of its own, and a node behind a load balancer has
/// some thousand ports for all its accounts.
pub(super) const WIDEST: usize = 256;
/// However busy the service is.
pub(super) const NARROWEST: usize = 4;
/// What a volume has at least, while only [`WIDEST`] limits: others may have it all, and get no answers.
const VOLUME_LEAST: usize = 4;
/// What is left of the width when the service is busy.
const CUT: f64 = 0.8;

/// Of an account.
#[derive(Debug, Default)]
pub(super) struct Width(Mutex<State>);

#[derive(Debug)]
struct State {
    limit: f64,
    out: usize,
    volumes: HashMap<u64, Volume>,
    /// Volumes with somebody who waits, each once, in order.
    turns: VecDeque<u64>,
    /// When it was made narrower last.
    cut: Option<Instant>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            limit: WIDEST as f64,
            out: 0,
            volumes: HashMap::new(),
            turns: VecDeque::new(),
            cut: None,
        }
    }
}

#[derive(Debug, Default)]
struct Volume {
    out: usize,
    waiting: VecDeque<oneshot::Sender<Slot>>,
}

/// One request that is out.
#[derive(Debug)]
pub(super) struct Slot {
    /// `None`: it was never handed out.
    width: Option<Arc<Width>>,
    volume: u64,
    since: Instant,
}

impl Slot {
    /// When it went out.
    pub(super) fn since(&self) -> Instant {
        self.since
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(width) = self.width.take() {
            width.back(self.volume);
        }
    }
}

impl Width {
    /// Waits for a slot; `None` when there is none in time.
    pub(super) async fn slot(width: &Arc<Self>, volume: u64, until: impl Fn() -> Instant) -> Option<Slot> {
        let mut waits = {
            let mut state = width.lock();
            if state.admits(volume) {
                state.take(volume);
                return Some(Slot {
                    width: Some(Arc::clone(width)),
                    volume,
                    since: Instant::now(),
                });
            }
            state.wait(volume)
        };
        loop {
            match timeout_at(until(), &mut waits).await {
                Ok(slot) => return slot.ok(),
                Err(_) if until() > Instant::now() => {}
                Err(_) => return None,
            }
        }
    }

    /// The service has answered well.
    pub(super) fn widen(self: &Arc<Self>) {
        let mut state = self.lock();
        // Who does not use what there is learns nothing of more.
        if (state.out as f64) * 2.0 >= state.limit {
            state.limit = (state.limit + 1.0 / state.limit).min(WIDEST as f64);
            self.serve(&mut state);
        }
    }

    /// The service was too busy for a request that went out then, or the line too slow.
    pub(super) fn narrow(&self, since: Instant) {
        let mut state = self.lock();
        // Those who were out with it are told the same: one cut for all of them.
        if state.cut.is_some_and(|cut| since < cut) {
            return;
        }
        let used = state.limit.min(state.out as f64);
        state.limit = (used * CUT).max(NARROWEST as f64);
        state.cut = Some(Instant::now());
    }

    fn back(self: &Arc<Self>, volume: u64) {
        let mut state = self.lock();
        state.give_back(volume);
        if state.admits_more_of(volume) {
            self.serve_one(&mut state, volume);
        }
        self.serve(&mut state);
    }

    /// Hands out what there is, volume by volume.
    fn serve(self: &Arc<Self>, state: &mut State) {
        while state.has_room()
            && let Some(volume) = state.turns.pop_front()
        {
            self.serve_one(state, volume);
            if state.has_waiters(volume) && !state.turns.contains(&volume) {
                state.turns.push_back(volume);
            }
        }
    }

    /// The first of a volume who still waits goes out.
    fn serve_one(self: &Arc<Self>, state: &mut State, volume: u64) {
        while let Some(waiter) = state.next_of(volume) {
            if waiter.is_closed() {
                continue;
            }
            state.take(volume);
            let sent = waiter.send(Slot {
                width: Some(Arc::clone(self)),
                volume,
                since: Instant::now(),
            });
            match sent {
                Ok(()) => break,
                // Left in this moment. Its end would want the lock that is held here.
                Err(mut slot) => {
                    slot.width = None;
                    state.give_back(volume);
                }
            }
        }
        state.forget_idle(volume);
    }

    /// How many are out, how many wait, and how many may be out.
    pub(super) fn load(&self) -> (usize, usize, usize) {
        let state = self.lock();
        let still = |volume: &Volume| volume.waiting.iter().filter(|waiter| !waiter.is_closed()).count();
        let waiting = state.volumes.values().map(still).sum();
        (state.out, waiting, state.limit as usize)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_room(&self) -> bool {
        ((self.out + 1) as f64) <= self.limit
    }

    fn admits(&self, volume: u64) -> bool {
        (self.turns.is_empty() && self.has_room()) || self.is_below_least(volume)
    }

    fn is_below_least(&self, volume: u64) -> bool {
        let out = self.volumes.get(&volume).map_or(0, |v| v.out);
        self.limit >= WIDEST as f64 && out < VOLUME_LEAST
    }

    fn admits_more_of(&self, volume: u64) -> bool {
        self.has_waiters(volume) && self.is_below_least(volume)
    }

    fn has_waiters(&self, volume: u64) -> bool {
        self.volumes.get(&volume).is_some_and(|v| !v.waiting.is_empty())
    }

    fn take(&mut self, volume: u64) {
        self.out += 1;
        self.volumes.entry(volume).or_default().out += 1;
    }

    fn give_back(&mut self, volume: u64) {
        self.out -= 1;
        if let Some(volume) = self.volumes.get_mut(&volume) {
            volume.out -= 1;
        }
        self.forget_idle(volume);
    }

    fn wait(&mut self, volume: u64) -> oneshot::Receiver<Slot> {
        let (sender, receiver) = oneshot::channel();
        let waiting = &mut self.volumes.entry(volume).or_default().waiting;
        // Whoever has left is not kept.
        waiting.retain(|waiter| !waiter.is_closed());
        waiting.push_back(sender);
        if !self.turns.contains(&volume) {
            self.turns.push_back(volume);
        }
        receiver
    }

    fn next_of(&mut self, volume: u64) -> Option<oneshot::Sender<Slot>> {
        self.volumes.get_mut(&volume)?.waiting.pop_front()
    }

    fn forget_idle(&mut self, volume: u64) {
        if self
            .volumes
            .get(&volume)
            .is_some_and(|v| v.out == 0 && v.waiting.is_empty())
        {
            self.volumes.remove(&volume);
        }
    }
}
