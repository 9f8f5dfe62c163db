//! What pods and calls meet when the node process ends, when the service fails, and when callers go away.

use super::*;

#[test]
fn after_a_kill_the_next_stage_mounts_afresh() {
    let mut world = World::new();
    let volume = world.volume(&[]);
    world.stage(volume.stage()).unwrap();
    world.publish(volume.publish()).unwrap();
    std::fs::write(volume.target.join("kept"), "hello").unwrap();
    world.plugin.restart_node(Signal::SIGKILL).unwrap();
    world.node = world.plugin.node().unwrap();

    // The pod's mount is dead, and health says so.
    let stats = world.stats(&volume, &volume.target).unwrap();
    let condition = stats.volume_condition.unwrap();
    assert!(
        condition.abnormal && condition.message.contains("does not answer"),
        "{condition:?}"
    );
    // The secrets came with the stage, and nobody can be asked for them. The dead mount is at the target, so
    // that the code must not say that nothing is.
    let without = NodePublishVolumeRequest {
        secrets: HashMap::new(),
        ..volume.publish()
    };
    refused(
        world.publish(without),
        Code::Unavailable,
        "MountDead",
        &["staging_target_path", "came with the stage"],
    );

    // Kubelet ends the pod and starts the next.
    world.unpublish(volume.unpublish()).unwrap();
    world.stage(volume.stage()).unwrap();
    world.publish(volume.publish()).unwrap();
    assert_eq!(std::fs::read(volume.target.join("kept")).unwrap(), b"hello");
    assert_eq!(
        (mounts(&volume.staging), mounts(&volume.target)),
        (1, 1),
        "in the place of the dead one"
    );
    world.unpublish(volume.unpublish()).unwrap();
    world.unstage(volume.unstage()).unwrap();
    assert_eq!((mounts(&volume.staging), mounts(&volume.target)), (0, 0));
}

/// A container that is restarted binds what is at its volume's place in that moment: an error, never the
/// node's disk.
#[test]
fn a_republish_never_uncovers_the_nodes_disk() {
    let mut world = World::new();
    let volume = world.volume(&[("csi.storage.k8s.io/ephemeral", "true")]);
    world.publish(volume.publish()).unwrap();
    std::fs::write(volume.target.join("kept"), "hello").unwrap();
    world.plugin.restart_node(Signal::SIGKILL).unwrap();
    world.node = world.plugin.node().unwrap();
    let store = world.backend.store().unwrap();
    store.inject(everything(Fault::Answer {
        status: 403,
        code: "AuthorizationFailure".to_owned(),
        retry_after: None,
    }));
    for _ in 0..2 {
        world.publish(volume.publish()).unwrap_err();
        let error = std::fs::write(volume.target.join("lost"), "x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    }
    store.clear_faults();
    world.publish(volume.publish()).unwrap();
    assert_eq!(std::fs::read(volume.target.join("kept")).unwrap(), b"hello");
    assert_eq!(mounts(&volume.target), 1, "in the place of the dead one");
    world.unpublish(volume.unpublish()).unwrap();
    assert_eq!(mounts(&volume.target), 0);
    assert!(!volume.target.exists());
}

#[test]
fn files_on_the_nodes_disk_are_told_and_stay() {
    let world = World::new();
    let volume = world.volume(&[]);
    world.stage(volume.stage()).unwrap();
    std::fs::create_dir_all(&volume.target).unwrap();
    std::fs::write(volume.target.join("precious"), "x").unwrap();
    let code = Code::FailedPrecondition;
    refused(
        world.publish(volume.publish()),
        code,
        "FilesOnNodeDisk",
        &["target_path"],
    );
    assert_eq!(mounts(&volume.target), 0);
    std::fs::remove_file(volume.target.join("precious")).unwrap();
    world.publish(volume.publish()).unwrap();
    world.unpublish(volume.unpublish()).unwrap();
    world.unstage(volume.unstage()).unwrap();
}

#[test]
fn a_dead_volume_can_be_taken_away_within_bounds() {
    let mut world = World::new();
    let volume = world.volume(&[]);
    world.stage(volume.stage()).unwrap();
    world.publish(volume.publish()).unwrap();
    world.plugin.restart_node(Signal::SIGKILL).unwrap();
    world.node = world.plugin.node().unwrap();
    world.unpublish(volume.unpublish()).unwrap();
    world.unstage(volume.unstage()).unwrap();
    assert_eq!((mounts(&volume.staging), mounts(&volume.target)), (0, 0));
}

#[test]
fn a_terminated_node_leaves_volumes_in_use_and_unmounts_the_others() {
    let mut world = World::new();
    let used = world.volume(&[]);
    let mut idle = world.volume(&[]);
    idle.id = "idle".into();
    idle.staging = world.path("staging-idle");
    std::fs::create_dir(&idle.staging).unwrap();
    world.stage(used.stage()).unwrap();
    world.publish(used.publish()).unwrap();
    world.stage(idle.stage()).unwrap();
    world.plugin.restart_node(Signal::SIGTERM).unwrap();
    world.node = world.plugin.node().unwrap();
    assert_eq!(mounts(&idle.staging), 0);
    assert_eq!(mounts(&used.target), 1, "a pod must not write to the node's disk");
    let error = std::fs::read_dir(&used.target).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    world.unpublish(used.unpublish()).unwrap();
    world.unstage(used.unstage()).unwrap();
}

/// Between the last pod of a volume and the next one kubelet keeps it staged, and does not stage it again for
/// that.
#[test]
fn a_staged_volume_without_a_pod_outlives_a_terminated_node() {
    let mut world = World::new();
    let volume = world.volume(&[]);
    world.stage(volume.stage()).unwrap();
    world.publish(volume.publish()).unwrap();
    std::fs::write(volume.target.join("kept"), "hello").unwrap();
    for _ in 0..2 {
        world.unpublish(volume.unpublish()).unwrap();
        world.plugin.restart_node(Signal::SIGTERM).unwrap();
        world.node = world.plugin.node().unwrap();
        assert_eq!(mounts(&volume.staging), 0);
        // The secrets came with the stage, and nobody can be asked for them.
        let without = NodePublishVolumeRequest {
            secrets: HashMap::new(),
            ..volume.publish()
        };
        let said = ["staging_target_path", "came with the stage"];
        refused(
            world.publish(without),
            Code::FailedPrecondition,
            "MountDead",
            &said,
        );
        world.publish(volume.publish()).unwrap();
        assert_eq!(std::fs::read(volume.target.join("kept")).unwrap(), b"hello");
        std::fs::write(volume.target.join("new"), "x").unwrap();
        assert_eq!((mounts(&volume.staging), mounts(&volume.target)), (1, 1));
    }
    world.unpublish(volume.unpublish()).unwrap();
    world.unstage(volume.unstage()).unwrap();
    // And one that no pod comes for can be taken away, and staged.
    world.stage(volume.stage()).unwrap();
    world.plugin.restart_node(Signal::SIGTERM).unwrap();
    world.node = world.plugin.node().unwrap();
    world.unstage(volume.unstage()).unwrap();
    let code = Code::FailedPrecondition;
    refused(
        world.publish(volume.publish()),
        code,
        "NotStaged",
        &["staging_target_path"],
    );
    world.stage(volume.stage()).unwrap();
    world.plugin.restart_node(Signal::SIGTERM).unwrap();
    world.node = world.plugin.node().unwrap();
    world.stage(volume.stage()).unwrap();
    world.publish(volume.publish()).unwrap();
    assert_eq!(std::fs::read(volume.target.join("kept")).unwrap(), b"hello");
    world.unpublish(volume.unpublish()).unwrap();
    world.unstage(volume.unstage()).unwrap();
    assert_eq!((mounts(&volume.staging), mounts(&volume.target)), (0, 0));
}

#[test]
fn a_stage_before_the_old_pods_are_gone_knows_them() {
    let mut world = World::new();
    let volume = world.volume(&[]);
    world.stage(volume.stage()).unwrap();
    world.publish(volume.publish()).unwrap();
    world.plugin.restart_node(Signal::SIGKILL).unwrap();
    world.node = world.plugin.node().unwrap();

    // Now or later the driver binds the old pod's target anew by itself.
    world.stage(volume.stage()).unwrap();
    // The next pod at the same path gets the new mount.
    world.publish(volume.publish()).unwrap();
    assert_eq!(mounts(&volume.target), 1, "in the place of the dead one");
    std::fs::write(volume.target.join("a"), "hello").unwrap();
    world.unpublish(volume.unpublish()).unwrap();
    world.unstage(volume.unstage()).unwrap();
    assert_eq!((mounts(&volume.staging), mounts(&volume.target)), (0, 0));
}

/// Kubelet does not stage a volume again while a pod of the node wants it: the driver makes what has died
/// anew by itself, and what a container that is restarted binds serves again.
#[test]
fn dead_mounts_are_made_anew_without_a_call() {
    let mut world = World::new_in(Surroundings {
        apart: true,
        ..Surroundings::default()
    });
    world.backend.store().unwrap().accept_token("token-of-the-node");
    let endpoint = format!("{}/msi", volumes::token_endpoint(|_| "token-of-the-node".into()));
    let mut volume = world.volume(&[("AzureStorageAuthType", "MSI"), ("MSIEndpoint", &endpoint)]);
    volume.secrets.clear();
    let mut other = world.volume(&[]);
    other.target = world.path("pods/2/mount");
    other.context.clone_from(&volume.context);
    let read_only = NodePublishVolumeRequest {
        readonly: true,
        ..other.publish()
    };
    world.stage(volume.stage()).unwrap();
    world.publish(volume.publish()).unwrap();
    world.publish(read_only.clone()).unwrap();
    std::fs::write(volume.target.join("kept"), "hello").unwrap();
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        world.plugin.restart_node(signal).unwrap();
        world.node = world.plugin.node().unwrap();
        let read = |at: &Path| std::fs::read_to_string(at.join("kept")).unwrap_or_default();
        wait_for("the mounts to serve again", PATIENCE, || {
            let all = [&volume.staging, &volume.target, &other.target];
            Ok(all.iter().all(|at| read(at) == "hello").then_some(()))
        })
        .unwrap();
        let refused = std::fs::write(other.target.join("new"), "x").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
        std::fs::write(volume.target.join("new"), "x").unwrap();
        let counts = [&volume.staging, &volume.target, &other.target].map(|at| mounts(at));
        assert_eq!(counts, [1, 1, 1]);
        // All as kubelet knows it.
        world.stage(volume.stage()).unwrap();
        world.publish(volume.publish()).unwrap();
        world.publish(read_only.clone()).unwrap();
    }
    world.unpublish(volume.unpublish()).unwrap();
    assert_eq!(std::fs::read(other.target.join("kept")).unwrap(), b"hello");
    world.unpublish(other.unpublish()).unwrap();
    world.unstage(volume.unstage()).unwrap();
}

/// Kubelet's folder is shared with the node: what one pod's target gets, or loses, no other path does.
#[test]
fn the_new_mount_of_one_pod_is_of_no_other() {
    let mut world = World::new_in(Surroundings {
        apart: true,
        ..Surroundings::default()
    });
    let volume = world.volume(&[]);
    let mut other = world.volume(&[]);
    other.target = world.path("pods/2/mount");
    let read_only = NodePublishVolumeRequest {
        readonly: true,
        ..other.publish()
    };
    world.stage(volume.stage()).unwrap();
    world.publish(volume.publish()).unwrap();
    world.publish(read_only.clone()).unwrap();
    std::fs::write(volume.target.join("kept"), "hello").unwrap();
    world.plugin.restart_node(Signal::SIGKILL).unwrap();
    world.node = world.plugin.node().unwrap();
    let state = |at: &Path| match std::fs::read(at.join("kept")) {
        Ok(kept) => String::from_utf8(kept).unwrap(),
        Err(error) => format!("{:?}", error.raw_os_error().unwrap()),
    };
    let states = || [&volume.staging, &volume.target, &other.target].map(|at| state(at));
    let (dead, gone) = (libc::ENOTCONN.to_string(), libc::ENOENT.to_string());
    let (dead, gone) = (dead.as_str(), gone.as_str());
    // Without the Secret of the stage nothing is made anew before that comes; then, at a moment of its own,
    // the driver binds each target by itself, which is not what is looked at here.
    assert_eq!(states(), [dead, dead, dead]);
    world.stage(volume.stage()).unwrap();
    assert_eq!(state(&volume.staging), "hello");
    world.publish(volume.publish()).unwrap();
    assert_eq!(states()[..2], ["hello", "hello"]);
    let before = state(&other.target);
    world.unpublish(volume.unpublish()).unwrap();
    assert_eq!(states()[..2], ["hello", gone]);
    let after = state(&other.target);
    assert!(
        after == "hello" || before == dead && after == dead,
        "{before}, then {after}"
    );
    world.publish(read_only).unwrap();
    assert_eq!(states(), ["hello", gone, "hello"]);
    let refused = std::fs::write(other.target.join("new"), "x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    std::fs::write(volume.staging.join("new"), "x").unwrap();
    assert_eq!((mounts(&volume.staging), mounts(&other.target)), (1, 1));
    world.unpublish(other.unpublish()).unwrap();
    world.unstage(volume.unstage()).unwrap();
    assert_eq!((mounts(&volume.staging), mounts(&other.target)), (0, 0));
}

/// Two volumes, one staged and one inline, each published and with a file open; every look at them asks the
/// service.
struct InUse {
    staged: Volume,
    inline: Volume,
    files: Vec<std::fs::File>,
}

impl InUse {
    fn new(world: &World) -> Self {
        let mut staged = world.volume(&[]);
        staged.id = "staged".into();
        let mut inline = world.volume(&[("csi.storage.k8s.io/ephemeral", "true"), ("prefix", "album")]);
        inline.id = "inline".into();
        inline.target = world.path("pods/2/mount");
        let used = |volume: &Volume| std::fs::File::create(volume.target.join("open")).unwrap();
        world.stage(Self::stage(&staged)).unwrap();
        world.publish(Self::publish(&staged)).unwrap();
        world.publish(Self::publish(&inline)).unwrap();
        let files = vec![used(&staged), used(&inline)];
        Self {
            staged,
            inline,
            files,
        }
    }

    /// No attribute is believed without asking.
    fn capability() -> Option<VolumeCapability> {
        Some(mount_capability(&["attr_timeout=0"]))
    }

    fn stage(volume: &Volume) -> NodeStageVolumeRequest {
        NodeStageVolumeRequest {
            volume_capability: Self::capability(),
            ..volume.stage()
        }
    }

    fn publish(volume: &Volume) -> NodePublishVolumeRequest {
        NodePublishVolumeRequest {
            volume_capability: Self::capability(),
            ..volume.publish()
        }
    }

    fn wait_for_files(&self, world: &World) {
        wait_for("the files in the service", PATIENCE, || {
            let there = world.has("photos", "open") && world.has("photos", "album/open");
            Ok(there.then_some(()))
        })
        .unwrap();
    }

    /// What pods had open goes on, and everything goes the ordinary way.
    fn end(self, world: &World) {
        use std::io::Write;
        for mut file in self.files {
            file.write_all(b"hello").unwrap();
            file.sync_all().unwrap();
        }
        assert!(world.has("photos", "open") && world.has("photos", "album/open"));
        world.unpublish(self.inline.unpublish()).unwrap();
        world.unpublish(self.staged.unpublish()).unwrap();
        world.unstage(self.staged.unstage()).unwrap();
    }
}

fn everything(fault: Fault) -> FaultRule {
    FaultRule {
        operation: None,
        ..FaultRule::every(Operation::ListBlobs, fault)
    }
}

#[test]
fn a_service_that_fails_takes_no_mount_away() {
    let world = World::new();
    let store = world.backend.store().unwrap();
    let used = InUse::new(&world);
    for (status, code) in [(404, "ContainerNotFound"), (403, "AuthorizationFailure")] {
        let code = code.to_owned();
        store.inject(everything(Fault::Answer {
            status,
            code,
            retry_after: None,
        }));
        for _ in 0..2 {
            world.stage(InUse::stage(&used.staged)).unwrap();
            world.publish(InUse::publish(&used.staged)).unwrap();
            world.publish(InUse::publish(&used.inline)).unwrap();
        }
        // The volume's condition is what its programs meet.
        std::fs::metadata(&used.inline.target).unwrap_err();
        let stats = world.stats(&used.inline, &used.inline.target).unwrap();
        let condition = stats.volume_condition.unwrap();
        assert!(
            condition.abnormal && condition.message.contains("does not answer"),
            "{condition:?}"
        );
        store.clear_faults();
        // Nobody but kubelet looks, and it is told that the service is back.
        let stats = world.stats(&used.inline, &used.inline.target).unwrap();
        assert!(!stats.volume_condition.unwrap().abnormal);
    }
    used.end(&world);
}

/// Kubelet repeats these calls for ever, for each pod on each node, and for volumes that nobody uses as well.
#[test]
fn what_kubelet_repeats_asks_the_service_for_nothing() {
    let world = World::new();
    let store = world.backend.store().unwrap();
    let mut used = InUse::new(&world);
    // An empty new file is in the service a moment after close.
    used.files.clear();
    used.wait_for_files(&world);
    for volume in [&used.staged, &used.inline] {
        wait_for("the volume to be counted", PATIENCE, || {
            let condition = world.stats(volume, &volume.target)?.volume_condition.unwrap();
            Ok((!condition.message.contains("not counted yet")).then_some(()))
        })
        .unwrap();
    }
    store.record_requests(true);
    store.reset_counters();
    for _ in 0..20 {
        for volume in [&used.staged, &used.inline] {
            world.publish(InUse::publish(volume)).unwrap();
            let stats = world.stats(volume, &volume.target).unwrap();
            assert!(!stats.volume_condition.unwrap().abnormal);
        }
    }
    let asked = store.requests();
    assert!(
        asked.is_empty(),
        "{} requests, the first: {:?}",
        asked.len(),
        asked[0]
    );
    used.end(&world);
}

#[test]
fn a_service_that_hangs_takes_no_mount_away_and_holds_no_call() {
    let world = World::new();
    let store = world.backend.store().unwrap();
    let mut used = InUse::new(&world);
    // A program that another test starts has copies of what is open here, and closes them at its beginning:
    // it would hang as well.
    used.files.clear();
    // An empty new file is in the service a moment after close.
    used.wait_for_files(&world);
    store.inject(everything(Fault::Hang));
    for _ in 0..10 {
        // Only the first of them waits for an answer.
        world.stage(InUse::stage(&used.staged)).unwrap();
        world.publish(InUse::publish(&used.staged)).unwrap();
    }
    let mut another = InUse::publish(&used.staged);
    another.target_path = world.path("pods/3/mount").display().to_string();
    refused(
        world.publish(another),
        Code::Unavailable,
        "MountSilent",
        &["staging_target_path"],
    );
    refused(
        world.unstage(used.staged.unstage()),
        Code::FailedPrecondition,
        "TargetInUse",
        &["still published"],
    );
    store.clear_faults();
    // The request that hangs is given up and repeated.
    wait_for("the mount to answer again", PATIENCE, || {
        let stats = world.stats(&used.staged, &used.staged.target)?;
        Ok((!stats.volume_condition.unwrap().abnormal).then_some(()))
    })
    .unwrap();
    used.end(&world);
}

#[test]
fn a_call_that_nobody_waits_for_goes_to_its_end() {
    let world = World::new();
    let volume = world.volume(&[]);
    // After the mount, and before the file system answers.
    let slow = Fault::Delay(Duration::from_secs(5));
    let store = world.backend.store().unwrap();
    store.inject(FaultRule::next(Operation::GetContainerProperties, slow));
    let (mut client, request) = (world.node.node.clone(), volume.stage());
    let stage = runtime().spawn(async move { client.node_stage_volume(request).await });
    wait_for("the mount", PATIENCE, || {
        Ok((mounts(&volume.staging) == 1).then_some(()))
    })
    .unwrap();
    stage.abort();
    let ended = wait_for("the first call to end", PATIENCE, || {
        match world.stage(volume.stage()) {
            Err(status) if status.code() == Code::Aborted => Ok(None),
            ended => Ok(Some(ended)),
        }
    });
    ended.unwrap().unwrap();
    assert_eq!(mounts(&volume.staging), 1);
    world.publish(volume.publish()).unwrap();
    std::fs::write(volume.target.join("a"), "hello").unwrap();
    world.unpublish(volume.unpublish()).unwrap();
    world.unstage(volume.unstage()).unwrap();
}

#[test]
fn one_call_per_volume_at_a_time() {
    let world = World::new();
    let staged = world.volume(&[]);
    let mut inline = world.volume(&[("csi.storage.k8s.io/ephemeral", "true")]);
    inline.id = "inline".into();
    for mut volume in [staged, inline] {
        // The first call waits for the container's first answer.
        let mut gate = Gate::new(&world);
        volume.context.insert("server".into(), gate.server.clone());
        let (mut client, is_inline) = (world.node.node.clone(), volume.id == "inline");
        let (stage, publish) = (volume.stage(), volume.publish());
        let first = runtime().spawn(async move {
            if is_inline {
                client.node_publish_volume(publish).await.map(drop)
            } else {
                client.node_stage_volume(stage).await.map(drop)
            }
        });
        gate.until_somebody_waits();
        let (code, reason, names) = (Code::Aborted, "OperationPending", [volume.id.as_str()]);
        refused(world.stage(volume.stage()), code, reason, &names);
        refused(world.publish(volume.publish()), code, reason, &names);
        refused(world.unpublish(volume.unpublish()), code, reason, &names);
        refused(world.unstage(volume.unstage()), code, reason, &names);
        gate.open();
        let first = runtime().block_on(async { tokio::time::timeout(PATIENCE, first).await });
        first.expect("the call did not return").unwrap().unwrap();
        let at = if is_inline {
            &volume.target
        } else {
            &volume.staging
        };
        assert_eq!(mounts(at), 1);
        world.unpublish(volume.unpublish()).unwrap();
        world.unstage(volume.unstage()).unwrap();
        assert_eq!(mounts(at), 0);
    }
}

/// `kubectl delete --force`: the next pod of the driver starts while the former one still finishes a call.
#[test]
fn a_second_node_process_serves_when_the_first_has_ended() {
    let mut world = World::new();
    let mut late = world.volume(&[]);
    let mut gate = Gate::new(&world);
    late.context.insert("server".into(), gate.server.clone());
    let (mut client, request) = (world.node.node.clone(), late.stage());
    let stage = runtime().spawn(async move { client.node_stage_volume(request).await.map(drop) });
    gate.until_somebody_waits();
    world.plugin.node_process().signal(Signal::SIGTERM).unwrap();
    let mut second = world.plugin.second_node().unwrap();
    let said = |words: &'static str| move |line: &str| line.contains(words).then_some(());
    second
        .wait_for_line("the second to wait", PATIENCE, said("has not ended yet; waiting"))
        .unwrap();
    gate.open();
    // Whether it succeeds is not the matter here: it is finished.
    let finished = runtime().block_on(async { tokio::time::timeout(PATIENCE, stage).await });
    let _ = finished.expect("the call did not return").unwrap();
    second
        .wait_for_line("the second to serve", PATIENCE, said("serving the node"))
        .unwrap();
    world.plugin.succeeded_by(second).unwrap();
    world.node = world.plugin.node().unwrap();

    // What the first took away at its end was its own.
    assert!(world.path("state").is_dir());
    assert!(world.plugin.node_socket().exists());
    assert!(world.plugin.registration_socket().unwrap().exists());
    let volume = world.volume(&[]);
    world.stage(volume.stage()).unwrap();
    world.publish(volume.publish()).unwrap();
    std::fs::write(volume.target.join("a"), "hello").unwrap();
    world.unpublish(volume.unpublish()).unwrap();
    world.unstage(volume.unstage()).unwrap();
}
