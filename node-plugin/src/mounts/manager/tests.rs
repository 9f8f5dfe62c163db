//! The steps of a volume against a kernel in memory: healthy, dead, hung, busy.

use std::time::Duration;

use blob_fs::store::fake::FakeStore;
use blob_fs::{Budget, VolumeConfig};
use csi_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
use vsc_driver::buffer::Arena;

use super::super::fake::{FakeKernel, Health};
use super::*;
use crate::csi::capability::Access;

/// Short for what must time out, long for what must not.
const PATIENCE: Patience = Patience {
    answer: Duration::from_millis(100),
    mount: Duration::from_secs(60),
    unmount: Duration::from_millis(100),
    commit: Duration::from_secs(60),
};

struct House {
    kernel: Arc<FakeKernel>,
    mounts: Mounts,
    folder: tempfile::TempDir,
}

impl House {
    fn new() -> Self {
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

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn staging(&self) -> PathBuf {
        self.path("staging")
    }

    async fn start(&self) -> Result<()> {
        let record = Record::new("v", &self.staging(), access(), BTreeMap::new());
        self.mounts
            .start(record, VolumeConfig::new("acct/c", Arc::new(FakeStore::new())))
            .await
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
    assert_eq!(
        house.mounts.condition(&house.staging()).await.unwrap(),
        Condition::NotMounted
    );
    house.start().await.unwrap();
    assert_eq!(
        house.mounts.condition(&house.staging()).await.unwrap(),
        Condition::Healthy
    );

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
    let record = house.mounts.records().get(&house.staging()).unwrap();
    assert_eq!(record.targets.get(&pod), Some(&target(true)));

    house.mounts.unbind(&pod).await.unwrap();
    house.mounts.unbind(&pod).await.unwrap();
    assert!(!pod.exists());
    assert!(
        house
            .mounts
            .records()
            .get(&house.staging())
            .unwrap()
            .targets
            .is_empty()
    );

    house.mounts.stop(&house.staging()).await.unwrap();
    house.mounts.stop(&house.staging()).await.unwrap();
    assert!(house.kernel.mounts().is_empty());
    assert!(house.mounts.records().all().is_empty());
}

#[tokio::test]
async fn a_file_system_that_does_not_answer_is_taken_down_again() {
    let house = House::new();
    house.kernel.set(Health::Hung);
    let error = house.start().await.unwrap_err();
    assert_eq!(error.reason, Reason::FileSystemSilent, "{error}");
    assert!(house.kernel.mounts().is_empty());
    assert!(house.mounts.records().all().is_empty());
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
    house.kernel.refuse_mounts();
    let error = house.start().await.unwrap_err();
    assert_eq!(error.reason, Reason::MountFailed);
    assert!(error.message.contains("staging"), "{error}");
}

#[tokio::test]
async fn a_hung_mount_goes_within_bounds_and_its_connection_is_aborted() {
    let house = House::new();
    house.start().await.unwrap();
    house.kernel.set(Health::Hung);
    house.mounts.stop(&house.staging()).await.unwrap();
    assert!(house.kernel.mounts().is_empty());
    assert_eq!(house.kernel.aborted().len(), 1);
}

#[tokio::test]
async fn a_hung_bind_is_detached_and_its_siblings_live() {
    let house = House::new();
    house.start().await.unwrap();
    let pods = [house.path("1"), house.path("2")];
    for pod in &pods {
        house
            .mounts
            .bind(&house.staging(), pod, target(false))
            .await
            .unwrap();
    }
    house.kernel.set(Health::Hung);
    house.mounts.unbind(&pods[0]).await.unwrap();
    assert_eq!(house.kernel.mounts(), [house.staging(), pods[1].clone()]);
    assert!(house.kernel.aborted().is_empty());
}

#[tokio::test]
async fn a_busy_mount_stays_and_says_so() {
    let house = House::new();
    house.start().await.unwrap();
    house.kernel.set_busy(&house.staging());
    let error = house.mounts.stop(&house.staging()).await.unwrap_err();
    assert_eq!(error.reason, Reason::UnmountFailed);
    assert_eq!(
        house.mounts.condition(&house.staging()).await.unwrap(),
        Condition::Healthy
    );
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
    assert_eq!(mounts.records().get(&house.staging()).unwrap().volume_id, "v");
    assert!(matches!(
        mounts.condition(&house.staging()).await.unwrap(),
        Condition::Dead(_)
    ));
    mounts.stop(&house.staging()).await.unwrap();
    assert!(house.kernel.mounts().is_empty());
    assert!(mounts.records().all().is_empty());
}

#[tokio::test]
async fn after_a_reboot_nothing_is_left_to_remember() {
    let house = House::new();
    house.start().await.unwrap();
    house.mounts.forget_gone().await.unwrap();
    assert_eq!(house.mounts.records().all().len(), 1, "still mounted");
    let rebooted = House::open(&FakeKernel::new(), &house.folder);
    rebooted.forget_gone().await.unwrap();
    assert!(rebooted.records().all().is_empty());
}

#[tokio::test]
async fn shutting_down_leaves_what_pods_use() {
    let house = House::new();
    house.start().await.unwrap();
    let pod = house.path("1");
    house
        .mounts
        .bind(&house.staging(), &pod, target(false))
        .await
        .unwrap();
    assert_eq!(house.mounts.shut_down().await, 1);
    assert_eq!(house.kernel.mounts().len(), 2);
    house.mounts.unbind(&pod).await.unwrap();
    assert_eq!(house.mounts.shut_down().await, 0);
    assert!(house.kernel.mounts().is_empty());
}
