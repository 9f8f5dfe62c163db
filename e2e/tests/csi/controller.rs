//! Volumes created and deleted: containers, directories, names, marks.

use std::sync::{Arc, Mutex};

use blob_client::Condition;

use super::*;

impl World {
    /// ValidateVolumeCapabilities of a created volume, with a change of the request.
    fn validate(
        &self,
        volume: &csi_proto::csi::Volume,
        change: impl FnOnce(&mut ValidateVolumeCapabilitiesRequest),
    ) -> Result<ValidateVolumeCapabilitiesResponse, Status> {
        let mut request = ValidateVolumeCapabilitiesRequest {
            volume_id: volume.volume_id.clone(),
            volume_context: volume.volume_context.clone(),
            volume_capabilities: vec![mount_capability(&[])],
            secrets: secrets(),
            ..Default::default()
        };
        change(&mut request);
        call(
            self.controller
                .controller
                .clone()
                .validate_volume_capabilities(request),
        )
    }
}

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

/// The owner and mode of the root directory live in the same metadata as the volume's mark; neither may lose
/// the other.
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

/// A log line must never hold a secret, at any level, whether the call goes well or not.
#[test]
fn no_secret_is_logged() {
    let world = World::new();
    let volume = world.volume(&[]);
    world.stage(volume.stage()).unwrap();
    world.unstage(volume.unstage()).unwrap();
    let created = world.create(world.wanted("pvc-1", &[])).unwrap();
    world.delete(&created.volume_id).unwrap();

    // An endpoint that gives tokens to managed identities and refuses everybody else.
    let (tokens, _) = token_endpoint("canary-access-token");
    let msi = [("AzureStorageAuthType", "MSI"), ("MSIEndpoint", tokens.as_str())];
    let spn = [
        ("AzureStorageAuthType", "SPN"),
        ("AzureStorageSPNClientID", "11111111-2222-3333-4444-555555555555"),
        ("AzureStorageSPNTenantID", "11111111-2222-3333-4444-666666666666"),
        ("AzureStorageAADEndpoint", tokens.as_str()),
    ];
    let pasted = [(
        "server",
        "https://devstoreaccount1.blob.core.windows.net/?sig=canary-in-server",
    )];
    let login = [("server", "http://:canary-password@127.0.0.1:1/devstoreaccount1")];
    type Case<'a> = (&'a [(&'a str, &'a str)], (&'a str, &'a str), Code);
    let cases: [Case<'_>; 6] = [
        (
            &[],
            ("azurestorageaccountkey", "Y2FuYXJ5LWtleQ=="),
            Code::Unauthenticated,
        ),
        (
            &[],
            (
                "azurestorageaccountsastoken",
                "sv=2024-08-04&se=2099-01-01T00%3A00%3A00Z&sr=c&sp=rl&sig=canary-sas",
            ),
            Code::Unauthenticated,
        ),
        (&msi, ("msisecret", "canary-msi-secret"), Code::Unauthenticated),
        (
            &spn,
            ("azurestoragespnclientsecret", "canary-client-secret"),
            Code::Unauthenticated,
        ),
        (
            &pasted,
            ("azurestorageaccountkey", DEV_KEY),
            Code::InvalidArgument,
        ),
        (&login, ("azurestorageaccountkey", DEV_KEY), Code::InvalidArgument),
    ];
    for (class, (key, secret), code) in cases {
        let secrets = HashMap::from([(key.to_owned(), secret.to_owned())]);
        let mut wanted = world.wanted("pvc-2", class);
        wanted.secrets.clone_from(&secrets);
        let created = world.create(wanted).unwrap_err();
        let mut volume = world.volume(class);
        volume.secrets = secrets;
        let staged = world.stage(volume.stage()).unwrap_err();
        for status in [created, staged] {
            assert_eq!(status.code(), code, "{key}: {status:?}");
            assert!(!status.message().contains("canary"), "{}", status.message());
        }
    }
    // The pod's token, which kubelet hands over with the volume.
    let mut pods = world.volume(&[
        ("mountWithWorkloadIdentityToken", "true"),
        ("ClientID", "11111111-2222-3333-4444-555555555555"),
        ("tenantID", "11111111-2222-3333-4444-666666666666"),
        ("AzureStorageAADEndpoint", &tokens),
        (
            "csi.storage.k8s.io/serviceAccount.tokens",
            &serde_json::json!({"api://AzureADTokenExchange": {
                "token": "canary-pod-token",
                "expirationTimestamp": "2099-01-01T00:00:00Z"
            }})
            .to_string(),
        ),
    ]);
    pods.secrets.clear();
    let status = world.publish(pods.publish()).unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert!(!status.message().contains("canary"), "{}", status.message());

    // What comes last is in the log when all before it is.
    let mut last = world.volume(&[("containerName", "last-of-all")]);
    last.staging = world.path("staging-2");
    std::fs::create_dir(&last.staging).unwrap();
    world.stage(last.stage()).unwrap_err();
    let wanted = world.wanted("pvc-3", &[("containerName", "last-of-all"), ("prefix", "x")]);
    world.create(wanted).unwrap_err();
    for process in [world.plugin.node_process(), world.plugin.controller_process()] {
        let log = wait_for("the last refusal in the log", PATIENCE, || {
            let log = process.output();
            let last = |line: &str| line.contains("ContainerNotFound") && line.contains("last-of-all");
            Ok(log.lines().any(last).then_some(log))
        })
        .unwrap();
        assert!(
            log.contains("DEBUG") && log.contains("TRACE"),
            "not at every level:\n{log}"
        );
        for secret in ["canary", "Y2FuYXJ5LWtleQ==", DEV_KEY] {
            let line = log.lines().find(|line| line.contains(secret));
            assert!(line.is_none(), "a secret in: {line:?}");
        }
    }
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

/// The controller has no device of the channel; that a volume demands it is for the nodes to see to.
#[test]
fn transport_require_is_for_the_nodes() {
    let world = World::new();
    let volume = world
        .create(world.wanted("pvc-1", &[("transport", "require")]))
        .unwrap();
    assert_eq!(volume.volume_context["transport"], "require");
    let validate = world.validate(&volume, |_| {}).unwrap();
    assert!(validate.confirmed.is_some(), "{validate:?}");
    let mut staged = world.volume(&[]);
    staged.id.clone_from(&volume.volume_id);
    staged.context.clone_from(&volume.volume_context);
    refused(
        world.stage(staged.stage()),
        Code::FailedPrecondition,
        "ChannelRequired",
        &["transport"],
    );
    world.delete(&volume.volume_id).unwrap();
    assert!(!world.exists("pvc-1"));
}

/// Nobody gives the controller a pod's token: it takes the provisioner's Secret.
#[test]
fn a_class_whose_pods_mount_as_themselves() {
    let world = World::new();
    let class = [
        ("mountWithWorkloadIdentityToken", "true"),
        ("ClientID", "11111111-2222-3333-4444-555555555555"),
        ("tenantID", "11111111-2222-3333-4444-666666666666"),
    ];
    let volume = world.create(world.wanted("pvc-1", &class)).unwrap();
    assert_eq!(volume.volume_context["mountWithWorkloadIdentityToken"], "true");
    assert!(
        !volume.volume_id.contains("client="),
        "the pods' identity is not the controller's: {}",
        volume.volume_id
    );
    let validate = world.validate(&volume, |_| {}).unwrap();
    assert!(validate.confirmed.is_some(), "{validate:?}");
    world.delete(&volume.volume_id).unwrap();
    assert!(!world.exists("pvc-1"));
}

/// DeleteVolume is told nothing but the id: it has to be the same identity on a node that has several.
#[test]
fn a_volume_is_deleted_with_the_identity_that_created_it() {
    let world = World::new();
    let (tokens, asked) = token_endpoint("token-1");
    world.backend.store().unwrap().accept_token("token-1");
    let class = [
        ("AzureStorageAuthType", "MSI"),
        (
            "AzureStorageIdentityClientID",
            "11111111-2222-3333-4444-555555555555",
        ),
        ("MSIEndpoint", tokens.as_str()),
    ];
    let mut wanted = world.wanted("pvc-1", &class);
    wanted.secrets.clear();
    let volume = world.create(wanted).unwrap();
    assert!(world.exists("pvc-1"));
    let before = asked.lock().unwrap().len();
    let request = DeleteVolumeRequest {
        volume_id: volume.volume_id,
        secrets: HashMap::new(),
    };
    call(world.controller.controller.clone().delete_volume(request)).unwrap();
    assert!(!world.exists("pvc-1"));
    let asked = asked.lock().unwrap();
    assert!(asked.len() > before, "the token of another client was used");
    for line in asked.iter() {
        assert!(
            line.contains("client_id=11111111-2222-3333-4444-555555555555"),
            "{line}"
        );
    }
}

/// The outer one's deletion would be the inner one's.
#[test]
fn no_volume_is_created_inside_another() {
    let world = World::new();
    let at = |prefix| [("containerName", "photos"), ("prefix", prefix)];
    world.create(world.wanted("pvc-1", &at("team"))).unwrap();
    for inner in ["team/data", "team/a/b/c"] {
        refused(
            world.create(world.wanted("pvc-2", &at(inner))),
            Code::AlreadyExists,
            "NameTaken",
            &["prefix", inner, "\"team\"", "\"pvc-1\""],
        );
    }
    world.create(world.wanted("pvc-2", &at("team-2/data"))).unwrap();
    world.create(world.wanted("pvc-3", &[])).unwrap();
    let inner = [("containerName", "pvc-3"), ("prefix", "x")];
    refused(
        world.create(world.wanted("pvc-4", &inner)),
        Code::AlreadyExists,
        "NameTaken",
        &["container \"pvc-3\""],
    );
}

/// Volumes that are inside others all the same - created before that was refused, or moved there - keep the
/// outer one.
#[test]
fn a_volume_inside_another_is_not_deleted_with_it() {
    let world = World::new();
    let at = [("containerName", "photos"), ("prefix", "team")];
    let outer = [
        (
            world.create(world.wanted("pvc-1", &at)).unwrap(),
            "photos",
            "team/",
        ),
        (world.create(world.wanted("pvc-2", &[])).unwrap(), "pvc-2", ""),
    ];
    let mark = [
        ("vsccsi_name", "inner%2D1"),
        ("vsccsi_capacity", "0"),
        ("vsccsi_parameters", "x"),
    ];
    let mark: Metadata = mark.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    for (volume, container, inside) in outer {
        let view = world.backend.container(container).unwrap();
        let inner = format!("{inside}a/inner");
        view.write(&inner, &b""[..], &mark).unwrap();
        world.put(container, &format!("{inner}/precious"));
        world.put(container, &format!("{inside}a-file-before-it"));
        refused(
            world.delete(&volume.volume_id),
            Code::FailedPrecondition,
            "HoldsAnotherVolume",
            &[inner.as_str(), "\"inner-1\""],
        );
        assert!(world.has(container, &format!("{inner}/precious")));
        assert!(world.has(container, &format!("{inside}a-file-before-it")));
        runtime()
            .block_on(view.client().delete(&inner, &Condition::none()))
            .unwrap();
        world.delete(&volume.volume_id).unwrap();
        let gone = world.backend.container(container).unwrap().blobs();
        assert!(gone.is_err() || !world.has(container, &format!("{inner}/precious")));
    }
}

/// A mount that died left its lease on a file that was deleted while open: that one goes with the volume. A
/// lease of somebody else is told, and is all that keeps the deletion from its end.
#[test]
fn leases_of_mounts_are_broken_and_those_of_others_are_told_by_name() {
    let world = World::new();
    let at = [("containerName", "photos"), ("prefix", "team")];
    let volume = world.create(world.wanted("pvc-1", &at)).unwrap();
    let view = world.backend.container("photos").unwrap();
    let mark: Metadata = [("vsc_hidden".to_owned(), "true".to_owned())].into();
    let hidden = "team/.vsc-blob-hidden.0123456789abcdef";
    view.write(hidden, &b"x"[..], &mark).unwrap();
    // The name and the mark are not enough: only a mount's place for them counts.
    let elsewhere = "team/a/.vsc-blob-hidden.0123456789abcdef";
    view.write(elsewhere, &b"x"[..], &mark).unwrap();
    let others = ["team/b/held-1", elsewhere];
    for blob in ["team/a/x", "team/z/y", others[0]] {
        world.put("photos", blob);
    }
    let client = view.client();
    let leases: Vec<String> = [hidden, others[0], others[1]]
        .map(|blob| runtime().block_on(client.acquire_lease(blob, None)).unwrap())
        .into();
    for _ in 0..2 {
        refused(
            world.delete(&volume.volume_id),
            Code::FailedPrecondition,
            "BlobsLeased",
            &["2 blobs", others[0], others[1]],
        );
        for (blob, there) in [
            (hidden, false),
            ("team/a/x", false),
            ("team/z/y", false),
            (others[0], true),
            (others[1], true),
            ("team", true),
        ] {
            assert_eq!(world.has("photos", blob), there, "{blob}");
        }
    }
    for (blob, lease) in others.iter().zip(&leases[1..]) {
        runtime().block_on(client.release_lease(blob, lease)).unwrap();
    }
    world.delete(&volume.volume_id).unwrap();
    for blob in [others[0], others[1], "team"] {
        assert!(!world.has("photos", blob), "{blob}");
    }
}

/// A million blobs are not a million requests. A service, a gateway or a credential that takes no batches is
/// asked for them once.
#[test]
fn many_blobs_are_deleted_in_batches_where_the_service_takes_them() {
    let at = [("containerName", "photos"), ("prefix", "team")];
    for refused in [
        None,
        Some((501, "NotImplemented")),
        Some((403, "AuthorizationFailure")),
        Some((404, "ResourceNotFound")),
    ] {
        let world = World::new();
        let store = Arc::clone(world.backend.store().unwrap());
        if let Some((status, code)) = refused {
            let answer = Fault::Answer {
                status,
                code: code.into(),
                retry_after: None,
            };
            store.inject(FaultRule::every(Operation::BlobBatch, answer));
        }
        for again in [false, true] {
            let volume = world.create(world.wanted("pvc-1", &at)).unwrap();
            for number in 0..600 {
                world.put("photos", &format!("team/{number:03}"));
            }
            store.reset_counters();
            world.delete(&volume.volume_id).unwrap();
            let view = world.backend.container("photos").unwrap();
            assert!(view.blobs().unwrap().is_empty());
            let requests = |operation| store.counters(operation).requests;
            // The marker of the directory, too; what is in a batch counts for itself.
            assert_eq!(requests(Operation::DeleteBlob), 601, "{refused:?}");
            let batches = requests(Operation::BlobBatch);
            match (refused, again) {
                (None, _) => assert_eq!(batches, 3),
                (Some(_), false) => assert!((1..=3).contains(&batches), "{batches}"),
                (Some(_), true) => assert_eq!(batches, 0, "{refused:?}"),
            }
        }
    }
}

/// What a controller has deleted before it lost its lease is deleted: the next one goes on with what is left.
#[test]
fn another_controller_goes_on_with_a_deletion() {
    let world = World::new();
    let store = Arc::clone(world.backend.store().unwrap());
    let at = [("containerName", "photos"), ("prefix", "team")];
    let volume = world.create(world.wanted("pvc-1", &at)).unwrap();
    let view = world.backend.container("photos").unwrap();
    for number in 0..600 {
        world.put("photos", &format!("team/{number:03}"));
    }
    // Pages of one batch each; nothing is deleted after the first.
    store.inject(FaultRule::every(
        Operation::ListBlobs,
        Fault::ShortPage { entries: 256 },
    ));
    let conflict = Fault::Answer {
        status: 409,
        code: "AccountBeingCreated".into(),
        retry_after: None,
    };
    store.inject(FaultRule {
        skip: 256,
        ..FaultRule::every(Operation::DeleteBlob, conflict)
    });
    world.delete(&volume.volume_id).unwrap_err();
    // The directory's own marker included.
    assert_eq!(view.blobs().unwrap().len(), 345);
    // A batch of the first may be under way still, and deletes from here on.
    store.clear_faults();
    let next = Plugin::start(None).unwrap();
    store.reset_counters();
    let request = DeleteVolumeRequest {
        volume_id: volume.volume_id,
        secrets: secrets(),
    };
    call(next.controller().unwrap().controller.delete_volume(request)).unwrap();
    assert!(view.blobs().unwrap().is_empty());
    let asked = store.counters(Operation::DeleteBlob).requests;
    assert!(asked < 601, "all of them were deleted anew: {asked}");
}

/// A class by which each claim named `data` has the same directory.
const DIRECTORY_OF_A_CLAIM: [(&str, &str); 3] = [
    ("containerName", "photos"),
    ("prefix", "${pvc.metadata.name}"),
    ("csi.storage.k8s.io/pvc/name", "data"),
];
/// The same with a container.
const CONTAINER_OF_A_CLAIM: [(&str, &str); 2] = [
    ("containerName", "${pvc.metadata.name}"),
    ("csi.storage.k8s.io/pvc/name", "data"),
];

/// The same place for one claim after the other: a deletion of the first that comes late is not one of the
/// second.
#[test]
fn a_late_deletion_leaves_the_next_volume_alone() {
    let world = World::new();
    for (class, at, blob) in [
        (&DIRECTORY_OF_A_CLAIM[..], "photos", "data/x"),
        (&CONTAINER_OF_A_CLAIM[..], "data", "x"),
    ] {
        let first = world.create(world.wanted("pvc-1", class)).unwrap();
        world.delete(&first.volume_id).unwrap();
        let second = world.create(world.wanted("pvc-2", class)).unwrap();
        assert_ne!(first.volume_id, second.volume_id);
        world.put(at, blob);
        world.delete(&first.volume_id).unwrap();
        assert!(world.has(at, blob), "{at}/{blob}");
        world.delete(&second.volume_id).unwrap();
        assert!(world.backend.container(at).unwrap().blobs().is_err() || !world.has(at, blob));
    }
}

/// The request itself may come late: when the volume is gone, and its place another one's.
#[test]
fn a_deletion_that_was_lost_on_its_way_deletes_nothing_of_the_next_volume() {
    let world = World::new();
    let store = Arc::clone(world.backend.store().unwrap());
    for (class, at, blob, late) in [
        (
            &DIRECTORY_OF_A_CLAIM[..],
            "photos",
            "data/x",
            Operation::DeleteBlob,
        ),
        (&CONTAINER_OF_A_CLAIM[..], "data", "x", Operation::DeleteContainer),
    ] {
        let first = world.create(world.wanted("pvc-1", class)).unwrap();
        world.put(at, blob);
        store.inject(FaultRule::next(late, Fault::Late));
        world.delete(&first.volume_id).unwrap();
        // The name of a deleted container is free after half a minute.
        store.advance_clock(Duration::from_secs(60));
        let second = world.create(world.wanted("pvc-2", class)).unwrap();
        world.put(at, blob);
        assert_eq!(store.late_requests(), 1, "{at}");
        assert_eq!(store.execute_late(), [412], "{at}");
        assert!(world.has(at, blob), "{at}/{blob}");
        world.delete(&second.volume_id).unwrap();
    }
}

/// A claim that is deleted and made again at once: the service keeps the name for half a minute.
#[test]
fn a_name_that_is_still_being_deleted_is_tried_again() {
    let world = World::new();
    let store = Arc::clone(world.backend.store().unwrap());
    store.configure(|account| account.container_deletion = Duration::from_secs(30));
    for (class, container) in [(&[][..], "pvc-1"), (&CONTAINER_OF_A_CLAIM[..], "data")] {
        let first = world.create(world.wanted("pvc-1", class)).unwrap();
        world.put(container, "x");
        world.delete(&first.volume_id).unwrap();
        // Nor is that in the way of who asks for the deletion again.
        world.delete(&first.volume_id).unwrap();
        for _ in 0..2 {
            refused(
                world.create(world.wanted("pvc-1", class)),
                Code::Unavailable,
                "ServiceBusy",
                &[container, "still being deleted"],
            );
        }
        store.advance_clock(Duration::from_secs(31));
        let second = world.create(world.wanted("pvc-1", class)).unwrap();
        assert_eq!(second.volume_id, first.volume_id, "{container}");
        assert!(!world.has(container, "x"), "{container}");
        world.delete(&second.volume_id).unwrap();
        store.advance_clock(Duration::from_secs(31));
    }
}

/// Only what was looked at is confirmed.
#[test]
fn validation_compares_what_it_confirms() {
    let world = World::new();
    let class = [
        ("containerName", "photos"),
        ("prefix", "v"),
        ("transport", "https"),
    ];
    let wanted = world.wanted("pvc-1", &class);
    let parameters = wanted.parameters.clone();
    let volume = world.create(wanted).unwrap();
    let plain = world.validate(&volume, |_| {}).unwrap().confirmed.unwrap();
    assert_eq!(plain.volume_context, volume.volume_context);
    assert!(plain.parameters.is_empty());
    let same = world.validate(&volume, |request| request.parameters.clone_from(&parameters));
    assert_eq!(same.unwrap().confirmed.unwrap().parameters, parameters);

    type Change<'a> = &'a dyn Fn(&mut ValidateVolumeCapabilitiesRequest);
    let set = |map: &mut HashMap<String, String>, key: &str, value: &str| {
        map.insert(key.to_owned(), value.to_owned());
    };
    let wrong: [(&str, Change<'_>); 7] = [
        ("mutable_parameters", &|r| {
            set(&mut r.mutable_parameters, "iops", "5")
        }),
        ("transpot", &|r| set(&mut r.parameters, "transpot", "https")),
        ("parameters", &|r| set(&mut r.parameters, "transport", "prefer")),
        ("containerName", &|r| {
            set(&mut r.volume_context, "containerName", "other")
        }),
        ("prefix", &|r| set(&mut r.volume_context, "prefix", "v/w")),
        ("prefix", &|r| drop(r.volume_context.remove("prefix"))),
        ("server", &|r| {
            set(
                &mut r.volume_context,
                "server",
                "http://127.0.0.1:1/devstoreaccount1",
            );
        }),
    ];
    for (named, change) in wrong {
        let answer = world.validate(&volume, change).unwrap();
        assert!(
            answer.confirmed.is_none() && answer.message.contains(named),
            "{named}: {answer:?}"
        );
    }
}

/// Gives this token to whoever asks as a managed identity, and refuses what comes by POST; the URL, and the
/// request lines.
fn token_endpoint(token: &'static str) -> (String, Arc<Mutex<Vec<String>>>) {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let lines = asked.clone();
    // Ends with the process of the tests.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let (mut first, mut line, mut length) = (String::new(), String::new(), 0);
            reader.read_line(&mut first).unwrap();
            while reader.read_line(&mut line).unwrap() > 2 {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            reader.read_exact(&mut vec![0; length]).unwrap();
            let (status, body) = if first.starts_with("GET ") {
                let token = serde_json::json!({
                    "access_token": token,
                    "expires_on": "4102444800",
                    "token_type": "Bearer",
                    "resource": "https://storage.azure.com"
                });
                ("200 OK", token.to_string())
            } else {
                let text = r#"{"error":"invalid_client","error_description":"no such application"}"#;
                ("401 Unauthorized", text.to_owned())
            };
            lines.lock().unwrap().push(first);
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
                 connection: close\r\n\r\n{body}",
                body.len()
            );
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
        }
    });
    (url, asked)
}
