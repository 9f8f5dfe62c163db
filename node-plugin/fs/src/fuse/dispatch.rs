//! How an operation is run: hits are answered in the loop thread, everything else by a task, which its caller
//! waits for as long as the volume gets on.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;

use fuser::{FileHandle, ReplyEntry};
use futures::FutureExt;
use tokio::runtime::Handle as Runtime;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span};

use super::call::{Call, Outcome, Way};
use super::replies::{errno, reply_entry};
use super::silence::Silence;
use crate::caller::{Caller, Clock};
use crate::cause;
use crate::errno::{Errno, Result, fail};
use crate::tree::{Entry, Handle, Tree};

/// Notes in a trace how an operation ended.
fn note<T>(span: &Span, outcome: &Result<T>) {
    if let Err(errno) = outcome {
        span.record("errno", errno.0);
        if errno.is_trouble() {
            span.record("otel.status_code", "ERROR");
        }
    }
}

/// Serves one tree through fuser.
#[derive(Debug)]
pub(crate) struct Adapter {
    pub(super) tree: Arc<Tree>,
    pub(super) runtime: Runtime,
    pub(super) tasks: TaskTracker,
    pub(super) silence: Silence,
}

impl Adapter {
    /// Runs an operation as a task and replies with its outcome; or with EIO when the volume got nothing done
    /// for as long as its option `timeout` says. The operation itself is never cut off half-way then, but
    /// begins nothing more that it had to wait for.
    pub(super) fn spawn<T, F>(
        &self,
        call: Call<'_>,
        operation: F,
        reply: impl FnOnce(Result<T>) + Send + 'static,
    ) where
        T: Outcome + Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        self.spawn_or_undo(call, operation, reply, |_| std::future::ready(()));
    }

    /// The same for an operation whose success the kernel would have to know of: `undo` gets what came after
    /// the caller was told that it failed.
    pub(super) fn spawn_or_undo<T, F, U>(
        &self,
        call: Call<'_>,
        operation: F,
        reply: impl FnOnce(Result<T>) + Send + 'static,
        undo: impl FnOnce(T) -> U + Send + 'static,
    ) where
        T: Outcome + Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
        U: Future<Output = ()> + Send,
    {
        self.run(call, Some(self.tree.clock()), operation, reply, undo);
    }

    /// For writes: while one waits for room others get it, or all of them end. One whose caller was told that
    /// it failed must not be carried out later.
    pub(super) fn spawn_to_its_end<T, F>(
        &self,
        call: Call<'_>,
        operation: F,
        reply: impl FnOnce(Result<T>) + Send + 'static,
    ) where
        T: Outcome + Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        self.run(call, None, operation, reply, |_| std::future::ready(()));
    }

    fn run<T, F, U>(
        &self,
        call: Call<'_>,
        clock: Option<Clock>,
        operation: F,
        reply: impl FnOnce(Result<T>) + Send + 'static,
        undo: impl FnOnce(T) -> U + Send + 'static,
    ) where
        T: Outcome + Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
        U: Future<Output = ()> + Send,
    {
        let patience = self.tree.config().timeout;
        let locks = call.locks();
        if self
            .silence
            .is_known(&locks, patience.again(), &self.tree.clock())
        {
            let cause = Some("what was asked there just before got no answer".into());
            call.ended(&self.tree, &fail::<T>(libc::EIO), Way::Inline, cause);
            return reply(fail(libc::EIO));
        }
        let (call, tree, silence) = (call.owned(), Arc::clone(&self.tree), self.silence.clone());
        let span = call.span(&self.tree);
        let work = {
            let span = span.clone();
            async move {
                let (caller, since) = (Caller::default(), Instant::now());
                let operation = cause::of(tree.volume(), AssertUnwindSafe(operation).catch_unwind());
                let mut operation = pin!(caller.waits_for(operation));
                let answer = |outcome: Result<T>, cause| {
                    let silent = matches!(outcome, Err(Errno(libc::EIO)));
                    if silent && since.elapsed() >= patience.attempt() {
                        silence.note(&locks, patience.again());
                    }
                    note(&span, &outcome);
                    call.ended(&tree, &outcome, Way::Task, cause);
                    reply(outcome);
                };
                let outcome = match &clock {
                    Some(clock) => clock.within(&mut operation).await.ok_or(clock.timeout()),
                    None => Ok(operation.as_mut().await),
                };
                match outcome {
                    Ok((Ok(outcome), cause)) => answer(outcome, cause),
                    Ok((Err(_panic), _)) => answer(fail(libc::EIO), Some("it panicked".into())),
                    Err(timeout) => {
                        caller.leaves();
                        let cause = format!("nothing of the volume got on for {timeout:?}");
                        answer(fail(libc::EIO), Some(cause.into()));
                        if let (Ok(Ok(late)), _) = operation.await {
                            undo(late).await;
                        }
                    }
                }
            }
        };
        self.tasks.spawn_on(work.instrument(span), &self.runtime);
    }

    /// Runs an operation in the loop thread, to its end; for what ends without this mount's further requests,
    /// of which this thread reads none meanwhile.
    pub(super) fn here<T: Outcome>(
        &self,
        call: Call<'_>,
        operation: impl Future<Output = Result<T>>,
        reply: impl FnOnce(Result<T>),
    ) {
        let span = call.span(&self.tree);
        let operation = cause::of(self.tree.volume(), AssertUnwindSafe(operation).catch_unwind());
        let (outcome, cause) = match self.runtime.block_on(operation.instrument(span.clone())) {
            (Ok(outcome), cause) => (outcome, cause),
            (Err(_panic), _) => (fail(libc::EIO), Some("it panicked".into())),
        };
        note(&span, &outcome);
        call.ended(&self.tree, &outcome, Way::Held, cause);
        reply(outcome);
    }

    /// What can be answered without waiting, if it can.
    pub(super) fn now<T: Outcome>(
        &self,
        call: &Call<'_>,
        operation: impl FnOnce(&Tree) -> Option<Result<T>>,
    ) -> Option<Result<T>> {
        let (outcome, cause) = cause::of_now(self.tree.volume(), || operation(&self.tree));
        if let Some(outcome) = &outcome {
            call.ended(&self.tree, outcome, Way::Inline, cause);
        }
        outcome
    }

    /// Answers what is never done with an error number.
    pub(super) fn refuse(&self, call: &Call<'_>, errno: i32, reply: impl FnOnce(fuser::Errno)) {
        call.ended(&self.tree, &fail::<()>(errno), Way::Inline, None);
        reply(fuser::Errno::from_i32(errno));
    }

    /// Runs what needs no waiting and always ends well: a panic is one line of the log, and nothing else.
    pub(super) fn always(&self, call: Call<'_>, done: impl FnOnce(&Tree)) {
        self.guard(call, |this, call| {
            this.now(&call, |tree| {
                done(tree);
                Some(Ok(()))
            });
        });
    }

    /// A callback that does not take the loop thread down with it: on a panic, fuser answers EIO for the
    /// dropped reply.
    pub(super) fn guard<'c>(&self, call: Call<'c>, callback: impl FnOnce(&Self, Call<'c>)) {
        let again = call.clone();
        if catch_unwind(AssertUnwindSafe(|| callback(self, call))).is_err() {
            let cause = Some("its callback panicked".into());
            again.ended(&self.tree, &fail::<()>(libc::EIO), Way::Inline, cause);
        }
    }

    /// [`Adapter::guard`] for a callback on an open file, which refuses an unknown handle by `refuse`.
    pub(super) fn with_handle<'c, R>(
        &self,
        call: Call<'c>,
        fh: FileHandle,
        reply: R,
        refuse: fn(R, fuser::Errno),
        callback: impl FnOnce(&Self, Call<'c>, Arc<Handle>, R),
    ) {
        self.guard(call, |this, call| match this.tree.handle(fh.0) {
            Ok(handle) => callback(this, call, handle, reply),
            Err(e) => {
                call.ended(&this.tree, &fail::<()>(e.0), Way::Inline, None);
                refuse(reply, errno(e));
            }
        });
    }

    /// An operation that must not run twice: its outcome is in the journal before the reply is sent.
    pub(super) fn once<F>(
        &self,
        call: Call<'_>,
        unique: u64,
        operation: F,
        reply: impl FnOnce(Result<()>) + Send + 'static,
    ) where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let tree = Arc::clone(&self.tree);
        self.spawn(call, operation, move |outcome| {
            tree.record_reply(unique, outcome.err().map_or(0, |e| e.0), 0, 0);
            reply(outcome);
        });
    }

    /// The same for an operation that makes an entry.
    pub(super) fn make<F>(&self, call: Call<'_>, unique: u64, operation: F, reply: ReplyEntry)
    where
        F: Future<Output = Result<Entry>> + Send + 'static,
    {
        let tree = Arc::clone(&self.tree);
        let reply = move |outcome: Result<Entry>| {
            let node = outcome
                .as_ref()
                .ok()
                .and_then(|e| e.stat.as_ref())
                .map_or(0, |s| s.id);
            tree.record_reply(unique, outcome.as_ref().err().map_or(0, |e| e.0), node, 0);
            reply_entry(reply, outcome);
        };
        self.spawn_or_undo(call, operation, reply, not_taken(&self.tree));
    }
}

/// Undoes an entry that came too late.
pub(super) fn not_taken(
    tree: &Arc<Tree>,
) -> impl FnOnce(Entry) -> std::future::Ready<()> + Send + 'static + use<> {
    let tree = Arc::clone(tree);
    move |entry| {
        if let Some(stat) = entry.stat {
            tree.not_taken(stat.id);
        }
        std::future::ready(())
    }
}

#[cfg(test)]
#[path = "dispatch_tests.rs"]
mod tests;
