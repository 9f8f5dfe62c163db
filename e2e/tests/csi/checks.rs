//! What a stage finds out before a pod does: prefixes that are no folders, rights that are missing, names
//! that cannot be shown.

use super::*;

impl World {
    /// Puts a folder's marker.
    fn put_folder(&self, blob: &str) {
        let view = self.backend.container("photos").unwrap();
        let marker = Metadata::from([("hdi_isfolder".to_owned(), "true".to_owned())]);
        view.write(blob, &b""[..], &marker).unwrap();
    }

    /// Stages a volume, looks at it, and takes it away again.
    fn staged<T>(&self, volume: &Volume, look: impl FnOnce() -> T) -> T {
        self.stage(volume.stage()).unwrap();
        let seen = look();
        self.unstage(volume.unstage()).unwrap();
        seen
    }
}

fn read_only(volume: &Volume) -> NodeStageVolumeRequest {
    NodeStageVolumeRequest {
        volume_capability: capability(Mode::MultiNodeReaderOnly),
        ..volume.stage()
    }
}

#[test]
fn a_prefix_that_is_a_file_is_refused() {
    let world = World::new();
    world.put("photos", "album");
    world.put("photos", "album-2/a.jpg");
    let volume = world.volume(&[("prefix", "album")]);
    for request in [volume.stage(), read_only(&volume)] {
        refused(
            world.stage(request),
            Code::InvalidArgument,
            "PrefixNotDirectory",
            &["prefix", "album"],
        );
    }
    assert_eq!(mounts(&volume.staging), 0);
    // A folder of the same name is shown instead of the file.
    world.put("photos", "album/a.jpg");
    let bytes = world.staged(&volume, || std::fs::read(volume.staging.join("a.jpg")).unwrap());
    assert_eq!(bytes, b"hello");
    // Nor is a folder's marker a file.
    world.put_folder("empty");
    let empty = world.volume(&[("prefix", "empty")]);
    assert_eq!(
        world.staged(&empty, || std::fs::read_dir(&empty.staging).unwrap().count()),
        0
    );
}

#[test]
fn a_prefix_of_a_read_only_volume_holds_something() {
    let world = World::new();
    world.put("photos", "album/a.jpg");
    world.put_folder("empty");
    world.put_folder("slash/");
    let misspelled = world.volume(&[("prefix", "albun")]);
    let by_option = {
        let mut request = misspelled.stage();
        request.volume_capability = Some(mount_capability(&["ro"]));
        request
    };
    for request in [read_only(&misspelled), by_option] {
        refused(
            world.stage(request),
            Code::NotFound,
            "PrefixNotFound",
            &["prefix", "albun", "photos"],
        );
    }
    for prefix in ["album", "empty", "slash"] {
        let volume = world.volume(&[("prefix", prefix)]);
        world.stage(read_only(&volume)).unwrap();
        world.unstage(volume.unstage()).unwrap();
    }
    // Who may write makes it.
    let entries = world.staged(&misspelled, || {
        std::fs::read_dir(&misspelled.staging).unwrap().count()
    });
    assert_eq!(entries, 0);
}

/// A volume whose Secret holds a SAS of these rights.
fn with_rights(world: &World, rights: &str) -> Volume {
    let signer = AccountKey::new(DEV_ACCOUNT, DEV_KEY).unwrap();
    let sas = signer.container_sas("photos", &SasOptions::new(rights, Duration::from_secs(3600)));
    let mut volume = world.volume(&[]);
    volume.secrets = HashMap::from([("azurestorageaccountsastoken".into(), sas)]);
    volume
}

#[test]
fn a_volume_that_pods_write_to_needs_the_right() {
    let world = World::new();
    world.put("photos", "a.jpg");
    for rights in ["rl", "rcl"] {
        let volume = with_rights(&world, rights);
        let refusal = world.stage(volume.stage());
        refused(
            refusal,
            Code::PermissionDenied,
            "AccessDenied",
            &["photos", "write (w)", "ReadOnlyMany"],
        );
        assert_eq!(mounts(&volume.staging), 0);
        world.stage(read_only(&volume)).unwrap();
        assert_eq!(std::fs::read(volume.staging.join("a.jpg")).unwrap(), b"hello");
        let error = std::fs::write(volume.staging.join("b.jpg"), "x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        world.unstage(volume.unstage()).unwrap();
    }
    let volume = with_rights(&world, "racwdl");
    world.staged(&volume, || {
        std::fs::write(volume.staging.join("b.jpg"), "x").unwrap()
    });
    // Asking leaves nothing behind.
    let view = world.backend.container("photos").unwrap();
    let names: Vec<String> = view.blobs().unwrap().into_keys().collect();
    assert_eq!(names, ["a.jpg", "b.jpg"]);
}

#[test]
fn names_that_cannot_be_shown_are_told() {
    let world = World::new();
    for blob in ["a.jpg", "d//x", "d/y.", "e", "e/f"] {
        world.put("photos", blob);
    }
    let volume = world.volume(&[]);
    world.stage(volume.stage()).unwrap();
    world.publish(volume.publish()).unwrap();
    let condition = wait_for("the volume to be counted", PATIENCE, || {
        let condition = world.stats(&volume, &volume.target)?.volume_condition.unwrap();
        Ok((!condition.message.contains("not counted yet")).then_some(condition))
    })
    .unwrap();
    assert!(!condition.abnormal, "{condition:?}");
    for part in ["3 blobs", "not shown", "\"d//x\""] {
        assert!(
            condition.message.contains(part),
            "no {part} in {:?}",
            condition.message
        );
    }
    world.unpublish(volume.unpublish()).unwrap();
    world.unstage(volume.unstage()).unwrap();
}
