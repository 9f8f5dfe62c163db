//! The threads that block in the device for the async side: queue, deadlines, threads given up, reopening.
//!
//! The call is synchronous, uninterruptible and unkillable, so a thread that never returns cannot be taken back. It is
//! *written off*: it keeps the buffers (the host may still write there), another thread takes its place, and when the
//! answer comes after all the buffers are freed and the count goes down.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use tokio::sync::oneshot;

use super::ioctl::{Door, Refusal};
use super::{Abi, ChannelConfig, ChannelError, ChannelStats, Completion, Exchange};

/// Shortest and longest time the host is given.
pub(super) const TIMEOUTS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));

/// First and longest wait after EAGAIN. The ring drains in well under a millisecond when the host is well.
const FULL_BACKOFF: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(20));
/// First and longest wait between attempts to open a device that is gone.
const REOPEN_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// A thread without work for this long ends.
const IDLE_THREAD: Duration = Duration::from_secs(30);
/// The threads only make one system call each; the default 2 MiB of stack would be address space for nothing.
const STACK: usize = 128 * 1024;

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
    deadline: Instant,
    reply: oneshot::Sender<Outcome>,
}

/// What a thread is doing.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// The job in its hands.
    job: Option<u64>,
    /// When its system call counts as lost.
    late_at: Option<Instant>,
    written_off: bool,
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

/// A job that was accepted.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) id: u64,
    pub(super) answer: oneshot::Receiver<Outcome>,
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
        Ok(Ticket { id, answer })
    }

    /// The submitter has waited past deadline and grace. Answers what became of its job.
    pub(super) fn give_up(self: &Arc<Self>, id: u64, waited: Duration) -> ChannelError {
        let mut state = self.lock();
        if let Some(at) = state.queue.iter().position(|job| job.id == id) {
            state.queue.remove(at);
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
        }
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
        match state.written_off() {
            n if n >= self.config.stuck_after.max(1) => Err(ChannelError::Stuck { written_off: n }),
            _ => Ok(()),
        }
    }

    /// Counts threads whose call is overdue as lost, and replaces them.
    fn write_off_late(self: &Arc<Self>, state: &mut State, now: Instant) {
        for slot in state.threads.iter_mut().flatten() {
            if !slot.written_off && slot.late_at.is_some_and(|late_at| late_at <= now) {
                slot.written_off = true;
                tracing::warn!(device = %self.config.device.display(), "a channel request did not come back in time");
            }
        }
        if let Err(error) = self.staff(state) {
            tracing::warn!(%error, "could not replace a lost channel thread");
        }
    }

    /// Sees to it that every queued job has a thread, up to the limit. Fails only when no thread is left at all.
    fn staff(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        while state.queue.len() > state.idle && state.working() < self.config.threads.max(1) {
            let number = state
                .threads
                .iter()
                .position(Option::is_none)
                .unwrap_or(state.threads.len());
            let pool = Arc::clone(self);
            let started = thread::Builder::new()
                .name(format!("vsc-{number}"))
                .stack_size(STACK)
                .spawn(move || pool.work(number));
            match started {
                Ok(_) => {}
                Err(_) if state.working() > 0 => break,
                Err(error) => return Err(error),
            }
            match state.threads.get_mut(number) {
                Some(free) => *free = Some(Slot::default()),
                None => state.threads.push(Some(Slot::default())),
            }
            // Until it has taken its first job it counts as one that is about to.
            state.idle += 1;
        }
        if state.idle > 0 && !state.queue.is_empty() {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Body of thread `number`. It starts counted as idle.
    fn work(self: Arc<Self>, number: usize) {
        // Signals of the process are for other threads: none may end a call early.
        if let Err(error) = SigSet::all().thread_block() {
            tracing::debug!(%error, "could not block signals in a channel thread");
        }
        let mut state = self.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                if job.reply.is_closed() {
                    // Nobody waits any more and nothing was sent.
                    continue;
                }
                state.idle -= 1;
                if let Some(slot) = state.slot(number) {
                    slot.job = Some(job.id);
                }
                drop(state);
                let Job {
                    exchange,
                    deadline,
                    reply,
                    ..
                } = job;
                let outcome = self.perform(number, exchange, deadline, &reply);
                state = self.lock();
                state.idle += 1;
                if let Some(slot) = state.slot(number)
                    && std::mem::take(slot).written_off
                {
                    tracing::info!(device = %self.config.device.display(), "a lost channel request came back");
                }
                // After a late answer nobody listens and the buffers go back to their arena here.
                let _ = reply.send(outcome);
                if state.working() <= self.config.threads.max(1) {
                    continue;
                }
                // A replacement is at work already.
            } else if !state.closed {
                let (woken, waited) = self
                    .wake
                    .wait_timeout(state, IDLE_THREAD)
                    .unwrap_or_else(PoisonError::into_inner);
                state = woken;
                if !(waited.timed_out() && state.queue.is_empty()) {
                    continue;
                }
            }
            state.idle -= 1;
            if let Some(slot) = state.threads.get_mut(number) {
                *slot = None;
            }
            return;
        }
    }

    /// Sends one exchange, as often as the ring is full, until its deadline.
    fn perform(
        self: &Arc<Self>,
        number: usize,
        mut exchange: Exchange,
        deadline: Instant,
        reply: &oneshot::Sender<Outcome>,
    ) -> Outcome {
        let mut backoff = FULL_BACKOFF.0;
        loop {
            let now = Instant::now();
            if now >= deadline || reply.is_closed() {
                return Err(ChannelError::Busy);
            }
            let timeout = (deadline - now).clamp(TIMEOUTS.0, TIMEOUTS.1);
            self.set_late_at(number, Some(now + timeout + self.config.grace));
            let door = self.door()?;
            match door.transact(&mut exchange, timeout) {
                Ok(answer) => {
                    self.completed.fetch_add(1, Ordering::Relaxed);
                    return Ok(Completion {
                        exchange,
                        status: answer.status,
                        response_len: answer.response_len,
                    });
                }
                Err(Refusal::Full) => {
                    self.eagain.fetch_add(1, Ordering::Relaxed);
                    self.set_late_at(number, None);
                    thread::sleep(jittered(backoff).min(deadline.saturating_duration_since(Instant::now())));
                    backoff = (backoff * 2).min(FULL_BACKOFF.1);
                }
                Err(Refusal::Gone) => {
                    self.lost(&door);
                    return Err(self.gone(true));
                }
                Err(Refusal::Io(source)) => {
                    return Err(ChannelError::Io {
                        call: "ioctl",
                        source,
                    });
                }
            }
        }
    }

    fn set_late_at(&self, number: usize, late_at: Option<Instant>) {
        if let Some(slot) = self.lock().slot(number) {
            slot.late_at = late_at;
        }
    }

    /// The open device; opens it again when it is gone, the back-off has passed and nobody else is at it.
    fn door(&self) -> Result<Arc<Door>, ChannelError> {
        let backoff = {
            let mut state = self.lock();
            match &mut state.door {
                DoorState::Open(door) => return Ok(Arc::clone(door)),
                DoorState::Closed {
                    next_try, opening, ..
                } if *opening || Instant::now() < *next_try => {
                    return Err(self.gone(false));
                }
                DoorState::Closed { opening, backoff, .. } => {
                    *opening = true;
                    *backoff
                }
            }
        };
        let opened = Door::open(&self.config.device);
        let mut state = self.lock();
        match opened {
            Ok(door) => {
                tracing::info!(device = door.path(), abi = ?door.abi(), "the channel device is back");
                self.reopened.fetch_add(1, Ordering::Relaxed);
                let door = Arc::new(door);
                state.abi = door.abi();
                state.door = DoorState::Open(Arc::clone(&door));
                Ok(door)
            }
            Err(error) => {
                state.door = DoorState::Closed {
                    next_try: Instant::now() + jittered(backoff),
                    backoff: (backoff * 2).min(REOPEN_BACKOFF.1),
                    opening: false,
                };
                Err(error)
            }
        }
    }

    /// The device said ENODEV: its descriptor closes with the last request in it.
    fn lost(&self, door: &Arc<Door>) {
        let mut state = self.lock();
        if matches!(&state.door, DoorState::Open(open) if Arc::ptr_eq(open, door)) {
            tracing::warn!(device = door.path(), "the channel device is gone");
            state.door = DoorState::Closed {
                next_try: Instant::now() + jittered(REOPEN_BACKOFF.0),
                backoff: REOPEN_BACKOFF.0 * 2,
                opening: false,
            };
        }
    }
}

impl State {
    fn slot(&mut self, number: usize) -> Option<&mut Slot> {
        self.threads.get_mut(number)?.as_mut()
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
