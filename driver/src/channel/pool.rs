//! Between the async side and the threads that block in the device: queue, deadlines, threads given up.
//!
//! The call is synchronous, uninterruptible and unkillable, so a thread that never returns cannot be taken
//! back. It is *written off*: it keeps the buffers (the host may still write there), another thread takes its
//! place, and when the answer comes after all the buffers are freed and the count goes down.

mod reopen;
mod threads;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::abi::Abi;
use super::config::{ChannelConfig, ChannelStats};
use super::error::ChannelError;
use super::exchange::{Completion, Exchange};
use super::ioctl::Door;
use super::lost::{Kept, Load};

/// Shortest and longest time the host is given.
pub(super) const TIMEOUTS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));

pub(super) type Outcome = Result<Completion, ChannelError>;

#[derive(Debug)]
pub(super) struct Pool {
    config: ChannelConfig,
    state: Mutex<State>,
    wake: Condvar,
    completed: AtomicU64,
    eagain: AtomicU64,
    reopened: AtomicU64,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Job>,
    /// Threads waiting for a job.
    idle: usize,
    /// One per thread; `None` where a thread ended.
    threads: Vec<Option<Slot>>,
    next_id: u64,
    door: DoorState,
    abi: Abi,
    closed: bool,
}

#[derive(Debug)]
struct Job {
    id: u64,
    exchange: Exchange,
    load: Load,
    deadline: Instant,
    reply: oneshot::Sender<Outcome>,
}

/// What a thread is doing.
#[derive(Debug, Default)]
struct Slot {
    /// The job in its hands.
    job: Option<u64>,
    /// Id of its exchange.
    exchange: [u8; 16],
    /// When its system call counts as lost.
    late_at: Option<Instant>,
    written_off: bool,
    /// Of its exchange.
    load: Load,
    /// Nobody waits for the job any more.
    kept: Option<Kept>,
}

#[derive(Debug)]
enum DoorState {
    Open(Arc<Door>),
    Closed {
        next_try: Instant,
        backoff: Duration,
        /// A thread is at it.
        opening: bool,
    },
}

/// A job that was accepted. Whoever drops it waits for the answer no more.
#[derive(Debug)]
pub(super) struct Ticket {
    pool: Arc<Pool>,
    id: u64,
    answer: oneshot::Receiver<Outcome>,
}

impl Ticket {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// The job's outcome, once.
    pub(super) fn answer(&mut self) -> &mut oneshot::Receiver<Outcome> {
        &mut self.answer
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.pool.left(self.id);
    }
}

impl Pool {
    pub(super) fn open(config: ChannelConfig) -> Result<Arc<Self>, ChannelError> {
        let door = Door::open(&config.device).map_err(|error| match error {
            // It has never been there, as far as this process knows.
            ChannelError::Gone { device, .. } => ChannelError::Missing { device },
            other => other,
        })?;
        Ok(Arc::new(Self {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                idle: 0,
                threads: Vec::new(),
                next_id: 0,
                abi: door.abi(),
                door: DoorState::Open(Arc::new(door)),
                closed: false,
            }),
            config,
            wake: Condvar::new(),
            completed: AtomicU64::new(0),
            eagain: AtomicU64::new(0),
            reopened: AtomicU64::new(0),
        }))
    }

    /// Queues an exchange, unless the answer is known already: stuck, or gone and not yet time to try again.
    pub(super) fn enqueue(
        self: &Arc<Self>,
        exchange: Exchange,
        load: Load,
        deadline: Instant,
    ) -> Result<Ticket, ChannelError> {
        let mut state = self.lock();
        self.write_off_late(&mut state, Instant::now());
        self.refuse_if_stuck(&state)?;
        if let DoorState::Closed {
            next_try, opening, ..
        } = state.door
            && (opening || Instant::now() < next_try)
        {
            return Err(self.gone(false));
        }
        let (reply, answer) = oneshot::channel();
        let id = state.next_id;
        state.next_id += 1;
        state.queue.push_back(Job {
            id,
            exchange,
            load,
            deadline,
            reply,
        });
        self.staff(&mut state).map_err(|source| {
            // Nobody would ever take it.
            state.queue.retain(|job| job.id != id);
            ChannelError::Io {
                call: "start of a channel thread",
                source,
            }
        })?;
        Ok(Ticket {
            pool: Arc::clone(self),
            id,
            answer,
        })
    }

    /// The submitter has waited past deadline and grace. Answers what became of its job.
    pub(super) fn give_up(self: &Arc<Self>, id: u64, waited: Duration) -> ChannelError {
        let mut state = self.lock();
        if let Some(at) = state.queue.iter().position(|job| job.id == id) {
            state.queue.remove(at);
            self.go_on(&state);
            return ChannelError::Busy;
        }
        if let Some(slot) = state
            .threads
            .iter_mut()
            .flatten()
            .find(|slot| slot.job == Some(id))
        {
            slot.late_at = Some(Instant::now());
        }
        self.write_off_late(&mut state, Instant::now());
        ChannelError::TimedOut { waited }
    }

    /// Opens the device again if it is gone and the back-off has passed.
    pub(super) fn check(self: &Arc<Self>) -> Result<Abi, ChannelError> {
        let mut state = self.lock();
        self.write_off_late(&mut state, Instant::now());
        self.refuse_if_stuck(&state)?;
        drop(state);
        self.door().map(|door| door.abi())
    }

    pub(super) fn abi(&self) -> Abi {
        self.lock().abi
    }

    pub(super) fn stats(self: &Arc<Self>) -> ChannelStats {
        let mut state = self.lock();
        self.write_off_late(&mut state, Instant::now());
        ChannelStats {
            completed: self.completed.load(Ordering::Relaxed),
            eagain: self.eagain.load(Ordering::Relaxed),
            reopened: self.reopened.load(Ordering::Relaxed),
            written_off: state.written_off(),
            in_flight: state
                .threads
                .iter()
                .flatten()
                .filter(|slot| slot.job.is_some())
                .count(),
            queued: state.queue.len(),
            lost_bytes: state.lost_bytes(),
        }
    }

    /// Whether the host has the exchange of this id still, or it is about to get it.
    pub(super) fn has(&self, exchange: &[u8; 16]) -> bool {
        let state = self.lock();
        let mut busy = state.threads.iter().flatten().filter(|slot| slot.job.is_some());
        busy.any(|slot| slot.exchange == *exchange)
            || state.queue.iter().any(|job| job.exchange.id == *exchange)
    }

    /// No more jobs will come: idle threads end, busy ones end when the host lets them.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.queue.clear();
        self.wake.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gone(&self, sent: bool) -> ChannelError {
        ChannelError::Gone {
            device: self.config.device.display().to_string(),
            sent,
        }
    }

    fn refuse_if_stuck(&self, state: &State) -> Result<(), ChannelError> {
        let (written_off, bytes) = (state.written_off(), state.lost_bytes());
        if written_off >= self.config.stuck_after.max(1) || bytes > self.config.most_bytes / 2 {
            return Err(ChannelError::Stuck { written_off, bytes });
        }
        Ok(())
    }

    /// A job was taken back: the one behind it may have room where that had none.
    fn go_on(&self, state: &State) {
        if state.idle > 0 && !state.queue.is_empty() {
            self.wake.notify_one();
        }
    }

    /// Nobody waits for the job any more. When a thread has it, its buffers stay with the host, and its
    /// ledger is told.
    fn left(&self, id: u64) {
        let load = {
            let mut state = self.lock();
            if let Some(at) = state.queue.iter().position(|job| job.id == id) {
                state.queue.remove(at);
                self.go_on(&state);
                return;
            }
            let slot = state.threads.iter().flatten().find(|slot| slot.job == Some(id));
            match slot {
                Some(slot) if slot.kept.is_none() => slot.load.clone(),
                _ => return,
            }
        };
        // Not under the lock: room may have to be made for it.
        let mut charge = load.charge();
        let mut state = self.lock();
        let mut busy = state.threads.iter_mut().flatten();
        if let Some(slot) = busy.find(|slot| slot.job == Some(id)) {
            slot.kept = Some(Kept {
                bytes: load.bytes,
                charge: charge.take(),
            });
        }
        if !state.has_room(self.config.most_bytes) {
            // Who waits for what the host has lost need not wait until it is too late for another way.
            while let Err(stuck) = self.refuse_if_stuck(&state)
                && let Some(job) = state.queue.pop_front()
            {
                let _ = job.reply.send(Err(stuck));
            }
        }
        drop(state);
        // Of one that came back meanwhile.
        drop(charge);
    }
}

impl State {
    fn slot(&mut self, number: usize) -> Option<&mut Slot> {
        self.threads.get_mut(number)?.as_mut()
    }

    /// What the host has of requests that nobody waits for any more.
    fn lost_bytes(&self) -> usize {
        let kept = self
            .threads
            .iter()
            .flatten()
            .filter_map(|slot| slot.kept.as_ref());
        kept.map(|kept| kept.bytes).sum()
    }

    /// Whether the first job may go to the host, by what is there already. One may always, however large,
    /// beside what is lost: what that may be is bounded by itself.
    fn has_room(&self, most: usize) -> bool {
        let busy = self.threads.iter().flatten().filter(|slot| slot.job.is_some());
        let out: usize = busy.map(|slot| slot.load.bytes).sum();
        let next = self.queue.front().map_or(0, |job| job.load.bytes);
        let lost = self.lost_bytes();
        (out <= lost && lost <= most / 2) || out + next <= most
    }

    fn written_off(&self) -> usize {
        self.threads
            .iter()
            .flatten()
            .filter(|slot| slot.written_off)
            .count()
    }

    /// Threads that are not written off.
    fn working(&self) -> usize {
        self.threads
            .iter()
            .flatten()
            .filter(|slot| !slot.written_off)
            .count()
    }
}

/// Between half of `wait` and all of it, so that threads refused together do not come back together.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::random_range(0.5..1.0))
}
