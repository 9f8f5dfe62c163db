//! The lock around a file, a node, the table and the budget, and the tasks of a file. In tests either can be
//! `shuttle`'s, which draws who goes on at each lock (see `schedules`); elsewhere they are what `std` and
//! tokio have.

use std::fmt;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::sync::PoisonError;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio::time::Instant;
use tracing::Instrument as _;

/// A mutual exclusion that a panic does not poison: whoever panicked has left the state whole.
#[derive(Default)]
pub(crate) struct Mutex<T> {
    /// Taken first, where a schedule decides about the turns.
    #[cfg(test)]
    turn: Option<shuttle::sync::Mutex<()>>,
    state: std::sync::Mutex<T>,
}

/// Access to what a [`Mutex`] guards.
pub(crate) struct MutexGuard<'a, T> {
    // Dropped in this order: the turn is given back when the state is.
    state: std::sync::MutexGuard<'a, T>,
    #[cfg(test)]
    _turn: Option<shuttle::sync::MutexGuard<'a, ()>>,
}

impl<T> Mutex<T> {
    pub(crate) fn new(state: T) -> Self {
        Self {
            #[cfg(test)]
            turn: scheduled::here().then(shuttle::sync::Mutex::default),
            state: std::sync::Mutex::new(state),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        #[cfg(test)]
        let turn = self.turn.as_ref().filter(|_| scheduled::here());
        #[cfg(test)]
        let turn = turn.map(|turn| turn.lock().unwrap_or_else(PoisonError::into_inner));
        MutexGuard {
            state: self.state.lock().unwrap_or_else(PoisonError::into_inner),
            #[cfg(test)]
            _turn: turn,
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state.fmt(f)
    }
}

impl<T: fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state.fmt(f)
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.state
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.state
    }
}

/// A task of [`spawn`]. It goes on when this is dropped.
#[derive(Debug)]
pub(crate) enum Task<T> {
    Runtime(tokio::task::JoinHandle<T>),
    #[cfg(test)]
    Scheduled(shuttle::future::JoinHandle<T>),
}

/// The task panicked, or the runtime is at its end.
#[derive(Debug)]
pub(crate) struct Ended;

/// Runs a future beside its caller.
pub(crate) fn spawn<F>(runtime: &Handle, future: F) -> Task<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    #[cfg(test)]
    if scheduled::here() {
        return Task::Scheduled(shuttle::future::spawn(future));
    }
    // What it asks of the service is part of what its caller was asked.
    Task::Runtime(runtime.spawn(future.in_current_span()))
}

impl<T> Future for Task<T> {
    type Output = Result<T, Ended>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Runtime(task) => Pin::new(task).poll(context).map_err(|_| Ended),
            #[cfg(test)]
            Self::Scheduled(task) => Pin::new(task).poll(context).map_err(|_| Ended),
        }
    }
}

/// The future's value; `None` when it is not there in time. In a schedule time stands still: what waits for
/// somebody must be woken.
pub(crate) async fn in_time<F: Future>(until: Instant, future: F) -> Option<F::Output> {
    #[cfg(test)]
    if scheduled::here() {
        return Some(future.await);
    }
    tokio::time::timeout_at(until, future).await.ok()
}

/// Whether a schedule decides who goes on.
#[cfg(test)]
pub(crate) mod scheduled {
    use std::cell::Cell;

    thread_local! {
        /// `shuttle` runs all threads of a schedule on one thread of the machine.
        static HERE: Cell<bool> = const { Cell::new(false) };
    }

    pub(super) fn here() -> bool {
        HERE.get()
    }

    /// Locks that are made, and tasks that are spawned, while `run` runs are `shuttle`'s.
    pub(crate) fn by_shuttle(run: impl FnOnce()) {
        struct Over;
        impl Drop for Over {
            fn drop(&mut self) {
                HERE.set(false);
            }
        }
        HERE.set(true);
        let _over = Over;
        run();
    }
}
