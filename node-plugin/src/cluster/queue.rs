//! What is still to be told as Events: bounded, and never waited for by those who fill it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::jiff::Timestamp;
use tokio::sync::Notify;

use super::VolumeAt;

/// Most notices that wait while the API server is away.
const LONGEST: usize = 256;

/// Something that happened, before it is known which objects it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) about: About,
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) warning: bool,
    /// How often, since it was put in.
    pub(super) count: i32,
    pub(super) first: Timestamp,
    pub(super) last: Timestamp,
}

/// Where to look for the object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum About {
    /// A volume: its claim is told.
    Volume(VolumeAt),
    /// The channel: the node is told.
    Transport,
}

impl Notice {
    fn is_failure(&self) -> bool {
        self.about != About::Transport
    }

    /// The same thing again?
    fn same(&self, other: &Self) -> bool {
        self.about == other.about && self.reason == other.reason
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: VecDeque<Notice>,
    dropped: u64,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Whole after a panic elsewhere: every change is one step.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts one in. The same thing twice becomes one with a count; when all places are taken, the oldest
    /// change of transport goes, and the oldest failure only when there is nothing else.
    pub(super) fn push(&self, notice: Notice) {
        let mut inner = self.lock();
        if let Some(same) = inner.waiting.iter_mut().find(|waiting| waiting.same(&notice)) {
            same.count = same.count.saturating_add(notice.count);
            same.last = notice.last;
            same.message = notice.message;
        } else {
            if inner.waiting.len() >= LONGEST {
                let oldest = inner.waiting.iter().position(|waiting| !waiting.is_failure());
                let _ = inner.waiting.remove(oldest.unwrap_or(0));
                inner.dropped += 1;
            }
            inner.waiting.push_back(notice);
        }
        drop(inner);
        self.filled.notify_one();
    }

    /// The oldest, as soon as there is one. One reader only.
    pub(super) async fn pop(&self) -> Notice {
        loop {
            let filled = self.filled.notified();
            if let Some(notice) = self.lock().waiting.pop_front() {
                return notice;
            }
            filled.await;
        }
    }

    /// One was given up.
    pub(super) fn drop_one(&self) {
        self.lock().dropped += 1;
    }

    /// How many were never told.
    pub(super) fn dropped(&self) -> u64 {
        self.lock().dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::kube::now;

    fn notice(about: About, reason: &str) -> Notice {
        Notice {
            about,
            reason: reason.into(),
            message: "m".into(),
            warning: true,
            count: 1,
            first: now(),
            last: now(),
        }
    }

    fn failure(handle: usize) -> Notice {
        let volume = VolumeAt {
            handle: handle.to_string(),
            path: "/p".into(),
        };
        notice(About::Volume(volume), "ContainerNotFound")
    }

    #[tokio::test]
    async fn the_same_failure_again_is_counted() {
        let queue = Queue::default();
        queue.push(failure(1));
        queue.push(failure(2));
        let mut again = failure(1);
        again.message = "newer".into();
        queue.push(again);
        let first = queue.pop().await;
        assert_eq!((first.count, first.message.as_str()), (2, "newer"));
        assert_eq!(queue.pop().await.count, 1);
        assert!(queue.lock().waiting.is_empty());
    }

    #[test]
    fn a_full_queue_gives_up_changes_of_transport_first() {
        let queue = Queue::default();
        queue.push(failure(0));
        queue.push(notice(About::Transport, "ChannelLost"));
        for handle in 1..LONGEST {
            queue.push(failure(handle));
        }
        assert_eq!(queue.dropped(), 1);
        assert_eq!(queue.lock().waiting.len(), LONGEST);
        assert!(queue.lock().waiting.iter().all(Notice::is_failure));
        queue.push(failure(LONGEST));
        assert_eq!(queue.dropped(), 2);
        assert_eq!(queue.lock().waiting.len(), LONGEST);
        let first = queue.lock().waiting[0].about.clone();
        assert_eq!(first, failure(1).about, "the oldest went");
    }
}
