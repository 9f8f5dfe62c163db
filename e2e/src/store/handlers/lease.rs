//! Headers that tell of leases.

use crate::store::lease::{Outcome, Shown};
use crate::store::reply::Reply;

/// Answer of Lease Blob and Lease Container.
pub(super) fn lease_reply(outcome: Outcome) -> Reply {
    Reply::new(outcome.status)
        .maybe("x-ms-lease-id", outcome.id)
        .maybe("x-ms-lease-time", outcome.time.map(|seconds| seconds.to_string()))
}

/// Headers of a lease in properties.
pub(super) fn with_lease(reply: Reply, lease: &Shown) -> Reply {
    reply
        .header("x-ms-lease-state", lease.state)
        .header("x-ms-lease-status", lease.status)
        .maybe("x-ms-lease-duration", lease.duration)
}
