//! The RPCs against the real node and controller: what goes well, and what each kind of bad input is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A failed unwrap is a failed test.

#[path = "csi/bad_input.rs"]
mod bad_input;
#[path = "csi/checks.rs"]
mod checks;
#[path = "csi/controller.rs"]
mod controller;
#[path = "csi/lending.rs"]
mod lending;
#[path = "csi/owners.rs"]
mod owners;
#[path = "csi/restarts.rs"]
mod restarts;
#[path = "csi/rotation.rs"]
mod rotation;
#[path = "csi/traces.rs"]
mod traces;
#[path = "csi/volumes.rs"]
mod volumes;

use std::collections::HashMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blob_client::Metadata;
use csi_proto::csi::volume_capability::access_mode::Mode;
use csi_proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use csi_proto::csi::*;
use e2e::harness::backend::{Backend, Kind};
use e2e::harness::csi::{CsiClient, Volume, mount_capability};
use e2e::harness::plugin::{Plugin, Surroundings, attributes, secrets};
use e2e::harness::{PATIENCE, runtime, wait_for};
use e2e::store::{AccountKey, DEV_ACCOUNT, DEV_KEY, Fault, FaultRule, Operation, SasOptions};
use nix::sys::signal::Signal;
use tokio::sync::watch;
use tonic::{Code, Status};

/// A plugin, a service with one container `photos`, and a client of both halves.
struct World {
    node: CsiClient,
    controller: CsiClient,
    // Dropped in this order: the mounts before what they stand on.
    plugin: Plugin,
    backend: Backend,
}

impl World {
    fn new() -> Self {
        Self::new_in(Surroundings::default())
    }

    fn new_in(surroundings: Surroundings) -> Self {
        let backend = Backend::start(Kind::Embedded).unwrap();
        backend.create_container("photos").unwrap();
        let plugin = Plugin::start_in(None, surroundings).unwrap();
        Self {
            node: plugin.node().unwrap(),
            controller: plugin.controller().unwrap(),
            plugin,
            backend,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.plugin.folder().join(name)
    }

    /// A static volume on `photos`, with a staging directory as kubelet makes it.
    fn volume(&self, more: &[(&str, &str)]) -> Volume {
        let mut context = attributes(&self.backend, &[("containerName", "photos")]);
        context.extend(more.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        let staging = self.path("staging");
        std::fs::create_dir_all(&staging).unwrap();
        Volume {
            id: "static-photos".into(),
            context,
            secrets: secrets(),
            staging,
            target: self.path("pods/1/mount"),
        }
    }

    fn stage(&self, request: NodeStageVolumeRequest) -> Result<NodeStageVolumeResponse, Status> {
        call(self.node.node.clone().node_stage_volume(request))
    }
    fn publish(&self, request: NodePublishVolumeRequest) -> Result<NodePublishVolumeResponse, Status> {
        call(self.node.node.clone().node_publish_volume(request))
    }
    fn unpublish(&self, request: NodeUnpublishVolumeRequest) -> Result<NodeUnpublishVolumeResponse, Status> {
        unless_busy(|| call(self.node.node.clone().node_unpublish_volume(request.clone())))
    }
    fn unstage(&self, request: NodeUnstageVolumeRequest) -> Result<NodeUnstageVolumeResponse, Status> {
        unless_busy(|| call(self.node.node.clone().node_unstage_volume(request.clone())))
    }
    fn stats(&self, volume: &Volume, path: &Path) -> Result<NodeGetVolumeStatsResponse, Status> {
        call(
            self.node
                .node
                .clone()
                .node_get_volume_stats(NodeGetVolumeStatsRequest {
                    volume_id: volume.id.clone(),
                    volume_path: path.display().to_string(),
                    staging_target_path: String::new(),
                }),
        )
    }
    fn create(&self, request: CreateVolumeRequest) -> Result<csi_proto::csi::Volume, Status> {
        call(self.controller.controller.clone().create_volume(request)).map(|r| r.volume.unwrap())
    }
    fn delete(&self, id: &str) -> Result<DeleteVolumeResponse, Status> {
        call(
            self.controller
                .controller
                .clone()
                .delete_volume(DeleteVolumeRequest {
                    volume_id: id.to_owned(),
                    secrets: secrets(),
                }),
        )
    }
    /// CreateVolume of this name and class.
    fn wanted(&self, name: &str, class: &[(&str, &str)]) -> CreateVolumeRequest {
        CreateVolumeRequest {
            name: name.to_owned(),
            parameters: attributes(&self.backend, class),
            secrets: secrets(),
            volume_capabilities: vec![mount_capability(&[])],
            capacity_range: Some(CapacityRange {
                required_bytes: 1 << 30,
                limit_bytes: 0,
            }),
            ..CreateVolumeRequest::default()
        }
    }
    fn exists(&self, container: &str) -> bool {
        let view = self.backend.container(container).unwrap();
        runtime().block_on(view.client().properties()).is_ok()
    }
    fn put(&self, container: &str, blob: &str) {
        let view = self.backend.container(container).unwrap();
        view.write(blob, &b"hello"[..], &Metadata::new()).unwrap();
    }
    fn has(&self, container: &str, blob: &str) -> bool {
        let view = self.backend.container(container).unwrap();
        view.blobs().unwrap().contains_key(blob)
    }
}

/// One call, with a limit: a call that hangs is a failure with a name.
fn call<T>(rpc: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    let limited = async { tokio::time::timeout(PATIENCE, rpc).await };
    runtime()
        .block_on(limited)
        .expect("the call did not return")
        .map(tonic::Response::into_inner)
}

/// How long a mount may be in use without a reason.
const BUSY: Duration = Duration::from_secs(5);

/// Repeats an unmount as kubelet does. Busy for a moment is no error: a process that another test is just
/// starting holds a copy of every descriptor of this one until it has become its program.
fn unless_busy<T>(mut rpc: impl FnMut() -> Result<T, Status>) -> Result<T, Status> {
    wait_for("the mount not to be in use", BUSY, || match rpc() {
        Err(status) if status.message().contains("busy") && status.message().ends_with("[UnmountFailed]") => {
            Ok(None)
        }
        result => Ok(Some(result)),
    })
    .unwrap()
}

/// A way to the service that nothing passes until it is opened.
struct Gate {
    /// For the attribute `server`.
    server: String,
    open: watch::Sender<bool>,
    arrived: watch::Receiver<usize>,
}

impl Gate {
    fn new(world: &World) -> Self {
        let service = world.backend.endpoint();
        let to = (service.host_str().unwrap().to_owned(), service.port().unwrap());
        let listener = runtime()
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let server = format!("http://{}/{DEV_ACCOUNT}", listener.local_addr().unwrap());
        let (open, opened) = watch::channel(false);
        let (told, arrived) = watch::channel(0);
        runtime().spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                told.send_modify(|clients| *clients += 1);
                let (mut opened, to) = (opened.clone(), to.clone());
                tokio::spawn(async move {
                    // An error is a gate that was dropped, and a service or client that has gone.
                    if opened.wait_for(|open| *open).await.is_err() {
                        return;
                    }
                    if let Ok(mut service) = tokio::net::TcpStream::connect(to).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut service).await;
                    }
                });
            }
        });
        Self {
            server,
            open,
            arrived,
        }
    }

    /// Waits until somebody stands before it.
    fn until_somebody_waits(&mut self) {
        let arrived = self.arrived.wait_for(|clients| *clients > 0);
        runtime()
            .block_on(async { tokio::time::timeout(PATIENCE, arrived).await.map(|r| r.map(drop)) })
            .expect("nobody came")
            .unwrap();
    }

    fn open(&self) {
        self.open.send_replace(true);
    }
}

/// The refusal has this code, this reason, and names these things.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, reason: &str, names: &[&str]) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    assert!(
        status.message().ends_with(&format!("[{reason}]")),
        "{}",
        status.message()
    );
    assert!(status.details().is_empty(), "the specification wants no details");
    for name in names {
        assert!(
            status.message().contains(name),
            "{name:?} is not in: {}",
            status.message()
        );
    }
    assert!(
        !status.message().contains(DEV_KEY),
        "a secret in: {}",
        status.message()
    );
}

fn mounts(path: &Path) -> usize {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table
        .lines()
        .filter(|l| l.split(' ').nth(4).is_some_and(|at| Path::new(at) == path))
        .count()
}

/// Options of the mount at a path, as mountinfo lists them.
fn mount_options(path: &Path) -> String {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let fields = table
        .lines()
        .map(|l| l.split(' ').collect::<Vec<_>>())
        .find(|f| Path::new(f[4]) == path);
    fields.unwrap()[5].to_owned()
}

fn capability(mode: Mode) -> Option<VolumeCapability> {
    let mut capability = mount_capability(&[]);
    capability.access_mode = Some(AccessMode { mode: mode.into() });
    Some(capability)
}
