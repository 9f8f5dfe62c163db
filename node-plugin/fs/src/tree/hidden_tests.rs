//! How leases of hidden blobs are renewed.

use super::*;
use crate::store::fake::{FakeStore, Op};

/// Where each request takes seconds, all leases are renewed in time all the same.
#[tokio::test(start_paused = true)]
async fn many_leases_are_renewed_side_by_side() {
    let store = Arc::new(FakeStore::new());
    let runtime = tokio::runtime::Handle::current();
    let hidden = HiddenBlobs::new(store.clone(), runtime, String::new(), 0);
    for _ in 0..40 {
        hidden.reserve().await.unwrap();
    }
    store.set_delay(Duration::from_secs(5));
    tokio::time::sleep(RENEW + RENEWAL).await;
    assert_eq!(store.counters().of(Op::RenewLease), 40);
    // And again, before they would end.
    tokio::time::sleep(RENEW + RENEWAL).await;
    assert_eq!(store.counters().of(Op::RenewLease), 80);
}

/// The time that a round takes is no pause: the next one begins when it would have without.
#[tokio::test(start_paused = true)]
async fn a_round_that_takes_long_puts_the_next_one_off_no_further() {
    let store = Arc::new(FakeStore::new());
    let runtime = tokio::runtime::Handle::current();
    let hidden = HiddenBlobs::new(store.clone(), runtime, String::new(), 0);
    let many = 4 * RENEWED_AT_ONCE as u64 + 1;
    for _ in 0..many {
        hidden.reserve().await.unwrap();
    }
    store.set_delay(RENEWAL - Duration::from_secs(1));
    // The first of them was renewed at once, and is again before its lease would end.
    tokio::time::sleep(RENEW + Duration::from_secs(LEASE.into())).await;
    assert!(store.counters().of(Op::RenewLease) > many);
}
