//! Questions that got no answer just now: whoever asks the same next does not wait for that anew.
//!
//! The kernel asks one after the other: who looks a name up, or reads where somebody else reads already,
//! waits for the answer to that, and asks himself when it is an error. Of a hundred programs the last one
//! would wait a hundred times as long as the first.

use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::observer::Operation;
use crate::tree::NodeId;

/// What was asked: an operation on a node, or on a name in it.
pub(super) type Question = (Operation, NodeId, Option<OsString>);

/// See the module; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Silence(Arc<Mutex<HashMap<Question, Instant>>>);

impl Silence {
    /// A question got no answer. It need not be asked again for so long.
    pub(super) fn note(&self, question: Question, long: Duration) {
        let mut known = self.lock();
        known.retain(|_, at| at.elapsed() < long);
        known.insert(question, Instant::now());
    }

    /// Whether the question got no answer so shortly before.
    pub(super) fn is_known(&self, question: &Question, long: Duration) -> bool {
        self.lock().get(question).is_some_and(|at| at.elapsed() < long)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Question, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
