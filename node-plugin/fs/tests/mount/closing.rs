//! What close(2) sends, and when: one version for one write.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};

use blob_fs::store::fake::{FakeStore, Op};

use super::store;
use crate::common::{Mount, eventually};

/// Versions that were made so far.
fn versions(store: &FakeStore) -> u64 {
    store.counters().of(Op::Put) + store.counters().of(Op::Commit)
}

/// Runs a script in the mount and waits until its files are in the service.
fn shell(mount: &Mount, script: &str) {
    let status = Command::new("sh")
        .args(["-ec", script])
        .current_dir(mount.root())
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{script}");
}

#[test]
fn one_write_is_one_version() {
    let scripts = [
        ("echo hi >f", "hi\n"),
        ("(echo a; echo b) >f", "a\nb\n"),
        ("dd if=/dev/zero of=f bs=3 count=1 2>/dev/null", "\0\0\0"),
        ("echo hi | cat >f", "hi\n"),
        (
            "echo hi >/tmp/source.$$; cp /tmp/source.$$ f; rm /tmp/source.$$",
            "hi\n",
        ),
        ("touch f", ""),
        (": >f", ""),
    ];
    for (script, content) in scripts {
        let store = store();
        let m = Mount::new(&store);
        shell(&m, script);
        eventually("the file in the service", || store.content("f").is_some());
        assert_eq!(fs::read_to_string(m.path("f")).unwrap(), content);
        m.end().unwrap();
        assert_eq!(store.content("f").unwrap(), content.as_bytes(), "{script}");
        assert_eq!(versions(&store), 1, "{script}");
    }
}

/// The output of a script is inherited by each of its commands, and each of them closes it.
#[test]
fn children_that_append_through_one_descriptor_make_few_versions() {
    let store = store();
    let m = Mount::new(&store);
    shell(&m, "for i in $(seq 200); do /bin/echo line $i; done >log");
    // Whoever looks here sees all of it at once ...
    let all: String = (1..=200).map(|n| format!("line {n}\n")).collect();
    assert_eq!(fs::read_to_string(m.path("log")).unwrap(), all);
    // ... others a moment later.
    eventually("all of it in the service", || {
        store
            .content("log")
            .is_some_and(|content| content == all.as_bytes())
    });
    assert!(versions(&store) <= 10, "{} versions", versions(&store));
}

/// Nobody has to close the last descriptor for it.
#[test]
fn what_an_inherited_descriptor_wrote_is_sent_soon() {
    let store = store();
    let m = Mount::new(&store);
    let mut f = File::create(m.path("log")).unwrap();
    for n in 0..10 {
        f.write_all(b"line\n").unwrap();
        drop(f.try_clone().unwrap());
        if n < 2 {
            assert_eq!(
                store.content("log").unwrap().len(),
                (n + 1) * 5,
                "after close {n}"
            );
        }
    }
    eventually("all lines in the service", || {
        store.content("log").is_some_and(|content| content.len() == 50)
    });
    // The same again: it is not for once.
    f.write_all(b"line\n").unwrap();
    drop(f.try_clone().unwrap());
    eventually("the last line in the service", || {
        store.content("log").is_some_and(|content| content.len() == 55)
    });
    f.write_all(b"line\n").unwrap();
    drop(f.try_clone().unwrap());
    f.sync_all().unwrap();
    assert_eq!(store.content("log").unwrap().len(), 60);
}

/// A new file that is closed empty is in the service a moment later, by fsync at once, and at once when it
/// was made with O_EXCL: it may be a lock.
#[test]
fn an_empty_new_file_is_sent_by_its_last_close() {
    let store = store();
    let m = Mount::new(&store);
    let f = File::create(m.path("f")).unwrap();
    drop(f.try_clone().unwrap());
    drop(f.try_clone().unwrap());
    assert_eq!(versions(&store), 0);
    drop(f);
    eventually("the empty file in the service", || store.content("f").is_some());
    let f = File::create(m.path("synced")).unwrap();
    f.sync_all().unwrap();
    assert_eq!(store.content("synced").unwrap().len(), 0);
    drop(File::create_new(m.path("lock")).unwrap());
    assert_eq!(store.content("lock").unwrap().len(), 0);
    let exclusive = OpenOptions::new()
        .write(true)
        .create(true)
        .custom_flags(libc::O_EXCL)
        .open(m.path("other"));
    drop(exclusive.unwrap());
    assert_eq!(store.content("other").unwrap().len(), 0);
}
