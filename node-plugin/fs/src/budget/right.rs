//! What is granted although there is no room: to a few at a time of all volumes, and always to one of each.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, Semaphore, SemaphorePermit};

/// What one volume has of such rights.
#[derive(Debug, Default)]
pub(super) struct Rights {
    held: Mutex<Held>,
    /// One was given back.
    freed: Notify,
}

#[derive(Debug, Default)]
struct Held {
    /// Of those that all volumes share.
    common: usize,
    /// The one that is kept for this volume.
    own: bool,
}

/// The right to go on; given back on drop.
#[derive(Debug)]
pub(crate) struct Right<'a> {
    rights: &'a Rights,
    /// `None`: it is the volume's own.
    common: Option<SemaphorePermit<'a>>,
}

impl Rights {
    /// Waits for `units` of what all share. A volume that has none of these does not wait for others, who may
    /// keep theirs as long as their service does not answer: it has one of its own.
    pub(super) async fn get<'a>(&'a self, shared: &'a Semaphore, units: u32) -> Right<'a> {
        tokio::select! {
            biased;
            permit = shared.acquire_many(units) => match permit {
                Ok(permit) => {
                    self.held().common += 1;
                    Right { rights: self, common: Some(permit) }
                }
                // It is never closed.
                Err(_) => self.own().await,
            },
            own = self.own() => own,
        }
    }

    async fn own(&self) -> Right<'_> {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // From here on none that is given back is missed.
            freed.as_mut().enable();
            {
                let mut held = self.held();
                if held.common == 0 && !held.own {
                    held.own = true;
                    return Right {
                        rights: self,
                        common: None,
                    };
                }
            }
            freed.await;
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Right<'_> {
    fn drop(&mut self) {
        let mut held = self.rights.held();
        match self.common {
            Some(_) => held.common -= 1,
            None => held.own = false,
        }
        drop(held);
        self.rights.freed.notify_waiters();
    }
}
