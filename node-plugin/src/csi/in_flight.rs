//! One call of the controller per volume at a time; the second is told to come again (ABORTED). On the node
//! a mount knows this itself ([`crate::mounts::mount`]).

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Reason, Result};

/// Volumes with a call at work.
#[derive(Debug, Clone, Default)]
pub struct InFlight(Arc<Mutex<HashSet<String>>>);

/// Held while a call works on a volume.
#[derive(Debug)]
pub struct Guard {
    in_flight: InFlight,
    volume: String,
}

impl InFlight {
    /// Enters a volume, or ABORTED when another call is inside.
    pub fn enter(&self, volume: &str) -> Result<Guard> {
        // The set is whole after a panic elsewhere: every change is one insert or remove.
        let mut busy = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !busy.insert(volume.to_owned()) {
            return Err(Error::new(
                Reason::OperationPending,
                format!("volume {volume:?}: another call is at work"),
            ));
        }
        Ok(Guard {
            in_flight: self.clone(),
            volume: volume.to_owned(),
        })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.in_flight
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.volume);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_call_is_aborted_until_the_first_is_done() {
        let in_flight = InFlight::default();
        let first = in_flight.enter("v").unwrap();
        assert_eq!(
            in_flight.enter("v").unwrap_err().reason.code(),
            tonic::Code::Aborted
        );
        let _other = in_flight.enter("w").unwrap();
        drop(first);
        let _again = in_flight.enter("v").unwrap();
    }
}
