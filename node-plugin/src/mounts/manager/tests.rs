//! The steps of a volume against a kernel in memory: healthy, dead, hung, busy.

use std::time::Duration;

use blob_fs::store::fake::FakeStore;
use blob_fs::{Budget, VolumeConfig};
use csi_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
use vsc_driver::buffer::Arena;

use super::super::fake::{FakeKernel, Health};
use super::super::mountinfo::FS_TYPE;
use super::super::probe::Condition;
use super::super::record::Target;
use super::*;
use crate::access::Access;

/// Nothing of a test should come near it.
const LONG: Duration = Duration::from_secs(60);
/// For what hangs on purpose.
const SHORT: Duration = Duration::from_millis(50);

const PATIENCE: Patience = Patience {
    answer: LONG,
    local: LONG,
    mount: LONG,
    appear: LONG,
    unmount: LONG,
    commit: LONG,
    shut_down: LONG,
};

pub(crate) struct House {
    pub(crate) kernel: Arc<FakeKernel>,
    pub(crate) mounts: Mounts,
    folder: tempfile::TempDir,
}

impl House {
    pub(crate) fn new() -> Self {
        let kernel = FakeKernel::new();
        let folder = tempfile::tempdir().unwrap();
        let mounts = Self::open(&kernel, &folder);
        Self {
            kernel,
            mounts,
            folder,
        }
    }

    fn open(kernel: &Arc<FakeKernel>, folder: &tempfile::TempDir) -> Mounts {
        let resources = Resources {
            budget: Budget::new(32 << 20),
            arena: Arena::new(64 << 20).unwrap(),
            runtime: tokio::runtime::Handle::current(),
        };
        Mounts::new(kernel.clone(), resources, &folder.path().join("state"), PATIENCE).unwrap()
    }

    /// From here on calls to the kernel hang, and are not waited for.
    fn hang(&mut self) {
        (
            self.mounts.calls.patience.answer,
            self.mounts.calls.patience.unmount,
        ) = (SHORT, SHORT);
        self.kernel.set(Health::Hung);
    }

    async fn condition(&self) -> Condition {
        self.mounts.condition(&self.staging()).await.unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn staging(&self) -> PathBuf {
        self.path("staging")
    }

    /// Where the volume is remembered to be published.
    fn targets(&self) -> BTreeMap<PathBuf, Target> {
        self.mounts.record(&self.staging()).unwrap().targets
    }

    /// Starts the volume of the former process, with its targets.
    async fn start_as_before(&self) {
        let record = self.mounts.record(&self.staging()).unwrap();
        let config = VolumeConfig::new("acct/c", Arc::new(FakeStore::new()));
        self.mounts
            .start(record, config, Credentials::default())
            .await
            .unwrap();
    }

    async fn start(&self) -> Result<()> {
        let record = Record::new("v", &self.staging(), access(), BTreeMap::new());
        self.mounts
            .start(
                record,
                VolumeConfig::new("acct/c", Arc::new(FakeStore::new())),
                Credentials::default(),
            )
            .await
    }

    /// Starts the volume and binds it to a pod, whose target this is.
    async fn start_with_pod(&self) -> PathBuf {
        self.start().await.unwrap();
        let pod = self.path("1");
        let bound = self.mounts.bind(&self.staging(), &pod, target(false)).await;
        bound.unwrap();
        pod
    }
}

fn access() -> Access {
    let capability = csi_proto::csi::VolumeCapability {
        access_mode: Some(AccessMode {
            mode: Mode::MultiNodeMultiWriter as i32,
        }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    };
    Access::parse(Some(&capability), Reason::CapabilityExceeded).unwrap()
}

fn target(read_only: bool) -> Target {
    Target {
        read_only,
        access: access(),
    }
}

#[tokio::test]
async fn a_volume_is_mounted_bound_unbound_and_gone() {
    let house = House::new();
    assert_eq!(house.condition().await, Condition::NotMounted);
    house.start().await.unwrap();
    assert_eq!(house.condition().await, Condition::Healthy);

    let pod = house.path("pods/1/mount");
    house
        .mounts
        .bind(&house.staging(), &pod, target(true))
        .await
        .unwrap();
    assert!(pod.is_dir());
    assert!(house.mounts.mount_at(&pod).await.unwrap().unwrap().read_only());
    assert_eq!(
        house.mounts.bound_at(&house.staging()).await.unwrap(),
        std::slice::from_ref(&pod)
    );
    assert_eq!(house.targets().get(&pod), Some(&target(true)));

    house.mounts.unbind(&pod).await.unwrap();
    house.mounts.unbind(&pod).await.unwrap();
    assert!(!pod.exists());
    assert!(house.targets().is_empty());

    house.mounts.stop(&house.staging()).await.unwrap();
    house.mounts.stop(&house.staging()).await.unwrap();
    assert!(house.kernel.mounts().is_empty());
    assert!(house.mounts.records().is_empty());
}

#[tokio::test]
async fn a_file_system_that_does_not_answer_is_taken_down_again() {
    let mut house = House::new();
    house.hang();
    let error = house.start().await.unwrap_err();
    assert_eq!(error.reason, Reason::FileSystemSilent, "{error}");
    assert!(house.kernel.mounts().is_empty());
    assert!(house.mounts.records().is_empty());
}

#[tokio::test]
async fn no_more_volumes_than_the_limit() {
    let kernel = FakeKernel::new();
    let folder = tempfile::tempdir().unwrap();
    let mounts = House::open(&kernel, &folder);
    assert_eq!(mounts.limit(), 8, "32 MiB, 4 MiB each");
    let house = House {
        kernel,
        mounts: mounts.with_limit(1),
        folder,
    };
    house.mounts.room().unwrap();
    house.start().await.unwrap();
    let error = house.mounts.room().unwrap_err();
    assert_eq!(error.reason, Reason::TooManyVolumes);
    assert!(
        error.message.contains("serves 1 volumes") && error.message.contains("--max-volumes"),
        "{error}"
    );
    house.mounts.stop(&house.staging()).await.unwrap();
    house.mounts.room().unwrap();
}

#[tokio::test]
async fn a_refused_mount_is_told() {
    let house = House::new();
    house.kernel.refuse_mounts(true);
    let error = house.start().await.unwrap_err();
    assert_eq!(error.reason, Reason::MountFailed);
    assert!(error.message.contains("staging"), "{error}");
}

#[tokio::test]
async fn a_hung_mount_that_nobody_serves_goes_within_bounds() {
    let mut house = House::new();
    house.start().await.unwrap();
    // Another process serves it, and has stopped.
    house.mounts = House::open(&house.kernel, &house.folder);
    house.hang();
    assert!(matches!(house.condition().await, Condition::Dead(_)));
    house.mounts.stop(&house.staging()).await.unwrap();
    assert!(house.kernel.mounts().is_empty());
    assert_eq!(house.kernel.aborted().len(), 1);
}

#[tokio::test]
async fn a_mount_whose_abort_fails_is_detached_all_the_same() {
    let mut house = House::new();
    house.start().await.unwrap();
    house.mounts = House::open(&house.kernel, &house.folder);
    house.kernel.refuse_aborts();
    house.hang();
    house.mounts.stop(&house.staging()).await.unwrap();
    assert!(house.kernel.mounts().is_empty());
}

#[tokio::test]
async fn a_served_mount_is_never_aborted() {
    let mut house = House::new();
    house.start().await.unwrap();
    // The service fails, in each way that the file system has for it, and somebody has a file open.
    house.kernel.set_busy(&house.staging());
    for errno in [libc::EIO, libc::EACCES, libc::ENXIO, libc::ESTALE] {
        house.kernel.set(Health::Failing(errno));
        let condition = house.condition().await;
        assert!(
            matches!(condition, Condition::Silent(_)),
            "{errno}: {condition:?}"
        );
        let error = house.mounts.stop(&house.staging()).await.unwrap_err();
        assert_eq!(error.reason, Reason::UnmountFailed, "{error}");
    }
    // It takes longer than a call may.
    house.hang();
    assert!(matches!(house.condition().await, Condition::Silent(_)));
    let error = house.mounts.stop(&house.staging()).await.unwrap_err();
    assert_eq!(error.reason, Reason::UnmountFailed, "{error}");
    assert_eq!(house.kernel.mounts(), [house.staging()]);
    assert!(house.kernel.aborted().is_empty());
    assert_eq!(house.mounts.served(), 1);
    house.kernel.set(Health::Answering);
}

#[tokio::test]
async fn only_what_says_that_nobody_serves_it_is_dead() {
    let house = House::new();
    house.start().await.unwrap();
    for errno in [libc::ENOTCONN, libc::ECONNABORTED] {
        house.kernel.set(Health::Failing(errno));
        assert!(matches!(house.condition().await, Condition::Dead(_)), "{errno}");
    }
}

#[tokio::test]
async fn a_file_system_that_hangs_is_asked_once() {
    let mut house = House::new();
    house.start().await.unwrap();
    let asked = house.kernel.asked();
    house.hang();
    for _ in 0..10 {
        assert!(matches!(house.condition().await, Condition::Silent(_)));
    }
    assert_eq!(house.kernel.asked(), asked + 1);
    // The one that waits returns, and the next call asks again.
    house.kernel.set(Health::Answering);
    house.mounts.calls.patience.answer = LONG;
    while house.condition().await != Condition::Healthy {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_mount_that_comes_too_late_is_taken_away_and_its_successor_stays() {
    let mut house = House::new();
    house.kernel.hold_next_mount();
    house.mounts.calls.patience.mount = SHORT;
    let error = house.start().await.unwrap_err();
    assert_eq!(error.reason, Reason::MountFailed, "{error}");
    assert!(house.kernel.mounts().is_empty());
    house.mounts.calls.patience.mount = LONG;
    house.start().await.unwrap();
    house.kernel.let_mounts_go_on();
    house.kernel.until_dropped(1);
    assert_eq!(house.kernel.mounts(), [house.staging()]);
    assert_eq!(house.condition().await, Condition::Healthy);
    house.mounts.stop(&house.staging()).await.unwrap();
}

#[tokio::test]
async fn a_start_that_fails_leaves_all_as_it_was() {
    let mut house = House::new();
    house.start().await.unwrap();
    house.kernel.publish(&house.staging());
    house.kernel.kill(&house.staging());
    // The next process.
    house.mounts = House::open(&house.kernel, &house.folder);
    let before = house.mounts.record(&house.staging());
    for fails in ["mount", "answer", "attach"] {
        match fails {
            "mount" => house.kernel.refuse_mounts(true),
            "answer" => house.kernel.set(Health::Failing(libc::EIO)),
            _ => house.kernel.refuse_attach(true),
        }
        house.start().await.unwrap_err();
        house.kernel.refuse_mounts(false);
        house.kernel.set(Health::Answering);
        house.kernel.refuse_attach(false);
        assert_eq!(house.kernel.mounts(), [house.staging()], "{fails}");
        assert!(matches!(house.condition().await, Condition::Dead(_)), "{fails}");
        assert_eq!(house.mounts.record(&house.staging()), before, "{fails}");
        assert_eq!(house.mounts.served(), 0, "{fails}");
        assert_eq!(house.kernel.detached(), 0, "{fails}");
    }
    house.start().await.unwrap();
    assert_eq!(house.condition().await, Condition::Healthy);
    assert_eq!(
        house.kernel.mounts(),
        [house.staging()],
        "in the place of the dead one"
    );
    assert_eq!(
        house.kernel.aborted(),
        [100; 4],
        "each time before anything is to appear there: who waits for the dead one may hold locks"
    );
    assert!(
        house.kernel.uncovered().is_empty(),
        "{:?}",
        house.kernel.uncovered()
    );
}

#[tokio::test]
async fn a_dead_target_is_replaced_or_covered_and_never_bare() {
    for covers in [false, true] {
        a_dead_target(covers).await;
    }
}

async fn a_dead_target(covers: bool) {
    let mut house = House::new();
    if covers {
        house.kernel.covers();
    }
    house.start().await.unwrap();
    let (staging, pod) = (house.staging(), house.path("1"));
    house.mounts.bind(&staging, &pod, target(false)).await.unwrap();
    house.kernel.publish(&pod);
    house.kernel.kill(&staging);
    house.mounts = House::open(&house.kernel, &house.folder);
    house.start().await.unwrap();
    assert!(matches!(
        house.mounts.condition(&pod).await.unwrap(),
        Condition::Dead(_)
    ));
    house.kernel.bind_misses();
    house
        .mounts
        .bind(&staging, &pod, target(false))
        .await
        .unwrap_err();
    house.mounts.bind(&staging, &pod, target(false)).await.unwrap();
    assert_eq!(house.mounts.condition(&pod).await.unwrap(), Condition::Healthy);
    assert!(
        house.kernel.uncovered().is_empty(),
        "{:?}",
        house.kernel.uncovered()
    );
    // Both go with the pod.
    house.mounts.unbind(&pod).await.unwrap();
    house.mounts.stop(&staging).await.unwrap();
    assert!(house.kernel.mounts().is_empty());
}

/// What is still at work in the kernel may yet appear, and must not be taken for what the next call mounts.
#[tokio::test]
async fn an_attach_that_takes_too_long_is_cut_off_and_keeps_its_path() {
    let mut house = House::new();
    let staging = house.staging();
    for replaces in [false, true] {
        house.mounts.calls.patience.appear = SHORT;
        house.kernel.hold_appearing(true);
        let error = house.start().await.unwrap_err();
        assert_eq!(error.reason, Reason::MountFailed, "{error}");
        let newest = *house.kernel.aborted().last().unwrap();
        assert_eq!(house.mounts.served(), 0);
        let pending = house.mounts.enter("v", &staging).unwrap_err();
        assert_eq!(pending.reason, Reason::OperationPending, "{pending}");
        // Neither from a call at another path.
        let publish = house.mounts.enter("v", &house.path("1")).unwrap();
        let pending = house.start().await.unwrap_err();
        assert_eq!(pending.reason, Reason::OperationPending, "{pending}");
        drop(publish);
        house.kernel.hold_appearing(false);
        until(|| house.mounts.enter("v", &staging).is_ok()).await;
        if replaces {
            // It has ended, and what is below is the node's disk: it stays.
            let there = house.mounts.mount_at(&staging).await.unwrap().unwrap();
            assert_eq!(there.minor, newest);
        } else {
            assert!(house.kernel.mounts().is_empty());
        }
        house.mounts.calls.patience.appear = LONG;
        house.start().await.unwrap();
        assert_eq!(house.kernel.mounts(), std::slice::from_ref(&staging));
        assert_eq!(house.condition().await, Condition::Healthy);
        house.kernel.publish(&staging);
        house.kernel.kill(&staging);
        house.mounts = House::open(&house.kernel, &house.folder);
    }
    assert!(
        house.kernel.uncovered().is_empty(),
        "{:?}",
        house.kernel.uncovered()
    );
}

/// What is there for a moment takes what a pod writes.
#[tokio::test]
async fn a_mount_that_appears_and_fails_is_ended_and_commits() {
    for aborts in [true, false] {
        let house = House::new();
        house.kernel.appear_and_fail();
        if !aborts {
            house.kernel.refuse_aborts();
        }
        let error = house.start().await.unwrap_err();
        assert_eq!(error.reason, Reason::MountFailed, "{error}");
        assert_eq!(house.mounts.served(), 0);
        assert_eq!(house.kernel.aborted().len(), usize::from(aborts));
        // The next call waits for it.
        house.mounts.stop(&house.staging()).await.unwrap();
        assert_eq!(house.kernel.ends().last(), Some(&"join"));
        assert!(house.kernel.mounts().is_empty());
    }
}

#[tokio::test]
async fn a_bind_that_takes_too_long_is_taken_away_before_the_next_call() {
    let mut house = House::new();
    house.start().await.unwrap();
    let (staging, pod) = (house.staging(), house.path("1"));
    house.mounts.calls.patience.appear = SHORT;
    house.kernel.hold_appearing(true);
    let error = house
        .mounts
        .bind(&staging, &pod, target(false))
        .await
        .unwrap_err();
    assert_eq!(error.reason, Reason::MountFailed, "{error}");
    let pending = house.mounts.enter("v", &pod).unwrap_err();
    assert_eq!(pending.reason, Reason::OperationPending, "{pending}");
    // Neither from a call at another path.
    let pending = house.mounts.bind(&staging, &pod, target(false)).await;
    assert_eq!(pending.unwrap_err().reason, Reason::OperationPending);
    house.kernel.hold_appearing(false);
    until(|| house.mounts.enter("v", &pod).is_ok()).await;
    assert_eq!(house.kernel.mounts(), std::slice::from_ref(&staging));
    house.mounts.calls.patience.appear = LONG;
    house.mounts.bind(&staging, &pod, target(false)).await.unwrap();
    assert_eq!(house.mounts.condition(&pod).await.unwrap(), Condition::Healthy);
}

/// The kernel gives the number of a connection that has ended to the next one.
#[tokio::test]
async fn what_has_gone_meanwhile_is_not_aborted() {
    let house = House::new();
    house.start().await.unwrap();
    let there = house.mounts.mount_at(&house.staging()).await.unwrap().unwrap();
    house.kernel.unmount(&house.staging(), true).unwrap();
    house.mounts.calls.abort(&there).await.unwrap();
    assert!(house.kernel.aborted().is_empty());
}

/// Both pods of a volume get it back, also when one of them cannot.
#[tokio::test]
async fn dead_targets_are_bound_again_each_by_itself() {
    let mut house = House::new();
    house.start().await.unwrap();
    let staging = house.staging();
    let pods = ["1", "2", "3"].map(|name| house.path(name));
    for pod in &pods {
        house.mounts.bind(&staging, pod, target(false)).await.unwrap();
        house.kernel.publish(pod);
    }
    house.kernel.kill(&staging);
    house.mounts = House::open(&house.kernel, &house.folder);
    assert_eq!((house.mounts.dead(), house.mounts.served()), (1, 0));
    assert!(house.mounts.has_dead_targets(&staging).await.unwrap());
    let mut record = house.mounts.record(&staging).unwrap();
    record.targets = house.mounts.still_mounted(record.targets).await.unwrap();
    let config = VolumeConfig::new("acct/c", Arc::new(FakeStore::new()));
    house
        .mounts
        .start(record, config, Credentials::default())
        .await
        .unwrap();
    assert_eq!((house.mounts.dead(), house.mounts.served()), (0, 1));
    house.kernel.bind_misses();
    let rebound = house.mounts.rebind(&staging).await;
    assert!(
        rebound.failed.is_some() && rebound.lasting.is_none(),
        "{rebound:?}"
    );
    let states = async || {
        let mut healthy = 0;
        for pod in &pods {
            healthy += usize::from(house.mounts.condition(pod).await.unwrap() == Condition::Healthy);
        }
        healthy
    };
    assert_eq!(states().await, 2, "one has failed, and no other for it");
    let rebound = house.mounts.rebind(&staging).await;
    assert!(
        rebound.failed.is_none() && rebound.lasting.is_none(),
        "{rebound:?}"
    );
    assert_eq!(states().await, 3);
    assert!(!house.mounts.has_dead_targets(&staging).await.unwrap());
    assert_eq!(house.kernel.mounts().len(), 4);
    assert!(
        house.kernel.uncovered().is_empty(),
        "{:?}",
        house.kernel.uncovered()
    );
}

/// What only the end of a pod can mend is told apart from what the next attempt may.
#[tokio::test]
async fn a_target_that_cannot_be_replaced_is_told_apart() {
    let mut house = House::new();
    house.start().await.unwrap();
    let staging = house.staging();
    let pods = ["1", "2"].map(|name| house.path(name));
    for pod in &pods {
        house.mounts.bind(&staging, pod, target(false)).await.unwrap();
    }
    house.kernel.kill(&staging);
    house.mounts = House::open(&house.kernel, &house.folder);
    house.start_as_before().await;
    house.kernel.keep_for_good(&pods[0]);
    let rebound = house.mounts.rebind(&staging).await;
    assert!(rebound.failed.is_none(), "{rebound:?}");
    assert_eq!(
        rebound.lasting.map(|error| error.reason),
        Some(Reason::MountFailed)
    );
    assert_eq!(
        house.mounts.condition(&pods[1]).await.unwrap(),
        Condition::Healthy
    );
}

/// A kernel says so of what is there in that moment.
#[tokio::test]
async fn a_bind_that_is_not_supported_once_is_tried_again() {
    let mut house = House::new();
    house.start().await.unwrap();
    let (staging, pod) = (house.staging(), house.path("1"));
    house.mounts.bind(&staging, &pod, target(false)).await.unwrap();
    house.kernel.kill(&staging);
    house.mounts = House::open(&house.kernel, &house.folder);
    house.start_as_before().await;
    house.kernel.fail_next_bind(libc::EOPNOTSUPP);
    let rebound = house.mounts.rebind(&staging).await;
    assert!(
        rebound.failed.is_some() && rebound.lasting.is_none(),
        "{rebound:?}"
    );
    let rebound = house.mounts.rebind(&staging).await;
    assert!(rebound.failed.is_none() && rebound.lasting.is_none());
    assert_eq!(house.mounts.condition(&pod).await.unwrap(), Condition::Healthy);
}

/// Kubelet has not asked for it, and waits for the end.
#[tokio::test]
async fn nothing_is_made_anew_when_the_process_ends() {
    let mut house = House::new();
    house.start().await.unwrap();
    let staging = house.staging();
    house.kernel.kill(&staging);
    house.mounts = House::open(&house.kernel, &house.folder);
    let before = house.mounts.record(&staging).unwrap();
    let asked = house.kernel.asked();
    house.kernel.set(Health::Hung);
    {
        let config = VolumeConfig::new("acct/c", Arc::new(FakeStore::new()));
        let start = house
            .mounts
            .start_anew(before.clone(), config, Credentials::default());
        let mut start = std::pin::pin!(start);
        tokio::select! {
            ended = &mut start => panic!("it did not wait for an answer: {ended:?}"),
            () = until(|| house.kernel.asked() > asked) => {}
        }
        house.mounts.end_soon();
        let pending = start.await.unwrap_err();
        assert_eq!(pending.reason, Reason::OperationPending, "{pending}");
    }
    house.kernel.set(Health::Answering);
    assert_eq!(house.kernel.detached(), 0);
    assert_eq!(house.kernel.mounts(), std::slice::from_ref(&staging));
    assert!(matches!(house.condition().await, Condition::Dead(_)));
    assert_eq!(house.mounts.record(&staging), Some(before));
}

/// Nobody comes again for what is taken for alive.
#[tokio::test]
async fn a_target_of_which_nobody_can_say_is_tried_again() {
    let mut house = House::new();
    house.start().await.unwrap();
    let (staging, pod) = (house.staging(), house.path("1"));
    house.mounts.bind(&staging, &pod, target(false)).await.unwrap();
    house.kernel.kill(&staging);
    house.mounts = House::open(&house.kernel, &house.folder);
    house.start_as_before().await;
    house.kernel.refuse_table(true);
    let rebound = house.mounts.rebind(&staging).await;
    assert_eq!(rebound.failed.map(|error| error.reason), Some(Reason::NodeError));
    house.kernel.refuse_table(false);
    assert!(house.mounts.rebind(&staging).await.failed.is_none());
    assert_eq!(house.mounts.condition(&pod).await.unwrap(), Condition::Healthy);
}

/// Nothing is bound by a process that is about to end: it would have to be taken down again.
#[tokio::test]
async fn nothing_is_bound_again_when_the_process_ends() {
    let mut house = House::new();
    house.start().await.unwrap();
    let (staging, pod) = (house.staging(), house.path("1"));
    house.mounts.bind(&staging, &pod, target(false)).await.unwrap();
    house.kernel.kill(&staging);
    house.mounts = House::open(&house.kernel, &house.folder);
    house.start_as_before().await;
    house.mounts.end_soon();
    let failed = house.mounts.rebind(&staging).await.failed.unwrap();
    assert_eq!(failed.reason, Reason::OperationPending, "{failed}");
    assert!(house.mounts.has_dead_targets(&staging).await.unwrap());
}

/// Waits for a condition.
async fn until(mut met: impl FnMut() -> bool) {
    while !met() {
        tokio::task::yield_now().await;
    }
}

/// What a pod wrote while nothing was mounted is not hidden beneath a mount.
#[tokio::test]
async fn files_of_the_nodes_disk_are_told_and_not_covered() {
    let house = House::new();
    house.start().await.unwrap();
    let pod = house.path("1");
    std::fs::create_dir(&pod).unwrap();
    std::fs::write(pod.join("precious"), "x").unwrap();
    let error = house
        .mounts
        .bind(&house.staging(), &pod, target(false))
        .await
        .unwrap_err();
    assert_eq!(error.reason, Reason::FilesOnNodeDisk, "{error}");
    assert_eq!(house.kernel.mounts(), [house.staging()]);
    std::fs::remove_file(pod.join("precious")).unwrap();
    house
        .mounts
        .bind(&house.staging(), &pod, target(false))
        .await
        .unwrap();
}

#[tokio::test]
async fn what_is_not_committed_is_not_unmounted_well() {
    let mut house = House::new();
    house.start().await.unwrap();
    house.kernel.hold_commits(true);
    house.mounts.calls.patience.commit = SHORT;
    for _ in 0..2 {
        let error = house.mounts.stop(&house.staging()).await.unwrap_err();
        assert_eq!(error.reason, Reason::CommitPending, "{error}");
        assert_eq!(error.reason.code(), tonic::Code::Unavailable);
        assert_eq!(house.mounts.dead(), 0, "no pod gets ENOTCONN of it");
    }
    let error = house.start().await.unwrap_err();
    assert_eq!(error.reason, Reason::CommitPending, "{error}");
    assert_eq!(house.mounts.records().len(), 1, "kubelet comes again");
    house.kernel.hold_commits(false);
    house.mounts.calls.patience.commit = LONG;
    house.mounts.stop(&house.staging()).await.unwrap();
    assert!(house.mounts.records().is_empty());
    house.start().await.unwrap();
}

#[tokio::test]
async fn a_file_system_that_others_hold_does_not_keep_the_unmount() {
    let mut house = House::new();
    house.start().await.unwrap();
    house.kernel.hold_sessions(true);
    house.mounts.calls.patience.commit = SHORT;
    house.mounts.stop(&house.staging()).await.unwrap();
    assert!(house.mounts.records().is_empty());
    house.kernel.hold_sessions(false);
}

#[tokio::test]
async fn nothing_else_is_ever_bound() {
    let house = House::new();
    house.start().await.unwrap();
    let pod = house.path("1");
    // The mount has gone, and the directory beneath it would be bound.
    house.kernel.bind_misses();
    let error = house
        .mounts
        .bind(&house.staging(), &pod, target(false))
        .await
        .unwrap_err();
    assert_eq!(error.reason, Reason::MountFailed, "{error}");
    assert_eq!(house.kernel.mounts(), [house.staging()]);
    assert!(house.targets().is_empty());
}

#[tokio::test]
async fn a_path_belongs_to_the_volume_that_is_there() {
    let house = House::new();
    let pod = house.start_with_pod().await;
    let at = async |path: &Path| {
        let records = house.mounts.volumes_at(path).await.unwrap().into_iter();
        records.map(|record| record.volume_id).collect::<Vec<_>>()
    };
    assert_eq!(at(&house.staging()).await, ["v"]);
    assert_eq!(at(&pod).await, ["v"]);
    assert!(at(&house.path("2")).await.is_empty());
    // What is mounted counts for more than what another volume remembers.
    let mut other = Record::new("a", &house.path("a"), access(), BTreeMap::new());
    other.targets.insert(pod.clone(), target(false));
    other.targets.insert(house.path("2"), target(false));
    house.mounts.remember(other).unwrap();
    assert_eq!(at(&pod).await, ["v"]);
    assert_eq!(at(&house.path("2")).await, ["a"]);
    // Also when the process ended between the bind and its record.
    let forgotten = house
        .mounts
        .change_record(&house.staging(), |record| record.targets.clear());
    forgotten.unwrap();
    assert_eq!(at(&pod).await, ["v"]);
}

#[tokio::test]
async fn a_hung_bind_is_detached_and_its_siblings_live() {
    let mut house = House::new();
    house.start().await.unwrap();
    let pods = [house.path("1"), house.path("2")];
    for pod in &pods {
        house
            .mounts
            .bind(&house.staging(), pod, target(false))
            .await
            .unwrap();
    }
    house.hang();
    house.mounts.unbind(&pods[0]).await.unwrap();
    assert_eq!(house.kernel.mounts(), [house.staging(), pods[1].clone()]);
    assert!(house.kernel.aborted().is_empty());
    house.kernel.set(Health::Answering);
}

#[tokio::test]
async fn a_busy_mount_stays_and_says_so() {
    let house = House::new();
    house.start().await.unwrap();
    house.kernel.set_busy(&house.staging());
    let error = house.mounts.stop(&house.staging()).await.unwrap_err();
    assert_eq!(error.reason, Reason::UnmountFailed);
    assert_eq!(house.condition().await, Condition::Healthy);
}

#[tokio::test]
async fn somebody_elses_mount_is_left_alone() {
    let house = House::new();
    let path = house.path("t");
    std::fs::create_dir(&path).unwrap();
    house.kernel.add(&path, "tmpfs");
    assert_eq!(
        house.mounts.condition(&path).await.unwrap(),
        Condition::Foreign("tmpfs".into())
    );
    let error = house.mounts.unbind(&path).await.unwrap_err();
    assert_eq!(error.reason, Reason::TargetInUse);
    assert!(error.message.contains("tmpfs"), "{error}");
    assert_eq!(house.kernel.mounts(), [path]);
}

#[tokio::test]
async fn files_of_the_node_are_never_deleted() {
    let house = House::new();
    let path = house.path("t");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("precious"), "x").unwrap();
    let error = house.mounts.unbind(&path).await.unwrap_err();
    assert_eq!(error.reason, Reason::TargetInUse);
    assert!(path.join("precious").exists());
    let file = house.path("f");
    std::fs::write(&file, "x").unwrap();
    assert_eq!(
        house.mounts.unbind(&file).await.unwrap_err().reason,
        Reason::TargetNotDirectory
    );
    assert_eq!(
        house.mounts.prepare_target(&file).await.unwrap_err().reason,
        Reason::TargetNotDirectory
    );
    assert!(file.exists());
}

#[tokio::test]
async fn after_a_restart_the_dead_mount_is_known_and_can_be_cleaned() {
    let house = House::new();
    house.start().await.unwrap();
    // The process ends; the kernel keeps the mount, nobody serves it.
    house.kernel.set(Health::Dead);
    let mounts = House::open(&house.kernel, &house.folder);
    assert_eq!(mounts.record(&house.staging()).unwrap().volume_id, "v");
    assert!(matches!(
        mounts.condition(&house.staging()).await.unwrap(),
        Condition::Dead(_)
    ));
    mounts.stop(&house.staging()).await.unwrap();
    assert!(house.kernel.mounts().is_empty());
    assert!(mounts.records().is_empty());
}

#[tokio::test]
async fn after_a_reboot_nothing_is_left_to_remember() {
    let house = House::new();
    house.start().await.unwrap();
    house.mounts.forget_gone().await.unwrap();
    assert_eq!(house.mounts.records().len(), 1, "still mounted");
    let rebooted = House::open(&FakeKernel::new(), &house.folder);
    rebooted.forget_gone().await.unwrap();
    assert!(rebooted.records().is_empty());
}

/// Kubelet takes it for staged still, and stages it again only when no pod of the node wants it.
#[tokio::test]
async fn what_no_pod_has_at_the_end_is_remembered_until_the_machine_restarts() {
    let house = House::new();
    house.start().await.unwrap();
    assert_eq!(house.mounts.shut_down().await, 0);
    assert!(house.kernel.mounts().is_empty());
    let next = House::open(&house.kernel, &house.folder);
    next.forget_gone().await.unwrap();
    let mut record = next.record(&house.staging()).expect("forgotten");
    assert_eq!(next.dead(), 0, "no pod gets ENOTCONN of it");
    // A process that is killed while it ends has not unmounted it yet.
    house.kernel.add(&house.staging(), FS_TYPE);
    let killed = House::open(&house.kernel, &house.folder);
    killed.forget_gone().await.unwrap();
    assert_eq!(killed.dead(), 1);
    house.kernel.unmount(&house.staging(), true).unwrap();
    record.set_aside = Some("another boot".into());
    next.remember(record.clone()).unwrap();
    let rebooted = House::open(&house.kernel, &house.folder);
    rebooted.forget_gone().await.unwrap();
    assert!(rebooted.records().is_empty());
    // Unstaged.
    next.remember(record).unwrap();
    next.stop(&house.staging()).await.unwrap();
    assert!(next.records().is_empty());
}

/// The process may be killed in between.
#[tokio::test]
async fn what_is_mounted_again_is_remembered_on_the_way() {
    let house = House::new();
    house.start().await.unwrap();
    house.mounts.shut_down().await;
    let staging = house.staging();
    let next = House::open(&house.kernel, &house.folder);
    let record = next.record(&staging).expect("forgotten");
    house.kernel.hold_appearing(true);
    let config = VolumeConfig::new("acct/c", Arc::new(FakeStore::new()));
    let start = next.start(record, config, Credentials::default());
    let look = async {
        while next.served() == 0 {
            tokio::task::yield_now().await;
        }
        let after_a_kill = House::open(&house.kernel, &house.folder);
        after_a_kill.forget_gone().await.unwrap();
        let known = after_a_kill.record(&staging).is_some();
        house.kernel.hold_appearing(false);
        known
    };
    let (started, known) = tokio::join!(start, look);
    started.unwrap();
    assert!(known, "forgotten on the way");
    assert_eq!(next.record(&staging).unwrap().set_aside, None);
}

#[tokio::test]
async fn shutting_down_leaves_what_pods_use() {
    let house = House::new();
    house.start_with_pod().await;
    assert_eq!(house.mounts.shut_down().await, 1);
    assert_eq!(house.kernel.mounts().len(), 2);
    assert_eq!(house.mounts.records().len(), 1, "the next process knows it");
    // What pods wrote while most was being committed is committed too, and they can write no more.
    assert_eq!(house.kernel.ends(), ["sync", "abort", "join"]);
}

#[tokio::test]
async fn the_end_leaves_what_nobody_can_say_is_unused() {
    let house = House::new();
    let pod = house.start_with_pod().await;
    house.kernel.refuse_table(true);
    assert_eq!(house.mounts.shut_down().await, 1);
    assert_eq!(house.kernel.mounts(), [house.staging(), pod]);
    assert_eq!(house.mounts.records().len(), 1, "the next process knows it");
    assert_eq!(house.kernel.ends(), ["sync", "abort", "join"]);
}

#[tokio::test]
async fn the_end_commits_what_it_cannot_unmount() {
    let house = House::new();
    house.start().await.unwrap();
    house.kernel.set_busy(&house.staging());
    assert_eq!(house.mounts.shut_down().await, 1);
    assert_eq!(house.kernel.mounts(), [house.staging()]);
    assert_eq!(house.mounts.records().len(), 1, "the next process knows it");
    assert_eq!(house.kernel.ends(), ["sync", "abort", "join"]);
}

#[tokio::test]
async fn a_call_does_not_wait_for_a_commit_when_the_process_ends() {
    let house = House::new();
    house.start().await.unwrap();
    house.kernel.hold_commits(true);
    let staging = house.staging();
    let stop = house.mounts.stop(&staging);
    let end = async {
        while !house.kernel.mounts().is_empty() {
            tokio::task::yield_now().await;
        }
        house.mounts.end_soon();
    };
    let (stopped, ()) = tokio::join!(stop, end);
    assert_eq!(stopped.unwrap_err().reason, Reason::CommitPending);
    // The end does: what was accepted is in the service before the process is gone.
    let release = async { house.kernel.hold_commits(false) };
    let (left, ()) = tokio::join!(house.mounts.shut_down(), release);
    assert_eq!(left, 0);
    assert_eq!(house.kernel.ends(), ["join"]);
}

#[tokio::test]
async fn the_time_of_the_end_runs_from_its_announcement() {
    let mut house = House::new();
    house.start().await.unwrap();
    house.kernel.hold_commits(true);
    house.mounts.calls.patience.shut_down = SHORT;
    house.mounts.end_soon();
    // Not from here: calls at work may have had it all.
    house.mounts.calls.patience.shut_down = LONG;
    assert_eq!(house.mounts.shut_down().await, 1);
    house.kernel.hold_commits(false);
}

#[tokio::test]
async fn the_end_waits_for_a_call_at_work() {
    let house = House::new();
    house.start().await.unwrap();
    let call = house.mounts.enter("v", &house.staging()).unwrap();
    let mut ends = std::pin::pin!(house.mounts.shut_down());
    assert!(futures::poll!(&mut ends).is_pending());
    assert_eq!(house.kernel.mounts(), [house.staging()]);
    drop(call);
    assert_eq!(ends.await, 0);
    assert!(house.kernel.mounts().is_empty());
}

/// What a call binds whose caller has gone is used by a pod, whichever path the call is at.
#[tokio::test]
async fn the_end_waits_for_a_publish_of_the_volume() {
    let house = House::new();
    house.start().await.unwrap();
    let (staging, pod) = (house.staging(), house.path("1"));
    let call = house.mounts.enter("v", &pod).unwrap();
    let mut ends = std::pin::pin!(house.mounts.shut_down());
    assert!(futures::poll!(&mut ends).is_pending());
    assert_eq!(house.kernel.mounts(), std::slice::from_ref(&staging));
    house.mounts.bind(&staging, &pod, target(false)).await.unwrap();
    drop(call);
    assert_eq!(ends.await, 1);
    assert_eq!(house.kernel.mounts(), [staging.clone(), pod]);
    assert_eq!(house.kernel.ends(), ["sync", "abort", "join"]);
    let closed = house.mounts.enter("v", &staging).unwrap_err();
    assert_eq!(closed.reason, Reason::OperationPending, "{closed}");
}

#[tokio::test]
async fn the_end_waits_for_a_start() {
    let house = House::new();
    let call = house.mounts.enter("v", &house.staging()).unwrap();
    let mut ends = std::pin::pin!(house.mounts.shut_down());
    assert!(futures::poll!(&mut ends).is_pending());
    house.start().await.unwrap();
    drop(call);
    assert_eq!(ends.await, 0);
    assert!(house.kernel.mounts().is_empty());
    assert_eq!(house.kernel.ends(), ["join"]);
}

/// A publish makes a dead volume anew at another path than the one it is at work for.
#[tokio::test]
async fn the_end_waits_for_a_start_inside_of_a_publish() {
    let house = House::new();
    let (staging, pod) = (house.staging(), house.path("1"));
    let call = house.mounts.enter("v", &pod).unwrap();
    let mut ends = std::pin::pin!(house.mounts.shut_down());
    assert!(futures::poll!(&mut ends).is_pending());
    house.start().await.unwrap();
    house.mounts.bind(&staging, &pod, target(false)).await.unwrap();
    drop(call);
    assert_eq!(ends.await, 1, "the pod's mount stays");
    assert_eq!(house.kernel.ends(), ["sync", "abort", "join"]);
}

/// A mount that somebody takes away from outside leaves its session behind, with what it has accepted.
#[tokio::test]
async fn a_session_without_a_mount_is_committed_before_the_next() {
    let house = House::new();
    house.start().await.unwrap();
    house.kernel.unmount(&house.staging(), true).unwrap();
    house.start().await.unwrap();
    assert_eq!(house.kernel.ends(), ["join"]);
    assert_eq!(house.mounts.served(), 1);
}

#[tokio::test]
async fn all_volumes_end_at_once_and_within_one_limit() {
    let mut house = House::new();
    let paths = ["1", "2", "3", "4"].map(|name| house.path(name));
    for path in &paths {
        let record = Record::new(&path.display().to_string(), path, access(), BTreeMap::new());
        let config = VolumeConfig::new("acct/c", Arc::new(FakeStore::new()));
        house
            .mounts
            .start(record, config, Credentials::default())
            .await
            .unwrap();
    }
    // None of them can commit, and the process does not wait for ever.
    house.kernel.hold_commits(true);
    house.mounts.calls.patience.shut_down = SHORT;
    assert_eq!(house.mounts.shut_down().await, 4);
    // One after the other, the first would keep the others from being begun with.
    house.mounts.calls.patience.shut_down = LONG;
    house.mounts.end_by.send_replace(None);
    let all_begun = async {
        while !house.kernel.mounts().is_empty() {
            tokio::task::yield_now().await;
        }
        house.kernel.hold_commits(false);
    };
    let (left, ()) = tokio::join!(house.mounts.shut_down(), all_begun);
    assert_eq!(
        left, 0,
        "what had begun to end the first time is waited for as well"
    );
}
