//! Who waits for whom: operations of one tree beside each other.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use blob_client::Metadata;
use vsc_driver::buffer::Arena;

use super::children::Owner;
use super::core::Tree;
use super::node::{Node, ROOT};
use crate::budget::Budget;
use crate::config::VolumeConfig;
use crate::content::Env;
use crate::journal::log::Log;
use crate::store::fake::{FakeStore, Fault, Op};

fn tree(store: &Arc<FakeStore>) -> Arc<Tree> {
    let env = Env::new(
        Arc::clone(store) as Arc<dyn crate::Store>,
        Budget::new(0),
        Arena::new(64 << 20).unwrap(),
        tokio::runtime::Handle::current(),
    );
    let config = VolumeConfig::new("test", Arc::clone(store) as Arc<dyn crate::Store>);
    Tree::new(config, env, Arc::new(Log::create().unwrap()))
}

/// The kernel waits for whoever works in a directory before it forgets a name there. Others go first.
#[tokio::test]
async fn a_directory_that_is_busy_does_not_keep_others_from_being_forgotten() {
    let tree = tree(&Arc::new(FakeStore::new()));
    let (free, busy) = mpsc::channel::<()>();
    let busy = std::sync::Mutex::new(busy);
    let (forgot, mut forgotten) = tokio::sync::mpsc::unbounded_channel();
    tree.on_expire(Arc::new(move |parent: u64, _name: &str| {
        if parent == 1 {
            let _ = busy.lock().unwrap().recv();
        }
        let _ = forgot.send(parent);
    }));
    let names = |parents: &[u64]| -> Vec<(u64, Arc<str>)> {
        parents
            .iter()
            .map(|parent| (*parent, Arc::from("name")))
            .collect()
    };
    let asking = {
        let (tree, names) = (Arc::clone(&tree), names(&[1, 2, 3]));
        tokio::spawn(async move { tree.ask_to_forget(names).await })
    };
    let mut first = [forgotten.recv().await.unwrap(), forgotten.recv().await.unwrap()];
    first.sort_unstable();
    assert_eq!(first, [2, 3]);
    asking.await.unwrap();
    // Nobody else waits there a second time.
    tree.ask_to_forget(names(&[1, 4])).await;
    assert_eq!(forgotten.recv().await, Some(4));
    drop(free);
    assert_eq!(forgotten.recv().await, Some(1));
}

/// However many directories are busy, few threads wait for them.
#[tokio::test]
async fn directories_that_are_busy_take_few_threads() {
    let tree = tree(&Arc::new(FakeStore::new()));
    let (free, busy) = mpsc::channel::<()>();
    let busy = std::sync::Mutex::new(busy);
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    tree.on_expire(Arc::new(move |_parent: u64, _name: &str| {
        counter.fetch_add(1, Ordering::Relaxed);
        let _ = busy.lock().unwrap().recv();
    }));
    let names = (1..=100).map(|parent| (parent, Arc::from("name"))).collect();
    tree.ask_to_forget(names).await;
    let asked = asked.load(Ordering::Relaxed);
    assert!((1..=16).contains(&asked), "{asked} threads");
    drop(free);
}

/// At the end no file is tried anew once the service has let others wait in vain.
#[tokio::test(start_paused = true)]
async fn the_end_begins_nothing_after_silence() {
    let store = Arc::new(FakeStore::new());
    let tree = tree(&store);
    let owner = Owner { uid: 0, gid: 0 };
    let mut held = Vec::new();
    for n in 0..40 {
        let (name, flags) = (format!("f{n}"), libc::O_WRONLY);
        let opened = tree.create(ROOT, OsStr::new(&name), 0o644, flags, owner).await;
        let handle = tree.handle(opened.unwrap().1.fh).unwrap();
        tree.write(&handle, 0u64.into(), b"content", false).await.unwrap();
        held.push(handle.file.hold().await.unwrap());
    }
    let begin = tokio::time::Instant::now();
    store.set_delay(tree.config().timeout.call());
    store.fail(Op::Put, Fault::Lost, u64::MAX);
    let finishing = {
        let tree = Arc::clone(&tree);
        tokio::spawn(async move { tree.finish().await })
    };
    // They fail one after the other.
    for hold in held {
        tokio::time::sleep(Duration::from_millis(1)).await;
        drop(hold);
    }
    assert!(finishing.await.unwrap().is_err());
    assert!(
        begin.elapsed() <= tree.config().timeout.whole(),
        "it waited again"
    );
    assert_eq!(store.counters().of(Op::Put), 16);
}

/// What is below a folder that is not empty anyway is not looked at one by one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_is_not_empty_is_told_by_the_service() {
    let store = Arc::new(FakeStore::new());
    store.foreign_put("d/f", "content", Metadata::new());
    let tree = tree(&store);
    let folder = tree.lookup(ROOT, OsStr::new("d")).await.unwrap().stat.unwrap().id;
    let file = tree
        .lookup(folder, OsStr::new("f"))
        .await
        .unwrap()
        .stat
        .unwrap()
        .id;
    let file = tree.node(file).unwrap();
    let removed = {
        let tree = Arc::clone(&tree);
        // Whoever looks at it waits.
        let _state = file.state();
        let rmdir = tokio::spawn(async move { tree.rmdir(ROOT, OsStr::new("d")).await });
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(tokio::time::timeout(Duration::from_secs(30), rmdir))
        })
    };
    assert_eq!(
        removed.expect("it waits").unwrap().unwrap_err().0,
        libc::ENOTEMPTY
    );
}

/// A file that was written and closed, and that the service refuses.
async fn refused_file(store: &FakeStore, tree: &Arc<Tree>) -> Arc<Node> {
    let owner = Owner { uid: 0, gid: 0 };
    store.fail(Op::Put, Fault::Status(403, "AuthorizationFailure"), u64::MAX);
    let (_, opened) = tree
        .create(ROOT, OsStr::new("f"), 0o644, libc::O_WRONLY, owner)
        .await
        .unwrap();
    let handle = tree.handle(opened.fh).unwrap();
    tree.write(&handle, 0u64.into(), b"content", false).await.unwrap();
    assert!(tree.release(opened.fh).await.is_err());
    Arc::clone(&handle.node)
}

/// What is owed and was refused is not due at once.
#[tokio::test(start_paused = true)]
async fn a_file_that_is_refused_is_left_alone_for_a_while() {
    let store = Arc::new(FakeStore::new());
    let tree = tree(&store);
    refused_file(&store, &tree).await;
    assert_eq!(tree.owing().files, 1);
    let puts = || store.counters().of(Op::Put);
    let before = puts();
    assert!(!tree.send_owed().await, "refused");
    assert_eq!(puts(), before + 1);
    assert!(tree.send_due().await, "nothing is due");
    assert_eq!(puts(), before + 1);
    store.heal();
    assert!(tree.send_owed().await);
    assert_eq!(store.content("f").unwrap(), &b"content"[..]);
}

/// What is lost with the end of a volume is told, whether a close has promised it or not.
#[tokio::test(start_paused = true)]
async fn the_end_tells_all_that_is_lost() {
    let store = Arc::new(FakeStore::new());
    let tree = tree(&store);
    refused_file(&store, &tree).await.state().promised = false;
    assert!(tree.finish().await.is_err());
    assert_eq!(tree.owing().given_up, 1);
}

/// A directory that moves keeps those who list it waiting. Who was told that it took too long can go on where
/// he was: a listing that ends there would look whole.
#[tokio::test]
async fn a_listing_that_was_told_to_have_failed_goes_on_where_it_was() {
    let store = Arc::new(FakeStore::new());
    store.foreign_put("f", "content", Metadata::new());
    let tree = tree(&store);
    let fh = tree.opendir(ROOT).unwrap();
    let moving = tree.gates_for(&[], &[ROOT]).await.unwrap();
    let caller = crate::caller::Caller::default();
    let begun = tree.readdir(fh, 0).await.unwrap();
    let offset = begun.last().unwrap().next;
    let listing = tokio::spawn(caller.waits_for({
        let tree = Arc::clone(&tree);
        async move { tree.readdir(fh, offset).await.map(|entries| entries.len()) }
    }));
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    caller.leaves();
    drop(moving);
    assert_eq!(listing.await.unwrap().unwrap_err().0, libc::EIO);
    let rest = tree.readdir(fh, offset).await.unwrap();
    let names: Vec<_> = rest.iter().map(|entry| entry.name.to_string()).collect();
    assert_eq!(names, ["f"]);
}

/// Memory may be short while a file is being deleted. If it is not deleted after all, what was written to it
/// is stored yet.
#[tokio::test]
async fn what_a_deletion_that_fails_would_have_thrown_away_is_stored_though_memory_is_short() {
    let store = Arc::new(FakeStore::new());
    store.foreign_put("f", "content", Metadata::new());
    let tree = tree(&store);
    let id = tree.lookup(ROOT, OsStr::new("f")).await.unwrap().stat.unwrap().id;
    let opened = tree.open(id, libc::O_RDWR, 0).await.unwrap();
    let handle = tree.handle(opened.fh).unwrap();
    tree.write(&handle, 0u64.into(), b"changed", false).await.unwrap();
    store.fail(Op::Delete, Fault::Status(403, "AuthorizationFailure"), 1);
    store.hold_answers(Op::Delete);
    let deleting = tokio::spawn({
        let tree = Arc::clone(&tree);
        async move { tree.unlink(ROOT, OsStr::new("f")).await }
    });
    while store.counters().of(Op::Delete) == 0 {
        tokio::task::yield_now().await;
    }
    tree.env.budget.relieve(1, Some(&tree.env.share));
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    store.give_answers();
    assert_eq!(deleting.await.unwrap().unwrap_err().0, libc::EACCES);
    tree.commit_all().await.unwrap();
    assert_eq!(store.content("f").unwrap(), &b"changed"[..]);
    assert_eq!(store.names(), ["f"]);
}
