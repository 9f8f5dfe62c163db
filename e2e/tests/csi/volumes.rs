//! A volume through its life: staged, published, used, taken away; who the node is.

use super::*;

#[test]
fn a_volume_is_staged_published_written_and_read_back() {
    let world = World::new();
    let volume = world.volume(&[]);
    world.stage(volume.stage()).unwrap();
    assert_eq!(mounts(&volume.staging), 1);
    world.publish(volume.publish()).unwrap();
    std::fs::write(volume.target.join("hello.txt"), "hello").unwrap();
    assert_eq!(std::fs::read(volume.target.join("hello.txt")).unwrap(), b"hello");
    assert!(
        world.has("photos", "hello.txt"),
        "what close acknowledged is in the service"
    );

    let stats = world.stats(&volume, &volume.target).unwrap();
    assert_eq!(stats.usage.len(), 2, "bytes and inodes");
    assert!(stats.usage.iter().all(|u| u.total > 0), "{stats:?}");
    let used = stats.usage.iter().map(|u| u.used).collect::<Vec<_>>();
    assert_eq!(used, [5, 1], "{stats:?}");
    assert!(!stats.volume_condition.unwrap().abnormal);

    world.unpublish(volume.unpublish()).unwrap();
    assert!(!volume.target.exists(), "the plugin removes what it created");
    world.unstage(volume.unstage()).unwrap();
    assert_eq!(mounts(&volume.staging), 0);
    assert!(volume.staging.is_dir(), "the staging directory is kubelet's");
}

#[test]
fn every_call_may_be_repeated() {
    let world = World::new();
    let volume = world.volume(&[]);
    for _ in 0..3 {
        world.stage(volume.stage()).unwrap();
    }
    for _ in 0..3 {
        world.publish(volume.publish()).unwrap();
    }
    assert_eq!((mounts(&volume.staging), mounts(&volume.target)), (1, 1));
    for _ in 0..3 {
        world.unpublish(volume.unpublish()).unwrap();
    }
    for _ in 0..3 {
        world.unstage(volume.unstage()).unwrap();
    }
}

#[test]
fn an_inline_volume_needs_no_stage() {
    let world = World::new();
    world.put("photos", "album/a.jpg");
    let volume = world.volume(&[("csi.storage.k8s.io/ephemeral", "true"), ("prefix", "album")]);
    let mut request = volume.publish();
    request.staging_target_path.clear();
    for _ in 0..2 {
        world.publish(request.clone()).unwrap();
    }
    assert_eq!(std::fs::read(volume.target.join("a.jpg")).unwrap(), b"hello");
    let mut other = request.clone();
    other.readonly = true;
    refused(
        world.publish(other),
        Code::AlreadyExists,
        "PublishedDifferently",
        &["target_path"],
    );
    world.unpublish(volume.unpublish()).unwrap();
    world.unpublish(volume.unpublish()).unwrap();
    assert!(!volume.target.exists());
}

#[test]
fn only_the_volume_at_a_target_is_taken_away() {
    let world = World::new();
    world.put("photos", "a.jpg");
    let staged = world.volume(&[]);
    let mut inline = world.volume(&[("csi.storage.k8s.io/ephemeral", "true")]);
    inline.id = "inline".into();
    inline.target = world.path("pods/2/mount");
    world.stage(staged.stage()).unwrap();
    world.publish(staged.publish()).unwrap();
    world.publish(inline.publish()).unwrap();
    let taken_from = |id: &str, target: &Path| {
        let request = NodeUnpublishVolumeRequest {
            volume_id: id.into(),
            target_path: target.display().to_string(),
        };
        world.unpublish(request).unwrap();
        let request = NodeUnstageVolumeRequest {
            volume_id: id.into(),
            staging_target_path: target.display().to_string(),
        };
        // A path that a pod uses is refused or nobody's to unstage, but never touched.
        drop(world.unstage(request));
    };
    for target in [&staged.target, &inline.target, &staged.staging] {
        taken_from("another", target);
    }
    taken_from(&staged.id, &inline.target);
    taken_from(&inline.id, &staged.target);
    world
        .unpublish(NodeUnpublishVolumeRequest {
            target_path: staged.staging.display().to_string(),
            ..staged.unpublish()
        })
        .unwrap();
    for path in [&staged.target, &inline.target, &staged.staging] {
        assert_eq!(mounts(path), 1, "{}", path.display());
        assert_eq!(std::fs::read(path.join("a.jpg")).unwrap(), b"hello");
    }
    world.unpublish(inline.unpublish()).unwrap();
    world.unpublish(staged.unpublish()).unwrap();
    world.unstage(staged.unstage()).unwrap();
    assert_eq!(mounts(&staged.staging) + mounts(&inline.target), 0);
}

#[test]
fn read_only_is_read_only_in_each_way() {
    let world = World::new();
    world.put("photos", "a.jpg");
    let volume = world.volume(&[]);
    let denied = |path: &Path| {
        let error = std::fs::write(path.join("new"), "x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        assert_eq!(std::fs::read(path.join("a.jpg")).unwrap(), b"hello");
    };

    // One pod of a volume that others write to.
    world.stage(volume.stage()).unwrap();
    let mut reader = volume.publish();
    reader.readonly = true;
    reader.target_path = world.path("pods/2/mount").display().to_string();
    world.publish(volume.publish()).unwrap();
    world.publish(reader.clone()).unwrap();
    denied(&world.path("pods/2/mount"));
    for target in [&volume.target, &world.path("pods/2/mount")] {
        let options = mount_options(target);
        let has = |option: &str| options.split(',').any(|o| o == option);
        assert!(has("nosuid") && has("nodev"), "{}: {options}", target.display());
    }
    std::fs::write(volume.target.join("new"), "x").unwrap();
    for target in [&reader.target_path, &volume.publish().target_path] {
        let mut request = volume.unpublish();
        request.target_path = target.clone();
        world.unpublish(request).unwrap();
    }
    world.unstage(volume.unstage()).unwrap();

    // The whole volume: by mount option, by access mode.
    let by_option = Some(mount_capability(&["-o ro"]));
    for capability in [by_option, capability(Mode::MultiNodeReaderOnly)] {
        let (mut stage, mut publish) = (volume.stage(), volume.publish());
        stage.volume_capability.clone_from(&capability);
        publish.volume_capability = capability;
        world.stage(stage).unwrap();
        world.publish(publish).unwrap();
        denied(&volume.target);
        world.unpublish(volume.unpublish()).unwrap();
        world.unstage(volume.unstage()).unwrap();
    }
}

#[test]
fn owner_group_and_modes_follow_the_options() {
    use std::os::unix::fs::MetadataExt;
    let world = World::new();
    world.put("photos", "a.jpg");
    let volume = world.volume(&[]);
    let seen = |flags: &[&str], group: &str| {
        let mut capability = mount_capability(flags);
        if let Some(AccessType::Mount(mount)) = &mut capability.access_type {
            mount.volume_mount_group = group.to_owned();
        }
        let (mut stage, mut publish) = (volume.stage(), volume.publish());
        stage.volume_capability = Some(capability.clone());
        publish.volume_capability = Some(capability);
        world.stage(stage).unwrap();
        world.publish(publish).unwrap();
        let file = std::fs::metadata(volume.target.join("a.jpg")).unwrap();
        let dir = std::fs::metadata(&volume.target).unwrap();
        world.unpublish(volume.unpublish()).unwrap();
        world.unstage(volume.unstage()).unwrap();
        (file.uid(), file.gid(), file.mode() & 0o777, dir.mode() & 0o777)
    };
    assert_eq!(seen(&[], ""), (0, 0, 0o666, 0o777));
    assert_eq!(
        seen(&["uid=1000", "gid=2000", "umask=027"], ""),
        (1000, 2000, 0o640, 0o750)
    );
    assert_eq!(
        seen(&["gid=2000"], "3000"),
        (0, 3000, 0o664, 0o775),
        "the pod's fsGroup wins"
    );
}

#[test]
fn a_volume_for_one_writer_goes_to_one_pod() {
    let world = World::new();
    let volume = world.volume(&[]);
    for (mode, several) in [
        (Mode::SingleNodeSingleWriter, false),
        (Mode::SingleNodeMultiWriter, true),
        (Mode::MultiNodeMultiWriter, true),
    ] {
        let (mut stage, mut first, mut second) = (volume.stage(), volume.publish(), volume.publish());
        stage.volume_capability = capability(mode);
        first.volume_capability = capability(mode);
        second.volume_capability = capability(mode);
        second.target_path = world.path("pods/2/mount").display().to_string();
        world.stage(stage).unwrap();
        world.publish(first).unwrap();
        let result = world.publish(second.clone());
        if several {
            result.unwrap();
        } else {
            refused(
                result,
                Code::FailedPrecondition,
                "PublishedElsewhere",
                &["target_path", "pods/1/mount"],
            );
        }
        let mut unpublish = volume.unpublish();
        unpublish.target_path = second.target_path;
        world.unpublish(unpublish).unwrap();
        world.unpublish(volume.unpublish()).unwrap();
        world.unstage(volume.unstage()).unwrap();
    }
}

#[test]
fn keys_sas_and_nothing_all_work_when_they_should() {
    let world = World::new();
    world.put("photos", "a.jpg");
    let signer = AccountKey::new(DEV_ACCOUNT, DEV_KEY).unwrap();
    let sas = signer.container_sas("photos", &SasOptions::new("racwdl", Duration::from_secs(3600)));
    let mut volume = world.volume(&[]);
    volume.secrets = HashMap::from([
        ("AzureStorageAccountName".into(), DEV_ACCOUNT.into()),
        ("azurestorageaccountsastoken".into(), format!("?{sas}")),
    ]);
    world.stage(volume.stage()).unwrap();
    assert_eq!(std::fs::read(volume.staging.join("a.jpg")).unwrap(), b"hello");
    world.unstage(volume.unstage()).unwrap();

    // The container is not public: anonymous access is refused by the service, and says so.
    let anonymous = world.volume(&[("AzureStorageAuthType", "Anonymous")]);
    let status = world.stage(anonymous.stage()).unwrap_err();
    assert!(
        matches!(
            status.code(),
            Code::NotFound | Code::PermissionDenied | Code::Unauthenticated
        ),
        "{status:?}"
    );
}

#[test]
fn the_node_says_who_it_is_and_what_it_can() {
    let world = World::new();
    let info = call(world.node.node.clone().node_get_info(NodeGetInfoRequest {})).unwrap();
    assert_eq!(info.node_id, "node-1");
    assert_eq!(info.max_volumes_per_node, 32, "128 MiB, 4 MiB each");
    let name = call(
        world
            .node
            .identity
            .clone()
            .get_plugin_info(GetPluginInfoRequest {}),
    )
    .unwrap()
    .name;
    assert_eq!(name, "vsc-blob.csi.azure.com");
    let probe = call(world.node.identity.clone().probe(ProbeRequest {})).unwrap();
    assert_eq!(probe.ready, Some(true));
    let health = call(
        world
            .node
            .node
            .clone()
            .node_get_storage_health(NodeGetStorageHealthRequest::default()),
    );
    assert!(
        health.unwrap().backend_health.is_empty(),
        "a node without the device is as it should be"
    );
}

#[test]
fn probe_says_what_is_wrong() {
    let world = World::new();
    // The state folder goes away under the plugin's feet.
    std::fs::remove_dir_all(world.path("state")).unwrap();
    let probe = call(world.node.identity.clone().probe(ProbeRequest {}));
    refused(probe, Code::FailedPrecondition, "NotReady", &["--state-dir"]);
}

#[test]
fn kubelet_finds_the_driver() {
    use csi_proto::registration::registration_client::RegistrationClient;
    use csi_proto::registration::{InfoRequest, RegistrationStatus};
    let world = World::new();
    let socket = world.plugin.registration_socket().unwrap();
    assert_eq!(socket.file_name().unwrap(), "vsc-blob.csi.azure.com-reg.sock");
    runtime().block_on(async {
        let endpoint = tonic::transport::Endpoint::try_from(format!("unix://{}", socket.display())).unwrap();
        let mut kubelet = RegistrationClient::new(endpoint.connect().await.unwrap());
        let info = kubelet.get_info(InfoRequest {}).await.unwrap().into_inner();
        assert_eq!(
            (info.r#type.as_str(), info.name.as_str()),
            ("CSIPlugin", "vsc-blob.csi.azure.com")
        );
        assert_eq!(Path::new(&info.endpoint), world.plugin.node_socket());
        assert_eq!(info.supported_versions, ["1.0.0"]);
        let status = RegistrationStatus {
            plugin_registered: true,
            error: String::new(),
        };
        kubelet.notify_registration_status(status).await.unwrap();
    });
}

/// An endpoint that gives access tokens, as Entra ID and the instance metadata service do: `token` makes one
/// out of a request's body. Its URL.
pub(super) fn token_endpoint(token: impl Fn(&str) -> String + Send + 'static) -> String {
    use std::io::{BufRead, BufReader, Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // Ends with the test process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let mut length = 0;
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap() == 0 || line == "\r\n" {
                    break;
                }
                let lower = line.to_ascii_lowercase();
                if let Some(value) = lower.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
            }
            let mut asked = vec![0; length];
            reader.read_exact(&mut asked).unwrap();
            let token = token(&String::from_utf8_lossy(&asked));
            let body = serde_json::json!({
                "token_type": "Bearer",
                "access_token": token,
                "expires_in": 3600,
                "expires_on": "4102444800",
                "resource": "x"
            })
            .to_string();
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close";
            write!(
                reader.get_mut(),
                "{head}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .unwrap();
        }
    });
    url
}

#[test]
fn a_managed_identity_needs_no_secret() {
    let world = World::new();
    world.put("photos", "a.jpg");
    world.backend.store().unwrap().accept_token("token-of-the-node");
    let endpoint = format!("{}/msi", token_endpoint(|_| "token-of-the-node".into()));
    let mut volume = world.volume(&[("AzureStorageAuthType", "MSI"), ("MSIEndpoint", &endpoint)]);
    volume.secrets.clear();
    world.stage(volume.stage()).unwrap();
    assert_eq!(std::fs::read(volume.staging.join("a.jpg")).unwrap(), b"hello");
    world.unstage(volume.unstage()).unwrap();
    // The role was taken away.
    world.backend.store().unwrap().revoke_token("token-of-the-node");
    let status = world.stage(volume.stage()).unwrap_err();
    assert!(
        matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied),
        "{status:?}"
    );
    assert!(
        !status.message().contains("token-of-the-node"),
        "{}",
        status.message()
    );
}

/// What kubelet hands over with a volume for a pod whose token this is.
fn federated(token: &str) -> String {
    serde_json::json!({"api://AzureADTokenExchange": {
        "token": token,
        "expirationTimestamp": "2100-01-01T00:00:00Z"
    }})
    .to_string()
}

#[test]
fn a_pods_own_token_mounts_at_the_publish() {
    let world = World::new();
    world.put("photos", "a.jpg");
    world.backend.store().unwrap().accept_token("token-of-the-pod");
    let authority = token_endpoint(|_| "token-of-the-pod".into());
    let tokens = federated("federated");
    let mut volume = world.volume(&[
        ("mountWithWorkloadIdentityToken", "true"),
        ("ClientID", "00000000-0000-0000-0000-000000000001"),
        ("tenantID", "00000000-0000-0000-0000-000000000002"),
        ("AzureStorageAADEndpoint", &authority),
    ]);
    volume.secrets.clear();
    world.stage(volume.stage()).unwrap();
    assert_eq!(mounts(&volume.staging), 0, "the token comes with the publish");
    refused(
        world.publish(volume.publish()),
        Code::InvalidArgument,
        "MissingCredentials",
        &["tokenRequests"],
    );
    let mut publish = volume.publish();
    publish
        .volume_context
        .insert("csi.storage.k8s.io/serviceAccount.tokens".into(), tokens.clone());
    world.publish(publish.clone()).unwrap();
    assert_eq!(std::fs::read(volume.target.join("a.jpg")).unwrap(), b"hello");
    // Kubelet brings a newer token.
    publish.volume_context.insert(
        "csi.storage.k8s.io/serviceAccount.tokens".into(),
        tokens.replace("federated", "newer"),
    );
    world.publish(publish).unwrap();
    world.unpublish(volume.unpublish()).unwrap();
    assert!(!volume.target.exists());
    world.unstage(volume.unstage()).unwrap();
}

/// Kubelet brings the newer token when the older one has ended: a mount that cannot answer any more must get
/// it, not go.
#[test]
fn a_pods_newer_token_reaches_a_mount_whose_older_one_has_ended() {
    use std::io::Write;
    let world = World::new();
    let store = world.backend.store().unwrap();
    let authority = token_endpoint(|body| {
        let newer = body.contains("client_assertion=newer");
        if newer { "token-2" } else { "token-1" }.into()
    });
    let mut volume = world.volume(&[
        ("mountWithWorkloadIdentityToken", "true"),
        ("ClientID", "00000000-0000-0000-0000-000000000001"),
        ("tenantID", "00000000-0000-0000-0000-000000000002"),
        ("AzureStorageAADEndpoint", &authority),
        ("prefix", "album"),
    ]);
    volume.secrets.clear();
    let publish = |token: &str| {
        let mut request = volume.publish();
        request.volume_capability = Some(mount_capability(&["attr_timeout=0"]));
        let tokens = federated(token);
        request
            .volume_context
            .insert("csi.storage.k8s.io/serviceAccount.tokens".into(), tokens);
        world.publish(request).unwrap();
    };
    store.accept_token("token-1");
    publish("older");
    let mut file = std::fs::File::create(volume.target.join("open")).unwrap();
    store.revoke_token("token-1");
    store.accept_token("token-2");
    let (told, asked) = std::sync::mpsc::channel();
    let target = volume.target.clone();
    std::thread::spawn(move || told.send(std::fs::metadata(target).map(drop)));
    publish("newer");
    // An access token that was just fetched is used for some seconds, whatever the service says of it; who
    // asks meanwhile waits.
    asked.recv_timeout(PATIENCE).unwrap().unwrap();
    file.write_all(b"hello").unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert!(world.has("photos", "album/open"));
    world.unpublish(volume.unpublish()).unwrap();
}
