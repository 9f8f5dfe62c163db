//! What a line of the log says of an operation that failed: which, where and why, and of which volume.

use super::*;
use crate::tree::{Replace, SetAttr};

/// The lines of one failed operation.
async fn lines_of<T: Outcome + Send + 'static>(
    adapter: &Adapter,
    call: Call<'_>,
    operation: impl Future<Output = Result<T>> + Send + 'static,
) -> (i32, Vec<String>) {
    let (lines, _log) = log();
    let errno = answered(adapter, call, operation).await.map(drop).unwrap_err();
    (errno, lines.all())
}

fn named(store: &Arc<FakeStore>) -> Adapter {
    adapter_of(Arc::clone(store), |config| config.name = "acct/photos".to_owned())
}

/// The one line, which has all of this.
fn assert_says(lines: &[String], parts: &[&str]) {
    let [line] = lines else {
        panic!("one line for one failure: {lines:#?}");
    };
    for part in parts {
        assert!(line.contains(part), "no {part} in {line}");
    }
}

#[tokio::test]
async fn lseek_past_the_last_data_is_no_trouble_and_a_container_that_is_gone_is() {
    let store = Arc::new(FakeStore::new());
    store.foreign_put("f", "content", blob_client::Metadata::new());
    let adapter = named(&store);
    let tree = Arc::clone(&adapter.tree);
    let id = tree.lookup(1, OsStr::new("f")).await.unwrap().stat.unwrap().id;
    let opened = tree.open(id, libc::O_RDONLY, 0).await.unwrap();
    let seek = async move {
        tree.lseek(opened.fh, 7, false)
            .await
            .map(crate::fuse::call::Offset)
    };
    let (errno, lines) = lines_of(&adapter, Call::on(Operation::Lseek, id), seek).await;
    assert_eq!((errno, lines), (libc::ENXIO, Vec::new()));
    store.fail_after(0, Fault::Status(404, "ContainerNotFound"), u64::MAX);
    let tree = Arc::clone(&adapter.tree);
    let look = async move { tree.lookup(1, OsStr::new("g")).await };
    let (errno, lines) = lines_of(&adapter, Call::at(Operation::Lookup, 1, OsStr::new("g")), look).await;
    assert_eq!(errno, libc::ENXIO);
    assert_says(
        &lines,
        &[
            r#"operation="lookup""#,
            r#"path="g""#,
            r#"volume="acct/photos""#,
            "cause=",
        ],
    );
}

/// A number that no error of the service explains has its reason with it.
#[tokio::test]
async fn what_the_tree_refuses_by_itself_says_why() {
    let store = Arc::new(FakeStore::new());
    store.foreign_put("f", "content", blob_client::Metadata::new());
    let adapter = named(&store);
    let id = adapter
        .tree
        .lookup(1, OsStr::new("f"))
        .await
        .unwrap()
        .stat
        .unwrap()
        .id;
    let tree = Arc::clone(&adapter.tree);
    let set = async move { tree.setxattr(id, OsStr::new("user.x"), &[b'x'; 7000], 0).await };
    let (errno, lines) = lines_of(&adapter, Call::on(Operation::Setxattr, id), set).await;
    assert_eq!(errno, libc::ENOSPC);
    assert_says(
        &lines,
        &[r#"operation="setxattr""#, r#"path="f""#, "cause=", "8 KiB"],
    );
    // A node that the kernel cannot know any more.
    let tree = Arc::clone(&adapter.tree);
    let set = async move { tree.setattr(999, SetAttr::default()).await };
    let (errno, lines) = lines_of(&adapter, Call::on(Operation::Setattr, 999), set).await;
    assert_eq!(errno, libc::ESTALE);
    assert_says(&lines, &["999", "cause=the node is not known any more"]);
}

#[tokio::test]
async fn a_rename_that_failed_says_both_names() {
    let store = Arc::new(FakeStore::new());
    let adapter = named(&store);
    store.fail_after(0, Fault::Status(403, "AuthorizationPermissionMismatch"), u64::MAX);
    let (from, to) = (OsStr::new("old"), OsStr::new("new"));
    let tree = Arc::clone(&adapter.tree);
    let rename = async move { tree.rename(1, from, 1, to, Replace::Yes).await };
    let call = Call::at(Operation::Rename, 1, from).to(1, to);
    let (errno, lines) = lines_of(&adapter, call, rename).await;
    assert_eq!(errno, libc::EACCES);
    assert_says(&lines, &[r#"path="old""#, r#"to="new""#]);
}

#[tokio::test]
async fn a_callback_that_panics_is_one_line_with_its_path() {
    let adapter = named(&Arc::new(FakeStore::new()));
    let (lines, _log) = log();
    let call = Call::at(Operation::Mkdir, 1, OsStr::new("new"));
    adapter.guard(call, |_, _| panic!("on purpose"));
    let ours: Vec<String> = lines.all();
    assert_says(
        &ours,
        &[r#"operation="mkdir""#, r#"path="new""#, "its callback panicked"],
    );
}

/// What only its owner can change is told programs by a number that says little: the log's line is the
/// operation's own.
#[tokio::test]
async fn a_blob_that_cannot_be_used_as_it_is_is_said_with_operation_and_path() {
    let adapter = named(&Arc::new(FakeStore::new()));
    let archived = || blob_client::Error::SnapshotsPresent {
        name: "cat.jpg".into(),
    };
    let call = Call::at(Operation::Unlink, 1, OsStr::new("cat.jpg"));
    let remove = async move { Result::<()>::Err(archived().into()) };
    let (errno, lines) = lines_of(&adapter, call, remove).await;
    assert_eq!(errno, libc::EPERM);
    assert_says(
        &lines,
        &[
            r#"operation="unlink""#,
            r#"path="cat.jpg""#,
            r#"volume="acct/photos""#,
            "cause=",
        ],
    );
}

/// Answers that ask nobody are counted like all others.
#[tokio::test]
async fn what_is_always_refused_is_counted() {
    let told = Arc::new(Told::default());
    let adapter = adapter_of(Arc::new(FakeStore::new()), |config| {
        config.observer = Some(told.clone())
    });
    let mut answers = Vec::new();
    adapter.refuse(&Call::on(Operation::Ioctl, 1), libc::ENOTTY, |e| {
        answers.push(e.code())
    });
    adapter.always(Call::on(Operation::Statfs, 1), |_| ());
    adapter.always(Call::on(Operation::Releasedir, 1), |_| panic!("on purpose"));
    assert_eq!(answers, [libc::ENOTTY]);
    let told: Vec<_> = told
        .0
        .lock()
        .unwrap()
        .iter()
        .map(|e| (e.operation, e.errno))
        .collect();
    assert_eq!(
        told,
        [
            (Operation::Ioctl, libc::ENOTTY),
            (Operation::Statfs, 0),
            (Operation::Releasedir, libc::EIO),
        ]
    );
}

/// Also a line that is no operation's own.
#[tokio::test]
async fn what_a_close_could_not_store_is_said_with_volume_and_path() {
    let store = Arc::new(FakeStore::new());
    let adapter = named(&store);
    let tree = Arc::clone(&adapter.tree);
    let owner = Owner { uid: 0, gid: 0 };
    let made = tree
        .create(1, OsStr::new("f"), 0o644, libc::O_WRONLY, owner)
        .await;
    let (_, opened) = made.unwrap();
    let handle = tree.handle(opened.fh).unwrap();
    tree.write(&handle, crate::content::At::Offset(0), b"data", false)
        .await
        .unwrap();
    let (lines, _log) = log();
    store.fail_after(0, Fault::Status(403, "AuthorizationPermissionMismatch"), u64::MAX);
    tree.release(opened.fh).await.unwrap_err();
    let mut lines = lines.all();
    lines.retain(|line| line.contains("is sent again"));
    assert_says(&lines, &[r#"volume="acct/photos""#, r#"path="f""#]);
}
