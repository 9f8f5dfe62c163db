//! Bad input: each line gets the specification's code and a message that names the field and the fix.

use super::*;

#[test]
fn an_unknown_attribute_key_is_named_with_the_nearest() {
    let world = World::new();
    let volume = world.volume(&[("contanerName", "photos")]);
    let names = ["\"contanerName\"", "\"containerName\"", "volumeAttributes"];
    refused(
        world.stage(volume.stage()),
        Code::InvalidArgument,
        "UnknownKey",
        &names,
    );
    let create = world.wanted("pvc-1", &[("contanerName", "photos")]);
    refused(
        world.create(create),
        Code::InvalidArgument,
        "UnknownKey",
        &["StorageClass parameters"],
    );
}

#[test]
fn a_missing_container_is_not_found() {
    let world = World::new();
    let volume = world.volume(&[("containerName", "nothere")]);
    refused(
        world.stage(volume.stage()),
        Code::NotFound,
        "ContainerNotFound",
        &["containerName", "\"nothere\""],
    );
    assert_eq!(mounts(&volume.staging), 0);
    let mut unnamed = world.volume(&[]);
    unnamed.context.remove("containerName");
    refused(
        world.stage(unnamed.stage()),
        Code::InvalidArgument,
        "MissingField",
        &["containerName"],
    );
}

#[test]
fn a_wrong_key_is_unauthenticated() {
    let world = World::new();
    let mut volume = world.volume(&[]);
    volume
        .secrets
        .insert("azurestorageaccountkey".into(), "d3Jvbmc=".into());
    refused(
        world.stage(volume.stage()),
        Code::Unauthenticated,
        "AuthenticationFailed",
        &["azurestorageaccountkey", "photos"],
    );
    volume.secrets.clear();
    refused(
        world.stage(volume.stage()),
        Code::InvalidArgument,
        "MissingCredentials",
        &["azurestorageaccountkey"],
    );
}

#[test]
fn an_expired_sas_is_unauthenticated() {
    let world = World::new();
    let signer = AccountKey::new(DEV_ACCOUNT, DEV_KEY).unwrap();
    let mut options = SasOptions::new("racwdl", Duration::from_secs(0));
    options.expires = std::time::SystemTime::now() - Duration::from_secs(3600);
    let mut volume = world.volume(&[]);
    let sas = signer.container_sas("photos", &options);
    volume.secrets = HashMap::from([("azurestorageaccountsastoken".into(), sas.clone())]);
    let result = world.stage(volume.stage());
    if let Err(status) = &result {
        assert!(!status.message().contains(&sas), "the SAS is in the message");
    }
    refused(
        result,
        Code::Unauthenticated,
        "AuthenticationFailed",
        &["azurestorageaccountsastoken", "expired"],
    );
}

#[test]
fn a_sas_without_the_right_is_denied() {
    let world = World::new();
    let signer = AccountKey::new(DEV_ACCOUNT, DEV_KEY).unwrap();
    let mut volume = world.volume(&[]);
    let sas = signer.container_sas("photos", &SasOptions::new("r", Duration::from_secs(3600)));
    volume.secrets = HashMap::from([("azurestorageaccountsastoken".into(), sas)]);
    refused(
        world.stage(volume.stage()),
        Code::PermissionDenied,
        "AccessDenied",
        &["list"],
    );
}

/// "Secure transfer required": the account is told by its name, and so is the way to reach it.
#[test]
fn an_account_that_wants_https_says_so() {
    let world = World::new();
    let store = world.backend.store().unwrap();
    store.configure(|account| account.https_only = true);
    let volume = world.volume(&[]);
    let names = ["server", "https://", "Secure transfer required"];
    let staged = world.stage(volume.stage());
    refused(staged, Code::InvalidArgument, "InvalidValue", &names);
    assert_eq!(mounts(&volume.staging), 0);
    let created = world.create(world.wanted("pvc-1", &[]));
    refused(created, Code::InvalidArgument, "InvalidValue", &names);
}

#[test]
fn an_unreachable_endpoint_is_unavailable() {
    let world = World::new();
    // A port that nobody listens at, and that is taken, so that no other test gets it.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let server = format!("http://{}/{DEV_ACCOUNT}", socket.local_addr().unwrap());
    let volume = world.volume(&[("server", &server)]);
    refused(
        world.stage(volume.stage()),
        Code::Unavailable,
        "EndpointUnreachable",
        &["server", &server],
    );
}

#[test]
fn a_target_path_that_is_a_file_is_refused_and_stays() {
    let world = World::new();
    let volume = world.volume(&[]);
    world.stage(volume.stage()).unwrap();
    std::fs::create_dir_all(volume.target.parent().unwrap()).unwrap();
    std::fs::write(&volume.target, "precious").unwrap();
    refused(
        world.publish(volume.publish()),
        Code::InvalidArgument,
        "TargetNotDirectory",
        &["target_path"],
    );
    refused(
        world.unpublish(volume.unpublish()),
        Code::InvalidArgument,
        "TargetNotDirectory",
        &["target_path"],
    );
    assert_eq!(std::fs::read(&volume.target).unwrap(), b"precious");
    world.unstage(volume.unstage()).unwrap();
}

#[test]
fn a_second_stage_with_other_arguments_already_exists() {
    let world = World::new();
    let volume = world.volume(&[]);
    world.stage(volume.stage()).unwrap();
    let code = Code::AlreadyExists;
    let mut other = volume.stage();
    other.volume_capability = capability(Mode::SingleNodeWriter);
    refused(world.stage(other), code, "StagedDifferently", &["access_mode"]);
    let mut other = volume.stage();
    other.volume_capability = Some(mount_capability(&["ro"]));
    refused(world.stage(other), code, "StagedDifferently", &["mount_flags"]);
    let mut other = volume.stage();
    other.volume_context.insert("prefix".into(), "album".into());
    refused(world.stage(other), code, "StagedDifferently", &["prefix"]);
    let mut other = volume.stage();
    other.volume_id = "another".into();
    refused(
        world.stage(other),
        code,
        "StagedDifferently",
        &["volume_id", "static-photos"],
    );
    // The first is as it was.
    world.stage(volume.stage()).unwrap();
    world.unstage(volume.unstage()).unwrap();
}

#[test]
fn a_publish_in_another_way_than_the_stage_names_what_differs() {
    let world = World::new();
    let volume = world.volume(&[]);
    world.stage(volume.stage()).unwrap();
    let mut of_a_group = mount_capability(&[]);
    if let Some(AccessType::Mount(mount)) = &mut of_a_group.access_type {
        mount.volume_mount_group = "3000".into();
    }
    for (capability, field) in [
        (capability(Mode::SingleNodeWriter), "access_mode"),
        (Some(mount_capability(&["uid=1000"])), "mount_flags"),
        (Some(of_a_group), "volume_mount_group"),
    ] {
        let mut publish = volume.publish();
        publish.volume_capability = capability;
        refused(
            world.publish(publish),
            Code::FailedPrecondition,
            "StagedForOthers",
            &[field, "fsGroup", "mountOptions"],
        );
        assert_eq!(mounts(&volume.target), 0);
    }
    let mut publish = volume.publish();
    publish.volume_context.insert("prefix".into(), "album".into());
    refused(
        world.publish(publish),
        Code::AlreadyExists,
        "StagedDifferently",
        &["prefix"],
    );
    world.unstage(volume.unstage()).unwrap();
}

#[test]
fn a_second_publish_with_other_arguments_already_exists() {
    let world = World::new();
    let volume = world.volume(&[]);
    world.stage(volume.stage()).unwrap();
    world.publish(volume.publish()).unwrap();
    let mut other = volume.publish();
    other.readonly = true;
    refused(
        world.publish(other),
        Code::AlreadyExists,
        "PublishedDifferently",
        &["readonly"],
    );
    let still = world.unstage(volume.unstage());
    refused(
        still,
        Code::FailedPrecondition,
        "TargetInUse",
        &["still published", "pods/1/mount"],
    );
    world.unpublish(volume.unpublish()).unwrap();
    world.unstage(volume.unstage()).unwrap();
}

#[test]
fn block_access_is_refused_everywhere() {
    let world = World::new();
    let block = VolumeCapability {
        access_mode: Some(AccessMode {
            mode: Mode::SingleNodeWriter.into(),
        }),
        access_type: Some(AccessType::Block(BlockVolume {})),
    };
    let volume = world.volume(&[]);
    let (mut stage, mut publish) = (volume.stage(), volume.publish());
    stage.volume_capability = Some(block.clone());
    publish.volume_capability = Some(block.clone());
    let names = ["volume_capability", "volumeMode: Filesystem"];
    refused(
        world.stage(stage),
        Code::FailedPrecondition,
        "CapabilityExceeded",
        &names,
    );
    refused(
        world.publish(publish),
        Code::FailedPrecondition,
        "CapabilityExceeded",
        &names,
    );
    let mut create = world.wanted("pvc-1", &[]);
    create.volume_capabilities = vec![block];
    refused(
        world.create(create),
        Code::InvalidArgument,
        "BlockNotSupported",
        &names,
    );
}

#[test]
fn a_missing_staging_path_is_a_failed_precondition() {
    let world = World::new();
    let volume = world.volume(&[]);
    let mut nowhere = volume.stage();
    nowhere.staging_target_path = world.path("nowhere").display().to_string();
    refused(
        world.stage(nowhere),
        Code::FailedPrecondition,
        "StagingPathMissing",
        &["staging_target_path"],
    );
    let mut link = volume.stage();
    link.staging_target_path = world.path("link").display().to_string();
    std::os::unix::fs::symlink(&volume.staging, &link.staging_target_path).unwrap();
    refused(
        world.stage(link),
        Code::FailedPrecondition,
        "StagingPathMissing",
        &["staging_target_path", "link"],
    );
    assert_eq!(mounts(&volume.staging), 0);
    let mut unset = volume.publish();
    unset.staging_target_path.clear();
    refused(
        world.publish(unset),
        Code::FailedPrecondition,
        "StagingPathMissing",
        &["staging_target_path"],
    );
    let unstaged = world.publish(volume.publish());
    refused(
        unstaged,
        Code::FailedPrecondition,
        "NotStaged",
        &["staging_target_path", "static-photos"],
    );
    assert!(
        !volume.target.exists(),
        "no directory of the node for a pod to write to"
    );
}

#[test]
fn required_fields_and_absolute_paths_are_demanded() {
    let world = World::new();
    let volume = world.volume(&[]);
    let mut request = volume.stage();
    request.volume_id.clear();
    refused(
        world.stage(request),
        Code::InvalidArgument,
        "MissingField",
        &["volume_id"],
    );
    let mut request = volume.stage();
    request.staging_target_path = "relative/path".into();
    refused(
        world.stage(request),
        Code::InvalidArgument,
        "InvalidValue",
        &["staging_target_path", "absolute"],
    );
    let mut request = volume.stage();
    request.volume_capability = Some(VolumeCapability {
        access_mode: None,
        access_type: Some(AccessType::Mount(MountVolume::default())),
    });
    refused(
        world.stage(request),
        Code::InvalidArgument,
        "MissingField",
        &["access_mode"],
    );
    refused(
        world.stats(&volume, &world.path("nowhere")),
        Code::NotFound,
        "PathNotFound",
        &["volume_path", "static-photos"],
    );
}

#[test]
fn settings_that_are_not_there_yet_answer_clearly() {
    let world = World::new();
    for (key, value) in [
        ("cacheSizeMB", "100"),
        ("cacheMedium", "disk"),
        ("isHnsEnabled", "true"),
    ] {
        let volume = world.volume(&[(key, value)]);
        let status = world.stage(volume.stage()).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{key}: {status:?}");
        assert!(status.message().contains(key), "{key}: {}", status.message());
    }
}

#[test]
fn a_volume_that_could_not_be_staged_has_a_health() {
    let world = World::new();
    let volume = world.volume(&[("containerName", "nothere")]);
    let health = || {
        call(
            world
                .node
                .node
                .clone()
                .node_get_volume_health(NodeGetVolumeHealthRequest {
                    volume_id: volume.id.clone(),
                    ..Default::default()
                }),
        )
    };
    refused(health(), Code::NotFound, "VolumeNotFound", &["static-photos"]);
    world.stage(volume.stage()).unwrap_err();
    let found = health().unwrap().volume_health.unwrap();
    assert_eq!(found.health_statuses[0].reason, "ContainerNotFound");
    let good = world.volume(&[]);
    world.stage(good.stage()).unwrap();
    assert!(
        health()
            .unwrap()
            .volume_health
            .unwrap()
            .health_statuses
            .is_empty(),
        "empty is recovered"
    );
    world.unstage(good.unstage()).unwrap();
}
