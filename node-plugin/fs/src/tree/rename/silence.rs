//! Many requests of one move, and a service that does not answer them any more.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::errno::{Errno, Result, fail_because};

/// One of many requests; not made once another one was `silent`: each would wait for that anew, while
/// everybody below the directory waits.
pub(super) async fn while_answered<T>(
    silent: &AtomicBool,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    if silent.load(Ordering::Relaxed) {
        return fail_because(libc::EIO, "another request of the same rename got no answer");
    }
    let done = work.await;
    silent.fetch_or(matches!(done, Err(Errno(libc::EIO))), Ordering::Relaxed);
    done
}
