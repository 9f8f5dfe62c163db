//! Folders: their times, their owner and group.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::time::Duration;

use crate::common::*;
use crate::store;
use blob_client::Metadata;
use blob_fs::store::fake::{Fault, Op};

fn folder() -> Metadata {
    meta(&[("hdi_isfolder", "true")])
}

/// A folder's times move when entries come or go elsewhere, too, and never for a time that somebody has given
/// it.
#[test]
fn a_folder_changes_with_its_entries() {
    let store = store();
    let m = Mount::new(&store);
    fs::create_dir(m.path("d")).unwrap();
    store.foreign_put("implicit/a", "x", Metadata::new());
    let times = |name: &str| {
        let meta = fs::metadata(m.path(name)).unwrap();
        (meta.modified().unwrap(), (meta.ctime(), meta.ctime_nsec()))
    };
    for name in ["d", "implicit"] {
        assert!(names(&m.path(name)).len() < 2);
        let old = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        if name == "d" {
            File::open(m.path(name)).unwrap().set_modified(old).unwrap();
            names(&m.path(name));
            outlive_timeouts();
            assert_eq!(times(name).0, old, "what was there is no reason");
        }
        let before = times(name);
        // The service's clock is the newest of all.
        store.pass(Duration::from_secs(1_000_000_000));
        store.foreign_put(&format!("{name}/new"), "x", Metadata::new());
        outlive_timeouts();
        names(&m.path(name));
        outlive_timeouts();
        let after = times(name);
        assert!(
            after.0 > before.0 && after.1 > before.1,
            "{name}: {before:?} {after:?}"
        );
        // A new time of the folder itself.
        if name == "d" {
            File::open(m.path(name)).unwrap().set_modified(old).unwrap();
            names(&m.path(name));
            outlive_timeouts();
            assert_eq!(times(name).0, old);
        }
    }
}

/// Likewise when somebody else removes one.
#[test]
fn a_folder_changes_when_an_entry_is_removed_elsewhere() {
    let store = store();
    store.foreign_put("d", "", folder());
    for name in ["d/a", "d/b"] {
        store.foreign_put(name, "x", Metadata::new());
    }
    let m = Mount::new(&store);
    assert_eq!(names(&m.path("d")), ["a", "b"]);
    let before = fs::metadata(m.path("d")).unwrap().modified().unwrap();
    assert!(store.foreign_delete("d/a"));
    outlive_timeouts();
    assert_eq!(names(&m.path("d")), ["b"]);
    outlive_timeouts();
    assert!(fs::metadata(m.path("d")).unwrap().modified().unwrap() > before);
}

/// What its entries did to a folder's times is kept nowhere: a new mount shows them as soon as the folder is
/// listed, and never before its newest entry.
#[test]
fn a_folder_is_as_new_as_its_entries_after_a_remount() {
    let store = store();
    let m = Mount::new(&store);
    fs::create_dir(m.path("d")).unwrap();
    fs::create_dir(m.path("d/e")).unwrap();
    // The service's clock is the newest of all.
    store.pass(Duration::from_secs(1_000_000_000));
    fs::write(m.path("d/f"), "x").unwrap();
    fs::write(m.path("d/e/f"), "x").unwrap();
    m.end().unwrap();
    let m = Mount::new(&store);
    for name in ["d", "d/e"] {
        assert!(names(&m.path(name)).contains(&"f".to_owned()));
        let newest = store.properties(&format!("{name}/f")).unwrap().created.unwrap();
        eventually("the time of the newest entry", || {
            let now = fs::metadata(m.path(name)).unwrap();
            now.modified().unwrap() >= newest && now.ctime() >= now.mtime()
        });
    }
}

/// With a SAS of a container the blobs can be changed, the container's metadata not.
#[test]
fn the_root_has_an_owner_without_rights_to_the_container() {
    for read in [false, true] {
        let store = store();
        let m = Mount::new(&store);
        let refused = Fault::Status(403, "AuthorizationPermissionMismatch");
        if !read {
            store.fail(Op::ContainerMetadata, refused, u64::MAX);
        }
        store.fail(Op::SetContainerMetadata, refused, u64::MAX);
        lchown(m.root(), Some(12), Some(34)).unwrap();
        fs::set_permissions(m.root(), Permissions::from_mode(0o750)).unwrap();
        for _ in 0..2 {
            let meta = fs::metadata(m.root()).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o750, 12, 34));
            outlive_timeouts();
        }
        store.heal();
    }
}

/// A volume of a group (fsGroup): what its members make is the group's, folders hand it on.
#[test]
fn the_group_of_the_volume_is_handed_on() {
    let store = store();
    let m = Mount::with(&store, |config| {
        (config.gid, config.dir_mode, config.file_mode) = (2000, 0o2775, 0o664);
    });
    fs::create_dir(m.path("d")).unwrap();
    fs::create_dir(m.path("d/sub")).unwrap();
    fs::write(m.path("d/f"), "x").unwrap();
    store.foreign_put("theirs/f", "x", Metadata::new());
    for name in ["d", "d/sub", "d/f", "theirs", "theirs/f"] {
        let meta = fs::metadata(m.path(name)).unwrap();
        assert_eq!(meta.gid(), 2000, "{name}");
        assert_eq!(meta.mode() & 0o2000 != 0, meta.is_dir(), "{name}");
    }
}
