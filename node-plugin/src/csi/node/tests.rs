//! What a failed call tells the cluster - the pod and the claim that wait for it -, and calls over a kernel
//! in memory.

use std::time::Duration;

use blob_client::transport::failover::{ChannelState, Paths};
use blob_fs::store::fake::FakeStore;
use blob_fs::{Budget, Owing, Resources, VolumeConfig};
use tokio_util::sync::CancellationToken;
use vsc_driver::buffer::Arena;

use super::*;
use crate::access::Access;
use crate::cluster::fake::{FakeCluster, NODE, claim, pod};
use crate::cluster::{self, Claims, Membership, Reporter};
use crate::csi::named_secret::Whose;
use crate::csi::volume_context::{Attributes, Scope, Secrets};
use crate::mounts::calls::Patience;
use crate::mounts::fake::{FakeKernel, Health};
use crate::mounts::mount::Credentials;
use crate::mounts::mountinfo::FS_TYPE;
use crate::mounts::record::{Record, Target};
use crate::mounts::{Condition, Kernel, Mounter};

const UID: &str = "uid-of-pod-reader";

pub(super) struct World {
    pub(super) service: NodeService,
    pub(super) cluster: Arc<FakeCluster>,
    folder: tempfile::TempDir,
    _stop: tokio_util::sync::DropGuard,
}

/// A node with its state in a folder.
fn service(kernel: Arc<dyn Mounter>, folder: &Path) -> NodeService {
    let runtime = tokio::runtime::Handle::current();
    let arena = Arena::new(64 << 20).unwrap();
    let resources = Resources {
        budget: Budget::new(32 << 20),
        arena: arena.clone(),
        runtime: runtime.clone(),
    };
    let mounts = Mounts::new(kernel, resources, &folder.join("state"), Patience::default());
    let connector = Connector::new(Paths::new(None, arena.clone(), runtime), arena);
    NodeService::new(NODE, Arc::new(mounts.unwrap()), connector, None)
}

/// A node in a cluster with one claim, `team/data`, of volume `h`, used by pod `team/reader`.
pub(super) fn world() -> World {
    world_over(Arc::new(Kernel))
}

fn world_over(kernel: Arc<dyn Mounter>) -> World {
    let folder = tempfile::tempdir().unwrap();
    let service = service(kernel, folder.path());
    let cluster = FakeCluster::new();
    cluster.set(|state| {
        state.pods.push(pod("team", "reader", &["data"]));
        state.bound("team", "data", "pv-1");
        state.volume("pv-1", crate::DRIVER_NAME, "h", Some(claim("team", "data")));
    });
    let link = Link {
        cluster: cluster.clone(),
        driver: crate::DRIVER_NAME.into(),
        node: NODE.into(),
        claims: Arc::new(Claims::new(cluster.clone(), crate::DRIVER_NAME, NODE)),
        reporter: Reporter::default(),
    };
    let membership = Membership {
        cluster: cluster.clone(),
        node: NODE.into(),
        driver: crate::DRIVER_NAME.into(),
        claims: link.claims.clone(),
        channel: tokio::sync::watch::channel(ChannelState::default()).1,
        ready: Arc::new(|| Box::pin(std::future::ready(Ok(())))),
        unstored: Arc::new(Vec::new),
    };
    let stop = CancellationToken::new();
    tokio::spawn(membership.keep(link.reporter.clone(), stop.clone()));
    World {
        service: service.in_cluster(link),
        cluster,
        folder,
        _stop: stop.drop_guard(),
    }
}

fn capability() -> VolumeCapability {
    use volume_capability::access_mode::Mode;
    use volume_capability::{AccessMode, AccessType, MountVolume};
    VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode {
            mode: Mode::MultiNodeMultiWriter as i32,
        }),
    }
}

pub(super) fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

#[tokio::test]
async fn a_failed_stage_becomes_an_event_of_the_claim() {
    let world = world();
    let staging = world.folder.path().join("globalmount");
    std::fs::create_dir(&staging).unwrap();
    let request = NodeStageVolumeRequest {
        volume_id: "h".into(),
        staging_target_path: staging.display().to_string(),
        volume_capability: Some(capability()),
        volume_context: map(&[("contianerName", "photos")]),
        ..NodeStageVolumeRequest::default()
    };
    let status = world.service.node_stage_volume(Request::new(request)).await;
    let said = status.unwrap_err().message().to_owned();
    let told = [("PersistentVolumeClaim", "data", "UnknownKey", 1)];
    world.cluster.until(|state| state.told() == told).await;
    world.cluster.set(|state| {
        for event in state.events.values() {
            assert_eq!(event.message, said, "what kubelet gets is what people read");
        }
    });
}

#[tokio::test]
async fn a_call_that_has_to_wait_is_no_event() {
    let world = world();
    let staging = world.folder.path().join("globalmount");
    std::fs::create_dir(&staging).unwrap();
    let mut request = NodeStageVolumeRequest {
        volume_id: "h".into(),
        staging_target_path: staging.display().to_string(),
        volume_capability: Some(capability()),
        volume_context: map(&[("containerName", "photos")]),
        ..NodeStageVolumeRequest::default()
    };
    let first = world.service.mounts.enter("h", Path::new("/elsewhere")).unwrap();
    let status = world
        .service
        .node_stage_volume(Request::new(request.clone()))
        .await
        .unwrap_err();
    assert_eq!(status.code(), tonic::Code::Aborted);
    drop(first);
    // Events are sent in order: with this one there, the other one is not to come.
    request.volume_context = map(&[("contianerName", "photos")]);
    let status = world.service.node_stage_volume(Request::new(request)).await;
    assert_eq!(status.unwrap_err().code(), tonic::Code::InvalidArgument);
    let told = [("PersistentVolumeClaim", "data", "UnknownKey", 1)];
    world.cluster.until(|state| state.told() == told).await;
}

#[tokio::test]
async fn a_failed_inline_volume_becomes_an_event_of_the_node() {
    let world = world();
    let target = world
        .folder
        .path()
        .join(format!("pods/{UID}/volumes/kubernetes.io~csi/v/mount"));
    let request = NodePublishVolumeRequest {
        volume_id: "csi-1".into(),
        target_path: target.display().to_string(),
        volume_capability: Some(capability()),
        volume_context: map(&[
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.name", "reader"),
            ("csi.storage.k8s.io/pod.namespace", "team"),
            ("csi.storage.k8s.io/pod.uid", UID),
            ("storageAccount", "acct"),
            ("containerName", "photos"),
            ("secretName", "storage-key"),
            ("secretNamespace", "kube-system"),
        ]),
        ..NodePublishVolumeRequest::default()
    };
    let status = world.service.node_publish_volume(Request::new(request)).await;
    assert_eq!(status.unwrap_err().code(), tonic::Code::PermissionDenied);
    let told = [("Node", NODE, "SecretNamespaceRefused", 1)];
    world.cluster.until(|state| state.told() == told).await;
    assert!(!target.exists(), "nothing is left behind");
}

fn record(volume_id: &str, path: &Path, context: &HashMap<String, String>) -> Record {
    let access = Access::parse(Some(&capability()), Reason::CapabilityExceeded).unwrap();
    Record::new(volume_id, path, access, stable_context(context))
}

/// Stages the volume `h`; where.
async fn staged(service: &NodeService, folder: &tempfile::TempDir) -> PathBuf {
    let staging = folder.path().join("globalmount");
    let config = VolumeConfig::new("acct/photos", Arc::new(FakeStore::new()));
    let record = record("h", &staging, &HashMap::new());
    service
        .mounts
        .start(record, config, Credentials::default())
        .await
        .unwrap();
    staging
}

#[tokio::test]
async fn a_target_that_its_record_lost_is_remembered_again() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::new();
    let service = service(kernel.clone(), folder.path());
    let (staging, target) = (folder.path().join("globalmount"), folder.path().join("mount"));
    let request = NodePublishVolumeRequest {
        volume_id: "h".into(),
        staging_target_path: staging.display().to_string(),
        target_path: target.display().to_string(),
        volume_capability: Some(capability()),
        volume_context: map(&[("containerName", "photos")]),
        ..NodePublishVolumeRequest::default()
    };
    let staged = record("h", &staging, &request.volume_context);
    service.mounts.remember(staged).unwrap();
    kernel.add(&staging, FS_TYPE);
    // The process ended between the bind and the record of it.
    let there = kernel.table().unwrap().remove(0);
    kernel.bind_to(&there, &target);
    service.node_publish_volume(Request::new(request)).await.unwrap();
    assert!(
        service
            .mounts
            .record(&staging)
            .unwrap()
            .targets
            .contains_key(&target)
    );
    assert_eq!(kernel.mounts(), [staging, target], "and bound once");
}

/// Closed files that the service does not take are told by both of kubelet's ways to ask, as long as that
/// lasts.
#[tokio::test]
async fn what_the_service_does_not_take_is_the_volumes_condition() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::new();
    let service = service(kernel.clone(), folder.path());
    let staging = staged(&service, &folder).await;
    let condition = async || {
        let request = NodeGetVolumeStatsRequest {
            volume_id: "h".into(),
            volume_path: staging.display().to_string(),
            ..NodeGetVolumeStatsRequest::default()
        };
        let stats = service
            .node_get_volume_stats(Request::new(request))
            .await
            .unwrap();
        let stats = stats.into_inner();
        assert_eq!(stats.usage.len(), 2, "kubelet drops an answer without usage");
        let condition = stats.volume_condition.unwrap();
        (condition.abnormal, condition.message)
    };
    let health = async || {
        let request = NodeGetVolumeHealthRequest {
            volume_id: "h".into(),
            ..NodeGetVolumeHealthRequest::default()
        };
        let health = service
            .node_get_volume_health(Request::new(request))
            .await
            .unwrap();
        let health = health.into_inner().volume_health.unwrap();
        health.health_statuses
    };
    assert!(!condition().await.0);
    kernel.owe(Owing {
        files: 2,
        bytes: 100,
        oldest: Some(Duration::from_secs(45)),
        ..Owing::default()
    });
    let (abnormal, message) = condition().await;
    assert!(
        abnormal && message.contains("2 closed files of 100 bytes"),
        "{message}"
    );
    let told = health().await;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].status(), VolumeHealthErrorType::Degraded);
    assert_eq!(
        (told[0].reason.as_str(), &told[0].message),
        ("DataNotStored", &message)
    );
    kernel.owe(Owing::default());
    assert!(!condition().await.0);
    assert_eq!(health().await, []);
}

/// A mount of which nothing is remembered - the state folder is lost - is no dead end for every stage to
/// come, as long as no pod uses it.
#[tokio::test]
async fn a_mount_that_nobody_remembers_is_in_nobodys_way() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::new();
    let service = service(kernel.clone(), folder.path());
    let (staging, target) = (folder.path().join("globalmount"), folder.path().join("mount"));
    std::fs::create_dir(&staging).unwrap();
    let request = NodeStageVolumeRequest {
        volume_id: "h".into(),
        staging_target_path: staging.display().to_string(),
        volume_capability: Some(capability()),
        volume_context: map(&[("containerName", "photos")]),
        ..NodeStageVolumeRequest::default()
    };
    let stage = async || {
        let staged = service.node_stage_volume(Request::new(request.clone())).await;
        staged.unwrap_err().message().to_owned()
    };
    kernel.add(&staging, FS_TYPE);
    let there = kernel.table().unwrap().remove(0);
    kernel.bind_to(&there, &target);
    let refused = stage().await;
    assert!(refused.contains("StagedDifferently"), "a pod uses it: {refused}");
    kernel.unmount(&target, false).unwrap();
    // This volume names no account, which is looked at when the mount is no obstacle any more.
    let refused = stage().await;
    assert!(refused.contains("MissingField"), "{refused}");
}

/// A container that is restarted binds what is at the target in that moment: a call that fails takes nothing
/// away, dead as it is.
#[tokio::test]
async fn a_publish_that_fails_leaves_the_dead_mount_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::new();
    let service = service(kernel.clone(), folder.path());
    let staging = staged(&service, &folder).await;
    let publish = async |target: &Path, context: &[(&str, &str)]| {
        let request = NodePublishVolumeRequest {
            volume_id: "h".into(),
            staging_target_path: staging.display().to_string(),
            target_path: target.display().to_string(),
            volume_capability: Some(capability()),
            volume_context: map(context),
            ..NodePublishVolumeRequest::default()
        };
        let published = service.node_publish_volume(Request::new(request)).await;
        published.map_err(|status| status.message().to_owned())
    };
    let (inline, bound) = (folder.path().join("inline"), folder.path().join("bound"));
    for target in [&inline, &bound] {
        std::fs::create_dir(target).unwrap();
        kernel.add(target, FS_TYPE);
        kernel.kill(target);
        kernel.publish(target);
    }
    let refused = publish(&inline, &[("csi.storage.k8s.io/ephemeral", "true")]).await;
    assert!(refused.unwrap_err().contains("MissingField"), "an account");
    kernel.set(Health::Failing(libc::EIO));
    let refused = publish(&bound, &[]).await;
    assert!(refused.unwrap_err().contains("MountSilent"), "the service fails");
    kernel.set(Health::Answering);
    publish(&bound, &[]).await.unwrap();
    assert_eq!(
        service.mounts.condition(&bound).await.unwrap(),
        Condition::Healthy
    );
    assert!(inline.is_dir() && bound.is_dir());
    assert!(kernel.uncovered().is_empty(), "{:?}", kernel.uncovered());
}

/// What cannot be made anew is told by name: as the answer of the call, as the volume's condition, and as an
/// Event of its claim.
#[tokio::test]
async fn a_dead_mount_says_why_it_cannot_be_made_anew() {
    let kernel = FakeKernel::new();
    let world = world_over(kernel.clone());
    let (service, staging) = (&world.service, world.folder.path().join("globalmount"));
    let dead = async |secrets_given: Option<bool>, context: &[(&str, &str)]| {
        let mut record = record("h", &staging, &map(context));
        record.secrets_given = secrets_given;
        service.mounts.remember(record.clone()).unwrap();
        service.heal_in_turn(&record).await.unwrap_err()
    };
    kernel.add(&staging, FS_TYPE);
    kernel.kill(&staging);
    let account = [("storageAccount", "acct"), ("containerName", "photos")];
    // No Secret is named.
    let error = dead(Some(true), &account).await;
    assert_eq!(error.reason, Reason::MountDead, "{error}");
    assert!(error.message.contains("came with the stage"), "{error}");
    // One is, and may not be read.
    world.cluster.set(|state| {
        let volume = state.volumes.get_mut("pv-1").unwrap();
        volume.stage_secret = Some(("team".into(), "storage-key".into()));
        let denied = cluster::Error::Denied("secrets is forbidden".into());
        state.refused.push(("secret team/storage-key".into(), denied));
    });
    for given in [Some(true), None] {
        let error = dead(given, &account).await;
        assert_eq!(error.reason, Reason::SecretAccessDenied, "{error}");
        assert!(
            error
                .message
                .contains("nodeStageSecretRef: the driver may not read"),
            "{error}"
        );
    }
    let denied = ("PersistentVolumeClaim", "data", "SecretAccessDenied");
    world
        .cluster
        .until(|state| {
            let mut told = state.told().into_iter();
            told.any(|(kind, name, reason, _)| (kind, name, reason) == denied)
        })
        .await;
    let request = NodeGetVolumeHealthRequest {
        volume_id: "h".into(),
        ..NodeGetVolumeHealthRequest::default()
    };
    let health = service
        .node_get_volume_health(Request::new(request))
        .await
        .unwrap();
    let told = health.into_inner().volume_health.unwrap().health_statuses;
    assert_eq!(told[0].reason, "MountDead");
    assert!(told[0].message.contains("storage-key"), "{}", told[0].message);
    // It may, and holds nothing of use: it was read.
    world.cluster.set(|state| {
        state.refused.clear();
        let secret = map(&[("password", "x")]);
        state
            .secrets
            .insert(("team".into(), "storage-key".into()), secret);
    });
    let error = dead(Some(true), &account).await;
    assert_eq!(error.reason, Reason::MissingCredentials, "{error}");
    // A stage without secrets needs none, and none are looked for.
    let asked = world.cluster.calls().len();
    let error = dead(Some(false), &[("containerName", "photos")]).await;
    assert_eq!(error.reason, Reason::MissingField, "an account: {error}");
    let later = &world.cluster.calls()[asked..];
    assert!(!later.iter().any(|call| call.starts_with("secret")), "{later:?}");
    assert_eq!(service.mounts.healing().failed(), 5);
    assert_eq!(kernel.mounts(), [staging], "and the dead mount stays");
}

/// A publish of a volume that is dead at `staging`, and what is said of it.
async fn publish_dead(world: &World, staging: &Path, context: &[(&str, &str)]) -> String {
    let request = NodePublishVolumeRequest {
        volume_id: "h".into(),
        staging_target_path: staging.display().to_string(),
        target_path: world.folder.path().join("mount").display().to_string(),
        volume_capability: Some(capability()),
        volume_context: map(context),
        ..NodePublishVolumeRequest::default()
    };
    let published = world.service.node_publish_volume(Request::new(request)).await;
    published.unwrap_err().message().to_owned()
}

/// Kubelet repeats the call every minute for every pod, and after each error: the API server, which many
/// nodes share, is asked as often as the driver wants to.
#[tokio::test]
async fn a_republish_of_a_dead_volume_does_not_try_again_at_once() {
    let kernel = FakeKernel::new();
    let world = world_over(kernel.clone());
    let (staging, target) = (
        world.folder.path().join("globalmount"),
        world.folder.path().join("mount"),
    );
    let account = [("storageAccount", "acct"), ("containerName", "photos")];
    let mut record = record("h", &staging, &map(&account));
    record.secrets_given = Some(true);
    kernel.add(&staging, FS_TYPE);
    kernel.kill(&staging);
    world.service.mounts.remember(record.clone()).unwrap();
    let first = publish_dead(&world, &staging, &account).await;
    assert!(first.contains("MountDead"), "{first}");
    // A pod that has no mount yet may try at once.
    assert_eq!(publish_dead(&world, &staging, &account).await, first);
    let healing = world.service.mounts.healing();
    assert_eq!(healing.failed(), 2);
    let args = Target {
        read_only: false,
        access: record.access.clone(),
    };
    world
        .service
        .mounts
        .remember_target(&staging, &target, args)
        .unwrap();
    // The pause is a minute by then.
    for _ in 0..6 {
        let failed = Err(Error::new(Reason::MountDead, "that of the latest attempt"));
        healing.note(&staging, false, &failed);
    }
    let again = publish_dead(&world, &staging, &account).await;
    assert!(again.contains("that of the latest attempt"), "{again}");
    assert_eq!(healing.failed(), 8, "nothing was tried");
}

/// What a call has that is refused decides nothing for the pods that have the volume.
#[tokio::test]
async fn a_volume_is_made_anew_as_it_was() {
    let kernel = FakeKernel::new();
    let world = world_over(kernel.clone());
    let staging = world.folder.path().join("globalmount");
    let account = [("storageAccount", "acct"), ("containerName", "photos")];
    let mut record = record("h", &staging, &map(&account));
    kernel.add(&staging, FS_TYPE);
    kernel.kill(&staging);
    world.service.mounts.remember(record.clone()).unwrap();
    let other = [("storageAccount", "acct"), ("containerName", "others")];
    let refused = publish_dead(&world, &staging, &other).await;
    assert!(refused.contains("StagedDifferently"), "{refused}");
    assert_eq!(world.service.mounts.healing().failed(), 0, "nothing was tried");

    // The Secret of the stage names another account by now.
    world.cluster.set(|state| {
        let volume = state.volumes.get_mut("pv-1").unwrap();
        volume.stage_secret = Some(("team".into(), "storage-key".into()));
        let secret = map(&[
            ("azurestorageaccountname", "acct"),
            ("azurestorageaccountkey", "a2V5"),
        ]);
        state
            .secrets
            .insert(("team".into(), "storage-key".into()), secret);
    });
    record.context = stable_context(&map(&[("containerName", "photos")]));
    record.secrets_given = Some(true);
    record.endpoint = Some("https://former.blob.core.windows.net/".into());
    world.service.mounts.remember(record.clone()).unwrap();
    let error = world.service.heal_in_turn(&record).await.unwrap_err();
    assert_eq!(error.reason, Reason::ConflictingFields, "{error}");

    // What a publish brings does not go before it.
    let given = Secrets::parse(&map(&[("azurestorageaccountname", "others")])).unwrap();
    let again = secrets_again(&world.service, &record, given).await.unwrap();
    assert_eq!(again.0.account.as_deref(), Some("acct"));
    assert!(again.1, "it came with the stage");
}

/// After a stage that failed for good kubelet takes nothing for staged, and unstages nothing.
#[tokio::test]
async fn a_stage_that_fails_leaves_no_record_of_what_was_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let service = service(FakeKernel::new(), folder.path());
    let staging = folder.path().join("globalmount");
    std::fs::create_dir(&staging).unwrap();
    let context = map(&[("storageAccount", "acct"), ("containerName", "photos")]);
    let mut record = record("h", &staging, &context);
    record.set_aside = Some("this boot".into());
    service.mounts.remember(record).unwrap();
    let request = NodeStageVolumeRequest {
        volume_id: "h".into(),
        staging_target_path: staging.display().to_string(),
        volume_capability: Some(capability()),
        volume_context: context,
        ..NodeStageVolumeRequest::default()
    };
    let refused = service
        .node_stage_volume(Request::new(request))
        .await
        .unwrap_err();
    assert!(refused.message().contains("MissingCredentials"), "{refused}");
    assert!(service.mounts.records().is_empty());
}

async fn secrets_again(service: &NodeService, record: &Record, given: Secrets) -> Result<(Secrets, bool)> {
    let context: HashMap<String, String> = record.context.clone().into_iter().collect();
    let attributes = Attributes::parse(&context, Scope::Attributes)?;
    let whose = Whose::Staged(VolumeAt {
        handle: record.volume_id.clone(),
        path: record.path.clone(),
    });
    service.secrets_again(record, &attributes, given, &whose).await
}

/// Many classes name a Secret that only says the account once more.
#[tokio::test]
async fn an_identity_needs_no_secret_of_the_stage() {
    let folder = tempfile::tempdir().unwrap();
    let service = service(FakeKernel::new(), folder.path());
    let staging = folder.path().join("globalmount");
    for (auth, account, enough) in [
        ("MSI", Some("acct"), true),
        ("WorkloadIdentity", Some("acct"), true),
        ("Anonymous", Some("acct"), true),
        ("MSI", None, false),
        ("SPN", Some("acct"), false),
        ("Key", Some("acct"), false),
    ] {
        let mut context = map(&[("containerName", "photos"), ("AzureStorageAuthType", auth)]);
        context.extend(account.map(|account| ("storageAccount".to_owned(), account.to_owned())));
        let mut record = record("h", &staging, &context);
        record.secrets_given = Some(true);
        match secrets_again(&service, &record, Secrets::default()).await {
            Ok((secrets, _)) => assert!(enough && secrets.is_empty(), "{auth}, {account:?}"),
            Err(error) => {
                assert!(!enough, "{auth}, {account:?}: {error}");
                assert_eq!(error.reason, Reason::MountDead, "{auth}, {account:?}");
            }
        }
    }
}

/// One pod whose target no attempt can bind again: the others have the volume, and that one is told once.
#[tokio::test]
async fn a_volume_is_healed_when_all_is_that_can_be() {
    let kernel = FakeKernel::new();
    let world = world_over(kernel.clone());
    let staging = staged(&world.service, &world.folder).await;
    let pods = ["1", "2"].map(|name| world.folder.path().join(name));
    let record = record("h", &staging, &HashMap::new());
    for pod in &pods {
        std::fs::create_dir(pod).unwrap();
        kernel.add(pod, FS_TYPE);
        kernel.kill(pod);
        let args = Target {
            read_only: false,
            access: record.access.clone(),
        };
        world.service.mounts.remember_target(&staging, pod, args).unwrap();
    }
    kernel.keep_for_good(&pods[0]);
    world.service.heal_in_turn(&record).await.unwrap();
    assert_eq!(
        world.service.mounts.condition(&pods[1]).await.unwrap(),
        Condition::Healthy
    );
    assert_eq!(world.service.mounts.healing().failed(), 1);
    let told = [("PersistentVolumeClaim", "data", "MountFailed", 1)];
    world.cluster.until(|state| state.told() == told).await;
}

/// The mount decides whether a pod can write, not what is remembered of it.
#[tokio::test]
async fn a_read_only_target_that_became_writable_is_bound_anew() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::new();
    let service = service(kernel.clone(), folder.path());
    let staging = staged(&service, &folder).await;
    let target = folder.path().join("mount");
    let publish = async || {
        let request = NodePublishVolumeRequest {
            volume_id: "h".into(),
            staging_target_path: staging.display().to_string(),
            target_path: target.display().to_string(),
            volume_capability: Some(capability()),
            readonly: true,
            ..NodePublishVolumeRequest::default()
        };
        service.node_publish_volume(Request::new(request)).await.unwrap();
        service.mounts.mount_at(&target).await.unwrap().unwrap()
    };
    assert!(publish().await.read_only());
    kernel.publish(&target);
    kernel.change_options(&target, "rw");
    assert!(publish().await.read_only());
    assert!(kernel.uncovered().is_empty(), "{:?}", kernel.uncovered());
    assert_eq!(kernel.mounts(), [staging, target]);
}

/// A volume that works for one pod is not told to be broken because another pod's call failed.
#[tokio::test]
async fn a_failed_publish_is_not_the_condition_of_a_mounted_volume() {
    let folder = tempfile::tempdir().unwrap();
    let service = service(FakeKernel::new(), folder.path());
    let health = async || {
        let request = NodeGetVolumeHealthRequest {
            volume_id: "h".into(),
            ..NodeGetVolumeHealthRequest::default()
        };
        let health = service.node_get_volume_health(Request::new(request)).await;
        health.map(|health| health.into_inner().volume_health.unwrap().health_statuses)
    };
    let staging = folder.path().join("globalmount");
    let publish = async |target: &Path| {
        let request = NodePublishVolumeRequest {
            volume_id: "h".into(),
            staging_target_path: staging.display().to_string(),
            target_path: target.display().to_string(),
            volume_capability: Some(capability()),
            ..NodePublishVolumeRequest::default()
        };
        service.node_publish_volume(Request::new(request)).await
    };
    let (good, bad) = (folder.path().join("good"), folder.path().join("bad"));
    std::fs::write(&bad, "a file").unwrap();
    publish(&good).await.unwrap_err();
    let told = health().await.unwrap();
    assert_eq!(
        told[0].reason, "NotStaged",
        "nothing is mounted: the failure is all there is"
    );
    staged(&service, &folder).await;
    publish(&good).await.unwrap();
    let refused = publish(&bad).await.unwrap_err();
    assert!(refused.message().contains("TargetNotDirectory"), "{refused}");
    assert_eq!(health().await.unwrap(), []);
    // And it goes with its pod.
    let unpublish = |target: &Path| NodeUnpublishVolumeRequest {
        volume_id: "h".into(),
        target_path: target.display().to_string(),
    };
    service
        .node_unpublish_volume(Request::new(unpublish(&good)))
        .await
        .unwrap();
    std::fs::remove_file(&bad).unwrap();
    service
        .node_unpublish_volume(Request::new(unpublish(&bad)))
        .await
        .unwrap();
    service.mounts.stop(&staging).await.unwrap();
    assert_eq!(health().await.unwrap_err().code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn a_call_goes_on_when_its_caller_has_gone() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::new();
    let service = service(kernel.clone(), folder.path());
    let staging = staged(&service, &folder).await;
    let unstage = || {
        service.node_unstage_volume(Request::new(NodeUnstageVolumeRequest {
            volume_id: "h".into(),
            staging_target_path: staging.display().to_string(),
        }))
    };
    kernel.hold_commits(true);
    tokio::select! {
        ended = unstage() => panic!("it did not wait for the commit: {ended:?}"),
        () = until(|| kernel.mounts().is_empty()) => {}
    }
    let again = unstage().await.unwrap_err();
    assert_eq!(again.code(), tonic::Code::Aborted, "the first call is at work");
    kernel.hold_commits(false);
    until(|| service.mounts.records().is_empty()).await;
    // It lets go of the volume a moment later.
    while let Err(status) = unstage().await {
        assert_eq!(status.code(), tonic::Code::Aborted);
    }
}

/// Kubelet takes most codes to say that nothing is mounted, and has it never taken away then.
#[tokio::test]
async fn a_failure_is_not_final_while_something_may_be_mounted() {
    let kernel = FakeKernel::new();
    let folder = tempfile::tempdir().unwrap();
    let service = service(kernel.clone(), folder.path());
    let (staging, target) = (folder.path().join("globalmount"), folder.path().join("mount"));
    let account = map(&[("storageAccount", "acct"), ("containerName", "photos")]);
    let mut record = record("h", &staging, &account);
    record.secrets_given = Some(true);
    kernel.add(&staging, FS_TYPE);
    kernel.kill(&staging);
    service.mounts.remember(record).unwrap();
    let publish = async || {
        let request = NodePublishVolumeRequest {
            volume_id: "h".into(),
            staging_target_path: staging.display().to_string(),
            target_path: target.display().to_string(),
            volume_capability: Some(capability()),
            volume_context: account.clone(),
            ..NodePublishVolumeRequest::default()
        };
        let refused = service.node_publish_volume(Request::new(request)).await;
        refused.unwrap_err()
    };
    let refused = publish().await;
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
    let dead = kernel.table().unwrap().remove(0);
    kernel.bind_to(&dead, &target);
    let again = publish().await;
    assert_eq!(again.code(), tonic::Code::Unavailable, "{again}");
    assert_eq!(again.message(), refused.message(), "the reason stays");
    kernel.unmount(&target, true).unwrap();
    kernel.refuse_table(true);
    let unknown = publish().await;
    assert_eq!(unknown.code(), tonic::Code::Unavailable, "{unknown}");
    // A stage, too; what is wrong with its arguments is told as before.
    kernel.refuse_table(false);
    let stage = async |context: HashMap<String, String>| {
        let request = NodeStageVolumeRequest {
            volume_id: "h".into(),
            staging_target_path: staging.display().to_string(),
            volume_capability: Some(capability()),
            volume_context: context,
            secrets: map(&[("azurestorageaccountkey", "a2V5")]),
            ..NodeStageVolumeRequest::default()
        };
        let refused = service.node_stage_volume(Request::new(request)).await;
        refused.unwrap_err()
    };
    let unknown = stage(map(&[("contianerName", "photos")])).await;
    assert_eq!(unknown.code(), tonic::Code::InvalidArgument, "{unknown}");
    kernel.refuse_table(true);
    let unknown = stage(account.clone()).await;
    assert_eq!(unknown.code(), tonic::Code::Unavailable, "{unknown}");
}

/// Waits for a condition.
async fn until(mut met: impl FnMut() -> bool) {
    while !met() {
        tokio::task::yield_now().await;
    }
}
