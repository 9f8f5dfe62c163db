//! A connection pool that can be exchanged for an empty one.
//!
//! hyper's pool gives out idle connections and cannot be told to forget them. After an outage of the network all of them may be
//! dead without a sign of it, and each would cost an attempt until its time is up.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Pool;

/// See the module; clones share it.
#[derive(Clone)]
pub(super) struct Renewed(Arc<Inner>);

struct Inner {
    make: Box<dyn Fn() -> Pool + Send + Sync>,
    /// With how often it was exchanged.
    current: Mutex<(Pool, u64)>,
}

impl Renewed {
    pub(super) fn new(make: impl Fn() -> Pool + Send + Sync + 'static) -> Self {
        let first = make();
        Self(Arc::new(Inner {
            make: Box::new(make),
            current: Mutex::new((first, 0)),
        }))
    }

    /// The pool to use, and its age for [`Renewed::renew`].
    pub(super) fn current(&self) -> (Pool, u64) {
        self.lock().clone()
    }

    /// Exchanges the pool of this age; one that was exchanged meanwhile stays. Requests that are out go on undisturbed.
    pub(super) fn renew(&self, age: u64) {
        let mut current = self.lock();
        if current.1 == age {
            tracing::debug!("idle connections are left after a time-out");
            *current = ((self.0.make)(), age + 1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, (Pool, u64)> {
        self.0.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Renewed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewed").finish_non_exhaustive()
    }
}
