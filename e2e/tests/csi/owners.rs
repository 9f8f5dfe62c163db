//! Whose files are that pods make: fsGroup, and the mount options uid, gid, umask and modes.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use super::*;

/// Runs a shell script as a user of a pod: uid, gid and supplementary group, umask of the shell.
#[track_caller]
fn as_user(uid: u32, group: u32, script: &str) {
    let output = Command::new("setpriv")
        .args([
            format!("--reuid={uid}"),
            format!("--regid={uid}"),
            format!("--groups={group}"),
        ])
        .args(["sh", "-ec", script])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// uid, gid and mode.
fn owner(path: &Path) -> (u32, u32, u32) {
    let found = std::fs::symlink_metadata(path).unwrap();
    (found.uid(), found.gid(), found.mode() & 0o7777)
}

/// A volume staged and published with these mount options and this fsGroup.
fn published(world: &World, flags: &[&str], group: &str) -> Volume {
    // Other users have to reach it.
    let reach = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(world.plugin.folder(), reach).unwrap();
    let volume = world.volume(&[]);
    let mut capability = mount_capability(flags);
    if let Some(AccessType::Mount(mount)) = &mut capability.access_type {
        mount.volume_mount_group = group.to_owned();
    }
    let (mut stage, mut publish) = (volume.stage(), volume.publish());
    stage.volume_capability = Some(capability.clone());
    publish.volume_capability = Some(capability);
    world.stage(stage).unwrap();
    world.publish(publish).unwrap();
    volume
}

#[test]
fn what_pods_make_belongs_to_their_fs_group() {
    let world = World::new();
    world.put("photos", "there/already");
    let volume = published(&world, &[], "2000");
    let at = |name: &str| volume.target.join(name);
    let target = volume.target.display();
    as_user(
        1000,
        2000,
        &format!("cd {target}; umask 022; mkdir d; echo 1 >f; echo 1 >d/f; (umask 077; echo 1 >own)"),
    );
    assert_eq!(owner(&at("f")), (1000, 2000, 0o664));
    assert_eq!(owner(&at("d")), (1000, 2000, 0o2775));
    assert_eq!(
        owner(&at("own")),
        (1000, 2000, 0o600),
        "what is kept from the group stays so"
    );
    as_user(
        1001,
        2000,
        &format!("cd {target}; echo 2 >>f; echo 2 >>d/f; mkdir d/e; echo 2 >d/e/g; echo 2 >there/h"),
    );
    assert_eq!(std::fs::read(at("f")).unwrap(), b"1\n2\n");
    assert_eq!(owner(&at("d/e")), (1001, 2000, 0o2775));
    assert_eq!(owner(&at("d/e/g")), (1001, 2000, 0o664));
    assert_eq!(owner(&at("there/h")), (1001, 2000, 0o664));
    world.unpublish(volume.unpublish()).unwrap();
    world.unstage(volume.unstage()).unwrap();
}

#[test]
fn what_pods_make_is_as_the_mount_options_say() {
    let world = World::new();
    let volume = published(&world, &["uid=1000", "gid=1000", "umask=007"], "");
    let at = |name: &str| volume.target.join(name);
    std::fs::write(at("f"), "1").unwrap();
    std::fs::create_dir(at("d")).unwrap();
    assert_eq!(owner(&at("f")), (1000, 1000, 0o660));
    assert_eq!(owner(&at("d")), (1000, 1000, 0o770));
    let target = volume.target.display();
    as_user(
        1000,
        1000,
        &format!("cd {target}; echo 2 >>f; echo 2 >d/g; chmod 600 f; mv f d/"),
    );
    as_user(1001, 1000, &format!("cd {target}; echo 3 >>d/g"));
    assert_eq!(
        owner(&at("d/f")),
        (1000, 1000, 0o600),
        "a mode that is set is what there is"
    );
    world.unpublish(volume.unpublish()).unwrap();
    world.unstage(volume.unstage()).unwrap();
}

/// A shell function: the command must fail.
const REFUSED: &str = "refused() { if \"$@\" 2>/dev/null; then echo \"$*\" >&2; exit 1; fi; }";

/// As docs/volumes.md says: who owns a file sets its times and mode; who may write to it sets its times to
/// now.
#[test]
fn a_pod_that_is_not_root_sets_times_and_modes_as_on_any_file_system() {
    let world = World::new();
    world.put("photos", "shared");
    let volume = published(&world, &[], "2000");
    let target = volume.target.display();
    let modified = |name: &str| std::fs::metadata(volume.target.join(name)).unwrap().mtime();
    as_user(
        1000,
        2000,
        &format!(
            "cd {target}; mkdir d; echo 1 >own; touch own; touch -d @1000000000 own d; chmod 640 own; \
             chmod 2770 d; touch new; touch -a own; touch -m own; touch -d @1000000000 own"
        ),
    );
    assert_eq!((modified("own"), modified("d")), (1_000_000_000, 1_000_000_000));
    assert_eq!(owner(&volume.target.join("own")), (1000, 2000, 0o640));
    // Of the group, which may write to what its others made.
    as_user(1000, 2000, &format!("cd {target}; chmod 664 own; chmod 2775 d"));
    as_user(
        1001,
        2000,
        &format!(
            "cd {target}; {REFUSED}; touch own d shared; refused touch -d @5 own; refused chmod 600 own; \
             refused chmod 700 d; refused chown 1001 own; echo 2 >>own"
        ),
    );
    assert!(modified("own") > 1_000_000_000 && modified("d") > 1_000_000_000);
    assert_eq!(owner(&volume.target.join("own")), (1000, 2000, 0o664));
    // Of neither.
    as_user(
        1002,
        3000,
        &format!("cd {target}; {REFUSED}; refused touch own; refused touch d; cat own >/dev/null"),
    );
    world.unpublish(volume.unpublish()).unwrap();
    world.unstage(volume.unstage()).unwrap();
}
