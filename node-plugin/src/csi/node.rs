//! Node service: volumes on this node, from staging to statistics.

mod heal;
mod health;
#[cfg(test)]
mod kubelet;
mod publish;
mod renewal;
mod stage;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use csi_proto::csi::node_server::Node;
use csi_proto::csi::node_service_capability::{self, Rpc, rpc};
use csi_proto::csi::*;
use tonic::{Code, Request, Response, Status};
use tracing::Instrument as _;

use super::connect::Connector;
use super::{answer, required};
use crate::cluster::{Link, ObjectRef, VolumeAt};
use crate::error::{Error, Reason, Result};
use crate::mounts::Mounts;

pub(crate) use self::health::unstored;

/// What the node can do. VOLUME_CONDITION is read by kubelets up to 1.36, GET_VOLUME_HEALTH and
/// GET_STORAGE_HEALTH by later ones; all three carry the same facts.
const CAPABILITIES: [rpc::Type; 7] = [
    rpc::Type::StageUnstageVolume,
    rpc::Type::GetVolumeStats,
    rpc::Type::VolumeCondition,
    rpc::Type::SingleNodeMultiWriter,
    rpc::Type::VolumeMountGroup,
    rpc::Type::GetVolumeHealth,
    rpc::Type::GetStorageHealth,
];

/// Keys of a volume context that kubelet sets anew for each pod; they say nothing about the volume.
const PER_POD: &str = "csi.storage.k8s.io/";

/// The service.
#[derive(Debug, Clone)]
pub struct NodeService {
    node_id: String,
    mounts: Arc<Mounts>,
    connector: Connector,
    device: Option<PathBuf>,
    link: Option<Link>,
}

impl NodeService {
    /// A service of this node. `device` is the channel's device node, for NodeGetStorageHealth.
    pub fn new(node_id: &str, mounts: Arc<Mounts>, connector: Connector, device: Option<PathBuf>) -> Self {
        Self {
            node_id: node_id.to_owned(),
            mounts,
            connector,
            device,
            link: None,
        }
    }

    /// The same in a cluster: failures become Events, and Secrets are read by name.
    pub fn in_cluster(mut self, link: Link) -> Self {
        self.link = Some(link);
        self
    }

    /// Tells the cluster about a failure.
    fn report(&self, volume_id: &str, path: &str, error: &Error, tell: impl FnOnce(&Link, VolumeAt)) {
        // "Another call is at work" is nobody's trouble.
        if error.reason == Reason::OperationPending || volume_id.is_empty() {
            return;
        }
        if let Some(link) = &self.link {
            let (handle, path) = (volume_id.to_owned(), PathBuf::from(path));
            tell(link, VolumeAt { handle, path });
        }
    }

    /// Remembers how a call ended, by its path as it was given.
    fn note(&self, volume_id: &str, path: &str, failure: Option<&Error>) {
        self.mounts.note(volume_id, Path::new(path), failure);
    }

    /// The answer to a call that mounts something at a path, spelled as it was given.
    ///
    /// Kubelet takes most codes to say that nothing is there, and would never have it taken away. While
    /// something is, or may be, the call is to be repeated, unless its arguments are wrong.
    async fn answer_mount<T>(
        &self,
        rpc: &'static str,
        volume_id: &str,
        path: &str,
        result: Result<T>,
    ) -> Result<Response<T>, Status> {
        let code = result.as_ref().err().map(|error| error.reason.code());
        let is_final = matches!(
            code,
            Some(
                Code::Internal
                    | Code::NotFound
                    | Code::FailedPrecondition
                    | Code::PermissionDenied
                    | Code::Unauthenticated
            )
        );
        let mut answer = answer(rpc, volume_id, result);
        if let Err(status) = &mut answer
            && is_final
            && let Ok(path) = resolved("path", path)
            && self.mounts.may_be_mounted(&path).await
        {
            let (message, metadata) = (status.message().to_owned(), status.metadata().clone());
            *status = Status::with_metadata(Code::Unavailable, message, metadata);
        }
        answer
    }

    /// Runs a call to its end also when nobody waits for it any more: the server drops a call whose caller
    /// has gone (kubelet's deadline, a closed connection), and what it had done by then would be a mount
    /// without a record.
    async fn to_its_end<T, F>(&self, call: impl FnOnce(Self) -> F) -> Result<Response<T>, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<Response<T>, Status>> + Send + 'static,
    {
        let ended = tokio::spawn(call(self.clone()).in_current_span()).await;
        ended.unwrap_or_else(|error| {
            let error = Error::new(Reason::NodeError, format!("the call did not end well: {error}"));
            Err(error.into())
        })
    }
}

/// A path of a request: absolute, and spelled as the mount table spells it (the parent's links resolved; the
/// path itself may be a dead mount that must not be touched).
fn resolved(field: &str, path: &str) -> Result<PathBuf> {
    let path = Path::new(required(field, path)?);
    if !path.is_absolute() {
        return Err(Error::new(
            Reason::InvalidValue,
            format!("{field}: {} is not absolute", path.display()),
        ));
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::new(
            Reason::InvalidValue,
            format!("{field}: {} names no directory", path.display()),
        ));
    };
    Ok(match parent.canonicalize() {
        Ok(parent) => parent.join(name),
        Err(_) => path.to_owned(),
    })
}

/// The part of a volume context that belongs to the volume, comparable.
fn stable_context(context: &HashMap<String, String>) -> BTreeMap<String, String> {
    let lower = context
        .iter()
        .map(|(key, value)| (key.to_ascii_lowercase(), value.clone()));
    lower.filter(|(key, _)| !key.starts_with(PER_POD)).collect()
}

/// The pod of a publish, as kubelet names it in the volume context (CSIDriver `podInfoOnMount`).
pub(super) fn pod_of(context: &HashMap<String, String>) -> Option<ObjectRef> {
    let get = |key: &str| context.get(&format!("{PER_POD}pod.{key}")).cloned();
    Some(ObjectRef {
        kind: "Pod",
        namespace: get("namespace")?,
        name: get("name")?,
        uid: get("uid")?,
    })
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        self.to_its_end(|node| async move {
            let result = node.stage(&request).await;
            let (id, path) = (&request.volume_id, &request.staging_target_path);
            node.note(id, path, result.as_ref().err());
            if let Err(error) = &result {
                node.report(id, path, error, |link, volume| {
                    let (reason, message) = (error.reason.to_string(), error.to_string());
                    link.reporter.failed(volume, &reason, &message);
                });
            }
            let result = result.map(|()| NodeStageVolumeResponse {});
            node.answer_mount("NodeStageVolume", id, path, result).await
        })
        .await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        self.to_its_end(|node| async move {
            let result = node.unstage(&request).await;
            if result.is_ok() {
                node.mounts.forget_failures(&request.volume_id);
            }
            answer(
                "NodeUnstageVolume",
                &request.volume_id,
                result.map(|()| NodeUnstageVolumeResponse {}),
            )
        })
        .await
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        self.to_its_end(|node| async move {
            let result = node.publish(&request).await;
            let (id, path) = (&request.volume_id, &request.target_path);
            node.note(id, path, result.as_ref().err());
            if let Err(error) = &result {
                node.report(id, path, error, |link, volume| {
                    let (reason, message) = (error.reason.to_string(), error.to_string());
                    link.reporter.failed(volume, &reason, &message);
                });
            }
            let result = result.map(|()| NodePublishVolumeResponse {});
            node.answer_mount("NodePublishVolume", id, path, result).await
        })
        .await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        self.to_its_end(|node| async move {
            let result = node.unpublish(&request).await;
            if result.is_ok() {
                node.note(&request.volume_id, &request.target_path, None);
            }
            answer(
                "NodeUnpublishVolume",
                &request.volume_id,
                result.map(|()| NodeUnpublishVolumeResponse {}),
            )
        })
        .await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let result = self.stats(&request).await;
        answer("NodeGetVolumeStats", &request.volume_id, result)
    }

    async fn node_get_volume_health(
        &self,
        request: Request<NodeGetVolumeHealthRequest>,
    ) -> Result<Response<NodeGetVolumeHealthResponse>, Status> {
        let request = request.into_inner();
        let result = self.volume_health(&request).await;
        answer("NodeGetVolumeHealth", &request.volume_id, result)
    }

    async fn node_get_storage_health(
        &self,
        _: Request<NodeGetStorageHealthRequest>,
    ) -> Result<Response<NodeGetStorageHealthResponse>, Status> {
        Ok(Response::new(self.storage_health()))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let capability = |r#type: rpc::Type| NodeServiceCapability {
            r#type: Some(node_service_capability::Type::Rpc(Rpc {
                r#type: r#type as i32,
            })),
        };
        let capabilities = CAPABILITIES.map(capability).to_vec();
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        Ok(Response::new(NodeGetInfoResponse {
            node_id: self.node_id.clone(),
            max_volumes_per_node: i64::try_from(self.mounts.limit()).unwrap_or(i64::MAX),
            accessible_topology: None,
        }))
    }
}

#[cfg(test)]
mod tests;
