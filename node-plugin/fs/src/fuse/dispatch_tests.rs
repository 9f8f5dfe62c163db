//! What a caller gets when an operation takes too long or panics, and what the log and the metrics get.

use std::ffi::OsStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use blob_client::Patience;
use tokio::sync::{Notify, oneshot};
use vsc_driver::buffer::Arena;

#[path = "dispatch_log_tests.rs"]
mod log_lines;

use super::*;
use crate::budget::Budget;
use crate::config::VolumeConfig;
use crate::content::{Env, ReadData};
use crate::journal::log::Log;
use crate::observer::{Ended, Observer, Operation};
use crate::store::fake::{FakeStore, Fault, Op};
use crate::tree::Owner;

fn adapter() -> Adapter {
    adapter_of(Arc::new(FakeStore::new()), |_| {})
}

/// One whose callers wait for so long.
fn adapter_within(timeout: Duration) -> Adapter {
    adapter_of(Arc::new(FakeStore::new()), |config| {
        config.timeout = Patience::of(timeout);
    })
}

fn adapter_of(store: Arc<FakeStore>, change: impl FnOnce(&mut VolumeConfig)) -> Adapter {
    let runtime = Runtime::current();
    let mut config = VolumeConfig::new("test", Arc::clone(&store) as Arc<dyn crate::Store>);
    change(&mut config);
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
        silence: Silence::default(),
    }
}

impl Outcome for i32 {}

fn call() -> Call<'static> {
    Call::on(Operation::Open, 1)
}

/// What `spawn` replies.
async fn replied<T: Outcome + Send + 'static>(
    adapter: &Adapter,
    operation: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let (send, receive) = oneshot::channel();
    adapter.spawn(call(), operation, move |outcome| {
        let _ = send.send(outcome);
    });
    receive.await.unwrap()
}

/// Where `spawn` will reply.
fn asked(
    adapter: &Adapter,
    operation: impl Future<Output = Result<()>> + Send + 'static,
) -> oneshot::Receiver<Result<(), i32>> {
    let (send, receive) = oneshot::channel();
    adapter.spawn(call(), operation, move |outcome| {
        let _ = send.send(outcome.map_err(|e| e.0));
    });
    receive
}

#[tokio::test]
async fn after_the_timeout_the_caller_gets_eio_and_the_operation_still_ends() {
    let adapter = adapter_within(Duration::from_millis(1));
    let (go_on, ended) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    let operation = {
        let (go_on, ended) = (Arc::clone(&go_on), Arc::clone(&ended));
        async move {
            go_on.notified().await;
            ended.store(true, Ordering::SeqCst);
            Ok(())
        }
    };
    let outcome = replied(&adapter, operation).await;
    assert_eq!(outcome.unwrap_err().0, libc::EIO);
    assert!(!ended.load(Ordering::SeqCst));
    go_on.notify_one();
    adapter.tasks.close();
    adapter.tasks.wait().await;
    assert!(ended.load(Ordering::SeqCst), "it was cut off half-way");
}

#[tokio::test]
async fn a_success_after_the_timeout_is_undone() {
    let adapter = adapter_within(Duration::from_millis(1));
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
        call(),
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

/// Whoever asks for something in a directory that is being moved waits as long as the volume gets on. What he
/// asked for is not begun after he was told that it failed.
#[tokio::test(start_paused = true)]
async fn who_waits_for_a_directory_that_moves_waits_while_the_volume_gets_on() {
    let (store, timeout) = (Arc::new(FakeStore::new()), Duration::from_secs(2));
    let adapter = adapter_of(Arc::clone(&store), |config| {
        config.timeout = Patience::of(timeout);
    });
    let moving = adapter.tree.gates_for(&[], &[1]).await.unwrap();
    let begun = Arc::new(AtomicBool::new(false));
    let operation = {
        let (tree, begun) = (Arc::clone(&adapter.tree), Arc::clone(&begun));
        async move {
            let _gates = tree.gates(1).await?;
            begun.store(true, Ordering::SeqCst);
            Ok(())
        }
    };
    let (send, mut waits) = oneshot::channel();
    adapter.spawn(call(), operation, move |outcome| {
        let _ = send.send(outcome.map_err(|e| e.0));
    });
    let progress = crate::Store::progress(&*store);
    for _ in 0..10 {
        tokio::time::sleep(timeout / 10 * 9).await;
        progress.note();
        assert!(waits.try_recv().is_err(), "it was given up");
    }
    assert_eq!(waits.await.unwrap(), Err(libc::EIO));
    drop(moving);
    adapter.tasks.close();
    adapter.tasks.wait().await;
    assert!(!begun.load(Ordering::SeqCst), "it was carried out later");
}

/// A write is not given up: it would be carried out later.
#[tokio::test(start_paused = true)]
async fn what_ends_by_itself_has_no_clock() {
    let adapter = adapter_within(Duration::from_secs(1));
    let (send, receive) = oneshot::channel();
    let operation = async {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        Ok(7)
    };
    adapter.spawn_to_its_end(call(), operation, move |outcome| {
        let _ = send.send(outcome);
    });
    assert_eq!(receive.await.unwrap().unwrap(), 7);
}

#[tokio::test]
async fn a_panic_is_eio() {
    let adapter = adapter();
    let outcome = replied::<()>(&adapter, async { panic!("on purpose") }).await;
    assert_eq!(outcome.unwrap_err().0, libc::EIO);
    // The next operation is not affected, and neither is the thread that callbacks run on.
    assert_eq!(replied(&adapter, async { Ok(7) }).await.unwrap(), 7);
    adapter.guard(call(), |_, _| panic!("on purpose"));
    let mut ran = false;
    adapter.guard(call(), |_, _| ran = true);
    assert!(ran);
}

#[tokio::test]
async fn a_panic_after_the_timeout_is_no_second_reply() {
    let adapter = adapter_within(Duration::from_millis(1));
    let go_on = Arc::new(Notify::new());
    let operation = {
        let go_on = Arc::clone(&go_on);
        async move {
            go_on.notified().await;
            panic!("on purpose")
        }
    };
    let outcome = replied::<()>(&adapter, operation).await;
    assert_eq!(outcome.unwrap_err().0, libc::EIO);
    go_on.notify_one();
    adapter.tasks.close();
    adapter.tasks.wait().await;
}

/// Keeps what it is told.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<Ended>>);

impl Observer for Told {
    fn ended(&self, operation: &Ended) {
        self.0.lock().unwrap().push(*operation);
    }
}

/// Lines of the log.
#[derive(Debug, Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn all(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The log of this thread, from warnings on.
fn log() -> (Lines, tracing::subscriber::DefaultGuard) {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::WARN)
        .with_writer(move || writer.clone())
        .finish();
    (lines, tracing::subscriber::set_default(subscriber))
}

/// Looks a name up by a task, and waits for the answer.
async fn looked_up(adapter: &Adapter, name: &'static str) -> Result<(), i32> {
    let tree = Arc::clone(&adapter.tree);
    answered(
        adapter,
        Call::at(Operation::Lookup, 1, OsStr::new(name)),
        async move { tree.lookup(1, OsStr::new(name)).await },
    )
    .await
}

/// The answer to a call.
async fn answered<T: Outcome + Send + 'static>(
    adapter: &Adapter,
    call: Call<'_>,
    operation: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<(), i32> {
    let (send, receive) = oneshot::channel();
    adapter.spawn(call, operation, move |outcome| {
        let _ = send.send(outcome.map(drop).map_err(|e| e.0));
    });
    receive.await.unwrap()
}

/// The kernel has one inode worked on by one after the other: they wait once for a service that is silent.
#[tokio::test(start_paused = true)]
async fn who_asks_where_there_was_silence_just_now_is_not_kept_waiting() {
    let (store, timeout) = (Arc::new(FakeStore::new()), Duration::from_secs(10));
    store.foreign_put("d/f", "content", blob_client::Metadata::new());
    let adapter = adapter_of(Arc::clone(&store), |config| {
        config.timeout = Patience::of(timeout);
    });
    let owner = Owner { uid: 0, gid: 0 };
    let entry = adapter.tree.lookup(1, OsStr::new("d")).await.unwrap();
    let folder = entry.stat.unwrap().id;
    store.close();
    let begin = tokio::time::Instant::now();
    for name in ["f", "f", "g", "h"] {
        assert_eq!(looked_up(&adapter, name).await, Err(libc::EIO));
    }
    for n in 0..10 {
        let (tree, name) = (Arc::clone(&adapter.tree), format!("new{n}"));
        let call = Call::at(Operation::Mkdir, 1, OsStr::new("new"));
        let made = async move { tree.mkdir(1, OsStr::new(&name), 0o755, owner).await };
        assert_eq!(answered(&adapter, call, made).await, Err(libc::EIO));
    }
    // Each for itself: who only asks, and who changes.
    assert_eq!(begin.elapsed().as_secs(), 20);
    let rename = || Call::at(Operation::Rename, folder, OsStr::new("f")).to(1, OsStr::new("f"));
    let never = || std::future::pending::<Result<()>>();
    assert_eq!(answered(&adapter, rename(), never()).await, Err(libc::EIO));
    assert_eq!(begin.elapsed().as_secs(), 20);
    // Another folder is asked, and a write of the kernel's own pages fails for nothing that others met.
    let elsewhere = || Call::on(Operation::Readdir, folder);
    assert_eq!(answered(&adapter, elsewhere(), never()).await, Err(libc::EIO));
    assert_eq!(begin.elapsed().as_secs(), 30);
    let sync = || Call::on(Operation::Fsync, folder);
    assert_eq!(answered(&adapter, sync(), never()).await, Err(libc::EIO));
    let pages = Call::on(Operation::Write, folder).of_pages(true);
    assert_eq!(answered(&adapter, pages, async { Ok(()) }).await, Ok(()));
    let known = answered(&adapter, sync(), async { Ok(()) }).await;
    assert_eq!(known, Err(libc::EIO));
    // As soon as anything of the volume gets on, everybody is heard again.
    tokio::time::sleep(Duration::from_millis(1)).await;
    crate::Store::progress(&*store).note();
    assert_eq!(answered(&adapter, elsewhere(), async { Ok(()) }).await, Ok(()));
    assert_eq!(answered(&adapter, sync(), async { Ok(()) }).await, Ok(()));
    assert_eq!(answered(&adapter, rename(), never()).await, Err(libc::EIO));
    assert_eq!(begin.elapsed().as_secs(), 50);
    // Otherwise after a while.
    tokio::time::sleep(Patience::of(timeout).again()).await;
    store.open();
    assert_eq!(looked_up(&adapter, "f").await, Ok(()));
}

/// An adapter over a service that lets each request wait for most of the timeout, and then fails.
fn adapter_without_answers(timeout: Duration) -> (Arc<FakeStore>, Adapter) {
    let store = Arc::new(FakeStore::new());
    let adapter = adapter_of(Arc::clone(&store), |config| {
        config.timeout = Patience::of(timeout);
    });
    let tree = Arc::clone(&adapter.tree);
    assert_eq!(tree.config().timeout, Patience::of(timeout));
    store.set_delay(Patience::of(timeout).call());
    (store, adapter)
}

/// All operations are answered with EIO, and have ended soon after.
async fn all_end(adapter: Adapter, answers: Vec<oneshot::Receiver<Result<(), i32>>>) {
    let (begin, timeout) = (tokio::time::Instant::now(), adapter.tree.clock().timeout());
    for answer in answers {
        assert_eq!(answer.await.unwrap(), Err(libc::EIO));
    }
    assert!(begin.elapsed() <= timeout, "somebody waited for others");
    adapter.tasks.close();
    adapter.tasks.wait().await;
    let took = begin.elapsed();
    assert!(took <= timeout * 2, "{took:?} for what nobody waits for");
}

/// Who is told that a lookup failed does not leave it behind in line.
#[tokio::test(start_paused = true)]
async fn lookups_in_line_for_a_listing_end_with_it() {
    let (store, adapter) = adapter_without_answers(Duration::from_secs(10));
    store.fail_after(0, Fault::Lost, u64::MAX);
    let look_up = |n: usize| {
        let (send, receive) = oneshot::channel();
        let (tree, name) = (Arc::clone(&adapter.tree), format!("f{n}"));
        adapter.spawn(
            Call::on(Operation::Open, n as u64),
            async move { tree.lookup(1, OsStr::new(&name)).await },
            move |outcome| {
                let _ = send.send(outcome.map(drop).map_err(|e| e.0));
            },
        );
        receive
    };
    let answers = (0..20).map(look_up).collect();
    all_end(adapter, answers).await;
}

/// The same of who waits for a commit of one file.
#[tokio::test(start_paused = true)]
async fn commits_in_line_end_with_those_before() {
    let (store, adapter) = adapter_without_answers(Duration::from_secs(10));
    let (tree, owner) = (Arc::clone(&adapter.tree), Owner { uid: 0, gid: 0 });
    let flags = libc::O_WRONLY;
    let (_, opened) = tree
        .create(1, OsStr::new("f"), 0o644, flags, owner)
        .await
        .unwrap();
    let handle = tree.handle(opened.fh).unwrap();
    tree.write(&handle, 0u64.into(), b"content", false).await.unwrap();
    store.fail_after(0, Fault::Lost, u64::MAX);
    let sync = |_| {
        let tree = Arc::clone(&adapter.tree);
        asked(&adapter, async move { tree.fsync(opened.fh).await })
    };
    let answers = (0..20).map(sync).collect();
    all_end(adapter, answers).await;
    store.heal();
    tree.commit_all().await.unwrap();
    assert_eq!(
        store.content("f").unwrap(),
        &b"content"[..],
        "nothing is given up"
    );
}

/// A volume that knows its files for long.
fn adapter_that_knows(store: &Arc<FakeStore>, timeout: Duration) -> Adapter {
    adapter_of(Arc::clone(store), |config| {
        let long = Duration::from_secs(3600);
        (config.attr_timeout, config.entry_timeout) = (long, long);
        config.negative_timeout = long;
        config.timeout = Patience::of(timeout);
    })
}

/// A move asks first whether the container keeps its blobs.
#[tokio::test(start_paused = true)]
async fn a_rename_that_was_told_to_have_failed_moves_nothing() {
    let (store, timeout) = (Arc::new(FakeStore::new()), Duration::from_secs(10));
    store.foreign_put("f", "content", blob_client::Metadata::new());
    let adapter = adapter_that_knows(&store, timeout);
    let (from, to) = (OsStr::new("f"), OsStr::new("g"));
    adapter.tree.lookup(1, from).await.unwrap();
    adapter.tree.lookup(1, to).await.unwrap();
    store.fail(Op::ContainerMetadata, Fault::Lost, 1);
    store.set_delay(Patience::of(timeout).call());
    let tree = Arc::clone(&adapter.tree);
    let receive = asked(&adapter, async move {
        tree.rename(1, from, 1, to, crate::tree::Replace::Yes).await
    });
    tokio::time::sleep(timeout / 10).await;
    // Slow answers, from the next request on: the first comes when the caller has gone.
    store.set_delay(timeout / 10 * 3);
    assert_eq!(receive.await.unwrap(), Err(libc::EIO));
    adapter.tasks.close();
    adapter.tasks.wait().await;
    assert_eq!(
        (store.names(), store.counters().of(Op::Copy)),
        (vec!["f".to_owned()], 0)
    );
}

/// What waits for a file that somebody keeps still (a commit, say) is not done to it after its caller was
/// told that it failed.
#[tokio::test(start_paused = true)]
async fn a_change_that_waits_in_line_is_not_made_when_its_caller_has_gone() {
    let timeout = Duration::from_secs(10);
    for what in ["chmod", "truncate", "unlink", "rename"] {
        let store = Arc::new(FakeStore::new());
        store.foreign_put("f", "content", blob_client::Metadata::new());
        let adapter = adapter_that_knows(&store, timeout);
        let tree = Arc::clone(&adapter.tree);
        let (file, other) = (OsStr::new("f"), OsStr::new("g"));
        let id = tree.lookup(1, file).await.unwrap().stat.unwrap().id;
        let opened = tree.open(id, libc::O_RDONLY, 0).await.unwrap();
        let content = Arc::clone(&tree.handle(opened.fh).unwrap().file);
        let held = content.hold().await.unwrap();
        let before = store.properties("f").unwrap().etag;
        let operation = async move {
            let set = |mode, size| crate::tree::SetAttr {
                mode,
                size,
                ..Default::default()
            };
            match what {
                "chmod" => tree.setattr(id, set(Some(0o600), None)).await.map(drop),
                "truncate" => tree.setattr(id, set(None, Some(3))).await.map(drop),
                "unlink" => tree.unlink(1, file).await,
                _ => tree.rename(1, file, 1, other, crate::tree::Replace::Yes).await,
            }
        };
        let receive = asked(&adapter, operation);
        assert_eq!(receive.await.unwrap(), Err(libc::EIO), "{what}");
        drop(held);
        adapter.tasks.close();
        adapter.tasks.wait().await;
        let now = store.properties("f").map(|now| now.etag);
        assert_eq!(now, Some(before), "{what} was carried out");
    }
}

/// A file is not emptied by an open that failed.
#[tokio::test(start_paused = true)]
async fn an_open_that_failed_does_not_empty_the_file_later() {
    let (store, timeout) = (Arc::new(FakeStore::new()), Duration::from_secs(10));
    store.foreign_put("f", "content", blob_client::Metadata::new());
    let adapter = adapter_that_knows(&store, timeout);
    let tree = Arc::clone(&adapter.tree);
    let id = tree.lookup(1, OsStr::new("f")).await.unwrap().stat.unwrap().id;
    store.close();
    let (send, receive) = oneshot::channel();
    let (opens, closes) = (Arc::clone(&tree), Arc::clone(&tree));
    adapter.spawn_or_undo(
        call(),
        async move { opens.open(id, libc::O_WRONLY | libc::O_TRUNC, 0).await },
        move |outcome| {
            let _ = send.send(outcome.map(drop).map_err(|e| e.0));
        },
        |opened| async move {
            let _ = closes.release(opened.fh).await;
        },
    );
    assert_eq!(receive.await.unwrap(), Err(libc::EIO));
    store.open();
    adapter.tasks.close();
    adapter.tasks.wait().await;
    tree.commit_all().await.unwrap();
    assert_eq!(store.content("f").unwrap(), &b"content"[..]);
}

#[tokio::test]
async fn a_failure_says_which_operation_on_which_path_failed_and_why() {
    let (lines, _log) = log();
    let (store, told) = (Arc::new(FakeStore::new()), Arc::new(Told::default()));
    let adapter = adapter_of(Arc::clone(&store), |config| {
        config.name = "acct/photos".to_owned();
        config.prefix = "below".to_owned();
        config.observer = Some(told.clone());
    });
    store.fail_after(0, Fault::Status(403, "AuthorizationPermissionMismatch"), u64::MAX);
    assert_eq!(looked_up(&adapter, "cat.jpg").await, Err(libc::EACCES));
    let lines = lines.all();
    let [line] = &lines[..] else {
        panic!("one line for one failure: {lines:#?}");
    };
    for part in [
        r#"volume="acct/photos""#,
        r#"operation="lookup""#,
        r#"path="below/cat.jpg""#,
        "errno=13",
        "AuthorizationPermissionMismatch",
    ] {
        assert!(line.contains(part), "no {part} in {line}");
    }
    let told = told.0.lock().unwrap();
    let [ended] = &told[..] else {
        panic!("told once: {told:?}");
    };
    assert_eq!(
        (ended.operation, ended.errno, ended.inline),
        (Operation::Lookup, libc::EACCES, false)
    );
}

#[tokio::test]
async fn a_program_that_goes_on_failing_does_not_flood_the_log() {
    let (lines, _log) = log();
    let store = Arc::new(FakeStore::new());
    let adapter = adapter_of(Arc::clone(&store), |_| {});
    store.fail_after(0, Fault::Lost, u64::MAX);
    for _ in 0..200 {
        assert_eq!(looked_up(&adapter, "f").await, Err(libc::EIO));
    }
    let before = lines.all();
    assert!((1..=5).contains(&before.len()), "{before:#?}");
    // Another volume's first failure is seen all the same.
    let other = adapter_of(store, |_| {});
    assert!(looked_up(&other, "f").await.is_err());
    assert_eq!(lines.all().len(), before.len() + 1);
}

#[tokio::test]
async fn what_is_answered_is_told_with_its_bytes_and_who_answered() {
    let told = Arc::new(Told::default());
    let adapter = adapter_of(Arc::new(FakeStore::new()), |config| {
        config.observer = Some(told.clone());
    });
    let read = Call::on(Operation::Read, 1);
    let known = adapter.now(&read, |_| Some(Ok(ReadData::Owned(vec![0; 7]))));
    assert!(known.is_some());
    let unknown = adapter.now::<ReadData>(&Call::on(Operation::Read, 1), |_| None);
    assert!(unknown.is_none(), "not ended yet");
    let (send, receive) = oneshot::channel();
    adapter.spawn(
        Call::on(Operation::Write, 1).with_bytes(9),
        async { Ok(()) },
        move |outcome: Result<()>| {
            let _ = send.send(outcome);
        },
    );
    receive.await.unwrap().unwrap();
    adapter.guard(call(), |_, _| panic!("on purpose"));
    let told: Vec<_> = told
        .0
        .lock()
        .unwrap()
        .iter()
        .map(|e| (e.operation, e.errno, e.inline, e.bytes))
        .collect();
    assert_eq!(
        told,
        [
            (Operation::Read, 0, true, 7),
            (Operation::Write, 0, false, 9),
            (Operation::Open, libc::EIO, true, 0),
        ]
    );
}

/// The root of a whole container has its attributes in the container's metadata, for which a lease is asked.
#[tokio::test(start_paused = true)]
async fn attributes_of_a_container_that_were_told_to_have_failed_stay() {
    let (store, timeout) = (Arc::new(FakeStore::new()), Duration::from_secs(10));
    let adapter = adapter_that_knows(&store, timeout);
    store.fail(Op::AcquireLease, Fault::Lost, 1);
    store.set_delay(Patience::of(timeout).call());
    let tree = Arc::clone(&adapter.tree);
    let set = crate::tree::SetAttr {
        mode: Some(0o700),
        ..Default::default()
    };
    let receive = asked(&adapter, async move { tree.setattr(1, set).await.map(drop) });
    tokio::time::sleep(timeout / 10).await;
    store.set_delay(timeout / 10 * 3);
    assert_eq!(receive.await.unwrap(), Err(libc::EIO));
    adapter.tasks.close();
    adapter.tasks.wait().await;
    assert_eq!(store.counters().of(Op::SetContainerMetadata), 0);
}

/// What an exchange has begun is taken back also when its caller has left meanwhile.
#[tokio::test(start_paused = true)]
async fn an_exchange_is_undone_after_its_caller_has_left() {
    let (store, timeout) = (Arc::new(FakeStore::new()), Duration::from_secs(10));
    let adapter = adapter_that_knows(&store, timeout);
    let tree = Arc::clone(&adapter.tree);
    let (a, b) = (OsStr::new("a"), OsStr::new("b"));
    for (name, content) in [("a", "of a"), ("b", "of b")] {
        store.foreign_put(name, content, blob_client::Metadata::new());
        let id = tree.lookup(1, OsStr::new(name)).await.unwrap().stat.unwrap().id;
        tree.open(id, libc::O_RDWR, 0).await.unwrap();
    }
    store.set_delay(Duration::from_millis(10));
    let receive = asked(&adapter, async move {
        tree.rename(1, a, 1, b, crate::tree::Replace::Exchange).await
    });
    // The first step is done, and nobody answers the second one.
    while store.names().contains(&"a".to_owned()) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    store.set_delay(Patience::of(timeout).call());
    store.fail(Op::Head, Fault::Lost, 1);
    tokio::time::sleep(timeout / 10).await;
    store.set_delay(timeout / 10 * 3);
    assert_eq!(receive.await.unwrap(), Err(libc::EIO));
    adapter.tasks.close();
    adapter.tasks.wait().await;
    assert_eq!(store.names(), ["a", "b"]);
    assert_eq!(
        (store.content("a").unwrap(), store.content("b").unwrap()),
        (b"of a"[..].into(), b"of b"[..].into())
    );
}
