//! What kubelet remembers of volumes and pods, and what it does because of that: its reconciler, the parts of
//! its CSI plugin that set up and tear down, and what it finds on the disk after a restart.
//!
//! - A volume is staged for a pod while it is not known to be mounted globally, and unstaged only when no pod
//!   of the node wants it any more. (`operation_generator.go`, `reconciler_common.go`)
//! - A call that did not end with a final error may have done its work: the mount is uncertain, and is taken
//!   away with its pod. After a final error nothing is there, and nothing is taken away.
//! - After a final error of a publish the pod's directory is removed, if nothing is mounted there: by kubelet
//!   1.30 always, by 1.34 unless kubelet was restarted since, by 1.37 (kubernetes#139045) only after the
//!   first publish.
//! - One operation at a time for a volume, but several pods at once are taken down. A call that took too long
//!   is repeated while it is still at work.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use csi_proto::csi::node_server::Node as _;
use csi_proto::csi::volume_capability::access_mode::Mode;
use csi_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use csi_proto::csi::*;
use futures::future::join_all;
use rand::Rng as _;
use tonic::{Code, Request, Status};

use super::super::tests::map;
use super::World;
use crate::csi::node::NodeService;

/// Which kubelet it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V1_30,
    V1_34,
    V1_37,
}

/// What a volume is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The account's key, which comes with the stage and with each publish.
    Key,
    /// Nothing: it can only be read.
    Anonymous,
    /// Nothing, and it is part of its pod.
    Inline,
}

/// What kubelet knows of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    NotMounted,
    Uncertain,
    Mounted,
}

#[derive(Debug, Clone)]
pub(super) struct Volume {
    pub(super) kind: Kind,
    /// The fsGroup of its pods.
    pub(super) group: u32,
    /// Its global mount.
    pub(super) device: Known,
    /// Known from the disk only.
    reconstructed: bool,
    /// Kubelet was restarted when no pod had it any more, and knows nothing of its global mount.
    pub(super) leaked: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Pod {
    pub(super) volume: usize,
    read_only: bool,
    pub(super) wanted: bool,
    pub(super) mount: Known,
    reconstructed: bool,
    /// Its containers have been started.
    pub(super) running: bool,
    /// The next look of kubelet publishes it again.
    pub(super) remount: bool,
}

#[derive(Debug, Default)]
pub(super) struct Kubelet {
    pub(super) volumes: Vec<Volume>,
    /// By their number, which is their UID.
    pub(super) pods: BTreeMap<u32, Pod>,
    next: u32,
}

impl Kubelet {
    pub(super) fn new(kinds: Vec<Kind>) -> Self {
        let volume = |kind| Volume {
            kind,
            group: 1000,
            device: Known::NotMounted,
            reconstructed: false,
            leaked: false,
        };
        Self {
            volumes: kinds.into_iter().map(volume).collect(),
            ..Self::default()
        }
    }

    pub(super) fn add(&mut self, volume: usize, read_only: bool, group: u32) -> u32 {
        let unused = self.pods.values().all(|pod| pod.volume != volume);
        // What is staged already stays as it is.
        if unused && self.volumes[volume].device == Known::NotMounted && !self.volumes[volume].leaked {
            self.volumes[volume].group = group;
        }
        self.next += 1;
        let pod = Pod {
            volume,
            read_only,
            wanted: true,
            mount: Known::NotMounted,
            reconstructed: false,
            running: false,
            remount: false,
        };
        self.pods.insert(self.next, pod);
        self.next
    }

    /// The pods of a volume, as far as they meet a condition.
    fn of(&self, volume: usize, meets: impl Fn(&Pod) -> bool) -> Vec<u32> {
        let pods = self.pods.iter();
        let pods = pods.filter(|(_, pod)| pod.volume == volume && meets(pod));
        pods.map(|(number, _)| *number).collect()
    }

    fn pod(&mut self, number: u32) -> &mut Pod {
        self.pods.get_mut(&number).unwrap()
    }
}

/// Whether an error says that nothing was done, as kubelet takes it.
fn is_final(status: &Status) -> bool {
    !matches!(
        status.code(),
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Unavailable
            | Code::ResourceExhausted
            | Code::Aborted
    )
}

const DATA: &str = "vol_data.json";

/// What kubelet writes beside a mount before it calls.
fn write_data(mount: &Path) {
    let folder = mount.parent().unwrap();
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join(DATA), "{}").unwrap();
}

impl World {
    pub(super) fn name(volume: usize) -> String {
        format!("vol{volume}")
    }

    pub(super) fn staging(&self, volume: usize) -> PathBuf {
        self.path("staging").join(Self::name(volume)).join("globalmount")
    }

    pub(super) fn target(&self, pod: u32) -> PathBuf {
        self.path("pods").join(pod.to_string()).join("v/mount")
    }

    fn volume_id(kind: Kind, volume: usize, pod: u32) -> String {
        match kind {
            Kind::Inline => format!("csi-{pod}"),
            Kind::Key | Kind::Anonymous => format!("handle-{volume}"),
        }
    }

    fn context(kind: Kind, volume: usize) -> Vec<(&'static str, String)> {
        let mut context = vec![
            ("storageAccount", "acct".to_owned()),
            ("containerName", Self::name(volume)),
        ];
        if kind != Kind::Key {
            context.push(("AzureStorageAuthType", "Anonymous".to_owned()));
        }
        context
    }

    fn capability(volume: &Volume) -> VolumeCapability {
        VolumeCapability {
            access_type: Some(AccessType::Mount(MountVolume {
                volume_mount_group: volume.group.to_string(),
                ..MountVolume::default()
            })),
            access_mode: Some(AccessMode {
                mode: Mode::MultiNodeMultiWriter as i32,
            }),
        }
    }

    fn secrets(kind: Kind) -> std::collections::HashMap<String, String> {
        match kind {
            Kind::Key => map(&[("azurestorageaccountkey", "a2V5")]),
            Kind::Anonymous | Kind::Inline => map(&[]),
        }
    }

    /// A call, which kubelet may have to make twice, and whose answer may be lost.
    async fn call<F>(&self, what: String, call: impl Fn(NodeService) -> F) -> Result<(), Status>
    where
        F: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let Some(service) = self.service() else {
            return Err(Status::unavailable("no process"));
        };
        if self.draws(self.repeats.get()) {
            self.steps.note(|| format!("  {what}: begun, and not waited for"));
            let first = tokio::spawn(call(service.clone()));
            let pause = self.rng.borrow_mut().random_range(0..40);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            if self.draws(0.5) {
                let _ = first.await;
            }
        }
        self.steps.note(|| format!("  {what}"));
        let mut result = call(service).await;
        self.steps.note(|| match &result {
            Ok(()) => format!("  {what}: done"),
            Err(status) => format!("  {what}: {:?}: {}", status.code(), status.message()),
        });
        if self.draws(self.repeats.get()) {
            self.steps.note(|| format!("  {what}: its answer is lost"));
            result = Err(Status::deadline_exceeded("lost"));
        }
        result
    }

    async fn stage(&self, number: usize) -> Result<(), Status> {
        let volume = self.kubelet.borrow().volumes[number].clone();
        let staging = self.staging(number);
        let request = NodeStageVolumeRequest {
            volume_id: Self::volume_id(volume.kind, number, 0),
            staging_target_path: staging.display().to_string(),
            volume_capability: Some(Self::capability(&volume)),
            secrets: Self::secrets(volume.kind),
            volume_context: owned(Self::context(volume.kind, number)),
            ..NodeStageVolumeRequest::default()
        };
        self.set_device(number, Known::Uncertain);
        write_data(&staging);
        std::fs::create_dir_all(&staging).unwrap();
        let staged = self
            .call(format!("stage {number}"), |service| {
                let request = request.clone();
                async move { service.node_stage_volume(Request::new(request)).await.map(drop) }
            })
            .await;
        match &staged {
            Ok(()) => {
                self.set_device(number, Known::Mounted);
                let volume = &mut self.kubelet.borrow_mut().volumes[number];
                (volume.reconstructed, volume.leaked) = (false, false);
            }
            Err(status) if is_final(status) => {
                self.remove_mount_dir(&staging);
                if !volume.reconstructed {
                    self.set_device(number, Known::NotMounted);
                }
            }
            Err(_) => {}
        }
        staged
    }

    fn set_device(&self, volume: usize, known: Known) {
        self.kubelet.borrow_mut().volumes[volume].device = known;
    }

    async fn unstage(&self, number: usize) {
        self.set_device(number, Known::Uncertain);
        let request = NodeUnstageVolumeRequest {
            volume_id: Self::volume_id(Kind::Key, number, 0),
            staging_target_path: self.staging(number).display().to_string(),
        };
        let unstaged = self
            .call(format!("unstage {number}"), |service| {
                let request = request.clone();
                async move { service.node_unstage_volume(Request::new(request)).await.map(drop) }
            })
            .await;
        if unstaged.is_ok() && self.remove_mount_dir(&self.staging(number)) {
            self.set_device(number, Known::NotMounted);
        }
    }

    async fn publish(&self, number: u32) {
        let (pod, volume) = {
            let kubelet = self.kubelet.borrow();
            let pod = kubelet.pods[&number].clone();
            let volume = kubelet.volumes[pod.volume].clone();
            (pod, volume)
        };
        let target = self.target(number);
        let mut context = Self::context(volume.kind, pod.volume);
        let inline = volume.kind == Kind::Inline;
        context.extend([
            ("csi.storage.k8s.io/ephemeral", inline.to_string()),
            ("csi.storage.k8s.io/pod.name", format!("pod-{number}")),
            ("csi.storage.k8s.io/pod.namespace", "team".to_owned()),
            ("csi.storage.k8s.io/pod.uid", number.to_string()),
        ]);
        let staging = match inline {
            true => String::new(),
            false => self.staging(pod.volume).display().to_string(),
        };
        let request = NodePublishVolumeRequest {
            volume_id: Self::volume_id(volume.kind, pod.volume, number),
            staging_target_path: staging,
            target_path: target.display().to_string(),
            volume_capability: Some(Self::capability(&volume)),
            readonly: pod.read_only,
            secrets: Self::secrets(volume.kind),
            volume_context: owned(context),
            ..NodePublishVolumeRequest::default()
        };
        let before = pod.mount;
        if before == Known::NotMounted {
            write_data(&target);
            self.kubelet.borrow_mut().pod(number).mount = Known::Uncertain;
        }
        let published = self
            .call(format!("publish {number} of {}", pod.volume), |service| {
                let request = request.clone();
                async move { service.node_publish_volume(Request::new(request)).await.map(drop) }
            })
            .await;
        match published {
            Ok(()) => {
                {
                    let mut kubelet = self.kubelet.borrow_mut();
                    let pod = kubelet.pod(number);
                    pod.mount = Known::Mounted;
                    (pod.reconstructed, pod.remount) = (false, false);
                    if !pod.running {
                        pod.running = true;
                        self.kernel.publish(&target);
                    }
                }
                self.look(number, false);
            }
            Err(status) if is_final(&status) => {
                let remount = before == Known::Mounted;
                let removes = match self.plan.version {
                    Version::V1_30 => true,
                    Version::V1_34 => !pod.reconstructed,
                    Version::V1_37 => !pod.reconstructed && !remount,
                };
                if removes {
                    self.remove_mount_dir(&target);
                }
                if !remount && !pod.reconstructed {
                    self.kubelet.borrow_mut().pod(number).mount = Known::NotMounted;
                }
            }
            Err(_) => {}
        }
    }

    async fn unpublish(&self, number: u32) {
        let (kind, volume) = {
            let mut kubelet = self.kubelet.borrow_mut();
            let pod = kubelet.pod(number);
            pod.mount = Known::Uncertain;
            let volume = pod.volume;
            (kubelet.volumes[volume].kind, volume)
        };
        let target = self.target(number);
        let request = NodeUnpublishVolumeRequest {
            volume_id: Self::volume_id(kind, volume, number),
            target_path: target.display().to_string(),
        };
        let unpublished = self
            .call(format!("unpublish {number} of {volume}"), |service| {
                let request = request.clone();
                async move {
                    service
                        .node_unpublish_volume(Request::new(request))
                        .await
                        .map(drop)
                }
            })
            .await;
        if unpublished.is_ok() && self.remove_mount_dir(&target) {
            self.kubelet.borrow_mut().pod(number).mount = Known::NotMounted;
        }
    }

    /// Removes a mount's directory and what is beside it, unless something is mounted there.
    fn remove_mount_dir(&self, mount: &Path) -> bool {
        if self.kernel.at(mount).is_some() {
            return false;
        }
        let folder = mount.parent().unwrap();
        let gone = |removed: std::io::Result<()>| {
            let failed = removed.err();
            failed.is_none_or(|error| error.kind() == std::io::ErrorKind::NotFound)
        };
        gone(std::fs::remove_dir(mount))
            && gone(std::fs::remove_file(folder.join(DATA)))
            && gone(std::fs::remove_dir(folder))
    }

    /// One look of the reconciler.
    pub(super) async fn reconcile(&self) {
        let volumes = self.kubelet.borrow().volumes.len();
        join_all((0..volumes).map(|volume| self.reconcile_volume(volume))).await;
        self.remove_pods();
    }

    async fn reconcile_volume(&self, volume: usize) {
        let known = |pod: &Pod| pod.mount != Known::NotMounted;
        let gone = self.kubelet.borrow().of(volume, |pod| !pod.wanted && known(pod));
        join_all(gone.into_iter().map(|pod| self.unpublish(pod))).await;
        let inline = self.kubelet.borrow().volumes[volume].kind == Kind::Inline;
        let wants = |pod: &Pod| pod.wanted && (pod.mount != Known::Mounted || pod.remount);
        let wanted = self.kubelet.borrow().of(volume, wants);
        let mount = async |pod| {
            let device = self.kubelet.borrow().volumes[volume].device;
            if inline || device == Known::Mounted || self.stage(volume).await.is_ok() {
                self.publish(pod).await;
            }
        };
        match inline {
            // Each is a volume of its own.
            true => drop(join_all(wanted.into_iter().map(mount)).await),
            false => {
                for pod in wanted {
                    mount(pod).await;
                }
            }
        }
        let unused = {
            let kubelet = self.kubelet.borrow();
            let device = kubelet.volumes[volume].device;
            device != Known::NotMounted && kubelet.of(volume, |pod| pod.wanted || known(pod)).is_empty()
        };
        if unused {
            self.unstage(volume).await;
        }
    }

    /// The directories of pods that are gone, as far as nothing is mounted there.
    fn remove_pods(&self) {
        let mut kubelet = self.kubelet.borrow_mut();
        kubelet.pods.retain(|number, pod| {
            if pod.wanted || pod.mount != Known::NotMounted {
                return true;
            }
            let target = self.target(*number);
            if !self.remove_mount_dir(&target) {
                // Its directory stays until somebody does something about it.
                return true;
            }
            let folder = target.parent().and_then(Path::parent).unwrap();
            matches!(std::fs::remove_dir(folder), Err(error) if error.kind() != std::io::ErrorKind::NotFound)
        });
    }

    /// A kubelet that knows what is on the disk only.
    pub(super) fn restart_kubelet(&self) {
        let mut kubelet = self.kubelet.borrow_mut();
        let kubelet = &mut *kubelet;
        for (number, pod) in &mut kubelet.pods {
            let found = self.target(*number).parent().unwrap().join(DATA).exists();
            pod.reconstructed = found;
            pod.mount = if found {
                Known::Uncertain
            } else {
                Known::NotMounted
            };
        }
        for (number, volume) in kubelet.volumes.iter_mut().enumerate() {
            let mut pods = kubelet.pods.values();
            let seen = pods.any(|pod| pod.volume == number && pod.mount != Known::NotMounted);
            let there = self.staging(number).exists();
            volume.reconstructed = seen && there;
            volume.leaked |= there && !seen;
            volume.device = match seen && there {
                true => Known::Uncertain,
                false => Known::NotMounted,
            };
        }
    }

    /// Looks at what a pod has: a mount of its own volume, as it wanted it, and served if it must be.
    pub(super) fn look(&self, number: u32, served: bool) {
        let kubelet = self.kubelet.borrow();
        let pod = &kubelet.pods[&number];
        let volume = &kubelet.volumes[pod.volume];
        let Some((top, serves)) = self.kernel.at(&self.target(number)) else {
            return self.wrong(format!("pod {number} has no mount"));
        };
        let source = format!("acct/{}", Self::name(pod.volume));
        if top.source != source {
            self.wrong(format!("pod {number} has {}, not {source}", top.source));
        }
        let read_only = pod.read_only || volume.kind != Kind::Key;
        if top.read_only() != read_only {
            self.wrong(format!(
                "pod {number} has a mount with read-only {}",
                top.read_only()
            ));
        }
        if served && !serves {
            self.wrong(format!("pod {number} has a dead mount"));
        }
    }
}

fn owned(pairs: Vec<(&'static str, String)>) -> std::collections::HashMap<String, String> {
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}
