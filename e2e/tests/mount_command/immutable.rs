//! A container whose policy lets blobs be made, and neither changed nor deleted: what docs/volumes.md says of
//! it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use e2e::harness::backend::{Backend, Kind};
use e2e::harness::mount::{Mount, MountOptions};
use e2e::harness::tree;
use e2e::store::Immutability;

#[track_caller]
fn refused<T: std::fmt::Debug>(result: std::io::Result<T>) {
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EPERM));
}

#[test]
fn what_is_made_once_stays_and_the_rest_is_refused() {
    let backend = Backend::start(Kind::Embedded).unwrap();
    let view = backend.create_container("kept").unwrap();
    let store = backend.store().unwrap();
    view.write("old", &b"old"[..], &Default::default()).unwrap();
    store
        .set_immutability("kept", Some(Immutability::default()))
        .unwrap();
    let scratch = tree::scratch().unwrap();
    let at = tree::folder(scratch.path().join("mnt")).unwrap();
    let mount = Mount::start(&backend, "kept", &at, &MountOptions::default()).unwrap();
    // Made by one request, however large.
    let shell = |script: &str| {
        let output = Command::new("sh").args(["-ec", script]).current_dir(&at).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
    };
    shell(
        "echo hi >f; cp /bin/sh sh; dd if=/dev/zero of=big bs=1M count=20 status=none; mkdir d; echo 1 >d/g",
    );
    fs::create_dir(at.join("d/e")).unwrap();
    assert_eq!(view.read("f").unwrap(), b"hi\n");
    assert_eq!(view.read("sh").unwrap(), fs::read("/bin/sh").unwrap());
    assert_eq!(view.read("big").unwrap().len(), 20 << 20);
    let names = || view.blobs().unwrap().into_keys().collect::<Vec<_>>();
    let made = names();
    // Nothing of it can be changed, and each refusal leaves what was there.
    refused(OpenOptions::new().append(true).open(at.join("old")));
    refused(OpenOptions::new().write(true).truncate(true).open(at.join("f")));
    for script in ["echo 2 >>old", "echo 2 >f"] {
        let output = Command::new("sh").args(["-c", script]).current_dir(&at).output();
        assert!(!output.unwrap().status.success(), "{script}");
    }
    // One that nobody holds data of: a mode that is set beside unsaved data travels with that.
    refused(fs::set_permissions(at.join("sh"), Permissions::from_mode(0o600)));
    refused(
        File::open(at.join("sh"))
            .unwrap()
            .set_modified(std::time::UNIX_EPOCH),
    );
    refused(fs::remove_file(at.join("f")));
    refused(fs::remove_dir(at.join("d/e")));
    assert_eq!(names(), made);
    // A copy would be kept by the policy as well: there is none.
    refused(fs::rename(at.join("f"), at.join("g")));
    refused(fs::rename(at.join("d"), at.join("moved")));
    assert_eq!(names(), made);
    assert_eq!(view.read("old").unwrap(), b"old");
    assert_eq!(view.read("f").unwrap(), b"hi\n");
    mount.unmount().unwrap();
    assert_eq!(names(), made);
}
