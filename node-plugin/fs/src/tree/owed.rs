//! What closed files owe the service: kept, and sent again, the oldest first, until the service has it or
//! somebody else was faster; and the commit of everything there is.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use tokio::time;

use super::core::Tree;
use super::node::{Node, NodeId};
use super::release::may_yet_succeed;
use super::unstored::{Owes, Owing};
use crate::errno::{Errno, Result, fail};
use crate::journal::record::Record;
use crate::log_limit::limited;

/// Files that are committed at the same time when nobody waits for one of them alone.
const PARALLEL: usize = 16;
/// When what failed is tried again: at first, and at most. The service is asked by few requests at a time,
/// and what is owed is there soon after it has come back.
const FIRST_PAUSE: Duration = Duration::from_millis(900);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// The same of a file that the service refuses for itself: each try sends some of it, for nothing. Not so
/// long that it is not there within a minute once it is taken.
const LONGEST_REFUSED_PAUSE: Duration = Duration::from_secs(45);

/// How committing many files ended.
struct Committed {
    /// The first error, if any.
    first: Result<()>,
    /// Not tried: nothing got on any more.
    skipped: usize,
}

impl Tree {
    /// What closed files owe the service now.
    pub(crate) fn owing(&self) -> Owing {
        let (files, given_up) = {
            let queue = self.owed.lock();
            (queue.files.iter().cloned().collect::<Vec<_>>(), queue.given_up)
        };
        let size = |owes: &Owes| {
            let state = owes.node.state();
            state.content.as_ref().map_or(0, |content| content.size())
        };
        Owing {
            files: files.len(),
            bytes: files.iter().map(size).sum(),
            oldest: files.first().map(|owes| owes.since.elapsed()),
            given_up,
        }
    }

    /// Commits what a close has promised until the service has it or somebody else was faster. The end of the
    /// volume commits it last.
    pub(super) fn commit_later(self: &Arc<Self>, node: &Arc<Node>) {
        {
            let mut state = node.state();
            if !state.promised || !state.owes() || std::mem::replace(&mut state.retrying, true) {
                return;
            }
        }
        let begins = {
            let mut queue = self.owed.lock();
            queue.tickets += 1;
            let ticket = queue.tickets;
            queue.files.push_back(Owes {
                ticket,
                node: Arc::clone(node),
                since: Instant::now(),
                refused: 0,
                due: time::Instant::now(),
            });
            !std::mem::replace(&mut queue.sending, true) && !queue.ended
        };
        if begins {
            self.env.runtime.spawn(send(Arc::downgrade(self)));
        }
    }

    /// Sends all that is owed, once. True when all went well.
    #[cfg(test)]
    pub(crate) async fn send_owed(&self) -> bool {
        self.send_what(|_| true).await
    }

    /// The same of what is due.
    pub(super) async fn send_due(&self) -> bool {
        let now = time::Instant::now();
        self.send_what(|owes| owes.due <= now).await
    }

    async fn send_what(&self, wanted: impl Fn(&Owes) -> bool) -> bool {
        let _round = self.owed.round.lock().await;
        let files: Vec<Owes> = {
            let queue = self.owed.lock();
            queue.files.iter().filter(|owes| wanted(owes)).cloned().collect()
        };
        let tickets: HashMap<NodeId, u64> = files.iter().map(|owes| (owes.node.id, owes.ticket)).collect();
        let files = files.into_iter().map(|owes| owes.node).collect();
        let committed = self
            .commit_each(files, |node, committed| {
                // By its ticket: as soon as this is over, the file may owe something anew.
                let ticket = tickets.get(&node.id).copied();
                if self.no_more_to_commit(node, committed) {
                    self.owed.lock().files.retain(|owes| Some(owes.ticket) != ticket);
                } else if is_refusal(committed) {
                    let mut queue = self.owed.lock();
                    if let Some(owes) = queue.files.iter_mut().find(|owes| Some(owes.ticket) == ticket) {
                        owes.due = time::Instant::now() + pause_after(owes.refused);
                        owes.refused += 1;
                    }
                }
            })
            .await;
        committed.first.is_ok() && committed.skipped == 0
    }

    /// True when a commit that nobody waits for needs no other one after it.
    fn no_more_to_commit(&self, node: &Arc<Node>, committed: Result<()>) -> bool {
        let (discarded, unkept) = {
            let mut state = node.state();
            // What has no content any more was taken away while nobody had it open.
            let gone = committed.is_ok() && state.content.is_none();
            let unkept = gone && state.promised && state.uncommitted();
            if state.owes() && !gone && may_yet_succeed(&state, committed) {
                return false;
            }
            state.retrying = false;
            // Whoever has it open is told by its own close or fsync.
            let discarded = state.handles == 0 && self.finish_close(node, &mut state, committed);
            (discarded, unkept)
        };
        if unkept {
            limited!(
                error,
                self.volume(),
                "what was written to a file that was closed is not stored: it could not be replaced, and not \
                 be kept",
                path = self.blob_of(node.id),
                node = node.id
            );
            self.owed.lock().given_up += 1;
        }
        let mut table = self.table.lock();
        if discarded {
            table.record(Record::Discard { node: node.id });
        }
        table.reap(node.id);
        true
    }

    /// Commits files, the first ones first, several at a time; gives up when as many failed one after the
    /// other as are sent at a time, or one for which nothing got on any more: then the service takes nothing,
    /// and each further one would wait for that anew.
    async fn commit_each(&self, nodes: Vec<Arc<Node>>, done: impl Fn(&Arc<Node>, Result<()>)) -> Committed {
        let (failures, began) = (AtomicUsize::new(0), time::Instant::now());
        let (failures, done) = (&failures, &done);
        let takes_nothing = || {
            let failed = failures.load(Ordering::Relaxed);
            failed >= PARALLEL || failed > 0 && self.clock().was_silent_since(began)
        };
        let mut all = stream::iter(nodes)
            .map(|node| async move {
                if takes_nothing() {
                    return None;
                }
                let committed = self.commit(&node).await;
                match committed {
                    Ok(()) => failures.store(0, Ordering::Relaxed),
                    Err(Errno(libc::EIO)) => drop(failures.fetch_add(1, Ordering::Relaxed)),
                    // Refused, or somebody else was faster: the service is there.
                    Err(_) => failures.store(0, Ordering::Relaxed),
                }
                done(&node, committed);
                Some(committed)
            })
            .buffer_unordered(PARALLEL);
        let mut outcome = Committed {
            first: Ok(()),
            skipped: 0,
        };
        while let Some(committed) = all.next().await {
            match committed {
                Some(committed) => outcome.first = outcome.first.and(committed),
                None => outcome.skipped += 1,
            }
        }
        outcome
    }

    /// Everything that the service does not have yet is committed, what closes have promised first, in their
    /// order; the first error, if any.
    pub(crate) async fn commit_all(&self) -> Result<()> {
        let owed: HashMap<NodeId, u64> = {
            let queue = self.owed.lock();
            queue
                .files
                .iter()
                .map(|owes| (owes.node.id, owes.ticket))
                .collect()
        };
        let mut nodes = self.table.lock().nodes();
        nodes.retain(|node| node.state().pinned());
        nodes.sort_by_key(|node| owed.get(&node.id).copied().unwrap_or(u64::MAX));
        let committed = self.commit_each(nodes, |_, _| {}).await;
        if committed.skipped > 0 {
            limited!(
                warn,
                self.volume(),
                "the service takes nothing: files were not tried any more",
                files = committed.skipped
            );
        }
        committed.first
    }

    /// The volume ends: what its last commit could not send is lost, and the log names it.
    pub(super) fn discard_owed(&self) {
        self.owed.lock().files.clear();
        let nodes = self.table.lock().nodes();
        for node in nodes {
            let owes = {
                let state = node.state();
                // Whether a close has promised it or not.
                state
                    .owes()
                    .then(|| state.content.as_ref().map_or(0, |c| c.size()))
            };
            let Some(bytes) = owes else { continue };
            let blob = self.blob_of(node.id);
            // Once, at the end, and each of them is what somebody looks for: not limited.
            tracing::error!(
                volume = self.config().name,
                blob,
                bytes,
                "the volume ends before what was written to this file is stored: it is lost"
            );
            let discarded = {
                let mut state = node.state();
                self.finish_close(&node, &mut state, fail(libc::EIO))
            };
            if discarded {
                self.table.lock().record(Record::Discard { node: node.id });
            }
        }
    }
}

/// Whether the service is there, and does not take this.
fn is_refusal(committed: Result<()>) -> bool {
    !matches!(committed, Ok(()) | Err(Errno(libc::EIO)))
}

/// How long a file that was refused so often before is left alone.
fn pause_after(refused: u32) -> Duration {
    FIRST_PAUSE
        .saturating_mul(1 << refused.min(10))
        .min(LONGEST_REFUSED_PAUSE)
}

/// Sends what closed files owe, with growing pauses while that fails, until nothing is owed.
async fn send(tree: Weak<Tree>) {
    let mut pause = FIRST_PAUSE;
    let mut next = pause;
    loop {
        time::sleep(next).await;
        let Some(tree) = tree.upgrade() else { return };
        if tree.owed.lock().ended {
            return;
        }
        let well = tree.send_due().await;
        let mut queue = tree.owed.lock();
        let Some(due) = queue.files.iter().map(|owes| owes.due).min() else {
            queue.sending = false;
            return;
        };
        pause = match well {
            true => FIRST_PAUSE,
            false => (2 * pause).min(LONGEST_PAUSE),
        };
        // Not longer: what is closed meanwhile is due at once.
        next = pause
            .max(due.saturating_duration_since(time::Instant::now()))
            .min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_again_and_again_is_tried_less_often() {
        let pauses: Vec<_> = (0..20).map(pause_after).collect();
        assert_eq!(pauses[0], FIRST_PAUSE);
        assert!(pauses.is_sorted() && pauses[5] > LONGEST_PAUSE);
        assert_eq!(pauses[19], LONGEST_REFUSED_PAUSE);
        assert!(is_refusal(fail(libc::EACCES)) && is_refusal(fail(libc::EBUSY)));
        assert!(!is_refusal(fail(libc::EIO)) && !is_refusal(Ok(())));
    }
}
