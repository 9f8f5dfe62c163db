//! What a caller gets when an operation takes too long or panics.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Notify, oneshot};
use vsc_driver::buffer::Arena;

use super::*;
use crate::budget::Budget;
use crate::config::VolumeConfig;
use crate::content::Env;
use crate::journal::log::Log;
use crate::store::fake::FakeStore;

fn adapter() -> Adapter {
    let store = Arc::new(FakeStore::new());
    let runtime = Runtime::current();
    let config = VolumeConfig::new("test", Arc::clone(&store) as Arc<dyn crate::Store>);
    let env = Env::new(
        store,
        Budget::new(0),
        Arena::new(1 << 20).unwrap(),
        runtime.clone(),
    );
    Adapter {
        tree: Tree::new(config, env, Arc::new(Log::create().unwrap())),
        runtime,
        tasks: TaskTracker::new(),
    }
}

/// What `spawn` replies.
async fn replied<T: Send + 'static>(
    adapter: &Adapter,
    deadline: Duration,
    operation: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let (send, receive) = oneshot::channel();
    adapter.spawn("test", deadline, operation, move |outcome| {
        let _ = send.send(outcome);
    });
    receive.await.unwrap()
}

#[tokio::test]
async fn at_the_deadline_the_caller_gets_eio_and_the_operation_still_ends() {
    let adapter = adapter();
    let (go_on, ended) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    let operation = {
        let (go_on, ended) = (Arc::clone(&go_on), Arc::clone(&ended));
        async move {
            go_on.notified().await;
            ended.store(true, Ordering::SeqCst);
            Ok(())
        }
    };
    let outcome = replied(&adapter, Duration::from_millis(1), operation).await;
    assert_eq!(outcome.unwrap_err().0, libc::EIO);
    assert!(!ended.load(Ordering::SeqCst));
    go_on.notify_one();
    adapter.tasks.close();
    adapter.tasks.wait().await;
    assert!(ended.load(Ordering::SeqCst), "it was cut off half-way");
}

#[tokio::test]
async fn a_success_after_the_deadline_is_undone() {
    let adapter = adapter();
    let (go_on, (undone, what)) = (Arc::new(Notify::new()), oneshot::channel());
    let operation = {
        let go_on = Arc::clone(&go_on);
        async move {
            go_on.notified().await;
            Ok(7)
        }
    };
    let (send, receive) = oneshot::channel();
    adapter.spawn_or_undo(
        "test",
        Duration::from_millis(1),
        operation,
        move |outcome| {
            let _ = send.send(outcome.map_err(|e| e.0));
        },
        |late| async move {
            let _ = undone.send(late);
        },
    );
    assert_eq!(receive.await.unwrap(), Err(libc::EIO));
    go_on.notify_one();
    assert_eq!(what.await.unwrap(), 7);
}

/// As long as a directory is being moved, whoever asks for something in it waits.
#[tokio::test]
async fn waiting_for_a_gate_does_not_count() {
    let adapter = adapter();
    let moving = adapter.tree.gates_for(&[], &[1]).await.unwrap();
    let (tree, deadline) = (Arc::clone(&adapter.tree), Duration::from_millis(1));
    let (send, mut waits) = oneshot::channel();
    adapter.spawn(
        "test",
        deadline,
        async move { tree.gates(1).await.map(drop) },
        move |outcome| {
            let _ = send.send(outcome.map_err(|e| e.0));
        },
    );
    // A deadline many times as long ends, and it still waits.
    let never = std::future::pending::<Result<()>>();
    assert!(replied(&adapter, deadline * 50, never).await.is_err());
    assert!(waits.try_recv().is_err(), "it was given up");
    drop(moving);
    assert_eq!(waits.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn a_panic_is_eio() {
    let adapter = adapter();
    let long = Duration::from_secs(3600);
    let outcome = replied::<()>(&adapter, long, async { panic!("on purpose") }).await;
    assert_eq!(outcome.unwrap_err().0, libc::EIO);
    // The next operation is not affected, and neither is the thread that callbacks run on.
    assert_eq!(replied(&adapter, long, async { Ok(7) }).await.unwrap(), 7);
    adapter.guard("test", |_| panic!("on purpose"));
    let mut ran = false;
    adapter.guard("test", |_| ran = true);
    assert!(ran);
}

#[tokio::test]
async fn a_panic_after_the_deadline_is_no_second_reply() {
    let adapter = adapter();
    let go_on = Arc::new(Notify::new());
    let operation = {
        let go_on = Arc::clone(&go_on);
        async move {
            go_on.notified().await;
            panic!("on purpose")
        }
    };
    let outcome = replied::<()>(&adapter, Duration::from_millis(1), operation).await;
    assert_eq!(outcome.unwrap_err().0, libc::EIO);
    go_on.notify_one();
    adapter.tasks.close();
    adapter.tasks.wait().await;
}
