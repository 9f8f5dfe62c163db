//! Owner and mode of the root of a whole container, with a credential for its blobs only.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::time::Duration;

use e2e::harness::backend::{Backend, Kind};
use e2e::harness::mount::{Mount, MountOptions};
use e2e::harness::tree;
use e2e::store::{AccountKey, DEV_ACCOUNT, DEV_KEY, SasOptions};

/// A SAS of the container cannot change the container's metadata: what is set lasts as long as the mount, and
/// that is told once.
#[test]
fn the_root_keeps_what_is_set_for_the_life_of_the_mount() {
    let backend = Backend::start(Kind::Embedded).unwrap();
    let view = backend.create_container("photos").unwrap();
    let scratch = tree::scratch().unwrap();
    let at = tree::folder(scratch.path().join("mnt")).unwrap();
    let signer = AccountKey::new(DEV_ACCOUNT, DEV_KEY).unwrap();
    let sas = signer.container_sas("photos", &SasOptions::new("racwdl", Duration::from_secs(3600)));
    let options = MountOptions {
        sas: Some(sas),
        ..MountOptions::default()
    };
    let shown = || {
        let meta = fs::metadata(&at).unwrap();
        (meta.mode() & 0o7777, meta.uid(), meta.gid())
    };
    let mount = Mount::start(&backend, "photos", &at, &options).unwrap();
    let before = shown();
    chown(&at, Some(12), Some(34)).unwrap();
    for mode in [0o700, 0o750] {
        fs::set_permissions(&at, Permissions::from_mode(mode)).unwrap();
    }
    assert_eq!(shown(), (0o750, 12, 34));
    // What it is to others does not hinder who owns it.
    fs::write(at.join("f"), "x").unwrap();
    // Past the time for which attributes are believed: asked for again.
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(shown(), (0o750, 12, 34));
    let output = mount.process().output();
    let told = output
        .lines()
        .filter(|line| line.contains("last as long as this mount"));
    assert_eq!(told.count(), 1, "{output}");
    mount.unmount().unwrap();
    assert_eq!(view.read("f").unwrap(), b"x");
    // With the account's key it is stored.
    let mount = Mount::start(&backend, "photos", &at, &MountOptions::default()).unwrap();
    assert_eq!(shown(), before);
    fs::set_permissions(&at, Permissions::from_mode(0o711)).unwrap();
    mount.unmount().unwrap();
    let mount = Mount::start(&backend, "photos", &at, &MountOptions::default()).unwrap();
    assert_eq!(shown().0, 0o711);
    mount.unmount().unwrap();
}
