//! The threads of the pool: started for jobs, blocked in the device, written off when a call does not come
//! back.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use tokio::sync::oneshot;

use super::{Job, Outcome, Pool, Slot, State, TIMEOUTS, jittered};
use crate::channel::error::ChannelError;
use crate::channel::exchange::{Completion, Exchange};
use crate::channel::ioctl::DoorError;

/// First and longest wait after EAGAIN. The ring drains in well under a millisecond when the host is well.
const FULL_BACKOFF: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(20));
/// A thread without work for this long ends.
const IDLE_THREAD: Duration = Duration::from_secs(30);
/// The threads only make one system call each; the default 2 MiB of stack would be address space for nothing.
const STACK: usize = 128 * 1024;

impl Pool {
    /// Counts threads whose call is overdue as lost, and replaces them.
    pub(super) fn write_off_late(self: &Arc<Self>, state: &mut State, now: Instant) {
        for slot in state.threads.iter_mut().flatten() {
            if !slot.written_off && slot.late_at.is_some_and(|late_at| late_at <= now) {
                slot.written_off = true;
                tracing::warn!(
                    device = %self.config.device.display(),
                    "a channel request did not come back in time"
                );
            }
        }
        if let Err(error) = self.staff(state) {
            tracing::warn!(%error, "could not replace a lost channel thread");
        }
    }

    /// Sees to it that every queued job has a thread, up to the limit. Fails only when no thread is left at
    /// all.
    pub(super) fn staff(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
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
            let first = state.has_room(self.config.most_bytes);
            if let Some(job) = first.then(|| state.queue.pop_front()).flatten() {
                if job.reply.is_closed() {
                    // Nobody waits any more and nothing was sent.
                    continue;
                }
                state.idle -= 1;
                if let Some(slot) = state.slot(number) {
                    slot.job = Some(job.id);
                    slot.exchange = job.exchange.id;
                    slot.load = job.load;
                }
                if !state.queue.is_empty() && state.idle > 0 {
                    // Several may have been waiting for the same bytes.
                    self.wake.notify_one();
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
                let was = state.slot(number).map(std::mem::take).unwrap_or_default();
                if was.written_off {
                    tracing::info!(
                        device = %self.config.device.display(),
                        "a lost channel request came back"
                    );
                }
                // After a late answer nobody listens, and the buffers go back to their arena here; then their
                // charge goes, which is somebody else's code.
                let _ = reply.send(outcome);
                if was.kept.is_some() {
                    drop(state);
                    drop(was);
                    state = self.lock();
                }
                if !state.queue.is_empty() && state.idle > 1 {
                    self.wake.notify_one();
                }
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
                Err(DoorError::Full) => {
                    self.eagain.fetch_add(1, Ordering::Relaxed);
                    self.set_late_at(number, None);
                    thread::sleep(jittered(backoff).min(deadline.saturating_duration_since(Instant::now())));
                    backoff = (backoff * 2).min(FULL_BACKOFF.1);
                }
                Err(DoorError::Gone) => {
                    self.lost(&door);
                    return Err(self.gone(true));
                }
                Err(DoorError::Refused(source)) => return Err(ChannelError::Refused { source }),
                Err(DoorError::Io(source)) => {
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
}
