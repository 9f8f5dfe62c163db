//! What a lease, a policy, a hold or the archive forbids is refused when a file is opened.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::time::{Duration, SystemTime};

use blob_client::{Availability, Metadata, Protection};
use blob_fs::store::fake::Op;

use crate::common::*;
use crate::{patient, store};

fn protections() -> [(&'static str, Protection, i32, Option<i32>); 5] {
    let none = Protection::default();
    let hour = Duration::from_secs(3600);
    [
        ("leased", Protection { leased: true, ..none }, libc::EBUSY, None),
        (
            "held",
            Protection {
                legal_hold: true,
                ..none
            },
            libc::EPERM,
            None,
        ),
        (
            "kept",
            Protection {
                immutable_until: Some(SystemTime::now() + hour),
                ..none
            },
            libc::EPERM,
            None,
        ),
        (
            "archived",
            Protection {
                availability: Availability::Archived,
                ..none
            },
            libc::EPERM,
            Some(libc::EPERM),
        ),
        (
            "rehydrating",
            Protection {
                availability: Availability::Rehydrating,
                ..none
            },
            libc::EBUSY,
            Some(libc::EBUSY),
        ),
    ]
}

#[test]
fn what_protects_a_blob_is_told_by_open() {
    let store = store();
    for (name, protection, ..) in protections() {
        store.foreign_put(name, "as it was", Metadata::new());
        store.foreign_protection(name, protection);
    }
    let m = Mount::new(&store);
    for (name, _, writing, reading) in protections() {
        let etag = store.properties(name).unwrap().etag;
        let path = m.path(name);
        let ways: [fn(&mut OpenOptions) -> &mut OpenOptions; 4] = [
            |how| how.write(true),
            |how| how.append(true),
            |how| how.write(true).truncate(true),
            |how| how.read(true).write(true),
        ];
        for way in ways {
            assert_eq!(errno(way(&mut OpenOptions::new()).open(&path)), writing, "{name}");
        }
        let cut = nix::unistd::truncate(&path, 1).map_err(std::io::Error::from);
        assert_eq!(errno(cut), writing, "{name}");
        let read = File::open(&path).and_then(|_| fs::read(&path));
        match reading {
            Some(reading) => assert_eq!(errno(read), reading, "{name}"),
            None => assert_eq!(read.unwrap(), b"as it was", "{name}"),
        }
        assert_eq!(fs::metadata(&path).unwrap().len(), 9, "{name}");
        assert_eq!(store.properties(name).unwrap().etag, etag, "{name}");
    }
}

#[test]
fn what_is_no_longer_protected_is_opened_at_once_and_for_one_head() {
    let store = store();
    store.foreign_put("f", "1", Metadata::new());
    store.foreign_protection(
        "f",
        Protection {
            leased: true,
            ..Protection::default()
        },
    );
    let m = Mount::with(&store, patient);
    fs::metadata(m.path("f")).unwrap();
    store.reset_counters();
    let append = || OpenOptions::new().append(true).open(m.path("f"));
    assert_eq!(errno(append()), libc::EBUSY);
    assert_eq!((store.counters().of(Op::Head), store.counters().total()), (1, 1));
    store.foreign_protection("f", Protection::default());
    let mut f = append().unwrap();
    f.write_all(b"2").unwrap();
    drop(f);
    assert_eq!(store.content("f").unwrap(), &b"12"[..]);
}

#[test]
fn what_a_container_keeps_is_told_by_open() {
    for prefix in ["", "v"] {
        let store = store();
        let blob = if prefix.is_empty() { "f" } else { "v/f" };
        store.foreign_put(blob, "1", Metadata::new());
        let m = Mount::with(&store, |config| prefix.clone_into(&mut config.prefix));
        let append = || OpenOptions::new().append(true).open(m.path("f"));
        append().unwrap().write_all(b"2").unwrap();
        assert_eq!(store.content(blob).unwrap(), &b"12"[..]);
        // Of a policy that is younger than the mount the first request tells that is refused.
        store.keep_blobs(true);
        let mut f = append().unwrap();
        f.write_all(b"3").unwrap();
        assert_eq!(errno(f.sync_all()), libc::EPERM);
        drop(f);
        eventually("the policy to be known", || append().is_err());
        let etag = store.properties(blob).unwrap().etag;
        assert_eq!(errno(append()), libc::EPERM);
        let path = m.path("f");
        let empty = OpenOptions::new().write(true).truncate(true).open(&path);
        assert_eq!(errno(empty), libc::EPERM);
        let cut = nix::unistd::truncate(&path, 1).map_err(std::io::Error::from);
        assert_eq!(errno(cut), libc::EPERM);
        assert_eq!(fs::read(&path).unwrap(), b"12");
        assert_eq!(store.properties(blob).unwrap().etag, etag);
        // What is new is made once, and can be written to until it is.
        let mut new = File::create(m.path("new")).unwrap();
        new.write_all(b"new").unwrap();
        OpenOptions::new().append(true).open(m.path("new")).unwrap();
        drop(new);
        // Another mount asks first.
        let other = Mount::with(&store, |config| prefix.clone_into(&mut config.prefix));
        let opened = OpenOptions::new().append(true).open(other.path("f"));
        assert_eq!(errno(opened), libc::EPERM);
        other.end().unwrap();
        store.keep_blobs(false);
        append().unwrap().write_all(b"4").unwrap();
        assert_eq!(store.content(blob).unwrap(), &b"124"[..]);
    }
}
