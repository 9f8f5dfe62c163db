//! The faults of the store in memory: requests that come late, come twice, or are executed and said to have
//! failed.

use blob_client::{Body, Condition, Error, PutOptions};

use super::*;
use crate::store::Store;

async fn put(
    store: &FakeStore,
    name: &str,
    data: &'static str,
    condition: Condition,
) -> blob_client::Result<()> {
    let options = PutOptions {
        condition,
        ..PutOptions::default()
    };
    store
        .put(name, Body::from(Bytes::from_static(data.as_bytes())), &options)
        .await
        .map(|_| ())
}

#[tokio::test]
async fn a_late_request_is_executed_after_as_many_calls_as_said() {
    let store = FakeStore::new();
    store.fail(Op::Put, Fault::Late(2), 1);
    let told = put(&store, "a", "late", Condition::none()).await;
    assert!(matches!(told, Err(Error::DeadlineExceeded { .. })), "{told:?}");
    for _ in 0..2 {
        assert!(store.head("a", &Condition::none()).await.is_err());
    }
    assert!(store.head("a", &Condition::none()).await.is_ok());
    assert_eq!(store.settle(), [(Op::Put, true)]);
}

#[tokio::test]
async fn a_late_request_meets_the_conditions_of_its_time() {
    let store = FakeStore::new();
    store.fail(Op::Put, Fault::Late(0), 1);
    assert!(put(&store, "a", "late", Condition::absent()).await.is_err());
    store.foreign_put("a", "theirs", Metadata::new());
    assert_eq!(store.settle(), [(Op::Put, false)]);
    assert_eq!(store.content("a").unwrap(), "theirs");
}

#[tokio::test]
async fn a_doubled_request_is_answered_once_and_executed_twice() {
    let store = FakeStore::new();
    store.foreign_put("a", "old", Metadata::new());
    store.fail(Op::Delete, Fault::Doubled(1), 1);
    store.delete("a", &Condition::none()).await.unwrap();
    put(&store, "a", "new", Condition::absent()).await.unwrap();
    assert!(store.content("a").is_some());
    let gone = store.head("a", &Condition::none()).await;
    assert!(matches!(gone, Err(Error::BlobNotFound { .. })), "{gone:?}");
}

#[tokio::test]
async fn an_executed_request_may_be_answered_by_an_error() {
    let store = FakeStore::new();
    store.fail(Op::Put, Fault::Executed(500, "InternalError"), 1);
    let told = put(&store, "a", "data", Condition::none()).await;
    assert!(
        matches!(told, Err(Error::Service { status: 500, .. })),
        "{told:?}"
    );
    assert_eq!(store.content("a").unwrap(), "data");
}
