//! A CSI client over the unix socket, as kubelet and the provisioner are.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use csi_proto::csi::controller_client::ControllerClient;
use csi_proto::csi::identity_client::IdentityClient;
use csi_proto::csi::node_client::NodeClient;
use csi_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume, access_mode};
use csi_proto::csi::{
    CreateVolumeRequest, DeleteVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// The services behind one socket.
#[derive(Debug, Clone)]
pub struct CsiClient {
    /// `csi.v1.Identity`
    pub identity: IdentityClient<Channel>,
    /// `csi.v1.Controller`
    pub controller: ControllerClient<Channel>,
    /// `csi.v1.Node`
    pub node: NodeClient<Channel>,
}

impl CsiClient {
    /// Connects to a socket that is being listened on.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let path = socket.to_owned();
        // The address is not used: the connector below decides.
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
            .await
            .with_context(|| format!("connecting to {}", socket.display()))?;
        Ok(Self {
            identity: IdentityClient::new(channel.clone()),
            controller: ControllerClient::new(channel.clone()),
            node: NodeClient::new(channel),
        })
    }
}

/// A file system that several nodes write to, with mount options.
pub fn mount_capability(flags: &[&str]) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode {
            mode: access_mode::Mode::MultiNodeMultiWriter.into(),
        }),
        access_type: Some(AccessType::Mount(MountVolume {
            mount_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            ..MountVolume::default()
        })),
    }
}

/// One volume with what its calls have in common.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Id, empty before it is created.
    pub id: String,
    /// Attributes of the volume.
    pub context: HashMap<String, String>,
    /// Key, SAS or nothing.
    pub secrets: HashMap<String, String>,
    /// Global mount of the node.
    pub staging: PathBuf,
    /// Where the pod sees it.
    pub target: PathBuf,
}

impl Volume {
    /// CreateVolume under this name with the volume's context as parameters.
    pub fn create(&self, name: &str) -> CreateVolumeRequest {
        CreateVolumeRequest {
            name: name.to_owned(),
            parameters: self.context.clone(),
            secrets: self.secrets.clone(),
            volume_capabilities: vec![mount_capability(&[])],
            ..CreateVolumeRequest::default()
        }
    }

    /// DeleteVolume.
    pub fn delete(&self) -> DeleteVolumeRequest {
        DeleteVolumeRequest {
            volume_id: self.id.clone(),
            secrets: self.secrets.clone(),
        }
    }

    /// NodeStageVolume.
    pub fn stage(&self) -> NodeStageVolumeRequest {
        NodeStageVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: text(&self.staging),
            volume_capability: Some(mount_capability(&[])),
            volume_context: self.context.clone(),
            secrets: self.secrets.clone(),
            ..NodeStageVolumeRequest::default()
        }
    }

    /// NodePublishVolume.
    pub fn publish(&self) -> NodePublishVolumeRequest {
        NodePublishVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: text(&self.staging),
            target_path: text(&self.target),
            volume_capability: Some(mount_capability(&[])),
            volume_context: self.context.clone(),
            secrets: self.secrets.clone(),
            ..NodePublishVolumeRequest::default()
        }
    }

    /// NodeUnpublishVolume.
    pub fn unpublish(&self) -> NodeUnpublishVolumeRequest {
        NodeUnpublishVolumeRequest {
            volume_id: self.id.clone(),
            target_path: text(&self.target),
        }
    }

    /// NodeUnstageVolume.
    pub fn unstage(&self) -> NodeUnstageVolumeRequest {
        NodeUnstageVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: text(&self.staging),
        }
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
