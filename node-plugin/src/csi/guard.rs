//! One call per volume at a time; the second is told to come again (ABORTED).

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::status::{Error, Reason, Result};

/// Volumes with a call at work.
#[derive(Debug, Clone, Default)]
pub struct Guards(Arc<Mutex<HashSet<String>>>);

/// Held while a call works on a volume.
#[derive(Debug)]
pub struct Guard {
    guards: Guards,
    volume: String,
}

impl Guards {
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
            guards: self.clone(),
            volume: volume.to_owned(),
        })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.guards
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
        let guards = Guards::default();
        let first = guards.enter("v").unwrap();
        assert_eq!(guards.enter("v").unwrap_err().reason.code(), tonic::Code::Aborted);
        let _other = guards.enter("w").unwrap();
        drop(first);
        let _again = guards.enter("v").unwrap();
    }
}
