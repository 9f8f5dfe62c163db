//! What pods and calls meet when the node process ends.

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
    refused(
        world.publish(volume.publish()),
        Code::FailedPrecondition,
        "MountDead",
        &["staging_target_path"],
    );

    // Kubelet ends the pod and starts the next.
    world.unpublish(volume.unpublish()).unwrap();
    world.stage(volume.stage()).unwrap();
    world.publish(volume.publish()).unwrap();
    assert_eq!(std::fs::read(volume.target.join("kept")).unwrap(), b"hello");
    assert_eq!((mounts(&volume.staging), mounts(&volume.target)), (1, 1));
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

#[test]
fn one_call_per_volume_at_a_time() {
    let world = World::new();
    let volume = world.volume(&[]);
    // Two stages at once: one is told to come again, or both meet one after the other; never two mounts.
    let mut clients = [world.node.node.clone(), world.node.node.clone()];
    let [a, b] = &mut clients;
    let (first, second) = runtime().block_on(async {
        tokio::join!(
            a.node_stage_volume(volume.stage()),
            b.node_stage_volume(volume.stage())
        )
    });
    for result in [first, second] {
        assert!(result.is_ok() || result.unwrap_err().code() == Code::Aborted);
    }
    assert_eq!(mounts(&volume.staging), 1);
    world.unstage(volume.unstage()).unwrap();
}
