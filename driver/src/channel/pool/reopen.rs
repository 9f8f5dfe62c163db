//! The device, opened again after it was gone.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{DoorState, Pool, jittered};
use crate::channel::error::ChannelError;
use crate::channel::ioctl::Door;

/// First and longest wait between attempts to open a device that is gone.
const REOPEN_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

impl Pool {
    /// The open device; opens it again when it is gone, the back-off has passed and nobody else is at it.
    pub(super) fn door(&self) -> Result<Arc<Door>, ChannelError> {
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
    pub(super) fn lost(&self, door: &Arc<Door>) {
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
