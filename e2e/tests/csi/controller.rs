//! Volumes created and deleted: containers, directories, names, marks.

use super::*;

#[test]
fn a_container_per_volume() {
    let world = World::new();
    let volume = world.create(world.wanted("pvc-1", &[])).unwrap();
    assert!(
        volume
            .volume_id
            .starts_with("devstoreaccount1#pvc-1##delete#http://127.0.0.1:"),
        "{}",
        volume.volume_id
    );
    assert_eq!(volume.capacity_bytes, 1 << 30);
    assert!(world.exists("pvc-1"));
    let again = world.create(world.wanted("pvc-1", &[])).unwrap();
    assert_eq!(again, volume);

    // What the controller says is all the node needs.
    let mut staged = world.volume(&[]);
    staged.id.clone_from(&volume.volume_id);
    staged.context.clone_from(&volume.volume_context);
    world.stage(staged.stage()).unwrap();
    std::fs::write(staged.staging.join("x"), "x").unwrap();
    world.unstage(staged.unstage()).unwrap();

    for _ in 0..2 {
        world.delete(&volume.volume_id).unwrap();
    }
    assert!(!world.exists("pvc-1"));
}

#[test]
fn a_directory_per_volume() {
    let world = World::new();
    world.put("photos", "volumes/pvc-10/other");
    let class = [
        ("containerName", "photos"),
        ("prefix", "volumes/${pv.metadata.name}"),
    ];
    let volume = world.create(world.wanted("pvc-1", &class)).unwrap();
    assert_eq!(world.create(world.wanted("pvc-1", &class)).unwrap(), volume);
    assert_eq!(volume.volume_context["prefix"], "volumes/pvc-1");

    let mut staged = world.volume(&[]);
    staged.id.clone_from(&volume.volume_id);
    staged.context.clone_from(&volume.volume_context);
    world.stage(staged.stage()).unwrap();
    std::fs::create_dir(staged.staging.join("d")).unwrap();
    std::fs::write(staged.staging.join("d/x"), "x").unwrap();
    world.unstage(staged.unstage()).unwrap();
    assert!(world.has("photos", "volumes/pvc-1/d/x"));

    world.delete(&volume.volume_id).unwrap();
    assert!(!world.has("photos", "volumes/pvc-1/d/x") && !world.has("photos", "volumes/pvc-1"));
    assert!(
        world.has("photos", "volumes/pvc-10/other"),
        "a name that only begins alike"
    );
    world.delete(&volume.volume_id).unwrap();
}

#[test]
fn names_come_from_the_claim() {
    let world = World::new();
    let class = [
        ("containerName", "${pvc.metadata.namespace}-${pvc.metadata.name}"),
        ("csi.storage.k8s.io/pvc/name", "data"),
        ("csi.storage.k8s.io/pvc/namespace", "team"),
    ];
    world.create(world.wanted("pvc-1", &class)).unwrap();
    assert!(world.exists("team-data"));
    let without = world.wanted("pvc-2", &[("containerName", "${pvc.metadata.name}")]);
    refused(
        world.create(without),
        Code::InvalidArgument,
        "InvalidValue",
        &["containerName", "--extra-create-metadata"],
    );
}

#[test]
fn the_same_name_with_other_arguments_already_exists() {
    let world = World::new();
    world.create(world.wanted("pvc-1", &[])).unwrap();
    let mut larger = world.wanted("pvc-1", &[]);
    larger.capacity_range = Some(CapacityRange {
        required_bytes: 2 << 30,
        limit_bytes: 0,
    });
    refused(
        world.create(larger),
        Code::AlreadyExists,
        "VolumeExistsDifferently",
        &["capacity_range"],
    );
    let other = world.wanted("pvc-1", &[("transport", "https")]);
    refused(
        world.create(other),
        Code::AlreadyExists,
        "VolumeExistsDifferently",
        &["parameters"],
    );
    let mut smaller = world.wanted("pvc-1", &[]);
    smaller.capacity_range = Some(CapacityRange {
        required_bytes: 1 << 20,
        limit_bytes: 0,
    });
    assert_eq!(
        world.create(smaller).unwrap().capacity_bytes,
        1 << 30,
        "a larger one fits"
    );
}

#[test]
fn what_others_made_is_never_taken_or_deleted() {
    let world = World::new();
    world.put("photos", "album/a.jpg");
    let taken = world.wanted("pvc-1", &[("containerName", "photos")]);
    refused(
        world.create(taken),
        Code::AlreadyExists,
        "NameTaken",
        &["containerName", "\"photos\""],
    );
    let taken = world.wanted("pvc-1", &[("containerName", "photos"), ("prefix", "album")]);
    refused(
        world.create(taken),
        Code::AlreadyExists,
        "NameTaken",
        &["prefix", "\"album\""],
    );
    // A hand-written id that asks for it.
    let server = world.backend.endpoint().as_str().trim_end_matches('/').to_owned();
    let id = format!("{DEV_ACCOUNT}#photos##delete#{server}");
    refused(
        world.delete(&id),
        Code::FailedPrecondition,
        "NotCreatedHere",
        &["photos"],
    );
    assert!(world.has("photos", "album/a.jpg"));

    // With onDelete: retain an existing one may be used, and stays.
    let retain = [("containerName", "photos"), ("onDelete", "retain")];
    let volume = world.create(world.wanted("pvc-2", &retain)).unwrap();
    world.delete(&volume.volume_id).unwrap();
    assert!(world.has("photos", "album/a.jpg"));
}

#[test]
fn a_retained_volume_stays_without_credentials() {
    let world = World::new();
    let volume = world
        .create(world.wanted("pvc-1", &[("onDelete", "retain")]))
        .unwrap();
    let request = DeleteVolumeRequest {
        volume_id: volume.volume_id,
        secrets: HashMap::new(),
    };
    call(world.controller.controller.clone().delete_volume(request)).unwrap();
    assert!(world.exists("pvc-1"));
}

#[test]
fn two_volumes_cannot_share_a_directory() {
    let world = World::new();
    let class = [("containerName", "photos"), ("prefix", "fixed")];
    world.create(world.wanted("pvc-1", &class)).unwrap();
    let second = world.wanted("pvc-2", &class);
    refused(
        world.create(second),
        Code::AlreadyExists,
        "NameTaken",
        &["\"fixed\"", "\"pvc-1\""],
    );
}

#[test]
fn unsupported_requests_of_the_controller_are_named() {
    let world = World::new();
    let mut nowhere = world.wanted("pvc-1", &[("containerName", "nothere"), ("prefix", "x")]);
    refused(
        world.create(nowhere.clone()),
        Code::NotFound,
        "ContainerNotFound",
        &["containerName", "\"nothere\""],
    );
    nowhere.name.clear();
    refused(
        world.create(nowhere),
        Code::InvalidArgument,
        "MissingField",
        &["name"],
    );
    let mut clone = world.wanted("pvc-1", &[]);
    clone.volume_content_source = Some(VolumeContentSource {
        r#type: Some(volume_content_source::Type::Snapshot(
            volume_content_source::SnapshotSource {
                snapshot_id: "s".into(),
            },
        )),
    });
    refused(
        world.create(clone),
        Code::InvalidArgument,
        "SourceNotSupported",
        &["volume_content_source"],
    );
    let mut range = world.wanted("pvc-1", &[]);
    range.capacity_range = Some(CapacityRange {
        required_bytes: 2,
        limit_bytes: 1,
    });
    refused(
        world.create(range),
        Code::OutOfRange,
        "CapacityOutOfRange",
        &["capacity_range"],
    );
}

#[test]
fn capabilities_are_validated() {
    let world = World::new();
    let volume = world.create(world.wanted("pvc-1", &[])).unwrap();
    let validate = |id: &str, capabilities: Vec<VolumeCapability>| {
        let request = ValidateVolumeCapabilitiesRequest {
            volume_id: id.to_owned(),
            volume_context: volume.volume_context.clone(),
            volume_capabilities: capabilities,
            secrets: secrets(),
            ..Default::default()
        };
        call(
            world
                .controller
                .controller
                .clone()
                .validate_volume_capabilities(request),
        )
    };
    let good = validate(&volume.volume_id, vec![mount_capability(&["uid=1"])]).unwrap();
    assert_eq!(good.confirmed.unwrap().volume_capabilities.len(), 1);
    let bad = validate(&volume.volume_id, vec![mount_capability(&["nobarrier"])]).unwrap();
    assert!(
        bad.confirmed.is_none() && bad.message.contains("nobarrier"),
        "{bad:?}"
    );
    world.delete(&volume.volume_id).unwrap();
    refused(
        validate(&volume.volume_id, vec![mount_capability(&[])]),
        Code::NotFound,
        "ContainerNotFound",
        &["pvc-1"],
    );
}

/// The owner and mode of the root directory live in the same metadata as the volume's mark; neither may lose the other.
#[test]
fn changing_the_root_directory_keeps_the_volume_ours() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    for class in [&[][..], &[("containerName", "photos"), ("prefix", "v")][..]] {
        let volume = world.create(world.wanted("pvc-1", class)).unwrap();
        let mut staged = world.volume(&[]);
        staged.id.clone_from(&volume.volume_id);
        staged.context.clone_from(&volume.volume_context);
        world.stage(staged.stage()).unwrap();
        std::fs::set_permissions(&staged.staging, std::fs::Permissions::from_mode(0o700)).unwrap();
        world.unstage(staged.unstage()).unwrap();
        assert_eq!(world.create(world.wanted("pvc-1", class)).unwrap(), volume);
        world.delete(&volume.volume_id).unwrap();
    }
}

/// A log line must never hold a secret, at any level.
#[test]
fn no_secret_is_logged() {
    let world = World::new();
    let volume = world.volume(&[]);
    world.stage(volume.stage()).unwrap();
    let mut wrong = world.volume(&[("containerName", "nothere")]);
    wrong.id = "other".into();
    wrong.staging = world.path("staging-2");
    std::fs::create_dir(&wrong.staging).unwrap();
    world.stage(wrong.stage()).unwrap_err();
    world.unstage(volume.unstage()).unwrap();
    let log = wait_for("the refusal in the log", PATIENCE, || {
        let log = world.plugin.node_process().output();
        Ok(log.contains("ContainerNotFound").then_some(log))
    })
    .unwrap();
    world.create(world.wanted("pvc-1", &[])).unwrap();
    assert!(!log.contains(DEV_KEY), "the account key is in the node's log");
    let log = world.plugin.controller_process().output();
    assert!(
        !log.contains(DEV_KEY),
        "the account key is in the controller's log"
    );
}

/// Container metadata of a created volume is readable by people and by the next CreateVolume.
#[test]
fn a_created_container_says_whose_it_is() {
    let world = World::new();
    world.create(world.wanted("pvc-1", &[])).unwrap();
    let container = world.backend.container("pvc-1").unwrap();
    let (_, metadata): (_, Metadata) = runtime().block_on(container.client().properties()).unwrap();
    assert_eq!(metadata["vsccsi_capacity"], (1u64 << 30).to_string());
    assert!(metadata.contains_key("vsccsi_name") && metadata.contains_key("vsccsi_parameters"));
}
