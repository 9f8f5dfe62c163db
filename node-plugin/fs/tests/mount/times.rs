//! Times and inode numbers: what stays over a remount, and what belongs to another content.

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirEntryExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use blob_client::BlockId;
use blob_fs::Store as _;
use bytes::Bytes;

use crate::common::*;
use crate::{patient, store};

/// A day in 2024.
fn then() -> SystemTime {
    UNIX_EPOCH + Duration::new(1_704_110_400, 123_456_789)
}

fn set_modified(path: &Path, time: SystemTime) {
    let times = FileTimes::new().set_modified(time);
    OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_times(times)
        .unwrap();
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).unwrap().modified().unwrap()
}

/// Somebody writes another content and keeps the metadata, as copying tools do.
#[test]
fn a_time_does_not_outlive_its_content() {
    let store = store();
    let m = Mount::with(&store, |c| c.attr_timeout = Duration::ZERO);
    // Set after the close, and before it, as cp -p does.
    for name in ["touched", "copied", "large"] {
        let mut file = File::create(m.path(name)).unwrap();
        let content = match name {
            "large" => vec![1; 20 << 20],
            _ => b"mine".to_vec(),
        };
        file.write_all(&content).unwrap();
        if name == "copied" {
            file.set_times(FileTimes::new().set_modified(then())).unwrap();
        }
        drop(file);
        if name != "copied" {
            set_modified(&m.path(name), then());
        }
        assert_eq!(modified(&m.path(name)), then(), "{name}");
        let kept = store.properties(name).unwrap().metadata;
        // Of the same length, sent at the same moment.
        let theirs = match name {
            "large" => vec![2; 20 << 20],
            _ => b"hers".to_vec(),
        };
        let written = store.foreign_put(name, theirs, kept);
        let other = Mount::new(&store);
        for mount in [&m, &other] {
            drop(File::open(mount.path(name)).unwrap());
            assert_eq!(modified(&mount.path(name)), written.last_modified, "{name}");
        }
        // What is changed here from there on does not bring the time back.
        fs::set_permissions(other.path(name), Permissions::from_mode(0o600)).unwrap();
        drop(other);
        let again = Mount::new(&store);
        assert_eq!(modified(&again.path(name)), written.last_modified, "{name}");
    }
}

/// What a time belongs to does not hang on a digest that only the service makes.
#[test]
fn a_time_stays_where_the_service_makes_no_digests() {
    let store = store();
    store.make_no_digests();
    let sizes = [0, 1, 300 << 10, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 20 << 20];
    let m = Mount::new(&store);
    for size in sizes {
        // As tar -x and cp -p do.
        let mut file = File::create(m.path(&size.to_string())).unwrap();
        file.write_all(&vec![1; size]).unwrap();
        file.set_times(FileTimes::new().set_modified(then())).unwrap();
    }
    symlink("1", m.path("link")).unwrap();
    let linked = fs::symlink_metadata(m.path("link")).unwrap().modified().unwrap();
    drop(m);
    let m = Mount::new(&store);
    for size in sizes {
        assert_eq!(modified(&m.path(&size.to_string())), then(), "{size}");
    }
    let link = fs::symlink_metadata(m.path("link")).unwrap();
    assert_eq!(link.modified().unwrap(), linked);
}

/// Where nothing but the service's clock tells one content from another, it does once it is far enough ahead.
#[test]
fn a_time_does_not_outlive_a_content_of_blocks() {
    let store = store();
    let m = Mount::new(&store);
    fs::write(m.path("f"), vec![1; 20 << 20]).unwrap();
    set_modified(&m.path("f"), then());
    drop(m);
    let kept = store.properties("f").unwrap().metadata;
    // The store's clock begins in 2023.
    store.pass(Duration::from_secs(10 * 365 * 86_400));
    let block = |n: u8| (BlockId(vec![n]), Bytes::from(vec![n; 10 << 20]));
    store.foreign_blocks("f", vec![block(1), block(2)]);
    let written = store.foreign_metadata("f", &kept).unwrap();
    let m = Mount::new(&store);
    assert_eq!(modified(&m.path("f")), written.last_modified);
}

#[test]
fn a_change_of_attributes_or_of_the_name_keeps_the_time() {
    let store = store();
    for (name, len) in [("small", 10), ("large", 20 << 20)] {
        let a = Mount::new(&store);
        fs::create_dir(a.path(&format!("{name}-d"))).unwrap();
        let path = a.path(&format!("{name}-d/f"));
        fs::write(&path, vec![1; len]).unwrap();
        set_modified(&path, then());
        let b = Mount::new(&store);
        fs::set_permissions(b.path(&format!("{name}-d/f")), Permissions::from_mode(0o600)).unwrap();
        // A tool that adds metadata of its own.
        let blob = format!("{name}-d/f");
        let mut more = store.properties(&blob).unwrap().metadata;
        more.insert("owner".into(), "alice".into());
        store.foreign_metadata(&blob, &more).unwrap();
        fs::rename(b.path(&blob), b.path(&format!("{name}-d/g"))).unwrap();
        fs::rename(b.path(&format!("{name}-d")), b.path(&format!("{name}-e"))).unwrap();
        drop((a, b));
        let c = Mount::new(&store);
        assert_eq!(modified(&c.path(&format!("{name}-e/g"))), then(), "{name}");
    }
}

type Seen = (u64, (i64, i64), (i64, i64), (i64, i64), u64);

/// What git and backups tell a file by.
fn seen(root: &Path, names: &[&str]) -> BTreeMap<String, Seen> {
    names
        .iter()
        .map(|name| {
            let m = fs::symlink_metadata(root.join(name)).unwrap();
            let seen = (
                m.ino(),
                (m.mtime(), m.mtime_nsec()),
                (m.ctime(), m.ctime_nsec()),
                (m.atime(), m.atime_nsec()),
                m.len(),
            );
            ((*name).to_owned(), seen)
        })
        .collect()
}

#[test]
fn numbers_and_times_are_the_same_after_a_remount() {
    let store = store();
    store.foreign_put("theirs", "x", meta(&[("owner", "alice")]));
    let m = Mount::with(&store, patient);
    fs::create_dir(m.path("d")).unwrap();
    fs::create_dir(m.path("e")).unwrap();
    fs::write(m.path("d/written"), "x").unwrap();
    fs::write(m.path("d/large"), vec![1; 20 << 20]).unwrap();
    fs::write(m.path("d/appended"), "x").unwrap();
    let mut appended = OpenOptions::new()
        .append(true)
        .open(m.path("d/appended"))
        .unwrap();
    appended.write_all(b"y").unwrap();
    appended.sync_all().unwrap();
    appended.write_all(b"z").unwrap();
    drop(appended);
    for name in ["d/touched", "d/moded", "d/read"] {
        fs::write(m.path(name), "x").unwrap();
    }
    set_modified(&m.path("d/touched"), then());
    fs::set_permissions(m.path("d/moded"), Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(m.path("theirs"), Permissions::from_mode(0o600)).unwrap();
    let read = File::open(m.path("d/read")).unwrap();
    read.set_times(FileTimes::new().set_accessed(then())).unwrap();
    drop(read);
    for (name, len) in [("d/cut", 10), ("d/large-cut", 20 << 20)] {
        fs::write(m.path(name), vec![1; len]).unwrap();
        set_modified(&m.path(name), then());
        nix::unistd::truncate(&m.path(name), 5).unwrap();
        assert!(modified(&m.path(name)) > then(), "{name}");
        assert!(
            store
                .properties(name)
                .unwrap()
                .metadata
                .contains_key("vsc_times_of")
        );
    }
    symlink("written", m.path("d/link")).unwrap();
    File::create(m.path("d/empty")).unwrap();
    let names = [
        "theirs",
        "e",
        "d/written",
        "d/large",
        "d/appended",
        "d/touched",
        "d/moded",
        "d/read",
        "d/cut",
        "d/large-cut",
        "d/link",
        "d/empty",
    ];
    eventually("the empty file", || store.properties("d/empty").is_some());
    let before = seen(m.root(), &names);
    m.end().unwrap();
    let m = Mount::new(&store);
    // Listed, or asked for one by one.
    for entry in fs::read_dir(m.path("d")).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.ino(), fs::symlink_metadata(entry.path()).unwrap().ino());
    }
    assert_eq!(seen(m.root(), &names), before);
    m.end().unwrap();
    let m = Mount::new(&store);
    assert_eq!(seen(m.root(), &names), before);
    m.end().unwrap();
}

/// A rename is one more change of the file, and the same file after it.
#[test]
fn a_renamed_file_keeps_its_number_and_its_times_stay() {
    let store = store();
    let m = Mount::with(&store, patient);
    for (name, len) in [("small", 1), ("large", 20 << 20)] {
        fs::write(m.path(name), vec![1; len]).unwrap();
        set_modified(&m.path(name), then());
        let before = fs::metadata(m.path(name)).unwrap();
        let to = format!("{name}-2");
        fs::rename(m.path(name), m.path(&to)).unwrap();
        let after = fs::metadata(m.path(&to)).unwrap();
        assert_eq!((after.ino(), after.modified().unwrap()), (before.ino(), then()));
        // Its old name is somebody else's.
        fs::write(m.path(name), "other").unwrap();
        assert_ne!(fs::metadata(m.path(name)).unwrap().ino(), after.ino());
    }
    let names = ["small-2", "large-2"];
    let before = seen(m.root(), &names);
    m.end().unwrap();
    let m = Mount::new(&store);
    let now = seen(m.root(), &names);
    for name in names {
        let (before, now) = (before[name], now[name]);
        assert_eq!((before.1, before.2, before.3), (now.1, now.2, now.3), "{name}");
        // Numbers go by names: from the next mount on it is that of the new one.
        assert_ne!(before.0, now.0, "{name}");
    }
}

#[test]
fn a_name_that_is_made_again_is_another_file_while_the_old_one_is_open() {
    let store = store();
    let m = Mount::new(&store);
    fs::write(m.path("f"), "old").unwrap();
    let mut open = vec![File::open(m.path("f")).unwrap()];
    for _ in 0..3 {
        fs::remove_file(m.path("f")).unwrap();
        fs::write(m.path("f"), "new").unwrap();
        open.push(File::open(m.path("f")).unwrap());
    }
    let mut numbers: Vec<_> = open.iter().map(|f| f.metadata().unwrap().ino()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), open.len());
    // Replaced elsewhere while it is open here.
    store.foreign_put("f", "theirs", meta(&[]));
    let newer = File::open(m.path("f")).unwrap();
    assert!(!numbers.contains(&newer.metadata().unwrap().ino()));
}

/// The moment that a time is stored at is by the service's clock: this node's is an hour behind.
#[test]
fn a_time_outlives_a_clock_that_is_slow() {
    let store = store();
    let ahead = SystemTime::now() + Duration::from_secs(3600);
    store.pass(ahead.duration_since(store.now()).unwrap());
    let m = Mount::new(&store);
    for (name, size) in [("small", 10), ("large", 20 << 20)] {
        let mut file = File::create(m.path(name)).unwrap();
        file.write_all(&vec![1; size]).unwrap();
        file.set_times(FileTimes::new().set_modified(then())).unwrap();
    }
    drop(m);
    let m = Mount::new(&store);
    for name in ["small", "large"] {
        assert_eq!(modified(&m.path(name)), then(), "{name}");
    }
    // Nor does a chmod, or another name, lose it.
    fs::set_permissions(m.path("large"), Permissions::from_mode(0o600)).unwrap();
    fs::rename(m.path("large"), m.path("moved")).unwrap();
    drop(m);
    let m = Mount::new(&store);
    assert_eq!(modified(&m.path("moved")), then());
}
