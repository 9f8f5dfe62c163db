//! What close(2) sends, and when: one version for one write.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};

use blob_client::Metadata;
use blob_fs::store::fake::{FakeStore, Fault, Op};

use super::store;
use crate::common::{Mount, eventually};

/// Versions that were made so far.
fn versions(store: &FakeStore) -> u64 {
    store.counters().of(Op::Put) + store.counters().of(Op::Commit) + store.counters().of(Op::SetMetadata)
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
        ("rm -f f; touch f", ""),
        (": >f", ""),
    ];
    let olds = [None, Some(""), Some("what was there before")];
    for (script, content) in scripts {
        for old in olds {
            let store = store();
            if let Some(old) = old {
                store.foreign_put("f", old, Metadata::new());
            }
            let m = Mount::new(&store);
            store.reset_counters();
            shell(&m, script);
            assert_eq!(fs::read_to_string(m.path("f")).unwrap(), content);
            m.end().unwrap();
            assert_eq!(
                store.content("f").unwrap(),
                content.as_bytes(),
                "{script} over {old:?}"
            );
            assert_eq!(versions(&store), 1, "{script} over {old:?}");
        }
    }
}

/// A file of the mount itself is copied by the service.
#[test]
fn a_copy_onto_a_file_is_one_version() {
    let store = store();
    for (name, content) in [("new", "the new content"), ("f", "old")] {
        store.foreign_put(name, content, Metadata::new());
    }
    let m = Mount::new(&store);
    for command in [
        "cp new f",
        "cat new >f",
        "dd if=new of=f 2>/dev/null",
        "cp --reflink=never new f",
    ] {
        store.foreign_put("f", "old", Metadata::new());
        store.reset_counters();
        shell(&m, command);
        eventually("the copy in the service", || {
            store
                .content("f")
                .is_some_and(|content| content == "the new content")
        });
        assert_eq!(versions(&store), 1, "{command}");
    }
    m.end().unwrap();
}

/// What an open has emptied is in the service with what is written then, by fsync at once, and by the last
/// close; one that is emptied through a descriptor by any close.
#[test]
fn an_emptied_file_is_sent_by_its_last_close() {
    let store = store();
    let m = Mount::new(&store);
    let content = || store.content("f").unwrap();
    let old = || store.foreign_put("f", "old", Metadata::new());
    old();
    let f = File::create(m.path("f")).unwrap();
    drop(f.try_clone().unwrap());
    drop(f.try_clone().unwrap());
    assert_eq!(versions(&store), 0);
    assert_eq!(fs::read(m.path("f")).unwrap(), b"", "who opens it here");
    drop(f);
    eventually("the empty file in the service", || content().is_empty());
    assert_eq!(versions(&store), 1);

    old();
    let f = File::create(m.path("f")).unwrap();
    drop(f.try_clone().unwrap());
    f.sync_all().unwrap();
    assert_eq!(content().len(), 0);
    drop(f);

    // The close after what was written waits as ever.
    old();
    let mut f = File::create(m.path("f")).unwrap();
    f.write_all(b"new").unwrap();
    drop(f.try_clone().unwrap());
    assert_eq!(content(), "new");
    // And it was stored: this is not what its open did.
    f.set_len(0).unwrap();
    nix::unistd::close(f.into_raw_fd()).unwrap();
    assert_eq!(content(), "");

    old();
    let f = OpenOptions::new().write(true).open(m.path("f")).unwrap();
    f.set_len(0).unwrap();
    let other = f.try_clone().unwrap();
    nix::unistd::close(f.into_raw_fd()).unwrap();
    assert_eq!(content(), "");
    drop(other);
    m.end().unwrap();
}

/// Of an emptied file, too, what a close did not wait for is sent until the service takes it; and what
/// somebody else has stored meanwhile stays.
#[test]
fn an_emptied_file_outlives_an_outage() {
    for foreign in [false, true] {
        let store = store();
        store.foreign_put("f", "old", Metadata::new());
        let m = Mount::new(&store);
        store.fail(Op::Put, Fault::Status(503, "ServerBusy"), 1_000_000);
        shell(&m, ": >f");
        eventually("commits that fail", || store.counters().of(Op::Put) > 1);
        assert_eq!(fs::read(m.path("f")).unwrap(), b"");
        if foreign {
            store.foreign_put("f", "theirs", Metadata::new());
        }
        store.heal();
        let wanted: &[u8] = if foreign { b"theirs" } else { b"" };
        eventually("the end of it", || {
            store.content("f").is_some_and(|content| content[..] == *wanted)
                && fs::read(m.path("f")).is_ok_and(|content| content == wanted)
        });
        m.end().unwrap();
        assert_eq!(store.content("f").unwrap(), wanted);
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
    // Also when somebody else empties it meanwhile.
    let lock = File::create_new(m.path("emptied")).unwrap();
    let other = OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(m.path("emptied"));
    drop(lock);
    assert_eq!(store.content("emptied").unwrap().len(), 0);
    drop(other.unwrap());
}

/// Commits that an outage of the service cuts off, of a file whose closes did not wait for one, begin again:
/// by the last close, whoever closes, and by themselves after it.
#[test]
fn what_a_close_did_not_wait_for_outlives_an_outage() {
    for (readers, back_before_the_last_close) in [(0, false), (1, false), (1, true)] {
        let store = store();
        let m = Mount::new(&store);
        let mut f = File::create(m.path("log")).unwrap();
        for _ in 0..2 {
            f.write_all(b"line\n").unwrap();
            drop(f.try_clone().unwrap());
        }
        let readers: Vec<File> = (0..readers).map(|_| File::open(m.path("log")).unwrap()).collect();
        store.fail(Op::Put, Fault::Status(503, "ServerBusy"), 1_000_000);
        f.write_all(b"last\n").unwrap();
        drop(f.try_clone().unwrap());
        let before = store.counters().of(Op::Put);
        // A close that does not wait for a commit says that all is well.
        nix::unistd::close(f.into_raw_fd()).unwrap();
        eventually("a commit that fails", || store.counters().of(Op::Put) > before);
        if back_before_the_last_close {
            store.heal();
            drop(readers);
        } else {
            drop(readers);
            let before = store.counters().of(Op::Put);
            eventually("another commit", || store.counters().of(Op::Put) > before);
            assert_eq!(fs::read(m.path("log")).unwrap(), b"line\nline\nlast\n");
            store.heal();
        }
        eventually("all lines in the service", || {
            store
                .content("log")
                .is_some_and(|content| content[..] == *b"line\nline\nlast\n")
        });
        m.end().unwrap();
    }
}

/// The same of a new file that is closed empty.
#[test]
fn an_empty_new_file_outlives_an_outage() {
    let store = store();
    let m = Mount::new(&store);
    store.fail(Op::Put, Fault::Status(503, "ServerBusy"), 1_000_000);
    shell(&m, ": >f");
    eventually("commits that fail", || store.counters().of(Op::Put) > 1);
    assert_eq!(fs::read(m.path("f")).unwrap(), b"");
    store.heal();
    eventually("the empty file in the service", || store.content("f").is_some());
    m.end().unwrap();
}

/// What somebody else stored under the name meanwhile stays.
#[test]
fn what_a_close_did_not_wait_for_replaces_nothing() {
    let store = store();
    let m = Mount::new(&store);
    store.fail(Op::Put, Fault::Status(503, "ServerBusy"), 1_000_000);
    shell(&m, ": >f");
    eventually("commits that fail", || store.counters().of(Op::Put) > 1);
    store.foreign_put("f", "theirs", Metadata::new());
    store.heal();
    eventually("theirs is seen", || {
        fs::read(m.path("f")).is_ok_and(|content| content == b"theirs")
    });
    m.end().unwrap();
    assert_eq!(store.content("f").unwrap(), "theirs".as_bytes());
}

/// The end of the volume sends it, or says that it could not.
#[test]
fn what_a_close_did_not_wait_for_is_sent_by_the_unmount() {
    for works in [true, false] {
        let store = store();
        let m = Mount::new(&store);
        store.fail(Op::Put, Fault::Status(503, "ServerBusy"), 1_000_000);
        shell(&m, ": >f");
        eventually("commits that fail", || store.counters().of(Op::Put) > 0);
        if works {
            store.heal();
        }
        assert_eq!(m.end().is_ok(), works);
        assert_eq!(store.content("f").is_some(), works);
    }
}
